//! Moving a process into a container's cgroup at the last moment, when the work of making the container is done: that
//! work is neither slowed by the container's limits nor on its bill.

use super::{Cgroup, CgroupError, Hierarchy, at, write};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A cgroup's open `cgroup.procs` files: they work from any mount namespace.
#[derive(Debug)]
pub struct Membership(Vec<(PathBuf, File)>);

impl Membership {
    /// Opens them.
    pub fn open(cgroup: &Cgroup<'_>) -> Result<Self, CgroupError> {
        let mut files = Vec::with_capacity(cgroup.layout.hierarchies.len());
        for hierarchy in &cgroup.layout.hierarchies {
            files.push(open_procs(&cgroup.directory(hierarchy))?);
        }
        Ok(Self(files))
    }

    /// Moves a process in, in every hierarchy. `pid` is its id in the caller's PID namespace.
    pub fn add(&mut self, pid: i32) -> Result<(), CgroupError> {
        let pid = pid.to_string();
        for (path, file) in &mut self.0 {
            file.write_all(pid.as_bytes()).map_err(at(path))?;
        }
        Ok(())
    }
}

fn open_procs(directory: &Path) -> Result<(PathBuf, File), CgroupError> {
    let path = directory.join("cgroup.procs");
    let file = File::options().write(true).open(&path).map_err(at(&path))?;
    Ok((path, file))
}

/// A cgroup in one hierarchy only, beside the pods', for the processes that make a container. It limits and measures
/// nothing; it is there so that they can be found and killed when they fail. Below the pod's it would have the pod's
/// limits on v2: with a hundredth of a CPU a start would take seconds.
#[derive(Debug)]
pub struct Nursery {
    parent: OwnedFd,
    name: PathBuf,
    back: File,
}

impl Nursery {
    /// Makes it and moves the calling process in. `home` is where that came from.
    pub fn enter(place: &Cgroup<'_>, home: &Cgroup<'_>) -> Result<Self, CgroupError> {
        let hierarchy = hierarchy(place);
        let Some(hierarchy) = hierarchy else {
            return Err(at(&place.path)(io::Error::from(io::ErrorKind::NotFound)));
        };
        let directory = place.directory(hierarchy);
        let (Some(parent), Some(name)) = (directory.parent(), directory.file_name()) else {
            return Err(at(&directory)(io::Error::from(io::ErrorKind::InvalidInput)));
        };
        fs::create_dir(&directory).map_err(at(&directory))?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let parent = open(parent, flags, Mode::empty()).map_err(|errno| at(parent)(errno.into()))?;
        let (_, back) = open_procs(&home.directory(hierarchy))?;
        write(&directory.join("cgroup.procs"), "0")?;
        Ok(Self { parent, name: name.into(), back })
    }

    /// Moves the calling process back and removes the place. What cannot be removed yet goes with the container.
    pub fn leave(mut self) {
        if self.back.write_all(b"0").is_ok() {
            let _ = unlinkat(self.parent.as_fd(), &self.name, UnlinkatFlags::RemoveDir);
        }
    }
}

fn hierarchy<'a>(place: &Cgroup<'a>) -> Option<&'a Hierarchy> {
    let layout = place.layout;
    layout.unified().or_else(|| layout.with("pids")).or(layout.hierarchies.first())
}
