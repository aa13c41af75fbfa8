//! What the gateway can ask for.

use super::jobs;
use super::namespaces::{self, Given};
use super::records::PodRecord;
use super::service::{Container, Pod, Purpose, Service, State};
use super::users;
use crate::config::{ContainerConfig, ContainerId, Limits, PodConfig, UserNamespaces};
use crate::create;
use crate::kernel::{mount, process};
use crate::oci::{self, Oci};
use crate::protocol::{Answer, Ask, Failure, KnownContainer, KnownPod, Request};
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// How long removal waits for the kernel to let go of a cgroup.
pub const REMOVAL_PATIENCE: Duration = Duration::from_secs(20);

/// What other runtimes may keep of all their containers, in bytes.
const FOREIGN_STATE: u64 = 64 * 1024 * 1024;

/// A good answer and the descriptors that go with it; `None` when a job will answer.
pub type Handled = Result<Option<(Answer, Vec<OwnedFd>)>, Failure>;

#[expect(clippy::unnecessary_wraps, reason = "the type of every request's end")]
fn done() -> Handled {
    Ok(Some((Answer::Done, Vec::new())))
}

fn being_removed() -> Failure {
    Failure::sandbox("pod", "what was there before under this uid is still being removed")
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
            Ask::MakeUsers { range } => users::make(range).map(|made| {
                let UserNamespaces { user, net, ipc, uts, claim } = made;
                Some((Answer::Done, vec![user, net, ipc, uts, claim]))
            }),
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
            Ask::MountTmpfs { pod, path, size, page } => self.mount_tmpfs(&pod, &path, size, page),
            Ask::PodNetwork { uid } => self.pod_network(&uid),
            // What an earlier gateway has begun is in the list, too: it waits for that.
            Ask::List if self.is_changing() => {
                self.lists.push(id);
                Ok(None)
            }
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

    pub fn container(&self, id: &ContainerId) -> Result<&Container, Failure> {
        self.containers.get(id).ok_or_else(|| Failure::NoContainer(id.to_string()))
    }

    /// The OCI runtime of this pod's containers, where they have another than ours.
    pub fn foreign(&self, uid: &str) -> Option<Oci> {
        let binary = self.pods.get(uid)?.config.runtime.as_ref()?;
        Some(Oci::new(binary, &self.dir, &self.layout))
    }

    /// Makes room for what other runtimes keep, before the first pod of theirs: seen by the spawner and by pods made later.
    fn prepare_foreign(&mut self) -> Result<(), Failure> {
        let place = self.dir.join(oci::STATE);
        if self.foreign_ready {
            return Ok(());
        }
        let wrap = |error: std::io::Error| Failure::sandbox("OCI runtime", error);
        // runc starts further processes from where the container's root was: anything will do.
        for directory in [&place, &self.dir.join("build").join(create::ROOTFS)] {
            fs::create_dir_all(directory).map_err(wrap)?;
        }
        let tree = mount::tmpfs(Some(FOREIGN_STATE), "700", mount::ATTR_NOSUID | mount::ATTR_NODEV).map_err(wrap)?;
        mount::attach(tree.as_fd(), &place).map_err(wrap)?;
        self.foreign_ready = true;
        Ok(())
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
        if self.half_removed.contains_key(&config.uid) {
            return Err(being_removed());
        }
        let missing = || Failure::config("netns", "did not arrive");
        let given = match (config.users, netns) {
            (None, false) => Given::Nothing,
            (None, true) => Given::Network(fds.into_iter().next().ok_or_else(missing)?),
            (Some(_), _) if config.host_ipc || config.host_pid => {
                return Err(Failure::config("users", "of its own have no rights over the host's namespaces"));
            }
            (Some(_), _) => {
                let [user, net, ipc, uts, claim] = <[OwnedFd; 5]>::try_from(fds).map_err(|_| missing())?;
                Given::Users(UserNamespaces { user, net, ipc, uts, claim })
            }
        };
        if config.runtime.is_some() {
            if config.users.is_some() {
                return Err(Failure::config("users", "of a pod's own are made by Carob's own runtime only"));
            }
            self.prepare_foreign()?;
        }
        let own_network = !matches!(given, Given::Nothing);
        namespaces::check_sysctls(&config, own_network)?;
        let cgroup = self.pod_cgroup(&config.uid);
        let shm = self.dir.join("shm");
        let made = cgroup
            .create(true)
            .and_then(|()| cgroup.limit(&config.limits))
            .map_err(|error| Failure::sandbox("cgroup", error))
            .and_then(|()| namespaces::make(&self.home, &config, given, &shm, &cgroup));
        let namespaces = match made {
            Ok(namespaces) => namespaces,
            Err(failure) => {
                cgroup.kill(Duration::from_secs(1));
                if let Err(error) = cgroup.remove(Duration::from_secs(1)) {
                    say!("cgroup left behind: {error}");
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
            State::Ending { .. } | State::Draining { .. } | State::Exited(_) => {}
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
        let nursery = self.nursery(id);
        let records = &self.records;
        let foreign = self.foreign(&uid);
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
        self.jobs.insert(job.pid, (job, Purpose::Remove { request, pod: None }));
        Ok(None)
    }

    #[expect(unsafe_code, reason = "forks")]
    fn remove_pod(&mut self, request: u64, uid: &str) -> Handled {
        if self.is_being_removed(uid) {
            return Err(being_removed());
        }
        if !self.pods.contains_key(uid) && !self.half_removed.contains_key(uid) {
            return done();
        }
        // Builders at work on it are killed where they are; those that have not entered that are stopped here.
        for (job, purpose) in self.jobs.values() {
            if let Purpose::Start { container, .. } = purpose
                && self.containers.get(container).is_some_and(|container| container.pod == uid)
            {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(job.pid), nix::sys::signal::Signal::SIGKILL);
            }
        }
        // By the records: of a pod that is half removed nothing else is known.
        let mut cgroups: Vec<_> = self.records.containers(uid).iter().map(|id| self.nursery(id)).collect();
        cgroups.push(self.pod_cgroup(uid));
        let records = &self.records;
        let foreign = self.foreign(uid);
        let namespaces = self.pods.get(uid).and_then(|pod| pod.namespaces.as_ref());
        let claim = match self.half_removed.get(uid) {
            Some(claim) => claim.as_ref(),
            None => namespaces.and_then(|namespaces| namespaces.claim.as_ref()),
        };
        // SAFETY: the spawner has one thread.
        let job = unsafe {
            jobs::start(|| {
                let work = || -> Result<(), Failure> {
                    for id in foreign.iter().flat_map(|_| records.containers(uid)) {
                        foreign.iter().for_each(|runtime| runtime.delete(id.as_str()));
                    }
                    for cgroup in &cgroups {
                        cgroup.kill(REMOVAL_PATIENCE);
                        cgroup.remove(REMOVAL_PATIENCE).map_err(|error| Failure::sandbox("cgroup", error))?;
                    }
                    for id in records.containers(uid) {
                        if let Ok(config) = records.read_container(uid, &id) {
                            remove_writable_layer(&config)?;
                        }
                    }
                    records.remove_pod(uid).map_err(|error| Failure::sandbox("record", error))?;
                    claim.map_or(Ok(()), users::release)
                };
                (work(), None)
            })
        }
        .map_err(|error| Failure::sandbox("fork", error))?;
        let gone: Vec<u64> =
            self.containers.values().filter(|container| container.pod == uid).map(|c| c.log.number).collect();
        for log in gone {
            self.end_log(log);
        }
        self.containers.retain(|_, container| container.pod != uid);
        if let Some(pod) = self.pods.remove(uid) {
            // Its users are nobody else's before all of it is gone.
            let claim = pod.namespaces.and_then(|namespaces| namespaces.claim);
            self.half_removed.insert(uid.to_owned(), claim);
        }
        self.jobs.insert(job.pid, (job, Purpose::Remove { request, pod: Some(uid.to_owned()) }));
        Ok(None)
    }

    fn mount_tmpfs(&mut self, uid: &str, path: &Path, size: Option<u64>, page: Option<u64>) -> Handled {
        let pod = self.pod(uid)?;
        let namespaces = pod.namespaces.as_ref().ok_or_else(|| Failure::NoPod(uid.to_owned()))?;
        let wrap = |error: std::io::Error| Failure::sandbox("tmpfs", format!("{}: {error}", path.display()));
        let known = pod.tmpfs.iter().any(|known| known == path);
        fs::create_dir_all(path).map_err(wrap)?;
        let root = self.home.in_mounts(namespaces, || {
            if !known {
                let attributes = mount::ATTR_NOSUID | mount::ATTR_NODEV;
                let tree = match page {
                    Some(page) => mount::huge_pages(page, attributes),
                    None => mount::tmpfs(size, "1777", attributes),
                };
                let tree = tree.map_err(wrap)?;
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

    /// Whether a container is being made or a pod removed: a list would be about neither.
    fn is_changing(&self) -> bool {
        self.containers.values().any(|container| matches!(container.state, State::Starting { .. }))
            || self.jobs.values().any(|(_, purpose)| matches!(purpose, Purpose::Remove { pod: Some(_), .. }))
    }

    fn is_being_removed(&self, uid: &str) -> bool {
        let removes = |purpose: &Purpose| matches!(purpose, Purpose::Remove { pod: Some(pod), .. } if pod == uid);
        self.jobs.values().any(|(_, purpose)| removes(purpose))
    }

    /// Answers the lists that waited.
    pub fn answer_lists(&mut self) {
        if self.lists.is_empty() || self.is_changing() {
            return;
        }
        for id in std::mem::take(&mut self.lists) {
            let pods = self.list();
            self.answer(id, Ok(Answer::Pods(pods)), Vec::new());
        }
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
                    State::Draining { exit, .. } | State::Exited(exit) => (None, Some(exit.clone())),
                    // Its end is about to be told.
                    State::Ending { death, started_at, .. } => (Some((death.pid, *started_at)), None),
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
}

/// Only what was made in it: `upper/` and `work/`, then the directory if it is empty.
pub fn remove_writable_layer(config: &ContainerConfig) -> Result<(), Failure> {
    for name in ["upper", "work"] {
        let path = config.rootfs.upper.join(name);
        match crate::remove_tree(&path) {
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
