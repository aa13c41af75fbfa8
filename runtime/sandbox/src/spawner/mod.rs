//! The spawner: one thread, one loop. It holds pods' namespaces, forks a builder per request, reaps what ends and tells
//! the gateway, whichever is connected.

mod client;
mod endings;
mod jobs;
mod namespaces;
mod pause;
mod records;
mod recovery;
mod requests;
mod seal;
mod service;
mod starts;
mod users;

use crate::cgroup::{self, Cgroup, Layout};
use crate::kernel::{mount, process};
use crate::{Limits, logs, memory};
use service::Service;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
pub use users::{enter as enter_users, give_streams};

/// Name of the socket in the spawner's directory.
pub const SOCKET: &str = "spawner.sock";
const LOG: &str = "spawner.log";
/// The log is begun anew when it is longer than this at a start.
const LOG_MAX: u64 = 1024 * 1024;

struct Arguments {
    dir: PathBuf,
    instance: String,
}

fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Arguments, String> {
    let (mut dir, mut instance) = (None, None);
    while let Some(name) = args.next() {
        let value = args.next().ok_or_else(|| format!("{} needs a value", name.display()))?;
        match name.to_str() {
            Some("--dir") => dir = Some(PathBuf::from(value)),
            Some("--instance") => instance = value.into_string().ok(),
            _ => return Err(format!("unknown argument {}", name.display())),
        }
    }
    let instance = instance.ok_or("--instance is missing")?;
    if !is_instance(&instance) {
        return Err(format!("--instance {instance:?} is not 1 to 16 lower-case letters and digits"));
    }
    Ok(Arguments { dir: dir.ok_or("--dir is missing")?, instance })
}

/// An instance's name becomes part of cgroups' names.
pub fn is_instance(name: &str) -> bool {
    (1..=16).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

/// The body of `carob spawner`. The process that the gateway started ends when the spawner serves, or says why it
/// doesn't.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    match start(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            say!("{message}");
            ExitCode::FAILURE
        }
    }
}

#[expect(unsafe_code, reason = "forks, and gives up inherited descriptors")]
fn start(args: impl Iterator<Item = OsString>) -> Result<(), String> {
    let arguments = parse(args)?;
    // SAFETY: nothing in this process has opened a descriptor yet that it still uses.
    unsafe { process::close_from(3) };
    let text = |error: io::Error| error.to_string();
    seal::seal().map_err(|error| format!("cannot seal the executable: {error}"))?;
    let (ready, ready_writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|errno| errno.to_string())?;
    // SAFETY: this process has one thread: its caller promises so.
    match unsafe { process::fork() }.map_err(text)? {
        process::Fork::Parent(_) => {
            drop(ready_writer);
            let mut message = String::new();
            File::from(ready).read_to_string(&mut message).map_err(text)?;
            match message.strip_prefix("ready") {
                Some(_) => Ok(()),
                None if message.is_empty() => Err("the spawner died at its start".to_owned()),
                None => Err(message),
            }
        }
        process::Fork::Child => {
            drop(ready);
            let mut ready = File::from(ready_writer);
            let code = match prepare(&arguments) {
                Ok(mut service) => {
                    let _ = ready.write_all(b"ready");
                    drop(ready);
                    memory::give_back();
                    match service.run() {
                        Ok(()) => 0,
                        Err(error) => {
                            say!("spawner: {error}");
                            1
                        }
                    }
                }
                Err(message) => {
                    let _ = ready.write_all(message.as_bytes());
                    1
                }
            };
            process::exit_now(code);
        }
    }
}

/// Everything up to serving.
#[expect(unsafe_code, reason = "forks the pump")]
fn prepare(arguments: &Arguments) -> Result<Service, String> {
    let step = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    let dir = &arguments.dir;
    process::set_name(c"carob-spawner");
    nix::unistd::setsid().map_err(|errno| format!("session: {errno}"))?;
    records::make_private(dir).map_err(step("directory"))?;
    let dir = &dir.canonicalize().map_err(step("directory"))?;
    redirect_output(&dir.join(LOG)).map_err(step("log"))?;
    nix::unistd::chdir("/").map_err(|errno| format!("directory: {errno}"))?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    // Without CAP_SYS_RESOURCE it stays as it is: the spawner is as likely as any to be killed for want of memory.
    let _ = fs::write("/proc/self/oom_score_adj", "-999");
    process::prctl(libc::PR_SET_CHILD_SUBREAPER, 1).map_err(step("subreaper"))?;
    raise_descriptor_limit();
    own_mounts().map_err(step("mount namespace"))?;

    let layout = Layout::detect().map_err(step("cgroups"))?;
    cgroup::prepare_root(&layout);
    let whole = Cgroup::instance(&layout, &arguments.instance);
    whole.create(true).map_err(|error| format!("cgroups: {error}"))?;
    let own = Cgroup::spawner(&layout, &arguments.instance);
    own.create(false).and_then(|()| own.enter()).map_err(|error| format!("cgroups: {error}"))?;
    weigh(&whole, &own);
    // Absent before Linux 6.0, and where version 1 is compiled out: starts after an idle moment are then slower.
    let favour = favour_moves().ok();

    let signals = service::signals().map_err(step("signals"))?;
    // SAFETY: this process has one thread.
    let pump = unsafe { logs::start() }.map_err(step("log pump"))?;
    let listener = listen(dir).map_err(step("socket"))?;
    let mut service =
        Service::new(dir, &arguments.instance, layout, signals, pump, listener, favour).map_err(step("state"))?;
    service.recover();
    Ok(service)
}

/// Standard output and error go to the log; nothing of the gateway's stays open.
#[expect(unsafe_code, reason = "replaces the standard descriptors")]
fn redirect_output(path: &Path) -> io::Result<()> {
    let long = fs::metadata(path).is_ok_and(|metadata| metadata.len() > LOG_MAX);
    let output = OpenOptions::new().create(true).append(!long).write(true).truncate(long).open(path)?;
    let null = File::open("/dev/null")?;
    for (target, source) in [(0, &null), (1, &output), (2, &output)] {
        // SAFETY: plain numbers; std uses the standard descriptors by number only.
        if unsafe { libc::dup2(source.as_raw_fd(), target) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// A mount namespace of our own: what the host mounts comes in (for hostPath and its propagation), nothing goes out.
fn own_mounts() -> io::Result<()> {
    process::unshare(libc::CLONE_NEWNS)?;
    let flags = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_SLAVE;
    nix::mount::mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)?;
    Ok(())
}

/// A pod holds about five descriptors.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// All pods together weigh as much as the machine has CPUs (the kubelet's rule for its pods), not as much as one process
/// outside; and the spawner more than any pod, since every start goes through it.
fn weigh(whole: &Cgroup<'_>, own: &Cgroup<'_>) {
    let cpus = std::thread::available_parallelism().map_or(1, |count| u64::try_from(count.get()).unwrap_or(1));
    for (cgroup, shares) in [(whole, cpus * 1024), (own, cpus * 4096)] {
        let limits = Limits { cpu_shares: Some(shares), ..Limits::default() };
        if let Err(error) = cgroup.limit(&limits) {
            say!("CPU shares: {error}");
        }
    }
}

/// Moving a process between cgroups takes a lock of the whole machine, for 10 to 15 ms after an idle moment unless some
/// hierarchy is mounted with `favordynmods`. So there is one: empty, without controllers, ours, detached, gone with us.
/// All instances of a machine share it.
fn favour_moves() -> io::Result<OwnedFd> {
    let context = mount::FsContext::open("cgroup")?;
    context.flag("none")?;
    context.set("name", "carob")?;
    context.flag("favordynmods")?;
    context.mount(0)
}

fn listen(dir: &Path) -> io::Result<OwnedFd> {
    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
    let path = dir.join(SOCKET);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    // A socket's address has room for 107 bytes: the directory is named by a descriptor.
    let directory = File::open(dir)?;
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let bound = bind(listener.as_raw_fd(), &UnixAddr::new(&short_path(directory.as_fd(), SOCKET))?);
    nix::sys::stat::umask(before);
    bound?;
    listen(&listener, Backlog::new(16)?)?;
    Ok(listener)
}

/// A path below an open directory that fits a socket's address.
pub fn short_path(directory: std::os::fd::BorrowedFd<'_>, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))
}
