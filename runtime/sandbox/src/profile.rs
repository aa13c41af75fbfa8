//! What holds a container that asks for nothing, written out for whoever wants to check it: from the same data that makes
//! containers, so that no word of it can be out of date.

use crate::capabilities::CapabilitySet;
use crate::config::{ContainerConfig, PodConfig};
use crate::create::spec::{self, Joined};
use crate::{DEFAULT_CAPABILITIES, cgroup, seccomp};
use serde_json::{Value, json};
use std::fmt::Write;

const WIDTH: usize = 100;

/// The profile, section by section.
pub fn profile() -> String {
    let (pod, container) = match (serde_json::from_value(pod()), serde_json::from_value(container())) {
        (Ok(pod), Ok(container)) => (pod, container),
        (Err(error), _) | (_, Err(error)) => return format!("the profile cannot be told: {error}\n"),
    };
    let mut text = String::new();
    let mut section = |name: &str, lines: Vec<String>| {
        let _ = writeln!(text, "{name}");
        for line in lines {
            let _ = writeln!(text, "  {line}");
        }
    };
    section("namespaces", NAMESPACES.map(|(name, what)| format!("{name:<8}{what}")).to_vec());
    section("capabilities", wrapped(&DEFAULT_CAPABILITIES));
    let specification = match specification(&pod, &container) {
        Ok(specification) => specification,
        Err(error) => return format!("the profile cannot be told: {error}\n"),
    };
    section("seccomp", filter());
    section("mounts", mounts(&specification));
    section("masked paths", paths(&specification, "maskedPaths"));
    section("read-only paths", paths(&specification, "readonlyPaths"));
    section("devices that may be opened", devices());
    section("cgroup", CGROUP.map(str::to_owned).to_vec());
    section("with less or more", OTHERS.map(str::to_owned).to_vec());
    text
}

const NAMESPACES: [(&str, &str); 7] = [
    ("cgroup", "the container's own; its root is the container's cgroup"),
    ("ipc", "the pod's own (the host's with hostIPC)"),
    ("mnt", "the container's own; pivot_root into an overlay of the image's layers"),
    ("net", "the pod's own (the host's with hostNetwork)"),
    ("pid", "the container's own (the pod's with shareProcessNamespace, the host's with hostPID)"),
    ("user", "the pod's own: 65536 users that are nobody on the host (the host's with hostUsers: true)"),
    ("uts", "the pod's own (the host's with hostNetwork)"),
];

const CGROUP: [&str; 3] = [
    "/carob-INSTANCE/podUID/CONTAINER in every hierarchy, below the pod's own limits",
    "seen read-only at /sys/fs/cgroup",
    "cpu, memory, pids and devices are limited by it; everything in it is killed with the container",
];

const OTHERS: [&str; 5] = [
    "without hostUsers the host's users are given where the spec asks for what is the host's: its namespaces, hostPath or nfs \
     volumes, privileged, capabilities over the machine, users beyond 65535",
    "allowPrivilegeEscalation: false sets no_new_privs",
    "capabilities.add widens the system calls by what each capability is for",
    "procMount: Unmasked (with hostUsers: false alone) shows the masked and read-only paths",
    "privileged: true: all capabilities, all devices, no filter, nothing masked or read-only",
];

fn pod() -> Value {
    json!({"uid": "UID", "hostname": "pod", "runtime": null, "users": null, "host_ipc": false, "host_pid": false,
        "share_pid": false, "limits": limits(), "sysctls": {}, "annotations": {}})
}

fn limits() -> Value {
    json!({"cpu_shares": null, "cpu_quota_us": null, "cpu_period_us": null, "memory_bytes": null, "pids": null,
        "cpuset_cpus": null, "cpuset_mems": null})
}

fn container() -> Value {
    json!({"id": "0".repeat(64), "pod_uid": "UID", "argv": ["program"], "env": [], "cwd": "/",
        "user": {"uid": 0, "gid": 0, "groups": []}, "rootfs": {"lower": ["/"], "upper": "/", "read_only": false},
        "mounts": [], "limits": limits(), "capabilities": DEFAULT_CAPABILITIES, "privileged": false,
        "no_new_privs": false, "seccomp": "RuntimeDefault", "masks": "Default", "tty": false, "pid_of": null,
        "stdin": false, "log_path": "/", "oom_score_adj": 0, "rlimits": [], "devices": [], "annotations": {}})
}

fn specification(pod: &PodConfig, container: &ContainerConfig) -> Result<Value, String> {
    let joined = Joined { network: None, ipc: None, uts: None, pid: None };
    let built = spec::build(pod, container, &joined, None, &[]).map_err(|failure| format!("{failure:?}"))?;
    serde_json::to_value(built).map_err(|error| error.to_string())
}

fn strings(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn mounts(specification: &Value) -> Vec<String> {
    let shown = |mount: &Value| {
        let options: Vec<&str> = strings(&mount["options"]).collect();
        let text = |name: &str| mount[name].as_str().unwrap_or_default().to_owned();
        format!("{:<16}{:<8}{}", text("destination"), text("type"), options.join(","))
    };
    let mut lines =
        vec!["/               overlay the image's layers, and a directory of the container's own on top".to_owned()];
    lines.extend(specification["mounts"].as_array().into_iter().flatten().map(shown));
    lines.push("/dev/shm        tmpfs   nosuid,noexec,nodev,size=64m, the pod's".to_owned());
    lines.push("/sys/fs/cgroup  bind    nosuid,noexec,nodev,ro, the container's cgroup alone".to_owned());
    lines
}

fn paths(specification: &Value, name: &str) -> Vec<String> {
    strings(&specification["linux"][name]).map(str::to_owned).collect()
}

fn devices() -> Vec<String> {
    let rules = cgroup::oci_rules(&cgroup::rules(false, &[]));
    let shown = |rule: &Value| {
        let number = |name: &str| rule[name].as_u64().map_or_else(|| "*".to_owned(), |number| number.to_string());
        let kind = rule["type"].as_str().unwrap_or_default();
        format!("{kind} {}:{} {}", number("major"), number("minor"), rule["access"].as_str().unwrap_or_default())
    };
    rules.as_array().into_iter().flatten().filter(|rule| rule["allow"] == true).map(shown).collect()
}

fn filter() -> Vec<String> {
    let names = DEFAULT_CAPABILITIES.map(str::to_owned);
    let capabilities = CapabilitySet::from_names(&names).unwrap_or(CapabilitySet(0));
    let profile = seccomp::oci_default(capabilities);
    let mut lines = vec![
        "every other call answers EPERM, and one that is younger than this list ENOSYS".to_owned(),
        "clone makes no namespaces, clone3 answers ENOSYS, socket gives no AF_VSOCK, personality few".to_owned(),
    ];
    let all: Vec<&str> = strings(&profile["syscalls"][0]["names"]).collect();
    lines.push(format!("{} calls are allowed:", all.len()));
    lines.extend(wrapped(&all));
    lines
}

fn wrapped(words: &[&str]) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in words {
        let line = lines.last_mut().filter(|line| line.len() + word.len() < WIDTH);
        match line {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) => {
                line.push(' ');
                line.push_str(word);
            }
            None => lines.push((*word).to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever changes what holds containers changes this file, too, and says why. `CAROB_BLESS=1` writes it.
    #[test]
    fn the_profile_is_the_one_that_was_agreed_on() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/profile.txt");
        let now = profile();
        if std::env::var_os("CAROB_BLESS").is_some() {
            std::fs::write(path, &now).expect("the snapshot is written");
        }
        let agreed = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(now, agreed);
    }
}
