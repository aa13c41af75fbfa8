//! Values of expressions, from JSON and back.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube_cel::cel::Value;
use kube_cel::cel::objects::{Key, Map};
use serde_json::{Number, Value as Json};

use crate::custom::{Additional, Structural};

/// Words that cannot be names of fields in an expression.
const RESERVED: &[&str] = &[
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];
const TYPE: &str = "@type";

/// A JSON value of which no schema is known.
pub fn from_json(value: &Json) -> Value {
    match value {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => numeric(number),
        Json::String(text) => string(text),
        Json::Array(items) => list(items.iter().map(from_json).collect()),
        Json::Object(fields) => map(fields.iter().map(|(name, value)| (name.clone(), from_json(value)))),
    }
}

/// A JSON value of a schema: numbers, times and names of fields become what the schema says.
pub fn typed(schema: &Structural, value: &Json) -> Value {
    match value {
        Json::Number(number) if schema.type_ == "number" => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        Json::String(text) => formatted(schema, text),
        Json::Array(items) => match &schema.items {
            Some(element) => list(items.iter().map(|item| typed(element, item)).collect()),
            None => from_json(value),
        },
        Json::Object(fields) => {
            let mut entries = Vec::with_capacity(fields.len());
            for (name, value) in fields {
                match (schema.properties.get(name), &schema.additional) {
                    // A field whose name cannot be written is out of reach.
                    (Some(field), _) => entries.extend(escape(name).map(|name| (name, typed(field, value)))),
                    (None, Some(Additional::Schema(element))) => entries.push((name.clone(), typed(element, value))),
                    (None, _) => entries.push((name.clone(), from_json(value))),
                }
            }
            map(entries.into_iter())
        }
        other => from_json(other),
    }
}

fn formatted(schema: &Structural, text: &str) -> Value {
    if schema.int_or_string {
        return string(text);
    }
    let parsed = match schema.rest.get("format").and_then(Json::as_str) {
        Some("date-time") => super::eval::convert("timestamp", string(text)).ok(),
        Some("date") => super::eval::convert("timestamp", string(&format!("{text}T00:00:00Z"))).ok(),
        Some("duration") => super::eval::convert("duration", string(text)).ok(),
        Some("byte") => STANDARD.decode(text).ok().map(|bytes| Value::Bytes(bytes.into())),
        _ => None,
    };
    parsed.unwrap_or_else(|| string(text))
}

/// The name of a field as expressions write it: `__if__`, `a__dot__b`. None for a name that cannot be written.
pub(crate) fn escape(name: &str) -> Option<String> {
    if RESERVED.contains(&name) {
        return Some(format!("__{name}__"));
    }
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let mut escaped = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        if let Some(behind) = rest.strip_prefix("__") {
            escaped.push_str("__underscores__");
            rest = behind;
            continue;
        }
        match c {
            '.' => escaped.push_str("__dot__"),
            '-' => escaped.push_str("__dash__"),
            '/' => escaped.push_str("__slash__"),
            c if c.is_ascii_alphanumeric() || c == '_' => escaped.push(c),
            _ => return None,
        }
        rest = &rest[c.len_utf8()..];
    }
    Some(escaped)
}

fn numeric(number: &Number) -> Value {
    if let Some(value) = number.as_i64() {
        Value::Int(value)
    } else if let Some(value) = number.as_u64() {
        Value::UInt(value)
    } else {
        Value::Float(number.as_f64().unwrap_or(f64::NAN))
    }
}

pub(super) fn string(text: &str) -> Value {
    Value::String(Arc::new(text.to_owned()))
}

pub(super) fn list(items: Vec<Value>) -> Value {
    Value::List(Arc::new(items))
}

pub(super) fn map(entries: impl Iterator<Item = (String, Value)>) -> Value {
    let map: HashMap<Key, Value> = entries.map(|(key, value)| (Key::String(Arc::new(key)), value)).collect();
    Value::Map(Map { map: Arc::new(map) })
}

/// A map of named values.
pub fn object(fields: &[(String, Value)]) -> Value {
    map(fields.iter().cloned())
}

/// The value that `type()` gives.
pub(super) fn type_value(name: &str) -> Value {
    map(std::iter::once((TYPE.to_owned(), string(name))))
}

/// The name of a value's type.
pub(super) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::List(_) => "list",
        Value::Map(map) if map.map.len() == 1 && map.get(&Key::from(TYPE.to_owned())).is_some() => "type",
        Value::Map(_) => "map",
        Value::Int(_) => "int",
        Value::UInt(_) => "uint",
        Value::Float(_) => "double",
        Value::String(_) => "string",
        Value::Bytes(_) => "bytes",
        Value::Bool(_) => "bool",
        Value::Duration(_) => "duration",
        Value::Timestamp(_) => "timestamp",
        Value::Null => "null_type",
        _ => "opaque",
    }
}

/// A value as JSON. What has no form there is null.
pub fn to_json(value: &Value) -> Json {
    match value {
        Value::List(items) => Json::Array(items.iter().map(to_json).collect()),
        Value::Map(map) => Json::Object(map.map.iter().map(|(key, value)| (key_text(key), to_json(value))).collect()),
        Value::Int(value) => (*value).into(),
        Value::UInt(value) => (*value).into(),
        Value::Float(value) => Number::from_f64(*value).map_or(Json::Null, Json::Number),
        Value::String(text) => text.as_str().into(),
        Value::Bytes(bytes) => STANDARD.encode(&**bytes).into(),
        Value::Bool(value) => (*value).into(),
        Value::Timestamp(at) => at.to_rfc3339().into(),
        Value::Duration(_) => text_of(value).into(),
        _ => Json::Null,
    }
}

/// A key of a map as a text.
pub(super) fn key_text(key: &Key) -> String {
    match key {
        Key::Int(value) => value.to_string(),
        Key::Uint(value) => value.to_string(),
        Key::Bool(value) => value.to_string(),
        Key::String(text) => text.to_string(),
    }
}

/// A value as an error shows it.
pub fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.to_string(),
        Value::Duration(_) => match super::eval::convert("string", value.clone()) {
            Ok(Value::String(text)) => text.to_string(),
            _ => String::new(),
        },
        other => to_json(other).to_string(),
    }
}

/// What handling a value costs, in steps: its length, for what has one.
pub(super) fn size(value: &Value) -> u64 {
    let length = match value {
        Value::String(text) => text.len() / 10,
        Value::Bytes(bytes) => bytes.len() / 10,
        Value::List(items) => items.len(),
        Value::Map(map) => map.map.len(),
        _ => 0,
    };
    length as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_fields_are_escaped() {
        for (name, escaped) in [
            ("a", Some("a")),
            ("a_b", Some("a_b")),
            ("a.b", Some("a__dot__b")),
            ("a-b/c", Some("a__dash__b__slash__c")),
            ("a__b", Some("a__underscores__b")),
            ("if", Some("__if__")),
            ("namespace", Some("__namespace__")),
            ("1a", None),
            ("a$", None),
        ] {
            assert_eq!(escape(name).as_deref(), escaped, "{name}");
        }
    }
}
