//! Columns of `PersistentVolume`s.

use serde_json::Value;

use super::NAME;
use super::cells::{AGE, column, list, text, text_or};
use crate::kind::Column;

/// Name, size, ways of use, what becomes of it, phase, claim, classes, reason, age; the form when wide.
pub const COLUMNS: &[Column] = &[
    NAME,
    column("Capacity", "string", 0, |object, _| text_or(object, "/spec/capacity/storage", "0").into()),
    column("Access Modes", "string", 0, |object, _| access_modes(object, "/spec/accessModes").into()),
    column("Reclaim Policy", "string", 0, |object, _| text(object, "/spec/persistentVolumeReclaimPolicy").into()),
    column("Status", "string", 0, |object, _| phase(object).into()),
    column("Claim", "string", 0, |object, _| claim(object).into()),
    column("StorageClass", "string", 0, |object, _| class(object).into()),
    column("VolumeAttributesClass", "string", 0, |object, _| {
        text_or(object, "/spec/volumeAttributesClassName", "<unset>").into()
    }),
    column("Reason", "string", 0, |object, _| text(object, "/status/reason").into()),
    AGE,
    column("VolumeMode", "string", 1, |object, _| text_or(object, "/spec/volumeMode", "<unset>").into()),
];

/// Ways of use, in the order in which they are shown.
const MODES: [(&str, &str); 4] =
    [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];

pub(super) fn access_modes(object: &Value, pointer: &str) -> String {
    let has = |mode: &str| list(object, pointer).iter().any(|item| item == mode);
    let shown: Vec<&str> = MODES.iter().filter(|(mode, _)| has(mode)).map(|(_, short)| *short).collect();
    shown.join(",")
}

pub(super) fn phase(object: &Value) -> &str {
    let going = object.pointer("/metadata/deletionTimestamp").is_some();
    if going { "Terminating" } else { text(object, "/status/phase") }
}

/// The class of a volume or claim: a field, or in old ones an annotation.
pub(super) fn class(object: &Value) -> &str {
    const ANNOTATION: &str = "/metadata/annotations/volume.beta.kubernetes.io~1storage-class";
    text_or(object, ANNOTATION, text(object, "/spec/storageClassName"))
}

fn claim(volume: &Value) -> String {
    match volume.pointer("/spec/claimRef") {
        Some(claim) if claim.is_object() => format!("{}/{}", text(claim, "/namespace"), text(claim, "/name")),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ways_of_use_are_short_and_in_order() {
        let volume = json!({"spec": {"accessModes": ["ReadWriteOncePod", "ReadWriteMany", "ReadWriteOnce", "ReadWriteMany"],
            "claimRef": {"namespace": "n", "name": "c"}}});
        assert_eq!(access_modes(&volume, "/spec/accessModes"), "RWO,RWX,RWOP");
        assert_eq!(claim(&volume), "n/c");
    }
}
