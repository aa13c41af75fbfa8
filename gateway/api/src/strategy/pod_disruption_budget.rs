//! `PodDisruptionBudget`: how many pods may be missing because of what somebody does on purpose.

use serde_json::{Value, json};

use super::{BASE, first_generation, object_at, set_default, spec_and_status};
use crate::field::{ErrorList, Path};
use crate::kind::{Part, Strategy};
use crate::validation::json::{get, str_at};
use crate::validation::metadata::non_negative;
use crate::validation::selectors::label_selector;
use crate::validation::{amounts, go};

/// What is peculiar to `PodDisruptionBudget`s.
pub const STRATEGY: Strategy = Strategy {
    default: |object| {
        if let Some(status) = object_at(object, "status") {
            for count in COUNTS {
                set_default(status, count, 0);
            }
        }
        object_at(object, "spec");
    },
    prepare_create: |object| {
        object["status"] = json!({});
        first_generation(object);
    },
    prepare_update: spec_and_status,
    validate,
    validate_update: |new, _, part| {
        if part != Part::Status {
            return validate(new);
        }
        let status = new.get("status").unwrap_or(&Value::Null);
        COUNTS.iter().flat_map(|count| non_negative(status, count, &Path::new("status"))).collect()
    },
    unconditional_update: false,
    ..BASE
};

const COUNTS: [&str; 4] = ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"];
const POLICIES: [&str; 2] = ["AlwaysAllow", "IfHealthyBudget"];

fn validate(object: &Value) -> ErrorList {
    let path = Path::new("spec");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let mut errors = ErrorList::new();
    let amounts = ["minAvailable", "maxUnavailable"].map(|field| get(spec, field).map(|amount| (field, amount)));
    if amounts.iter().all(Option::is_some) {
        let shown = go::value(go::DISRUPTION_BUDGET, spec);
        errors.push(path.invalid(shown, "minAvailable and maxUnavailable cannot be both set"));
    }
    for (field, amount) in amounts.into_iter().flatten() {
        let field = path.child(field);
        errors.extend(amounts::positive(amount, &field));
        errors.extend(amounts::at_most_all(amount, &field));
    }
    if let Some(selector) = get(spec, "selector") {
        errors.extend(label_selector(selector, &path.child("selector")));
    }
    let policy = str_at(spec, "unhealthyPodEvictionPolicy");
    if get(spec, "unhealthyPodEvictionPolicy").is_some() && !POLICIES.contains(&policy) {
        errors.push(path.child("unhealthyPodEvictionPolicy").not_supported(policy, &POLICIES));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_limit_is_enough() {
        let causes = |spec: Value| validate(&json!({"spec": spec})).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            causes(json!({"minAvailable": 1, "maxUnavailable": 1})),
            ["spec: Invalid value: {\"MinAvailable\":1,\"Selector\":null,\"MaxUnavailable\":1,\
              \"UnhealthyPodEvictionPolicy\":null}: minAvailable and maxUnavailable cannot be both set"]
        );
        assert!(causes(json!({"minAvailable": "50%"})).is_empty());
        assert_eq!(
            causes(json!({"maxUnavailable": "101%", "unhealthyPodEvictionPolicy": "X"})),
            [
                "spec.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%",
                "spec.unhealthyPodEvictionPolicy: Unsupported value: \"X\": supported values: \"AlwaysAllow\", \
                 \"IfHealthyBudget\""
            ]
        );
    }
}
