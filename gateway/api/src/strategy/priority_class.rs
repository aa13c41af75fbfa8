//! PriorityClass: how important pods are.

use serde_json::Value;

use super::{BASE, first_generation, name_of, set_default};
use crate::field::{ErrorList, Path};
use crate::kind::{Part, Strategy};
use crate::validation::json::{flag, get, int, str_at};
use crate::validation::metadata;

/// What is peculiar to PriorityClasses.
pub const STRATEGY: Strategy = Strategy {
    default: |object| {
        if let Some(object) = object.as_object_mut() {
            set_default(object, "preemptionPolicy", "PreemptLowerPriority");
        }
    },
    prepare_create: first_generation,
    validate,
    validate_update: |new, old, _: Part| {
        let mut errors = ErrorList::new();
        if int(new, "value") != int(old, "value") {
            errors.push(Path::new("value").forbidden("may not be changed in an update."));
        }
        let field = "preemptionPolicy";
        errors.extend(metadata::immutable(get(new, field), get(old, field), &Path::new(field)));
        errors
    },
    ..BASE
};

/// The classes that every cluster has: name, value, description.
pub const SYSTEM_CLASSES: [(&str, i64, &str); 2] = [
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
];

const PREFIX: &str = "system-";
/// The highest value that isn't the system's.
const HIGHEST: i64 = 1_000_000_000;

fn validate(object: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (name, value) = (name_of(object), int(object, "value").unwrap_or(0));
    if name.starts_with(PREFIX) {
        if let Some(why) = unlike_system_class(object, name, value) {
            errors.push(Path::new("metadata").child("name").forbidden(format!(
                "priority class names with '{PREFIX}' prefix are reserved for system use only. error: {why}"
            )));
        }
    } else if value > HIGHEST {
        errors.push(
            Path::new("value").forbidden(format!("maximum allowed value of a user defined priority is {HIGHEST}")),
        );
    }
    let policy = str_at(object, "preemptionPolicy");
    let policies = ["PreemptLowerPriority", "Never"];
    if !policies.contains(&policy) {
        errors.push(Path::new("preemptionPolicy").not_supported(policy, &policies));
    }
    errors
}

fn unlike_system_class(object: &Value, name: &str, value: i64) -> Option<String> {
    match SYSTEM_CLASSES.iter().find(|(known, ..)| *known == name) {
        None => Some(format!("{name} is not a known system priority class")),
        Some((_, known, _)) if *known != value => Some(format!("value of {name} PriorityClass must be {known}")),
        Some(_) if flag(object, "globalDefault") => {
            Some(format!("globalDefault of {name} PriorityClass must be false"))
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn details(object: &Value) -> Vec<String> {
        validate(object).into_iter().map(|error| error.detail).collect()
    }

    #[test]
    fn names_and_values_of_the_system_are_its_own() {
        let of = |name: &str, value: i64| {
            details(&json!({"metadata": {"name": name}, "value": value, "preemptionPolicy": "Never"}))
        };
        assert!(of("a", HIGHEST).is_empty() && of(SYSTEM_CLASSES[0].0, SYSTEM_CLASSES[0].1).is_empty());
        assert_eq!(of("a", HIGHEST + 1), ["maximum allowed value of a user defined priority is 1000000000"]);
        assert!(of("system-x", 1)[0].ends_with("error: system-x is not a known system priority class"));
        assert!(
            of("system-node-critical", 1)[0]
                .ends_with("value of system-node-critical PriorityClass must be 2000001000")
        );
    }

    #[test]
    fn the_value_stays() {
        let (old, new) = (json!({"value": 1}), json!({"value": 2}));
        assert_eq!((STRATEGY.validate_update)(&new, &old, Part::Main)[0].detail, "may not be changed in an update.");
    }
}
