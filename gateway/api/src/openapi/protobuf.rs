//! OpenAPI v2 in protobuf, the only form in which kubectl fetches it (for lists, and for kinds that v3 doesn't have).
//!
//! The message types are those of gnostic's `openapi.v2`; only the fields that Kubernetes' schemas have are written. Field
//! numbers are in the tables below.

use serde_json::{Map, Value};

/// The media type, as clients ask for it.
pub const MEDIA_TYPE: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// Strings of a Schema, by field number.
const STRINGS: [(&str, u32); 5] = [("$ref", 1), ("format", 2), ("title", 3), ("description", 4), ("pattern", 13)];

/// A document, without its paths: clients look for definitions here.
pub(super) fn document(swagger: &str, info: &Value, definitions: &Map<String, Value>) -> Vec<u8> {
    let mut document = Message::default();
    document.text(1, swagger);
    document.message(2, |message| {
        message.text(1, info["title"].as_str().unwrap_or_default());
        message.text(2, info["version"].as_str().unwrap_or_default());
    });
    document.message(8, |_| {});
    document.message(9, |message| named_schemas(message, definitions));
    document.0
}

/// `Definitions` and `Properties`: a list of names with their schemas.
fn named_schemas(message: &mut Message, schemas: &Map<String, Value>) {
    for (name, schema_of_name) in schemas {
        message.message(1, |named| {
            named.text(1, name);
            named.message(2, |message| schema(message, schema_of_name));
        });
    }
}

fn schema(message: &mut Message, value: &Value) {
    for (name, field) in STRINGS {
        if let Some(text) = value[name].as_str() {
            message.text(field, text);
        }
    }
    if !value["default"].is_null() {
        message.message(5, |any| anything(any, &value["default"]));
    }
    for text in value["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        message.text(19, text);
    }
    for choice in value["enum"].as_array().into_iter().flatten() {
        message.message(20, |any| anything(any, choice));
    }
    match &value["additionalProperties"] {
        Value::Object(_) => {
            message.message(21, |item| item.message(1, |inner| schema(inner, &value["additionalProperties"])));
        }
        Value::Bool(allowed) => message.message(21, |item| item.number(2, u64::from(*allowed))),
        _ => {}
    }
    if let Some(type_) = value["type"].as_str() {
        message.message(22, |item| item.text(1, type_));
    }
    if value["items"].is_object() {
        message.message(23, |item| item.message(1, |inner| schema(inner, &value["items"])));
    }
    for part in value["allOf"].as_array().into_iter().flatten() {
        message.message(24, |inner| schema(inner, part));
    }
    if let Some(properties) = value["properties"].as_object() {
        message.message(25, |inner| named_schemas(inner, properties));
    }
    for (name, extension) in value.as_object().into_iter().flatten().filter(|(name, _)| name.starts_with("x-")) {
        message.message(31, |named| {
            named.text(1, name);
            named.message(2, |any| anything(any, extension));
        });
    }
}

/// `Any`: its second field holds the value as YAML, of which JSON is a part.
fn anything(message: &mut Message, value: &Value) {
    message.text(2, &value.to_string());
}

/// A protobuf message that is being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn number(&mut self, field: u32, value: u64) {
        self.varint(u64::from(field) << 3);
        self.varint(value);
    }

    fn text(&mut self, field: u32, text: &str) {
        self.bytes(field, text.as_bytes());
    }

    fn message(&mut self, field: u32, write: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        write(&mut inner);
        self.bytes(field, &inner.0);
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.0.push(value.to_le_bytes()[0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_definition_is_written_with_its_name_type_and_extensions() {
        let definitions = json!({"a.B": {"type": "object", "x-k": [1]}});
        let bytes = document("2.0", &json!({"title": "T", "version": "v"}), definitions.as_object().unwrap());
        let schema = b"\xb2\x01\x08\x0a\x06object\xfa\x01\x0c\x0a\x03x-k\x12\x05\x12\x03[1]";
        let named = [b"\x0a\x03a.B\x12".as_slice(), &[schema.len().to_le_bytes()[0]], schema].concat();
        let definitions = [b"\x0a".as_slice(), &[named.len().to_le_bytes()[0]], &named].concat();
        let expected = [
            b"\x0a\x032.0\x12\x06\x0a\x01T\x12\x01v\x42\x00\x4a".as_slice(),
            &[definitions.len().to_le_bytes()[0]],
            &definitions,
        ];
        assert_eq!(bytes, expected.concat());
    }
}
