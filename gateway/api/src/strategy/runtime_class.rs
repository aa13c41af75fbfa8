//! RuntimeClass: how pods are isolated, what that costs, and where it is to be had.

use serde_json::Value;

use super::BASE;
use crate::field::{ErrorList, Path};
use crate::kind::{Part, Strategy};
use crate::validation::json::{get, items, str_at};
use crate::validation::{metadata, names, resources, scheduling};

/// What is peculiar to RuntimeClasses.
pub const STRATEGY: Strategy = Strategy {
    validate,
    validate_update: |new, old, _: Part| {
        metadata::immutable(new.get("handler"), old.get("handler"), &Path::new("handler"))
    },
    create_on_update: true,
    unconditional_update: false,
    ..BASE
};

fn validate(object: &Value) -> ErrorList {
    let path = Path::new("handler");
    let handler = str_at(object, "handler");
    let mut errors: ErrorList =
        names::dns1123_label(handler).into_iter().map(|text| path.invalid(handler, text)).collect();
    if let Some(overhead) = get(object, "overhead") {
        // Kubernetes looks at it as at a container's limits, and says so.
        errors.extend(resources::amounts(overhead, "podFixed", &Path::new("overhead").child("limits")));
    }
    if let Some(wanted) = get(object, "scheduling") {
        let path = Path::new("scheduling");
        errors.extend(metadata::labels(wanted, "nodeSelector", &path.child("nodeSelector")));
        let path = path.child("tolerations");
        errors.extend(scheduling::tolerations(wanted, &path));
        let tolerations = items(wanted, "tolerations");
        let again = tolerations.iter().enumerate().filter(|(index, one)| tolerations[..*index].contains(one));
        errors.extend(again.map(|(index, one)| path.index(index).duplicate(one.clone())));
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_class_has_a_handler_and_sensible_tolerations() {
        assert!(validate(&json!({"handler": "h", "scheduling": {"nodeSelector": {"a": "b"}}})).is_empty());
        let toleration = json!({"key": "a", "operator": "Exists"});
        let class = json!({"handler": "A", "overhead": {"podFixed": {"cpu": "-1"}},
            "scheduling": {"tolerations": [toleration, toleration]}});
        let paths: Vec<String> = validate(&class).into_iter().map(|error| error.path).collect();
        assert_eq!(paths, ["handler", "overhead.limits[cpu]", "scheduling.tolerations[1]"]);
    }
}
