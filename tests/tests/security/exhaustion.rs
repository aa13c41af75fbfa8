//! Pods that take all they can get: processes, memory, log space. Neighbours and the gateway don't notice.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use carob_tests::pods::{list, pod, shell, shell_pod};
use carob_tests::{Carob, eventually};
use serde_json::{Value, json};

fn limited(mut container: Value, cpu: &str, memory: &str) -> Value {
    container["resources"] = json!({"limits": {"cpu": cpu, "memory": memory}});
    container
}

/// The API answers and a neighbour still takes commands, both promptly.
fn assert_well(carob: &Carob, during: &str) {
    let begin = Instant::now();
    assert_eq!(carob.kubectl(&["get", "--raw", "/readyz"]), "ok");
    assert_eq!(carob.kubectl(&["exec", "neighbour", "--", "echo", "well"]), "well\n");
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(10), "during {during} two answers took {took:?}");
}

#[test]
fn bombs_hurt_nobody_but_themselves() {
    let carob = Carob::start(&["busybox", "tools"]);
    carob
        .start_pod(&pod("neighbour", &[limited(shell("main", "sleep 3600"), "500m", "32Mi")]).to_string(), "neighbour");
    let identity = |carob: &Carob| carob.jsonpath("pod/neighbour", ".status.containerStatuses[0].containerID");
    let before = identity(&carob);

    // Each process makes two: what stops them is the limit on their number.
    let fork = pod(
        "forks",
        &[limited(shell("main", "echo begin; bomb() { bomb | bomb & }; bomb; sleep 3600"), "300m", "512Mi")],
    );
    let eat = |name: &str, script: &str| pod(name, &[limited(shell("main", script), "500m", "32Mi")]);
    let anonymous = eat("anonymous", "x=a; while true; do x=$x$x; done");
    let shared = eat("shared", "dd if=/dev/zero of=/dev/shm/x bs=1M count=2048");
    let mut tmpfs = eat("tmpfs", "dd if=/dev/zero of=/mem/x bs=1M count=2048");
    tmpfs["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "mem", "mountPath": "/mem"}]);
    tmpfs["spec"]["volumes"] = json!([{"name": "mem", "emptyDir": {"medium": "Memory"}}]);
    let device = eat(
        "device",
        "dd if=/dev/zero of=/dev/x bs=1M count=2048; mkdir -p /dev/d; i=0; while touch /dev/d/$i; do i=$((i+1)); done",
    );
    carob.apply(&list(&[fork, anonymous, shared, tmpfs, device]));
    carob.until(&["logs", "forks"], |seen| seen.contains("begin"));
    assert_well(&carob, "the bombs");
    for name in ["anonymous", "shared", "tmpfs", "device"] {
        carob.wait_phase(name, "Failed");
    }
    let reason =
        |pod: &str| carob.jsonpath(&format!("pod/{pod}"), ".status.containerStatuses[0].state.terminated.reason");
    assert_eq!(reason("anonymous"), "OOMKilled");
    assert_well(&carob, "the fork bomb");
    let uid = carob.jsonpath("pod/forks", ".metadata.uid");
    carob.kubectl(&["delete", "pod", "forks", "--now", "--timeout=30s"]);
    let left = |uid: &str| {
        fs::read_dir("/proc")
            .expect("processes")
            .flatten()
            .any(|entry| fs::read_to_string(entry.path().join("cgroup")).is_ok_and(|text| text.contains(uid)))
    };
    eventually("every process of the bomb is gone", || !left(&uid));
    assert_well(&carob, "what follows");
    assert_eq!(identity(&carob), before, "the neighbour is the same container as before");
    assert_eq!(carob.jsonpath("pod/neighbour", ".status.containerStatuses[0].restartCount"), "0");
    assert!(!carob.log().contains("panicked"));
}

fn size(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => size(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

#[test]
fn floods_of_output_are_cut_to_size() {
    let carob = Carob::start(&["busybox"]);
    let talker = "i=0; while true; do echo line $i; i=$((i+1)); sleep 0.1; done";
    let fast =
        "exec yes 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'";
    let short = "exec yes ''";
    // Four gigabytes without a single line's end.
    let endless = "exec dd if=/dev/zero bs=1M count=4096";
    let flood = |name: &str, script: &str| limited(shell(name, script), "500m", "64Mi");
    let message = shell_pod("message", "yes 0123456789abcde | head -c 20000000 > /dev/termination-log; exit 1");
    carob.apply(&list(&[
        shell_pod("neighbour", talker),
        pod("flood", &[flood("fast", fast), flood("short", short), flood("endless", endless)]),
        message,
    ]));
    carob.wait("pod/neighbour", "condition=Ready");
    let logs = carob.data_dir().join("logs/pods");
    let uid = carob.jsonpath("pod/flood", ".metadata.uid");
    let of_flood = logs.join(format!("default_flood_{uid}"));
    // Until the first of them has been written over its bound's half at least, every look is within the bound.
    let bound = 5 * 10 * (1 << 20) + (1 << 20);
    eventually("the flood has come up to its bound", || {
        let sizes = ["fast", "short", "endless"].map(|name| size(&of_flood.join(name)));
        assert!(sizes.iter().all(|size| *size <= bound), "{sizes:?}");
        sizes.iter().any(|size| *size > 30 << 20)
    });
    let line = |carob: &Carob| carob.kubectl(&["logs", "neighbour", "--tail=1"]);
    let earlier = line(&carob);
    eventually("a neighbour's lines arrive meanwhile", || line(&carob) != earlier);
    assert_eq!(carob.kubectl(&["get", "--raw", "/readyz"]), "ok");
    let tail = carob.kubectl(&["logs", "flood", "-c", "fast", "--tail=3"]);
    assert_eq!(tail.lines().count(), 3, "the flood's own end can be read");
    let sizes = ["fast", "short", "endless"].map(|name| size(&of_flood.join(name)));
    assert!(sizes.iter().all(|size| *size <= bound), "{sizes:?}");
    carob.wait_phase("message", "Failed");
    let message = carob.jsonpath("pod/message", ".status.containerStatuses[0].state.terminated.message");
    assert!((1..=4096).contains(&message.len()), "a termination message has {} bytes", message.len());
    carob.kubectl(&["delete", "pod", "flood", "--now", "--timeout=30s"]);
    eventually("the flood's files are gone", || !of_flood.exists());
    assert!(!carob.log().contains("panicked"));
}
