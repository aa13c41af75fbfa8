//! Devices: dynamic resource allocation.

use crate::kind::Kind;

pub(super) static ROWS: &[Kind] = &[];
