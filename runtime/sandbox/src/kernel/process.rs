//! Forks, pidfds, waiting, and what a process must shed before it executes someone else's program.
#![allow(unsafe_code)]

use nix::errno::Errno;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Which side of a fork this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The parent; the child has this id.
    Parent(i32),
    /// The child.
    Child,
}

/// fork(2).
///
/// # Safety
/// The process must have one thread: the child may then do all that the parent could.
pub unsafe fn fork() -> io::Result<Fork> {
    // SAFETY: the caller vouches for the single thread.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid)),
    }
}

/// clone3(2) with these flags and no stack of its own, like a fork.
///
/// # Safety
/// As for [`fork`].
pub unsafe fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Fork> {
    #[repr(C)]
    #[derive(Default)]
    struct Args {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
        set_tid: u64,
        set_tid_size: u64,
        cgroup: u64,
    }
    const CLONE_PARENT: u64 = 0x8000;
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut args = Args { flags, ..Args::default() };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::try_from(cgroup.as_raw_fd()).map_err(|_| io::Error::from(Errno::EBADF))?;
    }
    if flags & CLONE_PARENT == 0 {
        args.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    }
    // SAFETY: the structure is the kernel's and of the size that is passed; without a stack the child goes on with a copy
    // of ours, like after a fork; the caller vouches for the single thread.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<Args>()) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => i32::try_from(pid).map(Fork::Parent).map_err(|_| io::Error::from(Errno::EINVAL)),
    }
}

/// Ends the process at once: no destructors, no buffers that the parent would flush again.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit never returns and touches no memory.
    unsafe { libc::_exit(code) }
}

/// A descriptor for a process.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let number = RawFd::try_from(result).map_err(|_| io::Error::from(Errno::EBADF))?;
    // SAFETY: the system call has just returned this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Sends a signal to the process of a pidfd. A process that has been reaped is no error.
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo asks for what kill(2) would send.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, none, 0) };
    if result < 0 {
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ESRCH) {
            return Err(error);
        }
    }
    Ok(())
}

/// Joins namespaces: those of a pidfd's process that `flags` name, or the one that the descriptor itself is (`flags` 0).
pub fn setns(fd: BorrowedFd<'_>, flags: i32) -> io::Result<()> {
    // SAFETY: plain numbers.
    if unsafe { libc::setns(fd.as_raw_fd(), flags) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// unshare(2).
pub fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: plain numbers.
    if unsafe { libc::unshare(flags) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Death {
    /// The child.
    pub pid: i32,
    /// Its exit code, or 128 + n.
    pub code: i32,
    /// The signal that killed it.
    pub signal: Option<i32>,
}

/// Reaps one dead child if there is any. `__WALL` also takes those whose exit signal isn't SIGCHLD.
pub fn reap() -> Option<Death> {
    let mut status = 0;
    // SAFETY: `status` outlives the call; no rusage is asked for.
    let pid = unsafe { libc::wait4(-1, &raw mut status, libc::WNOHANG | libc::__WALL, std::ptr::null_mut()) };
    if pid <= 0 {
        return None;
    }
    if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        return Some(Death { pid, code: 128 + signal, signal: Some(signal) });
    }
    Some(Death { pid, code: libc::WEXITSTATUS(status), signal: None })
}

/// Marks every descriptor from `first` on close-on-exec.
pub fn cloexec_from(first: u32) -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    // SAFETY: closes nothing now; plain numbers.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_CLOEXEC) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Closes every descriptor from `first` on.
///
/// # Safety
/// Nothing that is used afterwards may own one of them.
pub unsafe fn close_from(first: u32) {
    // SAFETY: the caller vouches that no owner is left.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
}

/// Closes every descriptor from 3 on that `keep` doesn't name (at most 8 of them).
///
/// # Safety
/// As for [`close_from`].
pub unsafe fn close_all_but(keep: &[RawFd]) {
    let mut sorted: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).filter(|fd| *fd > 2).collect();
    sorted.sort_unstable();
    let mut first = 3u32;
    for fd in sorted {
        if fd > first {
            // SAFETY: the caller vouches that no owner is left.
            unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0) };
        }
        first = fd + 1;
    }
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
}

/// Gives every signal its default action and unblocks all: what a program expects to be started with.
pub fn reset_signals() {
    /// The kernel's struct sigaction on every 64-bit architecture without a restorer of its own, and longer than the
    /// others: all zero is the default action, no flags, nothing masked.
    type Action = [u64; 4];
    const MASK_BYTES: usize = 8;
    let default: Action = [0; 4];
    for signal in 1..=64 {
        // SAFETY: the structure outlives the call. The C library would refuse the two signals that it keeps for itself,
        // and which may have been inherited as ignored; SIGKILL and SIGSTOP answer an error that doesn't matter.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, &raw const default, std::ptr::null::<Action>(), MASK_BYTES)
        };
    }
    // SAFETY: an emptied set on our stack.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Has the kernel reap this process's children by itself; an execve keeps that.
pub fn ignore_children() -> io::Result<()> {
    // SAFETY: no handler is installed.
    if unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// prctl(2) with one number.
pub fn prctl(option: i32, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: used with options that take numbers only.
    if unsafe { libc::prctl(option, value, 0, 0, 0) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Names the process as `ps` shows it (15 bytes).
pub fn set_name(name: &std::ffi::CStr) {
    // SAFETY: a terminated string that outlives the call.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// Waits for the kernel, where it has nothing that could be waited on. For the spawner's own processes, which have one
/// thread and nothing else to do; never in the gateway's tasks.
#[expect(clippy::disallowed_methods, reason = "no runtime here, and no event to await")]
pub fn pause(time: std::time::Duration) {
    std::thread::sleep(time);
}

/// Asks to be killed when the parent dies.
pub fn die_with_parent() -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, libc::c_ulong::from(libc::SIGKILL.unsigned_abs()))
}

/// Leaves the session keyring (keyrings(7)) of whoever started the spawner: every container would share it. Where there are
/// no keyrings, or they are forbidden to this process, they are to what it starts.
pub fn join_new_session_keyring() {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: without a name there is no pointer to follow.
    unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
}
