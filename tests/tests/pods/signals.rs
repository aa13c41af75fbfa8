//! The signal with which containers are asked to end.

use carob_tests::Carob;
use carob_tests::pods::{list, pod, shell, tools};
use carob_tests::terminal::Running;
use serde_json::json;

#[test]
fn a_container_ends_on_the_signal_that_its_spec_or_its_image_says() {
    let carob = Carob::start(&["tools", "busybox", "nginx"]);
    let mut own = tools("own", &["signal-log", "--exit-on", "USR1"]);
    own["lifecycle"] = json!({"stopSignal": "SIGUSR1"});
    let mut over_image = json!({"name": "over-image", "image": "nginx", "imagePullPolicy": "IfNotPresent"});
    over_image["lifecycle"] = json!({"stopSignal": "SIGRTMIN+3"});
    over_image["command"] =
        json!(["sh", "-c", "trap 'exit 7' RTMIN+3 || trap 'exit 7' 37; while :; do sleep 0.1; done"]);
    let mut manifest =
        pod("signals", &[own, over_image, shell("none", "trap 'exit 5' TERM; while :; do sleep 0.1; done")]);
    manifest["spec"]["containers"][2]["image"] = json!("busybox");
    manifest["spec"]["terminationGracePeriodSeconds"] = json!(20);
    let refused = carob.pipe(&["apply", "-f", "-"], &manifest.to_string());
    let why =
        "spec.containers[0].lifecycle.stopSignal: Forbidden: may not be set for containers with empty `spec.os.name`";
    assert!(carob_tests::text(&refused).contains(why), "{}", carob_tests::text(&refused));

    manifest["spec"]["os"] = json!({"name": "linux"});
    let plain = pod("plain", &[json!({"name": "main", "image": "nginx", "imagePullPolicy": "IfNotPresent"})]);
    let warnings = carob.apply(&list(&[manifest, plain]));
    assert!(!warnings.contains("not carried out"), "{warnings}");
    for name in ["signals", "plain"] {
        carob.wait(&format!("pod/{name}"), "condition=Ready");
    }
    let told = |name: &str| carob.jsonpath(&format!("pod/{name}"), ".status.containerStatuses[*].stopSignal");
    assert_eq!(told("signals"), "SIGUSR1 SIGRTMIN+3 SIGTERM");
    assert_eq!(told("plain"), "SIGQUIT");

    let mut log = Running::start(carob.kubectl_command().args(["logs", "-f", "signals", "-c", "own"]));
    log.expect("ready");
    let watch = Running::start(carob.kubectl_command().args(["get", "pod", "signals", "-w", "-o", "json"]));
    watch.expect("\"phase\": \"Running\"");
    carob.kubectl(&["delete", "pod", "signals", "--wait"]);
    assert!(log.end().success());
    assert_eq!(log.output(), "ready\nSIGUSR1\n");
    let seen = watch.output();
    for code in ["\"exitCode\": 7", "\"exitCode\": 5"] {
        assert!(seen.contains(code), "{code} is missing: {seen}");
    }
}
