//! A Pod's RuntimeClass must exist: it says how the Pod is isolated, which nobody may guess.

use carob_api::status::Status;
use serde_json::Value;

use crate::call::Call;
use crate::objects::{store_failure, text};

/// 403 if there is no such class.
pub(super) async fn admit(call: &Call, pod: &Value) -> Result<(), Status> {
    let class = text(pod, "/spec/runtimeClassName");
    if class.is_empty() {
        return Ok(());
    }
    let key = format!("/node.k8s.io/runtimeclasses/{class}");
    if call.server.store.get(&key).await.map_err(|error| store_failure(&error))?.is_some() {
        return Ok(());
    }
    let why = format!("pod rejected: RuntimeClass {class:?} not found");
    Err(Status::forbidden(&call.resource(), text(pod, "/metadata/name"), why))
}
