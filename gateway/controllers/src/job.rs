//! The Job controller: pods that run to their end, as many as were asked for, each counted exactly once.
//!
//! A pod of a Job carries a finalizer until it is counted, so that it can't vanish uncounted. Counting takes three steps
//! that may be cut off anywhere: its uid is noted in the status ([`accounting`]), the finalizer goes, the note becomes a
//! count. What is to be made or stopped follows from the pods and the status alone ([`scale`]), and so does whether the
//! Job is over ([`verdict`]).

mod accounting;
mod freed;
mod indexes;
mod orphans;
mod policy;
mod scale;
mod tally;
pub(crate) mod ttl;
mod verdict;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, PostParams};

use self::freed::Freed;
use self::tally::Tally;
use self::verdict::{End, FAILURE_TARGET, SUCCESS_CRITERIA_MET};
use crate::cluster::Cluster;
use crate::controller::Setup;
use crate::events::Voice;
use crate::informer::Key;
use crate::ownership::{self, Selector, controller_of, is_controlled_by};
use crate::pod_control::{self, Expectations, is_active};
use crate::queue::{Again, Queue};

/// On pods that are not counted yet.
const TRACKING: &str = "batch.kubernetes.io/job-tracking";
const MANAGER: &str = "kubernetes.io/job-controller";
const COMPLETE: &str = "Complete";
const FAILED: &str = "Failed";
const SUSPENDED: &str = "Suspended";

pub(crate) struct Controller {
    cluster: Cluster,
    voice: Voice,
    expected: Expectations,
    freed: Freed,
}

/// What is looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Item {
    Job(Key),
    /// A pod that has a Job's finalizer, and perhaps no Job.
    Orphan(Key),
}

impl crate::controller::Controller for Controller {
    type Item = Item;
    const NAME: &'static str = "job-controller";

    fn new(setup: &Setup<'_>) -> Self {
        Self {
            cluster: setup.cluster.clone(),
            voice: setup.voice.clone(),
            expected: Expectations::default(),
            freed: Freed::default(),
        }
    }

    fn listen(self: &Arc<Self>, _: &Setup<'_>, queue: &Queue<Item>) {
        let (items, pods) = (queue.clone(), self.cluster.pods.clone());
        self.cluster.jobs.on_change(move |change| {
            if let Some(job) = change.new.or(change.old) {
                items.add(Item::Job(Key::of(&**job)));
            }
            if let (Some(job), None) = (change.old, change.new) {
                let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
                let own = pods.list_in(namespace, |pod| is_controlled_by(&pod.metadata, &**job));
                for pod in &own {
                    items.add(Item::Orphan(Key::of(&**pod)));
                }
            }
        });
        let (watching, items) = (Arc::clone(self), queue.clone());
        self.cluster.pods.on_change(move |change| {
            watching.pod_changed(change.old.map(|pod| &**pod), change.new.map(|pod| &**pod), &items);
        });
    }

    async fn reconcile(&self, item: Item) -> Result<Again, kube::Error> {
        match item {
            Item::Job(key) => self.step(key).await,
            Item::Orphan(key) => self.free_orphan(key).await,
        }
    }
}

impl Controller {
    /// Finds out whose pod it is.
    fn pod_changed(&self, old: Option<&Pod>, new: Option<&Pod>, items: &Queue<Item>) {
        self.freed.observe(old, new);
        for pod in [old, new].into_iter().flatten() {
            if let Some(owner) = controller_of(&pod.metadata).filter(|owner| owner.kind == "Job") {
                let key = Key::new(pod.metadata.namespace.clone().unwrap_or_default(), &owner.name);
                self.expected.observe(&key, old, new);
                items.add(Item::Job(key));
            }
        }
        let Some(pod) = new else { return };
        let controller = controller_of(&pod.metadata);
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let has_job =
            controller.is_some_and(|owner| self.cluster.jobs.get(&Key::new(namespace, &owner.name)).is_some());
        if tally::is_tracked(pod) && !has_job {
            items.add(Item::Orphan(Key::of(pod)));
        }
        if controller.is_none() && is_active(pod) {
            let could_adopt = self.cluster.jobs.list_in(namespace, |job| selector(job).matches(&pod.metadata));
            for job in &could_adopt {
                items.add(Item::Job(Key::of(&**job)));
            }
        }
    }

    async fn step(&self, key: Key) -> Result<Again, kube::Error> {
        let Some(job) = self.cluster.jobs.get(&key) else {
            self.expected.forget(&key);
            return Ok(None);
        };
        if job.spec.as_ref().and_then(|spec| spec.managed_by.as_deref()).is_some_and(|manager| manager != MANAGER) {
            return Ok(None);
        }
        let unseen = self.expected.unseen(&key, &self.cluster.pods);
        let pods = self.claim(&job, &key).await?;
        let unseen = pod_control::still_unseen(&unseen, &pods);
        if finished(&job).is_some() {
            return self.untrack(&pods).await.map(|_| None);
        }
        let now = Timestamp::now();
        let deleted: Vec<bool> = pods.iter().map(|pod| self.expected.is_deleted(&key, pod)).collect();
        let mut tally = Tally::of(&job, &pods, &deleted);
        tally.unseen = unseen;
        let mut status = job.status.clone().unwrap_or_default();
        let suspended = is_suspended(&job);
        let ending = job.metadata.deletion_timestamp.is_some();
        if status.start_time.is_none() && !suspended {
            status.start_time = Some(Time(now));
        }
        let mut end = verdict::already(&status).or_else(|| verdict::of(&job, &tally, &status, now));
        let mut again = verdict::deadline(&job, &status, now).filter(|_| !suspended);
        let mut failure = Ok(());
        if end.is_some() {
            failure = self.stop(&job, &key, &tally.active.clone(), true, &mut tally).await;
        } else if unseen == 0 && !ending {
            match self.scale(&job, &key, &mut tally, now).await {
                Ok(wait) => again = sooner(again, wait),
                Err(error) => failure = Err(error),
            }
            if failure.is_ok() && verdict::is_complete(&job, &tally) {
                end = Some(End::completed());
            } else {
                self.say_suspended(&job, &mut status, suspended, now);
            }
        }
        if unseen > 0 {
            // A pod that came and went before the API's answer arrived is expected in vain, and no watch tells so.
            again = sooner(again, Some(pod_control::FORGET_AFTER));
        }
        self.settle(&job, &pods, &tally, status, end, now).await?;
        failure.map(|()| again)
    }

    /// The Job's own pods, with orphans that match adopted and pods that no longer match let go.
    async fn claim(&self, job: &Job, key: &Key) -> Result<Vec<Arc<Pod>>, kube::Error> {
        let selector = selector(job);
        let ending = job.metadata.deletion_timestamp.is_some();
        let mut own = Vec::new();
        for pod in self.cluster.pods.list_in(&key.namespace, |_| true) {
            let matches = selector.matches(&pod.metadata);
            if is_controlled_by(&pod.metadata, job) {
                if matches || ending {
                    own.push(self.freed.shown(pod));
                } else {
                    ownership::release(&self.cluster.client, job, &*pod, Some(TRACKING)).await?;
                }
            } else if matches
                && !ending
                && finished(job).is_none()
                && controller_of(&pod.metadata).is_none()
                && is_active(&pod)
            {
                // It counts from when the watch shows it as adopted.
                ownership::adopt(&self.cluster.client, job, &*pod, Some(TRACKING)).await?;
            }
        }
        own.sort_by_key(|pod| (pod.metadata.creation_timestamp.clone().map(|time| time.0), pod.metadata.name.clone()));
        Ok(own)
    }

    fn say_suspended(&self, job: &Job, status: &mut JobStatus, suspended: bool, now: Timestamp) {
        if suspended {
            if set_condition(status, SUSPENDED, true, "JobSuspended", "Job suspended", now) {
                self.voice.normal(job, "Suspended", "Job suspended".to_owned());
            }
        } else if set_condition(status, SUSPENDED, false, "JobResumed", "Job resumed", now) {
            self.voice.normal(job, "Resumed", "Job resumed".to_owned());
            // The deadline counts from here.
            status.start_time = Some(Time(now));
        }
    }

    /// Writes the status, of the very Job that was looked at, and gives the Job as it is then.
    async fn write(&self, job: &Job, status: &JobStatus) -> Result<Job, kube::Error> {
        let api: Api<Job> =
            Api::namespaced(self.cluster.client.clone(), job.metadata.namespace.as_deref().unwrap_or_default());
        let whole = Job { status: Some(status.clone()), ..job.clone() };
        let job = api
            .replace_status(job.metadata.name.as_deref().unwrap_or_default(), &PostParams::default(), &whole)
            .await?;
        self.cluster.jobs.learn(job.clone());
        Ok(job)
    }
}

fn sooner(one: Again, other: Again) -> Again {
    one.into_iter().chain(other).min()
}

fn passed(since: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or_default()
}

fn selector(job: &Job) -> Selector {
    Selector::read(job.spec.as_ref().and_then(|spec| spec.selector.as_ref()))
}

fn is_suspended(job: &Job) -> bool {
    job.spec.as_ref().and_then(|spec| spec.suspend) == Some(true)
}

/// The condition that says that it is over.
fn finished(job: &Job) -> Option<&JobCondition> {
    [COMPLETE, FAILED].iter().find_map(|type_| condition(job.status.as_ref()?, type_))
}

/// A condition that holds.
fn condition<'a>(status: &'a JobStatus, type_: &str) -> Option<&'a JobCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == type_ && condition.status == "True")
}

/// Sets a condition; whether that changed something. One that was never said needn't be denied.
fn set_condition(
    status: &mut JobStatus,
    type_: &str,
    holds: bool,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> bool {
    let value = if holds { "True" } else { "False" };
    let conditions = status.conditions.get_or_insert_default();
    let known = conditions.iter_mut().find(|condition| condition.type_ == type_);
    if known.as_ref().map_or(!holds, |known| known.status == value) {
        return false;
    }
    let condition = JobCondition {
        type_: type_.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    };
    match known {
        Some(known) => *known = condition,
        None => conditions.push(condition),
    }
    true
}
