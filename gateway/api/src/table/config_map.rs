//! Columns of ConfigMaps.

use super::NAME;
use super::cells::{AGE, column, entries};
use crate::kind::Column;

/// Name, number of entries, age.
pub const COLUMNS: &[Column] = &[
    NAME,
    column("Data", "string", 0, |object, _| (entries(object, "/data") + entries(object, "/binaryData")).into()),
    AGE,
];
