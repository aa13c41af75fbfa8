//! cgroups of pods and containers, v1 and v2 (and both at once, the hybrid layout). Paths are
//! `/carob-{instance}/pod{uid}/{container}` in every hierarchy.

mod devices;
mod layout;
mod limits;
mod membership;
mod readings;

pub use devices::{DeviceRules, oci_rules};
pub use layout::{Hierarchy, Layout, has_controller};
pub use membership::{Membership, Nursery};

use crate::kernel::process;
use crate::state::{CgroupPaths, CgroupVersion, FinalUsage, Usage};
use crate::{DeviceNode, Limits};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the names of [`Nursery`]s begin with.
pub const NURSERY: &str = "start-";

/// One cgroup, in all hierarchies.
#[derive(Debug, Clone)]
pub struct Cgroup<'a> {
    layout: &'a Layout,
    /// Below every hierarchy's root, without a leading slash.
    path: PathBuf,
}

/// What went wrong on which file.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct CgroupError {
    path: PathBuf,
    source: io::Error,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> CgroupError + '_ {
    move |source| CgroupError { path: path.to_owned(), source }
}

/// A cgroup takes memory itself, of what the pod may have.
fn no_room(error: io::Error) -> io::Error {
    if error.raw_os_error() == Some(libc::ENOMEM) {
        return io::Error::other("the pod may have too little memory for a container (memory limit too low?)");
    }
    error
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    fs::write(path, value).map_err(at(path))
}

impl<'a> Cgroup<'a> {
    /// The cgroup of a whole instance.
    pub fn instance(layout: &'a Layout, instance: &str) -> Self {
        Self { layout, path: PathBuf::from(format!("carob-{instance}")) }
    }

    /// The cgroup of the spawner of an instance.
    pub fn spawner(layout: &'a Layout, instance: &str) -> Self {
        Self::instance(layout, instance).child("spawner")
    }

    /// The cgroup of a pod.
    pub fn pod(layout: &'a Layout, instance: &str, uid: &str) -> Self {
        Self::instance(layout, instance).child(&format!("pod{uid}"))
    }

    /// Where a container is while it is being made: see [`Nursery`].
    pub fn nursery(layout: &'a Layout, instance: &str, container: &str) -> Self {
        Self::instance(layout, instance).child(&format!("{NURSERY}{container}"))
    }

    /// A cgroup below this one.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        Self { layout: self.layout, path: self.path.join(name) }
    }

    /// Its place below every hierarchy's root, without a leading slash.
    pub fn below_roots(&self) -> &Path {
        &self.path
    }

    fn directory(&self, hierarchy: &Hierarchy) -> PathBuf {
        hierarchy.root.join(&self.path)
    }

    fn of(&self, controller: &str) -> Option<PathBuf> {
        self.layout.with(controller).map(|hierarchy| self.directory(hierarchy))
    }

    /// Whether it is there.
    pub fn exists(&self) -> bool {
        self.layout.hierarchies.iter().any(|hierarchy| self.directory(hierarchy).exists())
    }

    /// Makes it. `parent_of_others` hands the controllers on to cgroups below (v2).
    pub fn create(&self, parent_of_others: bool) -> Result<(), CgroupError> {
        for hierarchy in &self.layout.hierarchies {
            let directory = self.directory(hierarchy);
            match fs::create_dir(&directory) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(at(&directory)(no_room(error))),
            }
            if hierarchy.controls("cpuset") && !hierarchy.v2 {
                inherit_cpuset(&directory)?;
            }
            if hierarchy.v2 && parent_of_others {
                delegate(&directory);
            }
        }
        Ok(())
    }

    /// Sets limits; what is `None` stays as it is.
    pub fn limit(&self, limits: &Limits) -> Result<(), CgroupError> {
        limits::apply(self, limits)
    }

    /// Restricts devices: the default ones and those of the list, or all for `privileged`.
    pub fn restrict_devices(&self, rules: &DeviceRules<'_>) -> Result<(), CgroupError> {
        devices::apply(self, rules)
    }

    /// Kills everything in a cgroup together with one that runs out of memory (v2; the kubelet's default).
    pub fn group_oom(&self) {
        if let Some(hierarchy) = self.layout.with("memory").filter(|hierarchy| hierarchy.v2) {
            // Kernels before 4.19 don't have it; the kill is then of one process.
            let _ = fs::write(self.directory(hierarchy).join("memory.oom.group"), "1");
        }
    }

    /// Moves the calling process into it, in every hierarchy.
    pub fn enter(&self) -> Result<(), CgroupError> {
        self.add("0")
    }

    fn add(&self, pid: &str) -> Result<(), CgroupError> {
        for hierarchy in &self.layout.hierarchies {
            write(&self.directory(hierarchy).join("cgroup.procs"), pid)?;
        }
        Ok(())
    }

    /// Where usage can be read by others.
    pub fn paths(&self) -> CgroupPaths {
        let place = |controller: &str| {
            let hierarchy = self.layout.with(controller).or(self.layout.hierarchies.first());
            hierarchy.map(|hierarchy| self.directory(hierarchy)).unwrap_or_default()
        };
        let v2 = self.layout.with("cpuacct").is_none_or(|hierarchy| hierarchy.v2);
        CgroupPaths {
            version: if v2 { CgroupVersion::V2 } else { CgroupVersion::V1 },
            cpuacct: place("cpuacct"),
            memory: place("memory"),
        }
    }

    /// Its counters now.
    pub fn usage(&self) -> Usage {
        readings::usage(self)
    }

    /// Its counters at the end.
    pub fn final_usage(&self) -> FinalUsage {
        let usage = self.usage();
        FinalUsage { cpu_ns: usage.cpu_ns, memory_peak_bytes: usage.memory_peak_bytes }
    }

    /// Whether the kernel has killed in it for want of memory.
    pub fn oom_killed(&self) -> bool {
        readings::oom_kills(self) > 0
    }

    /// The processes in it and in the cgroups below.
    pub fn processes(&self) -> Vec<i32> {
        let mut found = Vec::new();
        for hierarchy in &self.layout.hierarchies {
            collect_processes(&self.directory(hierarchy), &mut found);
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Kills every process in it, below it too; gives up after `patience`. True when none is left.
    pub fn kill(&self, patience: Duration) -> bool {
        const STEP: Duration = Duration::from_millis(2);
        let mut waited = Duration::ZERO;
        loop {
            if self.kill_once(waited) {
                return true;
            }
            if waited >= patience {
                return false;
            }
            process::pause(STEP);
            waited += STEP;
        }
    }

    /// Kills every process in it, below it too, without waiting for them. True when there was none. `waited`: since the
    /// first try. What cgroup.kill alone hasn't ended in a moment is thawed and signalled one by one.
    pub fn kill_once(&self, waited: Duration) -> bool {
        let left = self.processes();
        if left.is_empty() {
            return true;
        }
        if !self.kill_now() || waited > Duration::from_millis(100) {
            self.thaw();
            for pid in left {
                // Between the reading and the signal the number could only come to mean another process if 32,000
                // were started meanwhile; the unified hierarchy's cgroup.kill has no such gap.
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            }
        }
        false
    }

    /// Asks the kernel to kill every process in it, without waiting. False where it cannot (no unified hierarchy).
    pub fn kill_now(&self) -> bool {
        self.layout
            .unified()
            .is_some_and(|hierarchy| fs::write(self.directory(hierarchy).join("cgroup.kill"), "1").is_ok())
    }

    /// A frozen process takes no signal on v1.
    fn thaw(&self) {
        if let Some(directory) = self.of("freezer") {
            let _ = fs::write(directory.join("freezer.state"), "THAWED");
        }
    }

    /// Removes it with all below, retrying while the kernel still lets go of what was in it. It must have no processes.
    pub fn remove(&self, patience: Duration) -> Result<(), CgroupError> {
        let mut waited = Duration::ZERO;
        let mut step = Duration::from_micros(500);
        loop {
            let mut failed = None;
            for hierarchy in &self.layout.hierarchies {
                let directory = self.directory(hierarchy);
                if let Err(error) = remove_tree(&directory) {
                    failed = Some(at(&directory)(error));
                }
            }
            match failed {
                None => return Ok(()),
                Some(error) if waited >= patience => return Err(error),
                Some(_) => {
                    process::pause(step);
                    waited += step;
                    step = (step * 2).min(Duration::from_millis(50));
                }
            }
        }
    }

    /// The cgroups directly below, by name.
    pub fn children(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for hierarchy in &self.layout.hierarchies {
            let Ok(entries) = fs::read_dir(self.directory(hierarchy)) else { continue };
            names.extend(
                entries
                    .flatten()
                    .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                    .filter_map(|entry| entry.file_name().into_string().ok()),
            );
        }
        names.sort_unstable();
        names.dedup();
        names
    }

    /// What a container sees at `/sys/fs/cgroup`: name below it and directory, per hierarchy. On v2 alone one entry with
    /// an empty name.
    pub fn views(&self) -> Vec<(String, PathBuf)> {
        self.layout
            .hierarchies
            .iter()
            .map(|hierarchy| {
                let name = if self.layout.is_v2() { String::new() } else { hierarchy.name.clone() };
                (name, self.directory(hierarchy))
            })
            .collect()
    }
}

/// A new v1 cpuset has no CPUs and no memory nodes, and no process can enter it: it takes its parent's.
fn inherit_cpuset(directory: &Path) -> Result<(), CgroupError> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = directory.join(file);
        let current = fs::read_to_string(&own).map_err(at(&own))?;
        if !current.trim().is_empty() {
            continue;
        }
        let Some(parent) = directory.parent() else { continue };
        let parents = parent.join(file);
        let value = fs::read_to_string(&parents).map_err(at(&parents))?;
        write(&own, value.trim())?;
    }
    Ok(())
}

/// Hands each controller that is there on to the cgroups below (v2). One that cannot be handed on stays behind, and the
/// limits that need it fail with its file's name.
fn delegate(directory: &Path) {
    let Ok(available) = fs::read_to_string(directory.join("cgroup.controllers")) else { return };
    for controller in available.split_whitespace() {
        let _ = fs::write(directory.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

fn collect_processes(directory: &Path, found: &mut Vec<i32>) {
    if let Ok(text) = fs::read_to_string(directory.join("cgroup.procs")) {
        found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_processes(&entry.path(), found);
        }
    }
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    match fs::remove_dir(directory) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(_) => {}
    }
    match fs::read_dir(directory) {
        Ok(entries) => {
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    remove_tree(&entry.path())?;
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Hands the root's controllers on (v2), so that the instance's cgroup has them.
pub fn prepare_root(layout: &Layout) {
    for hierarchy in layout.hierarchies.iter().filter(|hierarchy| hierarchy.v2) {
        delegate(&hierarchy.root);
    }
}

/// Devices of a container beside the default ones.
pub fn rules(privileged: bool, extra: &[DeviceNode]) -> DeviceRules<'_> {
    DeviceRules { privileged, extra }
}
