//! The scheduler: finds a node with room for each pod.
//!
//! A node's room is its allocatable resources less the requests of the pods on it. A pod that has just been bound counts
//! from that moment on, not from when the watch tells of it. A pod that fits nowhere waits with the reason in its
//! condition and is looked at again when something changes that may help.

mod fit;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Binding, Node, ObjectReference, Pod};
use kube::api::{Api, ObjectMeta, Patch, PatchParams};
use serde_json::json;

use crate::cluster::Cluster;
use crate::controller::{Controller, Setup};
use crate::events::Voice;
use crate::informer::Key;
use crate::queue::{Again, Queue};
use crate::requests::Requests;

/// The name by which pods ask for this scheduler.
const NAME: &str = "default-scheduler";
/// How long a pod waits, with the reason unchanged, before an event says so again.
const SAY_AGAIN_AFTER: Duration = Duration::from_secs(60);

pub(crate) struct Scheduler {
    cluster: Cluster,
    voice: Voice,
    queue: OnceLock<Queue<Key>>,
    usage: Mutex<Usage>,
    unschedulable: Mutex<HashSet<Key>>,
    complaints: Mutex<Complaints>,
}

/// When it was last said, of each pod that waits, why it does.
#[derive(Default)]
struct Complaints(HashMap<Key, Instant>);

impl Complaints {
    /// Whether to say it now: the reason changed, or was last said a while ago. What was said before a restart is in the
    /// condition, and needs no event at once.
    fn is_due(&mut self, key: &Key, changed: bool, now: Instant) -> bool {
        let said = *self.0.entry(key.clone()).or_insert(now);
        let due = changed || now.duration_since(said) >= SAY_AGAIN_AFTER;
        if due {
            self.0.insert(key.clone(), now);
        }
        due
    }
}

/// Who takes how much of which node.
#[derive(Default)]
struct Usage {
    pods: HashMap<Key, Placed>,
    nodes: BTreeMap<String, Requests>,
}

struct Placed {
    uid: String,
    node: String,
    requests: Requests,
}

impl Usage {
    fn place(&mut self, key: &Key, uid: &str, node: &str, requests: Requests) {
        self.remove(key, None);
        *self.nodes.entry(node.to_owned()).or_default() += &requests;
        self.pods.insert(key.clone(), Placed { uid: uid.to_owned(), node: node.to_owned(), requests });
    }

    /// Gives back what a pod took; only if it still is the pod of this uid, where one is given. Whether it had taken
    /// anything.
    fn remove(&mut self, key: &Key, uid: Option<&str>) -> bool {
        if uid.is_some_and(|uid| self.pods.get(key).is_some_and(|placed| placed.uid != uid)) {
            return false;
        }
        let Some(placed) = self.pods.remove(key) else { return false };
        if let Some(node) = self.nodes.get_mut(&placed.node) {
            *node -= &placed.requests;
        }
        true
    }
}

impl Controller for Scheduler {
    type Item = Key;
    const NAME: &'static str = NAME;
    const USER: Option<&'static str> = Some("system:kube-scheduler");

    fn new(setup: &Setup<'_>) -> Self {
        Self {
            cluster: setup.cluster.clone(),
            voice: setup.voice.clone(),
            queue: OnceLock::new(),
            usage: Mutex::default(),
            unschedulable: Mutex::default(),
            complaints: Mutex::default(),
        }
    }

    fn listen(self: &Arc<Self>, _: &Setup<'_>, queue: &Queue<Key>) {
        // Set once: a controller listens once.
        let _ = self.queue.set(queue.clone());
        let (observer, items) = (Arc::clone(self), queue.clone());
        self.cluster.pods.on_change(move |change| {
            if observer.observe(change.old.map(|pod| &**pod), change.new.map(|pod| &**pod)) {
                observer.try_waiting();
            }
            if let Some(pod) = change.new.filter(|pod| is_mine(pod)) {
                items.add(Key::of(&**pod));
            }
        });
        let observer = Arc::clone(self);
        self.cluster.nodes.on_change(move |change| {
            let before = change.old.map(|node| fit::schedulable_part(node));
            let after = change.new.map(|node| fit::schedulable_part(node));
            if before != after {
                observer.try_waiting();
            }
        });
    }

    async fn reconcile(&self, key: Key) -> Result<Again, kube::Error> {
        self.schedule(key).await
    }
}

fn is_mine(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|spec| {
        spec.node_name.as_deref().unwrap_or_default().is_empty()
            && spec.scheduler_name.as_deref().unwrap_or(NAME) == NAME
    }) && pod.metadata.deletion_timestamp.is_none()
        && !has_ended(pod)
}

fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

impl Scheduler {
    /// Keeps count of what is taken; whether room appeared.
    fn observe(&self, old: Option<&Pod>, new: Option<&Pod>) -> bool {
        let Some(pod) = new.or(old) else { return false };
        let key = Key::of(pod);
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).filter(|node| !node.is_empty());
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let waits = new.is_some_and(|pod| !has_ended(pod)) && node.is_none();
        if !waits {
            self.complaints().0.remove(&key);
        }
        match (new, node) {
            (Some(pod), Some(node)) if !has_ended(pod) => {
                self.usage().place(&key, uid, node, Requests::of(pod));
                false
            }
            // Not bound yet: what a binding under way has taken stays taken.
            _ if waits => false,
            _ => {
                if new.is_none() {
                    self.unschedulable().remove(&key);
                }
                self.usage().remove(&key, Some(uid))
            }
        }
    }

    /// Looks again at the pods that found no room.
    fn try_waiting(&self) {
        let waiting: Vec<Key> = self.unschedulable().drain().collect();
        for key in waiting {
            self.queue.get().into_iter().for_each(|queue| queue.add(key.clone()));
        }
    }

    async fn schedule(&self, key: Key) -> Result<Again, kube::Error> {
        let Some(pod) = self.cluster.pods.get(&key).filter(|pod| is_mine(pod)) else { return Ok(None) };
        if pod.spec.as_ref().is_some_and(|spec| spec.scheduling_gates.iter().flatten().next().is_some()) {
            let why = "Scheduling is blocked due to non-empty scheduling gates";
            return self.wait(&pod, &key, "SchedulingGated", why).await.map(|_| None);
        }
        // Being bound at this moment: the watch is a little late.
        if self.usage().pods.get(&key).is_some_and(|placed| Some(&placed.uid) == pod.metadata.uid.as_ref()) {
            return Ok(None);
        }
        // Waiting from before the look around: what changes meanwhile is not missed.
        self.unschedulable().insert(key.clone());
        match self.choose(&pod, &key) {
            Ok(node) => {
                self.unschedulable().remove(&key);
                self.bind(&pod, &key, &node).await
            }
            Err(reason) => {
                let changed = self.wait(&pod, &key, "Unschedulable", &reason).await?;
                if self.complaints().is_due(&key, changed, Instant::now()) {
                    self.voice.warning(&*pod, "FailedScheduling", reason);
                }
                Ok(None)
            }
        }
    }

    /// The node with the most room among those that fit, with the pod's share already taken; or why none does.
    fn choose(&self, pod: &Pod, key: &Key) -> Result<String, String> {
        let nodes = self.cluster.nodes.list(|_| true);
        if nodes.is_empty() {
            return Err("no nodes available to schedule pods".to_owned());
        }
        let requests = Requests::of(pod);
        let mut usage = self.usage();
        let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
        let mut best: Option<(i128, &Arc<Node>)> = None;
        for node in &nodes {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            let taken = usage.nodes.get(name).cloned().unwrap_or_default();
            match fit::check(pod, &requests, node, &taken) {
                Ok(score) if best.is_none_or(|(most, _)| score > most) => best = Some((score, node)),
                Ok(_) => {}
                Err(why) => why.into_iter().for_each(|why| *reasons.entry(why).or_default() += 1),
            }
        }
        let Some((_, node)) = best else {
            let mut reasons: Vec<String> = reasons.iter().map(|(why, count)| format!("{count} {why}")).collect();
            reasons.sort();
            return Err(format!("0/{} nodes are available: {}.", nodes.len(), reasons.join(", ")));
        };
        let name = node.metadata.name.clone().unwrap_or_default();
        usage.place(key, pod.metadata.uid.as_deref().unwrap_or_default(), &name, requests);
        Ok(name)
    }

    async fn bind(&self, pod: &Pod, key: &Key, node: &str) -> Result<Again, kube::Error> {
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(key.name.clone()),
                namespace: Some(key.namespace.clone()),
                uid: pod.metadata.uid.clone(),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                kind: Some("Node".into()),
                name: Some(node.to_owned()),
                ..ObjectReference::default()
            },
        };
        let path = format!("/api/v1/namespaces/{}/pods/{}/binding", key.namespace, key.name);
        let body = serde_json::to_vec(&binding).map_err(kube::Error::SerdeError)?;
        let request = http::Request::post(path).header(http::header::CONTENT_TYPE, "application/json").body(body);
        let request = request.map_err(kube::Error::HttpError)?;
        if let Err(error) = self.cluster.client.request::<serde_json::Value>(request).await {
            if self.usage().remove(key, pod.metadata.uid.as_deref()) {
                self.try_waiting();
            }
            return match &error {
                // Gone, or somebody else was faster: the watch tells.
                kube::Error::Api(status) if status.code == 404 || status.code == 409 => Ok(None),
                _ => Err(error),
            };
        }
        let text = format!("Successfully assigned {}/{} to {node}", key.namespace, key.name);
        self.voice.normal(pod, "Scheduled", text);
        Ok(None)
    }

    /// Says on the pod why it waits; whether that is news.
    async fn wait(&self, pod: &Pod, key: &Key, reason: &str, message: &str) -> Result<bool, kube::Error> {
        let known = pod
            .status
            .as_ref()
            .and_then(|status| status.conditions.iter().flatten().find(|condition| condition.type_ == "PodScheduled"));
        if known
            .is_some_and(|known| known.reason.as_deref() == Some(reason) && known.message.as_deref() == Some(message))
        {
            return Ok(false);
        }
        let since = match known {
            Some(known) if known.status == "False" => json!(known.last_transition_time),
            _ => json!(Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        };
        let patch = json!({"status": {"conditions": [{
            "type": "PodScheduled", "status": "False", "reason": reason, "message": message, "lastTransitionTime": since,
            "observedGeneration": pod.metadata.generation,
        }]}});
        let api: Api<Pod> = Api::namespaced(self.cluster.client.clone(), &key.namespace);
        match api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(error) => Err(error),
            Ok(pod) => {
                self.cluster.pods.learn(pod);
                Ok(true)
            }
        }
    }

    fn usage(&self) -> MutexGuard<'_, Usage> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unschedulable(&self) -> MutexGuard<'_, HashSet<Key>> {
        self.unschedulable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn complaints(&self) -> MutexGuard<'_, Complaints> {
        self.complaints.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_given_back_once() {
        let (mut usage, key) = (Usage::default(), Key::new("n", "p"));
        usage.place(&key, "uid", "node", Requests::of(&Pod::default()));
        assert!(!usage.remove(&key, Some("another")));
        assert!(usage.remove(&key, Some("uid")));
        assert_eq!(usage.nodes["node"].amount("pods"), 0);
        assert!(!usage.remove(&key, Some("uid")));
    }

    #[test]
    fn an_unchanged_reason_is_said_again_only_after_a_while() {
        let (mut complaints, key, start) = (Complaints::default(), Key::new("n", "p"), Instant::now());
        assert!(complaints.is_due(&key, true, start));
        assert!(!complaints.is_due(&key, false, start + Duration::from_secs(59)));
        assert!(complaints.is_due(&key, false, start + Duration::from_secs(60)));
        assert!(!complaints.is_due(&key, false, start + Duration::from_secs(61)));
        assert!(complaints.is_due(&key, true, start + Duration::from_secs(62)));
    }
}
