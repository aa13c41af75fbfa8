//! What is left of the machine.

use crate::settings::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// How much there is of something, and how much is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stock {
    pub available: u64,
    pub capacity: u64,
}

/// Everything that can be read now; what cannot is left out, and nobody is evicted for it.
pub(super) fn read(pods: &Path, images: &Path) -> BTreeMap<Signal, Stock> {
    let mut facts = BTreeMap::new();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    facts.extend(memory(&meminfo).map(|stock| (Signal::MemoryAvailable, stock)));
    for (path, bytes, inodes) in [
        (pods, Signal::NodefsAvailable, Signal::NodefsInodesFree),
        (images, Signal::ImagefsAvailable, Signal::ImagefsInodesFree),
    ] {
        let Ok(system) = nix::sys::statvfs::statvfs(path) else { continue };
        let unit = system.fragment_size();
        facts.insert(bytes, Stock { available: system.blocks_available() * unit, capacity: system.blocks() * unit });
        // Some file systems have as many as there is room for.
        if system.files() > 0 {
            facts.insert(inodes, Stock { available: system.files_available(), capacity: system.files() });
        }
    }
    let most = fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    facts.extend(processes(&most, &load).map(|stock| (Signal::PidAvailable, stock)));
    facts
}

fn memory(meminfo: &str) -> Option<Stock> {
    let of = |name: &str| -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
    };
    Some(Stock { available: of("MemAvailable")?, capacity: of("MemTotal")? })
}

/// From the highest process id, and the load's fourth field: running and existing tasks.
fn processes(most: &str, load: &str) -> Option<Stock> {
    let capacity: u64 = most.trim().parse().ok()?;
    let tasks: u64 = load.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()?;
    Some(Stock { available: capacity.saturating_sub(tasks), capacity })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_understood() {
        let found = memory("MemTotal:       8000 kB\nMemFree:   1 kB\nMemAvailable:   6000 kB\n");
        assert_eq!(found, Some(Stock { available: 6_144_000, capacity: 8_192_000 }));
        let found = processes("32768\n", "0.10 0.20 0.30 2/768 4711\n");
        assert_eq!(found, Some(Stock { available: 32_000, capacity: 32_768 }));
        assert!(read(Path::new("/"), Path::new("/")).len() >= 4, "some file systems count no inodes");
    }
}
