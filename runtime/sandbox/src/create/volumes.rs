//! Puts a container's volumes in place when it has its root already: whatever a link in them leads to is inside of the
//! container by then, and what the runtime itself needs (`/dev`, `/proc`, what is masked there) was made while nobody could
//! exchange it.

use super::mounts::Tree;
use super::places::make;
use super::rootfs::open_in;
use crate::capabilities;
use crate::config::Propagation;
use crate::kernel::mount;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// What a container's root is completed with, and where its program begins.
#[derive(Debug)]
pub struct Volumes {
    /// Those that may hold others' places first.
    pub trees: Vec<Tree>,
    /// The container's root as the host knows it: what is made on the way is its.
    pub owner: u32,
    /// The working directory.
    pub cwd: PathBuf,
}

/// What may be covered in `/proc` (runc's list): files that tell of resources, which lxcfs puts there.
const OF_PROC: [&str; 11] = [
    "cpuinfo",
    "diskstats",
    "loadavg",
    "meminfo",
    "net/dev",
    "slabinfo",
    "stat",
    "swaps",
    "sys/crypto/fips_enabled",
    "sys/kernel/ns_last_pid",
    "uptime",
];

/// What every container has in its `/dev`, also in one that is a volume; the pod's shared memory is among the volumes.
const OF_DEV: [(&str, bool); 3] = [("pts", true), ("mqueue", true), ("console", false)];

/// A path can change this often while it is followed.
const TRIES: usize = 64;

impl Volumes {
    /// Puts them in place, and makes the working directory. The calling process has the container's root, all capabilities
    /// and the container's user.
    pub fn attach(&self) -> Result<(), String> {
        let root = open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
        let root = root.map_err(|errno| format!("/: {errno}"))?;
        capabilities::as_owner(self.owner, || self.attach_all(root.as_fd()))
            .map_err(|error| format!("capabilities: {error}"))?
    }

    fn attach_all(&self, root: BorrowedFd<'_>) -> Result<(), String> {
        let dev = resolve(root, Path::new("dev")).map_err(|error| format!("/dev: {error}"))?;
        for tree in &self.trees {
            tree.attach(root, dev.as_fd())
                .map_err(|error| format!("cannot mount on {}: {error}", tree.destination.display()))?;
        }
        let cwd = place(root, &self.cwd, true);
        cwd.map(drop).map_err(|error| format!("working directory {}: {error}", self.cwd.display()))
    }
}

impl Tree {
    fn attach(&self, root: BorrowedFd<'_>, dev: BorrowedFd<'_>) -> io::Result<()> {
        let place = place(root, &self.destination, self.directory)?;
        self.check(root, place.as_fd())?;
        let inner = if same(dev, place.as_fd())? { inner_of(dev)? } else { Vec::new() };
        mount::set_attributes(self.fd.as_fd(), self.attributes, 0, false)?;
        mount::attach_at(self.fd.as_fd(), place.as_fd())?;
        if self.propagation == Propagation::Private {
            // What comes below a shared mount is shared at first.
            mount::set_attributes(self.fd.as_fd(), 0, libc::MS_PRIVATE, true)?;
        }
        for (name, directory, tree) in inner {
            let place = self::place(self.fd.as_fd(), Path::new(name), directory)?;
            mount::attach_at(tree.as_fd(), place.as_fd())?;
        }
        Ok(())
    }

    /// Not over the root, and in `/proc` only over what is told there (CVE-2019-16884, CVE-2025-52881).
    fn check(&self, root: BorrowedFd<'_>, place: BorrowedFd<'_>) -> io::Result<()> {
        if same(root, place)? {
            return Err(io::Error::other("it leads to the container's root"));
        }
        let of_proc = |fd: BorrowedFd<'_>| fstatfs(fd).map(|found| found.filesystem_type() == PROC_SUPER_MAGIC);
        if !of_proc(place)? {
            return Ok(());
        }
        let proc = resolve(root, Path::new("proc"))?;
        if same(proc.as_fd(), place)? && of_proc(self.fd.as_fd())? && fstat(&self.fd)?.st_ino == PROC_ROOT {
            return Ok(());
        }
        for allowed in OF_PROC {
            if resolve(proc.as_fd(), Path::new(allowed)).is_ok_and(|found| same(found.as_fd(), place).unwrap_or(false))
            {
                return Ok(());
            }
        }
        Err(io::Error::other("nothing may be mounted there in /proc"))
    }
}

/// The inode of a proc file system's root.
const PROC_ROOT: u64 = 1;

fn same(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> io::Result<bool> {
    let (one, other) = (fstat(one)?, fstat(other)?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

/// The mounts of the container's own `/dev`, each with its name.
fn inner_of(dev: BorrowedFd<'_>) -> io::Result<Vec<(&'static str, bool, OwnedFd)>> {
    let own = fstat(dev)?.st_dev;
    let mut found = Vec::new();
    for (name, directory) in OF_DEV {
        let Ok(there) = resolve(dev, Path::new(name)) else { continue };
        if fstat(&there)?.st_dev != own {
            found.push((name, directory, mount::clone_tree(Some(there.as_fd()), Path::new(""), true)?));
        }
    }
    Ok(found)
}

/// What is at `path` as if `root` were `/`; magic links are followed nowhere.
fn resolve(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    for _ in 0..TRIES {
        match open_in(root, path) {
            // Something was renamed meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            result => return result,
        }
    }
    Err(Errno::EAGAIN.into())
}

/// The file or directory at `path`, made where it is missing. Whoever exchanges parts of the path meanwhile gets a place
/// somewhere else in `root`, or an error.
fn place(root: BorrowedFd<'_>, path: &Path, directory: bool) -> io::Result<OwnedFd> {
    for _ in 0..TRIES {
        match resolve(root, path) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            result => return result,
        }
        match make(root, path, directory) {
            // Somebody else has just made it, or was at work there.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::EAGAIN | libc::ENOENT)) => {}
            result => result?,
        }
    }
    Err(Errno::ELOOP.into())
}
