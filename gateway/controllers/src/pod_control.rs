//! Pods that controllers make and remove, and what is known of those that the watch hasn't told of yet.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::join_all;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams, Preconditions};
use kube::{Client, Resource};

use crate::events::Voice;
use crate::informer::{Informer, Key};
use crate::ownership::{self, is_terminating};

/// After this long, a creation or deletion that the watch never told of is forgotten (it came and went during a re-list).
pub(crate) const FORGET_AFTER: Duration = Duration::from_secs(60);

/// A pod of a template, to be created in the owner's namespace.
pub(crate) fn from_template<O: Resource<DynamicType = ()>>(owner: &O, template: &PodTemplateSpec) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    let name = owner.meta().name.as_deref().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: owner.meta().namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![ownership::reference(owner)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Creates pods, first one, then twice as many each time: where none can be made, not all are tried in vain. Gives those
/// that were made.
pub(crate) async fn create_all<O: Resource<DynamicType = ()>>(
    client: &Client,
    voice: &Voice,
    expected: &Expectations,
    owner: &O,
    key: &Key,
    mut pods: Vec<Pod>,
) -> Result<Vec<Pod>, kube::Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
    let mut made = Vec::new();
    let mut batch = 1;
    while !pods.is_empty() {
        let now: Vec<Pod> = pods.drain(..batch.min(pods.len())).collect();
        let params = PostParams::default();
        let mut failure = None;
        for outcome in join_all(now.iter().map(|pod| api.create(&params, pod))).await {
            match outcome {
                Ok(pod) => {
                    // The watch may have told of it before: then it is in the copy, and nobody waits for it.
                    expected.created(key, &pod);
                    voice.normal(owner, "SuccessfulCreate", format!("Created pod: {}", name(&pod)));
                    made.push(pod);
                }
                // There will be no more pods here, and that is as it should be.
                Err(kube::Error::Api(status)) if is_terminating(&status) => return Ok(made),
                Err(error) => failure = Some(error),
            }
        }
        if let Some(error) = failure {
            voice.warning(owner, "FailedCreate", format!("Error creating: {}", message(&error)));
            return Err(error);
        }
        batch *= 2;
    }
    Ok(made)
}

/// Deletes a pod for its owner, and takes it for deleted from now on; one that is gone is fine.
pub(crate) async fn delete_expectedly<O: Resource<DynamicType = ()>>(
    client: &Client,
    voice: &Voice,
    expected: &Expectations,
    owner: &O,
    key: &Key,
    pod: &Pod,
) -> Result<(), kube::Error> {
    expected.deleted(key, pod);
    let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
    match Api::<Pod>::namespaced(client.clone(), &key.namespace).delete(name(pod), &params).await {
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        Err(error) => {
            expected.observe(key, Some(pod), None);
            voice.warning(owner, "FailedDelete", format!("Error deleting: {}", message(&error)));
            Err(error)
        }
        Ok(_) => {
            voice.normal(owner, "SuccessfulDelete", format!("Deleted pod: {}", name(pod)));
            Ok(())
        }
    }
}

fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// The API's own words.
pub(crate) fn message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// What a controller has done that its copy of the pods doesn't show yet, by owner: without it, a second look at the
/// same copy would do it again.
#[derive(Default)]
pub(crate) struct Expectations {
    owners: Mutex<HashMap<Key, Expected>>,
}

#[derive(Default)]
struct Expected {
    created: HashMap<Key, Instant>,
    deleted: HashMap<String, Instant>,
}

impl Expectations {
    /// This pod was created.
    pub(crate) fn created(&self, owner: &Key, pod: &Pod) {
        self.owners().entry(owner.clone()).or_default().created.insert(Key::of(pod), Instant::now());
    }

    /// This pod is being deleted.
    pub(crate) fn deleted(&self, owner: &Key, pod: &Pod) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        self.owners().entry(owner.clone()).or_default().deleted.insert(uid, Instant::now());
    }

    /// The watch told of a pod's state.
    pub(crate) fn observe(&self, owner: &Key, old: Option<&Pod>, new: Option<&Pod>) {
        let mut owners = self.owners();
        let Some(expected) = owners.get_mut(owner) else { return };
        let Some(pod) = new.or(old) else { return };
        expected.created.remove(&Key::of(pod));
        if new.is_none_or(|pod| pod.metadata.deletion_timestamp.is_some()) {
            expected.deleted.remove(pod.metadata.uid.as_deref().unwrap_or_default());
        }
        if expected.created.is_empty() && expected.deleted.is_empty() {
            owners.remove(owner);
        }
    }

    /// Forgets an owner.
    pub(crate) fn forget(&self, owner: &Key) {
        self.owners().remove(owner);
    }

    /// Pods that were created and are not in the copy yet. To be asked before the copy is read: what arrives in between
    /// is then in both ([`still_unseen`] tells), and never in neither.
    pub(crate) fn unseen(&self, owner: &Key, copy: &Informer<Pod>) -> Vec<Key> {
        let mut owners = self.owners();
        let Some(expected) = owners.get_mut(owner) else { return Vec::new() };
        expected.created.retain(|_, since| since.elapsed() < FORGET_AFTER);
        expected.deleted.retain(|_, since| since.elapsed() < FORGET_AFTER);
        expected.created.keys().filter(|pod| copy.get(pod).is_none()).cloned().collect()
    }

    /// Whether a pod of the copy is being deleted already.
    pub(crate) fn is_deleted(&self, owner: &Key, pod: &Pod) -> bool {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        self.owners().get(owner).is_some_and(|expected| expected.deleted.contains_key(uid))
    }

    fn owners(&self) -> MutexGuard<'_, HashMap<Key, Expected>> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many of the unseen pods are not among those that were read from the copy afterwards either.
pub(crate) fn still_unseen(unseen: &[Key], pods: &[Arc<Pod>]) -> usize {
    let seen: HashSet<Key> =
        if unseen.is_empty() { HashSet::new() } else { pods.iter().map(|p| Key::of(&**p)).collect() };
    unseen.iter().filter(|pod| !seen.contains(pod)).count()
}

/// Whether a pod has the condition Ready, and since when.
pub(crate) fn ready_since(pod: &Pod) -> Option<jiff::Timestamp> {
    let conditions = pod.status.as_ref()?.conditions.iter().flatten();
    let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready" && condition.status == "True")?;
    Some(ready.last_transition_time.as_ref().map_or(jiff::Timestamp::UNIX_EPOCH, |time| time.0))
}

/// The phase of a pod.
pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// Whether a pod runs or will run: it is not ending and has not ended.
pub(crate) fn is_active(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none() && !matches!(phase(pod), "Succeeded" | "Failed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> Pod {
        let metadata =
            ObjectMeta { name: Some(name.to_owned()), namespace: Some("n".to_owned()), ..ObjectMeta::default() };
        Pod { metadata, ..Pod::default() }
    }

    #[test]
    fn a_pod_that_reaches_the_copy_while_its_owner_looks_around_is_counted_once() {
        let (owner, copy, expected) = (Key::new("n", "owner"), Informer::<Pod>::new(), Expectations::default());
        let (late, arriving) = (pod("late"), pod("arriving"));
        expected.created(&owner, &late);
        expected.created(&owner, &arriving);
        let unseen = expected.unseen(&owner, &copy);
        copy.put(arriving.clone());
        expected.observe(&owner, None, Some(&arriving));
        assert_eq!(still_unseen(&unseen, &copy.list(|_| true)) + copy.list(|_| true).len(), 2);
        assert_eq!(still_unseen(&expected.unseen(&owner, &copy), &copy.list(|_| true)), 1);
    }

    #[test]
    fn a_pod_that_the_watch_told_of_before_the_answer_is_not_awaited() {
        let (owner, copy, expected) = (Key::new("n", "owner"), Informer::<Pod>::new(), Expectations::default());
        let early = pod("early");
        copy.put(early.clone());
        expected.observe(&owner, None, Some(&early));
        expected.created(&owner, &early);
        assert_eq!(expected.unseen(&owner, &copy), []);
    }
}
