//! What many watchers look at one after the other is made once: decoded objects for selectors and tables, and events in
//! forms other than the stored bytes.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use carob_api::status::Status;
use carob_store::{Entry, Revision};
use serde_json::Value;

use crate::negotiate::Accept;
use crate::objects;

/// How many objects are kept decoded, and how many events written. Watchers look at the newest ones.
const CAPACITY: usize = 256;

/// An event in a client's form: the object's key and revision, the event's name, the API version, the form.
pub(crate) type EventKey = (Arc<str>, Revision, &'static str, String, Accept);

/// What was made last, the oldest given up first.
#[derive(Default)]
pub(crate) struct Cache {
    objects: Recent<(Arc<str>, Revision), Arc<Value>>,
    events: Recent<EventKey, Bytes>,
}

impl Cache {
    /// The object of an entry.
    pub fn get(&self, entry: &Entry) -> Result<Arc<Value>, Status> {
        let key = (entry.key.clone(), entry.revision);
        self.objects.get(key, || objects::decode(&entry.value).map(Arc::new))
    }

    /// An event, made at the first time.
    pub fn event(&self, key: EventKey, make: impl FnOnce() -> Result<Bytes, Status>) -> Result<Bytes, Status> {
        self.events.get(key, make)
    }
}

/// A few values, the oldest given up first.
struct Recent<K, V> {
    kept: Mutex<Kept<K, V>>,
}

struct Kept<K, V> {
    values: HashMap<K, V>,
    order: VecDeque<K>,
}

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Self { kept: Mutex::new(Kept { values: HashMap::new(), order: VecDeque::new() }) }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Recent<K, V> {
    fn get<E>(&self, key: K, make: impl FnOnce() -> Result<V, E>) -> Result<V, E> {
        if let Some(value) = self.kept.lock().unwrap_or_else(PoisonError::into_inner).values.get(&key) {
            return Ok(value.clone());
        }
        let value = make()?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.values.insert(key.clone(), value.clone()).is_none() {
            kept.order.push_back(key);
            if kept.order.len() > CAPACITY
                && let Some(oldest) = kept.order.pop_front()
            {
                kept.values.remove(&oldest);
            }
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_decoded_once_and_the_cache_stays_small() {
        let cache = Cache::default();
        let entry = |revision| Entry {
            key: "/core/pods/a/b".into(),
            value: format!(r#"{{"r":{revision}}}"#).into(),
            revision,
            created: 1,
        };
        let first = cache.get(&entry(1)).expect("decoded");
        assert!(Arc::ptr_eq(&first, &cache.get(&entry(1)).expect("kept")));
        for revision in 2..1000 {
            cache.get(&entry(revision)).expect("decoded");
        }
        assert_eq!(cache.objects.kept.lock().expect("not poisoned").values.len(), CAPACITY);
        assert_eq!(*cache.get(&entry(999)).expect("kept"), serde_json::json!({"r": 999}));
    }
}
