//! Columns of ServiceAccounts.

use super::NAME;
use super::cells::AGE;
use crate::kind::Column;

/// Name, age.
pub const COLUMNS: &[Column] = &[NAME, AGE];
