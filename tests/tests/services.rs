//! Services: real connections between pods, and from the machine, by way of a Service.

#[path = "services/dual_stack.rs"]
mod dual_stack;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::time::Duration;

use carob_tests::pods::{idle, list, pod, shell_pod, tools};
use carob_tests::{Carob, eventually};
use serde_json::{Value, json};

fn service(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

/// A pod that tells over HTTP who it is, and echoes on 7; `app` is the label that Services choose it by.
fn server(name: &str, app: &str) -> Value {
    let mut server = pod(name, &[tools("main", &["http-server"]), tools("echo", &["echo", "--port", "7"])]);
    server["metadata"]["labels"] = json!({ "app": app });
    server
}

/// An answer to the pod `from`. A pod that has no probe is Ready before it listens, and a Service leads to it a moment
/// after that: so what is asked for is that the answer comes.
fn get(carob: &Carob, from: &str, url: &str) -> String {
    carob.until(&["exec", from, "-c", "main", "--", "carob-tools", "get", url], |_| true)
}

/// The machine's own request, until there is an answer that holds this text.
fn machine_gets(address: &str, port: &str, text: &str) {
    eventually(&format!("{address}:{port} answers with {text:?}"), || {
        get_from_machine(address, port).is_some_and(|answer| answer.contains(text))
    });
}

/// Whether a datagram to this address comes back.
fn echoes(address: &str) -> bool {
    let datagrams = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    datagrams.set_read_timeout(Some(Duration::from_secs(1))).expect("a time");
    datagrams.connect(address).expect("a way");
    let mut echoed = [0; 32];
    let length = datagrams.send(b"there and back").and_then(|_| datagrams.recv(&mut echoed));
    length.is_ok_and(|length| &echoed[..length] == b"there and back")
}

/// The answer of the machine's own request, if there is one.
fn get_from_machine(address: &str, port: &str) -> Option<String> {
    let mut stream = TcpStream::connect(format!("{address}:{port}")).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
    stream.shutdown(Shutdown::Write).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

#[test]
fn pods_and_the_machine_reach_a_services_pods_by_its_address() {
    let mut carob = Carob::start(&["tools"]);
    let spec = json!({"type": "NodePort", "selector": {"app": "web"}, "ports": [
        {"name": "http", "port": 80, "targetPort": 8080}, {"name": "echo", "port": 7, "protocol": "UDP"},
        {"name": "echo-tcp", "port": 7, "protocol": "TCP"}
    ]});
    let mut host = pod("host", &[idle("main")]);
    host["spec"]["hostNetwork"] = json!(true);
    let nobody = service("nobody", &json!({"selector": {"app": "nobody"}, "ports": [{"port": 80}]}));
    carob.apply(&list(&[
        server("one", "web"),
        server("two", "web"),
        pod("client", &[idle("main")]),
        host,
        service("web", &spec),
        nobody,
    ]));
    for name in ["one", "two", "client", "host"] {
        carob.wait(&format!("pod/{name}"), "condition=Ready");
    }
    let address = carob.jsonpath("service/web", ".spec.clusterIP");
    let client = carob.jsonpath("pod/client", ".status.podIP");
    let url = format!("http://{address}/hello");
    let mut seen = BTreeSet::new();
    eventually("both pods answer", || {
        let answer = get(&carob, "client", &url);
        assert!(answer.contains(&client), "the pod sees who asks: {answer}");
        seen.extend(["one", "two"].into_iter().filter(|name| answer.contains(*name)));
        seen.len() == 2
    });
    get(&carob, "host", &url);
    for _ in 0..8 {
        assert!(get(&carob, "one", &url).contains("/hello"), "also when it is itself that answers");
    }
    eventually("bytes come back over TCP", || {
        let echoed = carob.pipe(&["exec", "-i", "client", "--", "nc", "-w", "2", &address, "7"], "there and back\n");
        echoed.stdout == b"there and back\n"
    });
    eventually("datagrams come back", || echoes(&format!("{address}:7")));
    machine_gets(&address, "80", "200");
    let node_port = carob.jsonpath("service/web", ".spec.ports[0].nodePort");
    let machine = carob.jsonpath("pod/host", ".status.podIP");
    machine_gets(&machine, &node_port, "200");
    get(&carob, "client", &format!("http://{machine}:{node_port}/"));

    let nobody = carob.jsonpath("service/nobody", ".spec.clusterIP");
    let refused = carob.kubectl_fails(&["exec", "client", "--", "carob-tools", "get", &format!("http://{nobody}/")]);
    assert!(refused.to_lowercase().contains("refused"), "{refused}");

    // A gateway that isn't there changes nothing; the next one carries on where it finds things.
    carob.terminate();
    assert!(get_from_machine(&address, "80").is_some_and(|answer| answer.contains("200")));
    carob.up(&[]);
    carob.kubectl(&["delete", "pod", "one", "two", "--grace-period=1", "--wait"]);
    eventually("nobody is there any more", || get_from_machine(&address, "80").is_none());
    carob.apply(&list(&[server("three", "web")]));
    machine_gets(&address, "80", "three");
    carob.down();
    // Whoever else may have that address beyond the machine's own router: it isn't this pod.
    let left = get_from_machine(&address, "80");
    assert!(!left.is_some_and(|answer| answer.contains("three")), "nothing is left");
}

#[test]
fn an_address_that_two_services_ask_for_is_the_olders_until_that_goes() {
    let carob = Carob::start(&["tools"]);
    let address = "192.0.2.77";
    let at = |name: &str, app: &str| {
        let spec =
            json!({"selector": {"app": app}, "externalIPs": [address], "ports": [{"port": 80, "targetPort": 8080}]});
        service(name, &spec)
    };
    carob.apply(&list(&[server("one", "one"), server("two", "two"), pod("client", &[idle("main")])]));
    for name in ["one", "two", "client"] {
        carob.wait(&format!("pod/{name}"), "condition=Ready");
    }
    let asked = || get(&carob, "client", &format!("http://{address}/"));
    let own = |name: &str| {
        let address = carob.jsonpath(&format!("service/{name}"), ".spec.clusterIP");
        get(&carob, "client", &format!("http://{address}/"))
    };
    carob.apply(&at("first", "one").to_string());
    eventually("the older one has it", || asked().contains("one"));
    carob.apply(&at("second", "two").to_string());
    eventually("its own address leads to it", || own("second").contains("two"));
    for _ in 0..5 {
        assert!(asked().contains("one"));
    }
    carob.kubectl(&["delete", "service", "first"]);
    eventually("the other one has it", || asked().contains("two"));
}

#[test]
fn a_client_with_affinity_stays_and_an_unready_pod_gets_nothing() {
    let carob = Carob::start(&["tools"]);
    let sticky =
        json!({"selector": {"app": "web"}, "sessionAffinity": "ClientIP", "ports": [{"port": 80, "targetPort": 8080}]});
    let mut unready = server("unready", "web");
    unready["spec"]["containers"][0]["readinessProbe"] =
        json!({"exec": {"command": ["carob-tools", "exit", "1"]}, "periodSeconds": 1});
    let open = json!({"selector": {"app": "web"}, "publishNotReadyAddresses": true, "ports": [{"port": 80, "targetPort": 8080}]});
    carob.apply(&list(&[
        server("one", "web"),
        server("two", "web"),
        unready,
        pod("client", &[idle("main")]),
        service("sticky", &sticky),
        service("open", &open),
    ]));
    for name in ["one", "two", "client"] {
        carob.wait(&format!("pod/{name}"), "condition=Ready");
    }
    let answered = |service: &str, times: usize| -> BTreeSet<&'static str> {
        let url = format!("http://{}/", carob.jsonpath(&format!("service/{service}"), ".spec.clusterIP"));
        (0..times)
            .filter_map(|_| {
                let answer = get(&carob, "client", &url);
                ["unready", "one", "two"].into_iter().find(|name| answer.contains(*name))
            })
            .collect()
    };
    let slices = ["get", "endpointslices", "-l", "kubernetes.io/service-name=sticky", "-o", "jsonpath={..ready}"];
    carob.until(&slices, |text| text.matches("true").count() == 2);
    let before = answered("sticky", 1);
    assert_eq!(answered("sticky", 12), before);
    let stays = before.into_iter().next().expect("somebody answered");
    assert_ne!(stays, "unready");
    carob.kubectl(&["delete", "pod", stays, "--grace-period=1", "--wait"]);
    let other = if stays == "one" { "two" } else { "one" };
    eventually("the other pod answers", || answered("sticky", 1).contains(other));
    eventually("unready pods are published where that is wanted", || answered("open", 8).contains("unready"));
}

#[test]
fn the_api_leads_to_a_pod_a_service_and_a_nodes_worker() {
    let mut carob = Carob::start(&["tools"]);
    let web = service(
        "web",
        &json!({"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}),
    );
    carob.apply(&list(&[server("one", "web"), web]));
    carob.wait("pod/one", "condition=Ready");
    for what in ["pods/one:8080", "pods/http:one:8080", "services/web:http", "services/http:web:80"] {
        let path = format!("/api/v1/namespaces/default/{what}/proxy/hello/there");
        // It may listen, and be an endpoint, a moment after it is Ready.
        let answer = carob.until(&["get", "--raw", &path], |answer| answer.contains("hostname: one"));
        assert!(answer.contains("request: GET /hello/there"), "{answer}");
    }
    let refused = carob.kubectl_fails(&["get", "--raw", "/api/v1/namespaces/default/services/web:none/proxy/"]);
    assert!(refused.contains("no endpoints available for service \"web\""), "{refused}");
    let refused = carob.kubectl_fails(&["get", "--raw", "/api/v1/namespaces/default/pods/one:9/proxy/"]);
    assert!(refused.contains("connection refused"), "{refused}");
    let node = carob.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
    assert_eq!(carob.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/healthz")]).trim(), "ok");
    carob.down();
}

#[test]
fn a_container_has_the_variables_of_the_services_that_were_there_when_it_started() {
    let carob = Carob::start(&["busybox"]);
    // In one list: the pod comes right behind the Service.
    let ports =
        json!([{"name": "http", "port": 8765, "targetPort": 8080}, {"name": "dns-udp", "port": 53, "protocol": "UDP"}]);
    let mut without = shell_pod("without", "sleep 3600");
    without["spec"]["enableServiceLinks"] = json!(false);
    carob.apply(&list(&[
        service("the-web", &json!({"selector": {"app": "web"}, "ports": ports})),
        shell_pod("with", "sleep 3600"),
        without,
    ]));
    let variables = |pod: &str| {
        carob.wait(&format!("pod/{pod}"), "condition=Ready");
        carob.kubectl(&["exec", pod, "--", "env"])
    };
    let address = carob.jsonpath("service/the-web", ".spec.clusterIP");
    let seen = variables("with");
    for expected in [
        format!("THE_WEB_SERVICE_HOST={address}"),
        "THE_WEB_SERVICE_PORT=8765".to_owned(),
        "THE_WEB_SERVICE_PORT_DNS_UDP=53".to_owned(),
        format!("THE_WEB_PORT_8765_TCP=tcp://{address}:8765"),
        format!("THE_WEB_PORT_53_UDP_ADDR={address}"),
    ] {
        assert!(seen.lines().any(|line| line == expected), "{expected} in:\n{seen}");
    }
    let without = variables("without");
    assert!(!without.contains("THE_WEB") && without.contains("KUBERNETES_SERVICE_HOST="), "{without}");
}
