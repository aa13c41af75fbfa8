//! What each kind does differently: its defaults, its preparation for create and update, its validation.
//!
//! One file per kind exports a `STRATEGY`; [`BASE`] is what a kind without peculiarities does.

pub mod address;
pub mod admission_policy;
pub mod api_service;
pub mod certificate_signing_request;
pub mod config_map;
pub mod controller_revision;
pub mod cron_job;
pub mod csi;
pub mod custom_resource_definition;
pub mod daemon_set;
pub mod deployment;
pub mod device;
pub mod endpoint_slice;
pub mod endpoints;
pub mod event;
pub mod flow_control;
pub mod horizontal_pod_autoscaler;
pub mod ingress;
pub mod job;
pub mod lease;
pub mod limit_range;
pub mod mutating_policy;
pub mod namespace;
pub mod network_policy;
pub mod node;
pub mod persistent_volume;
pub mod persistent_volume_claim;
pub mod pod;
pub mod pod_disruption_budget;
pub mod pod_resources;
pub mod pod_spec;
pub mod pod_template;
pub mod priority_class;
pub mod rbac;
pub mod replica_set;
pub mod replication_controller;
pub mod resource_quota;
pub mod runtime_class;
pub mod secret;
pub mod service;
pub mod service_account;
pub mod stateful_set;
pub mod storage_class;
pub mod webhook_configuration;

use serde_json::{Map, Value, json};

use crate::field::ErrorList;
use crate::kind::{Part, Strategy};
use crate::validation::json::{str_at, text_or_null};
use crate::validation::names;

/// A namespaced kind without defaults, status or validation of its own.
pub const BASE: Strategy = Strategy {
    default: nothing,
    prepare_create: nothing,
    prepare_update: keep_generation,
    validate: always_valid,
    validate_update: always_valid_update,
    validate_name: names::dns1123_subdomain,
    warnings: no_warnings,
    warns_again: |_, _| true,
    field: metadata_field,
    default_grace_seconds: None,
    create_on_update: false,
    unconditional_update: true,
};

fn nothing(_: &mut Value) {}

/// [`Strategy::warns_again`] of what holds a template: clients aren't told again of one that stayed the same.
fn generation_differs(new: &Value, old: &Value) -> bool {
    differs(new, old, "/metadata/generation")
}

fn always_valid(_: &Value) -> ErrorList {
    ErrorList::new()
}

fn always_valid_update(_: &Value, _: &Value, _: Part) -> ErrorList {
    ErrorList::new()
}

fn no_warnings(_: &Value) -> Vec<String> {
    Vec::new()
}

/// The two fields by which every namespaced kind can be selected.
pub fn metadata_field(object: &Value, field: &str) -> Option<String> {
    match field {
        "metadata.name" | "metadata.namespace" => Some(at(object, field)),
        _ => None,
    }
}

/// The text at a dotted path; empty where there is none. Numbers and booleans are written out.
pub fn at(object: &Value, path: &str) -> String {
    text_or_null(path.split('.').try_fold(object, |value, name| value.get(name)))
}

/// A client can't set the generation: it stays what it was.
pub fn keep_generation(new: &mut Value, old: &Value, _: Part) {
    set_generation(new, old.pointer("/metadata/generation").cloned());
}

/// The generation of an updated object: one more than before if what it counts has changed.
pub fn bump_generation(new: &mut Value, old: &Value, changed: bool) {
    let before = old.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(0);
    let now = before + i64::from(changed);
    set_generation(new, (now != 0).then(|| Value::from(now)));
}

/// The first generation of a new object.
pub fn first_generation(new: &mut Value) {
    set_generation(new, Some(Value::from(1)));
}

fn set_generation(object: &mut Value, generation: Option<Value>) {
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    match generation {
        Some(number) => metadata.insert("generation".to_owned(), number),
        None => metadata.shift_remove("generation"),
    };
}

/// An update of a kind with a spec, and perhaps a status behind a path of its own: each part leaves the other alone, and
/// the generation counts the changes of the spec.
pub fn update_spec_or_status(new: &mut Value, old: &Value, part: Part) {
    keep_field(new, old, if part == Part::Status { "spec" } else { "status" });
    let changed = differs(new, old, "/spec");
    bump_generation(new, old, changed);
}

/// A new object of a kind with a status, which a client can't set: it is the first generation.
pub fn first_without_status(object: &mut Value) {
    if let Some(fields) = object.as_object_mut() {
        fields.shift_remove("status");
    }
    first_generation(object);
}

/// Puts what `old` has at a top-level field into `new`.
pub fn keep_field(new: &mut Value, old: &Value, field: &str) {
    let Some(object) = new.as_object_mut() else { return };
    match old.get(field) {
        Some(value) => object.insert(field.to_owned(), value.clone()),
        None => object.shift_remove(field),
    };
}

/// An update of an object with a spec and a status behind a path of its own: each part keeps the other, and the generation
/// counts changes of the spec.
pub fn spec_and_status(new: &mut Value, old: &Value, part: Part) {
    keep_field(new, old, if part == Part::Status { "spec" } else { "status" });
    let changed = differs(new, old, "/spec");
    bump_generation(new, old, changed);
}

/// An update through `/status`: everything but the status is as it was, and of the metadata only what bookkeeping and
/// garbage collection need comes from the client.
pub fn keep_all_but_status(new: &mut Value, old: &Value, from_client: &[&str]) {
    let status = new.get("status").cloned();
    let sent = new.get("metadata").cloned().unwrap_or(Value::Null);
    *new = old.clone();
    if let Some(metadata) = new.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in from_client {
            match sent.get(field) {
                Some(value) => metadata.insert((*field).to_owned(), value.clone()),
                None => metadata.shift_remove(*field),
            };
        }
    }
    if let (Some(object), Some(status)) = (new.as_object_mut(), status) {
        object.insert("status".to_owned(), status);
    }
}

/// The object at a field, made if there is none (or null).
pub fn object_at<'a>(value: &'a mut Value, field: &str) -> Option<&'a mut Map<String, Value>> {
    let object = value.as_object_mut()?;
    let inner = object.entry(field).or_insert_with(|| json!({}));
    if inner.is_null() {
        *inner = json!({});
    }
    inner.as_object_mut()
}

/// Sets a field that is absent (or null).
pub fn set_default(object: &mut Map<String, Value>, field: &str, value: impl Into<Value>) {
    let slot = object.entry(field).or_insert(Value::Null);
    if slot.is_null() {
        *slot = value.into();
    }
}

/// Sets a text that is absent, null or empty: Go's plain strings cannot tell these apart.
pub fn set_default_text(object: &mut Map<String, Value>, field: &str, value: &str) {
    let slot = object.entry(field).or_insert(Value::Null);
    if slot.is_null() || slot.as_str() == Some("") {
        *slot = Value::from(value);
    }
}

/// Whether a template or spec differs between two objects.
pub fn differs(new: &Value, old: &Value, pointer: &str) -> bool {
    new.pointer(pointer).unwrap_or(&Value::Null) != old.pointer(pointer).unwrap_or(&Value::Null)
}

/// The name of the object, empty if it has none yet.
pub fn name_of(object: &Value) -> &str {
    object.get("metadata").map_or("", |metadata| str_at(metadata, "name"))
}
