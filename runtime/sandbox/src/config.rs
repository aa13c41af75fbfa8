//! What the worker asks for: pods, containers, limits, execs.

use crate::Error;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// Where a spawner lives and how it is started.
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// Directory of the spawner's socket and the containers' state (`D/sandboxes`). Made when missing.
    pub dir: PathBuf,
    /// Eight hexadecimal digits that tell this instance from others on the machine: its cgroups are `/carob-{instance}`.
    pub instance: String,
    /// The executable that is started as `exe spawner …`.
    pub exe: PathBuf,
}

/// A container's identifier: 64 lower-case hexadecimal digits, unique for ever.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);

impl ContainerId {
    /// Takes 64 lower-case hexadecimal digits, nothing else.
    pub fn parse(id: &str) -> Result<Self, Error> {
        let valid = id.len() == 64 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if valid { Ok(Self(id.to_owned())) } else { Err(Error::InvalidId(id.to_owned())) }
    }

    /// A new one from the kernel's random numbers.
    pub fn random() -> Result<Self, Error> {
        use std::io::Read;
        let mut bytes = [0u8; 32];
        let path = "/dev/urandom";
        std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut bytes)).map_err(|source| Error::Io {
            what: "read",
            path: path.into(),
            source,
        })?;
        let mut text = String::with_capacity(64);
        for byte in bytes {
            for nibble in [byte >> 4, byte & 15] {
                text.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
            }
        }
        Ok(Self(text))
    }

    /// The 64 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContainerId({})", self.0)
    }
}

impl TryFrom<String> for ContainerId {
    type Error = Error;

    fn try_from(id: String) -> Result<Self, Error> {
        Self::parse(&id)
    }
}

impl From<ContainerId> for String {
    fn from(id: ContainerId) -> String {
        id.0
    }
}

/// A pod's sandbox: the namespaces its containers share, and the cgroup above theirs.
#[derive(Debug, Serialize, Deserialize)]
pub struct PodConfig {
    /// The pod's uid: names its cgroup and directory (letters, digits, `-` and `_` only).
    pub uid: String,
    /// Host name in the pod's UTS namespace. Pods on the host's network keep the host's UTS namespace, as in Kubernetes.
    pub hostname: String,
    /// The pod's network namespace; `None` is the host's network.
    #[serde(skip)]
    pub netns: Option<OwnedFd>,
    /// The OCI runtime that makes its containers; Carob's own way where there is none.
    pub runtime: Option<PathBuf>,
    /// `spec.hostUsers: false`: the host's users that the pod's own are.
    pub users: Option<UserRange>,
    /// Given with `users`, and instead of `netns`: see [`Runtime::make_users`](crate::Runtime::make_users).
    #[serde(skip)]
    pub user_namespaces: Option<UserNamespaces>,
    /// `spec.hostIPC`.
    pub host_ipc: bool,
    /// `spec.hostPID`.
    pub host_pid: bool,
    /// `spec.shareProcessNamespace`: one PID namespace, with a tiny init of its own, for all containers of the pod.
    pub share_pid: bool,
    /// Limits of all containers together.
    pub limits: Limits,
    /// `spec.securityContext.sysctls`; only names that belong to the pod's own namespaces are accepted.
    pub sysctls: BTreeMap<String, String>,
    /// Opaque to the sandbox, given back in [`RecoveredPod`](crate::RecoveredPod).
    pub annotations: BTreeMap<String, String>,
}

/// A pod's own users and groups: its 0 is the host's `first`, and so on for [`UserRange::LENGTH`] of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct UserRange {
    /// The host's number of the pod's root.
    pub first: u32,
}

impl UserRange {
    /// How many users and groups a pod has: what the kubelet gives, and all that 16 bits can name.
    pub const LENGTH: u32 = 65_536;

    /// The host's number of one of the pod's users or groups; `None` for those that it doesn't have.
    pub fn host(self, id: u32) -> Option<u32> {
        (id < Self::LENGTH).then(|| self.first.checked_add(id)).flatten()
    }
}

/// Namespaces of a pod to be that has users of its own. They go when nobody holds them.
#[derive(Debug)]
pub struct UserNamespaces {
    /// Its users.
    pub user: OwnedFd,
    /// Its network, with nothing in it yet; the pod's users have rights over it.
    pub net: OwnedFd,
    /// Its shared memory and message queues.
    pub ipc: OwnedFd,
    /// Its host name.
    pub uts: OwnedFd,
    /// While it is open, no other pod of the machine gets these users.
    pub claim: OwnedFd,
}

/// cgroup limits; `None` leaves the kernel's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// CPU weight on the v1 scale (1024 is one CPU; at least 2). Converted to `cpu.weight` on v2.
    pub cpu_shares: Option<u64>,
    /// CPU time per period in µs; -1 is no limit.
    pub cpu_quota_us: Option<i64>,
    /// The period of `cpu_quota_us` in µs (100000 when unset).
    pub cpu_period_us: Option<u64>,
    /// Memory in bytes, swap included; -1 is no limit.
    pub memory_bytes: Option<i64>,
    /// Number of tasks; -1 is no limit.
    pub pids: Option<i64>,
    /// CPUs, as in `0-3,7`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes, as in `0`.
    pub cpuset_mems: Option<String>,
    /// Bytes in huge pages by their size as cgroups name it (`2MB`); what isn't named stays as it is.
    #[serde(default)]
    pub huge_pages: Vec<(String, u64)>,
}

/// One container.
#[expect(clippy::struct_excessive_bools, reason = "each is a field of Kubernetes' own")]
#[derive(Debug, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// Its identifier; never used twice.
    pub id: ContainerId,
    /// The pod it belongs to; made before with [`Runtime::create_pod`](crate::Runtime::create_pod).
    pub pod_uid: String,
    /// Program and arguments. The program is looked up in the container's `PATH` when it has no slash.
    pub argv: Vec<String>,
    /// Environment, in order; a later entry of the same name wins.
    pub env: Vec<(String, String)>,
    /// Absolute working directory; made in the root file system when missing. Empty is `/`.
    pub cwd: String,
    /// Whom the program runs as.
    pub user: User,
    /// Its root file system.
    pub rootfs: Rootfs,
    /// Mounts beyond the default ones, in order. A mount on `/dev/shm` or `/etc/hosts` takes the default one's place.
    pub mounts: Vec<Mount>,
    /// Its own limits, under the pod's.
    pub limits: Limits,
    /// The final set, as in `CAP_CHOWN`; see [`DEFAULT_CAPABILITIES`]. Privileged containers get all that the host has.
    pub capabilities: Vec<String>,
    /// `securityContext.privileged`.
    pub privileged: bool,
    /// `allowPrivilegeEscalation: false`.
    pub no_new_privs: bool,
    /// System call filter; ignored when privileged.
    pub seccomp: Seccomp,
    /// `procMount`.
    pub masks: PathMasks,
    /// Gives the program a terminal; its output goes to the log as `stdout`.
    pub tty: bool,
    /// Joins the PID namespace of this running container of the same pod instead of having its own
    /// (`ephemeralContainers[].targetContainerName`).
    pub pid_of: Option<ContainerId>,
    /// Keeps the program's standard input open for [`Runtime::attach_stdin`](crate::Runtime::attach_stdin).
    pub stdin: bool,
    /// The CRI log file; its directory exists. Rotated files get the suffix `.<timestamp>`.
    pub log_path: PathBuf,
    /// `/proc/self/oom_score_adj` of the program. Lowering it needs CAP_SYS_RESOURCE; without, it stays at the spawner's.
    pub oom_score_adj: i32,
    /// Resource limits of processes (setrlimit).
    pub rlimits: Vec<Rlimit>,
    /// Device nodes beyond the default ones.
    pub devices: Vec<DeviceNode>,
    /// Opaque to the sandbox, given back in [`RecoveredContainer`](crate::RecoveredContainer).
    pub annotations: BTreeMap<String, String>,
}

/// Numeric user, group and supplementary groups.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids (fsGroup included).
    pub groups: Vec<u32>,
}

/// An overlay of image layers with a writable directory on top.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rootfs {
    /// Unpacked layers, topmost first; at least one.
    pub lower: Vec<PathBuf>,
    /// Directory of this container's own writes; `upper/` and `work/` are made in it and removed with the container.
    pub upper: PathBuf,
    /// `readOnlyRootFilesystem`.
    pub read_only: bool,
}

/// One mount into a container.
#[derive(Debug, Serialize, Deserialize)]
pub struct Mount {
    /// The file or directory on the host; empty for tmpfs.
    pub source: PathBuf,
    /// When given, this is bound and not `source` (an `O_PATH` descriptor that subPath was resolved to without races).
    #[serde(skip)]
    pub source_fd: Option<OwnedFd>,
    /// `source_fd` lies in a tmpfs of the pod's ([`crate::Runtime::mount_tmpfs`]), which only the spawner can bind.
    #[serde(default)]
    pub in_pod: bool,
    /// Absolute path in the container; made when missing, never outside its root.
    pub destination: String,
    /// Whether it can only be read.
    pub read_only: bool,
    /// `read_only` holds for what is mounted below it, too.
    pub recursive: bool,
    /// `mountPropagation`.
    pub propagation: Propagation,
    /// A bind or a tmpfs.
    pub kind: MountKind,
}

/// What a [`Mount`] is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    /// A bind of `source`.
    Bind,
    /// The files of an image: unpacked layers, topmost first, read-only and without execution.
    Image {
        /// The layers; at least one.
        lower: Vec<PathBuf>,
        /// A directory or file in them, resolved as if they were `/`.
        sub_path: Option<PathBuf>,
    },
    /// A fresh tmpfs, private to the container.
    Tmpfs {
        /// Size limit in bytes.
        size: Option<u64>,
    },
}

/// `volumeMounts[].mountPropagation`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// `None`
    #[default]
    Private,
    /// `HostToContainer`
    HostToContainer,
    /// `Bidirectional`; only for privileged containers.
    Bidirectional,
}

/// `securityContext.seccompProfile`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// The runtime's default profile, cut to the container's capabilities.
    #[default]
    RuntimeDefault,
    /// No filter.
    Unconfined,
    /// An OCI seccomp profile (JSON) on the host.
    Localhost(PathBuf),
}

/// `securityContext.procMount`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PathMasks {
    /// containerd's masked and read-only paths.
    #[default]
    Default,
    /// None of them.
    Unmasked,
}

/// One resource limit, as in setrlimit(2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// As in `RLIMIT_NOFILE`.
    pub kind: String,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// A device node to make in the container and allow in its cgroup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// Path in the container.
    pub path: String,
    /// Block device; otherwise character.
    pub block: bool,
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// Permissions of the node, as in `0o666`.
    pub mode: u32,
    /// What the cgroup allows: some of `r`, `w`, `m`.
    pub access: String,
}

/// A further process in a running container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecConfig {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Added to the container's environment.
    pub env: Vec<(String, String)>,
    /// Working directory; the container's when `None`.
    pub cwd: Option<String>,
    /// The container's user when `None`.
    pub user: Option<User>,
    /// Gives it a terminal.
    pub tty: bool,
    /// Initial size of the terminal: columns, rows.
    pub terminal_size: Option<(u16, u16)>,
    /// Opens its standard input (`/dev/null` otherwise).
    pub stdin: bool,
}

/// What containerd gives a container that asks for nothing.
pub const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Every capability that Linux has, in the order of their numbers (capability.h).
pub const ALL_CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];
