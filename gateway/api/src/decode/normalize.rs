//! The shape that an object has once a Go server has read and written it.
//!
//! Optional values that are zero fall out; values that Go's encoder always writes are there (`resources: {}` of a
//! container, `status: {}`, `lastTransitionTime: null`). Clients and recorded answers rely on it.

use serde_json::{Map, Value, json};

use crate::kind::Kind;
use crate::schema::{self, Presence, Schema, Type};

/// Brings an object of a kind into that shape. Idempotent; to be called again after defaults have been filled in.
pub fn normalize(kind: &Kind, object: &mut Value) {
    if kind.custom.is_none() {
        normalize_with(schema::schema_of(kind), object);
    }
}

pub(super) fn normalize_with(schema: &Schema, value: &mut Value) {
    match (schema.type_(), value) {
        (Type::Object, Value::Object(fields)) => object(schema, fields),
        (Type::Array, Value::Array(items)) => {
            if let Some(element) = schema.items() {
                for item in items {
                    normalize_with(element, item);
                }
            }
        }
        (Type::Map, Value::Object(entries)) => {
            if let Some(element) = schema.additional() {
                for value in entries.values_mut() {
                    normalize_with(element, value);
                }
            }
        }
        _ => {}
    }
}

/// Go's zero value of a type as it is written.
pub(super) fn zero(schema: &Schema) -> Value {
    match schema.type_() {
        Type::Object => {
            let mut value = json!({});
            normalize_with(schema, &mut value);
            value
        }
        Type::String | Type::Bytes => json!(""),
        Type::Quantity => json!("0"),
        Type::Int32 | Type::Int64 | Type::Double | Type::IntOrString => json!(0),
        Type::Boolean => json!(false),
        Type::Map | Type::Array | Type::Time | Type::MicroTime | Type::Any => Value::Null,
    }
}

fn object(schema: &Schema, fields: &mut Map<String, Value>) {
    for (name, field) in schema.properties() {
        let Some(value) = fields.get_mut(name) else {
            if let Some(value) = absent(field) {
                fields.insert(name.to_owned(), value);
            }
            continue;
        };
        normalize_with(field, value);
        match left_over(field, value) {
            Keep::As => {}
            Keep::Not => drop(fields.shift_remove(name)),
            Keep::Instead(other) => *value = other,
        }
    }
}

/// What is written for a field that isn't set.
fn absent(field: &Schema) -> Option<Value> {
    match field.presence() {
        Presence::Pointer
        | Presence::Collection
        | Presence::CollectionAsSaid
        | Presence::Scalar
        | Presence::TimeOrNothing => None,
        Presence::PointerAlways | Presence::CollectionAlways | Presence::Time => Some(Value::Null),
        Presence::ScalarAlways | Presence::Struct | Presence::Number => Some(zero(field)),
    }
}

enum Keep {
    As,
    Not,
    Instead(Value),
}

/// What is written for a field that is set.
fn left_over(field: &Schema, value: &Value) -> Keep {
    let null = value.is_null();
    match field.presence() {
        Presence::Pointer | Presence::TimeOrNothing | Presence::CollectionAsSaid if null => Keep::Not,
        Presence::Collection if null || is_empty(value) => Keep::Not,
        Presence::CollectionAlways if is_empty(value) => Keep::Instead(Value::Null),
        Presence::Scalar if null || is_zero(value) => Keep::Not,
        Presence::ScalarAlways | Presence::Struct | Presence::Number if null => Keep::Instead(zero(field)),
        _ => Keep::As,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        _ => false,
    }
}
