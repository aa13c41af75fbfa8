//! Starting: containers, and processes in them. A job does the work; what it reports is taken up here.

use super::jobs::{self, Job};
use super::requests::{Handled, REMOVAL_PATIENCE, remove_writable_layer};
use super::service::{Container, Log, Purpose, Service, State};
use crate::capabilities::CapabilitySet;
use crate::cgroup::Cgroup;
use crate::config::{ContainerConfig, ContainerId, ExecConfig, Seccomp};
use crate::create::spec::Joined;
use crate::create::{self, Blueprint, Users};
use crate::exec;
use crate::kernel::process;
use crate::logs;
use crate::oci::{self, Oci};
use crate::protocol::{self, Answer, Failure};
use crate::seccomp::{self, Filters};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};
use std::time::Instant;

impl Service {
    #[expect(unsafe_code, reason = "forks")]
    pub fn start_container(
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
        let target = config.pid_of.as_ref().map(|target| self.pid_namespace(&uid, target)).transpose()?;
        self.records.write_container(&mut config).map_err(|error| Failure::sandbox("record", error))?;
        let mut log = Log { number: self.next_log, path: config.log_path.clone(), outputs: Vec::new() };
        let (streams, stdin) = if config.tty {
            (None, None)
        } else {
            let streams = Streams::open(config.stdin)?;
            log.outputs = vec![streams.stdout.0, streams.stderr.0];
            follow(self.pump.as_mut(), &log);
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
                pid: namespaces.pid.as_ref().map(|(fd, _)| fd.as_fd()).or(target.as_ref().map(AsFd::as_fd)),
            },
            users: namespaces.user.as_ref().zip(pod.config.users).map(|(namespace, range)| Users { range, namespace }),
            mounts: &namespaces.mnt,
            shm: &shm,
            cgroup: self.container_cgroup(&uid, &id),
            nursery: self.nursery(&id),
            home: Cgroup::spawner(&self.layout, &self.instance),
            filters,
            workshop: &workshop,
            stdio: streams,
        };
        let foreign = pod.config.runtime.as_ref().map(|binary| Oci::new(binary, &self.dir, &self.layout));
        let build = || match &foreign {
            Some(runtime) => create::foreign::run(blueprint, runtime, begun),
            None => create::run(blueprint, begun),
        };
        // SAFETY: the spawner has one thread.
        let job = unsafe {
            jobs::start(|| match build() {
                Ok((started, terminal)) => (create::Outcome::Started(started), terminal),
                Err(failure) => (create::Outcome::Failed(failure), None),
            })
        }
        .map_err(|error| Failure::sandbox("fork", error))?;
        self.next_log += 1;
        let state = State::Starting { kill: false };
        self.containers.insert(id.clone(), Container { pod: uid, state, stdin, log, env: config.env });
        self.jobs.insert(job.pid, (job, Purpose::Start { request, container: id }));
        Ok(None)
    }

    /// The PID namespace of a running container of this pod. Its init isn't reaped while it runs, so its number is its own.
    fn pid_namespace(&self, uid: &str, target: &ContainerId) -> Result<OwnedFd, Failure> {
        let container = self.container(target)?;
        let State::Running { pid, .. } = &container.state else {
            return Err(Failure::WrongState { id: target.to_string(), state: container.state.name().to_owned() });
        };
        if container.pod != uid {
            return Err(Failure::config("pid_of", "is a container of another pod"));
        }
        let namespace = File::open(format!("/proc/{pid}/ns/pid"));
        Ok(namespace.map_err(|error| Failure::sandbox("pid namespace", error))?.into())
    }

    /// Compiled once per set of capabilities; a file's profile each time, since the file may change.
    fn filters_of(&mut self, config: &ContainerConfig) -> Result<Filters, Failure> {
        let whole = |error: seccomp::SeccompError| {
            let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
            format!("{error}{source}")
        };
        let invalid = |error| Failure::config("seccomp", whole(error));
        let invalid_file =
            |path: &Path, error| Failure::config("seccomp", format!("{}: {}", path.display(), whole(error)));
        match &config.seccomp {
            _ if config.privileged => Ok(Filters::none()),
            Seccomp::Unconfined => Ok(Filters::none()),
            Seccomp::Localhost(path) => seccomp::from_file(path).map_err(|error| invalid_file(path, error)),
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
    pub fn exec(&mut self, request: u64, id: &ContainerId, exec: &ExecConfig) -> Handled {
        let container = self.container(id)?;
        if !matches!(container.state, State::Running { .. }) {
            return Err(Failure::WrongState { id: id.to_string(), state: container.state.name().to_owned() });
        }
        if exec.argv.first().is_none_or(String::is_empty) {
            return Err(Failure::config("argv", "is empty"));
        }
        let uid = container.pod.clone();
        let mut config = self.records.read_container(&uid, id).map_err(|error| Failure::sandbox("record", error))?;
        config.env.clone_from(&container.env);
        let filters = self.filters_of(&config)?;
        let pod = self.pods.get(&uid).ok_or_else(|| Failure::NoPod(uid.clone()))?;
        let namespace = pod.namespaces.as_ref().and_then(|namespaces| namespaces.user.as_ref());
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
            users: namespace.zip(pod.config.users).map(|(namespace, range)| Users { range, namespace }),
            cgroup: self.container_cgroup(&uid, id),
            filters,
            stdio,
        };
        let foreign = pod.config.runtime.as_ref().map(|binary| Oci::new(binary, &self.dir, &self.layout));
        let place = self.dir.join(oci::STATE).join(format!("exec-{request}"));
        let execute = || match &foreign {
            Some(runtime) => exec::by_runtime(plan, runtime, &place),
            None => exec::run(&plan),
        };
        // SAFETY: the spawner has one thread.
        let job = unsafe {
            jobs::start(|| match execute() {
                Ok((pid, terminal)) => (exec::Outcome::Started { pid }, terminal),
                Err(failure) => (exec::Outcome::Failed(failure), None),
            })
        }
        .map_err(|error| Failure::sandbox("fork", error))?;
        self.jobs.insert(job.pid, (job, Purpose::Exec { request, streams: ours }));
        Ok(None)
    }

    /// A job has reported or died.
    pub fn finish_job(&mut self, pid: i32, dead: bool) {
        self.take_outcome(pid, dead);
        self.answer_lists();
    }

    fn take_outcome(&mut self, pid: i32, dead: bool) {
        let Some((job, purpose)) = self.jobs.remove(&pid) else { return };
        let request = match &purpose {
            Purpose::Start { request, .. } | Purpose::Exec { request, .. } | Purpose::Remove { request, .. } => {
                *request
            }
        };
        let lost = || Failure::sandbox("job", "ended without an answer (killed: out of memory, or out of time)");
        match purpose {
            Purpose::Remove { ref pod, .. } => {
                let result = match job.outcome::<Result<(), Failure>>() {
                    Some((result, _)) => result,
                    None if dead => Err(lost()),
                    None => return self.keep(job, purpose),
                };
                if let (Ok(()), Some(pod)) = (&result, pod) {
                    self.half_removed.remove(pod);
                }
                self.answer(request, result.map(|()| Answer::Done), Vec::new());
            }
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
            if let Ok(copy) = terminal.try_clone() {
                container.log.outputs = vec![copy];
                follow(self.pump.as_mut(), &container.log);
            }
            container.stdin = Some(terminal);
        }
        let started_at = started.started_at;
        if let Ok(pidfd) = process::pidfd_open(pid) {
            if kill {
                let _ = process::pidfd_signal(pidfd.as_fd(), libc::SIGKILL);
            }
            container.state = State::Running { pid, pidfd, started_at };
        } else {
            // Reaped already: its death waits to be claimed.
            let death = process::Death { pid, code: 128, signal: None };
            let now = Instant::now();
            container.state = State::Ending { death, started_at, finished_at: started_at, since: now, again: now };
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
        self.end_log(container.log.number);
        let cgroup = self.container_cgroup(&container.pod, id);
        let nursery = self.nursery(id);
        let records = &self.records;
        let reported = failure.clone();
        let foreign = self.foreign(&container.pod);
        // SAFETY: the spawner has one thread.
        let job = unsafe {
            jobs::start(|| {
                let work = || -> Result<(), Failure> {
                    if let Some(runtime) = &foreign {
                        runtime.delete(id.as_str());
                    }
                    for cgroup in [&nursery, &cgroup] {
                        cgroup.kill(REMOVAL_PATIENCE);
                        cgroup.remove(REMOVAL_PATIENCE).map_err(|error| Failure::sandbox("cgroup", error))?;
                    }
                    if let Ok(config) = records.read_container(&container.pod, id) {
                        remove_writable_layer(&config)?;
                    }
                    records.remove_container(&container.pod, id).map_err(|error| Failure::sandbox("record", error))
                };
                if let Err(failure) = work() {
                    say!("left behind of {id}: {failure:?}");
                }
                (Err::<(), Failure>(reported), None)
            })
        };
        match job {
            Ok(job) => self.keep(job, Purpose::Remove { request, pod: None }),
            Err(error) => {
                say!("left behind of {id}: {error}");
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

/// Has the pump read a container's output. Without one it waits in its pipes for the next.
pub fn follow(pump: Option<&mut logs::Pump>, log: &Log) {
    let command = logs::Command::Open { log: log.number, path: log.path.clone() };
    let copies: io::Result<Vec<OwnedFd>> = log.outputs.iter().map(OwnedFd::try_clone).collect();
    let told = copies.map(|copies| pump.is_some_and(|pump| pump.tell(&command, copies)));
    match told {
        Ok(true) => {}
        Ok(false) => say!("the log {} is not written now: there is no log pump", log.path.display()),
        Err(error) => say!("the log {} is not written: {error}", log.path.display()),
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
