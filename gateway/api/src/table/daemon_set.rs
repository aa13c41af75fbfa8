//! Columns of `DaemonSet`s.

use super::NAME;
use super::cells::{AGE, CONTAINERS, IMAGES, SELECTOR, column, labels, number};
use crate::kind::Column;

/// Name, pods by state, where they go, age; wide: the template's containers and the selector.
pub const COLUMNS: &[Column] = &[
    NAME,
    column("Desired", "integer", 0, |object, _| number(object, "/status/desiredNumberScheduled").into()),
    column("Current", "integer", 0, |object, _| number(object, "/status/currentNumberScheduled").into()),
    column("Ready", "integer", 0, |object, _| number(object, "/status/numberReady").into()),
    column("Up-to-date", "integer", 0, |object, _| number(object, "/status/updatedNumberScheduled").into()),
    column("Available", "integer", 0, |object, _| number(object, "/status/numberAvailable").into()),
    column("Node Selector", "string", 0, |object, _| labels(object.pointer("/spec/template/spec/nodeSelector")).into()),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
