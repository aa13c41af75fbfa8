//! Ingresses.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use carob_tests::pods::{idle, list, pod};
use carob_tests::{Setup, eventually};
use serde_json::{Value, json};

use crate::client::{connect, get, get_secure};
use crate::programs::{WEB_SOCKET, python};
use crate::{service, start, web};

pub fn ingress(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": name}, "spec": spec})
}

pub fn path(path: &str, kind: &str, service: &str) -> Value {
    json!({"path": path, "pathType": kind, "backend": {"service": {"name": service, "port": {"name": "http"}}}})
}

/// A Secret with a new certificate for a name, and the certificate.
pub fn secret(name: &str, host: &str) -> (Value, Vec<u8>) {
    let made = rcgen::generate_simple_self_signed([host.to_owned()]).expect("a certificate");
    let encoded = |text: String| BASE64_STANDARD.encode(text);
    let data = json!({"tls.crt": encoded(made.cert.pem()), "tls.key": encoded(made.signing_key.serialize_pem())});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": name}, "data": data});
    (secret, made.cert.der().to_vec())
}

#[test]
fn ingresses_lead_to_services_by_host_path_and_certificate() {
    let carob = start(&Setup { images: &["tools", "python"], ..Setup::default() });
    let (first, certificate) = secret("cert", "a.test");
    let said = carob.apply(&list(&[
        web("one", "one"),
        web("two", "two"),
        python("ws", WEB_SOCKET),
        pod("client", &[idle("main")]),
        service("one"),
        service("two"),
        service("ws"),
        first,
        ingress(
            "main",
            json!({
                "tls": [{"hosts": ["a.test"], "secretName": "cert"}],
                "rules": [
                    {"host": "a.test", "http": {"paths": [
                        path("/two", "Prefix", "two"),
                        path("/exact", "Exact", "two"),
                        path("/gone", "Prefix", "gone"),
                        path("/", "Prefix", "one"),
                    ]}},
                    {"host": "*.b.test", "http": {"paths": [path("/", "ImplementationSpecific", "two")]}},
                    {"host": "ws.test", "http": {"paths": [path("/", "Prefix", "ws")]}},
                ],
            }),
        ),
    ]));
    assert!(!said.contains("Warning"), "{said}");
    assert_eq!(carob.jsonpath("ingress/main", ".spec.ingressClassName"), "carob", "the default class");
    carob.wait("ingress/main", "jsonpath={.status.loadBalancer.ingress[0].ip}");
    let at = carob.jsonpath("ingress/main", ".status.loadBalancer.ingress[0].ip");
    let leads = |host: &str, path: &str, to: &str| {
        eventually(&format!("{host}{path} leads to {to}"), || {
            get(&at, 80, host, path)
                .is_some_and(|answer| answer.status == 200 && answer.body.contains(&format!("hostname: {to}\n")))
        });
    };
    leads("a.test", "/", "one");
    leads("a.test", "/two/more?x=1", "two");
    leads("a.test", "/exact", "two");
    leads("a.test", "/exactly", "one");
    leads("a.test", "/twofold", "one");
    leads("x.b.test:8000", "/", "two");
    let status = |host: &str, path: &str| get(&at, 80, host, path).map_or(0, |answer| answer.status);
    assert_eq!(status("a.test", "/gone/x"), 503, "there is no such Service");
    assert_eq!(status("other.test", "/"), 404, "nobody's host");
    assert_eq!(status("x.y.b.test", "/"), 404, "a star is for one label");
    carob.until(
        &["exec", "client", "--", "wget", "-qO-", "--header", "Host: a.test", &format!("http://{at}/two")],
        |seen| seen.contains("hostname: two"),
    );

    // What the endpoint is told of the client, and what of the connection stays behind.
    let mut client = connect(&at, 80).expect("a connection");
    let lies =
        "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nConnection: x-mine\r\nX-Mine: 1\r\nX-Kept: 2\r\n";
    let told = client.get("a.test", "/", lies).expect("an answer").body.to_lowercase();
    for present in
        ["x-forwarded-host: a.test", "x-forwarded-proto: http\n", "x-forwarded-port: 80", "x-kept: 2", "host: a.test"]
    {
        assert!(told.contains(present), "{present} in\n{told}");
    }
    assert!(!told.contains("6.6.6.6") && !told.contains("x-mine"), "{told}");
    let body = "POST /two HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\n\r\nabc";
    let answer = client.send(body).expect("an answer, on the same connection");
    assert!(answer.status == 200 && answer.body.contains("body: abc"), "{}", answer.body);
    let twice = "GET / HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n";
    assert_eq!(connect(&at, 80).expect("a connection").send(twice).map(|answer| answer.status), Some(400));

    let mut socket = connect(&at, 80).expect("a connection");
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    eventually("a WebSocket is agreed to", || {
        socket = connect(&at, 80).expect("a connection");
        let answer = socket.get("ws.test", "/", upgrade);
        answer.is_some_and(|answer| {
            answer.status == 101 && answer.header("sec-websocket-accept") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        })
    });
    let mut heard = [0; 9];
    socket.0.get_mut().write_all(b"\x81\x83abcd123").expect("it is open");
    socket.0.read_exact(&mut heard).expect("an echo");
    assert_eq!(&heard, b"\x81\x83abcd123");

    // The certificate is the Secret's, and a new one counts at once; the open WebSocket doesn't mind.
    let shown = |host: &str| get_secure(&at, 443, host, "/").filter(|(_, status, _)| *status == 200);
    eventually("the Secret's certificate is shown", || shown("a.test").is_some_and(|(shown, ..)| shown == certificate));
    let (_, _, answer) = shown("a.test").expect("an answer");
    assert!(answer.to_lowercase().contains("x-forwarded-proto: https\n"), "{answer}");
    assert!(shown("x.b.test").is_some_and(|(shown, ..)| shown != certificate), "another name, another certificate");
    let (second, renewed) = secret("cert", "a.test");
    carob.apply(&second.to_string());
    eventually("the new certificate is shown", || shown("a.test").is_some_and(|(shown, ..)| shown == renewed));
    socket.0.get_mut().write_all(b"\x81\x83abcd456").expect("it is open");
    socket.0.read_exact(&mut heard).expect("an echo");

    carob.apply(&list(&[ingress(
        "rest",
        json!({"defaultBackend": {"service": {"name": "two", "port": {"number": 80}}}}),
    )]));
    leads("other.test", "/anything", "two");
    carob.kubectl(&["delete", "pod", "two", "--grace-period=0", "--force"]);
    eventually("a Service without pods", || status("other.test", "/") == 503);
    carob.kubectl(&["delete", "ingress", "main", "rest"]);
    eventually("nothing is left", || status("a.test", "/") == 404);
    let other = ingress(
        "other",
        json!({"ingressClassName": "nginx", "defaultBackend": {"service": {"name": "one", "port": {"number": 80}}}}),
    );
    carob.apply(&other.to_string());
    assert_eq!(status("a.test", "/"), 404, "another class is not ours");
}

#[test]
fn no_request_fails_while_a_deployment_rolls() {
    let carob = start(&Setup { images: &["tools"], ..Setup::default() });
    let template = json!({
        "metadata": {"labels": {"app": "web"}},
        "spec": {"terminationGracePeriodSeconds": 10, "containers": [{
            "name": "main", "image": "tools", "imagePullPolicy": "IfNotPresent", "args": ["http-server"],
            "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1},
            "lifecycle": {"preStop": {"sleep": {"seconds": 2}}},
        }]},
    });
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {
        "replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": template,
        "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}}});
    let rule = json!({"rules": [{"http": {"paths": [path("/", "Prefix", "web")]}}]});
    carob.apply(&list(&[deployment, service("web"), ingress("web", rule)]));
    carob.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    carob.wait("ingress/web", "jsonpath={.status.loadBalancer.ingress[0].ip}");
    let at = carob.jsonpath("ingress/web", ".status.loadBalancer.ingress[0].ip");
    eventually("it answers", || get(&at, 80, "any.test", "/hostname").is_some_and(|answer| answer.status == 200));
    let (done, served) = (AtomicBool::new(false), AtomicU64::new(0));
    let failures: Vec<String> = std::thread::scope(|scope| {
        let load = || {
            let mut failures = Vec::new();
            let mut client = connect(&at, 80).expect("a connection");
            while !done.load(Ordering::Relaxed) {
                // A connection of its own now and then, the same one otherwise.
                let count = served.fetch_add(1, Ordering::Relaxed);
                if count.is_multiple_of(64) {
                    client = connect(&at, 80).expect("a connection");
                }
                match client.get("any.test", "/hostname", "") {
                    Some(answer) if answer.status == 200 && answer.body.starts_with("web-") => {}
                    other => {
                        failures.push(format!("request {count}: {other:?}"));
                        client = connect(&at, 80).expect("a connection");
                    }
                }
            }
            failures
        };
        let clients: Vec<_> = (0..3).map(|_| scope.spawn(load)).collect();
        let rolled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            carob.kubectl(&["rollout", "restart", "deployment/web"]);
            carob.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"]);
        }));
        done.store(true, Ordering::Relaxed);
        let failures = clients.into_iter().flat_map(|client| client.join().expect("a client ends")).collect();
        if let Err(panic) = rolled {
            std::panic::resume_unwind(panic);
        }
        failures
    });
    let served = served.load(Ordering::Relaxed);
    assert!(failures.is_empty(), "{} of {served} failed: {:?}", failures.len(), &failures[..failures.len().min(5)]);
    assert!(served > 50, "{served} requests are no load");
}
