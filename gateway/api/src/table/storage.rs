//! Columns of storage: classes, drivers, attachments.

use serde_json::Value;

use super::NAME;
use super::cells::{AGE, column, list, text, text_or};
use crate::kind::Column;

/// Columns of StorageClasses.
pub const STORAGE_CLASS: &[Column] = &[
    Column { cell: |object, _| name_of_class(object).into(), ..NAME },
    column("Provisioner", "string", 0, |object, _| text(object, "/provisioner").into()),
    column("ReclaimPolicy", "string", 0, |object, _| text_or(object, "/reclaimPolicy", "Delete").into()),
    column("VolumeBindingMode", "string", 0, |object, _| text_or(object, "/volumeBindingMode", "<unset>").into()),
    column("AllowVolumeExpansion", "string", 0, |object, _| flag(object, "/allowVolumeExpansion")),
    AGE,
];

/// Columns of VolumeAttributesClasses.
pub const ATTRIBUTES_CLASS: &[Column] = &[
    Column { cell: |object, _| name_of_class(object).into(), ..NAME },
    column("DriverName", "string", 0, |object, _| text(object, "/driverName").into()),
    AGE,
];

/// Columns of VolumeAttachments.
pub const ATTACHMENT: &[Column] = &[
    NAME,
    Column { format: "name", ..column("Attacher", "string", 0, |object, _| text(object, "/spec/attacher").into()) },
    column("PV", "string", 0, |object, _| text(object, "/spec/source/persistentVolumeName").into()),
    column("Node", "string", 0, |object, _| text(object, "/spec/nodeName").into()),
    column("Attached", "boolean", 0, |object, _| flag(object, "/status/attached")),
    AGE,
];

/// Columns of CSIDrivers.
pub const DRIVER: &[Column] = &[
    NAME,
    column("AttachRequired", "boolean", 0, |object, _| {
        object.pointer("/spec/attachRequired").and_then(Value::as_bool).unwrap_or(true).into()
    }),
    column("PodInfoOnMount", "boolean", 0, |object, _| flag(object, "/spec/podInfoOnMount")),
    column("StorageCapacity", "boolean", 0, |object, _| flag(object, "/spec/storageCapacity")),
    column("TokenRequests", "string", 0, |object, _| {
        let wanted = list(object, "/spec/tokenRequests");
        joined_or(wanted.iter().map(|request| text(request, "/audience")), "<unset>").into()
    }),
    column("RequiresRepublish", "boolean", 0, |object, _| flag(object, "/spec/requiresRepublish")),
    column("Modes", "string", 0, |object, _| {
        let modes = list(object, "/spec/volumeLifecycleModes");
        joined_or(modes.iter().map(|mode| mode.as_str().unwrap_or_default()), "<none>").into()
    }),
    AGE,
];

/// Columns of CSINodes.
pub const NODE: &[Column] =
    &[NAME, column("Drivers", "integer", 0, |object, _| list(object, "/spec/drivers").len().into()), AGE];

/// Annotations that make a class the one for claims without any.
const DEFAULT: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];

fn name_of_class(class: &Value) -> String {
    let name = text(class, "/metadata/name");
    let annotations = &class["metadata"]["annotations"];
    if DEFAULT.iter().any(|key| annotations[*key] == "true") { format!("{name} (default)") } else { name.to_owned() }
}

fn flag(object: &Value, pointer: &str) -> Value {
    object.pointer(pointer).and_then(Value::as_bool).unwrap_or(false).into()
}

fn joined_or<'a>(texts: impl Iterator<Item = &'a str>, otherwise: &str) -> String {
    let all = texts.collect::<Vec<_>>();
    if all.is_empty() { otherwise.to_owned() } else { all.join(",") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_default_class_says_so() {
        let class = json!({"metadata": {"name": "a", "annotations": {DEFAULT[0]: "true"}}});
        assert_eq!(name_of_class(&class), "a (default)");
        assert_eq!(name_of_class(&json!({"metadata": {"name": "a"}})), "a");
    }
}
