//! From inside of a container: the kernel's files and calls, devices, descriptors, other pods' processes, the runtime.

use std::fs;
use std::os::unix::fs::MetadataExt;

use carob_tests::pods::{list, pod, shell, shell_pod};
use carob_tests::{Carob, binary};
use nix::libc;
use serde_json::{Value, json};

use crate::bait::{Bait, CONTENT};

/// Files that must not open for writing. They are only opened: whoever succeeds has changed nothing.
const NOT_WRITABLE: &[&str] = &[
    "/proc/sys/kernel/core_pattern",
    "/proc/self/root/proc/sys/kernel/core_pattern",
    "/proc/1/root/proc/sys/kernel/modprobe",
    "/proc/thread-self/root/proc/sys/vm/drop_caches",
    "/proc/sys/kernel/panic",
    "/proc/sys/fs/binfmt_misc/register",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sysrq-trigger",
    "/proc/self/root/proc/sysrq-trigger",
    "/proc/irq/default_smp_affinity",
    "/proc/kcore",
    "/proc/mtrr",
    "/sys/kernel/uevent_helper",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/power/state",
    "/sys/module/kernel/parameters/panic",
    "/sys/fs/cgroup/cgroup.procs",
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    "/sys/fs/cgroup/memory/release_agent",
    "/sys/fs/cgroup/memory/notify_on_release",
    "/sys/fs/cgroup/memory/cgroup.procs",
    "/sys/fs/cgroup/pids/pids.max",
    "/sys/fs/cgroup/devices/devices.allow",
    "/sys/fs/cgroup/cpu/cpu.cfs_quota_us",
];

/// Files whose content must not be had.
const NOT_READABLE: &[&str] = &[
    "/proc/kcore",
    "/proc/self/root/proc/kcore",
    "/proc/keys",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/latency_stats",
    "/proc/interrupts",
    "/proc/kmsg",
    "/dev/mem",
    "/dev/kmsg",
];

/// Directories that must be empty or missing.
const EMPTY: &[&str] = &["/sys/firmware", "/proc/acpi", "/proc/scsi", "/proc/asound", "/sys/devices/virtual/powercap"];

const NEW_USER: libc::c_int = libc::CLONE_NEWUSER;

/// Calls that the seccomp profile or the missing capabilities refuse, with arguments that would be good ones.
const CALLS: &[(&str, libc::c_long, &[i64])] = &[
    ("unshare-user", libc::SYS_unshare, &[NEW_USER as i64]),
    ("unshare-mount", libc::SYS_unshare, &[libc::CLONE_NEWNS as i64]),
    ("unshare-cgroup", libc::SYS_unshare, &[libc::CLONE_NEWCGROUP as i64]),
    ("clone-user", libc::SYS_clone, &[(NEW_USER | libc::SIGCHLD) as i64, 0, 0, 0, 0]),
    ("clone-mount", libc::SYS_clone, &[(libc::CLONE_NEWNS | libc::SIGCHLD) as i64, 0, 0, 0, 0]),
    ("clone-pid", libc::SYS_clone, &[(libc::CLONE_NEWPID | libc::SIGCHLD) as i64, 0, 0, 0, 0]),
    ("keyctl", libc::SYS_keyctl, &[0, -3, 0]),
    ("add_key", libc::SYS_add_key, &[0, 0, 0, 0, -3]),
    ("bpf", libc::SYS_bpf, &[0, 0, 0]),
    ("perf_event_open", libc::SYS_perf_event_open, &[0, 0, -1, -1, 0]),
    ("userfaultfd", libc::SYS_userfaultfd, &[1]),
    ("io_uring_setup", libc::SYS_io_uring_setup, &[1, 0]),
    ("fsopen", libc::SYS_fsopen, &[0, 0]),
    ("open_tree", libc::SYS_open_tree, &[-100, 0, 1]),
    ("umount-proc", libc::SYS_umount2, &[0, 2]),
    ("setns", libc::SYS_setns, &[0, 0]),
    ("open_by_handle_at", libc::SYS_open_by_handle_at, &[0, 0, 0]),
    ("init_module", libc::SYS_init_module, &[0, 0, 0]),
    ("kexec_load", libc::SYS_kexec_load, &[0, 0, 0, 0]),
    ("acct", libc::SYS_acct, &[0]),
    ("swapoff", libc::SYS_swapoff, &[0]),
    ("syslog", libc::SYS_syslog, &[3, 0, 0]),
    ("vhangup", libc::SYS_vhangup, &[]),
    ("vsock", libc::SYS_socket, &[40, 1, 0]),
    // The kernel looks at the lower half alone.
    ("vsock, with more in the register", libc::SYS_socket, &[0x1_0000_0028, 1, 0]),
    ("kcmp", libc::SYS_kcmp, &[1, 1, 0, 0, 0]),
];

/// Tries everything and prints a line for each: `OPEN` behind what succeeded, the reason behind what didn't.
const ATTACKER: &str = include_str!("attacker.py");

fn plan(pids: &[u32]) -> String {
    json!({"write": NOT_WRITABLE, "read": NOT_READABLE, "empty": EMPTY, "calls": CALLS, "pids": pids}).to_string()
}

pub fn python(name: &str, script: &str, env: &[(&str, &str)]) -> Value {
    let env: Vec<Value> = env.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    json!({
        "name": name, "image": "python", "imagePullPolicy": "IfNotPresent", "env": env,
        "command": ["python3", "-c", script],
    })
}

fn succeeded(printed: &str) -> Vec<&str> {
    printed.lines().filter(|line| line.ends_with("OPEN")).collect()
}

#[test]
fn a_container_and_what_is_executed_in_it_reach_nothing_of_the_machines() {
    let carob = Carob::start(&["busybox", "python"]);
    let plan = plan(&[carob.pid(), std::process::id()]);
    let stay = format!("{ATTACKER}\nimport time\nwhile True: time.sleep(60)\n");
    let hostile = |name: &str| pod(name, &[python("main", &stay, &[("PLAN", &plan)])]);
    let mut open = hostile("open");
    open["spec"]["containers"][0]["securityContext"] = json!({"seccompProfile": {"type": "Unconfined"}});
    let mut user = hostile("user");
    user["spec"]["containers"][0]["securityContext"] = json!({"runAsUser": 1000});
    let victim = shell_pod("victim", "sleep 3600");
    carob.apply(&list(&[victim, hostile("root"), user, open]));

    for name in ["root", "user"] {
        let printed = carob.until(&["logs", name], |seen| seen.contains("done\n") || seen.contains("Traceback"));
        assert!(printed.contains("call keyctl ") && printed.contains("done\n"), "{name}: {printed}");
        assert_eq!(succeeded(&printed), Vec::<&str>::new(), "{name}");
        // The first process is there as well by now.
        let exec = carob.kubectl(&["exec", name, "--", "python3", "-c", ATTACKER]);
        assert!(exec.contains("done\n"), "{exec}");
        assert_eq!(succeeded(&exec), Vec::<&str>::new(), "executed in {name}");
    }
    let printed = carob.until(&["logs", "open"], |seen| seen.contains("done\n"));
    let calls = succeeded(&printed);
    assert!(calls.iter().any(|line| line.starts_with("call ")), "without the filter some call succeeds: {printed}");
    // What it cloned there may still be seen.
    let other = calls.iter().find(|line| !line.starts_with("call ") && !line.starts_with("process "));
    assert_eq!(other, None, "and nothing else does");

    // Signals to everything in sight end nothing but the container's own processes.
    carob.run(&["exec", "root", "--", "sh", "-c", "kill -9 -1; kill -STOP -1"]);
    let own = carob.kubectl(&["exec", "victim", "--", "ps"]);
    assert!(own.contains("sleep 3600") && !own.contains("python"), "{own}");
    assert_eq!(carob.jsonpath("pod/victim", ".status.containerStatuses[0].restartCount"), "0");
    assert!(!carob.log().contains("panicked"));
}

/// CVE-2024-21626: a working directory behind one of the runtime's own descriptors.
#[test]
fn no_working_directory_leads_out() {
    let carob = Carob::start(&["busybox"]);
    let bait = Bait::new();
    let climb = format!("cat {}{}/bait; readlink /proc/self/cwd; echo end", "../".repeat(24), &bait.path()[1..]);
    let at = |name: String, directory: String| {
        let mut container = shell(&name, &climb);
        container["workingDir"] = json!(directory);
        container
    };
    let numbers: Vec<Value> = (3..24).map(|n| at(format!("fd{n}"), format!("/proc/self/fd/{n}"))).collect();
    let others: Vec<Value> =
        ["/proc/1/cwd", "/proc/1/root", "/../../../..", "/proc/self/fd/5/../../..", "/proc/thread-self/fd/4"]
            .iter()
            .enumerate()
            .map(|(n, directory)| at(format!("path{n}"), (*directory).to_owned()))
            .collect();
    carob.apply(&list(&[pod("numbers", &numbers), pod("others", &others)]));
    for name in ["numbers", "others"] {
        let path = "jsonpath={.status.containerStatuses[*].state.terminated.reason}";
        let count = if name == "numbers" { numbers.len() } else { others.len() };
        carob.until(&["get", "pod", name, "-o", path], |seen| seen.split_whitespace().count() == count);
        // Those that never started have no log: each is asked for alone.
        let script = "jsonpath={.status.containerStatuses[?(@.state.terminated.reason!=\"StartError\")].name}";
        for container in carob.kubectl(&["get", "pod", name, "-o", script]).split_whitespace() {
            let printed = carob.kubectl(&["logs", name, "-c", container]);
            assert!(!printed.contains(CONTENT), "{container} climbed out of {name}: {printed}");
        }
    }
    bait.assert_untouched("a working directory");
}

/// CVE-2019-5736: a program in the container that is the runtime's own executable, caught in the act and written to.
#[test]
fn the_runtimes_executable_cannot_be_written_through_proc() {
    const CATCHER: &str = include_str!("catcher.py");
    let carob = Carob::start(&["python"]);
    let before = fs::metadata(binary()).expect("the binary");
    carob.start_pod(&pod("catcher", &[python("main", CATCHER, &[])]).to_string(), "catcher");
    carob.until(&["logs", "catcher"], |seen| seen.contains("ready"));
    for command in ["/lure", "/proc/self/exe", "/lure"] {
        // Whatever it comes to: the runtime's program in the container is a program like any other.
        carob.run(&["exec", "catcher", "--", command]);
        carob.run(&["exec", "catcher", "--", "sh", "-c", "exec /lure"]);
    }
    let printed = carob.kubectl(&["logs", "catcher"]);
    assert!(!printed.contains("OPEN"), "the runtime's executable could be written: {printed}");
    let after = fs::metadata(binary()).expect("the binary");
    assert_eq!((before.len(), before.mtime(), before.ino()), (after.len(), after.mtime(), after.ino()));
    carob.kubectl(&["exec", "catcher", "--", "true"]);
}

/// CVE-2016-9962: who shares a process namespace with a container that is being made, or with a command that enters it, looks
/// into the runtime's process while it is still half the machine's.
#[test]
fn what_becomes_a_program_beside_a_container_cannot_be_looked_into() {
    const WATCHER: &str = include_str!("watcher.py");
    let carob = Carob::start(&["busybox", "python"]);
    let mut containers = vec![python("watcher", WATCHER, &[])];
    containers.extend((0..20).map(|number| shell(&format!("c{number}"), "true")));
    containers.push(shell("stays", "sleep 3600"));
    let mut manifest = pod("shared", &containers);
    manifest["spec"]["shareProcessNamespace"] = json!(true);
    carob.apply(&manifest.to_string());
    carob.until(&["logs", "shared", "-c", "watcher"], |seen| seen.contains("ready"));
    for _ in 0..25 {
        carob.run(&["exec", "shared", "-c", "stays", "--", "true"]);
    }
    carob.run(&["debug", "shared", "--image=busybox", "--image-pull-policy=IfNotPresent", "--", "true"]);
    let printed = carob.until(&["logs", "shared", "-c", "watcher"], |seen| seen.contains("looked 100\n"));
    assert_eq!(succeeded(&printed), Vec::<&str>::new());
}
