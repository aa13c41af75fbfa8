//! Scaling in the middle of a rollout: every ReplicaSet gets its share.

use std::cmp::Reverse;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ReplicaSet;

use super::{Controller, MAXIMUM, Rollout, available, created, note, wanted};
use crate::replica_set::replicas;

impl Rollout {
    /// ReplicaSets and the size that each should have after the Deployment was scaled.
    fn proportions(&self) -> Vec<(Arc<ReplicaSet>, i32)> {
        let total = wanted(&self.deployment);
        let mut active: Vec<&Arc<ReplicaSet>> = self.all().filter(|set| replicas(set) > 0).collect();
        if active.len() <= 1 {
            // Nothing is under way: the one that has pods, or else the newest, has them all.
            let only = active.first().copied().or(self.new.as_ref()).or(self.old.last());
            return only.map(|set| (Arc::clone(set), total)).into_iter().collect();
        }
        if let Some(new) = self.new.as_ref().filter(|new| replicas(new) == total && available(new) == total) {
            let others = active.iter().filter(|set| set.metadata.uid != new.metadata.uid);
            return others.map(|set| (Arc::clone(set), 0)).chain([(Arc::clone(new), total)]).collect();
        }
        let allowed = if total > 0 { total + self.surge() } else { 0 };
        let mut left = allowed - self.total();
        // Growth goes to the newest of equal size first, shrinking to the oldest.
        if left >= 0 {
            active.sort_by_key(|set| (Reverse(replicas(set)), Reverse(created(set))));
        } else {
            active.sort_by_key(|set| (Reverse(replicas(set)), created(set)));
        }
        let mut sizes: Vec<(Arc<ReplicaSet>, i32)> = Vec::new();
        for set in active {
            let share = self.share(set, allowed);
            let change = if left >= 0 { share.clamp(0, left) } else { share.clamp(left, 0) };
            left -= change;
            sizes.push((Arc::clone(set), replicas(set) + change));
        }
        // What rounding left over goes to the largest.
        if let Some((_, size)) = sizes.first_mut() {
            *size = (*size + left).max(0);
        }
        sizes
    }

    /// By how much a ReplicaSet changes if it keeps its part of the whole.
    fn share(&self, set: &ReplicaSet, allowed: i32) -> i32 {
        let size = i64::from(replicas(set));
        let before = note(set, MAXIMUM).filter(|maximum| *maximum > 0).unwrap_or_else(|| self.total().max(1));
        let exact = size * i64::from(allowed);
        let before = i64::from(before);
        let rounded = (2 * exact + before) / (2 * before);
        i32::try_from(rounded - size).unwrap_or(0)
    }
}

impl Controller {
    pub(super) async fn scale_in_proportion(&self, rollout: &Rollout) -> Result<(), kube::Error> {
        for (set, size) in rollout.proportions() {
            self.scale(rollout, &set, size).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn set(name: &str, replicas: i32, maximum: i32) -> Arc<ReplicaSet> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "uid": name, "annotations": {MAXIMUM: maximum.to_string()}},
                "spec": {"replicas": replicas, "selector": {}}
            }))
            .unwrap(),
        )
    }

    fn rollout(replicas: i32, new: Arc<ReplicaSet>, old: Vec<Arc<ReplicaSet>>) -> Rollout {
        let deployment = json!({"metadata": {}, "spec": {"replicas": replicas, "selector": {}, "template": {}, "strategy": {
            "type": "RollingUpdate", "rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}}}});
        Rollout { deployment: Arc::new(serde_json::from_value(deployment).unwrap()), new: Some(new), old }
    }

    fn sizes(rollout: &Rollout) -> Vec<(String, i32)> {
        rollout.proportions().iter().map(|(set, size)| (set.metadata.name.clone().unwrap(), *size)).collect()
    }

    #[test]
    fn each_set_keeps_its_part_of_the_whole() {
        // The documentation's example: 10 replicas, surge 3, unavailable 2; 8 old and 5 new; scaled to 15.
        let rollout = rollout(15, set("new", 5, 13), vec![set("old", 8, 13)]);
        assert_eq!(sizes(&rollout), [("old".into(), 11), ("new".into(), 7)]);
    }

    #[test]
    fn a_lone_set_takes_all() {
        assert_eq!(sizes(&rollout(4, set("new", 2, 5), vec![set("old", 0, 5)])), [("new".into(), 4)]);
    }

    #[test]
    fn nothing_is_left_when_scaled_to_nothing() {
        let rollout = rollout(0, set("new", 5, 13), vec![set("old", 8, 13)]);
        assert_eq!(sizes(&rollout), [("old".into(), 0), ("new".into(), 0)]);
    }
}
