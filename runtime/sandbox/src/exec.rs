//! A further process in a running container. Runs in a fork of the spawner that joins the container, forks the process
//! as the spawner's child, reports and exits.
#![allow(unsafe_code)]

use crate::capabilities::{self, CapabilitySet};
use crate::cgroup::{Cgroup, Membership};
use crate::config::{ContainerConfig, ExecConfig, User};
use crate::create::Users;
use crate::create::spec::rlimit_number;
use crate::kernel::process::{self, Fork};
use crate::oci::{Oci, Work};
use crate::program::{self, ExecFailure, Program};
use crate::protocol::Failure;
use crate::seccomp::Filters;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::sys::statfs::{FsType, fstatfs};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

const CLONE_PARENT: u64 = 0x8000;

/// All that the fork needs.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The container as it was started.
    pub container: &'a ContainerConfig,
    /// What to execute in it.
    pub exec: &'a ExecConfig,
    /// Its init.
    pub init: &'a OwnedFd,
    /// The pod's own users.
    pub users: Option<Users<'a>>,
    /// Its cgroup.
    pub cgroup: Cgroup<'a>,
    /// The container's filter.
    pub filters: Filters,
    /// Standard input, output and error; unused with a terminal.
    pub stdio: Option<[OwnedFd; 3]>,
}

/// What the fork tells the spawner. With a terminal its master comes along.
#[derive(Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// The process runs.
    Started {
        /// Its id in the spawner's PID namespace.
        pid: i32,
    },
    /// It doesn't.
    Failed(Failure),
}

/// Joins the container and starts the process.
pub fn run(plan: &Plan<'_>) -> Result<(i32, Option<OwnedFd>), Failure> {
    let gone = |error: io::Error| {
        if error.raw_os_error() == Some(libc::ESRCH) {
            Failure::WrongState { id: plan.container.id.to_string(), state: "exited".to_owned() }
        } else {
            Failure::sandbox("exec", error)
        }
    };
    // Whoever is in the container must not look into a process that is still partly the host's.
    process::prctl(libc::PR_SET_DUMPABLE, 0).map_err(|error| Failure::sandbox("exec", error))?;
    process::join_new_session_keyring();
    let program = program(plan)?;
    let user = plan.exec.user.as_ref().unwrap_or(&plan.container.user);
    let user = &match plan.users {
        Some(users) => users.host(user)?,
        None => user.clone(),
    };
    let cwd = plan.exec.cwd.as_deref().unwrap_or(&plan.container.cwd);
    let cwd = if cwd.is_empty() { "/" } else { cwd };
    let mut membership = Membership::open(&plan.cgroup).map_err(|error| Failure::sandbox("exec", error))?;
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", plan.container.oom_score_adj.to_string()) {
        // As at the container's start, where it was told.
        tracing::debug!(%error, "oom_score_adj");
    }
    let all = libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWCGROUP;
    process::setns(plan.init.as_fd(), all).map_err(gone)?;
    let terminal = if plan.exec.tty { Some(Terminal::open(plan.exec.terminal_size)?) } else { None };
    let pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| Failure::sandbox("exec", errno));
    let (report, report_writer) = pipe()?;
    let (go, go_writer) = pipe()?;

    // SAFETY: the fork of a single-threaded process has one thread.
    match unsafe { process::clone3(CLONE_PARENT, None) }.map_err(|error| Failure::sandbox("exec", error))? {
        Fork::Child => {
            drop(go_writer);
            let failure = match become_process(plan, terminal.as_ref(), user, cwd) {
                // It is not the program's before it is in the container's cgroup.
                Ok(()) => match nix::unistd::read(&go, &mut [0u8; 1]) {
                    Ok(1) => program.execute(),
                    _ => ExecFailure::setup("cgroup", "could not be entered"),
                },
                Err(failure) => failure,
            };
            crate::create::report(report_writer.as_raw_fd(), &failure);
            process::exit_now(failure.exit_code);
        }
        Fork::Parent(pid) => {
            drop((report_writer, go));
            membership.add(pid).map_err(|error| Failure::sandbox("exec", error))?;
            // A child that has failed already has closed its end; its report follows.
            let _ = nix::unistd::write(&go_writer, b"1");
            let mut bytes = Vec::new();
            File::from(report).read_to_end(&mut bytes).map_err(|error| Failure::sandbox("exec", error))?;
            if !bytes.is_empty() {
                let failure: ExecFailure =
                    postcard::from_bytes(&bytes).map_err(|error| Failure::sandbox("exec", error))?;
                return Err(Failure::Start { message: failure.message, exit_code: failure.exit_code });
            }
            Ok((pid, terminal.map(|terminal| terminal.master)))
        }
    }
}

/// The same by the container's own runtime. `place` is made for the time of it.
pub fn by_runtime(plan: Plan<'_>, runtime: &Oci, place: &Path) -> Result<(i32, Option<OwnedFd>), Failure> {
    let wrap = |error: io::Error| Failure::sandbox("exec", error);
    // As at the container's start.
    let _ = std::fs::write("/proc/self/oom_score_adj", plan.container.oom_score_adj.to_string());
    let process = crate::create::foreign::process(plan.container, plan.exec).to_string();
    std::fs::create_dir(place).map_err(wrap)?;
    let work = || {
        let console = place.join("console");
        let listener = plan.exec.tty.then(|| UnixListener::bind(&console)).transpose().map_err(wrap)?;
        let work = Work { id: plan.container.id.as_str(), place };
        let (streams, console) = match &listener {
            Some(_) => (None, Some(console.as_path())),
            None => (plan.stdio, None),
        };
        let pid = runtime.exec(&work, process.as_bytes(), streams, console)?;
        // A process that has ended already is in no cgroup.
        let _ = Membership::open(&plan.cgroup).and_then(|mut membership| membership.add(pid));
        Ok((pid, listener.map(|listener| crate::create::receive_terminal(&listener)).transpose()?))
    };
    let done = work();
    let _ = std::fs::remove_dir_all(place);
    done
}

fn program(plan: &Plan<'_>) -> Result<Program, Failure> {
    let capabilities = if plan.container.privileged {
        CapabilitySet::bounding()
    } else {
        CapabilitySet::from_names(&plan.container.capabilities)
            .map_err(|name| Failure::config("capabilities", format!("unknown capability {name:?}")))?
            .and(CapabilitySet::bounding())
    };
    let mut pairs = plan.container.env.clone();
    pairs.extend(plan.exec.env.iter().cloned());
    if plan.exec.tty && !pairs.iter().any(|(name, _)| name == "TERM") {
        pairs.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    Ok(Program {
        argv: plan.exec.argv.clone(),
        env: program::environment(&pairs),
        capabilities,
        no_new_privs: plan.container.no_new_privs,
        filters: plan.filters.clone(),
    })
}

/// In the child: session, standard streams, directory, limits, user. What follows is [`Program::execute`].
fn become_process(plan: &Plan<'_>, terminal: Option<&Terminal>, user: &User, cwd: &str) -> Result<(), ExecFailure> {
    let setup = |what: &'static str| move |error: io::Error| ExecFailure::setup(what, error);
    nix::unistd::setsid().map_err(|errno| ExecFailure::setup("session", errno))?;
    let streams: [i32; 3] = match (terminal, &plan.stdio) {
        (Some(terminal), _) => {
            // SAFETY: TIOCSCTTY takes a number.
            if unsafe { libc::ioctl(terminal.slave.as_raw_fd(), libc::TIOCSCTTY, 0) } < 0 {
                return Err(ExecFailure::setup("controlling terminal", io::Error::last_os_error()));
            }
            [terminal.slave.as_raw_fd(); 3]
        }
        (None, Some(stdio)) => [stdio[0].as_raw_fd(), stdio[1].as_raw_fd(), stdio[2].as_raw_fd()],
        (None, None) => return Err(ExecFailure::setup("standard streams", "are missing")),
    };
    for (target, source) in (0..).zip(streams) {
        // SAFETY: plain numbers; the three standard descriptors of this fork are nobody's.
        if unsafe { libc::dup2(source, target) } < 0 {
            return Err(ExecFailure::setup("standard streams", io::Error::last_os_error()));
        }
    }
    crate::spawner::give_streams(user.uid);
    process::cloexec_from(3).map_err(setup("descriptors"))?;
    nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
    for limit in &plan.container.rlimits {
        set_rlimit(&limit.kind, limit.soft, limit.hard).map_err(setup("resource limits"))?;
    }
    let early = nix::unistd::chdir(cwd);
    become_user(user).map_err(setup("user"))?;
    match early {
        Ok(()) => {}
        // Where root may not go (a network file system), its user may.
        Err(Errno::EACCES | Errno::EPERM) => {
            nix::unistd::chdir(cwd).map_err(|errno| ExecFailure::setup("working directory", errno))?;
        }
        Err(errno) => return Err(ExecFailure::setup("working directory", format!("{cwd}: {errno}"))),
    }
    if let Some(users) = plan.users {
        crate::spawner::enter_users(users.namespace.as_raw_fd()).map_err(setup("user namespace"))?;
    }
    // A directory outside of the container has no name in it (CVE-2024-21626).
    let inside = std::env::current_dir().is_ok_and(|directory| directory.starts_with("/"));
    if inside { Ok(()) } else { Err(ExecFailure::setup("working directory", "is outside of the container")) }
}

fn become_user(user: &User) -> io::Result<()> {
    process::prctl(libc::PR_SET_KEEPCAPS, 1)?;
    let groups: Vec<nix::unistd::Gid> = user.groups.iter().map(|gid| nix::unistd::Gid::from_raw(*gid)).collect();
    nix::unistd::setgroups(&groups)?;
    let (uid, gid) = (nix::unistd::Uid::from_raw(user.uid), nix::unistd::Gid::from_raw(user.gid));
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::unistd::setresuid(uid, uid, uid)?;
    process::prctl(libc::PR_SET_KEEPCAPS, 0)?;
    if user.uid != 0 {
        capabilities::raise_effective()?;
    }
    Ok(())
}

fn set_rlimit(kind: &str, soft: u64, hard: u64) -> io::Result<()> {
    let number = rlimit_number(kind)
        .and_then(|number| u32::try_from(number).ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, kind.to_owned()))?;
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the structure outlives the call; no old values are asked for.
    let result = unsafe { libc::prlimit64(0, number, &raw const limit, std::ptr::null_mut()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

struct Terminal {
    master: OwnedFd,
    slave: OwnedFd,
}

impl Terminal {
    /// A pair of the container's own devpts. What is at its path must be the real thing (CVE-2025-52565).
    fn open(size: Option<(u16, u16)>) -> Result<Self, Failure> {
        const DEVPTS: i64 = 0x1cd1;
        let wrap = |errno: nix::errno::Errno| Failure::sandbox("terminal", errno);
        // Opening a device does something: only what a devpts has under this name is opened.
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let pts = openat(nix::fcntl::AT_FDCWD, Path::new("/dev/pts"), flags, Mode::empty()).map_err(wrap)?;
        if fstatfs(&pts).map_err(wrap)?.filesystem_type() != FsType(DEVPTS) {
            return Err(Failure::sandbox("terminal", "/dev/pts in the container is no devpts"));
        }
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let place = openat(&pts, Path::new("ptmx"), (flags - OFlag::O_RDWR) | OFlag::O_PATH, Mode::empty());
        let place = place.map_err(wrap)?;
        let stat = fstat(&place).map_err(wrap)?;
        let real = fstatfs(&place).map_err(wrap)?.filesystem_type() == FsType(DEVPTS)
            && SFlag::from_bits_truncate(stat.st_mode & libc::S_IFMT) == SFlag::S_IFCHR
            && (libc::major(stat.st_rdev), libc::minor(stat.st_rdev)) == (5, 2);
        if !real {
            return Err(Failure::sandbox("terminal", "/dev/pts/ptmx in the container is not a terminal multiplexer"));
        }
        let master = openat(&pts, Path::new("ptmx"), flags, Mode::empty()).map_err(wrap)?;
        let unlock: libc::c_int = 0;
        // SAFETY: the argument is an int that outlives the call.
        if unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) } < 0 {
            return Err(Failure::sandbox("terminal", io::Error::last_os_error()));
        }
        let peer = (OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).bits();
        // SAFETY: TIOCGPTPEER takes open flags and returns a descriptor that is ours alone.
        let slave = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, peer) };
        if slave < 0 {
            return Err(Failure::sandbox("terminal", io::Error::last_os_error()));
        }
        // SAFETY: as above.
        let slave = unsafe { OwnedFd::from_raw_fd(slave) };
        if let Some((columns, rows)) = size {
            let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
            // SAFETY: the structure outlives the call.
            unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        }
        Ok(Self { master, slave })
    }
}
