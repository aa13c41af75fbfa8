//! Rules that have all containers of a pod restarted when one of them ends.

use carob_tests::pods::{list, pod, shell};
use carob_tests::{Carob, eventually};
use serde_json::{Value, json};

fn in_data(mut container: Value) -> Value {
    container["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    container
}

fn restarts(carob: &Carob, pod: &str) -> Vec<i64> {
    let status = carob.get(&["pod", pod])["status"].clone();
    let lists = ["initContainerStatuses", "containerStatuses"];
    let all = lists.iter().flat_map(|list| status[*list].as_array().cloned().unwrap_or_default());
    all.map(|status| status["restartCount"].as_i64().unwrap_or(-1)).collect()
}

#[test]
fn one_containers_exit_has_the_whole_pod_begin_anew_in_its_sandbox_with_its_volumes() {
    let carob = Carob::start(&["busybox"]);
    let init = in_data(shell("init", "echo init >> /data/steps"));
    let mut sidecar = in_data(shell("side", "echo side >> /data/steps; trap '' TERM; while :; do sleep 1; done"));
    sidecar["restartPolicy"] = json!("Always");
    let other = in_data(shell("other", "trap '' TERM; while :; do sleep 1; done"));
    let mut watcher = in_data(shell(
        "watcher",
        "echo main >> /data/steps; while [ ! -e /data/again ]; do sleep 0.1; done; rm /data/again; exit 88",
    ));
    watcher["restartPolicy"] = json!("Never");
    watcher["restartPolicyRules"] =
        json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [88]}}]);
    let mut manifest = pod("whole", &[other, watcher]);
    manifest["spec"]["initContainers"] = json!([init, sidecar]);
    manifest["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    manifest["spec"]["terminationGracePeriodSeconds"] = json!(60);
    let warnings = carob.apply(&list(&[manifest]));
    assert!(!warnings.contains("not carried out"), "{warnings}");
    carob.wait("pod/whole", "condition=Ready");
    let before = carob.get(&["pod", "whole"])["status"].clone();
    assert_eq!(restarts(&carob, "whole"), [0, 0, 0, 0]);
    let condition = ".status.conditions[?(@.type==\"AllContainersRestarting\")].status";
    assert_eq!(carob.jsonpath("pod/whole", condition), "False");

    let begin = std::time::Instant::now();
    carob.kubectl(&["exec", "whole", "-c", "other", "--", "touch", "/data/again"]);
    eventually("all have been restarted", || restarts(&carob, "whole") == [1, 1, 1, 1]);
    assert!(begin.elapsed().as_secs() < 30, "they are killed without grace");
    carob.wait("pod/whole", "condition=Ready");
    let after = carob.get(&["pod", "whole"])["status"].clone();
    assert_eq!(before["podIP"], after["podIP"], "the sandbox stays");
    assert_eq!((&after["phase"], carob.jsonpath("pod/whole", condition).as_str()), (&json!("Running"), "False"));
    for status in after["containerStatuses"].as_array().expect("statuses") {
        let last = &status["lastState"]["terminated"];
        assert_eq!((&last["reason"], &last["exitCode"]), (&json!("RestartingAllContainers"), &json!(137)), "{status}");
    }
    let steps = carob.kubectl(&["exec", "whole", "-c", "other", "--", "cat", "/data/steps"]);
    assert_eq!(steps, "init\nside\nmain\ninit\nside\nmain\n", "init containers run again, in their order");
}
