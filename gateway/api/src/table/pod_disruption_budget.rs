//! Columns of `PodDisruptionBudget`s.

use serde_json::Value;

use super::NAME;
use super::cells::{AGE, column, number};
use crate::kind::Column;

/// Name, the limits, how many may be missing now, age.
pub const COLUMNS: &[Column] = &[
    NAME,
    column("Min Available", "string", 0, |object, _| amount(object, "/spec/minAvailable").into()),
    column("Max Unavailable", "string", 0, |object, _| amount(object, "/spec/maxUnavailable").into()),
    column("Allowed Disruptions", "integer", 0, |object, _| number(object, "/status/disruptionsAllowed").into()),
    AGE,
];

fn amount(object: &Value, pointer: &str) -> String {
    match object.pointer(pointer) {
        None | Some(Value::Null) => "N/A".to_owned(),
        Some(Value::String(share)) => share.clone(),
        Some(number) => number.to_string(),
    }
}
