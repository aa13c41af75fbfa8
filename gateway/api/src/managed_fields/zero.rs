//! The object that every other one is compared with when it is created: in Go a struct is never quite empty.
//!
//! What Go writes of an empty struct (structs held by value, fields without `omitempty`) is there from the start, so
//! nobody adds it by sending it.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use serde_json::{Map, Value};

use crate::kind::Kind;
use crate::schema::{Presence, Schema, Type, schema_of};

/// An object of this kind before anything is set. Those of built-in kinds are made once.
pub(super) fn zero_of(kind: &Kind) -> Arc<Value> {
    static MADE: RwLock<Option<HashMap<&'static str, Arc<Value>>>> = RwLock::new(None);
    if kind.custom.is_some() {
        return Arc::new(zero(schema_of(kind)));
    }
    let made =
        MADE.read().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(|made| made.get(kind.schema).cloned());
    made.unwrap_or_else(|| {
        let value = Arc::new(zero(schema_of(kind)));
        let mut made = MADE.write().unwrap_or_else(PoisonError::into_inner);
        made.get_or_insert_default().insert(kind.schema, Arc::clone(&value));
        value
    })
}

/// An object of this type before anything is set.
fn zero(schema: &Schema) -> Value {
    let mut fields = Map::new();
    for (name, field) in schema.properties() {
        let value = match field.presence() {
            Presence::Struct if field.type_() == Type::Object => zero(field),
            Presence::ScalarAlways | Presence::Number => zero_scalar(field.type_()),
            Presence::Time | Presence::PointerAlways | Presence::CollectionAlways => Value::Null,
            _ => continue,
        };
        fields.insert(name.to_owned(), value);
    }
    Value::Object(fields)
}

fn zero_scalar(type_: Type) -> Value {
    match type_ {
        Type::String => Value::from(""),
        Type::Int32 | Type::Int64 | Type::Double | Type::IntOrString => Value::from(0),
        Type::Quantity => Value::from("0"),
        Type::Boolean => Value::from(false),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::definition;

    #[test]
    fn what_go_always_writes_is_there() {
        let deployment = zero(definition("io.k8s.api.apps.v1.Deployment").expect("a built-in type"));
        assert!(deployment["spec"]["template"]["spec"]["containers"].is_null());
        assert!(deployment["spec"]["strategy"].is_object());
        assert!(deployment.pointer("/spec/strategy/rollingUpdate").is_none());
        assert!(deployment.pointer("/spec/replicas").is_none());
        let event = zero(definition("io.k8s.api.core.v1.Event").expect("a built-in type"));
        assert_eq!((&event["firstTimestamp"], &event["reportingComponent"]), (&Value::Null, &Value::from("")));
        assert!(event.get("firstTimestamp").is_some() && event.get("reason").is_none());
    }
}
