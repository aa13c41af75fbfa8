//! Workers on other machines.

use std::fs;

use carob_tests::machine::Traces;
use carob_tests::pods::{idle, list, pod, shell_pod};
use carob_tests::{Carob, Setup, eventually};
use serde_json::{Value, json};

use crate::machines::{Machine, Worker, gateway, ip, token};
use crate::{asks, machine_gets, nodes, on, ready, server};

#[test]
fn a_worker_joins_by_a_token_and_its_pods_are_like_any_others() {
    let machine = Machine::new();
    let mut carob =
        Carob::start_with(&Setup { images: &["tools", "busybox"], address: Some(&machine.here), ..Setup::default() });
    let gateway = gateway(&carob);
    let mut worker = Worker::new(&machine, &carob, "worker", &["tools"]);
    let good = token(&carob, "token", "1h");
    let join = ["--join", &gateway, "--node-name", "far", "--token-file"];
    let with = |more: &[&str]| -> Vec<String> { join.iter().chain(more).map(ToString::to_string).collect() };
    let refused = |more: &[&str]| {
        let all = with(more);
        worker.refused(&all.iter().map(String::as_str).collect::<Vec<_>>())
    };
    // What is wrong is said.
    let first = nodes(&carob)[0].clone();
    let text = fs::read_to_string(&good).unwrap();
    let wrong = carob.path("wrong");
    fs::write(&wrong, format!("aaaaaa.aaaaaaaaaaaaaaaa{}", &text[23..])).unwrap();
    let said = refused(&[wrong.to_str().unwrap()]);
    assert!(said.contains("does not take the token"), "{said}");
    let short = token(&carob, "short", "1s");
    eventually("a token that has expired is refused", || {
        // Before that, by a name that is taken.
        let said =
            worker.refused(&["--join", &gateway, "--token-file", short.to_str().unwrap(), "--node-name", &first]);
        said.contains("does not take the token")
    });
    fs::write(&wrong, &text[..23]).unwrap();
    let said = refused(&[wrong.to_str().unwrap()]);
    assert!(said.contains("--ca-file"), "{said}");
    fs::write(&wrong, "secret").unwrap();
    let said = refused(&[wrong.to_str().unwrap()]);
    assert!(said.contains("holds no token"), "{said}");
    let said = worker.refused(&["--join", &gateway, "--token-file", good.to_str().unwrap(), "--node-name", &first]);
    assert!(said.contains("there is a node") && said.contains(&first), "{said}");

    let all = with(&[good.to_str().unwrap()]);
    worker.start(&all.iter().map(String::as_str).collect::<Vec<_>>());
    ready(&carob, 2);
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"type": "NodePort", "selector": {"serves": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}});
    carob.apply(&list(&[
        on(&first, server("near")),
        on("far", server("afar")),
        on(&first, pod("here", &[idle("main")])),
        on("far", pod("there", &[idle("main")])),
        service,
    ]));
    for name in ["near", "afar", "here", "there"] {
        carob.wait(&format!("pod/{name}"), "condition=Ready");
    }
    let address = |pod: &str| carob.jsonpath(&format!("pod/{pod}"), ".status.podIP");
    let afar = format!("http://{}:8080/", address("afar"));
    let near = format!("http://{}:8080/", address("near"));
    eventually("there from here", || asks(&carob, "here", &afar).contains("afar"));
    eventually("here from there, and exec over the network", || asks(&carob, "there", &near).contains("near"));
    let port = carob.jsonpath("service/web", ".spec.ports[0].nodePort");
    for from in ["here", "there"] {
        for url in ["http://web.default.svc.cluster.local/".to_owned(), format!("http://{}:{port}/", machine.there)] {
            for server in ["near", "afar"] {
                eventually(&format!("{from} reaches {server} by {url}"), || asks(&carob, from, &url).contains(server));
            }
        }
    }
    let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "closed"},
        "spec": {"podSelector": {"matchLabels": {"app": "afar"}}, "policyTypes": ["Ingress"], "ingress": []}});
    carob.apply(&policy.to_string());
    eventually("a policy holds there for who is here", || !asks(&carob, "here", &afar).contains("afar"));
    carob.kubectl(&["delete", "networkpolicy", "closed"]);
    eventually("until it goes", || asks(&carob, "here", &afar).contains("afar"));
    // Its port is open for the gateway's machine, and for no pod.
    let door = format!("{}:10250", machine.there);
    assert!(std::net::TcpStream::connect(&door).is_ok(), "the gateway reaches it");
    let knock = format!("nc -w 5 {} 10250 </dev/null && exit 1; exit 0", machine.there);
    carob.apply(&on(&first, shell_pod("knock", &knock)).to_string());
    carob.wait_phase("knock", "Succeeded");

    // Both may die: pods go on, and are known again.
    let ids = |carob: &Carob| {
        carob.kubectl(&[
            "get",
            "pods",
            "afar",
            "there",
            "-o",
            "jsonpath={.items[*].status.containerStatuses[*].containerID}",
        ])
    };
    let before = ids(&carob);
    worker.kill();
    assert!(machine_gets(&format!("{}:8080", address("afar"))).is_some_and(|answer| answer.contains("afar")));
    carob.kill();
    carob.up(&[]);
    worker.start(&[]);
    eventually("its pods answer", || asks(&carob, "there", &near).contains("near"));
    assert_eq!(ids(&carob), before);

    // What it used is on the bill, once, to the kernel's last count.
    carob.kubectl(&["delete", "pod", "there", "--grace-period=0"]);
    let billed = || -> Vec<Value> {
        let all: Value = serde_json::from_str(&carob.kubectl(&["get", "--raw", "/billing/v1/containers"])).unwrap();
        let all = all["containers"].as_array().unwrap().clone();
        all.into_iter().filter(|container| container["node"] == "far").collect()
    };
    eventually("both containers are on the bill", || billed().len() == 2);
    let down = worker.down();
    assert!(down.status.success(), "{}", carob_tests::text(&down));
    let end = billed();
    assert!(end.iter().all(|container| container["cpuNanoseconds"].as_u64().unwrap() > 0), "{end:?}");
    assert!(carob.kubectl(&["get", "--raw", "/billing/v1/verify"]).contains("\"intact\":true"));
    assert_eq!(Traces::of(&worker.instance(), &worker.data()), Traces::default());
}

#[test]
fn a_worker_that_is_cut_off_is_replaced_and_ends_what_was_replaced_when_it_returns() {
    let machine = Machine::new();
    let carob = Carob::start_with(&Setup {
        images: &["tools"],
        address: Some(&machine.here),
        config: Some("nodeGraceSeconds: 15\n"),
        ..Setup::default()
    });
    let first = nodes(&carob)[0].clone();
    let mut worker = Worker::new(&machine, &carob, "worker", &["tools"]);
    worker.join(&carob, "far");
    ready(&carob, 2);
    carob.kubectl(&["cordon", &first]);
    let labels = json!({"app": "moving"});
    let tolerates =
        |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1});
    carob.apply(
        &json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "moving"},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [idle("main")], "tolerations":
                [tolerates("node.kubernetes.io/unreachable"), tolerates("node.kubernetes.io/not-ready")]}}}})
        .to_string(),
    );
    carob.kubectl(&["rollout", "status", "deployment/moving", "--timeout=60s"]);
    carob.kubectl(&["uncordon", &first]);
    let old = carob.kubectl(&["get", "pods", "-l", "app=moving", "-o", "jsonpath={.items[0].metadata.name}"]);
    assert_eq!(worker.containers().len(), 1);

    ip(&format!("link set {} down", machine.link));
    carob.wait("node/far", "condition=Ready=Unknown");
    let running = ["get", "pods", "-l", "app=moving", "--field-selector=status.phase=Running", "-o"];
    let shown = "jsonpath={range .items[*]}{.metadata.name}={.spec.nodeName} {end}";
    let mut running = running.to_vec();
    running.push(shown);
    carob.until(&running, |pods| pods.contains(&format!("={first}")));
    assert_eq!(worker.containers().len(), 1, "it goes on where nobody can tell it to end");

    ip(&format!("link set {} up", machine.link));
    ip(&format!("-n {} route replace default via {}", machine.namespace, machine.here));
    eventually("what was replaced ends there", || worker.containers().is_empty());
    carob.wait("node/far", "condition=Ready=True");
    eventually("and its object goes", || !carob.run(&["get", "pod", &old]).status.success());
}

#[test]
fn a_worker_whose_addresses_were_given_away_says_so_and_how_it_gets_others() {
    let machines = [Machine::new(), Machine::new()];
    // This machine is the router between the two.
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    let carob = Carob::start_with(&Setup { address: Some(&machines[0].here), ..Setup::default() });
    let mut absent = Worker::new(&machines[0], &carob, "absent", &[]);
    absent.join(&carob, "absent");
    ready(&carob, 2);
    let block = |node: &str| carob.jsonpath(&format!("node/{node}"), ".spec.podCIDR");
    let given = block("absent");
    absent.kill();
    carob.kubectl(&["delete", "node", "absent"]);
    let mut heir = Worker::new(&machines[1], &carob, "heir", &[]);
    heir.join(&carob, "heir");
    ready(&carob, 2);
    assert_eq!(block("heir"), given, "it is free again");
    let said = absent.refused(&[]);
    let why = format!("node \"heir\" has addresses of {given} for its pods");
    assert!(said.contains(&why) && said.contains("carob down --data-dir"), "{said}");
    assert_eq!(nodes(&carob).len(), 2);
    let down = absent.down();
    assert!(down.status.success(), "{}", carob_tests::text(&down));
    absent.start(&[]);
    ready(&carob, 3);
    assert_ne!(block("absent"), given);
}
