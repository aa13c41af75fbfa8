//! A pod's end: containers are stopped in order and with grace, then everything that was made for the pod is removed.

use super::actor::{Actor, Done, Life, remove_tree};
use super::backoff::Backoff;
use super::hooks;
use super::record::Role;
use crate::context::Context;
use crate::events::{About, Severity};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, Preconditions};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// A pod's stop that is under way; the deadline may still come closer.
pub(super) struct Stopping {
    deadline: watch::Sender<Instant>,
}

/// What a container gets after a preStop hook used the whole grace period up (the kubelet's minimum).
const MINIMUM_AFTER_HOOK: Duration = Duration::from_secs(2);
/// Grace of a pod whose object was removed by force.
const FORCED: Duration = Duration::from_secs(1);

/// A time that a user gave in seconds, of which there is no greatest: more than 68 years are as good as for ever.
pub(super) fn grace(seconds: i64) -> Duration {
    Duration::from_secs(seconds.clamp(0, i32::MAX.into()).unsigned_abs())
}

impl Actor {
    /// `terminationGracePeriodSeconds`
    pub(super) fn grace_of_spec(&self) -> Duration {
        grace(self.spec().termination_grace_period_seconds.unwrap_or(30))
    }

    /// Deletion was asked for, or asked for again with less patience.
    pub(super) fn begin_deletion(&mut self) {
        let meta = &self.pod.metadata;
        let grace = match &meta.deletion_timestamp {
            Some(at) => {
                let given = meta.deletion_grace_period_seconds.unwrap_or(30).max(1);
                // After a restart of this process, part of the time is over. Timestamps are whole seconds, rounded down.
                let left = at.0.duration_since(jiff::Timestamp::now()).as_secs() + 1;
                grace(given.min(left.max(1)))
            }
            None => self.grace_of_spec(),
        };
        self.begin_stop(if self.gone { grace.min(FORCED) } else { grace });
    }

    /// Stops all containers within `grace`. Once begun, a later call can only shorten it.
    pub(super) fn begin_stop(&mut self, grace: Duration) {
        let deadline = Instant::now() + grace;
        // A container that is being stopped for a restart has no more time than the pod.
        for restart in self.controls.iter().filter_map(|control| control.restart_deadline.as_ref()) {
            shorten(restart, deadline);
        }
        if let Some(stopping) = &self.stopping {
            shorten(&stopping.deadline, deadline);
        } else {
            self.cancel.cancel();
            self.stopping = Some(Stopping { deadline: watch::Sender::new(deadline) });
        }
    }

    /// Stops what still runs: sidecars only after everything that may need them, last started first.
    pub(super) fn stop_in_order(&mut self) {
        let Some(stopping) = &self.stopping else { return };
        let deadline = stopping.deadline.subscribe();
        let busy = |index: usize| self.controls[index].live.is_some() || self.controls[index].starting;
        let count = self.records.len();
        // Nothing depends on what was added to look on.
        let others =
            (0..count).any(|index| !matches!(self.records[index].role, Role::Sidecar | Role::Ephemeral) && busy(index));
        let last_sidecar = (0..count).rev().find(|index| self.records[*index].role == Role::Sidecar && busy(*index));
        let now: Vec<usize> = (0..count)
            .filter(|index| match self.records[*index].role {
                Role::Sidecar => !others && Some(*index) == last_sidecar,
                _ => true,
            })
            .filter(|index| self.controls[*index].live.is_some() && !self.controls[*index].stopping)
            .collect();
        for index in now {
            let text = format!("Stopping container {}", self.records[index].name);
            self.stop_container(index, deadline.clone(), text);
        }
    }

    /// Hook, signal, grace, kill. The end itself arrives as an exit.
    pub(super) fn stop_container(&mut self, index: usize, mut deadline: watch::Receiver<Instant>, why: String) {
        let container = self.container(index).clone();
        let Some(live) = &self.controls[index].live else { return };
        let (id, signal, ended) = (live.id.clone(), live.stop_signal, live.ended.clone());
        let about = About::container(&self.pod, &container.name);
        self.ctx.events.record(about.clone(), Severity::Normal, "Killing", why);
        self.controls[index].stopping = true;
        let ctx = self.ctx.clone();
        let address = self.sandbox.as_ref().and_then(|sandbox| Some(sandbox.address?.first));
        self.tasks.spawn(async move {
            let hook = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.clone());
            if let Some(hook) = hook {
                tokio::select! {
                    () = ended.cancelled() => {}
                    () = passed(&mut deadline) => {}
                    result = hooks::run(&ctx, &hook, &container, &id, address) => {
                        if let Err(message) = result {
                            tracing::debug!(container = container.name, message, "a preStop hook failed");
                            let text = "PreStopHook failed".to_owned();
                            ctx.events.record(about, Severity::Warning, "FailedPreStopHook", text);
                        }
                    }
                }
                let least = Instant::now() + MINIMUM_AFTER_HOOK;
                if *deadline.borrow() < least {
                    deadline = watch::channel(least).1;
                }
            }
            signal_container(&ctx, &id, signal).await;
            tokio::select! {
                () = ended.cancelled() => return Done::Stopped(index),
                () = passed(&mut deadline) => {}
            }
            signal_container(&ctx, &id, nix::libc::SIGKILL).await;
            ended.cancelled().await;
            Done::Stopped(index)
        });
    }

    /// Kills it without hook and grace, so that the pod begins anew.
    pub(super) fn kill_container(&mut self, index: usize, now: Instant) {
        let control = &mut self.controls[index];
        let Some(live) = &control.live else { return };
        if control.stopping {
            if let Some(deadline) = &control.restart_deadline {
                shorten(deadline, now);
            }
            return;
        }
        control.stopping = true;
        let (id, ended) = (live.id.clone(), live.ended.clone());
        let about = About::container(&self.pod, &self.records[index].name);
        self.ctx.events.record(about, Severity::Normal, "Killing", "killing".to_owned());
        let ctx = self.ctx.clone();
        self.tasks.spawn(async move {
            signal_container(&ctx, &id, nix::libc::SIGKILL).await;
            ended.cancelled().await;
            Done::Stopped(index)
        });
    }

    /// After the last container: the final status, the removal of what was made, the removal of the object.
    pub(super) fn reconcile_end(&mut self, now: Instant) {
        if self.life == Life::Over && (self.writer.is_settled() || self.gone) {
            self.life = Life::CleaningUp;
            if self.gone {
                self.writer.stop();
            }
        }
        if self.life == Life::CleaningUp && self.settling == 0 && !self.cleaning {
            self.cleaning = true;
            let (ctx, uid) = (self.ctx.clone(), self.uid.clone());
            self.ctx.interests.remove(&self.uid);
            self.tasks.spawn(async move {
                clean_up(&ctx, &uid).await;
                Done::CleanedUp
            });
        }
        let may_delete = self.life == Life::Cleaned && !self.gone && self.pod.metadata.deletion_timestamp.is_some();
        if may_delete && self.delete_retry.is_none_or(|at| at <= now) {
            self.life = Life::Deleting;
            self.delete_retry = None;
            let api: Api<Pod> = Api::namespaced(self.ctx.client.clone(), &self.namespace);
            let (name, uid) = (self.name.clone(), self.uid.clone());
            self.tasks.spawn(async move {
                let preconditions = Preconditions { uid: Some(uid), ..Preconditions::default() };
                let params = DeleteParams::default().grace_period(0).preconditions(preconditions);
                Done::Deleted(api.delete(&name, &params).await.map(drop))
            });
        }
        if self.life == Life::Deleting && self.gone {
            self.life = Life::Cleaned;
        }
    }

    pub(super) fn deleted(&mut self, result: &Result<(), kube::Error>) {
        match result {
            // With finalizers the object stays; the watch says when it goes.
            Ok(()) => {}
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => self.gone = true,
            Err(error) => {
                tracing::debug!(pod = self.name, %error, "the pod's object could not be removed yet");
                self.life = Life::Cleaned;
                self.delete_retry = Some(Instant::now() + Duration::from_secs(1));
            }
        }
    }
}

/// Brings a deadline closer; it never goes further away.
fn shorten(current: &watch::Sender<Instant>, deadline: Instant) {
    current.send_if_modified(|current| {
        // The same grace read a moment later isn't a new wish.
        let sooner = deadline + Duration::from_millis(1500) < *current;
        if sooner {
            *current = deadline;
        }
        sooner
    });
}

/// Waits for the deadline, also when it comes closer.
async fn passed(deadline: &mut watch::Receiver<Instant>) {
    loop {
        let at = *deadline.borrow_and_update();
        tokio::select! {
            () = tokio::time::sleep_until(at.into()) => return,
            changed = deadline.changed() => {
                if changed.is_err() {
                    tokio::time::sleep_until(at.into()).await;
                    return;
                }
            }
        }
    }
}

async fn signal_container(ctx: &Arc<Context>, id: &carob_sandbox::ContainerId, signal: i32) {
    if let Err(error) = ctx.runtime.signal(id, signal).await {
        tracing::debug!(%id, signal, %error, "a container could not be signalled");
    }
}

/// Removes the pod's sandbox; what has been its own isn't anybody else's before that.
pub(super) async fn remove_sandbox(ctx: &Arc<Context>, uid: &str) {
    // As long as the sandbox is known, the next process would find it and end this.
    ctx.networks.end(uid, ctx).await;
    let mut backoff = Backoff::default();
    while let Err(error) = ctx.runtime.remove_pod(uid).await {
        // A process that the kernel can't end yet, on a file system that doesn't answer, holds it.
        tracing::warn!(uid, %error, "a pod's sandbox could not be removed yet");
        if matches!(error, carob_sandbox::Error::Disconnected) {
            return;
        }
        tokio::time::sleep(backoff.next(Instant::now())).await;
    }
}

/// Removes the pod's sandbox, address, volumes and files; its logs stay until its object goes.
async fn clean_up(ctx: &Arc<Context>, uid: &str) {
    remove_sandbox(ctx, uid).await;
    let directory = ctx.dirs.pod(uid);
    tokio::join!(ctx.give_back(uid), remove_tree(&directory));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stop_under_way_hears_that_its_deadline_came_closer_and_never_that_it_moved_away() {
        assert_eq!([grace(-1), grace(30)].map(|grace| grace.as_secs()), [0, 30]);
        assert!(Instant::now() + grace(i64::MAX) > Instant::now());
        let far = Instant::now() + Duration::from_secs(3600);
        let (sender, mut deadline) = watch::channel(far);
        shorten(&sender, far + Duration::from_secs(60));
        shorten(&sender, far.checked_sub(Duration::from_secs(1)).unwrap());
        assert_eq!(*sender.borrow(), far);
        let waiting = tokio::spawn(async move { passed(&mut deadline).await });
        tokio::task::yield_now().await;
        shorten(&sender, Instant::now());
        waiting.await.unwrap();
    }
}
