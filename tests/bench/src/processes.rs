//! What processes take of the machine, from `/proc`.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

/// One process.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its short name.
    pub name: String,
    /// Resident bytes.
    pub rss: u64,
    /// Resident bytes; those that several processes share are divided among them.
    pub pss: u64,
    /// Used until now.
    pub cpu: Duration,
}

/// All processes with this path in their command lines.
pub fn with_path(path: &Path) -> Result<Vec<Process>> {
    let wanted = path.as_os_str().as_bytes();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process may end at any moment.
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        if line.windows(wanted.len()).any(|window| window == wanted)
            && let Ok(process) = of(pid)
        {
            found.push(process);
        }
    }
    found.sort_by_key(|process| process.pid);
    Ok(found)
}

/// Sum over processes.
pub fn total(processes: &[Process], of: impl Fn(&Process) -> u64) -> u64 {
    processes.iter().map(of).sum()
}

/// The most bytes that a process ever had resident.
pub fn most_resident(pid: i32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.split_whitespace().next().context("no number")?.parse::<u64>()? * 1024)
}

/// The process with this id.
pub fn of(pid: i32) -> Result<Process> {
    let directory = Path::new("/proc").join(pid.to_string());
    let rollup = fs::read_to_string(directory.join("smaps_rollup"))?;
    let kibibytes = |field: &str| -> Result<u64> {
        let line = rollup.lines().find(|line| line.starts_with(field)).with_context(|| format!("no {field}"))?;
        Ok(line.split_whitespace().nth(1).context("no number")?.parse::<u64>()? * 1024)
    };
    let stat = fs::read_to_string(directory.join("stat"))?;
    let (name, fields) = stat.split_once(" (").and_then(|(_, rest)| rest.rsplit_once(") ")).context("a broken stat")?;
    // proc_pid_stat(5): utime and stime are the fields 14 and 15; the first after the name is the field 3.
    let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no clock ticks")?;
    let cpu = Duration::from_nanos(ticks * (1_000_000_000 / per_second.unsigned_abs()));
    Ok(Process { pid, name: name.to_owned(), rss: kibibytes("Rss:")?, pss: kibibytes("Pss:")?, cpu })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found_by_its_path() {
        let path = fs::read("/proc/self/cmdline").unwrap();
        let path = String::from_utf8(path.split(|byte| *byte == 0).next().unwrap().to_vec()).unwrap();
        let found = with_path(Path::new(&path)).unwrap();
        let own = found.iter().find(|process| process.pid.unsigned_abs() == std::process::id()).unwrap();
        assert!(own.rss >= own.pss && own.pss > 100 << 10, "{own:?}");
    }
}
