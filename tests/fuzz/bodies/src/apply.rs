//! Server-side apply, and who owns which fields.

use carob_api::apply::{self, Manager, Operation, track_update};
use carob_api::kind::Kind;
use serde_json::Value;

use crate::objects;
use crate::source::Source;

fn manager(name: &str, operation: Operation) -> Manager<'_> {
    Manager { name, operation, subresource: "", time: "2026-01-02T03:04:05Z" }
}

/// Two appliers and an updater at one object. What was applied is there, and applying it again changes nothing.
pub fn apply(data: &[u8]) {
    let mut source = Source::new(data);
    let kind = objects::kind(&mut source);
    let first = objects::object(&mut source, kind);
    let Some(made) = settled(kind, None, &first, "first") else { return };

    let mut updated = made.clone();
    if let Some(metadata) = updated.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("annotations".to_owned(), serde_json::json!({ "by": objects::text(&mut source) }));
    }
    track_update(kind, Some(&made), &mut updated, &manager("updater", Operation::Update));

    let second = objects::object(&mut source, kind);
    let Some(both) = settled(kind, Some(&updated), &second, "second") else { return };
    settled(kind, Some(&both), &first, "first");
}

/// The object after an apply by force, which is looked at and applied again.
fn settled(kind: &Kind, live: Option<&Value>, config: &Value, name: &str) -> Option<Value> {
    let manager = manager(name, Operation::Apply);
    let once = apply::apply(kind, live, config, &manager, true).ok()?.object;
    let mut place = Vec::new();
    assert!(holds(&once, config, &mut place), "{} lost .{}\n{config}\n{once}", kind.kind, place.join("."));
    // Who applies only what is nobody's manages nothing; for the next one the object was there before it was managed.
    once.pointer("/metadata/managedFields")?;
    let again = apply::apply(kind, Some(&once), config, &manager, false);
    let again = again.unwrap_or_else(|status| panic!("{}: {}\n{config}", kind.kind, status.message()));
    assert_eq!(again.object, once, "applying twice to {}\n{config}", kind.kind);
    assert!(!again.changed);
    Some(once)
}

/// Whether an object has what a config says, as far as no lists lie between.
fn holds(object: &Value, config: &Value, place: &mut Vec<String>) -> bool {
    match (object, config) {
        (Value::Object(found), Value::Object(wanted)) => wanted.iter().all(|(key, value)| {
            place.push(key.clone());
            let ok = is_nothing(value) || found.get(key).is_some_and(|found| holds(found, value, place));
            if ok {
                place.pop();
            }
            ok
        }),
        (Value::Array(found), Value::Array(wanted)) => !found.is_empty() || wanted.iter().all(is_nothing),
        (found, wanted) => found == wanted || found.as_f64().is_some() && found.as_f64() == wanted.as_f64(),
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.values().all(is_nothing),
        Value::Array(items) => items.iter().all(is_nothing),
        _ => false,
    }
}
