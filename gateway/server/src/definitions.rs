//! CustomResourceDefinitions: what they define is served as soon as they are established, until their last object is gone.
//!
//! One task looks at all definitions whenever one changes: it settles their names, makes the kinds of those that are
//! established, serves them, and only then writes down that they are. So what says that it is established is served.

mod cleanup;
mod names;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use carob_api::custom;
use carob_api::kind::Kind;
use carob_api::kinds::Registry;
use carob_store::{Error, Expect, KeyRange, Txn, Write};
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::objects::{self, text};
use crate::{Server, authn};

const PREFIX: &str = "/apiextensions.k8s.io/customresourcedefinitions/";
const GROUP: &str = "apiextensions.k8s.io";
const PLURAL: &str = "customresourcedefinitions";
/// How soon objects of a definition that goes away are looked at again.
const AGAIN: Duration = Duration::from_millis(250);
/// How long the task rests after a failure of the store.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Whether this is the kind of definitions.
pub(crate) fn is_definition(kind: &Kind) -> bool {
    (kind.group, kind.plural) == (GROUP, PLURAL)
}

/// A definition whose deletion is asked for: its objects go first.
pub(crate) fn terminate(definition: &Value, now: jiff::Timestamp) -> Value {
    let mut new = definition.clone();
    objects::set_metadata(&mut new, "deletionTimestamp", objects::timestamp(now));
    let finalizer = carob_api::strategy::custom_resource_definition::FINALIZER;
    let mut finalizers = objects::finalizers(&new);
    if !finalizers.iter().any(|known| known == finalizer) {
        finalizers.push(finalizer.to_owned());
    }
    objects::set_metadata(&mut new, "finalizers", finalizers);
    set_condition(
        &mut new,
        "Terminating",
        true,
        "InstanceDeletionPending",
        "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
    );
    new
}

/// Serves what is defined already, and from now on follows the definitions.
///
/// # Errors
/// When the store cannot be read.
pub(crate) async fn start(server: &Arc<Server>, stopping: &CancellationToken) -> Result<(), Error> {
    let mut following = Following { server: Arc::downgrade(server), made: HashMap::new(), served: Vec::new() };
    let after = following.look(server).await?.0;
    // Who begins again goes on from what is served.
    let following = Arc::new(Mutex::new((following, after)));
    tokio::spawn(carob_keep::keep("definitions", stopping.clone(), move || {
        let following = Arc::clone(&following);
        async move {
            let (following, after) = &mut *following.lock().await;
            following.follow(after).await;
        }
    }));
    Ok(())
}

/// Returns when a definition has changed after this revision, or, if something else is waited for, a moment later.
async fn wait(store: &dyn carob_store::Store, after: u64, busy: bool) -> Result<(), Error> {
    let mut happens = match store.watch(KeyRange::prefix(PREFIX), after).await {
        Ok(happens) => happens,
        Err(Error::Compacted { .. }) => return Ok(()),
        Err(error) => return Err(error),
    };
    let changed = async {
        loop {
            match happens.next().await {
                Some(Ok(carob_store::Watched::Progress(_))) => {}
                Some(Err(Error::Closed)) | None => return Err(Error::Closed),
                Some(Ok(carob_store::Watched::Events(_)) | Err(_)) => return Ok(()),
            }
        }
    };
    if busy { tokio::time::timeout(AGAIN, changed).await.unwrap_or(Ok(())) } else { changed.await }
}

/// What was made of the definitions so far.
struct Following {
    server: std::sync::Weak<Server>,
    /// By uid of a definition: what its kinds were made of, and the kinds.
    made: HashMap<String, (Value, Vec<Arc<Kind>>)>,
    /// The kinds that are served, to tell whether they changed.
    served: Vec<Arc<Kind>>,
}

impl Following {
    /// Looks at the definitions whenever one changes after this revision.
    async fn follow(&mut self, after: &mut u64) {
        let mut busy = false;
        loop {
            let Some(server) = self.server.upgrade() else { return };
            let store = Arc::clone(&server.store);
            drop(server);
            match wait(&*store, *after, busy).await {
                Ok(()) => {}
                Err(Error::Closed) => return,
                Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "watching definitions"),
            }
            let Some(server) = self.server.upgrade() else { return };
            match self.look(&server).await {
                Ok((revision, still_busy)) => (*after, busy) = (revision, still_busy),
                Err(Error::Closed) => return,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "reading definitions");
                    tokio::time::sleep(AFTER_FAILURE).await;
                }
            }
        }
    }

    /// Looks at all definitions. Gives the revision that was seen, and whether to look again soon.
    async fn look(&mut self, server: &Arc<Server>) -> Result<(u64, bool), Error> {
        let page = server.store.range(&KeyRange::prefix(PREFIX), None, None).await?;
        let mut entries = page.entries;
        entries.sort_by_key(|entry| entry.created);
        let mut definitions: Vec<Value> = Vec::with_capacity(entries.len());
        for entry in &entries {
            definitions.push(objects::decode(&entry.value).unwrap_or_default());
        }
        let settled = names::settle(&definitions);
        self.serve(server, &settled);
        let mut busy = false;
        for ((entry, old), new) in entries.iter().zip(&definitions).zip(settled) {
            if new != *old {
                let expect = vec![(entry.key.to_string(), Expect::At(entry.revision))];
                let writes = vec![Write::Put(entry.key.to_string(), objects::encode(&new))];
                // Whoever was quicker wakes this task again.
                server.store.txn(Txn { expect, writes }).await?;
            } else if new.pointer("/metadata/deletionTimestamp").is_some() {
                busy |= cleanup::clean_up(server, entry, &new).await?;
            }
        }
        Ok((page.revision, busy))
    }

    /// Makes the kinds of what is established, and serves them.
    fn serve(&mut self, server: &Server, definitions: &[Value]) {
        let mut made = HashMap::with_capacity(definitions.len());
        let mut kinds = Vec::new();
        for definition in definitions.iter().filter(|definition| is_true(definition, "Established")) {
            let accepted = accepted(definition);
            let uid = text(definition, "/metadata/uid").to_owned();
            let known = self.made.remove(&uid).filter(|(source, _)| *source == accepted);
            let (source, own) = known.unwrap_or_else(|| {
                let own = custom::kinds_of(&accepted);
                (accepted, own)
            });
            kinds.extend(own.iter().cloned());
            made.insert(uid, (source, own));
        }
        self.made = made;
        let same = kinds.len() == self.served.len() && kinds.iter().zip(&self.served).all(|(a, b)| Arc::ptr_eq(a, b));
        if !same {
            server.live.set(Registry::with(&server.optional, kinds.iter().cloned()));
            server.aggregation.look_again();
            self.served = kinds;
        }
    }
}

/// What kinds are made of: the spec with the names that were accepted, and whether it goes away.
fn accepted(definition: &Value) -> Value {
    let mut spec = definition["spec"].clone();
    if let Some(names) = definition.pointer("/status/acceptedNames") {
        for name in ["shortNames", "categories", "singular", "listKind"] {
            match names.get(name) {
                Some(value) => spec["names"][name] = value.clone(),
                None => drop(spec["names"].as_object_mut().and_then(|names| names.shift_remove(name))),
            }
        }
    }
    json!({ "spec": spec, "terminating": definition.pointer("/metadata/deletionTimestamp").is_some() })
}

/// Whether a condition holds.
fn is_true(definition: &Value, condition: &str) -> bool {
    let conditions = definition.pointer("/status/conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().any(|known| known["type"] == condition && known["status"] == "True")
}

/// Writes a condition down; its time changes only with its status.
fn set_condition(definition: &mut Value, name: &str, holds: bool, reason: &str, message: &str) {
    let status = if holds { "True" } else { "False" };
    if !definition["status"]["conditions"].is_array() {
        definition["status"]["conditions"] = json!([]);
    }
    let Some(conditions) = definition["status"]["conditions"].as_array_mut() else { return };
    let at = conditions.iter().position(|known| known["type"] == name);
    let since = at
        .map(|at| &conditions[at])
        .filter(|known| known["status"] == status)
        .map(|known| known["lastTransitionTime"].clone());
    let since = since.unwrap_or_else(|| objects::timestamp(jiff::Timestamp::now()).into());
    let condition =
        json!({ "type": name, "status": status, "lastTransitionTime": since, "reason": reason, "message": message });
    match at {
        Some(at) => conditions[at] = condition,
        None => conditions.push(condition),
    }
}

/// Who deletes the objects of a definition that goes away.
fn identity() -> authn::Identity {
    authn::Identity::authenticated("system:apiserver", [authn::MASTERS.to_owned()])
}
