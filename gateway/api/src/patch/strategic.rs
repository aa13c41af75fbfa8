//! Strategic merge patch: a merge patch that knows which lists are maps in disguise, and obeys directives.

mod order;

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::go_text;
use crate::schema::{PatchStrategy, Schema};
use crate::status::{Status, quote};
use order::{arrange, partition, same_kind};

/// In an object: `replace`, `delete` or `merge` instead of merging.
const PATCH: &str = "$patch";
/// In an object: the keys that stay.
const RETAIN_KEYS: &str = "$retainKeys";
/// Before the name of a list of scalars: those that go.
const DELETE_FROM: &str = "$deleteFromPrimitiveList";
/// Before the name of a list: the order of its items.
const SET_ORDER: &str = "$setElementOrder";

type Object = Map<String, Value>;

pub(super) fn apply(schema: &Schema, doc: &Value, patch: Object) -> Result<Value, Status> {
    let doc = doc.as_object().cloned().unwrap_or_default();
    merge_objects(doc, patch, Some(schema)).map(Value::Object)
}

/// A patch that contradicts itself: Kubernetes answers with the bare error.
fn broken(message: impl Into<String>) -> Status {
    Status::generic(500, "", message)
}

fn bad_format(of: &str) -> Status {
    Status::bad_request(format!("invalid patch format of {of}"))
}

fn wrong_type(expected: &str, found: &Value) -> Status {
    let found = match found {
        Value::Null => "%!s(<nil>)",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    };
    broken(format!("expected a {expected}, but received a {found}"))
}

fn no_merge_key(item: &Object, key: &str) -> Status {
    let item = go_text(&Value::Object(item.clone()));
    broken(format!("map: {item} does not contain declared merge key: {key}"))
}

fn merge_objects(mut original: Object, mut patch: Object, schema: Option<&Schema>) -> Result<Object, Status> {
    if let Some(directive) = patch.get(PATCH) {
        return match directive.as_str() {
            Some("replace") => {
                patch.shift_remove(PATCH);
                Ok(patch)
            }
            Some("delete") => Ok(Object::new()),
            _ => Err(unknown_directive(directive, &patch)),
        };
    }
    retain_keys(&mut original, &mut patch)?;
    merge_ordered_lists(&mut original, &mut patch, schema)?;
    // They go all at once: taking one out moves those behind it.
    let mut gone = HashSet::new();
    for (key, value) in patch {
        let (key, is_deletion) = match key.strip_prefix(DELETE_FROM) {
            Some(rest) => {
                let name = rest.strip_prefix('/').ok_or_else(|| bad_format("primitive list"))?;
                (name.to_owned(), true)
            }
            None => (key, false),
        };
        if value.is_null() {
            gone.insert(key);
            continue;
        }
        let field = schema.and_then(|schema| schema.property(&key));
        let strategy = field.map(Schema::patch_strategy).unwrap_or_default();
        let known = original.get_mut(&key).filter(|_| !gone.contains(&key));
        let merged = match (known.map(Value::take), value) {
            (Some(Value::Object(_)), Value::Object(new)) if strategy.replace => Some(Value::Object(new)),
            (Some(Value::Object(old)), Value::Object(new)) => Some(Value::Object(merge_objects(old, new, field)?)),
            (Some(Value::Array(old)), Value::Array(new)) if strategy.merge || is_deletion => {
                Some(Value::Array(merge_lists(old, new, field, strategy, is_deletion)?))
            }
            (Some(Value::Array(_)), new @ Value::Array(_)) => Some(new),
            (old, _) if is_deletion => old,
            (_, new) => without_directives(without_nulls(new)),
        };
        match merged {
            Some(merged) => {
                gone.remove(&key);
                original.insert(key, merged);
            }
            None => {
                gone.insert(key);
            }
        }
    }
    if !gone.is_empty() {
        original.retain(|key, _| !gone.contains(key));
    }
    Ok(original)
}

fn unknown_directive(directive: &Value, patch: &Object) -> Status {
    broken(format!("unknown patch type: {} in map: {}", go_text(directive), go_text(&Value::Object(patch.clone()))))
}

/// `$retainKeys`: other keys go, and the patch must not set others.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), Status> {
    let Some(keys) = patch.shift_remove(RETAIN_KEYS) else { return Ok(()) };
    let Value::Array(keys) = keys else { return Err(bad_format("retainKeys")) };
    let keys: HashSet<&str> = keys.iter().filter_map(Value::as_str).collect();
    let listed = |key: &str| keys.contains(key);
    let is_directive = |key: &str| key.starts_with(DELETE_FROM) || key.starts_with(SET_ORDER);
    if patch.iter().any(|(key, value)| !value.is_null() && !is_directive(key) && !listed(key)) {
        return Err(bad_format("retainKeys"));
    }
    original.retain(|key, _| listed(key));
    Ok(())
}

/// Merges and orders each list for which there is a `$setElementOrder/…`, and takes both out of the patch.
fn merge_ordered_lists(original: &mut Object, patch: &mut Object, schema: Option<&Schema>) -> Result<(), Status> {
    let directives: Vec<String> = patch.keys().filter(|key| key.starts_with(SET_ORDER)).cloned().collect();
    for directive in directives {
        let order = match patch.shift_remove(&directive) {
            Some(Value::Array(order)) => order,
            other => return Err(wrong_type("[]interface {}", &other.unwrap_or(Value::Null))),
        };
        let name = directive[SET_ORDER.len()..].strip_prefix('/').ok_or_else(|| bad_format("setElementOrder list"))?;
        let list = |object: &Object| match object.get(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items.clone())),
            Some(other) => Err(wrong_type("[]interface {}", other)),
        };
        let (live, wanted) = (list(original)?, list(patch)?);
        let field = schema.and_then(|schema| schema.property(name));
        if let (None, Some(schema)) = (field, schema) {
            let owner = schema.name().and_then(|name| name.rsplit('.').next()).unwrap_or_default();
            let field = quote(name);
            return Err(broken(format!("unable to find api field in struct {owner} for the json field {field}")));
        }
        let strategy = field.map(Schema::patch_strategy).unwrap_or_default();
        let key = strategy.merge_key;
        order::check(wanted.as_deref().unwrap_or_default(), &order, key)?;
        let server_order = live.clone().unwrap_or_default();
        let merged = match (live, wanted) {
            (None, None) => continue,
            (Some(live), None) => live,
            (None, Some(wanted)) => kept_items(wanted),
            (Some(live), Some(wanted)) if strategy.merge => merge_lists(live, wanted, field, strategy, false)?,
            (Some(_), Some(wanted)) => wanted,
        };
        let wanted = patch.shift_remove(name);
        same_kind(&server_order, wanted.as_ref().and_then(Value::as_array).map_or(&[], Vec::as_slice))?;
        let (patched, server_only) = partition(merged, &order, key)?;
        original.insert(name.to_owned(), Value::Array(arrange(patched, server_only, &order, &server_order, key)?));
    }
    Ok(())
}

fn merge_lists(
    original: Vec<Value>,
    patch: Vec<Value>,
    schema: Option<&Schema>,
    strategy: PatchStrategy,
    is_deletion: bool,
) -> Result<Vec<Value>, Status> {
    if original.is_empty() && patch.is_empty() {
        return Ok(original);
    }
    let of_objects = same_kind(&original, &patch)?;
    if !of_objects {
        if is_deletion {
            let gone: HashSet<String> = patch.iter().map(ToString::to_string).collect();
            return Ok(original.into_iter().filter(|item| !gone.contains(&item.to_string())).collect());
        }
        let mut merged: Vec<Value> = Vec::with_capacity(original.len() + patch.len());
        let mut seen = HashSet::new();
        for item in original.iter().chain(&patch) {
            if seen.insert(item.to_string()) {
                merged.push(item.clone());
            }
        }
        let (patched, server_only) = partition(merged, &patch, None)?;
        return arrange(patched, server_only, &patch, &original, None);
    }
    let Some(key) = strategy.merge_key else {
        let name = schema.and_then(Schema::items).and_then(Schema::name).unwrap_or_default();
        return Err(broken(format!(
            "cannot merge lists without merge key for {}",
            name.rsplit('.').next().unwrap_or(name)
        )));
    };
    let (original, patch) = obey_item_directives(original, patch, key)?;
    let merged = merge_items(original.clone(), &patch, key, schema.and_then(Schema::items))?;
    let (patched, server_only) = partition(merged, &patch, Some(key))?;
    arrange(patched, server_only, &patch, &original, Some(key))
}

/// Carries out `$patch` in items of a list: the live items and the rest of the patch.
fn obey_item_directives(
    mut original: Vec<Value>,
    patch: Vec<Value>,
    key: &str,
) -> Result<(Vec<Value>, Vec<Value>), Status> {
    let mut rest = Vec::with_capacity(patch.len());
    let (mut replace, mut gone) = (false, HashSet::new());
    for item in patch {
        let Some((fields, directive)) = item.as_object().and_then(|fields| Some((fields, fields.get(PATCH)?))) else {
            rest.push(item);
            continue;
        };
        match directive.as_str() {
            Some("delete") => {
                let value = fields.get(key).ok_or_else(|| no_merge_key(fields, key))?;
                gone.insert(value.to_string());
            }
            Some("replace") => replace = true,
            Some("merge") => return Err(broken("merging lists cannot yet be specified in the patch")),
            _ => return Err(unknown_directive(directive, fields)),
        }
    }
    if !gone.is_empty() {
        original.retain(|live| live.get(key).is_none_or(|value| !gone.contains(&value.to_string())));
    }
    Ok(if replace { (rest, Vec::new()) } else { (original, rest) })
}

/// Merges items into those with the same key and appends the others.
fn merge_items(
    mut list: Vec<Value>,
    patch: &[Value],
    key: &str,
    schema: Option<&Schema>,
) -> Result<Vec<Value>, Status> {
    let mut places = std::collections::HashMap::new();
    for (place, item) in list.iter().enumerate() {
        if let Some(value) = item.get(key) {
            places.entry(value.to_string()).or_insert(place);
        }
    }
    for item in patch {
        let Value::Object(fields) = item else { return Err(wrong_type("map[string]interface {}", item)) };
        let value = fields.get(key).ok_or_else(|| no_merge_key(fields, key))?.to_string();
        let Some(place) = places.get(&value) else {
            places.insert(value, list.len());
            list.push(item.clone());
            continue;
        };
        let Value::Object(live) = list[*place].take() else { return Err(broken("value for key is not a map")) };
        list[*place] = Value::Object(merge_objects(live, fields.clone(), schema)?);
    }
    Ok(list)
}

fn without_nulls(mut value: Value) -> Value {
    fn drop_nulls(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.retain(|_, value| !value.is_null());
                fields.values_mut().for_each(drop_nulls);
            }
            Value::Array(items) => items.iter_mut().for_each(drop_nulls),
            _ => {}
        }
    }
    drop_nulls(&mut value);
    value
}

/// A new value without the objects in it that are directives; none if it is one itself.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(fields) if fields.contains_key(PATCH) => None,
        Value::Object(fields) => {
            let kept = fields.into_iter().filter_map(|(key, value)| Some((key, without_directives(value)?)));
            Some(Value::Object(kept.collect()))
        }
        Value::Array(items) => Some(Value::Array(kept_items(items))),
        other => Some(other),
    }
}

fn kept_items(items: Vec<Value>) -> Vec<Value> {
    items.into_iter().filter_map(without_directives).collect()
}

#[cfg(test)]
mod tests;
