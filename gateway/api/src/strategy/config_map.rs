//! ConfigMap: keys, sizes, immutability.

use std::collections::BTreeSet;

use serde_json::Value;

use super::BASE;
use crate::field::{ErrorList, Path};
use crate::kind::{Part, Strategy};
use crate::validation::json::{entries, flag, get, map};
use crate::validation::names;

/// What is peculiar to ConfigMaps.
pub const STRATEGY: Strategy = Strategy { default, validate, validate_update, ..BASE };

/// What all values of a ConfigMap or a Secret may take together.
pub const DATA_MAX_BYTES: usize = 1 << 20;

/// A null value is an empty one: the map's values are plain strings.
fn default(object: &mut Value) {
    for field in ["data", "binaryData"] {
        empty_for_null(object, field);
    }
}

/// Turns null values of a map of strings into empty ones, and drops an empty map.
pub fn empty_for_null(object: &mut Value, field: &str) {
    let Some(entries) = object.get_mut(field).and_then(Value::as_object_mut) else { return };
    for value in entries.values_mut().filter(|value| value.is_null()) {
        *value = Value::from("");
    }
    if entries.is_empty()
        && let Some(object) = object.as_object_mut()
    {
        object.shift_remove(field);
    }
}

fn validate(object: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut size = 0;
    let binary: BTreeSet<&str> = entries(object, "binaryData").map(|(key, _)| key.as_str()).collect();
    for (key, value) in entries(object, "data") {
        errors.extend(key_errors(key, &Path::new("data")));
        if binary.contains(key.as_str()) {
            errors.push(Path::new("data").key(key).invalid(key.as_str(), "duplicate of key present in binaryData"));
        }
        size += value.as_str().map_or(0, str::len);
    }
    for (key, value) in entries(object, "binaryData") {
        errors.extend(key_errors(key, &Path::new("binaryData")));
        size += decoded_len(value.as_str().unwrap_or(""));
    }
    if size > DATA_MAX_BYTES {
        errors.push(Path::root().key("").too_long(DATA_MAX_BYTES));
    }
    errors
}

/// What is wrong with a key of a ConfigMap or a Secret.
pub fn key_errors(key: &str, path: &Path) -> ErrorList {
    names::config_key(key).into_iter().map(|text| path.key(key).invalid(key, text)).collect()
}

/// How many bytes a base64 text stands for.
pub fn decoded_len(base64: &str) -> usize {
    let padding = base64.bytes().rev().take_while(|b| *b == b'=').count();
    (base64.len() / 4 * 3).saturating_sub(padding)
}

fn validate_update(new: &Value, old: &Value, _: Part) -> ErrorList {
    let mut errors = immutable(new, old, &["data", "binaryData"]);
    errors.extend(validate(new));
    errors
}

/// Once `immutable` is set it stays, and so does the data.
pub fn immutable(new: &Value, old: &Value, fields: &[&str]) -> ErrorList {
    let mut errors = ErrorList::new();
    if !flag(old, "immutable") {
        return errors;
    }
    let why = "field is immutable when `immutable` is set";
    if !flag(new, "immutable") {
        errors.push(Path::new("immutable").forbidden(why));
    }
    for field in fields {
        let empty = |value: &Value| map(value, field).is_none_or(serde_json::Map::is_empty);
        if get(new, field) != get(old, field) && !(empty(new) && empty(old)) {
            errors.push(Path::new(field).forbidden(why));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_are_checked_and_may_not_be_in_both_maps() {
        let errors = validate(&json!({"data": {"a b": "x", "..": "y", "c": "z"}, "binaryData": {"c": "AA=="}}));
        let paths: Vec<&str> = errors.iter().map(|error| error.path.as_str()).collect();
        assert_eq!(paths, ["data[a b]", "data[..]", "data[c]"]);
        assert_eq!(errors[1].detail, "must not be '..'");
    }

    #[test]
    fn a_mebibyte_is_the_most() {
        let errors = validate(&json!({"data": {"a": "x".repeat(DATA_MAX_BYTES + 1)}}));
        assert_eq!(errors[0].to_string(), "[]: Too long: may not be more than 1048576 bytes");
    }

    #[test]
    fn immutable_stays_immutable() {
        let old = json!({"immutable": true, "data": {"x": "1"}});
        let why = "Forbidden: field is immutable when `immutable` is set";
        let change = |new: Value| -> Vec<String> {
            validate_update(&new, &old, Part::Main).iter().map(ToString::to_string).collect()
        };
        assert_eq!(change(json!({"immutable": true, "data": {"x": "2"}})), [format!("data: {why}")]);
        assert_eq!(change(json!({"data": {"x": "1"}})), [format!("immutable: {why}")]);
        assert!(change(json!({"immutable": true, "data": {"x": "1"}, "metadata": {"labels": {"l": "m"}}})).is_empty());
    }
}
