//! Columns of Deployments.

use serde_json::Value;

use super::NAME;
use super::cells::{AGE, CONTAINERS, IMAGES, column, number, selector};
use crate::kind::Column;

/// Name, replicas by state, age; wide: the template's containers and the selector.
pub const COLUMNS: &[Column] = &[
    NAME,
    column("Ready", "string", 0, |object, _| {
        format!("{}/{}", number(object, "/status/readyReplicas"), number(object, "/spec/replicas")).into()
    }),
    column("Up-to-date", "string", 0, |object, _| number(object, "/status/updatedReplicas").into()),
    column("Available", "string", 0, |object, _| number(object, "/status/availableReplicas").into()),
    AGE,
    CONTAINERS,
    IMAGES,
    column("Selector", "string", 1, |object, _| {
        selector(object.pointer("/spec/selector").unwrap_or(&Value::Null)).into()
    }),
];
