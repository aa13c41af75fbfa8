//! Objects as the client wants to see them: tables, metadata only.

use carob_api::status::Status;
use carob_api::table::{IncludeObject, Rows};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::call::Call;

/// A Table of objects.
pub(crate) fn table(
    call: &Call,
    version: &str,
    objects: &[&Value],
    meta: Value,
    with_columns: bool,
) -> Result<Value, Status> {
    let form = Rows { include: include_object(call)?, version, now: Timestamp::now() };
    Ok(form.table(&call.kind, objects, meta, with_columns))
}

/// What rows hold, by `?includeObject=`.
pub(crate) fn include_object(call: &Call) -> Result<IncludeObject, Status> {
    match call.query.text("includeObject") {
        None | Some("Metadata") => Ok(IncludeObject::Metadata),
        Some("Object") => Ok(IncludeObject::Object),
        Some("None") => Ok(IncludeObject::None),
        Some(other) => Err(Status::bad_request(format!(
            "Unable to convert to Table as requested: includeObject: Invalid value: {other:?}: must be 'Metadata', \
             'Object', 'None', or empty"
        ))),
    }
}

/// A `PartialObjectMetadata`.
pub(crate) fn metadata_only(object: &Value, version: &str) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": object.get("metadata").cloned().unwrap_or_else(|| Value::Object(Map::new())),
    })
}
