//! What Carob leaves on the machine: looked up by the instance's id, so that others' things don't count.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Everything on the machine that carries an instance's id, or belongs to its data directory.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Traces {
    /// Directories in any cgroup hierarchy.
    pub cgroups: BTreeSet<String>,
    /// Network links.
    pub links: BTreeSet<String>,
    /// Mounts that this process sees.
    pub mounts: BTreeSet<String>,
    /// nftables tables.
    pub tables: BTreeSet<String>,
    /// Processes (by command line) that name the data directory or live in one of the cgroups.
    pub processes: BTreeSet<String>,
}

impl Traces {
    /// Looks at the machine.
    pub fn of(instance: &str, data_dir: &Path) -> Self {
        Self {
            cgroups: cgroups(instance),
            links: links(instance),
            mounts: mounts(data_dir),
            tables: tables(instance),
            processes: processes(instance, data_dir),
        }
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

fn cgroups(instance: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut pending = vec![Path::new("/sys/fs/cgroup").to_path_buf()];
    while let Some(directory) = pending.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            let path = entry.path();
            if path.to_string_lossy().contains(instance) {
                found.insert(path.to_string_lossy().into_owned());
            }
            pending.push(path);
        }
    }
    found
}

fn links(instance: &str) -> BTreeSet<String> {
    let short = &instance[..6];
    let names = fs::read_dir("/sys/class/net").expect("the machine's links");
    names
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.contains(short))
        .collect()
}

fn mounts(data_dir: &Path) -> BTreeSet<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
    let data_dir = data_dir.to_string_lossy();
    table.lines().filter(|line| line.contains(&*data_dir)).map(str::to_owned).collect()
}

fn tables(instance: &str) -> BTreeSet<String> {
    let output = std::process::Command::new("nft").args(["list", "tables"]).output().expect("nft (package nftables)");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().filter(|line| line.contains(instance)).map(str::to_owned).collect()
}

fn processes(instance: &str, data_dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let own = std::process::id().to_string();
    for entry in fs::read_dir("/proc").expect("the processes").flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if pid == own || !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let cgroup = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if cgroup.contains(instance) || command.contains(&*data_dir.to_string_lossy()) {
            found.insert(format!("{pid} {command}"));
        }
    }
    found
}
