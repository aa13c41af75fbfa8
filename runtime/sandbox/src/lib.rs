//! One container's isolation: a spawner process that outlives the gateway, libcontainer, cgroups, seccomp and logs.
//!
//! [`Runtime`] is the gateway's side. It talks to the *spawner* ([`spawner_main`]), a small single-threaded process
//! that forks once per request, reaps containers, and keeps pods running through a restart of the gateway.

/// Says something on standard error, which is the spawner's log. `eprintln!` panics where that can't be written, and a full
/// disk is no reason to end all pods.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

mod capabilities;
mod cgroup;
mod check;
mod config;
mod create;
mod error;
mod exec;
#[doc(hidden)]
pub mod fuzzing;
mod kernel;
mod logs;
mod memory;
mod oci;
mod outbox;
mod profile;
mod program;
mod protocol;
mod runtime;
mod seccomp;
mod spawner;
mod state;
mod tree;
mod wire;

pub use cgroup::has_controller;
pub use check::{CheckItem, CheckState, check};
pub use config::{
    ALL_CAPABILITIES, ContainerConfig, ContainerId, DEFAULT_CAPABILITIES, DeviceNode, ExecConfig, Limits, Mount,
    MountKind, PathMasks, PodConfig, Propagation, Rlimit, Rootfs, RuntimeConfig, Seccomp, User, UserNamespaces,
    UserRange,
};
pub use error::Error;
pub use memory::give_back;
pub use profile::profile;
pub use runtime::{ExecProcess, Runtime, show_as, spawner_of, teardown};
pub use state::{
    CgroupPaths, CgroupVersion, ContainerState, Exit, FinalUsage, RecoveredContainer, RecoveredPod, Started, Usage,
};
pub use tree::remove_tree;

use std::ffi::OsString;
use std::process::ExitCode;

/// The body of the hidden command `carob spawner …`. It must run before the process has any other thread (before
/// tokio). `args` are the arguments after `spawner`, exactly as [`Runtime::start`] passed them.
pub fn spawner_main(args: impl Iterator<Item = OsString>) -> ExitCode {
    spawner::main(args)
}
