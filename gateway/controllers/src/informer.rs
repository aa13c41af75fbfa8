//! A local copy of all objects of a kind, kept current by one watch that all controllers share.

use std::collections::{BTreeMap, HashSet};
use std::hash::Hash;
use std::sync::{Arc, PoisonError, RwLock};

use futures::{StreamExt, TryStreamExt};
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Namespace and name of an object; the namespace is empty for cluster-scoped ones.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Key {
    pub(crate) fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    pub(crate) fn of<K: Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
    }
}

/// A change of an object: what it was and what it is.
pub(crate) struct Change<'a, K> {
    pub(crate) old: Option<&'a Arc<K>>,
    pub(crate) new: Option<&'a Arc<K>>,
}

type Handler<K> = Box<dyn Fn(&Change<'_, K>) + Send + Sync>;

/// The copy. Clones share it.
pub(crate) struct Informer<K> {
    shared: Arc<Shared<K>>,
}

struct Shared<K> {
    objects: RwLock<BTreeMap<Key, Arc<K>>>,
    handlers: RwLock<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<K> Informer<K>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    pub(crate) fn new() -> Self {
        let shared =
            Shared { objects: RwLock::default(), handlers: RwLock::default(), synced: watch::Sender::new(false) };
        Self { shared: Arc::new(shared) }
    }

    /// Calls `handler` for every change from now on, after the copy has taken it in.
    pub(crate) fn on_change(&self, handler: impl Fn(&Change<'_, K>) + Send + Sync + 'static) {
        self.shared.handlers.write().unwrap_or_else(PoisonError::into_inner).push(Box::new(handler));
    }

    /// The object as it was last seen.
    pub(crate) fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.objects().get(key).cloned()
    }

    /// The objects that `wanted` chooses.
    pub(crate) fn list(&self, wanted: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        self.objects().values().filter(|object| wanted(object)).cloned().collect()
    }

    /// The objects of one namespace that `wanted` chooses.
    pub(crate) fn list_in(&self, namespace: &str, wanted: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        let objects = self.objects();
        let here = objects.range(Key::new(namespace, "")..).take_while(|(key, _)| key.namespace == namespace);
        here.map(|(_, object)| object).filter(|object| wanted(object)).cloned().collect()
    }

    /// Takes in what the API answered to a change, so that the next look doesn't act on what was before it, and tells it on:
    /// when the watch brings it, nothing is new any more.
    pub(crate) fn learn(&self, mut object: K) {
        object.meta_mut().managed_fields = None;
        let new = Arc::new(object);
        let mut objects = self.objects_mut();
        let Some(known) = objects.get_mut(&Key::of(&*new)) else { return };
        if known.meta().uid != new.meta().uid || version(&**known) >= version(&*new) {
            return;
        }
        let old = std::mem::replace(known, Arc::clone(&new));
        drop(objects);
        self.tell(&Change { old: Some(&old), new: Some(&new) });
    }

    /// Waits until the copy is complete for the first time.
    pub(crate) async fn synced(&self) {
        let mut synced = self.shared.synced.subscribe();
        // The sender lives as long as this informer does.
        let _ = synced.wait_for(|synced| *synced).await;
    }

    /// Keeps the copy current until told to stop.
    pub(crate) async fn run(self, client: Client, config: watcher::Config, stop: CancellationToken) {
        let events = watcher(Api::<K>::all(client), config).default_backoff();
        let mut listed: HashSet<Key> = HashSet::new();
        let follow = events.into_stream().for_each(|event| {
            match event {
                Ok(watcher::Event::Apply(object)) => self.put(object),
                Ok(watcher::Event::Delete(object)) => self.remove(&Key::of(&object)),
                Ok(watcher::Event::Init) => listed.clear(),
                Ok(watcher::Event::InitApply(object)) => {
                    listed.insert(Key::of(&object));
                    self.put(object);
                }
                Ok(watcher::Event::InitDone) => {
                    let gone: Vec<Key> = self.objects().keys().filter(|key| !listed.contains(key)).cloned().collect();
                    for key in &gone {
                        self.remove(key);
                    }
                    self.shared.synced.send_replace(true);
                }
                Err(error) => {
                    tracing::debug!(kind = %K::kind(&()), %error, "watching again");
                    if is_not_served(&error) {
                        self.shared.synced.send_replace(true);
                    }
                }
            }
            std::future::ready(())
        });
        tokio::select! {
            () = stop.cancelled() => {}
            () = follow => {}
        }
    }

    /// Takes in what the watch tells of an object, and tells it on.
    pub(crate) fn put(&self, mut object: K) {
        // Nobody asks who set which field, and it is much.
        object.meta_mut().managed_fields = None;
        let new = Arc::new(object);
        let key = Key::of(&*new);
        let mut objects = self.objects_mut();
        let newer = |known: &Arc<K>| known.meta().uid == new.meta().uid && version(&**known) > version(&*new);
        if objects.get(&key).is_some_and(newer) {
            return;
        }
        let old = objects.insert(key, Arc::clone(&new));
        drop(objects);
        self.tell(&Change { old: old.as_ref(), new: Some(&new) });
    }

    fn remove(&self, key: &Key) {
        let Some(old) = self.objects_mut().remove(key) else { return };
        self.tell(&Change { old: Some(&old), new: None });
    }

    fn tell(&self, change: &Change<'_, K>) {
        for handler in self.shared.handlers.read().unwrap_or_else(PoisonError::into_inner).iter() {
            handler(change);
        }
    }

    fn objects(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<Key, Arc<K>>> {
        self.shared.objects.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn objects_mut(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<Key, Arc<K>>> {
        self.shared.objects.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Resource versions are numbers that grow.
fn version<K: Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
}

/// Whether the API doesn't have what was to be watched: then there are no objects of it.
pub(crate) fn is_not_served(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 404,
        _ => false,
    }
}
