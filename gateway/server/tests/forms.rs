//! What clients ask for beside plain JSON: protobuf, YAML, metadata only, tables, gzip, pages, versions.

mod support;

use std::io::Read as _;
use std::time::Duration;

use flate2::read::GzDecoder;
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use support::Cluster;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// An answer, whole.
struct Answer {
    code: StatusCode,
    content_type: String,
    encoding: String,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    fn message(&self) -> String {
        self.json()["message"].as_str().expect("a message").to_owned()
    }
}

struct Client(kube::Client);

impl Client {
    fn new(cluster: &Cluster) -> Self {
        Self(cluster.admin())
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(kube::client::Body::from(body.into())).expect("a request");
        let answer = self.0.send(request).await.expect("an answer");
        let header = |name: &str| {
            answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        let (code, content_type, encoding) = (answer.status(), header("content-type"), header("content-encoding"));
        let body = answer.into_body().collect().await.expect("a body").to_bytes().to_vec();
        Answer { code, content_type, encoding, body }
    }

    async fn get(&self, path: &str, accept: &str) -> Answer {
        self.send("GET", path, &[("accept", accept)], "").await
    }

    async fn make(&self, name: &str, data: &Value) -> Value {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": data,
            "metadata": {"name": name, "labels": {"name": name}}});
        let json = [("content-type", "application/json")];
        let answer = self.send("POST", MAPS, &json, map.to_string()).await;
        assert_eq!(answer.code, 201, "{}", String::from_utf8_lossy(&answer.body));
        answer.json()
    }
}

/// A message's fields: number, and bytes or number.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        value
    }
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        match tag & 7 {
            0 => fields.push((tag >> 3, varint(&mut bytes).to_string().into_bytes())),
            2 => {
                let length = usize::try_from(varint(&mut bytes)).expect("short");
                let (content, rest) = bytes.split_at(length);
                fields.push((tag >> 3, content.to_vec()));
                bytes = rest;
            }
            other => panic!("wire type {other}"),
        }
    }
    fields
}

fn field(bytes: &[u8], number: u64) -> Vec<u8> {
    fields(bytes).into_iter().find(|(found, _)| *found == number).map(|(_, content)| content).unwrap_or_default()
}

/// Kind and content of a protobuf answer.
fn envelope(body: &[u8]) -> (String, Vec<u8>) {
    let unknown = body.strip_prefix(b"k8s\0").expect("the magic number");
    let kind = field(&field(unknown, 1), 2);
    (String::from_utf8(kind).expect("UTF-8"), field(unknown, 2))
}

#[tokio::test]
async fn objects_lists_and_failures_come_in_protobuf() {
    let cluster = Cluster::new().await;
    let client = Client::new(&cluster);
    client.make("a", &json!({"k": "v"})).await;
    client.make("b", &json!({"k": "w"})).await;

    let one = client.get(&format!("{MAPS}/a"), PROTOBUF).await;
    assert_eq!(one.content_type, PROTOBUF);
    let (kind, raw) = envelope(&one.body);
    assert_eq!((kind.as_str(), field(&field(&raw, 1), 1).as_slice()), ("ConfigMap", &b"a"[..]));

    let list = client.get(&format!("{MAPS}?labelSelector=name"), &format!("{PROTOBUF},application/json")).await;
    let (kind, raw) = envelope(&list.body);
    assert_eq!(kind, "ConfigMapList");
    let items = fields(&raw).into_iter().filter(|(number, _)| *number == 2);
    let names: Vec<_> = items.map(|(_, item)| field(&field(&item, 1), 1)).collect();
    assert_eq!(names, [b"a", b"b"]);

    let missing = client.get(&format!("{MAPS}/nope"), PROTOBUF).await;
    let (kind, raw) = envelope(&missing.body);
    assert_eq!((missing.code, kind.as_str()), (StatusCode::NOT_FOUND, "Status"));
    assert_eq!(field(&raw, 3), b"configmaps \"nope\" not found");
}

#[tokio::test]
async fn what_was_given_in_protobuf_is_taken_in_protobuf() {
    let cluster = Cluster::new().await;
    let client = Client::new(&cluster);
    client.make("a", &json!({"k": "v"})).await;
    let given = client.get(&format!("{MAPS}/a"), PROTOBUF).await;
    let headers = [("content-type", PROTOBUF), ("accept", "application/json")];
    let taken = client.send("PUT", &format!("{MAPS}/a"), &headers, given.body).await;
    assert_eq!(taken.code, 200, "{}", String::from_utf8_lossy(&taken.body));
    let now = client.get(&format!("{MAPS}/a"), "application/json").await.json();
    assert_eq!(taken.json(), now, "a write that changes nothing");
}

#[tokio::test]
async fn a_watch_in_protobuf_is_a_row_of_frames() {
    let cluster = Cluster::new().await;
    let client = Client::new(&cluster);
    client.make("a", &json!({"k": "v"})).await;
    let path = format!("{MAPS}?watch=1&timeoutSeconds=1&labelSelector=name&resourceVersion=0");
    for accept in [PROTOBUF.to_owned(), format!("{PROTOBUF};as=PartialObjectMetadata;g=meta.k8s.io;v=v1")] {
        let answer = client.get(&path, &accept).await;
        assert_eq!(answer.content_type, format!("{PROTOBUF};stream=watch"));
        let (length, rest) = answer.body.split_at(4);
        let length = u32::from_be_bytes(length.try_into().expect("four bytes")) as usize;
        let event = &rest[..length];
        assert_eq!(field(event, 1), b"ADDED");
        let (kind, raw) = envelope(&field(&field(event, 2), 1));
        assert!(accept.contains(&kind) || kind == "ConfigMap", "{kind}");
        assert_eq!(field(&field(&raw, 1), 1), b"a");
    }
}

#[tokio::test]
async fn yaml_is_given_sorted_and_not_in_a_watch() {
    let cluster = Cluster::new().await;
    let client = Client::new(&cluster);
    client.make("a", &json!({"k": "true"})).await;
    let one = client.get(&format!("{MAPS}/a"), "application/yaml").await;
    let text = String::from_utf8(one.body).expect("UTF-8");
    assert!(text.starts_with("apiVersion: v1\ndata:\n  k: \"true\"\nkind: ConfigMap\nmetadata:\n"), "{text}");
    let missing = client.get(&format!("{MAPS}/nope"), "application/yaml").await;
    assert_eq!(missing.content_type, "application/yaml");
    assert!(String::from_utf8(missing.body).expect("UTF-8").starts_with("apiVersion: v1\ncode: 404\n"));
    let watch = client.get(&format!("{MAPS}?watch=1"), "application/yaml").await;
    assert_eq!(watch.code, 406);
}

#[tokio::test]
async fn lists_come_as_metadata_only_and_as_tables() {
    let cluster = Cluster::new().await;
    let client = Client::new(&cluster);
    for number in 0..70 {
        client.make(&format!("m{number:02}"), &json!({"k": "v"})).await;
    }
    let path = format!("{MAPS}?labelSelector=name");
    let metadata = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    let list = client.get(&path, metadata).await.json();
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    assert_eq!(list["items"].as_array().map(Vec::len), Some(70));
    assert_eq!(list["items"][69]["metadata"]["name"], "m69");
    assert_eq!(list["items"][0]["data"], Value::Null);
    let table = client.get(&path, "application/json;as=Table;g=meta.k8s.io;v=v1").await.json();
    assert_eq!(table["rows"].as_array().map(Vec::len), Some(70));
    assert_eq!(table["rows"][69]["cells"][0], "m69");
    assert_eq!(table["rows"][69]["object"]["kind"], "PartialObjectMetadata");
    let bad = client.get(&format!("{path}&includeObject=X"), "application/json;as=Table;g=meta.k8s.io;v=v1").await;
    assert_eq!(bad.code, 400);
    let protobuf = client.get(&path, &format!("{PROTOBUF};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")).await;
    let (kind, raw) = envelope(&protobuf.body);
    assert_eq!(kind, "PartialObjectMetadataList");
    assert_eq!(fields(&raw).iter().filter(|(number, _)| *number == 2).count(), 70);
}

#[tokio::test]
async fn a_large_answer_is_compressed_for_those_who_take_it() {
    let cluster = Cluster::new().await;
    let client = Client::new(&cluster);
    client.make("big", &json!({"k": "v".repeat(300_000)})).await;
    let path = format!("{MAPS}/big");
    let plain = client.get(&path, "application/json").await;
    assert_eq!(plain.encoding, "");
    let headers = [("accept-encoding", "gzip"), ("accept", "application/json")];
    let compressed = client.send("GET", &path, &headers, "").await;
    assert_eq!(compressed.encoding, "gzip");
    let mut body = Vec::new();
    GzDecoder::new(&compressed.body[..]).read_to_end(&mut body).expect("gzip");
    assert!(body == plain.body, "another body");
    let small = client.send("GET", "/api/v1/namespaces/default", &headers, "").await;
    assert_eq!(small.encoding, "", "not worth it");
}

#[tokio::test]
async fn a_long_list_is_what_its_pages_are_in_every_form() {
    let cluster = Cluster::new().await;
    let client = Client::new(&cluster);
    for number in 0..90 {
        let data = json!({ "text": "}\",{".repeat(500 + number), "number": number.to_string() });
        client.make(&format!("long-{number:02}"), &data).await;
    }
    let forms = [
        ("application/json", "items"),
        ("application/json;as=Table;v=v1;g=meta.k8s.io", "rows"),
        ("application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", "items"),
    ];
    for (accept, items) in forms {
        // Ages grow meanwhile.
        let listed = |list: &Value| {
            let mut items = list[items].clone();
            for item in items.as_array_mut().expect("items") {
                item.as_object_mut().expect("an object").remove("cells");
            }
            items
        };
        let headers = [("accept-encoding", "gzip"), ("accept", accept)];
        let whole = client.get(MAPS, accept).await.json();
        let compressed = client.send("GET", MAPS, &headers, "").await;
        assert_eq!(compressed.encoding, "gzip", "{accept}");
        let mut body = Vec::new();
        GzDecoder::new(&compressed.body[..]).read_to_end(&mut body).expect("gzip");
        let decompressed: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(listed(&decompressed), listed(&whole), "{accept}");
        // Short lists are made as one piece.
        let (mut paged, mut token) = (Vec::new(), String::new());
        loop {
            let page = client.get(&format!("{MAPS}?limit=7&continue={token}"), accept).await.json();
            paged.extend(listed(&page).as_array().expect("items").clone());
            token = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
            if token.is_empty() {
                break;
            }
        }
        assert!(paged.len() >= 90, "{accept}: {}", paged.len());
        assert_eq!(listed(&whole), Value::from(paged), "{accept}");
    }
}

#[tokio::test]
async fn a_list_at_a_version_shows_that_version_and_old_ones_are_gone() {
    let cluster = Cluster::new().await;
    let client = Client::new(&cluster);
    let version = |object: &Value| object["metadata"]["resourceVersion"].as_str().expect("a version").to_owned();
    let names = |list: &Value| {
        let items = list["items"].as_array().expect("items").iter();
        items.map(|item| item["metadata"]["name"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    let first = version(&client.make("a", &json!({})).await);
    client.make("b", &json!({})).await;
    let at = |query: &str| format!("{MAPS}?labelSelector=name&{query}");
    let json = "application/json";

    let exact = client.get(&at(&format!("resourceVersion={first}&resourceVersionMatch=Exact")), json).await.json();
    assert_eq!((names(&exact), version(&exact)), (vec!["a".to_owned()], first.clone()));
    // A page of a version without a match means exactly that version; without a limit it means at least that.
    let page = client.get(&at(&format!("resourceVersion={first}&limit=1")), json).await.json();
    assert_eq!(names(&page), ["a"]);
    let newer = client.get(&at(&format!("resourceVersion={first}&resourceVersionMatch=NotOlderThan")), json).await;
    assert_eq!(names(&newer.json()), ["a", "b"]);
    let any = client.get(&at("resourceVersion=0"), json).await.json();
    assert_eq!(names(&any), ["a", "b"]);

    let future = client.get(&at("resourceVersion=999999999&resourceVersionMatch=NotOlderThan"), json).await;
    assert_eq!(future.code, 504);
    assert!(
        future.message().starts_with("Timeout: Too large resource version: 999999999, current: "),
        "{}",
        future.message()
    );
    assert_eq!(future.json()["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
    for (query, code) in [
        ("resourceVersion=x", 400),
        ("resourceVersionMatch=Exact", 422),
        ("resourceVersion=0&resourceVersionMatch=Exact", 422),
        ("resourceVersion=5&resourceVersionMatch=Sometimes", 422),
        ("sendInitialEvents=true", 422),
        ("continue=x", 400),
        ("limit=x", 400),
        ("labelSelector=a==b==c", 400),
        ("fieldSelector=spec.x=1", 400),
    ] {
        let answer = client.get(&format!("{MAPS}?{query}"), json).await;
        assert_eq!(answer.code.as_u16(), code, "{query}: {}", answer.message());
    }
}

#[tokio::test]
async fn pages_show_one_state_and_say_how_much_is_left() {
    let cluster = Cluster::new().await;
    let client = Client::new(&cluster);
    for name in ["p1", "p2", "p3", "p4", "p5"] {
        client.make(name, &json!({})).await;
    }
    let json = "application/json";
    let all = client.get(MAPS, json).await.json();
    let total = all["items"].as_array().expect("items").len();
    let page = client.get(&format!("{MAPS}?limit=2"), json).await.json();
    assert_eq!(page["metadata"]["remainingItemCount"], total - 2);
    let token = page["metadata"]["continue"].as_str().expect("more").to_owned();
    let gone = [("content-type", "application/json")];
    client.send("DELETE", &format!("{MAPS}/p5"), &gone, "").await;
    let rest = client.get(&format!("{MAPS}?limit=500&continue={token}"), json).await.json();
    assert_eq!(rest["items"].as_array().map(Vec::len), Some(total - 2), "the page shows the state of the first");
    assert_eq!(rest["metadata"]["resourceVersion"], page["metadata"]["resourceVersion"]);
    let both = client.get(&format!("{MAPS}?continue={token}&resourceVersion=5"), json).await;
    assert_eq!(both.code, 400);
    let selected = client.get(&format!("{MAPS}?limit=1&labelSelector=name"), json).await.json();
    assert_eq!(selected["metadata"]["remainingItemCount"], Value::Null, "unknown with a selector");
}

#[tokio::test]
async fn a_bookmark_ends_the_initial_events_and_one_comes_before_the_end() {
    let cluster = Cluster::new().await;
    let client = Client::new(&cluster);
    for number in 0..150 {
        client.make(&format!("m{number:03}"), &json!({})).await;
    }
    let query = "watch=1&labelSelector=name&timeoutSeconds=1&allowWatchBookmarks=true&sendInitialEvents=true\
                 &resourceVersionMatch=NotOlderThan";
    let answer = tokio::time::timeout(Duration::from_secs(10), client.get(&format!("{MAPS}?{query}"), "")).await;
    let body = answer.expect("in time").body;
    let events: Vec<Value> = body
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).expect("JSON"))
        .collect();
    let added = events.iter().take_while(|event| event["type"] == "ADDED").count();
    assert_eq!(added, 150);
    let end = &events[added];
    assert_eq!(end["type"], "BOOKMARK");
    assert_eq!(end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(end["object"]["kind"], "ConfigMap");
}

#[tokio::test]
async fn health_is_told_in_short_in_full_and_check_by_check() {
    let cluster = Cluster::new().await;
    let client = Client::new(&cluster);
    let text = |answer: Answer| String::from_utf8(answer.body).expect("UTF-8");
    for endpoint in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(text(client.get(endpoint, "").await), "ok");
        let verbose = text(client.get(&format!("{endpoint}?verbose"), "").await);
        assert!(verbose.starts_with("[+]ping ok\n"), "{verbose}");
        assert!(verbose.ends_with(&format!("{} check passed\n", &endpoint[1..])), "{verbose}");
        assert_eq!(text(client.get(&format!("{endpoint}/ping"), "").await), "ok");
        let excluded = text(client.get(&format!("{endpoint}?verbose&exclude=ping"), "").await);
        assert!(excluded.contains("[+]ping excluded: ok\n"), "{excluded}");
        assert_eq!(client.get(&format!("{endpoint}/nope"), "").await.code, 404);
    }
}

#[tokio::test]
async fn a_scale_is_applied_with_conflicts_and_force() {
    let cluster = Cluster::new().await;
    let client = Client::new(&cluster);
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": {
            "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let path = "/apis/apps/v1/namespaces/default/deployments/d";
    let apply = [("content-type", "application/apply-patch+yaml")];
    let made = client.send("PATCH", &format!("{path}?fieldManager=one"), &apply, deployment.to_string()).await;
    assert_eq!(made.code, 201, "{}", String::from_utf8_lossy(&made.body));
    let scale = |replicas: u32| {
        json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "d"},
            "spec": {"replicas": replicas}})
        .to_string()
    };
    let address = format!("{path}/scale?fieldManager=two");
    let refused = client.send("PATCH", &address, &apply, scale(3)).await;
    assert_eq!(refused.code, 409);
    assert_eq!(refused.message(), "Apply failed with 1 conflict: conflict with \"one\": .spec.replicas");
    let forced = client.send("PATCH", &format!("{address}&force=true"), &apply, scale(3)).await;
    assert_eq!((forced.code.as_u16(), &forced.json()["spec"]["replicas"]), (200, &json!(3)));
    assert_eq!(forced.json()["status"]["selector"], "a=b");
    let again = client.send("PATCH", &format!("{path}?fieldManager=one"), &apply, deployment.to_string()).await;
    assert_eq!(again.code, 409, "the number is the other's now");
    let owners = client.get(path, "").await.json()["metadata"]["managedFields"].clone();
    let two = owners.as_array().expect("owners").iter().find(|entry| entry["manager"] == "two").expect("an owner");
    assert_eq!((&two["subresource"], &two["apiVersion"]), (&json!("scale"), &json!("apps/v1")));
}
