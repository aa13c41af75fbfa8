//! What this node can't carry out of a pod's spec: refused or left waiting, with the words of Kubernetes, and warned of.

use carob_tests::pods::{idle, list, pod};
use carob_tests::{Carob, eventually};
use serde_json::{Value, json};

#[test]
fn what_the_node_has_not_is_refused_left_waiting_or_warned_of_with_its_reason() {
    let carob = Carob::start(&["busybox", "tools"]);
    let with = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut manifest = pod(name, &[idle("main")]);
        change(&mut manifest["spec"]);
        manifest
    };
    let profile = json!({"appArmorProfile": {"type": "RuntimeDefault"}});
    let pods = [
        with("windows", &|spec| spec["os"] = json!({"name": "windows"})),
        with("selects", &|spec| {
            spec["nodeSelector"] = json!({"example.com/disk": "fast"});
            spec["nodeName"] = json!(carob.jsonpath("nodes", ".items[0].metadata.name"));
        }),
        with("armoured", &|spec| spec["containers"][0]["securityContext"] = profile.clone()),
        with("bare", &|spec| {
            spec["securityContext"] = profile.clone();
            spec["containers"][0]["securityContext"] = json!({"appArmorProfile": {"type": "Unconfined"}});
        }),
        with("hoards", &|spec| {
            spec["containers"][0]["resources"] = json!({"requests": {"ephemeral-storage": "1Pi"}});
            spec["nodeName"] = json!(carob.jsonpath("nodes", ".items[0].metadata.name"));
        }),
        with("elsewhere", &|spec| spec["schedulerName"] = json!("another")),
        with("accelerated", &|spec| {
            spec["containers"][0]["resources"] = json!({"limits": {"example.com/gpu": "1"}});
        }),
        // Somebody meant 100M.
        with("tiny", &|spec| {
            spec["containers"][0]["resources"] = json!({"limits": {"memory": "100m"}});
        }),
        with("hooked", &|spec| {
            spec["containers"][0]["lifecycle"] = json!({"postStart": {"tcpSocket": {"port": 1}}});
        }),
    ];
    let warnings = carob.apply(&list(&pods));
    assert!(!warnings.contains("not carried out"), "{warnings}");
    let nfs = with("shared", &|spec| {
        spec["volumes"] = json!([{"name": "v", "nfs": {"server": "192.0.2.1", "path": "/"}}]);
        spec["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
        spec["securityContext"] = json!({"seLinuxOptions": {"level": "s0:c1"}});
    });
    let warnings = carob.apply(&nfs.to_string());
    for warning in [
        "Warning: spec.volumes[0].nfs: not carried out by Carob: nothing is mounted over a network",
        "Warning: spec.securityContext.seLinuxOptions: not carried out by Carob: no SELinux label is set",
    ] {
        assert!(warnings.contains(warning), "{warning} is missing: {warnings}");
    }

    for (name, reason, message) in [
        ("windows", "PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"),
        ("selects", "NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"),
        ("armoured", "AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host"),
    ] {
        carob.wait_phase(name, "Failed");
        let status = carob.get(&["pod", name])["status"].clone();
        assert_eq!(status["reason"], reason, "{status}");
        assert_eq!(status["message"], format!("Pod was rejected: {message}"), "{status}");
    }
    carob.wait_phase("hoards", "Failed");
    let hoards = carob.get(&["pod", "hoards"])["status"].clone();
    assert_eq!(hoards["reason"], "OutOfephemeral-storage", "{hoards}");
    carob.wait("pod/bare", "condition=Ready");
    // The node's labels of now decide.
    carob.kubectl(&["label", "nodes", "--all", "example.com/disk=fast"]);
    let placed = with("placed", &|spec| {
        spec["nodeSelector"] = json!({"example.com/disk": "fast"});
        spec["nodeName"] = json!(carob.jsonpath("nodes", ".items[0].metadata.name"));
    });
    carob.apply(&placed.to_string());
    carob.wait("pod/placed", "condition=Ready");
    carob.wait_event("shared", "MountVolume.SetUp failed for volume \"v\" : no volume plugin matched: nfs");
    carob.wait_event("hooked", "PostStartHook failed");
    carob.wait_event("tiny", "memory limit too low?");
    carob.wait_event("accelerated", "Insufficient example.com/gpu");
    let waits = carob.get(&["pod", "elsewhere"]);
    assert_eq!((&waits["status"]["phase"], &waits["spec"]["nodeName"]), (&json!("Pending"), &Value::Null), "{waits}");
    // A node that sends pods away takes none in, whoever placed it.
    carob.kubectl(&["taint", "nodes", "--all", "example.com/leave:NoExecute"]);
    carob.kubectl(&["wait", "--for=delete", "pod/placed", "pod/bare", "--timeout=60s"]);
    let sent_away = with("sent-away", &|spec| {
        spec["nodeName"] = json!(carob.jsonpath("nodes", ".items[0].metadata.name"));
    });
    carob.apply(&sent_away.to_string());
    carob.wait_event("sent-away", "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate");
}

#[test]
fn a_mirror_pod_of_nothing_never_runs_and_goes_at_once() {
    let carob = Carob::start(&["tools"]);
    let mut mirror = pod("mirror", &[idle("main")]);
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    mirror["spec"]["nodeName"] = json!(carob.jsonpath("nodes", ".items[0].metadata.name"));
    carob.apply(&mirror.to_string());
    eventually("it is gone", || !carob.run(&["get", "pod", "mirror"]).status.success());
    let billed = carob.kubectl(&["get", "--raw", "/billing/v1/containers"]);
    assert!(!billed.contains("\"mirror\""), "{billed}");
}
