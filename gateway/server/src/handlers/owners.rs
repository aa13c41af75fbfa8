//! Owner references that a client names twice.

use std::collections::HashSet;

use serde_json::Value;

use crate::call::Call;

/// Keeps one of equal owner references, and tells the client.
pub(super) fn deduplicate(call: &Call, object: &mut Value) {
    let Some(owners) = object.pointer_mut("/metadata/ownerReferences").and_then(Value::as_array_mut) else { return };
    let uids: HashSet<Option<&str>> = owners.iter().map(|owner| owner["uid"].as_str()).collect();
    if uids.len() == owners.len() {
        return;
    }
    let (mut kept, mut repeated) = (Vec::with_capacity(owners.len()), Vec::new());
    for owner in std::mem::take(owners) {
        if kept.contains(&owner) {
            repeated.push(owner["uid"].as_str().unwrap_or_default().to_owned());
        } else {
            kept.push(owner);
        }
    }
    *owners = kept;
    if !repeated.is_empty() {
        call.warn(format!(
            ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, and may \
             reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
            repeated.join(", ")
        ));
    }
}
