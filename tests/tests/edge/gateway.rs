//! The Gateway API.

use std::collections::BTreeMap;

use carob_tests::pods::list;
use carob_tests::{Setup, eventually, network_octet};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};

use crate::client::{Answer, connect, get};
use crate::programs::{GRPC, python};
use crate::{service, start, web};

fn gateway(name: &str, listeners: Value) -> Value {
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": name},
        "spec": {"gatewayClassName": "carob", "listeners": listeners}})
}

fn route(name: &str, host: &str, rules: Value) -> Value {
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": name},
        "spec": {"parentRefs": [{"name": "gw"}], "hostnames": [host], "rules": rules}})
}

fn to(name: &str) -> Value {
    json!([{"name": name, "port": 80}])
}

/// A call as gRPC makes it; its status, from the trailers.
async fn call(address: &str, method: &str) -> Option<String> {
    let stream = tokio::net::TcpStream::connect((address, 80)).await.ok()?;
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.ok()?;
    tokio::spawn(connection);
    let request = hyper::Request::post(format!("http://grpc.test{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from_static(&[0; 5])))
        .ok()?;
    let response = sender.send_request(request).await.ok()?;
    if response.status() != 200 {
        return Some(response.status().as_u16().to_string());
    }
    let whole = response.into_body().collect().await.ok()?;
    let status = whole.trailers()?.get("grpc-status")?.to_str().ok()?.to_owned();
    (whole.to_bytes() == Bytes::from_static(&[0; 5])).then_some(status)
}

#[test]
fn gateways_have_addresses_and_routes_say_what_becomes_of_requests() {
    let network = format!("10.213.{}", network_octet());
    let config = format!("network:\n  loadBalancers: [{network}.100-{network}.101]\n");
    let carob = start(&Setup { images: &["tools", "python"], config: Some(&config), ..Setup::default() });
    let mut grpc = service("grpc");
    grpc["spec"]["ports"][0]["appProtocol"] = json!("kubernetes.io/h2c");
    let header = |name: &str, value: &str| json!({"name": name, "value": value});
    let said = carob.apply(&list(&[
        web("v1", "v1"),
        web("v2", "v2"),
        web("copy", "copy"),
        python("grpc", GRPC),
        service("v1"),
        service("v2"),
        service("copy"),
        grpc,
        gateway("gw", json!([{"name": "http", "port": 80, "protocol": "HTTP"}])),
        route("canary", "canary.test", json!([{"backendRefs": [
            {"name": "v1", "port": 80, "weight": 80}, {"name": "v2", "port": 80, "weight": 20}]}])),
        route("matches", "match.test", json!([
            {"backendRefs": to("v1")},
            {"matches": [{"headers": [header("x-version", "2")]}], "backendRefs": to("v2")},
            {"matches": [{"queryParams": [header("version", "2")]}], "backendRefs": to("v2")},
            {"matches": [{"path": {"type": "RegularExpression", "value": "/v[2-9]+/.*"}}], "backendRefs": to("v2")},
            {"matches": [{"method": "DELETE"}], "backendRefs": to("v2")},
        ])),
        route("filters", "filter.test", json!([
            {"matches": [{"path": {"value": "/old"}}], "filters": [
                {"type": "RequestRedirect", "requestRedirect": {"scheme": "https", "statusCode": 301,
                    "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/new"}}}]},
            {"matches": [{"path": {"value": "/rewrite"}}], "backendRefs": to("v1"), "filters": [
                {"type": "URLRewrite", "urlRewrite": {"hostname": "inner.test",
                    "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}}},
                {"type": "RequestHeaderModifier", "requestHeaderModifier": {
                    "set": [header("x-set", "s")], "add": [header("x-add", "a")], "remove": ["x-gone"]}},
                {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": [header("x-answer", "yes")]}}]},
            {"matches": [{"path": {"value": "/mirror"}}], "backendRefs": to("v1"), "filters": [
                {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "copy", "port": 80}}}]},
            {"matches": [{"path": {"value": "/slow"}}], "backendRefs": to("v1"), "timeouts": {"request": "300ms"}},
            {"matches": [{"path": {"value": "/missing"}}], "backendRefs": to("nobody")},
            {"matches": [{"path": {"value": "/self"}}], "backendRefs": to("gw-carob")},
            {"matches": [{"path": {"value": "/round"}}], "backendRefs": to("round")},
        ])),
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GRPCRoute", "metadata": {"name": "grpc"},
            "spec": {"parentRefs": [{"name": "gw"}], "hostnames": ["grpc.test"], "rules": [
                {"matches": [{"method": {"service": "test.Greeter", "method": "Hello"}}], "backendRefs": to("grpc")}]}}),
    ]));
    assert!(!said.contains("Warning"), "{said}");
    carob.wait("gateway/gw", "condition=Programmed");
    let at = carob.jsonpath("gateway/gw", ".status.addresses[0].value");
    assert!(at.starts_with(&network), "an address of the pool: {at}");
    assert_eq!(carob.jsonpath("gateway/gw", ".status.listeners[0].attachedRoutes"), "4");
    let status = |route: &str, kind: &str| {
        carob.jsonpath(route, &format!(".status.parents[0].conditions[?(@.type==\"{kind}\")].reason"))
    };
    assert_eq!(status("httproute/canary", "Accepted"), "Accepted");
    assert_eq!(status("httproute/canary", "ResolvedRefs"), "ResolvedRefs");
    assert_eq!(status("httproute/filters", "ResolvedRefs"), "BackendNotFound");
    assert_eq!(status("grpcroute/grpc", "Accepted"), "Accepted");

    let from = |answer: Option<Answer>| {
        let answer = answer.filter(|answer| answer.status == 200)?;
        answer.body.lines().find_map(|line| line.strip_prefix("hostname: ").map(str::to_owned))
    };
    for host in ["match.test", "canary.test"] {
        eventually("both versions answer", || from(get(&at, 80, host, "/")).is_some());
    }
    eventually("the other one as well", || from(get(&at, 80, "match.test", "/v2/x")).as_deref() == Some("v2"));
    let mut client = connect(&at, 80).expect("a connection");
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..100 {
        *counts.entry(from(client.get("canary.test", "/", "")).expect("an answer")).or_default() += 1;
    }
    assert!((10..=30).contains(&counts["v2"]) && counts["v1"] + counts["v2"] == 100, "{counts:?}");

    let mut ask = |path: &str, headers: &str| from(client.get("match.test", path, headers)).expect("an answer");
    assert_eq!(ask("/", ""), "v1");
    assert_eq!(ask("/", "X-Version: 2\r\n"), "v2");
    assert_eq!(ask("/?a=b&version=2", ""), "v2");
    assert_eq!(ask("/v1/x", ""), "v1");
    let deleted = client.send("DELETE / HTTP/1.1\r\nHost: match.test\r\n\r\n");
    assert_eq!(from(deleted).as_deref(), Some("v2"));

    let redirect = client.get("filter.test", "/old/x?q=1", "").expect("an answer");
    assert_eq!((redirect.status, redirect.header("location")), (301, "https://filter.test/new/x?q=1"));
    let rewritten = client.get("filter.test", "/rewrite/x", "X-Gone: 1\r\nX-Set: old\r\n").expect("an answer");
    assert_eq!(rewritten.header("x-answer"), "yes");
    let seen = rewritten.body.to_lowercase();
    for present in
        ["request: get /x\n", "host: inner.test", "x-set: s\n", "x-add: a\n", "x-forwarded-host: filter.test"]
    {
        assert!(seen.contains(present), "{present} in\n{seen}");
    }
    assert!(!seen.contains("x-gone"), "{seen}");
    eventually("a copy arrives", || {
        get(&at, 80, "filter.test", "/mirror/me").is_some_and(|answer| answer.body.contains("hostname: v1"))
            && carob.kubectl(&["logs", "copy"]).contains("GET /mirror/me")
    });
    let status_of = |path: &str| get(&at, 80, "filter.test", path).map_or(0, |answer| answer.status);
    assert_eq!(status_of("/slow?delay=5s"), 504);
    assert_eq!(status_of("/slow"), 200);
    assert_eq!(status_of("/missing"), 500, "a reference to nothing");
    assert_eq!(status_of("/self"), 503, "the proxy is no endpoint of its own");
    // Its address is not its socket: a balancer, or a pod, may lead back.
    carob.apply(&list(&[
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "round"},
            "spec": {"ports": [{"name": "http", "port": 80}]}}),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "round", "labels": {"kubernetes.io/service-name": "round"}},
            "ports": [{"name": "http", "port": 80}], "endpoints": [{"addresses": [at]}]}),
    ]));
    eventually("a request that goes round ends", || status_of("/round") == 508);
    assert_eq!(status_of("/other"), 404);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    eventually("a call of gRPC ends well", || {
        runtime.block_on(call(&at, "/test.Greeter/Hello")).as_deref() == Some("0")
    });
    assert_eq!(runtime.block_on(call(&at, "/test.Greeter/Other")).as_deref(), Some("404"));

    let twice = json!([{"name": "gw", "sectionName": "a"}, {"name": "gw"}]);
    let mut wrong = route("wrong", "x.test", json!([{"backendRefs": to("v1")}]));
    wrong["spec"]["parentRefs"] = twice;
    let refused = carob.pipe(&["apply", "-f", "-"], &wrong.to_string());
    assert!(!refused.status.success(), "a rule of the definition refuses it");
    let far = gateway(
        "far",
        json!([{"name": "tls", "port": 443, "protocol": "HTTPS", "tls": {"certificateRefs": [
        {"name": "cert", "namespace": "kube-system"}]}}]),
    );
    carob.apply(&far.to_string());
    carob.until(
        &[
            "get",
            "gateway",
            "far",
            "-o",
            "jsonpath={.status.listeners[0].conditions[?(@.type==\"ResolvedRefs\")].reason}",
        ],
        |seen| seen == "RefNotPermitted",
    );
    carob.kubectl(&["delete", "gateway", "gw"]);
    eventually("its Service goes with it", || !carob.run(&["get", "service", "gw-carob"]).status.success());
    eventually("and its address", || from(get(&at, 80, "match.test", "/")).is_none());
}
