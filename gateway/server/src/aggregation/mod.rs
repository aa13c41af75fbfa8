//! API groups that other servers serve: what APIServices say of them, and requests on their way there.
//!
//! All APIServices are held in memory and follow the store's watch. One that names a Service takes the requests of its
//! group and version, before anything that is served here; [`keeper`] finds out whether its server answers.

mod delegate;
mod documents;
mod keeper;
mod openapi;
mod resolve;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use carob_store::{Entry, Error, Event};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::Server;
use crate::authz::follow::{self, Mirror};
use crate::bootstrap::{self, Existing};
use crate::objects::{self, text};
use crate::pki::{FRONT_PROXY, Pair, Pki};
pub(crate) use delegate::Delegate;
use documents::Documents;
pub(crate) use openapi::merged;

/// Where APIServices are kept.
const PREFIX: &str = "/apiregistration.k8s.io/apiservices/";
const RESOURCE: (&str, &str, &str) = ("apiregistration.k8s.io", "v1", "apiservices");
/// Label of an APIService that the server keeps itself: `onstart`, or `true` if it comes and goes with what is served.
const AUTOMANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";

/// All that is known of APIServices.
pub(crate) struct Aggregation {
    /// What the server shows to other API servers.
    client: RwLock<Pair>,
    entries: Mutex<BTreeMap<Arc<str>, Arc<Registered>>>,
    now: RwLock<Arc<Table>>,
    /// What other servers say that they serve, by the name of the APIService.
    documents: Mutex<HashMap<String, Arc<Documents>>>,
    /// Wakes who keeps APIServices.
    changed: Notify,
}

/// The APIServices of one moment.
#[derive(Default)]
struct Table {
    all: Vec<Arc<Registered>>,
    /// Those that other servers serve, by group and version.
    delegated: HashMap<(String, String), Arc<Registered>>,
}

/// One APIService.
#[derive(Clone)]
pub(crate) struct Registered {
    name: String,
    uid: String,
    group: String,
    version: String,
    group_priority: i64,
    version_priority: i64,
    /// The label [`AUTOMANAGED`].
    automanaged: String,
    /// Its condition `Available`.
    condition: Value,
    spec: Value,
    /// Who serves it, if it isn't this server.
    delegate: Option<Arc<Delegate>>,
}

impl Registered {
    /// `earlier` lends its connections, if it is about the same server.
    fn of(entry: &Entry, earlier: Option<&Self>, client: &Pair) -> Option<Self> {
        let object = objects::decode(&entry.value).ok()?;
        let spec = object["spec"].clone();
        let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
        let condition = conditions.into_iter().flatten().find(|known| known["type"] == "Available");
        let known = earlier.filter(|earlier| earlier.spec == spec).and_then(|earlier| earlier.delegate.clone());
        let delegate = match known {
            Some(delegate) => Some(delegate),
            None => spec["service"].is_object().then(|| Arc::new(Delegate::new(&spec, client))),
        };
        Some(Self {
            name: text(&object, "/metadata/name").to_owned(),
            uid: text(&object, "/metadata/uid").to_owned(),
            group: text(&spec, "/group").to_owned(),
            version: text(&spec, "/version").to_owned(),
            group_priority: spec["groupPriorityMinimum"].as_i64().unwrap_or_default(),
            version_priority: spec["versionPriority"].as_i64().unwrap_or_default(),
            automanaged: object["metadata"]["labels"][AUTOMANAGED].as_str().unwrap_or_default().to_owned(),
            condition: condition.cloned().unwrap_or_default(),
            spec,
            delegate,
        })
    }

    /// Whether requests are passed on.
    fn is_available(&self) -> bool {
        self.condition["status"] == "True"
    }

    /// Whether somebody changed what it is about, rather than how it is.
    fn differs(&self, other: &Self) -> bool {
        self.spec != other.spec || self.uid != other.uid || self.automanaged != other.automanaged
    }
}

impl Aggregation {
    /// Of nothing yet; other servers are shown `client`.
    pub fn new(client: Pair) -> Self {
        Self {
            client: RwLock::new(client),
            entries: Mutex::default(),
            now: RwLock::default(),
            documents: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Shows another certificate to other servers from now on.
    pub fn show(&self, client: Pair) {
        *self.client.write().unwrap_or_else(PoisonError::into_inner) = client;
        self.change(|entries| {
            for entry in entries.values_mut().filter(|entry| entry.delegate.is_some()) {
                let delegate = Some(Arc::new(Delegate::new(&entry.spec, &self.client())));
                *entry = Arc::new(Registered { delegate, ..Registered::clone(entry) });
            }
            false
        });
    }

    fn client(&self) -> RwLockReadGuard<'_, Pair> {
        self.client.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Arc<Table> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The APIService whose server answers requests of this path, if it isn't this one.
    pub fn of_path(&self, path: &str) -> Option<Arc<Registered>> {
        let table = self.now();
        if table.delegated.is_empty() {
            return None;
        }
        let mut segments = path.split('/').filter(|segment| !segment.is_empty());
        let mut first = segments.next()?;
        if first == "openapi" {
            (_, first) = (segments.next().filter(|version| *version == "v3")?, segments.next()?);
        }
        let (group, version) = (segments.next()?, segments.next()?);
        (first == "apis").then(|| table.delegated.get(&(group.to_owned(), version.to_owned())).cloned()).flatten()
    }

    /// Tells who keeps APIServices that what is served has changed.
    pub fn look_again(&self) {
        self.changed.notify_one();
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<Arc<str>, Arc<Registered>>) -> bool) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let wake = change(&mut entries);
        let all: Vec<Arc<Registered>> = entries.values().cloned().collect();
        let delegated = all.iter().filter(|one| one.delegate.is_some());
        let delegated = delegated.map(|one| ((one.group.clone(), one.version.clone()), Arc::clone(one))).collect();
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Table { all, delegated });
        drop(entries);
        if wake {
            self.look_again();
        }
    }

    fn learn(&self, entries: &mut BTreeMap<Arc<str>, Arc<Registered>>, entry: &Entry) -> bool {
        let earlier = entries.get(&entry.key).cloned();
        let Some(new) = Registered::of(entry, earlier.as_deref(), &self.client()) else { return false };
        let differs = earlier.is_none_or(|earlier| earlier.differs(&new));
        entries.insert(entry.key.clone(), Arc::new(new));
        differs
    }
}

impl Mirror for Aggregation {
    fn reset(&self, entries: &[Entry]) {
        self.change(|known| {
            let present: Vec<&str> = entries.iter().map(|entry| &*entry.key).collect();
            known.retain(|key, _| present.contains(&&**key));
            for entry in entries {
                self.learn(known, entry);
            }
            true
        });
    }

    fn apply(&self, events: &[Event]) {
        self.change(|known| {
            let mut wake = false;
            for event in events {
                wake |= match event {
                    Event::Put { entry, .. } => self.learn(known, entry),
                    Event::Delete { previous, .. } => known.remove(&previous.key).is_some(),
                };
            }
            wake
        });
    }
}

/// Follows the APIServices, and begins to keep them.
///
/// # Errors
/// When the store cannot be read.
pub(crate) async fn start(server: &Arc<Server>, stopping: &CancellationToken) -> Result<(), Error> {
    let mirror: Arc<dyn Mirror> = server.aggregation.clone();
    follow::follow(&server.store, PREFIX, mirror, stopping.clone()).await?;
    let server = Arc::downgrade(server);
    tokio::spawn(carob_keep::keep("APIServices", stopping.clone(), move || keeper::keep(server.clone())));
    Ok(())
}

/// Publishes by what extension API servers know this server, and those who ask this server directly.
pub(crate) async fn publish(server: &Arc<Server>, pki: &Pki) -> Result<(), carob_api::status::Status> {
    let list = |name: &str| json!([name]).to_string();
    let object = json!({
        "kind": "ConfigMap", "apiVersion": "v1",
        "metadata": { "name": "extension-apiserver-authentication", "namespace": "kube-system" },
        "data": {
            "client-ca-file": pki.ca_certificate,
            "requestheader-allowed-names": list(FRONT_PROXY),
            "requestheader-client-ca-file": pki.front_proxy_ca,
            "requestheader-extra-headers-prefix": list("X-Remote-Extra-"),
            "requestheader-group-headers": list("X-Remote-Group"),
            "requestheader-username-headers": list("X-Remote-User"),
        },
    });
    let settle = |found: &Value, wanted: &Value| {
        if found["data"] == wanted["data"] {
            return Existing::Keep;
        }
        let mut new = found.clone();
        new["data"] = wanted["data"].clone();
        Existing::Change(new)
    };
    bootstrap::ensure(server, ("", "v1", "configmaps"), vec![object], settle).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, spec: &Value) -> Entry {
        let object = json!({"metadata": {"name": name, "uid": name}, "spec": spec});
        Entry { key: format!("{PREFIX}{name}").into(), value: object.to_string().into(), revision: 1, created: 1 }
    }

    #[test]
    fn a_group_and_version_with_a_service_is_delegated_and_others_are_not() {
        let aggregation = Aggregation::new(Pair { certificate: String::new(), key: String::new() });
        let service = json!({"namespace": "n", "name": "s", "port": 443});
        aggregation.reset(&[
            entry("v1.e.x", &json!({"group": "e.x", "version": "v1", "service": service})),
            entry("v1.apps", &json!({"group": "apps", "version": "v1"})),
        ]);
        for path in ["/apis/e.x/v1", "/apis/e.x/v1/things/a", "/openapi/v3/apis/e.x/v1"] {
            assert_eq!(aggregation.of_path(path).map(|found| found.name.clone()).as_deref(), Some("v1.e.x"), "{path}");
        }
        for path in ["/apis/e.x", "/apis/e.x/v2/things", "/apis/apps/v1/deployments", "/api/v1/pods", "/openapi/v3"] {
            assert!(aggregation.of_path(path).is_none(), "{path}");
        }
        aggregation.reset(&[]);
        assert!(aggregation.of_path("/apis/e.x/v1").is_none());
    }
}
