//! Who may do what: rbac, certificates, authentication, authorization.

use crate::kind::Kind;

pub(super) static ROWS: &[Kind] = &[];
