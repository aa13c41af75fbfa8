//! A list as the client takes it. Stored bytes are put in a row; what must be decoded is decoded object by object, and
//! others get their turn in between.

use axum::response::Response;
use bytes::Bytes;
use carob_api::status::Status;
use carob_api::table::{self, Rows};
use http::StatusCode;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::{Found, let_others};
use crate::call::Call;
use crate::handlers::views;
use crate::negotiate::{Format, View};
use crate::protobuf::List;
use crate::{events, objects, response};

/// Answers with what was found.
pub(crate) async fn answer(call: &Call, found: &Found) -> Result<Response, Status> {
    let format = call.accept.format;
    match (call.accept.view, format) {
        (View::Object, Format::Protobuf) => {
            let body = protobuf(call, found).await?;
            return Ok(response::finished(StatusCode::OK, format.content_type(), body));
        }
        (View::Metadata(version) | View::MetadataList(version), Format::Protobuf) => {
            let body = protobuf_metadata(call, found, version).await?;
            return Ok(response::finished(StatusCode::OK, format.content_type(), body));
        }
        _ => {}
    }
    let json = match call.accept.view {
        View::Object => objects_in_a_row(call, found).await?,
        View::Table(version) => rows(call, found, version).await?,
        View::Metadata(version) | View::MetadataList(version) => metadata(call, found, version).await?,
    };
    response::object(StatusCode::OK, json, format, call.is_pretty())
}

fn head(kind: &str, api_version: &str, meta: &Value, list: &str) -> Vec<u8> {
    format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\"metadata\":{meta},\"{list}\":[").into_bytes()
}

/// The stored bytes of the items, without their kind and apiVersion.
async fn objects_in_a_row(call: &Call, found: &Found) -> Result<Bytes, Status> {
    let kind = &call.kind;
    let mut meta = found.meta();
    if kind.custom.is_some() && meta["continue"].is_null() {
        meta["continue"] = "".into();
    }
    let mut out = head(&list_kind(call), &objects::api_version(kind), &meta, "items");
    out.reserve(found.entries.iter().map(|entry| entry.value.len() + 1).sum::<usize>() + 2);
    let opening = objects::opening(kind);
    for (index, entry) in found.entries.iter().enumerate() {
        let_others(index).await;
        if index > 0 {
            out.push(b',');
        }
        if events::is_converted(kind) {
            let mut object = call.shown(&entry.value)?;
            // Items of custom resources say what they are, those of built-in ones don't.
            if kind.custom.is_none()
                && let Some(fields) = object.as_object_mut()
            {
                fields.shift_remove("kind");
                fields.shift_remove("apiVersion");
            }
            out.extend_from_slice(&response::to_json(&object));
        } else if let Some(rest) = entry.value.strip_prefix(opening.as_bytes()) {
            out.push(b'{');
            out.extend_from_slice(rest);
        } else {
            out.extend_from_slice(&entry.value);
        }
    }
    out.extend_from_slice(b"]}");
    Ok(out.into())
}

fn list_kind(call: &Call) -> String {
    match &call.kind.custom {
        Some(custom) => custom.list_kind.clone(),
        None => format!("{}List", call.kind.kind),
    }
}

async fn rows(call: &Call, found: &Found, version: &str) -> Result<Bytes, Status> {
    let form = Rows { include: views::include_object(call)?, version, now: Timestamp::now() };
    let kind = &call.kind;
    let api_version = format!("meta.k8s.io/{version}");
    let meta = found.meta();
    let columns = table::columns(kind);
    if found.entries.is_empty() {
        return Ok(response::to_json(&form.table(kind, &[], meta, true)));
    }
    let mut out = format!(
        "{{\"kind\":\"Table\",\"apiVersion\":\"{api_version}\",\"metadata\":{meta},\"columnDefinitions\":{columns},\"rows\":["
    )
    .into_bytes();
    for (index, entry) in found.entries.iter().enumerate() {
        let_others(index).await;
        if index > 0 {
            out.push(b',');
        }
        let row = form.row(kind, &call.shown(&entry.value)?);
        serde_json::to_writer(&mut out, &row).expect("a JSON value is written into memory");
    }
    out.extend_from_slice(b"]}");
    Ok(out.into())
}

async fn metadata(call: &Call, found: &Found, version: &str) -> Result<Bytes, Status> {
    let api_version = format!("meta.k8s.io/{version}");
    let mut out = head("PartialObjectMetadataList", &api_version, &found.meta(), "items");
    for (index, entry) in found.entries.iter().enumerate() {
        let_others(index).await;
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(&metadata_of(call, &entry.value, version)?);
    }
    out.extend_from_slice(b"]}");
    Ok(out.into())
}

/// A stored object's `PartialObjectMetadata`.
pub(crate) fn metadata_of(call: &Call, stored: &Bytes, version: &str) -> Result<Bytes, Status> {
    #[derive(Deserialize)]
    struct Object<'a> {
        #[serde(borrow)]
        metadata: &'a RawValue,
    }
    if events::is_converted(&call.kind) {
        return Ok(response::to_json(&views::metadata_only(&call.shown(stored)?, version)));
    }
    let object: Object<'_> = serde_json::from_slice(stored).map_err(|error| {
        tracing::error!(%error, "a stored object is damaged");
        Status::internal("a stored object is damaged")
    })?;
    let metadata = object.metadata.get();
    Ok(format!(
        "{{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/{version}\",\"metadata\":{metadata}}}"
    )
    .into())
}

async fn protobuf(call: &Call, found: &Found) -> Result<Bytes, Status> {
    let kind = &call.kind;
    let mut list = List::new(&objects::api_version(kind), list_kind(call), &found.meta())?;
    for (index, entry) in found.entries.iter().enumerate() {
        let_others(index).await;
        list.push(&call.present(&entry.value)?)?;
    }
    Ok(list.finish())
}

async fn protobuf_metadata(call: &Call, found: &Found, version: &str) -> Result<Bytes, Status> {
    let api_version = format!("meta.k8s.io/{version}");
    let mut list = List::new(&api_version, "PartialObjectMetadataList".to_owned(), &found.meta())?;
    for (index, entry) in found.entries.iter().enumerate() {
        let_others(index).await;
        list.push(&metadata_of(call, &entry.value, version)?)?;
    }
    Ok(list.finish())
}
