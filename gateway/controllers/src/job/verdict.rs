//! Whether a Job is over, and why.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;

use super::tally::{Tally, is_indexed};
use super::{condition, indexes, is_suspended, passed};
use crate::pod_control::phase;
use crate::queue::Again;

/// It will have failed as soon as its pods have ended.
pub(super) const FAILURE_TARGET: &str = "FailureTarget";
/// It will have completed as soon as its pods have ended.
pub(super) const SUCCESS_CRITERIA_MET: &str = "SuccessCriteriaMet";

/// How a Job ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) success: bool,
    pub(super) reason: String,
    pub(super) message: String,
}

impl End {
    fn new(success: bool, reason: &str, message: &str) -> Self {
        Self { success, reason: reason.to_owned(), message: message.to_owned() }
    }

    pub(super) fn completed() -> Self {
        Self::new(true, "CompletionsReached", "Reached expected number of succeeded pods")
    }
}

/// The end that was decided on earlier.
pub(super) fn already(status: &JobStatus) -> Option<End> {
    let of = |type_, success| {
        let condition = condition(status, type_)?;
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        Some(End { success, reason: text(&condition.reason), message: text(&condition.message) })
    };
    of(FAILURE_TARGET, false).or_else(|| of(SUCCESS_CRITERIA_MET, true))
}

/// The end that a Job comes to without having all its completions.
pub(super) fn of(job: &Job, tally: &Tally, status: &JobStatus, now: Timestamp) -> Option<End> {
    let spec = job.spec.clone().unwrap_or_default();
    if let Some(message) = &tally.job_failure {
        return Some(End::new(false, "PodFailurePolicy", message));
    }
    let limit = usize::try_from(spec.backoff_limit.unwrap_or(6)).unwrap_or(0);
    if tally.failed > limit || restarts_exceed(&spec, &tally.active, limit) {
        return Some(End::new(false, "BackoffLimitExceeded", "Job has reached the specified backoff limit"));
    }
    if let Some(failed) = tally.failed_indexes.as_ref().filter(|failed| !failed.is_empty()) {
        let count = i32::try_from(failed.len()).unwrap_or(i32::MAX);
        if spec.max_failed_indexes.is_some_and(|most| count > most) {
            let text = "Job has exceeded the specified maximal number of failed indexes";
            return Some(End::new(false, "MaxFailedIndexesExceeded", text));
        }
        let done = failed.len() + tally.completed.len();
        if spec.completions.is_some_and(|all| done >= usize::try_from(all).unwrap_or(0)) {
            return Some(End::new(false, "FailedIndexes", "Job has failed indexes"));
        }
    }
    if !is_suspended(job) && deadline(job, status, now).is_some_and(|left| left.is_zero()) {
        return Some(End::new(false, "DeadlineExceeded", "Job was active longer than specified deadline"));
    }
    matched_rule(&spec, tally).map(|index| End::new(true, "SuccessPolicy", &format!("Matched rules at index {index}")))
}

/// How long a Job may still run.
pub(super) fn deadline(job: &Job, status: &JobStatus, now: Timestamp) -> Again {
    let limit = job.spec.as_ref().and_then(|spec| spec.active_deadline_seconds)?;
    let limit = Duration::from_secs(u64::try_from(limit).unwrap_or(0));
    let since = status.start_time.as_ref().map_or(now, |time| time.0);
    Some(limit.saturating_sub(passed(since, now)))
}

/// Whether all has succeeded and nothing runs any more.
pub(super) fn is_complete(job: &Job, tally: &Tally) -> bool {
    let completions = job.spec.as_ref().and_then(|spec| spec.completions);
    let enough = match completions {
        Some(completions) => tally.succeeded >= usize::try_from(completions).unwrap_or(0),
        None => tally.succeeded > 0,
    };
    enough && tally.active.is_empty()
}

/// Containers that are restarted in place count as failures where the pod is to restart them.
fn restarts_exceed(spec: &JobSpec, pods: &[std::sync::Arc<Pod>], limit: usize) -> bool {
    if spec.template.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) != Some("OnFailure") {
        return false;
    }
    let running = pods.iter().filter(|pod| matches!(phase(pod), "Running" | "Pending"));
    let statuses = running.filter_map(|pod| pod.status.as_ref()).flat_map(|status| {
        status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten())
    });
    let restarts: i32 = statuses.map(|status| status.restart_count).sum();
    let restarts = usize::try_from(restarts).unwrap_or(0);
    if limit == 0 { restarts > 0 } else { restarts >= limit }
}

/// The first rule of the success policy that holds.
fn matched_rule(spec: &JobSpec, tally: &Tally) -> Option<usize> {
    let policy = spec.success_policy.as_ref().filter(|_| is_indexed(spec))?;
    policy.rules.iter().position(|rule| {
        let wanted = rule.succeeded_indexes.as_deref().map(indexes::parse);
        let reached = match &wanted {
            Some(wanted) => tally.completed.intersection(wanted).count(),
            None => tally.completed.len(),
        };
        match (rule.succeeded_count, &wanted) {
            (Some(count), _) => reached >= usize::try_from(count).unwrap_or(usize::MAX),
            (None, Some(wanted)) => reached == wanted.len(),
            (None, None) => false,
        }
    })
}
