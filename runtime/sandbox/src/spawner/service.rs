//! The spawner's loop and what it knows.

use super::client::{Client, Incoming};
use super::jobs::Job;
use super::namespaces::{Home, PodNamespaces};
use super::records::Records;
use crate::cgroup::{Cgroup, Layout};
use crate::config::{ContainerId, PodConfig};
use crate::kernel::process::{self, Death};
use crate::logs::Pump;
use crate::protocol::{Answer, Failure, Tell};
use crate::seccomp::Filters;
use crate::state::Exit;
use jiff::Timestamp;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{SockFlag, accept4};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A pod that has its namespaces.
#[derive(Debug)]
pub struct Pod {
    /// What it was made from.
    pub config: PodConfig,
    /// `None` after the spawner that made it has died.
    pub namespaces: Option<PodNamespaces>,
    /// Where its tmpfs volumes are mounted in its mount namespace.
    pub tmpfs: Vec<PathBuf>,
}

/// A container.
#[derive(Debug)]
pub struct Container {
    /// Its pod.
    pub pod: String,
    /// What it does.
    pub state: State,
    /// Write end of its standard input, or its terminal.
    pub stdin: Option<OwnedFd>,
    /// Its output.
    pub log: Log,
    /// Its environment, which processes executed in it get too.
    pub env: Vec<(String, String)>,
}

/// A container's output. The read ends stay here until the log pump has drained them: a pump may die.
#[derive(Debug)]
pub struct Log {
    /// Its number at the log pump.
    pub number: u64,
    /// The log file.
    pub path: PathBuf,
    /// Read ends of stdout and stderr, or one terminal.
    pub outputs: Vec<OwnedFd>,
}

/// What a container does.
#[derive(Debug)]
pub enum State {
    /// A builder works on it; a SIGKILL that came meanwhile waits.
    Starting {
        /// Kill it as soon as it runs.
        kill: bool,
    },
    /// Its init runs.
    Running {
        /// Process id.
        pid: i32,
        /// The same, as a descriptor.
        pidfd: OwnedFd,
        /// When its program was executed.
        started_at: Timestamp,
    },
    /// Its init was reaped. What else is in its cgroup is being killed: what that uses until it is gone is the container's.
    Ending {
        /// How it ended.
        death: Death,
        /// When its program was executed.
        started_at: Timestamp,
        /// When it was reaped.
        finished_at: Timestamp,
        /// The first kill.
        since: Instant,
        /// The next one.
        again: Instant,
    },
    /// Its end is recorded on disk, and told when its log is whole: or then, when the log pump hangs.
    Draining {
        /// Its end.
        exit: Exit,
        /// When it is told at the latest.
        until: Instant,
    },
    /// Its end was told.
    Exited(Exit),
}

impl State {
    /// For messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Starting { .. } => "starting",
            Self::Running { .. } | Self::Ending { .. } | Self::Draining { .. } => "running",
            Self::Exited(_) => "exited",
        }
    }
}

/// What a job's end means.
#[derive(Debug)]
pub enum Purpose {
    /// A container is being built for this request.
    Start {
        /// The request.
        request: u64,
        /// The container.
        container: ContainerId,
    },
    /// A process is being started in a container for this request.
    Exec {
        /// The request.
        request: u64,
        /// Our ends of its streams, for the answer.
        streams: Vec<OwnedFd>,
    },
    /// Something is being removed for this request.
    Remove {
        /// The request.
        request: u64,
        /// The pod, where it is a whole one.
        pod: Option<String>,
    },
}

/// A process that we know by its id.
#[derive(Debug)]
enum Child {
    Init(ContainerId),
    Exec(u64),
}

struct Unclaimed {
    death: Death,
    at: Timestamp,
    seen: Instant,
}

/// Everything.
pub struct Service {
    pub(super) dir: PathBuf,
    pub(super) instance: String,
    pub(super) layout: Layout,
    pub(super) records: Records,
    pub(super) home: Home,
    pub(super) pods: HashMap<String, Pod>,
    pub(super) containers: HashMap<ContainerId, Container>,
    pub(super) jobs: HashMap<i32, (Job, Purpose)>,
    pub(super) pump: Option<Pump>,
    pub(super) next_log: u64,
    pub(super) filters: HashMap<u64, Filters>,
    pub(super) ending: bool,
    /// Other runtimes have a place to keep what they know.
    pub(super) foreign_ready: bool,
    /// Requests for a list that wait until no container is starting and no pod is being removed.
    pub(super) lists: Vec<u64>,
    /// Pods whose removal is under way or failed half way, and the claims of their users.
    pub(super) half_removed: HashMap<String, Option<OwnedFd>>,
    children: HashMap<i32, Child>,
    /// Deaths of processes whose builder has not yet said who they are.
    unclaimed: BTreeMap<i32, Unclaimed>,
    clients: Vec<Client>,
    signals: SignalFd,
    listener: OwnedFd,
    /// Kept for what its existence does.
    _favour: Option<OwnedFd>,
}

/// Blocks SIGCHLD (and what would end us by accident) and gives the descriptor that tells of it.
pub fn signals() -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    set.thread_block()?;
    let mut ignored = SigSet::empty();
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM, Signal::SIGPIPE] {
        ignored.add(signal);
    }
    ignored.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// What became ready in one turn.
enum Ready {
    Signal,
    Listener,
    Pump(PollFlags),
    Client(usize, PollFlags),
    Job(i32),
}

impl Service {
    /// An empty one.
    pub fn new(
        dir: &Path,
        instance: &str,
        layout: Layout,
        signals: SignalFd,
        pump: Pump,
        listener: OwnedFd,
        favour: Option<OwnedFd>,
    ) -> io::Result<Self> {
        for place in ["build", "shm"] {
            super::records::make_private(&dir.join(place))?;
        }
        Ok(Self {
            dir: dir.to_owned(),
            instance: instance.to_owned(),
            layout,
            records: Records::open(dir)?,
            home: Home::here()?,
            pods: HashMap::new(),
            containers: HashMap::new(),
            jobs: HashMap::new(),
            pump: Some(pump),
            next_log: 0,
            filters: HashMap::new(),
            ending: false,
            foreign_ready: false,
            lists: Vec::new(),
            children: HashMap::new(),
            unclaimed: BTreeMap::new(),
            half_removed: HashMap::new(),
            clients: Vec::new(),
            signals,
            listener,
            _favour: favour,
        })
    }

    /// A pod's cgroup.
    pub fn pod_cgroup(&self, uid: &str) -> Cgroup<'_> {
        Cgroup::pod(&self.layout, &self.instance, uid)
    }

    /// A container's cgroup.
    pub fn container_cgroup(&self, uid: &str, id: &ContainerId) -> Cgroup<'_> {
        self.pod_cgroup(uid).child(id.as_str())
    }

    /// Where a container is while it is being made.
    pub fn nursery(&self, id: &ContainerId) -> Cgroup<'_> {
        Cgroup::nursery(&self.layout, &self.instance, id.as_str())
    }

    /// Serves until it is told to end.
    pub fn run(&mut self) -> io::Result<()> {
        while !self.ending {
            for ready in self.wait()? {
                match ready {
                    Ready::Signal => {
                        while let Ok(Some(_)) = self.signals.read_signal() {}
                        self.reap();
                    }
                    Ready::Listener => self.accept(),
                    Ready::Pump(events) => self.serve_pump(events),
                    Ready::Client(index, events) => self.serve_client(index, events),
                    Ready::Job(pid) => self.finish_job(pid, false),
                }
            }
            self.end_rests();
        }
        Ok(())
    }

    fn wait(&self) -> io::Result<Vec<Ready>> {
        let mut fds = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
        ];
        let mut what = vec![Ready::Signal, Ready::Listener];
        if let Some(pump) = &self.pump {
            let mut events = PollFlags::POLLIN;
            events.set(PollFlags::POLLOUT, pump.has_waiting());
            fds.push(PollFd::new(pump.fd(), events));
            what.push(Ready::Pump(events));
        }
        // Outcomes before the newest requests.
        for (pid, (job, _)) in &self.jobs {
            fds.push(PollFd::new(job.fd(), PollFlags::POLLIN));
            what.push(Ready::Job(*pid));
        }
        for (index, client) in self.clients.iter().enumerate() {
            let mut events = PollFlags::POLLIN;
            if client.has_waiting() {
                events |= PollFlags::POLLOUT;
            }
            fds.push(PollFd::new(client.fd(), events));
            what.push(Ready::Client(index, events));
        }
        loop {
            match poll(&mut fds, self.next_kill()) {
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        let mut ready = Vec::new();
        for (fd, what) in fds.iter().zip(what) {
            let events = fd.revents().unwrap_or(PollFlags::empty());
            if !events.is_empty() {
                ready.push(match what {
                    Ready::Client(index, _) => Ready::Client(index, events),
                    Ready::Pump(_) => Ready::Pump(events),
                    other => other,
                });
            }
        }
        // Closing clients changes their places: the last ones first.
        ready.sort_by_key(|ready| {
            std::cmp::Reverse(if let Ready::Client(index, _) = ready { *index } else { usize::MAX })
        });
        Ok(ready)
    }

    #[expect(unsafe_code, reason = "the descriptor arrives as a number")]
    fn accept(&mut self) {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        if let Ok(fd) = accept4(self.listener.as_raw_fd(), flags) {
            // SAFETY: accept4 has just returned it to us alone.
            self.clients.push(Client::new(unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }

    fn serve_client(&mut self, index: usize, events: PollFlags) {
        let Some(client) = self.clients.get_mut(index) else { return };
        if events.contains(PollFlags::POLLOUT) && !client.flush() {
            self.clients.remove(index);
            return;
        }
        if !events.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            return;
        }
        match client.receive() {
            None => {}
            Some(Incoming::Gone) => {
                self.clients.remove(index);
            }
            Some(Incoming::Greeted) => {
                // The newest one acts: those before it are closed and hear no more.
                self.clients.drain(..index);
                let exits: Vec<Exit> = self
                    .containers
                    .values()
                    .filter_map(
                        |container| if let State::Exited(exit) = &container.state { Some(exit.clone()) } else { None },
                    )
                    .collect();
                for exit in exits {
                    self.tell(&Tell::Exit(exit), Vec::new());
                }
            }
            Some(Incoming::Request(request, fds)) => self.handle(*request, fds),
        }
    }

    /// Tells the gateway that acts.
    pub fn tell(&mut self, message: &Tell, fds: Vec<OwnedFd>) {
        if let Some(client) = self.clients.first_mut()
            && !client.tell(message, fds)
        {
            self.clients.remove(0);
        }
    }

    /// Answers a request.
    pub fn answer(&mut self, id: u64, answer: Result<Answer, Failure>, fds: Vec<OwnedFd>) {
        self.tell(&Tell::Answer { id, answer }, fds);
    }

    /// Reaps all that has died.
    pub fn reap(&mut self) {
        while let Some(death) = process::reap() {
            if self.jobs.contains_key(&death.pid) {
                self.finish_job(death.pid, true);
            } else if let Some(child) = self.children.remove(&death.pid) {
                self.child_died(child, death, Timestamp::now());
            } else if self.pump.as_ref().is_some_and(|pump| pump.pid == death.pid) {
                say!("the log pump has died: {death:?}");
                self.restart_pump();
            } else {
                let unclaimed = Unclaimed { death, at: Timestamp::now(), seen: Instant::now() };
                self.unclaimed.insert(death.pid, unclaimed);
            }
        }
        // No job can speak of what died before it began: another process may have that number by now.
        let oldest = self.jobs.values().map(|(job, _)| job.began).min();
        self.unclaimed.retain(|_, unclaimed| oldest.is_some_and(|oldest| unclaimed.seen >= oldest));
    }

    /// A builder says that this process is a container's init. It may have died already.
    pub fn adopt_init(&mut self, pid: i32, container: ContainerId) {
        self.adopt(pid, Child::Init(container));
    }

    /// A job says that this process was started for this exec request. It may have died already.
    pub fn adopt_exec(&mut self, pid: i32, request: u64) {
        self.adopt(pid, Child::Exec(request));
    }

    fn adopt(&mut self, pid: i32, child: Child) {
        match self.unclaimed.remove(&pid) {
            Some(Unclaimed { death, at, .. }) => self.child_died(child, death, at),
            None => {
                self.children.insert(pid, child);
            }
        }
    }

    fn child_died(&mut self, child: Child, death: Death, at: Timestamp) {
        match child {
            Child::Exec(id) => self.tell(&Tell::ExecExit { id, code: death.code }, Vec::new()),
            Child::Init(id) => self.container_died(&id, death, at),
        }
    }
}
