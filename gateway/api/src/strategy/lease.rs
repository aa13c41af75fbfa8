//! Lease: who holds it and for how long.

use serde_json::Value;

use super::{BASE, keep_generation, object_at};
use crate::field::{ErrorList, Path};
use crate::kind::{Part, Strategy};
use crate::validation::json::int;
use crate::validation::metadata::non_negative;

/// What is peculiar to Leases.
pub const STRATEGY: Strategy = Strategy {
    default: |object| {
        object_at(object, "spec");
    },
    prepare_create: drop_coordination,
    prepare_update: |new, old, part| {
        keep_generation(new, old, part);
        drop_coordination(new);
    },
    validate,
    validate_update: |new, _, _: Part| validate(new),
    create_on_update: true,
    unconditional_update: false,
    ..BASE
};

/// Fields of a feature (coordinated leader election) that is off in 1.35.
fn drop_coordination(object: &mut Value) {
    if let Some(spec) = object_at(object, "spec") {
        spec.shift_remove("strategy");
        spec.shift_remove("preferredHolder");
    }
}

fn validate(object: &Value) -> ErrorList {
    let path = Path::new("spec");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let mut errors = ErrorList::new();
    if let Some(seconds) = int(spec, "leaseDurationSeconds").filter(|seconds| *seconds <= 0) {
        errors.push(path.child("leaseDurationSeconds").invalid(seconds, "must be greater than 0"));
    }
    errors.extend(non_negative(spec, "leaseTransitions", &path));
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_lease_lasts() {
        let errors = validate(&json!({"spec": {"leaseDurationSeconds": 0, "leaseTransitions": -1}}));
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
                "spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0"
            ]
        );
    }
}
