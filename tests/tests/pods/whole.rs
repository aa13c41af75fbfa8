//! Resources of a pod as a whole.

use carob_tests::pods::{idle, list, pod};
use carob_tests::{Carob, eventually, text};
use serde_json::{Value, json};

/// What the container's own cgroup lets it have of memory.
fn memory_limit(carob: &Carob, pod: &str, container: &str) -> String {
    let script = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";
    carob.kubectl(&["exec", pod, "-c", container, "--", "sh", "-c", script]).trim().to_owned()
}

#[test]
fn a_pod_as_a_whole_is_given_limited_told_and_resized() {
    let carob = Carob::start(&["busybox", "tools"]);
    let mut own = idle("own");
    own["resources"] = json!({"requests": {"cpu": "50m"}, "limits": {"memory": "48Mi"}});
    own["env"] =
        json!([{"name": "MOST", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}}]);
    let mut manifest = pod("whole", &[idle("free"), own]);
    manifest["spec"]["resources"] = json!({"limits": {"cpu": "300m", "memory": "96Mi"}});
    let warnings = carob.apply(&list(&[manifest.clone()]));
    assert!(!warnings.contains("not carried out"), "{warnings}");
    carob.wait("pod/whole", "condition=Ready");
    let told = carob.get(&["pod", "whole"]);
    let whole = json!({"limits": {"cpu": "300m", "memory": "96Mi"}, "requests": {"cpu": "50m", "memory": "48Mi"}});
    assert_eq!(told["spec"]["resources"], whole, "requests follow the containers'");
    assert_eq!(told["status"]["resources"], whole);
    assert_eq!(told["status"]["allocatedResources"], whole["requests"]);
    assert_eq!(told["status"]["qosClass"], "Burstable");
    assert_eq!(memory_limit(&carob, "whole", "free"), (96 << 20).to_string(), "the pod's limit is one's that has none");
    assert_eq!(memory_limit(&carob, "whole", "own"), (48 << 20).to_string());
    assert_eq!(carob.kubectl(&["exec", "whole", "-c", "own", "--", "sh", "-c", "echo $MOST"]), "300\n");

    let resize = |resources: &Value| {
        let patch = json!({"spec": {"resources": resources}}).to_string();
        carob.run(&["patch", "pod", "whole", "--subresource=resize", "--type=merge", "-p", &patch])
    };
    let more = json!({"limits": {"cpu": "400m", "memory": "128Mi"}, "requests": {"cpu": "100m", "memory": "64Mi"}});
    let output = resize(&more);
    assert!(output.status.success(), "{}", text(&output));
    eventually("the pod has more", || carob.get(&["pod", "whole"])["status"]["resources"] == more);
    assert_eq!(memory_limit(&carob, "whole", "free"), (128 << 20).to_string());
    assert_eq!(carob.get(&["pod", "whole"])["status"]["containerStatuses"][0]["restartCount"], 0);
    let output = resize(&json!({"limits": {"memory": null}}));
    assert!(text(&output).contains("pod-level resource limits cannot be removed"), "{}", text(&output));

    manifest["metadata"]["name"] = json!("too-small");
    manifest["spec"]["resources"] = json!({"requests": {"cpu": "10m", "ephemeral-storage": "1Gi"}});
    let refused = text(&carob.pipe(&["apply", "-f", "-"], &manifest.to_string()));
    for why in [
        "spec.resources.requests[ephemeral-storage]: Unsupported value: \"ephemeral-storage\"",
        "spec.resources.requests[cpu]: Invalid value: \"10m\": must be greater than or equal to aggregate container requests",
    ] {
        assert!(refused.contains(why), "{why} is missing: {refused}");
    }
}
