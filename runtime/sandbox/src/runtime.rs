//! The gateway's side: a handle to the spawner.

mod connection;
mod launch;
mod shared;

use crate::kernel;
use crate::protocol::{Answer, Ask, KnownPod};
use crate::{
    ContainerConfig, ContainerId, ContainerState, Error, ExecConfig, Exit, Limits, PodConfig, Propagation,
    RecoveredContainer, RecoveredPod, RuntimeConfig, Started, Usage, UserNamespaces, UserRange,
};
use connection::Connection;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// A handle to the spawner of one directory. Clones share the connection.
#[derive(Debug, Clone)]
pub struct Runtime {
    connection: Arc<Connection>,
}

/// A process that [`Runtime::exec`] started. Dropping the descriptors closes its streams; it isn't killed by that.
#[derive(Debug)]
pub struct ExecProcess {
    /// Process id in the host's PID namespace.
    pub pid: i32,
    /// Write end of its standard input.
    pub stdin: Option<OwnedFd>,
    /// Read end of its standard output.
    pub stdout: Option<OwnedFd>,
    /// Read end of its standard error.
    pub stderr: Option<OwnedFd>,
    /// The terminal's master side, instead of the three pipes. Resize it with `TIOCSWINSZ`.
    pub terminal: Option<OwnedFd>,
    /// Its exit code (128 + n for a signal); fails when the spawner is gone.
    pub exit: oneshot::Receiver<i32>,
}

impl Runtime {
    /// Connects to the spawner of `config.dir`, or starts one in its own session that survives this process. Gives what
    /// was there before, and the channel of exits (those that were not yet removed come first).
    pub async fn start(
        config: RuntimeConfig,
    ) -> Result<(Runtime, Vec<RecoveredPod>, mpsc::UnboundedReceiver<Exit>), Error> {
        let socket = launch::connect_or_start(config).await?;
        let (connection, exits) = Connection::open(socket)?;
        let runtime = Runtime { connection };
        let pods = runtime.pods().await?;
        Ok((runtime, pods, exits))
    }

    /// The same with a new spawner. One that is there, of whatever version, is ended: containers are asked to end (SIGTERM),
    /// and killed if they haven't after `grace`. So all that is given has ended, or is about to.
    pub async fn replace(
        config: RuntimeConfig,
        grace: Duration,
    ) -> Result<(Runtime, Vec<RecoveredPod>, mpsc::UnboundedReceiver<Exit>), Error> {
        launch::end_foreign(&config, grace).await?;
        Self::start(config).await
    }

    /// What is there now. Waits until nothing is being started or removed.
    pub async fn pods(&self) -> Result<Vec<RecoveredPod>, Error> {
        match self.connection.ask(Ask::List, Vec::new()).await? {
            (Answer::Pods(pods), _) => Ok(pods.into_iter().map(recovered).collect()),
            _ => Err(Error::Disconnected),
        }
    }

    /// Does what makes the next start faster (the kernel's cgroup locks after an idle moment); call it when a pod is
    /// announced. Returns at once.
    pub fn warm(&self) {
        self.connection.say(Ask::Warm);
    }

    async fn done(&self, ask: Ask, fds: Vec<OwnedFd>) -> Result<(), Error> {
        self.connection.ask(ask, fds).await.map(|_| ())
    }

    async fn descriptor(&self, ask: Ask) -> Result<OwnedFd, Error> {
        let (_, fds) = self.connection.ask(ask, Vec::new()).await?;
        fds.into_iter().next().ok_or(Error::Disconnected)
    }

    /// Makes a user namespace in which these users of the host are all there are, and namespaces that it owns.
    /// [`Error::UsersTaken`] when they are another pod's.
    pub async fn make_users(&self, range: UserRange) -> Result<UserNamespaces, Error> {
        let (_, fds) = self.connection.ask(Ask::MakeUsers { range }, Vec::new()).await?;
        let [user, net, ipc, uts, claim] = <[OwnedFd; 5]>::try_from(fds).map_err(|_| Error::Disconnected)?;
        Ok(UserNamespaces { user, net, ipc, uts, claim })
    }

    /// Makes the pod's cgroups with their limits and its namespaces.
    pub async fn create_pod(&self, mut pod: PodConfig) -> Result<(), Error> {
        let fds: Vec<OwnedFd> = match pod.user_namespaces.take() {
            Some(UserNamespaces { user, net, ipc, uts, claim }) => vec![user, net, ipc, uts, claim],
            None => pod.netns.take().into_iter().collect(),
        };
        let netns = !fds.is_empty();
        self.done(Ask::CreatePod { pod, netns }, fds).await
    }

    /// Creates and starts a container. [`Error::Start`] is the program's or the configuration's fault. After an error
    /// nothing of the container is left, and it will have no [`Exit`]. A container that ends at once may have its
    /// [`Exit`] on the channel before this returns.
    pub async fn start_container(&self, mut container: ContainerConfig) -> Result<Started, Error> {
        let mut fds = Vec::new();
        let mut mount_fds = Vec::new();
        for (index, mount) in container.mounts.iter_mut().enumerate() {
            if mount.propagation == Propagation::Bidirectional && mount.source_fd.is_none() {
                // What the container mounts there is to be the host's: so it gets the host's mount, not the spawner's.
                shared::check(&mount.source)?;
                let opened = File::open(&mount.source).map_err(|error| Error::InvalidConfig {
                    field: format!("mounts[{index}].source"),
                    message: error.to_string(),
                })?;
                mount.source_fd = Some(opened.into());
            }
            if let Some(fd) = mount.source_fd.take() {
                if mount.in_pod {
                    fds.push(fd);
                    mount_fds.push(index);
                    continue;
                }
                let detached = kernel::mount::clone_tree(Some(fd.as_fd()), Path::new(""), true).map_err(|error| {
                    Error::InvalidConfig { field: format!("mounts[{index}].source_fd"), message: error.to_string() }
                })?;
                fds.push(detached);
                mount_fds.push(index);
            }
        }
        let ask = Ask::StartContainer { container: Box::new(container), mount_fds };
        match self.connection.ask(ask, fds).await? {
            (Answer::Started(started), _) => Ok(Started {
                pid: started.pid,
                started_at: started.started_at,
                cgroup: started.cgroup,
                stages: started
                    .stages
                    .iter()
                    .filter_map(|(name, micros)| Some((stage(name)?, Duration::from_micros(*micros))))
                    .collect(),
                warnings: started.warnings,
            }),
            _ => Err(Error::Disconnected),
        }
    }

    /// Starts a further process in a running container. [`Error::Start`] when there is no such program.
    pub async fn exec(&self, container: &ContainerId, exec: ExecConfig) -> Result<ExecProcess, Error> {
        let (tty, with_stdin) = (exec.tty, exec.stdin);
        let (answer, fds, exit) = self.connection.ask_exec(Ask::Exec { container: container.clone(), exec }).await?;
        let Answer::Exec { pid } = answer else { return Err(Error::Disconnected) };
        let mut fds = fds.into_iter();
        let mut process = ExecProcess { pid, stdin: None, stdout: None, stderr: None, terminal: None, exit };
        if tty {
            process.terminal = fds.next();
        } else {
            if with_stdin {
                process.stdin = fds.next();
            }
            process.stdout = fds.next();
            process.stderr = fds.next();
        }
        Ok(process)
    }

    /// Sends a signal to the container's init; SIGKILL reaches every process in the container. Signalling one that has
    /// exited is no error.
    pub async fn signal(&self, container: &ContainerId, signal: i32) -> Result<(), Error> {
        self.done(Ask::Signal { container: container.clone(), signal }, Vec::new()).await
    }

    /// Write end of the container's standard input; its terminal's master when it has one. The program sees the end of
    /// its input when every copy is dropped and [`Runtime::close_stdin`] was called.
    pub async fn attach_stdin(&self, container: &ContainerId) -> Result<OwnedFd, Error> {
        self.descriptor(Ask::AttachStdin { container: container.clone() }).await
    }

    /// Closes the spawner's copy of the container's standard input (`stdinOnce`).
    pub async fn close_stdin(&self, container: &ContainerId) -> Result<(), Error> {
        self.done(Ask::CloseStdin { container: container.clone() }, Vec::new()).await
    }

    /// Changes a running container's limits; fields that are `None` stay as they are.
    pub async fn update_limits(&self, container: &ContainerId, limits: Limits) -> Result<(), Error> {
        let ask = Ask::UpdateLimits { pod: None, container: Some(container.clone()), limits };
        self.done(ask, Vec::new()).await
    }

    /// Changes a pod's limits; fields that are `None` stay as they are.
    pub async fn update_pod_limits(&self, pod_uid: &str, limits: Limits) -> Result<(), Error> {
        self.done(Ask::UpdateLimits { pod: Some(pod_uid.to_owned()), container: None, limits }, Vec::new()).await
    }

    /// Removes an exited container: cgroup, state, writable layer. Its log stays. Removing one that isn't there is no error.
    pub async fn remove_container(&self, container: &ContainerId) -> Result<(), Error> {
        self.done(Ask::RemoveContainer { container: container.clone() }, Vec::new()).await
    }

    /// Removes a pod with all its containers, killing those that run, which then have no [`Exit`]: cgroups, namespaces,
    /// tmpfs mounts. Removing one that isn't there is no error.
    pub async fn remove_pod(&self, uid: &str) -> Result<(), Error> {
        self.done(Ask::RemovePod { uid: uid.to_owned() }, Vec::new()).await
    }

    /// Reads a container's counters.
    pub async fn usage(&self, container: &ContainerId) -> Result<Usage, Error> {
        match self.connection.ask(Ask::Usage { container: container.clone() }, Vec::new()).await? {
            (Answer::Usage(usage), _) => Ok(usage),
            _ => Err(Error::Disconnected),
        }
    }

    /// Mounts a tmpfs on `path` (made when missing) in the pod's mount namespace, for `emptyDir.medium: Memory`: only its
    /// containers see it there. Gives its root directory, through which the caller can reach it too. It goes with the pod.
    pub async fn mount_tmpfs(&self, pod_uid: &str, path: &Path, size: Option<u64>) -> Result<OwnedFd, Error> {
        self.descriptor(Ask::MountTmpfs { pod: pod_uid.to_owned(), path: path.to_owned(), size, page: None }).await
    }

    /// The same with a file system of huge pages of this many bytes, for `emptyDir.medium: HugePages`.
    pub async fn mount_huge_pages(&self, pod_uid: &str, path: &Path, page: u64) -> Result<OwnedFd, Error> {
        let (pod, path) = (pod_uid.to_owned(), path.to_owned());
        self.descriptor(Ask::MountTmpfs { pod, path, size: None, page: Some(page) }).await
    }

    /// The pod's network namespace (for port-forward, and after a restart).
    pub async fn pod_network(&self, uid: &str) -> Result<OwnedFd, Error> {
        self.descriptor(Ask::PodNetwork { uid: uid.to_owned() }).await
    }

    /// Process id of the spawner.
    pub fn spawner_pid(&self) -> i32 {
        self.connection.spawner_pid()
    }

    /// Kills and removes everything, and ends the spawner.
    pub async fn shutdown(self) -> Result<(), Error> {
        let pid = self.connection.spawner_pid();
        self.done(Ask::Shutdown, Vec::new()).await?;
        launch::wait_for_end(pid).await
    }
}

/// Whether the file system of a directory can show its files as those of a pod's own users (id-mapped mounts).
pub fn show_as(directory: &Path, users: &UserNamespaces) -> std::io::Result<()> {
    let tree = kernel::mount::clone_tree(None, directory, false)?;
    kernel::mount::map_users(tree.as_fd(), users.user.as_fd(), false)
}

/// Process id of the spawner that serves a directory, if there is one: what it holds (a network namespace) is then there.
pub async fn spawner_of(dir: &Path) -> Result<Option<i32>, Error> {
    launch::listening(dir).await
}

/// Removes all that the instance left on the machine, with or without a living spawner, of this version or another:
/// processes in its cgroups, cgroups, mounts, state directories. For `carob down`.
pub async fn teardown(config: RuntimeConfig) -> Result<(), Error> {
    if launch::nothing_there(&config) {
        return Ok(());
    }
    let started = match Runtime::start(config.clone()).await {
        Err(Error::Version { .. }) => Runtime::replace(config, Duration::ZERO).await,
        other => other,
    };
    let (runtime, _, _) = started?;
    runtime.shutdown().await
}

/// The stages that a builder reports, by the names that metrics use.
fn stage(name: &str) -> Option<&'static str> {
    const STAGES: [&str; 8] = ["fork", "cgroup", "overlay", "mounts", "pivot", "create", "attach", "start"];
    STAGES.into_iter().find(|known| *known == name)
}

fn recovered(pod: KnownPod) -> RecoveredPod {
    let containers = pod
        .containers
        .into_iter()
        .filter_map(|container| {
            let state = match (container.exit, container.running) {
                (Some(exit), _) => ContainerState::Exited(exit),
                (None, Some((pid, started_at))) => {
                    ContainerState::Running { pid, started_at, cgroup: container.cgroup }
                }
                (None, None) => return None,
            };
            Some(RecoveredContainer { id: container.id, annotations: container.annotations, state })
        })
        .collect();
    RecoveredPod {
        uid: pod.config.uid,
        hostname: pod.config.hostname,
        host_network: !pod.own_network,
        annotations: pod.config.annotations,
        alive: pod.alive,
        containers,
    }
}
