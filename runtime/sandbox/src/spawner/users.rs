//! Users of a pod's own (`hostUsers: false`): the user namespace, and the namespaces that it owns.
#![allow(unsafe_code)]

use crate::config::{UserNamespaces, UserRange};
use crate::kernel::process::{self, Fork};
use crate::protocol::Failure;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{Gid, Uid, pipe2};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// Whose users are whose, for all spawners of the machine: the byte of each range is locked while a pod has it. The kernel
/// unlocks it when the last copy of the descriptor is closed, whoever died.
const CLAIMS: &str = "/run/carob.users";

fn wrap(error: impl std::fmt::Display) -> Failure {
    Failure::sandbox("user namespace", error)
}

/// Makes them. A child is born into them and waits until they are held here: the spawner itself could never come back.
pub fn make(range: UserRange) -> Result<UserNamespaces, Failure> {
    let claim = claim(range)?;
    let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    let (end, end_writer) = pipe2(OFlag::O_CLOEXEC).map_err(wrap)?;
    // SAFETY: the spawner has one thread.
    match unsafe { process::clone3(u64::try_from(flags).unwrap_or(0), None) }.map_err(wrap)? {
        Fork::Child => {
            drop(end_writer);
            let _ = nix::unistd::read(&end, &mut [0u8; 1]);
            process::exit_now(0);
        }
        Fork::Parent(pid) => {
            drop(end);
            let made = map(pid, range).and_then(|()| hold(pid, claim)).map_err(wrap);
            drop(end_writer);
            wait(pid);
            made
        }
    }
}

/// Locks the range's byte, by a description of its own: each lasts for itself.
fn claim(range: UserRange) -> Result<OwnedFd, Failure> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(CLAIMS).map_err(wrap)?;
    match lock(&file, libc::F_WRLCK, (range.first / UserRange::LENGTH).into(), 1) {
        Ok(()) => Ok(file.into()),
        Err(Errno::EAGAIN | Errno::EACCES) => Err(Failure::UsersTaken),
        Err(errno) => Err(wrap(format!("{CLAIMS}: {errno}"))),
    }
}

/// Ends a claim, whoever else has inherited its descriptor: the users are anybody's.
pub fn release(claim: &OwnedFd) -> Result<(), Failure> {
    lock(claim, libc::F_UNLCK, 0, 0).map_err(|errno| wrap(format!("{CLAIMS}: {errno}")))
}

/// Of no length is everything.
fn lock(file: impl AsFd, kind: i32, start: i64, length: i64) -> nix::Result<()> {
    let [l_type, l_whence] = [kind, libc::SEEK_SET].map(|number| i16::try_from(number).unwrap_or(-1));
    let bytes = libc::flock { l_type, l_whence, l_start: start, l_len: length, l_pid: 0 };
    fcntl(file, FcntlArg::F_OFD_SETLK(&bytes)).map(drop)
}

/// The same numbers for users and groups. Written from outside, so that all of them may be.
fn map(pid: i32, range: UserRange) -> io::Result<()> {
    let line = format!("0 {} {}", range.first, UserRange::LENGTH);
    fs::write(format!("/proc/{pid}/uid_map"), &line)?;
    fs::write(format!("/proc/{pid}/gid_map"), &line)
}

fn hold(pid: i32, claim: OwnedFd) -> io::Result<UserNamespaces> {
    let open = |name: &str| File::open(format!("/proc/{pid}/ns/{name}")).map(OwnedFd::from);
    Ok(UserNamespaces { user: open("user")?, net: open("net")?, ipc: open("ipc")?, uts: open("uts")?, claim })
}

fn wait(pid: i32) {
    // SAFETY: our own child, which nobody else waits for; no status and no usage is asked for.
    unsafe { libc::wait4(pid, std::ptr::null_mut(), libc::__WALL, std::ptr::null_mut()) };
}

/// Does something as root of a user namespace, in a child, within one of its namespaces.
pub fn as_root(
    user: BorrowedFd<'_>,
    other: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (report, report_writer) = pipe2(OFlag::O_CLOEXEC).map_err(wrap)?;
    // SAFETY: the spawner has one thread.
    match unsafe { process::fork() }.map_err(wrap)? {
        Fork::Child => {
            let enter = || -> io::Result<()> {
                // The other one first: rights over it are the host's.
                process::setns(other, 0)?;
                process::setns(user, libc::CLONE_NEWUSER)?;
                nix::unistd::setgroups(&[])?;
                let (gid, uid) = (Gid::from_raw(0), Uid::from_raw(0));
                nix::unistd::setresgid(gid, gid, gid)?;
                Ok(nix::unistd::setresuid(uid, uid, uid)?)
            };
            let done = enter().map_err(wrap).and_then(|()| work());
            let bytes = postcard::to_allocvec(&done).unwrap_or_default();
            let _ = nix::unistd::write(report_writer.as_fd(), &bytes);
            process::exit_now(0);
        }
        Fork::Parent(pid) => {
            drop(report_writer);
            let mut bytes = Vec::new();
            let read = File::from(report).read_to_end(&mut bytes);
            wait(pid);
            read.map_err(wrap)?;
            postcard::from_bytes(&bytes).map_err(wrap)?
        }
    }
}

/// What a program's standard streams are opened by again (`/dev/stdout`) is its user's: pipes, and terminals.
pub fn give_streams(uid: u32) {
    let owner = Some(Uid::from_raw(uid));
    for number in 0..3 {
        // SAFETY: the standard descriptors are open in every process that gets here, and stay so.
        let stream = unsafe { BorrowedFd::borrow_raw(number) };
        let Ok(stat) = nix::sys::stat::fstat(stream) else { continue };
        let pipe = stat.st_mode & libc::S_IFMT == libc::S_IFIFO;
        if pipe || nix::unistd::isatty(stream).unwrap_or(false) {
            // Opening it again is a convenience; what is open works without.
            let _ = nix::unistd::fchown(stream, owner, None);
        }
    }
}

/// Becomes one of a user namespace's own, for the rest of this process. Its user was changed before, to the host's number of
/// what it is to be in there; all capabilities hold in the namespace, and none outside of it.
pub fn enter(user: i32) -> io::Result<()> {
    // SAFETY: inherited from the spawner, which holds it for as long as the pod is there.
    let user = unsafe { BorrowedFd::borrow_raw(user) };
    debug_assert!(user.as_raw_fd() > 2, "a namespace, no stream");
    process::setns(user, libc::CLONE_NEWUSER)
}
