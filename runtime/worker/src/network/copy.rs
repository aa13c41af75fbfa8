//! All objects of a kind as a watch tells of them.

use kube::Resource;
use kube::runtime::watcher::Event;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub namespace: String,
    pub name: String,
}

impl Key {
    fn of<K: Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self { namespace: meta.namespace.clone().unwrap_or_default(), name: meta.name.clone().unwrap_or_default() }
    }
}

/// The copy of what is there.
pub(super) struct Copy<K> {
    objects: HashMap<Key, Arc<K>>,
    /// Of the list that is being received.
    listing: HashSet<Key>,
    complete: bool,
}

impl<K> Default for Copy<K> {
    fn default() -> Self {
        Self { objects: HashMap::new(), listing: HashSet::new(), complete: false }
    }
}

impl<K: Resource> Copy<K> {
    /// Takes an event in. Returns what changed, with what was there before.
    pub(super) fn take(&mut self, event: Event<K>) -> Vec<(Key, Option<Arc<K>>)> {
        match event {
            Event::Init => {
                self.listing.clear();
                Vec::new()
            }
            Event::Apply(object) => vec![self.put(object)],
            Event::InitApply(object) => {
                self.listing.insert(Key::of(&object));
                vec![self.put(object)]
            }
            Event::Delete(object) => {
                let key = Key::of(&object);
                let old = self.objects.remove(&key);
                vec![(key, old)]
            }
            Event::InitDone => {
                self.complete = true;
                let gone = self.objects.keys().filter(|key| !self.listing.contains(*key)).cloned();
                gone.collect::<Vec<_>>().into_iter().map(|key| (key.clone(), self.objects.remove(&key))).collect()
            }
        }
    }

    fn put(&mut self, object: K) -> (Key, Option<Arc<K>>) {
        let key = Key::of(&object);
        let old = self.objects.insert(key.clone(), Arc::new(object));
        (key, old)
    }

    /// Whether the first list has come to its end.
    pub(super) fn complete(&self) -> bool {
        self.complete
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Arc<K>> {
        self.objects.get(key)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.objects.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Service;

    fn service(name: &str) -> Service {
        let mut service = Service::default();
        service.metadata.name = Some(name.to_owned());
        service
    }

    #[test]
    fn what_a_new_list_does_not_have_is_gone() {
        let mut copy = Copy::default();
        copy.take(Event::Init);
        copy.take(Event::InitApply(service("a")));
        assert!(!copy.complete());
        assert!(copy.take(Event::InitDone).is_empty() && copy.complete());
        copy.take(Event::Apply(service("b")));
        copy.take(Event::Init);
        copy.take(Event::InitApply(service("b")));
        let gone = copy.take(Event::InitDone);
        assert_eq!(gone.len(), 1);
        assert_eq!((gone[0].0.name.as_str(), gone[0].1.is_some()), ("a", true));
        assert_eq!(copy.keys().count(), 1);
    }
}
