//! The objects that every cluster has from its first start.

mod standard;

use std::sync::Arc;

use carob_api::decode::FieldValidation;
use carob_api::kind::Part;
use carob_api::status::Status;
use http::HeaderMap;
use serde_json::{Value, json};

use crate::authn::{Identity, MASTERS};
use crate::call::Call;
use crate::handlers::create::{self, Tracking};
use crate::handlers::delete;
use crate::handlers::update::{self, Change};
use crate::negotiate::Accept;
use crate::objects::{store_failure, text};
use crate::options::{DeleteOptions, WriteOptions};
use crate::{ApiService, Server, authz, services};

/// Who the server itself is.
const SERVER: &str = "system:apiserver";
/// Whose the fields are that it sets.
const MANAGER: &str = "kube-apiserver";

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Makes what isn't there yet.
pub(crate) async fn first_objects(server: &Arc<Server>, api: Option<ApiService>) -> Result<(), Status> {
    let namespaces = NAMESPACES
        .map(|name| json!({ "kind": "Namespace", "apiVersion": "v1", "metadata": { "name": name } }))
        .to_vec();
    ensure(server, ("", "v1", "namespaces"), namespaces, |_, _| Existing::Keep).await?;
    standard::reconcile(server, api.as_ref()).await?;
    if let Some(api) = api {
        services::api::reconcile(server, &api).await?;
    }
    authz::bootstrap::reconcile(server).await
}

/// What to do with an object that is there already.
#[derive(Debug)]
pub(crate) enum Existing {
    Keep,
    /// Make it this.
    Change(Value),
    /// Delete it and make it anew.
    Replace,
}

/// Sees to it that objects of one resource (group, version, plural) are there. `settle` is given the object that is found
/// and the one that is wanted. All are written at once: the store commits them together.
pub(crate) async fn ensure(
    server: &Arc<Server>,
    resource: (&str, &str, &str),
    wanted: Vec<Value>,
    settle: fn(&Value, &Value) -> Existing,
) -> Result<(), Status> {
    let (group, version, plural) = resource;
    let Some(kind) = server.kind(group, version, plural) else {
        return Err(Status::internal(format!("{plural} are not served")));
    };
    let identity = Identity::authenticated(SERVER, [MASTERS.to_owned()]);
    let work = wanted.into_iter().map(|object| {
        let mut call = Call::new(Arc::clone(server), kind.clone(), identity.clone(), HeaderMap::new(), Accept::JSON);
        call.namespace = object.pointer("/metadata/namespace").and_then(Value::as_str).map(str::to_owned);
        call.name = Some(text(&object, "/metadata/name").to_owned());
        async move { ensure_one(&call, object, settle).await }
    });
    futures::future::try_join_all(work).await.map(drop)
}

/// A request of the server itself about one object of a cluster's own.
pub(crate) fn server_call(server: &Arc<Server>, resource: (&str, &str, &str), name: &str) -> Result<Call, Status> {
    let (group, version, plural) = resource;
    let kind = server.kind(group, version, plural);
    let kind = kind.ok_or_else(|| Status::internal(format!("{plural} are not served")))?;
    let identity = Identity::authenticated(SERVER, [MASTERS.to_owned()]);
    let mut call = Call::new(Arc::clone(server), kind, identity, HeaderMap::new(), Accept::JSON);
    call.name = Some(name.to_owned());
    Ok(call)
}

/// As whom the server itself writes.
pub(crate) fn write_options() -> WriteOptions {
    WriteOptions { dry_run: false, manager: MANAGER.to_owned(), validation: FieldValidation::Strict, force: false }
}

async fn ensure_one(call: &Call, wanted: Value, settle: fn(&Value, &Value) -> Existing) -> Result<(), Status> {
    let options = write_options();
    let found = call.server.store.get(&call.key(call.name())).await.map_err(|error| store_failure(&error))?;
    if let Some(entry) = found {
        let found = call.shown(&entry.value)?;
        match settle(&found, &wanted) {
            Existing::Keep => return Ok(()),
            Existing::Change(new) => {
                let how = Change::new(Part::Main, &options);
                update::change(call, &how, |_| Ok(new.clone())).await?;
                return Ok(());
            }
            Existing::Replace => {
                delete::delete_object(call, call.name(), &DeleteOptions::default()).await?;
            }
        }
    }
    match create::create_object(call, wanted, &options, Tracking::Update).await {
        Err(status) if status.reason() == "AlreadyExists" => Ok(()),
        made => made.map(drop),
    }
}
