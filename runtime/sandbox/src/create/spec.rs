//! The OCI runtime specification of a container, from its config.

use super::Users;
use crate::config::{ContainerConfig, PathMasks, PodConfig, Propagation, User};
use crate::program;
use crate::protocol::Failure;
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Linux, LinuxBuilder, LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType, LinuxNamespaceBuilder, LinuxNamespaceType,
    Mount, MountBuilder, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, ProcessBuilder, RootBuilder, Spec,
    SpecBuilder, UserBuilder,
};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The namespaces that a container joins; the others are its own.
#[derive(Debug, Clone, Copy)]
pub struct Joined<'a> {
    /// `None`: the host's.
    pub network: Option<BorrowedFd<'a>>,
    /// `None`: the host's.
    pub ipc: Option<BorrowedFd<'a>>,
    /// `None`: the host's.
    pub uts: Option<BorrowedFd<'a>>,
    /// The pod's shared one.
    pub pid: Option<BorrowedFd<'a>>,
}

/// A bind mount that has been opened and put in a private place, for the runtime to put in the root.
#[derive(Debug)]
pub struct Staged {
    /// Where it is.
    pub source: PathBuf,
    /// Where it goes.
    pub destination: String,
    /// Options of the specification.
    pub options: Vec<&'static str>,
}

/// Paths that a container must not read (containerd's list).
const MASKED: [&str; 13] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/selinux",
];

/// Paths that a container must not write (containerd's list).
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Mounts of every container: destination, type, source, options.
const DEFAULT_MOUNTS: [(&str, &str, &str, &[&str]); 5] = [
    ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
    ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
    ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
];

/// Builds the specification. Capabilities, seccomp and oom_score_adj aren't in it: see [`crate::program`].
pub fn build(
    pod: &PodConfig,
    container: &ContainerConfig,
    joined: &Joined<'_>,
    users: Option<Users<'_>>,
    staged: &[Staged],
) -> Result<Spec, Failure> {
    let user = match users {
        Some(users) => users.host(&container.user)?,
        None => container.user.clone(),
    };
    let owner = users.map_or(0, |users| users.range.first);
    specification(pod, container, joined, &user, owner, staged)
        .map_err(|error| Failure::config("container", error.to_string()))
}

/// `user` and `owner` (the container's root) are the host's numbers.
fn specification(
    pod: &PodConfig,
    container: &ContainerConfig,
    joined: &Joined<'_>,
    user: &User,
    owner: u32,
    staged: &[Staged],
) -> Result<Spec, OciSpecError> {
    SpecBuilder::default()
        .version("1.1.0")
        .root(
            RootBuilder::default()
                .path(Path::new("/").join(super::ROOTFS))
                .readonly(container.rootfs.read_only)
                .build()?,
        )
        .process(process(container, user)?)
        .mounts(mounts(container, owner, staged)?)
        .linux(linux(pod, container, joined)?)
        .build()
        .map(|mut spec| {
            spec.set_hostname(None);
            spec
        })
}

fn process(container: &ContainerConfig, user: &User) -> Result<Process, OciSpecError> {
    let user = UserBuilder::default()
        .uid(user.uid)
        .gid(user.gid)
        .additional_gids(user.groups.clone())
        .umask(0o022u32)
        .build()?;
    let mut process = ProcessBuilder::default()
        .terminal(container.tty)
        .user(user)
        .args(container.argv.clone())
        .env(program::environment(&container.env))
        .cwd(if container.cwd.is_empty() { "/" } else { &container.cwd })
        .no_new_privileges(container.no_new_privs)
        .rlimits(rlimits(container)?)
        .build()?;
    process.set_capabilities(None);
    Ok(process)
}

/// The resource limits, each in the place of its number (asm-generic/resource.h).
const RLIMITS: [(&str, PosixRlimitType); 16] = [
    ("RLIMIT_CPU", PosixRlimitType::RlimitCpu),
    ("RLIMIT_FSIZE", PosixRlimitType::RlimitFsize),
    ("RLIMIT_DATA", PosixRlimitType::RlimitData),
    ("RLIMIT_STACK", PosixRlimitType::RlimitStack),
    ("RLIMIT_CORE", PosixRlimitType::RlimitCore),
    ("RLIMIT_RSS", PosixRlimitType::RlimitRss),
    ("RLIMIT_NPROC", PosixRlimitType::RlimitNproc),
    ("RLIMIT_NOFILE", PosixRlimitType::RlimitNofile),
    ("RLIMIT_MEMLOCK", PosixRlimitType::RlimitMemlock),
    ("RLIMIT_AS", PosixRlimitType::RlimitAs),
    ("RLIMIT_LOCKS", PosixRlimitType::RlimitLocks),
    ("RLIMIT_SIGPENDING", PosixRlimitType::RlimitSigpending),
    ("RLIMIT_MSGQUEUE", PosixRlimitType::RlimitMsgqueue),
    ("RLIMIT_NICE", PosixRlimitType::RlimitNice),
    ("RLIMIT_RTPRIO", PosixRlimitType::RlimitRtprio),
    ("RLIMIT_RTTIME", PosixRlimitType::RlimitRttime),
];

/// The number of a resource limit, by its name as in `RLIMIT_NOFILE`.
pub fn rlimit_number(name: &str) -> Option<usize> {
    RLIMITS.iter().position(|(known, _)| *known == name)
}

fn rlimits(container: &ContainerConfig) -> Result<Vec<PosixRlimit>, OciSpecError> {
    let mut list = Vec::new();
    for limit in &container.rlimits {
        let kind = rlimit_number(&limit.kind)
            .map(|number| RLIMITS[number].1)
            .ok_or_else(|| OciSpecError::Other(format!("unknown resource limit {:?}", limit.kind)))?;
        list.push(PosixRlimitBuilder::default().typ(kind).soft(limit.soft).hard(limit.hard).build()?);
    }
    Ok(list)
}

fn mounts(container: &ContainerConfig, owner: u32, staged: &[Staged]) -> Result<Vec<Mount>, OciSpecError> {
    let replaced = |destination: &str| staged.iter().any(|bind| Path::new(&bind.destination) == Path::new(destination));
    let mut list = Vec::new();
    for (destination, kind, source, options) in DEFAULT_MOUNTS {
        if replaced(destination) {
            continue;
        }
        let mut options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        if owner != 0 {
            give(&mut options, kind, owner);
        }
        if destination == "/sys" && container.privileged {
            options.retain(|option| option != "ro");
        }
        list.push(mount(destination, kind, Path::new(source), options)?);
    }
    let own = |options: &[&str]| options.iter().map(|option| (*option).to_owned()).collect::<Vec<String>>();
    for bind in staged {
        list.push(mount(&bind.destination, "bind", &bind.source, own(&bind.options))?);
    }
    Ok(list)
}

/// Has a mount of every container belong to a root that isn't the host's.
fn give(options: &mut Vec<String>, kind: &str, owner: u32) {
    match kind {
        "tmpfs" => options.extend([format!("uid={owner}"), format!("gid={owner}")]),
        "devpts" => {
            for option in options {
                if let Some(gid) = option.strip_prefix("gid=").and_then(|gid| gid.parse::<u32>().ok()) {
                    *option = format!("gid={}", owner + gid);
                }
            }
        }
        _ => {}
    }
}

fn mount(destination: &str, kind: &str, source: &Path, options: Vec<String>) -> Result<Mount, OciSpecError> {
    MountBuilder::default().destination(destination).typ(kind).source(source).options(options).build()
}

fn linux(pod: &PodConfig, container: &ContainerConfig, joined: &Joined<'_>) -> Result<Linux, OciSpecError> {
    let mut namespaces = Vec::new();
    let mut add = |kind: LinuxNamespaceType, fd: Option<BorrowedFd<'_>>| -> Result<(), OciSpecError> {
        let builder = LinuxNamespaceBuilder::default().typ(kind);
        let builder = match fd {
            Some(fd) => builder.path(format!("/proc/self/fd/{}", fd.as_raw_fd())),
            None => builder,
        };
        namespaces.push(builder.build()?);
        Ok(())
    };
    add(LinuxNamespaceType::Mount, None)?;
    // The cgroup namespace is made by the executor, when the process is in the container's cgroup.
    if !pod.host_pid {
        add(LinuxNamespaceType::Pid, joined.pid)?;
    }
    for (kind, fd) in [
        (LinuxNamespaceType::Network, joined.network),
        (LinuxNamespaceType::Ipc, joined.ipc),
        (LinuxNamespaceType::Uts, joined.uts),
    ] {
        if fd.is_some() {
            add(kind, fd)?;
        }
    }
    let any = |wanted| container.mounts.iter().any(|mount| mount.propagation == wanted);
    let propagation = if any(Propagation::Bidirectional) {
        "shared"
    } else if any(Propagation::HostToContainer) {
        "slave"
    } else {
        "private"
    };
    let masks = container.masks == PathMasks::Default && !container.privileged;
    let paths = |list: &[&str]| list.iter().map(|path| (*path).to_owned()).collect::<Vec<String>>();
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces)
        // Nothing of that name is made: see the workshop.
        .cgroups_path("/carob")
        .devices(devices(container)?)
        .rootfs_propagation(propagation)
        .masked_paths(if masks { paths(&MASKED) } else { Vec::new() })
        .readonly_paths(if masks { paths(&READ_ONLY) } else { Vec::new() })
        .build()?;
    linux.set_resources(None);
    linux.set_seccomp(None);
    Ok(linux)
}

fn devices(container: &ContainerConfig) -> Result<Vec<LinuxDevice>, OciSpecError> {
    let mut list = Vec::new();
    if container.privileged {
        host_devices(Path::new("/dev"), &mut list)?;
    }
    for device in &container.devices {
        let kind = if device.block { LinuxDeviceType::B } else { LinuxDeviceType::C };
        list.push(
            LinuxDeviceBuilder::default()
                .path(&device.path)
                .typ(kind)
                .major(device.major)
                .minor(device.minor)
                .file_mode(device.mode)
                .build()?,
        );
    }
    Ok(list)
}

/// What a privileged container sees of the host's devices: all but those that a container has of its own.
fn host_devices(directory: &Path, list: &mut Vec<LinuxDevice>) -> Result<(), OciSpecError> {
    const OWN: [&str; 11] =
        ["pts", "shm", "mqueue", "fd", "console", "ptmx", "null", "zero", "full", "random", "urandom"];
    let Ok(entries) = std::fs::read_dir(directory) else { return Ok(()) };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name == "tty" || OWN.iter().any(|own| name == *own) {
            continue;
        }
        let (Ok(kind), path) = (entry.file_type(), entry.path()) else { continue };
        if kind.is_dir() {
            host_devices(&path, list)?;
            continue;
        }
        let device = match (kind.is_block_device(), kind.is_char_device()) {
            (true, _) => LinuxDeviceType::B,
            (_, true) => LinuxDeviceType::C,
            _ => continue,
        };
        let Ok(metadata) = entry.metadata() else { continue };
        let number = metadata.rdev();
        list.push(
            LinuxDeviceBuilder::default()
                .path(path)
                .typ(device)
                .major(i64::from(libc::major(number)))
                .minor(i64::from(libc::minor(number)))
                .file_mode(metadata.mode() & 0o777)
                .uid(metadata.uid())
                .gid(metadata.gid())
                .build()?,
        );
    }
    Ok(())
}
