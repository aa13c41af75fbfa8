//! One object by name.

use axum::response::Response;
use carob_api::status::Status;
use carob_store::Entry;
use http::StatusCode;

use crate::call::Call;
use crate::conversion;
use crate::objects::store_failure;

/// Answers with the object of the path.
pub(crate) async fn get(call: &Call) -> Result<Response, Status> {
    if call.query.text("export").is_some_and(|text| text == "true" || text == "1") {
        let why = "the export parameter, deprecated since v1.14, is no longer supported";
        return Err(Status::bad_request(why));
    }
    if let Some(version) = call.query.text("resourceVersion").filter(|version| !version.is_empty()) {
        not_older_than(call, version).await?;
    }
    let entry = find(call).await?;
    call.answer(StatusCode::OK, call.present(&entry.value)?)
}

/// The stored object of the path; 404 if there is none.
pub(crate) async fn find(call: &Call) -> Result<Entry, Status> {
    let entry = call.server.store.get(&call.key(call.name())).await.map_err(|error| store_failure(&error))?;
    conversion::entry(call, entry.ok_or_else(|| call.not_found())?).await
}

/// 504 if the server has not come so far.
async fn not_older_than(call: &Call, version: &str) -> Result<(), Status> {
    let Ok(wanted) = version.parse::<u64>() else {
        let why = format!(
            "resourceVersion: Invalid value: {version:?}: strconv.ParseUint: parsing {version:?}: invalid syntax"
        );
        return Err(Status::generic(500, "", why));
    };
    let newest = call.server.store.revision().await.map_err(|error| store_failure(&error))?;
    if wanted > newest { Err(Status::resource_version_too_large(version, newest)) } else { Ok(()) }
}
