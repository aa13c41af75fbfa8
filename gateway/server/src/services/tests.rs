use carob_api::status::Status;
use carob_store::redb::{Options, RedbStore};
use serde_json::json;

use super::*;

struct Fixture {
    store: RedbStore,
    pool: Pool,
    _dir: tempfile::TempDir,
}

impl Fixture {
    fn new(range: &str) -> Self {
        Self::dual(range, None)
    }

    fn dual(range: &str, range6: Option<&str>) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = RedbStore::open(dir.path().join("store.redb"), Options::default()).expect("a store");
        Self {
            store,
            pool: Pool::new(range.parse().expect("a range"), range6.map(|range| range.parse().expect("a range"))),
            _dir: dir,
        }
    }

    async fn give(&self, mut object: Value, old: Option<&Value>) -> Result<(Value, Hold), String> {
        let mut choice = self.pool.reserve(&self.store).await.map_err(|status: Status| status.message().to_owned())?;
        match choice.give(&mut object, old) {
            Ok(()) => Ok((object, choice.hold)),
            Err(Refusal::Asked(error)) => Err(error.to_string()),
            Err(Refusal::Empty(why)) => Err(why),
        }
    }

    async fn store(&self, name: &str, object: &Value) {
        let document = carob_store::Document::plain(object.to_string());
        let txn = carob_store::Txn { expect: vec![], writes: vec![carob_store::Write::Put(key(name), document)] };
        self.store.txn(txn).await.expect("stored");
    }
}

fn key(name: &str) -> String {
    format!("{SERVICES}default/{name}")
}

fn service(mut spec: Value) -> Value {
    if spec.get("ipFamilies").is_none() {
        spec["ipFamilies"] = json!(["IPv4"]);
    }
    json!({ "spec": spec })
}

fn addresses_of(object: &Value) -> Vec<IpAddr> {
    let addresses = list(&object["spec"], "clusterIPs").into_iter();
    addresses.map(|ip| ip.as_str().expect("text").parse().expect("an address")).collect()
}

#[tokio::test]
async fn nothing_is_given_twice_whether_reserved_or_stored() {
    // Six addresses; the network's and the broadcast one aren't given.
    let fixture = Fixture::new("10.0.0.0/29");
    let mut holds = Vec::new();
    let mut given = HashSet::new();
    for index in 0..6 {
        let (object, hold) = fixture.give(service(json!({"type": "ClusterIP"})), None).await.expect("free");
        assert!(given.insert(text(&object, "/spec/clusterIP").to_owned()), "twice");
        if index % 2 == 0 {
            fixture.store(&index.to_string(), &object).await;
            drop(hold);
        } else {
            holds.push(hold);
        }
    }
    let why = fixture.give(service(json!({"type": "ClusterIP"})), None).await.err();
    assert_eq!(why.as_deref(), Some("failed to allocate a serviceIP: range is full"));
    holds.pop();
    fixture.give(service(json!({"type": "ClusterIP"})), None).await.expect("one was given back");
    let txn = carob_store::Txn { expect: vec![], writes: vec![carob_store::Write::Delete(key("0"))] };
    fixture.store.txn(txn).await.expect("deleted");
    let (_first, second) = (
        fixture.give(service(json!({"type": "ClusterIP"})), None).await.expect("free"),
        fixture.give(service(json!({"type": "ClusterIP"})), None).await.expect("a deleted one's is free"),
    );
    drop(second);
}

#[tokio::test]
async fn a_wanted_address_is_given_or_refused_with_the_reason() {
    let fixture = Fixture::new("10.96.0.0/16");
    let with = |ip: &str| service(json!({"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip]}));
    let (object, _hold) = fixture.give(with("10.96.0.1"), None).await.expect("free");
    assert_eq!(object["spec"]["clusterIP"], "10.96.0.1");
    for (ip, why) in [
        ("10.96.0.1", "provided IP is already allocated"),
        ("192.0.2.1", "the provided network does not match the current range"),
    ] {
        let error = fixture.give(with(ip), None).await.err().expect("refused");
        assert_eq!(error, format!("spec.clusterIPs: Invalid value: [\"{ip}\"]: failed to allocate IP {ip}: {why}"));
    }
    let none = fixture.give(with("None"), None).await.expect("no address is needed").1;
    assert!(none.claims.is_empty());
}

#[tokio::test]
async fn each_family_has_addresses_of_its_own_range() {
    let fixture = Fixture::dual("10.96.0.0/16", Some("fd96::/112"));
    let six: Ipv6Net = "fd96::/112".parse().unwrap();
    let spec = json!({"type": "ClusterIP", "ipFamilies": ["IPv6", "IPv4"]});
    let (object, _hold) = fixture.give(service(spec), None).await.expect("free");
    let [IpAddr::V6(first), IpAddr::V4(second)] = addresses_of(&object)[..] else { panic!("{object}") };
    assert!(six.contains(&first) && second.octets()[..2] == [10, 96], "{object}");
    assert_eq!(object["spec"]["clusterIP"], first.to_string());
    let asked = |families: Value, ips: Value| {
        service(json!({"type": "ClusterIP", "ipFamilies": families, "clusterIP": ips[0], "clusterIPs": ips}))
    };
    let both = json!(["10.96.0.9", "fd96::9"]);
    let (object, _both) = fixture.give(asked(json!(["IPv4", "IPv6"]), both.clone()), None).await.expect("free");
    assert_eq!(object["spec"]["clusterIPs"], both);
    for (ip, why) in [
        ("fd96::9", "provided IP is already allocated"),
        ("fd96::", "the provided IP (fd96::) is not in the valid range. The range of valid IPs is fd96::/112"),
        ("fd97::9", "the provided network does not match the current range"),
    ] {
        let error = fixture.give(asked(json!(["IPv6"]), json!([ip])), None).await.err().expect("refused");
        assert_eq!(error, format!("spec.clusterIPs: Invalid value: [\"{ip}\"]: failed to allocate IP {ip}: {why}"));
    }
    // The last address of a range is one as any other in IPv6.
    fixture.give(asked(json!(["IPv6"]), json!(["fd96::ffff"])), None).await.expect("free");
}

#[tokio::test]
async fn a_service_that_gets_a_second_family_gets_an_address_and_one_that_loses_it_gives_it_back() {
    let fixture = Fixture::dual("10.96.0.0/16", Some("fd96::/112"));
    let (single, hold) = fixture.give(service(json!({"type": "ClusterIP"})), None).await.expect("free");
    fixture.store("s", &single).await;
    drop(hold);
    let mut wider = single.clone();
    wider["spec"]["ipFamilies"] = json!(["IPv4", "IPv6"]);
    let (dual, hold) = fixture.give(wider, Some(&single)).await.expect("free");
    let (before, now) = (addresses_of(&single), addresses_of(&dual));
    assert_eq!((now.len(), now[0]), (2, before[0]));
    assert_eq!(dual["spec"]["clusterIP"], single["spec"]["clusterIP"]);
    fixture.store("s", &dual).await;
    drop(hold);
    let second = dual["spec"]["clusterIPs"][1].clone();
    let other =
        service(json!({"type": "ClusterIP", "ipFamilies": ["IPv6"], "clusterIP": second, "clusterIPs": [second]}));
    let refused = fixture.give(other.clone(), None).await.err().expect("taken");
    assert!(refused.ends_with("provided IP is already allocated"), "{refused}");
    fixture.store("s", &single).await;
    fixture.give(other, None).await.expect("given back");
}

#[tokio::test]
async fn ports_of_one_number_share_a_node_port() {
    let fixture = Fixture::new("10.96.0.0/16");
    let spec = json!({"type": "NodePort", "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"},
        {"port": 80}, {"port": 81, "nodePort": 30000}]});
    let (object, _hold) = fixture.give(service(spec), None).await.expect("free");
    let ports: Vec<i64> =
        object["spec"]["ports"].as_array().unwrap().iter().map(|port| number(port, "nodePort")).collect();
    assert_eq!(ports[0], ports[1]);
    assert_eq!(HashSet::from([ports[0], ports[2], ports[3]]).len(), 3);
    let taken = service(json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": 30000}]}));
    assert_eq!(
        fixture.give(taken, None).await.err().expect("refused"),
        "spec.ports[0].nodePort: Invalid value: 30000: provided port is already allocated"
    );
    let outside = service(json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": 80}]}));
    assert_eq!(
        fixture.give(outside, None).await.err().expect("refused"),
        "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports \
         is 30000-32767"
    );
}

#[tokio::test]
async fn an_update_keeps_what_the_service_has_and_gets_what_it_lacks() {
    let fixture = Fixture::new("10.96.0.0/16");
    let spec = json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": true, "externalTrafficPolicy": "Local",
        "ports": [{"port": 80}]});
    let (old, hold) = fixture.give(service(spec), None).await.expect("free");
    fixture.store("s", &old).await;
    drop(hold);
    assert!(number(&old["spec"], "healthCheckNodePort") >= 30_000);
    let mut new = old.clone();
    new["spec"]["ports"].as_array_mut().unwrap().push(json!({"port": 81}));
    let (new, hold) = fixture.give(new, Some(&old)).await.expect("free");
    assert_eq!(new["spec"]["clusterIP"], old["spec"]["clusterIP"]);
    assert_eq!(new["spec"]["ports"][0], old["spec"]["ports"][0]);
    assert_eq!(new["spec"]["healthCheckNodePort"], old["spec"]["healthCheckNodePort"]);
    assert_eq!(hold.claims.len(), 1);
}
