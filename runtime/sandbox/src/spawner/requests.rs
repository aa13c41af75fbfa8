//! What the gateway can ask for.

use super::jobs::{self, Job};
use super::namespaces;
use super::records::PodRecord;
use super::service::{Container, Pod, Purpose, Service, State};
use crate::capabilities::CapabilitySet;
use crate::config::{ContainerConfig, ContainerId, ExecConfig, Limits, PodConfig, Seccomp};
use crate::create::spec::Joined;
use crate::create::{self, Blueprint};
use crate::exec;
use crate::kernel::{mount, process};
use crate::logs;
use crate::protocol::{self, Answer, Ask, Failure, KnownContainer, KnownPod, Request};
use crate::seccomp::{self, Filters};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};
use std::time::{Duration, Instant};

/// How long removal waits for the kernel to let go of a cgroup.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(20);

/// A good answer and the descriptors that go with it; `None` when a job will answer.
type Handled = Result<Option<(Answer, Vec<OwnedFd>)>, Failure>;

fn done() -> Handled {
    Ok(Some((Answer::Done, Vec::new())))
}

impl Service {
    /// Carries out one request, or starts the job that does.
    pub fn handle(&mut self, request: Request, fds: Vec<OwnedFd>) {
        let id = request.id;
        let handled = match request.ask {
            Ask::Warm => {
                self.warm();
                return;
            }
            Ask::CreatePod { pod, netns } => self.create_pod(pod, netns, fds),
            Ask::StartContainer { container, mount_fds } => self.start_container(id, *container, &mount_fds, fds),
            Ask::Exec { container, exec } => self.exec(id, &container, &exec),
            Ask::Signal { container, signal } => self.signal(&container, signal),
            Ask::AttachStdin { container } => self.attach_stdin(&container),
            Ask::CloseStdin { container } => self.close_stdin(&container),
            Ask::UpdateLimits { pod, container, limits } => {
                self.update_limits(pod.as_deref(), container.as_ref(), &limits)
            }
            Ask::RemoveContainer { container } => self.remove_container(id, &container),
            Ask::RemovePod { uid } => self.remove_pod(id, &uid),
            Ask::Usage { container } => self.usage(&container),
            Ask::MountTmpfs { pod, path, size } => self.mount_tmpfs(&pod, &path, size),
            Ask::PodNetwork { uid } => self.pod_network(&uid),
            Ask::List => Ok(Some((Answer::Pods(self.list()), Vec::new()))),
            Ask::Shutdown => {
                self.shut_down();
                done()
            }
        };
        match handled {
            Ok(None) => {}
            Ok(Some((answer, fds))) => self.answer(id, Ok(answer), fds),
            Err(failure) => self.answer(id, Err(failure), Vec::new()),
        }
    }

    /// Moves ourselves to where we are: the write takes the locks that the next start needs, and nothing else.
    fn warm(&self) {
        if let Some(hierarchy) = self.layout.hierarchies.first() {
            let own = hierarchy.root.join(format!("carob-{}/spawner/cgroup.procs", self.instance));
            let _ = fs::write(own, "0");
        }
    }

    fn pod(&self, uid: &str) -> Result<&Pod, Failure> {
        self.pods.get(uid).ok_or_else(|| Failure::NoPod(uid.to_owned()))
    }

    fn container(&self, id: &ContainerId) -> Result<&Container, Failure> {
        self.containers.get(id).ok_or_else(|| Failure::NoContainer(id.to_string()))
    }

    fn create_pod(&mut self, config: PodConfig, netns: bool, fds: Vec<OwnedFd>) -> Handled {
        let valid = !config.uid.is_empty()
            && config.uid.len() <= 128
            && config.uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        if !valid {
            return Err(Failure::config("uid", "must be letters, digits, '-' and '_'"));
        }
        if self.pods.contains_key(&config.uid) {
            return Err(Failure::PodExists(config.uid));
        }
        let net = if netns { fds.into_iter().next() } else { None };
        if netns && net.is_none() {
            return Err(Failure::config("netns", "did not arrive"));
        }
        namespaces::check_sysctls(&config, net.is_some())?;
        let cgroup = self.pod_cgroup(&config.uid);
        let own_network = net.is_some();
        let shm = self.dir.join("shm");
        let made = cgroup
            .create(true)
            .and_then(|()| cgroup.limit(&config.limits))
            .map_err(|error| Failure::sandbox("cgroup", error))
            .and_then(|()| namespaces::make(&self.home, &config, net, &shm, &cgroup));
        let namespaces = match made {
            Ok(namespaces) => namespaces,
            Err(failure) => {
                cgroup.kill(Duration::from_secs(1));
                if let Err(error) = cgroup.remove(Duration::from_secs(1)) {
                    eprintln!("cgroup left behind: {error}");
                }
                return Err(failure);
            }
        };
        let record = PodRecord { config, own_network };
        self.records.write_pod(&record).map_err(|error| Failure::sandbox("record", error))?;
        let config = record.config;
        let uid = config.uid.clone();
        self.pods.insert(uid, Pod { config, namespaces: Some(namespaces), tmpfs: Vec::new() });
        done()
    }

    #[expect(unsafe_code, reason = "forks")]
    fn start_container(
        &mut self,
        request: u64,
        mut config: ContainerConfig,
        mount_fds: &[usize],
        fds: Vec<OwnedFd>,
    ) -> Handled {
        let begun = Instant::now();
        let id = config.id.clone();
        if self.containers.contains_key(&id) {
            return Err(Failure::ContainerExists(id.to_string()));
        }
        check_container(&config)?;
        for (index, fd) in mount_fds.iter().zip(fds) {
            if let Some(mount) = config.mounts.get_mut(*index) {
                mount.source_fd = Some(fd);
            }
        }
        let filters = self.filters_of(&config)?;
        let uid = config.pod_uid.clone();
        let pod = self.pods.get(&uid).ok_or_else(|| Failure::NoPod(uid.clone()))?;
        let namespaces = pod.namespaces.as_ref().ok_or_else(|| Failure::WrongState {
            id: uid.clone(),
            state: "without namespaces: its spawner died".to_owned(),
        })?;
        self.records.write_container(&config).map_err(|error| Failure::sandbox("record", error))?;
        let log = self.next_log;
        let (stdio, stdin) = if config.tty {
            (None, None)
        } else {
            let streams = Streams::open(config.stdin)?;
            follow(self.pump.as_ref(), log, &config.log_path, &[streams.stdout.0.as_fd(), streams.stderr.0.as_fd()]);
            (Some([streams.stdin.0, streams.stdout.1, streams.stderr.1]), streams.stdin.1)
        };
        let shm = if pod.config.host_ipc { Path::new("/dev/shm").to_owned() } else { self.dir.join("shm") };
        let workshop = self.dir.join("build");
        let blueprint = Blueprint {
            pod: &pod.config,
            container: &config,
            joined: Joined {
                network: namespaces.net.as_ref().map(AsFd::as_fd),
                ipc: namespaces.ipc.as_ref().map(AsFd::as_fd),
                uts: namespaces.uts.as_ref().map(AsFd::as_fd),
                pid: namespaces.pid.as_ref().map(|(fd, _)| fd.as_fd()),
            },
            mounts: &namespaces.mnt,
            shm: &shm,
            cgroup: self.container_cgroup(&uid, &id),
            filters,
            workshop: &workshop,
            stdio,
        };
        // SAFETY: the spawner has one thread.
        let job = unsafe {
            jobs::start(|| match create::run(blueprint, begun) {
                Ok((started, terminal)) => (create::Outcome::Started(started), terminal),
                Err(failure) => (create::Outcome::Failed(failure), None),
            })
        }
        .map_err(|error| Failure::sandbox("fork", error))?;
        self.next_log += 1;
        self.containers.insert(id.clone(), Container { pod: uid, state: State::Starting { kill: false }, stdin, log });
        self.jobs.insert(job.pid, (job, Purpose::Start { request, container: id }));
        Ok(None)
    }

    /// Compiled once per set of capabilities; a file's profile each time, since the file may change.
    fn filters_of(&mut self, config: &ContainerConfig) -> Result<Filters, Failure> {
        let invalid = |error: seccomp::SeccompError| {
            let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
            Failure::config("seccomp", format!("{error}{source}"))
        };
        match &config.seccomp {
            _ if config.privileged => Ok(Filters::none()),
            Seccomp::Unconfined => Ok(Filters::none()),
            Seccomp::Localhost(path) => seccomp::from_file(path).map_err(invalid),
            Seccomp::RuntimeDefault => {
                let capabilities = CapabilitySet::from_names(&config.capabilities)
                    .map_err(|name| Failure::config("capabilities", format!("unknown capability {name:?}")))?;
                if let Some(known) = self.filters.get(&capabilities.0) {
                    return Ok(known.clone());
                }
                let compiled = seccomp::runtime_default(capabilities).map_err(invalid)?;
                // Tenants choose the sets: a bound keeps them from filling our memory.
                if self.filters.len() >= 32 {
                    self.filters.clear();
                }
                self.filters.insert(capabilities.0, compiled.clone());
                Ok(compiled)
            }
        }
    }

    #[expect(unsafe_code, reason = "forks")]
    fn exec(&mut self, request: u64, id: &ContainerId, exec: &ExecConfig) -> Handled {
        let container = self.container(id)?;
        if !matches!(container.state, State::Running { .. }) {
            return Err(Failure::WrongState { id: id.to_string(), state: container.state.name().to_owned() });
        }
        if exec.argv.first().is_none_or(String::is_empty) {
            return Err(Failure::config("argv", "is empty"));
        }
        let uid = container.pod.clone();
        let config = self.records.read_container(&uid, id).map_err(|error| Failure::sandbox("record", error))?;
        let filters = self.filters_of(&config)?;
        let State::Running { pidfd, .. } = &self.container(id)?.state else {
            return Err(Failure::NoContainer(id.to_string()));
        };
        let (stdio, ours) = if exec.tty {
            (None, Vec::new())
        } else {
            let streams = Streams::open(exec.stdin)?;
            let mut ours: Vec<OwnedFd> = streams.stdin.1.into_iter().collect();
            ours.extend([streams.stdout.0, streams.stderr.0]);
            (Some([streams.stdin.0, streams.stdout.1, streams.stderr.1]), ours)
        };
        let plan = exec::Plan {
            container: &config,
            exec,
            init: pidfd,
            cgroup: self.container_cgroup(&uid, id),
            filters,
            stdio,
        };
        // SAFETY: the spawner has one thread.
        let job = unsafe {
            jobs::start(|| match exec::run(plan) {
                Ok((pid, terminal)) => (exec::Outcome::Started { pid }, terminal),
                Err(failure) => (exec::Outcome::Failed(failure), None),
            })
        }
        .map_err(|error| Failure::sandbox("fork", error))?;
        self.jobs.insert(job.pid, (job, Purpose::Exec { request, streams: ours }));
        Ok(None)
    }

    fn signal(&mut self, id: &ContainerId, signal: i32) -> Handled {
        if !(1..=64).contains(&signal) {
            return Err(Failure::config("signal", format!("{signal} is none")));
        }
        let container = self.containers.get_mut(id).ok_or_else(|| Failure::NoContainer(id.to_string()))?;
        match &mut container.state {
            State::Starting { kill } if signal == libc::SIGKILL => *kill = true,
            State::Starting { .. } => {
                return Err(Failure::WrongState { id: id.to_string(), state: "starting".to_owned() });
            }
            State::Running { pidfd, .. } => {
                process::pidfd_signal(pidfd.as_fd(), signal).map_err(|error| Failure::sandbox("signal", error))?;
                if signal == libc::SIGKILL {
                    let uid = container.pod.clone();
                    self.container_cgroup(&uid, id).kill_now();
                }
            }
            State::Ending { .. } | State::Exited(_) => {}
        }
        done()
    }

    fn attach_stdin(&mut self, id: &ContainerId) -> Handled {
        let container = self.container(id)?;
        let stdin = container.stdin.as_ref().ok_or_else(|| Failure::WrongState {
            id: id.to_string(),
            state: "without an open standard input".to_owned(),
        })?;
        let copy = stdin.try_clone().map_err(|error| Failure::sandbox("stdin", error))?;
        Ok(Some((Answer::Done, vec![copy])))
    }

    fn close_stdin(&mut self, id: &ContainerId) -> Handled {
        if let Some(container) = self.containers.get_mut(id) {
            container.stdin = None;
        }
        done()
    }

    fn update_limits(&self, pod: Option<&str>, container: Option<&ContainerId>, limits: &Limits) -> Handled {
        let cgroup = match (pod, container) {
            (_, Some(id)) => self.container_cgroup(&self.container(id)?.pod, id),
            (Some(uid), None) => {
                self.pod(uid)?;
                self.pod_cgroup(uid)
            }
            (None, None) => return Err(Failure::config("container", "is missing")),
        };
        cgroup.limit(limits).map_err(|error| Failure::sandbox("cgroup", error))?;
        done()
    }

    fn usage(&self, id: &ContainerId) -> Handled {
        let container = self.container(id)?;
        let usage = self.container_cgroup(&container.pod, id).usage();
        Ok(Some((Answer::Usage(usage), Vec::new())))
    }

    #[expect(unsafe_code, reason = "forks")]
    fn remove_container(&mut self, request: u64, id: &ContainerId) -> Handled {
        let Some(container) = self.containers.get(id) else { return done() };
        if !matches!(container.state, State::Exited(_)) {
            return Err(Failure::WrongState { id: id.to_string(), state: container.state.name().to_owned() });
        }
        let uid = container.pod.clone();
        let cgroup = self.container_cgroup(&uid, id);
        let records = &self.records;
        // SAFETY: the spawner has one thread.
        let job = unsafe {
            jobs::start(|| {
                let work = || -> Result<(), Failure> {
                    cgroup.kill(REMOVAL_PATIENCE);
                    cgroup.remove(REMOVAL_PATIENCE).map_err(|error| Failure::sandbox("cgroup", error))?;
                    if let Ok(config) = records.read_container(&uid, id) {
                        remove_writable_layer(&config)?;
                    }
                    records.remove_container(&uid, id).map_err(|error| Failure::sandbox("record", error))
                };
                (work(), None)
            })
        }
        .map_err(|error| Failure::sandbox("fork", error))?;
        self.containers.remove(id);
        self.jobs.insert(job.pid, (job, Purpose::Remove { request }));
        Ok(None)
    }

    #[expect(unsafe_code, reason = "forks")]
    fn remove_pod(&mut self, request: u64, uid: &str) -> Handled {
        if !self.pods.contains_key(uid) {
            return done();
        }
        // Builders at work in it are killed with its cgroup; those that have not entered it are stopped here.
        for (job, purpose) in self.jobs.values() {
            if let Purpose::Start { container, .. } = purpose
                && self.containers.get(container).is_some_and(|container| container.pod == uid)
            {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(job.pid), nix::sys::signal::Signal::SIGKILL);
            }
        }
        let cgroup = self.pod_cgroup(uid);
        let records = &self.records;
        // SAFETY: the spawner has one thread.
        let job = unsafe {
            jobs::start(|| {
                let work = || -> Result<(), Failure> {
                    cgroup.kill(REMOVAL_PATIENCE);
                    cgroup.remove(REMOVAL_PATIENCE).map_err(|error| Failure::sandbox("cgroup", error))?;
                    for id in records.containers(uid) {
                        if let Ok(config) = records.read_container(uid, &id) {
                            remove_writable_layer(&config)?;
                        }
                    }
                    records.remove_pod(uid).map_err(|error| Failure::sandbox("record", error))
                };
                (work(), None)
            })
        }
        .map_err(|error| Failure::sandbox("fork", error))?;
        let gone: Vec<u64> =
            self.containers.values().filter(|container| container.pod == uid).map(|container| container.log).collect();
        for log in gone {
            if let Some(pump) = &self.pump {
                let _ = protocol::send(pump.socket.as_fd(), &logs::Command::End { log }, &[]);
            }
        }
        self.containers.retain(|_, container| container.pod != uid);
        self.pods.remove(uid);
        self.jobs.insert(job.pid, (job, Purpose::Remove { request }));
        Ok(None)
    }

    fn mount_tmpfs(&mut self, uid: &str, path: &Path, size: Option<u64>) -> Handled {
        let pod = self.pod(uid)?;
        let namespaces = pod.namespaces.as_ref().ok_or_else(|| Failure::NoPod(uid.to_owned()))?;
        let wrap = |error: std::io::Error| Failure::sandbox("tmpfs", format!("{}: {error}", path.display()));
        let known = pod.tmpfs.iter().any(|known| known == path);
        fs::create_dir_all(path).map_err(wrap)?;
        let root = self.home.in_mounts(namespaces, || {
            if !known {
                let tree = mount::tmpfs(size, "1777", mount::ATTR_NOSUID | mount::ATTR_NODEV).map_err(wrap)?;
                mount::attach(tree.as_fd(), path).map_err(wrap)?;
            }
            File::open(path).map_err(wrap)
        })?;
        if let Some(pod) = self.pods.get_mut(uid)
            && !known
        {
            pod.tmpfs.push(path.to_owned());
        }
        Ok(Some((Answer::Done, vec![root.into()])))
    }

    fn pod_network(&self, uid: &str) -> Handled {
        let pod = self.pod(uid)?;
        let net = pod.namespaces.as_ref().and_then(|namespaces| namespaces.net.as_ref());
        let net = net.ok_or_else(|| Failure::WrongState {
            id: uid.to_owned(),
            state: "without a network namespace of its own".to_owned(),
        })?;
        let copy = net.try_clone().map_err(|error| Failure::sandbox("network", error))?;
        Ok(Some((Answer::Done, vec![copy])))
    }

    fn list(&self) -> Vec<KnownPod> {
        let mut list = Vec::new();
        for (uid, pod) in &self.pods {
            let Ok(record) = self.records.read_pod(uid) else { continue };
            let mut containers = Vec::new();
            for (id, container) in self.containers.iter().filter(|(_, container)| container.pod == *uid) {
                let Ok(config) = self.records.read_container(uid, id) else { continue };
                let (running, exit) = match &container.state {
                    State::Running { pid, started_at, .. } => (Some((*pid, *started_at)), None),
                    State::Exited(exit) => (None, Some(exit.clone())),
                    // Its end is about to be told.
                    State::Ending { death, started_at, .. } => (Some((death.pid, *started_at)), None),
                    // Whoever asked for it is gone: it is finished and told like the others.
                    State::Starting { .. } => continue,
                };
                let cgroup = self.container_cgroup(uid, id).paths();
                containers.push(KnownContainer {
                    id: id.clone(),
                    annotations: config.annotations,
                    cgroup,
                    running,
                    exit,
                });
            }
            list.push(KnownPod {
                config: record.config,
                own_network: record.own_network,
                alive: pod.namespaces.is_some(),
                containers,
            });
        }
        list
    }

    /// A job has reported or died.
    pub fn finish_job(&mut self, pid: i32, dead: bool) {
        let Some((job, purpose)) = self.jobs.remove(&pid) else { return };
        let request = match &purpose {
            Purpose::Start { request, .. } | Purpose::Exec { request, .. } | Purpose::Remove { request } => *request,
        };
        let lost = || Failure::sandbox("job", "ended without an answer (killed: out of memory, or out of time)");
        match purpose {
            Purpose::Remove { .. } => match job.outcome::<Result<(), Failure>>() {
                Some((result, _)) => self.answer(request, result.map(|()| Answer::Done), Vec::new()),
                None if dead => self.answer(request, Err(lost()), Vec::new()),
                None => self.keep(job, purpose),
            },
            Purpose::Start { ref container, .. } => match job.outcome::<create::Outcome>() {
                Some((create::Outcome::Started(started), fds)) => self.started(request, container, started, fds),
                Some((create::Outcome::Failed(failure), _)) => self.not_started(request, container, failure),
                None if dead => self.not_started(request, container, lost()),
                None => self.keep(job, purpose),
            },
            Purpose::Exec { streams, .. } => match job.outcome::<exec::Outcome>() {
                Some((exec::Outcome::Started { pid }, fds)) => {
                    let streams = if streams.is_empty() { fds } else { streams };
                    self.answer(request, Ok(Answer::Exec { pid }), streams);
                    self.adopt_exec(pid, request);
                }
                Some((exec::Outcome::Failed(failure), _)) => self.answer(request, Err(failure), Vec::new()),
                None if dead => self.answer(request, Err(lost()), Vec::new()),
                None => self.keep(job, Purpose::Exec { request, streams }),
            },
        }
    }

    fn keep(&mut self, job: Job, purpose: Purpose) {
        self.jobs.insert(job.pid, (job, purpose));
    }

    fn started(&mut self, request: u64, id: &ContainerId, started: protocol::StartedContainer, fds: Vec<OwnedFd>) {
        let pid = started.pid;
        let Some(container) = self.containers.get_mut(id) else {
            // Its pod was removed meanwhile, and everything in its cgroup with it.
            return self.answer(request, Err(Failure::NoContainer(id.to_string())), Vec::new());
        };
        let kill = matches!(container.state, State::Starting { kill: true });
        if let Some(terminal) = fds.into_iter().next() {
            let path = self.records.read_container(&container.pod, id).map(|config| config.log_path);
            if let Ok(path) = path {
                follow(self.pump.as_ref(), container.log, &path, &[terminal.as_fd()]);
            }
            container.stdin = Some(terminal);
        }
        let started_at = started.started_at;
        match process::pidfd_open(pid) {
            Ok(pidfd) => {
                if kill {
                    let _ = process::pidfd_signal(pidfd.as_fd(), libc::SIGKILL);
                }
                container.state = State::Running { pid, pidfd, started_at };
            }
            // Reaped already: its death waits to be claimed.
            Err(_) => {
                let death = process::Death { pid, code: 128, signal: None };
                container.state = State::Ending { death, started_at, finished_at: started_at };
            }
        }
        self.answer(request, Ok(Answer::Started(started)), Vec::new());
        self.adopt_init(pid, id.clone());
    }

    /// Nothing of it stays.
    #[expect(unsafe_code, reason = "forks")]
    fn not_started(&mut self, request: u64, id: &ContainerId, failure: Failure) {
        let Some(container) = self.containers.remove(id) else {
            return self.answer(request, Err(failure), Vec::new());
        };
        if let Some(pump) = &self.pump {
            let _ = protocol::send(pump.socket.as_fd(), &logs::Command::End { log: container.log }, &[]);
        }
        let cgroup = self.container_cgroup(&container.pod, id);
        let records = &self.records;
        let reported = failure.clone();
        // SAFETY: the spawner has one thread.
        let job = unsafe {
            jobs::start(|| {
                let work = || -> Result<(), Failure> {
                    cgroup.kill(REMOVAL_PATIENCE);
                    cgroup.remove(REMOVAL_PATIENCE).map_err(|error| Failure::sandbox("cgroup", error))?;
                    if let Ok(config) = records.read_container(&container.pod, id) {
                        remove_writable_layer(&config)?;
                    }
                    records.remove_container(&container.pod, id).map_err(|error| Failure::sandbox("record", error))
                };
                if let Err(failure) = work() {
                    eprintln!("left behind of {id}: {failure:?}");
                }
                (Err::<(), Failure>(reported), None)
            })
        };
        match job {
            Ok(job) => self.keep(job, Purpose::Remove { request }),
            Err(error) => {
                eprintln!("left behind of {id}: {error}");
                self.answer(request, Err(failure), Vec::new());
            }
        }
    }
}

/// Our ends and the program's of three pipes.
struct Streams {
    /// The program's end first.
    stdin: (OwnedFd, Option<OwnedFd>),
    stdout: (OwnedFd, OwnedFd),
    stderr: (OwnedFd, OwnedFd),
}

impl Streams {
    fn open(stdin: bool) -> Result<Self, Failure> {
        let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(|errno| Failure::sandbox("pipe", errno));
        let stdin = if stdin {
            let (read, write) = pipe()?;
            (read, Some(write))
        } else {
            (File::open("/dev/null").map_err(|error| Failure::sandbox("/dev/null", error))?.into(), None)
        };
        Ok(Self { stdin, stdout: pipe()?, stderr: pipe()? })
    }
}

/// Without a pump the output is lost, but the container runs.
fn follow(pump: Option<&logs::Pump>, log: u64, path: &Path, fds: &[BorrowedFd<'_>]) {
    let command = logs::Command::Open { log, path: path.to_owned() };
    let sent = pump.is_some_and(|pump| protocol::send(pump.socket.as_fd(), &command, fds).is_ok());
    if !sent {
        eprintln!("the log {} is not written: there is no log pump", path.display());
    }
}

fn check_container(config: &ContainerConfig) -> Result<(), Failure> {
    if config.argv.first().is_none_or(String::is_empty) {
        return Err(Failure::config("argv", "is empty"));
    }
    if config.rootfs.lower.is_empty() {
        return Err(Failure::config("rootfs.lower", "is empty"));
    }
    if !config.cwd.is_empty() && !config.cwd.starts_with('/') {
        return Err(Failure::config("cwd", format!("{:?} is not absolute", config.cwd)));
    }
    for (name, _) in &config.env {
        if name.is_empty() || name.contains('=') {
            return Err(Failure::config("env", format!("{name:?} is not a name")));
        }
    }
    for (index, mount) in config.mounts.iter().enumerate() {
        let path = Path::new(&mount.destination);
        let plain = path.is_absolute() && !path.components().any(|part| part == Component::ParentDir);
        if !plain || path == Path::new("/") {
            return Err(Failure::config(
                format!("mounts[{index}].destination"),
                format!("{:?} is not an absolute path below /", mount.destination),
            ));
        }
    }
    for limit in &config.rlimits {
        if create::spec::rlimit_number(&limit.kind).is_none() {
            return Err(Failure::config("rlimits", format!("unknown resource limit {:?}", limit.kind)));
        }
    }
    Ok(())
}

/// Only what was made in it: `upper/` and `work/`, then the directory if it is empty.
pub fn remove_writable_layer(config: &ContainerConfig) -> Result<(), Failure> {
    for name in ["upper", "work"] {
        let path = config.rootfs.upper.join(name);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Failure::sandbox("writable layer", format!("{}: {error}", path.display())));
            }
            _ => {}
        }
    }
    // Something else in it is the worker's, who removes it.
    let _ = fs::remove_dir(&config.rootfs.upper);
    Ok(())
}
