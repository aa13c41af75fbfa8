//! What a StatefulSet says of itself.

use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSetStatus;

use super::{Look, identity};
use crate::pod_control::{phase, ready_since};
use crate::queue::Again;
use crate::revisions;

impl Look {
    pub(super) fn status(&self) -> StatefulSetStatus {
        let (current, update) = (revisions::name(&self.current), revisions::name(&self.history.update));
        let old = self.set.status.clone().unwrap_or_default();
        let (mut replicas, mut ready, mut available, mut of_current, mut of_update) = (0, 0, 0, 0, 0);
        for pod in &self.pods {
            replicas += 1;
            if phase(pod) == "Running" && ready_since(pod).is_some() {
                ready += 1;
                available += i32::from(self.is_available(pod));
            }
            if pod.metadata.deletion_timestamp.is_none() {
                of_current += i32::from(identity::revision(pod) == Some(current));
                of_update += i32::from(identity::revision(pod) == Some(update));
            }
        }
        let mut current = current;
        if self.rolls() && of_update == replicas && ready == replicas && replicas == self.wanted() {
            // The update is over.
            current = update;
            of_current = of_update;
        }
        StatefulSetStatus {
            observed_generation: self.set.metadata.generation,
            replicas,
            ready_replicas: some(ready),
            available_replicas: Some(available),
            current_replicas: some(of_current),
            updated_replicas: some(of_update),
            current_revision: Some(current.to_owned()),
            update_revision: Some(update.to_owned()),
            collision_count: Some(self.history.collisions),
            conditions: old.conditions,
        }
    }

    /// When the next pod will have been ready for long enough.
    pub(super) fn next_available(&self) -> Again {
        let waits = self.pods.iter().filter_map(|pod| {
            let passed = Duration::try_from(self.now.duration_since(ready_since(pod)?)).unwrap_or_default();
            self.min_ready().checked_sub(passed).filter(|left| !left.is_zero())
        });
        waits.min()
    }
}

fn some(count: i32) -> Option<i32> {
    Some(count).filter(|count| *count > 0)
}
