//! Finding the spawner of a directory, or starting one.

use super::connection::Greeted;
use crate::cgroup::{Cgroup, Layout};
use crate::kernel::process;
use crate::spawner::{self, SOCKET, short_path};
use crate::{Error, RuntimeConfig, protocol, wire};
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt};
use nix::unistd::Pid;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a spawner may take to greet, in ms. It answers between two requests, each of which takes a few ms.
const GREETING_PATIENCE_MS: u16 = 20_000;
/// How long one may take to end, in ms.
const END_PATIENCE_MS: u16 = 30_000;

/// What a spawner gets to record the last ends.
const RECORDING: Duration = Duration::from_millis(500);

/// How often one that hangs up is tried again, 10 ms apart.
const DYING_TRIES: usize = 200;

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::SpawnerStart(error.to_string()))?
}

/// Connects; starts a spawner when there is none.
pub async fn connect_or_start(config: RuntimeConfig) -> Result<Greeted, Error> {
    blocking(move || {
        if !spawner::is_instance(&config.instance) {
            return Err(Error::InvalidConfig {
                field: "instance".to_owned(),
                message: format!("{:?} is not 1 to 16 lower-case letters and digits", config.instance),
            });
        }
        let in_dir = |what: &'static str| {
            let path = config.dir.clone();
            move |source: io::Error| Error::Io { what, path, source }
        };
        std::fs::create_dir_all(&config.dir).map_err(in_dir("create"))?;
        // Two gateways that start at once must not both start a spawner.
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(config.dir.join("start.lock"))
            .map_err(in_dir("open the lock of"))?;
        let _lock =
            Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| in_dir("lock")(io::Error::from(errno)))?;
        // One that is just dying still accepts, and then closes.
        for _ in 0..DYING_TRIES {
            let Some(socket) = connect_to(&config.dir)? else { break };
            match greet(socket) {
                Err(Error::Disconnected) => process::pause(Duration::from_millis(10)),
                other => return other,
            }
        }
        launch(&config)?;
        match connect_to(&config.dir)? {
            Some(socket) => greet(socket),
            None => Err(Error::SpawnerStart("it does not listen".to_owned())),
        }
    })
    .await
}

/// `None` when nobody listens.
fn connect_to(dir: &Path) -> Result<Option<OwnedFd>, Error> {
    let wrap = |error: io::Error| Error::SpawnerStart(error.to_string());
    let directory = File::open(dir).map_err(wrap)?;
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).map_err(|errno| wrap(errno.into()))?;
    let address = UnixAddr::new(&short_path(directory.as_fd(), SOCKET)).map_err(|errno| wrap(errno.into()))?;
    match connect(socket.as_raw_fd(), &address) {
        Ok(()) => Ok(Some(socket)),
        Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ECONNREFUSED) => Ok(None),
        Err(errno) => Err(wrap(errno.into())),
    }
}

fn greet(socket: OwnedFd) -> Result<Greeted, Error> {
    let wrap = |error: io::Error| Error::SpawnerStart(error.to_string());
    wire::send(socket.as_fd(), &protocol::greeting(protocol::VERSION), &[]).map_err(|_| Error::Disconnected)?;
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    let ready = poll(&mut fds, PollTimeout::from(GREETING_PATIENCE_MS)).map_err(|errno| wrap(errno.into()))?;
    if ready == 0 {
        return Err(Error::SpawnerStart("the running spawner does not answer".to_owned()));
    }
    let packet = wire::receive(socket.as_fd()).map_err(wrap)?.ok_or(Error::Disconnected)?;
    let (version, _) = protocol::parse_greeting(&packet.body)
        .ok_or_else(|| Error::SpawnerStart("what listens there is no spawner".to_owned()))?;
    if version != protocol::VERSION {
        return Err(Error::Version { ours: protocol::VERSION, theirs: version });
    }
    // The kernel's word for who listens, not its own.
    let spawner = getsockopt(&socket, sockopt::PeerCredentials).map_err(|errno| wrap(errno.into()))?.pid();
    let flags = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
    nix::fcntl::fcntl(&socket, flags).map_err(|errno| wrap(errno.into()))?;
    Ok(Greeted { socket, spawner })
}

/// Executes the spawner; the process we start ends when the spawner, its child, serves.
fn launch(config: &RuntimeConfig) -> Result<(), Error> {
    let output = Command::new(&config.exe)
        .arg("spawner")
        .arg("--dir")
        .arg(&config.dir)
        .arg("--instance")
        .arg(&config.instance)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .map_err(|source| Error::Io { what: "execute", path: config.exe.clone(), source })?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::SpawnerStart(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// Waits until a process has gone.
pub async fn wait_for_end(pid: i32) -> Result<(), Error> {
    blocking(move || {
        let Ok(pidfd) = process::pidfd_open(pid) else { return Ok(()) };
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(END_PATIENCE_MS)) {
            Ok(0) => Err(Error::SpawnerStart(format!("the spawner {pid} does not end"))),
            _ => Ok(()),
        }
    })
    .await
}

/// Whether there is neither state nor a cgroup of the instance.
pub fn nothing_there(config: &RuntimeConfig) -> bool {
    let no_cgroup = Layout::detect().is_ok_and(|layout| !Cgroup::instance(&layout, &config.instance).exists());
    no_cgroup && !config.dir.join("pods").exists() && !config.dir.join(SOCKET).exists()
}

/// Process id of the spawner that listens in a directory, of whatever version.
pub async fn listening(dir: &Path) -> Result<Option<i32>, Error> {
    let dir = dir.to_owned();
    blocking(move || {
        if !dir.exists() {
            return Ok(None);
        }
        let Some(socket) = connect_to(&dir)? else { return Ok(None) };
        let credentials =
            getsockopt(&socket, sockopt::PeerCredentials).map_err(|errno| Error::SpawnerStart(errno.to_string()))?;
        Ok(Some(credentials.pid()))
    })
    .await
}

/// Ends a spawner that can't be talked to. Its containers are asked to end and have `grace` for it; the next one kills what is
/// left, and cleans up.
pub async fn end_foreign(config: &RuntimeConfig, grace: Duration) -> Result<(), Error> {
    let Some(spawner) = listening(&config.dir).await? else { return Ok(()) };
    let instance = config.instance.clone();
    blocking(move || {
        stop_containers(&instance, spawner, grace);
        let wrap = |error: io::Error| Error::SpawnerStart(error.to_string());
        let pidfd = process::pidfd_open(spawner).map_err(wrap)?;
        process::pidfd_signal(pidfd.as_fd(), libc::SIGKILL).map_err(wrap)
    })
    .await?;
    wait_for_end(spawner).await
}

/// Asks the containers to end, and waits for that; their spawner records it.
fn stop_containers(instance: &str, spawner: i32, grace: Duration) {
    let Ok(layout) = Layout::detect() else { return };
    let whole = Cgroup::instance(&layout, instance);
    let asked = inits(&whole, spawner);
    if asked.is_empty() || grace.is_zero() {
        return;
    }
    for pid in asked {
        // One that has ended meanwhile needs none.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    let deadline = Instant::now() + grace;
    while !inits(&whole, spawner).is_empty() && Instant::now() < deadline {
        process::pause(Duration::from_millis(10));
    }
    process::pause(RECORDING);
}

/// What runs in containers and is the spawner's own child: with it the container ends.
fn inits(instance: &Cgroup<'_>, spawner: i32) -> Vec<i32> {
    let parent = |pid: i32| procfs::process::Process::new(pid).and_then(|process| process.stat()).map(|stat| stat.ppid);
    let pods = instance.children().into_iter().filter(|name| name.starts_with("pod")).map(|name| instance.child(&name));
    let containers = pods.flat_map(|pod| pod.children().into_iter().map(move |name| pod.child(&name)));
    containers
        .flat_map(|container| container.processes())
        .filter(|pid| parent(*pid).is_ok_and(|parent| parent == spawner))
        .collect()
}
