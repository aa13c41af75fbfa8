//! The log pump: a process of its own that reads every container's output and writes CRI log files.
//!
//! It is forked from the spawner at its start and knows nothing of the gateway. Commands come over a SEQPACKET socket.

mod file;
mod line;

use crate::kernel::process;
use crate::{protocol, wire};
use file::LogFile;
use line::LineSplitter;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

/// What one container may put through per turn, so that a flood starves nobody.
const READ_PER_TURN: usize = 64 * 1024;
/// The socket's place among the tokens of the streams.
const SOCKET: u64 = u64::MAX;

/// To the pump.
#[derive(Debug, Serialize, Deserialize)]
pub enum Command {
    /// Follow these descriptors: stdout and stderr, or one terminal.
    Open {
        /// The container's number, chosen by the spawner.
        log: u64,
        /// The log file.
        path: PathBuf,
    },
    /// The container has ended: write what is left and answer `Drained`.
    End {
        /// The container's number.
        log: u64,
    },
}

/// From the pump.
#[derive(Debug, Serialize, Deserialize)]
pub struct Drained {
    /// The container's number.
    pub log: u64,
    /// Bytes of output that could not be written.
    pub lost: u64,
}

/// The spawner's side of the pump.
#[derive(Debug)]
pub struct Pump {
    /// Process id.
    pub pid: i32,
    /// Commands go out here, `Drained` comes in.
    pub socket: OwnedFd,
}

/// Forks the pump.
///
/// # Safety
/// The process must have one thread.
#[expect(unsafe_code, reason = "forks")]
pub unsafe fn start() -> io::Result<Pump> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: the caller vouches for the single thread.
    match unsafe { process::fork() }? {
        process::Fork::Parent(pid) => Ok(Pump { pid, socket: ours }),
        process::Fork::Child => {
            process::set_name(c"carob-logs");
            // SAFETY: of everything that was inherited only `theirs` is used from here on, and the process leaves through
            // `exit_now`, so no destructor of the others runs.
            unsafe { process::close_all_but(&[theirs.as_raw_fd()]) };
            process::reset_signals();
            let code = match run(theirs) {
                Ok(()) => 0,
                Err(error) => {
                    eprintln!("log pump: {error}");
                    1
                }
            };
            process::exit_now(code);
        }
    }
}

/// One container's output.
struct Log {
    file: LogFile,
    streams: Vec<u64>,
}

struct Stream {
    log: u64,
    fd: OwnedFd,
    lines: LineSplitter,
}

struct State {
    epoll: Epoll,
    logs: HashMap<u64, Log>,
    streams: HashMap<u64, Stream>,
    next: u64,
    buffer: Vec<u8>,
}

/// What came of one read.
enum Progress {
    More,
    Empty,
    End,
}

fn run(socket: OwnedFd) -> io::Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, SOCKET))?;
    let mut socket = Some(socket);
    let mut state =
        State { epoll, logs: HashMap::new(), streams: HashMap::new(), next: 0, buffer: vec![0; READ_PER_TURN] };
    let mut events = [EpollEvent::empty(); 64];
    // The spawner's end is not the containers' end: what they still write is written.
    while socket.is_some() || !state.streams.is_empty() {
        let count = match state.epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(count) => count,
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        for event in &events[..count] {
            if event.data() != SOCKET {
                state.pump(event.data());
                continue;
            }
            let Some(open) = &socket else { continue };
            match wire::receive(open.as_fd()) {
                Ok(Some(packet)) => match protocol::decode(&packet.body)? {
                    Command::Open { log, path } => state.open(log, path, packet.fds)?,
                    Command::End { log } => {
                        let drained = state.end(log);
                        // A spawner that has gone needs no answer.
                        let _ = protocol::send(open.as_fd(), &drained, &[]);
                    }
                },
                Ok(None) | Err(_) => socket = None,
            }
        }
    }
    Ok(())
}

impl State {
    fn open(&mut self, log: u64, path: PathBuf, fds: Vec<OwnedFd>) -> io::Result<()> {
        const NAMES: [&str; 2] = ["stdout", "stderr"];
        let mut streams = Vec::with_capacity(fds.len());
        for (fd, name) in fds.into_iter().zip(NAMES) {
            let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
            fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
            let token = self.next;
            self.next += 1;
            self.epoll.add(&fd, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
            self.streams.insert(token, Stream { log, fd, lines: LineSplitter::new(name) });
            streams.push(token);
        }
        self.logs.insert(log, Log { file: LogFile::new(path), streams });
        Ok(())
    }

    /// Reads once from a stream that has something.
    fn pump(&mut self, token: u64) {
        if let Progress::End = self.read(token) {
            self.close(token);
        }
    }

    fn read(&mut self, token: u64) -> Progress {
        let Some(stream) = self.streams.get_mut(&token) else { return Progress::End };
        let Some(log) = self.logs.get_mut(&stream.log) else { return Progress::End };
        match nix::unistd::read(&stream.fd, &mut self.buffer) {
            Ok(0) => Progress::End,
            Ok(length) => {
                let mut out = Vec::with_capacity(length + 128);
                stream.lines.push(&self.buffer[..length], &mut out);
                log.file.append(&out);
                Progress::More
            }
            Err(Errno::EAGAIN) => Progress::Empty,
            Err(Errno::EINTR) => Progress::More,
            // EIO is a terminal's end of file.
            Err(_) => Progress::End,
        }
    }

    fn close(&mut self, token: u64) {
        let Some(mut stream) = self.streams.remove(&token) else { return };
        let _ = self.epoll.delete(&stream.fd);
        if let Some(log) = self.logs.get_mut(&stream.log) {
            let mut out = Vec::new();
            stream.lines.finish(&mut out);
            log.file.append(&out);
            log.streams.retain(|other| *other != token);
        }
    }

    /// Everything that the dead container wrote is in its pipes: reads until they are empty, and forgets it.
    fn end(&mut self, log: u64) -> Drained {
        let streams = self.logs.get(&log).map(|log| log.streams.clone()).unwrap_or_default();
        for token in streams {
            while let Progress::More = self.read(token) {}
            self.close(token);
        }
        Drained { log, lost: self.logs.remove(&log).map_or(0, |log| log.file.lost()) }
    }
}
