use std::collections::BTreeMap;

use http::{Method, Request, StatusCode};

use super::host::{name_of, parents};
use super::path::PathChange;
use super::*;

fn rule(status: u16) -> Arc<Rule> {
    let action = Action::Fail(StatusCode::from_u16(status).unwrap());
    Arc::new(Rule { action, ..Rule::default() })
}

/// A rule that is told from others by its status.
fn entry(host: &str, matches: Match, status: u16) -> Entry {
    let host = if host.is_empty() { Pattern::Any } else { Pattern::of_ingress(Some(host)) };
    Entry { host, matches, rule: rule(status), rank: (None, status.to_string(), 0) }
}

fn prefix(path: &str) -> Match {
    Match::of_path(PathMatch::prefix(path))
}

fn exact(path: &str) -> Match {
    Match::of_path(PathMatch::Exact(path.to_owned()))
}

fn found(port: &Port, request: Request<()>) -> u16 {
    let (parts, ()) = request.into_parts();
    let host = parts.uri.host().unwrap_or_default().to_owned();
    match port.find(&host, None, &parts) {
        Found::Entry(Entry { rule, .. }) => match rule.action {
            Action::Fail(status) => status.as_u16(),
            _ => 0,
        },
        Found::Nothing => 404,
        Found::Misdirected => 421,
    }
}

fn get(port: &Port, uri: &str) -> u16 {
    found(port, Request::get(uri).body(()).unwrap())
}

fn one(entries: Vec<Entry>) -> Port {
    Port::new(false, vec![Listener::new(Pattern::Any, Vec::new(), entries)])
}

#[test]
fn prefixes_are_compared_by_elements_as_kubernetes_tables_say() {
    for (path, request, holds) in [
        ("/", "/any/path", true),
        ("/foo", "/foo", true),
        ("/foo", "/foo/", true),
        ("/foo/", "/foo", true),
        ("/foo/", "/foo/", true),
        ("/foo", "/foobar", false),
        ("/aaa/bb", "/aaa/bbb", false),
        ("/aaa/bbb", "/aaa/bbb", true),
        ("/aaa/bbb/", "/aaa/bbb", true),
        ("/aaa/bbb", "/aaa/bbb/ccc", true),
        ("/aaa/bbb", "/aaa/bbbxyz", false),
        ("/foo", "/FOO", false),
    ] {
        let port = one(vec![entry("", prefix(path), 200)]);
        assert_eq!(get(&port, &format!("http://h{request}")) == 200, holds, "{path} {request}");
    }
    let port = one(vec![entry("", exact("/foo"), 200)]);
    assert_eq!((get(&port, "http://h/foo"), get(&port, "http://h/foo/"), get(&port, "http://h/bar")), (200, 404, 404));
}

#[test]
fn longer_paths_come_first_and_exact_ones_before_prefixes() {
    let port = one(vec![
        entry("", prefix("/"), 201),
        entry("", prefix("/aaa"), 202),
        entry("", prefix("/aaa/bbb"), 203),
        entry("", exact("/aaa/bbb"), 204),
        entry("", Match::of_path(PathMatch::Rest), 205),
    ]);
    for (path, status) in [("/x", 201), ("/aaa/c", 202), ("/aaa/bbb/", 203), ("/aaa/bbb", 204)] {
        assert_eq!(get(&port, &format!("http://h{path}")), status, "{path}");
    }
}

#[test]
fn exact_hosts_come_before_wildcards_and_wildcards_before_all_others() {
    let port = one(vec![
        entry("", prefix("/"), 201),
        entry("*.foo.com", prefix("/"), 202),
        entry("bar.foo.com", prefix("/only"), 203),
    ]);
    for (uri, status) in [
        ("http://bar.foo.com/only", 203),
        ("http://bar.foo.com/", 202),
        ("http://x.foo.com/", 202),
        ("http://x.y.foo.com/", 201),
        ("http://foo.com/", 201),
    ] {
        assert_eq!(get(&port, uri), status, "{uri}");
    }
    assert_eq!(parents("a.b.c").collect::<Vec<_>>(), [".b.c", ".c"]);
    assert!(Pattern::of_gateway(Some("*.foo.com")).matches("x.y.foo.com"));
}

#[test]
fn method_headers_and_parameters_decide_among_equal_paths_then_age() {
    let with = |method: bool, headers: usize, query: usize| {
        let mut matches = prefix("/");
        matches.method = method.then_some(Method::GET);
        let name = |n| HeaderName::from_bytes(format!("x-{n}").as_bytes()).unwrap();
        use http::HeaderName;
        matches.headers = (0..headers).map(|n| (name(n), Text::Exact("v".to_owned()))).collect();
        matches.query = (0..query).map(|n| (format!("q{n}"), Text::Exact("a b".to_owned()))).collect();
        matches
    };
    let port = one(vec![
        entry("", with(false, 0, 0), 209),
        entry("", with(false, 0, 0), 208),
        entry("", with(false, 0, 1), 201),
        entry("", with(false, 1, 0), 202),
        entry("", with(false, 2, 0), 203),
        entry("", with(true, 0, 0), 204),
    ]);
    let ask = |method: Method, headers: usize, query: &str| {
        let mut request = Request::builder().method(method).uri(format!("http://h/{query}"));
        for n in 0..headers {
            request = request.header(format!("x-{n}"), "v");
        }
        found(&port, request.body(()).unwrap())
    };
    assert_eq!(ask(Method::GET, 2, ""), 204);
    assert_eq!(ask(Method::POST, 2, "?q0=a%20b"), 203);
    assert_eq!(ask(Method::POST, 1, "?q0=a+b"), 202);
    assert_eq!(ask(Method::POST, 0, "?x=1&q0=a+b"), 201);
    assert_eq!(ask(Method::POST, 0, "?q0=other"), 208, "the first by name");
}

#[test]
fn expressions_are_of_the_whole_value() {
    let port = one(vec![entry("", Match::of_path(PathMatch::Regex(matches::whole("/v[0-9]+|/w").unwrap())), 200)]);
    assert_eq!((get(&port, "http://h/v12"), get(&port, "http://h/w"), get(&port, "http://h/v1/x")), (200, 200, 404));
}

#[test]
fn a_listener_is_chosen_by_host_and_a_connection_is_for_one_listener() {
    let listener = |host: &str, status| {
        let host = Pattern::of_gateway(Some(host).filter(|host| !host.is_empty()));
        Listener::new(host, Vec::new(), vec![entry("", prefix("/"), status)])
    };
    let port = Port::new(true, vec![listener("", 201), listener("*.a.com", 202), listener("b.a.com", 203)]);
    assert_eq!(
        (get(&port, "http://b.a.com/"), get(&port, "http://c.d.a.com/"), get(&port, "http://z/")),
        (203, 202, 201)
    );
    let (parts, ()) = Request::get("https://b.a.com/").body(()).unwrap().into_parts();
    assert!(matches!(port.find("b.a.com", Some("b.a.com"), &parts), Found::Entry(_)));
    assert!(matches!(port.find("b.a.com", Some("other.a.com"), &parts), Found::Misdirected));
}

#[test]
fn what_two_patterns_have_in_common_is_the_narrower_one() {
    let pattern = |text: &str| Pattern::of_gateway(Some(text).filter(|text| !text.is_empty()));
    for (one, other, common) in [
        ("", "a.com", Some("a.com")),
        ("*.com", "a.com", Some("a.com")),
        ("*.a.com", "*.com", Some("*.a.com")),
        ("a.com", "*.a.com", None),
        ("a.com", "b.com", None),
        ("*.a.com", "*.b.com", None),
    ] {
        assert_eq!(pattern(one).intersection(&pattern(other)), common.map(pattern), "{one} {other}");
        assert_eq!(pattern(other).intersection(&pattern(one)), common.map(pattern), "{other} {one}");
    }
}

#[test]
fn hosts_lose_their_port_and_case() {
    assert_eq!(name_of("Foo.Com:8080").as_deref(), Some("foo.com"));
    assert_eq!(name_of("[::1]:80").as_deref(), Some("[::1]"));
    assert_eq!(name_of("foo.com.").as_deref(), Some("foo.com"));
    assert_eq!((name_of(""), name_of("a@b"), name_of("a b")), (None, None, None));
}

#[test]
fn weights_hold_exactly_and_evenly() {
    let target = |weight, status| Target::plain(weight, Err(StatusCode::from_u16(status).unwrap()));
    let split = Split::new(vec![target(90, 201), target(10, 202), target(0, 203)]);
    let mut count = BTreeMap::new();
    for _ in 0..1000 {
        *count.entry(*split.choose().unwrap().to.as_ref().unwrap_err()).or_insert(0) += 1;
    }
    let (many, few) = (count[&StatusCode::CREATED], count[&StatusCode::ACCEPTED]);
    assert!((895..=905).contains(&many) && (95..=105).contains(&few) && count.len() == 2, "{count:?}");
    assert!(Split::new(vec![target(0, 201)]).choose().is_none());
    assert!(Split::new(vec![target(0, 201), target(0, 202)]).choose().is_none());
}

#[test]
fn paths_are_rewritten_as_the_gateway_api_tables_say() {
    for (path, matched, new, result) in [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo", "/foo", "/", "/"),
        ("/bar", "", "/xyz", "/xyz/bar"),
    ] {
        assert_eq!(PathChange::Prefix(new.to_owned()).apply(path, matched), result, "{path} {new:?}");
    }
    assert_eq!(PathChange::Full("/one".to_owned()).apply("/foo", "/foo"), "/one");
}

#[test]
fn redirects_keep_what_is_not_given_and_leave_out_usual_ports() {
    let plain = Redirect { scheme: None, host: None, port: None, path: None, status: StatusCode::FOUND };
    let uri: http::Uri = "/foo/bar?a=b".parse().unwrap();
    let to = |redirect: &Redirect, port| redirect.location("http", "h.com", port, &uri, "/foo");
    assert_eq!(to(&plain, 80), "http://h.com/foo/bar?a=b");
    assert_eq!(to(&plain, 8080), "http://h.com:8080/foo/bar?a=b");
    let six = name_of("[FD00::7]:8080").unwrap();
    assert_eq!(plain.location("http", &six, 8080, &uri, "/foo"), "http://[fd00::7]:8080/foo/bar?a=b");
    let secure = Redirect { scheme: Some("https".to_owned()), ..plain.clone() };
    assert_eq!(to(&secure, 8080), "https://h.com/foo/bar?a=b");
    let all = Redirect {
        host: Some("o.com".to_owned()),
        port: Some(8443),
        path: Some(PathChange::Prefix("/x".to_owned())),
        ..secure
    };
    assert_eq!(to(&all, 80), "https://o.com:8443/x/bar?a=b");
}

#[test]
fn who_says_no_name_gets_the_certificate_of_the_listener_for_most_hosts() {
    let certificate = |name: &str| {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
        let key = Arc::new(CertifiedKey::new(vec![made.cert.der().clone()], key));
        Certificate { key, names: vec![Pattern::of_gateway(Some(name))] }
    };
    let (narrow, wide, bare) = (certificate("b.a.com"), certificate("a.com"), Pattern::of_gateway(Some("zzz.a.com")));
    let listener = |host: Pattern, certificates| Listener::new(host, certificates, Vec::new());
    let port = Port::new(
        true,
        vec![
            listener(narrow.names[0].clone(), vec![narrow.clone()]),
            listener(Pattern::of_gateway(Some("*.a.com")), vec![wide.clone()]),
            listener(bare, Vec::new()),
        ],
    );
    let shown = |name| port.certificate(name).unwrap();
    assert!(Arc::ptr_eq(&shown(None), &wide.key));
    assert!(Arc::ptr_eq(&shown(Some("b.a.com")), &narrow.key));
}
