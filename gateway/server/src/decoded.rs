//! Decoded objects for selectors and tables: each revision of an object is decoded once, however many watchers look.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use carob_api::status::Status;
use carob_store::{Entry, Revision};
use serde_json::Value;

use crate::objects;

/// How many objects are kept decoded. Watchers look at the newest ones, one after the other.
const CAPACITY: usize = 256;

/// A few decoded objects, the oldest given up first.
#[derive(Default)]
pub(crate) struct Cache {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    objects: HashMap<(Arc<str>, Revision), Arc<Value>>,
    order: VecDeque<(Arc<str>, Revision)>,
}

impl Cache {
    /// The object of an entry.
    pub fn get(&self, entry: &Entry) -> Result<Arc<Value>, Status> {
        let key = (entry.key.clone(), entry.revision);
        if let Some(object) = self.kept.lock().unwrap_or_else(PoisonError::into_inner).objects.get(&key) {
            return Ok(object.clone());
        }
        let object = Arc::new(objects::decode(&entry.value)?);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.objects.insert(key.clone(), object.clone()).is_none() {
            kept.order.push_back(key);
            if kept.order.len() > CAPACITY
                && let Some(oldest) = kept.order.pop_front()
            {
                kept.objects.remove(&oldest);
            }
        }
        Ok(object)
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
        assert_eq!(cache.kept.lock().expect("not poisoned").objects.len(), CAPACITY);
        assert_eq!(*cache.get(&entry(999)).expect("kept"), serde_json::json!({"r": 999}));
    }
}
