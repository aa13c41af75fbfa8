//! Requests that others answer: through `proxy` of objects, and those of API groups that other servers serve.

mod support;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use carob_gateway::{NodeDialer, NodeStream};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kube::Client;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use support::Cluster;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};

const APIS: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// An answer as it comes.
struct Answer {
    code: u16,
    headers: http::HeaderMap,
    text: String,
}

impl Answer {
    fn value(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }
}

async fn send(client: &Client, method: &str, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
    let mut request = Request::builder().method(method).uri(path).header("Content-Type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let answer = client.send(request.body(body.into_bytes().into()).expect("a request")).await.expect("an answer");
    let (parts, body) = answer.into_parts();
    let bytes = body.collect().await.expect("a body").to_bytes();
    Answer { code: parts.status.as_u16(), headers: parts.headers, text: String::from_utf8_lossy(&bytes).into_owned() }
}

async fn get(client: &Client, path: &str) -> Answer {
    send(client, "GET", path, &[], &Value::Null).await
}

async fn make(client: &Client, path: &str, object: &Value) {
    let answer = send(client, "POST", path, &[], object).await;
    assert_eq!(answer.code, 201, "{}", answer.text);
}

/// Asks until the answer is the awaited one.
async fn until(client: &Client, path: &str, done: impl Fn(&Answer) -> bool) -> Answer {
    let mut last = String::new();
    for _ in 0..1000 {
        let answer = get(client, path).await;
        if done(&answer) {
            return answer;
        }
        last = answer.text;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{path} never answered as awaited, at last {last}");
}

/// Answers with what it was asked, and with the page or the redirect that the path names.
async fn echo(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    let header = |name: &str| {
        let all: Vec<&str> = parts.headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
        all.join(",")
    };
    let answer = Response::builder();
    let answer = match parts.uri.path() {
        "/page" => answer.header("Content-Type", "text/html").body("<a href=\"/next\">".into()),
        "/away" => answer.status(302).header("Location", "/next?q").body(Bytes::new().into()),
        path => {
            let seen = json!({
                "method": parts.method.as_str(), "path": path, "query": parts.uri.query(), "host": header("host"),
                "body": String::from_utf8_lossy(&body), "authorization": header("authorization"),
                "uri": header("x-forwarded-uri"), "user": header("x-remote-user"), "groups": header("x-remote-group"),
            });
            answer.header("Access-Control-Allow-Origin", "*").body(seen.to_string().into())
        }
    };
    Ok(answer.expect("an answer"))
}

/// Nodes whose workers answer with what they are asked.
struct Echoing;

#[async_trait]
impl NodeDialer for Echoing {
    async fn dial(&self, _: &str) -> std::io::Result<Box<dyn NodeStream>> {
        let (near, far) = tokio::io::duplex(1 << 16);
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(far), service_fn(echo)));
        Ok(Box::new(near))
    }
}

#[tokio::test]
async fn a_request_through_an_object_keeps_method_query_and_body_and_links_lead_back_through_it() {
    let cluster = Cluster::with_dialer(Arc::new(Echoing)).await;
    let admin = cluster.admin();
    make(&admin, "/api/v1/nodes", &json!({"metadata": {"name": "n1"}})).await;
    let proxy = "/api/v1/nodes/n1:10250/proxy";
    for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        let path = format!("{proxy}/a/../b%20c/?q=1&r=%2F");
        let answer = send(&admin, method, &path, &[("Authorization", "Bearer x"), ("Host", "h")], &json!("in")).await;
        let seen = answer.value();
        assert_eq!(answer.code, 200, "{}", answer.text);
        assert_eq!(
            (&seen["method"], &seen["path"], &seen["query"]),
            (&method.into(), &"/b%20c/".into(), &"q=1&r=%2F".into())
        );
        assert_eq!((&seen["body"], &seen["host"], &seen["authorization"]), (&"\"in\"".into(), &"h".into(), &"".into()));
        assert!(!answer.headers.contains_key("access-control-allow-origin"));
    }
    let bare = get(&admin, &format!("{proxy}?q=1")).await;
    assert_eq!(
        (bare.code, bare.headers["location"].to_str().expect("text")),
        (301, "/api/v1/nodes/n1:10250/proxy/?q=1")
    );
    let bare = send(&admin, "POST", proxy, &[], &Value::Null).await.value();
    assert_eq!((&bare["path"], &bare["uri"]), (&"/".into(), &"/api/v1/nodes/n1:10250/proxy/".into()));
    let page = get(&admin, &format!("{proxy}/page")).await;
    assert_eq!(page.text, "<a href=\"/api/v1/nodes/n1:10250/proxy/next\">");
    let away = get(&admin, &format!("{proxy}/away")).await;
    let location = away.headers["location"].to_str().expect("text");
    assert_eq!((away.code, location), (302, "/api/v1/nodes/n1:10250/proxy/next?q"));
}

#[tokio::test]
async fn a_request_leads_nowhere_without_a_pod_an_endpoint_or_a_right() {
    let cluster = Cluster::new().await;
    let admin = cluster.admin();
    let core = "/api/v1/namespaces/default";
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    make(&admin, &format!("{core}/serviceaccounts"), &json!({"metadata": {"name": "default"}})).await;
    make(&admin, &format!("{core}/pods"), &pod).await;
    make(&admin, &format!("{core}/services"), &json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}}))
        .await;
    for (path, code, message) in [
        ("pods/p/proxy/", 400, "address not allowed"),
        ("pods/p:1:2:3/proxy/", 400, "invalid pod request \"p:1:2:3\""),
        ("pods/nope/proxy/", 404, "pods \"nope\" not found"),
        ("services/s/proxy/", 503, "no endpoints available for service \"s\""),
        ("services/s:81/proxy/", 503, "no service port 81 found for service \"s\""),
    ] {
        let answer = get(&admin, &format!("{core}/{path}")).await;
        assert_eq!((answer.code, answer.value()["message"].as_str()), (code, Some(message)), "{path}");
    }
    // Whoever writes endpoints doesn't choose where the server connects to.
    let slice = json!({"metadata": {"name": "s-1", "labels": {"kubernetes.io/service-name": "s"}}, "addressType": "IPv4",
        "ports": [{"port": 80}], "endpoints": [{"addresses": ["192.0.2.7"]}]});
    make(&admin, "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", &slice).await;
    assert_eq!(get(&admin, &format!("{core}/services/s/proxy/")).await.code, 503);
    let nobody = cluster.gateway.client("nobody", &[]);
    let answer = send(&nobody, "DELETE", &format!("{core}/pods/p/proxy/x"), &[], &Value::Null).await;
    let message = "pods \"p\" is forbidden: User \"nobody\" cannot delete resource \"pods/proxy\" in API group \"\" in the \
                   namespace \"default\"";
    assert_eq!((answer.code, answer.value()["message"].as_str()), (403, Some(message)));
}

/// Answers as an API server of `wardle.example/v1` that believes those whom `authority` signed for.
async fn wardle(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let list = json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "wardle.example/v1", "resources": [
        {"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "verbs": ["get", "list"]}]});
    let document = match request.uri().path() {
        "/apis/wardle.example/v1" => list,
        "/openapi/v3" => {
            json!({"paths": {"apis/wardle.example/v1": {"serverRelativeURL": "/openapi/v3/apis/wardle.example/v1?hash=1"}}})
        }
        "/openapi/v3/apis/wardle.example/v1" => json!({"openapi": "3.0.0"}),
        "/openapi/v2" => {
            json!({"paths": {"/apis/wardle.example/v1/flunders": {}}, "definitions": {"Flunder": {"type": "object"}}})
        }
        path if path.starts_with("/apis/wardle.example/v1/") => return echo(request).await,
        _ => return Ok(Response::builder().status(404).body(Bytes::new().into()).expect("an answer")),
    };
    let answer = Response::builder().header("Content-Type", "application/json").body(document.to_string().into());
    Ok(answer.expect("an answer"))
}

/// Serves it for the name `wardle.default.svc`. Gives the port, its certificate, and what ends it.
async fn serve_wardle(client_authority: &str) -> (u16, String, DropGuard) {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    // An authority that is the server itself, as people make it with openssl.
    let mut params = rcgen::CertificateParams::new(vec!["wardle.default.svc".to_owned()]).expect("a name");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let signing_key = rcgen::KeyPair::generate().expect("a key");
    let issued = params.self_signed(&signing_key).expect("a certificate");
    let key = rustls_pki_types::PrivateKeyDer::try_from(signing_key.serialize_der()).expect("a key");
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(client_authority.as_bytes()).expect("PEM")).expect("a root");
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().expect("a verifier");
    let config = rustls::ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![issued.der().clone()], key)
        .expect("a configuration");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(stopped.clone().run_until_cancelled_owned(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let connection = hyper::server::conn::http1::Builder::new();
                // The client hangs up when it likes.
                let _ = connection.serve_connection(TokioIo::new(stream), service_fn(wardle)).await;
            }));
        }
    }));
    (port, issued.pem(), stop.drop_guard())
}

fn available(answer: &Answer) -> (String, String) {
    let condition = answer.value()["status"]["conditions"][0].clone();
    (condition["status"].as_str().unwrap_or_default().into(), condition["reason"].as_str().unwrap_or_default().into())
}

#[tokio::test]
async fn a_group_of_another_server_is_served_as_if_it_were_here_until_that_server_is_gone() {
    let cluster = Cluster::new().await;
    let admin = cluster.admin();
    let published = get(&admin, "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication").await;
    let authority = published.value()["data"]["requestheader-client-ca-file"].as_str().expect("PEM").to_owned();
    let (port, certificate, running) = serve_wardle(&authority).await;

    let api = json!({"metadata": {"name": "v1.wardle.example"}, "spec": {"group": "wardle.example", "version": "v1",
        "groupPriorityMinimum": 2000, "versionPriority": 200, "caBundle": STANDARD.encode(certificate),
        "service": {"namespace": "default", "name": "wardle", "port": port}}});
    make(&admin, APIS, &api).await;
    let one = format!("{APIS}/v1.wardle.example");
    until(&admin, &one, |answer| available(answer) == ("False".into(), "ServiceNotFound".into())).await;
    let refused = get(&admin, "/apis/wardle.example/v1/flunders").await;
    assert_eq!((refused.code, refused.text.as_str()), (503, "service unavailable\n"));

    let service =
        json!({"metadata": {"name": "wardle"}, "spec": {"type": "ExternalName", "externalName": "localhost"}});
    make(&admin, "/api/v1/namespaces/default/services", &service).await;
    until(&admin, &one, |answer| available(answer) == ("True".into(), "Passed".into())).await;
    let seen = get(&admin, "/apis/wardle.example/v1/namespaces/default/flunders/a?q=1").await.value();
    assert_eq!(
        (&seen["path"], &seen["query"]),
        (&"/apis/wardle.example/v1/namespaces/default/flunders/a".into(), &"q=1".into())
    );
    assert_eq!((&seen["user"], &seen["groups"]), (&"admin".into(), &"system:masters,system:authenticated".into()));
    let nobody = cluster.gateway.client("nobody", &[]);
    assert_eq!(get(&nobody, "/apis/wardle.example/v1/flunders").await.code, 403);

    let groups = get(&admin, "/apis").await.value();
    let group = groups["groups"].as_array().expect("groups").iter().find(|group| group["name"] == "wardle.example");
    assert_eq!(group.expect("listed")["preferredVersion"]["groupVersion"], "wardle.example/v1");
    assert_eq!(get(&admin, "/apis/wardle.example").await.value()["kind"], "APIGroup");
    let version = async || {
        let list = send(&admin, "GET", "/apis", &[("Accept", AGGREGATED)], &Value::Null).await.value();
        let items = list["items"].as_array().expect("groups").clone();
        items.into_iter().find(|item| item["metadata"]["name"] == "wardle.example").expect("listed")["versions"][0]
            .clone()
    };
    let fresh = version().await;
    assert_eq!((&fresh["freshness"], &fresh["resources"][0]["resource"]), (&"Current".into(), &"flunders".into()));
    let index = get(&admin, "/openapi/v3").await.value();
    let path = index["paths"]["apis/wardle.example/v1"]["serverRelativeURL"].as_str().expect("listed").to_owned();
    assert_eq!(get(&admin, &path).await.value()["openapi"], "3.0.0");
    let document = get(&admin, "/openapi/v2").await.value();
    assert!(document["paths"].get("/apis/wardle.example/v1/flunders").is_some());
    assert!(
        document["definitions"].get("Flunder").is_some()
            && document["definitions"].as_object().expect("all").len() > 100
    );

    drop(running);
    let renamed = json!({"metadata": {"annotations": {"a": "b"}}});
    let patch = [("Content-Type", "application/merge-patch+json")];
    // A change of the Service is a reason to look again at once.
    let path = "/api/v1/namespaces/default/services/wardle";
    let request = Request::builder().method("PATCH").uri(path).header(patch[0].0, patch[0].1);
    let request = request.body(renamed.to_string().into_bytes().into()).expect("a request");
    assert_eq!(admin.send(request).await.expect("an answer").status().as_u16(), 200);
    until(&admin, &one, |answer| available(answer) == ("False".into(), "FailedDiscoveryCheck".into())).await;
    assert_eq!(get(&admin, "/apis/wardle.example/v1/flunders").await.code, 503);
    let stale = version().await;
    assert_eq!((&stale["freshness"], &stale["resources"][0]["resource"]), (&"Stale".into(), &"flunders".into()));
    let answer = send(&admin, "DELETE", &one, &[], &Value::Null).await;
    assert_eq!(answer.code, 200, "{}", answer.text);
    until(&admin, "/apis/wardle.example", |answer| answer.code == 404).await;
}

#[tokio::test]
async fn a_group_of_custom_resources_has_its_api_service_as_long_as_it_is_served() {
    let cluster = Cluster::new().await;
    let admin = cluster.admin();
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let schema = json!({"openAPIV3Schema": {"type": "object"}});
    let definition = json!({"metadata": {"name": "things.e.x"}, "spec": {"group": "e.x", "scope": "Cluster",
        "names": {"plural": "things", "kind": "Thing"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": schema}]}});
    make(&admin, definitions, &definition).await;
    let one = format!("{APIS}/v1.e.x");
    let found = until(&admin, &one, |answer| available(answer) == ("True".into(), "Local".into())).await.value();
    assert_eq!(found["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "true");
    assert_eq!(send(&admin, "DELETE", &one, &[], &Value::Null).await.code, 200);
    until(&admin, &one, |answer| answer.code == 200 && answer.value()["metadata"]["uid"] != found["metadata"]["uid"])
        .await;
    let answer = send(&admin, "DELETE", &format!("{definitions}/things.e.x"), &[], &Value::Null).await;
    assert_eq!(answer.code, 200);
    until(&admin, &one, |answer| answer.code == 404).await;
}
