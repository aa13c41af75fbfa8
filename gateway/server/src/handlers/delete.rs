//! Deletion: at once, after a grace period, or when the last finalizer is gone.

use axum::response::Response;
use bytes::Bytes;
use carob_api::kind::Kind;
use carob_api::status::Status;
use carob_store::{Entry, Expect, Outcome, Txn, Write};
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::list::{self, Listing};
use super::namespace;
use super::update::MODIFIED;
use crate::admission;
use crate::call::Call;
use crate::objects::{self, metadata_mut, set_metadata, store_failure, text};
use crate::options::{DeleteOptions, ListOptions, Propagation};
use crate::response;
use crate::{conversion, definitions};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";
/// How often a delete is tried on a newer state.
const ATTEMPTS: usize = 32;

/// Kinds whose deletion is answered with the object instead of a Status.
const ANSWERED_WITH_OBJECT: [(&str, &str); 17] = [
    ("", "pods"),
    ("", "serviceaccounts"),
    ("", "services"),
    ("", "persistentvolumeclaims"),
    ("", "persistentvolumes"),
    ("", "podtemplates"),
    ("", "replicationcontrollers"),
    ("", "resourcequotas"),
    ("resource.k8s.io", "deviceclasses"),
    ("resource.k8s.io", "resourceclaims"),
    ("resource.k8s.io", "resourceclaimtemplates"),
    ("resource.k8s.io", "resourceslices"),
    ("storage.k8s.io", "csidrivers"),
    ("storage.k8s.io", "csinodes"),
    ("storage.k8s.io", "storageclasses"),
    ("storage.k8s.io", "volumeattachments"),
    ("storage.k8s.io", "volumeattributesclasses"),
];

/// DELETE of an object.
pub(crate) async fn delete(call: &Call, body: &Bytes) -> Result<Response, Status> {
    let options = DeleteOptions::read(call, body)?;
    warn_of_orphans(call, &options);
    if namespace::is_namespace(&call.kind) || definitions::is_definition(&call.kind) {
        namespace::check_mortal(call.name())?;
    }
    match delete_object(call, call.name(), &options).await? {
        Deleted::Gone(object) if !returns_object(&call.kind) => {
            let status = json!({
                "kind": "Status",
                "apiVersion": "v1",
                "metadata": {},
                "status": "Success",
                "details": details(call, &object),
            });
            response::object(StatusCode::OK, response::to_json(&status), call.accept.format, call.is_pretty())
        }
        Deleted::Gone(object) | Deleted::Going(object) => call.answer(StatusCode::OK, response::to_json(&object)),
    }
}

fn details(call: &Call, object: &Value) -> Value {
    let mut details = json!({ "name": call.name() });
    if !call.kind.group.is_empty() {
        details["group"] = call.kind.group.into();
    }
    details["kind"] = call.kind.plural.into();
    details["uid"] = text(object, "/metadata/uid").into();
    details
}

fn returns_object(kind: &Kind) -> bool {
    ANSWERED_WITH_OBJECT.contains(&(kind.group, kind.plural)) || namespace::is_namespace(kind)
}

/// DELETE of a collection: everything that a selector means. Answers with the list of what was deleted.
pub(crate) async fn delete_collection(call: &Call, body: &Bytes) -> Result<Response, Status> {
    let options = DeleteOptions::read(call, body)?;
    warn_of_orphans(call, &options);
    let found = match list::find(call, ListOptions::read(call, false)?).await? {
        Listing::Found(found) => found,
        Listing::Expired(status) => return Ok(response::json(StatusCode::GONE, &status)),
    };
    for entry in &found.entries {
        let (_, name) = objects::split_key(&call.kind, &entry.key);
        match delete_object(call, name, &options).await {
            Ok(_) => {}
            // Somebody else was quicker.
            Err(status) if status.code() == 404 => {}
            Err(status) => return Err(status),
        }
    }
    list::answer(call, found).await
}

/// Jobs leave their pods behind unless told otherwise, which surprises; so Kubernetes warns.
fn warn_of_orphans(call: &Call, options: &DeleteOptions) {
    if is_job(&call.kind) && options.propagation.is_none() {
        call.warn(
            "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove \
             them or set propagationPolicy=Orphan to suppress this warning",
        );
    }
}

fn is_job(kind: &Kind) -> bool {
    (kind.group, kind.plural) == ("batch", "jobs")
}

/// What these own stays when they go, unless the client says otherwise: their first versions had it so.
fn orphans_by_default(kind: &Kind) -> bool {
    is_job(kind) || (kind.group, kind.plural) == ("", "replicationcontrollers")
}

/// How a deletion ended.
pub(crate) enum Deleted {
    /// The object no longer exists; this is what it was.
    Gone(Value),
    /// It is marked and waits: for its grace period, or for finalizers.
    Going(Value),
}

/// Deletes the object of this name in the call's namespace (or, for a collection over a path, where it is).
pub(crate) async fn delete_object(call: &Call, name: &str, options: &DeleteOptions) -> Result<Deleted, Status> {
    let key = call.key(name);
    for _ in 0..ATTEMPTS {
        let entry = call.server.store.get(&key).await.map_err(|error| store_failure(&error))?;
        let Some(entry) = entry else { return Err(Status::not_found(&call.resource(), name)) };
        let entry = conversion::entry(call, entry).await?;
        let old = call.shown(&entry.value)?;
        check_preconditions(call, name, &old, options)?;
        admission::review(&mut admission::Request::delete(call, name, &old, options.dry_run)).await?;
        let plan = plan(&call.kind, old, options, Timestamp::now());
        match carry_out(call, &key, &entry, plan, options.dry_run).await? {
            Some(deleted) => return Ok(deleted),
            None => tokio::task::yield_now().await,
        }
    }
    Err(Status::conflict(&call.resource(), name, MODIFIED))
}

fn check_preconditions(call: &Call, name: &str, old: &Value, options: &DeleteOptions) -> Result<(), Status> {
    let uid = text(old, "/metadata/uid");
    if let Some(wanted) = options.uid.as_deref().filter(|wanted| *wanted != uid) {
        if namespace::is_namespace(&call.kind) || definitions::is_definition(&call.kind) {
            let text = format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {uid}");
            return Err(Status::conflict(&call.resource(), name, text));
        }
        let text = format!(
            "the UID in the precondition ({wanted}) does not match the UID in record ({uid}). The object might have \
             been deleted and then recreated"
        );
        return Err(Status::conflict(&call.group_kind(), name, text));
    }
    let version = text(old, "/metadata/resourceVersion");
    if let Some(wanted) = options.resource_version.as_deref().filter(|wanted| *wanted != version) {
        if namespace::is_namespace(&call.kind) || definitions::is_definition(&call.kind) {
            let text = format!(
                "Precondition failed: ResourceVersion in precondition: {wanted}, ResourceVersion in object meta: {version}"
            );
            return Err(Status::conflict(&call.resource(), name, text));
        }
        let text = format!(
            "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record \
             ({version}). The object might have been modified"
        );
        return Err(Status::conflict(&call.group_kind(), name, text));
    }
    Ok(())
}

/// What a deletion does to an object.
#[derive(Debug, PartialEq)]
enum Plan {
    /// It goes at once; this is shown of it.
    Remove(Value),
    /// It is marked like this.
    Mark(Value),
    /// It is marked already.
    Wait(Value),
}

/// Decides what a deletion does, as Kubernetes' registry does.
fn plan(kind: &Kind, old: Value, options: &DeleteOptions, now: Timestamp) -> Plan {
    if namespace::is_namespace(kind) {
        return plan_namespace(old, now);
    }
    if definitions::is_definition(kind) && old.pointer("/metadata/deletionTimestamp").is_none() {
        return plan_definition(old, now);
    }
    let mut new = old.clone();
    let finalizers = finalizers(kind, &old, options);
    let graceful = kind.strategy.default_grace_seconds.is_some();
    let grace = if graceful { grace(kind, &old, options) } else { 0 };
    let marked: Option<Timestamp> =
        old.pointer("/metadata/deletionTimestamp").and_then(Value::as_str).and_then(|text| text.parse().ok());
    set_finalizers(&mut new, &finalizers);
    match marked {
        None => mark(&mut new, now, grace),
        Some(at) => {
            let before = old.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0);
            // A second delete may only shorten the wait, and only if it says so.
            let shorter = graceful && options.grace_seconds.is_some() && grace < before;
            let shorter = shorter || (graceful && grace == 0 && before > 0 && never_started(&old));
            if shorter {
                let at = at.checked_sub(SignedDuration::from_secs(before)).unwrap_or(at);
                let at = at.checked_add(SignedDuration::from_secs(grace)).unwrap_or(at);
                set_metadata(&mut new, "deletionTimestamp", objects::timestamp(at));
                set_metadata(&mut new, "deletionGracePeriodSeconds", grace);
            } else if before > 0 {
                return if new == old { Plan::Wait(old) } else { Plan::Mark(new) };
            }
        }
    }
    let waits = new.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0) > 0;
    if finalizers.is_empty() && !waits {
        return Plan::Remove(if graceful { new } else { old });
    }
    if new == old { Plan::Wait(old) } else { Plan::Mark(new) }
}

fn plan_definition(old: Value, now: Timestamp) -> Plan {
    let new = definitions::terminate(&old, now);
    Plan::Mark(new)
}

fn plan_namespace(old: Value, now: Timestamp) -> Plan {
    let mut new = old.clone();
    if new.pointer("/metadata/deletionTimestamp").is_none() {
        set_metadata(&mut new, "deletionTimestamp", objects::timestamp(now));
        namespace::terminate(&mut new);
    }
    if namespace::finalizers(&new).is_empty() && objects::finalizers(&new).is_empty() {
        return Plan::Remove(new);
    }
    if new == old { Plan::Wait(old) } else { Plan::Mark(new) }
}

fn mark(object: &mut Value, now: Timestamp, grace: i64) {
    let at = now.checked_add(SignedDuration::from_secs(grace)).unwrap_or(now);
    set_metadata(object, "deletionTimestamp", objects::timestamp(at));
    set_metadata(object, "deletionGracePeriodSeconds", grace);
    let metadata = metadata_mut(object);
    if let Some(generation) = metadata.get("generation").and_then(Value::as_i64).filter(|number| *number > 0) {
        metadata.insert("generation".to_owned(), (generation + 1).into());
    }
}

/// Seconds that the object is given. Nothing runs yet of a Pod without a node, and nothing any more of a finished one.
fn grace(kind: &Kind, object: &Value, options: &DeleteOptions) -> i64 {
    if never_started(object) || matches!(text(object, "/status/phase"), "Succeeded" | "Failed") {
        return 0;
    }
    let default = kind.strategy.default_grace_seconds.map_or(0, |default| default(object));
    match options.grace_seconds {
        // As in Kubernetes: a negative period is the shortest that isn't none.
        Some(seconds) if seconds < 0 => 1,
        Some(seconds) => seconds,
        None => default.max(0),
    }
}

fn never_started(object: &Value) -> bool {
    text(object, "/spec/nodeName").is_empty()
}

/// The finalizers after the deletion was asked for: by its propagation, the garbage collector's are added or taken away.
fn finalizers(kind: &Kind, object: &Value, options: &DeleteOptions) -> Vec<String> {
    let mut finalizers = objects::finalizers(object);
    let has = |name: &str| finalizers.iter().any(|finalizer| finalizer == name);
    let (orphan, foreground) = match options.propagation {
        Some(propagation) => (propagation == Propagation::Orphan, propagation == Propagation::Foreground),
        None if has(ORPHAN) => (true, false),
        None if has(FOREGROUND) => (false, true),
        None => (orphans_by_default(kind), false),
    };
    finalizers.retain(|finalizer| finalizer != ORPHAN && finalizer != FOREGROUND);
    if orphan {
        finalizers.push(ORPHAN.to_owned());
    }
    if foreground {
        finalizers.push(FOREGROUND.to_owned());
    }
    finalizers
}

fn set_finalizers(object: &mut Value, finalizers: &[String]) {
    if finalizers.is_empty() {
        metadata_mut(object).shift_remove("finalizers");
    } else {
        set_metadata(object, "finalizers", finalizers.to_vec());
    }
}

/// None if somebody else changed the object meanwhile.
async fn carry_out(
    call: &Call,
    key: &str,
    entry: &Entry,
    plan: Plan,
    dry_run: bool,
) -> Result<Option<Deleted>, Status> {
    let (write, shown) = match plan {
        Plan::Wait(object) => return Ok(Some(Deleted::Going(object))),
        Plan::Remove(object) if dry_run => return Ok(Some(Deleted::Gone(object))),
        Plan::Mark(object) if dry_run => return Ok(Some(Deleted::Going(object))),
        Plan::Remove(object) => (Write::Delete(key.to_owned()), Some(object)),
        Plan::Mark(object) => {
            let object = conversion::to_storage(call, object).await?;
            (Write::Put(key.to_owned(), objects::encode(&call.stored(object))), None)
        }
    };
    let txn = Txn { expect: vec![(key.to_owned(), Expect::At(entry.revision))], writes: vec![write] };
    match call.server.store.txn(txn).await.map_err(|error| store_failure(&error))? {
        Outcome::Conflict(_) => Ok(None),
        Outcome::Committed { entries, .. } => match (shown, entries.first()) {
            (Some(object), _) => Ok(Some(Deleted::Gone(object))),
            (None, Some(entry)) => {
                let entry = conversion::entry(call, entry.clone()).await?;
                Ok(Some(Deleted::Going(call.shown(&entry.value)?)))
            }
            (None, None) => Err(Status::internal("the store lost a write")),
        },
    }
}
