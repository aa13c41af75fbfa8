//! NetworkPolicies: real connections between pods that are let through, or aren't.

use carob_tests::pods::{idle, list, pod, tools};
use carob_tests::{Carob, eventually};
use serde_json::{Value, json};

/// Asks once, as pod `from`; whether there was an answer.
fn asks(carob: &Carob, from: &str, url: &str) -> bool {
    let command = ["exec", from, "-c", "main", "--", "carob-tools", "get", "--timeout", "1s", url];
    carob.run(&command).status.success()
}

fn reached(carob: &Carob, from: &str, url: &str) {
    eventually(&format!("{from} reaches {url}"), || asks(carob, from, url));
}

fn held(carob: &Carob, from: &str, url: &str) {
    eventually(&format!("{from} no longer reaches {url}"), || !asks(carob, from, url));
}

fn policy(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name}, "spec": spec})
}

/// Answers HTTP on 8080, which it calls `web`, and on 8081.
fn server(name: &str) -> Value {
    let mut first = tools("main", &["http-server"]);
    first["ports"] = json!([{"name": "web", "containerPort": 8080}]);
    // It is the machine that asks: policies don't keep it out.
    first["livenessProbe"] = json!({"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1, "failureThreshold": 2});
    pod(name, &[first, tools("second", &["http-server", "--port", "8081"])])
}

fn in_namespace(mut object: Value, namespace: &str) -> Value {
    object["metadata"]["namespace"] = json!(namespace);
    object
}

#[test]
fn policies_decide_who_reaches_whom_and_follow_labels() {
    let carob = Carob::start(&["tools"]);
    let other =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other", "labels": {"team": "x"}}});
    carob.apply(&list(&[other]));
    eventually("the namespace has its account", || {
        carob.run(&["get", "serviceaccount", "default", "-n", "other"]).status.success()
    });
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "server"},
        "spec": {"selector": {"app": "server"}, "ports": [{"port": 80, "targetPort": "web"}]}});
    carob.apply(&list(&[
        server("server"),
        pod("friend", &[idle("main")]),
        pod("stranger", &[idle("main")]),
        in_namespace(server("far"), "other"),
        service,
    ]));
    for name in ["server", "friend", "stranger"] {
        carob.wait(&format!("pod/{name}"), "condition=Ready");
    }
    carob.kubectl(&["wait", "-n", "other", "--for=condition=Ready", "pod/far", "--timeout=60s"]);
    let address = carob.jsonpath("pod/server", ".status.podIP");
    let far = carob.kubectl(&["get", "pod", "far", "-n", "other", "-o", "jsonpath={.status.podIP}"]);
    let (web, second) = (format!("http://{address}:8080/"), format!("http://{address}:8081/"));
    let by_name = "http://server/";
    for from in ["friend", "stranger"] {
        [&web, &second].iter().for_each(|url| reached(&carob, from, url));
    }
    reached(&carob, "friend", by_name);

    // Nobody gets in; no warning that it isn't carried out.
    let said = carob.apply(&list(&[policy("closed", json!({"podSelector": {"matchLabels": {"app": "server"}}}))]));
    assert!(!said.contains("Warning"), "{said}");
    held(&carob, "friend", &web);
    held(&carob, "stranger", &second);
    held(&carob, "friend", by_name);
    // Only friends, at the port of that name.
    let from_friend = json!([{"podSelector": {"matchLabels": {"app": "friend"}}}]);
    carob.apply(&list(&[policy(
        "friends",
        json!({"podSelector": {"matchLabels": {"app": "server"}},
        "ingress": [{"from": from_friend, "ports": [{"port": "web"}]}]}),
    )]));
    reached(&carob, "friend", &web);
    reached(&carob, "friend", by_name);
    assert!(!asks(&carob, "friend", &second) && !asks(&carob, "stranger", &web));
    // Who gets the label is a friend, who loses it isn't.
    carob.kubectl(&["label", "--overwrite", "pod", "stranger", "app=friend"]);
    carob.kubectl(&["label", "--overwrite", "pod", "friend", "app=stranger"]);
    reached(&carob, "stranger", &web);
    held(&carob, "friend", &web);
    // A range of ports, from a namespace with a label.
    carob.apply(&list(&[policy(
        "friends",
        json!({"podSelector": {"matchLabels": {"app": "server"}},
        "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "x"}}}],
            "ports": [{"port": 8081, "endPort": 8090, "protocol": "TCP"}]}]}),
    )]));
    held(&carob, "stranger", &web);
    let from_far = |url: &str| {
        let command = ["exec", "-n", "other", "far", "-c", "main", "--", "carob-tools", "get", "--timeout", "1s", url];
        carob.run(&command).status.success()
    };
    eventually("the other namespace gets in", || from_far(&second));
    assert!(!from_far(&web));
    carob.kubectl(&["label", "--overwrite", "namespace", "other", "team=y"]);
    eventually("and no longer without its label", || !from_far(&second));
    // By address, with an exception.
    let stranger = carob.jsonpath("pod/stranger", ".status.podIP");
    carob.apply(&list(&[policy(
        "friends",
        json!({"podSelector": {"matchLabels": {"app": "server"}},
        "ingress": [{"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": [format!("{stranger}/32")]}}]}]}),
    )]));
    eventually("all addresses get in", || from_far(&second));
    assert!(!asks(&carob, "stranger", &web));
    carob.kubectl(&["delete", "networkpolicy", "--all"]);
    reached(&carob, "stranger", &web);

    // Out of a pod: only to one place, and names may be asked for.
    carob.apply(&list(&[policy(
        "out",
        json!({"podSelector": {"matchLabels": {"app": "stranger"}}, "policyTypes": ["Egress"],
        "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "server"}}}], "ports": [{"port": "web"}]},
            {"ports": [{"port": 53, "protocol": "UDP"}]}]}),
    )]));
    held(&carob, "friend", &second);
    reached(&carob, "friend", by_name);
    assert!(!asks(&carob, "friend", &format!("http://{far}:8080/")));
    assert_eq!(carob.jsonpath("pod/server", ".status.containerStatuses[*].restartCount"), "0 0", "probes get in");
}

#[test]
fn a_policy_is_in_force_before_a_pods_first_packet_and_through_a_restart() {
    let mut carob = Carob::start(&["tools"]);
    carob.apply(&list(&[
        server("server"),
        policy(
            "sealed",
            json!({"podSelector": {"matchLabels": {"sealed": "yes"}},
        "policyTypes": ["Ingress", "Egress"]}),
        ),
    ]));
    carob.wait("pod/server", "condition=Ready");
    let address = carob.jsonpath("pod/server", ".status.podIP");
    // One that isn't sealed shows that the way is open.
    let script =
        format!("carob-tools get --timeout 1s http://{address}:8080/ >/dev/null 2>&1 && echo reached || echo held");
    let asking = |name: &str, sealed: &str| {
        let container = json!({"name": "main", "image": "tools", "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script]});
        let mut asking = pod(name, &[container]);
        asking["metadata"]["labels"] = json!({ "sealed": sealed });
        asking
    };
    eventually("the server answers", || {
        carob.run(&["delete", "pod", "open", "--ignore-not-found", "--wait"]);
        carob.run_to_end(&asking("open", "no")).contains("reached")
    });
    let names: Vec<String> = (0..8).map(|number| format!("sealed-{number}")).collect();
    carob.apply(&list(&names.iter().map(|name| asking(name, "yes")).collect::<Vec<_>>()));
    for name in &names {
        carob.wait_phase(name, "Succeeded");
        assert_eq!(carob.kubectl(&["logs", name]), "held\n", "{name}");
    }
    let mut idle = pod("idle", &[idle("main")]);
    idle["metadata"]["labels"] = json!({"sealed": "yes"});
    carob.start_pod(&idle.to_string(), "idle");
    let url = format!("http://{address}:8080/");
    assert!(!asks(&carob, "idle", &url));
    carob.terminate();
    carob.up(&[]);
    eventually("the pod can be asked", || carob.run(&["exec", "idle", "--", "true"]).status.success());
    assert!(!asks(&carob, "idle", &url), "also after a restart");
    carob.kubectl(&["delete", "networkpolicy", "sealed"]);
    reached(&carob, "idle", &url);
}

#[test]
fn what_may_not_leave_a_pod_may_not_ask_for_names_unless_a_policy_says_so() {
    let carob = Carob::start(&["tools"]);
    carob.start_pod(&list(&[pod("closed", &[idle("main")])]), "closed");
    let resolves = || {
        let name = "kubernetes.default.svc.cluster.local";
        carob.run(&["exec", "closed", "--", "timeout", "1", "nslookup", name]).status.success()
    };
    eventually("names are answered", resolves);
    let closed = json!({"podSelector": {}, "policyTypes": ["Egress"]});
    carob.apply(&list(&[policy("closed", closed)]));
    eventually("a pod that may not send is answered no names", || !resolves());
    let api = carob.jsonpath("service/kubernetes", ".spec.clusterIP");
    assert!(!asks(&carob, "closed", &format!("http://{api}:443/")), "nor does it reach the API");
    let names = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{
        "to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
                "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}],
        "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}]});
    carob.apply(&list(&[policy("names", names)]));
    eventually("what a policy lets through is answered", resolves);
}
