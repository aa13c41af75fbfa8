//! Requests that are too deep, too large, too slow, too many or no HTTP at all, while everybody else is served.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use carob_tests::Carob;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;

use crate::tls::{As, Connection, exchange, request, status};

/// Memory that the gateway has taken at most so far, in bytes.
fn peak(carob: &Carob) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", carob.pid())).expect("the gateway lives");
    let line = text.lines().find(|line| line.starts_with("VmHWM:")).expect("a peak");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") << 10
}

fn files(carob: &Carob) -> usize {
    fs::read_dir(format!("/proc/{}/fd", carob.pid())).expect("the gateway lives").count()
}

#[test]
fn bodies_that_explode_are_refused_in_time_and_memory() {
    let carob = Carob::start(&[]);
    let pki = carob.data_dir().join("pki");
    let (certificate, key) = (pki.join("admin.crt"), pki.join("admin.key"));
    let admin = As::Certificate(&certificate, &key);
    let maps = "/api/v1/namespaces/default/configmaps";
    let map = |metadata: &str, data: &str| {
        format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"m"{metadata}}},"data":{{{data}}}}}"#)
    };
    carob.kubectl(&["create", "configmap", "target", "--from-literal=k=v"]);
    let target = &format!("{maps}/target");

    let nested = |open: &str, close: &str, depth: usize| format!("{}{}", open.repeat(depth), close.repeat(depth));
    let laughs = |levels: usize| {
        let mut text = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..levels {
            let alias = format!("*a{}", level - 1);
            text.push_str(&format!("a{level}: &a{level} [{}]\n", vec![alias; 9].join(",")));
        }
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: m}}\n{text}data: *a{}\n", levels - 1)
    };
    let mut doubling = vec![json!({"op": "add", "path": "/data/c", "value": {"x": "y".repeat(1000)}})];
    doubling.extend((0..40).map(|n| json!({"op": "copy", "from": "/data/c", "path": format!("/data/c/{n}")})));
    let moves: Vec<_> = (0..20_000).map(|_| json!({"op": "test", "path": "/data/k", "value": "v"})).collect();
    let many_keys: String = (0..60_000).map(|n| format!("\"k{n}\":\"\",")).collect();
    let many_yaml: String = (0..60_000).map(|n| format!("  k{n}: \"\"\n")).collect();
    let twins = "\"k\":\"\",".repeat(300_000);
    let labels: String = (0..40_000).map(|n| format!("\"l{n}\":\"v\",")).collect();
    let quantity = |text: &str| {
        format!(
            r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"q"}},"spec":{{"containers":[{{"name":"c","image":"x","resources":{{"limits":{{"memory":"{text}"}}}}}}]}}}}"#
        )
    };
    let pods = "/api/v1/namespaces/default/pods?dryRun=All";
    let json_type = "application/json";
    let yaml = "application/yaml";
    let patch = "application/json-patch+json";
    let merge = "application/merge-patch+json";
    let strategic = "application/strategic-merge-patch+json";
    let apply = "application/apply-patch+yaml";
    let applied = &format!("{target}?fieldManager=x");
    let deep = format!(r#"{{"data":{}1{}}}"#, r#"{"a":"#.repeat(100_000), "}".repeat(100_000));
    let cases: Vec<(&str, &str, &str, &str, String)> = vec![
        ("nested lists", "POST", maps, json_type, nested("[", "]", 500_000)),
        ("nested objects", "POST", maps, json_type, map("", &format!(r#""a":{}"#, nested(r#"{"a":"#, "}", 200_000)))),
        ("half of it", "POST", maps, json_type, "[".repeat(1_000_000)),
        ("nested lists of YAML", "POST", maps, yaml, nested("[", "]", 500_000)),
        ("nested objects of YAML", "POST", maps, yaml, "{a: ".repeat(300_000)),
        ("indented YAML", "POST", maps, yaml, (0..1500).map(|n| format!("{}a:\n", " ".repeat(n))).collect()),
        ("sequences of YAML", "POST", maps, yaml, "- ".repeat(500_000)),
        ("laughs", "POST", maps, yaml, laughs(12)),
        ("an alias of itself", "POST", maps, yaml, "a: &a [*a]\n".to_owned()),
        ("merge keys", "POST", maps, yaml, format!("{}<<: *a9\n", laughs(10))),
        ("tags", "POST", maps, yaml, "!!binary ".repeat(200_000)),
        ("documents", "POST", maps, yaml, "---\n".repeat(500_000)),
        ("applied laughs", "PATCH", applied, apply, laughs(12)),
        ("a deep apply", "PATCH", applied, apply, deep.clone()),
        ("a deep merge", "PATCH", target, merge, deep.clone()),
        ("a deep strategic merge", "PATCH", target, strategic, deep),
        ("copies that double", "PATCH", target, patch, json!(doubling).to_string()),
        ("too many operations", "PATCH", target, patch, json!(moves).to_string()),
        (
            "a far index",
            "PATCH",
            target,
            patch,
            r#"[{"op":"add","path":"/metadata/finalizers/99999999999","value":"x"}]"#.to_owned(),
        ),
        (
            "a long pointer",
            "PATCH",
            target,
            patch,
            format!(r#"[{{"op":"add","path":"{}","value":1}}]"#, "/a".repeat(500_000)),
        ),
        (
            "a directive",
            "PATCH",
            target,
            strategic,
            r#"{"$patch":"replace","$retainKeys":[[[[]]]],"$setElementOrder/x":1}"#.to_owned(),
        ),
        ("many twins", "POST", maps, json_type, map("", &format!(r#"{twins}"k":"{}""#, "x".repeat(1 << 20)))),
        ("many keys", "POST", maps, json_type, map("", &format!(r#"{many_keys}"no/key":"""#))),
        (
            "many keys of YAML",
            "POST",
            maps,
            yaml,
            format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: m}}\ndata:\n{many_yaml}  no/key: \"\"\n"),
        ),
        (
            "many unknown fields",
            "POST",
            maps,
            json_type,
            format!(r#"{{{many_keys}"kind":"ConfigMap","apiVersion":"v1","metadata":{{"name":"-"}}}}"#),
        ),
        ("many labels", "POST", maps, json_type, map(&format!(r#","labels":{{{labels}"l/l/l":""}}"#), "")),
        ("a large label", "POST", maps, json_type, map(&format!(r#","labels":{{"l":"{}"}}"#, "x".repeat(100_000)), "")),
        (
            "a large annotation",
            "POST",
            maps,
            json_type,
            map(&format!(r#","annotations":{{"a":"{}"}}"#, "x".repeat(300_000)), ""),
        ),
        (
            "a large name",
            "POST",
            maps,
            json_type,
            map("", "").replace("\"m\"", &format!("\"{}\"", "m".repeat(100_000))),
        ),
        ("a large value", "POST", maps, json_type, map("", &format!(r#""k":"{}""#, "x".repeat(2 << 20)))),
        ("a body over 3 MiB", "POST", maps, json_type, map("", &format!(r#""k":"{}""#, "x".repeat(4 << 20)))),
        ("no UTF-8", "POST", maps, json_type, "{\"a\":\"\u{fffd}".to_owned()),
        ("NaN", "POST", maps, json_type, map("", "").replace("\"m\"", "NaN")),
        ("a large exponent", "POST", pods, json_type, quantity("1e999999999")),
        ("a larger exponent", "POST", pods, json_type, quantity("1e-99999999999999999999")),
        ("many digits", "POST", pods, json_type, quantity(&"9".repeat(1_000_000))),
        ("many decimals", "POST", pods, json_type, quantity(&format!("0.{}1", "0".repeat(1_000_000)))),
        ("no object", "POST", maps, json_type, "null".to_owned()),
        ("nothing", "POST", maps, json_type, String::new()),
        (
            "protobuf that lies",
            "POST",
            maps,
            "application/vnd.kubernetes.protobuf",
            "k8s\0\u{a}\u{7f}\u{7f}\u{7f}\u{7f}\u{7f}\u{7f}\u{7f}\u{7f}\u{7f}".to_owned(),
        ),
        (
            "protobuf in protobuf",
            "POST",
            maps,
            "application/vnd.kubernetes.protobuf",
            format!("k8s\0{}", "\u{a}\u{7f}".repeat(100_000)),
        ),
    ];
    let before = peak(&carob);
    for (what, method, path, media_type, body) in cases {
        let begin = Instant::now();
        let headers = format!("content-type: {media_type}\r\n");
        let (code, answer) = request(&carob, admin, method, path, &headers, body.as_bytes());
        let took = begin.elapsed();
        let start: String = answer.chars().take(400).collect();
        // Kubernetes takes any exponent, and the largest number there is for it.
        let taken = path == pods && code == 201;
        assert!(taken || [400, 409, 413, 415, 422].contains(&code), "{what}: {start}");
        assert!(took < Duration::from_secs(15), "{what} took {took:?}");
        assert!(answer.len() < 4 << 20, "{what} is answered with {} bytes", answer.len());
    }
    let grown = peak(&carob).saturating_sub(before);
    assert!(grown < 512 << 20, "the gateway took {} MiB more", grown >> 20);
    assert_eq!(carob.jsonpath("configmap/target", ".data.k"), "v");
    assert!(!carob.log().contains("panicked") && !carob.log().contains("overflow"));

    // Without a length, and with one that isn't true.
    let head = format!("POST {maps} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n");
    let mut endless = Connection::open(&carob, admin);
    endless.send(format!("{head}transfer-encoding: chunked\r\n\r\n").as_bytes());
    let chunk = [b"10000\r\n".to_vec(), vec![b' '; 65536], b"\r\n".to_vec()].concat();
    (0..80).for_each(|_| endless.send(&chunk));
    assert_eq!(status(&endless.rest(Duration::from_secs(5))), 413, "chunks without an end");
    let answer =
        exchange(&carob, admin, format!("{head}content-length: 99999999999\r\n\r\n{}", " ".repeat(5 << 20)).as_bytes());
    assert!([0, 413].contains(&status(&answer)), "{answer}");
    for query in [
        "labelSelector=".to_owned() + &"a,".repeat(20_000),
        "labelSelector=x+in+(".to_owned() + &"a,".repeat(20_000) + ")",
        "fieldSelector=".to_owned() + &"metadata.name!=a,".repeat(3_000),
        "continue=".to_owned() + &"A".repeat(50_000),
        "limit=-1".to_owned(),
        "limit=99999999999999999999999".to_owned(),
        "resourceVersion=99999999999999999999999".to_owned(),
        "resourceVersion=-1".to_owned(),
        "timeout=1e400h".to_owned(),
        "watch=1&timeoutSeconds=-99999999999999999999".to_owned(),
        "%ff=%ff&&&=&%".to_owned(),
    ] {
        let (code, answer) = request(&carob, admin, "GET", &format!("{maps}?{query}&timeoutSeconds=1"), "", b"");
        let start: String = answer.chars().take(300).collect();
        assert!(code != 0 && code < 500, "{}: {start}", &query[..query.len().min(40)]);
    }
    assert_eq!(carob.kubectl(&["get", "--raw", "/readyz"]), "ok");
    assert!(!carob.log().contains("panicked"));
}

#[test]
fn slow_and_senseless_clients_hold_nobody_up() {
    let carob = Carob::start(&[]);
    let open = files(&carob);
    // No handshake; half a handshake; half a head; half a body.
    let silent: Vec<TcpStream> =
        (0..300).map(|_| TcpStream::connect(("127.0.0.1", carob.port())).expect("a connection")).collect();
    let halves: Vec<TcpStream> = (0..100)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", carob.port())).expect("a connection");
            stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01").expect("it is taken");
            stream
        })
        .collect();
    let mut slow: Vec<Connection> = (0..12).map(|_| Connection::open(&carob, As::Nobody)).collect();
    for (number, connection) in slow.iter_mut().enumerate() {
        connection.send(if number % 2 == 0 {
            b"GET /version HTTP/1.1\r\nhost: x\r\nx-slow: a".as_slice()
        } else {
            b"POST /apis/authentication.k8s.io/v1/selfsubjectreviews HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{".as_slice()
        });
    }
    let begin = Instant::now();
    for _ in 0..5 {
        assert_eq!(carob.kubectl(&["get", "--raw", "/readyz"]), "ok");
    }
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(10), "five answers took {took:?} beside slow clients");
    // Who never says who they are is shown out.
    carob_tests::eventually_within(Duration::from_secs(30), "unfinished handshakes are closed", || {
        files(&carob) < open + 60
    });
    drop((silent, halves, slow));

    let long = "a".repeat(200_000);
    let many: String = (0..2000).map(|n| format!("x-{n}: y\r\n")).collect();
    let pipelined = "GET /version HTTP/1.1\r\nhost: x\r\n\r\n".repeat(500);
    for (what, bytes) in [
        ("noise", b"\x00\xff\xfe\x01\r\n\r\n".repeat(100)),
        ("an old version", b"GET /api/v1/secrets\r\n\r\n".to_vec()),
        ("a version to come", b"GET /version HTTP/9.9\r\nhost: x\r\n\r\n".to_vec()),
        ("a negative length", b"POST /api/v1/secrets HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n".to_vec()),
        ("two lengths", b"POST /api/v1/secrets HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 40\r\n\r\n{GET /api/v1/secrets HTTP/1.1\r\nhost: x\r\n\r\n".to_vec()),
        ("a length and chunks", b"POST /api/v1/secrets HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /api/v1/secrets HTTP/1.1\r\nhost: x\r\n\r\n".to_vec()),
        ("a chunk that lies", b"POST /api/v1/secrets HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n".to_vec()),
        ("an unknown encoding", b"POST /api/v1/secrets HTTP/1.1\r\nhost: x\r\ntransfer-encoding: xchunked, chunked, identity\r\n\r\n0\r\n\r\n".to_vec()),
        ("a folded header", b"GET /api/v1/secrets HTTP/1.1\r\nhost: x\r\nauthorization: Bearer\r\n x\r\n\r\n".to_vec()),
        ("a space before a colon", b"GET /api/v1/secrets HTTP/1.1\r\nhost: x\r\ncontent-length : 1\r\n\r\n".to_vec()),
        ("a zero in a header", b"GET /api/v1/secrets HTTP/1.1\r\nhost: x\r\nx: a\0b\r\n\r\n".to_vec()),
        ("a long head", format!("GET /api/v1/secrets HTTP/1.1\r\nhost: x\r\nx: {long}\r\n\r\n").into_bytes()),
        ("a long path", format!("GET /api/v1/{long} HTTP/1.1\r\nhost: x\r\n\r\n").into_bytes()),
        ("many headers", format!("GET /api/v1/secrets HTTP/1.1\r\nhost: x\r\n{many}\r\n").into_bytes()),
        ("a tunnel", b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nhost: 127.0.0.1:22\r\nconnection: close\r\n\r\nSSH-2.0-x\r\n".to_vec()),
        ("an echo", b"TRACE /api/v1/secrets HTTP/1.1\r\nhost: x\r\nauthorization: Bearer abc\r\nconnection: close\r\n\r\n".to_vec()),
        ("half of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff".to_vec()),
        ("HTTP/2 frames without end", [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), [0, 0, 0, 4, 0, 0, 0, 0, 0].repeat(1000), [0, 0, 0, 1, 0, 0, 0, 0, 1].repeat(1000)].concat()),
    ] {
        let mut connection = Connection::open(&carob, As::Nobody);
        connection.send(&bytes);
        let answer = connection.rest(Duration::from_millis(600));
        let start: String = answer.chars().take(300).collect();
        let codes: Vec<u16> = answer.match_indices("HTTP/1.1 ").map(|(at, _)| status(&answer[at..])).collect();
        assert!(codes.iter().all(|code| *code >= 400 && *code < 500), "{what}: {start}");
        assert!(codes.len() <= 1, "{what} was answered as several requests: {answer}");
        assert!(!answer.contains("SSH-") && !answer.contains("Bearer abc"), "{what}: {start}");
    }
    let mut connection = Connection::open(&carob, As::Nobody);
    connection.send(pipelined.as_bytes());
    assert_eq!(
        connection.rest(Duration::from_secs(1)).matches("gitVersion").count(),
        500,
        "many at once are many answers"
    );
    assert_eq!(carob.kubectl(&["get", "--raw", "/readyz"]), "ok");
    assert!(!carob.log().contains("panicked"));
}

/// Two thousand watches hear of a change, and end without leaving anything behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_watches_is_served() {
    const WATCHES: usize = 2000;
    let carob = Carob::start(&[]);
    let before = files(&carob);
    let kubeconfig = Kubeconfig::read_from(carob.kubeconfig()).expect("a kubeconfig");
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.expect("a configuration");
    let client = kube::Client::try_from(config).expect("a client");
    let maps: kube::Api<ConfigMap> = kube::Api::default_namespaced(client);
    let parameters = &WatchParams::default().fields("metadata.name=late").timeout(120);
    let maps = &maps;
    let watches: Vec<_> = futures::stream::iter(0..WATCHES)
        .map(|_| async move { maps.watch(parameters, "0").await.expect("a watch").boxed() })
        .buffer_unordered(32)
        .collect()
        .await;
    assert_eq!(carob.kubectl(&["get", "--raw", "/readyz"]), "ok");
    let begin = Instant::now();
    let late: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "late"}})).expect("a ConfigMap");
    maps.create(&PostParams::default(), &late).await.expect("created");
    let heard = futures::future::join_all(watches.into_iter().map(|mut watch| async move {
        let event = tokio::time::timeout(Duration::from_secs(30), watch.try_next()).await;
        matches!(event, Ok(Ok(Some(WatchEvent::Added(_)))))
    }))
    .await;
    let took = begin.elapsed();
    assert_eq!(heard.iter().filter(|heard| **heard).count(), WATCHES, "all hear of it");
    assert!(took < Duration::from_secs(15), "it took {took:?}");
    carob_tests::eventually("their connections are closed", || files(&carob) < before + 100);
    assert_eq!(carob.kubectl(&["get", "--raw", "/readyz"]), "ok");
    assert!(!carob.log().contains("panicked"));
}
