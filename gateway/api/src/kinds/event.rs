//! Events live under two groups; one form is stored: that of the core group.

use serde_json::{Map, Value, json};

use crate::kind::Kind;

/// Fields that have another name in `events.k8s.io/v1`: the name in the core group, the name there.
const RENAMED: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// Fields of a core Event that are always there, and what they hold if nothing is known.
const CORE_ALWAYS: &[(&str, fn() -> Value)] =
    &[("reportingComponent", || json!("")), ("reportingInstance", || json!(""))];

/// Turns an object of this kind into the form in which it is stored. Nothing changes for any kind but Events of
/// `events.k8s.io`.
pub fn to_stored(kind: &Kind, object: &mut Value) {
    if kind.group == "events.k8s.io" && kind.kind == "Event" {
        rename(object, "v1", |(core, new)| (*new, *core));
        if let Value::Object(fields) = object {
            for (field, value) in CORE_ALWAYS {
                fields.entry(*field).or_insert_with(value);
            }
        }
    }
}

/// Turns a stored object into the form of this kind; the inverse of [`to_stored`].
pub fn from_stored(kind: &Kind, object: &mut Value) {
    if kind.group == "events.k8s.io" && kind.kind == "Event" {
        rename(object, "events.k8s.io/v1", |(core, new)| (*core, *new));
        if let Value::Object(fields) = object {
            for field in ["reportingController", "reportingInstance"] {
                if fields.get(field).and_then(Value::as_str) == Some("") {
                    fields.shift_remove(field);
                }
            }
        }
    }
}

/// Renames the fields of an object in place, keeping their order.
fn rename(
    object: &mut Value,
    api_version: &str,
    pair: fn(&(&'static str, &'static str)) -> (&'static str, &'static str),
) {
    let Value::Object(fields) = object else { return };
    let old = std::mem::take(fields);
    *fields = old
        .into_iter()
        .map(|(name, value)| {
            let renamed = RENAMED.iter().map(pair).find(|(from, _)| *from == name).map(|(_, to)| to.to_owned());
            (renamed.unwrap_or(name), value)
        })
        .collect::<Map<String, Value>>();
    fields.insert("apiVersion".into(), api_version.into());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::Registry;

    #[test]
    fn a_new_event_is_stored_as_a_core_event_and_comes_back_the_same() {
        let kind = Registry::builtin().by_gvk("events.k8s.io", "v1", "Event").unwrap();
        let original = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "note": "m",
            "regarding": {"kind": "Pod"}, "reportingController": "c", "reportingInstance": "i"});
        let mut object = original.clone();
        to_stored(kind, &mut object);
        assert_eq!(
            object,
            json!({"apiVersion": "v1", "kind": "Event", "message": "m", "involvedObject": {"kind": "Pod"},
                "reportingComponent": "c", "reportingInstance": "i"})
        );
        from_stored(kind, &mut object);
        assert_eq!(object, original);
    }
}
