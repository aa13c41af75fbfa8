//! Namespace: its finalizers, its phase, the label with its name.

use serde_json::{Value, json};

use super::{BASE, at, bump_generation, keep_field, name_of, object_at, set_default_text};
use crate::field::{ErrorList, Path};
use crate::kind::{Part, Strategy};
use crate::validation::json::{dig, get, str_at, texts};
use crate::validation::metadata;
use crate::validation::names;

/// What is peculiar to Namespaces.
pub const STRATEGY: Strategy = Strategy {
    default,
    prepare_create,
    prepare_update,
    validate,
    validate_update,
    validate_name: names::dns1123_label,
    field,
    ..BASE
};

/// The label by which selectors can name a namespace.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// The finalizer of the controller that empties a namespace.
const FINALIZER: &str = "kubernetes";

fn default(object: &mut Value) {
    let name = name_of(object).to_owned();
    if !name.is_empty()
        && let Some(metadata) = object.get_mut("metadata")
        && let Some(labels) = object_at(metadata, "labels")
    {
        labels.insert(NAME_LABEL.to_owned(), Value::from(name));
    }
    object_at(object, "spec");
    if let Some(status) = object_at(object, "status") {
        set_default_text(status, "phase", "Active");
    }
}

fn prepare_create(object: &mut Value) {
    object["status"] = json!({"phase": "Active"});
    let Some(spec) = object_at(object, "spec") else { return };
    let finalizers = spec.entry("finalizers").or_insert_with(|| json!([]));
    match finalizers.as_array_mut() {
        Some(list) if list.iter().any(|name| name == FINALIZER) => {}
        Some(list) => list.push(Value::from(FINALIZER)),
        None => *finalizers = json!([FINALIZER]),
    }
}

fn prepare_update(new: &mut Value, old: &Value, part: Part) {
    bump_generation(new, old, false);
    match part {
        Part::Status => keep_field(new, old, "spec"),
        Part::Finalize => {
            keep_field(new, old, "status");
            if texts(new.get("spec").unwrap_or(&Value::Null), "finalizers").next().is_none() {
                new["spec"] = json!({});
            }
        }
        _ => {
            keep_field(new, old, "spec");
            keep_field(new, old, "status");
        }
    }
}

fn validate(object: &Value) -> ErrorList {
    let path = Path::new("spec").child("finalizers");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    texts(spec, "finalizers").enumerate().flat_map(|(i, name)| metadata::finalizer(name, &path.index(i))).collect()
}

fn validate_update(new: &Value, _: &Value, part: Part) -> ErrorList {
    match part {
        Part::Status => status_errors(new),
        Part::Finalize => validate(new),
        _ => ErrorList::new(),
    }
}

fn status_errors(new: &Value) -> ErrorList {
    let deleted = dig(new, &["metadata", "deletionTimestamp"]).is_some();
    let phase = get(new, "status").map_or("", |status| str_at(status, "phase"));
    let (wanted, when) = if deleted { ("Terminating", "is not empty") } else { ("Active", "is empty") };
    if phase == wanted {
        return ErrorList::new();
    }
    let path = Path::new("status").child("Phase");
    vec![path.invalid(phase, format!("may only be '{wanted}' if `deletionTimestamp` {when}"))]
}

fn field(object: &Value, field: &str) -> Option<String> {
    match field {
        "metadata.name" | "status.phase" => Some(at(object, field)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_namespace_has_label_finalizer_and_phase() {
        let mut namespace = json!({"metadata": {"name": "a"}, "spec": {"finalizers": ["e.x/f"]}});
        prepare_create(&mut namespace);
        default(&mut namespace);
        assert_eq!(
            namespace,
            json!({
                "metadata": {"name": "a", "labels": {"kubernetes.io/metadata.name": "a"}},
                "spec": {"finalizers": ["e.x/f", "kubernetes"]},
                "status": {"phase": "Active"},
            })
        );
    }

    #[test]
    fn only_finalize_changes_finalizers() {
        let old = json!({"metadata": {}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
        let mut new = json!({"metadata": {}, "spec": {"finalizers": []}});
        prepare_update(&mut new, &old, Part::Main);
        assert_eq!(new["spec"], old["spec"]);
        let mut new = json!({"metadata": {}, "spec": {"finalizers": []}});
        prepare_update(&mut new, &old, Part::Finalize);
        assert_eq!(new["spec"], json!({}));
        assert_eq!(new["status"], old["status"]);
    }
}
