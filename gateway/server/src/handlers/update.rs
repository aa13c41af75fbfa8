//! Changes of objects: what an update, a patch or an apply turned an object into is checked and stored here.

use axum::response::Response;
use bytes::Bytes;
use carob_api::apply::{Manager, Operation};
use carob_api::decode;
use carob_api::field::Path;
use carob_api::kind::Part;
use carob_api::managed_fields::track_update;
use carob_api::status::Status;
use carob_api::support;
use carob_api::validation::metadata;
use carob_store::{Entry, Expect, Outcome, Txn, Write};
use http::StatusCode;
use jiff::Timestamp;
use serde_json::Value;

use super::create::{self, Tracking};
use super::{namespace, owners};
use crate::call::Call;
use crate::objects::{self, metadata_mut, set_metadata, store_failure, text};
use crate::options::{WriteOptions, WriteVerb};
use crate::{admission, authz, conversion};
use crate::{response, services};

/// How often a change that names no revision is made again on a newer state.
const ATTEMPTS: usize = 32;
/// How often an object that comes and goes is looked for again by a request that changes or makes it.
const UPSERT_ATTEMPTS: usize = 8;

/// The text of a conflict of revisions.
pub(crate) const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

/// PUT of an object, or of a part of it.
pub(crate) async fn update(call: &Call, part: Part, body: &Bytes) -> Result<Response, Status> {
    let options = WriteOptions::read(call, WriteVerb::Update)?;
    let object = create::decode_body(call, body, &options)?;
    check_name(call, &object)?;
    create::check_namespace(call, &object)?;
    let how = Change { uid_is_precondition: true, ..Change::new(part, &options) };
    let creates = call.kind.strategy.create_on_update && part == Part::Main;
    let mut attempt = 0;
    loop {
        attempt += 1;
        if let Some(bytes) = change(call, &how, |_| Ok(object.clone())).await? {
            return call.answer(StatusCode::OK, bytes);
        }
        if !creates {
            return Err(call.not_found());
        }
        authz::confirm_create(call, "").await?;
        match create::create_object(call, object.clone(), &options, Tracking::Update).await {
            Err(status) if is_overtaken(&status, &options, attempt) => {}
            made => return call.answer(StatusCode::CREATED, made?),
        }
    }
}

/// Whether somebody else made the missing object before this request could, so that it is now to be changed.
pub(crate) fn is_overtaken(status: &Status, options: &WriteOptions, attempt: usize) -> bool {
    status.reason() == "AlreadyExists" && !options.dry_run && attempt < UPSERT_ATTEMPTS
}

/// 400 if the object has another name than the path.
pub(crate) fn check_name(call: &Call, object: &Value) -> Result<(), Status> {
    let (in_path, name) = (call.name(), text(object, "/metadata/name"));
    if name.is_empty() {
        return Err(Status::bad_request(format!(
            "the name of the object ({in_path} based on URL) was undeterminable: name must be provided"
        )));
    }
    if name != in_path {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({in_path})"
        )));
    }
    Ok(())
}

/// What admission sees and changes of an object, where that isn't the object itself.
pub(crate) struct Shown<'a> {
    /// Makes it of the object.
    pub of: &'a (dyn Fn(&Value) -> Value + Sync),
    /// Sets what it wants, by the object before and what it has become itself.
    pub take: &'a (dyn Fn(&Value, &Value, &mut Value) -> Result<(), Status> + Sync),
}

/// How an object is changed.
pub(crate) struct Change<'a> {
    /// What of it.
    pub part: Part,
    /// Whose the changed fields are.
    pub tracking: Tracking,
    pub options: &'a WriteOptions,
    /// Whether another uid means another object (an update) or a mistake (a patch).
    pub uid_is_precondition: bool,
    /// The path through which fields are managed; empty for the object itself.
    pub subresource: &'static str,
    pub shown: Option<Shown<'a>>,
}

impl<'a> Change<'a> {
    /// A patch by the client.
    pub fn new(part: Part, options: &'a WriteOptions) -> Self {
        Self {
            part,
            tracking: Tracking::Update,
            options,
            uid_is_precondition: false,
            shown: None,
            subresource: match part {
                Part::Main => "",
                Part::Finalize => "finalize",
                Part::Approval => "approval",
                Part::Status => "status",
                Part::EphemeralContainers => "ephemeralcontainers",
                Part::Resize => "resize",
            },
        }
    }
}

/// Changes the object of the path by `make`, which is given the present state and may be called again on a newer one.
/// Gives the bytes of the result, or none if there is no such object.
pub(crate) async fn change(
    call: &Call,
    how: &Change<'_>,
    mut make: impl FnMut(&Value) -> Result<Value, Status>,
) -> Result<Option<Bytes>, Status> {
    let key = call.key(call.name());
    for attempt in 0..ATTEMPTS {
        let Some(entry) = call.server.store.get(&key).await.map_err(|error| store_failure(&error))? else {
            return Ok(None);
        };
        let entry = conversion::entry(call, entry).await?;
        let work = async {
            let old = call.shown(&entry.value)?;
            let new = make(&old)?;
            step(call, how, &key, &entry, &old, new, attempt == 0).await
        };
        match call.server.heavy.run(entry.value.len(), work).await? {
            Step::Done(bytes) => return Ok(Some(bytes)),
            Step::Again => tokio::task::yield_now().await,
        }
    }
    Err(Status::conflict(&call.resource(), call.name(), MODIFIED))
}

enum Step {
    Done(Bytes),
    /// Somebody else was quicker.
    Again,
}

async fn step(
    call: &Call,
    how: &Change<'_>,
    key: &str,
    entry: &Entry,
    old: &Value,
    mut new: Value,
    first: bool,
) -> Result<Step, Status> {
    let kind = &call.kind;
    settle_identity(call, how, old, &mut new)?;
    owners::deduplicate(call, &mut new);
    kind.default(&mut new);
    keep_system_metadata(&mut new, old);
    let seen_before = how.shown.as_ref().map(|shown| (shown.of)(old));
    let seen_before = seen_before.as_ref().unwrap_or(old);
    let seen = how.shown.as_ref().map(|shown| (shown.of)(&new));
    let seen = seen.unwrap_or_else(|| std::mem::take(&mut new));
    let mut request = admission::Request::update(call, how.subresource, seen, seen_before, how.options.dry_run);
    admission::mutate(&mut request).await?;
    match &how.shown {
        Some(shown) => (shown.take)(old, &request.object, &mut new)?,
        None => new = request.object,
    }
    kind.prepare_update(&mut new, old, how.part);
    kind.default(&mut new);
    decode::normalize(&call.kind, &mut new);
    if how.tracking == Tracking::Update {
        let time = objects::timestamp(Timestamp::now());
        let manager = Manager {
            name: &how.options.manager,
            operation: Operation::Update,
            subresource: how.subresource,
            time: &time,
        };
        track_update(&call.kind, Some(old), &mut new, &manager);
    }
    let _held = match how.part {
        Part::Main => services::complete(call, &mut new, Some(old)).await?,
        _ => None,
    };
    // Kubernetes checks metadata twice, for all kinds and for each, and lists the causes of both.
    let mut errors = metadata::validate_update(&call.kind, &new, old);
    errors.extend(errors.clone());
    errors.extend(kind.validate_update(&new, old, how.part));
    if errors.is_empty() {
        errors.extend(call.sent.changed(&call.kind, &entry.value, &new));
    }
    if !errors.is_empty() {
        return Err(Status::invalid((call.kind.group, call.kind.kind), call.name(), errors));
    }
    if first {
        if how.part == Part::Main {
            for warning in kind.update_warnings(&new, old) {
                call.warn(warning);
            }
        }
        if matches!(how.part, Part::Main | Part::EphemeralContainers) {
            for warning in support::warnings(&call.kind, &new) {
                call.warn(warning);
            }
        }
    }
    let seen = how.shown.as_ref().map(|shown| (shown.of)(&new));
    let (seen, kept) = match seen {
        Some(seen) => (seen, Some(new)),
        None => (new, None),
    };
    let request = admission::Request::update(call, how.subresource, seen, seen_before, how.options.dry_run);
    admission::validate(&request).await?;
    let new = kept.unwrap_or(request.object);
    if new == *old {
        return Ok(Step::Done(call.present(&entry.value)?));
    }
    let charge = match how.part {
        Part::Main | Part::Resize => admission::quota::charge(call, &new, Some(old)).await?,
        _ => admission::quota::Charge::default(),
    };
    let _turn = match how.part {
        Part::Main => admission::node_restriction::claim(call, &new, Some(old)).await?,
        _ => None,
    };
    if how.options.dry_run {
        return Ok(Step::Done(response::to_json(&new)));
    }
    let ends = is_finished(call, &new);
    let shown = ends.then(|| response::to_json(&new));
    let write = if ends {
        Write::Delete(key.to_owned())
    } else {
        let new = conversion::to_storage(call, new).await?;
        let new = call.stored(new);
        Write::Put(key.to_owned(), objects::encode_with(&new, call.sent.instead(&new)))
    };
    let mut expect = vec![(key.to_owned(), Expect::At(entry.revision))];
    expect.extend(charge.expect.iter().cloned());
    let mut writes = vec![write];
    writes.extend(charge.writes.iter().cloned());
    match call.server.store.txn(Txn { expect, writes }).await.map_err(|error| store_failure(&error))? {
        Outcome::Conflict(_) => Ok(Step::Again),
        Outcome::Committed { entries, .. } => match (shown, entries.first()) {
            (Some(bytes), _) => Ok(Step::Done(bytes)),
            (None, Some(entry)) => {
                let entry = conversion::entry(call, entry.clone()).await?;
                Ok(Step::Done(call.present(&entry.value)?))
            }
            (None, None) => Err(Status::internal("the store lost a write")),
        },
    }
}

/// Whether nothing holds a deleted object any more.
pub(crate) fn is_finished(call: &Call, object: &Value) -> bool {
    if object.pointer("/metadata/deletionTimestamp").is_none() || !objects::finalizers(object).is_empty() {
        return false;
    }
    if namespace::is_namespace(&call.kind) {
        return namespace::finalizers(object).is_empty();
    }
    object.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0) == 0
}

/// Compares revision and uid with what the client expects, and fills them in where it expects nothing.
fn settle_identity(call: &Call, how: &Change<'_>, old: &Value, new: &mut Value) -> Result<(), Status> {
    let name = call.name();
    let (uid, old_uid) = (text(new, "/metadata/uid"), text(old, "/metadata/uid"));
    if how.uid_is_precondition && !uid.is_empty() && uid != old_uid {
        return Err(Status::conflict(&call.resource(), name, precondition_failed(call, "UID", uid, old_uid)));
    }
    let (version, old_version) = (text(new, "/metadata/resourceVersion"), text(old, "/metadata/resourceVersion"));
    if version.is_empty() || version == "0" {
        if !call.kind.strategy.unconditional_update && how.uid_is_precondition {
            let error = Path::new("metadata").child("resourceVersion").invalid(0, "must be specified for an update");
            return Err(Status::invalid((call.kind.group, call.kind.plural), name, vec![error]));
        }
    } else if version != old_version {
        return Err(Status::conflict(&call.resource(), name, MODIFIED));
    }
    let old_version = old_version.to_owned();
    set_metadata(new, "resourceVersion", old_version);
    Ok(())
}

/// That the object is another one than the client means, or in another state.
pub(crate) fn precondition_failed(call: &Call, what: &str, wanted: &str, found: &str) -> String {
    format!(
        "StorageError: invalid object, Code: 4, Key: {}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: \
         {what} in precondition: {wanted}, {what} in object meta: {found}",
        registry_key(call)
    )
}

/// What a change cannot take away or alter.
fn keep_system_metadata(new: &mut Value, old: &Value) {
    let Some(before) = old.get("metadata").and_then(Value::as_object) else { return };
    let metadata = metadata_mut(new);
    metadata.shift_remove("selfLink");
    metadata.shift_remove("generation");
    for field in ["creationTimestamp", "deletionTimestamp", "generation"] {
        if let Some(value) = before.get(field) {
            metadata.insert(field.to_owned(), value.clone());
        }
    }
    for field in ["uid", "namespace", "deletionGracePeriodSeconds"] {
        let missing = metadata.get(field).is_none_or(|value| value.is_null() || value.as_str() == Some(""));
        if let Some(value) = before.get(field).filter(|_| missing) {
            metadata.insert(field.to_owned(), value.clone());
        }
    }
}

/// Resources that Kubernetes keeps under another name than their own.
const REGISTRY_NAMES: [(&str, &str, &str); 7] = [
    ("", "nodes", "minions"),
    ("", "services", "services/specs"),
    ("", "endpoints", "services/endpoints"),
    ("", "replicationcontrollers", "controllers"),
    ("networking.k8s.io", "ingresses", "ingress"),
    ("apiextensions.k8s.io", "customresourcedefinitions", "apiextensions.k8s.io/customresourcedefinitions"),
    ("apiregistration.k8s.io", "apiservices", "apiregistration.k8s.io/apiservices"),
];

/// The key under which Kubernetes would keep the object; it stands in a message.
fn registry_key(call: &Call) -> String {
    let (group, plural) = (call.kind.group, call.kind.plural);
    let known = REGISTRY_NAMES.iter().find(|(known, resource, _)| (*known, *resource) == (group, plural));
    let resource = match known {
        Some((_, _, name)) => (*name).to_owned(),
        None if call.kind.custom.is_some() => format!("{group}/{plural}"),
        None => plural.to_owned(),
    };
    match &call.namespace {
        Some(namespace) => format!("/registry/{resource}/{namespace}/{}", call.name()),
        None => format!("/registry/{resource}/{}", call.name()),
    }
}

/// Changes the stored object of the path without the rules of an update, for subresources that have their own.
pub(crate) async fn write_directly(
    call: &Call,
    dry_run: bool,
    mut make: impl FnMut(&Value) -> Result<Value, Status>,
) -> Result<(), Status> {
    let key = call.key(call.name());
    for _ in 0..ATTEMPTS {
        let entry = call.server.store.get(&key).await.map_err(|error| store_failure(&error))?;
        let entry = entry.ok_or_else(|| call.not_found())?;
        let new = make(&objects::decode(&entry.value)?)?;
        if dry_run {
            return Ok(());
        }
        let writes = vec![Write::Put(key.clone(), objects::encode(&new))];
        let txn = Txn { expect: vec![(key.clone(), Expect::At(entry.revision))], writes };
        if let Outcome::Committed { .. } = call.server.store.txn(txn).await.map_err(|error| store_failure(&error))? {
            return Ok(());
        }
        tokio::task::yield_now().await;
    }
    Err(Status::conflict(&call.resource(), call.name(), MODIFIED))
}
