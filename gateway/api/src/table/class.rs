//! Columns of PriorityClasses and RuntimeClasses.

use super::NAME;
use super::cells::{AGE, column, number, text};
use crate::kind::Column;

/// Columns of PriorityClasses.
pub const PRIORITY: &[Column] = &[
    NAME,
    column("Value", "integer", 0, |object, _| number(object, "/value").into()),
    column("Global-Default", "boolean", 0, |object, _| object["globalDefault"].as_bool().unwrap_or(false).into()),
    AGE,
    column("PreemptionPolicy", "string", 0, |object, _| text(object, "/preemptionPolicy").into()),
];

/// Columns of RuntimeClasses.
pub const RUNTIME: &[Column] =
    &[NAME, column("Handler", "string", 0, |object, _| text(object, "/handler").into()), AGE];
