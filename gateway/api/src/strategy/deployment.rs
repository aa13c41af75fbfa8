//! Deployment.

use serde_json::{Value, json};

use super::{
    BASE, bump_generation, differs, first_generation, generation_differs, keep_field, object_at, pod_spec, set_default,
    set_default_text,
};
use crate::field::{ErrorList, Path};
use crate::kind::{Part, Strategy};
use crate::validation::json::{dig, get, int, str_at};
use crate::validation::metadata::{immutable, non_negative};
use crate::validation::{amounts, go, pod_warnings, template};

/// What is peculiar to Deployments.
pub const STRATEGY: Strategy = Strategy {
    default,
    prepare_create: |object| {
        object["status"] = json!({});
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
    object_at(object, "status");
    let Some(spec) = object_at(object, "spec") else { return };
    set_default(spec, "replicas", 1);
    set_default(spec, "revisionHistoryLimit", 10);
    set_default(spec, "progressDeadlineSeconds", 600);
    set_default(spec, "strategy", json!({}));
    pod_spec::drop_if_empty(spec, "minReadySeconds");
    pod_spec::drop_if_empty(spec, "paused");
    if let Some(strategy) = spec.get_mut("strategy").and_then(Value::as_object_mut) {
        set_default_text(strategy, "type", "RollingUpdate");
        if strategy["type"] == "RollingUpdate" {
            set_default(strategy, "rollingUpdate", json!({}));
            if let Some(rolling) = strategy["rollingUpdate"].as_object_mut() {
                set_default(rolling, "maxUnavailable", "25%");
                set_default(rolling, "maxSurge", "25%");
            }
        } else {
            pod_spec::drop_null(strategy, "rollingUpdate");
        }
    }
    pod_spec::default_template(&mut object["spec"]);
}

fn prepare_update(new: &mut Value, old: &Value, part: Part) {
    if part == Part::Status {
        keep_field(new, old, "spec");
        if let Some(metadata) = object_at(new, "metadata") {
            match dig(old, &["metadata", "labels"]) {
                Some(labels) => metadata.insert("labels".to_owned(), labels.clone()),
                None => metadata.shift_remove("labels"),
            };
        }
    } else {
        keep_field(new, old, "status");
    }
    // Annotations are copied to ReplicaSets: a change of them is a change of what is wanted.
    let changed = part != Part::Status && (differs(new, old, "/spec") || differs(new, old, "/metadata/annotations"));
    bump_generation(new, old, changed);
}

fn validate(object: &Value) -> ErrorList {
    let path = Path::new("spec");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let mut errors = non_negative(spec, "replicas", &path);
    errors.extend(template::selected(spec, &path));
    errors.extend(strategy_errors(spec, &path.child("strategy")));
    errors.extend(non_negative(spec, "minReadySeconds", &path));
    errors.extend(non_negative(spec, "revisionHistoryLimit", &path));
    errors.extend(non_negative(spec, "progressDeadlineSeconds", &path));
    if let Some(deadline) = int(spec, "progressDeadlineSeconds")
        && deadline <= int(spec, "minReadySeconds").unwrap_or(0)
    {
        let field = path.child("progressDeadlineSeconds");
        errors.push(field.invalid(deadline, "must be greater than minReadySeconds"));
    }
    errors
}

fn strategy_errors(spec: &Value, path: &Path) -> ErrorList {
    let strategy = spec.get("strategy").unwrap_or(&Value::Null);
    let rolling = get(strategy, "rollingUpdate");
    let field = path.child("rollingUpdate");
    match (str_at(strategy, "type"), rolling) {
        ("Recreate", None) => ErrorList::new(),
        ("Recreate", Some(_)) => {
            vec![field.forbidden("may not be specified when strategy `type` is 'Recreate'")]
        }
        ("RollingUpdate", None) => vec![field.required("this should be defaulted and never be nil")],
        ("RollingUpdate", Some(rolling)) => rolling_errors(rolling, &field),
        _ => vec![path.not_supported(go::value(go::DEPLOYMENT_STRATEGY, strategy), &["Recreate", "RollingUpdate"])],
    }
}

fn rolling_errors(rolling: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let amounts = ["maxUnavailable", "maxSurge"].map(|field| rolling.get(field).unwrap_or(&Value::Null));
    for (field, amount) in ["maxUnavailable", "maxSurge"].into_iter().zip(amounts) {
        errors.extend(amounts::positive(amount, &path.child(field)));
    }
    let field = path.child("maxUnavailable");
    if amounts::number(amounts[0]) == 0 && amounts::number(amounts[1]) == 0 {
        errors.push(field.invalid(amounts[0].clone(), "may not be 0 when `maxSurge` is 0"));
    }
    errors.extend(amounts::at_most_all(amounts[0], &field));
    errors
}

fn validate_update(new: &Value, old: &Value, part: Part) -> ErrorList {
    if part == Part::Status {
        return template::counts(
            new,
            &[
                "observedGeneration",
                "replicas",
                "updatedReplicas",
                "readyReplicas",
                "availableReplicas",
                "unavailableReplicas",
                "terminatingReplicas",
                "collisionCount",
            ],
            &["updatedReplicas", "readyReplicas", "availableReplicas"],
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

    fn deployment(change: &Value) -> Value {
        let mut object = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"app": "a"}},
            "template": {"metadata": {"labels": {"app": "a"}},
                         "spec": {"containers": [{"name": "c", "image": "nginx"}]}}}});
        for (field, value) in change.as_object().unwrap() {
            object["spec"][field] = value.clone();
        }
        default(&mut object);
        object
    }

    fn causes(change: &Value) -> Vec<String> {
        validate(&deployment(change)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults_roll() {
        let spec = deployment(&json!({}))["spec"].clone();
        assert_eq!(spec["replicas"], 1);
        assert_eq!(
            spec["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}})
        );
        assert!(spec["template"]["spec"].get("enableServiceLinks").is_none(), "that is for pods only");
    }

    #[test]
    fn the_selector_selects_the_template() {
        let mut empty = json!({"metadata": {"name": "d"}, "spec": {}});
        default(&mut empty);
        let texts: Vec<String> = validate(&empty).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "spec.selector: Required value",
                "spec.template.metadata.labels: Invalid value: null: `selector` does not match template `labels`",
                "spec.template.spec.containers: Required value"
            ]
        );
        assert_eq!(
            causes(&json!({"selector": {}})),
            ["spec.selector: Invalid value: {}: empty selector is invalid for deployment"]
        );
    }

    #[test]
    fn strategies_are_consistent() {
        assert_eq!(
            causes(&json!({"strategy": {"type": "X"}})),
            ["spec.strategy: Unsupported value: {\"Type\":\"X\",\"RollingUpdate\":null}: supported values: \
              \"Recreate\", \"RollingUpdate\""]
        );
        assert_eq!(
            causes(&json!({"strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}})),
            ["spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0"]
        );
        assert_eq!(
            causes(&json!({"strategy": {"rollingUpdate": {"maxSurge": "x%", "maxUnavailable": "150%"}}})).len(),
            2
        );
    }

    #[test]
    fn pods_of_a_deployment_always_restart() {
        let mut object = deployment(&json!({}));
        object["spec"]["template"]["spec"]["restartPolicy"] = json!("Never");
        assert_eq!(
            validate(&object)[0].to_string(),
            "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\""
        );
    }

    #[test]
    fn progress_takes_longer_than_readiness() {
        assert_eq!(
            causes(&json!({"minReadySeconds": 700})),
            ["spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds"]
        );
    }

    #[test]
    fn annotations_count_as_a_change() {
        let mut old = deployment(&json!({}));
        old["metadata"]["generation"] = json!(1);
        let mut new = old.clone();
        new["metadata"]["annotations"] = json!({"a": "b"});
        prepare_update(&mut new, &old, Part::Main);
        assert_eq!(new["metadata"]["generation"], 2);
        let mut status = old.clone();
        status["status"] = json!({"replicas": 1});
        status["metadata"]["labels"] = json!({"a": "b"});
        prepare_update(&mut status, &old, Part::Status);
        assert_eq!((&status["metadata"]["generation"], status["metadata"].get("labels")), (&json!(1), None));
    }

    #[test]
    fn the_selector_stays() {
        let old = deployment(&json!({}));
        let mut new = old.clone();
        new["spec"]["selector"] = json!({"matchLabels": {"app": "z"}});
        new["spec"]["template"]["metadata"]["labels"] = json!({"app": "z"});
        let errors = validate_update(&new, &old, Part::Main);
        assert_eq!(
            errors[0].to_string(),
            "spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"z\"}}: field is immutable"
        );
    }
}
