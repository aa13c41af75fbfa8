//! What a schema takes away and fills in: unknown fields, nulls that aren't allowed, defaults.

use serde_json::{Map, Value};

use super::structural::{Additional, Structural};
use crate::schema;

/// Fields that every object has, whatever its schema says.
const OBJECT_FIELDS: [&str; 3] = ["apiVersion", "kind", METADATA];
const METADATA: &str = "metadata";

/// Drops the fields of an object that its schema doesn't know; gives their paths, sorted.
pub fn prune(schema: &Structural, object: &mut Value) -> Vec<String> {
    let mut dropped = Vec::new();
    walk(Some(schema), object, true, &mut String::new(), &mut dropped);
    dropped.sort_unstable();
    dropped
}

fn walk(schema: Option<&Structural>, value: &mut Value, embedded: bool, path: &mut String, dropped: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            let names: Vec<String> = fields.keys().cloned().collect();
            for name in names {
                let length = path.len();
                if length > 0 {
                    path.push('.');
                }
                path.push_str(&name);
                walk_field(schema, fields, &name, embedded, path, dropped);
                path.truncate(length);
            }
        }
        Value::Array(items) => {
            let element = schema.and_then(|schema| schema.items.as_deref());
            let free = schema.is_none_or(|schema| schema.preserve_unknown);
            for (index, item) in items.iter_mut().enumerate() {
                let length = path.len();
                path.push_str(&format!("[{index}]"));
                if element.is_some() || !free {
                    walk(element, item, element.is_some_and(|element| element.embedded), path, dropped);
                }
                path.truncate(length);
            }
        }
        _ => {}
    }
}

fn walk_field(
    schema: Option<&Structural>,
    fields: &mut Map<String, Value>,
    name: &str,
    embedded: bool,
    path: &mut String,
    dropped: &mut Vec<String>,
) {
    if embedded && OBJECT_FIELDS.contains(&name) {
        // The metadata of the object itself is read like everybody's, elsewhere.
        if name == METADATA && path.len() > name.len() {
            below_metadata(fields, path, dropped);
        }
        return;
    }
    let known = schema.and_then(|schema| schema.properties.get(name));
    let additional = schema.and_then(|schema| schema.additional.as_ref());
    match (known, additional) {
        (Some(field), _) => below(Some(field), fields, name, path, dropped),
        (None, Some(Additional::Schema(field))) => below(Some(field), fields, name, path, dropped),
        _ if schema.is_some_and(|schema| schema.preserve_unknown) => {}
        (None, Some(Additional::Any(true))) => below(None, fields, name, path, dropped),
        _ => {
            fields.shift_remove(name);
            dropped.push(path.clone());
        }
    }
}

/// Drops what the metadata of no object has.
fn below_metadata(fields: &mut Map<String, Value>, path: &str, dropped: &mut Vec<String>) {
    let known = schema::custom::object().property(METADATA);
    let (Some(known), Some(Value::Object(metadata))) = (known, fields.get_mut(METADATA)) else { return };
    metadata.retain(|name, _| {
        let stays = known.property(name).is_some();
        if !stays {
            dropped.push(format!("{path}.{name}"));
        }
        stays
    });
}

fn below(
    schema: Option<&Structural>,
    fields: &mut Map<String, Value>,
    name: &str,
    path: &mut String,
    dropped: &mut Vec<String>,
) {
    if let Some(value) = fields.get_mut(name) {
        walk(schema, value, schema.is_some_and(|schema| schema.embedded), path, dropped);
    }
}

/// Drops nulls where the schema has another type in mind, and fills in defaults.
pub fn default(schema: &Structural, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in &schema.properties {
                let missing = match fields.get(name) {
                    None => true,
                    Some(Value::Null) => !field.nullable,
                    Some(_) => false,
                };
                if missing {
                    match &field.default {
                        Some(default) => drop(fields.insert(name.clone(), default.clone())),
                        None => drop(fields.shift_remove(name)),
                    }
                }
            }
            let additional = match &schema.additional {
                Some(Additional::Schema(additional)) => Some(&**additional),
                _ => None,
            };
            if let Some(additional) = additional.filter(|additional| !additional.nullable) {
                fields.retain(|name, value| {
                    schema.properties.contains_key(name) || !value.is_null() || additional.accepts_anything()
                });
            }
            for (name, value) in fields.iter_mut() {
                if let Some(field) = schema.properties.get(name).or(additional) {
                    default(field, value);
                }
            }
        }
        Value::Array(items) => {
            if let Some(element) = &schema.items {
                for item in items {
                    default(element, item);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema() -> Structural {
        Structural::read(&json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "n": {"type": "integer", "default": 7},
            "o": {"type": "object", "default": {}, "properties": {"p": {"type": "string", "default": "q"}}},
            "keep": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                "properties": {"known": {"type": "object"}}},
            "nn": {"type": "string", "nullable": true},
            "m": {"type": "object", "additionalProperties": {"type": "object", "properties": {"a": {"type": "integer"}}}},
            "pod": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}},
            "l": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "integer", "default": 1}}}}
        }}}}))
    }

    #[test]
    fn unknown_fields_go_and_are_named() {
        let mut object = json!({"apiVersion": "a/v1", "kind": "X", "metadata": {"name": "x"}, "other": 1,
            "spec": {"zz": 1, "keep": {"any": {"a": 1}, "known": {"b": 1}}, "m": {"k": {"a": 1, "b": 2}},
                "pod": {"apiVersion": "v1", "metadata": {"labels": {}, "no": 1}, "status": {}}, "l": [{"x": 1}]}});
        assert_eq!(
            prune(&schema(), &mut object),
            [
                "other",
                "spec.keep.known.b",
                "spec.l[0].x",
                "spec.m.k.b",
                "spec.pod.metadata.no",
                "spec.pod.status",
                "spec.zz"
            ]
        );
        assert_eq!(object["spec"]["keep"], json!({"any": {"a": 1}, "known": {}}));
        assert_eq!(
            (&object["metadata"]["name"], &object["spec"]["pod"]["metadata"]),
            (&json!("x"), &json!({"labels": {}}))
        );
    }

    #[test]
    fn defaults_fill_in_what_is_missing_or_null() {
        let mut object = json!({"spec": {"n": null, "nn": null, "keep": null, "l": [{}], "m": {"a": null}}});
        default(&schema(), &mut object);
        assert_eq!(object["spec"], json!({"nn": null, "l": [{"a": 1}], "m": {}, "n": 7, "o": {"p": "q"}}));
        let mut empty = json!({});
        default(&schema(), &mut empty);
        assert_eq!(empty, json!({}));
    }
}
