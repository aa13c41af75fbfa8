//! How the API itself is extended and guarded: admission, custom resources, aggregation, flow control.

use crate::kind::Kind;

pub(super) static ROWS: &[Kind] = &[];
