//! A pod's place in the network.

mod balancers;
mod bandwidth;
mod dual_stack;
mod isolation;
mod policies;
mod ports;
mod traffic;

use std::collections::BTreeSet;

use carob_tests::pods::{idle, list, pod, shell_pod, tools};
use carob_tests::terminal::Running;
use carob_tests::{Carob, eventually};
use serde_json::json;

#[test]
fn pods_have_addresses_and_reach_each_other_and_the_gateway() {
    let carob = Carob::start(&["tools", "python"]);
    let server = pod("server", &[tools("main", &["http-server"]), tools("echo", &["echo", "--port", "7"])]);
    let mut client = pod("client", &[idle("main")]);
    client["spec"]["hostname"] = json!("named");
    let mut host = pod("host", &[idle("main")]);
    host["spec"]["hostNetwork"] = json!(true);
    carob.apply(&list(&[server, client, host]));
    for name in ["server", "client", "host"] {
        carob.wait(&format!("pod/{name}"), "condition=Ready");
    }
    let server = carob.jsonpath("pod/server", ".status.podIP");
    let client = carob.jsonpath("pod/client", ".status.podIP");
    assert_ne!(server, client);
    assert_eq!(carob.jsonpath("pod/server", ".status.podIPs[0].ip"), server);
    assert_eq!(carob.jsonpath("pod/host", ".status.podIP"), carob.jsonpath("pod/host", ".status.hostIP"));
    // Ready without a probe isn't yet listening.
    let get =
        |from: &str, url: &str| carob.until(&["exec", from, "-c", "main", "--", "carob-tools", "get", url], |_| true);
    let answer = get("client", &format!("http://{server}:8080/hello"));
    assert!(answer.contains("server") && answer.contains("/hello"), "{answer}");
    assert!(answer.contains(&client), "the server sees the client's own address: {answer}");
    assert!(
        get("server", "http://127.0.0.1:8080/self").contains("/self"),
        "loopback, and containers of a pod share it"
    );
    assert!(
        get("server", &format!("http://{server}:8080/own")).contains("/own"),
        "a pod reaches itself by its address"
    );
    assert!(get("host", &format!("http://{server}:8080/")).contains("server"), "the machine reaches pods");
    eventually("bytes come back", || {
        let echoed = carob.pipe(&["exec", "-i", "client", "--", "nc", "-w", "2", &server, "7"], "there and back\n");
        echoed.stdout == b"there and back\n"
    });
    let health =
        carob.kubectl(&["exec", "server", "-c", "echo", "--", "wget", "-qO-", "http://localhost:8080/healthz"]);
    assert!(!health.is_empty(), "by the name localhost");

    let interfaces = carob.kubectl(&["exec", "client", "--", "ip", "-o", "addr"]);
    assert!(interfaces.contains("127.0.0.1/8") && interfaces.contains(&format!("inet {client}/")), "{interfaces}");
    let names: BTreeSet<_> = interfaces.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(names, BTreeSet::from(["lo", "eth0"]));
    let routes = carob.kubectl(&["exec", "client", "--", "ip", "route"]);
    let gateway =
        routes.lines().find_map(|line| line.strip_prefix("default via ")?.split(' ').next()).expect("a way out");
    carob.kubectl(&["exec", "client", "--", "ping", "-c", "1", "-W", "5", gateway]);
    carob.kubectl(&["exec", "client", "--", "ping", "-c", "1", "-W", "5", &server]);

    let script = "import os, ssl, urllib.request; print(urllib.request.urlopen('https://%s:%s/version' % (os.environ['KUBERNETES_SERVICE_HOST'], os.environ['KUBERNETES_SERVICE_PORT']), context=ssl.create_default_context(cafile='/var/run/secrets/kubernetes.io/serviceaccount/ca.crt'), timeout=20).read().decode())";
    let asking = pod(
        "asking",
        &[
            json!({"name": "main", "image": "python", "imagePullPolicy": "IfNotPresent", "command": ["python3", "-c", script]}),
        ],
    );
    assert!(carob.run_to_end(&asking).contains("gitVersion"), "the API at its service's address, with its certificate");
}

#[test]
fn hosts_resolv_conf_and_hostname_are_in_place() {
    let carob = Carob::start(&["busybox"]);
    let script = "hostname; echo --; cat /etc/hostname; echo --; cat /etc/hosts; echo --; cat /etc/resolv.conf";
    let mut named = shell_pod("named", script);
    named["spec"]["hostname"] = json!("other");
    named["spec"]["hostAliases"] = json!([{"ip": "192.0.2.7", "hostnames": ["seven.test", "siete.test"]}]);
    named["spec"]["dnsPolicy"] = json!("None");
    named["spec"]["dnsConfig"] = json!({"nameservers": ["192.0.2.53"], "searches": ["a.test", "b.test"], "options": [{"name": "ndots", "value": "2"}, {"name": "rotate"}]});
    carob.apply(&list(&[shell_pod("plain", script), named]));
    let printed = |name: &str| {
        carob.wait_phase(name, "Succeeded");
        let text = carob.kubectl(&["logs", name]);
        let address = carob.jsonpath(&format!("pod/{name}"), ".status.podIP");
        (text.split("--\n").map(str::to_owned).collect::<Vec<_>>(), address)
    };
    let (plain, address) = printed("plain");
    assert_eq!((plain[0].as_str(), plain[1].as_str()), ("plain\n", "plain\n"));
    assert!(plain[2].starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"), "{}", plain[2]);
    assert!(plain[2].lines().any(|line| line == format!("{address}\tplain")), "{}", plain[2]);
    assert!(plain[3].lines().any(|line| line.starts_with("nameserver ")), "{}", plain[3]);
    let (named, address) = printed("named");
    assert_eq!((named[0].as_str(), named[1].as_str()), ("other\n", "other\n"));
    assert!(named[2].lines().any(|line| line == format!("{address}\tother")), "{}", named[2]);
    assert!(
        named[2].ends_with("\n# Entries added by HostAliases.\n192.0.2.7\tseven.test\tsiete.test\n"),
        "{}",
        named[2]
    );
    assert_eq!(named[3], "search a.test b.test\nnameserver 192.0.2.53\noptions ndots:2 rotate\n");
}

#[test]
fn many_pods_at_once_get_addresses_of_their_own_which_are_free_again_afterwards() {
    let carob = Carob::start_with(&carob_tests::Setup {
        images: &["busybox"],
        arguments: &["--pod-cidr", "10.251.77.0/27"],
        ..Default::default()
    });
    // 32 addresses: network, broadcast and the bridge's are not for pods.
    let watch = Running::start(carob.kubectl_command().args(["get", "pods", "-w", "-o", "name"]));
    for round in ["a", "b"] {
        let pods: Vec<_> = (0..16)
            .map(|number| {
                let mut manifest = shell_pod(&format!("{round}{number}"), "sleep 3600");
                manifest["metadata"]["labels"] = json!({"round": round});
                manifest["spec"]["terminationGracePeriodSeconds"] = json!(0);
                manifest
            })
            .collect();
        carob.apply(&list(&pods));
        let label = format!("round={round}");
        carob.kubectl(&["wait", "--for=condition=Ready", "pods", "-l", &label, "--timeout=60s"]);
        let addresses = carob.kubectl(&["get", "pods", "-l", &label, "-o", "jsonpath={.items[*].status.podIP}"]);
        let distinct: BTreeSet<&str> = addresses.split(' ').collect();
        assert_eq!(distinct.len(), 16, "{addresses}");
        assert!(distinct.iter().all(|address| address.starts_with("10.251.77.")), "{addresses}");
        carob.kubectl(&["delete", "pods", "-l", &label, "--wait", "--timeout=60s"]);
    }
    drop(watch);
}

/// A network that is reached over a link of this machine and knows no way back to pods. Removed at the end.
struct Outside {
    name: String,
    /// This machine's address on the link, and the other side's.
    addresses: [String; 2],
}

impl Outside {
    fn new() -> Self {
        let number = std::process::id();
        let name = format!("carob-out-{number}");
        let third = number % 250;
        let outside = Self { addresses: [format!("198.18.{third}.1"), format!("198.18.{third}.2")], name };
        let link = format!("co{number}");
        let [near, far] = &outside.addresses;
        for arguments in [
            format!("netns add {}", outside.name),
            format!("link add {link} type veth peer name eth0 netns {}", outside.name),
            format!("addr add {near}/24 dev {link}"),
            format!("link set {link} up"),
            format!("-n {} addr add {far}/24 dev eth0", outside.name),
            format!("-n {} link set eth0 up", outside.name),
        ] {
            let done =
                std::process::Command::new("ip").args(arguments.split(' ')).status().expect("ip (package iproute2)");
            assert!(done.success(), "ip {arguments}");
        }
        outside
    }

    /// Asks for a page from there; the answer, if there is one.
    fn get(&self, at: std::net::SocketAddr) -> Option<String> {
        let namespace = std::fs::File::open(format!("/run/netns/{}", self.name)).expect("the namespace");
        let asking = std::thread::spawn(move || {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).expect("it can be entered");
            ports::machine_gets(&at.ip().to_string(), at.port())
        });
        asking.join().expect("it ends")
    }

    /// Accepts one connection there; who came.
    fn listen(&self, port: u16) -> std::thread::JoinHandle<std::net::IpAddr> {
        let namespace = std::fs::File::open(format!("/run/netns/{}", self.name)).expect("the namespace");
        let (ready, listening) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).expect("it can be entered");
            let listener = std::net::TcpListener::bind(("0.0.0.0", port)).expect("a port");
            ready.send(()).expect("the test waits");
            let (mut stream, peer) = listener.accept().expect("a connection");
            std::io::Write::write_all(&mut stream, b"outside\n").expect("it is taken");
            peer.ip()
        });
        listening.recv().expect("it listens");
        thread
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // The link goes with the namespace that has its other end.
        let _ = std::process::Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

#[test]
fn pods_reach_the_outside_under_the_machines_address() {
    let carob = Carob::start(&["busybox"]);
    carob.start_pod(&shell_pod("inside", "sleep 3600").to_string(), "inside");
    let outside = Outside::new();
    let [near, far] = &outside.addresses;
    let visitor = outside.listen(8000);
    let said = carob.kubectl(&["exec", "inside", "--", "nc", "-w", "10", far, "8000"]);
    assert_eq!(said, "outside\n");
    assert_eq!(visitor.join().expect("a visitor").to_string(), *near, "and not under its own");
}
