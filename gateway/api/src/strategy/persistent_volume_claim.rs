//! `PersistentVolumeClaim`: storage that somebody asks for.

use serde_json::{Map, Value, json};

use super::{
    BASE, at, keep_field, keep_generation, metadata_field, object_at, pod_spec, set_default, set_default_text,
};
use crate::field::{ErrorList, Path};
use crate::kind::{Part, Strategy};
use crate::validation::json::{dig, get, items, str_at, texts};
use crate::validation::metadata::immutable;
use crate::validation::selectors::label_selector;
use crate::validation::{diff, names, resources};

/// What is peculiar to `PersistentVolumeClaim`s.
pub const STRATEGY: Strategy = Strategy {
    default,
    prepare_create: |object| {
        object["status"] = json!({"phase": "Pending"});
        protect(object, "kubernetes.io/pvc-protection");
        if let Some(spec) = object_at(object, "spec") {
            settle_sources(spec);
        }
    },
    prepare_update: |new, old, part| {
        keep_field(new, old, if part == Part::Status { "spec" } else { "status" });
        keep_generation(new, old, part);
        if part == Part::Main
            && let Some(spec) = object_at(new, "spec")
        {
            settle_sources(spec);
        }
    },
    validate,
    validate_update,
    field: |object, field| match field {
        "name" => Some(at(object, "metadata.name")),
        _ => metadata_field(object, field),
    },
    ..BASE
};

/// Ways in which a volume may be used.
pub const ACCESS_MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
/// Forms of a volume.
pub const VOLUME_MODES: [&str; 2] = ["Block", "Filesystem"];
const EXCLUSIVE: &str = "ReadWriteOncePod";

/// Fills in what a claim leaves open; also one in a template.
pub(super) fn default(object: &mut Value) {
    if let Some(status) = object_at(object, "status") {
        set_default_text(status, "phase", "Pending");
        round(status, "capacity");
        round(status, "allocatedResources");
    }
    let Some(spec) = object_at(object, "spec") else { return };
    set_default(spec, "volumeMode", "Filesystem");
    set_default(spec, "resources", json!({}));
    for field in ["requests", "limits"] {
        if let Some(resources) = spec.get_mut("resources").and_then(Value::as_object_mut) {
            round(resources, field);
        }
    }
}

fn round(object: &mut Map<String, Value>, field: &str) {
    for amount in object.get_mut(field).and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut) {
        pod_spec::round_quantity(amount);
    }
    pod_spec::drop_if_empty(object, field);
}

/// Holds an object until a controller knows that nobody uses it.
pub(super) fn protect(object: &mut Value, finalizer: &str) {
    let Some(metadata) = object_at(object, "metadata") else { return };
    let finalizers = metadata.entry("finalizers").or_insert_with(|| json!([]));
    if finalizers.is_null() {
        *finalizers = json!([]);
    }
    if let Some(list) = finalizers.as_array_mut()
        && !list.iter().any(|name| name == finalizer)
    {
        list.push(finalizer.into());
    }
}

/// The older field of what a volume begins with knows claims and snapshots alone; the newer one holds the same.
fn settle_sources(spec: &mut Map<String, Value>) {
    let known = |source: &Value| {
        let group = str_at(source, "apiGroup");
        matches!(
            (group, str_at(source, "kind")),
            ("", "PersistentVolumeClaim") | ("snapshot.storage.k8s.io", "VolumeSnapshot")
        )
    };
    if spec.get("dataSource").is_some_and(|source| !known(source)) {
        spec.shift_remove("dataSource");
    }
    let present = |field: &str| spec.get(field).filter(|source| !source.is_null()).cloned();
    match (present("dataSource"), present("dataSourceRef")) {
        (Some(source), None) => {
            spec.insert("dataSourceRef".to_owned(), source);
        }
        (None, Some(source)) if known(&source) && get(&source, "namespace").is_none() => {
            spec.insert("dataSource".to_owned(), source);
        }
        _ => {}
    }
}

/// What is wrong with the ways of use of a volume or claim.
pub(super) fn access_modes(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for mode in texts(spec, "accessModes").filter(|mode| !ACCESS_MODES.contains(mode)) {
        errors.push(path.not_supported(mode, &ACCESS_MODES));
    }
    let exclusive = texts(spec, "accessModes").filter(|mode| *mode == EXCLUSIVE).count();
    if exclusive > 0 && exclusive < items(spec, "accessModes").len() {
        errors.push(path.forbidden("may not use ReadWriteOncePod with other access modes"));
    }
    errors
}

/// What is wrong with the name of a class, if it is there, and with the form of the volume.
pub(super) fn class_and_mode(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for field in ["storageClassName", "volumeAttributesClassName"] {
        let name = str_at(spec, field);
        if !name.is_empty() {
            let path = path.child(field);
            errors.extend(names::dns1123_subdomain(name).into_iter().map(|why| path.invalid(name, why)));
        }
    }
    if let Some(mode) = get(spec, "volumeMode").and_then(Value::as_str)
        && !VOLUME_MODES.contains(&mode)
    {
        errors.push(path.child("volumeMode").not_supported(mode, &VOLUME_MODES));
    }
    errors
}

fn validate(object: &Value) -> ErrorList {
    claim(object.get("spec").unwrap_or(&Value::Null), &Path::new("spec"))
}

/// What is wrong with the spec of a claim.
pub fn claim(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let modes = path.child("accessModes");
    if items(spec, "accessModes").is_empty() {
        errors.push(modes.required("at least 1 access mode is required"));
    }
    if let Some(selector) = get(spec, "selector") {
        errors.extend(label_selector(selector, &path.child("selector")));
    }
    errors.extend(access_modes(spec, &modes));
    let field = path.child("resources").key("storage");
    match storage(spec) {
        None => errors.push(field.required("")),
        Some(amount) => {
            if let Some(quantity) = resources::quantity(amount).filter(|quantity| quantity.nanos() <= 0) {
                errors.push(field.invalid(quantity.canonical(), "must be greater than zero"));
            }
        }
    }
    errors.extend(class_and_mode(spec, path));
    for field in ["dataSource", "dataSourceRef"] {
        if let Some(source) = get(spec, field) {
            errors.extend(data_source(source, &path.child(field)));
        }
    }
    errors
}

fn storage(spec: &Value) -> Option<&Value> {
    dig(spec, &["resources", "requests", "storage"])
}

fn data_source(source: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for field in ["name", "kind"] {
        if str_at(source, field).is_empty() {
            errors.push(path.child(field).required(""));
        }
    }
    let kind = str_at(source, "kind");
    if str_at(source, "apiGroup").is_empty() && !kind.is_empty() && kind != "PersistentVolumeClaim" {
        errors.push(path.invalid(kind, ""));
    }
    errors
}

fn validate_update(new: &Value, old: &Value, part: Part) -> ErrorList {
    if part == Part::Status {
        return status(new);
    }
    let mut errors = validate(new);
    let none = Value::Null;
    let (spec, before) = (new.get("spec").unwrap_or(&none), old.get("spec").unwrap_or(&none));
    let (mut now, mut then) = (spec.clone(), before.clone());
    // The volume is written once; so is the class of a claim that had none.
    for field in ["volumeName", "storageClassName"] {
        if str_at(before, field).is_empty() && get(before, field).is_none() {
            then[field] = now[field].clone();
        }
    }
    if dig(old, &["status", "phase"]).and_then(Value::as_str) == Some("Bound") {
        if let Some(size) = storage(before) {
            now["resources"]["requests"]["storage"] = size.clone();
        }
        if get(spec, "volumeAttributesClassName").is_some() {
            then["volumeAttributesClassName"] = now["volumeAttributesClassName"].clone();
        }
    }
    for side in [&mut now, &mut then] {
        if let Some(side) = side.as_object_mut() {
            side.retain(|_, value| !value.is_null());
        }
    }
    if now != then {
        errors.push(Path::new("spec").forbidden(format!(
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound \
             claims\n{}",
            diff::unified(&then, &now)
        )));
    }
    let size = |spec: &Value| storage(spec).and_then(resources::quantity).map(|quantity| quantity.nanos());
    if let (Some(new_size), Some(old_size)) = (size(spec), size(before))
        && new_size < old_size
    {
        let there = dig(new, &["status", "capacity", "storage"]).and_then(resources::quantity);
        if new_size <= there.map_or(0, |quantity| quantity.nanos()) {
            let path = Path::new("spec").child("resources").child("requests").child("storage");
            errors.push(path.forbidden("field can not be less than status.capacity"));
        }
    }
    errors.extend(immutable(get(spec, "volumeMode"), get(before, "volumeMode"), &Path::new("volumeMode")));
    errors
}

fn status(object: &Value) -> ErrorList {
    let path = Path::new("status");
    let status = object.get("status").unwrap_or(&Value::Null);
    let mut errors = ErrorList::new();
    if !items(status, "conditions").is_empty() || get(status, "capacity").is_some() {
        let amounts = crate::validation::json::entries(status, "capacity");
        for (name, amount) in amounts {
            if resources::quantity(amount).is_some_and(|quantity| quantity.nanos() < 0) {
                let field = path.child("capacity").key(name);
                errors.push(field.invalid(amount.clone(), "must be a valid resource quantity"));
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(change: &Value) -> Value {
        let mut object = json!({"metadata": {"name": "p"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}});
        for (field, value) in change.as_object().unwrap() {
            object["spec"][field] = value.clone();
        }
        default(&mut object);
        (STRATEGY.prepare_create)(&mut object);
        object
    }

    fn causes(change: &Value) -> Vec<String> {
        validate(&claim(change)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_claim_says_how_much_and_how() {
        assert!(causes(&json!({})).is_empty());
        assert_eq!(
            causes(&json!({"accessModes": null, "resources": null})),
            [
                "spec.accessModes: Required value: at least 1 access mode is required",
                "spec.resources[storage]: Required value"
            ]
        );
        assert_eq!(
            causes(&json!({"accessModes": ["ReadWriteOncePod", "ReadWriteOnce"]})),
            ["spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes"]
        );
    }

    #[test]
    fn sources_mirror_each_other_and_unknown_ones_go() {
        let spec = claim(&json!({"dataSource": {"kind": "X", "name": ""}}))["spec"].clone();
        assert!(spec.get("dataSource").is_none() && spec.get("dataSourceRef").is_none());
        let source = json!({"kind": "PersistentVolumeClaim", "name": "other"});
        assert_eq!(claim(&json!({"dataSource": source}))["spec"]["dataSourceRef"], source);
    }

    #[test]
    fn a_bound_claim_may_grow() {
        let mut old = claim(&json!({}));
        let mut new = old.clone();
        new["spec"]["resources"]["requests"]["storage"] = json!("2Gi");
        let errors = validate_update(&new, &old, Part::Main);
        assert!(errors[0].to_string().starts_with("spec: Forbidden: spec is immutable after creation"), "{errors:?}");
        for object in [&mut old, &mut new] {
            object["status"] = json!({"phase": "Bound", "capacity": {"storage": "1Gi"}});
        }
        assert!(validate_update(&new, &old, Part::Main).is_empty());
        let errors = validate_update(&old, &new, Part::Main);
        assert_eq!(errors[0].detail, "field can not be less than status.capacity");
        old["spec"]["volumeName"] = json!("v");
        assert!(validate_update(&old, &claim(&json!({})), Part::Main).is_empty(), "a volume is written once");
    }
}
