//! Columns of `PodTemplate`s.

use super::NAME;
use super::cells::{column, containers, labels};
use crate::kind::Column;

/// Name, containers, images, labels.
pub const COLUMNS: &[Column] = &[
    NAME,
    column("Containers", "string", 0, |object, _| containers(object, "/template", "name").into()),
    column("Images", "string", 0, |object, _| containers(object, "/template", "image").into()),
    column("Pod Labels", "string", 0, |object, _| labels(object.pointer("/template/metadata/labels")).into()),
];
