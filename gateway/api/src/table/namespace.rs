//! Columns of Namespaces.

use super::NAME;
use super::cells::{AGE, column, text};
use crate::kind::Column;

/// Name, phase, age.
pub const COLUMNS: &[Column] =
    &[NAME, column("Status", "string", 0, |object, _| text(object, "/status/phase").into()), AGE];
