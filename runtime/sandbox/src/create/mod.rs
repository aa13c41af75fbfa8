//! Creating and starting one container. Everything here runs in a fork of the spawner, the *builder*, that exits when it
//! is done: what it mounted, opened and allocated goes with it.

mod executor;
pub mod foreign;
pub use executor::report;
mod mounts;
mod places;
mod rootfs;
pub mod spec;
mod trace;
mod volumes;

use crate::capabilities::CapabilitySet;
use crate::cgroup::{self, Cgroup, Membership, Nursery};
use crate::config::{ContainerConfig, Mount, PodConfig, User, UserRange};
use crate::kernel::{mount, process};
use crate::program::{self, ExecFailure, Program};
use crate::protocol::{Failure, StartedContainer};
use crate::seccomp::Filters;
use executor::CarobExecutor;
use jiff::Timestamp;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use serde::{Deserialize, Serialize};
use spec::Joined;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;
use volumes::Volumes;

/// All that a builder needs.
#[derive(Debug)]
pub struct Blueprint<'a> {
    /// The pod.
    pub pod: &'a PodConfig,
    /// The container; mount sources that came as descriptors are in it.
    pub container: &'a ContainerConfig,
    /// The pod's namespaces.
    pub joined: Joined<'a>,
    /// The pod's own users.
    pub users: Option<Users<'a>>,
    /// The pod's mount namespace: the host's mounts, the pod's `/dev/shm` and tmpfs volumes.
    pub mounts: &'a OwnedFd,
    /// Where the pod's `/dev/shm` is in there.
    pub shm: &'a Path,
    /// Its cgroup; not made yet.
    pub cgroup: Cgroup<'a>,
    /// Where the builder and what it forks are until the container is made.
    pub nursery: Cgroup<'a>,
    /// The spawner's own cgroup.
    pub home: Cgroup<'a>,
    /// The compiled filter.
    pub filters: Filters,
    /// An empty directory to build in.
    pub workshop: &'a Path,
    /// Standard input, output and error; unused with a terminal.
    pub stdio: Option<[OwnedFd; 3]>,
}

/// Users of a pod's own.
#[derive(Debug, Clone, Copy)]
pub struct Users<'a> {
    /// The host's that they are.
    pub range: UserRange,
    /// Where they are.
    pub namespace: &'a OwnedFd,
}

impl Users<'_> {
    /// The host's numbers of one of them.
    pub fn host(&self, user: &User) -> Result<User, Failure> {
        let number = |id: u32| {
            self.range.host(id).ok_or_else(|| {
                let most = UserRange::LENGTH - 1;
                Failure::Users(format!("user: {id} is not among the pod's own users and groups, 0 to {most}"))
            })
        };
        let groups = user.groups.iter().map(|gid| number(*gid)).collect::<Result<_, _>>()?;
        Ok(User { uid: number(user.uid)?, gid: number(user.gid)?, groups })
    }
}

/// What the builder tells the spawner. With a terminal its master comes along.
#[derive(Debug, Serialize, Deserialize)]
pub enum Outcome {
    /// The container runs.
    Started(StartedContainer),
    /// It doesn't.
    Failed(Failure),
}

/// Names and durations of the stages so far.
struct Stopwatch {
    last: Instant,
    stages: Vec<(String, u64)>,
}

impl Stopwatch {
    fn lap(&mut self, name: &str) {
        let now = Instant::now();
        let taken = u64::try_from((now - self.last).as_micros()).unwrap_or(u64::MAX);
        self.stages.push((name.to_owned(), taken));
        self.last = now;
    }
}

/// Creates and starts the container. `forked` is when the spawner began to fork.
pub fn run(blueprint: Blueprint<'_>, forked: Instant) -> Result<(StartedContainer, Option<OwnedFd>), Failure> {
    let mut watch = Stopwatch { last: forked, stages: Vec::with_capacity(8) };
    watch.lap("fork");
    let Blueprint {
        pod,
        container,
        joined,
        users,
        mounts: pod_mounts,
        shm,
        cgroup,
        nursery,
        home,
        filters,
        workshop,
        stdio,
    } = blueprint;

    // Who shares a PID namespace with the container must not look into what is still partly the host's.
    process::prctl(libc::PR_SET_DUMPABLE, 0).map_err(|error| Failure::sandbox("create", error))?;
    process::join_new_session_keyring();
    let in_cgroup = |error: cgroup::CgroupError| Failure::sandbox("cgroup", error);
    cgroup.create(false).map_err(in_cgroup)?;
    cgroup.limit(&container.limits).map_err(in_cgroup)?;
    cgroup.restrict_devices(&cgroup::rules(container.privileged, &container.devices)).map_err(in_cgroup)?;
    cgroup.group_oom();
    watch.lap("cgroup");

    let opened = enter_workshop(pod_mounts, workshop, &container.mounts)?;
    let rootfs = workshop.join(ROOTFS);
    rootfs::overlay(&container.rootfs, &rootfs, users)?;
    rootfs::check_dev(&rootfs)?;
    watch.lap("overlay");

    let trees = mounts::open(&container.mounts, opened, shm, workshop, users)?;
    let cwd = Path::new(if container.cwd.is_empty() { "/" } else { &container.cwd });
    mounts::prepare(&trees, &rootfs, cwd, users)?;
    let owner = users.map_or(0, |users| users.range.first);
    let volumes = Volumes { trees, owner, cwd: cwd.to_owned() };
    let view = rootfs::cgroup_view(&cgroup.views(), &workshop.join("view"), container.privileged)?;
    // libcontainer sees nothing that others can change: volumes come when it is done, and the directory may be in one.
    let mut spec = spec::build(pod, container, &joined, users, &[])?;
    if let Some(process) = spec.process_mut() {
        process.set_cwd("/".into());
    }
    spec.save(workshop.join("config.json")).map_err(|error| Failure::sandbox("spec", error))?;
    watch.lap("mounts");

    let mut warnings = Vec::new();
    if let Err(error) = fs::write("/proc/self/oom_score_adj", container.oom_score_adj.to_string()) {
        warnings.push(format!("oom_score_adj {} could not be set: {error}", container.oom_score_adj));
    }
    let cgroup_paths = cgroup.paths();
    let mut membership = Membership::open(&cgroup).map_err(in_cgroup)?;
    let nursery = Nursery::enter(&nursery, &home).map_err(in_cgroup)?;
    rootfs::move_into(workshop)?;
    watch.lap("pivot");

    let capabilities = if container.privileged {
        CapabilitySet::bounding()
    } else {
        let wanted = CapabilitySet::from_names(&container.capabilities)
            .map_err(|name| Failure::config("capabilities", format!("unknown capability {name:?}")))?;
        wanted.and(CapabilitySet::bounding())
    };
    let program = Program {
        argv: container.argv.clone(),
        env: program::environment(&container.env),
        capabilities,
        no_new_privs: container.no_new_privs,
        filters,
    };
    let (report, report_writer) = pipe()?;
    let errors = trace::ErrorLog::install().map_err(|error| Failure::sandbox("create", error))?;
    let console = PathBuf::from("/console");
    let listener = if container.tty {
        Some(std::os::unix::net::UnixListener::bind(&console).map_err(|error| Failure::sandbox("terminal", error))?)
    } else {
        None
    };
    let users = users.map(|users| users.namespace.as_raw_fd());
    let executor = CarobExecutor::new(program, report_writer.as_raw_fd(), view, volumes, users);
    let mut builder = ContainerBuilder::new("c".to_owned(), SyscallType::Linux)
        .with_executor(executor)
        .with_root_path("/state")
        .map_err(|error| Failure::sandbox("create", error))?;
    if container.tty {
        builder = builder.with_console_socket(Some(console));
    } else if let Some([stdin, stdout, stderr]) = stdio {
        builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
    }
    let built = builder.as_init("/").with_systemd(false).as_sibling(true).with_detach(true).build();
    let mut created = built.map_err(|error| explain(&report, &errors, &error))?;
    let pid =
        created.pid().map(i32::from).ok_or_else(|| Failure::sandbox("create", "libcontainer gives no process id"))?;
    watch.lap("create");

    let terminal = listener.map(|listener| receive_terminal(&listener)).transpose()?;
    drop(report_writer);
    membership.add(pid).map_err(in_cgroup)?;
    nursery.leave();
    watch.lap("attach");
    let started_at = Timestamp::now();
    created.start().map_err(|error| explain(&report, &errors, &error))?;
    // The pipe's last writer goes with the execve that succeeds.
    if let Some(failure) = read_report(report)? {
        return Err(Failure::Start { message: failure.message, exit_code: 128 });
    }
    watch.lap("start");
    Ok((StartedContainer { pid, started_at, cgroup: cgroup_paths, stages: watch.stages, warnings }, terminal))
}

/// Where the root file system is below the workshop, and after [`rootfs::move_into`] below `/`.
pub const ROOTFS: &str = "rootfs";

/// A mount namespace of the builder's own, a copy of the pod's, and in it an empty tmpfs to build in. Gives the trees of
/// those mounts whose source lies in the pod's: they can be taken only from within it.
fn enter_workshop(mounts: &OwnedFd, workshop: &Path, wanted: &[Mount]) -> Result<Vec<Option<OwnedFd>>, Failure> {
    let wrap = |error: io::Error| Failure::sandbox("workshop", error);
    process::setns(mounts.as_fd(), libc::CLONE_NEWNS).map_err(wrap)?;
    let open = |request: &Mount| match &request.source_fd {
        Some(fd) if request.in_pod => mount::clone_tree(Some(fd.as_fd()), Path::new(""), true).map(Some),
        _ => Ok(None),
    };
    let opened = wanted.iter().map(open).collect::<io::Result<_>>().map_err(wrap)?;
    process::unshare(libc::CLONE_NEWNS).map_err(wrap)?;
    let tree = mount::tmpfs(Some(16 * 1024 * 1024), "700", mount::ATTR_NOSUID).map_err(wrap)?;
    mount::attach(tree.as_fd(), workshop).map_err(wrap)?;
    // /sys/fs/cgroup on a tmpfs, and no cgroup file system in sight: so libcontainer leaves cgroups to us.
    for directory in ["state", ROOTFS, "proc", "old", "sys/fs/cgroup"] {
        fs::create_dir_all(workshop.join(directory)).map_err(wrap)?;
    }
    Ok(opened)
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Failure> {
    nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|errno| Failure::sandbox("pipe", errno))
}

/// The program's own failure if it was reported; otherwise the innermost error that libcontainer logged, after the stage
/// that it names.
fn explain(report: &OwnedFd, errors: &trace::ErrorLog, error: &libcontainer::error::LibcontainerError) -> Failure {
    let _ = nix::fcntl::fcntl(report, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK));
    let mut buffer = [0u8; 4096];
    if let Ok(length) = nix::unistd::read(report, &mut buffer)
        && let Ok(failure) = postcard::from_bytes::<ExecFailure>(&buffer[..length])
    {
        return Failure::Start { message: failure.message, exit_code: 128 };
    }
    let mut chain = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        let text = inner.to_string();
        if !chain.contains(&text) {
            chain = format!("{chain}: {text}");
        }
        source = inner.source();
    }
    let cause = errors.first().map(|cause| format!(": {cause}")).unwrap_or_default();
    Failure::Start { message: format!("cannot create the container: {chain}{cause}"), exit_code: 128 }
}

fn read_report(report: OwnedFd) -> Result<Option<ExecFailure>, Failure> {
    let mut bytes = Vec::new();
    File::from(report).read_to_end(&mut bytes).map_err(|error| Failure::sandbox("start", error))?;
    if bytes.is_empty() {
        return Ok(None);
    }
    postcard::from_bytes(&bytes).map(Some).map_err(|error| Failure::sandbox("start", error))
}

/// The terminal that a runtime sends.
pub fn receive_terminal(listener: &std::os::unix::net::UnixListener) -> Result<OwnedFd, Failure> {
    let wrap = |error: io::Error| Failure::sandbox("terminal", error);
    let (stream, _) = listener.accept().map_err(wrap)?;
    let master = receive_one(stream.as_fd()).map_err(wrap)?;
    master.ok_or_else(|| Failure::sandbox("terminal", "libcontainer sent none"))
}

#[expect(unsafe_code, reason = "a descriptor arrives as a number")]
fn receive_one(stream: std::os::fd::BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
    use std::os::fd::FromRawFd;
    let mut buffer = [0u8; 256];
    let mut control = nix::cmsg_space!([i32; 1]);
    let mut parts = [io::IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(stream.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = part
            && let Some(fd) = fds.first()
        {
            // SAFETY: the kernel has just installed this descriptor for us.
            return Ok(Some(unsafe { OwnedFd::from_raw_fd(*fd) }));
        }
    }
    Ok(None)
}
