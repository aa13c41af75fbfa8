//! Columns of `PersistentVolumeClaim`s.

use serde_json::Value;

use super::NAME;
use super::cells::{AGE, column, text, text_or};
use super::persistent_volume::{access_modes, class, phase};
use crate::kind::Column;

/// Name, phase, volume and what it is like, classes, age; the form when wide.
pub const COLUMNS: &[Column] = &[
    NAME,
    column("Status", "string", 0, |object, _| phase(object).into()),
    column("Volume", "string", 0, |object, _| text(object, "/spec/volumeName").into()),
    column("Capacity", "string", 0, |object, _| {
        if is_bound(object) { text_or(object, "/status/capacity/storage", "0").into() } else { "".into() }
    }),
    column("Access Modes", "string", 0, |object, _| {
        if is_bound(object) { access_modes(object, "/status/accessModes").into() } else { "".into() }
    }),
    column("StorageClass", "string", 0, |object, _| class(object).into()),
    column("VolumeAttributesClass", "string", 0, |object, _| {
        text_or(object, "/spec/volumeAttributesClassName", "<unset>").into()
    }),
    AGE,
    column("VolumeMode", "string", 1, |object, _| text_or(object, "/spec/volumeMode", "<unset>").into()),
];

fn is_bound(claim: &Value) -> bool {
    !text(claim, "/spec/volumeName").is_empty()
}
