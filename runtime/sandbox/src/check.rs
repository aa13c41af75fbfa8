//! What this machine offers for sandboxes, and what it lacks.

use crate::ALL_CAPABILITIES;
use crate::capabilities::CapabilitySet;
use crate::cgroup::Layout;
use crate::kernel::mount::FsContext;
use std::path::Path;

/// One thing that sandboxes need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckItem {
    /// As in `cgroup controllers`.
    pub name: &'static str,
    /// Whether it is there.
    pub state: CheckState,
    /// What was found.
    pub detail: String,
    /// What its lack costs; empty when it is there.
    pub cost: String,
}

/// How well a need is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckState {
    /// It is there.
    Ok,
    /// Pods run, with something less.
    Degraded,
    /// Pods cannot run.
    Missing,
}

fn item(name: &'static str, state: CheckState, detail: impl Into<String>, cost: &str) -> CheckItem {
    let cost = if state == CheckState::Ok { String::new() } else { cost.to_owned() };
    CheckItem { name, state, detail: detail.into(), cost }
}

fn when(good: bool, otherwise: CheckState) -> CheckState {
    if good { CheckState::Ok } else { otherwise }
}

/// Looks at the machine; changes nothing.
pub fn check() -> Vec<CheckItem> {
    let mut items = vec![kernel()];
    items.extend(cgroups());
    items.extend([namespaces(), overlay(), seccomp()]);
    items.extend(capabilities());
    items
}

fn kernel() -> CheckItem {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    // mount_setattr is the youngest call that cannot be done without.
    item("kernel", when(version >= (5, 12), CheckState::Missing), release, "Linux 5.12 or later is needed")
}

/// Controller, what happens without it, whether pods run at all.
const WANTED: [(&str, &str, CheckState); 5] = [
    ("cpuacct", "CPU time is not measured", CheckState::Missing),
    ("memory", "memory is neither limited nor measured", CheckState::Missing),
    ("cpu", "CPU is not limited or shared out", CheckState::Degraded),
    ("pids", "fork bombs are not contained", CheckState::Degraded),
    ("cpuset", "containers cannot be bound to CPUs", CheckState::Degraded),
];

fn cgroups() -> Vec<CheckItem> {
    let layout = match Layout::detect() {
        Ok(layout) => layout,
        Err(error) => {
            return vec![item(
                "cgroup",
                CheckState::Missing,
                error.to_string(),
                "no limits, no metering: pods cannot run",
            )];
        }
    };
    let mut items = vec![item("cgroup", CheckState::Ok, layout.kind(), "")];
    for (controller, cost, state) in WANTED {
        let there = layout.with(controller).is_some();
        let detail = if there { format!("{controller} is mounted") } else { format!("{controller} is not there") };
        items.push(item("cgroup controller", when(there, state), detail, cost));
    }
    let writable = layout
        .hierarchies
        .iter()
        .all(|hierarchy| nix::unistd::access(&hierarchy.root, nix::unistd::AccessFlags::W_OK).is_ok());
    items.push(item(
        "cgroup write access",
        when(writable, CheckState::Missing),
        if writable { "all hierarchies can be written" } else { "a hierarchy is read-only" },
        "pods' cgroups cannot be made",
    ));
    items
}

fn namespaces() -> CheckItem {
    let missing: Vec<&str> = ["mnt", "pid", "ipc", "uts", "net", "cgroup"]
        .into_iter()
        .filter(|name| !Path::new("/proc/self/ns").join(name).exists())
        .collect();
    let detail = if missing.is_empty() { "all six".to_owned() } else { format!("missing: {}", missing.join(", ")) };
    item("namespaces", when(missing.is_empty(), CheckState::Missing), detail, "containers are not isolated")
}

fn overlay() -> CheckItem {
    match FsContext::open("overlay") {
        Ok(_) => item("overlay", CheckState::Ok, "available", ""),
        Err(error) => {
            item("overlay", CheckState::Missing, error.to_string(), "images cannot be mounted (modprobe overlay)")
        }
    }
}

fn seccomp() -> CheckItem {
    let actions = std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    let there = actions.contains("errno");
    let detail = if there { "filters with errno" } else { "not in this kernel" };
    item("seccomp", when(there, CheckState::Missing), detail, "system calls are not filtered")
}

fn capabilities() -> Vec<CheckItem> {
    const NEEDED: [(&str, CheckState, &str); 5] = [
        ("CAP_SYS_ADMIN", CheckState::Missing, "namespaces and mounts cannot be made: run as root"),
        ("CAP_SETPCAP", CheckState::Missing, "containers' capabilities cannot be dropped: run as root"),
        ("CAP_MKNOD", CheckState::Missing, "containers have no devices: run as root"),
        ("CAP_NET_ADMIN", CheckState::Missing, "pods have no network: run as root"),
        (
            "CAP_SYS_RESOURCE",
            CheckState::Degraded,
            "oom_score_adj cannot be lowered: guaranteed pods are as likely to be killed as others",
        ),
    ];
    let have = caps::read(None, caps::CapSet::Effective).unwrap_or_default();
    let bounding = CapabilitySet::bounding();
    NEEDED
        .into_iter()
        .map(|(name, state, cost)| {
            let there = have.iter().any(|capability| capability.to_string() == name) && bounding.has(name);
            debug_assert!(ALL_CAPABILITIES.contains(&name));
            let detail = format!("{name} {}", if there { "is there" } else { "is missing" });
            item("capability", when(there, state), detail, cost)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_costs_nothing_and_what_is_not_says_what_it_costs() {
        for item in check() {
            assert_eq!(item.state == CheckState::Ok, item.cost.is_empty(), "{item:?}");
            assert!(!item.detail.is_empty(), "{item:?}");
        }
    }
}
