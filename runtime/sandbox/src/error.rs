//! What can go wrong between the gateway and a container.

use std::io;
use std::path::PathBuf;

/// An error of the sandbox.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An identifier that isn't 64 lower-case hexadecimal digits.
    #[error("container id {0:?} is not 64 lower-case hexadecimal digits")]
    InvalidId(String),
    /// A configuration that cannot be carried out as written; `field` names the field of the config type.
    #[error("{field}: {message}")]
    InvalidConfig {
        /// Field of the config, as in `mounts[2].destination`.
        field: String,
        /// What is wrong with it.
        message: String,
    },
    /// No such pod or container is known to the spawner.
    #[error("{kind} {id} not found")]
    NotFound {
        /// `pod` or `container`.
        kind: &'static str,
        /// Its uid or id.
        id: String,
    },
    /// There is one of that name already.
    #[error("{kind} {id} already exists")]
    AlreadyExists {
        /// `pod` or `container`.
        kind: &'static str,
        /// Its uid or id.
        id: String,
    },
    /// The container isn't in the state that the request needs (exec into one that has exited; removal of one that runs).
    #[error("container {id} is {state}")]
    WrongState {
        /// The container.
        id: String,
        /// The state it is in.
        state: String,
    },
    /// The program could not be started: a bad command, working directory or mount. `exit_code` is what Kubernetes shows
    /// for the container (127 not found, 126 not executable, 128 everything else), its reason is `StartError`, or
    /// `ContainerCannotRun` where the program itself is at fault.
    #[error("{message}")]
    Start {
        /// One line for the container's status.
        message: String,
        /// 126, 127 or 128.
        exit_code: i32,
    },
    /// The sandbox (cgroups, namespaces, mounts) could not be made: `stage` says where.
    #[error("{stage}: {message}")]
    Sandbox {
        /// `cgroup`, `namespaces`, `overlay`, …
        stage: String,
        /// What the kernel said, with the path.
        message: String,
    },
    /// What the container needs can't be had with users of the pod's own: their number, or files shown as theirs.
    #[error("{0}")]
    Users(String),
    /// Another pod of the machine, of whichever spawner, has these users.
    #[error("the users are another pod's")]
    UsersTaken,
    /// The spawner has gone away, or was never there.
    #[error("the spawner is not connected")]
    Disconnected,
    /// The spawner speaks a version of the protocol that this gateway doesn't.
    #[error(
        "the running spawner speaks protocol {theirs}, this gateway {ours}: run `carob down` or the matching carob"
    )]
    Version {
        /// The gateway's protocol version.
        ours: u32,
        /// The spawner's protocol version.
        theirs: u32,
    },
    /// The spawner could not be started.
    #[error("cannot start the spawner: {0}")]
    SpawnerStart(String),
    /// A path could not be read or written.
    #[error("{what} {}", path.display())]
    Io {
        /// What was tried, as in `create`.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}
