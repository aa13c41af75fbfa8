//! PodDisruptionBudgets: how many of their pods may be evicted now. The eviction itself asks the status.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::Api;
use serde_json::json;

use crate::cluster::Cluster;
use crate::controller::{self, Controller, Setup};
use crate::deployment::pods_of;
use crate::events::Voice;
use crate::informer::Key;
use crate::kinds::Kinds;
use crate::ownership::{Selector, controller_of};
use crate::pod_control::{is_active, ready_since};
use crate::queue::{Again, Queue};
use crate::status;

/// How long an eviction that was let through may take to show.
const EVICTION: SignedDuration = SignedDuration::from_secs(120);
const ALLOWED: &str = "DisruptionAllowed";

pub(crate) struct Budgets {
    cluster: Cluster,
    voice: Voice,
    kinds: Kinds,
}

impl Controller for Budgets {
    type Item = Key;
    const NAME: &'static str = "disruption-controller";
    const VOICE: &'static str = "controllermanager";

    fn new(setup: &Setup<'_>) -> Self {
        let (cluster, voice) = (setup.cluster.clone(), setup.voice.clone());
        Self { cluster, voice, kinds: setup.inventory.kinds().clone() }
    }

    fn listen(self: &Arc<Self>, _: &Setup<'_>, queue: &Queue<Key>) {
        controller::each(&self.cluster.budgets, queue);
        let (budgets, items) = (self.cluster.budgets.clone(), queue.clone());
        self.cluster.pods.on_change(move |change| {
            for pod in [change.old, change.new].into_iter().flatten() {
                let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                let selects = |budget: &PodDisruptionBudget| selector(budget).matches(&pod.metadata);
                budgets.list_in(namespace, selects).iter().for_each(|budget| items.add(Key::of(&**budget)));
            }
        });
        // How many pods there should be, their owners say.
        owners(&self.cluster.deployments, &self.cluster, queue);
        owners(&self.cluster.replica_sets, &self.cluster, queue);
        owners(&self.cluster.stateful_sets, &self.cluster, queue);
        owners(&self.cluster.replication_controllers, &self.cluster, queue);
    }

    async fn reconcile(&self, key: Key) -> Result<Again, kube::Error> {
        let Some(budget) = self.cluster.budgets.get(&key) else { return Ok(None) };
        let selector = selector(&budget);
        let pods = self.cluster.pods.list_in(&key.namespace, |pod| selector.matches(&pod.metadata) && is_active(pod));
        let now = Timestamp::now();
        let (disrupted, again) = disrupted(&budget, &pods, now);
        let expected = self.expected(&budget, &pods).await;
        let old = budget.status.clone().unwrap_or_default();
        let status = match expected {
            Ok((expected, desired)) => {
                let healthy = pods.iter().filter(|pod| {
                    let name = pod.metadata.name.as_deref().unwrap_or_default();
                    ready_since(pod).is_some() && !disrupted.contains_key(name)
                });
                let healthy = i32::try_from(healthy.count()).unwrap_or(i32::MAX);
                let allowed = if expected == 0 { 0 } else { (healthy - desired).max(0) };
                PodDisruptionBudgetStatus {
                    current_healthy: healthy,
                    desired_healthy: desired,
                    disruptions_allowed: allowed,
                    expected_pods: expected,
                    disrupted_pods: Some(disrupted).filter(|disrupted| !disrupted.is_empty()),
                    observed_generation: budget.metadata.generation,
                    conditions: Some(conditions(&budget, allowed > 0, None, now)),
                }
            }
            Err(why) => {
                self.voice.warning(
                    &*budget,
                    "CalculateExpectedPodCountFailed",
                    format!("Failed to calculate the number of expected pods: {why}"),
                );
                PodDisruptionBudgetStatus {
                    disruptions_allowed: 0,
                    observed_generation: budget.metadata.generation,
                    conditions: Some(conditions(&budget, false, Some(why), now)),
                    ..old
                }
            }
        };
        status::write(&self.cluster.client, &self.cluster.budgets, &*budget, budget.status.as_ref(), &status).await?;
        Ok(again)
    }
}

/// A change of an owner leads to a look at the budgets of its namespace.
fn owners<K>(informer: &crate::informer::Informer<K>, cluster: &Cluster, queue: &Queue<Key>)
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + Sync + 'static,
{
    let (budgets, queue) = (cluster.budgets.clone(), queue.clone());
    informer.on_change(move |change| {
        let generation = |object: &Arc<K>| object.meta().generation;
        if change.old.map(generation) == change.new.map(generation) {
            return;
        }
        let Some(object) = change.new.or(change.old) else { return };
        let namespace = object.meta().namespace.as_deref().unwrap_or_default();
        budgets.list_in(namespace, |_| true).iter().for_each(|budget| queue.add(Key::of(&**budget)));
    });
}

/// A budget without a selector selects nothing, one with an empty selector everything in its namespace.
fn selector(budget: &PodDisruptionBudget) -> Selector {
    let written = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    Selector::read_or_everything(written)
}

/// Pods whose eviction was let through and that are still there, and when to look at them again.
fn disrupted(budget: &PodDisruptionBudget, pods: &[Arc<Pod>], now: Timestamp) -> (BTreeMap<String, Time>, Again) {
    let known = budget.status.as_ref().and_then(|status| status.disrupted_pods.clone()).unwrap_or_default();
    let there = |name: &str| pods.iter().any(|pod| pod.metadata.name.as_deref() == Some(name));
    let left: BTreeMap<String, Time> =
        known.into_iter().filter(|(name, at)| there(name) && now.duration_since(at.0) < EVICTION).collect();
    let again = left.values().map(|at| EVICTION - now.duration_since(at.0)).min();
    let again = again.map(|left| Duration::try_from(left).unwrap_or_default() + Duration::from_secs(1));
    (left, again)
}

impl Budgets {
    /// How many pods there should be, and how many of them have to be healthy.
    async fn expected(&self, budget: &PodDisruptionBudget, pods: &[Arc<Pod>]) -> Result<(i32, i32), String> {
        let spec = budget.spec.clone().unwrap_or_default();
        if let Some(most) = &spec.max_unavailable {
            let expected = self.scale(budget, pods).await?;
            return Ok((expected, (expected - pods_of(Some(most), expected, true)).max(0)));
        }
        match &spec.min_available {
            Some(IntOrString::Int(number)) => Ok((i32::try_from(pods.len()).unwrap_or(i32::MAX), *number)),
            Some(share) => {
                let expected = self.scale(budget, pods).await?;
                Ok((expected, pods_of(Some(share), expected, true)))
            }
            None => Ok((0, 0)),
        }
    }

    /// The replicas that the controllers of these pods want, together.
    async fn scale(&self, budget: &PodDisruptionBudget, pods: &[Arc<Pod>]) -> Result<i32, String> {
        let namespace = budget.metadata.namespace.as_deref().unwrap_or_default();
        let mut seen: BTreeSet<String> = BTreeSet::new();
        let (mut total, mut unmanaged) = (0, Vec::new());
        for pod in pods {
            let Some(owner) = controller_of(&pod.metadata) else {
                unmanaged.push(format!("pod/{}", pod.metadata.name.as_deref().unwrap_or_default()));
                continue;
            };
            if !seen.insert(owner.uid.clone()) {
                continue;
            }
            let (uid, replicas) = self.replicas(namespace, owner).await?;
            if uid == owner.uid || seen.insert(uid) {
                total += replicas;
            }
        }
        if !unmanaged.is_empty() {
            let text = format!(
                "Pods selected by this PodDisruptionBudget (selector: {}) were found to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value.",
                json!(budget.spec.as_ref().and_then(|spec| spec.selector.as_ref()))
            );
            self.voice.warning(budget, "UnmanagedPods", text);
        }
        Ok(total)
    }

    /// Who decides how many pods there are behind an owner, and how many that is.
    async fn replicas(&self, namespace: &str, owner: &OwnerReference) -> Result<(String, i32), String> {
        let key = Key::new(namespace, &owner.name);
        let found =
            match owner.kind.as_str() {
                "ReplicaSet" => self.cluster.replica_sets.get(&key).map(|set| {
                    let above = controller_of(&set.metadata).filter(|above| above.kind == "Deployment").cloned();
                    let deployment =
                        above.and_then(|above| self.cluster.deployments.get(&Key::new(namespace, &above.name)));
                    match deployment {
                        Some(deployment) => (
                            deployment.metadata.uid.clone(),
                            deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1),
                        ),
                        None => (set.metadata.uid.clone(), crate::replica_set::replicas(&set)),
                    }
                }),
                "StatefulSet" => self.cluster.stateful_sets.get(&key).map(|set| {
                    (set.metadata.uid.clone(), set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1))
                }),
                "ReplicationController" => self.cluster.replication_controllers.get(&key).map(|set| {
                    (set.metadata.uid.clone(), set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1))
                }),
                _ => None,
            };
        if let Some((Some(uid), replicas)) = found {
            return Ok((uid, replicas));
        }
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        let unknown = || format!("found no controllers for pod owner {}/{}", owner.kind, owner.name);
        let kind = self.kinds.get(group, &owner.kind).ok_or_else(unknown)?;
        let api: Api<kube::api::DynamicObject> = kind.api(&self.cluster.client, namespace);
        match api.get_subresource("scale", &owner.name).await {
            Ok(scale) => {
                let replicas = scale.data.pointer("/spec/replicas").and_then(serde_json::Value::as_i64).unwrap_or(0);
                Ok((owner.uid.clone(), i32::try_from(replicas).unwrap_or(i32::MAX)))
            }
            Err(_) => Err(format!("{}.{group} does not implement the scale subresource", kind.plural)),
        }
    }
}

fn conditions(budget: &PodDisruptionBudget, allowed: bool, failure: Option<String>, now: Timestamp) -> Vec<Condition> {
    let mut conditions = budget.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let (status, reason) = match (&failure, allowed) {
        (Some(_), _) => ("False", "SyncFailed"),
        (None, true) => ("True", "SufficientPods"),
        (None, false) => ("False", "InsufficientPods"),
    };
    let known = conditions.iter_mut().find(|condition| condition.type_ == ALLOWED);
    let since = known.as_ref().filter(|known| known.status == status).map(|known| known.last_transition_time.clone());
    let condition = Condition {
        type_: ALLOWED.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: failure.unwrap_or_default(),
        observed_generation: budget.metadata.generation,
        last_transition_time: since.unwrap_or(Time(now)),
    };
    match known {
        Some(known) => *known = condition,
        None => conditions.push(condition),
    }
    conditions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_eviction_that_never_shows_is_forgotten() {
        let budget: PodDisruptionBudget = serde_json::from_value(json!({"metadata": {"name": "b"}, "status": {
            "currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0,
            "disruptedPods": {"a": "2026-01-01T00:00:00Z", "b": "2026-01-01T00:01:30Z", "gone": "2026-01-01T00:01:30Z"}}}))
        .unwrap();
        let pod =
            |name: &str| -> Arc<Pod> { Arc::new(serde_json::from_value(json!({"metadata": {"name": name}})).unwrap()) };
        let now = "2026-01-01T00:02:30Z".parse().unwrap();
        let (left, again) = disrupted(&budget, &[pod("a"), pod("b")], now);
        assert_eq!(left.keys().collect::<Vec<_>>(), ["b"]);
        assert_eq!(again, Some(Duration::from_secs(61)));
    }
}
