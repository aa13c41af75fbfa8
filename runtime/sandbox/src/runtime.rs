//! The gateway's side: a handle to the spawner.

use crate::{
    ContainerConfig, ContainerId, Error, ExecConfig, Exit, Limits, PodConfig, RecoveredPod, RuntimeConfig, Started,
    Usage,
};
use std::os::fd::OwnedFd;
use std::path::Path;
use tokio::sync::{mpsc, oneshot};

/// A handle to the spawner of one directory. Clones share the connection.
#[derive(Debug, Clone)]
pub struct Runtime {}

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
    #[expect(clippy::unused_async)]
    pub async fn start(
        config: RuntimeConfig,
    ) -> Result<(Runtime, Vec<RecoveredPod>, mpsc::UnboundedReceiver<Exit>), Error> {
        drop(config);
        Err(Error::Disconnected)
    }

    /// Does what makes the next start faster (the kernel's cgroup locks after an idle moment); call it when a pod is
    /// announced. Returns at once.
    pub fn warm(&self) {}

    /// Makes the pod's cgroups with their limits and its namespaces.
    #[expect(clippy::unused_async)]
    pub async fn create_pod(&self, pod: PodConfig) -> Result<(), Error> {
        drop(pod);
        Err(Error::Disconnected)
    }

    /// Creates and starts a container. [`Error::Start`] is the program's or the configuration's fault; nothing is left
    /// behind then except the cgroup's usage, which is in no ledger.
    #[expect(clippy::unused_async)]
    pub async fn start_container(&self, container: ContainerConfig) -> Result<Started, Error> {
        drop(container);
        Err(Error::Disconnected)
    }

    /// Starts a further process in a running container. [`Error::Start`] when there is no such program.
    #[expect(clippy::unused_async)]
    pub async fn exec(&self, _container: &ContainerId, _exec: ExecConfig) -> Result<ExecProcess, Error> {
        Err(Error::Disconnected)
    }

    /// Sends a signal to the container's init; SIGKILL reaches every process in the container. Signalling one that has
    /// exited is no error.
    #[expect(clippy::unused_async)]
    pub async fn signal(&self, _container: &ContainerId, _signal: i32) -> Result<(), Error> {
        Err(Error::Disconnected)
    }

    /// Write end of the container's standard input (its terminal's master when it has one). Dropping the last copy with
    /// [`Runtime::close_stdin`] done gives the program end of file.
    #[expect(clippy::unused_async)]
    pub async fn attach_stdin(&self, _container: &ContainerId) -> Result<OwnedFd, Error> {
        Err(Error::Disconnected)
    }

    /// Closes the spawner's copy of the container's standard input (`stdinOnce`).
    #[expect(clippy::unused_async)]
    pub async fn close_stdin(&self, _container: &ContainerId) -> Result<(), Error> {
        Err(Error::Disconnected)
    }

    /// Changes a running container's limits; fields that are `None` stay as they are.
    #[expect(clippy::unused_async)]
    pub async fn update_limits(&self, _container: &ContainerId, _limits: Limits) -> Result<(), Error> {
        Err(Error::Disconnected)
    }

    /// Changes a pod's limits; fields that are `None` stay as they are.
    #[expect(clippy::unused_async)]
    pub async fn update_pod_limits(&self, _pod_uid: &str, _limits: Limits) -> Result<(), Error> {
        Err(Error::Disconnected)
    }

    /// Removes an exited container: cgroup, state, writable layer. Its log stays. Removing one that isn't there is no error.
    #[expect(clippy::unused_async)]
    pub async fn remove_container(&self, _container: &ContainerId) -> Result<(), Error> {
        Err(Error::Disconnected)
    }

    /// Removes a pod with all its containers (killing those that run): cgroups, namespaces, tmpfs mounts. Removing one
    /// that isn't there is no error.
    #[expect(clippy::unused_async)]
    pub async fn remove_pod(&self, _uid: &str) -> Result<(), Error> {
        Err(Error::Disconnected)
    }

    /// Reads a container's counters.
    #[expect(clippy::unused_async)]
    pub async fn usage(&self, _container: &ContainerId) -> Result<Usage, Error> {
        Err(Error::Disconnected)
    }

    /// Mounts a tmpfs on `path` (made when missing) in the spawner's mount namespace: for `emptyDir.medium: Memory`. Only
    /// containers see it. It goes with the pod.
    #[expect(clippy::unused_async)]
    pub async fn mount_tmpfs(&self, _pod_uid: &str, _path: &Path, _size: Option<u64>) -> Result<(), Error> {
        Err(Error::Disconnected)
    }

    /// The pod's network namespace (for port-forward, and after a restart).
    #[expect(clippy::unused_async)]
    pub async fn pod_network(&self, _uid: &str) -> Result<OwnedFd, Error> {
        Err(Error::Disconnected)
    }

    /// Kills and removes everything, and ends the spawner.
    #[expect(clippy::unused_async)]
    pub async fn shutdown(self) -> Result<(), Error> {
        Err(Error::Disconnected)
    }
}

/// Removes all that the instance left on the machine, with or without a living spawner: processes in its cgroups,
/// cgroups, mounts, state directories. For `carob down`.
#[expect(clippy::unused_async)]
pub async fn teardown(_config: RuntimeConfig) -> Result<(), Error> {
    Err(Error::Disconnected)
}
