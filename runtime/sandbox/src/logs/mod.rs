//! The log pump: a process of its own that reads every container's output and writes CRI log files.
//!
//! It is forked from the spawner at its start and knows nothing of the gateway. Commands come over a SEQPACKET socket.

mod file;
mod line;

use crate::kernel::process;
use crate::outbox::Outbox;
use crate::{memory, protocol, wire};
use file::LogFile;
use line::LineSplitter;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What one container may put through per turn, so that a flood starves nobody.
const READ_PER_TURN: usize = 64 * 1024;
/// Reads per stream of a container that has ended. A pipe holds 1 MiB at most (fs.pipe-max-size) and a terminal less than
/// 100 KiB, in reads of 4 KiB: what comes later is of another process that has got hold of the stream.
const READS_AT_END: usize = 64;
/// How long a line on a terminal may stay without an end before what is there of it is written.
const TERMINAL_PAUSE: Duration = Duration::from_millis(10);
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
    /// Commands go out here, `Drained` comes in. Non-blocking.
    socket: OwnedFd,
    outbox: Outbox,
}

impl Pump {
    /// For poll.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether to poll for room to write.
    pub fn has_waiting(&self) -> bool {
        self.outbox.has_waiting()
    }

    /// Tells it something, at once or when it reads again; false when it is lost.
    pub fn tell(&mut self, command: &Command, fds: Vec<OwnedFd>) -> bool {
        match protocol::encode(command) {
            Ok(body) => self.outbox.send(self.socket.as_fd(), body, fds),
            Err(error) => {
                say!("a command that cannot be encoded: {error}");
                false
            }
        }
    }

    /// Sends what waits as far as there is room; false when the pump is lost.
    pub fn flush(&mut self) -> bool {
        self.outbox.flush(self.socket.as_fd())
    }

    /// Takes one answer: `None` when there is none after all, an error when the pump is lost.
    pub fn receive(&self) -> io::Result<Option<Drained>> {
        match wire::receive(self.socket.as_fd()) {
            Ok(Some(packet)) => protocol::decode(&packet.body).map(Some),
            Ok(None) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Forks the pump.
///
/// # Safety
/// The process must have one thread.
#[expect(unsafe_code, reason = "forks")]
pub unsafe fn start() -> io::Result<Pump> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    // Only our side: the pump has nothing to do but to wait for us.
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    // SAFETY: the caller vouches for the single thread.
    match unsafe { process::fork() }? {
        process::Fork::Parent(pid) => Ok(Pump { pid, socket: ours, outbox: Outbox::default() }),
        process::Fork::Child => {
            process::set_name(c"carob-logs");
            // SAFETY: of everything that was inherited only `theirs` is used from here on, and the process leaves through
            // `exit_now`, so no destructor of the others runs.
            unsafe { process::close_all_but(&[theirs.as_raw_fd()]) };
            process::reset_signals();
            let code = match run(theirs) {
                Ok(()) => 0,
                Err(error) => {
                    say!("log pump: {error}");
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
    /// Somebody may sit before it who looks at every character: a prompt has no line end, and comes soon nevertheless.
    terminal: bool,
}

struct State {
    epoll: Epoll,
    logs: HashMap<u64, Log>,
    streams: HashMap<u64, Stream>,
    next: u64,
    buffer: Vec<u8>,
    /// When the beginnings of lines on terminals are written.
    flush: Option<Instant>,
}

/// What came of one read.
enum Progress {
    More,
    Empty,
    End,
}

fn run(socket: OwnedFd) -> io::Result<()> {
    let mut state = State::new()?;
    state.epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, SOCKET))?;
    let mut socket = Some(socket);
    let mut events = [EpollEvent::empty(); 64];
    memory::give_back();
    // The spawner's end is not the containers' end: what they still write is written.
    while socket.is_some() || !state.streams.is_empty() {
        let count = match state.epoll.wait(&mut events, state.patience()) {
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
                // What fails concerns one container: ending here would take the output of all others.
                Ok(Some(packet)) => match protocol::decode(&packet.body) {
                    Ok(Command::Open { log, path }) => state.open(log, path, packet.fds),
                    Ok(Command::End { log }) => {
                        let drained = state.end(log);
                        // A spawner that has gone needs no answer.
                        let _ = protocol::send(open.as_fd(), &drained, &[]);
                    }
                    Err(error) => say!("log pump: a command that cannot be read: {error}"),
                },
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    say!("log pump: a command that did not arrive whole: {error}");
                }
                Ok(None) | Err(_) => socket = None,
            }
        }
        if state.flush.is_some_and(|at| at <= Instant::now()) {
            state.flush();
        }
    }
    Ok(())
}

impl State {
    fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            logs: HashMap::new(),
            streams: HashMap::new(),
            next: 0,
            buffer: vec![0; READ_PER_TURN],
            flush: None,
        })
    }

    /// A stream that cannot be followed is reported and closed; the others are followed.
    fn open(&mut self, log: u64, path: PathBuf, fds: Vec<OwnedFd>) {
        const NAMES: [&str; 2] = ["stdout", "stderr"];
        let mut streams = Vec::with_capacity(fds.len());
        for (fd, name) in fds.into_iter().zip(NAMES) {
            match self.follow(&fd) {
                Ok(token) => {
                    let terminal = nix::unistd::isatty(&fd).unwrap_or(false);
                    self.streams.insert(token, Stream { log, fd, lines: LineSplitter::new(name), terminal });
                    streams.push(token);
                }
                Err(error) => say!("log pump: {name} of {} is not followed: {error}", path.display()),
            }
        }
        self.logs.insert(log, Log { file: LogFile::new(path), streams });
    }

    fn follow(&mut self, fd: &OwnedFd) -> io::Result<u64> {
        let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
        fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let token = self.next;
        self.next += 1;
        self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
        Ok(token)
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
                if stream.terminal && stream.lines.is_open() {
                    self.flush.get_or_insert_with(|| Instant::now() + TERMINAL_PAUSE);
                }
                Progress::More
            }
            Err(Errno::EAGAIN) => Progress::Empty,
            Err(Errno::EINTR) => Progress::More,
            // EIO is a terminal's end of file.
            Err(_) => Progress::End,
        }
    }

    /// How long to wait for something to read.
    fn patience(&self) -> EpollTimeout {
        let Some(at) = self.flush else { return EpollTimeout::NONE };
        // Rounded up: a timeout of 0 would spin.
        let left = at.saturating_duration_since(Instant::now()).as_millis() + 1;
        EpollTimeout::from(u16::try_from(left).unwrap_or(u16::MAX))
    }

    /// Writes the beginnings of lines on terminals.
    fn flush(&mut self) {
        self.flush = None;
        for stream in self.streams.values_mut().filter(|stream| stream.terminal) {
            let mut out = Vec::new();
            stream.lines.finish(&mut out);
            if let Some(log) = self.logs.get_mut(&stream.log) {
                log.file.append(&out);
            }
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

    /// Everything that the dead container wrote is in its pipes: reads that, and forgets it. Another process may hold the
    /// other end and write on: it isn't waited for.
    fn end(&mut self, log: u64) -> Drained {
        let streams = self.logs.get(&log).map(|log| log.streams.clone()).unwrap_or_default();
        for token in streams {
            for _ in 0..READS_AT_END {
                if !matches!(self.read(token), Progress::More) {
                    break;
                }
            }
            self.close(token);
        }
        Drained { log, lost: self.logs.remove(&log).map_or(0, |log| log.file.lost()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::io::{PipeWriter, Write};

    fn text(path: &std::path::Path) -> String {
        fs::read_to_string(path).expect("log")
    }

    /// Writes until nobody reads.
    fn flood(mut pipe: PipeWriter) -> std::thread::JoinHandle<()> {
        // Long lines: what is read before the end stays in one file.
        let mut block = [b'x'; 4096];
        block[4095] = b'\n';
        std::thread::spawn(move || while pipe.write_all(&block).is_ok() {})
    }

    #[test]
    fn an_end_comes_although_others_keep_writing_and_what_was_written_before_is_there() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("0.log");
        let (reader, mut writer) = io::pipe().expect("pipe");
        let mut state = State::new().expect("epoll");
        state.open(3, path.clone(), vec![reader.into()]);
        writer.write_all(b"last words\n").expect("write");
        let others: Vec<_> = (0..3).map(|_| flood(writer.try_clone().expect("copy"))).collect();
        drop(writer);
        let drained = state.end(3);
        assert_eq!((drained.log, drained.lost), (3, 0));
        assert!(state.streams.is_empty() && state.logs.is_empty());
        assert!(text(&path).starts_with("20") && text(&path).lines().next().expect("line").ends_with(" last words"));
        // They notice that it is closed.
        for other in others {
            other.join().expect("writer");
        }
    }

    #[test]
    fn a_stream_that_never_runs_dry_is_left_after_a_bounded_amount() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("0.log");
        let mut state = State::new().expect("epoll");
        state.open(3, path.clone(), Vec::new());
        // Not through `open`: epoll doesn't take this device.
        let endless = File::open("/dev/zero").expect("device").into();
        state.streams.insert(9, Stream { log: 3, fd: endless, lines: LineSplitter::new("stdout"), terminal: false });
        state.logs.get_mut(&3).expect("opened").streams.push(9);
        assert_eq!(state.end(3).log, 3);
        assert!(state.streams.is_empty());
        // In pieces of 16 KiB.
        assert_eq!(text(&path).lines().count(), READS_AT_END * READ_PER_TURN / (16 * 1024));
    }

    #[test]
    fn a_stream_that_cannot_be_followed_costs_the_other_containers_nothing() {
        let directory = tempfile::tempdir().expect("directory");
        let (bad, good) = (directory.path().join("bad.log"), directory.path().join("good.log"));
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).expect("socketpair");
        let pump = std::thread::spawn(move || run(theirs));
        // epoll doesn't take regular files.
        let file = File::create(directory.path().join("file")).expect("file");
        let (reader, mut writer) = io::pipe().expect("pipe");
        let tell =
            |command: &Command, fds: &[BorrowedFd<'_>]| protocol::send(ours.as_fd(), command, fds).expect("send");
        tell(&Command::Open { log: 1, path: bad.clone() }, &[file.as_fd(), reader.as_fd()]);
        wire::send(ours.as_fd(), &[0xff; 3], &[]).expect("send");
        writer.write_all(b"first\n").expect("write");
        tell(&Command::End { log: 1 }, &[]);
        let (reader, mut writer) = io::pipe().expect("pipe");
        tell(&Command::Open { log: 2, path: good.clone() }, &[reader.as_fd()]);
        writer.write_all(b"second\n").expect("write");
        tell(&Command::End { log: 2 }, &[]);
        for log in [1, 2] {
            let packet = wire::receive(ours.as_fd()).expect("receive").expect("open");
            assert_eq!(protocol::decode::<Drained>(&packet.body).expect("answer").log, log);
        }
        assert!(text(&bad).ends_with(" stderr F first\n") && text(&good).ends_with(" stdout F second\n"));
        drop(ours);
        pump.join().expect("thread").expect("pump");
    }
    #[test]
    fn a_prompt_on_a_terminal_is_written_before_its_line_ends() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("tty.log");
        let pair = nix::pty::openpty(None, None).expect("terminal");
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).expect("socketpair");
        let pump = std::thread::spawn(move || run(theirs));
        let open = Command::Open { log: 1, path: path.clone() };
        protocol::send(ours.as_fd(), &open, &[pair.master.as_fd()]).expect("send");
        let mut terminal = File::from(pair.slave);
        let deadline = Instant::now() + Duration::from_secs(10);
        for (typed, shown) in [("/ # ", " stdout P / # \n"), ("ls\n", " stdout F ls\r\n")] {
            terminal.write_all(typed.as_bytes()).expect("write");
            while !fs::read_to_string(&path).is_ok_and(|log| log.ends_with(shown)) {
                assert!(Instant::now() < deadline, "{shown:?} in {:?}", fs::read_to_string(&path));
                std::thread::yield_now();
            }
        }
        drop((ours, terminal));
        pump.join().expect("thread").expect("pump");
    }
}
