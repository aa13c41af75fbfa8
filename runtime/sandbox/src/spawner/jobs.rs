//! Forks of the spawner that do one thing, report it over a socket and exit.

use crate::kernel::process::{self, Fork};
use crate::{protocol, wire};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

/// A job that takes longer than this is killed, in seconds: libcontainer's processes wait for each other without end.
const PATIENCE: u32 = 120;

/// A running job.
#[derive(Debug)]
pub struct Job {
    /// Process id.
    pub pid: i32,
    /// Before it was forked.
    pub began: Instant,
    socket: OwnedFd,
}

/// Runs `work` in a fork.
///
/// # Safety
/// The process must have one thread.
#[expect(unsafe_code, reason = "forks")]
pub unsafe fn start<T: Serialize>(work: impl FnOnce() -> (T, Option<OwnedFd>)) -> io::Result<Job> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    let began = Instant::now();
    // SAFETY: the caller vouches for the single thread.
    match unsafe { process::fork() }? {
        Fork::Parent(pid) => Ok(Job { pid, began, socket: ours }),
        Fork::Child => {
            drop(ours);
            process::reset_signals();
            nix::unistd::alarm::set(PATIENCE);
            let (outcome, fd) = work();
            let fds: Vec<BorrowedFd<'_>> = fd.iter().map(AsFd::as_fd).collect();
            let code = i32::from(protocol::send(theirs.as_fd(), &outcome, &fds).is_err());
            process::exit_now(code);
        }
    }
}

impl Job {
    /// For poll.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Its outcome, if it has reported one. Doesn't wait.
    pub fn outcome<T: DeserializeOwned>(&self) -> Option<(T, Vec<OwnedFd>)> {
        let flags = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
        nix::fcntl::fcntl(&self.socket, flags).ok()?;
        let packet = wire::receive(self.socket.as_fd()).ok()??;
        protocol::decode(&packet.body).ok().map(|outcome| (outcome, packet.fds))
    }
}
