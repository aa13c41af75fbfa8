//! Services beyond the core group: networking (ingress, policies, address ranges).

use crate::kind::Kind;

pub(super) static ROWS: &[Kind] = &[];
