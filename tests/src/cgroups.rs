//! Pods' and containers' cgroups as the machine shows them, version 1 and version 2.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::Carob;

/// Whether the machine has version 2 alone.
pub fn unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// A pod's directory in a controller's hierarchy (all the same in version 2).
pub fn pod_cgroup(carob: &Carob, controller: &str, pod: &str) -> PathBuf {
    let uid = carob.jsonpath(&format!("pod/{pod}"), ".metadata.uid");
    let root = Path::new("/sys/fs/cgroup").join(if unified() { "" } else { controller });
    root.join(format!("carob-{}", carob.instance())).join(format!("pod{uid}"))
}

/// The directory of a pod's first container below its pod's.
pub fn container_cgroup(carob: &Carob, controller: &str, pod: &str) -> PathBuf {
    let id = carob.jsonpath(&format!("pod/{pod}"), ".status.containerStatuses[0].containerID");
    pod_cgroup(carob, controller, pod).join(id.trim_start_matches("carob://"))
}

/// The first of these files that is there: what versions 1 and 2 call the same thing.
pub fn read_first(directory: &Path, names: &[&str]) -> String {
    let found = names.iter().find_map(|name| fs::read_to_string(directory.join(name)).ok());
    found.unwrap_or_else(|| panic!("none of {names:?} is in {}", directory.display())).trim().to_owned()
}

/// Quota and period of a CPU limit.
pub fn cpu_limit(directory: &Path) -> String {
    let quota = read_first(directory, &["cpu.max", "cpu.cfs_quota_us"]);
    if unified() { quota } else { format!("{quota} {}", read_first(directory, &["cpu.cfs_period_us"])) }
}

/// Bytes of a memory limit.
pub fn memory_limit(directory: &Path) -> String {
    read_first(directory, &["memory.max", "memory.limit_in_bytes"])
}

/// The kernel's CPU counter of a pod's first container, through a file that stays open.
pub struct Counter {
    file: File,
    group: PathBuf,
}

impl Counter {
    /// Of a container that runs.
    pub fn of(carob: &Carob, pod: &str) -> Self {
        let group = container_cgroup(carob, "cpuacct", pod);
        let path = group.join(if unified() { "cpu.stat" } else { "cpuacct.usage" });
        let file = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { file, group }
    }

    /// Whether all its processes have ended.
    pub fn group_is_empty(&self) -> bool {
        fs::read_to_string(self.group.join("cgroup.procs")).is_ok_and(|processes| processes.is_empty())
    }

    /// Nanoseconds; none when the group is gone.
    pub fn read(&self) -> Option<u64> {
        let mut buffer = [0; 512];
        let length = self.file.read_at(&mut buffer, 0).ok()?;
        let text = std::str::from_utf8(&buffer[..length]).expect("numbers");
        match text.strip_prefix("usage_usec ") {
            Some(rest) => Some(rest.lines().next()?.parse::<u64>().expect("a number") * 1_000),
            None => text.trim().parse().ok(),
        }
    }

    /// Follows the counter from now on until its group is removed: what it said last. An ended container's group stays
    /// until its last reading is in the ledger, so the value after its end is seen.
    pub fn last(self) -> std::thread::JoinHandle<u64> {
        std::thread::spawn(move || {
            let mut last = 0;
            while let Some(now) = self.read() {
                last = now;
            }
            last
        })
    }
}
