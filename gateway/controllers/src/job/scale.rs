//! Making and stopping the pods of a Job.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod};

use super::indexes::{self, INDEX};
use super::tally::{Tally, end_of, is_indexed, is_tracked, replaces_only_failed};
use super::{Controller, TRACKING, is_suspended, passed};
use crate::informer::Key;
use crate::pod_control;
use crate::queue::Again;
use crate::replica_set::first_to_go;

/// Pods made or stopped in one go; more wait for the next look.
const BURST: usize = 500;
/// The wait before a failed pod is replaced; it doubles with each further failure in a row.
const FIRST_BACKOFF: Duration = Duration::from_secs(10);
const LAST_BACKOFF: Duration = Duration::from_secs(360);
const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";

impl Controller {
    /// Makes the number of active pods right; asks to be called again when failed pods may be replaced.
    pub(super) async fn scale(
        &self,
        job: &Job,
        key: &Key,
        tally: &mut Tally,
        now: Timestamp,
    ) -> Result<Again, kube::Error> {
        let spec = job.spec.clone().unwrap_or_default();
        let wanted = if is_suspended(job) { 0 } else { wanted(&spec, tally) };
        let victims = surplus(&spec, &tally.active, wanted);
        if !victims.is_empty() {
            self.stop(job, key, &victims, false, tally).await?;
            return Ok(None);
        }
        let ending = if replaces_only_failed(&spec) { tally.terminating } else { 0 };
        let missing = wanted.saturating_sub(tally.active.len() + ending).min(BURST);
        if missing == 0 {
            return Ok(None);
        }
        let mut again = None;
        let pods: Vec<Pod> = if tally.failed_indexes.is_some() {
            // Each index waits for itself.
            let mut pods = Vec::new();
            for index in free_indexes(&spec, tally).take(missing) {
                let (failures, ignored, wait) = tally.earlier(index, now);
                if wait.is_zero() {
                    pods.push(retry(pod(job, &spec, Some(index)), failures, ignored));
                } else {
                    again = again.into_iter().chain([wait]).min();
                }
            }
            pods
        } else {
            let wait = backoff(&tally.failures, now);
            if !wait.is_zero() {
                return Ok(Some(wait));
            }
            if is_indexed(&spec) {
                free_indexes(&spec, tally).take(missing).map(|index| pod(job, &spec, Some(index))).collect()
            } else {
                vec![pod(job, &spec, None); missing]
            }
        };
        let made = pod_control::create_all(&self.cluster.client, &self.voice, &self.expected, job, key, pods).await?;
        tally.active.extend(made.into_iter().map(Arc::new));
        Ok(again)
    }

    /// Stops pods. Whether they count as failed: those that a Job has too many of, or that it stops while it is suspended,
    /// don't.
    pub(super) async fn stop(
        &self,
        job: &Job,
        key: &Key,
        pods: &[Arc<Pod>],
        counted: bool,
        tally: &mut Tally,
    ) -> Result<(), kube::Error> {
        let (client, voice) = (&self.cluster.client, &self.voice);
        let stops = pods.iter().take(BURST).map(|pod| async move {
            let uid = pod.metadata.uid.clone();
            if !counted && is_tracked(pod) {
                match self.free(pod).await {
                    Ok(Some(_)) => {}
                    // It has changed, which leads to another look.
                    Ok(None) => return (None, Ok(())),
                    Err(error) => return (uid, Err(error)),
                }
            }
            (uid, pod_control::delete_expectedly(client, voice, &self.expected, job, key, pod).await)
        });
        let mut failure = Ok(());
        let mut stopped: HashSet<String> = HashSet::new();
        for (uid, outcome) in join_all(stops).await {
            match outcome {
                Ok(()) => stopped.extend(uid),
                Err(error) => failure = Err(error),
            }
        }
        tally.terminating += stopped.len();
        let ready = |pod: &&Arc<Pod>| pod_control::ready_since(pod).is_some();
        let before = tally.active.iter().filter(ready).count();
        tally.active.retain(|pod| !pod.metadata.uid.as_ref().is_some_and(|uid| stopped.contains(uid)));
        tally.ready -= before - tally.active.iter().filter(ready).count();
        failure
    }
}

/// How many pods should be active.
fn wanted(spec: &JobSpec, tally: &Tally) -> usize {
    let number = |number: i32| usize::try_from(number).unwrap_or(0);
    let parallelism = number(spec.parallelism.unwrap_or(1));
    match spec.completions {
        Some(completions) => {
            let over = tally.succeeded + tally.failed_indexes.as_ref().map_or(0, BTreeSet::len);
            number(completions).saturating_sub(over).min(parallelism)
        }
        // Once one pod of a work queue has succeeded, the work is done: the others only finish.
        None if tally.succeeded > 0 => tally.active.len().min(parallelism),
        None => parallelism,
    }
}

/// The pods that are too many: of an Indexed Job first those whose index another pod has, or the Job hasn't.
fn surplus(spec: &JobSpec, active: &[Arc<Pod>], wanted: usize) -> Vec<Arc<Pod>> {
    let mut seen = BTreeSet::new();
    let is_useless = |pod: &Arc<Pod>| {
        is_indexed(spec) && !indexes::of(pod).is_some_and(|index| Some(index) < spec.completions && seen.insert(index))
    };
    let (mut useless, useful): (Vec<Arc<Pod>>, Vec<Arc<Pod>>) = active.iter().cloned().partition(is_useless);
    useless.extend(first_to_go(&useful, useful.len().saturating_sub(wanted)));
    useless
}

/// The indexes that have neither succeeded nor a pod, lowest first.
fn free_indexes(spec: &JobSpec, tally: &Tally) -> impl Iterator<Item = i32> {
    let taken: BTreeSet<i32> = tally.active.iter().filter_map(|pod| indexes::of(pod)).collect();
    let over: BTreeSet<i32> = tally.completed.iter().chain(tally.failed_indexes.iter().flatten()).copied().collect();
    (0..spec.completions.unwrap_or(0)).filter(move |index| !taken.contains(index) && !over.contains(index))
}

impl Tally {
    /// How often an index has failed, how often that was ignored, and how long it has to wait.
    fn earlier(&self, index: i32, now: Timestamp) -> (i32, i32, Duration) {
        let Some((last, counts)) = self.last_failures.get(&index) else { return (0, 0, Duration::ZERO) };
        let failures = indexes::failures(last, indexes::FAILURES) + i32::from(*counts);
        let ignored = indexes::failures(last, indexes::IGNORED_FAILURES) + i32::from(!counts);
        let times = usize::try_from(failures + ignored).unwrap_or(1);
        (failures, ignored, backoff(&vec![end_of(last); times], now))
    }
}

/// A pod that is told how often its index has failed.
fn retry(mut pod: Pod, failures: i32, ignored: i32) -> Pod {
    let notes = pod.metadata.annotations.get_or_insert_default();
    notes.insert(indexes::FAILURES.to_owned(), failures.to_string());
    if ignored > 0 {
        notes.insert(indexes::IGNORED_FAILURES.to_owned(), ignored.to_string());
    }
    pod
}

/// How long failed pods are not replaced yet. `failures`: the latest first.
fn backoff(failures: &[Timestamp], now: Timestamp) -> Duration {
    let Some(latest) = failures.first() else { return Duration::ZERO };
    let doublings = u32::try_from(failures.len() - 1).unwrap_or(u32::MAX).min(16);
    FIRST_BACKOFF.saturating_mul(1 << doublings).min(LAST_BACKOFF).saturating_sub(passed(*latest, now))
}

/// A pod of the Job, for one index of it.
fn pod(job: &Job, spec: &JobSpec, index: Option<i32>) -> Pod {
    let mut pod = pod_control::from_template(job, &spec.template);
    let finalizers = pod.metadata.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|known| known == TRACKING) {
        finalizers.push(TRACKING.to_owned());
    }
    let Some(index) = index else { return pod };
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let number = || BTreeMap::from([(INDEX.to_owned(), index.to_string())]);
    pod.metadata.generate_name = Some(format!("{name}-{index}-"));
    pod.metadata.annotations.get_or_insert_default().extend(number());
    pod.metadata.labels.get_or_insert_default().extend(number());
    if let Some(spec) = &mut pod.spec {
        spec.hostname = Some(format!("{name}-{index}"));
        spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()).for_each(tell_index);
    }
    pod
}

/// Gives a container its index as a variable, unless it has one of that name.
fn tell_index(container: &mut Container) {
    let variables = container.env.get_or_insert_default();
    if variables.iter().any(|variable| variable.name == INDEX_VARIABLE) {
        return;
    }
    let field = ObjectFieldSelector { field_path: format!("metadata.labels['{INDEX}']"), api_version: None };
    variables.push(EnvVar {
        name: INDEX_VARIABLE.to_owned(),
        value: None,
        value_from: Some(EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() }),
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn failures_in_a_row_double_the_wait_up_to_its_limit() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        assert_eq!(backoff(&[], now), Duration::ZERO);
        assert_eq!(backoff(&[now], now), Duration::from_secs(10));
        assert_eq!(backoff(&[now; 3], now), Duration::from_secs(40));
        assert_eq!(backoff(&[now; 100], now), LAST_BACKOFF);
        let earlier: Timestamp = "2026-01-01T00:59:53Z".parse().unwrap();
        assert_eq!(backoff(&[earlier], now), Duration::from_secs(3));
    }

    fn tally(active: usize, succeeded: usize) -> Tally {
        Tally { active: vec![Arc::default(); active], succeeded, ..Tally::default() }
    }

    #[test]
    fn as_many_pods_are_wanted_as_are_left_to_do_within_the_parallelism() {
        let spec = |completions: Option<i32>| JobSpec { parallelism: Some(3), completions, ..JobSpec::default() };
        assert_eq!(wanted(&spec(Some(5)), &tally(0, 0)), 3);
        assert_eq!(wanted(&spec(Some(5)), &tally(1, 4)), 1);
        assert_eq!(wanted(&spec(Some(5)), &tally(0, 5)), 0);
        assert_eq!(wanted(&spec(None), &tally(0, 0)), 3);
        assert_eq!(wanted(&spec(None), &tally(2, 1)), 2);
    }

    #[test]
    fn a_second_pod_of_an_index_is_too_many() {
        let pod = |name: &str, index: &str| -> Arc<Pod> {
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": name, "annotations": {INDEX: index}}})).unwrap(),
            )
        };
        let spec = JobSpec { completion_mode: Some("Indexed".into()), completions: Some(2), ..JobSpec::default() };
        let victims = surplus(&spec, &[pod("a", "0"), pod("b", "0"), pod("c", "1"), pod("d", "2")], 2);
        let names: Vec<_> = victims.iter().map(|pod| pod.metadata.name.clone().unwrap()).collect();
        assert_eq!(names, ["b", "d"]);
    }
}
