//! New objects.

use axum::response::Response;
use bytes::Bytes;
use carob_api::apply::{Manager, Operation};
use carob_api::decode::{self, Decoded};
use carob_api::managed_fields::track_update;
use carob_api::status::Status;
use carob_api::support;
use carob_api::validation::metadata;
use carob_store::{Expect, Outcome, Txn, Write};
use http::StatusCode;
use jiff::Timestamp;
use serde_json::Value;

use super::owners;
use crate::admission::{self, Place};
use crate::call::Call;
use crate::negotiate::{BodyFormat, body_format};
use crate::objects::{self, metadata_mut, set_metadata, store_failure, text};
use crate::options::{WriteOptions, WriteVerb};
use crate::{conversion, protobuf, random, response, services};

/// How often another name is tried for an object with `generateName`.
const NAME_ATTEMPTS: usize = 8;
/// How often a create is tried again when its namespace changes meanwhile.
const PLACE_ATTEMPTS: usize = 16;
/// The longest name that is generated.
const NAME_LIMIT: usize = 63;
const SUFFIX: usize = 5;

/// POST to a collection.
pub(crate) async fn create(call: &Call, body: &Bytes) -> Result<Response, Status> {
    let options = WriteOptions::read(call, WriteVerb::Create)?;
    if call.kind.custom.as_ref().is_some_and(|custom| custom.terminating) {
        let why = "create not allowed while custom resource definition is terminating";
        return Err(Status::generic(405, "MethodNotAllowed", why));
    }
    let object = decode_body(call, body, &options)?;
    check_namespace(call, &object)?;
    let bytes = create_object(call, object, &options, Tracking::Update).await?;
    call.answer(StatusCode::CREATED, bytes)
}

/// The object of a body, checked against its schema.
pub(crate) fn decode_body(call: &Call, body: &Bytes, options: &WriteOptions) -> Result<Value, Status> {
    let Decoded { value, warnings } = match body_format(&call.headers)? {
        BodyFormat::Json => {
            call.sent.note(&call.kind, body);
            decode::decode_json(&call.kind, body, options.validation)?
        }
        BodyFormat::Yaml => decode::decode_yaml(&call.kind, body, options.validation)?,
        BodyFormat::Protobuf => {
            let json = response::to_json(&protobuf::to_json(body)?);
            decode::decode_json(&call.kind, &json, options.validation)?
        }
    };
    for warning in warnings {
        call.warn(warning);
    }
    Ok(value)
}

/// 400 if the object names another namespace than the path.
pub(crate) fn check_namespace(call: &Call, object: &Value) -> Result<(), Status> {
    let namespace = text(object, "/metadata/namespace");
    if namespace.is_empty() || call.namespace.as_deref().is_none_or(|expected| expected == namespace) {
        return Ok(());
    }
    Err(Status::bad_request("the namespace of the provided object does not match the namespace sent on the request"))
}

/// Whose fields the new object's are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tracking {
    /// The client's, who sent the whole object.
    Update,
    /// Already written down by server-side apply.
    Done,
}

/// Makes an object; gives its bytes in the version of the call.
pub(crate) async fn create_object(
    call: &Call,
    mut object: Value,
    options: &WriteOptions,
    tracking: Tracking,
) -> Result<Bytes, Status> {
    let now = Timestamp::now();
    let kind = &call.kind;
    owners::deduplicate(call, &mut object);
    kind.default(&mut object);
    set_system_metadata(call, &mut object, now);
    let generated = generate_name(&mut object);
    if tracking == Tracking::Update {
        track(call, &mut object, options, now);
    }
    let template = generated.then(|| object.clone());
    let mut attempts = 0;
    loop {
        attempts += 1;
        match place(call, object, options, attempts == 1).await? {
            Placed::Made(bytes) => return Ok(bytes),
            Placed::Exists(name) => match &template {
                Some(template) if attempts < NAME_ATTEMPTS => {
                    object = template.clone();
                    metadata_mut(&mut object).shift_remove("name");
                    generate_name(&mut object);
                }
                _ => return Err(Status::already_exists(&call.resource(), &name)),
            },
        }
    }
}

enum Placed {
    Made(Bytes),
    Exists(String),
}

/// Admits, validates and stores an object that has its name.
async fn place(call: &Call, object: Value, options: &WriteOptions, first: bool) -> Result<Placed, Status> {
    let kind = &call.kind;
    for _ in 0..PLACE_ATTEMPTS {
        let place = Place::of_new_object(call, &object).await?;
        let mut request = admission::Request::create(call, object.clone(), options.dry_run);
        admission::mutate(&mut request).await?;
        let mut object = request.object;
        kind.prepare_create(&mut object);
        kind.default(&mut object);
        decode::normalize(&call.kind, &mut object);
        let _held = services::complete(call, &mut object, None).await?;
        let name = text(&object, "/metadata/name").to_owned();
        let mut errors = metadata::validate_create(&call.kind, &object);
        let unchecked = kind.custom.as_ref().and_then(|custom| custom.unchecked(&errors));
        errors.extend(kind.validate(&object));
        errors.extend(unchecked.filter(|note| !errors.contains(note)));
        if !errors.is_empty() {
            return Err(Status::invalid((call.kind.group, call.kind.kind), &name, errors));
        }
        if first {
            for warning in kind.warnings(&object) {
                call.warn(warning);
            }
            for warning in support::warnings(&call.kind, &object) {
                call.warn(warning);
            }
        }
        if !options.dry_run && !text(&object, "/metadata/resourceVersion").is_empty() {
            return Err(Status::generic(500, "", "resourceVersion should not be set on objects to be created"));
        }
        let request = admission::Request::create(call, object, options.dry_run);
        admission::validate(&request).await?;
        let object = request.object;
        let charge = admission::quota::charge(call, &object, None).await?;
        let _turn = admission::node_restriction::claim(call, &object, None).await?;
        let key = call.key(&name);
        if options.dry_run {
            if call.server.store.get(&key).await.map_err(|error| store_failure(&error))?.is_some() {
                return Ok(Placed::Exists(name));
            }
            return Ok(Placed::Made(response::to_json(&object)));
        }
        let object = conversion::to_storage(call, object).await?;
        let object = call.stored(object);
        let document = objects::encode_with(&object, call.sent.instead(&object));
        let mut expect = vec![(key.clone(), Expect::Absent)];
        expect.extend(place.expectation());
        expect.extend(charge.expect.iter().cloned());
        let mut writes = vec![Write::Put(key, document)];
        writes.extend(charge.writes.iter().cloned());
        let txn = Txn { expect, writes };
        match call.server.store.txn(txn).await.map_err(|error| store_failure(&error))? {
            Outcome::Committed { entries, .. } => {
                let entry = entries.first().ok_or_else(|| Status::internal("the store lost a write"))?;
                let entry = conversion::entry(call, entry.clone()).await?;
                return Ok(Placed::Made(call.present(&entry.value)?));
            }
            Outcome::Conflict(entries) if entries.first().is_some_and(Option::is_some) => {
                return Ok(Placed::Exists(name));
            }
            // The namespace or a quota has changed: look again whether it still takes objects.
            Outcome::Conflict(_) => {}
        }
    }
    Err(Status::conflict(
        &call.resource(),
        text(&object, "/metadata/name"),
        "the namespace keeps changing; please try again",
    ))
}

/// What only the server decides about a new object.
fn set_system_metadata(call: &Call, object: &mut Value, now: Timestamp) {
    let metadata = metadata_mut(object);
    for field in ["selfLink", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        metadata.shift_remove(field);
    }
    metadata.insert("uid".to_owned(), random::uuid().into());
    metadata.insert("creationTimestamp".to_owned(), objects::timestamp(now).into());
    match &call.namespace {
        Some(namespace) => {
            metadata.insert("namespace".to_owned(), namespace.as_str().into());
        }
        None => {
            metadata.shift_remove("namespace");
        }
    }
    if metadata.get("resourceVersion").and_then(Value::as_str) == Some("") {
        metadata.shift_remove("resourceVersion");
    }
}

/// Fills in a name if only `generateName` is given; says whether it did.
fn generate_name(object: &mut Value) -> bool {
    if !text(object, "/metadata/name").is_empty() {
        return false;
    }
    let prefix = text(object, "/metadata/generateName");
    if prefix.is_empty() {
        return false;
    }
    let prefix: String = prefix.chars().take(NAME_LIMIT - SUFFIX).collect();
    set_metadata(object, "name", format!("{prefix}{}", random::suffix(SUFFIX)));
    true
}

/// Writes down whose fields these are. Status is nobody's yet where it has a path of its own.
fn track(call: &Call, object: &mut Value, options: &WriteOptions, now: Timestamp) {
    let time = objects::timestamp(now);
    let manager = Manager { name: &options.manager, operation: Operation::Update, subresource: "", time: &time };
    let has_status = call.kind.subresources.iter().any(|subresource| subresource.name == "status");
    let status = object.as_object_mut().filter(|_| has_status).and_then(|fields| fields.shift_remove("status"));
    track_update(&call.kind, None, object, &manager);
    if let (Some(status), Some(fields)) = (status, object.as_object_mut()) {
        fields.insert("status".to_owned(), status);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_generated_name_keeps_its_prefix_and_fits() {
        let mut object = json!({"metadata": {"generateName": "x".repeat(100)}});
        assert!(generate_name(&mut object));
        assert_eq!(text(&object, "/metadata/name").len(), NAME_LIMIT);
        let mut object = json!({"metadata": {"generateName": "web-"}});
        assert!(generate_name(&mut object));
        assert!(text(&object, "/metadata/name").starts_with("web-"));
        assert!(!generate_name(&mut object));
    }
}
