//! Cells that several kinds have.

use jiff::Timestamp;
use serde_json::Value;

use super::age;
use crate::kind::Column;

/// A column that is not the name.
pub(super) const fn column(
    name: &'static str,
    type_: &'static str,
    priority: i32,
    cell: fn(&Value, Timestamp) -> Value,
) -> Column {
    Column { name, type_, format: "", priority, description: "", cell }
}

/// The age of the object.
pub(super) const AGE: Column = column("Age", "string", 0, created_ago);

pub(super) fn name(object: &Value, _: Timestamp) -> Value {
    text(object, "/metadata/name").into()
}

fn created_ago(object: &Value, now: Timestamp) -> Value {
    age::since(object.pointer("/metadata/creationTimestamp"), now).into()
}

/// The text there, or an empty one.
pub(super) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The text there, or another if there is none or an empty one.
pub(super) fn text_or<'a>(object: &'a Value, pointer: &str, otherwise: &'a str) -> &'a str {
    Some(text(object, pointer)).filter(|found| !found.is_empty()).unwrap_or(otherwise)
}

/// The number there, or 0.
pub(super) fn number(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or_default()
}

/// The list there, or an empty one.
pub(super) fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// How many entries the map there has.
pub(super) fn entries(object: &Value, pointer: &str) -> usize {
    object.pointer(pointer).and_then(Value::as_object).map_or(0, serde_json::Map::len)
}

/// Whether the condition of this type is True.
pub(super) fn condition_true(object: &Value, type_: &str) -> bool {
    list(object, "/status/conditions")
        .iter()
        .any(|condition| condition["type"] == type_ && condition["status"] == "True")
}

/// Names of the containers of the template.
pub(super) const CONTAINERS: Column = column("Containers", "string", 1, |object, _| joined(object, "name"));

/// Images of the containers of the template.
pub(super) const IMAGES: Column = column("Images", "string", 1, |object, _| joined(object, "image"));

fn joined(object: &Value, field: &str) -> Value {
    containers(object, "/spec/template", field).into()
}

/// A field of all containers of the template there.
pub(super) fn containers(object: &Value, template: &str, field: &str) -> String {
    let parts: Vec<&str> = list(object, &format!("{template}/spec/containers"))
        .iter()
        .map(|container| container[field].as_str().unwrap_or_default())
        .collect();
    parts.join(",")
}

/// Labels as `a=b,c=d`, sorted by key, or `<none>`.
pub(super) fn labels(labels: Option<&Value>) -> String {
    let mut shown: Vec<String> = labels
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    shown.sort_unstable();
    if shown.is_empty() { "<none>".to_owned() } else { shown.join(",") }
}

/// The selector of the object as text, or `<none>` if it selects everything.
pub(super) const SELECTOR: Column = column("Selector", "string", 1, |object, _| {
    let text = selector(object.pointer("/spec/selector").unwrap_or(&Value::Null));
    if text.is_empty() { "<none>".into() } else { text.into() }
});

/// A label selector in the form of a query: `a=b,c in (d,e)`, sorted by key.
pub(super) fn selector(selector: &Value) -> String {
    let mut requirements: Vec<(&str, String)> = Vec::new();
    if let Some(labels) = selector["matchLabels"].as_object() {
        for (key, value) in labels {
            requirements.push((key, format!("{key}={}", value.as_str().unwrap_or_default())));
        }
    }
    for expression in selector["matchExpressions"].as_array().map_or(&[][..], Vec::as_slice) {
        let key = expression["key"].as_str().unwrap_or_default();
        let mut values: Vec<&str> = list(expression, "/values").iter().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        let text = match expression["operator"].as_str() {
            Some("In") => format!("{key} in ({values})"),
            Some("NotIn") => format!("{key} notin ({values})"),
            Some("DoesNotExist") => format!("!{key}"),
            _ => key.to_owned(),
        };
        requirements.push((key, text));
    }
    requirements.sort_by_key(|(key, _)| *key);
    requirements.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_selector_reads_like_a_query_sorted_by_key() {
        let value = json!({"matchLabels": {"z": "1", "a": "b"},
            "matchExpressions": [{"key": "c", "operator": "In", "values": ["e", "d"]}, {"key": "b", "operator": "DoesNotExist"}]});
        assert_eq!(selector(&value), "a=b,!b,c in (d,e),z=1");
    }
}
