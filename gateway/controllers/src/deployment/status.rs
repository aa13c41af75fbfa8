//! What a Deployment says of itself: counts and conditions.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{DeploymentCondition, DeploymentStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Controller, Rollout, available, wanted};
use crate::queue::Again;
use crate::status;

const AVAILABLE: &str = "Available";
const PROGRESSING: &str = "Progressing";
const FAILURE: &str = "ReplicaFailure";
const COMPLETE: &str = "NewReplicaSetAvailable";
/// A rollout without a deadline never fails.
const NO_DEADLINE: i32 = i32::MAX;

impl Rollout {
    /// Whether all pods are of the current template, and available.
    pub(super) fn is_complete(&self) -> bool {
        is_complete(&self.counts(), wanted(&self.deployment))
            && self.new.as_ref().is_some_and(|new| {
                new.status.as_ref().and_then(|status| status.observed_generation) >= new.metadata.generation
            })
    }

    fn counts(&self) -> DeploymentStatus {
        let sum = |of: fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> i32| -> i32 {
            self.all().filter_map(|set| set.status.as_ref().map(of)).sum()
        };
        let available: i32 = self.all().map(|set| available(set)).sum();
        let old = self.deployment.status.clone().unwrap_or_default();
        DeploymentStatus {
            observed_generation: self.deployment.metadata.generation,
            replicas: some(sum(|status| status.replicas)),
            updated_replicas: some(
                self.new.as_ref().and_then(|new| new.status.as_ref()).map_or(0, |status| status.replicas),
            ),
            ready_replicas: some(sum(|status| status.ready_replicas.unwrap_or(0))),
            available_replicas: some(available),
            unavailable_replicas: some((self.total() - available).max(0)),
            collision_count: old.collision_count,
            conditions: old.conditions,
            ..DeploymentStatus::default()
        }
    }

    fn status(&self, now: Timestamp) -> DeploymentStatus {
        let mut status = self.counts();
        let mut conditions = Conditions { list: status.conditions.take().unwrap_or_default(), now };
        self.say_progress(&status, &mut conditions);
        let enough = wanted(&self.deployment) - self.unavailable();
        if status.available_replicas.unwrap_or(0) >= enough {
            conditions.set(AVAILABLE, "True", "MinimumReplicasAvailable", "Deployment has minimum availability.");
        } else {
            let text = "Deployment does not have minimum availability.";
            conditions.set(AVAILABLE, "False", "MinimumReplicasUnavailable", text);
        }
        // The new ReplicaSet's failure counts before the old ones'.
        let failure = self.new.iter().chain(&self.old).find_map(|set| {
            set.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == FAILURE).cloned()
        });
        match failure {
            Some(failure) => {
                let (reason, text) = (failure.reason.unwrap_or_default(), failure.message.unwrap_or_default());
                conditions.set(FAILURE, &failure.status, &reason, &text);
            }
            None => conditions.list.retain(|condition| condition.type_ != FAILURE),
        }
        status.conditions = Some(conditions.list).filter(|list| !list.is_empty());
        status
    }

    fn say_progress(&self, status: &DeploymentStatus, conditions: &mut Conditions) {
        let spec = self.deployment.spec.clone().unwrap_or_default();
        if deadline(spec.progress_deadline_seconds).is_none() {
            conditions.list.retain(|condition| condition.type_ != PROGRESSING);
            return;
        }
        let known = conditions.get(PROGRESSING).cloned();
        let reason = known.as_ref().and_then(|known| known.reason.clone()).unwrap_or_default();
        if spec.paused == Some(true) {
            if reason != "DeploymentPaused" {
                conditions.set(PROGRESSING, "Unknown", "DeploymentPaused", "Deployment is paused");
            }
            return;
        }
        if reason == "DeploymentPaused" {
            conditions.set(PROGRESSING, "Unknown", "DeploymentResumed", "Deployment is resumed");
        }
        let name = self.new.as_ref().and_then(|new| new.metadata.name.clone()).unwrap_or_default();
        let old = self.deployment.status.clone().unwrap_or_default();
        let same_rollout = status.replicas == status.updated_replicas && reason == COMPLETE;
        if same_rollout && self.new.is_some() {
            return;
        }
        if is_complete(status, wanted(&self.deployment)) {
            let text = format!("ReplicaSet \"{name}\" has successfully progressed.");
            conditions.set(PROGRESSING, "True", COMPLETE, &text);
        } else if known.is_none() || reason == COMPLETE {
            let text = format!("Created new replica set \"{name}\"");
            conditions.set(PROGRESSING, "True", "NewReplicaSetCreated", &text);
        } else if has_progressed(&old, status) {
            conditions.touch(
                PROGRESSING,
                "True",
                "ReplicaSetUpdated",
                &format!("ReplicaSet \"{name}\" is progressing."),
            );
        } else if self.overdue(conditions).is_some_and(|left| left.is_zero()) {
            let text = format!("ReplicaSet \"{name}\" has timed out progressing.");
            conditions.set(PROGRESSING, "False", "ProgressDeadlineExceeded", &text);
        }
    }

    /// How long the rollout may still stand still; none if it needn't move.
    fn overdue(&self, conditions: &Conditions) -> Option<Duration> {
        let known = conditions.get(PROGRESSING)?;
        let reason = known.reason.as_deref().unwrap_or_default();
        if [COMPLETE, "ProgressDeadlineExceeded", "DeploymentPaused"].contains(&reason) {
            return None;
        }
        let limit = deadline(self.deployment.spec.as_ref().and_then(|spec| spec.progress_deadline_seconds))?;
        let since = known.last_update_time.as_ref().map_or(conditions.now, |time| time.0);
        let left = limit - conditions.now.duration_since(since);
        Some(Duration::try_from(left).unwrap_or_default())
    }
}

impl Controller {
    /// Brings the status up to date; asks to be called again when the rollout's deadline will have passed.
    pub(super) async fn report(&self, rollout: &Rollout) -> Result<Again, kube::Error> {
        let now = Timestamp::now();
        let new = rollout.status(now);
        let conditions = Conditions { list: new.conditions.clone().unwrap_or_default(), now };
        let again = rollout.overdue(&conditions).map(|left| left + Duration::from_millis(100));
        let (deployment, copy) = (&*rollout.deployment, &self.cluster.deployments);
        status::write(&self.cluster.client, copy, deployment, deployment.status.as_ref(), &new).await?;
        Ok(again)
    }
}

fn some(count: i32) -> Option<i32> {
    Some(count).filter(|count| *count > 0)
}

fn deadline(seconds: Option<i32>) -> Option<SignedDuration> {
    seconds.filter(|seconds| *seconds != NO_DEADLINE).map(|seconds| SignedDuration::from_secs(seconds.into()))
}

fn is_complete(status: &DeploymentStatus, wanted: i32) -> bool {
    [status.replicas, status.updated_replicas, status.available_replicas]
        .iter()
        .all(|count| count.unwrap_or(0) == wanted)
}

fn has_progressed(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let of = |count: Option<i32>| count.unwrap_or(0);
    let left_behind = |status: &DeploymentStatus| of(status.replicas) - of(status.updated_replicas);
    of(new.updated_replicas) > of(old.updated_replicas)
        || left_behind(new) < left_behind(old)
        || of(new.ready_replicas) > of(old.ready_replicas)
        || of(new.available_replicas) > of(old.available_replicas)
}

/// Conditions that keep the time of their last change.
struct Conditions {
    list: Vec<DeploymentCondition>,
    now: Timestamp,
}

impl Conditions {
    fn get(&self, type_: &str) -> Option<&DeploymentCondition> {
        self.list.iter().find(|condition| condition.type_ == type_)
    }

    /// Sets a condition; one that says the same stays as it is.
    fn set(&mut self, type_: &str, status: &str, reason: &str, message: &str) {
        let same =
            self.get(type_).is_some_and(|known| known.status == status && known.reason.as_deref() == Some(reason));
        if !same {
            self.touch(type_, status, reason, message);
        }
    }

    /// Sets a condition and the time of its last update.
    fn touch(&mut self, type_: &str, status: &str, reason: &str, message: &str) {
        let now = Time(self.now);
        let since = match self.get(type_) {
            Some(known) if known.status == status => known.last_transition_time.clone(),
            _ => Some(now.clone()),
        };
        let condition = DeploymentCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_update_time: Some(now),
            last_transition_time: since,
        };
        match self.list.iter_mut().find(|known| known.type_ == type_) {
            Some(known) => *known = condition,
            None => self.list.push(condition),
        }
    }
}
