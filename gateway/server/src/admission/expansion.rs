//! `PersistentVolumeClaimResize`: a claim grows if it is bound and its class allows it.

use std::cmp::Ordering;

use carob_api::quantity::Quantity;
use carob_api::status::Status;
use serde_json::Value;

use super::request::Request;
use crate::objects::{store_failure, text};

/// 403 for a claim that may not grow.
pub(super) async fn admit(request: &Request<'_>) -> Result<(), Status> {
    let Some(old) = request.old else { return Ok(()) };
    let new = &request.object;
    if size(new).cmp(&size(old)) != Ordering::Greater {
        return Ok(());
    }
    let refuse = |why: &str| Err(Status::forbidden(&request.call.resource(), request.call.name(), why));
    if text(old, "/status/phase") != "Bound" {
        return refuse("Only bound persistent volume claims can be expanded");
    }
    let class = class(new);
    if class.is_empty() || class != self::class(old) || !allows(request, class).await? {
        return refuse(
            "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support \
             resize",
        );
    }
    Ok(())
}

async fn allows(request: &Request<'_>, class: &str) -> Result<bool, Status> {
    let server = &request.call.server;
    let key = format!("/storage.k8s.io/storageclasses/{class}");
    let entry = server.store.get(&key).await.map_err(|error| store_failure(&error))?;
    let class = entry.map(|entry| server.decoded.get(&entry)).transpose()?;
    Ok(class.is_some_and(|class| class["allowVolumeExpansion"] == true))
}

fn size(claim: &Value) -> Quantity {
    Quantity::parse(text(claim, "/spec/resources/requests/storage")).unwrap_or(Quantity::ZERO)
}

/// The name of a claim's class; the annotation was there before the field.
fn class(claim: &Value) -> &str {
    let before = claim["metadata"]["annotations"].get("volume.beta.kubernetes.io/storage-class");
    before.and_then(Value::as_str).unwrap_or_else(|| text(claim, "/spec/storageClassName"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sizes_are_compared_as_amounts_and_classes_by_their_older_name_first() {
        let claim =
            |size: &str| json!({"spec": {"resources": {"requests": {"storage": size}}, "storageClassName": "s"}});
        assert_eq!(size(&claim("1Gi")), size(&claim("1024Mi")));
        assert!(size(&claim("1025Mi")) > size(&claim("1Gi")) && size(&json!({})) == Quantity::ZERO);
        let mut claim = claim("1");
        assert_eq!(class(&claim), "s");
        claim["metadata"] = json!({"annotations": {"volume.beta.kubernetes.io/storage-class": "older"}});
        assert_eq!(class(&claim), "older");
    }
}
