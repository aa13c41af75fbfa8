//! What follows from a container's start, its probes' verdicts and its end.

use super::actor::{Actor, Control, Done, Life, Live, Noted};
use super::hooks;
use super::probes::{self, Kind, Subject, Verdict};
use super::record::{CREATING, Ended, PULL_BACK_OFF, Role, State, end_reason};
use super::start::{StartFailure, StartedContainer};
use super::stop::grace;
use crate::container::build::{ContainerPaths, remove_directory};
use crate::context::Context;
use crate::events::{About, Severity};
use crate::http::cri;
use crate::observer::{ContainerEnd, ObservedContainer};
use carob_sandbox::Exit;
use futures::FutureExt;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Bytes of a termination message that are shown, and of a log in its place (Kubernetes' limits).
const MESSAGE_BYTES: u64 = 4096;
const LOG_BYTES: usize = 2048;
const LOG_LINES: usize = 80;
/// Failures without a pull: nothing backs off, the kubelet looks again with every sync that failed.
const NOT_PULLED: [&str; 2] = ["ErrImageNeverPull", "InvalidImageName"];
const NOT_PULLED_RETRY: Duration = Duration::from_secs(10);

impl Actor {
    pub(super) fn started(&mut self, index: usize, started: StartedContainer) {
        let StartedContainer { id, image, resources, observed, paths, stop_signal, user, resolved, pulled } = started;
        let observed = Arc::new(observed);
        let record = &mut self.records[index];
        if let Some(ended) = record.newest_end().cloned() {
            record.last = Some(ended);
        }
        record.state = State::Running { id: id.as_str().to_owned(), started_at: observed.started_at };
        record.starts = observed.attempt + 1;
        record.anew = false;
        (record.user, record.resolved) = (Some(user), Some(resolved));
        record.stop_signal = Some(stop_signal.name);
        record.actuated = resources.unwrap_or_default();
        // It was given other resources meanwhile, perhaps.
        self.resize.look_again();
        if pulled {
            self.controls[index].pull.reset();
        }
        self.controls[index].restart_wanted = false;
        let noted = self.note_started(&observed);
        let hook = self.container(index).lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.clone());
        let live = Live {
            id: id.clone(),
            observed,
            noted,
            paths,
            stop_signal: stop_signal.number,
            ended: CancellationToken::new(),
            probes: JoinSet::new(),
        };
        self.go_live(index, live, hook);
        if self.container(index).image.as_ref() != image.as_ref() {
            // It was changed while the old one was being started.
            self.replace(index);
        }
        if let Some(position) = self.early_exits.iter().position(|exit| exit.container == id) {
            let exit = self.early_exits.remove(position);
            self.exited(exit);
        }
    }

    /// Tells the observer, without waiting for it.
    pub(super) fn note_started(&self, observed: &Arc<ObservedContainer>) -> Noted {
        let (ctx, observed) = (self.ctx.clone(), observed.clone());
        let told = tokio::spawn(async move { ctx.observer.started(&observed).await });
        let noted = async move {
            if let Err(error) = told.await {
                tracing::error!(%error, "the observer failed on a container's start");
            }
        };
        noted.boxed().shared()
    }

    /// The container runs: its hook, then its probes.
    pub(super) fn go_live(&mut self, index: usize, live: Live, hook: Option<LifecycleHandler>) {
        let id = live.id.clone();
        let control = &mut self.controls[index];
        (control.starting, control.live, control.stopping) = (false, Some(live), false);
        // After a restart of this process, an earlier run's end may have left them.
        (control.retry_at, control.shows_later) = (None, None);
        let record = &mut self.records[index];
        (record.started, record.ready) = (false, false);
        let Some(hook) = hook else {
            self.watch_health(index);
            // Others of the pod that are about to run go into the same status.
            if self.controls.iter().any(|control| control.starting) {
                self.writer.mark_later(Duration::from_millis(20));
            } else {
                self.writer.mark_now();
            }
            return;
        };
        // As in Kubernetes, the container isn't shown as running before its hook has ended.
        let address = self.sandbox.as_ref().and_then(|sandbox| Some(sandbox.address?.first));
        let (ctx, container) = (self.ctx.clone(), self.container(index).clone());
        self.tasks.spawn(async move {
            let result = hooks::run(&ctx, &hook, &container, &id, address).await;
            Done::PostStart(index, id.as_str().to_owned(), result)
        });
    }

    pub(super) fn post_started(&mut self, index: usize, id: &str, result: Result<(), String>) {
        if self.controls[index].live.as_ref().is_none_or(|live| live.id.as_str() != id) {
            return;
        }
        match result {
            Ok(()) => self.watch_health(index),
            Err(message) => {
                let about = About::container(&self.pod, &self.records[index].name);
                // What a hook printed or was answered is shown to those who may see the pod, not to all who see events.
                let text = "PostStartHook failed".to_owned();
                self.ctx.events.record(about, Severity::Warning, "FailedPostStartHook", text);
                self.controls[index].hook_error = Some(message);
                self.restart(index, "FailedPostStartHook".to_owned(), None);
            }
        }
        self.writer.mark_now();
    }

    /// Begins the container's probes; what has none is well from the start.
    fn watch_health(&mut self, index: usize) {
        let container = Arc::new(self.container(index).clone());
        let Some(live) = self.controls[index].live.as_mut() else { return };
        let subject = Subject {
            ctx: self.ctx.clone(),
            pod: self.pod.clone(),
            container: container.clone(),
            index,
            id: live.id.clone(),
            address: self.sandbox.as_ref().and_then(|sandbox| Some(sandbox.address?.first)),
            sender: self.sender.clone(),
        };
        let record = &mut self.records[index];
        if let Some(startup) = container.startup_probe.clone().filter(|_| !record.started) {
            live.probes.spawn(probes::run(subject, Kind::Startup, startup));
            return;
        }
        record.started = true;
        match container.readiness_probe.clone() {
            Some(readiness) => drop(live.probes.spawn(probes::run(subject.clone(), Kind::Readiness, readiness))),
            None => record.ready = true,
        }
        if let Some(liveness) = container.liveness_probe.clone() {
            live.probes.spawn(probes::run(subject, Kind::Liveness, liveness));
        }
    }

    pub(super) fn probed(&mut self, verdict: &Verdict) {
        let index = verdict.container;
        let live = self.controls.get(index).and_then(|control| control.live.as_ref());
        let current = live.is_some_and(|live| live.id.as_str() == verdict.id);
        if !current || self.stopping.is_some() && verdict.kind != Kind::Readiness {
            return;
        }
        match (verdict.kind, verdict.success) {
            (Kind::Readiness, ready) => self.records[index].ready = ready,
            (Kind::Startup, true) => {
                self.records[index].started = true;
                self.watch_health(index);
            }
            (Kind::Liveness, true) => return,
            (kind, false) => {
                let container = self.container(index);
                let (probe, what) = if kind == Kind::Startup {
                    (&container.startup_probe, "startup")
                } else {
                    (&container.liveness_probe, "liveness")
                };
                let grace = probe.as_ref().and_then(|probe| probe.termination_grace_period_seconds);
                let name = &container.name;
                let text = if self.records[index].role == Role::Sidecar {
                    format!("Init container {name} failed {what} probe")
                } else if self.restarts(index) {
                    format!("Container {name} failed {what} probe, will be restarted")
                } else {
                    format!("Container {name} failed {what} probe")
                };
                self.restart(index, text, grace);
            }
        }
        self.writer.mark_now();
    }

    /// Stops a container so that it is started anew.
    pub(super) fn restart(&mut self, index: usize, why: String, grace_seconds: Option<i64>) {
        if self.controls[index].stopping || self.controls[index].live.is_none() {
            return;
        }
        self.controls[index].restart_wanted = self.restarts(index);
        let grace = grace_seconds.map_or_else(|| self.grace_of_spec(), grace);
        let (sender, deadline) = watch::channel(Instant::now() + grace);
        self.controls[index].restart_deadline = Some(sender);
        self.stop_container(index, deadline, why);
    }

    /// Whether a container that is stopped because it isn't well is started anew. With restartPolicy Never it is not, unless
    /// a rule knows what to do with the code of its end.
    fn restarts(&self, index: usize) -> bool {
        let own = self.container(index).restart_policy.as_deref().filter(|policy| !policy.is_empty());
        let policy = own.or(self.spec().restart_policy.as_deref()).unwrap_or("Always");
        policy != "Never" || self.records[index].role == Role::Sidecar
    }

    pub(super) fn start_failed(&mut self, index: usize, failure: StartFailure) {
        let now = Instant::now();
        let waits = |reason: &str, message: &str| State::Waiting {
            reason: reason.to_owned(),
            message: Some(message.to_owned()),
        };
        self.controls[index].starting = false;
        let may_change_users = self.may_change_users();
        let (record, control) = (&mut self.records[index], &mut self.controls[index]);
        if let State::Ended(ended) = &record.state {
            record.last = Some(ended.clone());
        }
        match failure {
            StartFailure::Cancelled => {}
            StartFailure::Image { image, reason, message } => {
                record.state = waits(&reason, &message);
                if NOT_PULLED.contains(&reason.as_str()) {
                    control.retry_at = Some(now + NOT_PULLED_RETRY);
                } else {
                    control.retry_at = Some(now + control.pull.next_after_failure(now));
                    let text = format!("Back-off pulling image \"{image}\"");
                    let later = waits(PULL_BACK_OFF, &format!("{text}: {reason}: {message}"));
                    control.shows_later = Some((now + Duration::from_secs(2), later));
                    let about = || About::container(&self.pod, &record.name);
                    self.ctx.events.record(about(), Severity::Normal, "BackOff", text);
                    let error = format!("Error: {PULL_BACK_OFF}");
                    self.ctx.events.record(about(), Severity::Warning, "Failed", error);
                }
            }
            StartFailure::Config { message } => {
                record.state = waits("CreateContainerConfigError", &message);
                control.retry_at = Some(now + Duration::from_secs(5));
            }
            StartFailure::Create { message } => {
                record.state = waits("CreateContainerError", &message);
                control.retry_at = Some(now + Duration::from_secs(5));
            }
            StartFailure::Users { message } if may_change_users => {
                let about = About::container(&self.pod, &record.name);
                let text = format!("The pod gets the node's users, not its own: {message}");
                self.ctx.events.record(about, Severity::Normal, "HostUsers", text);
                self.host_users = true;
                self.remove_sandbox();
            }
            StartFailure::Users { message } => {
                let about = About::container(&self.pod, &record.name);
                self.ctx.events.record(about, Severity::Warning, "Failed", format!("Error: {message}"));
                record.state = waits("CreateContainerError", &message);
                control.retry_at = Some(now + Duration::from_secs(5));
            }
            StartFailure::Program { message, code } => {
                let at = Some(jiff::Timestamp::now());
                record.state = State::Ended(Ended {
                    id: None,
                    code,
                    signal: None,
                    reason: "StartError".to_owned(),
                    message: Some(message),
                    started_at: Some(jiff::Timestamp::UNIX_EPOCH),
                    finished_at: at,
                });
                record.starts += 1;
                record.anew = false;
                self.back_off(index);
            }
        }
        self.writer.mark_now();
    }

    /// Whether a sandbox with the machine's users may take the place of this one: the pod never asked for its own, and nothing
    /// is in there.
    fn may_change_users(&self) -> bool {
        let empty = self.controls.iter().all(|control| control.live.is_none() && !control.starting);
        empty && !self.host_users && self.spec().host_users.is_none()
    }

    /// A container has ended. The same end may be reported again.
    pub(super) fn exited(&mut self, exit: Exit) {
        let id = exit.container.as_str();
        let holds = |control: &Control| control.live.as_ref().is_some_and(|live| live.id == exit.container);
        let Some(index) = self.controls.iter().position(holds) else {
            let known = self.records.iter().any(|record| {
                [record.newest_end(), record.last.as_ref()].into_iter().flatten().any(|e| e.id.as_deref() == Some(id))
            });
            if !known && self.controls.iter().any(|control| control.starting) {
                self.early_exits.push(exit);
            } else if !known || self.life >= Life::Cleaned {
                self.forget(exit);
            }
            return;
        };
        let Some(mut live) = self.controls[index].live.take() else { return };
        live.ended.cancel();
        live.probes.abort_all();
        let ended = self.ended(index, &live.paths, &exit);
        let record = &mut self.records[index];
        (record.started, record.ready) = (false, false);
        record.state = State::Ended(ended);
        let control = &mut self.controls[index];
        (control.stopping, control.restart_deadline) = (false, None);
        if self.stopping.is_none() {
            self.resize.look_again();
            self.back_off(index);
            self.show_hook_error(index);
        }
        self.writer.mark_now();
        self.settle(live.observed, Some(live.noted), live.paths, &exit);
    }

    /// Bills a container's end, waits until its status is written, then removes what is left of it.
    pub(super) fn settle(
        &mut self,
        observed: Arc<ObservedContainer>,
        noted: Option<Noted>,
        paths: ContainerPaths,
        exit: &Exit,
    ) {
        self.settling += 1;
        let (ctx, id) = (self.ctx.clone(), exit.container.clone());
        let end = ContainerEnd {
            finished_at: exit.finished_at,
            exit_code: exit.code,
            unknown: exit.unknown,
            cpu_ns: exit.usage.cpu_ns,
            memory_peak_bytes: exit.usage.memory_peak_bytes,
        };
        let persisted = self.writer.persisted();
        self.tasks.spawn(async move {
            if let Some(noted) = noted {
                noted.await;
            }
            ctx.observer.exited(&observed, &end).await;
            persisted.await;
            release(&ctx, &id).await;
            // A whole writable layer, where the sandbox had no time for it.
            let removed = tokio::task::spawn_blocking(move || {
                remove_directory(&paths.directory);
                paths.remove_old_logs(observed.attempt);
            });
            if let Err(error) = removed.await {
                tracing::error!(%error, "a container's directory could not be removed");
            }
            Done::Settled
        });
    }

    /// The end of a container that this pod no longer knows.
    fn forget(&mut self, exit: Exit) {
        let ctx = self.ctx.clone();
        self.settling += 1;
        self.tasks.spawn(async move {
            release(&ctx, &exit.container).await;
            Done::Settled
        });
    }

    /// The terminated state of an exit.
    pub(super) fn ended(&self, index: usize, paths: &ContainerPaths, exit: &Exit) -> Ended {
        Ended {
            id: Some(exit.container.as_str().to_owned()),
            code: exit.code,
            // CRI runtimes fold the signal into the code; the kubelet never fills the field.
            signal: None,
            reason: if exit.unknown {
                "ContainerStatusUnknown".to_owned()
            } else {
                end_reason(exit.code, exit.oom_killed).to_owned()
            },
            message: termination_message(self.container(index), paths, exit.code),
            started_at: Some(exit.started_at),
            finished_at: Some(exit.finished_at),
        }
    }

    /// A state that says nothing yet.
    pub(super) fn creating() -> State {
        State::Waiting { reason: CREATING.to_owned(), message: None }
    }
}

async fn release(ctx: &Context, id: &carob_sandbox::ContainerId) {
    if let Err(error) = ctx.runtime.remove_container(id).await {
        tracing::warn!(%id, %error, "an ended container could not be removed");
    }
    if let Err(error) = ctx.images.release(id.as_str()).await {
        tracing::warn!(%id, error = error.describe(), "a container's image could not be released");
    }
}

/// The last bytes of a file, no more than so many.
fn end_of(path: &Path, most: u64) -> std::io::Result<Vec<u8>> {
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What the program left in its termination message file, or the end of its log where the policy says so.
fn termination_message(container: &Container, paths: &ContainerPaths, code: i32) -> Option<String> {
    // A message that cannot be read is no message.
    let bytes = end_of(&paths.termination_log, MESSAGE_BYTES).unwrap_or_default();
    if !bytes.is_empty() {
        return Some(String::from_utf8_lossy(&bytes).into_owned());
    }
    let fall_back = container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError") && code != 0;
    if !fall_back {
        return None;
    }
    let text = cri::last_text(&paths.log, LOG_LINES, LOG_BYTES).unwrap_or_default();
    (!text.is_empty()).then_some(text)
}
