//! `HorizontalPodAutoscaler` in two versions, stored as `autoscaling/v2`.

mod conversion;
mod validation;

use serde_json::{Value, json};

use super::{BASE, keep_field, keep_generation, object_at, set_default};
use crate::field::ErrorList;
use crate::kind::{Part, StoredForm, Strategy};

/// What is peculiar to autoscalers of `autoscaling/v2`.
pub const STRATEGY: Strategy = Strategy {
    default,
    prepare_create: |object| object["status"] = json!({"desiredReplicas": 0, "currentMetrics": null}),
    prepare_update,
    validate: validation::validate,
    validate_update: validation::validate_update,
    ..BASE
};

/// What is peculiar to autoscalers of `autoscaling/v1`: they are judged in the newer form.
pub const STRATEGY_V1: Strategy = Strategy {
    default: default_v1,
    prepare_create: |object| object["status"] = json!({"currentReplicas": 0, "desiredReplicas": 0}),
    prepare_update,
    validate: |object| validation::validate(&to_v2(object)),
    validate_update: validate_update_v1,
    ..BASE
};

/// Autoscalers of `autoscaling/v1` are stored as those of `autoscaling/v2`.
pub const STORED: StoredForm = StoredForm {
    group: "autoscaling",
    version: "v2",
    plural: "horizontalpodautoscalers",
    to: to_v2,
    from: conversion::to_v1,
};

/// The share of the requested CPU that is aimed at when nothing is said.
const CPU_PERCENT: i64 = 80;

fn to_v2(object: &Value) -> Value {
    let mut new = conversion::to_v2(object);
    default(&mut new);
    new
}

fn default(object: &mut Value) {
    if let Some(status) = object_at(object, "status") {
        set_default(status, "desiredReplicas", 0);
        status.entry("currentMetrics").or_insert(Value::Null);
    }
    let Some(spec) = object_at(object, "spec") else { return };
    set_default(spec, "minReplicas", 1);
    let metrics = spec.get("metrics").and_then(Value::as_array);
    if metrics.is_none_or(Vec::is_empty) {
        let target = json!({"type": "Utilization", "averageUtilization": CPU_PERCENT});
        spec.insert("metrics".to_owned(), json!([{"type": "Resource", "resource": {"name": "cpu", "target": target}}]));
    }
    let Some(behavior) = spec.get_mut("behavior").filter(|behavior| behavior.is_object()) else { return };
    if let Some(up) = object_at(behavior, "scaleUp") {
        set_default(up, "stabilizationWindowSeconds", 0);
        set_default(up, "selectPolicy", "Max");
        let policies = [("Pods", 4), ("Percent", 100)];
        let policies = policies.map(|(kind, value)| json!({"type": kind, "value": value, "periodSeconds": 15}));
        set_default(up, "policies", policies.to_vec());
    }
    if let Some(down) = object_at(behavior, "scaleDown") {
        set_default(down, "selectPolicy", "Max");
        set_default(down, "policies", json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]));
    }
}

fn default_v1(object: &mut Value) {
    if let Some(status) = object_at(object, "status") {
        set_default(status, "currentReplicas", 0);
        set_default(status, "desiredReplicas", 0);
    }
    if let Some(spec) = object_at(object, "spec") {
        set_default(spec, "minReplicas", 1);
    }
}

fn prepare_update(new: &mut Value, old: &Value, part: Part) {
    keep_field(new, old, if part == Part::Status { "spec" } else { "status" });
    keep_generation(new, old, part);
}

fn validate_update_v1(new: &Value, old: &Value, part: Part) -> ErrorList {
    validation::validate_update(&to_v2(new), &to_v2(old), part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_what_counts_unless_something_else_is_said() {
        let mut object = json!({"spec": {"maxReplicas": 3, "behavior": {"scaleDown": {"policies": [
            {"type": "Pods", "value": 1, "periodSeconds": 60}]}}}});
        default(&mut object);
        assert_eq!(object["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
        assert_eq!(object["spec"]["minReplicas"], 1);
        let behavior = &object["spec"]["behavior"];
        assert_eq!(behavior["scaleDown"]["policies"].as_array().unwrap().len(), 1);
        assert_eq!(behavior["scaleUp"]["policies"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn the_older_version_is_judged_in_the_newer_ones_words() {
        let object = json!({"spec": {"maxReplicas": 1, "targetCPUUtilizationPercentage": -1,
            "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"}}});
        let texts: Vec<_> = (STRATEGY_V1.validate)(&object).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            ["spec.metrics[0].resource.target.averageUtilization: Invalid value: -1: must be greater than 0"]
        );
    }
}
