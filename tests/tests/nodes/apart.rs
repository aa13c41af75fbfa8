//! Workers on networks of their own, of a gateway that has none beside it.

use std::fs;
use std::process::Command;

use carob_tests::machine::Traces;
use carob_tests::pods::{idle, list, pod, shell_pod};
use carob_tests::{Carob, Setup, eventually, text};
use serde_json::json;

use crate::machines::{Machine, Worker};
use crate::{asks, on, ready, server};

#[test]
fn pods_of_machines_that_share_no_network_reach_each_other_names_and_the_api_of_a_gateway_alone() {
    let machines = [Machine::new(), Machine::new()];
    // This machine is the router between the two.
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    let carob = Carob::start_with(&Setup {
        address: Some(&machines[0].here),
        arguments: &["--workers", "0"],
        ..Setup::default()
    });
    let mut workers = [("one", &machines[0]), ("two", &machines[1])].map(|(name, machine)| {
        let mut worker = Worker::new(machine, &carob, name, &["tools", "busybox"]);
        worker.join(&carob, name);
        worker
    });
    ready(&carob, 2);
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"type": "NodePort", "selector": {"serves": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}});
    carob.apply(&list(&[
        on("one", server("first")),
        on("two", server("second")),
        on("one", pod("here", &[idle("main")])),
        on("two", pod("there", &[idle("main")])),
        service,
    ]));
    for name in ["first", "second", "here", "there"] {
        carob.wait(&format!("pod/{name}"), "condition=Ready");
    }
    let url = |pod: &str| format!("http://{}:8080/", carob.jsonpath(&format!("pod/{pod}"), ".status.podIP"));
    let (first, second) = (url("first"), url("second"));
    eventually("there from here", || asks(&carob, "here", &second).contains("second"));
    eventually("here from there", || asks(&carob, "there", &first).contains("first"));
    for machine in &machines {
        let arguments = ["-n", &machine.namespace, "-o", "link", "show", "type", "vxlan"];
        let packed = Command::new("ip").args(arguments).output().unwrap();
        assert!(text(&packed).contains("cx-"), "their packets go in packets");
    }
    let much = asks(&carob, "here", &format!("{second}?bytes=1Mi"));
    assert!(much.len() >= 1 << 20, "packets of any size arrive: {} bytes did", much.len());

    let port = carob.jsonpath("service/web", ".spec.ports[0].nodePort");
    let mut urls = vec!["http://web.default.svc.cluster.local/".to_owned()];
    urls.extend(machines.iter().map(|machine| format!("http://{}:{port}/", machine.there)));
    for from in ["here", "there"] {
        for url in &urls {
            for server in ["first", "second"] {
                eventually(&format!("{from} reaches {server} by {url}"), || asks(&carob, from, url).contains(server));
            }
        }
    }
    let knock = "until nc -w 5 kubernetes.default 443 </dev/null; do sleep 0.2; done";
    for node in ["one", "two"] {
        let name = format!("knock-{node}");
        carob.apply(&on(node, shell_pod(&name, knock)).to_string());
        carob.wait_phase(&name, "Succeeded");
    }

    let among = |label: &str| json!([{"podSelector": {"matchLabels": {"app": label}}}]);
    let mut client = pod("client", &[idle("main")]);
    client["metadata"]["labels"] = json!({"app": "client"});
    carob.start_pod(&on("one", client).to_string(), "client");
    let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "closed"},
        "spec": {"podSelector": {"matchLabels": {"app": "second"}}, "policyTypes": ["Ingress"],
            "ingress": [{"from": among("client")}]}});
    carob.apply(&policy.to_string());
    eventually("who may not is kept out", || !asks(&carob, "here", &second).contains("second"));
    assert!(asks(&carob, "client", &second).contains("second"), "who may is not");
    assert!(!asks(&carob, "there", &second).contains("second"), "nor is its neighbour let in");
    let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "bound"},
        "spec": {"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"],
            "egress": [{"to": among("first")}]}});
    carob.apply(&policy.to_string());
    eventually("nor does who may not get out", || !asks(&carob, "client", &second).contains("second"));
    assert!(asks(&carob, "client", &first).contains("first"), "but to where it may");

    // What one worker's pods send to another's is the cluster's, however it is packed on the way.
    let traffic = |pod: &str| carob.bill(&["--pod", pod])["total"]["traffic"].clone();
    let counted = |pod: &str, field: &str| traffic(pod)[field].as_u64().unwrap_or(0);
    eventually("it is on the bill of both", || {
        counted("here", "clusterReceivedBytes") > 1 << 20 && counted("second", "clusterSentBytes") > 1 << 20
    });
    for pod in ["here", "there", "first", "second"] {
        assert!(counted(pod, "clusterSentBytes") > 0, "{pod}: {}", traffic(pod));
        for field in ["internetReceivedBytes", "internetSentBytes"] {
            assert_eq!(counted(pod, field), 0, "{pod}: {}", traffic(pod));
        }
    }

    for worker in &mut workers {
        let down = worker.down();
        assert!(down.status.success(), "{}", text(&down));
        assert_eq!(Traces::of(&worker.instance(), &worker.data()), Traces::default());
    }
}
