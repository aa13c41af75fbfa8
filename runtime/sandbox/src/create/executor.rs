//! libcontainer's last step, done our way: see [`Program`].

use super::volumes::Volumes;
use crate::kernel::{mount, process};
use crate::program::{ExecFailure, Program};
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::statfs::{SYSFS_MAGIC, fstatfs};
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;

/// Executes a [`Program`]; when it cannot, says why on a pipe that closes by itself when it can.
#[derive(Debug, Clone)]
pub struct CarobExecutor {
    program: Program,
    report: RawFd,
    view: Rc<OwnedFd>,
    volumes: Rc<Volumes>,
    users: Option<RawFd>,
    home: RefCell<Option<String>>,
}

impl CarobExecutor {
    /// `report` is a close-on-exec pipe's write end that stays open in the calling process and its children.
    /// `view` is the detached tree that goes on `/sys/fs/cgroup`.
    /// `users` is the user namespace that it ends up in.
    pub fn new(program: Program, report: RawFd, view: OwnedFd, volumes: Volumes, users: Option<RawFd>) -> Self {
        Self { program, report, view: Rc::new(view), volumes: Rc::new(volumes), users, home: RefCell::new(None) }
    }
}

impl CarobExecutor {
    /// The root as the pod wants it, and the program's place in it.
    fn complete(&self) -> Result<(), String> {
        self.volumes.attach()?;
        attach_view(self.view.as_fd()).map_err(|error| format!("/sys/fs/cgroup: {error}"))?;
        let shown = self.volumes.cwd.display();
        nix::unistd::chdir(&self.volumes.cwd).map_err(|errno| format!("working directory {shown}: {errno}"))?;
        // A directory outside of the container has no name in it (CVE-2024-21626).
        let inside = std::env::current_dir().is_ok_and(|directory| directory.starts_with("/"));
        if inside { Ok(()) } else { Err(format!("working directory {shown} is outside of the container")) }
    }

    /// A cgroup namespace's root is the cgroup in which it is made. Users of the pod's own come last of all: everything
    /// that makes a container is the host's to do, and locked for them. A mount namespace that they own lets a container
    /// with the capability mount what users may.
    fn enter_last_namespaces(&self) -> io::Result<()> {
        match self.users {
            None => process::unshare(libc::CLONE_NEWCGROUP),
            Some(users) => {
                crate::spawner::enter_users(users)?;
                process::unshare(libc::CLONE_NEWCGROUP | libc::CLONE_NEWNS)
            }
        }
    }
}

impl Executor for CarobExecutor {
    fn exec(&self, _spec: &Spec) -> Result<(), ExecutorError> {
        let mut program = self.program.clone();
        if let Some(home) = self.home.borrow().as_ref()
            && !program.env.iter().any(|entry| entry.starts_with("HOME="))
        {
            program.env.push(format!("HOME={home}"));
        }
        crate::spawner::give_streams(nix::unistd::getuid().as_raw());
        let failure = match self.enter_last_namespaces() {
            Ok(()) => program.execute(),
            Err(error) => ExecFailure::setup("namespaces", error),
        };
        report(self.report, &failure);
        Err(ExecutorError::Other(failure.message))
    }

    /// execve decides; asking before it would only be a race.
    fn validate(&self, _spec: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }

    /// The environment goes to execve directly. libcontainer has looked up the user's home in the container.
    fn setup_envs(&self, envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        self.home.replace(envs.get("HOME").cloned());
        self.complete().map_err(ExecutorSetEnvsError::Other)
    }
}

/// Puts the view on `/sys/fs/cgroup`, if that is the kernel's own directory: no link of the image's is followed.
fn attach_view(view: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_DIRECTORY;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    let place = match openat2(nix::fcntl::AT_FDCWD, "/sys/fs/cgroup", how) {
        Ok(place) => place,
        // A kernel or a mount of the worker's without this directory: there is nothing to show it on.
        Err(Errno::ENOENT) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    if fstatfs(&place)?.filesystem_type() != SYSFS_MAGIC {
        return Ok(());
    }
    mount::attach_at(view, place.as_fd())
}

/// Writes a failure to a pipe whose number survived several forks.
#[expect(unsafe_code, reason = "the descriptor is known by number")]
pub fn report(fd: RawFd, failure: &ExecFailure) {
    // SAFETY: the pipe is open in this process: only execve closes it, and that has just failed.
    let pipe = unsafe { BorrowedFd::borrow_raw(fd) };
    if let Ok(bytes) = postcard::to_allocvec(failure) {
        // When even this fails, the reader sees the end of the pipe without an execve and the container's exit.
        let _ = nix::unistd::write(pipe, &bytes);
    }
}
