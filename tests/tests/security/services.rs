//! Addresses that a tenant may name in a Service, and that are somebody else's (CVE-2020-8554).

use carob_tests::Carob;
use carob_tests::pods::{list, pod, shell_pod};
use serde_json::{Value, json};

use crate::escapes::python;

/// Answers every request with its own name.
const SERVER: &str = r#"
import os, socket
name = os.environ["NAME"].encode()
server = socket.socket(); server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); server.bind(("", 8080)); server.listen(64)
while True:
    client, _ = server.accept()
    with client:
        client.recv(4096); client.sendall(b"HTTP/1.0 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(name), name))
"#;

fn service(name: &str, namespace: &str, spec: &Value) -> Value {
    let mut service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]}});
    for (field, value) in spec.as_object().expect("an object") {
        service["spec"][field] = value.clone();
    }
    service
}

#[test]
fn a_services_address_cannot_be_taken_by_another_ones_external_addresses() {
    let carob = Carob::start(&["busybox", "python"]);
    carob.kubectl(&["create", "namespace", "hostile"]);
    let server = |name: &str, namespace: &str| {
        let mut manifest = pod(name, &[python("main", SERVER, &[("NAME", name)])]);
        manifest["metadata"]["namespace"] = json!(namespace);
        manifest
    };
    carob.apply(&list(&[
        server("victim", "default"),
        service("victim", "default", &json!({})),
        server("thief", "hostile"),
        shell_pod("client", "sleep 3600"),
    ]));
    carob.wait("pod/client", "condition=Ready");
    let address = carob.jsonpath("service/victim", ".spec.clusterIP");
    let ask = |address: &str| {
        // Debian's busybox has a wget that ends with a fault where it is given a timeout.
        let script = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {address} 80 | tail -n 1");
        let answer = carob.run(&["exec", "client", "--", "sh", "-c", &script]);
        String::from_utf8_lossy(&answer.stdout).into_owned()
    };
    let is = |address: &str, name: &str| {
        carob_tests::eventually(&format!("{address} is {name}"), || ask(address) == name);
    };
    is(&address, "victim");
    // One of the hostile Service's addresses is nobody's: once that one leads to it, the others were told, too.
    let free = "192.0.2.77";
    let everything = |more: &str| {
        let ips = [address.as_str(), "192.0.2.77", more];
        service("thief", "hostile", &json!({"externalIPs": ips}))
    };
    carob.apply(&everything("192.0.2.78").to_string());
    is(free, "thief");
    for _ in 0..5 {
        assert_eq!(ask(&address), "victim");
    }
    // A change and an end of it take nothing away either.
    carob.apply(&everything("192.0.2.79").to_string());
    is("192.0.2.79", "thief");
    assert_eq!(ask(&address), "victim");
    carob.kubectl(&["delete", "service", "thief", "-n", "hostile"]);
    carob_tests::eventually("its address leads nowhere", || ask(free).is_empty());
    assert_eq!(ask(&address), "victim");
}
