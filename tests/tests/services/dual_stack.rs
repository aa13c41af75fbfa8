//! Addresses of both families, as the API and the controllers have them: no worker is there, the tests play the node.

use carob_tests::pods::list;
use carob_tests::{Carob, Setup, text};
use serde_json::{Value, json};

use super::service;

const PODS: &str = "10.42.0.0/16,fd42::/64";
const SERVICES: &str = "10.96.0.0/16,fd96::/112";
const DUAL: [&str; 6] = ["--workers", "0", "--pod-cidr", PODS, "--service-cidr", SERVICES];
const SINGLE: [&str; 6] = ["--workers", "0", "--pod-cidr", "10.42.0.0/16", "--service-cidr", "10.96.0.0/16"];

fn start(arguments: &[&str]) -> Carob {
    Carob::start_with(&Setup { arguments, ..Setup::default() })
}

/// A Service of port 80, and this besides.
fn with(name: &str, fields: &Value) -> Value {
    let mut spec = json!({"ports": [{"port": 80}]});
    for (field, value) in fields.as_object().expect("fields") {
        spec[field] = value.clone();
    }
    service(name, &spec)
}

/// A Service's addresses, families and policy.
fn families(carob: &Carob, name: &str) -> (Vec<String>, String, String) {
    let spec = carob.get(&["service", name])["spec"].clone();
    let all = |field: &str| -> Vec<String> {
        let items = spec[field].as_array().into_iter().flatten();
        items.map(|item| item.as_str().expect("text").to_owned()).collect()
    };
    assert_eq!(spec["clusterIP"], spec["clusterIPs"][0], "{spec}");
    let policy = spec["ipFamilyPolicy"].as_str().expect("a policy").to_owned();
    (all("clusterIPs"), all("ipFamilies").join(" "), policy)
}

fn refused(carob: &Carob, manifest: &Value) -> String {
    let output = carob.pipe(&["create", "-f", "-"], &manifest.to_string());
    assert!(!output.status.success(), "{}", text(&output));
    text(&output)
}

/// Waits until the slices of a Service have these families; each with its addresses, in order.
fn slices(carob: &Carob, name: &str, wanted: &[&str]) {
    let of = format!("kubernetes.io/service-name={name}");
    let form = "jsonpath={range .items[*]}{.addressType}:{.endpoints[*].addresses[0]}{\"\\n\"}{end}";
    carob.until(&["get", "endpointslices", "-l", &of, "-o", form], |seen| {
        let mut seen: Vec<&str> = seen.lines().collect();
        seen.sort_unstable();
        seen == wanted
    });
}

/// Waits until an address is somebody's, or nobody's.
fn address_object(carob: &Carob, address: &str, there: bool) {
    carob.until(&["get", "ipaddresses", "--ignore-not-found", "-o", "name", address], |seen| seen.is_empty() != there);
}

#[test]
fn services_have_the_families_they_ask_for() {
    let carob = start(&DUAL);
    assert_eq!(carob.jsonpath("servicecidr/kubernetes", ".spec.cidrs"), r#"["10.96.0.0/16","fd96::/112"]"#);
    let own = families(&carob, "kubernetes");
    assert_eq!(own, (vec!["10.96.0.1".to_owned()], "IPv4".to_owned(), "SingleStack".to_owned()));

    let asked = json!({"ipFamilyPolicy": "RequireDualStack", "clusterIP": "fd96::70", "clusterIPs": ["fd96::70", "10.96.0.70"]});
    carob.apply(&list(&[
        with("plain", &json!({})),
        with("both", &json!({"ipFamilyPolicy": "PreferDualStack"})),
        with("six", &json!({"ipFamilies": ["IPv6"]})),
        with("turned", &json!({"ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": "RequireDualStack"})),
        with("asked", &asked),
        with("headless", &json!({"clusterIP": "None", "selector": {"app": "a"}, "ipFamilyPolicy": "PreferDualStack"})),
        with("unmanaged", &json!({"clusterIP": "None"})),
    ]));
    for (name, expected, policy) in [
        ("plain", "IPv4", "SingleStack"),
        ("both", "IPv4 IPv6", "PreferDualStack"),
        ("six", "IPv6", "SingleStack"),
        ("turned", "IPv6 IPv4", "RequireDualStack"),
        ("asked", "IPv6 IPv4", "RequireDualStack"),
    ] {
        let (ips, families, has) = families(&carob, name);
        assert_eq!((families.as_str(), has.as_str()), (expected, policy), "{name}");
        let kinds: Vec<&str> = ips.iter().map(|ip| if ip.contains(':') { "IPv6" } else { "IPv4" }).collect();
        assert_eq!(kinds.join(" "), expected, "{name}: {ips:?}");
        for ip in &ips {
            assert!(ip.starts_with("10.96.") || ip.starts_with("fd96::"), "{name}: {ip}");
            address_object(&carob, ip, true);
        }
    }
    assert_eq!(families(&carob, "asked").0, ["fd96::70", "10.96.0.70"]);
    let none = vec!["None".to_owned()];
    let headless = (none.clone(), "IPv4 IPv6".to_owned(), "PreferDualStack".to_owned());
    assert_eq!(families(&carob, "headless"), headless);
    assert_eq!(families(&carob, "unmanaged"), (none, "IPv4 IPv6".to_owned(), "RequireDualStack".to_owned()));

    let said = carob.kubectl(&["describe", "service", "both"]);
    assert!(said.contains("IPv4,IPv6") && said.contains("PreferDualStack"), "{said}");
    for (fields, why) in [
        (
            json!({"ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "SingleStack"}),
            "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified",
        ),
        (
            json!({"clusterIP": "fd96::70"}),
            "spec.clusterIPs: Invalid value: [\"fd96::70\"]: failed to allocate IP fd96::70: provided IP is already allocated",
        ),
        (
            json!({"clusterIP": "fd97::70"}),
            "failed to allocate IP fd97::70: the provided network does not match the current range",
        ),
        (
            json!({"clusterIP": "fd96::71", "ipFamilies": ["IPv4"]}),
            "spec.clusterIPs[0]: Invalid value: \"fd96::71\": expected an IPv4 value as indicated by `ipFamilies[0]`",
        ),
        (
            json!({"clusterIP": "fd96::71", "clusterIPs": ["fd96::71", "fd96::72"], "ipFamilyPolicy": "PreferDualStack"}),
            "may specify no more than one IP for each IP family",
        ),
    ] {
        let said = refused(&carob, &with("refused", &fields));
        assert!(said.contains(why), "{fields}: {said}");
    }
}

#[test]
fn a_service_gets_a_second_family_and_gives_it_back() {
    let mut carob = start(&DUAL);
    carob.apply(&with("web", &json!({"selector": {"app": "web"}})).to_string());
    let (single, ..) = families(&carob, "web");
    slices(&carob, "web", &["IPv4:"]);

    let patch = |patch: Value| carob.run(&["patch", "service", "web", "-p", &patch.to_string()]);
    let upgraded = patch(json!({"spec": {"ipFamilyPolicy": "RequireDualStack"}}));
    assert!(upgraded.status.success(), "{}", text(&upgraded));
    let (dual, now, _) = families(&carob, "web");
    assert_eq!((dual.len(), &dual[0], now.as_str()), (2, &single[0], "IPv4 IPv6"));
    address_object(&carob, &dual[1], true);
    slices(&carob, "web", &["IPv4:", "IPv6:"]);

    // The primary family is for good, and the second goes by the policy alone.
    for (change, why) in [
        (json!({"spec": {"ipFamilies": ["IPv4"]}}), "must be 'SingleStack' to release the secondary IP family"),
        (json!({"spec": {"clusterIPs": [single[0]]}}), "must be 'SingleStack' to release the secondary cluster IP"),
        (json!({"spec": {"ipFamilies": ["IPv6", "IPv4"]}}), "spec.clusterIPs[0]: Invalid value"),
    ] {
        let output = patch(change.clone());
        assert!(!output.status.success() && text(&output).contains(why), "{change}: {}", text(&output));
    }
    // What is applied again, as it was written first, takes nothing away.
    carob.apply(&with("web", &json!({"selector": {"app": "web"}})).to_string());
    assert_eq!(families(&carob, "web").0, dual);

    // Whoever starts again finds out from the Services what is taken.
    carob.terminate();
    carob.up(&["--workers", "0"]);
    assert_eq!(families(&carob, "web").0, dual);
    let thief = with("thief", &json!({"ipFamilies": ["IPv6"], "clusterIP": dual[1]}));
    assert!(refused(&carob, &thief).contains("provided IP is already allocated"));
    address_object(&carob, &dual[1], true);

    let patch = |patch: Value| carob.run(&["patch", "service", "web", "-p", &patch.to_string()]);
    let downgraded = patch(json!({"spec": {"ipFamilyPolicy": "SingleStack"}}));
    assert!(downgraded.status.success(), "{}", text(&downgraded));
    assert_eq!(families(&carob, "web"), (single, "IPv4".to_owned(), "SingleStack".to_owned()));
    slices(&carob, "web", &["IPv4:"]);
    address_object(&carob, &dual[1], false);
    carob.apply(&thief.to_string());
    address_object(&carob, &dual[1], true);
}

#[test]
fn each_family_of_a_service_has_slices_of_its_own() {
    let carob = start(&DUAL);
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"app": "web"}},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "x"}]}});
    let outside = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "outside"}, "subsets": [
        {"addresses": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}], "ports": [{"port": 80}]}]});
    let selects = |more: Value| {
        let mut fields = json!({"selector": {"app": "web"}});
        fields.as_object_mut().expect("an object").extend(more.as_object().expect("fields").clone());
        fields
    };
    carob.until(&["get", "serviceaccount", "default"], |_| true);
    carob.apply(&list(&[
        node,
        pod,
        with("both", &selects(json!({"ipFamilyPolicy": "PreferDualStack"}))),
        with("six", &selects(json!({"ipFamilies": ["IPv6"]}))),
        with("plain", &selects(json!({}))),
        with("outside", &json!({"ipFamilyPolicy": "PreferDualStack"})),
        outside,
    ]));
    // A node that joins gets a block of each family.
    let ranges = carob.until(&["get", "node", "n", "-o", "jsonpath={.spec.podCIDRs[*]}"], |seen| seen.contains(':'));
    let (four, six) = ranges.split_once(' ').expect("two");
    assert!(four.starts_with("10.42.") && four.ends_with("/21"), "{ranges}");
    assert!(six.starts_with("fd42::a2a:") && six.ends_with("/117"), "{ranges}");
    assert_eq!(carob.jsonpath("node/n", ".spec.podCIDR"), four);

    let status = |ips: Value| {
        let patch = json!({"status": {"phase": "Running", "podIP": ips[0]["ip"], "podIPs": ips,
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        carob.run(&["patch", "pod", "p", "--subresource=status", "--type=merge", "-p", &patch.to_string()])
    };
    let two = status(json!([{"ip": "10.42.0.9"}, {"ip": "10.42.0.10"}]));
    assert!(text(&two).contains("may specify no more than one IP for each IP family"), "{}", text(&two));
    let one = status(json!([{"ip": "10.42.0.9"}]));
    assert!(one.status.success(), "{}", text(&one));
    slices(&carob, "both", &["IPv4:10.42.0.9", "IPv6:"]);
    slices(&carob, "six", &["IPv6:"]);
    let both = status(json!([{"ip": "10.42.0.9"}, {"ip": "fd42::a2a:9"}]));
    assert!(both.status.success(), "{}", text(&both));
    slices(&carob, "both", &["IPv4:10.42.0.9", "IPv6:fd42::a2a:9"]);
    slices(&carob, "six", &["IPv6:fd42::a2a:9"]);
    slices(&carob, "plain", &["IPv4:10.42.0.9"]);
    slices(&carob, "outside", &["IPv4:192.0.2.1", "IPv6:2001:db8::1"]);
    // The older form has the primary family alone.
    for (name, address) in [("both", "10.42.0.9"), ("six", "fd42::a2a:9"), ("plain", "10.42.0.9")] {
        let form = "jsonpath={.subsets[*].addresses[*].ip}";
        carob.until(&["get", "endpoints", name, "-o", form], |seen| seen.starts_with(address));
    }
    let narrower = json!({"spec": {"ipFamilyPolicy": "SingleStack"}});
    carob.kubectl(&["patch", "service", "both", "-p", &narrower.to_string()]);
    slices(&carob, "both", &["IPv4:10.42.0.9"]);
}

#[test]
fn load_balancers_have_an_address_of_each_family_that_the_pool_has() {
    let balanced = |name: &str, more: Value| {
        let mut manifest = with(name, &more);
        manifest["spec"]["type"] = json!("LoadBalancer");
        manifest
    };
    let pool = |text: &str| format!("network:\n  loadBalancers: [{text}]\n");
    let form = "jsonpath={.status.loadBalancer.ingress[*].ip}";
    let both = pool("192.0.2.1-192.0.2.3, \"2001:db8::1-2001:db8::2\"");
    let mut carob = Carob::start_with(&Setup { arguments: &DUAL, config: Some(&both), ..Setup::default() });
    let has = |carob: &Carob, name: &str, ips: &str| {
        carob.until(&["get", "service", name, "-o", form], |seen| seen == ips);
    };
    carob.apply(
        &balanced("one", json!({"ipFamilyPolicy": "RequireDualStack", "loadBalancerIP": "2001:db8::2"})).to_string(),
    );
    has(&carob, "one", "192.0.2.1 2001:db8::2");
    carob.apply(
        &balanced("two", json!({"ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": "RequireDualStack"})).to_string(),
    );
    has(&carob, "two", "2001:db8::1 192.0.2.2");
    carob.apply(&balanced("three", json!({"ipFamilies": ["IPv6"]})).to_string());
    carob.wait_event("three", "All IPv6 addresses of the pool are taken");
    carob.apply(&balanced("plain", json!({})).to_string());
    has(&carob, "plain", "192.0.2.3");
    carob.kubectl(&["patch", "service", "two", "-p", r#"{"spec": {"ipFamilyPolicy": "SingleStack"}}"#]);
    has(&carob, "two", "2001:db8::1");
    carob.kubectl(&["patch", "service", "one", "-p", r#"{"spec": {"ipFamilyPolicy": "SingleStack"}}"#]);
    has(&carob, "one", "192.0.2.1");
    has(&carob, "three", "2001:db8::2");

    carob.terminate();
    std::fs::write(carob.path("carob.yaml"), pool("192.0.2.1-192.0.2.9")).expect("the configuration is written");
    carob.up(&["--workers", "0"]);
    carob.apply(&balanced("four", json!({"ipFamilies": ["IPv6"]})).to_string());
    carob.wait_event("four", "The pool has no IPv6 addresses");
    assert_eq!(carob.kubectl(&["get", "service", "four", "-o", form]), "");
    carob.apply(&balanced("five", json!({"ipFamilyPolicy": "PreferDualStack"})).to_string());
    has(&carob, "five", "192.0.2.2");
}

#[test]
fn a_cluster_of_one_family_may_get_the_other_and_keeps_both() {
    let mut carob = start(&SINGLE);
    for (fields, why) in [
        (
            json!({"ipFamilyPolicy": "RequireDualStack"}),
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
        ),
        (
            json!({"ipFamilies": ["IPv6"]}),
            "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster",
        ),
    ] {
        let said = refused(&carob, &with("refused", &fields));
        assert!(said.contains(why), "{said}");
    }
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "labels": {"kept": "so"}}});
    carob.apply(&list(&[with("prefers", &json!({"ipFamilyPolicy": "PreferDualStack"})), node]));
    let (ips, now, _) = families(&carob, "prefers");
    assert_eq!((ips.len(), now.as_str()), (1, "IPv4"));
    let ranges = ["get", "node", "n", "-o", "jsonpath={.spec.podCIDRs[*]}"];
    let block = carob.until(&ranges, |seen| seen.starts_with("10.42."));

    carob.terminate();
    let data = carob.data_dir();
    let up = |arguments: &[&str]| {
        let data = data.to_str().expect("UTF-8");
        let mut all = vec!["up", "--listen", "127.0.0.1:0", "--workers", "0", "--data-dir", data];
        all.extend(arguments);
        let output = carob.carob(&all);
        assert!(!output.status.success(), "{arguments:?}");
        text(&output)
    };
    for (arguments, why) in [
        (["--pod-cidr", "fd42::/64,10.42.0.0/16"].as_slice(), "IPv4 is the primary family"),
        (&["--pod-cidr", PODS], "with --service-cidr too"),
        (&["--service-cidr", SERVICES], "with --pod-cidr too"),
        (&["--pod-cidr", "10.42.0.0/16,fd42::/112", "--service-cidr", SERVICES], "a /96 or larger"),
        (&["--pod-cidr", PODS, "--service-cidr", "10.96.0.0/16,fd42::/112"], "overlap"),
        (&["--pod-cidr", PODS, "--service-cidr", "10.97.0.0/16,fd96::/112"], "this data directory has 10.96.0.0/16;"),
    ] {
        let said = up(arguments);
        assert!(said.contains(why), "{arguments:?}: {said}");
    }

    carob.up(&DUAL);
    assert_eq!(carob.jsonpath("servicecidr/kubernetes", ".spec.cidrs"), r#"["10.96.0.0/16","fd96::/112"]"#);
    let both = carob.kubectl(&ranges);
    assert!(both.starts_with(&format!("{block} fd42::a2a:")), "{both}");
    assert_eq!(carob.jsonpath("node/n", ".metadata.labels.kept"), "so");
    // Who had one family keeps it until somebody says otherwise.
    carob.kubectl(&["annotate", "service", "prefers", "a=b"]);
    assert_eq!(families(&carob, "prefers").0, ips);
    carob.kubectl(&["patch", "service", "prefers", "-p", r#"{"spec": {"ipFamilyPolicy": "RequireDualStack"}}"#]);
    assert_eq!(families(&carob, "prefers").1, "IPv4 IPv6");

    carob.terminate();
    let data = carob.data_dir();
    for (flag, ranges) in [("--pod-cidr", "10.42.0.0/16"), ("--service-cidr", "10.96.0.0/16,fd97::/112")] {
        let data = data.to_str().expect("UTF-8");
        let output =
            carob.carob(&["up", "--listen", "127.0.0.1:0", "--workers", "0", "--data-dir", data, flag, ranges]);
        assert!(text(&output).contains(&format!("{flag} {ranges}: this data directory has ")), "{}", text(&output));
    }
    carob.up(&["--workers", "0"]);
    assert_eq!(families(&carob, "prefers").1, "IPv4 IPv6");
}
