//! As many pods as there should be: ReplicaSets, and ReplicationControllers, which are the same by an older name.

mod ranking;

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec, ReplicationController};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::cluster::Cluster;
use crate::controller::{self, Controller, Setup};
use crate::events::Voice;
use crate::informer::{Informer, Key};
use crate::ownership::{self, Owned, Selector, controller_of, is_controlled_by};
use crate::pod_control::{self, Expectations, is_active, message, ready_since};
use crate::queue::{Again, Queue};
use crate::status;

pub(crate) use self::ranking::first_to_go;

/// Pods made or removed in one go; more wait for the next look.
const BURST: usize = 500;

/// A kind of set that keeps a number of equal pods.
pub(crate) trait Set: Owned + Send + Sync + 'static {
    const CONTROLLER: &'static str;
    const VOICE: &'static str;
    const KIND: &'static str;
    fn copy(cluster: &Cluster) -> &Informer<Self>;
    fn wanted(&self) -> i32;
    fn selects(&self) -> Selector;
    fn template(&self) -> Option<&PodTemplateSpec>;
    fn min_ready_seconds(&self) -> Option<i32>;
    fn status(&self) -> Option<ReplicaSetStatus>;
}

impl Set for ReplicaSet {
    const CONTROLLER: &'static str = "replicaset-controller";
    const VOICE: &'static str = "replicaset-controller";
    const KIND: &'static str = "ReplicaSet";

    fn copy(cluster: &Cluster) -> &Informer<Self> {
        &cluster.replica_sets
    }

    fn wanted(&self) -> i32 {
        replicas(self)
    }

    fn selects(&self) -> Selector {
        Selector::read(self.spec.as_ref().map(|spec| &spec.selector))
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn min_ready_seconds(&self) -> Option<i32> {
        self.spec.as_ref()?.min_ready_seconds
    }

    fn status(&self) -> Option<ReplicaSetStatus> {
        self.status.clone()
    }
}

impl Set for ReplicationController {
    const CONTROLLER: &'static str = "replication-controller";
    const VOICE: &'static str = "replication-controller";
    const KIND: &'static str = "ReplicationController";

    fn copy(cluster: &Cluster) -> &Informer<Self> {
        &cluster.replication_controllers
    }

    fn wanted(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
    }

    fn selects(&self) -> Selector {
        let labels = self.spec.as_ref().and_then(|spec| spec.selector.clone());
        Selector::read(Some(&LabelSelector { match_labels: labels, match_expressions: None }))
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn min_ready_seconds(&self) -> Option<i32> {
        self.spec.as_ref()?.min_ready_seconds
    }

    fn status(&self) -> Option<ReplicaSetStatus> {
        // The fields are the same.
        self.status.as_ref().and_then(|status| serde_json::from_value(serde_json::json!(status)).ok())
    }
}

/// The controller of one of these kinds.
pub(crate) struct Replicas<S> {
    cluster: Cluster,
    voice: Voice,
    expected: Expectations,
    sets: Informer<S>,
}

impl<S: Set> Controller for Replicas<S> {
    type Item = Key;
    const NAME: &'static str = S::CONTROLLER;
    const VOICE: &'static str = S::VOICE;

    fn new(setup: &Setup<'_>) -> Self {
        Self {
            cluster: setup.cluster.clone(),
            voice: setup.voice.clone(),
            expected: Expectations::default(),
            sets: S::copy(&setup.cluster).clone(),
        }
    }

    fn listen(self: &Arc<Self>, _: &Setup<'_>, queue: &Queue<Key>) {
        controller::each(&self.sets, queue);
        let (watching, sets) = (Arc::clone(self), queue.clone());
        self.cluster.pods.on_change(move |change| {
            watching.pod_changed(change.old.map(|pod| &**pod), change.new.map(|pod| &**pod), &sets);
        });
    }

    async fn reconcile(&self, key: Key) -> Result<Again, kube::Error> {
        self.keep(key).await
    }
}

impl<S: Set> Replicas<S> {
    /// Finds out whose pod it is.
    fn pod_changed(&self, old: Option<&Pod>, new: Option<&Pod>, queue: &Queue<Key>) {
        for pod in [old, new].into_iter().flatten() {
            if let Some(owner) = controller_of(&pod.metadata).filter(|owner| owner.kind == S::KIND) {
                let key = Key::new(pod.metadata.namespace.clone().unwrap_or_default(), &owner.name);
                self.expected.observe(&key, old, new);
                queue.add(key);
            }
        }
        // A pod without a controller may be one that a set has to adopt.
        if let Some(orphan) = new.filter(|pod| controller_of(&pod.metadata).is_none() && is_active(pod)) {
            let could_adopt = |set: &S| set.selects().matches(&orphan.metadata);
            let namespace = orphan.metadata.namespace.as_deref().unwrap_or_default();
            self.sets.list_in(namespace, could_adopt).iter().for_each(|set| queue.add(Key::of(&**set)));
        }
    }

    async fn keep(&self, key: Key) -> Result<Again, kube::Error> {
        let Some(set) = self.sets.get(&key) else {
            self.expected.forget(&key);
            return Ok(None);
        };
        // Before the copy is read, so that a pod that arrives in between is counted; and once, if the copy has it by then.
        let unseen = self.expected.unseen(&key, &self.cluster.pods);
        let pods = self.claim(&set, &key).await?;
        let unseen = pod_control::still_unseen(&unseen, &pods);
        let active: Vec<Arc<Pod>> = pods.iter().filter(|pod| is_active(pod)).cloned().collect();
        let failure = if set.meta().deletion_timestamp.is_some() {
            Ok(())
        } else {
            self.scale(&set, &key, &active, unseen).await
        };
        let again = self.report(&set, &active, failure.as_ref().err()).await?;
        // A pod that came and went before the API's answer arrived is expected in vain, and no watch tells so.
        let again = if unseen > 0 { again.or(Some(pod_control::FORGET_AFTER)) } else { again };
        failure.map(|()| again)
    }

    /// The set's own pods, with orphans that match adopted and pods that no longer match let go.
    async fn claim(&self, set: &S, key: &Key) -> Result<Vec<Arc<Pod>>, kube::Error> {
        let selector = set.selects();
        let mut own = Vec::new();
        for pod in self.cluster.pods.list_in(&key.namespace, |_| true) {
            let matches = selector.matches(&pod.metadata);
            if is_controlled_by(&pod.metadata, set) {
                if matches || set.meta().deletion_timestamp.is_some() {
                    if !self.expected.is_deleted(key, &pod) {
                        own.push(pod);
                    }
                } else {
                    ownership::release(&self.cluster.client, set, &*pod, None).await?;
                }
            } else if matches
                && controller_of(&pod.metadata).is_none()
                && is_active(&pod)
                && set.meta().deletion_timestamp.is_none()
                && ownership::adopt(&self.cluster.client, set, &*pod, None).await?
            {
                own.push(pod);
            }
        }
        Ok(own)
    }

    async fn scale(&self, set: &S, key: &Key, active: &[Arc<Pod>], unseen: usize) -> Result<(), kube::Error> {
        let wanted = usize::try_from(set.wanted()).unwrap_or(0);
        let there = active.len() + unseen;
        if there < wanted {
            self.create(set, key, (wanted - there).min(BURST)).await
        } else {
            let surplus = (there - wanted).min(BURST).min(active.len());
            self.remove(set, key, active, surplus).await
        }
    }

    async fn create(&self, set: &S, key: &Key, missing: usize) -> Result<(), kube::Error> {
        let Some(template) = set.template() else { return Ok(()) };
        let pods = vec![pod_control::from_template(set, template); missing];
        pod_control::create_all(&self.cluster.client, &self.voice, &self.expected, set, key, pods).await?;
        Ok(())
    }

    async fn remove(&self, set: &S, key: &Key, active: &[Arc<Pod>], surplus: usize) -> Result<(), kube::Error> {
        let victims = first_to_go(active, surplus);
        let (client, voice, expected) = (&self.cluster.client, &self.voice, &self.expected);
        let removals = victims.iter().map(|pod| pod_control::delete_expectedly(client, voice, expected, set, key, pod));
        join_all(removals).await.into_iter().collect()
    }

    /// Brings the status up to date; asks to be called again when a pod will have been ready long enough.
    async fn report(&self, set: &S, active: &[Arc<Pod>], failure: Option<&kube::Error>) -> Result<Again, kube::Error> {
        let min_ready =
            Duration::from_secs(set.min_ready_seconds().and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(0));
        let (ready, available, again) = count_ready(active, min_ready);
        let template_labels =
            set.template().and_then(|template| template.metadata.as_ref()?.labels.clone()).unwrap_or_default();
        let labeled = active.iter().filter(|pod| {
            let labels = pod.metadata.labels.as_ref();
            template_labels.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
        });
        let known = set.status();
        let old = known.clone().unwrap_or_default();
        let new = ReplicaSetStatus {
            replicas: count(active.len()),
            fully_labeled_replicas: Some(count(labeled.count())).filter(|count| *count > 0),
            ready_replicas: Some(count(ready)).filter(|count| *count > 0),
            available_replicas: Some(count(available)).filter(|count| *count > 0),
            observed_generation: set.meta().generation,
            conditions: conditions(&old, failure),
            ..ReplicaSetStatus::default()
        };
        status::write(&self.cluster.client, &self.sets, set, known.as_ref(), &new).await?;
        Ok(again)
    }
}

fn conditions(old: &ReplicaSetStatus, failure: Option<&kube::Error>) -> Option<Vec<ReplicaSetCondition>> {
    const FAILURE: &str = "ReplicaFailure";
    let mut conditions: Vec<ReplicaSetCondition> = old.conditions.clone().unwrap_or_default();
    let known = conditions.iter().position(|condition| condition.type_ == FAILURE);
    match (failure, known) {
        (None, Some(index)) => {
            conditions.remove(index);
        }
        (Some(error), None) => conditions.push(ReplicaSetCondition {
            type_: FAILURE.to_owned(),
            status: "True".to_owned(),
            reason: Some("FailedCreate".to_owned()),
            message: Some(message(error)),
            last_transition_time: Some(status::now()),
        }),
        _ => {}
    }
    Some(conditions).filter(|conditions| !conditions.is_empty())
}

/// How many pods are ready, how many have been for long enough, and when the next one will have been.
pub(crate) fn count_ready(pods: &[Arc<Pod>], min_ready: Duration) -> (usize, usize, Again) {
    let now = Timestamp::now();
    let (mut ready, mut available, mut again): (_, _, Again) = (0, 0, None);
    for since in pods.iter().filter_map(|pod| ready_since(pod)) {
        ready += 1;
        let passed = Duration::try_from(now.duration_since(since)).unwrap_or_default();
        if passed >= min_ready {
            available += 1;
        } else {
            let left = min_ready.saturating_sub(passed);
            again = Some(again.map_or(left, |soonest| soonest.min(left)));
        }
    }
    (ready, available, again)
}

pub(crate) fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// An object that is gone or has changed is looked at again when the watch tells of it.
pub(crate) fn tolerate_gone(outcome: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match outcome {
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        other => other,
    }
}
