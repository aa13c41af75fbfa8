//! What is special about namespaces: they are emptied before they go, and some never go.

use carob_api::kind::Kind;
use carob_api::status::{GroupResource, Status};
use serde_json::{Value, json};

/// Namespaces that a cluster cannot be without.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// Whether this is the kind Namespace.
pub(crate) fn is_namespace(kind: &Kind) -> bool {
    kind.group.is_empty() && kind.plural == "namespaces"
}

/// 403 for a namespace that may not be deleted.
pub(crate) fn check_mortal(name: &str) -> Result<(), Status> {
    if IMMORTAL.contains(&name) {
        return Err(Status::forbidden(
            &GroupResource::new("", "namespaces"),
            name,
            "this namespace may not be deleted",
        ));
    }
    Ok(())
}

/// Who still holds a namespace: `spec.finalizers`.
pub(crate) fn finalizers(object: &Value) -> Vec<&str> {
    let list = object.pointer("/spec/finalizers").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Marks a namespace as going.
pub(crate) fn terminate(object: &mut Value) {
    if let Some(fields) = object.as_object_mut() {
        let status = fields.entry("status").or_insert_with(|| json!({}));
        status["phase"] = "Terminating".into();
    }
}
