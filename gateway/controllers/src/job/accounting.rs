//! Counting pods exactly once, whatever is cut off in between.
//!
//! First the uids of ended pods are noted in the status, then their finalizers go, then the notes become counts. A pod
//! that has the finalizer is noted or not; a note whose pod has no finalizer any more is ripe to be counted.

use std::collections::HashSet;
use std::sync::Arc;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use super::tally::{Tally, has_failed, is_indexed, is_tracked};
use super::{
    COMPLETE, Controller, End, FAILED, FAILURE_TARGET, SUCCESS_CRITERIA_MET, TRACKING, indexes, set_condition,
};
use crate::pod_control::phase;

/// Uids that are noted at once: the status is to stay small.
const NOTES: usize = 500;

impl Controller {
    /// Brings the status up to date, counts what has ended, and ends the Job when its time has come.
    pub(super) async fn settle(
        &self,
        job: &Job,
        pods: &[Arc<Pod>],
        tally: &Tally,
        mut status: JobStatus,
        end: Option<End>,
        now: Timestamp,
    ) -> Result<(), kube::Error> {
        let spec = job.spec.clone().unwrap_or_default();
        status.active = some(tally.active.len() + tally.unseen);
        status.ready = Some(count(tally.ready));
        status.terminating = Some(count(tally.terminating));
        if is_indexed(&spec) {
            status.succeeded = some(tally.completed.len());
            status.completed_indexes = Some(indexes::format(&tally.completed)).filter(|text| !text.is_empty());
        }
        if let Some(failed) = &tally.failed_indexes {
            status.failed_indexes = Some(indexes::format(failed));
        }
        if let Some(end) = &end {
            let type_ = if end.success { SUCCESS_CRITERIA_MET } else { FAILURE_TARGET };
            set_condition(&mut status, type_, true, &end.reason, &end.message, now);
        }
        let notes = status.uncounted_terminated_pods.get_or_insert_default();
        let room = NOTES.saturating_sub(listed(notes));
        let new_notes =
            tally.new_succeeded.iter().map(|uid| (true, uid)).chain(tally.new_failed.iter().map(|uid| (false, uid)));
        // A pod that says how often its index has failed stays until the one that takes its place is there.
        let awaited = if end.is_none() { tally.awaiting_successors() } else { HashSet::new() };
        let mut left_out: HashSet<&String> = tally.new_failed.iter().filter(|uid| awaited.contains(*uid)).collect();
        let new_notes: Vec<_> = new_notes.filter(|(_, uid)| !left_out.contains(*uid)).collect();
        for (number, (success, uid)) in new_notes.into_iter().enumerate() {
            if number >= room {
                left_out.insert(uid);
                continue;
            }
            let list = if success { &mut notes.succeeded } else { &mut notes.failed };
            list.get_or_insert_default().push(uid.clone());
        }
        let noted_before = job.status.as_ref().and_then(|status| status.uncounted_terminated_pods.as_ref());
        let index_news =
            status.completed_indexes != job.status.as_ref().and_then(|status| status.completed_indexes.clone());
        let failed_news = status.failed_indexes != job.status.as_ref().and_then(|status| status.failed_indexes.clone());
        let must_note = index_news || failed_news || noted_before.map_or(0, listed) < listed(notes);
        let mut job = job.clone();
        if must_note {
            job = self.write(&job, &status).await?;
        }

        let ending = job.metadata.deletion_timestamp.is_some();
        let done = |pod: &&Arc<Pod>| {
            let ended = ending || phase(pod) == "Succeeded" || has_failed(&spec, pod);
            is_tracked(pod) && ended && !pod.metadata.uid.as_ref().is_some_and(|uid| left_out.contains(uid))
        };
        let done: Vec<Arc<Pod>> = pods.iter().filter(done).cloned().collect();
        let freed = self.untrack(&done).await?;
        let held: HashSet<&String> = pods
            .iter()
            .filter(|pod| is_tracked(pod))
            .filter_map(|pod| pod.metadata.uid.as_ref())
            .filter(|uid| !freed.contains(*uid))
            .collect();
        count_notes(&mut status, &held, is_indexed(&spec));

        let over = status.uncounted_terminated_pods.as_ref().is_none_or(|notes| listed(notes) == 0)
            && tally.active.len() + tally.unseen == 0
            && tally.terminating == 0;
        let over = end.filter(|_| over && !ending);
        if let Some(end) = &over {
            let type_ = if end.success { COMPLETE } else { FAILED };
            set_condition(&mut status, type_, true, &end.reason, &end.message, now);
            if end.success {
                status.completion_time = Some(Time(now));
            }
        }
        if job.status.as_ref() != Some(&status) {
            self.write(&job, &status).await?;
        }
        match over {
            Some(end) if end.success => self.voice.normal(&job, "Completed", "Job completed".to_owned()),
            Some(end) => self.voice.warning(&job, &end.reason, end.message),
            None => {}
        }
        Ok(())
    }

    /// Takes the finalizer off pods; the uids of those that have none now. A pod that has changed meanwhile is left for the
    /// look that the change leads to.
    pub(super) async fn untrack(&self, pods: &[Arc<Pod>]) -> Result<HashSet<String>, kube::Error> {
        let attempts = pods.iter().filter(|pod| is_tracked(pod)).map(|pod| self.free(pod));
        let mut freed = HashSet::new();
        let mut failure = None;
        for outcome in join_all(attempts).await {
            match outcome {
                Ok(uid) => freed.extend(uid),
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(freed), Err)
    }

    pub(super) async fn free(&self, pod: &Pod) -> Result<Option<String>, kube::Error> {
        let meta = &pod.metadata;
        let others: Vec<&String> = meta.finalizers.iter().flatten().filter(|known| *known != TRACKING).collect();
        let patch = Patch::Merge(json!({"metadata": {
            "uid": meta.uid, "resourceVersion": meta.resource_version, "finalizers": others,
        }}));
        let api: Api<Pod> = Api::namespaced(self.cluster.client.clone(), meta.namespace.as_deref().unwrap_or_default());
        match api.patch(meta.name.as_deref().unwrap_or_default(), &PatchParams::default(), &patch).await {
            Ok(pod) => self.cluster.pods.learn(pod),
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(kube::Error::Api(status)) if status.code == 409 => return Ok(None),
            Err(error) => return Err(error),
        }
        self.freed.note(pod, &self.cluster.pods);
        Ok(meta.uid.clone())
    }
}

/// Notes whose pods have no finalizer any more become counts.
fn count_notes(status: &mut JobStatus, held: &HashSet<&String>, indexed: bool) {
    let notes = status.uncounted_terminated_pods.get_or_insert_default();
    let counted = |list: &mut Option<Vec<String>>| {
        let uids = list.take().unwrap_or_default();
        let all = uids.len();
        let left: Vec<String> = uids.into_iter().filter(|uid| held.contains(uid)).collect();
        let ripe = all - left.len();
        *list = Some(left).filter(|left| !left.is_empty());
        count(ripe)
    };
    let (succeeded, failed) = (counted(&mut notes.succeeded), counted(&mut notes.failed));
    if succeeded > 0 && !indexed {
        *status.succeeded.get_or_insert_default() += succeeded;
    }
    if failed > 0 {
        *status.failed.get_or_insert_default() += failed;
    }
}

fn listed(notes: &UncountedTerminatedPods) -> usize {
    notes.succeeded.as_ref().map_or(0, Vec::len) + notes.failed.as_ref().map_or(0, Vec::len)
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn some(number: usize) -> Option<i32> {
    Some(count(number)).filter(|count| *count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_notes_of_pods_without_finalizer_are_counted() {
        let mut status: JobStatus = serde_json::from_value(json!({
            "succeeded": 2, "uncountedTerminatedPods": {"succeeded": ["a", "b"], "failed": ["c"]}
        }))
        .unwrap();
        let b = "b".to_owned();
        count_notes(&mut status, &HashSet::from([&b]), false);
        assert_eq!((status.succeeded, status.failed), (Some(3), Some(1)));
        assert_eq!(status.uncounted_terminated_pods.as_ref().unwrap().succeeded, Some(vec![b]));
        count_notes(&mut status, &HashSet::new(), false);
        count_notes(&mut status, &HashSet::new(), false);
        assert_eq!((status.succeeded, status.failed), (Some(4), Some(1)));
    }
}
