//! The annotation in which `kubectl apply` keeps what it applied from the client's side.

use serde_json::Value;

use crate::kind::Kind;
use crate::managed_fields::set::Set;
use crate::managed_fields::typed::{compare, fields};
use crate::schema::schema_of;

const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// All annotations of an object together may have so many bytes.
const MAX_ANNOTATIONS_BYTES: usize = 256 * 1024;

/// The fields that `kubectl apply` set from the client's side and that still are as it set them.
pub(super) fn owned(kind: &Kind, live: &Value) -> Option<Set> {
    let last: Value = serde_json::from_str(annotation(live)?).ok()?;
    if last.get("apiVersion").and_then(Value::as_str) != Some(kind.api_version().as_str()) {
        return None;
    }
    let node = Some(schema_of(kind));
    let comparison = compare(node, &last, live);
    let owned = fields(node, &last);
    Some(owned.difference(&comparison.modified).difference(&comparison.added).difference(&comparison.removed))
}

/// Keeps the annotation up to date where there is one, so that `kubectl apply` can go on from the client's side.
pub(super) fn renew(object: &mut Value, config: &Value) {
    if annotation(object).is_none() {
        return;
    }
    let mut config = config.clone();
    if let Some(annotations) = config.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.shift_remove(ANNOTATION);
    }
    config.sort_all_objects();
    let mut text = escape_html(&config.to_string());
    text.push('\n');
    let Some(annotations) = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) else { return };
    annotations.insert(ANNOTATION.to_owned(), text.into());
    let size: usize = annotations.iter().map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
    if size > MAX_ANNOTATIONS_BYTES {
        annotations.shift_remove(ANNOTATION);
    }
}

fn annotation(object: &Value) -> Option<&str> {
    let annotations = object.pointer("/metadata/annotations")?;
    annotations.get(ANNOTATION)?.as_str().filter(|text| !text.is_empty())
}

/// As Go's JSON encoder does; these characters only stand in strings.
fn escape_html(json: &str) -> String {
    let escapes =
        [('<', "\\u003c"), ('>', "\\u003e"), ('&', "\\u0026"), ('\u{2028}', "\\u2028"), ('\u{2029}', "\\u2029")];
    escapes.iter().fold(json.to_owned(), |text, (plain, escaped)| text.replace(*plain, escaped))
}
