use std::sync::Arc;
use std::time::Duration;

use http::{Request, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::route::{Action, Found, Port};

fn object<K: DeserializeOwned>(value: Value) -> Arc<K> {
    Arc::new(serde_json::from_value(value).unwrap())
}

fn setting() -> Setting {
    Setting {
        balanced: false,
        listen: Vec::new(),
        ingress_service: Key::new("kube-system", "carob-ingress"),
        certificates: Certificates::default(),
    }
}

/// A Service `NAME` with port 80 and these endpoints.
fn with_service(state: &mut State, namespace: &str, name: &str, endpoints: Value) {
    let service = json!({
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"clusterIP": "10.96.0.9", "ports": [{"name": "web", "port": 80}]},
    });
    let slice = json!({
        "metadata": {"namespace": namespace, "name": format!("{name}-1"), "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4", "ports": [{"name": "web", "port": 8080}], "endpoints": endpoints,
    });
    state.services.extend(State::by_key(vec![object(service)]));
    state.slices.extend(State::by_service(vec![object(slice)]));
}

fn state() -> State {
    let mut state = State::default();
    let class = json!({"metadata": {"name": "carob"}, "spec": {"controller": INGRESS_CONTROLLER}});
    state.ingress_classes = vec![object(class)];
    let class = json!({"metadata": {"name": "carob"}, "spec": {"controllerName": GATEWAY_CONTROLLER}});
    state.gateway_classes = vec![object(class)];
    for (name, address) in [("one", "10.42.0.1"), ("two", "10.42.0.2"), ("rest", "10.42.0.3")] {
        with_service(&mut state, "default", name, json!([{"addresses": [address]}]));
    }
    with_service(&mut state, "kube-system", "carob-ingress", json!([]));
    state
}

fn ingress(spec: Value) -> Arc<k8s_openapi::api::networking::v1::Ingress> {
    let mut spec = spec;
    spec["ingressClassName"] = json!("carob");
    object(json!({"metadata": {"namespace": "default", "name": "i"}, "spec": spec}))
}

fn backend(name: &str) -> Value {
    json!({"service": {"name": name, "port": {"number": 80}}})
}

/// Where a request leads: an endpoint, or a status.
fn leads(port: &Port, uri: &str) -> String {
    let (parts, ()) = Request::get(uri).body(()).unwrap().into_parts();
    let host = parts.uri.host().unwrap().to_owned();
    let Found::Entry(entry) = port.find(&host, None, &parts) else { return "nowhere".to_owned() };
    match &entry.rule.action {
        Action::Forward(split) => match split.choose().map(|target| &target.to) {
            Some(Ok(backend)) => backend.order().next().map_or("nobody".to_owned(), |at| at.to_string()),
            Some(Err(status)) => status.as_u16().to_string(),
            None => "none".to_owned(),
        },
        Action::Redirect(redirect) => redirect.status.as_u16().to_string(),
        Action::Fail(status) => status.as_u16().to_string(),
    }
}

fn condition_of<'a>(conditions: &'a Value, kind: &str) -> (&'a str, &'a str) {
    let found = conditions.as_array().unwrap().iter().find(|one| one["type"] == kind).unwrap();
    (found["status"].as_str().unwrap(), found["reason"].as_str().unwrap())
}

#[test]
fn an_ingress_leads_by_host_and_path_and_its_default_backend_takes_the_rest() {
    let mut state = state();
    state.ingresses = vec![ingress(json!({
        "defaultBackend": backend("rest"),
        "rules": [
            {"host": "a.com", "http": {"paths": [
                {"path": "/x", "pathType": "Prefix", "backend": backend("one")},
                {"path": "/gone", "pathType": "Prefix", "backend": backend("none")},
            ]}},
            {"host": "*.b.com", "http": {"paths": [{"pathType": "ImplementationSpecific", "backend": backend("two")}]}},
        ],
    }))];
    let plan = Plan::of(&state, &setting());
    let port = &plan.frontends[&Frontend::Ingress].ports[&80];
    for (uri, expected) in [
        ("http://a.com/x/y", "10.42.0.1:8080"),
        ("http://a.com/other", "10.42.0.3:8080"),
        ("http://a.com/gone", "503"),
        ("http://c.b.com/", "10.42.0.2:8080"),
        ("http://elsewhere.com/", "10.42.0.3:8080"),
    ] {
        assert_eq!(leads(port, uri), expected, "{uri}");
    }
    assert_eq!(plan.statuses[0].wanted, json!({"loadBalancer": {"ingress": [{"ip": "10.96.0.9"}]}}));
    assert_eq!(plan.endpoints().len(), 3);
}

#[test]
fn an_ingress_of_another_class_is_somebody_elses() {
    let mut state = state();
    let mut other = (*ingress(json!({"defaultBackend": backend("rest")}))).clone();
    other.spec.as_mut().unwrap().ingress_class_name = Some("nginx".to_owned());
    state.services.clear();
    state.ingresses = vec![Arc::new(other)];
    let plan = Plan::of(&state, &setting());
    assert!(plan.frontends.is_empty() && !plan.statuses.iter().any(|status| status.kind == Kind::Ingress));
    assert!(!is_needed(&state));
}

#[test]
fn endpoints_are_the_ready_ones_and_those_that_end_only_where_no_other_is() {
    let endpoints = |conditions: [Value; 2]| {
        let [one, two] = conditions;
        let mut state = state();
        let endpoints = json!([
            {"addresses": ["10.42.0.8"], "conditions": one}, {"addresses": ["10.42.0.9"], "conditions": two},
            {"addresses": ["127.0.0.1"]}, {"addresses": ["169.254.169.254"]},
        ]);
        with_service(&mut state, "default", "one", endpoints);
        let found = super::backend::find(&state, &Key::new("default", "one"), super::backend::PortName::Name("web"));
        found.unwrap().endpoints.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let ending = json!({"ready": false, "serving": true, "terminating": true});
    assert_eq!(endpoints([json!({"ready": true}), ending.clone()]), ["10.42.0.8:8080"]);
    assert_eq!(endpoints([json!({"ready": false}), ending]), ["10.42.0.9:8080"]);
    assert!(endpoints([json!({"ready": false}), json!({"ready": false})]).is_empty());
}

#[test]
fn endpoints_are_of_the_services_first_family_unless_only_the_other_is_ready() {
    let found = |families: Value, v4: Value, v6: Value| {
        let mut state = state();
        let service = json!({"metadata": {"namespace": "default", "name": "both"},
            "spec": {"ipFamilies": families, "ports": [{"name": "web", "port": 80}]}});
        let slice = |kind: &str, endpoints: Value| {
            let labels = json!({"kubernetes.io/service-name": "both"});
            object(json!({"metadata": {"namespace": "default", "name": kind, "labels": labels}, "addressType": kind,
                "ports": [{"name": "web", "port": 8080}], "endpoints": endpoints}))
        };
        state.services.extend(State::by_key(vec![object(service)]));
        let other = slice("FQDN", json!([{"addresses": ["10.42.0.9"]}]));
        state.slices.extend(State::by_service(vec![slice("IPv6", v6), slice("IPv4", v4), other]));
        let found = super::backend::find(&state, &Key::new("default", "both"), super::backend::PortName::Number(80));
        found.unwrap().endpoints.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let one = |address: &str| json!([{"addresses": [address]}]);
    let ending = |address: &str| {
        json!([{"addresses": [address],
        "conditions": {"ready": false, "serving": true, "terminating": true}}])
    };
    let (v4, v6) = ("10.42.0.8", "fd00::a2a:8");
    let (at4, at6) = (vec!["10.42.0.8:8080".to_owned()], vec!["[fd00::a2a:8]:8080".to_owned()]);
    assert_eq!(found(json!(["IPv4", "IPv6"]), one(v4), one(v6)), at4);
    assert_eq!(found(json!(["IPv6", "IPv4"]), one(v4), one(v6)), at6);
    assert_eq!(found(json!(["IPv6", "IPv4"]), one(v4), json!([])), at4);
    assert_eq!(found(json!(["IPv6", "IPv4"]), one(v4), ending(v6)), at4, "what is ready goes first");
    assert_eq!(found(json!(["IPv6"]), ending(v4), ending(v6)), at6);
    assert_eq!(found(Value::Null, one(v4), one(v6)), at4);
    for closed in ["fe80::1", "::1", "ff02::1", "::", "::ffff:169.254.169.254", "fd00:ec2::254", "fd20:ce::254"] {
        assert!(found(json!(["IPv6"]), json!([]), one(closed)).is_empty(), "{closed}");
    }
}

#[test]
fn clients_of_a_service_may_stay_with_their_endpoints() {
    let affinity = |spec: Value| {
        let mut state = state();
        with_service(&mut state, "default", "one", json!([{"addresses": ["10.42.0.8"]}]));
        let key = Key::new("default", "one");
        let mut service = (*state.services[&key]).clone();
        let mut whole = serde_json::to_value(&service.spec).unwrap();
        for (name, value) in spec.as_object().unwrap() {
            whole[name] = value.clone();
        }
        service.spec = serde_json::from_value(whole).unwrap();
        state.services.insert(key.clone(), Arc::new(service));
        super::backend::find(&state, &key, super::backend::PortName::Number(80)).unwrap().affinity.clone()
    };
    assert_eq!(affinity(json!({"sessionAffinity": "None"})), None);
    let usual = affinity(json!({"sessionAffinity": "ClientIP"})).unwrap();
    assert_eq!((&*usual.whose, usual.time.as_secs()), ("default/one:80", 10_800));
    let config = json!({"clientIP": {"timeoutSeconds": 60}});
    let short = affinity(json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config})).unwrap();
    assert_eq!(short.time.as_secs(), 60);
}

#[test]
fn addresses_of_both_families_are_told() {
    let mut state = state();
    let service = |namespace: &str, name: &str| {
        object(json!({"metadata": {"namespace": namespace, "name": name, "labels": {OURS: ""}, "ownerReferences": [
                {"apiVersion": "v1", "kind": "Gateway", "name": "gw", "uid": "u"}]},
            "spec": {"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9", "fd00:96::9"]}}))
    };
    let services = vec![service("default", "gw-carob"), service("kube-system", "carob-ingress")];
    state.services.extend(State::by_key(services));
    state.ingresses = vec![ingress(json!({"defaultBackend": backend("rest")}))];
    let listeners = json!([{"name": "http", "port": 80, "protocol": "HTTP"}]);
    let mut asks = gateway(listeners.clone());
    for (asked, programmed) in [("fd00:0096::0009", "True"), ("10.96.0.9", "True"), ("fd00:96::8", "False")] {
        asks["spec"]["addresses"] = json!([{"type": "IPAddress", "value": asked}]);
        state.gateways = vec![object(asks.clone())];
        let plan = Plan::of(&state, &setting());
        let status = status_of(&plan, Kind::Gateway, "gw");
        assert_eq!(condition_of(&status["conditions"], "Programmed").0, programmed, "{asked}");
    }
    state.gateways = vec![object(gateway(listeners))];
    let plan = Plan::of(&state, &setting());
    let both = json!([{"type": "IPAddress", "value": "10.96.0.9"}, {"type": "IPAddress", "value": "fd00:96::9"}]);
    assert_eq!(status_of(&plan, Kind::Gateway, "gw")["addresses"], both);
    let told = json!({"loadBalancer": {"ingress": [{"ip": "10.96.0.9"}, {"ip": "fd00:96::9"}]}});
    assert_eq!(status_of(&plan, Kind::Ingress, "i"), told);
}

#[test]
fn requests_are_not_sent_back_to_the_proxy() {
    let mut state = state();
    with_service(&mut state, "default", "gw-carob", json!([{"addresses": ["10.42.0.254", "10.42.0.8"]}]));
    state.own = ["10.42.0.254:8080".parse().unwrap(), "10.42.0.8:9090".parse().unwrap()].into();
    let found = super::backend::find(&state, &Key::new("default", "gw-carob"), super::backend::PortName::Number(80));
    assert_eq!(found.unwrap().endpoints, ["10.42.0.8:8080".parse().unwrap()], "another port is somebody else");
}

fn gateway(listeners: Value) -> Value {
    json!({
        "metadata": {"namespace": "default", "name": "gw", "uid": "u", "generation": 1},
        "spec": {"gatewayClassName": "carob", "listeners": listeners},
    })
}

fn route(namespace: &str, name: &str, spec: Value) -> Value {
    let mut spec = spec;
    if spec.get("parentRefs").is_none() {
        spec["parentRefs"] = json!([{"name": "gw", "namespace": "default"}]);
    }
    json!({"metadata": {"namespace": namespace, "name": name, "generation": 1}, "spec": spec})
}

fn to(name: &str) -> Value {
    json!({"rules": [{"backendRefs": [{"name": name, "port": 80}]}]})
}

fn status_of(plan: &Plan, kind: Kind, name: &str) -> Value {
    let found = plan.statuses.iter().find(|status| status.kind == kind && status.key.name == name);
    found.map(|status| status.wanted.clone()).unwrap_or_default()
}

#[test]
fn a_route_is_attached_where_listeners_allow_it_and_told_why_not() {
    let mut state = state();
    let listeners = json!([
        {"name": "a", "port": 80, "protocol": "HTTP", "hostname": "*.a.com"},
        {"name": "b", "port": 80, "protocol": "HTTP", "hostname": "b.com", "allowedRoutes": {"namespaces": {"from": "All"}}},
        {"name": "udp", "port": 53, "protocol": "UDP"},
    ]);
    state.gateways = vec![object(gateway(listeners))];
    let with = |mut spec: Value, more: Value| {
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        spec
    };
    let parent = |section: &str| json!([{"name": "gw", "namespace": "default", "sectionName": section}]);
    state.http_routes = vec![
        object(route("default", "all", to("one"))),
        object(route("default", "hosts", with(to("two"), json!({"hostnames": ["x.a.com", "other.org"]})))),
        object(route("default", "nohost", with(to("two"), json!({"hostnames": ["other.org"]})))),
        object(route("default", "nolistener", with(to("two"), json!({"parentRefs": parent("zzz")})))),
        object(route("else", "foreign", with(to("two"), json!({"parentRefs": parent("a")})))),
        object(route("else", "welcome", with(to("two"), json!({"parentRefs": parent("b")})))),
        object(route(
            "default",
            "odd",
            json!({"rules": [{"matches": [{"path": {"type": "RegularExpression", "value": "("}}]}]}),
        )),
    ];
    let plan = Plan::of(&state, &setting());
    let accepted = |name: &str| {
        let status = status_of(&plan, Kind::HttpRoute, name);
        let (holds, reason) = condition_of(&status["parents"][0]["conditions"], "Accepted");
        format!("{holds} {reason}")
    };
    for (name, expected) in [
        ("all", "True Accepted"),
        ("hosts", "True Accepted"),
        ("nohost", "False NoMatchingListenerHostname"),
        ("nolistener", "False NoMatchingParent"),
        ("foreign", "False NotAllowedByListeners"),
        ("welcome", "True Accepted"),
        ("odd", "False UnsupportedValue"),
    ] {
        assert_eq!(accepted(name), expected, "{name}");
    }
    // A Service of another namespace than the route's is not in its own.
    let welcome = status_of(&plan, Kind::HttpRoute, "welcome");
    assert_eq!(condition_of(&welcome["parents"][0]["conditions"], "ResolvedRefs"), ("False", "BackendNotFound"));
    let gateway = status_of(&plan, Kind::Gateway, "gw");
    let attached: Vec<&Value> =
        gateway["listeners"].as_array().unwrap().iter().map(|one| &one["attachedRoutes"]).collect();
    assert_eq!(attached, [3, 3, 0], "the odd one is attached, too");
    assert_eq!(condition_of(&gateway["listeners"][2]["conditions"], "Accepted"), ("False", "UnsupportedProtocol"));
    assert_eq!(condition_of(&gateway["conditions"], "Accepted"), ("True", "ListenersNotValid"));
    assert_eq!(condition_of(&gateway["conditions"], "Programmed"), ("False", "AddressNotAssigned"));
    let served = &plan.frontends[&Frontend::Gateway(Key::new("default", "gw"))];
    assert_eq!(served.service.key.name, "gw-carob");
    let port = &served.ports[&80];
    assert_eq!(
        (leads(port, "http://x.a.com/"), leads(port, "http://y.a.com/")),
        ("10.42.0.2:8080".into(), "10.42.0.1:8080".into())
    );
    assert_eq!(leads(port, "http://other.org/"), "nowhere");
    // The foreign one, which has no Service, is younger than the other by name.
    assert_eq!(leads(port, "http://b.com/"), "10.42.0.1:8080");
}

#[test]
fn a_reference_to_another_namespace_needs_a_grant_there() {
    let mut state = state();
    with_service(&mut state, "shared", "far", json!([{"addresses": ["10.42.0.7"]}]));
    state.gateways = vec![object(gateway(json!([{"name": "a", "port": 80, "protocol": "HTTP"}])))];
    let far = json!({"rules": [{"backendRefs": [{"name": "far", "namespace": "shared", "port": 80}]}]});
    state.http_routes = vec![object(route("default", "r", far))];
    let outcome = |state: &State| {
        let plan = Plan::of(state, &setting());
        let status = status_of(&plan, Kind::HttpRoute, "r");
        let reason = condition_of(&status["parents"][0]["conditions"], "ResolvedRefs").1.to_owned();
        let port = &plan.frontends[&Frontend::Gateway(Key::new("default", "gw"))].ports[&80];
        (reason, leads(port, "http://h/"))
    };
    assert_eq!(outcome(&state), ("RefNotPermitted".into(), "500".into()));
    let grant = |name: Value| {
        object(json!({"metadata": {"namespace": "shared", "name": "g"}, "spec": {
            "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "default"}],
            "to": [{"group": "", "kind": "Service", "name": name}],
        }}))
    };
    state.grants = vec![grant(json!("other"))];
    assert_eq!(outcome(&state).0, "RefNotPermitted");
    state.grants = vec![grant(Value::Null)];
    assert_eq!(outcome(&state), ("ResolvedRefs".into(), "10.42.0.7:8080".into()));
}

#[test]
fn a_listener_for_https_needs_a_certificate() {
    let mut state = state();
    let listener =
        json!([{"name": "a", "port": 443, "protocol": "HTTPS", "tls": {"certificateRefs": [{"name": "cert"}]}}]);
    state.gateways = vec![object(gateway(listener))];
    with_address(&mut state);
    let reason = |state: &State| {
        let plan = Plan::of(state, &setting());
        let status = status_of(&plan, Kind::Gateway, "gw");
        let conditions = &status["listeners"][0]["conditions"];
        (condition_of(conditions, "ResolvedRefs").1.to_owned(), condition_of(conditions, "Programmed").0.to_owned())
    };
    assert_eq!(reason(&state), ("InvalidCertificateRef".into(), "False".into()));
    let made = rcgen::generate_simple_self_signed(["a.com".to_owned()]).unwrap();
    let secret = |key: String| {
        let encoded = |text: String| serde_json::to_value(k8s_openapi::ByteString(text.into_bytes())).unwrap();
        let data = json!({"tls.crt": encoded(made.cert.pem()), "tls.key": encoded(key)});
        State::by_key(vec![object(json!({"metadata": {"namespace": "default", "name": "cert"}, "data": data}))])
    };
    state.secrets = secret("nothing".to_owned());
    assert_eq!(reason(&state).0, "InvalidCertificateRef");
    state.secrets = secret(made.signing_key.serialize_pem());
    assert_eq!(reason(&state), ("ResolvedRefs".into(), "True".into()));
    let plan = Plan::of(&state, &setting());
    let port = &plan.frontends[&Frontend::Gateway(Key::new("default", "gw"))].ports[&443];
    assert!(port.tls && port.certificate(Some("a.com")).is_some());
}

#[test]
fn listeners_in_each_others_way_are_conflicted() {
    let mut state = state();
    let listeners = json!([
        {"name": "a", "port": 80, "protocol": "HTTP"},
        {"name": "b", "port": 80, "protocol": "HTTPS", "hostname": "b.com"},
        {"name": "c", "port": 81, "protocol": "HTTP"},
    ]);
    state.gateways = vec![object(gateway(listeners))];
    let status = status_of(&Plan::of(&state, &setting()), Kind::Gateway, "gw");
    let conflict = |index: usize| condition_of(&status["listeners"][index]["conditions"], "Conflicted").1.to_owned();
    assert_eq!([conflict(0), conflict(1), conflict(2)], ["ProtocolConflict", "ProtocolConflict", "NoConflicts"]);
}

#[test]
fn calls_of_grpc_are_paths_and_their_endpoints_speak_http2() {
    let mut state = state();
    state.gateways = vec![object(gateway(json!([{"name": "a", "port": 80, "protocol": "HTTP"}])))];
    let rule = |method: Value, name: &str| json!({"matches": [{"method": method}], "backendRefs": [{"name": name, "port": 80}]});
    let rules = json!({"rules": [
        rule(json!({"service": "s.A", "method": "M"}), "one"),
        rule(json!({"service": "s.A"}), "two"),
        rule(json!({"method": "Other"}), "rest"),
    ]});
    state.grpc_routes = vec![object(route("default", "r", rules))];
    let plan = Plan::of(&state, &setting());
    let port = &plan.frontends[&Frontend::Gateway(Key::new("default", "gw"))].ports[&80];
    let at = |uri: &str| leads(port, &format!("http://h{uri}"));
    assert_eq!(
        [at("/s.A/M"), at("/s.A/N"), at("/s.B/Other"), at("/s.B/N")],
        ["10.42.0.1:8080", "10.42.0.2:8080", "10.42.0.3:8080", "nowhere"]
    );
    assert!(port.backends().all(|backend| backend.protocol == crate::route::Protocol::Http2));
}

#[test]
fn filters_that_are_not_known_are_not_passed_by() {
    let mut state = state();
    state.gateways = vec![object(gateway(json!([{"name": "a", "port": 80, "protocol": "HTTP"}])))];
    let filter = json!({"type": "ExtensionRef", "extensionRef": {"group": "x", "kind": "Y", "name": "z"}});
    let rules = json!({"rules": [{"filters": [filter], "backendRefs": [{"name": "one", "port": 80}]}]});
    state.http_routes = vec![object(route("default", "r", rules))];
    let plan = Plan::of(&state, &setting());
    let port = &plan.frontends[&Frontend::Gateway(Key::new("default", "gw"))].ports[&80];
    assert_eq!(leads(port, "http://h/"), StatusCode::INTERNAL_SERVER_ERROR.as_str());
}

#[test]
fn filters_leave_the_frame_of_messages_alone() {
    let mut state = state();
    state.gateways = vec![object(gateway(json!([{"name": "a", "port": 80, "protocol": "HTTP"}])))];
    let mut outcome = |kind: &str, field: &str, change: Value| {
        let filter = json!({"type": kind, field: change});
        let backends = json!([{"name": "one", "port": 80, "filters": [filter]}]);
        state.http_routes = vec![object(route("default", "r", json!({"rules": [{"backendRefs": backends}]})))];
        let plan = Plan::of(&state, &setting());
        let status = status_of(&plan, Kind::HttpRoute, "r");
        let port = &plan.frontends[&Frontend::Gateway(Key::new("default", "gw"))].ports[&80];
        let reason = condition_of(&status["parents"][0]["conditions"], "Accepted").1.to_owned();
        (reason, leads(port, "http://h/") == "10.42.0.1:8080")
    };
    let value = |name: &str| json!([{"name": name, "value": "5"}]);
    for name in ["Content-Length", "transfer-encoding", "Connection", "upgrade", "TE", "host", "CDN-Loop"] {
        for change in [json!({"set": value(name)}), json!({"add": value(name)}), json!({"remove": [name]})] {
            for (kind, field) in [
                ("RequestHeaderModifier", "requestHeaderModifier"),
                ("ResponseHeaderModifier", "responseHeaderModifier"),
            ] {
                let seen = outcome(kind, field, change.clone());
                assert_eq!(seen, ("UnsupportedValue".to_owned(), false), "{kind} {change}");
            }
        }
    }
    let usual = outcome("RequestHeaderModifier", "requestHeaderModifier", json!({"set": value("x-mine")}));
    assert_eq!(usual, ("Accepted".to_owned(), true));
}

#[test]
fn each_gateway_has_a_service_of_its_own() {
    let mut state = state();
    let listeners = json!([{"name": "a", "port": 80, "protocol": "HTTP"}]);
    let named = |name: &str| {
        let mut one = gateway(listeners.clone());
        one["metadata"]["name"] = json!(name);
        one["metadata"]["uid"] = json!(name);
        object(one)
    };
    state.gateways = ["a.b", "a-b", "a.b.c", "a-b.c", "1"].map(named).into();
    let plan = Plan::of(&state, &setting());
    let services: HashSet<&str> = plan.frontends.values().map(|served| served.service.key.name.as_str()).collect();
    assert_eq!(services.len(), 6, "Ingresses have one as well: {services:?}");
    assert!(services.contains("a-b-carob"), "{services:?}");

    // A Service that another Gateway owns is not taken away from it.
    let programmed = |owner: &str| {
        let metadata = json!({"namespace": "default", "name": "a-b-carob", "labels": {OURS: "gateway"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Gateway", "name": "x", "uid": owner}]});
        let service = json!({"metadata": metadata, "spec": {"clusterIP": "10.96.0.9"}});
        let mut state = State { services: State::by_key(vec![object(service)]), ..State::default() };
        state.gateway_classes = self::state().gateway_classes;
        state.gateways = vec![named("a-b")];
        let plan = Plan::of(&state, &setting());
        let status = status_of(&plan, Kind::Gateway, "a-b");
        (condition_of(&status["conditions"], "Programmed").0.to_owned(), plan.frontends.len())
    };
    assert_eq!(programmed("a-b"), ("True".to_owned(), 1));
    assert_eq!(programmed("a.b"), ("False".to_owned(), 0));
}

/// The port 80 of the Gateway `gw`.
fn port_of(plan: &Plan) -> &Port {
    &plan.frontends[&Frontend::Gateway(Key::new("default", "gw"))].ports[&80]
}

#[test]
fn a_rule_that_cannot_be_carried_out_leaves_the_others_alone() {
    let mut state = state();
    state.gateways = vec![object(gateway(json!([{"name": "a", "port": 80, "protocol": "HTTP"}])))];
    let rule = |path: Value, filters: Value| json!({"matches": [{"path": path}], "filters": filters, "backendRefs": [{"name": "one", "port": 80}]});
    let under = |path: &str| json!({"type": "PathPrefix", "value": path});
    let host = json!([{"type": "RequestHeaderModifier",
        "requestHeaderModifier": {"set": [{"name": "Host", "value": "x"}]}}]);
    let mut rewrites = rule(under("/rewritten"), json!([]));
    rewrites["backendRefs"][0]["filters"] = json!([{"type": "URLRewrite", "urlRewrite": {"hostname": "x"}}]);
    let bad =
        [rule(json!({"type": "RegularExpression", "value": "("}), json!([])), rule(under("/host"), host), rewrites];
    let [regex, host, rewrites] = &bad;
    let mixed = json!({"rules": [regex, rule(under("/good"), json!([])), host, rewrites]});
    state.http_routes =
        vec![object(route("default", "mixed", mixed)), object(route("default", "bad", json!({"rules": bad})))];
    let plan = Plan::of(&state, &setting());
    let mixed = status_of(&plan, Kind::HttpRoute, "mixed")["parents"][0]["conditions"].clone();
    assert_eq!(condition_of(&mixed, "Accepted"), ("True", "Accepted"));
    assert_eq!(condition_of(&mixed, "PartiallyInvalid"), ("True", "UnsupportedValue"));
    let message = mixed[2]["message"].as_str().unwrap();
    assert!(message.starts_with("Dropped Rule spec.rules[0]: ") && message.contains("Dropped Rule spec.rules[2]: "));
    assert!(message.contains("Dropped Rule spec.rules[3]: ") && !message.contains("spec.rules[1]"), "{message}");
    let at = |path: &str| leads(port_of(&plan), &format!("http://h{path}"));
    assert_eq!([at("/good"), at("/host"), at("/rewritten")], ["10.42.0.1:8080", "nowhere", "nowhere"]);
    let bad = status_of(&plan, Kind::HttpRoute, "bad")["parents"][0]["conditions"].clone();
    assert_eq!(condition_of(&bad, "Accepted"), ("False", "UnsupportedValue"));
    assert_eq!(bad.as_array().unwrap().len(), 2, "{bad}");
}

#[test]
fn a_default_backend_comes_after_rules_for_all_hosts() {
    let mut state = state();
    let path =
        |path: &str, name: &str| json!({"paths": [{"path": path, "pathType": "Prefix", "backend": backend(name)}]});
    state.ingresses = vec![ingress(json!({
        "defaultBackend": backend("rest"),
        "rules": [{"host": "foo.com", "http": path("/x", "one")}, {"http": path("/y", "two")}],
    }))];
    let plan = Plan::of(&state, &setting());
    let port = &plan.frontends[&Frontend::Ingress].ports[&80];
    for (uri, expected) in [
        ("http://foo.com/x", "10.42.0.1:8080"),
        ("http://foo.com/y", "10.42.0.2:8080"),
        ("http://foo.com/z", "10.42.0.3:8080"),
        ("http://bar.com/y", "10.42.0.2:8080"),
        ("http://bar.com/x", "10.42.0.3:8080"),
    ] {
        assert_eq!(leads(port, uri), expected, "{uri}");
    }
}

#[test]
fn a_routes_own_host_names_say_which_goes_first() {
    let mut state = state();
    state.gateways =
        vec![object(gateway(json!([{"name": "a", "port": 80, "protocol": "HTTP", "hostname": "foo.example.com"}])))];
    let named = |name: &str, hosts: Value, path: &str| {
        let rules = json!([{"matches": [{"path": {"type": "PathPrefix", "value": path}}],
            "backendRefs": [{"name": name, "port": 80}]}]);
        object(route("default", name, json!({"hostnames": hosts, "rules": rules})))
    };
    state.http_routes = vec![
        named("one", json!(["foo.example.com"]), "/"),
        named("rest", json!([]), "/long/path"),
        named("two", json!(["*.example.com"]), "/long"),
    ];
    let plan = Plan::of(&state, &setting());
    let at = |uri: &str| leads(port_of(&plan), uri);
    assert_eq!(at("http://foo.example.com/long/path"), "10.42.0.1:8080");
    assert_eq!(at("http://bar.example.com/long"), "nowhere", "the listener is for one host");
    state.http_routes.remove(0);
    let plan = Plan::of(&state, &setting());
    assert_eq!(leads(port_of(&plan), "http://foo.example.com/long/path"), "10.42.0.2:8080");
}

#[test]
fn calls_that_lead_to_no_backend_are_unavailable() {
    let mut state = state();
    state.gateways = vec![object(gateway(json!([{"name": "a", "port": 80, "protocol": "HTTP"}])))];
    for backends in
        [json!([]), json!([{"name": "none", "port": 80}]), json!([{"name": "one", "port": 80, "weight": 0}])]
    {
        let rules = object(route("default", "r", json!({"rules": [{"backendRefs": backends}]})));
        (state.http_routes, state.grpc_routes) = (Vec::new(), vec![rules]);
        assert_eq!(leads(port_of(&Plan::of(&state, &setting())), "http://h/s/M"), "503", "{backends}");
        let rules = object(route("default", "r", json!({"rules": [{"backendRefs": backends}]})));
        (state.http_routes, state.grpc_routes) = (vec![rules], Vec::new());
        assert_eq!(leads(port_of(&Plan::of(&state, &setting())), "http://h/s/M"), "500", "{backends}");
    }
}

#[test]
fn of_calls_the_longer_service_goes_first_then_the_longer_method_then_headers() {
    let mut state = state();
    state.gateways = vec![object(gateway(json!([{"name": "a", "port": 80, "protocol": "HTTP"}])))];
    let mut first = |matches: [Value; 2]| {
        let names = ["one", "two"];
        let rules = matches
            .into_iter()
            .zip(names)
            .map(|(one, name)| json!({"matches": [one], "backendRefs": [{"name": name, "port": 80}]}));
        let rules: Vec<Value> = rules.collect();
        state.grpc_routes = vec![object(route("default", "r", json!({"rules": rules})))];
        leads(port_of(&Plan::of(&state, &setting())), "http://h/s.Some/Method")
    };
    let call = |method: Value| json!({"method": method});
    let (one, two) = ("10.42.0.1:8080", "10.42.0.2:8080");
    let service = || call(json!({"service": "s.Some"}));
    assert_eq!(first([call(json!({"method": "Method"})), service()]), two, "a method is less than a service");
    let expression = || call(json!({"type": "RegularExpression", "service": "s.+"}));
    assert_eq!(first([expression(), service()]), two, "the longer");
    let longer = || call(json!({"type": "RegularExpression", "service": "(s|t)[.]Some"}));
    assert_eq!(first([service(), longer()]), two, "whichever way they are compared");
    let both = || call(json!({"service": "s.Some", "method": "Method"}));
    assert_eq!(first([service(), both()]), two);
    let wider = || call(json!({"type": "RegularExpression", "service": "s.Some", "method": "M.+"}));
    assert_eq!(first([wider(), both()]), two, "the longer method");
    assert_eq!(first([both(), both()]), one, "the first");
    assert_eq!(first([json!({}), service()]), two);
}

#[test]
fn of_routes_of_two_kinds_that_have_a_host_in_common_the_older_is_accepted() {
    let mut state = state();
    state.gateways = vec![object(gateway(json!([
        {"name": "a", "port": 80, "protocol": "HTTP", "hostname": "*.a.com"},
        {"name": "b", "port": 80, "protocol": "HTTP", "hostname": "b.com"},
    ])))];
    let made = |name: &str, hosts: Value, second: u8, backend: &str| {
        let mut spec = to(backend);
        spec["hostnames"] = hosts;
        let mut made = route("default", name, spec);
        made["metadata"]["creationTimestamp"] = json!(format!("2026-01-01T00:00:0{second}Z"));
        made
    };
    let outcome = |state: &State, kind: Kind, name: &str| {
        let status = status_of(&Plan::of(state, &setting()), kind, name);
        let (holds, reason) = condition_of(&status["parents"][0]["conditions"], "Accepted");
        format!("{holds} {reason}")
    };
    let (accepted, conflict) = ("True Accepted", "False HostnameConflict");
    state.http_routes = vec![object(made("http", json!(["x.a.com"]), 2, "one"))];
    for (hosts, second, http, grpc) in [
        (json!(["*.a.com"]), 1, conflict, accepted),
        (json!(["*.a.com"]), 3, accepted, conflict),
        (json!([]), 1, conflict, accepted),
        // There is another listener for it.
        (json!([]), 3, accepted, accepted),
        (json!(["y.a.com"]), 3, accepted, accepted),
        // By name.
        (json!(["x.a.com"]), 2, conflict, accepted),
    ] {
        state.grpc_routes = vec![object(made("grpc", hosts.clone(), second, "two"))];
        let seen = [outcome(&state, Kind::HttpRoute, "http"), outcome(&state, Kind::GrpcRoute, "grpc")];
        assert_eq!(seen, [http, grpc], "{hosts} {second}");
    }
    assert_eq!(leads(port_of(&Plan::of(&state, &setting())), "http://x.a.com/"), "10.42.0.2:8080");
    // One that isn't accepted anyway stands in nobody's way.
    let bad = json!({"hostnames": ["x.a.com"], "rules": [{"matches": [{"method": {"type": "RegularExpression", "service": "("}}]}]});
    state.grpc_routes = vec![object(route("default", "grpc", bad))];
    assert_eq!(outcome(&state, Kind::HttpRoute, "http"), accepted);
}

/// A Service `odd` with these ports, each with a slice of the same name that leads to its own number.
fn with_ports(state: &mut State, ports: Value) {
    let mut all = ports.clone();
    let named = |name: &Value| json!([{"name": name["name"], "port": 8080}]);
    let slice = |(index, port): (usize, &Value)| {
        object(json!({"metadata": {"namespace": "default", "name": format!("odd-{index}"),
                "labels": {"kubernetes.io/service-name": "odd"}},
            "addressType": "IPv4", "ports": named(port), "endpoints": [{"addresses": [format!("10.42.1.{index}")]}]}))
    };
    let slices = all.as_array_mut().unwrap().iter().enumerate().map(slice).collect();
    let service = json!({"metadata": {"namespace": "default", "name": "odd"}, "spec": {"ports": ports}});
    state.services.extend(State::by_key(vec![object(service)]));
    state.slices.extend(State::by_service(slices));
}

#[test]
fn a_backend_that_speaks_tls_is_not_spoken_to_without_it() {
    let mut state = state();
    state.gateways = vec![object(gateway(json!([{"name": "a", "port": 80, "protocol": "HTTP"}])))];
    let odd = json!({"rules": [{"backendRefs": [{"name": "odd", "port": 80}]}]});
    state.http_routes = vec![object(route("default", "r", odd))];
    let mut outcome = |protocol: Value| {
        with_ports(&mut state, json!([{"name": "web", "port": 80, "appProtocol": protocol}]));
        let plan = Plan::of(&state, &setting());
        let status = status_of(&plan, Kind::HttpRoute, "r");
        let reason = condition_of(&status["parents"][0]["conditions"], "ResolvedRefs").1.to_owned();
        (reason, leads(port_of(&plan), "http://h/"))
    };
    for protocol in ["https", "kubernetes.io/wss", "tls"] {
        assert_eq!(outcome(json!(protocol)), ("UnsupportedProtocol".to_owned(), "500".to_owned()), "{protocol}");
    }
    for protocol in [Value::Null, json!("http"), json!("kubernetes.io/ws"), json!("kubernetes.io/h2c")] {
        assert_eq!(outcome(protocol), ("ResolvedRefs".to_owned(), "10.42.1.0:8080".to_owned()));
    }
}

#[test]
fn a_port_is_the_one_for_tcp() {
    let mut state = state();
    let both =
        json!([{"name": "quic", "port": 443, "protocol": "UDP"}, {"name": "web", "port": 443, "protocol": "TCP"}]);
    with_ports(&mut state, both);
    let find = |port| super::backend::find(&state, &Key::new("default", "odd"), port);
    let found = find(super::backend::PortName::Number(443)).unwrap();
    assert_eq!(found.endpoints, ["10.42.1.1:8080".parse().unwrap()]);
    assert!(find(super::backend::PortName::Name("quic")).is_err(), "nobody speaks HTTP there");
}

#[test]
fn a_timeout_of_zero_is_none_at_all() {
    let mut state = state();
    state.gateways = vec![object(gateway(json!([{"name": "a", "port": 80, "protocol": "HTTP"}])))];
    let mut limits = |timeouts: Value| {
        let rules = json!({"rules": [{"timeouts": timeouts, "backendRefs": [{"name": "one", "port": 80}]}]});
        state.http_routes = vec![object(route("default", "r", rules))];
        let plan = Plan::of(&state, &setting());
        let (parts, ()) = Request::get("http://h/").body(()).unwrap().into_parts();
        let Found::Entry(entry) = port_of(&plan).find("h", None, &parts) else { panic!("no rule") };
        (entry.rule.timeout, entry.rule.backend_timeout)
    };
    let (seconds, forever) = (|n| Some(Duration::from_secs(n)), Some(Duration::MAX));
    assert_eq!(limits(json!({})), (None, None), "as usual");
    assert_eq!(limits(json!({"request": "0s"})), (None, forever));
    assert_eq!(limits(json!({"backendRequest": "0s"})), (None, forever));
    assert_eq!(limits(json!({"request": "10s", "backendRequest": "0s"})), (seconds(10), forever));
    assert_eq!(limits(json!({"request": "0s", "backendRequest": "5s"})), (None, seconds(5)));
    assert_eq!(limits(json!({"request": "10s"})), (seconds(10), None));
}

/// The Service of the Gateway `gw`, with an address.
fn with_address(state: &mut State) {
    let service = json!({"metadata": {"namespace": "default", "name": "gw-carob", "labels": {OURS: "gateway"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Gateway", "name": "gw", "uid": "u"}]},
        "spec": {"clusterIP": "10.96.0.9"}});
    state.services.extend(State::by_key(vec![object(service)]));
}

#[test]
fn listeners_of_a_gateway_that_is_not_reached_are_not_programmed() {
    let mut state = state();
    let mut made = gateway(json!([{"name": "a", "port": 80, "protocol": "HTTP"}]));
    state.gateways = vec![object(made.clone())];
    let programmed = |state: &State| {
        let status = status_of(&Plan::of(state, &setting()), Kind::Gateway, "gw");
        let (holds, reason) = condition_of(&status["listeners"][0]["conditions"], "Programmed");
        format!("{holds} {reason}")
    };
    assert_eq!(programmed(&state), "False Pending", "it has no address yet");
    with_address(&mut state);
    assert_eq!(programmed(&state), "True Programmed");
    made["spec"]["infrastructure"] = json!({"parametersRef": {"group": "x", "kind": "Y", "name": "z"}});
    state.gateways = vec![object(made)];
    assert_eq!(programmed(&state), "False Invalid");
}

#[test]
fn listeners_for_tls_that_share_host_names_say_so() {
    let mut state = state();
    let listener = |name: &str, port: u16, protocol: &str, host: &str| json!({"name": name, "port": port, "protocol": protocol, "hostname": host});
    state.gateways = vec![object(gateway(json!([
        listener("a", 443, "HTTPS", "foo.example.com"),
        listener("b", 443, "HTTPS", "foo.example.org"),
        listener("c", 443, "HTTPS", "*.example.com"),
        listener("d", 8443, "HTTPS", "foo.example.com"),
        listener("e", 80, "HTTP", "foo.example.com"),
        listener("f", 80, "HTTP", "*.example.com"),
    ])))];
    let status = status_of(&Plan::of(&state, &setting()), Kind::Gateway, "gw");
    let overlaps = |index: usize| {
        let conditions = status["listeners"][index]["conditions"].as_array().unwrap().iter();
        conditions.into_iter().any(|one| one["type"] == "OverlappingTLSConfig" && one["status"] == "True")
    };
    assert_eq!([0, 1, 2, 3, 4, 5].map(overlaps), [true, false, true, false, false, false]);
    assert_eq!(condition_of(&status["listeners"][0]["conditions"], "OverlappingTLSConfig").1, "OverlappingHostnames");
}
