//! Storage: classes, drivers, attachments.

use crate::kind::Kind;

pub(super) static ROWS: &[Kind] = &[];
