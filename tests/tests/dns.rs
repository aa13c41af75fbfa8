//! Names of Services and pods, as pods look them up.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use carob_tests::pods::{idle, list, pod};
use carob_tests::{Carob, eventually};
use serde_json::json;

fn lookup(carob: &Carob, name: &str) -> BTreeSet<String> {
    let output = carob.run(&["exec", "client", "--", "carob-tools", "lookup", name]);
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn services_pods_and_aliases_have_names_that_follow_changes() {
    let mut carob = Carob::start(&["tools"]);
    let mut zero = pod("zero", &[idle("main")]);
    zero["spec"]["hostname"] = json!("db-0");
    zero["spec"]["subdomain"] = json!("db");
    let service =
        |name: &str, spec| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
    carob.apply(&list(&[
        zero,
        pod("client", &[idle("main")]),
        service("web", json!({"selector": {"app": "web"}, "ports": [{"port": 80}]})),
        service("db", json!({"clusterIP": "None", "selector": {"app": "zero"}, "ports": [{"port": 80}]})),
        service("alias", json!({"type": "ExternalName", "externalName": "web.default.svc.cluster.local"})),
    ]));
    for name in ["zero", "client"] {
        carob.wait(&format!("pod/{name}"), "condition=Ready");
    }
    let only = |address: String| BTreeSet::from([address]);
    let web = only(carob.jsonpath("service/web", ".spec.clusterIP"));
    for name in ["web", "web.default", "web.default.svc.cluster.local", "WEB.default.svc", "alias"] {
        assert_eq!(lookup(&carob, name), web, "{name}");
    }
    let zero = only(carob.jsonpath("pod/zero", ".status.podIP"));
    for name in ["db", "db-0.db", "db-0.db.default.svc.cluster.local"] {
        eventually(name, || lookup(&carob, name) == zero);
    }
    let kubernetes = only(carob.jsonpath("service/kubernetes", ".spec.clusterIP"));
    assert_eq!(lookup(&carob, "kubernetes"), kubernetes);
    let begin = Instant::now();
    assert!(lookup(&carob, "nobody").is_empty());
    assert!(begin.elapsed() < Duration::from_secs(5), "that a name isn't there is known at once");
    carob.apply(&list(&[service("nobody", json!({"ports": [{"port": 80}]}))]));
    let address = only(carob.jsonpath("service/nobody", ".spec.clusterIP"));
    assert_eq!(lookup(&carob, "nobody"), address, "a new name is known at once");
    carob.terminate();
    carob.up(&[]);
    eventually("names are known again", || lookup(&carob, "web") == web);
}
