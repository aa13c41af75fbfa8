//! Ports of the machine that lead to pods.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::time::Duration;

use carob_tests::pods::{idle, list, pod, tools};
use carob_tests::{Carob, eventually, free_port};
use serde_json::json;

/// The machine's own request; the answer, if there is one.
pub(crate) fn machine_gets(address: &str, port: u16) -> Option<String> {
    let to = format!("{address}:{port}").parse().ok()?;
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn echoes(address: &str, port: u16) -> bool {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a time");
    let mut heard = [0; 8];
    let sent = socket.connect((address, port)).and_then(|()| socket.send(b"echo"));
    sent.and_then(|_| socket.recv(&mut heard)).is_ok_and(|length| &heard[..length] == b"echo")
}

#[test]
fn host_ports_lead_to_a_pod_on_the_addresses_that_are_named_until_it_ends() {
    let mut carob = Carob::start(&["tools"]);
    let [everywhere, local, echo, elsewhere] = [free_port(), free_port(), free_port(), free_port()];
    let mut web = tools("main", &["http-server"]);
    web["ports"] = json!([{"containerPort": 8080, "hostPort": everywhere},
        {"name": "local", "containerPort": 8080, "hostPort": local, "hostIP": "127.0.0.1"},
        {"name": "elsewhere", "containerPort": 8080, "hostPort": elsewhere, "hostIP": "192.0.2.9"}]);
    let mut echoing = tools("echo", &["echo", "--port", "7"]);
    echoing["ports"] = json!([{"containerPort": 7, "hostPort": echo, "protocol": "UDP"}]);
    let mut host = pod("host", &[idle("main")]);
    host["spec"]["hostNetwork"] = json!(true);
    let said = carob.apply(&list(&[pod("server", &[web.clone(), echoing]), pod("client", &[idle("main")]), host]));
    assert!(!said.contains("hostPort"), "no warning that it isn't carried out: {said}");
    for name in ["server", "client", "host"] {
        carob.wait(&format!("pod/{name}"), "condition=Ready");
    }
    carob.wait_event("server", &format!("hostPort {elsewhere} leads nowhere: hostIP 192.0.2.9 is no"));
    let machine = carob.jsonpath("pod/host", ".status.hostIP");
    for address in [machine.as_str(), "127.0.0.1"] {
        eventually(&format!("{address}:{everywhere} leads to the pod"), || {
            machine_gets(address, everywhere).is_some_and(|answer| answer.contains("server"))
        });
        eventually(&format!("datagrams to {address}:{echo} come back"), || echoes(address, echo));
    }
    eventually("its own port on loopback", || machine_gets("127.0.0.1", local).is_some());
    assert!(machine_gets(&machine, local).is_none(), "which is nobody else's");
    for from in ["client", "server"] {
        let url = format!("http://{machine}:{everywhere}/");
        carob
            .until(&["exec", from, "-c", "main", "--", "carob-tools", "get", &url], |answer| answer.contains("server"));
    }
    // One machine has each port once.
    let mut second = pod("second", &[web]);
    second["spec"]["containers"][0]["ports"] = json!([{"containerPort": 8080, "hostPort": everywhere}]);
    carob.apply(&second.to_string());
    carob.wait_event("second", "free ports");

    carob.terminate();
    assert!(machine_gets("127.0.0.1", everywhere).is_some(), "the kernel goes on alone");
    carob.up(&[]);
    eventually("and after a restart", || machine_gets("127.0.0.1", everywhere).is_some());
    carob.kubectl(&["delete", "pod", "server", "--grace-period=1", "--wait"]);
    carob.wait("pod/second", "condition=Ready");
    eventually("the port is another's", || {
        machine_gets(&machine, everywhere).is_some_and(|answer| answer.contains("second"))
    });
    carob.kubectl(&["delete", "pod", "second", "--grace-period=1", "--wait"]);
    eventually("the port is free", || std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, everywhere)).is_ok());
    eventually("and leads nowhere", || machine_gets("127.0.0.1", everywhere).is_none());
}
