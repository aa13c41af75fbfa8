//! Objects in the store: where they are kept, how they are written once, and how they are read.

use carob_api::kind::Kind;
use carob_api::status::Status;
use carob_store::Document;
use serde_json::{Map, Value};

/// The fields of `metadata` in Kubernetes' order. `resourceVersion` is a hole that the store fills.
const METADATA: [&str; 14] = [
    "name",
    "generateName",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
    "managedFields",
];

/// `/core/pods/`, or with a namespace `/core/pods/default/`.
pub(crate) fn prefix(kind: &Kind, namespace: Option<&str>) -> String {
    let (group, plural) = kind.stored_as.map_or((kind.group, kind.plural), |form| (form.group, form.plural));
    let group = if group.is_empty() { "core" } else { group };
    match namespace {
        Some(namespace) => format!("/{group}/{plural}/{namespace}/"),
        None => format!("/{group}/{plural}/"),
    }
}

/// `/core/pods/default/web`
pub(crate) fn key(kind: &Kind, namespace: Option<&str>, name: &str) -> String {
    let mut key = prefix(kind, namespace);
    key.push_str(name);
    key
}

/// The key of an object of the core group.
pub(crate) fn core_key(plural: &str, namespace: Option<&str>, name: &str) -> String {
    match namespace {
        Some(namespace) => format!("/core/{plural}/{namespace}/{name}"),
        None => format!("/core/{plural}/{name}"),
    }
}

/// Namespace and name of a stored object, from its key.
pub(crate) fn split_key<'a>(kind: &Kind, key: &'a str) -> (Option<&'a str>, &'a str) {
    let mut parts = key.rsplitn(3, '/');
    let name = parts.next().unwrap_or_default();
    match kind.scope {
        carob_api::kind::Scope::Namespaced => (parts.next(), name),
        carob_api::kind::Scope::Cluster => (None, name),
    }
}

/// The bytes of an object: kind and apiVersion first (so that a list can leave them out without decoding), then
/// metadata in a fixed order with a hole for the revision, then the rest.
pub(crate) fn encode(object: &Value) -> Document {
    encode_with(object, None)
}

/// The same; what stands for a member's value is written instead of it.
pub(crate) fn encode_with(object: &Value, instead: Option<(&str, &str)>) -> Document {
    let empty = Map::new();
    let object = object.as_object().unwrap_or(&empty);
    let metadata = object.get("metadata").and_then(Value::as_object).unwrap_or(&empty);
    let mut out = Vec::with_capacity(1024);
    out.push(b'{');
    for name in ["kind", "apiVersion"] {
        field(&mut out, name, object.get(name).unwrap_or(&Value::Null));
    }
    label(&mut out, "metadata");
    out.push(b'{');
    let mut hole = 0;
    for name in METADATA {
        if name == "resourceVersion" {
            label(&mut out, name);
            out.push(b'"');
            hole = out.len();
            out.push(b'"');
        } else if let Some(value) = metadata.get(name).filter(|value| !value.is_null()) {
            field(&mut out, name, value);
        }
    }
    out.push(b'}');
    for (name, value) in object {
        match instead {
            Some((member, text)) if member == name => {
                label(&mut out, name);
                out.extend_from_slice(text.as_bytes());
            }
            _ if matches!(name.as_str(), "kind" | "apiVersion" | "metadata") => {}
            _ => field(&mut out, name, value),
        }
    }
    out.push(b'}');
    Document::with_revision_at(out, hole)
}

fn label(out: &mut Vec<u8>, name: &str) {
    if out.last() != Some(&b'{') {
        out.push(b',');
    }
    write(out, &Value::from(name));
    out.push(b':');
}

fn field(out: &mut Vec<u8>, name: &str, value: &Value) {
    label(out, name);
    write(out, value);
}

fn write(out: &mut Vec<u8>, value: &Value) {
    serde_json::to_writer(out, value).expect("a JSON value is written into memory");
}

/// What every stored object of a kind begins with, up to its metadata.
pub(crate) fn opening(kind: &Kind) -> String {
    format!("{{\"kind\":\"{}\",\"apiVersion\":\"{}\",", kind.kind, api_version(kind))
}

/// `v1`, `apps/v1`
pub(crate) fn api_version(kind: &Kind) -> String {
    if kind.group.is_empty() { kind.version.to_owned() } else { format!("{}/{}", kind.group, kind.version) }
}

/// The object of stored bytes.
pub(crate) fn decode(bytes: &[u8]) -> Result<Value, Status> {
    serde_json::from_slice(bytes).map_err(|error| {
        tracing::error!(%error, "a stored object is damaged");
        Status::internal("a stored object is damaged")
    })
}

/// What a failure of the store is answered with, where no special answer is due.
pub(crate) fn store_failure(error: &carob_store::Error) -> Status {
    match error {
        carob_store::Error::Closed => Status::service_unavailable("the server is shutting down"),
        carob_store::Error::Future { requested, newest } => {
            Status::resource_version_too_large(&requested.to_string(), *newest)
        }
        carob_store::Error::Compacted { .. } => {
            Status::expired("The resourceVersion for the provided list is too old.")
        }
        carob_store::Error::Full(_) => Status::internal("the server's disk is full"),
        carob_store::Error::Lagged | carob_store::Error::Engine(_) => {
            tracing::error!(error = error as &dyn std::error::Error, "the store failed");
            Status::internal("the store failed")
        }
    }
}

/// The text at a JSON pointer, empty if there is none.
pub(crate) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// `metadata`, made if it is missing.
///
/// Only for objects that were decoded as one: a root that isn't an object is replaced by one.
pub(crate) fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let root = object.as_object_mut().expect("just made one");
    let metadata = root.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    if !metadata.is_object() {
        *metadata = Value::Object(Map::new());
    }
    metadata.as_object_mut().expect("just made one")
}

/// Sets a metadata field.
pub(crate) fn set_metadata(object: &mut Value, name: &str, value: impl Into<Value>) {
    metadata_mut(object).insert(name.to_owned(), value.into());
}

/// The time as metadata has it: whole seconds.
pub(crate) fn timestamp(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Finalizers that still hold an object.
pub(crate) fn finalizers(object: &Value) -> Vec<String> {
    let list = object.pointer("/metadata/finalizers").and_then(Value::as_array);
    list.map(|list| list.iter().filter_map(Value::as_str).map(ToOwned::to_owned).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_object_is_written_once_with_a_hole_for_the_revision() {
        let object = json!({"apiVersion": "v1", "data": {"k": "v"}, "kind": "ConfigMap",
            "metadata": {"resourceVersion": "3", "uid": "u", "name": "a", "labels": {"x": "y"}}});
        let rendered = encode(&object).render(42);
        assert_eq!(
            std::str::from_utf8(&rendered).expect("UTF-8"),
            r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a","uid":"u","resourceVersion":"42","labels":{"x":"y"}},"data":{"k":"v"}}"#
        );
    }
}
