//! Clients that mean harm: whatever they send is answered in Kubernetes' words or cut off, takes bounded memory, and keeps
//! nobody else waiting.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use carob_tests::Carob;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::client::Client;
use super::neighbour::{beside, memory};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const JSON: &str = "application/json";
/// What all that is refused here may cost in memory, which allocators give back when they like.
const MOST_MEMORY: usize = 512 << 20;

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(work)
}

/// So much longer than on an idle server others may wait, on a machine of two processors that run the attacker, too.
/// The constant is what a scheduler's whims come to.
fn bearable(idle: Duration) -> Duration {
    idle * 20 + Duration::from_millis(400)
}

/// A body and what is said of it: what it is, method, path, content type, body, code, a part of the message.
type Bomb = (&'static str, &'static str, String, &'static str, Vec<u8>, u16, &'static str);

fn bombs() -> Vec<Bomb> {
    const MERGE: &str = "application/merge-patch+json";
    const STRATEGIC: &str = "application/strategic-merge-patch+json";
    const PATCH: &str = "application/json-patch+json";
    const APPLY: &str = "application/apply-patch+yaml";
    let here = || MAPS.to_owned();
    let there = || format!("{MAPS}/there");
    let deep = |depth: usize| {
        format!("{{\"metadata\":{{\"name\":\"a\"}},\"data\":{}1{}}}", "{\"a\":".repeat(depth), "}".repeat(depth))
    };
    let mut aliases = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned();
    for n in 1..10 {
        writeln!(aliases, "a{n}: &a{n} [{}]", vec![format!("*a{}", n - 1); 9].join(",")).expect("written");
    }
    let operations =
        |count: usize, operation: &Value| Value::from(vec![operation.clone(); count]).to_string().into_bytes();
    let mut nested = Vec::new();
    for _ in 0..10_000 {
        // Field 4 of `JSONSchemaProps` and the like: a message in a message.
        let mut outer = vec![0x22];
        let mut length = nested.len();
        while length >= 0x80 {
            outer.push(0x80 | u8::try_from(length & 0x7f).expect("seven bits"));
            length >>= 7;
        }
        outer.push(u8::try_from(length).expect("seven bits"));
        outer.extend(&nested);
        nested = outer;
    }
    let gzip = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&vec![b' '; 64 << 20]).expect("written into memory");
        encoder.finish().expect("written into memory")
    };
    let keys: String = (0..200_000).map(|n| format!("\"k{n}\":{{}},")).collect();
    vec![
        ("nested JSON", "POST", here(), JSON, deep(100_000).into_bytes(), 400, "exceeded max depth"),
        (
            "nested YAML",
            "POST",
            here(),
            "application/yaml",
            format!("data: {}", "[".repeat(100_000)).into_bytes(),
            400,
            "",
        ),
        (
            "a billion laughs",
            "POST",
            here(),
            "application/yaml",
            aliases.clone().into_bytes(),
            400,
            "document contains excessive aliasing",
        ),
        (
            "a billion laughs, applied",
            "PATCH",
            format!("{}?fieldManager=x", there()),
            APPLY,
            aliases.into_bytes(),
            400,
            "document contains excessive aliasing",
        ),
        (
            "nested protobuf",
            "POST",
            here(),
            "application/vnd.kubernetes.protobuf",
            [b"k8s\0", &nested[..]].concat(),
            400,
            "",
        ),
        ("nested merge patch", "PATCH", there(), MERGE, deep(100_000).into_bytes(), 400, ""),
        ("nested strategic patch", "PATCH", there(), STRATEGIC, deep(100_000).into_bytes(), 400, ""),
        (
            "a patch of too many operations",
            "PATCH",
            there(),
            PATCH,
            operations(10_001, &json!({"op": "test", "path": "/x"})),
            413,
            "The allowed maximum operations in a JSON patch is 10000, got 10001",
        ),
        (
            "copies of copies",
            "PATCH",
            there(),
            PATCH,
            operations(9_000, &json!({"op": "copy", "from": "/data", "path": "/data/x"})),
            422,
            "the server rejected our request due to an error in our request",
        ),
        (
            "a number without end",
            "POST",
            here(),
            JSON,
            format!("{{\"data\":{{\"a\":{}}}}}", "9".repeat(1 << 20)).into_bytes(),
            400,
            "",
        ),
        ("a packed body", "POST", here(), JSON, gzip, 400, ""),
        (
            "many unknown fields",
            "POST",
            format!("{MAPS}?fieldValidation=Strict"),
            JSON,
            format!("{{{keys}\"metadata\":{{\"name\":\"a\"}}}}").into_bytes(),
            400,
            "strict decoding error: unknown field",
        ),
        (
            "a name with a zero",
            "POST",
            here(),
            JSON,
            br#"{"metadata":{"name":"a\u0000b"}}"#.to_vec(),
            422,
            "metadata.name: Invalid value",
        ),
        (
            "a name with a newline",
            "POST",
            here(),
            JSON,
            br#"{"metadata":{"name":"a\nb"}}"#.to_vec(),
            422,
            "metadata.name: Invalid value",
        ),
        (
            "a name that is a path",
            "POST",
            here(),
            JSON,
            br#"{"metadata":{"name":"../secrets/x"}}"#.to_vec(),
            422,
            "metadata.name: Invalid value",
        ),
        ("a path that climbs", "GET", format!("{MAPS}/%2e%2e"), JSON, Vec::new(), 400, "Name parameter invalid"),
        ("a path in a name", "GET", format!("{MAPS}/a%2Fb"), JSON, Vec::new(), 400, "Name parameter invalid"),
        (
            "large annotations",
            "POST",
            here(),
            JSON,
            json!({"metadata": {"name": "a", "annotations": {"a": "x".repeat(300_000)}}}).to_string().into_bytes(),
            422,
            "metadata.annotations: Too long: may not be more than 262144 bytes",
        ),
        (
            "a selector of brackets",
            "GET",
            format!("{MAPS}?labelSelector={}", "(".repeat(30_000)),
            JSON,
            Vec::new(),
            400,
            "",
        ),
        (
            "a dear rule",
            "POST",
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions".to_owned(),
            JSON,
            dear_rule().to_string().into_bytes(),
            422,
            "estimated rule cost exceeds budget",
        ),
    ]
}

/// A definition with a rule that looks at each item of an endless list, for each, for each.
fn dear_rule() -> Value {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "array", "items": {"type": "string"},
        "x-kubernetes-validations": [{"rule": "self.all(a, self.all(b, self.all(c, a + b != c)))"}]}}});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "xs.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "xs", "kind": "X"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]},
    })
}

#[test]
fn bombs_are_refused_in_kubernetes_words_and_others_are_served() {
    let carob =
        Carob::start_with(&carob_tests::Setup { arguments: &["--workers", "0"], ..carob_tests::Setup::default() });
    let client = Client::new(&carob, "http/1.1");
    run(async {
        let there = json!({"metadata": {"name": "there"}, "data": {"a": "x".repeat(1000)}}).to_string();
        let made = client.send(&format!("POST {MAPS} HTTP/1.1\r\ncontent-type: {JSON}"), there.as_bytes()).await;
        assert_eq!(made.status, 201, "{}", made.body);
        let idle = beside(&client, async {}).await;
        let before = memory(&carob);
        let busy = beside(&client, async {
            for (what, method, path, kind, body, code, part) in bombs() {
                let answer = client.send(&format!("{method} {path} HTTP/1.1\r\ncontent-type: {kind}"), &body).await;
                let status: Value =
                    serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{what}: {error}: {answer:?}"));
                assert_eq!((answer.status, &status["kind"]), (code, &json!("Status")), "{what}: {}", answer.body);
                let message = status["message"].as_str().expect("a message");
                assert!(message.contains(part), "{what}: {message}");
                assert!(message.len() < 64 << 10, "{what}: {} bytes of message", message.len());
            }
        })
        .await;
        let (idle, busy, grown) = (idle.most(), busy.most(), memory(&carob).saturating_sub(before));
        println!("a neighbour waits {busy:?} instead of {idle:?}; {} MiB more", grown >> 20);
        assert!(busy < bearable(idle), "{busy:?} instead of {idle:?}");
        assert!(grown < MOST_MEMORY, "{} MiB more", grown >> 20);
        // None of them has left a trace.
        let left = client.send("GET /api/v1/namespaces/default/configmaps?labelSelector=!a HTTP/1.1", b"").await;
        let left: Value = serde_json::from_str(&left.body).expect("a list");
        let names: Vec<_> =
            left["items"].as_array().expect("items").iter().map(|item| &item["metadata"]["name"]).collect();
        assert!(names.iter().all(|name| *name == "there" || *name == "kube-root-ca.crt"), "{names:?}");
    });
}

#[test]
fn large_objects_are_worked_on_beside_small_requests() {
    const SENDERS: usize = 6;
    let carob =
        Carob::start_with(&carob_tests::Setup { arguments: &["--workers", "0"], ..carob_tests::Setup::default() });
    let client = Client::new(&carob, "http/1.1");
    // Right in every field, and far too many of them: validated, compared, owned.
    let env: Vec<Value> = (0..10_000).map(|n| json!({"name": format!("V{n}"), "value": "x"})).collect();
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "large-"},
        "spec": {"containers": [{"name": "c", "image": "i", "env": env}]}});
    let pod = pod.to_string();
    run(async {
        let idle = beside(&client, async {}).await;
        let before = memory(&carob);
        let busy = beside(&client, async {
            let send = || async {
                let head = format!("POST /api/v1/namespaces/default/pods?dryRun=All HTTP/1.1\r\ncontent-type: {JSON}");
                let answer = client.send(&head, pod.as_bytes()).await;
                assert!(
                    matches!(answer.status, 201 | 429),
                    "{}: {}",
                    answer.status,
                    &answer.body[..answer.body.len().min(500)]
                );
                answer.status
            };
            let statuses = futures::future::join_all((0..SENDERS).map(|_| send())).await;
            assert!(statuses.contains(&201), "{statuses:?}");
        })
        .await;
        let (idle, busy, grown) = (idle.most(), busy.most(), memory(&carob).saturating_sub(before));
        println!("a neighbour waits {busy:?} instead of {idle:?}; {} MiB more", grown >> 20);
        assert!(busy < bearable(idle), "{busy:?} instead of {idle:?}");
        assert!(grown < MOST_MEMORY, "{} MiB more", grown >> 20);
    });
}

#[test]
fn clients_that_are_slow_silent_or_many_keep_nobody_waiting() {
    const EACH: usize = 300;
    let carob =
        Carob::start_with(&carob_tests::Setup { arguments: &["--workers", "0"], ..carob_tests::Setup::default() });
    let client = Client::new(&carob, "http/1.1");
    run(async {
        let idle = beside(&client, async {}).await;
        let before = memory(&carob);
        let mut held = Vec::new();
        let mut silent = Vec::new();
        let busy = beside(&client, async {
            for n in 0..EACH {
                // A handshake that never comes.
                silent.push(client.knock().await);
                // A head that comes letter by letter, a body of which little comes, and a watch of nothing.
                for begun in [
                    "GET /api/v1/pods HTTP/1.1\r\nx-slow: ".to_owned(),
                    format!(
                        "POST {MAPS} HTTP/1.1\r\nhost: x\r\ncontent-type: {JSON}\r\ncontent-length: 3000000\r\n\r\n{{"
                    ),
                    format!("GET {MAPS}?watch=1&fieldSelector=metadata.name%3Dnobody{n} HTTP/1.1\r\nhost: x\r\n\r\n"),
                ] {
                    let mut connection = client.connect().await;
                    connection.0.write_all(begun.as_bytes()).await.expect("sent");
                    connection.0.flush().await.expect("sent");
                    held.push(connection);
                }
            }
            for connection in held.iter_mut().step_by(3) {
                // Some may have been cut off by now.
                let _ = connection.0.write_all(b"a").await;
            }
        })
        .await;
        let (idle, waited, grown) = (idle.most(), busy.most(), memory(&carob).saturating_sub(before));
        println!("a neighbour waits {waited:?} instead of {idle:?} ({} times); {} MiB more", busy.count(), grown >> 20);
        assert!(waited < bearable(idle), "{waited:?} instead of {idle:?}");
        assert!(grown < MOST_MEMORY, "{} MiB for {} connections", grown >> 20, EACH * 4);
        // Watches are served although there are many.
        let made = json!({"metadata": {"name": "nobody7"}}).to_string();
        let made = client.send(&format!("POST {MAPS} HTTP/1.1\r\ncontent-type: {JSON}"), made.as_bytes()).await;
        assert_eq!(made.status, 201, "{}", made.body);
        let watch = &mut held[7 * 3 + 2].0;
        let mut seen = String::new();
        let mut piece = vec![0; 4096];
        while !seen.contains("nobody7") {
            let read = tokio::time::timeout(carob_tests::PATIENCE, watch.read(&mut piece))
                .await
                .expect("in time")
                .expect("open");
            assert!(read > 0, "the watch ended: {seen}");
            seen += &String::from_utf8_lossy(&piece[..read]);
        }
    });
}

#[test]
fn streams_that_are_opened_and_reset_at_once_end_their_connection_only() {
    let carob =
        Carob::start_with(&carob_tests::Setup { arguments: &["--workers", "0"], ..carob_tests::Setup::default() });
    let (client, attacker) = (Client::new(&carob, "http/1.1"), Client::new(&carob, "h2"));
    run(async {
        let idle = beside(&client, async {}).await;
        let before = memory(&carob);
        let busy = beside(&client, async {
            for _ in 0..4 {
                let mut connection = attacker.connect().await;
                // The preface and empty settings (RFC 9113, 3.4).
                let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
                for stream in (1..40_000u32).step_by(2) {
                    // Method GET, scheme https, a path, all of the static table or literal (RFC 7541).
                    let block = [&[0x82, 0x87, 0x04, 12][..], b"/api/v1/pods", &[0x01, 1, b'x']].concat();
                    let length = u8::try_from(block.len()).expect("short");
                    bytes.extend([0, 0, length, 1, 5]);
                    bytes.extend(stream.to_be_bytes());
                    bytes.extend(&block);
                    bytes.extend([0, 0, 4, 3, 0]);
                    bytes.extend(stream.to_be_bytes());
                    bytes.extend(8u32.to_be_bytes());
                }
                // It is cut off on the way.
                let _ = connection.0.write_all(&bytes).await;
                let mut answered = Vec::new();
                let ended = tokio::time::timeout(carob_tests::PATIENCE, connection.0.read_to_end(&mut answered)).await;
                assert!(ended.is_ok(), "whoever resets twenty thousand streams is not listened to for ever");
            }
        })
        .await;
        let (idle, waited, grown) = (idle.most(), busy.most(), memory(&carob).saturating_sub(before));
        println!("a neighbour waits {waited:?} instead of {idle:?}; {} MiB more", grown >> 20);
        assert!(waited < bearable(idle), "{waited:?} instead of {idle:?}");
        assert!(grown < MOST_MEMORY, "{} MiB more", grown >> 20);
    });
}

#[test]
fn heads_that_are_too_large_are_refused_and_pipelined_requests_answered_in_order() {
    let carob =
        Carob::start_with(&carob_tests::Setup { arguments: &["--workers", "0"], ..carob_tests::Setup::default() });
    let client = Client::new(&carob, "http/1.1");
    run(async {
        let large = "x".repeat(200 << 10);
        for head in [
            format!("GET /api/v1/pods HTTP/1.1\r\nx-large: {large}"),
            format!("GET /api/v1/pods?labelSelector={large} HTTP/1.1"),
            format!("GET /api/v1/pods HTTP/1.1{}", "\r\nx-many: y".repeat(1000)),
        ] {
            let answer = client.send(&head, b"").await;
            assert!(matches!(answer.status, 414 | 431), "{}: {}", answer.status, &head[..40]);
        }
        let mut connection = client.connect().await;
        let all: String = (0..500).map(|n| format!("GET {MAPS}/nobody{n} HTTP/1.1\r\nhost: x\r\n\r\n")).collect();
        connection.0.write_all(all.as_bytes()).await.expect("sent");
        let (mut seen, mut piece) = (String::new(), vec![0; 16 << 10]);
        while !seen.contains("\"nobody499\\\" not found") && !seen.contains("nobody499") {
            let read = tokio::time::timeout(carob_tests::PATIENCE, connection.0.read(&mut piece))
                .await
                .expect("in time")
                .expect("open");
            assert!(read > 0, "the connection ended after {} bytes", seen.len());
            seen += &String::from_utf8_lossy(&piece[..read]);
        }
        let places: Vec<_> = (0..499).map(|n| seen.find(&format!("nobody{n}\\\" not found")).unwrap_or(0)).collect();
        assert!(places.is_sorted() && places[0] > 0, "the answers are in order");
    });
}
