//! What the gateway and the spawner say to each other.
//!
//! The first packet of each side is a [`greeting`], whose form never changes. All others are postcard.

use crate::config::{ContainerConfig, ContainerId, ExecConfig, Limits, PodConfig, UserRange};
use crate::state::{CgroupPaths, Exit, Usage};
use crate::{Error, wire};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

/// The version this program speaks. It grows when a message changes; the spawner that runs may be older or newer than
/// the gateway that finds it.
pub const VERSION: u32 = 5;

const MAGIC: &[u8; 6] = b"carob\0";

/// The fixed form of the first packet: magic, version, process id.
pub fn greeting(version: u32) -> Vec<u8> {
    let mut packet = MAGIC.to_vec();
    packet.extend(version.to_le_bytes());
    packet.extend(std::process::id().to_le_bytes());
    packet
}

/// Version and process id of the other side; `None` when it isn't a greeting.
pub fn parse_greeting(packet: &[u8]) -> Option<(u32, u32)> {
    let numbers = packet.strip_prefix(MAGIC.as_slice())?;
    let version = numbers.get(..4)?.try_into().ok()?;
    let pid = numbers.get(4..8)?.try_into().ok()?;
    Some((u32::from_le_bytes(version), u32::from_le_bytes(pid)))
}

/// From the gateway: a request with the number that its answer will bear.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the gateway.
    pub id: u64,
    /// What it asks for.
    pub ask: Ask,
}

/// What the gateway asks for. Descriptors travel beside it in the order that each variant names.
#[derive(Debug, Serialize, Deserialize)]
pub enum Ask {
    /// Make the next start faster; not answered.
    Warm,
    /// The answer carries the user, network, IPC and UTS namespaces, and the claim to the range.
    MakeUsers {
        /// The host's users that theirs are.
        range: UserRange,
    },
    /// Descriptors: the network namespace if `netns`; those of `MakeUsers` if the pod has users of its own.
    CreatePod {
        /// The pod.
        pod: PodConfig,
        /// Whether a network namespace comes with it.
        netns: bool,
    },
    /// Descriptors: one per entry of `mount_fds`.
    StartContainer {
        /// The container.
        container: Box<ContainerConfig>,
        /// Indices into its mounts whose source is a descriptor.
        mount_fds: Vec<usize>,
    },
    /// The answer carries stdin (if asked for), stdout, stderr; or the terminal's master.
    Exec {
        /// In which container.
        container: ContainerId,
        /// What to execute.
        exec: ExecConfig,
    },
    /// Send a signal.
    Signal {
        /// To which container.
        container: ContainerId,
        /// Which signal.
        signal: i32,
    },
    /// The answer carries the write end.
    AttachStdin {
        /// Of which container.
        container: ContainerId,
    },
    /// Close the spawner's copy of the write end.
    CloseStdin {
        /// Of which container.
        container: ContainerId,
    },
    /// Change limits.
    UpdateLimits {
        /// Of which pod.
        pod: Option<String>,
        /// Or of which container.
        container: Option<ContainerId>,
        /// The new ones.
        limits: Limits,
    },
    /// Remove an exited container.
    RemoveContainer {
        /// Which.
        container: ContainerId,
    },
    /// Remove a pod and all in it.
    RemovePod {
        /// Which.
        uid: String,
    },
    /// Read counters.
    Usage {
        /// Of which container.
        container: ContainerId,
    },
    /// The answer carries the root directory of the tmpfs.
    MountTmpfs {
        /// It goes with this pod.
        pod: String,
        /// Where containers' mounts will look for it.
        path: PathBuf,
        /// Size limit in bytes.
        size: Option<u64>,
        /// Bytes of a huge page, for a file system of such.
        page: Option<u64>,
    },
    /// The answer carries the pod's network namespace.
    PodNetwork {
        /// Which pod.
        uid: String,
    },
    /// All pods and containers.
    List,
    /// Kill and remove everything, then end.
    Shutdown,
}

/// From the spawner.
#[derive(Debug, Serialize, Deserialize)]
pub enum Tell {
    /// The answer to a request.
    Answer {
        /// The request's number.
        id: u64,
        /// What came of it.
        answer: Result<Answer, Failure>,
    },
    /// A container has ended.
    Exit(Exit),
    /// A process started by `Exec` has ended.
    ExecExit {
        /// The request that started it.
        id: u64,
        /// Its exit code.
        code: i32,
    },
}

/// The good answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// Nothing more to say.
    Done,
    /// To `StartContainer`.
    Started(StartedContainer),
    /// To `Exec`.
    Exec {
        /// Process id.
        pid: i32,
    },
    /// To `Usage`.
    Usage(Usage),
    /// To `List`.
    Pods(Vec<KnownPod>),
}

/// A container that was started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StartedContainer {
    /// Process id of its init.
    pub pid: i32,
    /// When its program was executed.
    pub started_at: Timestamp,
    /// Where its usage can be read.
    pub cgroup: CgroupPaths,
    /// Name and µs of each stage.
    pub stages: Vec<(String, u64)>,
    /// What could not be carried out exactly.
    pub warnings: Vec<String>,
}

/// A pod that the spawner knows.
#[derive(Debug, Serialize, Deserialize)]
pub struct KnownPod {
    /// What it was made from.
    pub config: PodConfig,
    /// Whether it has a network namespace of its own.
    pub own_network: bool,
    /// False when its namespaces are gone.
    pub alive: bool,
    /// Its containers.
    pub containers: Vec<KnownContainer>,
}

/// A container that the spawner knows.
#[derive(Debug, Serialize, Deserialize)]
pub struct KnownContainer {
    /// Its identifier.
    pub id: ContainerId,
    /// Its annotations.
    pub annotations: std::collections::BTreeMap<String, String>,
    /// Where its usage can be read.
    pub cgroup: CgroupPaths,
    /// Process id and start, while it runs.
    pub running: Option<(i32, Timestamp)>,
    /// Its end.
    pub exit: Option<Exit>,
}

/// An [`Error`] on its way from the spawner to the gateway.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Failure {
    /// [`Error::InvalidConfig`]
    InvalidConfig {
        /// Field.
        field: String,
        /// Why.
        message: String,
    },
    /// [`Error::NotFound`] of a pod.
    NoPod(String),
    /// [`Error::NotFound`] of a container.
    NoContainer(String),
    /// [`Error::AlreadyExists`] of a pod.
    PodExists(String),
    /// [`Error::AlreadyExists`] of a container.
    ContainerExists(String),
    /// [`Error::WrongState`]
    WrongState {
        /// Container.
        id: String,
        /// Its state.
        state: String,
    },
    /// [`Error::Start`]
    Start {
        /// For the status.
        message: String,
        /// 126, 127 or 128.
        exit_code: i32,
    },
    /// [`Error::Sandbox`]
    Sandbox {
        /// Where.
        stage: String,
        /// Why.
        message: String,
    },
    /// [`Error::Users`]
    Users(String),
    /// [`Error::UsersTaken`]
    UsersTaken,
}

impl Failure {
    /// A failure of the machinery in a named stage.
    pub fn sandbox(stage: &str, message: impl std::fmt::Display) -> Self {
        Self::Sandbox { stage: stage.to_owned(), message: message.to_string() }
    }

    /// A configuration that cannot be carried out.
    pub fn config(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::InvalidConfig { field: field.into(), message: message.into() }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::InvalidConfig { field, message } => Error::InvalidConfig { field, message },
            Failure::NoPod(id) => Error::NotFound { kind: "pod", id },
            Failure::NoContainer(id) => Error::NotFound { kind: "container", id },
            Failure::PodExists(id) => Error::AlreadyExists { kind: "pod", id },
            Failure::ContainerExists(id) => Error::AlreadyExists { kind: "container", id },
            Failure::WrongState { id, state } => Error::WrongState { id, state },
            Failure::Start { message, exit_code } => Error::Start { message, exit_code },
            Failure::Sandbox { stage, message } => Error::Sandbox { stage, message },
            Failure::Users(message) => Error::Users(message),
            Failure::UsersTaken => Error::UsersTaken,
        }
    }
}

/// Encodes and sends one message.
pub fn send<T: Serialize>(socket: BorrowedFd<'_>, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    wire::send(socket, &encode(message)?, fds)
}

/// Encodes one message.
pub fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    postcard::to_allocvec(message).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Decodes one message.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    postcard::from_bytes(body).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_understood_whatever_follows_it() {
        let mut packet = greeting(7);
        packet.extend(b"from a later version");
        assert_eq!(parse_greeting(&packet), Some((7, std::process::id())));
        assert_eq!(parse_greeting(b"HTTP/1.1 400"), None);
    }
}
