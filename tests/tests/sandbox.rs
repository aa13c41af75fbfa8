//! What a container is kept from, seen from inside and from the machine.

use std::collections::BTreeMap;
use std::fs;

use carob_tests::Carob;
use carob_tests::cgroups::{container_cgroup, cpu_limit, memory_limit, pod_cgroup, read_first, unified};
use carob_tests::pods::{idle, list, pod, shell, shell_pod, tools};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

/// `/proc/self/ns` of containers, by namespace.
fn namespaces(carob: &Carob, pod: &str, container: &str) -> BTreeMap<String, String> {
    let script = "for n in cgroup ipc mnt net pid uts; do echo $n $(readlink /proc/self/ns/$n); done";
    let listed = carob.kubectl(&["exec", pod, "-c", container, "--", "sh", "-c", script]);
    listed.lines().filter_map(|line| line.split_once(' ')).map(|(name, id)| (name.to_owned(), id.to_owned())).collect()
}

#[test]
fn namespaces_are_per_pod_and_shared_within_it() {
    let carob = Carob::start(&["busybox"]);
    let two = |name: &str| pod(name, &[shell("a", "sleep 3600"), shell("b", "sleep 3600")]);
    let mut sharing = two("sharing");
    sharing["spec"]["shareProcessNamespace"] = json!(true);
    let mut host = pod("host", &[shell("a", "sleep 3600")]);
    host["spec"]["hostNetwork"] = json!(true);
    host["spec"]["hostPID"] = json!(true);
    host["spec"]["hostIPC"] = json!(true);
    carob.apply(&list(&[two("one"), sharing, host]));
    for name in ["one", "sharing", "host"] {
        carob.wait(&format!("pod/{name}"), "condition=Ready");
    }
    let machine = |name: &str| {
        fs::read_link(format!("/proc/self/ns/{name}")).expect("a namespace").to_string_lossy().into_owned()
    };
    let (a, b, other) =
        (namespaces(&carob, "one", "a"), namespaces(&carob, "one", "b"), namespaces(&carob, "sharing", "a"));
    for name in ["ipc", "net", "uts"] {
        assert_eq!(a[name], b[name], "{name} is one for a pod's containers");
    }
    for name in ["mnt", "pid"] {
        assert_ne!(a[name], b[name], "{name} is each container's own");
    }
    for name in ["cgroup", "ipc", "mnt", "net", "pid", "uts"] {
        assert_ne!(a[name], other[name], "{name} is not shared between pods");
        assert_ne!(a[name], machine(name), "{name} is not the machine's");
    }
    let sharing = namespaces(&carob, "sharing", "b");
    assert_eq!(other["pid"], sharing["pid"], "shareProcessNamespace");
    let processes = carob.kubectl(&["exec", "sharing", "-c", "a", "--", "ps"]);
    assert_eq!(processes.matches("sleep 3600").count(), 2, "each sees the other's: {processes}");
    let processes = carob.kubectl(&["exec", "one", "-c", "a", "--", "ps"]);
    assert!(processes.lines().count() <= 3 && processes.contains("    1 root"), "only its own: {processes}");
    let host = namespaces(&carob, "host", "a");
    for name in ["net", "pid", "ipc"] {
        assert_eq!(host[name], machine(name), "{name} is the machine's where the spec says so");
    }
    assert_ne!(host["mnt"], machine("mnt"));
}

#[test]
fn limits_hold_for_containers_and_for_their_pod() {
    let carob = Carob::start(&["busybox", "tools"]);
    let mut limited = pod("limited", &[shell("main", "sleep 3600"), shell("side", "sleep 3600")]);
    limited["spec"]["containers"][0]["resources"] =
        json!({"requests": {"cpu": "250m", "memory": "16Mi"}, "limits": {"cpu": "500m", "memory": "32Mi"}});
    limited["spec"]["containers"][1]["resources"] = json!({"limits": {"cpu": "100m", "memory": "16Mi"}});
    let mut burning = pod("burning", &[tools("main", &["burn-cpu", "--seconds", "2s", "--cores", "2"])]);
    burning["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "200m", "memory": "32Mi"}});
    let mut forking = shell_pod("forking", "sleep 3600");
    forking["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
    carob.apply(&list(&[limited, burning, forking]));
    carob.wait("pod/limited", "condition=Ready");

    assert_eq!(cpu_limit(&container_cgroup(&carob, "cpu", "limited")), "50000 100000");
    assert_eq!(cpu_limit(&pod_cgroup(&carob, "cpu", "limited")), "60000 100000", "the pod's is the sum");
    assert_eq!(memory_limit(&container_cgroup(&carob, "memory", "limited")), (32 << 20).to_string());
    assert_eq!(memory_limit(&pod_cgroup(&carob, "memory", "limited")), (48 << 20).to_string());
    let shares = read_first(&container_cgroup(&carob, "cpu", "limited"), &["cpu.weight", "cpu.shares"]);
    assert_eq!(shares, if unified() { "10" } else { "256" }, "a quarter of 1024 shares");
    let inside = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";
    let seen = carob.kubectl(&["exec", "limited", "-c", "main", "--", "sh", "-c", inside]);
    assert_eq!(seen.trim(), (32 << 20).to_string(), "the container sees its own limit");
    let own = carob.kubectl(&["exec", "limited", "-c", "main", "--", "cat", "/proc/self/cgroup"]);
    assert!(own.lines().all(|line| line.ends_with(":/")), "its cgroup looks like the root: {own}");

    // A processor's fifth for two seconds is 0.4 s; without the limit it would be up to 4.
    carob.wait_phase("burning", "Succeeded");
    let used: serde_json::Value = serde_json::from_str(&carob.kubectl(&["logs", "burning"])).expect("JSON");
    let micros = used["user_us"].as_f64().unwrap_or_default() + used["system_us"].as_f64().unwrap_or_default();
    assert!((50_000.0..1_200_000.0).contains(&micros), "{used}");

    let pids = read_first(&container_cgroup(&carob, "pids", "forking"), &["pids.max"]);
    let pod_pids = read_first(&pod_cgroup(&carob, "pids", "forking"), &["pids.max"]);
    assert!(pids != "max" || pod_pids != "max", "processes are limited");
    carob.wait("pod/forking", "condition=Ready");
    // Each child waits for somebody to open the pipe: many processes, little memory.
    let bomb = "mkfifo /tmp/never; i=0; while [ $i -lt 10000 ]; do read x < /tmp/never & i=$((i+1)); done";
    let stopped = carob.run(&["exec", "forking", "--", "sh", "-c", bomb]);
    let said = carob_tests::text(&stopped);
    assert!(said.contains("can't fork"), "a fork bomb meets its limit: {said}");
    carob.kubectl(&["delete", "pod", "forking", "--now"]);
}

#[test]
fn what_takes_too_much_memory_is_oom_killed() {
    let carob = Carob::start(&["tools", "busybox"]);
    let mut alone = pod("alone", &[tools("main", &["burn-memory", "--bytes", "64Mi"])]);
    alone["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "24Mi"}});
    let mut beside = pod("beside", &[tools("main", &["burn-memory", "--bytes", "64Mi"]), shell("side", "sleep 3600")]);
    beside["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "24Mi"}});
    beside["spec"]["containers"][1]["resources"] = json!({"limits": {"memory": "24Mi"}});
    let mut within = pod("within", &[tools("main", &["burn-memory", "--bytes", "16Mi", "--hold", "10ms"])]);
    within["spec"]["containers"][0]["resources"] = json!({"limits": {"memory": "32Mi"}});
    carob.apply(&list(&[alone, beside, within]));
    carob.wait_phase("alone", "Failed");
    let state = carob.get(&["pod", "alone"])["status"]["containerStatuses"][0]["state"]["terminated"].clone();
    assert_eq!((&state["reason"], &state["exitCode"]), (&json!("OOMKilled"), &json!(137)), "{state}");
    assert!(carob.kubectl(&["get", "pod", "alone"]).contains("OOMKilled"));
    carob.until(
        &[
            "get",
            "pod",
            "beside",
            "-o",
            "jsonpath={.status.containerStatuses[?(@.name==\"main\")].state.terminated.reason}",
        ],
        |seen| seen == "OOMKilled",
    );
    let side = carob.jsonpath("pod/beside", ".status.containerStatuses[?(@.name==\"side\")].state.running.startedAt");
    assert!(!side.is_empty(), "its neighbour goes on");
    carob.wait_phase("within", "Succeeded");
}

/// What containerd gives: CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP
/// NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE.
const DEFAULT: u64 = 0xa804_25fb;

#[test]
fn capabilities_seccomp_and_no_new_privs_are_as_asked_for_in_containers_and_in_exec() {
    let carob = Carob::start(&["tools", "busybox"]);
    let secured = |name: &str, context: serde_json::Value| {
        let mut manifest = pod(name, &[shell("main", "grep -E 'Cap|Seccomp:|NoNew' /proc/self/status; sleep 3600")]);
        manifest["spec"]["containers"][0]["securityContext"] = context;
        manifest
    };
    carob.apply(&list(&[
        secured("default", json!({})),
        secured("dropped", json!({"capabilities": {"drop": ["ALL"]}})),
        secured("changed", json!({"capabilities": {"add": ["NET_ADMIN"], "drop": ["CHOWN", "MKNOD"]}})),
        secured("quiet", json!({"allowPrivilegeEscalation": false, "runAsUser": 1000})),
        secured("open", json!({"seccompProfile": {"type": "Unconfined"}})),
        secured("privileged", json!({"privileged": true})),
    ]));
    let expected: [(&str, u64, u64, &str, &str); 5] = [
        ("default", DEFAULT, DEFAULT, "2", "0"),
        ("dropped", 0, 0, "2", "0"),
        ("changed", DEFAULT & !1 & !(1 << 27) | 1 << 12, DEFAULT & !1 & !(1 << 27) | 1 << 12, "2", "0"),
        ("quiet", 0, DEFAULT, "2", "1"),
        ("open", DEFAULT, DEFAULT, "0", "0"),
    ];
    for (name, effective, bounding, seccomp, no_new_privs) in expected {
        carob.wait(&format!("pod/{name}"), "condition=Ready");
        let own = carob.until(&["logs", name], |seen| seen.contains("Seccomp:"));
        let exec = carob.kubectl(&["exec", name, "--", "grep", "-E", "Cap|Seccomp:|NoNew", "/proc/self/status"]);
        for (whose, status) in [("the container", own), ("an exec'd process", exec)] {
            let field = |name: &str| {
                status
                    .lines()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"))
                    .unwrap_or_default()
                    .to_owned()
            };
            assert_eq!(field("CapEff"), format!("{effective:016x}"), "{whose} of {name}: effective");
            assert_eq!(field("CapBnd"), format!("{bounding:016x}"), "{whose} of {name}: bounding");
            assert_eq!(field("CapInh"), format!("{:016x}", 0), "{whose} of {name}: inheritable");
            assert_eq!(field("Seccomp"), seccomp, "{whose} of {name}: seccomp mode");
            assert_eq!(field("NoNewPrivs"), no_new_privs, "{whose} of {name}");
        }
    }
    carob.wait("pod/privileged", "condition=Ready");
    let status = carob.until(&["logs", "privileged"], |seen| seen.contains("Seccomp:"));
    assert!(status.contains("Seccomp:\t0"), "{status}");
    let all = fs::read_to_string("/proc/self/status").expect("a status");
    let all = all.lines().find(|line| line.starts_with("CapBnd")).expect("a set").to_owned();
    assert!(status.contains(&all.replace("CapBnd", "CapEff")), "{status}");
    // What the filter and the missing capabilities are for.
    for (attempt, refusal) in [
        ("mount -t tmpfs none /tmp", "denied"),
        ("unshare -n true", "Operation not permitted"),
        ("unshare -U true", "Operation not permitted"),
        ("ip link add x type dummy", "Operation not permitted"),
        ("hostname x", "Operation not permitted"),
        ("dmesg", "Operation not permitted"),
        ("chroot / mount -t proc proc /tmp", "denied"),
    ] {
        let output = carob.run(&["exec", "default", "--", "sh", "-c", attempt]);
        let said = carob_tests::text(&output);
        assert!(!output.status.success(), "{attempt} succeeded: {said}");
        assert!(said.contains(refusal) || said.to_lowercase().contains("permission denied"), "{attempt}: {said}");
    }
    carob.kubectl(&["exec", "changed", "--", "ip", "link", "set", "lo", "mtu", "1400"]);
    assert!(!carob.run(&["exec", "changed", "--", "chown", "1", "/tmp"]).status.success(), "CHOWN was dropped");
    carob.kubectl(&["exec", "default", "--", "chown", "1", "/tmp"]);
}

#[test]
fn paths_of_the_kernel_are_masked_and_the_root_can_be_read_only() {
    let carob = Carob::start(&["busybox"]);
    let mut fixed = shell_pod("fixed", "sleep 3600");
    fixed["spec"]["containers"][0]["securityContext"] = json!({"readOnlyRootFilesystem": true});
    fixed["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "scratch", "mountPath": "/tmp"}]);
    fixed["spec"]["volumes"] = json!([{"name": "scratch", "emptyDir": {}}]);
    carob.apply(&list(&[shell_pod("usual", "sleep 3600"), fixed]));
    carob.wait("pod/usual", "condition=Ready");
    carob.wait("pod/fixed", "condition=Ready");
    let inside = |pod: &str, script: &str| {
        let output = carob.run(&["exec", pod, "--", "sh", "-c", script]);
        (output.status.success(), carob_tests::text(&output))
    };
    let masked = "for p in /proc/kcore /proc/keys /proc/timer_list /proc/sched_debug /proc/latency_stats /proc/interrupts; do \
                  [ -e $p ] && head -c 1 $p; done; ls -A /proc/acpi /proc/scsi /sys/firmware 2>/dev/null | grep -v ':$' | grep .; true";
    assert_eq!(inside("usual", masked), (true, String::new()), "what is masked is empty");
    for path in [
        "/proc/sys/kernel/core_pattern",
        "/proc/sysrq-trigger",
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "/proc/sys/kernel/hostname",
    ] {
        let (done, said) = inside("usual", &format!("[ -e {path} ] || {{ echo Read-only; exit 1; }}; echo x > {path}"));
        assert!(!done && (said.contains("Read-only") || said.contains("denied")), "{path}: {said}");
    }
    let (_, devices) = inside("usual", "ls /dev | tr '\\n' ' '");
    assert_eq!(
        devices,
        "fd full mqueue null ptmx pts random shm stderr stdin stdout termination-log tty urandom zero "
    );
    let (made, said) = inside("usual", "mknod /tmp/disk b 8 0 && head -c 1 /tmp/disk");
    assert!(!made, "a disk of the machine can't be read: {said}");
    assert_eq!(inside("usual", "echo a > /file && cat /file"), (true, "a\n".into()));
    let (done, said) = inside("fixed", "echo a > /file");
    assert!(!done && said.contains("Read-only file system"), "{said}");
    assert_eq!(inside("fixed", "echo a > /tmp/file && cat /tmp/file"), (true, "a\n".into()));
    let (_, leaked) = inside("usual", "ls /proc/self/fd | wc -l");
    assert_eq!(leaked.trim(), "4", "stdin, stdout, stderr, and the directory itself");
    let (_, seen) = inside("usual", "grep -c /tmp/carob-test /proc/1/cmdline /proc/1/environ; true");
    assert!(!seen.contains(":1"), "{seen}");
}

#[test]
fn users_and_groups_come_from_the_spec_or_the_image() {
    let carob = Carob::start(&["busybox", "redis"]);
    let user = |name: &str, context: serde_json::Value| {
        let mut manifest = shell_pod(name, "id; echo $HOME; sleep 3600");
        manifest["spec"]["securityContext"] = context;
        manifest
    };
    let mut own = user("own", json!({"runAsUser": 1000}));
    own["spec"]["containers"][0]["securityContext"] = json!({"runAsUser": 33, "runAsGroup": 7});
    let mut named = pod("named", &[shell("main", "id; sleep 3600")]);
    named["spec"]["containers"][0]["image"] = json!("redis");
    let mut refused_name = named.clone();
    refused_name["metadata"]["name"] = json!("refused-name");
    refused_name["spec"]["securityContext"] = json!({"runAsNonRoot": true});
    let refused = user("refused", json!({"runAsNonRoot": true}));
    let mut contradiction = user("contradiction", json!({"runAsNonRoot": true}));
    contradiction["spec"]["containers"][0]["securityContext"] = json!({"runAsUser": 0});
    carob.apply(&list(&[
        user("root", json!({})),
        user("number", json!({"runAsUser": 1000, "runAsNonRoot": true})),
        user("groups", json!({"runAsUser": 1000, "runAsGroup": 3000, "fsGroup": 2000, "supplementalGroups": [4000]})),
        user("known", json!({"runAsUser": 33})),
        own,
        named,
        refused,
        refused_name,
        contradiction,
    ]));
    for (name, expected) in [
        ("root", "uid=0(root) gid=0(root) groups=0(root)"),
        ("number", "uid=1000 gid=0(root) groups=0(root)"),
        ("groups", "uid=1000 gid=3000 groups=2000,3000,4000"),
        ("known", "uid=33(www-data) gid=33(www-data) groups=33(www-data)"),
        ("own", "uid=33(www-data) gid=7"),
        ("named", "uid=999(redis) gid=999(redis) groups=999(redis)"),
    ] {
        carob.wait(&format!("pod/{name}"), "condition=Ready");
        let printed = carob.until(&["logs", name], |seen| seen.contains("uid="));
        let printed = printed.lines().next().unwrap_or_default();
        if name == "groups" {
            let mut groups: Vec<&str> = printed.rsplit('=').next().unwrap_or_default().split(',').collect();
            groups.sort_unstable();
            assert_eq!((&printed[..17], groups), ("uid=1000 gid=3000", vec!["2000", "3000", "4000"]), "{printed}");
        } else {
            assert!(printed.starts_with(expected), "{name}: {printed}, not {expected}");
        }
        let exec = carob.kubectl(&["exec", name, "--", "id"]);
        assert_eq!(exec.lines().next(), Some(printed), "exec runs as the container's user");
    }
    let waiting = |pod: &str| {
        let path = "jsonpath={.status.containerStatuses[0].state.waiting.reason}: {.status.containerStatuses[0].state.waiting.message}";
        carob.until(&["get", "pod", pod, "-o", path], |seen| seen.contains("CreateContainerConfigError"))
    };
    let refusal = waiting("refused");
    assert!(
        refusal.starts_with(
            "CreateContainerConfigError: container has runAsNonRoot and image will run as root (pod: \"refused_default("
        ),
        "{refusal}"
    );
    let refusal = waiting("refused-name");
    assert!(
        refusal.contains(
            "container has runAsNonRoot and image has non-numeric user (redis), cannot verify user is non-root"
        ),
        "{refusal}"
    );
    let refusal = waiting("contradiction");
    assert!(refusal.contains("container's runAsUser breaks non-root policy"), "{refusal}");
    carob.wait_event("refused", "Error: container has runAsNonRoot and image will run as root");
}

#[test]
fn a_signal_from_outside_is_the_end_that_is_reported() {
    let carob = Carob::start(&["busybox"]);
    let signals = [("killed", "KILL", 137), ("segfault", "SEGV", 139), ("terminated", "TERM", 143)];
    let pods: Vec<_> = signals
        .iter()
        .map(|(name, signal, _)| {
            let mut manifest = shell_pod(name, "exec sleep 3600");
            // Where it isn't pid 1, for which signals have no default action but SIGKILL's.
            manifest["spec"]["shareProcessNamespace"] = json!(*signal != "KILL");
            manifest
        })
        .collect();
    carob.apply(&list(&pods));
    for (name, signal, code) in signals {
        carob.wait(&format!("pod/{name}"), "condition=Ready");
        let listed =
            fs::read_to_string(container_cgroup(&carob, "pids", name).join("cgroup.procs")).expect("its processes");
        let pid = listed.lines().next().and_then(|pid| pid.parse().ok()).map(Pid::from_raw).expect("a process");
        kill(pid, format!("SIG{signal}").parse::<Signal>().expect("a signal")).expect("it can be sent");
        carob.wait_phase(name, "Failed");
        let state = carob.get(&["pod", name])["status"]["containerStatuses"][0]["state"]["terminated"].clone();
        assert_eq!((&state["exitCode"], &state["reason"]), (&json!(code), &json!("Error")), "{name}: {state}");
    }
}

#[test]
fn a_container_that_ends_takes_all_its_processes_along() {
    let carob = Carob::start(&["busybox", "tools"]);
    let mut manifest =
        pod("brief", &[shell("main", "for i in 1 2 3; do sleep 3600 & done; sleep 0.2; exit 0"), idle("other")]);
    manifest["spec"]["containers"][1]["securityContext"] = json!({"capabilities": {"drop": ["ALL"]}});
    carob.apply(&manifest.to_string());
    carob.until(
        &[
            "get",
            "pod",
            "brief",
            "-o",
            "jsonpath={.status.containerStatuses[?(@.name==\"main\")].state.terminated.reason}",
        ],
        |seen| seen == "Completed",
    );
    let pod = pod_cgroup(&carob, "pids", "brief");
    let mut processes = 0;
    for entry in fs::read_dir(&pod).expect("the pod's cgroup").flatten() {
        processes += fs::read_to_string(entry.path().join("cgroup.procs")).map_or(0, |text| text.lines().count());
    }
    assert_eq!(processes, 1, "only the other container's");
}

#[test]
fn the_first_process_of_a_shared_namespace_shows_nothing_of_the_machine() {
    let carob = Carob::start(&["busybox"]);
    let script =
        "tr '\\0' ' ' < /proc/1/cmdline; for f in exe cwd; do readlink /proc/1/$f; done; ls /proc/1/root /proc/1/fd
        wc -c < /proc/1/environ; cat /proc/1/maps /proc/1/mountinfo /proc/1/net/route /proc/1/comm";
    let mut manifest = shell_pod("looking", script);
    manifest["spec"]["shareProcessNamespace"] = json!(true);
    manifest["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
    let seen = carob.run_to_end(&manifest);
    assert!(seen.starts_with("/pause /pause\n/\n/proc/1/fd:\n\n/proc/1/root:\npause\n0\n"), "{seen}");
    for word in ["carob", "spawner", "sandboxes", &carob.data_dir().to_string_lossy()] {
        assert!(!seen.contains(word), "{word}: {seen}");
    }
    let pod_interface = seen.lines().filter(|line| line.starts_with("eth0\t")).count();
    assert!(pod_interface > 0 && !seen.contains("cb-"), "its network is the pod's: {seen}");
}
