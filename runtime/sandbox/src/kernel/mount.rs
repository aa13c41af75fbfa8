//! The file-descriptor mount interface (fsopen, open_tree, move_mount, mount_setattr; Linux 5.12 and later).
#![allow(unsafe_code)]

use nix::errno::Errno;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;
const FSOPEN_CLOEXEC: u32 = 1;
const FSMOUNT_CLOEXEC: u32 = 1;
const OPEN_TREE_CLONE: u32 = 1;
const OPEN_TREE_CLOEXEC: u32 = libc::O_CLOEXEC.unsigned_abs();
const AT_RECURSIVE: u32 = 0x8000;
const AT_EMPTY_PATH: u32 = 0x1000;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 0x04;
const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;

/// Mount attributes (mount_setattr(2)).
pub const ATTR_RDONLY: u64 = 0x1;
/// No set-user-id programs.
pub const ATTR_NOSUID: u64 = 0x2;
/// No device nodes.
pub const ATTR_NODEV: u64 = 0x4;
/// No program is executed from it.
pub const ATTR_NOEXEC: u64 = 0x8;

#[repr(C)]
#[derive(Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

fn path_bytes(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(Errno::EINVAL))
}

fn text(value: &str) -> io::Result<CString> {
    CString::new(value).map_err(|_| io::Error::from(Errno::EINVAL))
}

fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let number = RawFd::try_from(result).map_err(|_| io::Error::from(Errno::EBADF))?;
    // SAFETY: the system call has just returned this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn done(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A new instance of a file system, being configured.
#[derive(Debug)]
pub struct FsContext(OwnedFd);

impl FsContext {
    /// Begins a file system of this type.
    pub fn open(kind: &str) -> io::Result<Self> {
        let kind = text(kind)?;
        // SAFETY: `kind` is a terminated string that outlives the call.
        descriptor(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) }).map(Self)
    }

    /// Sets `key=value`.
    pub fn set(&self, key: &str, value: &str) -> io::Result<()> {
        let (key, value) = (text(key)?, text(value)?);
        self.config(FSCONFIG_SET_STRING, Some(&key), Some(&value))
    }

    /// Sets `key=path`.
    pub fn set_path(&self, key: &str, value: &Path) -> io::Result<()> {
        let (key, value) = (text(key)?, path_bytes(value)?);
        self.config(FSCONFIG_SET_STRING, Some(&key), Some(&value))
    }

    /// Sets an option without a value.
    pub fn flag(&self, key: &str) -> io::Result<()> {
        let key = text(key)?;
        self.config(FSCONFIG_SET_FLAG, Some(&key), None)
    }

    /// Creates the instance and gives a detached mount of it.
    pub fn mount(&self, attributes: u64) -> io::Result<OwnedFd> {
        self.config(FSCONFIG_CMD_CREATE, None, None)?;
        // SAFETY: plain numbers and a descriptor that we own.
        descriptor(unsafe { libc::syscall(libc::SYS_fsmount, self.0.as_raw_fd(), FSMOUNT_CLOEXEC, attributes) })
    }

    /// What the kernel has to say about the last failure, when it says anything.
    pub fn complaint(&self) -> Option<String> {
        let mut buffer = [0u8; 512];
        let length = nix::unistd::read(&self.0, &mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).trim().to_owned())
    }

    fn config(&self, command: u32, key: Option<&CStr>, value: Option<&CStr>) -> io::Result<()> {
        let key = key.map_or(std::ptr::null(), CStr::as_ptr);
        let value = value.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: the pointers are null or terminated strings that outlive the call.
        done(unsafe { libc::syscall(libc::SYS_fsconfig, self.0.as_raw_fd(), command, key, value, 0) })
    }
}

/// A detached copy of the mount at `path` under `directory` (with the mounts below it when `recursive`).
pub fn clone_tree(directory: Option<BorrowedFd<'_>>, path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let path = path_bytes(path)?;
    let mut flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH;
    if recursive {
        flags |= AT_RECURSIVE;
    }
    let directory = directory.map_or(libc::AT_FDCWD, |fd| fd.as_raw_fd());
    // SAFETY: `path` is a terminated string that outlives the call.
    descriptor(unsafe { libc::syscall(libc::SYS_open_tree, directory, path.as_ptr(), flags) })
}

/// Changes attributes, and the propagation when it isn't 0, of a detached mount.
pub fn set_attributes(mount: BorrowedFd<'_>, set: u64, propagation: u64, recursive: bool) -> io::Result<()> {
    change(mount, &MountAttr { set, propagation, ..MountAttr::default() }, recursive)
}

fn change(mount: BorrowedFd<'_>, attributes: &MountAttr, recursive: bool) -> io::Result<()> {
    let flags = AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: the structure is the kernel's, of the size that is passed, and outlives the call.
    done(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<MountAttr>(),
        )
    })
}

/// Shows the files of a detached mount as those of the users of a user namespace: what belongs to 0 on the disk belongs to
/// its root, and what its root makes belongs to 0 on the disk. Once per mount.
pub fn map_users(mount: BorrowedFd<'_>, users: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
    const ATTR_IDMAP: u64 = 0x10_0000;
    let userns_fd = u64::try_from(users.as_raw_fd()).map_err(|_| io::Error::from(Errno::EBADF))?;
    change(mount, &MountAttr { set: ATTR_IDMAP, userns_fd, ..MountAttr::default() }, recursive)
}

/// Puts a detached mount on `target`.
pub fn attach(mount: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
    let target = path_bytes(target)?;
    // SAFETY: terminated strings that outlive the call.
    done(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    })
}

/// Puts a detached mount on an open file or directory.
pub fn attach_at(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: terminated strings that outlive the call.
    done(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
        )
    })
}

/// A detached file system of huge pages of this size, which everybody may write.
pub fn huge_pages(page_bytes: u64, attributes: u64) -> io::Result<OwnedFd> {
    let context = FsContext::open("hugetlbfs")?;
    context.set("source", "nodev")?;
    context.set("pagesize", &page_bytes.to_string())?;
    context.set("mode", "777")?;
    context.mount(attributes)
}

/// A detached tmpfs that belongs to root.
pub fn tmpfs(size: Option<u64>, mode: &str, attributes: u64) -> io::Result<OwnedFd> {
    tmpfs_of(0, size, mode, attributes)
}

/// A detached tmpfs that belongs to this user and the group of the same number.
pub fn tmpfs_of(owner: u32, size: Option<u64>, mode: &str, attributes: u64) -> io::Result<OwnedFd> {
    let context = FsContext::open("tmpfs")?;
    context.set("source", "tmpfs")?;
    context.set("mode", mode)?;
    if let Some(size) = size {
        context.set("size", &size.to_string())?;
    }
    if owner != 0 {
        context.set("uid", &owner.to_string())?;
        context.set("gid", &owner.to_string())?;
    }
    context.mount(attributes)
}
