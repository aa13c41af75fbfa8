//! Events live under two groups; one form is stored: that of the core group.

use serde_json::{Map, Value};

use crate::decode;
use crate::kind::Kind;
use crate::kinds::Registry;

/// Two names of one field.
type Names = (&'static str, &'static str);

/// Fields that have another name in `events.k8s.io/v1`: the name in the core group, the name there.
const RENAMED: &[Names] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// Turns an object of this kind into the form in which it is stored. Nothing changes for any kind but Events of
/// `events.k8s.io`.
pub fn to_stored(kind: &Kind, object: &mut Value) {
    if !is_new_event(kind) {
        return;
    }
    rename(object, "v1", |(core, new)| (*new, *core));
    if let Some(core) = Registry::builtin().by_gvk("", "v1", "Event") {
        decode::normalize(core, object);
    }
}

/// Turns a stored object into the form of this kind; the inverse of [`to_stored`].
pub fn from_stored(kind: &Kind, object: &mut Value) {
    if is_new_event(kind) {
        rename(object, "events.k8s.io/v1", |(core, new)| (*core, *new));
        decode::normalize(kind, object);
    }
}

fn is_new_event(kind: &Kind) -> bool {
    kind.group == "events.k8s.io" && kind.kind == "Event"
}

/// Renames the fields of an object in place, keeping their order.
fn rename(object: &mut Value, api_version: &str, pair: fn(&Names) -> Names) {
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
    use serde_json::json;

    use super::*;

    #[test]
    fn a_new_event_is_stored_as_a_core_event_and_comes_back_the_same() {
        let kind = Registry::builtin().by_gvk("events.k8s.io", "v1", "Event").unwrap();
        let mut original = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"},
            "note": "m", "regarding": {"kind": "Pod"}, "reportingController": "c", "reportingInstance": "i"});
        decode::normalize(kind, &mut original);
        let mut object = original.clone();
        to_stored(kind, &mut object);
        assert_eq!(
            object,
            json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "message": "m",
                "involvedObject": {"kind": "Pod"}, "reportingComponent": "c", "reportingInstance": "i", "source": {},
                "eventTime": null, "firstTimestamp": null, "lastTimestamp": null})
        );
        from_stored(kind, &mut object);
        assert_eq!(object, original);
    }

    #[test]
    fn a_core_event_without_a_reporter_has_none_in_the_new_form() {
        let kind = Registry::builtin().by_gvk("events.k8s.io", "v1", "Event").unwrap();
        let mut object = json!({"apiVersion": "v1", "kind": "Event", "metadata": {}, "reportingComponent": "",
            "reportingInstance": "", "source": {"component": "c"}, "eventTime": null});
        from_stored(kind, &mut object);
        assert_eq!(object["apiVersion"], "events.k8s.io/v1");
        assert_eq!(object["deprecatedSource"], json!({"component": "c"}));
        assert!(object.get("reportingController").is_none());
    }
}
