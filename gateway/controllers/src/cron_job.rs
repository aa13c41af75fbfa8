//! The CronJob controller: a Job at each time that is due.
//!
//! The Job's name is made of the time that it is for, so the same time never leads to two Jobs; and the last time that
//! led to one is in the status.

mod schedule;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams, Preconditions};
use kube::{Resource, ResourceExt};

use self::schedule::Schedule;
use crate::cluster::Cluster;
use crate::controller::{self, Setup};
use crate::events::Voice;
use crate::informer::Key;
use crate::ownership::{self, is_controlled_by, is_terminating};
use crate::pod_control::{FORGET_AFTER, message};
use crate::queue::{Again, Queue};
use crate::replica_set::tolerate_gone;
use crate::status;

/// The annotation of a Job with the time that it is for.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// More missed times than this are worth a warning.
const MANY: usize = 100;

pub(crate) struct Controller {
    cluster: Cluster,
    voice: Voice,
    /// Uids of Jobs that were made and that the watch hasn't told of yet.
    made: Mutex<HashMap<String, Instant>>,
}

/// The times that are due at some moment.
#[derive(Debug, Default, PartialEq)]
struct Due {
    /// The latest that has come.
    latest: Option<Timestamp>,
    /// How many have come since the last Job; one more than [`MANY`] stands for all above.
    missed: usize,
    next: Option<Timestamp>,
}

impl controller::Controller for Controller {
    type Item = Key;
    const NAME: &'static str = "cronjob-controller";

    fn new(setup: &Setup<'_>) -> Self {
        Self { cluster: setup.cluster.clone(), voice: setup.voice.clone(), made: Mutex::default() }
    }

    fn listen(self: &Arc<Self>, _: &Setup<'_>, queue: &Queue<Key>) {
        controller::each(&self.cluster.cron_jobs, queue);
        let this = Arc::clone(self);
        self.cluster.jobs.on_change(move |change| {
            let uid = change.new.or(change.old).and_then(|job| job.metadata.uid.clone());
            this.made.lock().unwrap_or_else(PoisonError::into_inner).remove(&uid.unwrap_or_default());
        });
        controller::controllers_of(&self.cluster.jobs, "CronJob", queue);
    }

    async fn reconcile(&self, key: Key) -> Result<Again, kube::Error> {
        let Some(cron) = self.cluster.cron_jobs.get(&key) else { return Ok(None) };
        let mut jobs = self.cluster.jobs.list_in(&key.namespace, |job| is_controlled_by(&job.metadata, &*cron));
        jobs.sort_by_key(|job| {
            (job.status.as_ref().and_then(|status| status.start_time.clone()).map(|at| at.0), job.name_any())
        });
        let mut status = cron.status.clone().unwrap_or_default();
        self.account(&cron, &jobs, &mut status);
        let outcome = self.run_due(&cron, &key, &jobs, &mut status).await;
        status::write(&self.cluster.client, &self.cluster.cron_jobs, &*cron, cron.status.as_ref(), &status).await?;
        let again = outcome?;
        self.prune(&cron, &key, &jobs).await?;
        Ok(again)
    }
}

impl Controller {
    /// Brings the list of active Jobs up to date.
    fn account(&self, cron: &CronJob, jobs: &[Arc<Job>], status: &mut CronJobStatus) {
        let mut active = status.active.take().unwrap_or_default();
        for job in jobs {
            let known = active.iter().position(|reference| reference.uid == job.metadata.uid);
            match (known, finish(job)) {
                (None, None) => {
                    let text = format!("Saw a job that the controller did not create or forgot: {}", job.name_any());
                    self.voice.warning(cron, "UnexpectedJob", text);
                }
                (Some(index), Some((type_, at))) => {
                    active.remove(index);
                    let text = format!("Saw completed job: {}, condition: {type_}", job.name_any());
                    self.voice.normal(cron, "SawCompletedJob", text);
                    if type_ == "Complete" && at > status.last_successful_time.as_ref().map(|at| at.0) {
                        status.last_successful_time = at.map(Time);
                    }
                }
                _ => {}
            }
        }
        active.retain(|reference| {
            let there = jobs.iter().any(|job| job.metadata.uid == reference.uid)
                || reference.uid.as_ref().is_some_and(|uid| self.is_awaited(uid));
            if !there {
                let text = format!("Active job went missing: {}", reference.name.as_deref().unwrap_or_default());
                self.voice.normal(cron, "MissingJob", text);
            }
            there
        });
        status.active = Some(active).filter(|active| !active.is_empty());
    }

    /// Whether a Job was made a moment ago, and the watch hasn't told of it yet.
    fn is_awaited(&self, uid: &str) -> bool {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.retain(|_, at| at.elapsed() < FORGET_AFTER);
        made.contains_key(uid)
    }

    /// Makes the Job that is due. When to look again.
    async fn run_due(
        &self,
        cron: &Arc<CronJob>,
        key: &Key,
        jobs: &[Arc<Job>],
        status: &mut CronJobStatus,
    ) -> Result<Again, kube::Error> {
        let spec = cron.spec.clone().unwrap_or_default();
        if cron.metadata.deletion_timestamp.is_some() || spec.suspend == Some(true) {
            return Ok(None);
        }
        let Some((schedule, zone)) = self.when(cron, &spec) else { return Ok(None) };
        let now = Timestamp::now();
        let due = due(&schedule, &zone, &since(cron, &spec, status, now), now);
        let again = due.next.map(|next| until(next, now) + Duration::from_millis(100));
        let Some(time) = due.latest else { return Ok(again) };
        if due.missed > MANY {
            let text = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            self.voice.warning(&**cron, "TooManyMissedTimes", text.to_owned());
        }
        let deadline = spec.starting_deadline_seconds.map(SignedDuration::from_secs);
        if deadline.is_some_and(|deadline| now.duration_since(time) > deadline) {
            let text = format!("Missed scheduled time to start a job: {}", time.strftime("%a, %d %b %Y %H:%M:%S %z"));
            self.voice.warning(&**cron, "MissSchedule", text);
            return Ok(again);
        }
        let name = format!("{}-{}", key.name, time.as_second().div_euclid(60));
        let active = status.active.clone().unwrap_or_default();
        if active.iter().any(|job| job.name.as_ref() == Some(&name))
            || status.last_schedule_time.as_ref().is_some_and(|last| last.0 >= time)
        {
            return Ok(again);
        }
        match spec.concurrency_policy.as_deref() {
            Some("Forbid") if !active.is_empty() => {
                let text = "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.voice.normal(&**cron, "JobAlreadyActive", text.to_owned());
                return Ok(again);
            }
            Some("Replace") => {
                for reference in &active {
                    if let Some(job) = jobs.iter().find(|job| job.metadata.uid == reference.uid) {
                        self.delete(cron, job).await?;
                    }
                }
                status.active = None;
            }
            _ => {}
        }
        let api: Api<Job> = Api::namespaced(self.cluster.client.clone(), &key.namespace);
        let job = match api.create(&PostParams::default(), &job(cron, &spec, &name, time, &zone)).await {
            Ok(job) => {
                self.voice.normal(&**cron, "SuccessfulCreate", format!("Created job {name}"));
                job
            }
            Err(kube::Error::Api(refusal)) if refusal.code == 409 => {
                // Made before the last word reached the status, or somebody else's.
                match api.get_opt(&name).await? {
                    Some(job) if is_controlled_by(&job.metadata, &**cron) => job,
                    _ => {
                        let text = format!("Error creating job: {}", refusal.message);
                        self.voice.warning(&**cron, "FailedCreate", text);
                        return Ok(again);
                    }
                }
            }
            Err(kube::Error::Api(refusal)) if is_terminating(&refusal) => return Ok(None),
            Err(error) => {
                self.voice.warning(&**cron, "FailedCreate", format!("Error creating job: {}", message(&error)));
                return Err(error);
            }
        };
        if finish(&job).is_none() {
            let reference =
                ObjectReference { resource_version: job.metadata.resource_version.clone(), ..job.object_ref(&()) };
            if self.cluster.jobs.get(&Key::of(&job)).is_none() {
                let uid = job.metadata.uid.clone().unwrap_or_default();
                self.made.lock().unwrap_or_else(PoisonError::into_inner).insert(uid, Instant::now());
            }
            status.active.get_or_insert_default().push(reference);
        }
        status.last_schedule_time = Some(Time(time));
        Ok(again)
    }

    /// Schedule and time zone; says what is wrong with them.
    fn when(&self, cron: &CronJob, spec: &CronJobSpec) -> Option<(Schedule, TimeZone)> {
        let zone = match spec.time_zone.as_deref() {
            None => TimeZone::UTC,
            Some(name) => {
                if let Some(zone) = schedule::zone(name) {
                    zone
                } else {
                    let text = format!("invalid timeZone: {name:?}: unknown time zone {name}");
                    self.voice.warning(cron, "UnknownTimeZone", text);
                    return None;
                }
            }
        };
        match Schedule::parse(&spec.schedule) {
            Ok(schedule) => Some((schedule, zone)),
            Err(why) => {
                let text = format!("unparseable schedule: {:?} : {why}", spec.schedule);
                self.voice.warning(cron, "UnparseableSchedule", text);
                None
            }
        }
    }

    /// Removes the oldest finished Jobs beyond the limits.
    async fn prune(&self, cron: &CronJob, key: &Key, jobs: &[Arc<Job>]) -> Result<(), kube::Error> {
        let spec = cron.spec.clone().unwrap_or_default();
        let limits = [("Complete", spec.successful_jobs_history_limit), ("Failed", spec.failed_jobs_history_limit)];
        for (type_, limit) in limits {
            let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) else { continue };
            let finished: Vec<_> = jobs
                .iter()
                .filter(|job| job.metadata.deletion_timestamp.is_none())
                .filter(|job| finish(job).is_some_and(|(known, _)| known == type_))
                .collect();
            for job in &finished[..finished.len().saturating_sub(limit)] {
                debug_assert_eq!(job.metadata.namespace.as_deref(), Some(key.namespace.as_str()));
                self.delete(cron, job).await?;
            }
        }
        Ok(())
    }

    async fn delete(&self, cron: &CronJob, job: &Job) -> Result<(), kube::Error> {
        let api: Api<Job> =
            Api::namespaced(self.cluster.client.clone(), job.metadata.namespace.as_deref().unwrap_or_default());
        let preconditions = Preconditions { uid: job.metadata.uid.clone(), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
        tolerate_gone(api.delete(&job.name_any(), &params).await.map(|_| ()))?;
        self.voice.normal(cron, "SuccessfulDelete", format!("Deleted job {}", job.name_any()));
        Ok(())
    }
}

/// From when on times count: the last that led to a Job, the CronJob's making, and no earlier than may still be started.
fn since(cron: &CronJob, spec: &CronJobSpec, status: &CronJobStatus, now: Timestamp) -> Timestamp {
    let made = cron.metadata.creation_timestamp.as_ref().map_or(now, |at| at.0);
    let last = status.last_schedule_time.as_ref().map_or(made, |at| at.0);
    let earliest =
        spec.starting_deadline_seconds.and_then(|seconds| now.checked_sub(SignedDuration::from_secs(seconds)).ok());
    earliest.map_or(last, |earliest| earliest.max(last))
}

/// The times after `since` that have come by `now`.
fn due(schedule: &Schedule, zone: &TimeZone, since: &Timestamp, now: Timestamp) -> Due {
    let mut due = Due::default();
    let mut time = *since;
    while let Some(next) = schedule.next(time, zone) {
        if next > now {
            due.next = Some(next);
            return due;
        }
        (due.latest, due.missed, time) = (Some(next), due.missed + 1, next);
        if due.missed > MANY {
            // However many more there are: the latest is found from the end.
            let mut back = SignedDuration::from_secs(60);
            while let Ok(from) = now.checked_sub(back) {
                if from <= time {
                    break;
                }
                if schedule.next(from, zone).is_some_and(|next| next <= now) {
                    time = from;
                    break;
                }
                back = back.saturating_mul(2);
            }
            while let Some(next) = schedule.next(time, zone) {
                if next > now {
                    due.next = Some(next);
                    break;
                }
                (due.latest, time) = (Some(next), next);
            }
            return due;
        }
    }
    due
}

fn until(time: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(time.duration_since(now)).unwrap_or_default()
}

/// How and when a Job finished.
fn finish(job: &Job) -> Option<(&str, Option<Timestamp>)> {
    let status = job.status.as_ref()?;
    let over = status.conditions.iter().flatten().find(|condition| {
        (condition.type_ == "Complete" || condition.type_ == "Failed") && condition.status == "True"
    })?;
    Some((over.type_.as_str(), status.completion_time.as_ref().map(|at| at.0)))
}

fn job(cron: &CronJob, spec: &CronJobSpec, name: &str, time: Timestamp, zone: &TimeZone) -> Job {
    let meta = spec.job_template.metadata.clone().unwrap_or_default();
    let mut annotations: BTreeMap<String, String> = meta.annotations.unwrap_or_default();
    let text = time.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string();
    annotations.insert(SCHEDULED.to_owned(), text.replace("+00:00", "Z"));
    Job {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: cron.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![ownership::reference(cron)]),
            ..ObjectMeta::default()
        },
        spec: spec.job_template.spec.clone(),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn of(schedule: &str, since: &str, now: &str) -> Due {
        due(&Schedule::parse(schedule).unwrap(), &TimeZone::UTC, &at(since), at(now))
    }

    #[test]
    fn the_latest_missed_time_is_due_once() {
        let due = of("0 * * * *", "2026-01-01T00:00:00Z", "2026-01-01T03:30:00Z");
        assert_eq!((due.latest, due.missed), (Some(at("2026-01-01T03:00:00Z")), 3));
        assert_eq!(due.next, Some(at("2026-01-01T04:00:00Z")));
        assert_eq!(of("0 * * * *", "2026-01-01T03:00:00Z", "2026-01-01T03:30:00Z").latest, None);
    }

    #[test]
    fn years_of_missed_times_are_not_counted_one_by_one() {
        let due = of("* * * * *", "2000-01-01T00:00:00Z", "2026-01-01T03:30:30Z");
        assert_eq!((due.latest, due.missed), (Some(at("2026-01-01T03:30:00Z")), MANY + 1));
        let due = of("0 0 1 * *", "2000-01-01T00:00:00Z", "2026-01-15T00:00:00Z");
        assert_eq!(due.latest, Some(at("2026-01-01T00:00:00Z")));
        assert_eq!(due.next, Some(at("2026-02-01T00:00:00Z")));
    }

    #[test]
    fn times_beyond_the_deadline_or_before_the_making_do_not_count() {
        let now = at("2026-01-01T03:30:00Z");
        let cron: CronJob = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "c", "creationTimestamp": "2026-01-01T01:30:00Z"}
        }))
        .unwrap();
        let mut spec = CronJobSpec::default();
        let status = CronJobStatus::default();
        assert_eq!(since(&cron, &spec, &status, now), at("2026-01-01T01:30:00Z"));
        spec.starting_deadline_seconds = Some(60);
        assert_eq!(since(&cron, &spec, &status, now), at("2026-01-01T03:29:00Z"));
    }
}
