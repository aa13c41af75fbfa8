//! Pods and Services with an address of each kind: real connections by both.

use carob_tests::pods::{idle, list, pod, tools};
use carob_tests::{Carob, Setup, eventually, network_octet};
use serde_json::{Value, json};

/// Whether a request gets an answer that has this in it.
fn answers(carob: &Carob, from: &str, url: &str, with: &str) -> bool {
    let command = ["exec", from, "-c", "main", "--", "carob-tools", "get", "--timeout", "1s", url];
    let output = carob.run(&command);
    output.status.success() && String::from_utf8_lossy(&output.stdout).contains(with)
}

fn reaches(carob: &Carob, from: &str, url: &str, with: &str) {
    eventually(&format!("{from} gets {with} from {url}"), || answers(carob, from, url, with));
}

fn start() -> (Carob, u16) {
    let octet = network_octet();
    let (pods, services) = (format!("10.{octet}.0.0/16,fd42:{octet}::/64"), format!("10.96.0.0/16,fd96:{octet}::/112"));
    let arguments = ["--workers", "2", "--pod-cidr", &pods, "--service-cidr", &services];
    (Carob::start_with(&Setup { images: &["tools"], arguments: &arguments, ..Setup::default() }), octet)
}

fn on(node: &str, mut pod: Value) -> Value {
    pod["spec"]["nodeName"] = json!(node);
    pod
}

#[test]
fn pods_and_services_are_reached_by_addresses_of_both_kinds_on_every_worker_and_after_a_restart() {
    let (mut carob, octet) = start();
    let nodes = carob.kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"]);
    let nodes: Vec<&str> = nodes.split_whitespace().collect();
    let mut server = on(nodes[1], pod("server", &[tools("main", &["http-server"])]));
    server["spec"]["containers"][0]["env"] =
        json!([{"name": "IPS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIPs"}}}]);
    server["spec"]["containers"][0]["ports"] = json!([{"containerPort": 8080, "hostPort": 18_080}]);
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "server"}, "spec": {
        "type": "NodePort", "ipFamilyPolicy": "RequireDualStack", "selector": {"app": "server"},
        "ports": [{"port": 80, "targetPort": 8080}]}});
    carob.apply(&list(&[server, on(nodes[0], pod("client", &[idle("main")])), service]));
    for name in ["server", "client"] {
        carob.wait(&format!("pod/{name}"), "condition=Ready");
    }
    let status = carob.get(&["pod", "server"])["status"].clone();
    let six = status["podIPs"][1]["ip"].as_str().expect("a second address").to_owned();
    let client_six = carob.jsonpath("pod/client", ".status.podIPs[1].ip");
    assert!(six.starts_with(&format!("fd42:{octet}:")) && status["hostIPs"][1]["ip"].is_string(), "{status}");
    let variables = carob.kubectl(&["exec", "server", "--", "env"]);
    let four = status["podIP"].as_str().expect("an address");
    assert!(variables.contains(&format!("IPS={four},{six}\n")), "{variables}");
    let hosts = carob.kubectl(&["exec", "server", "--", "cat", "/etc/hosts"]);
    assert!(hosts.contains(&format!("{six}\tserver\n")), "{hosts}");

    let spec = carob.get(&["service", "server"])["spec"].clone();
    let (cluster, port) =
        (spec["clusterIPs"][1].as_str().expect("a second address").to_owned(), &spec["ports"][0]["nodePort"]);
    let machine = carob.jsonpath("pod/server", ".status.hostIPs[1].ip");
    let by_both = |carob: &Carob| {
        // The server sees who asks, also on another worker and behind the Service.
        reaches(carob, "client", &format!("http://[{six}]:8080/"), &client_six);
        reaches(carob, "client", &format!("http://[{cluster}]/"), &client_six);
        reaches(carob, "client", &format!("http://{four}:8080/"), "server");
        reaches(carob, "client", &format!("http://[{machine}]:{port}/"), "server");
        reaches(carob, "client", &format!("http://[{machine}]:18080/"), "server");
        reaches(carob, "client", "http://server/", "server");
    };
    by_both(&carob);

    // What the proxy serves is at an address of each kind, too.
    let ingress = json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "server"},
        "spec": {"defaultBackend": {"service": {"name": "server", "port": {"number": 80}}}}});
    carob.apply(&list(&[ingress]));
    let of_proxy = ["get", "service", "carob-ingress", "-n", "kube-system", "-o", "jsonpath={.spec.clusterIPs[1]}"];
    let proxy = carob.until(&of_proxy, |ip| !ip.is_empty());
    reaches(&carob, "client", &format!("http://[{proxy}]/"), "server");

    let deny = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "deny"},
        "spec": {"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"],
                 "ingress": [{"from": [{"ipBlock": {"cidr": "::/0", "except": [format!("{client_six}/128")]}}]}]}});
    carob.apply(&list(&[deny]));
    eventually("the policy holds for both kinds", || {
        !answers(&carob, "client", &format!("http://[{six}]:8080/"), "")
            && !answers(&carob, "client", "http://server/", "")
    });
    // Everybody, said of both kinds; and names from a worker that asks the first one.
    let everybody = json!([{"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "::/0"}}]);
    let open = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "deny"},
        "spec": {"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress", "Egress"],
                 "ingress": [{"from": everybody}],
                 "egress": [{"to": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}]}]}});
    carob.apply(&list(&[open]));
    by_both(&carob);
    eventually("a pod of another worker asks for names where it may", || {
        carob
            .run(&["exec", "server", "--", "timeout", "1", "nslookup", "server.default.svc.cluster.local"])
            .status
            .success()
    });
    assert!(!answers(&carob, "server", &format!("http://[{client_six}]:8080/"), ""), "it may ask nobody else");
    carob.kubectl(&["delete", "networkpolicy", "deny"]);
    by_both(&carob);

    carob.terminate();
    carob.up(&["--workers", "2"]);
    by_both(&carob);
    eventually("both nodes are registered again", || {
        let ready = "jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}";
        carob.kubectl(&["get", "nodes", "-o", ready]) == "True True"
    });
    let log = carob.log();
    assert!(!log.contains("could not be registered"), "{log}");
    carob.down();
}
