//! Patches of objects.

use carob_api::patch::{json_patch, merge_patch, strategic_merge};
use serde_json::{Map, Value, json};

use crate::object::stored;
use crate::objects;
use crate::source::Source;

/// What a patch may at most make of an object, beyond what both have: copies are bounded.
const MOST_GROWTH: usize = 16 << 20;

/// A JSON patch of operations on places that the object has and has not, or, every other time, of plain bytes.
pub fn json(data: &[u8]) {
    let mut source = Source::new(data);
    let doc = json!({"metadata": {"name": "a", "labels": {"a/b": "c", "~": "d"}}, "list": [1, [2, {"x": null}], "3"], "": {"": 0}});
    if source.one_in(2) {
        let patch = source.rest();
        if let Ok(new) = json_patch(&doc, patch) {
            assert!(new.to_string().len() <= doc.to_string().len() + patch.len() + MOST_GROWTH);
        }
        return;
    }
    assert_eq!(json_patch(&doc, b"[]").expect("nothing to do"), doc);
    let mut operations = Vec::new();
    while !source.is_empty() && operations.len() < 64 {
        operations.push(operation(&mut source));
    }
    let patch = Value::from(operations).to_string();
    let Ok(new) = json_patch(&doc, patch.as_bytes()) else { return };
    // What came out can be asked for.
    let test = json!([{"op": "test", "path": "", "value": new}]).to_string();
    assert_eq!(json_patch(&new, test.as_bytes()).expect("it is so"), new);
}

fn operation(source: &mut Source<'_>) -> Value {
    const OPERATIONS: &[&str] = &["add", "remove", "replace", "move", "copy", "test", "nope"];
    const PATHS: &[&str] = &[
        "",
        "/",
        "//",
        "/metadata",
        "/metadata/name",
        "/metadata/labels/a~1b",
        "/metadata/labels/~0",
        "/list",
        "/list/0",
        "/list/-",
        "/list/-1",
        "/list/1/1/x",
        "/list/99999999999999999999",
        "/list/00",
        "/new",
        "/new/new",
        "list",
        "/list/1",
    ];
    let mut operation = json!({"op": source.pick(OPERATIONS), "path": source.pick(PATHS)});
    if !source.one_in(8) {
        operation["value"] = objects::any(source, 4);
    }
    if !source.one_in(4) {
        operation["from"] = (*source.pick(PATHS)).into();
    }
    operation
}

/// A merge patch of an object of any kind.
pub fn merge(data: &[u8]) {
    let mut source = Source::new(data);
    let kind = objects::kind(&mut source);
    let doc = objects::object(&mut source, kind);
    assert_eq!(merge_patch(&doc, b"{}").expect("nothing to do"), doc);
    let bare = without_nulls(doc.clone());
    assert_eq!(merge_patch(&bare, bare.to_string().as_bytes()).expect("itself"), bare, "what is so already");
    let patch = if source.one_in(2) { objects::object(&mut source, kind) } else { objects::any(&mut source, 0) };
    let patch = patch.to_string();
    let Ok(once) = merge_patch(&doc, patch.as_bytes()) else { return };
    assert_eq!(merge_patch(&once, patch.as_bytes()).expect("again"), once, "merging twice");
}

/// A strategic merge patch of an object of any kind, with directives here and there.
pub fn strategic(data: &[u8]) {
    let mut source = Source::new(data);
    let kind = objects::kind(&mut source);
    let Some(doc) = stored(&mut source, kind) else { return };
    assert_eq!(strategic_merge(kind, &doc, b"{}").expect("nothing to do"), doc);
    let mut patch = without_nulls(objects::object(&mut source, kind));
    let directed = source.one_in(2);
    if directed {
        direct(&mut source, &mut patch);
    }
    let text = patch.to_string();
    let Ok(once) = strategic_merge(kind, &doc, text.as_bytes()) else { return };
    let size = |value: &Value| value.to_string().len();
    assert!(size(&once) <= size(&doc) + text.len() + 16, "a merge holds no more than both");
    // An item without its key is taken where there was no list, and is in the way the next time.
    let again = strategic_merge(kind, &once, text.as_bytes());
    if let Ok(again) = again
        && !directed
        && is_plain(&patch)
    {
        assert_eq!(again, once, "merging twice");
    }
}

/// Puts directives into some objects of a patch.
fn direct(source: &mut Source<'_>, patch: &mut Value) {
    const DIRECTIVES: &[&str] =
        &["$patch", "$retainKeys", "$setElementOrder/containers", "$deleteFromPrimitiveList/finalizers"];
    match patch {
        Value::Object(fields) => {
            fields.values_mut().for_each(|value| direct(source, value));
            if source.one_in(4) {
                let value = match source.below(5) {
                    0 => "delete".into(),
                    1 => "replace".into(),
                    2 => json!([{"name": "a"}, {"name": "b"}]),
                    3 => json!(["a", "b"]),
                    _ => objects::any(source, 6),
                };
                fields.insert((*source.pick(DIRECTIVES)).to_owned(), value);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| direct(source, item)),
        _ => {}
    }
}

/// Whether no key is a directive and no list can have a key twice, which is what merging twice needs to end where it
/// began.
fn is_plain(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.iter().all(|(key, value)| !key.starts_with('$') && is_plain(value)),
        Value::Array(items) => items.len() < 2 && items.iter().all(is_plain),
        _ => true,
    }
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(key, value)| (key, without_nulls(value))).collect::<Map<_, _>>())
        }
        Value::Array(items) => items.into_iter().filter(|item| !item.is_null()).map(without_nulls).collect(),
        other => other,
    }
}

/// Patches as they are sent.
pub fn json_seeds() -> Vec<Vec<u8>> {
    let patches = [
        json!([{"op": "add", "path": "/list/-", "value": 1}, {"op": "copy", "from": "/list", "path": "/list/-"}, {"op": "move", "from": "/list/0", "path": "/x"}]),
        json!([{"op": "test", "path": "/metadata/name", "value": "a"}, {"op": "remove", "path": "/metadata/labels/a~1b"}]),
    ];
    // An odd byte first: the rest is the patch.
    patches.iter().map(|patch| [&[1][..], patch.to_string().as_bytes()].concat()).collect()
}
