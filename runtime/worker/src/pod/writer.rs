//! Writes a pod's status: one patch at a time, what happens meanwhile goes into the next, nothing is written twice.

use super::actor::{Actor, Done, Life};
use super::conditions::{Verdict, verdict};
use super::status::{Inputs, patch, status};
use super::storage::EVICTED;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Api;
use kube::api::{Patch, PatchParams};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// The state of a pod's status writing.
pub(super) struct Writer {
    /// Counts changes of the pod's state.
    changed: u64,
    /// The change that the API has seen; `u64::MAX` when it needs to see no more.
    written: watch::Sender<u64>,
    in_flight: bool,
    due: Option<Instant>,
    last: Option<PodStatus>,
    retry: Duration,
}

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);

impl Default for Writer {
    fn default() -> Self {
        Self { changed: 0, written: watch::Sender::new(0), in_flight: false, due: None, last: None, retry: FIRST_RETRY }
    }
}

impl Writer {
    /// The state has changed and is to be written at once.
    pub fn mark_now(&mut self) {
        self.changed += 1;
        if !self.is_stopped() {
            self.due = Some(Instant::now());
        }
    }

    /// The state has changed; it is written after `delay` at the latest.
    pub fn mark_later(&mut self, delay: Duration) {
        self.changed += 1;
        if !self.is_stopped() {
            let at = Instant::now() + delay;
            self.due = Some(self.due.map_or(at, |due| due.min(at)));
        }
    }

    /// When to write next; `None` while a patch is under way or nothing changed.
    pub fn due(&self) -> Option<Instant> {
        self.due.filter(|_| !self.in_flight)
    }

    /// There is nothing to write to any more: whoever waits for a write need not.
    pub fn stop(&mut self) {
        self.due = None;
        self.written.send_replace(u64::MAX);
    }

    fn is_stopped(&self) -> bool {
        *self.written.borrow() == u64::MAX
    }

    /// What the API has is final already.
    pub fn pretend_written(&mut self) {
        self.due = None;
        self.written.send_replace(self.changed);
    }

    /// All changes so far have been written.
    pub fn is_settled(&self) -> bool {
        !self.in_flight && self.due.is_none() && *self.written.borrow() >= self.changed
    }

    /// Resolves when all changes so far have been written.
    pub fn persisted(&self) -> impl Future<Output = ()> + Send + use<> {
        let (mut written, change) = (self.written.subscribe(), self.changed);
        async move {
            // The actor has gone: nothing more will be written.
            let _closed = written.wait_for(|written| *written >= change).await;
        }
    }
}

impl Actor {
    /// Begins a patch if one is due.
    pub(super) fn flush_status(&mut self, now: Instant) {
        if self.writer.in_flight || self.writer.due.is_none_or(|due| due > now) || self.gone {
            return;
        }
        let message = self.verdict.as_ref().map(|(reason, message)| (*reason, message.as_str()));
        let ended_by_itself = self.stopping.is_some() && self.outcome().is_some();
        let again: Vec<bool> = (0..self.records.len()).map(|index| self.will_run_again(index)).collect();
        let inputs = Inputs {
            pod: &self.pod,
            records: &self.records,
            again: &again,
            ephemeral: &self.ephemeral,
            sandbox_ready: self.sandbox.is_some() && self.life == Life::Living,
            address: self.sandbox.as_ref().and_then(|sandbox| sandbox.address),
            host_ips: self.ctx.host_ips,
            start_time: self.start_time,
            terminal: self.life >= Life::Over || ended_by_itself,
            verdict: message,
            whole: self.resize.whole(),
            passing: self.passing_conditions(),
            now: Timestamp::now(),
        };
        let status = status(&inputs);
        self.writer.due = None;
        if self.writer.last.as_ref() == Some(&status) {
            self.writer.written.send_replace(self.writer.changed);
            return;
        }
        if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
            // The scheduler counts it no more as soon as it sees this, and may send the next pod at once.
            self.ctx.admission.release(&self.uid);
        }
        let body = patch(&self.pod, &status);
        self.writer.last = Some(status);
        self.writer.in_flight = true;
        let sequence = self.writer.changed;
        let api: Api<Pod> = Api::namespaced(self.ctx.client.clone(), &self.namespace);
        let name = self.name.clone();
        let (ctx, latency) = (self.ctx.clone(), self.latency.clone());
        self.tasks.spawn(async move {
            let begin = Instant::now();
            let result = api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(body)).await;
            latency.stage(&ctx.metrics, "status", begin);
            Done::Patched(sequence, result.map(Box::new))
        });
    }

    /// The conditions that not every pod has.
    fn passing_conditions(&self) -> Vec<Verdict> {
        let evicted =
            self.verdict.as_ref().filter(|(reason, _)| *reason == EVICTED).map(|(_, message)| {
                verdict("DisruptionTarget", true, Some("TerminationByKubelet"), Some(message.clone()))
            });
        evicted.into_iter().chain(self.resize.conditions()).collect()
    }

    pub(super) fn patched(&mut self, sequence: u64, result: Result<Box<Pod>, kube::Error>) {
        self.writer.in_flight = false;
        match result {
            Ok(pod) => {
                self.writer.retry = FIRST_RETRY;
                if !self.writer.is_stopped() {
                    self.writer.written.send_replace(sequence);
                }
                if pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running") {
                    self.latency.running(&self.ctx.metrics, &self.name);
                }
                // It may hold what others have changed and the watch hasn't said yet.
                self.object(Arc::from(pod));
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {
                // The watch will say that it is gone; meanwhile nothing waits for its status.
                self.writer.stop();
            }
            Err(kube::Error::Api(status)) if status.code == 409 && status.message.contains("UID") => {
                self.writer.stop();
                self.gone = true;
            }
            Err(_) if self.writer.is_stopped() => {}
            Err(error) => {
                tracing::warn!(pod = self.name, namespace = self.namespace, %error, "a status could not be written");
                self.writer.last = None;
                let retry = Instant::now() + self.writer.retry;
                self.writer.due = Some(self.writer.due.map_or(retry, |due| due.max(retry)));
                self.writer.retry = (self.writer.retry * 2).min(LAST_RETRY);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_for_a_write_goes_on_when_it_is_written_or_pointless() {
        let mut writer = Writer::default();
        writer.mark_now();
        let (first, second) = (writer.persisted(), {
            writer.mark_now();
            writer.persisted()
        });
        writer.written.send_replace(1);
        first.await;
        let second = tokio::spawn(second);
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        writer.stop();
        second.await.unwrap();
    }

    #[test]
    fn marks_keep_the_earliest_time() {
        let mut writer = Writer::default();
        writer.mark_later(Duration::from_secs(60));
        let due = writer.due().unwrap();
        writer.mark_later(Duration::from_secs(600));
        assert_eq!(writer.due(), Some(due));
        writer.mark_now();
        assert!(writer.due().unwrap() < due);
        assert!(!writer.is_settled());
    }
}
