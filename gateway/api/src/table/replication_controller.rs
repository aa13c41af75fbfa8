//! Columns of `ReplicationController`s.

use super::NAME;
use super::cells::{AGE, CONTAINERS, IMAGES, column, labels, number};
use crate::kind::Column;

/// Name, replicas by state, age; wide: the template's containers and the selector.
pub const COLUMNS: &[Column] = &[
    NAME,
    column("Desired", "integer", 0, |object, _| number(object, "/spec/replicas").into()),
    column("Current", "integer", 0, |object, _| number(object, "/status/replicas").into()),
    column("Ready", "integer", 0, |object, _| number(object, "/status/readyReplicas").into()),
    AGE,
    CONTAINERS,
    IMAGES,
    column("Selector", "string", 1, |object, _| labels(object.pointer("/spec/selector")).into()),
];
