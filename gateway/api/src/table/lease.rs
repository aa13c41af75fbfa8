//! Columns of Leases.

use super::NAME;
use super::cells::{AGE, column, text};
use crate::kind::Column;

/// Name, who holds it, age.
pub const COLUMNS: &[Column] =
    &[NAME, column("Holder", "string", 0, |object, _| text(object, "/spec/holderIdentity").into()), AGE];
