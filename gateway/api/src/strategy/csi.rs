//! Storage drivers and what they say of themselves: CSIDriver, CSINode, CSIStorageCapacity, VolumeAttachment.

use serde_json::{Value, json};

use super::{BASE, bump_generation, keep_field, keep_generation, object_at, set_default};
use crate::field::{ErrorList, Path};
use crate::kind::{Part, Strategy};
use crate::validation::json::{dig, get, int, items, str_at, texts};
use crate::validation::selectors::label_selector;
use crate::validation::{metadata, names, resources};

/// What is peculiar to CSIDrivers.
pub const DRIVER: Strategy = Strategy {
    default: default_driver,
    prepare_update: |new, old, _| {
        let counted = ["tokenRequests", "requiresRepublish", "seLinuxMount"];
        let changed = counted.into_iter().any(|field| dig(new, &["spec", field]) != dig(old, &["spec", field]));
        bump_generation(new, old, changed);
    },
    validate: driver_errors,
    validate_update: |new, old, _: Part| {
        let mut errors = driver_errors(new);
        for (field, shown) in [("attachRequired", "attachedRequired"), ("volumeLifecycleModes", "volumeLifecycleModes")]
        {
            let (now, before) = (dig(new, &["spec", field]), dig(old, &["spec", field]));
            errors.extend(metadata::immutable(now, before, &Path::new("spec").child(shown)));
        }
        errors
    },
    unconditional_update: false,
    ..BASE
};

/// What is peculiar to CSINodes.
pub const NODE: Strategy = Strategy {
    validate: node_errors,
    validate_update: |new, old, _: Part| {
        let mut errors = node_errors(new);
        errors.extend(changed_drivers(new, old));
        errors
    },
    unconditional_update: false,
    ..BASE
};

/// What is peculiar to CSIStorageCapacities.
pub const CAPACITY: Strategy = Strategy {
    validate: capacity_errors,
    validate_update: |new, old, _: Part| {
        let mut errors = capacity_errors(new);
        for field in ["nodeTopology", "storageClassName"] {
            errors.extend(metadata::immutable(get(new, field), get(old, field), &Path::new(field)));
        }
        errors
    },
    unconditional_update: false,
    ..BASE
};

/// What is peculiar to VolumeAttachments.
pub const ATTACHMENT: Strategy = Strategy {
    prepare_create: |object| object["status"] = json!({"attached": false}),
    prepare_update: |new, old, part| {
        keep_generation(new, old, part);
        keep_field(new, old, if part == Part::Status { "spec" } else { "status" });
    },
    validate: attachment_errors,
    validate_update: |new, old, _: Part| {
        let mut errors = attachment_errors(new);
        errors.extend(metadata::immutable(new.get("spec"), old.get("spec"), &Path::new("spec")));
        errors
    },
    unconditional_update: false,
    ..BASE
};

const GROUP_POLICIES: [&str; 3] = ["File", "None", "ReadWriteOnceWithFSType"];
const MODES: [&str; 2] = ["Ephemeral", "Persistent"];
const NAME_MAX: usize = 63;
const NODE_ID_MAX: usize = 256;

fn default_driver(object: &mut Value) {
    let Some(spec) = object_at(object, "spec") else { return };
    set_default(spec, "attachRequired", true);
    for field in ["podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount"] {
        set_default(spec, field, false);
    }
    set_default(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    if spec.get("volumeLifecycleModes").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        spec.insert("volumeLifecycleModes".to_owned(), json!(["Persistent"]));
    }
}

fn driver_errors(object: &Value) -> ErrorList {
    let path = Path::new("spec");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let mut errors = driver_name_errors(super::name_of(object), &Path::new("name"));
    let policy = str_at(spec, "fsGroupPolicy");
    if !GROUP_POLICIES.contains(&policy) {
        errors.push(path.child("fsGroupPolicy").not_supported(policy, &GROUP_POLICIES));
    }
    errors.extend(token_errors(spec, &path.child("tokenRequests")));
    for mode in texts(spec, "volumeLifecycleModes").filter(|mode| !MODES.contains(mode)) {
        errors.push(path.child("volumeLifecycleModes").not_supported(mode, &MODES));
    }
    if let Some(seconds) = int(spec, "nodeAllocatableUpdatePeriodSeconds").filter(|seconds| *seconds < 10) {
        let field = path.child("nodeAllocatableUpdatePeriodSeconds");
        errors.push(field.invalid(seconds, "must be greater than or equal to 10 seconds"));
    }
    errors
}

/// What is wrong with the name of a driver.
fn driver_name_errors(name: &str, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    if name.is_empty() {
        errors.push(path.required(""));
    }
    if name.len() > NAME_MAX {
        errors.push(path.too_long(NAME_MAX));
    }
    if !name.is_empty() {
        let wrong = names::dns1123_subdomain(&name.to_lowercase());
        errors.extend(wrong.into_iter().map(|text| path.invalid(name, text)));
    }
    errors
}

fn token_errors(spec: &Value, path: &Path) -> ErrorList {
    let all = items(spec, "tokenRequests");
    let mut errors = ErrorList::new();
    for (index, request) in all.iter().enumerate() {
        let path = path.index(index);
        let audience = str_at(request, "audience");
        if all[..index].iter().any(|one| str_at(one, "audience") == audience) {
            errors.push(path.child("audience").duplicate(audience));
            continue;
        }
        let Some(seconds) = int(request, "expirationSeconds") else { continue };
        let field = path.child("expirationSeconds");
        if seconds < 600 {
            errors.push(field.invalid(seconds, "may not specify a duration less than 10 minutes"));
        }
        if seconds > 1 << 32 {
            errors.push(field.invalid(seconds, "may not specify a duration larger than 2^32 seconds"));
        }
    }
    errors
}

fn drivers(object: &Value) -> &[Value] {
    items(object.get("spec").unwrap_or(&Value::Null), "drivers")
}

fn node_errors(object: &Value) -> ErrorList {
    let path = Path::new("spec").child("drivers");
    let all = drivers(object);
    let mut errors = ErrorList::new();
    for (index, driver) in all.iter().enumerate() {
        let path = path.index(index);
        let (name, node) = (str_at(driver, "name"), str_at(driver, "nodeID"));
        errors.extend(driver_name_errors(name, &path.child("name")));
        if node.is_empty() {
            errors.push(path.child("nodeID").required(""));
        } else if node.len() > NODE_ID_MAX {
            let why = format!("must be {NODE_ID_MAX} characters or less");
            errors.push(path.child("nodeID").invalid(node, why));
        }
        if let Some(allocatable) = get(driver, "allocatable") {
            errors.extend(metadata::non_negative(allocatable, "count", &path.child("allocatable")));
        }
        if all[..index].iter().any(|one| str_at(one, "name") == name) {
            errors.push(path.child("name").duplicate(name));
        }
        let keys: Vec<&str> = texts(driver, "topologyKeys").collect();
        for (index, key) in keys.iter().enumerate() {
            if key.is_empty() {
                errors.push(path.required(""));
            }
            if keys[..index].contains(key) {
                errors.push(path.duplicate(*key));
            }
            let wrong = names::qualified_name(key).into_iter();
            errors.extend(wrong.map(|text| path.invalid(driver["topologyKeys"].clone(), text)));
        }
    }
    errors
}

/// A driver's line stays as long as the driver is there, what it can hold excepted.
fn changed_drivers(new: &Value, old: &Value) -> ErrorList {
    let fixed = |driver: &Value| ["name", "nodeID", "topologyKeys"].map(|field| get(driver, field).cloned());
    let mut errors = ErrorList::new();
    for before in drivers(old) {
        let now = drivers(new).iter().find(|driver| driver["name"] == before["name"]);
        if let Some(now) = now.filter(|now| fixed(now) != fixed(before)) {
            errors.push(Path::new("CSINodeDriver").invalid(now.clone(), "field is immutable"));
        }
    }
    errors
}

fn capacity_errors(object: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    if let Some(topology) = get(object, "nodeTopology") {
        errors.extend(label_selector(topology, &Path::new("nodeTopology")));
    }
    let (field, class) = (Path::new("storageClassName"), str_at(object, "storageClassName"));
    errors.extend(names::dns1123_subdomain(class).into_iter().map(|text| field.invalid(class, text)));
    for field in ["capacity", "maximumVolumeSize"] {
        let Some(value) = get(object, field) else { continue };
        if resources::quantity(value).is_some_and(|amount| amount.nanos() < 0) {
            errors.push(Path::new(field).invalid(value.clone(), "must be greater than or equal to 0"));
        }
    }
    errors
}

fn attachment_errors(object: &Value) -> ErrorList {
    let path = Path::new("spec");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let mut errors = ErrorList::new();
    errors.extend(driver_name_errors(str_at(spec, "attacher"), &path.child("attacher")));
    let source = spec.get("source").unwrap_or(&Value::Null);
    let field = path.child("source");
    let one_of = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    let name_field = field.child("persistentVolumeName");
    match (get(source, "inlineVolumeSpec"), get(source, "persistentVolumeName").and_then(Value::as_str)) {
        (None, None) => errors.push(field.required(one_of)),
        (Some(_), Some(_)) => errors.push(field.forbidden(one_of)),
        (None, Some("")) => errors.push(name_field.required("must specify non empty persistentVolumeName")),
        (None, Some(name)) => {
            errors.extend(names::dns1123_subdomain(name).into_iter().map(|text| name_field.invalid(name, text)));
        }
        (Some(_), None) => {}
    }
    let (field, node) = (path.child("nodeName"), str_at(spec, "nodeName"));
    errors.extend(names::dns1123_subdomain(node).into_iter().map(|text| field.invalid(node, text)));
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(errors: ErrorList) -> Vec<String> {
        errors.into_iter().map(|error| error.path).collect()
    }

    #[test]
    fn a_driver_is_completed() {
        let mut driver = json!({"metadata": {"name": "d.example"}});
        default_driver(&mut driver);
        assert_eq!(driver["spec"]["volumeLifecycleModes"], json!(["Persistent"]));
        assert!(driver_errors(&driver).is_empty());
        let mut new = driver.clone();
        new["spec"]["attachRequired"] = json!(false);
        assert_eq!(paths((DRIVER.validate_update)(&new, &driver, Part::Main)), ["spec.attachedRequired"]);
    }

    #[test]
    fn a_node_names_each_driver_once_and_keeps_what_it_said() {
        let driver = json!({"name": "d", "nodeID": "n", "topologyKeys": ["a"]});
        let node = json!({"spec": {"drivers": [driver, driver]}});
        assert_eq!(paths(node_errors(&node)), ["spec.drivers[1].name"]);
        let old = json!({"spec": {"drivers": [driver]}});
        let mut new = old.clone();
        new["spec"]["drivers"][0]["allocatable"] = json!({"count": 3});
        assert!(changed_drivers(&new, &old).is_empty());
        new["spec"]["drivers"][0]["nodeID"] = json!("m");
        assert_eq!(paths(changed_drivers(&new, &old)), ["CSINodeDriver"]);
    }

    #[test]
    fn an_attachment_is_of_one_volume() {
        let of = |source: Value| {
            paths(attachment_errors(&json!({"spec": {"attacher": "a", "nodeName": "n", "source": source}})))
        };
        assert!(of(json!({"persistentVolumeName": "v"})).is_empty());
        assert_eq!(of(json!({})), ["spec.source"]);
        assert_eq!(of(json!({"persistentVolumeName": ""})), ["spec.source.persistentVolumeName"]);
    }

    #[test]
    fn a_capacity_is_of_a_class_and_not_negative() {
        let capacity = json!({"storageClassName": "c", "capacity": "-1"});
        assert_eq!(paths(capacity_errors(&capacity)), ["capacity"]);
        assert_eq!(paths(capacity_errors(&json!({}))), ["storageClassName"]);
    }
}
