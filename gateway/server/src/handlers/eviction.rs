//! `pods/eviction`: a deletion that disruption budgets may refuse.

use axum::response::Response;
use bytes::Bytes;
use carob_api::kind::Kind;
use carob_api::status::Status;

use super::binding::success;
use super::{create, delete, disruption, get};
use crate::admission;
use crate::call::Call;
use crate::objects::text;
use crate::options::{DeleteOptions, WriteOptions, WriteVerb};

/// POST
pub(crate) async fn evict(call: &Call, eviction_kind: &'static Kind, body: &Bytes) -> Result<Response, Status> {
    let options = WriteOptions::read(call, WriteVerb::Create)?;
    let mut decoding =
        Call::new(call.server.clone(), eviction_kind, call.identity.clone(), call.headers.clone(), call.accept);
    decoding.namespace.clone_from(&call.namespace);
    let eviction = create::decode_body(&decoding, body, &options)?;
    create::check_namespace(call, &eviction)?;
    let name = text(&eviction, "/metadata/name");
    if !name.is_empty() && name != call.name() {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let mut request = admission::Request::create_part(call, "eviction", eviction, options.dry_run);
    admission::review(&mut request).await?;
    let eviction = request.object;
    let mut how = match eviction.get("deleteOptions") {
        Some(options) if !options.is_null() => DeleteOptions::of_value(options)?,
        _ => DeleteOptions::default(),
    };
    how.dry_run |= options.dry_run;
    let pod = call.shown(&get::find(call).await?.value)?;
    disruption::take(call, &pod, how.dry_run).await?;
    delete::delete_object(call, call.name(), &how).await?;
    Ok(success())
}
