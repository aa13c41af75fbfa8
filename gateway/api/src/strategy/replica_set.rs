//! ReplicaSet.

use serde_json::{Value, json};

use super::{
    BASE, bump_generation, differs, first_generation, generation_differs, keep_field, object_at, pod_spec, set_default,
};
use crate::field::{ErrorList, Path};
use crate::kind::{Part, Strategy};
use crate::validation::json::dig;
use crate::validation::metadata::{immutable, non_negative};
use crate::validation::{pod_warnings, template};

/// What is peculiar to ReplicaSets.
pub const STRATEGY: Strategy = Strategy {
    default,
    prepare_create: |object| {
        object["status"] = json!({"replicas": 0});
        first_generation(object);
    },
    prepare_update,
    validate,
    validate_update,
    warnings: pod_warnings::workload,
    warns_again: generation_differs,
    ..BASE
};

fn default(object: &mut Value) {
    if let Some(status) = object_at(object, "status") {
        set_default(status, "replicas", 0);
    }
    if let Some(spec) = object_at(object, "spec") {
        set_default(spec, "replicas", 1);
        pod_spec::drop_if_empty(spec, "minReadySeconds");
    }
    pod_spec::default_template(&mut object["spec"]);
}

fn prepare_update(new: &mut Value, old: &Value, part: Part) {
    keep_field(new, old, if part == Part::Status { "spec" } else { "status" });
    let changed = differs(new, old, "/spec");
    bump_generation(new, old, changed);
}

fn validate(object: &Value) -> ErrorList {
    let path = Path::new("spec");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let mut errors = non_negative(spec, "replicas", &path);
    errors.extend(non_negative(spec, "minReadySeconds", &path));
    errors.extend(template::selected(spec, &path));
    errors
}

fn validate_update(new: &Value, old: &Value, part: Part) -> ErrorList {
    if part == Part::Status {
        return template::counts(
            new,
            &[
                "replicas",
                "fullyLabeledReplicas",
                "readyReplicas",
                "availableReplicas",
                "terminatingReplicas",
                "observedGeneration",
            ],
            &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"],
        );
    }
    let mut errors = validate(new);
    let selector = |object| dig(object, &["spec", "selector"]);
    errors.extend(immutable(selector(new), selector(old), &Path::new("spec").child("selector")));
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generation_counts_changes_of_the_spec() {
        let old = json!({"metadata": {"generation": 1}, "spec": {"replicas": 1}, "status": {"replicas": 1}});
        let mut new = json!({"metadata": {"annotations": {"a": "b"}}, "spec": {"replicas": 1}});
        prepare_update(&mut new, &old, Part::Main);
        assert_eq!((&new["metadata"]["generation"], &new["status"]), (&json!(1), &old["status"]));
        new["spec"]["replicas"] = json!(2);
        prepare_update(&mut new, &old, Part::Main);
        assert_eq!(new["metadata"]["generation"], 2);
    }
}
