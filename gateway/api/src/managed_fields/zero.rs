//! The object that every other one is compared with when it is created: in Go a struct is never quite empty.
//!
//! Structs held by value are there from the start, so nobody adds them by filling them in; and so are required fields.
//! OpenAPI shows both: the former have `{}` as their default.

use serde_json::{Map, Value};

use crate::schema::{Schema, Type};

/// An object of this type before anything is set.
pub(super) fn zero(schema: &Schema) -> Value {
    let mut fields = Map::new();
    for (name, field) in schema.properties() {
        let by_value = field.default_value().is_some_and(|default| default.as_object().is_some_and(Map::is_empty));
        if by_value && field.type_() == Type::Object {
            fields.insert(name.to_owned(), zero(field));
        } else if schema.required().contains(&name) {
            fields.insert(name.to_owned(), zero_scalar(field.type_()));
        }
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
    fn structs_by_value_and_required_fields_are_there() {
        let deployment = zero(definition("io.k8s.api.apps.v1.Deployment").expect("a built-in type"));
        assert!(deployment["spec"]["template"]["spec"]["containers"].is_null());
        assert!(deployment["spec"]["strategy"].is_object());
        assert!(deployment.pointer("/spec/strategy/rollingUpdate").is_none());
        assert!(deployment.pointer("/spec/replicas").is_none());
    }
}
