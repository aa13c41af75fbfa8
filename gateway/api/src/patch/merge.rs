//! JSON merge patch: objects are merged, null removes, everything else replaces.

use std::collections::HashSet;

use serde_json::{Map, Value};

use crate::status::Status;

pub(super) fn apply(doc: &Value, patch: Map<String, Value>) -> Result<Value, Status> {
    let Value::Object(doc) = doc else { return Err(Status::bad_request("Invalid JSON Document")) };
    let mut doc = doc.clone();
    merge(&mut doc, patch);
    Ok(Value::Object(doc))
}

fn merge(doc: &mut Map<String, Value>, patch: Map<String, Value>) {
    // They go all at once: taking one out moves those behind it.
    let mut gone = HashSet::new();
    for (key, value) in patch {
        match (doc.get_mut(&key), value) {
            (found, Value::Null) => {
                if found.is_some() {
                    gone.insert(key);
                }
            }
            (Some(Value::Object(old)), Value::Object(new)) => merge(old, new),
            (_, mut value) => {
                drop_nulls(&mut value);
                doc.insert(key, value);
            }
        }
    }
    if !gone.is_empty() {
        doc.retain(|key, _| !gone.contains(key));
    }
}

/// What is new has nothing that its nulls could remove.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::merge_patch;
    use super::*;

    #[test]
    fn objects_merge_and_null_removes() {
        let doc = json!({"data": {"k": "v", "k2": "v2"}, "list": [1, 2]});
        for (patch, result) in [
            (json!({}), doc.clone()),
            (json!({"data": {"k": null, "n": "1"}}), json!({"data": {"k2": "v2", "n": "1"}, "list": [1, 2]})),
            (json!({"data": null, "list": [3]}), json!({"list": [3]})),
            (
                json!({"new": {"a": null, "b": [{"c": null}]}}),
                json!({"data": {"k": "v", "k2": "v2"}, "list": [1, 2], "new": {"b": [{}]}}),
            ),
            (json!({"data": 1}), json!({"data": 1, "list": [1, 2]})),
        ] {
            assert_eq!(merge_patch(&doc, patch.to_string().as_bytes()), Ok(result), "{patch}");
        }
    }

    #[test]
    fn bodies_that_are_no_object_are_bad_requests() {
        for (body, message) in [
            ("[]", "error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}"),
            ("x", "error decoding patch: invalid character 'x' looking for beginning of value"),
            ("{", "error decoding patch: unexpected end of JSON input"),
        ] {
            let status = merge_patch(&json!({}), body.as_bytes()).unwrap_err();
            assert_eq!((status.code(), status.message()), (400, message));
        }
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![(0..3_i32).prop_map(|n| json!(n)), Just(json!("s")), Just(json!([1, {"x": 2}]))];
        leaf.prop_recursive(3, 12, 3, |inner| {
            prop::collection::hash_map("[a-c]", inner, 0..3)
                .prop_map(|fields| Value::Object(fields.into_iter().collect()))
        })
    }

    /// The patch that leads from one object to the other.
    fn difference(from: &Value, to: &Value) -> Value {
        let (Some(from), Some(to)) = (from.as_object(), to.as_object()) else { return to.clone() };
        let mut patch = Map::new();
        for key in from.keys().filter(|key| !to.contains_key(*key)) {
            patch.insert(key.clone(), Value::Null);
        }
        for (key, value) in to {
            match from.get(key) {
                Some(old) if old == value => {}
                Some(old) if old.is_object() && value.is_object() => {
                    patch.insert(key.clone(), difference(old, value));
                }
                _ => {
                    patch.insert(key.clone(), value.clone());
                }
            }
        }
        Value::Object(patch)
    }

    proptest! {
        #[test]
        fn a_patch_and_its_reverse_lead_back(a in tree(), b in tree()) {
            let (a, b) = (json!({"t": a}), json!({"t": b}));
            let there = merge_patch(&a, difference(&a, &b).to_string().as_bytes()).unwrap();
            prop_assert_eq!(&there, &b);
            let back = merge_patch(&there, difference(&b, &a).to_string().as_bytes()).unwrap();
            prop_assert_eq!(back, a);
        }
    }
}
