//! Counters out of the kernel's files.

use super::Cgroup;
use crate::state::Usage;
use std::fs;
use std::path::{Path, PathBuf};

pub(super) fn usage(cgroup: &Cgroup<'_>) -> Usage {
    let memory = cgroup.layout.with("memory");
    let memory_v2 = memory.is_some_and(|hierarchy| hierarchy.v2);
    let (now, peak) = if memory_v2 {
        ("memory.current", "memory.peak")
    } else {
        ("memory.usage_in_bytes", "memory.max_usage_in_bytes")
    };
    let memory = memory.map(|hierarchy| cgroup.directory(hierarchy));
    let read = |file: &str| memory.as_ref().map_or(0, |directory| number(&directory.join(file)));
    let memory_bytes = read(now);
    Usage {
        cpu_ns: cpu_ns(cgroup),
        memory_bytes,
        // memory.peak is there from Linux 5.19 on.
        memory_peak_bytes: read(peak).max(memory_bytes),
        pids: cgroup.of("pids").map_or(0, |directory| number(&directory.join("pids.current"))),
    }
}

fn cpu_ns(cgroup: &Cgroup<'_>) -> u64 {
    match cgroup.layout.with("cpuacct").or(cgroup.layout.unified()) {
        Some(hierarchy) if hierarchy.v2 => {
            keyed(&cgroup.directory(hierarchy).join("cpu.stat"), "usage_usec").unwrap_or(0).saturating_mul(1000)
        }
        Some(hierarchy) => number(&cgroup.directory(hierarchy).join("cpuacct.usage")),
        None => 0,
    }
}

/// How often the kernel has killed in it for want of memory (v1 since Linux 4.13).
pub(super) fn oom_kills(cgroup: &Cgroup<'_>) -> u64 {
    let Some(hierarchy) = cgroup.layout.with("memory") else { return 0 };
    let file = if hierarchy.v2 { "memory.events" } else { "memory.oom_control" };
    let own = keyed(&cgroup.directory(hierarchy).join(file), "oom_kill").unwrap_or(0);
    if hierarchy.v2 {
        return own;
    }
    // On v1 the counter isn't summed up the tree.
    let mut below: Vec<PathBuf> = Vec::new();
    if let Ok(entries) = fs::read_dir(cgroup.directory(hierarchy)) {
        below.extend(
            entries
                .flatten()
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
    }
    own + below.iter().filter_map(|directory| keyed(&directory.join(file), "oom_kill")).sum::<u64>()
}

fn number(path: &Path) -> u64 {
    fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn keyed(path: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}
