//! Where a Job stands: its pods sorted by what they mean to it, and the counts that follow.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::Pod;

use super::TRACKING;
use super::indexes;
use super::policy::{self, Action};
use crate::pod_control::{is_active, phase, ready_since};

/// One look at the pods of a Job.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) active: Vec<Arc<Pod>>,
    /// Pods that were made and that the watch hasn't told of yet.
    pub(super) unseen: usize,
    pub(super) ready: usize,
    /// Pods that were asked to end and haven't yet.
    pub(super) terminating: usize,
    /// All that ever succeeded; of an Indexed Job, the indexes that did.
    pub(super) succeeded: usize,
    /// All that ever failed, as far as failures count.
    pub(super) failed: usize,
    /// Ended pods not noted in the status yet.
    pub(super) new_succeeded: Vec<String>,
    pub(super) new_failed: Vec<String>,
    /// The indexes that succeeded, by the status and by the pods.
    pub(super) completed: BTreeSet<i32>,
    /// The indexes that failed for good, by the status and by the pods; where failures count by index.
    pub(super) failed_indexes: Option<BTreeSet<i32>>,
    /// The last failure of each index that has no pod now: the pod, and whether its failure counts.
    pub(super) last_failures: BTreeMap<i32, (Arc<Pod>, bool)>,
    /// A pod failed in a way that fails the Job; the message.
    pub(super) job_failure: Option<String>,
    /// When pods failed since the last that succeeded.
    pub(super) failures: Vec<Timestamp>,
}

impl Tally {
    /// `deleted`: for each pod, whether its deletion was asked for, even if the copy doesn't show it yet.
    pub(super) fn of(job: &Job, pods: &[Arc<Pod>], deleted: &[bool]) -> Self {
        let spec = job.spec.clone().unwrap_or_default();
        let status = job.status.clone().unwrap_or_default();
        let noted = status.uncounted_terminated_pods.unwrap_or_default();
        let (noted_succeeded, noted_failed) = (noted.succeeded.unwrap_or_default(), noted.failed.unwrap_or_default());
        let mut tally = Self::default();
        if is_indexed(&spec) {
            tally.completed = indexes::parse(status.completed_indexes.as_deref().unwrap_or_default());
        }
        let per_index = spec.backoff_limit_per_index.filter(|_| is_indexed(&spec));
        if per_index.is_some() {
            tally.failed_indexes = Some(indexes::parse(status.failed_indexes.as_deref().unwrap_or_default()));
        }
        let mut ends: Vec<(Timestamp, bool)> = Vec::new();
        for (pod, deleted) in pods.iter().zip(deleted) {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            match phase(pod) {
                "Succeeded" => ends.push((end_of(pod), true)),
                "Failed" => ends.push((end_of(pod), false)),
                _ if *deleted || pod.metadata.deletion_timestamp.is_some() => tally.terminating += 1,
                _ => {}
            }
            if is_active(pod) && !deleted {
                tally.ready += usize::from(ready_since(pod).is_some());
                tally.active.push(Arc::clone(pod));
            }
            if !is_tracked(pod) {
                continue;
            }
            if phase(pod) == "Succeeded" && !noted_failed.contains(&uid) {
                if is_indexed(&spec) {
                    tally.completed.extend(indexes::of(pod).filter(|index| Some(*index) < spec.completions));
                } else if !noted_succeeded.contains(&uid) {
                    tally.new_succeeded.push(uid);
                }
            } else if has_failed(&spec, pod) && !noted_failed.contains(&uid) && counts(&spec, pod) {
                let action = policy::action(spec.pod_failure_policy.as_ref(), pod);
                tally.note_by_index(per_index, pod, action.as_ref());
                match action {
                    Some(Action::Ignore) => {}
                    Some(Action::FailJob(message)) => {
                        tally.job_failure.get_or_insert(message);
                        tally.new_failed.push(uid);
                    }
                    Some(Action::FailIndex) | None => tally.new_failed.push(uid),
                }
            }
        }
        let count = |number: Option<i32>| usize::try_from(number.unwrap_or(0)).unwrap_or(0);
        tally.succeeded = if is_indexed(&spec) {
            tally.completed.len()
        } else {
            count(status.succeeded) + noted_succeeded.len() + tally.new_succeeded.len()
        };
        tally.failed = count(status.failed) + noted_failed.len() + tally.new_failed.len();
        ends.sort();
        tally.failures = ends.iter().rev().take_while(|(_, succeeded)| !succeeded).map(|(end, _)| *end).collect();
        if let Some(failed) = &mut tally.failed_indexes {
            failed.retain(|index| Some(*index) < spec.completions && !tally.completed.contains(index));
        }
        tally
    }

    /// Uids of pods that failed and whose index waits for another try.
    pub(super) fn awaiting_successors(&self) -> HashSet<String> {
        let taken = |index: &i32| {
            self.failed_indexes.as_ref().is_some_and(|failed| failed.contains(index))
                || self.completed.contains(index)
                || self.active.iter().any(|pod| indexes::of(pod) == Some(*index))
        };
        let waiting = self.last_failures.iter().filter(|(index, _)| !taken(index));
        waiting.filter_map(|(_, (pod, _))| pod.metadata.uid.clone()).collect()
    }

    /// Takes in the failure of a pod where failures count by index.
    fn note_by_index(&mut self, limit: Option<i32>, pod: &Arc<Pod>, action: Option<&Action>) {
        let (Some(limit), Some(index), Some(failed)) = (limit, indexes::of(pod), &mut self.failed_indexes) else {
            return;
        };
        let counts = !matches!(action, Some(Action::Ignore));
        let over = counts && indexes::failures(pod, indexes::FAILURES) >= limit;
        if over || matches!(action, Some(Action::FailIndex)) {
            failed.insert(index);
        }
        let known = self.last_failures.get(&index);
        if known.is_none_or(|(known, _)| end_of(known) <= end_of(pod)) {
            self.last_failures.insert(index, (Arc::clone(pod), counts));
        }
    }
}

pub(super) fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

/// Whether a pod is replaced only when it has failed, not when it is asked to end.
pub(super) fn replaces_only_failed(spec: &JobSpec) -> bool {
    spec.pod_replacement_policy.as_deref() == Some("Failed")
}

/// Whether a pod is not counted yet.
pub(super) fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == TRACKING)
}

/// Whether a pod is lost to its Job: it failed, or was asked to end before it succeeded.
pub(super) fn has_failed(spec: &JobSpec, pod: &Pod) -> bool {
    let placed = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).is_some_and(|node| !node.is_empty());
    match phase(pod) {
        "Failed" => true,
        "Succeeded" => false,
        // One that runs nowhere will not get to report a failure.
        _ => pod.metadata.deletion_timestamp.is_some() && !(replaces_only_failed(spec) && placed),
    }
}

/// Pods with an index that the Job doesn't have say nothing about it.
fn counts(spec: &JobSpec, pod: &Pod) -> bool {
    !is_indexed(spec) || indexes::of(pod).is_some_and(|index| Some(index) < spec.completions)
}

/// When a pod ended, as exactly as it says.
pub(super) fn end_of(pod: &Pod) -> Timestamp {
    let status = pod.status.clone().unwrap_or_default();
    let containers = status.container_statuses.into_iter().flatten();
    let ends = containers.filter_map(|container| container.state?.terminated?.finished_at.map(|time| time.0));
    let conditions = status.conditions.into_iter().flatten();
    let changes = conditions.filter_map(|condition| condition.last_transition_time.map(|time| time.0));
    let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    ends.max().or_else(|| changes.max()).or(created).unwrap_or(Timestamp::UNIX_EPOCH)
}
