//! Several workers: on one machine, each a node with a network namespace of its own, with images that they share (`images.rs`);
//! and on others (`remote.rs`), also far apart (`apart.rs`), with certificates (`certificates.rs`) and usage (`bill.rs`).

mod apart;
mod bill;
mod certificates;
mod images;
mod machines;
mod remote;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use carob_tests::machine::Traces;
use carob_tests::pods::{idle, list, pod, shell_pod, tools};
use carob_tests::{Carob, Setup, eventually, free_port};
use serde_json::{Value, json};

fn start(workers: &str) -> Carob {
    let carob = Carob::start_with(&Setup {
        images: &["tools", "busybox"],
        arguments: &["--workers", workers],
        ..Setup::default()
    });
    ready(&carob, workers.parse().expect("a number"));
    carob
}

pub(crate) fn ready(carob: &Carob, count: usize) {
    carob.until(&["get", "nodes", "-o", "name"], |names| names.lines().count() == count);
    carob.kubectl(&["wait", "--for=condition=Ready", "nodes", "--all", "--timeout=60s"]);
    eventually("the default service account exists", || {
        carob.run(&["get", "serviceaccount", "default"]).status.success()
    });
}

/// Nodes' names, the first worker's first.
pub(crate) fn nodes(carob: &Carob) -> Vec<String> {
    let mut names: Vec<String> = carob
        .kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"])
        .split(' ')
        .map(str::to_owned)
        .collect();
    names.sort_by_key(String::len);
    names
}

pub(crate) fn on(node: &str, mut pod: Value) -> Value {
    pod["spec"]["nodeName"] = json!(node);
    pod
}

pub(crate) fn server(name: &str) -> Value {
    let mut server = pod(name, &[tools("main", &["http-server"])]);
    server["metadata"]["labels"] = json!({"app": name, "serves": "web"});
    server
}

pub(crate) fn asks(carob: &Carob, from: &str, url: &str) -> String {
    let output = carob.run(&["exec", from, "--", "carob-tools", "get", url]);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn machine_gets(to: &str) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&to.parse().ok()?, Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

#[test]
fn two_workers_are_two_nodes_whose_pods_reach_each_other_and_what_is_for_them() {
    let mut carob = start("2");
    let names = nodes(&carob);
    assert_eq!(names[1], format!("{}-2", names[0]));
    // What they offer together is no more than there is.
    let all = carob.get(&["nodes"]);
    let sum: i64 =
        all["items"].as_array().unwrap().iter().map(|node| millis(&node["status"]["allocatable"]["cpu"])).sum();
    let cpus = i64::try_from(std::thread::available_parallelism().unwrap().get()).unwrap();
    assert!(sum <= cpus * 1000 && sum >= cpus * 1000 - 1, "{sum} of {cpus} CPUs");
    let ranges: BTreeSet<&str> =
        all["items"].as_array().unwrap().iter().filter_map(|node| node["spec"]["podCIDR"].as_str()).collect();
    assert_eq!(ranges.len(), 2);

    let port = free_port();
    let mut published = server("published");
    published["spec"]["containers"][0]["ports"] = json!([{"containerPort": 8080, "hostPort": port}]);
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"type": "NodePort", "selector": {"serves": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}});
    carob.apply(&list(&[
        on(&names[0], server("first")),
        on(&names[1], server("second")),
        on(&names[0], pod("here", &[idle("main")])),
        on(&names[1], pod("there", &[idle("main")])),
        service,
    ]));
    for name in ["first", "second", "here", "there"] {
        carob.wait(&format!("pod/{name}"), "condition=Ready");
    }
    let address = |pod: &str| carob.jsonpath(&format!("pod/{pod}"), ".status.podIP");
    let (first, second) = (address("first"), address("second"));
    for (from, to, name) in [("here", &second, "second"), ("there", &first, "first"), ("there", &second, "second")] {
        assert!(asks(&carob, from, &format!("http://{to}:8080/")).contains(name), "{from} reaches {name}");
    }
    assert!(
        machine_gets(&format!("{second}:8080")).is_some_and(|answer| answer.contains("second")),
        "from the machine"
    );
    // By name, through the Service, from both; through every node's port, also from the machine.
    let node_port = carob.jsonpath("service/web", ".spec.ports[0].nodePort");
    let address_of =
        |node: &str| carob.jsonpath(&format!("node/{node}"), ".status.addresses[?(@.type==\"InternalIP\")].address");
    let addresses = [address_of(&names[0]), address_of(&names[1])];
    assert_ne!(addresses[0], addresses[1]);
    for from in ["here", "there"] {
        let mut urls = vec!["http://web.default.svc.cluster.local/".to_owned()];
        urls.extend(addresses.iter().map(|address| format!("http://{address}:{node_port}/")));
        for url in urls {
            for server in ["first", "second"] {
                eventually(&format!("{from} reaches {server} by {url}"), || asks(&carob, from, &url).contains(server));
            }
        }
    }
    for address in &addresses {
        for server in ["first", "second"] {
            eventually(&format!("the machine reaches {server} by {address}"), || {
                machine_gets(&format!("{address}:{node_port}")).is_some_and(|answer| answer.contains(server))
            });
        }
    }
    // What is in a client's zone goes first.
    for (node, zone) in names.iter().zip(["east", "west"]) {
        carob.kubectl(&["label", "node", node, &format!("topology.kubernetes.io/zone={zone}")]);
    }
    carob.kubectl(&["patch", "service", "web", "-p", r#"{"spec":{"trafficDistribution":"PreferSameZone"}}"#]);
    let always = |from: &str, server: &str| {
        (0..12).all(|_| asks(&carob, from, "http://web.default.svc.cluster.local/").contains(server))
    };
    eventually("each asks the nearer one", || always("here", "first") && always("there", "second"));
    // Ports of the second node are its own.
    carob.apply(&on(&names[1], published).to_string());
    carob.wait("pod/published", "condition=Ready");
    eventually("its port", || {
        machine_gets(&format!("{}:{port}", addresses[1])).is_some_and(|a| a.contains("published"))
    });
    assert!(machine_gets(&format!("{}:{port}", addresses[0])).is_none(), "is not the first node's");
    // The API, by its Service, from a node that it isn't on.
    let knock = "until nc -w 5 kubernetes.default 443 </dev/null; do sleep 0.2; done";
    carob.apply(&on(&names[1], shell_pod("knock", knock)).to_string());
    carob.wait_phase("knock", "Succeeded");

    // A policy holds for who comes from another node.
    let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "closed"},
        "spec": {"podSelector": {"matchLabels": {"app": "second"}}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "there"}}}]}]}});
    carob.apply(&policy.to_string());
    let direct = format!("http://{second}:8080/");
    eventually("who may not is kept out", || !asks(&carob, "here", &direct).contains("second"));
    assert!(asks(&carob, "there", &direct).contains("second"), "who may is not");
    carob.kubectl(&["delete", "networkpolicy", "closed"]);

    // The bill knows who ran where, and kubectl top too.
    let containers: Value = serde_json::from_str(&carob.kubectl(&["get", "--raw", "/billing/v1/containers"])).unwrap();
    let billed: BTreeSet<&str> = containers["containers"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|container| container["node"].as_str())
        .collect();
    assert_eq!(billed, names.iter().map(String::as_str).collect());

    let counted = carob.bill(&["--pod", "there"])["total"]["traffic"].clone();
    assert!(counted["clusterReceivedBytes"].as_u64().is_some_and(|bytes| bytes > 0), "{counted}");
    assert_eq!(counted["internetSentBytes"], 0, "nodes are no internet: {counted}");

    // The gateway dies: no pod of either notices.
    let ids = |carob: &Carob| {
        carob.kubectl(&["get", "pods", "-o", "jsonpath={.items[*].status.containerStatuses[*].containerID}"])
    };
    let before = ids(&carob);
    carob.kill();
    assert!(machine_gets(&format!("{second}:8080")).is_some_and(|answer| answer.contains("second")), "it serves alone");
    carob.up(&["--workers", "2"]);
    ready(&carob, 2);
    eventually("the second worker answers for its pods", || {
        carob.run(&["exec", "there", "--", "carob-tools", "get", &direct]).status.success()
    });
    assert_eq!(ids(&carob), before);
    assert!(asks(&carob, "here", &direct).contains("second"));
    carob.kubectl(&["delete", "pod", "second", "--grace-period=0"]);

    // One worker less: its pods are stopped, its node goes, nothing of it stays.
    carob.terminate();
    carob.up(&["--workers", "1"]);
    ready(&carob, 1);
    assert_eq!(nodes(&carob), [names[0].clone()]);
    assert!(asks(&carob, "here", &format!("http://{first}:8080/")).contains("first"), "the first worker's go on");
    carob.down();
    assert_eq!(Traces::of(&carob.instance(), &carob.data_dir()), Traces::default());
}

fn millis(amount: &Value) -> i64 {
    let text = amount.as_str().expect("an amount");
    match text.strip_suffix('m') {
        Some(millis) => millis.parse().unwrap(),
        None => text.parse::<i64>().unwrap() * 1000,
    }
}

#[test]
fn pods_are_spread_over_nodes_move_when_one_is_drained_and_daemons_are_on_each() {
    let carob = start("2");
    let names = nodes(&carob);
    let labels = json!({"app": "apart"});
    let spread = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "apart"},
        "spec": {"replicas": 2, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [idle("main")],
                "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100,
                    "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": labels}}}]}}}}}});
    let daemon = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "daemon"},
        "spec": {"selector": {"matchLabels": {"app": "daemon"}}, "template": {"metadata": {"labels": {"app": "daemon"}},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [idle("main")]}}}});
    carob.apply(&list(&[spread, daemon]));
    carob.kubectl(&["rollout", "status", "deployment/apart", "--timeout=60s"]);
    carob.kubectl(&["rollout", "status", "daemonset/daemon", "--timeout=60s"]);
    let placed = |app: &str| -> BTreeSet<String> {
        let selector = format!("app={app}");
        let shown = carob.kubectl(&["get", "pods", "-l", &selector, "-o", "jsonpath={.items[*].spec.nodeName}"]);
        shown.split(' ').map(str::to_owned).collect()
    };
    let both: BTreeSet<String> = names.iter().cloned().collect();
    assert_eq!(placed("apart"), both);
    assert_eq!(placed("daemon"), both);
    carob.kubectl(&["drain", &names[1], "--ignore-daemonsets", "--force", "--timeout=60s"]);
    carob.kubectl(&["rollout", "status", "deployment/apart", "--timeout=60s"]);
    carob.until(&["get", "pods", "-l", "app=apart", "-o", "jsonpath={.items[*].spec.nodeName}"], |shown| {
        shown.split(' ').all(|node| node == names[0])
    });
}
