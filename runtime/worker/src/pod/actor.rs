//! One pod's life: a task that owns the pod's state, hears of everything that happens to it, and decides what follows.
//!
//! Slow work (pulling, starting, stopping, writing the status) runs in tasks that report back as [`Done`]; the actor
//! itself never waits for anything but the next thing to happen. After each it *reconciles*: compares what is with what
//! the spec wants and starts the work that is missing.
//!
//! A panic, of the actor or of one of its tasks, is the end of this actor and not of the pod: another one takes the pod up as
//! after a restart of the process (`anew.rs`).

use super::anew::anew;
use super::backoff::Backoff;
use super::plan::{Outcome, Progress, Step, plan};
use super::prepare::{Prepared, Sandbox, prepare};
use super::record::{Record, Role, State};
use super::resize::{self, Resize};
use super::start::{Start, StartFailure, StartedContainer, start};
use super::stop::Stopping;
use super::storage::Storage;
use super::writer::Writer;
use super::{Message, PodHandle, PodView};
use crate::admission::Refusal;
use crate::container::resources::is_sidecar;
use crate::container::{sysctls, system};
use crate::context::Context;
use crate::events::{About, Severity};
use crate::metrics::StartLatency;
use crate::node;
use crate::observer::ObservedContainer;
use crate::users;
use crate::volumes::{MountedVolume, VolumeError, Volumes};
use carob_sandbox::{ContainerId, Exit, RecoveredPod};
use futures::future::{BoxFuture, Shared};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// What a task of the actor's has finished.
pub(super) enum Done {
    Prepared(Prepared),
    Started(usize, Result<Box<StartedContainer>, StartFailure>),
    PostStart(usize, String, Result<(), String>),
    Stopped(usize),
    Patched(u64, Result<Box<Pod>, kube::Error>),
    Refreshed(Result<Volumes, VolumeError>),
    /// The cgroups of these containers have (or don't have) what was allocated.
    Resized(resize::Outcome),
    /// Which limit of its writing the pod exceeds, and how long it took to find out.
    Measured(Option<String>, Duration),
    /// A container's end is settled: billed, persisted, removed.
    Settled,
    /// A sandbox that is of no use any more is removed.
    SandboxRemoved,
    CleanedUp,
    Deleted(Result<(), kube::Error>),
}

/// What the actor does for one container, beside what is known of it (its [`Record`]).
#[derive(Default)]
pub(super) struct Control {
    pub starting: bool,
    pub live: Option<Live>,
    /// Not before.
    pub retry_at: Option<Instant>,
    /// What to show from a moment on, while a back-off lasts.
    pub shows_later: Option<(Instant, State)>,
    pub crash: Backoff,
    pub pull: Backoff,
    /// Why its postStart hook failed, until it has been stopped for that.
    pub hook_error: Option<String>,
    /// A stop task is under way.
    pub stopping: bool,
    /// Killed by a probe or a changed spec: its end doesn't count against the pod.
    pub restart_wanted: bool,
    /// The deadline of a stop that `restart` has begun; the pod's own end may bring it closer.
    pub restart_deadline: Option<watch::Sender<Instant>>,
}

/// Done when the observer has heard.
pub(super) type Noted = Shared<BoxFuture<'static, ()>>;

/// A running container.
pub(super) struct Live {
    pub id: ContainerId,
    pub observed: Arc<ObservedContainer>,
    /// The observer's `started`, still under way perhaps.
    pub noted: Noted,
    pub paths: crate::container::build::ContainerPaths,
    pub stop_signal: i32,
    /// Cancelled when the container has ended.
    pub ended: CancellationToken,
    pub probes: JoinSet<()>,
}

/// How far the pod's end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Life {
    Living,
    /// Nothing runs and nothing will; the final status is being written.
    Over,
    /// Sandbox, network and volumes are being removed.
    CleaningUp,
    /// All is removed; the object may stay until somebody deletes it.
    Cleaned,
    /// The API has been asked to remove the object.
    Deleting,
}

#[expect(clippy::struct_excessive_bools, reason = "each is an independent fact about the pod")]
pub(super) struct Actor {
    pub ctx: Arc<Context>,
    pub pod: Arc<Pod>,
    pub uid: String,
    pub namespace: String,
    pub name: String,
    /// Init containers in the spec's order, then mains, then ephemeral ones in the order in which they came.
    pub records: Vec<Record>,
    /// `spec.ephemeralContainers` as containers, in the order of their records.
    pub ephemeral: Vec<Container>,
    pub controls: Vec<Control>,
    pub sandbox: Option<Sandbox>,
    /// Users of its own, which it didn't ask for, were not enough for it.
    pub host_users: bool,
    /// `None` until all are filled.
    pub volumes: Option<Arc<HashMap<String, MountedVolume>>>,
    pub preparing: bool,
    pub prepare_retry: Option<(Instant, Duration)>,
    pub refresh_at: Option<Instant>,
    pub refreshing: bool,
    pub volumes_changed: bool,
    pub tasks: JoinSet<Done>,
    pub sender: mpsc::UnboundedSender<Message>,
    pub view: watch::Sender<PodView>,
    pub writer: Writer,
    pub stopping: Option<Stopping>,
    pub start_time: Timestamp,
    /// Reason and message of a pod that was refused or has run out of time.
    pub verdict: Option<(&'static str, String)>,
    pub life: Life,
    pub gone: bool,
    pub cancel: CancellationToken,
    /// Ends that came before the start's own answer.
    pub early_exits: Vec<Exit>,
    pub settling: usize,
    pub cleaning: bool,
    pub latency: StartLatency,
    pub delete_retry: Option<Instant>,
    pub resize: Resize,
    pub storage: Storage,
}

/// Starts the pod's actor. `recovered` is what the sandbox had of it when this process began.
pub(crate) fn spawn(ctx: &Arc<Context>, pod: Pod, recovered: Option<RecoveredPod>) {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let (sender, mailbox) = mpsc::unbounded_channel();
    let (view, view_receiver) = watch::channel(PodView::default());
    let latency = StartLatency::begin();
    ctx.pods.insert(&uid, PodHandle { sender: sender.clone(), view: view_receiver, latency: latency.clone() });
    tokio::spawn(live(ctx.clone(), pod, recovered, mailbox, Outside { sender, view, latency }));
}

/// What of an actor others know, and the next one keeps.
#[derive(Clone)]
struct Outside {
    sender: mpsc::UnboundedSender<Message>,
    view: watch::Sender<PodView>,
    latency: StartLatency,
}

/// The pod's life, with as many actors as that takes.
async fn live(
    ctx: Arc<Context>,
    mut pod: Pod,
    mut recovered: Option<RecoveredPod>,
    mut mailbox: mpsc::UnboundedReceiver<Message>,
    outside: Outside,
) {
    let mut backoff = Backoff::default();
    loop {
        let mut actor = None;
        let life = carob_keep::caught(async {
            let actor = actor.insert(make(&ctx, pod.clone(), outside.clone()));
            actor.begin(recovered.take()).await;
            actor.run(&mut mailbox).await;
        });
        let Err(mut panic) = life.await else { return };
        if let Some(mut actor) = actor {
            // None of them may ask the spawner for anything any more.
            actor.tasks.shutdown().await;
        }
        (pod, recovered) = loop {
            let Pod { metadata: ObjectMeta { name, namespace, uid, .. }, .. } = &pod;
            tracing::error!(namespace, name, uid, %panic, "the care of a pod panicked: it begins anew");
            ctx.metrics.panicked();
            match carob_keep::caught(anew(&ctx, &pod, &mut mailbox, &outside.sender, &mut backoff)).await {
                Ok(known) => break known,
                Err(another) => panic = another,
            }
        };
    }
}

fn make(ctx: &Arc<Context>, pod: Pod, Outside { sender, view, latency }: Outside) -> Actor {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let status = pod.status.as_ref();
    let start_time = status.and_then(|status| status.start_time.as_ref()).map_or_else(Timestamp::now, |time| time.0);
    let mut actor = Actor {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        records: Vec::new(),
        ephemeral: Vec::new(),
        controls: Vec::new(),
        sandbox: None,
        host_users: false,
        volumes: None,
        preparing: false,
        prepare_retry: None,
        refresh_at: None,
        refreshing: false,
        volumes_changed: false,
        tasks: JoinSet::new(),
        sender,
        view,
        writer: Writer::default(),
        stopping: None,
        start_time,
        verdict: None,
        life: Life::Living,
        gone: false,
        cancel: CancellationToken::new(),
        early_exits: Vec::new(),
        settling: 0,
        cleaning: false,
        latency,
        delete_retry: None,
        resize: Resize::new(pod.spec.as_ref().and_then(|spec| spec.resources.as_ref())),
        storage: Storage::default(),
        ctx: ctx.clone(),
        pod: Arc::new(pod),
        uid,
    };
    actor.records = initial_records(actor.spec());
    actor.controls = actor.records.iter().map(|_| Control::default()).collect();
    actor.take_up_ephemeral();
    actor
}

fn initial_records(spec: &PodSpec) -> Vec<Record> {
    let image = |container: &Container| container.image.clone().unwrap_or_default();
    let record = |container: &Container, role| {
        let resources = container.resources.clone().unwrap_or_default();
        let new = Record::new(&container.name, &image(container), role);
        Record { allocated: resources.clone(), actuated: resources, ..new }
    };
    let init = spec.init_containers.iter().flatten().map(|container| {
        let role = if is_sidecar(container) { Role::Sidecar } else { Role::Init };
        record(container, role)
    });
    let main = spec.containers.iter().map(|container| record(container, Role::Main));
    init.chain(main).collect()
}

impl Actor {
    pub fn spec(&self) -> &PodSpec {
        static EMPTY: std::sync::OnceLock<PodSpec> = std::sync::OnceLock::new();
        self.pod.spec.as_ref().unwrap_or_else(|| EMPTY.get_or_init(PodSpec::default))
    }

    /// The container's spec, by its place in the records.
    pub fn container(&self, index: usize) -> &Container {
        let spec = self.spec();
        let init = spec.init_containers.as_deref().unwrap_or_default();
        let lists = [init, &spec.containers, &self.ephemeral];
        let mut place = index;
        for list in lists {
            match list.get(place) {
                Some(container) => return container,
                None => place -= list.len(),
            }
        }
        unreachable!("a record for each container and no other")
    }

    /// Takes up a pod: fresh, found again after a restart of this process, or ended long ago.
    async fn begin(&mut self, recovered: Option<RecoveredPod>) {
        let ended = self.pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let ended = matches!(ended, Some("Succeeded" | "Failed"));
        let known = recovered.is_some();
        self.restore(recovered);
        if ended && self.controls.iter().all(|control| control.live.is_none()) {
            // Only what may be left of it on disk has to go.
            self.life = Life::Over;
            self.writer.pretend_written();
            return;
        }
        if known || self.deletion_requested() {
            let allocated = self.allocated_pod();
            self.ctx.admission.readmit(&self.uid, allocated.spec.as_ref().unwrap_or(self.spec()));
            self.resize.restore(&self.pod);
            self.ctx.claims.adopt(&self.pod);
        } else if let Err(refusal) = self.admit().await {
            let about = About::pod(&self.pod);
            self.ctx.events.record(about, Severity::Warning, refusal.reason, refusal.message.clone());
            self.verdict = Some((refusal.reason, format!("Pod was rejected: {}", refusal.message)));
            self.writer.mark_now();
            return;
        }
        let keys = crate::objects::of_volumes(&self.namespace, self.spec());
        self.ctx.interests.add(&self.uid, keys, |key, stop| crate::objects::watch(&self.ctx, key, stop));
        // Usually the pod runs before this is due, and Pending is never written.
        self.writer.mark_later(Duration::from_millis(250));
    }

    /// Whether this node takes the pod.
    async fn admit(&self) -> Result<(), Refusal> {
        let spec = self.spec();
        let forbidden = sysctls::forbidden(spec, &self.ctx.settings.allowed_unsafe_sysctls);
        let forbidden = forbidden.map(|message| Refusal { reason: "SysctlForbidden", message });
        match forbidden.or_else(|| self.ctx.pressure.refuse(spec)).or_else(|| system::refuse(&self.pod)) {
            Some(refusal) => return Err(refusal),
            None => self.ctx.admission.admit(&self.uid, spec)?,
        }
        if !node::is_chosen(&self.ctx, spec).await {
            self.ctx.admission.release(&self.uid);
            let message = "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector".to_owned();
            return Err(Refusal { reason: "NodeAffinity", message });
        }
        if node::sends_away(&self.ctx, spec) {
            self.ctx.admission.release(&self.uid);
            let message =
                "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate".to_owned();
            return Err(Refusal { reason: "TaintToleration", message });
        }
        Ok(())
    }

    async fn run(&mut self, mailbox: &mut mpsc::UnboundedReceiver<Message>) {
        loop {
            self.reconcile();
            if self.gone && self.life == Life::Cleaned {
                break;
            }
            let wake = self.next_wake();
            let timer = async {
                match wake {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                message = mailbox.recv() => {
                    if let Some(message) = message {
                        self.hear(message);
                    }
                }
                Some(joined) = self.tasks.join_next(), if !self.tasks.is_empty() => self.joined(joined),
                () = timer => {}
            }
            // What has happened at the same time becomes one status.
            while let Ok(message) = mailbox.try_recv() {
                self.hear(message);
            }
            while let Some(joined) = self.tasks.try_join_next() {
                self.joined(joined);
            }
        }
        let logs = self.ctx.dirs.pod_logs(&self.namespace, &self.name, &self.uid);
        remove_tree(&logs).await;
        self.ctx.pods.remove(&self.uid);
        tracing::debug!(pod = self.name, namespace = self.namespace, uid = self.uid, "the pod is gone");
    }

    /// When to look again if nothing happens. Only what the next reconciliation will act on counts, or the loop would spin.
    fn next_wake(&self) -> Option<Instant> {
        let always = [self.writer.due(), self.delete_retry];
        if self.life != Life::Living {
            return always.into_iter().flatten().min();
        }
        let controls = self.controls.iter().flat_map(|control| {
            [control.retry_at, control.shows_later.as_ref().map(|(at, _)| *at)].into_iter().flatten()
        });
        let running = self.stopping.is_none();
        let prepare = self.prepare_retry.filter(|_| running && !self.preparing).map(|(at, _)| at);
        let refresh = self.refresh_at.filter(|_| running && !self.refreshing && self.sandbox.is_some());
        let deadline = self.deadline().map(|left| Instant::now() + left);
        let resize = self.resize.wake().filter(|_| running);
        let storage = self.storage.wake().filter(|_| running);
        let own = [prepare, refresh, deadline, resize, storage].into_iter().flatten();
        controls.chain(own).chain(always.into_iter().flatten()).min()
    }

    /// What is left of `activeDeadlineSeconds`.
    fn deadline(&self) -> Option<Duration> {
        if self.stopping.is_some() || self.life != Life::Living {
            return None;
        }
        let whole = jiff::SignedDuration::from_secs(self.spec().active_deadline_seconds?);
        let left = whole.saturating_sub(Timestamp::now().duration_since(self.start_time));
        Some(Duration::try_from(left).unwrap_or(Duration::ZERO))
    }

    pub fn deletion_requested(&self) -> bool {
        self.gone || self.pod.metadata.deletion_timestamp.is_some()
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::Object(pod) => self.object(pod),
            Message::Gone => {
                self.gone = true;
                self.writer.stop();
                // The scheduler counts it no more; what still runs of it is about to be killed.
                self.ctx.admission.release(&self.uid);
            }
            Message::Exit(exit) => self.exited(exit),
            Message::Probed(verdict) => self.probed(&verdict),
            Message::VolumesChanged => self.volumes_changed = true,
            Message::Show(asked) => {
                // Whoever asked may have stopped waiting.
                let _ = asked.send(self.pod.clone());
            }
            Message::Weigh(asked) => {
                // Whoever asked may have stopped waiting.
                let _ = asked.send(self.weight());
            }
            Message::Evict { message, grace } => self.evict(message, grace),
        }
    }

    /// A task that panicked has left its work half done, and nothing would ever say that it is: the actor goes the same way.
    fn joined(&mut self, joined: Result<Done, JoinError>) {
        match joined.map_err(JoinError::try_into_panic) {
            Ok(done) => self.done(done),
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            // Nobody aborts them but the end of the process.
            Err(Err(_)) => {}
        }
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Prepared(prepared) => self.prepared(prepared),
            Done::Started(index, Ok(started)) => self.started(index, *started),
            Done::Started(index, Err(failure)) => self.start_failed(index, failure),
            Done::PostStart(index, id, result) => self.post_started(index, &id, result),
            Done::Stopped(index) => self.controls[index].stopping = false,
            Done::Patched(sequence, result) => self.patched(sequence, result),
            Done::Refreshed(result) => self.refreshed(result),
            Done::Resized(outcome) => self.resized(outcome),
            Done::Measured(message, took) => self.measured(message, took),
            Done::Settled => self.settling -= 1,
            Done::SandboxRemoved => self.preparing = false,
            Done::CleanedUp => {
                self.life = Life::Cleaned;
                self.ctx.admission.release(&self.uid);
                self.ctx.claims.release(&self.uid);
            }
            Done::Deleted(result) => self.deleted(&result),
        }
    }

    /// Compares what is with what should be, and begins what is missing. Safe to call at any time.
    fn reconcile(&mut self) {
        let now = Instant::now();
        if self.life == Life::Living {
            self.show_back_offs(now);
            if self.deletion_requested() {
                self.begin_deletion();
            } else if self.verdict.is_some() && self.stopping.is_none() {
                self.begin_stop(self.grace_of_spec());
            } else if self.deadline().is_some_and(|left| left.is_zero()) {
                let message = "Pod was active on the node longer than the specified deadline".to_owned();
                let about = About::pod(&self.pod);
                self.ctx.events.record(about, Severity::Normal, "DeadlineExceeded", message.clone());
                self.verdict = Some(("DeadlineExceeded", message));
                self.begin_stop(self.grace_of_spec());
            }
            if self.stopping.is_none() {
                self.reconcile_resize(now);
                self.reconcile_storage(now);
                self.reconcile_running(now);
            }
            if self.stopping.is_some() {
                self.stop_in_order();
                if self.is_quiet() {
                    self.life = Life::Over;
                    self.writer.mark_now();
                }
            }
        }
        self.reconcile_end(now);
        self.publish_view();
        self.flush_status(now);
    }

    fn reconcile_running(&mut self, now: Instant) {
        if self.restart_all(now) {
            return;
        }
        // First of all: what has ended needs neither sandbox nor volumes.
        let step = self.plan();
        if step.over.is_some() {
            self.begin_stop(self.grace_of_spec());
            return;
        }
        let sandbox_missing = self.sandbox.is_none() || self.volumes.is_none();
        if sandbox_missing && !self.preparing && self.prepare_retry.is_none_or(|(at, _)| at <= now) {
            self.preparing = true;
            let (ctx, pod, latency) = (self.ctx.clone(), self.pod.clone(), self.latency.clone());
            let existing = self.sandbox.clone();
            let own_users = !self.host_users && users::own(self.spec(), ctx.own_users);
            self.tasks.spawn(async move { Done::Prepared(prepare(&ctx, &pod, existing, own_users, &latency).await) });
        }
        if sandbox_missing {
            return;
        }
        self.refresh_volumes(now);
        for index in step.start {
            let control = &self.controls[index];
            if control.starting || control.live.is_some() || control.retry_at.is_some_and(|at| at > now) {
                continue;
            }
            self.begin_start(index);
        }
    }

    fn plan(&self) -> Step {
        let parts: Vec<(Role, Progress)> = self
            .records
            .iter()
            .zip(&self.controls)
            .enumerate()
            .map(|(index, (record, control))| {
                let progress = if control.starting {
                    Progress::Starting
                } else {
                    match (&record.state, record.newest_end()) {
                        (State::Running { .. }, _) => Progress::Running { started: record.started },
                        _ if record.anew => Progress::New,
                        (_, Some(ended)) => {
                            Progress::Ended { success: ended.code == 0, again: self.will_run_again(index) }
                        }
                        (_, None) => Progress::New,
                    }
                };
                (record.role, progress)
            })
            .collect();
        plan(&parts)
    }

    fn begin_start(&mut self, index: usize) {
        let (Some(sandbox), Some(volumes)) = (self.sandbox.clone(), self.volumes.clone()) else { return };
        let control = &mut self.controls[index];
        (control.starting, control.retry_at, control.shows_later) = (true, None, None);
        let start_inputs = Start {
            ctx: self.ctx.clone(),
            pod: self.allocated_pod(),
            container: self.allocated_container(index),
            target: self.target(index),
            attempt: self.records[index].starts,
            sandbox,
            volumes,
            cancel: self.cancel.clone(),
            latency: self.latency.clone(),
        };
        self.tasks.spawn(async move { Done::Started(index, start(start_inputs).await.map(Box::new)) });
    }

    /// Nothing runs, is being started or prepared.
    fn is_quiet(&self) -> bool {
        !self.preparing
            && !self.refreshing
            && self.controls.iter().all(|control| !control.starting && control.live.is_none())
    }

    /// Whether the pod ended by itself, and how.
    pub(super) fn outcome(&self) -> Option<Outcome> {
        self.plan().over
    }
}

/// Removes a directory and all in it; what isn't there is no error.
pub(super) async fn remove_tree(path: &std::path::Path) {
    let owned = path.to_owned();
    let removed = tokio::task::spawn_blocking(move || carob_sandbox::remove_tree(&owned)).await;
    match removed.unwrap_or_else(|error| Err(error.into())) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "a directory could not be removed");
        }
        _ => {}
    }
}
