//! The scheduler: finds a node with room for each pod.
//!
//! A node's room is its allocatable resources less the requests of the pods on it. A pod that has just been bound counts
//! from that moment on, not from when the watch tells of it ([`board`]). Whether a pod may run on a node is [`fit`]'s
//! matter; where it may not for lack of room, less important pods may have to go ([`preempt`]). A pod that fits nowhere waits with the reason in its
//! condition and is looked at again when something changes that may help.

mod affinity;
mod board;
mod fit;
mod preempt;
mod spread;
pub(crate) mod volumes;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Binding, Node, ObjectReference, Pod};
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams, Preconditions};
use serde_json::json;

use crate::cluster::Cluster;
use crate::controller::{Controller, Setup};
use crate::events::Voice;
use crate::informer::Key;
use crate::queue::{Again, Queue};
use crate::replica_set::tolerate_gone;
use crate::requests::Requests;
use crate::status;

use self::board::{Board, priority};

/// The name by which pods ask for this scheduler.
const NAME: &str = "default-scheduler";
/// How long a pod waits, with the reason unchanged, before an event says so again.
const SAY_AGAIN_AFTER: Duration = Duration::from_secs(60);

pub(crate) struct Scheduler {
    cluster: Cluster,
    voice: Voice,
    queue: OnceLock<Queue<Key>>,
    board: Mutex<Board>,
    unschedulable: Mutex<HashSet<Key>>,
    complaints: Mutex<Complaints>,
    /// Pods with a place whose volumes are being made.
    awaiting_volumes: Mutex<HashSet<Key>>,
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

/// Why a pod has no place, and where one could be cleared.
struct Obstacle {
    reason: String,
    candidate: Option<preempt::Candidate>,
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
            board: Mutex::default(),
            unschedulable: Mutex::default(),
            complaints: Mutex::default(),
            awaiting_volumes: Mutex::default(),
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
        let (observer, items) = (Arc::clone(self), queue.clone());
        self.cluster.claims.on_change(move |change| {
            let Some(claim) = change.new.or(change.old) else { return };
            let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
            let uses =
                |pod: &Pod| is_mine(pod) && volumes::uses(pod, claim.metadata.name.as_deref().unwrap_or_default());
            observer.cluster.pods.list_in(namespace, uses).iter().for_each(|pod| items.add(Key::of(&**pod)));
        });
        let observer = Arc::clone(self);
        self.cluster.nodes.on_change(move |change| {
            // A node that went takes nothing with it: its pods are removed on their own.
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

fn is_placed(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).is_some_and(|node| !node.is_empty())
}

/// Whether where a pod may go depends on where others are.
fn has_company_rules(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|spec| {
        let affinity = spec.affinity.as_ref();
        affinity.is_some_and(|affinity| affinity.pod_affinity.is_some())
            || spec.topology_spread_constraints.as_ref().is_some_and(|constraints| !constraints.is_empty())
    })
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
                let shrunk = self.board().place(&key, Arc::new(pod.clone()), node);
                // A pod that came may be the one that others want to be with.
                if old.is_none_or(|old| old.metadata.labels != pod.metadata.labels || !is_placed(old)) {
                    self.try_waiting_for(has_company_rules);
                }
                shrunk
            }
            // Not bound yet: what a binding under way has taken stays taken.
            _ if waits => false,
            _ => {
                if new.is_none() {
                    self.unschedulable().remove(&key);
                    self.awaiting_volumes().remove(&key);
                    self.board().forget_nomination(&key);
                }
                self.board().remove(&key, Some(uid))
            }
        }
    }

    /// Looks again at the pods that found no room.
    fn try_waiting(&self) {
        self.try_waiting_for(|_| true);
    }

    /// The same for those among them that are meant.
    fn try_waiting_for(&self, meant: impl Fn(&Pod) -> bool) {
        let is_meant = |key: &Key| self.cluster.pods.get(key).is_none_or(|pod| meant(&pod));
        let mut waiting: Vec<Key> = {
            let mut all = self.unschedulable();
            let waiting = all.iter().filter(|key| is_meant(key)).cloned().collect();
            all.retain(|key| !is_meant(key));
            waiting
        };
        // The important first, then those that have waited longest.
        waiting.sort_by_cached_key(|key| {
            let pod = self.cluster.pods.get(key);
            let since = pod.as_ref().and_then(|pod| pod.metadata.creation_timestamp.clone()).map(|at| at.0);
            (std::cmp::Reverse(pod.map_or(0, |pod| priority(&pod))), since)
        });
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
        let place = self.board().place_of(&key, pod.metadata.uid.as_ref());
        if let Some(node) = place {
            let ready = volumes::Volumes::of(&self.cluster, &pod).is_ready();
            if !ready || !self.awaiting_volumes().remove(&key) {
                return Ok(None);
            }
            return self.bind(&pod, &key, &node).await;
        }
        // Waiting from before the look around: what changes meanwhile is not missed.
        self.unschedulable().insert(key.clone());
        match self.choose(&pod, &key) {
            Ok(node) => {
                self.unschedulable().remove(&key);
                let volumes = volumes::Volumes::of(&self.cluster, &pod);
                if volumes.waiting.is_empty() {
                    return self.bind(&pod, &key, &node).await;
                }
                // They are made where the pod goes; it is bound when they are there.
                self.awaiting_volumes().insert(key.clone());
                for claim in &volumes.waiting {
                    volumes::choose_node(&self.cluster, claim, &node).await?;
                }
                Ok(None)
            }
            Err(Obstacle { reason, candidate }) => {
                let changed = self.wait(&pod, &key, "Unschedulable", &reason).await?;
                if self.complaints().is_due(&key, changed, Instant::now()) {
                    self.voice.warning(&*pod, "FailedScheduling", reason);
                }
                if let Some(candidate) = candidate {
                    self.clear(&pod, &key, candidate).await?;
                }
                Ok(None)
            }
        }
    }

    /// The best of the nodes that would do, with the pod's share already taken; or why none does, and where a place can be
    /// cleared.
    fn choose(&self, pod: &Arc<Pod>, key: &Key) -> Result<String, Obstacle> {
        let nodes = self.cluster.nodes.list(|_| true);
        if nodes.is_empty() {
            return Err(Obstacle { reason: "no nodes available to schedule pods".to_owned(), candidate: None });
        }
        let storage = volumes::Volumes::of(&self.cluster, pod);
        let mut board = self.board();
        let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
        let mut refusals = BTreeMap::new();
        let mut fitting: Vec<&Arc<Node>> = Vec::new();
        let scene = fit::Scene::new(pod, &board, &nodes, &self.cluster.namespaces, HashSet::new());
        let missing = storage.missing();
        let taken = storage.is_taken(key, &board);
        for node in &nodes {
            if missing.is_some() {
                continue;
            }
            if taken {
                *reasons.entry(volumes::TAKEN.to_owned()).or_default() += 1;
                let refusal = fit::Refusal { reasons: vec![volumes::TAKEN.to_owned()], resolvable: false };
                refusals.insert(node.metadata.name.clone().unwrap_or_default(), refusal);
                continue;
            }
            match scene.check(node).and_then(|()| storage.check(node)) {
                Ok(()) => fitting.push(node),
                Err(refusal) => {
                    refusal.reasons.iter().for_each(|why| *reasons.entry(why.clone()).or_default() += 1);
                    refusals.insert(node.metadata.name.clone().unwrap_or_default(), refusal);
                }
            }
        }
        let scores = scene.scores(&fitting);
        // Of equals the first.
        let best = (0..fitting.len()).max_by_key(|index| (scores[*index], std::cmp::Reverse(*index)));
        drop(scene);
        if let Some(best) = best {
            let name = fitting[best].metadata.name.clone().unwrap_or_default();
            board.place(key, Arc::clone(pod), &name);
            return Ok(name);
        }
        let why = missing.unwrap_or_else(|| {
            let mut reasons: Vec<String> = reasons.iter().map(|(why, count)| format!("{count} {why}")).collect();
            reasons.sort();
            reasons.join(", ")
        });
        let budgets = self.cluster.budgets.list(|_| true);
        let world =
            preempt::World { board: &board, nodes: &nodes, namespaces: &self.cluster.namespaces, budgets: &budgets };
        let reason = format!("0/{} nodes are available: {why}.", nodes.len());
        match world.preempt(pod, &refusals) {
            Ok(candidate) => {
                board.nominate(key, &candidate.node, Requests::of(pod), priority(pod));
                Err(Obstacle { reason, candidate: Some(candidate) })
            }
            Err(why) => {
                let reason = format!("{reason} no new claims to deallocate, preemption: {why}");
                Err(Obstacle { reason, candidate: None })
            }
        }
    }

    /// Clears a place: says where it will be, and has the pods there go.
    async fn clear(&self, pod: &Pod, key: &Key, candidate: preempt::Candidate) -> Result<(), kube::Error> {
        let patch = Patch::Merge(json!({"status": {"nominatedNodeName": candidate.node}}));
        let api: Api<Pod> = Api::namespaced(self.cluster.client.clone(), &key.namespace);
        match api.patch_status(&key.name, &PatchParams::default(), &patch).await {
            Ok(pod) => self.cluster.pods.learn(pod),
            other => tolerate_gone(other.map(|_| ()))?,
        }
        for victim in &candidate.victims {
            if victim.metadata.deletion_timestamp.is_some() {
                continue;
            }
            let place = Key::of(&**victim);
            let api: Api<Pod> = Api::namespaced(self.cluster.client.clone(), &place.namespace);
            let condition = json!({"metadata": {"uid": victim.metadata.uid}, "status": {"conditions": [{
                "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
                "message": format!("{NAME}: preempting to accommodate a higher priority pod"),
                "lastTransitionTime": status::now(), "observedGeneration": victim.metadata.generation,
            }]}});
            let params = PatchParams::default();
            tolerate_gone(api.patch_status(&place.name, &params, &Patch::Strategic(condition)).await.map(|_| ()))?;
            let preconditions = Preconditions { uid: victim.metadata.uid.clone(), resource_version: None };
            let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
            tolerate_gone(api.delete(&place.name, &params).await.map(|_| ()))?;
            let by = pod.metadata.uid.as_deref().unwrap_or_default();
            self.voice.normal(&**victim, "Preempted", format!("Preempted by pod {by} on node {}", candidate.node));
        }
        Ok(())
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
            if self.board().remove(key, pod.metadata.uid.as_deref()) {
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

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unschedulable(&self) -> MutexGuard<'_, HashSet<Key>> {
        self.unschedulable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn awaiting_volumes(&self) -> MutexGuard<'_, HashSet<Key>> {
        self.awaiting_volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn complaints(&self) -> MutexGuard<'_, Complaints> {
        self.complaints.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
