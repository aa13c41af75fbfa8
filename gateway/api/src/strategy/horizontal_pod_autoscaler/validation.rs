//! What is wrong with an autoscaler.

use serde_json::Value;

use crate::field::{ErrorList, Path};
use crate::kind::Part;
use crate::validation::json::{get, int, items, str_at};
use crate::validation::metadata::non_negative;
use crate::validation::{names, resources};

/// Types of metrics, each with the field of its source, sorted by type.
const SOURCES: [(&str, &str); 5] = [
    ("ContainerResource", "containerResource"),
    ("External", "external"),
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
];
const TARGETS: [&str; 3] = ["Utilization", "Value", "AverageValue"];
const POLICY_TYPES: [&str; 2] = ["Percent", "Pods"];
const SELECT_POLICIES: [&str; 3] = ["Disabled", "Max", "Min"];
const LONGEST_WINDOW: i64 = 3_600;
const LONGEST_PERIOD: i64 = 1_800;

/// Everything that is wrong with a new autoscaler of `autoscaling/v2`.
pub(super) fn validate(object: &Value) -> ErrorList {
    let path = Path::new("spec");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let mut errors = ErrorList::new();
    let (min, max) = (int(spec, "minReplicas"), int(spec, "maxReplicas").unwrap_or(0));
    if let Some(min) = min.filter(|min| *min < 1) {
        errors.push(path.child("minReplicas").invalid(min, "must be greater than or equal to 1"));
    }
    if max < 1 {
        errors.push(path.child("maxReplicas").invalid(max, "must be greater than 0"));
    }
    if min.is_some_and(|min| max < min) {
        errors.push(path.child("maxReplicas").invalid(max, "must be greater than or equal to `minReplicas`"));
    }
    let target = spec.get("scaleTargetRef").unwrap_or(&Value::Null);
    errors.extend(reference(target, true, &path.child("scaleTargetRef")));
    errors.extend(metrics(spec, min, &path.child("metrics")));
    if let Some(behavior) = get(spec, "behavior") {
        for direction in ["scaleUp", "scaleDown"] {
            if let Some(rules) = get(behavior, direction) {
                errors.extend(scaling_rules(rules, &path.child("behavior").child(direction)));
            }
        }
    }
    errors
}

/// Everything that is wrong with a change.
pub(super) fn validate_update(new: &Value, _: &Value, part: Part) -> ErrorList {
    if part != Part::Status {
        return validate(new);
    }
    let status = new.get("status").unwrap_or(&Value::Null);
    let path = Path::new("status");
    ["currentReplicas", "desiredReplicas"].iter().flat_map(|count| non_negative(status, count, &path)).collect()
}

/// What is wrong with a reference to an object; only what is scaled must be of a group.
fn reference(reference: &Value, grouped: bool, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for field in ["kind", "name"] {
        let text = str_at(reference, field);
        let path = path.child(field);
        if text.is_empty() {
            errors.push(path.required(""));
        } else {
            errors.extend(names::path_segment(text).into_iter().map(|why| path.invalid(text, why)));
        }
    }
    let version = str_at(reference, "apiVersion");
    let field = path.child("apiVersion");
    match version.matches('/').count() {
        0 if grouped => errors.push(field.invalid(version, "apiVersion must specify API group")),
        0 | 1 => {}
        _ => errors.push(field.invalid(version, format!("unexpected GroupVersion string: {version}"))),
    }
    errors
}

fn metrics(spec: &Value, min: Option<i64>, path: &Path) -> ErrorList {
    let metrics = items(spec, "metrics");
    let mut errors: ErrorList =
        metrics.iter().enumerate().flat_map(|(index, item)| metric(item, &path.index(index))).collect();
    let without_pods = |metric: &Value| matches!(str_at(metric, "type"), "Object" | "External");
    if min == Some(0) && !metrics.iter().any(without_pods) {
        let why = "must specify at least one Object or External metric to support scaling to zero replicas";
        errors.push(path.forbidden(why));
    }
    errors
}

fn metric(metric: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let kind = str_at(metric, "type");
    let types = SOURCES.map(|(kind, _)| kind);
    let unsupported = || path.child("type").not_supported(kind, &types);
    if kind.is_empty() {
        errors.push(path.child("type").required("must specify a metric source type"));
    }
    let expected = SOURCES.iter().find(|(known, _)| *known == kind).map(|(_, field)| *field);
    if expected.is_none() {
        errors.push(unsupported());
    }
    let present: Vec<&str> = SOURCES.map(|(_, field)| field).into_iter().filter(|f| get(metric, f).is_some()).collect();
    for field in present.iter().take(1) {
        errors.extend(source(field, &metric[*field], &path.child(field)));
    }
    match expected {
        None => errors.push(unsupported()),
        Some(field) if get(metric, field).is_none() => {
            errors.push(path.child(field).required("must populate information for the given metric source"));
        }
        Some(_) => {}
    }
    if present.len() != 1 {
        let others = present.iter().filter(|field| Some(**field) != expected);
        errors.extend(others.map(|field| path.child(field).forbidden("must populate the given metric source only")));
    }
    errors
}

fn source(kind: &str, source: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    match kind {
        "object" => {
            let object = source.get("describedObject").unwrap_or(&Value::Null);
            errors.extend(reference(object, false, &path.child("describedObject")));
        }
        "containerResource" | "resource" => {
            if str_at(source, "name").is_empty() {
                errors.push(path.child("name").required("must specify a resource name"));
            }
            if kind == "containerResource" && str_at(source, "container").is_empty() {
                errors.push(path.child("container").required("must specify a container"));
            }
        }
        _ => {}
    }
    if matches!(kind, "object" | "external" | "pods") {
        errors.extend(identifier(source.get("metric").unwrap_or(&Value::Null), &path.child("metric")));
    }
    let aim = source.get("target").unwrap_or(&Value::Null);
    let path = path.child("target");
    errors.extend(target(aim, &path));
    let has = |field: &str| get(aim, field).is_some();
    let average = path.child("averageValue");
    match kind {
        "object" if !has("value") && !has("averageValue") => {
            errors.push(average.required("must set either a target value or averageValue"));
        }
        "external" if !has("value") && !has("averageValue") => {
            errors.push(average.required("must set either a target value for metric or a per-pod target"));
        }
        "external" if has("value") && has("averageValue") => {
            let why = "may not set both a target value for metric and a per-pod target";
            errors.push(path.child("value").forbidden(why));
        }
        "pods" if !get(aim, "averageValue").is_some_and(is_positive) => {
            errors.push(average.required("must specify a positive target averageValue"));
        }
        "resource" | "containerResource" => match (has("averageUtilization"), has("averageValue")) {
            (false, false) => {
                let why = "must set either a target raw value or a target utilization";
                errors.push(path.child("averageUtilization").required(why));
            }
            (true, true) => {
                errors.push(average.forbidden("may not set both a target raw value and a target utilization"));
            }
            _ => {}
        },
        _ => {}
    }
    errors
}

fn identifier(metric: &Value, path: &Path) -> ErrorList {
    let name = str_at(metric, "name");
    let field = path.child("name");
    if name.is_empty() {
        return vec![field.required("must specify a metric name")];
    }
    names::path_segment(name).into_iter().map(|why| field.invalid(name, why)).collect()
}

fn target(target: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let kind = str_at(target, "type");
    let field = path.child("type");
    if kind.is_empty() {
        errors.push(field.required("must specify a metric target type"));
    }
    if !TARGETS.contains(&kind) {
        errors.push(field.invalid(kind, "must be either Utilization, Value, or AverageValue"));
    }
    for field in ["value", "averageValue"] {
        if let Some(value) = get(target, field).filter(|value| !is_positive(value)) {
            let shown = resources::quantity(value).map(|quantity| quantity.canonical()).unwrap_or_default();
            errors.push(path.child(field).invalid(shown, "must be positive"));
        }
    }
    if let Some(percent) = int(target, "averageUtilization").filter(|percent| *percent < 1) {
        errors.push(path.child("averageUtilization").invalid(percent, "must be greater than 0"));
    }
    errors
}

fn is_positive(value: &Value) -> bool {
    resources::quantity(value).is_some_and(|quantity| quantity.nanos() > 0)
}

fn scaling_rules(rules: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    if let Some(seconds) = int(rules, "stabilizationWindowSeconds") {
        let field = path.child("stabilizationWindowSeconds");
        if seconds < 0 {
            errors.push(field.invalid(seconds, "must be greater than or equal to zero"));
        }
        if seconds > LONGEST_WINDOW {
            errors.push(field.invalid(seconds, format!("must be less than or equal to {LONGEST_WINDOW}")));
        }
    }
    if let Some(policy) = get(rules, "selectPolicy").and_then(Value::as_str)
        && !SELECT_POLICIES.contains(&policy)
    {
        errors.push(path.child("selectPolicy").not_supported(policy, &SELECT_POLICIES));
    }
    let policies = items(rules, "policies");
    let field = path.child("policies");
    if policies.is_empty() {
        errors.push(field.required("must specify at least one Policy"));
    }
    for (index, policy) in policies.iter().enumerate() {
        errors.extend(scaling_policy(policy, &field.index(index)));
    }
    if let Some(tolerance) = get(rules, "tolerance")
        && resources::quantity(tolerance).is_some_and(|quantity| quantity.nanos() < 0)
    {
        errors.push(path.child("tolerance").invalid(tolerance.clone(), "must be greater or equal to zero"));
    }
    errors
}

fn scaling_policy(policy: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let kind = str_at(policy, "type");
    if !POLICY_TYPES.contains(&kind) {
        errors.push(path.child("type").not_supported(kind, &POLICY_TYPES));
    }
    let (value, period) = (int(policy, "value").unwrap_or(0), int(policy, "periodSeconds").unwrap_or(0));
    if value <= 0 {
        errors.push(path.child("value").invalid(value, "must be greater than zero"));
    }
    let field = path.child("periodSeconds");
    if period <= 0 {
        errors.push(field.invalid(period, "must be greater than zero"));
    }
    if period > LONGEST_PERIOD {
        errors.push(field.invalid(period, format!("must be less than or equal to {LONGEST_PERIOD}")));
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn causes(change: &Value) -> Vec<String> {
        let mut spec = json!({"scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"},
            "minReplicas": 1, "maxReplicas": 2});
        spec.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        validate(&json!({"spec": spec})).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn replicas_are_in_order_and_the_target_is_named() {
        assert_eq!(
            causes(&json!({"maxReplicas": 0, "scaleTargetRef": {"name": "A/b"}})),
            [
                "spec.maxReplicas: Invalid value: 0: must be greater than 0",
                "spec.maxReplicas: Invalid value: 0: must be greater than or equal to `minReplicas`",
                "spec.scaleTargetRef.kind: Required value",
                "spec.scaleTargetRef.name: Invalid value: \"A/b\": may not contain '/'",
                "spec.scaleTargetRef.apiVersion: Invalid value: \"\": apiVersion must specify API group"
            ]
        );
    }

    #[test]
    fn a_metric_has_the_source_of_its_type_with_one_target() {
        assert_eq!(
            causes(&json!({"metrics": [{"type": "Resource"}]})),
            ["spec.metrics[0].resource: Required value: must populate information for the given metric source"]
        );
        let external = json!({"metric": {"name": ""}, "target": {"type": "Value", "averageValue": "1", "value": "1"}});
        assert_eq!(
            causes(&json!({"metrics": [{"type": "External", "external": external}]})),
            [
                "spec.metrics[0].external.metric.name: Required value: must specify a metric name",
                "spec.metrics[0].external.target.value: Forbidden: may not set both a target value for metric and a \
                 per-pod target"
            ]
        );
    }

    #[test]
    fn rules_are_bounded() {
        assert_eq!(
            causes(&json!({"behavior": {"scaleUp": {"stabilizationWindowSeconds": -1,
                "policies": [{"type": "X", "value": 0, "periodSeconds": 99999}]}, "scaleDown": {"policies": []}}}))
            .len(),
            5
        );
    }
}
