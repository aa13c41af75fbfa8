//! Columns of Scales.

use super::NAME;
use super::cells::{AGE, column, number};
use crate::kind::Column;

/// Name, replicas wanted and there, age.
pub const COLUMNS: &[Column] = &[
    NAME,
    column("Desired", "integer", 0, |object, _| number(object, "/spec/replicas").into()),
    column("Available", "integer", 0, |object, _| number(object, "/status/replicas").into()),
    AGE,
];
