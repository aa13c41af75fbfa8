//! Columns of dynamic resource allocation: classes, claims, slices.

use serde_json::Value;

use super::NAME;
use super::cells::{AGE, column, list, text};
use crate::kind::Column;

/// Columns of DeviceClasses and ResourceClaimTemplates: there is nothing short to say of them.
pub const NAME_AND_AGE: &[Column] = &[NAME, AGE];

/// Columns of ResourceClaims.
pub const CLAIM: &[Column] = &[NAME, column("State", "string", 0, |object, _| state(object).into()), AGE];

/// Columns of ResourceSlices.
pub const SLICE: &[Column] = &[
    NAME,
    column("Node", "string", 0, |object, _| text(object, "/spec/nodeName").into()),
    column("Driver", "string", 0, |object, _| text(object, "/spec/driver").into()),
    column("Pool", "string", 0, |object, _| text(object, "/spec/pool/name").into()),
    AGE,
];

fn state(claim: &Value) -> String {
    let deleted = claim.pointer("/metadata/deletionTimestamp").is_some();
    let allocated = claim.pointer("/status/allocation").is_some_and(|value| !value.is_null());
    let reserved = allocated && !list(claim, "/status/reservedFor").is_empty();
    let states =
        [(deleted, "deleted"), (allocated, "allocated"), (reserved, "reserved"), (!allocated && !deleted, "pending")];
    states.into_iter().filter(|(is, _)| *is).map(|(_, name)| name).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_claim_is_pending_until_it_is_allocated() {
        assert_eq!(state(&json!({})), "pending");
        assert_eq!(state(&json!({"status": {"allocation": {}, "reservedFor": [{"name": "p"}]}})), "allocated,reserved");
    }
}
