//! A list as the client takes it.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use carob_api::kind::Kind;
use carob_api::status::Status;
use carob_api::table::{self, Rows};
use http::StatusCode;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::pieces::{Form, Pieces};
use super::{Found, let_others};
use crate::call::Call;
use crate::compress::COMPRESS_FROM;
use crate::handlers::views;
use crate::negotiate::{Format, View};
use crate::protobuf::List;
use crate::{events, objects, response, stored};

/// Answers with what was found.
pub(crate) async fn answer(call: &Call, found: Found) -> Result<Response, Status> {
    let format = call.accept.format;
    match (call.accept.view, format) {
        (View::Object, Format::Protobuf) => {
            let body = protobuf(call, &found).await?;
            return Ok(response::finished(StatusCode::OK, format.content_type(), body));
        }
        (View::Metadata(version) | View::MetadataList(version), Format::Protobuf) => {
            let body = protobuf_metadata(call, &found, version).await?;
            return Ok(response::finished(StatusCode::OK, format.content_type(), body));
        }
        _ => {}
    }
    let pieces = match call.accept.view {
        View::Object => objects(call, found),
        View::Table(version) => rows(call, found, version)?,
        View::Metadata(version) | View::MetadataList(version) => metadata(call, found, version),
    };
    match pieces {
        // What is read by people, and YAML, are made from the whole.
        Listed::Pieces(pieces, size) if size >= COMPRESS_FROM && format == Format::Json && !call.is_pretty() => {
            let is_work = pieces.is_work();
            let mut answer = response::streamed(StatusCode::OK, format.content_type(), Body::new(pieces));
            if is_work {
                answer.extensions_mut().insert(response::Worked);
            }
            Ok(answer)
        }
        Listed::Pieces(pieces, _) => response::object(StatusCode::OK, pieces.whole().await?, format, call.is_pretty()),
        Listed::Whole(json) => response::object(StatusCode::OK, json, format, call.is_pretty()),
    }
}

/// A list before it is written.
enum Listed {
    /// With about how many bytes.
    Pieces(Pieces, usize),
    Whole(Bytes),
}

impl Listed {
    fn new(call: &Call, form: Form, head: Vec<u8>, found: Found) -> Self {
        let size = found.entries.iter().map(|entry| entry.value.len()).sum();
        Self::Pieces(Pieces::new(call.kind.clone(), form, head, found.entries), size)
    }
}

fn head(kind: &str, api_version: &str, meta: &Value, list: &str) -> Vec<u8> {
    format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\"metadata\":{meta},\"{list}\":[").into_bytes()
}

/// The stored bytes of the items, without their kind and apiVersion.
fn objects(call: &Call, found: Found) -> Listed {
    let kind = &call.kind;
    let mut meta = found.meta();
    if kind.custom.is_some() && meta["continue"].is_null() {
        meta["continue"] = "".into();
    }
    let head = head(&list_kind(call), &objects::api_version(kind), &meta, "items");
    Listed::new(call, Form::of(kind), head, found)
}

fn list_kind(call: &Call) -> String {
    match &call.kind.custom {
        Some(custom) => custom.list_kind.clone(),
        None => format!("{}List", call.kind.kind),
    }
}

fn rows(call: &Call, found: Found, version: &'static str) -> Result<Listed, Status> {
    let form = Rows { include: views::include_object(call)?, version, now: Timestamp::now() };
    let kind = &call.kind;
    let meta = found.meta();
    if found.entries.is_empty() {
        return Ok(Listed::Whole(response::to_json(&form.table(kind, &[], meta, true))));
    }
    let columns = table::columns(kind);
    let head = format!(
        "{{\"kind\":\"Table\",\"apiVersion\":\"meta.k8s.io/{version}\",\"metadata\":{meta},\"columnDefinitions\":{columns},\"rows\":["
    );
    Ok(Listed::new(call, Form::Rows(form), head.into_bytes(), found))
}

fn metadata(call: &Call, found: Found, version: &'static str) -> Listed {
    let api_version = format!("meta.k8s.io/{version}");
    let head = head("PartialObjectMetadataList", &api_version, &found.meta(), "items");
    Listed::new(call, Form::Metadata(version), head, found)
}

/// A stored object's `PartialObjectMetadata`.
pub(crate) fn metadata_of(kind: &Kind, stored: &Bytes, version: &str) -> Result<Bytes, Status> {
    let mut out = Vec::with_capacity(stored.len().min(4096));
    metadata_into(&mut out, kind, stored, version)?;
    Ok(out.into())
}

pub(super) fn metadata_into(out: &mut Vec<u8>, kind: &Kind, stored: &Bytes, version: &str) -> Result<(), Status> {
    #[derive(Deserialize)]
    struct Object<'a> {
        #[serde(borrow)]
        metadata: &'a RawValue,
    }
    if events::is_converted(kind) {
        let mut object = objects::decode(stored)?;
        events::from_stored(kind, &mut object);
        out.extend_from_slice(&response::to_json(&views::metadata_only(&object, version)));
        return Ok(());
    }
    let metadata = match stored::metadata(stored) {
        Some(metadata) => metadata,
        None => serde_json::from_slice::<Object<'_>>(stored)
            .map_err(|error| {
                tracing::error!(%error, "a stored object is damaged");
                Status::internal("a stored object is damaged")
            })?
            .metadata
            .get()
            .as_bytes(),
    };
    for part in [
        &b"{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/"[..],
        version.as_bytes(),
        b"\",\"metadata\":",
        metadata,
        b"}",
    ] {
        out.extend_from_slice(part);
    }
    Ok(())
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
    let mut item = Vec::new();
    for (index, entry) in found.entries.iter().enumerate() {
        let_others(index).await;
        item.clear();
        metadata_into(&mut item, &call.kind, &entry.value, version)?;
        list.push(&item)?;
    }
    Ok(list.finish())
}
