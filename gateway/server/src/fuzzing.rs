//! What the fuzz targets (`tests/fuzz`) reach of this crate, and what nobody else should use.

use bytes::Bytes;
use carob_api::kind::Kind;
use carob_api::status::Status;
use http::Method;
use serde_json::Value;

use crate::protobuf;
use crate::query::Query;
use crate::request::RequestInfo;
use crate::routes;

/// Whether objects of a kind have a protobuf form.
pub fn has_protobuf(kind: &Kind) -> bool {
    protobuf::knows(kind)
}

/// The JSON of a protobuf body.
///
/// # Errors
/// As a client is told.
pub fn protobuf_to_json(body: &[u8]) -> Result<Value, Status> {
    protobuf::to_json(body)
}

/// The protobuf form of an object's JSON.
///
/// # Errors
/// As a client is told.
pub fn protobuf_from_json(json: &[u8]) -> Result<Bytes, Status> {
    protobuf::from_json(json)
}

/// Reads the first line of a request and what its query says; shows what was understood.
pub fn request(method: &[u8], path: &str, query: &str) -> String {
    let query = Query::parse(query);
    let method = Method::from_bytes(method).unwrap_or_default();
    let info = RequestInfo::parse(&method, path, &query);
    let numbers = ["limit", "timeoutSeconds"].map(|name| query.integer(name).ok().flatten());
    let patience = query.text("timeout").and_then(routes::go_duration);
    format!("{info:?} {numbers:?} {patience:?}")
}
