//! ConfigMaps and Secrets that pods use: fetched when needed, and watched (by metadata alone) so that volumes follow them.

use crate::container::env::{Needs, Objects};
use crate::context::Context;
use crate::pod::Message;
use futures::TryStreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, PodSpec, Secret, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::ListParams;
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Which object a volume comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ObjectKey {
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
}

/// Which pods want to know of changes to which objects. Each object has a watch of its own, as long as a pod uses it: nodes
/// may read no others.
#[derive(Default)]
pub(crate) struct Interests {
    watched: Mutex<HashMap<ObjectKey, Watched>>,
}

struct Watched {
    /// By uid, with the version that the pod's volumes were filled from.
    pods: HashMap<String, Option<String>>,
    _watch: DropGuard,
}

impl Interests {
    fn lock(&self) -> MutexGuard<'_, HashMap<ObjectKey, Watched>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the pod's volumes come from these objects. `watch` begins the watch of an object that had none, which ends
    /// with the token.
    pub fn add(
        &self,
        uid: &str,
        keys: impl IntoIterator<Item = ObjectKey>,
        watch: impl Fn(ObjectKey, CancellationToken),
    ) {
        let mut watched = self.lock();
        for key in keys {
            let entry = watched.entry(key.clone()).or_insert_with(|| {
                let stop = CancellationToken::new();
                watch(key, stop.clone());
                Watched { pods: HashMap::new(), _watch: stop.drop_guard() }
            });
            entry.pods.entry(uid.to_owned()).or_default();
        }
    }

    /// Notes which version of an object a pod's volume is filled from.
    pub fn filled(&self, uid: &str, kind: &'static str, object: &ObjectMeta) {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let key = ObjectKey { kind, namespace: text(&object.namespace), name: text(&object.name) };
        if let Some(seen) = self.lock().get_mut(&key).and_then(|watched| watched.pods.get_mut(uid)) {
            seen.clone_from(&object.resource_version);
        }
    }

    /// Forgets the pod.
    pub fn remove(&self, uid: &str) {
        self.lock().retain(|_, watched| {
            watched.pods.remove(uid);
            !watched.pods.is_empty()
        });
    }

    /// Ends all watches.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// The pods that have another version than this one.
    fn of(&self, key: &ObjectKey, version: Option<&String>) -> Vec<String> {
        let watched = self.lock();
        let pods = watched.get(key).into_iter().flat_map(|watched| &watched.pods);
        let others = pods.filter(|(_, seen)| version.is_none() || seen.as_ref() != version);
        others.map(|(uid, _)| uid.clone()).collect()
    }
}

/// The objects that the pod's volumes come from.
pub(crate) fn of_volumes(namespace: &str, spec: &PodSpec) -> Vec<ObjectKey> {
    let mut keys = Vec::new();
    let mut add = |kind, name: Option<&String>| {
        keys.extend(name.map(|name| ObjectKey { kind, namespace: namespace.to_owned(), name: name.clone() }));
    };
    for volume in spec.volumes.iter().flatten() {
        add("ConfigMap", volume.config_map.as_ref().map(|source| &source.name));
        add("Secret", volume.secret.as_ref().and_then(|source| source.secret_name.as_ref()));
        for part in volume.projected.iter().flat_map(|source| source.sources.iter().flatten()) {
            add("ConfigMap", part.config_map.as_ref().map(|source| &source.name));
            add("Secret", part.secret.as_ref().map(|source| &source.name));
        }
    }
    keys
}

impl Context {
    /// A ConfigMap, `None` when there is none. The error is one line for a status or an event.
    pub async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<ConfigMap>, String> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        api.get_opt(name).await.map_err(|error| message(&error))
    }

    /// A Secret, `None` when there is none.
    pub async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, String> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        api.get_opt(name).await.map_err(|error| message(&error))
    }

    /// What a container's environment needs.
    pub async fn objects(&self, namespace: &str, needs: &Needs) -> Result<Objects, String> {
        let mut objects = Objects::default();
        for name in &needs.config_maps {
            if let Some(map) = self.config_map(namespace, name).await? {
                objects.config_maps.insert(name.clone(), map);
            }
        }
        for name in &needs.secrets {
            if let Some(secret) = self.secret(namespace, name).await? {
                objects.secrets.insert(name.clone(), secret);
            }
        }
        if needs.services {
            // Listed, not cached: a Service made just before the pod is in its environment.
            let api: Api<Service> = Api::namespaced(self.client.clone(), namespace);
            objects.services = api.list(&ListParams::default()).await.map_err(|error| message(&error))?.items;
        }
        Ok(objects)
    }
}

/// What the API said, without the client's wrapping.
pub(crate) fn message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// Begins to tell pods of changes to an object.
pub(crate) fn watch(ctx: &Arc<Context>, key: ObjectKey, stop: CancellationToken) {
    let ctx = ctx.clone();
    tokio::spawn(carob_keep::keep("what a volume comes from", stop, move || {
        let (ctx, key) = (ctx.clone(), key.clone());
        async move {
            match key.kind {
                "ConfigMap" => follow::<ConfigMap>(&ctx, &key).await,
                _ => follow::<Secret>(&ctx, &key).await,
            }
        }
    }));
}

async fn follow<K>(ctx: &Arc<Context>, key: &ObjectKey)
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let api: Api<PartialObjectMeta<K>> = Api::namespaced(ctx.client.clone(), &key.namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={}", key.name)).any_semantic();
    let stream = watcher(api, config).default_backoff();
    let mut stream = std::pin::pin!(stream);
    loop {
        let (object, there) = match stream.try_next().await {
            Ok(Some(watcher::Event::Apply(object) | watcher::Event::InitApply(object))) => (object, true),
            Ok(Some(watcher::Event::Delete(object))) => (object, false),
            Ok(Some(watcher::Event::Init | watcher::Event::InitDone)) => continue,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%error, ?key, "the watch is being renewed");
                continue;
            }
        };
        let version = object.metadata.resource_version.as_ref().filter(|_| there);
        for uid in ctx.interests.of(key, version) {
            ctx.pods.send(&uid, Message::VolumesChanged);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn volumes_name_their_objects_and_interest_ends_with_the_pod() {
        let spec: PodSpec = serde_json::from_value(json!({"containers": [], "volumes": [
            {"name": "a", "configMap": {"name": "cm"}},
            {"name": "b", "projected": {"sources": [{"secret": {"name": "s"}}, {"downwardAPI": {}}]}}
        ]}))
        .unwrap();
        let keys = of_volumes("ns", &spec);
        assert_eq!(keys.len(), 2);
        let interests = Interests::default();
        let watches = std::cell::RefCell::new(Vec::new());
        let watch = |_, stop| watches.borrow_mut().push(stop);
        interests.add("u1", keys.clone(), watch);
        interests.add("u2", keys.clone(), watch);
        assert_eq!(watches.borrow().len(), 2, "one for each object");
        let version = "7".to_owned();
        let meta = ObjectMeta {
            name: Some("cm".into()),
            namespace: Some("ns".into()),
            resource_version: Some(version.clone()),
            ..ObjectMeta::default()
        };
        interests.filled("u2", "ConfigMap", &meta);
        assert_eq!(interests.of(&keys[0], Some(&version)), ["u1"], "the other has this version");
        assert_eq!(interests.of(&keys[0], None).len(), 2, "its end concerns all");
        interests.remove("u1");
        assert!(!watches.borrow()[0].is_cancelled());
        interests.remove("u2");
        assert!(
            interests.of(&keys[0], None).is_empty() && watches.borrow().iter().all(CancellationToken::is_cancelled)
        );
    }
}
