//! Names of Services and pods, as pods look them up.

mod wire;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use carob_tests::pods::{idle, list, pod};
use carob_tests::{Carob, Setup, eventually};
use serde_json::json;

fn lookup(carob: &Carob, name: &str) -> BTreeSet<String> {
    let output = carob.run(&["exec", "client", "--", "carob-tools", "lookup", name]);
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn services_pods_and_aliases_have_names_that_follow_changes() {
    let mut carob = Carob::start(&["tools"]);
    let mut zero = pod("zero", &[idle("main")]);
    zero["spec"]["hostname"] = json!("db-0");
    zero["spec"]["subdomain"] = json!("db");
    let service =
        |name: &str, spec| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
    carob.apply(&list(&[
        zero,
        pod("client", &[idle("main")]),
        service("web", json!({"selector": {"app": "web"}, "ports": [{"port": 80}]})),
        service("db", json!({"clusterIP": "None", "selector": {"app": "zero"}, "ports": [{"port": 80}]})),
        service("alias", json!({"type": "ExternalName", "externalName": "web.default.svc.cluster.local"})),
    ]));
    for name in ["zero", "client"] {
        carob.wait(&format!("pod/{name}"), "condition=Ready");
    }
    let only = |address: String| BTreeSet::from([address]);
    let web = only(carob.jsonpath("service/web", ".spec.clusterIP"));
    for name in ["web", "web.default", "web.default.svc.cluster.local", "WEB.default.svc", "alias"] {
        assert_eq!(lookup(&carob, name), web, "{name}");
    }
    let zero = only(carob.jsonpath("pod/zero", ".status.podIP"));
    for name in ["db", "db-0.db", "db-0.db.default.svc.cluster.local"] {
        eventually(name, || lookup(&carob, name) == zero);
    }
    let kubernetes = only(carob.jsonpath("service/kubernetes", ".spec.clusterIP"));
    assert_eq!(lookup(&carob, "kubernetes"), kubernetes);
    let begin = Instant::now();
    assert!(lookup(&carob, "nobody").is_empty());
    assert!(begin.elapsed() < Duration::from_secs(5), "that a name isn't there is known at once");
    carob.apply(&list(&[service("nobody", json!({"ports": [{"port": 80}]}))]));
    let address = only(carob.jsonpath("service/nobody", ".spec.clusterIP"));
    assert_eq!(lookup(&carob, "nobody"), address, "a new name is known at once");
    carob.terminate();
    carob.up(&[]);
    eventually("names are known again", || lookup(&carob, "web") == web);
}

/// The cluster's DNS, as this machine reaches it.
fn cluster_dns(carob: &Carob) -> SocketAddr {
    let address =
        carob.kubectl(&["get", "service", "kube-dns", "-n", "kube-system", "-o", "jsonpath={.spec.clusterIP}"]);
    format!("{address}:53").parse().expect("an address")
}

#[test]
fn each_type_of_record_is_what_the_specification_says() {
    let carob = Carob::start(&["tools"]);
    let service =
        |name: &str, spec| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
    let mut zero = pod("zero", &[idle("main")]);
    (zero["spec"]["hostname"], zero["spec"]["subdomain"]) = (json!("db-0"), json!("db"));
    carob.apply(&list(&[
        zero,
        service("web", json!({"ports": [{"name": "http", "port": 80}]})),
        service(
            "db",
            json!({"clusterIP": "None", "selector": {"app": "zero"}, "ports": [{"name": "sql", "port": 5432}]}),
        ),
        service("alias", json!({"type": "ExternalName", "externalName": "web.default.svc.cluster.local"})),
    ]));
    carob.wait("pod/zero", "condition=Ready");
    let dns = cluster_dns(&carob);
    let asked =
        |name: &str, kind| wire::ask(dns, &format!("{name}.default.svc.cluster.local"), kind).expect("an answer");
    let (web, zero) = (carob.jsonpath("service/web", ".spec.clusterIP"), carob.jsonpath("pod/zero", ".status.podIP"));
    eventually("the pod has its name", || asked("db-0.db", wire::A).data() == [&zero]);
    let address = asked("web", wire::A);
    assert_eq!((address.data(), address.code, address.authoritative), (vec![web.as_str()], 0, true));
    assert_eq!(asked("_http._tcp.web", wire::SRV).data(), ["80 web.default.svc.cluster.local."]);
    assert_eq!(asked("_sql._tcp.db", wire::SRV).data(), ["5432 db-0.db.default.svc.cluster.local."]);
    assert_eq!(asked("db", wire::A).data(), [&zero]);
    let reverse = |address: &str| address.split('.').rev().collect::<Vec<_>>().join(".") + ".in-addr.arpa";
    let pointer = |address: &str| wire::ask(dns, &reverse(address), wire::PTR).expect("an answer").answers;
    assert_eq!(pointer(&web), [(wire::PTR, "web.default.svc.cluster.local.".to_owned())]);
    assert_eq!(pointer(&zero), [(wire::PTR, "db-0.db.default.svc.cluster.local.".to_owned())]);
    assert!(asked("alias", wire::A).data().contains(&web.as_str()), "an alias, and what it stands for");
    // There, but without such a record; and not there at all: both say for how long that may be remembered.
    let nothing = asked("web", wire::AAAA);
    assert_eq!((nothing.code, nothing.answers.len(), &nothing.authorities[..]), (0, 0, &[wire::SOA][..]));
    let nobody = asked("nobody", wire::A);
    assert_eq!((nobody.code, &nobody.authorities[..]), (wire::NXDOMAIN, &[wire::SOA][..]));
    assert_eq!(asked("_http._udp.web", wire::SRV).code, wire::NXDOMAIN);
    assert_eq!(wire::ask_over_tcp(dns, "web.default.svc.cluster.local", wire::A).expect("an answer").data(), [&web]);
}

#[test]
fn endpoints_of_both_families_have_their_names() {
    let carob = Carob::start(&["tools"]);
    let slice = |kind: &str, endpoints: serde_json::Value| {
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": kind,
            "metadata": {"name": format!("db-{}", kind.to_lowercase()), "labels": {"kubernetes.io/service-name": "db"}},
            "ports": [{"name": "sql", "port": 5432}], "endpoints": endpoints})
    };
    carob.apply(&list(&[
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "db"},
            "spec": {"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]}}),
        slice("IPv4", json!([{"addresses": ["192.0.2.7"], "hostname": "db-0"}])),
        slice("IPv6", json!([{"addresses": ["2001:db8::7"], "hostname": "db-0"}, {"addresses": ["2001:db8::8"]}])),
        slice("FQDN", json!([{"addresses": ["db.example.test"]}])),
    ]));
    let dns = cluster_dns(&carob);
    let asked =
        |name: &str, kind| wire::ask(dns, &format!("{name}.default.svc.cluster.local"), kind).expect("an answer");
    eventually("both addresses are known", || asked("db", wire::AAAA).data() == ["2001:db8::7", "2001:db8::8"]);
    eventually("and the other family's", || asked("db", wire::A).data() == ["192.0.2.7"]);
    assert_eq!(asked("db-0.db", wire::AAAA).data(), ["2001:db8::7"]);
    assert_eq!(asked("2001-db8--8.db", wire::AAAA).data(), ["2001:db8::8"]);
    let nothing = asked("2001-db8--8.db", wire::A);
    assert_eq!((nothing.code, nothing.answers.len()), (0, 0), "it is there, in the other family");
    assert_eq!(
        asked("_sql._tcp.db", wire::SRV).data(),
        ["5432 2001-db8--8.db.default.svc.cluster.local.", "5432 db-0.db.default.svc.cluster.local."]
    );
    let reverse = |last: u8| format!("{last}.{}8.b.d.0.1.0.0.2.ip6.arpa", "0.".repeat(23));
    let pointer = |last| wire::ask(dns, &reverse(last), wire::PTR).expect("an answer");
    assert_eq!(pointer(7).data(), ["db-0.db.default.svc.cluster.local."]);
    assert_eq!(pointer(8).data(), ["2001-db8--8.db.default.svc.cluster.local."]);
    let pod = wire::ask(dns, "2001-db8--9.default.pod.cluster.local", wire::AAAA).expect("an answer");
    assert_eq!(pod.data(), ["2001:db8::9"]);
}

#[test]
fn other_names_are_asked_for_once_and_a_silent_resolver_holds_nobody_up() {
    let resolver = wire::Resolver::start();
    let config = format!("network:\n  resolvers: ['{}']\n", resolver.address);
    let carob = Carob::start_with(&Setup { images: &["tools"], config: Some(&config), ..Setup::default() });
    let dns = cluster_dns(&carob);
    let ask = |name: &str| wire::ask(dns, name, wire::A);
    // Someone waits for an answer that doesn't come, while all others get theirs.
    let waiting = std::thread::spawn(move || wire::ask(dns, "silent.example.test", wire::A));
    eventually("it is being asked", || resolver.asked("silent.example.test.") > 0);
    let first = ask("one.example.test").expect("an answer");
    assert_eq!((first.data(), first.code), (vec!["192.0.2.1"], 0));
    assert!(!waiting.is_finished(), "the other one still waits");
    for _ in 0..5 {
        let again = ask("ONE.example.test").expect("an answer");
        assert!(again.data() == ["192.0.2.1"] && again.times.iter().all(|time| *time <= 60), "{again:?}");
        assert_eq!(ask("nothing.example.test").expect("an answer").code, wire::NXDOMAIN);
    }
    assert_eq!((resolver.asked("one.example.test."), resolver.asked("nothing.example.test.")), (1, 1), "remembered");
    // An address that nobody here has, of either family.
    for name in ["7.2.0.192.in-addr.arpa", &format!("7.{}8.b.d.0.1.0.0.2.ip6.arpa", "0.".repeat(23))] {
        assert_eq!(wire::ask(dns, name, wire::PTR).expect("an answer").code, wire::NXDOMAIN);
        assert_eq!(resolver.asked(&format!("{name}.")), 1, "{name}");
    }
    // Too much for a datagram: the resolver is asked over a connection, and so are we.
    let cut = ask("many.example.test").expect("an answer");
    assert!(cut.truncated || cut.answers.len() == 60, "{cut:?}");
    let whole = wire::ask_over_tcp(dns, "many.example.test", wire::A).expect("an answer");
    assert_eq!((whole.answers.len(), whole.truncated), (60, false));
    // As a pod sees it: by its search path, and by its own settings.
    carob.start_pod(&pod("client", &[idle("main")]).to_string(), "client");
    let only = |address: &str| BTreeSet::from([address.to_owned()]);
    assert_eq!(lookup(&carob, "one.example.test"), only("192.0.2.1"));
    let mut own = pod("client-own", &[idle("main")]);
    own["spec"]["dnsPolicy"] = json!("None");
    own["spec"]["dnsConfig"] = json!({"nameservers": [dns.ip().to_string()], "searches": ["example.test"],
        "options": [{"name": "ndots", "value": "1"}]});
    carob.start_pod(&own.to_string(), "client-own");
    let said = carob.kubectl(&["exec", "client-own", "--", "carob-tools", "lookup", "one"]);
    assert_eq!(said.trim(), "192.0.2.1");
    assert_eq!(waiting.join().expect("no panic").map_or(2, |said| said.code), 2, "SERVFAIL, if anything");
}
