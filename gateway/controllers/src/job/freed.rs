//! Pods whose finalizer is off, though the copy doesn't show it yet.
//!
//! A pod that was only kept by the finalizer is gone with it, and the answer is the pod as it was last stored: no newer
//! than the copy, which shows the finalizer until the watch is heard. Counted by that copy, the pod would count twice.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::Pod;

use super::TRACKING;
use super::tally::is_tracked;
use crate::informer::{Informer, Key};

/// The uids of such pods.
#[derive(Default)]
pub(super) struct Freed {
    uids: Mutex<HashSet<String>>,
}

impl Freed {
    /// The pod has no finalizer any more, or is gone.
    pub(super) fn note(&self, pod: &Pod, copy: &Informer<Pod>) {
        self.uids().insert(uid(pod).to_owned());
        // In this order: if the watch told of it before, nobody would take the note away.
        if !copy.get(&Key::of(pod)).is_some_and(|known| uid(&known) == uid(pod) && is_tracked(&known)) {
            self.uids().remove(uid(pod));
        }
    }

    /// The watch told of a pod's state.
    pub(super) fn observe(&self, old: Option<&Pod>, new: Option<&Pod>) {
        let mut uids = self.uids();
        if let Some(old) = old.filter(|old| new.is_none_or(|new| uid(new) != uid(old))) {
            uids.remove(uid(old));
        }
        if let Some(new) = new.filter(|new| !is_tracked(new)) {
            uids.remove(uid(new));
        }
    }

    /// A pod of the copy as it is by now: without the finalizer, if that is off.
    pub(super) fn shown(&self, pod: Arc<Pod>) -> Arc<Pod> {
        if !self.uids().contains(uid(&pod)) {
            return pod;
        }
        let mut pod = Arc::unwrap_or_clone(pod);
        pod.metadata.finalizers.get_or_insert_default().retain(|finalizer| finalizer != TRACKING);
        Arc::new(pod)
    }

    fn uids(&self) -> MutexGuard<'_, HashSet<String>> {
        self.uids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::tally::Tally;
    use super::*;
    use k8s_openapi::api::batch::v1::Job;
    use serde_json::json;

    /// A pod that failed, is being deleted, and is only kept by the finalizer.
    fn ending() -> Pod {
        let metadata = json!({
            "namespace": "n", "name": "p", "uid": "u", "resourceVersion": "5",
            "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [TRACKING],
        });
        serde_json::from_value(json!({"metadata": metadata, "status": {"phase": "Failed"}})).unwrap()
    }

    fn new_failures(freed: &Freed, copy: &Informer<Pod>) -> usize {
        let pods: Vec<Arc<Pod>> = copy.list(|_| true).into_iter().map(|pod| freed.shown(pod)).collect();
        Tally::of(&Job::default(), &pods, &vec![false; pods.len()]).new_failed.len()
    }

    #[test]
    fn a_pod_that_is_gone_with_its_finalizer_is_not_counted_again_by_a_late_copy() {
        let (freed, copy) = (Freed::default(), Informer::<Pod>::new());
        copy.put(ending());
        assert_eq!(new_failures(&freed, &copy), 1);
        // The API answers with the pod as it was.
        copy.learn(ending());
        freed.note(&ending(), &copy);
        assert_eq!(new_failures(&freed, &copy), 0);
        freed.observe(Some(&ending()), Some(&ending()));
        assert_eq!(new_failures(&freed, &copy), 0);
        freed.observe(Some(&ending()), None);
        assert!(freed.uids().is_empty());
    }

    #[test]
    fn a_pod_that_the_watch_told_of_first_is_not_noted() {
        let freed = Freed::default();
        freed.note(&ending(), &Informer::new());
        assert!(freed.uids().is_empty());
    }
}
