//! What the sandbox tells: starts, exits, usage, and what is found again after a restart.

use crate::ContainerId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// A container that runs.
#[derive(Debug, Clone)]
pub struct Started {
    /// Process id of the container's init, in the host's PID namespace.
    pub pid: i32,
    /// When its program was executed.
    pub started_at: Timestamp,
    /// Where its usage can be read.
    pub cgroup: CgroupPaths,
    /// What the start consisted of and how long each stage took.
    pub stages: Vec<(&'static str, Duration)>,
    /// What could not be carried out exactly on this machine, one line each (for an event).
    pub warnings: Vec<String>,
}

/// The end of a container. Delivered at least once, and again after every restart of the gateway until
/// [`Runtime::remove_container`](crate::Runtime::remove_container). Its log is complete on disk before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The container.
    pub container: ContainerId,
    /// Its pod.
    pub pod_uid: String,
    /// The exit code; 128 + n for signal n.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the kernel killed a process of the container for want of memory.
    pub oom_killed: bool,
    /// True when nobody saw it end (the spawner had died): `code` is 137, `finished_at` is
    /// when it was found, `started_at` when its start was begun.
    pub unknown: bool,
    /// When its program was executed.
    pub started_at: Timestamp,
    /// When it was reaped.
    pub finished_at: Timestamp,
    /// What it used in all.
    pub usage: FinalUsage,
}

/// The last reading of a container's counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalUsage {
    /// CPU time in ns (on v2 a multiple of 1000).
    pub cpu_ns: u64,
    /// Highest memory use in bytes.
    pub memory_peak_bytes: u64,
}

/// A reading of a running container's counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time so far in ns.
    pub cpu_ns: u64,
    /// Memory now, in bytes.
    pub memory_bytes: u64,
    /// Highest memory use in bytes.
    pub memory_peak_bytes: u64,
    /// Number of tasks.
    pub pids: u64,
}

/// Which interface a cgroup's files have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CgroupVersion {
    /// One hierarchy per controller (also the hybrid layout).
    V1,
    /// The unified hierarchy.
    V2,
}

/// Where a container's usage can be read. The directories stay until the container is removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupPaths {
    /// Which files are there.
    pub version: CgroupVersion,
    /// Directory of `cpuacct.usage` (v1) or `cpu.stat` (v2).
    pub cpuacct: PathBuf,
    /// Directory of `memory.usage_in_bytes` (v1) or `memory.current` (v2).
    pub memory: PathBuf,
}

/// A pod that was there before the gateway started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredPod {
    /// Its uid.
    pub uid: String,
    /// As given in [`PodConfig`](crate::PodConfig).
    pub hostname: String,
    /// Whether it is on the host's network.
    pub host_network: bool,
    /// As given in [`PodConfig`](crate::PodConfig).
    pub annotations: BTreeMap<String, String>,
    /// False when the spawner died and with it the pod's namespaces: all containers have exited, nothing can be started in it.
    pub alive: bool,
    /// Its containers that were not removed.
    pub containers: Vec<RecoveredContainer>,
}

/// A container that was there before the gateway started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredContainer {
    /// Its identifier.
    pub id: ContainerId,
    /// As given in [`ContainerConfig`](crate::ContainerConfig).
    pub annotations: BTreeMap<String, String>,
    /// Whether it runs.
    pub state: ContainerState,
}

/// Whether a recovered container runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    /// It does.
    Running {
        /// Process id of its init.
        pid: i32,
        /// When its program was executed.
        started_at: Timestamp,
        /// Where its usage can be read.
        cgroup: CgroupPaths,
    },
    /// It has ended; the same [`Exit`] is also delivered on the channel.
    Exited(Exit),
}
