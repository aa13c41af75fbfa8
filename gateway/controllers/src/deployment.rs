//! The Deployment controller: rolls ReplicaSets over from one pod template to the next.
//!
//! Every template a Deployment ever had is a ReplicaSet with a revision; the one of the current template grows while the
//! others shrink, within the bounds of the strategy. Nothing is remembered between two looks: all of it can be read off
//! the ReplicaSets.

mod history;
mod proportion;
mod rollout;
mod status;

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::controller::{self, Setup};
use crate::events::Voice;
use crate::informer::Key;
use crate::ownership::{self, Selector, controller_of, is_controlled_by};
use crate::queue::{Again, Queue};
use crate::replica_set::replicas;

/// How many replicas the whole Deployment wanted when a ReplicaSet was last scaled, and how many it might have had.
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAXIMUM: &str = "deployment.kubernetes.io/max-replicas";

pub(crate) struct Controller {
    cluster: Cluster,
    voice: Voice,
}

/// A Deployment with its ReplicaSets, as of one look.
struct Rollout {
    deployment: Arc<Deployment>,
    /// The ReplicaSet of the current template.
    new: Option<Arc<ReplicaSet>>,
    /// The others, oldest first.
    old: Vec<Arc<ReplicaSet>>,
}

impl crate::controller::Controller for Controller {
    type Item = Key;
    const NAME: &'static str = "deployment-controller";

    fn new(setup: &Setup<'_>) -> Self {
        Self { cluster: setup.cluster.clone(), voice: setup.voice.clone() }
    }

    fn listen(self: &Arc<Self>, _: &Setup<'_>, queue: &Queue<Key>) {
        controller::each(&self.cluster.deployments, queue);
        controller::controllers_of(&self.cluster.replica_sets, "Deployment", queue);
        let (watching, deployments) = (self.cluster.deployments.clone(), queue.clone());
        self.cluster.replica_sets.on_change(move |change| {
            let Some(orphan) = change.new.filter(|set| controller_of(&set.metadata).is_none()) else { return };
            let namespace = orphan.metadata.namespace.as_deref().unwrap_or_default();
            let could_adopt = |deployment: &Deployment| selector(deployment).matches(&orphan.metadata);
            for deployment in watching.list_in(namespace, could_adopt) {
                deployments.add(Key::of(&*deployment));
            }
        });
        // A Recreate waits for the last old pod to be gone, which no ReplicaSet tells of.
        let (sets, deployments) = (self.cluster.replica_sets.clone(), queue.clone());
        self.cluster.pods.on_change(move |change| {
            let (Some(pod), None) = (change.old, change.new) else { return };
            let Some(owner) = controller_of(&pod.metadata).filter(|owner| owner.kind == "ReplicaSet") else { return };
            let namespace = pod.metadata.namespace.clone().unwrap_or_default();
            if let Some(set) = sets.get(&Key::new(&namespace, &owner.name))
                && let Some(owner) = controller_of(&set.metadata)
            {
                deployments.add(Key::new(namespace, &owner.name));
            }
        });
    }

    async fn reconcile(&self, key: Key) -> Result<Again, kube::Error> {
        Box::pin(self.step(key)).await
    }
}

impl Controller {
    async fn step(&self, key: Key) -> Result<Again, kube::Error> {
        let Some(deployment) = self.cluster.deployments.get(&key) else { return Ok(None) };
        let sets = self.claim(&deployment, &key).await?;
        let mut rollout = Rollout::new(deployment, &sets);
        let spec = rollout.deployment.spec.clone().unwrap_or_default();
        if rollout.deployment.metadata.deletion_timestamp.is_some() {
            return self.report(&rollout).await;
        }
        if spec.paused == Some(true) {
            self.number(&mut rollout, false).await?;
            self.scale_in_proportion(&rollout).await?;
            self.prune(&rollout).await?;
            return self.report(&rollout).await;
        }
        if rollout.is_scaled() {
            self.number(&mut rollout, false).await?;
            self.scale_in_proportion(&rollout).await?;
            return self.report(&rollout).await;
        }
        match spec.strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) {
            Some("Recreate") => self.recreate(rollout).await,
            _ => self.roll(rollout).await,
        }
    }

    /// The Deployment's own ReplicaSets, with orphans that match adopted and those that no longer match let go.
    async fn claim(&self, deployment: &Deployment, key: &Key) -> Result<Vec<Arc<ReplicaSet>>, kube::Error> {
        let selector = selector(deployment);
        let ending = deployment.metadata.deletion_timestamp.is_some();
        let mut own = Vec::new();
        for set in self.cluster.replica_sets.list_in(&key.namespace, |_| true) {
            let matches = selector.matches(&set.metadata);
            if is_controlled_by(&set.metadata, deployment) {
                if matches || ending {
                    own.push(set);
                } else {
                    ownership::release(&self.cluster.client, deployment, &*set, None).await?;
                }
            } else if matches
                && !ending
                && controller_of(&set.metadata).is_none()
                && set.metadata.deletion_timestamp.is_none()
                && ownership::adopt(&self.cluster.client, deployment, &*set, None).await?
            {
                own.push(set);
            }
        }
        own.sort_by_key(|set| (created(set), set.metadata.name.clone()));
        Ok(own)
    }

    /// Scales a ReplicaSet, and notes on it how large the whole is. Gives it as it is now.
    async fn scale(&self, rollout: &Rollout, set: &Arc<ReplicaSet>, to: i32) -> Result<Arc<ReplicaSet>, kube::Error> {
        let deployment = &rollout.deployment;
        let from = replicas(set);
        let (desired, maximum) = (wanted(deployment), wanted(deployment) + rollout.surge());
        if from == to && note(set, DESIRED) == Some(desired) && note(set, MAXIMUM) == Some(maximum) {
            return Ok(Arc::clone(set));
        }
        let notes = json!({DESIRED: desired.to_string(), MAXIMUM: maximum.to_string()});
        let patch = json!({
            "metadata": {"resourceVersion": set.metadata.resource_version, "annotations": notes},
            "spec": {"replicas": to},
        });
        let set = self.patch_set(set, patch).await?;
        if from != to {
            let direction = if to > from { "up" } else { "down" };
            let name = set.metadata.name.as_deref().unwrap_or_default();
            let text = format!("Scaled {direction} replica set {name} from {from} to {to}");
            self.voice.normal(&**deployment, "ScalingReplicaSet", text);
        }
        Ok(set)
    }

    async fn patch_set(&self, set: &ReplicaSet, patch: Value) -> Result<Arc<ReplicaSet>, kube::Error> {
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        let api: Api<ReplicaSet> = Api::namespaced(self.cluster.client.clone(), namespace);
        let name = set.metadata.name.as_deref().unwrap_or_default();
        let set = api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        self.cluster.replica_sets.learn(set.clone());
        Ok(Arc::new(set))
    }
}

impl Rollout {
    fn new(deployment: Arc<Deployment>, sets: &[Arc<ReplicaSet>]) -> Self {
        let template = deployment.spec.as_ref().map(|spec| history::comparable(Some(&spec.template)));
        let of_template = |set: &ReplicaSet| {
            Some(history::comparable(set.spec.as_ref().and_then(|spec| spec.template.as_ref()))) == template
        };
        let new = sets.iter().find(|set| of_template(set)).cloned();
        let is_new = |set: &ReplicaSet| new.as_ref().is_some_and(|new| new.metadata.uid == set.metadata.uid);
        let old = sets.iter().filter(|set| !is_new(set)).cloned().collect();
        Self { deployment, new, old }
    }

    fn all(&self) -> impl Iterator<Item = &Arc<ReplicaSet>> {
        self.old.iter().chain(&self.new)
    }

    fn total(&self) -> i32 {
        self.all().map(|set| replicas(set)).sum()
    }

    /// Whether the number of replicas was changed since the ReplicaSets were last scaled.
    fn is_scaled(&self) -> bool {
        let desired = wanted(&self.deployment);
        self.all().filter(|set| replicas(set) > 0).any(|set| note(set, DESIRED).is_some_and(|noted| noted != desired))
    }

    /// Pods that there may be beyond the wanted number.
    fn surge(&self) -> i32 {
        self.bounds().0
    }

    /// Pods that may be missing from the wanted number.
    fn unavailable(&self) -> i32 {
        self.bounds().1
    }

    /// Both bounds in pods. They are not both nothing: a rollout could take no step.
    fn bounds(&self) -> (i32, i32) {
        let strategy = self.deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
        let Some(rolling) = strategy.filter(|strategy| strategy.type_.as_deref() != Some("Recreate")) else {
            return (0, 0);
        };
        let rolling = rolling.rolling_update.clone().unwrap_or_default();
        let total = wanted(&self.deployment);
        let surge = pods_of(rolling.max_surge.as_ref(), total, true);
        let unavailable = pods_of(rolling.max_unavailable.as_ref(), total, false);
        if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable.min(total)) }
    }
}

/// A number of pods, given as such or as a share of the total.
pub(crate) fn pods_of(given: Option<&IntOrString>, total: i32, round_up: bool) -> i32 {
    match given {
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(share)) => {
            let percent: i64 = share.trim_end_matches('%').parse().unwrap_or(0);
            let parts = i64::from(total) * percent;
            i32::try_from(if round_up { (parts + 99) / 100 } else { parts / 100 }).unwrap_or(i32::MAX)
        }
        None => 0,
    }
}

fn wanted(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

fn selector(deployment: &Deployment) -> Selector {
    Selector::read(deployment.spec.as_ref().map(|spec| &spec.selector))
}

fn note(set: &ReplicaSet, key: &str) -> Option<i32> {
    set.metadata.annotations.as_ref()?.get(key)?.parse().ok()
}

fn created(set: &ReplicaSet) -> jiff::Timestamp {
    set.metadata.creation_timestamp.as_ref().map_or(jiff::Timestamp::UNIX_EPOCH, |time| time.0)
}

fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn surge_is_rounded_up_and_unavailability_down() {
        let quarter = IntOrString::String("25%".to_owned());
        assert_eq!(pods_of(Some(&quarter), 10, true), 3);
        assert_eq!(pods_of(Some(&quarter), 10, false), 2);
        assert_eq!(pods_of(Some(&IntOrString::Int(4)), 10, true), 4);
    }
}
