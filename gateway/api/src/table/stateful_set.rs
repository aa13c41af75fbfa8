//! Columns of `StatefulSet`s.

use super::NAME;
use super::cells::{AGE, CONTAINERS, IMAGES, column, number};
use crate::kind::Column;

/// Name, ready replicas, age; wide: the template's containers.
pub const COLUMNS: &[Column] = &[
    NAME,
    column("Ready", "string", 0, |object, _| {
        format!("{}/{}", number(object, "/status/readyReplicas"), number(object, "/spec/replicas")).into()
    }),
    AGE,
    CONTAINERS,
    IMAGES,
];
