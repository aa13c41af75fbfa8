//! JSON Patch with the liberties that Kubernetes' library takes: `replace` adds a missing key, indices may be negative,
//! `copy` of a missing key gives null.

use serde_json::{Map, Value};

use super::go_text;
use crate::status::{Details, Status};

/// A patch may have so many operations.
pub const MAX_OPERATIONS: usize = 10_000;

/// All `copy` operations of a patch together may copy so many bytes.
pub const MAX_COPIED_BYTES: usize = 3 * 1024 * 1024;

/// Objects may be nested so deep: recursion over a deeper one could exhaust a thread's stack.
const MAX_DEPTH: usize = 512;

/// All operations together may move so many items of lists: ten thousand at the front of a list of twenty thousand.
const MAX_SHIFTED: usize = 200_000_000;

/// An operation that cannot be carried out; the answer doesn't say why.
struct Failed;

/// What a patch has used of its allowances so far.
struct Used {
    /// Bytes copied.
    copied: usize,
    /// The object is nested no deeper than this.
    depth: usize,
    /// Items of lists moved, to make room or close a gap.
    shifted: usize,
}

impl Used {
    /// So many items of a list have to move.
    fn shift(&mut self, items: usize) -> Result<(), Failed> {
        self.shifted += items;
        if self.shifted > MAX_SHIFTED { Err(Failed) } else { Ok(()) }
    }

    /// Something nested `depth` deep is put at the path.
    fn nest(&mut self, path: &str, depth: usize) -> Result<(), Failed> {
        self.depth = self.depth.max(levels(path) + depth);
        if self.depth > MAX_DEPTH { Err(Failed) } else { Ok(()) }
    }

    /// What is at one path is put at another; without looking at it, it is as deep as anything there could be.
    fn nest_again(&mut self, from: &str, path: &str) -> Result<(), Failed> {
        self.nest(path, self.depth.saturating_sub(levels(from)))
    }
}

fn levels(path: &str) -> usize {
    path.bytes().filter(|b| *b == b'/').count()
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

pub(super) fn apply(doc: &Value, patch: &[u8]) -> Result<Value, Status> {
    let operations = decode(patch).map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?;
    if operations.len() > MAX_OPERATIONS {
        let count = operations.len();
        return Err(Status::too_large(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {count}"
        )));
    }
    let mut doc = doc.clone();
    let mut used = Used { copied: 0, depth: depth(&doc), shifted: 0 };
    for operation in &operations {
        run(&mut doc, operation, &mut used).map_err(|Failed| {
            Status::generic(422, "Invalid", "the server rejected our request due to an error in our request")
                .with_details(Details::default())
        })?;
    }
    Ok(doc)
}

fn decode(patch: &[u8]) -> Result<Vec<Map<String, Value>>, String> {
    let into = "[]handlers.jsonPatchOp";
    let mismatch =
        |found: &Value, into: &str| Err(format!("json: cannot unmarshal {} into Go {into}", go_text::json_type(found)));
    let items = match serde_json::from_slice(patch) {
        Ok(Value::Array(items)) => items,
        Ok(Value::Null) => Vec::new(),
        Ok(other) => return mismatch(&other, &format!("value of type {into}")),
        Err(error) => return Err(go_text::syntax_error(patch, &error)),
    };
    let mut operations = Vec::with_capacity(items.len());
    for item in items {
        let operation = match item {
            Value::Object(operation) => operation,
            Value::Null => Map::new(),
            other => return mismatch(&other, "value of type handlers.jsonPatchOp"),
        };
        for name in ["op", "from", "path"] {
            match operation.get(name) {
                None | Some(Value::Null | Value::String(_)) => {}
                Some(other) => return mismatch(other, &format!("struct field jsonPatchOp.{name} of type string")),
            }
        }
        operations.push(operation);
    }
    Ok(operations)
}

fn run(doc: &mut Value, operation: &Map<String, Value>, used: &mut Used) -> Result<(), Failed> {
    let text = |name: &str| operation.get(name).and_then(Value::as_str);
    let value = || operation.get("value").cloned().unwrap_or(Value::Null);
    let path = text("path").ok_or(Failed)?;
    match text("op").ok_or(Failed)? {
        "add" => {
            let value = value();
            used.nest(path, depth(&value))?;
            add(doc, path, value, used)
        }
        "remove" => remove(doc, path, used).map(drop),
        "replace" if path.is_empty() => {
            let value = value();
            if !(value.is_object() || value.is_array()) {
                return Err(Failed);
            }
            *doc = value;
            Ok(())
        }
        "replace" => {
            let value = value();
            used.nest(path, depth(&value))?;
            replace(doc, path, value)
        }
        "move" => {
            let from = text("from").ok_or(Failed)?;
            let moved = remove(doc, from, used)?;
            used.nest_again(from, path)?;
            add(doc, path, moved, used)
        }
        "copy" => {
            let from = text("from").ok_or(Failed)?;
            let copy = get(doc, from)?.cloned().unwrap_or(Value::Null);
            used.copied += copy.to_string().len();
            if used.copied > MAX_COPIED_BYTES {
                return Err(Failed);
            }
            used.nest_again(from, path)?;
            add(doc, path, copy, used)
        }
        "test" => {
            let found = if path.is_empty() { Some(&*doc) } else { get(doc, path)? };
            let (found, wanted) = (found.unwrap_or(&Value::Null), operation.get("value").unwrap_or(&Value::Null));
            if equal(found, wanted) { Ok(()) } else { Err(Failed) }
        }
        _ => Err(Failed),
    }
}

fn add(doc: &mut Value, path: &str, value: Value, used: &mut Used) -> Result<(), Failed> {
    match container(doc, path)? {
        (Value::Object(fields), key) => {
            fields.insert(key, value);
        }
        (Value::Array(items), key) if key == "-" => items.push(value),
        (Value::Array(items), key) => {
            let at = index(&key, items.len() + 1).ok_or(Failed)?;
            used.shift(items.len() - at)?;
            items.insert(at, value);
        }
        _ => return Err(Failed),
    }
    Ok(())
}

fn remove(doc: &mut Value, path: &str, used: &mut Used) -> Result<Value, Failed> {
    match container(doc, path)? {
        // The order of keys means nothing, and keeping it would move all that are behind.
        (Value::Object(fields), key) => fields.swap_remove(&key).ok_or(Failed),
        (Value::Array(items), key) => {
            let at = index(&key, items.len()).ok_or(Failed)?;
            used.shift(items.len() - at)?;
            Ok(items.remove(at))
        }
        _ => Err(Failed),
    }
}

fn replace(doc: &mut Value, path: &str, value: Value) -> Result<(), Failed> {
    match container(doc, path)? {
        (Value::Object(fields), key) => {
            fields.insert(key, value);
        }
        (Value::Array(items), key) => {
            let at = index(&key, items.len()).ok_or(Failed)?;
            items[at] = value;
        }
        _ => return Err(Failed),
    }
    Ok(())
}

/// What is at a path: none if only the last key of it is missing.
fn get<'a>(doc: &'a Value, path: &str) -> Result<Option<&'a Value>, Failed> {
    let (parents, key) = split(path)?;
    let mut at = doc;
    for parent in parents {
        at = step(at, &parent).ok_or(Failed)?;
    }
    match at {
        Value::Object(fields) => Ok(fields.get(&key)),
        Value::Array(items) => index(&key, items.len()).map(|at| Some(&items[at])).ok_or(Failed),
        _ => Err(Failed),
    }
}

/// The object or list that holds the last key of a path, and that key.
fn container<'a>(doc: &'a mut Value, path: &str) -> Result<(&'a mut Value, String), Failed> {
    let (parents, key) = split(path)?;
    let mut at = doc;
    for parent in parents {
        at = match at {
            Value::Object(fields) => fields.get_mut(&parent),
            Value::Array(items) => index(&parent, items.len()).map(|at| &mut items[at]),
            _ => None,
        }
        .ok_or(Failed)?;
    }
    Ok((at, key))
}

fn step<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    match value {
        Value::Object(fields) => fields.get(key),
        Value::Array(items) => index(key, items.len()).map(|at| &items[at]),
        _ => None,
    }
}

/// The keys of a JSON pointer, the last one apart. What stands before the first slash is not looked at.
fn split(path: &str) -> Result<(Vec<String>, String), Failed> {
    let mut keys: Vec<String> = path.split('/').skip(1).map(|key| key.replace("~1", "/").replace("~0", "~")).collect();
    let last = keys.pop().ok_or(Failed)?;
    Ok((keys, last))
}

/// A place in a list of this length; negative numbers count from its end.
fn index(key: &str, length: usize) -> Option<usize> {
    let number: i64 = key.parse().ok()?;
    let at = if number < 0 { number.checked_add(i64::try_from(length).ok()?)? } else { number };
    usize::try_from(at).ok().filter(|at| *at < length)
}

/// Numbers are equal if they are the same number, `1` and `1.0`.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| equal(a, b)))
        }
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::json_patch;
    use super::*;

    fn doc() -> Value {
        json!({"data": {"k": "y"}, "metadata": {"labels": {"l": "1"}}, "list": [1, 2, 3]})
    }

    fn patched(patch: &Value) -> Result<Value, u16> {
        json_patch(&doc(), patch.to_string().as_bytes()).map_err(|status| status.code())
    }

    #[test]
    fn operations_that_work() {
        for (patch, pointer, expected) in [
            (json!([{"op": "add", "path": "/data/new", "value": "x"}]), "/data", json!({"k": "y", "new": "x"})),
            (json!([{"op": "replace", "path": "/data/nope", "value": "y"}]), "/data", json!({"k": "y", "nope": "y"})),
            (json!([{"op": "remove", "path": "/data/k"}]), "/data", json!({})),
            (
                json!([{"op": "test", "path": "/data/k", "value": "y"}, {"op": "replace", "path": "/data/k", "value": "z"}]),
                "/data",
                json!({"k": "z"}),
            ),
            (json!([{"op": "copy", "from": "/data/k", "path": "/data/c"}]), "/data", json!({"k": "y", "c": "y"})),
            (json!([{"op": "move", "from": "/data/k", "path": "/data/m"}]), "/data", json!({"m": "y"})),
            (
                json!([{"op": "add", "path": "/metadata/labels/a~1b~0", "value": "x"}]),
                "/metadata/labels",
                json!({"l": "1", "a/b~": "x"}),
            ),
            (json!([{"op": "add", "path": "/list/1", "value": 9}]), "/list", json!([1, 9, 2, 3])),
            (json!([{"op": "add", "path": "/list/-", "value": 9}]), "/list", json!([1, 2, 3, 9])),
            (json!([{"op": "add", "path": "/list/-1", "value": 9}]), "/list", json!([1, 2, 3, 9])),
            (json!([{"op": "remove", "path": "/list/-1"}]), "/list", json!([1, 2])),
            (json!([{"op": "replace", "path": "/list/0", "value": 0}]), "/list", json!([0, 2, 3])),
            (json!([{"op": "test", "path": "/data/missing", "value": null}]), "/list", json!([1, 2, 3])),
            (json!([{"op": "test", "path": "/list", "value": [1.0, 2, 3]}]), "/list", json!([1, 2, 3])),
        ] {
            let result = patched(&patch).unwrap_or_else(|code| panic!("{code}: {patch}"));
            assert_eq!(result.pointer(pointer), Some(&expected), "{patch}");
        }
    }

    #[test]
    fn operations_that_fail_are_unprocessable() {
        for operation in [
            json!({"op": "remove", "path": "/data/nope"}),
            json!({"op": "test", "path": "/data/k", "value": "wrong"}),
            json!({"op": "test", "path": "/nope/k", "value": null}),
            json!({"op": "nope", "path": "/data/k"}),
            json!({"op": "add", "path": "data", "value": "x"}),
            json!({"op": "add", "path": "/nope/x", "value": "x"}),
            json!({"op": "add", "path": "/list/5", "value": 1}),
            json!({"op": "add", "path": "/list/x", "value": 1}),
            json!({"op": "replace", "path": "/list/3", "value": 1}),
            json!({"op": "move", "from": "/data/nope", "path": "/data/x"}),
            json!({"op": "add"}),
            json!({"path": "/data"}),
        ] {
            assert_eq!(patched(&json!([operation])), Err(422), "{operation}");
        }
        let status = json_patch(&doc(), br#"[{"op": "remove", "path": "/x"}]"#).unwrap_err();
        assert_eq!(status.message(), "the server rejected our request due to an error in our request");
        assert_eq!(status.to_value()["details"], json!({}));
    }

    #[test]
    fn bodies_that_are_no_list_of_operations_are_bad_requests() {
        for (body, message) in [
            (r#"{"op": "add"}"#, "json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp"),
            ("[1]", "json: cannot unmarshal number into Go value of type handlers.jsonPatchOp"),
            (r#"[{"op": 1}]"#, "json: cannot unmarshal number into Go struct field jsonPatchOp.op of type string"),
        ] {
            let status = json_patch(&doc(), body.as_bytes()).unwrap_err();
            assert_eq!((status.code(), status.message()), (400, format!("error decoding patch: {message}").as_str()));
        }
    }

    #[test]
    fn the_number_of_operations_is_limited() {
        let many = vec![json!({"op": "test", "path": "/data/k", "value": "y"}); MAX_OPERATIONS + 1];
        assert_eq!(patched(&Value::Array(many)), Err(413));
    }

    #[test]
    fn copies_cannot_grow_an_object_without_bound() {
        let mut patch = vec![json!({"op": "add", "path": "/a", "value": {"x": "y".repeat(1000)}})];
        patch.extend((0..40).map(|n| json!({"op": "copy", "from": "/a", "path": format!("/a/{n}")})));
        assert_eq!(patched(&Value::Array(patch)), Err(422));
    }

    #[test]
    fn operations_cannot_nest_an_object_without_bound() {
        let deep = |levels: usize| "/a".repeat(levels);
        let build = |levels: usize| {
            json!((1..=levels).map(|n| json!({"op": "add", "path": deep(n), "value": {}})).collect::<Vec<_>>())
        };
        assert!(patched(&build(400)).is_ok());
        assert_eq!(patched(&build(600)).err(), Some(422));
    }

    proptest! {
        #[test]
        fn what_was_added_can_be_removed_again(key in "[a-z~/]{1,6}", value in "[a-z]{0,4}") {
            let path = format!("/data/{}", key.replace('~', "~0").replace('/', "~1"));
            prop_assume!(key != "k");
            let patch = json!([{"op": "add", "path": path, "value": value}, {"op": "test", "path": path, "value": value},
                {"op": "remove", "path": path}]);
            prop_assert_eq!(patched(&patch), Ok(doc()));
        }

        #[test]
        fn any_operation_is_answered(op in "add|remove|replace|move|copy|test", path in "(/(data|list|k|-|-1|0|3|~)){0,3}", from in "(/(data|list|k|0)){0,2}") {
            let _ = patched(&json!([{"op": op, "path": path, "from": from, "value": [1]}]));
        }
    }
}
