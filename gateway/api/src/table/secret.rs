//! Columns of Secrets.

use super::NAME;
use super::cells::{AGE, column, entries, text};
use crate::kind::Column;

/// Name, type, number of entries, age.
pub const COLUMNS: &[Column] = &[
    NAME,
    column("Type", "string", 0, |object, _| text(object, "/type").into()),
    column("Data", "string", 0, |object, _| entries(object, "/data").into()),
    AGE,
];
