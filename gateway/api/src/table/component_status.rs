//! Columns of `ComponentStatus`es.

use serde_json::Value;

use super::NAME;
use super::cells::{column, list, text};
use crate::kind::Column;

/// Name, health, what was said of it.
pub const COLUMNS: &[Column] = &[
    NAME,
    column("Status", "string", 0, |object, _| match text(health(object), "/status") {
        "True" => "Healthy".into(),
        "False" => "Unhealthy".into(),
        _ => "Unknown".into(),
    }),
    column("Message", "string", 0, |object, _| text(health(object), "/message").into()),
    column("Error", "string", 0, |object, _| text(health(object), "/error").into()),
];

fn health(object: &Value) -> &Value {
    let conditions = list(object, "/conditions");
    conditions.iter().find(|condition| condition["type"] == "Healthy").unwrap_or(&Value::Null)
}
