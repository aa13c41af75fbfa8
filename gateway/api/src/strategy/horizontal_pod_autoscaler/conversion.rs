//! `autoscaling/v1` and `autoscaling/v2`: what the older version has no fields for stands in annotations there.

use serde_json::{Map, Value, json};

use crate::validation::json::{dig, get, int, items, str_at};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const ANNOTATIONS: [&str; 4] = [METRICS, CURRENT_METRICS, CONDITIONS, BEHAVIOR];

/// Names of one field in the two versions; in the newer one it is a path.
type Field = (&'static str, &'static [&'static str]);

/// The field of a metric's type that holds its source.
const SOURCES: [(&str, &str); 5] = [
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
    ("ContainerResource", "containerResource"),
    ("External", "external"),
];

/// What a source wants: by the name of the source.
const WANTED: &[(&str, &[Field])] = &[
    (
        "object",
        &[
            ("target", &["describedObject"]),
            ("metricName", &["metric", "name"]),
            ("targetValue", &["target", "value"]),
            ("selector", &["metric", "selector"]),
            ("averageValue", &["target", "averageValue"]),
        ],
    ),
    (
        "pods",
        &[
            ("metricName", &["metric", "name"]),
            ("targetAverageValue", &["target", "averageValue"]),
            ("selector", &["metric", "selector"]),
        ],
    ),
    (
        "resource",
        &[
            ("name", &["name"]),
            ("targetAverageUtilization", &["target", "averageUtilization"]),
            ("targetAverageValue", &["target", "averageValue"]),
        ],
    ),
    (
        "containerResource",
        &[
            ("name", &["name"]),
            ("targetAverageUtilization", &["target", "averageUtilization"]),
            ("targetAverageValue", &["target", "averageValue"]),
            ("container", &["container"]),
        ],
    ),
    (
        "external",
        &[
            ("metricName", &["metric", "name"]),
            ("metricSelector", &["metric", "selector"]),
            ("targetValue", &["target", "value"]),
            ("targetAverageValue", &["target", "averageValue"]),
        ],
    ),
];

/// What was measured at a source.
const MEASURED: &[(&str, &[Field])] = &[
    (
        "object",
        &[
            ("target", &["describedObject"]),
            ("metricName", &["metric", "name"]),
            ("currentValue", &["current", "value"]),
            ("selector", &["metric", "selector"]),
            ("averageValue", &["current", "averageValue"]),
        ],
    ),
    (
        "pods",
        &[
            ("metricName", &["metric", "name"]),
            ("currentAverageValue", &["current", "averageValue"]),
            ("selector", &["metric", "selector"]),
        ],
    ),
    (
        "resource",
        &[
            ("name", &["name"]),
            ("currentAverageUtilization", &["current", "averageUtilization"]),
            ("currentAverageValue", &["current", "averageValue"]),
        ],
    ),
    (
        "containerResource",
        &[
            ("name", &["name"]),
            ("currentAverageUtilization", &["current", "averageUtilization"]),
            ("currentAverageValue", &["current", "averageValue"]),
            ("container", &["container"]),
        ],
    ),
    (
        "external",
        &[
            ("metricName", &["metric", "name"]),
            ("metricSelector", &["metric", "selector"]),
            ("currentValue", &["current", "value"]),
            ("currentAverageValue", &["current", "averageValue"]),
        ],
    ),
];

/// An autoscaler of `autoscaling/v1` as one of `autoscaling/v2`.
pub(super) fn to_v2(old: &Value) -> Value {
    let mut new = old.clone();
    new["apiVersion"] = "autoscaling/v2".into();
    let annotation = |key: &str| dig(old, &["metadata", "annotations", key])?.as_str();
    let parsed = |key: &str| annotation(key).and_then(|text| serde_json::from_str::<Value>(text).ok());
    let listed = |key: &str, fields| {
        let metrics = parsed(key)?;
        Some(metrics.as_array()?.iter().map(|metric| renamed(metric, fields, Way::ToV2)).collect::<Vec<_>>())
    };
    if let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) {
        let mut metrics = listed(METRICS, WANTED).unwrap_or_default();
        if let Some(percent) = spec.shift_remove("targetCPUUtilizationPercentage").filter(|value| !value.is_null()) {
            let target = json!({"type": "Utilization", "averageUtilization": percent});
            metrics.push(json!({"type": "Resource", "resource": {"name": "cpu", "target": target}}));
        }
        if !metrics.is_empty() {
            spec.insert("metrics".to_owned(), metrics.into());
        }
        if let Some(behavior) = parsed(BEHAVIOR) {
            spec.insert("behavior".to_owned(), behavior);
        }
    }
    if let Some(status) = new.get_mut("status").and_then(Value::as_object_mut) {
        let percent = status.shift_remove("currentCPUUtilizationPercentage").filter(|value| !value.is_null());
        let measured = listed(CURRENT_METRICS, MEASURED).or_else(|| {
            let current = json!({"averageUtilization": percent?});
            Some(vec![json!({"type": "Resource", "resource": {"name": "cpu", "current": current}})])
        });
        status.insert("currentMetrics".to_owned(), measured.map_or(Value::Null, Value::from));
        if let Some(conditions) = parsed(CONDITIONS) {
            status.insert("conditions".to_owned(), conditions);
        }
    }
    drop_annotations(&mut new);
    new
}

/// The inverse of [`to_v2`].
pub(super) fn to_v1(new: &Value) -> Value {
    let mut old = new.clone();
    old["apiVersion"] = "autoscaling/v1".into();
    drop_annotations(&mut old);
    let mut annotations = Map::new();
    let spec = new.get("spec").unwrap_or(&Value::Null);
    let others: Vec<Value> = items(spec, "metrics")
        .iter()
        .filter(|metric| cpu_utilization(metric, "target").is_none())
        .map(|metric| renamed(metric, WANTED, Way::ToV1))
        .collect();
    let status = new.get("status").unwrap_or(&Value::Null);
    let measured: Vec<Value> =
        items(status, "currentMetrics").iter().map(|metric| renamed(metric, MEASURED, Way::ToV1)).collect();
    let conditions = items(status, "conditions");
    for (key, list) in [(METRICS, &others[..]), (CURRENT_METRICS, &measured[..]), (CONDITIONS, conditions)] {
        if !list.is_empty() {
            annotations.insert(key.to_owned(), Value::from(list).to_string().into());
        }
    }
    if let Some(behavior) = get(spec, "behavior") {
        annotations.insert(BEHAVIOR.to_owned(), behavior.to_string().into());
    }
    if let Some(spec) = old.get_mut("spec").and_then(Value::as_object_mut) {
        spec.shift_remove("behavior");
        let metrics = spec.shift_remove("metrics").unwrap_or_default();
        let percent = metrics.as_array().into_iter().flatten().find_map(|metric| cpu_utilization(metric, "target"));
        if let Some(percent) = percent {
            spec.insert("targetCPUUtilizationPercentage".to_owned(), percent.into());
        }
    }
    if let Some(status) = old.get_mut("status").and_then(Value::as_object_mut) {
        status.shift_remove("conditions");
        let metrics = status.shift_remove("currentMetrics").unwrap_or_default();
        let percent = metrics.as_array().into_iter().flatten().find_map(|metric| cpu_utilization(metric, "current"));
        if let Some(percent) = percent {
            status.insert("currentCPUUtilizationPercentage".to_owned(), percent.into());
        }
    }
    if !annotations.is_empty()
        && let Some(metadata) = super::super::object_at(&mut old, "metadata")
        && let Some(present) = metadata.entry("annotations").or_insert_with(|| json!({})).as_object_mut()
    {
        present.extend(annotations);
    }
    old
}

/// The share of the CPU that a metric is about, if it is about that.
fn cpu_utilization(metric: &Value, part: &str) -> Option<i64> {
    let resource = get(metric, "resource").filter(|_| str_at(metric, "type") == "Resource")?;
    int(get(resource, part)?, "averageUtilization").filter(|_| str_at(resource, "name") == "cpu")
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    ToV1,
    ToV2,
}

/// A metric with the names of the other version.
fn renamed(metric: &Value, fields: &[(&str, &[Field])], way: Way) -> Value {
    let kind = str_at(metric, "type");
    let mut result = json!({ "type": kind });
    for (_, source) in SOURCES {
        let Some(from) = get(metric, source) else { continue };
        let fields = fields.iter().find(|(name, _)| *name == source).map_or(&[][..], |(_, fields)| *fields);
        let mut to = json!({});
        for (old, new) in fields {
            match way {
                Way::ToV1 => {
                    if let Some(value) = dig(from, new) {
                        to[*old] = value.clone();
                    }
                }
                Way::ToV2 => {
                    if let Some(value) = get(from, old) {
                        let slot = new.iter().fold(&mut to, |inner, name| &mut inner[*name]);
                        *slot = value.clone();
                    }
                }
            }
        }
        if way == Way::ToV2 && to.get("target").is_some() {
            tell_target(&mut to, source);
        }
        result[source] = to;
    }
    result
}

/// The newer version says which of a target's values counts; the older one has a zero where another counts.
fn tell_target(source: &mut Value, name: &str) {
    let target = &source["target"];
    let has = |field: &str| get(target, field).is_some();
    let kind = match name {
        "object" if !has("averageValue") => "Value",
        "external" if has("value") => "Value",
        "resource" | "containerResource" if has("averageUtilization") => "Utilization",
        _ => "AverageValue",
    };
    source["target"]["type"] = kind.into();
    if name == "object"
        && kind == "AverageValue"
        && let Some(target) = source["target"].as_object_mut()
    {
        target.shift_remove("value");
    }
}

fn drop_annotations(object: &mut Value) {
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) else { return };
    for key in ANNOTATIONS {
        annotations.shift_remove(key);
    }
    if annotations.is_empty() {
        metadata.shift_remove("annotations");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_version_keeps_what_it_cannot_say_in_annotations() {
        let new = json!({"apiVersion": "autoscaling/v2", "metadata": {"name": "h"}, "spec": {"maxReplicas": 3,
            "metrics": [
                {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 60}}},
                {"type": "Pods", "pods": {"metric": {"name": "rps"}, "target": {"type": "AverageValue", "averageValue": "10"}}}],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 5}}},
            "status": {"desiredReplicas": 1, "conditions": [{"type": "AbleToScale", "status": "True"}],
                "currentMetrics": [{"type": "Resource",
                    "resource": {"name": "cpu", "current": {"averageUtilization": 50, "averageValue": "5m"}}}]}});
        let old = to_v1(&new);
        assert_eq!(old["spec"], json!({"maxReplicas": 3, "targetCPUUtilizationPercentage": 60}));
        assert_eq!(old["status"], json!({"desiredReplicas": 1, "currentCPUUtilizationPercentage": 50}));
        assert_eq!(
            old["metadata"]["annotations"][METRICS],
            r#"[{"type":"Pods","pods":{"metricName":"rps","targetAverageValue":"10"}}]"#
        );
        assert_eq!(old["metadata"]["annotations"].as_object().unwrap().len(), 4);
        let back = to_v2(&old);
        assert_eq!(back["spec"]["behavior"], new["spec"]["behavior"]);
        assert_eq!(back["status"], new["status"]);
        let metrics = back["spec"]["metrics"].as_array().unwrap();
        assert_eq!((&metrics[1], &metrics[0]), (&new["spec"]["metrics"][0], &new["spec"]["metrics"][1]));
        assert!(back["metadata"].get("annotations").is_none());
    }

    #[test]
    fn a_target_of_an_object_is_an_average_if_it_has_one() {
        let metric = json!({"type": "Object", "object": {"target": {"kind": "Service", "name": "s"}, "metricName": "m",
            "targetValue": "0", "averageValue": "2"}});
        assert_eq!(
            renamed(&metric, WANTED, Way::ToV2)["object"]["target"],
            json!({"type": "AverageValue", "averageValue": "2"})
        );
    }
}
