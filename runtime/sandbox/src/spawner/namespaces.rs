//! The namespaces that a pod's containers share, made by stepping into new ones and back. The spawner has one thread, so
//! nobody sees it away from home.

use super::{pause, users};
use crate::cgroup::Cgroup;
use crate::config::{PodConfig, UserNamespaces};
use crate::kernel::mount;
use crate::kernel::process;
use crate::protocol::Failure;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// `/dev/shm` of a pod, in bytes (containerd's 64 MiB).
const SHM_SIZE: u64 = 64 * 1024 * 1024;

/// The spawner's own namespaces.
#[derive(Debug)]
pub struct Home {
    mnt: OwnedFd,
    ipc: OwnedFd,
    uts: OwnedFd,
    net: OwnedFd,
}

/// A pod's namespaces. `None` is the host's.
#[derive(Debug)]
pub struct PodNamespaces {
    /// The host's mounts, and the pod's own.
    pub mnt: OwnedFd,
    /// Given by the network.
    pub net: Option<OwnedFd>,
    /// System V and POSIX message queues, shared memory.
    pub ipc: Option<OwnedFd>,
    /// Host name.
    pub uts: Option<OwnedFd>,
    /// Shared processes, and the init that keeps them.
    pub pid: Option<(OwnedFd, i32)>,
    /// The pod's own users; the four above are theirs.
    pub user: Option<OwnedFd>,
    /// What keeps those users from other pods for as long as this one is there.
    pub claim: Option<OwnedFd>,
}

/// What comes with a pod's request.
#[derive(Debug)]
pub enum Given {
    /// The host's network.
    Nothing,
    /// A network namespace.
    Network(OwnedFd),
    /// All that users of its own own.
    Users(UserNamespaces),
}

fn open(name: &str) -> io::Result<OwnedFd> {
    Ok(File::open(format!("/proc/self/ns/{name}"))?.into())
}

impl Home {
    /// Remembers where this process is now.
    pub fn here() -> io::Result<Self> {
        Ok(Self { mnt: open("mnt")?, ipc: open("ipc")?, uts: open("uts")?, net: open("net")? })
    }

    /// Does something in other namespaces and comes back, whatever happened there.
    fn away<T>(&self, flags: i32, there: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        let result = there();
        for (flag, fd) in [
            (libc::CLONE_NEWNS, &self.mnt),
            (libc::CLONE_NEWIPC, &self.ipc),
            (libc::CLONE_NEWUTS, &self.uts),
            (libc::CLONE_NEWNET, &self.net),
        ] {
            if flags & flag == 0 {
                continue;
            }
            if let Err(error) = process::setns(fd.as_fd(), flag) {
                // Going on in a pod's namespaces would mix pods up. The next spawner finds the containers.
                say!("cannot return from a pod's namespaces: {error}");
                std::process::exit(70);
            }
        }
        result
    }

    /// Does something in a pod's mount namespace.
    pub fn in_mounts<T>(&self, pod: &PodNamespaces, there: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        self.away(libc::CLONE_NEWNS, || {
            process::setns(pod.mnt.as_fd(), libc::CLONE_NEWNS)
                .map_err(|error| Failure::sandbox("namespaces", error))?;
            there()
        })
    }
}

/// Makes a pod's namespaces. `shm` is the directory on which its `/dev/shm` is mounted in its mount namespace.
pub fn make(
    home: &Home,
    pod: &PodConfig,
    given: Given,
    shm: &Path,
    cgroup: &Cgroup<'_>,
) -> Result<PodNamespaces, Failure> {
    let wrap = |error: io::Error| Failure::sandbox("namespaces", error);
    let (net, theirs, claim) = match given {
        Given::Nothing => (None, None, None),
        Given::Network(net) => (Some(net), None, None),
        Given::Users(UserNamespaces { user, net, ipc, uts, claim }) => (Some(net), Some((user, ipc, uts)), Some(claim)),
    };
    let (new_ipc, new_uts) = (!pod.host_ipc && theirs.is_none(), net.is_some() && theirs.is_none());
    let mut flags = libc::CLONE_NEWNS;
    if new_ipc {
        flags |= libc::CLONE_NEWIPC;
    }
    // Pods on the host's network have the host's name.
    if net.is_some() {
        flags |= libc::CLONE_NEWUTS;
    }
    let (mnt, ipc, uts) = home.away(flags, || {
        process::unshare(flags).map_err(wrap)?;
        if let Some((_, _, uts)) = &theirs {
            process::setns(uts.as_fd(), libc::CLONE_NEWUTS).map_err(wrap)?;
        }
        if net.is_some() {
            nix::unistd::sethostname(&pod.hostname).map_err(|errno| wrap(errno.into()))?;
        }
        if !pod.host_ipc {
            let attributes = mount::ATTR_NOSUID | mount::ATTR_NODEV | mount::ATTR_NOEXEC;
            let owner = pod.users.map_or(0, |users| users.first);
            let tree = mount::tmpfs_of(owner, Some(SHM_SIZE), "1777", attributes).map_err(wrap)?;
            mount::attach(tree.as_fd(), shm).map_err(wrap)?;
        }
        for (name, value) in pod.sysctls.iter().filter(|(name, _)| !is_net(name) && theirs.is_none()) {
            write_sysctl(name, value)?;
        }
        let ipc = if new_ipc { Some(open("ipc").map_err(wrap)?) } else { None };
        let uts = if new_uts { Some(open("uts").map_err(wrap)?) } else { None };
        Ok((open("mnt").map_err(wrap)?, ipc, uts))
    })?;
    let (user, ipc, uts) = match theirs {
        Some((user, ipc, uts)) => {
            set_as_root(pod, user.as_fd(), ipc.as_fd())?;
            (Some(user), Some(ipc), Some(uts))
        }
        None => (None, ipc, uts),
    };
    if let Some(net) = &net
        && pod.sysctls.keys().any(|name| is_net(name))
    {
        home.away(libc::CLONE_NEWNET, || {
            process::setns(net.as_fd(), libc::CLONE_NEWNET).map_err(wrap)?;
            for (name, value) in pod.sysctls.iter().filter(|(name, _)| is_net(name)) {
                write_sysctl(name, value)?;
            }
            Ok(())
        })?;
    }
    let pid = if pod.share_pid && !pod.host_pid {
        let others: Vec<BorrowedFd<'_>> = [&net, &ipc, &uts].into_iter().flatten().map(AsFd::as_fd).collect();
        Some(pause::start(cgroup, &others, pod.users, shm)?)
    } else {
        None
    };
    Ok(PodNamespaces { mnt, net, ipc, uts, pid, user, claim })
}

/// The sysctls of an IPC namespace that has users of its own: they are its root's to write, not the host's.
fn set_as_root(pod: &PodConfig, user: BorrowedFd<'_>, ipc: BorrowedFd<'_>) -> Result<(), Failure> {
    let mut wanted = pod.sysctls.iter().filter(|(name, _)| !is_net(name)).peekable();
    if wanted.peek().is_none() {
        return Ok(());
    }
    users::as_root(user, ipc, || wanted.try_for_each(|(name, value)| write_sysctl(name, value)))
}

fn is_net(name: &str) -> bool {
    name.starts_with("net.") || name.starts_with("net/")
}

/// The sysctls that belong to a pod's own namespaces, the only ones it may set.
pub fn check_sysctls(pod: &PodConfig, own_network: bool) -> Result<(), Failure> {
    const IPC: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    for name in pod.sysctls.keys() {
        let refuse = |why: &str| Err(Failure::config(format!("sysctls[{name}]"), why));
        if name.split(['.', '/']).any(str::is_empty) || name.contains('\0') {
            return refuse("is not the name of a sysctl");
        }
        let dotted = name.replace('/', ".");
        if is_net(name) {
            if !own_network {
                return refuse("cannot be set on the host's network");
            }
        } else if IPC.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.") {
            if pod.host_ipc {
                return refuse("cannot be set with the host's IPC");
            }
        } else {
            return refuse("does not belong to a pod's own namespaces");
        }
    }
    Ok(())
}

fn write_sysctl(name: &str, value: &str) -> Result<(), Failure> {
    let path = PathBuf::from("/proc/sys").join(name.replace('.', "/"));
    fs::write(&path, value).map_err(|error| Failure::config(format!("sysctls[{name}]"), error.to_string()))
}
