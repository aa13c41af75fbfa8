//! Patches: JSON Patch, JSON merge patch and strategic merge patch, each from a whole object to a whole object.
//!
//! What comes out isn't yet defaulted, pruned or validated. Codes and texts of refusals are those of Kubernetes' API
//! server, whose patch library is not strict where RFC 6902 is: that is copied too.

mod go_text;
mod json;
mod merge;
mod strategic;

use serde_json::Value;

pub use go_text::go_text;
pub use json::{MAX_COPIED_BYTES, MAX_OPERATIONS};

use crate::kind::Kind;
use crate::schema::schema_of;
use crate::status::Status;

/// Applies a JSON Patch (RFC 6902, `application/json-patch+json`).
///
/// 400 if the body is no list of operations, 413 if it has more than [`MAX_OPERATIONS`], 422 if one of them fails.
pub fn json_patch(doc: &Value, patch: &[u8]) -> Result<Value, Status> {
    json::apply(doc, patch)
}

/// Applies a JSON merge patch (RFC 7386, `application/merge-patch+json`). 400 if the body is no object.
pub fn merge_patch(doc: &Value, patch: &[u8]) -> Result<Value, Status> {
    merge::apply(
        doc,
        decode_object(patch).map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?,
    )
}

/// Applies a strategic merge patch (`application/strategic-merge-patch+json`): lists are merged by the merge keys of the
/// kind's schema, and directives (`$patch`, `$setElementOrder/…`, `$deleteFromPrimitiveList/…`, `$retainKeys`) are obeyed.
///
/// 400 if the body is no object or a directive has the wrong form; as Kubernetes does, 500 without a reason if the patch
/// contradicts itself.
pub fn strategic_merge(kind: &Kind, doc: &Value, patch: &[u8]) -> Result<Value, Status> {
    strategic::apply(schema_of(kind), doc, decode_object(patch).map_err(Status::bad_request)?)
}

/// The patch as an object; otherwise what Go's decoder says.
fn decode_object(patch: &[u8]) -> Result<serde_json::Map<String, Value>, String> {
    match serde_json::from_slice(patch) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(Value::Null) => Ok(serde_json::Map::new()),
        Ok(other) => Err(format!(
            "json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
            go_text::json_type(&other)
        )),
        Err(error) => Err(go_text::syntax_error(patch, &error)),
    }
}
