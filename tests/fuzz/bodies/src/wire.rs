//! What comes in by sockets: requests, protobuf, SPDY, DNS, netlink.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use carob_api::decode::{FieldValidation, decode_json};
use carob_gateway::fuzzing as gateway;
use carob_network::{Dns, NamedEndpoint, NamedPort, Protocol, ServiceNames};
use serde_json::{Map, Value, json};

use crate::object::stored;
use crate::source::Source;
use crate::{objects, texts};

/// A protobuf body. What can be read can be written and is then the same; and it doesn't grow out of proportion.
pub fn protobuf(data: &[u8]) {
    let body = [b"k8s\0", data].concat();
    let Ok(read) = gateway::protobuf_to_json(&body) else { return };
    let text = read.to_string();
    assert!(text.len() <= 256 * body.len() + 1024, "{} bytes became {}", body.len(), text.len());
    let Ok(written) = gateway::protobuf_from_json(text.as_bytes()) else { return };
    let again = gateway::protobuf_to_json(&written).expect("what was written can be read");
    let settled = gateway::protobuf_from_json(again.to_string().as_bytes()).expect("and written again");
    assert_eq!(settled, written, "{read}\n{again}");
}

/// Objects in protobuf, without the four bytes that every body begins with.
pub fn protobuf_seeds() -> Vec<Vec<u8>> {
    let objects = [
        json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "x", "labels": {"a": "b"}}, "data": {"a": "b"}}),
        json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "x", "creationTimestamp": "2026-01-02T03:04:05Z"},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "1500m"}}, "livenessProbe": {"httpGet": {"port": "web"}}}],
            "volumes": [{"name": "v", "emptyDir": {}}]}}),
        json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "s"}, "data": {"k": "AAH/"}}),
        json!({"kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1", "metadata": {"name": "xs.example.com"},
            "spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": {"type": "object", "enum": [1, null],
            "properties": {"l": {"items": {"$ref": "x"}}, "m": {"additionalProperties": {"type": "string"}}}, "dependencies": {"a": ["b"]}}}}]}}),
        json!({"kind": "Lease", "apiVersion": "coordination.k8s.io/v1", "metadata": {"name": "l"}, "spec": {"renewTime": "2026-01-02T03:04:05.000006Z"}}),
    ];
    let written =
        objects.iter().map(|object| gateway::protobuf_from_json(object.to_string().as_bytes()).expect("a form"));
    written.map(|body| body[4..].to_vec()).collect()
}

/// What is stored comes back from protobuf as it was.
pub fn protobuf_round_trip(data: &[u8]) {
    let mut source = Source::new(data);
    let kind = objects::kind(&mut source);
    let Some(object) = stored(&mut source, kind) else { return };
    // What a definition has at `subresources.status` is an object in protobuf, and anything in the schema of its JSON; the
    // options of an eviction and the claims of a StatefulSet have no type of their own there.
    if !gateway::has_protobuf(kind) || ["CustomResourceDefinition", "Eviction", "StatefulSet"].contains(&kind.kind) {
        return;
    }
    let written = gateway::protobuf_from_json(object.to_string().as_bytes());
    let written = written.unwrap_or_else(|status| panic!("{}: {}\n{object}", kind.kind, status.message()));
    let read = gateway::protobuf_to_json(&written);
    let read = read.unwrap_or_else(|status| panic!("{}: {}\n{object}", kind.kind, status.message()));
    let again = decode_json(kind, read.to_string().as_bytes(), FieldValidation::Strict);
    let again = again.unwrap_or_else(|status| panic!("{}: {}\n{read}", kind.kind, status.message()));
    assert_eq!(filled(again.value), filled(object), "through protobuf");
}

/// What of a value is not empty: protobuf has no empty lists and maps, so Kubernetes' own storage loses them, too.
fn filled(value: Value) -> Value {
    let is_empty = |value: &Value| match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    };
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().map(|(key, value)| (key, filled(value)));
            fields.filter(|(_, value)| !is_empty(value)).collect::<Map<_, _>>().into()
        }
        Value::Array(items) => items.into_iter().map(filled).collect(),
        other => other,
    }
}

/// A client of exec and port-forward before WebSockets.
pub fn spdy(data: &[u8]) {
    let answered = carob_worker::fuzzing::spdy(data);
    assert!(answered <= 64 * data.len() + (64 << 10), "{} bytes were answered with {answered}", data.len());
}

/// Frames: a stream with an empty header block, data, a ping, a window update, settings, farewell.
pub fn spdy_seeds() -> Vec<Vec<u8>> {
    let control = |kind: u8, content: &[u8]| {
        [&[0x80, 3, 0, kind, 0, 0, 0, u8::try_from(content.len()).expect("short")][..], content].concat()
    };
    // zlib, one stored piece of four zero bytes, and an empty one: no headers.
    let block = [&[0x78, 0x01][..], &[0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0], &[0, 0, 0, 0xff, 0xff]].concat();
    let open = control(1, &[&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &block].concat());
    let data = [0, 0, 0, 1, 0, 0, 0, 3, b'a', b'b', b'c'].to_vec();
    let others = [
        control(6, &[0, 0, 0, 1]),
        control(9, &[0, 0, 0, 1, 0, 0, 1, 0]),
        control(4, &[0, 0, 0, 0]),
        control(7, &[0; 8]),
    ];
    vec![[open.clone(), data.clone()].concat(), [open, data, others.concat()].concat(), others.concat()]
}

/// A datagram for the cluster's DNS.
pub fn dns(data: &[u8]) {
    static SERVER: OnceLock<Dns> = OnceLock::new();
    let server = SERVER.get_or_init(names);
    if let Some(answer) = carob_network::fuzzing::dns(server, data) {
        assert!(data.len() >= 12 && data[2] & 0x80 == 0, "an answer is not to be answered");
        assert!(answer.len() <= 4096, "{} bytes in one datagram", answer.len());
        assert_eq!(answer[..2], data[..2], "the answer to another question");
        assert_eq!(carob_network::fuzzing::dns(server, &answer), None);
    }
}

fn names() -> Dns {
    let server = Dns::new("cluster.local", Arc::new(Vec::new));
    let ports = vec![NamedPort { name: "http".to_owned(), protocol: Protocol::Tcp, port: 80 }];
    let all = (1..=200).flat_map(|last| {
        [IpAddr::from([10, 0, 0, last]), IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0x0a00, u16::from(last)])]
    });
    let endpoints = all.map(|address| NamedEndpoint { hostname: None, address, ports: ports.clone() });
    server.set("default", "many", Some(ServiceNames::Endpoints(endpoints.collect())));
    let addresses = vec![IpAddr::from([10, 96, 0, 1]), IpAddr::from([0xfd00, 0x96, 0, 0, 0, 0, 0, 1])];
    server.set("default", "web", Some(ServiceNames::Address { addresses, ports }));
    server.complete();
    server
}

/// Questions for names inside and outside.
pub fn dns_seeds() -> Vec<Vec<u8>> {
    let question = |name: &str, kind: u8| {
        let mut bytes = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            bytes.push(u8::try_from(label.len()).expect("short"));
            bytes.extend(label.as_bytes());
        }
        bytes.extend([0, 0, kind, 0, 1]);
        bytes
    };
    vec![
        question("many.default.svc.cluster.local", 1),
        question("web.default.svc.cluster.local", 1),
        question("_http._tcp.web.default.svc.cluster.local", 33),
        question("1.0.96.10.in-addr.arpa", 12),
        question(&format!("1.0.0.0.{}.6.9.0.0.0.0.d.f.ip6.arpa", ["0"; 20].join(".")), 12),
        question("fd00--a00-7.many.default.svc.cluster.local", 28),
        question("nobody.cluster.local", 28),
        question("example.com", 255),
    ]
}

/// Attributes of a kernel's answer.
pub fn netlink(data: &[u8]) {
    let found = carob_network::fuzzing::attributes(data);
    assert!(found <= data.len(), "every attribute takes its bytes");
}

/// Method, path and query in three lines.
pub fn request(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.splitn(3, '\n');
    let method = lines.next().unwrap_or_default().as_bytes();
    let (path, query) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let understood = gateway::request(method, path, query);
    assert!(understood.len() <= 16 * text.len() + 1024, "a request is no larger for being understood");
}

/// Requests of every sort.
pub fn request_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "GET\n/api/v1/namespaces/default/pods/a/log\ncontainer=c&timeout=1m30s&limit=5",
        "POST\n/apis/apps/v1/namespaces/%2e%2e/deployments\nfieldValidation=Strict&dryRun=All",
        "DELETE\n//api/v1//namespaces/x/\nlimit=9223372036854775808&timeout=1e400h&a=%zz",
        "GET\n/apis\n",
        "WATCH\n/api/v1/watch/pods/%00\nwatch=1&timeoutSeconds=-1",
    ])
}
