//! Whether a config fits its schema: Kubernetes' texts for one that doesn't.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::managed_fields::element::Element;
use crate::managed_fields::typed::{Node, Shape, element_of, field, shape};
use crate::patch::go_text;
use crate::schema::{ListType, Schema, Type};
use crate::status::quote;

/// Where, and what is wrong.
struct Wrong {
    path: String,
    message: String,
}

/// Checks a config; the errors are in one text.
pub(super) fn check(schema: &Schema, config: &Value) -> Result<(), String> {
    let mut wrong = Vec::new();
    walk(Some(schema), config, "", &mut wrong);
    let shown = |wrong: &Wrong| {
        if wrong.path.is_empty() { wrong.message.clone() } else { format!("{}: {}", wrong.path, wrong.message) }
    };
    match wrong.as_slice() {
        [] => Ok(()),
        [one] => Err(shown(one)),
        all => Err(format!("errors:\n  {}", all.iter().map(shown).collect::<Vec<_>>().join("\n  "))),
    }
}

fn walk(node: Node<'_>, value: &Value, path: &str, wrong: &mut Vec<Wrong>) {
    let mut say = |message: String| wrong.push(Wrong { path: path.to_owned(), message });
    if value.is_null() {
        return;
    }
    match shape(node, Some(value)) {
        Shape::Scalar => {
            if let Some(message) = node.and_then(|schema| scalar(schema.type_(), value)) {
                say(message);
            }
        }
        Shape::Map(node) | Shape::AtomicMap(node) => {
            let Value::Object(fields) = value else {
                return say(format!("expected map, got &{{{}}}", go_text(value)));
            };
            let is_closed = node.is_some_and(|schema| schema.type_() == Type::Object);
            for (key, value) in fields {
                let below = field(node, key);
                let path = format!("{path}{}", Element::field(key));
                if is_closed && below.is_none() {
                    wrong.push(Wrong { path, message: "field not declared in schema".to_owned() });
                    return;
                }
                walk(below, value, &path, wrong);
            }
        }
        Shape::AtomicList(items) => {
            let Value::Array(all) = value else { return say(format!("expected list, got &{{{}}}", go_text(value))) };
            for (index, item) in all.iter().enumerate() {
                walk(items, item, &format!("{path}[{index}]"), wrong);
            }
        }
        Shape::List(kind, items) => {
            let Value::Array(all) = value else { return say(format!("expected list, got &{{{}}}", go_text(value))) };
            walk_items(kind, items, all, path, wrong);
        }
    }
}

fn walk_items(kind: ListType, items: Node<'_>, all: &[Value], path: &str, wrong: &mut Vec<Wrong>) {
    let mut seen = BTreeSet::new();
    for (index, item) in all.iter().enumerate() {
        let element = match element_of(kind, items, item) {
            Ok(element) => element,
            Err(message) => {
                wrong.push(Wrong { path: path.to_owned(), message: format!("element {index}: {message}") });
                return;
            }
        };
        if seen.contains(&element) {
            let message = format!("duplicate entries for key {element}");
            wrong.push(Wrong { path: path.to_owned(), message });
        }
        walk(items, item, &format!("{path}{element}"), wrong);
        seen.insert(element);
    }
}

/// What is wrong with a scalar.
fn scalar(type_: Type, value: &Value) -> Option<String> {
    match (type_, value) {
        (Type::String | Type::Bytes, Value::String(_))
        | (Type::Int32 | Type::Int64 | Type::Double, Value::Number(_))
        | (Type::Boolean, Value::Bool(_)) => None,
        (Type::String | Type::Bytes, other) => {
            Some(format!("expected string, got &value.valueUnstructured{{Value:{}}}", go_syntax(other)))
        }
        (Type::Int32 | Type::Int64 | Type::Double, other) => {
            Some(format!("expected numeric (int or float), got {}", go_type(other)))
        }
        (Type::Boolean, other) => Some(format!("expected boolean, got &{{{}}}", go_text(other))),
        (_, other @ (Value::Array(_) | Value::Object(_))) => {
            Some(format!("expected any scalar, got &{{{}}}", go_text(other)))
        }
        _ => None,
    }
}

/// A value as Go's `%#v` prints it.
fn go_syntax(value: &Value) -> String {
    match value {
        Value::Null => "interface {}(nil)".to_owned(),
        Value::String(text) => quote(text),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(go_syntax).collect();
            format!("[]interface {{}}{{{}}}", items.join(", "))
        }
        Value::Object(fields) => {
            let mut fields: Vec<_> =
                fields.iter().map(|(key, value)| format!("{}:{}", quote(key), go_syntax(value))).collect();
            fields.sort();
            format!("map[string]interface {{}}{{{}}}", fields.join(", "))
        }
    }
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}
