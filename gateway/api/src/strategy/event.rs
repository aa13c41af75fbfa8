//! Event, in its two faces: `v1` and `events.k8s.io/v1`. They are one object with two sets of field names.

use serde_json::{Map, Value, json};

use super::{BASE, at, metadata_field, set_default};
use crate::field::{ErrorList, Path};
use crate::kind::{Part, StoredForm, Strategy};
use crate::validation::json::{dig, get, int, str_at};
use crate::validation::names;

/// What is peculiar to Events of the core group.
pub const STRATEGY: Strategy = Strategy {
    default: default_core,
    validate: |event| validate(event, "reportingComponent"),
    validate_update: |new, _, _: Part| validate(new, "reportingComponent"),
    validate_name: path_segment,
    field: core_field,
    create_on_update: true,
    ..BASE
};

/// What is peculiar to Events of `events.k8s.io`.
pub const EVENTS_STRATEGY: Strategy = Strategy {
    default: default_events,
    validate: validate_new,
    validate_update: |new, old, _: Part| validate_new_update(new, old),
    field: events_field,
    create_on_update: true,
    ..BASE
};

/// Events of `events.k8s.io` are stored as those of the core group.
pub const STORED: StoredForm = StoredForm { group: "", version: "v1", plural: "events", to: to_core, from: from_core };

/// What is called otherwise in the other face: core, then `events.k8s.io`.
const RENAMED: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// The event of `events.k8s.io` as one of the core group, its form in the store.
pub fn to_core(event: &Value) -> Value {
    let mut core = renamed(event, "v1", |name| RENAMED.iter().find(|(_, new)| *new == name).map(|(old, _)| *old));
    default_core(&mut core);
    core
}

/// The event of the core group as one of `events.k8s.io`.
pub fn from_core(event: &Value) -> Value {
    let mut new =
        renamed(event, "events.k8s.io/v1", |name| RENAMED.iter().find(|(old, _)| *old == name).map(|(_, new)| *new));
    if let Some(fields) = new.as_object_mut() {
        for field in ["reportingController", "reportingInstance"] {
            if fields.get(field).is_some_and(|value| value == "") {
                fields.shift_remove(field);
            }
        }
    }
    default_events(&mut new);
    new
}

fn renamed(event: &Value, version: &str, name: impl Fn(&str) -> Option<&'static str>) -> Value {
    let mut fields = Map::new();
    for (field, value) in event.as_object().into_iter().flatten() {
        let value = if field == "apiVersion" { Value::from(version) } else { value.clone() };
        fields.insert(name(field).unwrap_or(field).to_owned(), value);
    }
    Value::Object(fields)
}

fn default_core(event: &mut Value) {
    let Some(fields) = event.as_object_mut() else { return };
    set_default(fields, "involvedObject", json!({}));
    set_default(fields, "source", json!({}));
    for (field, zero) in [
        ("firstTimestamp", Value::Null),
        ("lastTimestamp", Value::Null),
        ("eventTime", Value::Null),
        ("reportingComponent", Value::from("")),
        ("reportingInstance", Value::from("")),
    ] {
        set_default(fields, field, zero);
    }
}

fn default_events(event: &mut Value) {
    let Some(fields) = event.as_object_mut() else { return };
    set_default(fields, "regarding", json!({}));
    set_default(fields, "deprecatedSource", json!({}));
    for field in ["eventTime", "deprecatedFirstTimestamp", "deprecatedLastTimestamp"] {
        set_default(fields, field, Value::Null);
    }
}

/// The rules of the core group, also for the other one once its fields have the core's names.
fn validate(event: &Value, controller_field: &str) -> ErrorList {
    let mut errors = ErrorList::new();
    let namespace = event.get("metadata").map_or("", |metadata| str_at(metadata, "namespace"));
    let about = event.get("involvedObject").map_or("", |object| str_at(object, "namespace"));
    let timed = get(event, "eventTime").is_some();
    let fits = match (about, timed) {
        ("", false) => namespace.is_empty() || namespace == "default",
        ("", true) => namespace == "default" || namespace == "kube-system",
        (about, false) => about == namespace,
        (_, true) => true,
    };
    if !fits {
        let path = Path::new("involvedObject").child("namespace");
        errors.push(path.invalid(about, "does not match event.namespace"));
    }
    if timed {
        let controller = str_at(event, "reportingComponent");
        let path = Path::new(controller_field);
        if controller.is_empty() {
            errors.push(path.required(""));
        }
        errors.extend(names::qualified_name(controller).into_iter().map(|text| path.invalid(controller, text)));
        for field in ["reportingInstance", "action", "reason"] {
            let text = str_at(event, field);
            if text.is_empty() {
                errors.push(Path::new(field).required(""));
            }
            if text.len() > 128 {
                errors.push(Path::new(field).invalid("", "can have at most 128 characters"));
            }
        }
        if str_at(event, "message").len() > 1024 {
            errors.push(Path::new("message").invalid("", "can have at most 1024 characters"));
        }
    }
    let path = Path::new("namespace");
    errors.extend(names::dns1123_subdomain(namespace).into_iter().map(|text| path.invalid(namespace, text)));
    errors
}

/// `events.k8s.io` wants the new fields, and the old ones unset.
fn validate_new(event: &Value) -> ErrorList {
    let core = to_core(event);
    let mut errors = validate(&core, "reportingController");
    errors.extend(series_errors(&core));
    if get(&core, "eventTime").is_none() {
        errors.push(Path::new("eventTime").required(""));
    }
    let kind = str_at(&core, "type");
    if !matches!(kind, "Normal" | "Warning") {
        errors.push(Path::new("type").invalid("", format!("has invalid value: {kind}")));
    }
    for field in ["firstTimestamp", "lastTimestamp"] {
        if get(&core, field).is_some() {
            errors.push(Path::new(field).invalid("", "needs to be unset"));
        }
    }
    if int(&core, "count").unwrap_or(0) != 0 {
        errors.push(Path::new("count").invalid("", "needs to be unset"));
    }
    if dig(&core, &["source"]).is_some_and(|source| source != &json!({})) {
        errors.push(Path::new("source").invalid("", "needs to be unset"));
    }
    errors
}

fn series_errors(core: &Value) -> ErrorList {
    let Some(series) = get(core, "series") else { return ErrorList::new() };
    let mut errors = ErrorList::new();
    if int(series, "count").unwrap_or(0) < 2 {
        errors.push(Path::new("series.count").invalid("", "should be at least 2"));
    }
    if get(series, "lastObservedTime").is_none() {
        errors.push(Path::new("series.lastObservedTime").required(""));
    }
    errors
}

/// What an update through `events.k8s.io` may not change; the names are the core's.
const IMMUTABLE: [&str; 12] = [
    "involvedObject",
    "reason",
    "message",
    "source",
    "firstTimestamp",
    "lastTimestamp",
    "count",
    "eventTime",
    "type",
    "action",
    "related",
    "reportingComponent",
];

fn validate_new_update(new: &Value, old: &Value) -> ErrorList {
    let (new, old) = (to_core(new), to_core(old));
    let mut errors = validate(&new, "reportingController");
    if get(&new, "series") != get(&old, "series") {
        errors.extend(series_errors(&new));
    }
    for field in IMMUTABLE.into_iter().chain(["reportingInstance"]) {
        errors.extend(crate::validation::metadata::immutable(get(&new, field), get(&old, field), &Path::new(field)));
    }
    errors
}

/// A name that can be a segment of a URL's path: all that is asked of an Event's.
fn path_segment(name: &str) -> Vec<String> {
    match name {
        "." | ".." => vec![format!("may not be '{name}'")],
        _ => ['/', '%'].iter().filter(|c| name.contains(**c)).map(|c| format!("may not contain '{c}'")).collect(),
    }
}

fn core_field(event: &Value, field: &str) -> Option<String> {
    match field {
        "involvedObject.kind"
        | "involvedObject.namespace"
        | "involvedObject.name"
        | "involvedObject.uid"
        | "involvedObject.apiVersion"
        | "involvedObject.resourceVersion"
        | "involvedObject.fieldPath"
        | "reason"
        | "reportingComponent"
        | "type" => Some(at(event, field)),
        "source" => {
            let component = at(event, "source.component");
            Some(if component.is_empty() { at(event, "reportingComponent") } else { component })
        }
        _ => metadata_field(event, field),
    }
}

/// Selectors of `events.k8s.io`. The event may have either face: it is stored as a core one.
fn events_field(event: &Value, field: &str) -> Option<String> {
    let either = |new: &str, old: &str| {
        let value = at(event, new);
        Some(if value.is_empty() { at(event, old) } else { value })
    };
    match field {
        "reason" | "type" => Some(at(event, field)),
        "reportingController" => either(field, "reportingComponent"),
        "regarding.kind" => either(field, "involvedObject.kind"),
        "regarding.namespace" => either(field, "involvedObject.namespace"),
        "regarding.name" => either(field, "involvedObject.name"),
        "regarding.uid" => either(field, "involvedObject.uid"),
        _ => metadata_field(event, field),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn causes(errors: &ErrorList) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_event_is_where_its_object_is() {
        let event = json!({"metadata": {"name": "e", "namespace": "a"}, "involvedObject": {"namespace": "other"}});
        assert_eq!(
            causes(&(STRATEGY.validate)(&event)),
            ["involvedObject.namespace: Invalid value: \"other\": does not match event.namespace"]
        );
        let event = json!({"metadata": {"name": "e", "namespace": "a"}, "involvedObject": {"namespace": "a"}});
        assert!((STRATEGY.validate)(&event).is_empty());
    }

    #[test]
    fn a_timed_event_names_its_reporter() {
        let event = json!({"metadata": {"name": "e", "namespace": "a"}, "involvedObject": {"namespace": "a"},
                           "eventTime": "2024-01-01T00:00:00.000000Z"});
        let paths: Vec<String> = (STRATEGY.validate)(&event).into_iter().map(|error| error.path).collect();
        assert_eq!(
            paths,
            ["reportingComponent", "reportingComponent", "reportingComponent", "reportingInstance", "action", "reason"]
        );
    }

    #[test]
    fn both_faces_hold_the_same() {
        let core = json!({"kind": "Event", "apiVersion": "v1", "metadata": {"name": "e"},
            "involvedObject": {"kind": "Pod"}, "reason": "R", "message": "m", "source": {"component": "c"},
            "firstTimestamp": "2024-01-01T00:00:00Z", "lastTimestamp": null, "count": 1, "eventTime": null,
            "reportingComponent": "", "reportingInstance": ""});
        let new = from_core(&core);
        assert_eq!(
            new,
            json!({"kind": "Event", "apiVersion": "events.k8s.io/v1", "metadata": {"name": "e"},
                "regarding": {"kind": "Pod"}, "reason": "R", "note": "m", "deprecatedSource": {"component": "c"},
                "deprecatedFirstTimestamp": "2024-01-01T00:00:00Z", "deprecatedLastTimestamp": null,
                "deprecatedCount": 1, "eventTime": null})
        );
        assert_eq!(to_core(&new), core);
    }
}
