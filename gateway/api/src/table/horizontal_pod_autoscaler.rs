//! Columns of `HorizontalPodAutoscaler`s.

use serde_json::Value;

use super::NAME;
use super::cells::{AGE, column, list, number, text, text_or};
use crate::kind::Column;
use crate::strategy::horizontal_pod_autoscaler::STORED;

/// Name, what is scaled, metrics with their targets, replicas, age.
pub const COLUMNS: &[Column] = &[NAME, REFERENCE, TARGETS, MIN, MAX, REPLICAS, AGE];

/// The same of the older version.
pub const COLUMNS_V1: &[Column] = &[
    NAME,
    REFERENCE,
    column("Targets", "string", 0, |object, _| targets(&(STORED.to)(object)).into()),
    MIN,
    MAX,
    REPLICAS,
    AGE,
];

const REFERENCE: Column = column("Reference", "string", 0, |object, _| {
    format!("{}/{}", text(object, "/spec/scaleTargetRef/kind"), text(object, "/spec/scaleTargetRef/name")).into()
});
const TARGETS: Column = column("Targets", "string", 0, |object, _| targets(object).into());
const MIN: Column = column("MinPods", "string", 0, |object, _| {
    object.pointer("/spec/minReplicas").and_then(Value::as_i64).map_or("<unset>".into(), |min| min.to_string().into())
});
const MAX: Column = column("MaxPods", "string", 0, |object, _| number(object, "/spec/maxReplicas").into());
const REPLICAS: Column = column("Replicas", "string", 0, |object, _| number(object, "/status/currentReplicas").into());

const SHOWN: usize = 2;
const UNKNOWN: &str = "<unknown>";

fn targets(object: &Value) -> String {
    let metrics = list(object, "/spec/metrics");
    if metrics.is_empty() {
        return "<none>".to_owned();
    }
    let current = list(object, "/status/currentMetrics");
    let shown: Vec<String> = metrics
        .iter()
        .enumerate()
        .take(SHOWN)
        .map(|(index, metric)| target(metric, current.get(index).unwrap_or(&Value::Null)))
        .collect();
    let shown = shown.join(", ");
    match metrics.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} + {more} more..."),
    }
}

/// `now/aim` of one metric.
fn target(metric: &Value, current: &Value) -> String {
    let source = match text(metric, "/type") {
        "External" => "external",
        "Pods" => "pods",
        "Object" => "object",
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        _ => return "<unknown type>".to_owned(),
    };
    let aim = |field: &str| text(metric, &format!("/{source}/target/{field}")).to_owned();
    let now = |field: &str| text_or(current, &format!("/{source}/current/{field}"), UNKNOWN).to_owned();
    let average = aim("averageValue");
    match source {
        "resource" | "containerResource" => {
            let name = text(metric, &format!("/{source}/name"));
            if !average.is_empty() {
                return format!("{name}: {}/{average}", now("averageValue"));
            }
            let percent = |object: &Value, part: &str| {
                object.pointer(&format!("/{source}/{part}/averageUtilization")).and_then(Value::as_i64)
            };
            let shown = |percent: Option<i64>, none: &str| percent.map_or(none.to_owned(), |n| format!("{n}%"));
            format!(
                "{name}: {}/{}",
                shown(percent(current, "current"), UNKNOWN),
                shown(percent(metric, "target"), "<auto>")
            )
        }
        "pods" => format!("{}/{average}", now("averageValue")),
        _ if average.is_empty() => format!("{}/{}", now("value"), aim("value")),
        _ => format!("{}/{average} (avg)", now("averageValue")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn targets_show_what_is_measured_beside_what_is_aimed_at() {
        let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 80}}});
        let rps = json!({"type": "External", "external": {"target": {"averageValue": "10"}}});
        let mut object = json!({"spec": {"metrics": [cpu, rps, rps]}});
        assert_eq!(targets(&object), "cpu: <unknown>/80%, <unknown>/10 (avg) + 1 more...");
        object["status"] = json!({"currentMetrics": [{"resource": {"current": {"averageUtilization": 12}}}]});
        object["spec"]["metrics"] = json!([cpu]);
        assert_eq!(targets(&object), "cpu: 12%/80%");
        assert_eq!(targets(&json!({})), "<none>");
    }
}
