//! The two strategies: roll over step by step, or stop all and begin anew.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ReplicaSet;

use super::{Controller, Rollout, available, wanted};
use crate::ownership::is_controlled_by;
use crate::pod_control::phase;
use crate::queue::Again;
use crate::replica_set::replicas;

impl Rollout {
    /// How large the new ReplicaSet may be now, if it has `current` replicas.
    pub(super) fn new_size(&self, current: i32) -> i32 {
        let strategy = self.deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
        let total = wanted(&self.deployment);
        if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate") || current > total {
            return total;
        }
        let room = (total + self.surge() - self.total()).max(0);
        current + room.min(total - current)
    }

    /// How many pods of old ReplicaSets may go now: only as many as leave enough that are available.
    fn spare(&self) -> i32 {
        let new_unavailable = self.new.as_ref().map_or(0, |new| replicas(new) - available(new));
        self.total() - (wanted(&self.deployment) - self.unavailable()) - new_unavailable
    }

    /// Old ReplicaSets and the size that each should have now, first taking what isn't available anyway.
    fn old_sizes(&self) -> Vec<(Arc<ReplicaSet>, i32)> {
        let mut sizes: Vec<(Arc<ReplicaSet>, i32)> =
            self.old.iter().map(|set| (Arc::clone(set), replicas(set))).collect();
        let mut spare = self.spare();
        if spare <= 0 {
            return Vec::new();
        }
        for (set, size) in &mut sizes {
            let broken = (*size - available(set)).clamp(0, spare);
            *size -= broken;
            spare -= broken;
        }
        let all_available: i32 = self.all().map(|set| available(set)).sum();
        let mut surplus = all_available - (wanted(&self.deployment) - self.unavailable());
        for (_, size) in &mut sizes {
            let gone = (*size).min(surplus).max(0);
            *size -= gone;
            surplus -= gone;
        }
        sizes.retain(|(set, size)| replicas(set) != *size);
        sizes
    }
}

impl Controller {
    /// One step of a rolling update; the next follows when the ReplicaSets tell that this one has had its effect.
    pub(super) async fn roll(&self, mut rollout: Rollout) -> Result<Again, kube::Error> {
        self.number(&mut rollout, true).await?;
        if let Some(new) = rollout.new.clone() {
            let size = rollout.new_size(replicas(&new));
            if size != replicas(&new) {
                rollout.new = Some(self.scale(&rollout, &new, size).await?);
                return self.report(&rollout).await;
            }
        }
        let sizes = rollout.old_sizes();
        for (set, size) in &sizes {
            self.scale(&rollout, set, *size).await?;
        }
        if sizes.is_empty() && rollout.is_complete() {
            self.prune(&rollout).await?;
        }
        self.report(&rollout).await
    }

    /// Stops the old pods, waits until they are gone, and starts the new ones.
    pub(super) async fn recreate(&self, mut rollout: Rollout) -> Result<Again, kube::Error> {
        self.number(&mut rollout, false).await?;
        let mut stopping = false;
        for set in rollout.old.iter().filter(|set| replicas(set) > 0) {
            self.scale(&rollout, set, 0).await?;
            stopping = true;
        }
        if stopping || self.old_pods_run(&rollout) {
            return self.report(&rollout).await;
        }
        self.number(&mut rollout, true).await?;
        if let Some(new) = rollout.new.clone() {
            rollout.new = Some(self.scale(&rollout, &new, wanted(&rollout.deployment)).await?);
        }
        if rollout.is_complete() {
            self.prune(&rollout).await?;
        }
        self.report(&rollout).await
    }

    fn old_pods_run(&self, rollout: &Rollout) -> bool {
        let runs = |set: &Arc<ReplicaSet>| {
            let alive = self.cluster.pods.list(|pod| {
                pod.metadata.namespace == set.metadata.namespace
                    && is_controlled_by(&pod.metadata, &**set)
                    && !matches!(phase(pod), "Succeeded" | "Failed")
            });
            !alive.is_empty()
        };
        rollout.old.iter().any(runs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn set(name: &str, replicas: i32, available: i32) -> Arc<ReplicaSet> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "uid": name},
                "spec": {"replicas": replicas, "selector": {}},
                "status": {"replicas": replicas, "availableReplicas": available}
            }))
            .unwrap(),
        )
    }

    fn rollout(replicas: i32, surge: i32, unavailable: i32, new: (i32, i32), old: &[(i32, i32)]) -> Rollout {
        let deployment = serde_json::from_value(json!({
            "metadata": {"name": "d"},
            "spec": {"replicas": replicas, "selector": {}, "template": {}, "strategy": {
                "type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}
        }))
        .unwrap();
        Rollout {
            deployment: Arc::new(deployment),
            new: Some(set("new", new.0, new.1)),
            old: old.iter().enumerate().map(|(index, old)| set(&format!("old{index}"), old.0, old.1)).collect(),
        }
    }

    #[test]
    fn the_new_set_grows_by_the_surge_and_the_old_shrinks_as_new_pods_become_available() {
        let begin = rollout(3, 1, 0, (0, 0), &[(3, 3)]);
        assert_eq!(begin.new_size(0), 1);
        assert!(begin.old_sizes().is_empty());
        let grown = rollout(3, 1, 0, (1, 1), &[(3, 3)]);
        assert_eq!(grown.new_size(1), 1);
        assert_eq!(grown.old_sizes()[0].1, 2);
    }

    #[test]
    fn pods_that_never_became_available_go_first() {
        let stuck = rollout(3, 1, 1, (2, 0), &[(1, 0), (1, 1)]);
        let sizes: Vec<_> =
            stuck.old_sizes().iter().map(|(set, size)| (set.metadata.name.clone().unwrap(), *size)).collect();
        assert_eq!(sizes, []);
        let spare = rollout(3, 1, 1, (1, 0), &[(1, 0), (2, 2)]);
        let sizes: Vec<_> =
            spare.old_sizes().iter().map(|(set, size)| (set.metadata.name.clone().unwrap(), *size)).collect();
        assert_eq!(sizes, [("old0".to_owned(), 0)]);
    }

    proptest! {
        /// Whatever the start: steps keep within the bounds, and lead to the end.
        #[test]
        fn a_rollout_keeps_its_bounds_and_ends(replicas in 0..12, surge in 0..5, unavailable in 0..5, first in 0..12, second in 0..12) {
            let mut new = 0;
            let mut old = vec![first, second];
            let mut steps = 0;
            loop {
                let now = rollout(replicas, surge, unavailable, (new, new), &old.iter().map(|n| (*n, *n)).collect::<Vec<_>>());
                let floor = (replicas - now.unavailable()).min(new + old.iter().sum::<i32>());
                let size = now.new_size(new);
                if size == new {
                    let sizes = now.old_sizes();
                    if sizes.is_empty() { break; }
                    for (set, size) in sizes {
                        let index: usize = set.metadata.name.clone().unwrap()[3..].parse().unwrap();
                        old[index] = size;
                    }
                    prop_assert!(new + old.iter().sum::<i32>() >= floor);
                } else {
                    prop_assert!(size <= replicas);
                    prop_assert!(size < new || size + old.iter().sum::<i32>() <= replicas + now.surge());
                    new = size;
                }
                steps += 1;
                prop_assert!(steps < 100, "no end: new {}, old {:?}", new, old);
            }
            prop_assert_eq!((new, old), (replicas, vec![0, 0]));
        }
    }
}
