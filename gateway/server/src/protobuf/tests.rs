use carob_api::decode as json;
use carob_api::kinds::Registry;
use serde_json::json;

use super::*;

fn bytes(number: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2, u8::try_from(content.len()).expect("short")];
    out.extend_from_slice(content);
    out
}

fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let types = [bytes(1, api_version.as_bytes()), bytes(2, kind.as_bytes())].concat();
    [MAGIC.to_vec(), bytes(1, &types), bytes(2, raw)].concat()
}

#[track_caller]
fn comes_back(object: &Value) {
    let written = from_json(object.to_string().as_bytes()).expect("written");
    assert_eq!(&to_json(&written).expect("read"), object);
}

#[test]
fn a_config_map_is_read() {
    let metadata = bytes(1, b"x");
    let entry = [bytes(1, b"a"), bytes(2, b"b")].concat();
    let raw = [bytes(1, &metadata), bytes(2, &entry)].concat();
    assert_eq!(
        to_json(&body("v1", "ConfigMap", &raw)).expect("read"),
        json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "x"}, "data": {"a": "b"}})
    );
}

#[test]
fn a_config_map_is_written_as_a_go_client_reads_it() {
    let object = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "x"}, "data": {"a": "b"}});
    let entry = [bytes(1, b"a"), bytes(2, b"b")].concat();
    let raw = [bytes(1, &bytes(1, b"x")), bytes(2, &entry)].concat();
    let expected = [body("v1", "ConfigMap", &raw), bytes(3, b""), bytes(4, b"")].concat();
    assert_eq!(from_json(object.to_string().as_bytes()).expect("written"), expected);
}

#[test]
fn a_volume_source_stands_in_its_volume_and_an_empty_time_is_null() {
    let volume = [bytes(1, b"v"), bytes(2, &bytes(2, &[]))].concat();
    let raw = [bytes(1, &bytes(8, &[])), bytes(2, &bytes(1, &volume))].concat();
    assert_eq!(
        to_json(&body("v1", "Pod", &raw)).expect("read"),
        json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"creationTimestamp": null},
            "spec": {"volumes": [{"name": "v", "emptyDir": {}}]}})
    );
}

#[test]
fn values_of_every_form_come_back_as_they_were() {
    comes_back(&json!({"kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": "p", "creationTimestamp": "2026-01-02T03:04:05Z", "generation": 7,
            "labels": {"a": "1", "b": ""}, "managedFields": [{"manager": "m", "fieldsV1": {"f:spec": {"f:x": {}}}}]},
        "spec": {
            "volumes": [{"name": "v", "projected": {"defaultMode": 420, "sources": [{"secret": {"name": "s"}}]}}],
            "containers": [{"name": "c", "command": ["a", "b"], "resources": {"limits": {"cpu": "1500m"}},
                "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
                "livenessProbe": {"httpGet": {"port": "web"}, "periodSeconds": 3},
                "readinessProbe": {"tcpSocket": {"port": 80}},
                "securityContext": {"runAsUser": 0, "privileged": false}}],
            "ephemeralContainers": [{"name": "d", "image": "i", "tty": true, "targetContainerName": "c"}],
            "tolerations": [{"operator": "Exists", "tolerationSeconds": -1}]}}));
    comes_back(&json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "s"}, "data": {"k": "AAH/"}}));
    comes_back(&json!({"kind": "Lease", "apiVersion": "coordination.k8s.io/v1", "metadata": {"name": "l"},
        "spec": {"renewTime": "2026-01-02T03:04:05.000006Z", "leaseTransitions": 0}}));
    comes_back(&json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {},
        "status": {"authenticated": true, "user": {"username": "u", "extra": {"x": ["1", "2"], "y": []}}}}));
    comes_back(&json!({"kind": "ControllerRevision", "apiVersion": "apps/v1", "metadata": {"name": "r"},
        "data": {"spec": {"x": [1, null, 2.5]}}, "revision": 3}));
    comes_back(&json!({"kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1",
        "metadata": {"name": "xs.example.com"},
        "spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": {
            "type": "object", "x-kubernetes-preserve-unknown-fields": true, "minimum": 1.5,
            "additionalProperties": false, "default": {"a": [1]}, "enum": [1, "x", null],
            "properties": {"l": {"items": {"$ref": "x"}}, "m": {"additionalProperties": {"type": "string"}},
                "n": {"items": [{"type": "integer"}, {}]}},
            "dependencies": {"a": ["b", "c"], "d": {"type": "string"}}}}}]}}));
    comes_back(&json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 404,
        "details": {"name": "x", "causes": [{"reason": "R", "field": "f"}], "retryAfterSeconds": 1}}));
    comes_back(&json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": {"name": "x"}}));
}

#[test]
fn a_list_is_written_item_by_item() {
    let mut list = List::new("v1", "PodList".to_owned(), &json!({"resourceVersion": "7"})).expect("known");
    for name in ["a", "b"] {
        list.push(json!({"metadata": {"name": name}, "kind": "Pod"}).to_string().as_bytes()).expect("pushed");
    }
    assert_eq!(
        to_json(&list.finish()).expect("read"),
        json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "7"},
            "items": [{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}]})
    );
    assert_eq!(List::new("example.com/v1", "XList".to_owned(), &json!({})).err().expect("unknown").code(), 406);
}

#[test]
fn a_frame_begins_with_its_length() {
    let frame = frame("ADDED", b"object");
    let (length, event) = frame.split_at(4);
    assert_eq!(u32::from_be_bytes(length.try_into().expect("four")) as usize, event.len());
    assert_eq!(event, [bytes(1, b"ADDED"), bytes(2, &bytes(1, b"object"))].concat());
}

/// An object with a value at every place of its schema, three levels of recursion deep.
fn full(schema: &carob_api::schema::Schema, depth: usize) -> Value {
    use carob_api::schema::Type;
    match schema.type_() {
        Type::Object => schema
            .properties()
            .filter(|(name, _)| !matches!(*name, "kind" | "apiVersion"))
            .filter(|_| depth < 12)
            .map(|(name, field)| (name.to_owned(), full(field, depth + 1)))
            .collect::<Map<_, _>>()
            .into(),
        Type::Map => json!({"key": schema.additional().map_or(Value::Null, |inner| full(inner, depth + 1))}),
        Type::Array => json!([schema.items().map_or(Value::Null, |inner| full(inner, depth + 1))]),
        Type::String => "text".into(),
        Type::Bytes => "AAH/".into(),
        Type::Time => "2026-01-02T03:04:05Z".into(),
        Type::MicroTime => "2026-01-02T03:04:05.000006Z".into(),
        Type::Int32 | Type::Int64 => (-3).into(),
        Type::Double => 1.5.into(),
        Type::Boolean => true.into(),
        Type::IntOrString => "80%".into(),
        Type::Quantity => "1500m".into(),
        Type::Any => json!({"any": ["thing"]}),
    }
}

/// Fields that the schema has and the released protobuf form has not, and types that hold themselves.
#[test]
fn every_field_of_every_built_in_kind_has_its_number() {
    for kind in Registry::builtin().iter().filter(|kind| kind.kind != "CustomResourceDefinition") {
        let mut object = full(carob_api::schema::schema_of(kind), 0);
        object["kind"] = (*kind.kind).into();
        object["apiVersion"] = kind.api_version().into();
        assert!(knows(kind), "{} has no protobuf form", kind.kind);
        let written = from_json(object.to_string().as_bytes()).expect("written");
        let read = to_json(&written).expect("read");
        let mut missing = Vec::new();
        differences(&object, &read, &mut String::new(), &mut missing);
        assert_eq!(missing, Vec::<String>::new(), "{}", kind.kind);
    }
}

fn differences(expected: &Value, found: &Value, path: &mut String, missing: &mut Vec<String>) {
    match (expected, found) {
        (Value::Object(expected), Value::Object(found)) => {
            for (name, value) in expected {
                let length = path.len();
                path.push('.');
                path.push_str(name);
                differences(value, found.get(name).unwrap_or(&Value::Null), path, missing);
                path.truncate(length);
            }
        }
        (Value::Array(expected), Value::Array(found)) if expected.len() == found.len() => {
            for (expected, found) in expected.iter().zip(found) {
                differences(expected, found, path, missing);
            }
        }
        _ if expected == found => {}
        _ => missing.push(path.clone()),
    }
}

#[test]
fn what_a_client_sends_in_protobuf_is_what_it_would_have_sent_in_json() {
    let kind = Registry::builtin().by_gvk("", "v1", "Pod").expect("built in");
    let object = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let text = object.to_string();
    let sent = to_json(&from_json(text.as_bytes()).expect("written")).expect("read").to_string();
    let strict = json::FieldValidation::Strict;
    let of = |text: &str| json::decode_json(kind, text.as_bytes(), strict).expect("decoded").value;
    assert_eq!(of(&sent), of(&text));
}

#[test]
fn bytes_that_make_no_sense_are_refused_and_never_panic() {
    for broken in [&b"k8s\0\xff\xff"[..], b"{}", b"", b"k8s\0\x0a\x7f", b"k8s\0"] {
        assert_eq!(to_json(broken).expect_err("refused").code(), 400);
    }
    let good = body("v1", "Pod", &bytes(1, &bytes(1, b"name")));
    for end in 0..good.len() {
        let _ = to_json(&good[..end]);
    }
}

#[test]
fn a_schema_deeper_than_json_may_be_is_refused() {
    let mut raw = Vec::new();
    for _ in 0..200 {
        raw = {
            let mut out = Vec::new();
            write_bytes(&mut out, 28, &raw);
            out
        };
    }
    let version = {
        let mut out = Vec::new();
        write_message(&mut out, 4, |out| write_bytes(out, 1, &raw));
        out
    };
    let spec = {
        let mut out = Vec::new();
        write_bytes(&mut out, 7, &version);
        out
    };
    let raw = {
        let mut out = Vec::new();
        write_bytes(&mut out, 2, &spec);
        out
    };
    let body = enveloped("apiextensions.k8s.io/v1", "CustomResourceDefinition", &raw);
    assert_eq!(to_json(&body).expect_err("refused").code(), 400);
}
