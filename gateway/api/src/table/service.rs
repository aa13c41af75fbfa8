//! Columns of Services.

use serde_json::Value;

use super::NAME;
use super::cells::{AGE, column, text};
use crate::kind::Column;

/// Name, type, addresses, ports, age; the selector when wide.
pub const COLUMNS: &[Column] = &[
    NAME,
    column("Type", "string", 0, |object, _| text(object, "/spec/type").into()),
    column("Cluster-IP", "string", 0, |object, _| or_none(text(object, "/spec/clusterIP")).into()),
    column("External-IP", "string", 0, |_, _| "<none>".into()),
    column("Port(s)", "string", 0, |object, _| or_none(&ports(object)).into()),
    AGE,
    column("Selector", "string", 1, |object, _| or_none(&selector(object)).into()),
];

fn or_none(text: &str) -> &str {
    if text.is_empty() { "<none>" } else { text }
}

fn ports(service: &Value) -> String {
    let ports = service.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten();
    let shown = ports.map(|port| {
        let protocol = port["protocol"].as_str().unwrap_or("TCP");
        match port["nodePort"].as_i64() {
            Some(node) if node > 0 => format!("{}:{node}/{protocol}", port["port"]),
            _ => format!("{}/{protocol}", port["port"]),
        }
    });
    shown.collect::<Vec<_>>().join(",")
}

fn selector(service: &Value) -> String {
    let labels = service.pointer("/spec/selector").and_then(Value::as_object).into_iter().flatten();
    labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect::<Vec<_>>().join(",")
}
