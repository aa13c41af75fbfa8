//! StorageClass and VolumeAttributesClass: how volumes are made, and how they may be changed.

use serde_json::{Value, json};

use super::{BASE, set_default};
use crate::field::{ErrorList, Path};
use crate::kind::{Part, Strategy};
use crate::validation::json::{dig, entries, get, items, str_at, texts};
use crate::validation::{metadata, names};

/// What is peculiar to StorageClasses.
pub const STRATEGY: Strategy = Strategy {
    default,
    validate,
    validate_update: |new, old, _: Part| {
        let mut errors = validate(new);
        for field in ["parameters", "provisioner", "reclaimPolicy"] {
            if get(new, field) != get(old, field) {
                errors.push(Path::new(field).forbidden(format!("updates to {field} are forbidden.")));
            }
        }
        let (field, mode) = (Path::new("volumeBindingMode"), "volumeBindingMode");
        errors.extend(metadata::immutable(get(new, mode), get(old, mode), &field));
        errors
    },
    warnings,
    ..BASE
};

/// What is peculiar to VolumeAttributesClasses.
pub const ATTRIBUTES: Strategy = Strategy {
    prepare_create: protect,
    validate: attributes_errors,
    validate_update: |new, old, _: Part| {
        let mut errors = attributes_errors(new);
        for field in ["driverName", "parameters"] {
            if get(new, field) != get(old, field) {
                errors.push(Path::new(field).forbidden(format!("updates to {field} are forbidden.")));
            }
        }
        errors
    },
    ..BASE
};

const MAX_PARAMETERS: usize = 512;
const MAX_PARAMETERS_BYTES: usize = 256 << 10;
/// A class in use stays: a controller takes this away when nothing refers to it.
const PROTECTION: &str = "kubernetes.io/vac-protection";

fn default(object: &mut Value) {
    let Some(object) = object.as_object_mut() else { return };
    set_default(object, "reclaimPolicy", "Delete");
    set_default(object, "volumeBindingMode", "Immediate");
}

/// Labels of places whose names have changed.
const OLD_LABELS: [(&str, &str); 6] = [
    ("beta.kubernetes.io/arch", "kubernetes.io/arch"),
    ("beta.kubernetes.io/os", "kubernetes.io/os"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("beta.kubernetes.io/instance-type", "node.kubernetes.io/instance-type"),
    ("kubernetes.io/hostname.beta", "kubernetes.io/hostname"),
];

fn warnings(object: &Value) -> Vec<String> {
    let mut texts = Vec::new();
    for (i, term) in items(object, "allowedTopologies").iter().enumerate() {
        for (j, expression) in items(term, "matchLabelExpressions").iter().enumerate() {
            let key = str_at(expression, "key");
            if let Some((_, now)) = OLD_LABELS.iter().find(|(old, _)| *old == key) {
                let place = format!("allowedTopologies[{i}].matchLabelExpressions[{j}].key");
                texts.push(format!("{place}: deprecated since v1.17; use {now:?} instead"));
            }
        }
    }
    texts
}

fn validate(object: &Value) -> ErrorList {
    let mut errors = driver_errors(str_at(object, "provisioner"), &Path::new("provisioner"));
    errors.extend(parameters_errors(object, true));
    let policy = str_at(object, "reclaimPolicy");
    if !["Delete", "Retain"].contains(&policy) {
        errors.push(Path::new("reclaimPolicy").not_supported(policy, &["Delete", "Retain"]));
    }
    let mode = str_at(object, "volumeBindingMode");
    let modes = ["Immediate", "WaitForFirstConsumer"];
    if !modes.contains(&mode) {
        errors.push(Path::new("volumeBindingMode").not_supported(mode, &modes));
    }
    errors.extend(topology_errors(object));
    errors
}

/// The name of what makes volumes: as a label's key, in small letters.
fn driver_errors(name: &str, path: &Path) -> ErrorList {
    if name.is_empty() {
        return vec![path.required("")];
    }
    let name = name.to_lowercase();
    names::qualified_name(&name).into_iter().map(|text| path.invalid(name.as_str(), text)).collect()
}

fn parameters_errors(object: &Value, may_be_empty: bool) -> ErrorList {
    let path = Path::new("parameters");
    let mut errors = ErrorList::new();
    let count = entries(object, "parameters").count();
    if count > MAX_PARAMETERS {
        errors.push(path.too_many(count, MAX_PARAMETERS));
        return errors;
    }
    let mut size = 0;
    for (key, value) in entries(object, "parameters") {
        if key.is_empty() {
            errors.push(path.invalid(key.as_str(), "field can not be empty."));
        }
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > MAX_PARAMETERS_BYTES {
        errors.push(path.too_long(MAX_PARAMETERS_BYTES));
    }
    if count == 0 && !may_be_empty {
        errors.push(path.required("must contain at least one key/value pair"));
    }
    errors
}

fn topology_errors(object: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let path = Path::new("allowedTopologies");
    let terms = items(object, "allowedTopologies");
    let mut earlier: Vec<Vec<(&str, Vec<&str>)>> = Vec::new();
    for (index, term) in terms.iter().enumerate() {
        let path = path.index(index);
        let mut meaning: Vec<(&str, Vec<&str>)> = Vec::new();
        for (index, expression) in items(term, "matchLabelExpressions").iter().enumerate() {
            let path = path.child("matchLabelExpressions").index(index);
            let key = str_at(expression, "key");
            let field = path.child("values");
            let mut values: Vec<&str> = Vec::new();
            if items(expression, "values").is_empty() {
                errors.push(field.required(""));
            }
            for (index, value) in texts(expression, "values").enumerate() {
                if values.contains(&value) {
                    errors.push(field.index(index).duplicate(value));
                }
                values.push(value);
            }
            errors.extend(metadata::label_key(key, &path.child("key")));
            if meaning.iter().any(|(known, _)| *known == key) {
                errors.push(path.child("key").duplicate(key));
            }
            values.sort_unstable();
            meaning.push((key, values));
        }
        meaning.sort_unstable();
        if earlier.contains(&meaning) {
            errors.push(path.child("matchLabelExpressions").duplicate(""));
        }
        earlier.push(meaning);
    }
    errors
}

fn protect(object: &mut Value) {
    let Some(metadata) = super::object_at(object, "metadata") else { return };
    let finalizers = metadata.entry("finalizers").or_insert_with(|| json!([]));
    if finalizers.is_null() {
        *finalizers = json!([]);
    }
    if let Some(list) = finalizers.as_array_mut()
        && !list.iter().any(|name| name == PROTECTION)
    {
        list.push(PROTECTION.into());
    }
}

fn attributes_errors(object: &Value) -> ErrorList {
    let driver = dig(object, &["driverName"]).and_then(Value::as_str).unwrap_or("");
    let mut errors = driver_errors(driver, &Path::new("driverName"));
    errors.extend(parameters_errors(object, false));
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_class_makes_stays_the_same() {
        let mut old = json!({"provisioner": "p"});
        default(&mut old);
        assert!((STRATEGY.validate_update)(&old, &old, Part::Main).is_empty());
        let mut new = old.clone();
        new["reclaimPolicy"] = json!("Retain");
        new["volumeBindingMode"] = json!("WaitForFirstConsumer");
        let errors: Vec<String> =
            (STRATEGY.validate_update)(&new, &old, Part::Main).iter().map(ToString::to_string).collect();
        assert_eq!(
            errors,
            [
                "reclaimPolicy: Forbidden: updates to reclaimPolicy are forbidden.",
                "volumeBindingMode: Invalid value: \"WaitForFirstConsumer\": field is immutable"
            ]
        );
    }

    #[test]
    fn places_are_named_once() {
        let of = |expressions: Value| {
            topology_errors(&json!({"allowedTopologies": [{"matchLabelExpressions": expressions}]}))
        };
        assert!(of(json!([{"key": "a", "values": ["x", "y"]}])).is_empty());
        assert_eq!(
            of(json!([{"key": "a", "values": ["x", "x"]}]))[0].path,
            "allowedTopologies[0].matchLabelExpressions[0].values[1]"
        );
        assert_eq!(of(json!([{"key": "a", "values": ["x"]}, {"key": "a", "values": ["y"]}])).len(), 1);
    }

    #[test]
    fn a_class_of_attributes_is_protected_and_has_some() {
        let mut class = json!({"metadata": {}, "driverName": "d"});
        protect(&mut class);
        protect(&mut class);
        assert_eq!(class["metadata"]["finalizers"], json!([PROTECTION]));
        assert_eq!(attributes_errors(&class)[0].detail, "must contain at least one key/value pair");
    }
}
