//! Services of type LoadBalancer: addresses of a pool, reached from the machine's own network.

use std::net::{IpAddr, SocketAddr, TcpListener};

use carob_tests::pods::{idle, list, pod, tools};
use carob_tests::{Carob, Setup, eventually};
use serde_json::{Value, json};

use crate::Outside;
use crate::ports::machine_gets;

fn balanced(name: &str, more: &Value) -> Value {
    let mut spec =
        json!({"type": "LoadBalancer", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]});
    for (key, value) in more.as_object().expect("an object") {
        spec[key] = value.clone();
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

fn web(name: &str) -> Value {
    let mut server = pod(name, &[tools("main", &["http-server"])]);
    server["metadata"]["labels"] = json!({"app": "web"});
    server
}

#[test]
fn balancers_have_addresses_of_the_pool_that_the_machines_network_reaches() {
    let outside = Outside::new();
    let near = outside.addresses[0].clone();
    let network = near.rsplit_once('.').expect("an address").0;
    let config = format!("network:\n  loadBalancers: [{network}.100-{network}.101]\n");
    let mut carob = Carob::start_with(&Setup { images: &["tools"], config: Some(&config), ..Setup::default() });
    let address = |name: &str| carob.jsonpath(&format!("service/{name}"), ".status.loadBalancer.ingress[0].ip");
    let said = carob.apply(&list(&[
        web("web"),
        pod("client", &[idle("main")]),
        balanced("one", &json!({"externalTrafficPolicy": "Local"})),
    ]));
    assert!(!said.contains("Warning"), "{said}");
    carob.wait("pod/web", "condition=Ready");
    carob.wait("service/one", "jsonpath={.status.loadBalancer.ingress[0].ip}");
    let one = address("one");
    let at: SocketAddr = format!("{one}:80").parse().expect("an address");
    assert!(one.starts_with(network), "{one}");
    eventually("the machine reaches it", || machine_gets(&one, 80).is_some_and(|answer| answer.contains("web")));
    carob.until(&["exec", "client", "--", "carob-tools", "get", &format!("http://{one}/")], |answer| {
        answer.contains("web")
    });
    eventually("who is on the machine's network reaches it", || {
        outside.get(at).is_some_and(|answer| answer.contains("web") && answer.contains(&outside.addresses[1]))
    });
    // The machine's own services aren't to be had at that address.
    let own = TcpListener::bind("0.0.0.0:0").expect("a port");
    let port = own.local_addr().expect("its address").port();
    assert!(outside.get(SocketAddr::new(near.parse::<IpAddr>().expect("an address"), port)).is_none());
    own.set_nonblocking(true).expect("it can be asked");
    own.accept().expect("at the machine's address, somebody came");
    assert!(outside.get(SocketAddr::new(at.ip(), port)).is_none());
    assert!(own.accept().is_err(), "and nobody at the balancer's");

    let health: u16 = carob.jsonpath("service/one", ".spec.healthCheckNodePort").parse().expect("a port");
    eventually("there is an endpoint here", || {
        machine_gets("127.0.0.1", health)
            .is_some_and(|answer| answer.starts_with("HTTP/1.1 200") && answer.contains("\"localEndpoints\":1"))
    });
    let ranges = |ranges: &str| {
        let patch = format!("{{\"spec\":{{\"loadBalancerSourceRanges\":[\"{ranges}\"]}}}}");
        carob.kubectl(&["patch", "service", "one", "-p", &patch]);
    };
    ranges("203.0.113.0/24");
    eventually("others are kept out", || outside.get(at).is_none());
    assert!(machine_gets(&one, 80).is_some(), "not the machine itself");
    ranges(&format!("{network}.2/31"));
    eventually("and let in", || outside.get(at).is_some());

    carob.apply(&list(&[
        balanced("two", &json!({"allocateLoadBalancerNodePorts": false})),
        balanced("other", &json!({"loadBalancerClass": "example.com/other"})),
    ]));
    carob.wait("service/two", "jsonpath={.status.loadBalancer.ingress[0].ip}");
    assert_ne!(address("two"), one);
    assert_eq!(carob.jsonpath("service/two", ".spec.ports[0].nodePort"), "");
    carob.apply(&list(&[balanced("three", &json!({}))]));
    carob.wait_event("three", "All IPv4 addresses of the pool are taken");
    assert!(address("other").is_empty() && address("three").is_empty());
    carob.kubectl(&["delete", "service", "one"]);
    carob.wait("service/three", "jsonpath={.status.loadBalancer.ingress[0].ip}");
    assert_eq!(address("three"), one);
    carob.kubectl(&["delete", "pod", "web", "--grace-period=1", "--wait"]);
    eventually("without a pod nobody answers", || machine_gets(&one, 80).is_none());
    carob.down();
    let addresses = std::process::Command::new("ip").args(["-o", "addr"]).output().expect("ip").stdout;
    assert!(!String::from_utf8_lossy(&addresses).contains(&one), "the machine has the address no more");
}

#[test]
fn a_pod_that_ends_serves_until_nothing_else_is_left_to() {
    let carob = Carob::start(&["tools"]);
    let mut ending = web("ending");
    ending["spec"]["terminationGracePeriodSeconds"] = json!(60);
    ending["spec"]["containers"][0]["lifecycle"] = json!({"preStop": {"sleep": {"seconds": 50}}});
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}});
    carob.apply(&list(&[ending, service]));
    carob.wait("pod/ending", "condition=Ready");
    let address = carob.jsonpath("service/web", ".spec.clusterIP");
    let answers = |name: &str| machine_gets(&address, 80).is_some_and(|answer| answer.contains(name));
    eventually("it answers", || answers("ending"));
    carob.kubectl(&["delete", "pod", "ending", "--wait=false"]);
    let conditions = [
        "get",
        "endpointslices",
        "-l",
        "kubernetes.io/service-name=web",
        "-o",
        "jsonpath={.items[*].endpoints[*].conditions}",
    ];
    carob.until(&conditions, |seen| seen.contains("\"terminating\":true"));
    assert!((0..10).all(|_| answers("ending")), "nobody else could");
    carob.apply(&list(&[web("fresh")]));
    eventually("new connections go to the new one", || (0..10).all(|_| answers("fresh")));
    carob.kubectl(&["delete", "pod", "ending", "--force", "--grace-period=0"]);
}
