//! Keeps APIServices: one for every group and version of custom resources, and on each whether its server answers.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use carob_api::kind::Part;
use carob_api::status::Status;
use carob_store::{KeyRange, Watched};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::delegate::Refusal;
use super::documents::Documents;
use super::resolve::Nowhere;
use super::{AUTOMANAGED, Delegate, RESOURCE, Registered};
use crate::Server;
use crate::bootstrap::{self, Existing};
use crate::handlers::delete;
use crate::handlers::update::{self, Change};
use crate::objects;
use crate::options::DeleteOptions;

/// How often a server that answers is asked whether it still does.
const EVERY: Duration = Duration::from_secs(30);
/// How soon one that doesn't is asked again: twice as long each time, up to [`EVERY`].
const FIRST_AGAIN: Duration = Duration::from_secs(1);
/// How often the discovery document is asked for before a server counts as one that doesn't answer.
const ATTEMPTS: usize = 3;
/// Where groups of custom resources, and their versions, stand among others.
const CUSTOM_PRIORITY: (i64, i64) = (1000, 100);

/// When a server is asked next, and how often it has failed.
struct Due {
    at: Instant,
    failures: u32,
}

/// A condition `Available` without its time.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    status: &'static str,
    reason: String,
    message: String,
}

/// Keeps them until the server ends.
pub(super) async fn keep(server: Weak<Server>) {
    let mut due = HashMap::new();
    loop {
        let Some(alive) = server.upgrade() else { return };
        let (store, aggregation) = (Arc::clone(&alive.store), Arc::clone(&alive.aggregation));
        let Ok(revision) = store.revision().await else { return };
        if let Err(status) = register(&alive).await {
            tracing::warn!(status = status.message(), "registering the groups of custom resources");
        }
        look(&alive, &mut due).await;
        drop(alive);
        let next = due.values().map(|due: &Due| due.at).min();
        let mut news = news(&*store, &aggregation.namespaces(), revision).await;
        let sleep = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = aggregation.changed.notified() => due.clear(),
            Some(()) = news.next() => due.clear(),
            () = sleep => {}
        }
    }
}

impl super::Aggregation {
    /// The namespaces of the Services on which something depends.
    fn namespaces(&self) -> BTreeSet<String> {
        let table = self.now();
        let delegates = table.all.iter().filter_map(|one| one.delegate.as_ref());
        delegates.map(|delegate| delegate.service.namespace.clone()).collect()
    }
}

/// Something whenever a Service or its endpoints change in one of these namespaces.
async fn news<'a>(store: &'a dyn carob_store::Store, namespaces: &BTreeSet<String>, after: u64) -> BoxStream<'a, ()> {
    let mut all: Vec<BoxStream<'a, ()>> = Vec::new();
    for namespace in namespaces {
        for prefix in ["/core/services", "/discovery.k8s.io/endpointslices"] {
            match store.watch(KeyRange::prefix(format!("{prefix}/{namespace}/")), after).await {
                Ok(events) => {
                    all.push(Box::pin(events.filter_map(|event| async move {
                        (!matches!(event, Ok(Watched::Progress(_)))).then_some(())
                    })));
                }
                // Too long ago: look again at once.
                Err(_) => all.push(Box::pin(stream::once(async {}))),
            }
        }
    }
    if all.is_empty() { Box::pin(stream::pending()) } else { Box::pin(stream::select_all(all)) }
}

/// Sees to it that every group and version of custom resources has its APIService, and none that is gone.
async fn register(server: &Arc<Server>) -> Result<(), Status> {
    let registry = server.registry();
    let custom = registry.iter().filter(|kind| kind.custom.is_some());
    let served: BTreeSet<(&str, &str)> = custom.map(|kind| (kind.group, kind.version)).collect();
    let table = server.aggregation.now();
    let of = |group: &str, version: &str| table.all.iter().find(|one| (&*one.group, &*one.version) == (group, version));
    let (group_priority, version_priority) = CUSTOM_PRIORITY;
    let spec = |group: &str, version: &str| {
        json!({
            "group": group, "version": version,
            "groupPriorityMinimum": group_priority, "versionPriority": version_priority,
        })
    };
    let lacking = served.iter().filter(|(group, version)| {
        of(group, version).is_none_or(|one| one.automanaged == "true" && one.spec != spec(group, version))
    });
    let wanted: Vec<Value> = lacking
        .map(|(group, version)| {
            json!({
                "kind": "APIService", "apiVersion": "apiregistration.k8s.io/v1",
                "metadata": { "name": format!("{version}.{group}"), "labels": { AUTOMANAGED: "true" } },
                "spec": spec(group, version),
            })
        })
        .collect();
    if !wanted.is_empty() {
        bootstrap::ensure(server, RESOURCE, wanted, settle).await?;
    }
    let gone = table
        .all
        .iter()
        .filter(|one| one.automanaged == "true" && !served.contains(&(one.group.as_str(), one.version.as_str())));
    for one in gone {
        let call = bootstrap::server_call(server, RESOURCE, &one.name)?;
        match delete::delete_object(&call, &one.name, &DeleteOptions::default()).await {
            Err(status) if status.code() != 404 => return Err(status),
            _ => {}
        }
    }
    Ok(())
}

/// What somebody made themselves is theirs.
fn settle(found: &Value, wanted: &Value) -> Existing {
    if found["metadata"]["labels"][AUTOMANAGED] != "true" || found["spec"] == wanted["spec"] {
        return Existing::Keep;
    }
    let mut new = found.clone();
    new["spec"] = wanted["spec"].clone();
    Existing::Change(new)
}

/// Asks the servers that are due, and writes down what has changed.
async fn look(server: &Arc<Server>, due: &mut HashMap<String, Due>) {
    let table = server.aggregation.now();
    due.retain(|name, _| table.all.iter().any(|one| one.delegate.is_some() && one.name == *name));
    server.aggregation.forget(&table, server);
    let now = Instant::now();
    let is_due = |one: &&Arc<Registered>| one.delegate.is_none() || due.get(&one.name).is_none_or(|due| due.at <= now);
    let asked = table.all.iter().filter(is_due).map(|one| async move {
        let verdict = match &one.delegate {
            None => Verdict::new("True", "Local", "Local APIServices are always available"),
            Some(delegate) => ask(server, one, delegate).await,
        };
        if let Err(status) = write(server, one, &verdict).await {
            tracing::debug!(api = one.name, status = status.message(), "writing down whether an API is available");
        }
        (one, verdict)
    });
    for (one, verdict) in futures::future::join_all(asked).await {
        if one.delegate.is_none() {
            continue;
        }
        let failures = match verdict.status {
            "True" => 0,
            _ => due.get(&one.name).map_or(0, |due| due.failures).saturating_add(1),
        };
        let pause = if failures == 0 { EVERY } else { FIRST_AGAIN.saturating_mul(1 << (failures - 1).min(6)) };
        due.insert(one.name.clone(), Due { at: Instant::now() + pause.min(EVERY), failures });
    }
}

impl Verdict {
    fn new(status: &'static str, reason: &str, message: impl Into<String>) -> Self {
        Self { status, reason: reason.to_owned(), message: message.into() }
    }
}

/// Whether a server answers. What it says that it serves is known before anybody is told that it does.
async fn ask(server: &Arc<Server>, one: &Registered, delegate: &Arc<Delegate>) -> Verdict {
    let path = format!("/apis/{}/{}", one.group, one.version);
    let mut verdict = Verdict::new("True", "Passed", "all checks passed");
    for _ in 0..ATTEMPTS {
        match delegate.ask(server, &path, "application/json").await {
            Ok(resources) => {
                let documents = Documents::read(server, one, delegate, &resources).await;
                server.aggregation.keep_documents(server, &one.name, documents);
                return Verdict::new("True", "Passed", "all checks passed");
            }
            Err(Refusal::Nowhere(Nowhere { reason, message })) => {
                let status = if reason == "ServiceAccessError" { "Unknown" } else { "False" };
                verdict = Verdict::new(status, reason, message);
                break;
            }
            Err(Refusal::Failed(message)) => verdict = Verdict::new("False", "FailedDiscoveryCheck", message),
        }
    }
    server.aggregation.mark_stale(server, one);
    verdict
}

/// Writes the condition down, unless it stands there already.
async fn write(server: &Arc<Server>, one: &Registered, verdict: &Verdict) -> Result<(), Status> {
    let Verdict { status, reason, message } = verdict;
    let known = &one.condition;
    if known["status"] == *status && known["reason"] == *reason && known["message"] == *message {
        return Ok(());
    }
    let call = bootstrap::server_call(server, RESOURCE, &one.name)?;
    let options = bootstrap::write_options();
    update::change(&call, &Change::new(Part::Status, &options), |found| {
        let mut new = found.clone();
        if found["spec"] == one.spec && found["metadata"]["uid"] == one.uid {
            set_available(&mut new, verdict);
        }
        Ok(new)
    })
    .await
    .map(drop)
}

/// The time changes only with the status.
fn set_available(object: &mut Value, verdict: &Verdict) {
    let Verdict { status, reason, message } = verdict;
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    let (mut conditions, before): (Vec<Value>, Vec<Value>) =
        conditions.into_iter().flatten().cloned().partition(|known| known["type"] != "Available");
    let since = before.first().filter(|known| known["status"] == *status);
    let since = since.map_or_else(|| objects::timestamp(Timestamp::now()).into(), |k| k["lastTransitionTime"].clone());
    conditions.push(json!({
        "type": "Available", "status": status, "lastTransitionTime": since, "reason": reason, "message": message,
    }));
    object["status"]["conditions"] = conditions.into();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_keeps_its_time_until_its_status_changes() {
        let mut object = json!({"status": {"conditions": [{"type": "Available", "status": "False",
            "lastTransitionTime": "then", "reason": "MissingEndpoints"}]}});
        set_available(&mut object, &Verdict::new("False", "FailedDiscoveryCheck", "m"));
        let condition = &object["status"]["conditions"][0];
        assert_eq!(
            (&condition["lastTransitionTime"], &condition["reason"]),
            (&"then".into(), &"FailedDiscoveryCheck".into())
        );
        set_available(&mut object, &Verdict::new("True", "Passed", "all checks passed"));
        assert_ne!(object["status"]["conditions"][0]["lastTransitionTime"], "then");
        assert_eq!(object["status"]["conditions"].as_array().map(Vec::len), Some(1));
    }

    #[test]
    fn only_what_the_server_made_is_repaired() {
        let api = |label: &str, priority: u32| json!({"metadata": {"labels": {AUTOMANAGED: label}}, "spec": priority});
        assert!(matches!(settle(&api("true", 1), &api("true", 2)), Existing::Change(_)));
        assert!(matches!(settle(&api("", 1), &api("true", 2)), Existing::Keep));
    }
}
