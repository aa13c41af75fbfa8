//! Patches: JSON patch, merge patch, strategic merge patch, server-side apply.

use axum::response::Response;
use bytes::Bytes;
use carob_api::apply::{Manager, Operation};
use carob_api::decode::{self, FieldValidation};
use carob_api::kind::{Kind, Part};
use carob_api::patch::go_text;
use carob_api::status::Status;
use carob_api::{apply, patch};
use http::StatusCode;
use jiff::Timestamp;
use serde_json::Value;

use super::create::{self, Tracking};
use super::update::{self, Change};
use crate::authz;
use crate::call::Call;
use crate::negotiate::content_type;
use crate::objects::{self, text};
use crate::options::{WriteOptions, WriteVerb};

/// The forms of a patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PatchType {
    Json,
    Merge,
    Strategic,
    Apply,
}

impl PatchType {
    /// By the content type; 415 for any other.
    pub fn of(call: &Call) -> Result<Self, Status> {
        if call.kind.custom.is_some() && content_type(&call.headers) == "application/strategic-merge-patch+json" {
            return Err(Status::unsupported_media_type(
                "the body of the request was in an unknown format - accepted media types include: \
                 application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
            ));
        }
        match content_type(&call.headers) {
            "application/json-patch+json" => Ok(Self::Json),
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/strategic-merge-patch+json" => Ok(Self::Strategic),
            "application/apply-patch+yaml" => Ok(Self::Apply),
            _ => Err(Status::unsupported_media_type("415: Unsupported Media Type")),
        }
    }
}

/// PATCH of an object, or of a part of it.
pub(crate) async fn patch(call: &Call, part: Part, body: &Bytes) -> Result<Response, Status> {
    let form = PatchType::of(call)?;
    if form == PatchType::Apply {
        return apply_patch(call, part, body).await;
    }
    let options = WriteOptions::read(call, WriteVerb::Patch)?;
    let how = Change::new(part, &options);
    let mut first = true;
    let changed = update::change(call, &how, |old| {
        let new = patched(&call.kind, old, form, body, options.validation, |warning| {
            if first {
                call.warn(warning);
            }
        })?;
        first = false;
        check_identity(call, &new)?;
        Ok(new)
    })
    .await?;
    match changed {
        Some(bytes) => call.answer(StatusCode::OK, bytes),
        None => Err(call.not_found()),
    }
}

/// What a patch makes of an object: applied, and checked against the schema.
pub(crate) fn patched(
    kind: &Kind,
    old: &Value,
    form: PatchType,
    body: &[u8],
    validation: FieldValidation,
    mut warn: impl FnMut(String),
) -> Result<Value, Status> {
    let new = match form {
        PatchType::Json => patch::json_patch(old, body)?,
        PatchType::Merge => patch::merge_patch(old, body)?,
        PatchType::Strategic | PatchType::Apply => patch::strategic_merge(kind, old, body)?,
    };
    let duplicates = if form == PatchType::Json { Vec::new() } else { decode::duplicate_fields(body) };
    let shown = (form == PatchType::Strategic)
        .then(|| serde_json::from_slice(body).ok())
        .flatten()
        .map(|patch: Value| go_text(&patch));
    let decoded = decode::check_patched(kind, new, duplicates, validation, shown)?;
    decoded.warnings.into_iter().for_each(&mut warn);
    Ok(decoded.value)
}

/// 400 if the patch gave the object another name or namespace.
fn check_identity(call: &Call, object: &Value) -> Result<(), Status> {
    update::check_name(call, object)?;
    create::check_namespace(call, object)
}

/// Server-side apply: the object is made if it isn't there.
async fn apply_patch(call: &Call, part: Part, body: &Bytes) -> Result<Response, Status> {
    let options = WriteOptions::read(call, WriteVerb::Apply)?;
    let mut config = read_yaml(body)?;
    check_config(call, &mut config)?;
    let time = objects::timestamp(Timestamp::now());
    let manager = Manager {
        name: &options.manager,
        operation: Operation::Apply,
        subresource: if part == Part::Status { "status" } else { "" },
        time: &time,
    };
    let how = Change { tracking: Tracking::Done, ..Change::new(part, &options) };
    let mut attempt = 0;
    loop {
        attempt += 1;
        let changed = update::change(call, &how, |old| {
            Ok(apply::apply(&call.kind, Some(old), &config, &manager, options.force)?.object)
        })
        .await?;
        if let Some(bytes) = changed {
            return call.answer(StatusCode::OK, bytes);
        }
        if part != Part::Main {
            return Err(call.not_found());
        }
        match apply_new(call, &config, &manager, &options).await {
            Err(status) if update::is_overtaken(&status, &options, attempt) => {}
            made => return call.answer(StatusCode::CREATED, made?),
        }
    }
}

/// Makes the object of a configuration.
async fn apply_new(
    call: &Call,
    config: &Value,
    manager: &Manager<'_>,
    options: &WriteOptions,
) -> Result<Bytes, Status> {
    let mut object = apply::apply(&call.kind, None, config, manager, options.force)?.object;
    // A revision in the configuration of an object that doesn't exist yet means nothing.
    objects::metadata_mut(&mut object).shift_remove("resourceVersion");
    let uid = text(config, "/metadata/uid");
    if !uid.is_empty() {
        let why = format!("uid mismatch: the provided object specified uid {uid}, and no existing object was found");
        return Err(Status::conflict(&call.resource(), call.name(), why));
    }
    authz::confirm_create(call, "").await?;
    create::create_object(call, object, options, Tracking::Done).await
}

/// An applied configuration is YAML, of which JSON is a part.
pub(super) fn read_yaml(body: &Bytes) -> Result<Value, Status> {
    if body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{')
        && let Ok(value) = serde_json::from_slice(body)
    {
        return Ok(value);
    }
    let bad = |why: String| Status::bad_request(format!("error decoding YAML: error converting YAML to JSON: {why}"));
    let text = std::str::from_utf8(body).map_err(|_| bad("yaml: invalid leading UTF-8 octet".to_owned()))?;
    serde_saphyr::from_str(text).map_err(|error| bad(decode::yaml_error(&error, text)))
}

pub(super) fn check_config(call: &Call, config: &mut Value) -> Result<(), Status> {
    let kind = &call.kind;
    let api_version = text(config, "/apiVersion");
    if text(config, "/kind") != kind.kind || api_version != objects::api_version(kind) {
        // Go prints a group, version and kind as `GROUP/VERSION, Kind=KIND`, also when the group is empty.
        let slash = if api_version.contains('/') { "" } else { "/" };
        return Err(Status::bad_request(format!(
            "invalid object type: {slash}{api_version}, Kind={}",
            text(config, "/kind")
        )));
    }
    if config.pointer("/metadata/managedFields").is_some_and(|fields| !fields.is_null()) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    if text(config, "/metadata/name").is_empty() {
        objects::set_metadata(config, "name", call.name());
    }
    check_identity(call, config)
}
