//! Facts of the machine that say what the numbers can be compared with.

use std::fs;
use std::path::Path;

/// Name and value of each fact.
pub fn facts() -> Vec<(&'static str, String)> {
    let processor = field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let memory = field("/proc/meminfo", "MemTotal")
        .and_then(|text| text.split(' ').next()?.parse::<u64>().ok())
        .map_or_else(String::new, |kibibytes| format!("{} GiB", (kibibytes + (1 << 19)) >> 20));
    let system = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let system = system.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or_default();
    vec![
        ("processor", format!("{cores} × {processor}")),
        ("memory", memory),
        ("kernel", read("/proc/sys/kernel/osrelease")),
        ("system", system.trim_matches('"').to_owned()),
        ("cgroups", cgroups()),
        ("file system of the state", file_system(&std::env::temp_dir())),
        ("load average at the start", read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned()),
    ]
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn cgroups() -> String {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let of = |kind: &str| mounts.lines().filter(|line| line.split(' ').nth(2) == Some(kind)).count();
    let favoured = if mounts.lines().any(|line| line.contains("favordynmods")) { ", favordynmods" } else { "" };
    match (of("cgroup"), of("cgroup2")) {
        (0, 0) => "none".to_owned(),
        (0, _) => format!("version 2{favoured}"),
        (hierarchies, 0) => format!("version 1, {hierarchies} hierarchies{favoured}"),
        (hierarchies, _) => format!("hybrid: version 1 with {hierarchies} hierarchies beside version 2{favoured}"),
    }
}

/// Kind of the file system that a path is on: the mount with the longest path above it.
fn file_system(path: &Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let above = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (target, kind) = (fields.next()?, fields.next()?);
        path.starts_with(target).then_some((target.len(), kind))
    });
    above.max_by_key(|(length, _)| *length).map(|(_, kind)| kind.to_owned()).unwrap_or_default()
}
