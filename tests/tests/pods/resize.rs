//! Resources of pods that run are changed in place.

use carob_tests::pods::{idle, list, pod, shell};
use carob_tests::{Carob, eventually, text};
use serde_json::{Value, json};

/// A container's resources: requests as limits, so that the pod is guaranteed what it has.
fn resources(cpu: &str, memory: &str) -> Value {
    json!({"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu, "memory": memory}})
}

fn resize(carob: &Carob, pod: &str, container: &str, resources: &Value) -> std::process::Output {
    let patch = json!({"spec": {"containers": [{"name": container, "resources": resources}]}}).to_string();
    carob.run(&["patch", "pod", pod, "--subresource=resize", "--type=strategic", "-p", &patch])
}

fn resized(carob: &Carob, pod: &str, container: &str, resources: &Value) {
    let output = resize(carob, pod, container, resources);
    assert!(output.status.success(), "{}", text(&output));
}

fn status(carob: &Carob, pod: &str, container: &str) -> Value {
    let found = carob.get(&["pod", pod])["status"]["containerStatuses"].clone();
    found.as_array().and_then(|all| all.iter().find(|one| one["name"] == container)).cloned().unwrap_or_default()
}

fn condition(carob: &Carob, pod: &str, kind: &str) -> Value {
    let found = carob.get(&["pod", pod])["status"]["conditions"].clone();
    found.as_array().and_then(|all| all.iter().find(|one| one["type"] == kind)).cloned().unwrap_or_default()
}

/// The memory limit that the container itself sees.
fn memory_limit(carob: &Carob, pod: &str, container: &str) -> String {
    let script = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";
    carob.kubectl(&["exec", pod, "-c", container, "--", "sh", "-c", script]).trim().to_owned()
}

#[test]
fn containers_are_resized_in_place_or_by_a_restart_as_their_policy_says() {
    let carob = Carob::start(&["busybox", "tools"]);
    let mut kept = idle("kept");
    kept["resources"] = resources("100m", "64Mi");
    let mut again = idle("again");
    again["resources"] = resources("100m", "64Mi");
    again["resizePolicy"] = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
    let mut hungry = shell("hungry", "head -c 40000000 /dev/zero | tail -c 40000000 | sleep 3600");
    hungry["resources"] = resources("100m", "128Mi");
    let mut manifest = pod("grow", &[kept, again, hungry]);
    manifest["spec"]["restartPolicy"] = json!("Always");
    let warnings = carob.apply(&manifest.to_string());
    assert!(!warnings.contains("not carried out"), "{warnings}");
    carob.wait("pod/grow", "condition=Ready");
    let before = status(&carob, "grow", "kept");
    assert_eq!(before["allocatedResources"], json!({"cpu": "100m", "memory": "64Mi"}));

    let wanted = resources("200m", "96Mi");
    resized(&carob, "grow", "kept", &wanted);
    eventually("the resize is told", || status(&carob, "grow", "kept")["resources"] == wanted);
    let after = status(&carob, "grow", "kept");
    assert_eq!((&after["containerID"], &after["restartCount"]), (&before["containerID"], &json!(0)));
    assert_eq!(after["allocatedResources"], wanted["requests"]);
    assert_eq!(memory_limit(&carob, "grow", "kept"), (96 << 20).to_string());
    eventually("nothing is in progress any more", || condition(&carob, "grow", "PodResizeInProgress").is_null());
    carob.wait_event("grow", "Pod resize completed");

    // Down again, below what it was, and up by a restart.
    let wanted = resources("50m", "32Mi");
    resized(&carob, "grow", "kept", &wanted);
    eventually("less is given", || status(&carob, "grow", "kept")["resources"] == wanted);
    let wanted = resources("100m", "80Mi");
    resized(&carob, "grow", "again", &wanted);
    eventually("it runs again with more", || {
        let status = status(&carob, "grow", "again");
        status["restartCount"] == 1 && status["resources"] == wanted && status["state"]["running"].is_object()
    });
    assert_eq!(memory_limit(&carob, "grow", "again"), (80 << 20).to_string());

    // What is in use isn't taken away.
    eventually("it is hungry", || {
        let script = "cat /sys/fs/cgroup/memory/memory.usage_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.current";
        let used = carob.kubectl(&["exec", "grow", "-c", "hungry", "--", "sh", "-c", script]);
        used.trim().parse::<u64>().is_ok_and(|bytes| bytes > 40_000_000)
    });
    resized(&carob, "grow", "hungry", &resources("100m", "16Mi"));
    eventually("the resize fails", || condition(&carob, "grow", "PodResizeInProgress")["reason"] == "Error");
    let why = condition(&carob, "grow", "PodResizeInProgress")["message"].to_string();
    assert!(why.contains("cannot decrease memory limits") && why.contains("below current usage"), "{why}");
    assert_eq!(status(&carob, "grow", "hungry")["resources"], resources("100m", "128Mi"));
    resized(&carob, "grow", "hungry", &resources("100m", "200Mi"));
    eventually("it may be undone", || condition(&carob, "grow", "PodResizeInProgress").is_null());
    assert_eq!(status(&carob, "grow", "hungry")["restartCount"], 0);

    // The class of service is for life.
    let refused = resize(&carob, "grow", "kept", &json!({"requests": {"cpu": "10m"}}));
    assert!(text(&refused).contains("Pod QOS Class may not change as a result of resizing"), "{}", text(&refused));
}

#[test]
fn a_resize_waits_for_room_and_counts_for_quotas_and_the_scheduler() {
    let mut carob = Carob::start(&["tools"]);
    let node = carob.get(&["nodes"])["items"][0]["status"]["allocatable"]["cpu"].clone();
    let cpus: u64 = node.as_str().and_then(|text| text.parse().ok()).expect("whole CPUs");
    let sized = |name: &str, millis: u64| {
        let mut container = idle("main");
        container["resources"] = json!({"requests": {"cpu": format!("{millis}m")}});
        pod(name, &[container])
    };
    let request = |millis: u64| json!({"requests": {"cpu": format!("{millis}m")}});
    let all = cpus * 1000;
    carob.apply(&list(&[sized("small", 100), sized("big", all - 400)]));
    for name in ["small", "big"] {
        carob.wait(&format!("pod/{name}"), "condition=Ready");
    }
    resized(&carob, "small", "main", &request(all + 1000));
    eventually("it is too much for any node", || {
        condition(&carob, "small", "PodResizePending")["reason"] == "Infeasible"
    });
    let why = condition(&carob, "small", "PodResizePending")["message"].clone();
    let text_of = format!("Node didn't have enough capacity: cpu, requested: {}, capacity: {all}", all + 1000);
    assert_eq!(why, json!(text_of));
    resized(&carob, "small", "main", &request(600));
    eventually("there is no room now", || condition(&carob, "small", "PodResizePending")["reason"] == "Deferred");
    assert_eq!(status(&carob, "small", "main")["allocatedResources"], json!({"cpu": "100m"}));
    // What waits is remembered by the objects, not by this process.
    carob.kill();
    carob.up(&[]);
    assert_eq!(condition(&carob, "small", "PodResizePending")["reason"], "Deferred");
    carob.kubectl(&["delete", "pod", "big", "--grace-period=0", "--force"]);
    eventually("there is room", || status(&carob, "small", "main")["resources"] == request(600));
    eventually("and nothing waits", || condition(&carob, "small", "PodResizePending").is_null());
    assert_eq!(status(&carob, "small", "main")["restartCount"], 0);

    carob.apply(&sized("late", all - 500).to_string());
    carob.wait_event("late", "Insufficient cpu");
    resized(&carob, "small", "main", &request(100));
    carob.wait("pod/late", "condition=Ready");

    carob.kubectl(&["create", "quota", "few", "--hard=requests.cpu=100m"]);
    eventually("the quota counts", || carob.get(&["quota", "few"])["status"]["used"].is_object());
    let refused = resize(&carob, "small", "main", &request(300));
    assert!(text(&refused).contains("exceeded quota: few"), "{}", text(&refused));
}
