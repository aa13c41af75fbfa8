//! What a pod that means ill tries, with all the rights in its network that it can have.

use std::net::TcpListener;

use carob_tests::pods::{idle, list, pod, tools};
use carob_tests::{Carob, eventually, free_port};
use serde_json::{Value, json};

/// A pod that may change its network and send what it likes.
fn attacker() -> Value {
    let mut container = idle("main");
    container["securityContext"] = json!({"capabilities": {"add": ["NET_ADMIN", "NET_RAW"]}, "runAsUser": 0});
    pod("attacker", &[container])
}

struct Scene {
    carob: Carob,
    victim: String,
    attacker: String,
    gateway: String,
}

impl Scene {
    fn new(config: Option<&str>) -> Self {
        let carob = Carob::start_with(&carob_tests::Setup { images: &["tools"], config, ..Default::default() });
        carob.apply(&list(&[
            attacker(),
            pod("victim", &[tools("main", &["http-server"])]),
            pod("client", &[idle("main")]),
        ]));
        for name in ["attacker", "victim", "client"] {
            carob.wait(&format!("pod/{name}"), "condition=Ready");
        }
        let victim = carob.jsonpath("pod/victim", ".status.podIP");
        let attacker = carob.jsonpath("pod/attacker", ".status.podIP");
        let routes = carob.kubectl(&["exec", "attacker", "--", "ip", "route"]);
        let gateway = routes.lines().find_map(|line| line.strip_prefix("default via ")?.split(' ').next());
        let gateway = gateway.expect("a way out").to_owned();
        Self { carob, victim, attacker, gateway }
    }

    /// A shell script in the attacker's pod; whether it succeeded.
    fn attack(&self, script: &str) -> bool {
        self.carob.run(&["exec", "attacker", "--", "sh", "-c", script]).status.success()
    }

    fn must(&self, script: &str) {
        let output = self.carob.run(&["exec", "attacker", "--", "sh", "-c", script]);
        assert!(output.status.success(), "{script}: {}", carob_tests::text(&output));
    }

    fn client_reaches_victim(&self) -> bool {
        let url = format!("http://{}:8080/", self.victim);
        let command = ["exec", "client", "--", "carob-tools", "get", "--timeout", "2s", &url];
        self.carob.run(&command).status.success()
    }
}

#[test]
fn a_pod_can_neither_take_anothers_address_nor_its_packets() {
    let scene = Scene::new(None);
    let Scene { victim, attacker, gateway, .. } = &scene;
    eventually("the client reaches the victim", || scene.client_reaches_victim());
    // With the victim's address as its own it answers ARP for it, announces it, and sends from it.
    scene.must(&format!("ip addr add {victim}/32 dev eth0"));
    scene.must(&format!("arping -U -c 3 -I eth0 {victim} >/dev/null 2>&1 || true"));
    scene.must(
        "(while true; do printf 'HTTP/1.1 200 OK\\r\\n\\r\\nstolen' | nc -l -p 8080; done) >/dev/null 2>&1 & true",
    );
    for _ in 0..5 {
        let url = format!("http://{victim}:8080/");
        let answer = scene.carob.kubectl(&["exec", "client", "--", "carob-tools", "get", &url]);
        assert!(answer.contains("victim"), "{answer}");
    }
    assert!(scene.attack(&format!("ping -c 1 -W 2 -I {attacker} {gateway}")), "from its own address it may ask");
    assert!(!scene.attack(&format!("ping -c 1 -W 2 -I {victim} {gateway}")), "and from no other");
    // Another hardware address makes it nobody else either.
    scene
        .must("ip link set dev eth0 down && ip link set dev eth0 address 0a:58:01:02:03:04 && ip link set dev eth0 up");
    scene.must(&format!("ip route replace {gateway} dev eth0; ip route replace default via {gateway} dev eth0"));
    assert!(!scene.attack(&format!("ping -c 1 -W 2 -I {victim} {gateway}")));
    assert!(scene.client_reaches_victim());
}

#[test]
fn a_pod_does_not_reach_the_machines_loopback_services_nor_its_metadata() {
    let scene = Scene::new(None);
    let Scene { gateway, attacker, .. } = &scene;
    let private = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = private.local_addr().expect("its address").port();
    assert!(!scene.attack(&format!("nc -w 2 {gateway} {port} </dev/null")), "it listens on loopback alone");
    // A packet for a loopback address that is sent to the machine as its router.
    scene.must("ip route del local 127.0.0.0/8 table local; ip addr flush dev lo; true");
    scene.must(&format!("ip route add 127.0.0.0/8 via {gateway} dev eth0 src {attacker} onlink; true"));
    scene.must("for f in /proc/sys/net/ipv4/conf/*/route_localnet; do echo 1 > $f; done 2>/dev/null; true");
    assert!(!scene.attack(&format!("nc -w 2 127.0.0.1 {port} </dev/null")));
    private.set_nonblocking(true).expect("it can be asked");
    assert!(private.accept().is_err(), "nobody came");
    let metadata = "nc -w 3 169.254.169.254 80 </dev/null";
    let refused = scene.carob.kubectl_fails(&["exec", "client", "--", "sh", "-c", metadata]);
    assert!(!refused.contains("timed out"), "it is refused, not waited for: {refused}");
}

/// Host ports on loopback make the kernel take loopback packets from links: still only answers.
#[test]
fn a_pod_with_a_port_on_the_machines_loopback_reaches_nothing_else_there() {
    let carob = Carob::start(&["tools"]);
    let mut container = idle("main");
    container["securityContext"] = json!({"capabilities": {"add": ["NET_ADMIN", "NET_RAW"]}, "runAsUser": 0});
    container["ports"] = json!([{"containerPort": 80, "hostPort": free_port(), "hostIP": "127.0.0.1"}]);
    carob.start_pod(&pod("attacker", &[container]).to_string(), "attacker");
    let private = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = private.local_addr().expect("its address").port();
    let script = format!(
        "gw=$(ip route | sed -n 's/^default via \\([0-9.]*\\).*/\\1/p'); own=$(hostname -i | cut -d' ' -f1); \
         ip route del local 127.0.0.0/8 table local; ip addr flush dev lo; \
         ip route add 127.0.0.0/8 via $gw dev eth0 src $own onlink; nc -w 2 127.0.0.1 {port} </dev/null"
    );
    assert!(!carob.run(&["exec", "attacker", "--", "sh", "-c", &script]).status.success());
    private.set_nonblocking(true).expect("it can be asked");
    assert!(private.accept().is_err(), "nobody came");
}
