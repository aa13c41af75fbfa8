//! ConfigMaps and Secrets that pods use: fetched when needed, and watched (by metadata alone) so that volumes follow them.

use crate::container::env::{Needs, Objects};
use crate::context::Context;
use crate::pod::Message;
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, PodSpec, Secret};
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use tokio_util::sync::CancellationToken;

/// Which object a volume comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ObjectKey {
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
}

/// Which pods want to know of changes to which objects.
#[derive(Default)]
pub(crate) struct Interests {
    pods: Mutex<HashMap<ObjectKey, HashSet<String>>>,
}

impl Interests {
    /// Notes that the pod's volumes come from these objects.
    pub fn add(&self, uid: &str, keys: impl IntoIterator<Item = ObjectKey>) {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        for key in keys {
            pods.entry(key).or_default().insert(uid.to_owned());
        }
    }

    /// Forgets the pod.
    pub fn remove(&self, uid: &str) {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, uids| {
            uids.remove(uid);
            !uids.is_empty()
        });
    }

    fn of(&self, key: &ObjectKey) -> Vec<String> {
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        pods.get(key).into_iter().flatten().cloned().collect()
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

/// Tells pods of changes to the objects that they use, until `shutdown`.
pub(crate) async fn watch(ctx: Arc<Context>, shutdown: CancellationToken) {
    let both = async {
        tokio::join!(follow::<ConfigMap>(&ctx, "ConfigMap"), follow::<Secret>(&ctx, "Secret"));
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = both => {}
    }
}

async fn follow<K>(ctx: &Arc<Context>, kind: &'static str)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let api: Api<PartialObjectMeta<K>> = Api::all(ctx.client.clone());
    let stream = watcher(api, watcher::Config::default().any_semantic()).default_backoff();
    let mut stream = std::pin::pin!(stream);
    loop {
        let event = match stream.try_next().await {
            Ok(Some(event)) => event,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%error, kind, "the watch is being renewed");
                continue;
            }
        };
        let (watcher::Event::Apply(object) | watcher::Event::Delete(object) | watcher::Event::InitApply(object)) =
            event
        else {
            continue;
        };
        let key = ObjectKey { kind, namespace: object.namespace().unwrap_or_default(), name: object.name_any() };
        for uid in ctx.interests.of(&key) {
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
        interests.add("u1", keys.clone());
        assert_eq!(interests.of(&keys[0]), ["u1"]);
        interests.remove("u1");
        assert!(interests.of(&keys[0]).is_empty());
    }
}
