//! `PersistentVolume`: storage that is there.

use serde_json::{Map, Value, json};

use super::persistent_volume_claim::{access_modes, class_and_mode, protect};
use super::{
    BASE, at, keep_field, keep_generation, metadata_field, object_at, pod_spec, set_default, set_default_text,
};
use crate::field::{ErrorList, Path};
use crate::kind::{Part, Strategy};
use crate::validation::json::{dig, entries, get, items, map, str_at};
use crate::validation::metadata::immutable;
use crate::validation::{diff, resources, scheduling, volumes};

/// What is peculiar to `PersistentVolume`s.
pub const STRATEGY: Strategy = Strategy {
    default,
    prepare_create: |object| {
        object["status"] = json!({"phase": "Pending", "lastPhaseTransitionTime": now()});
        protect(object, "kubernetes.io/pv-protection");
    },
    prepare_update,
    validate,
    validate_update,
    field: |object, field| match field {
        "name" => Some(at(object, "metadata.name")),
        _ => metadata_field(object, field),
    },
    ..BASE
};

const RECLAIM_POLICIES: [&str; 3] = ["Delete", "Recycle", "Retain"];
const STORAGE: [&str; 1] = ["storage"];

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn default(object: &mut Value) {
    if let Some(status) = object_at(object, "status") {
        set_default_text(status, "phase", "Pending");
    }
    let Some(spec) = object_at(object, "spec") else { return };
    set_default_text(spec, "persistentVolumeReclaimPolicy", "Retain");
    set_default(spec, "volumeMode", "Filesystem");
    if let Some(path) = spec.get_mut("hostPath").and_then(Value::as_object_mut) {
        set_default(path, "type", "");
    }
    for (source, field, value) in [
        ("iscsi", "iscsiInterface", "default"),
        ("rbd", "pool", "rbd"),
        ("rbd", "user", "admin"),
        ("rbd", "keyring", "/etc/ceph/keyring"),
        ("scaleIO", "storageMode", "ThinProvisioned"),
        ("scaleIO", "fsType", "xfs"),
        ("azureDisk", "cachingMode", "ReadWrite"),
        ("azureDisk", "fsType", "ext4"),
        ("azureDisk", "kind", "Shared"),
    ] {
        if let Some(source) = spec.get_mut(source).and_then(Value::as_object_mut) {
            set_default_text(source, field, value);
        }
    }
    for amount in spec.get_mut("capacity").and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut) {
        pod_spec::round_quantity(amount);
    }
}

fn prepare_update(new: &mut Value, old: &Value, part: Part) {
    keep_generation(new, old, part);
    if part != Part::Status {
        keep_field(new, old, "status");
        return;
    }
    keep_field(new, old, "spec");
    let phase = |object: &Value| dig(object, &["status", "phase"]).cloned();
    let time = |object: &Value| dig(object, &["status", "lastPhaseTransitionTime"]).cloned();
    let (changed, told) = (phase(new) != phase(old), time(new) != time(old));
    let at = if changed && !told {
        Some(now().into())
    } else if changed || told {
        time(new)
    } else {
        time(old)
    };
    if let (Some(at), Some(status)) = (at, object_at(new, "status")) {
        status.insert("lastPhaseTransitionTime".to_owned(), at);
    }
}

fn validate(object: &Value) -> ErrorList {
    let path = Path::new("spec");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let mut errors = ErrorList::new();
    let modes = path.child("accessModes");
    if items(spec, "accessModes").is_empty() {
        errors.push(modes.required(""));
    }
    errors.extend(access_modes(spec, &modes));
    errors.extend(capacity(spec, &path.child("capacity")));
    let policy = str_at(spec, "persistentVolumeReclaimPolicy");
    let field = path.child("persistentVolumeReclaimPolicy");
    if !policy.is_empty() && !RECLAIM_POLICIES.contains(&policy) {
        errors.push(field.not_supported(policy, &RECLAIM_POLICIES));
    }
    let affinity = dig(spec, &["nodeAffinity", "required"]);
    if get(spec, "nodeAffinity").is_some() {
        let path = path.child("nodeAffinity").child("required");
        match affinity {
            Some(selector) => errors.extend(scheduling::node_selector(selector, &path)),
            None => errors.push(path.required("must specify required node constraints")),
        }
    }
    errors.extend(volumes::persistent(spec, &path));
    if get(spec, "local").is_some() && affinity.is_none() {
        errors.push(path.child("nodeAffinity").required("Local volume requires node affinity"));
    }
    if policy == "Recycle" && is_root(dig(spec, &["hostPath", "path"])) {
        errors.push(field.forbidden("may not be 'recycle' for a hostPath mount of '/'"));
    }
    errors.extend(class_and_mode(spec, &path));
    errors
}

fn is_root(path: Option<&Value>) -> bool {
    let path = path.and_then(Value::as_str);
    path.is_some_and(|path| path.starts_with('/') && path.split('/').all(|part| matches!(part, "" | "." | "..")))
}

fn capacity(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let amounts = map(spec, "capacity").filter(|amounts| !amounts.is_empty());
    if amounts.is_none() {
        errors.push(path.required(""));
    }
    if amounts.is_none_or(|amounts| amounts.len() > 1 || !amounts.contains_key("storage")) {
        errors.push(path.not_supported(spec.get("capacity").cloned().unwrap_or_default(), &STORAGE));
    }
    for (name, amount) in entries(spec, "capacity") {
        let Some(quantity) = resources::quantity(amount) else { continue };
        let path = path.key(name);
        if quantity.nanos() < 0 {
            errors.push(path.invalid(quantity.value_ceil(), "must be a valid resource quantity"));
        }
        if quantity.nanos() <= 0 {
            errors.push(path.invalid(quantity.canonical(), "must be greater than zero"));
        }
    }
    errors
}

fn validate_update(new: &Value, old: &Value, part: Part) -> ErrorList {
    if part == Part::Status {
        return ErrorList::new();
    }
    let mut errors = validate(new);
    let none = Value::Null;
    let (spec, before) = (new.get("spec").unwrap_or(&none), old.get("spec").unwrap_or(&none));
    let source = |spec: &Value| -> Map<String, Value> {
        spec.as_object()
            .into_iter()
            .flatten()
            .filter(|(field, _)| volumes::is_persistent(field))
            .map(|(field, value)| (field.clone(), value.clone()))
            .collect()
    };
    let (now, then) = (Value::Object(source(spec)), Value::Object(source(before)));
    if now != then {
        errors.push(Path::new("spec").child("persistentvolumesource").forbidden(format!(
            "spec.persistentvolumesource is immutable after creation\n{}",
            diff::unified(&then, &now)
        )));
    }
    errors.extend(immutable(get(spec, "volumeMode"), get(before, "volumeMode"), &Path::new("volumeMode")));
    if let Some(affinity) = get(before, "nodeAffinity") {
        let path = Path::new("nodeAffinity");
        errors.extend(immutable(get(spec, "nodeAffinity"), Some(affinity), &path));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn causes(spec: &Value) -> Vec<String> {
        let mut object = json!({"metadata": {"name": "p"}, "spec": spec});
        default(&mut object);
        validate(&object).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_volume_has_one_source_and_a_size() {
        assert_eq!(
            causes(&json!({})),
            [
                "spec.accessModes: Required value",
                "spec.capacity: Required value",
                "spec.capacity: Unsupported value: null: supported values: \"storage\"",
                "spec: Required value: must specify a volume type"
            ]
        );
        let base = json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]});
        let with = |change: Value| {
            let mut spec = base.clone();
            spec.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            causes(&spec)
        };
        assert!(with(json!({"hostPath": {"path": "/x"}})).is_empty());
        assert_eq!(
            with(json!({"hostPath": {"path": "/x"}, "nfs": {"server": "a", "path": "/b"}})),
            ["spec.nfs: Forbidden: may not specify more than 1 volume type"]
        );
        assert_eq!(
            with(json!({"csi": {}})),
            ["spec.csi.driver: Required value", "spec.csi.volumeHandle: Required value"]
        );
        assert_eq!(
            with(json!({"local": {"path": "/x"}})),
            ["spec.nodeAffinity: Required value: Local volume requires node affinity"]
        );
    }

    #[test]
    fn a_new_phase_has_its_time() {
        let mut old = json!({"metadata": {"name": "p"}, "spec": {}});
        (STRATEGY.prepare_create)(&mut old);
        assert_eq!(old["metadata"]["finalizers"], json!(["kubernetes.io/pv-protection"]));
        old["status"]["lastPhaseTransitionTime"] = json!("2026-01-01T00:00:00Z");
        let mut new = old.clone();
        new["status"]["phase"] = json!("Bound");
        prepare_update(&mut new, &old, Part::Status);
        assert_ne!(new["status"]["lastPhaseTransitionTime"], old["status"]["lastPhaseTransitionTime"]);
    }
}
