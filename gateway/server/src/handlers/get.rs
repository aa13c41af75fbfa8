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
    let entry = find(call).await?;
    call.answer(StatusCode::OK, call.present(&entry.value)?)
}

/// The stored object of the path; 404 if there is none.
pub(crate) async fn find(call: &Call) -> Result<Entry, Status> {
    let entry = call.server.store.get(&call.key(call.name())).await.map_err(|error| store_failure(&error))?;
    conversion::entry(call, entry.ok_or_else(|| call.not_found())?).await
}
