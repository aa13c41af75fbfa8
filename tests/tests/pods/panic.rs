//! A pod whose actor panics, or one of the actor's tasks, is looked after by another one.

use carob_tests::pods::shell_pod;
use carob_tests::{Carob, eventually};
use serde_json::Value;

/// How often the care of a pod has panicked.
fn panics(carob: &Carob) -> u32 {
    let metrics = carob.kubectl(&["get", "--raw", "/metrics"]);
    let line = metrics.lines().find_map(|line| line.strip_prefix("carob_worker_pod_panics_total "));
    line.and_then(|count| count.parse().ok()).expect("the counter")
}

fn status(carob: &Carob, pod: &str) -> Value {
    carob.get(&["pod", pod])["status"]["containerStatuses"][0].clone()
}

#[test]
fn a_panic_costs_neither_the_pods_containers_nor_the_care_for_them_nor_their_bill() {
    let carob = Carob::start(&["busybox"]);
    let kinds = ["actor", "task"];
    for kind in kinds {
        let script = "trap 'exit 7' TERM; sleep 3600 & wait";
        let mut manifest = shell_pod(kind, script);
        manifest["spec"]["restartPolicy"] = "Always".into();
        carob.apply(&manifest.to_string());
        carob.wait(&format!("pod/{kind}"), "condition=Ready");
    }
    for (before, kind) in kinds.iter().enumerate() {
        let (pod, was) = (format!("pod/{kind}"), status(&carob, kind));
        carob.kubectl(&["annotate", &pod, &format!("carob.test/panic={kind}")]);
        eventually("it panicked", || panics(&carob) as usize == before + 1);
        // It still serves, and is the same.
        carob.kubectl(&["exec", kind, "--", "true"]);
        assert_eq!(status(&carob, kind), was);
        // Its end is seen, and it is started again.
        // What asks for the end may not outlive it: how it ended says nothing.
        carob.run(&["exec", kind, "--", "kill", "1"]);
        eventually("it was restarted", || status(&carob, kind)["restartCount"] == 1);
        assert_eq!(status(&carob, kind)["lastState"]["terminated"]["exitCode"], 7);
        carob.kubectl(&["delete", &pod, "--timeout=30s"]);
    }
    let bill = carob.bill(&["--group-by", "pod"]);
    let rows = bill["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), kinds.len(), "{bill}");
}
