//! What is decided about a new object beyond its own rules: whether its namespace takes it, and what it is given.

mod namespace;
mod priority;
mod runtime_class;
mod service_account;
mod tolerations;

use carob_api::status::Status;
use serde_json::Value;

use crate::call::Call;
pub(crate) use namespace::Place;

/// Completes a new object, or refuses it.
pub(crate) async fn admit(call: &Call, object: &mut Value) -> Result<(), Status> {
    if is_pod(call) {
        service_account::admit(call, object).await?;
        priority::admit(call, object)?;
        tolerations::admit(object);
        runtime_class::admit(call, object).await?;
    }
    Ok(())
}

/// Completes a changed object.
pub(crate) fn admit_update(call: &Call, object: &mut Value) {
    if is_pod(call) && object.pointer("/metadata/deletionTimestamp").is_none() {
        tolerations::admit(object);
    }
}

fn is_pod(call: &Call) -> bool {
    (call.kind.group, call.kind.plural) == ("", "pods")
}
