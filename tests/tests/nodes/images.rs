//! Images that several workers share.

use carob_tests::pods::{idle, pod, shell};
use carob_tests::registry::Registry;
use carob_tests::{Carob, Setup, eventually, text};
use serde_json::{Value, json};

use crate::{nodes, on, ready};

#[test]
fn no_worker_removes_an_image_that_anothers_pods_use_and_a_worker_that_goes_holds_none() {
    let registry = Registry::start();
    for name in ["busybox", "tools"] {
        registry.push(name, name, "1");
    }
    let image = |name: &str| format!("{}/{name}", registry.host());
    let config = json!({"node": {"evictionHard": {}, "imageMaximumGCAge": "2s", "imageGCPeriod": "1s"}}).to_string();
    let arguments: &[&str] = &["--workers", "2"];
    let mut carob = Carob::start_with(&Setup { config: Some(&config), arguments, ..Setup::default() });
    ready(&carob, 2);
    let names = nodes(&carob);
    let of = |name: &str, node: &str, container: Value, from: &str| {
        let mut manifest = on(node, pod(name, &[container]));
        manifest["spec"]["containers"][0]["image"] = json!(format!("{}:1", image(from)));
        manifest
    };
    let listed =
        |carob: &Carob| text(&carob.carob(&["image", "ls", "--data-dir", &carob.data_dir().to_string_lossy()]));
    carob.start_pod(&of("uses", &names[1], idle("main"), "tools").to_string(), "uses");
    // Twice as long as an unused image stays: the first worker has looked meanwhile.
    for round in ["first", "second"] {
        carob.apply(&of(round, &names[0], shell("main", "true"), "busybox").to_string());
        carob.wait_phase(round, "Succeeded");
        assert!(listed(&carob).contains(&image("busybox")));
        carob.kubectl(&["delete", "pod", round, "--timeout=60s"]);
        eventually("what nobody uses goes", || !listed(&carob).contains(&image("busybox")));
    }
    let left = listed(&carob);
    assert!(left.contains(&image("tools")), "what the second worker's pod uses stays: {left}");

    let holds = carob.data_dir().join("images/holds");
    let held = || std::fs::read_dir(&holds).expect("holds").count();
    eventually("the one that runs is held", || held() == 1);
    carob.terminate();
    carob.up(&["--workers", "1"]);
    ready(&carob, 1);
    assert_eq!(held(), 0);
    eventually("its image goes, too", || !listed(&carob).contains(&image("tools")));
}
