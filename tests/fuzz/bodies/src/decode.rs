//! Bodies of requests: JSON and YAML to objects.

use carob_api::decode::{FieldValidation, decode_json, decode_yaml};
use carob_api::kind::Kind;
use serde_json::{Value, json};

use crate::objects;
use crate::source::Source;

/// How unknown and doubled fields may be treated.
const VALIDATIONS: [FieldValidation; 3] = [FieldValidation::Ignore, FieldValidation::Warn, FieldValidation::Strict];

/// A byte for the kind, one for the field validation, then a JSON body.
pub fn json(data: &[u8]) {
    let mut source = Source::new(data);
    let (kind, validation) = (objects::kind(&mut source), *source.pick(&VALIDATIONS));
    let body = source.rest();
    if let Ok(decoded) = decode_json(kind, body, validation) {
        assert!(validation == FieldValidation::Warn || decoded.warnings.is_empty());
        is_settled(kind, &decoded.value);
    }
}

/// The same with a YAML body.
pub fn yaml(data: &[u8]) {
    let mut source = Source::new(data);
    let (kind, validation) = (objects::kind(&mut source), *source.pick(&VALIDATIONS));
    if let Ok(decoded) = decode_yaml(kind, source.rest(), validation) {
        is_settled(kind, &decoded.value);
    }
}

/// What was decoded once decodes to itself, strictly, from JSON and from YAML.
fn is_settled(kind: &Kind, value: &Value) {
    let text = value.to_string();
    let again = decode_json(kind, text.as_bytes(), FieldValidation::Strict);
    let again =
        again.unwrap_or_else(|status| panic!("{} was decoded, and now: {}\n{text}", kind.kind, status.message()));
    assert_eq!(again.value, *value, "decoding twice");
}

/// Objects of a few kinds, right and wrong.
pub fn json_seeds() -> Vec<Vec<u8>> {
    samples().iter().map(|(kind, object)| prefixed(kind, &object.to_string())).collect()
}

/// The same as YAML, and YAML's own traps.
pub fn yaml_seeds() -> Vec<Vec<u8>> {
    let flow = samples().into_iter().map(|(kind, object)| prefixed(kind, &object.to_string()));
    let texts = [
        "metadata:\n  name: a\n  labels: &l {a: b}\n  annotations: *l\ndata:\n  k: |\n    text\n    more\n  n: 'x'\n",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\ndata: {k: *c}\n",
        "? [a]\n: b\n<<: {metadata: {name: x}}\ndata: !!binary aGk=\n---\nsecond: 1\n",
        "metadata: {name: 0x1F, generateName: 1e3, namespace: ~, uid: yes}\n\tx: y\n",
    ];
    flow.chain(texts.iter().map(|text| prefixed("ConfigMap", text))).collect()
}

fn samples() -> Vec<(&'static str, Value)> {
    vec![
        (
            "ConfigMap",
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}, "binaryData": {"b": "AA=="}}),
        ),
        (
            "Pod",
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "creationTimestamp": null}, "spec": {
            "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}], "resources": {"limits": {"cpu": 1.5, "memory": "1Gi"}},
            "livenessProbe": {"httpGet": {"port": "web"}}, "env": [{"name": "A", "value": "b"}]}], "volumes": [{"name": "v", "emptyDir": {}}]}}),
        ),
        (
            "Deployment",
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": {"replicas": 3,
            "selector": {"matchLabels": {"a": "b"}}, "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 1}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}}),
        ),
        (
            "Secret",
            json!({"metadata": {"name": "a"}, "data": {"k": "AAH/"}, "stringData": {"k": "v"}, "unknown": {"a": [1]}}),
        ),
        (
            "Event",
            json!({"metadata": {"name": "a", "managedFields": [{"fieldsV1": {"f:a": {}}}]}, "involvedObject": {}, "eventTime": "2026-01-02T03:04:05.000006Z"}),
        ),
        (
            "DeleteOptions",
            json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0, "preconditions": {"uid": "x"}}),
        ),
    ]
}

fn prefixed(kind: &str, body: &str) -> Vec<u8> {
    let at = objects::all_kinds().iter().position(|known| known.kind == kind).expect("a built-in kind");
    [&[u8::try_from(at).expect("few kinds"), 2][..], body.as_bytes()].concat()
}
