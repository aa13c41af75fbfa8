//! What a pod's containers need before they start: the sandbox and the volumes, and these kept up to date.

use super::actor::{Actor, Done};
use super::prepare::Prepared;
use crate::events::{About, Severity};
use crate::volumes::{VolumeError, Volumes};
use std::sync::Arc;
use std::time::{Duration, Instant};

impl Actor {
    pub(super) fn prepared(&mut self, prepared: Prepared) {
        self.preparing = false;
        let about = || About::pod(&self.pod);
        let failure = match (prepared.sandbox, prepared.volumes) {
            (Ok(sandbox), Ok(volumes)) => {
                self.sandbox = Some(sandbox);
                self.volumes = Some(Arc::new(volumes.mounted));
                self.refresh_at = volumes.renew_after.map(|after| Instant::now() + after);
                self.prepare_retry = None;
                return;
            }
            (Ok(sandbox), Err(error)) => {
                self.ctx.events.record(about(), Severity::Warning, "FailedMount", error.to_string());
                self.sandbox = Some(sandbox);
                error.to_string()
            }
            (Err(message), _) => {
                let text = format!("Failed to create pod sandbox: {message}");
                self.ctx.events.record(about(), Severity::Warning, "FailedCreatePodSandBox", text.clone());
                text
            }
        };
        // 500 ms doubling to two minutes, as for the kubelet's volume operations.
        let delay = self.prepare_retry.map_or(Duration::from_millis(500), |(_, last)| last * 2);
        let delay = delay.min(Duration::from_secs(122));
        self.prepare_retry = Some((Instant::now() + delay, delay));
        tracing::debug!(pod = self.name, namespace = self.namespace, failure, "the pod isn't ready for containers");
        self.writer.mark_now();
    }

    /// Brings volumes up to date when what they come from changed, or a token in them ages.
    pub(super) fn refresh_volumes(&mut self, now: Instant) {
        let due = self.volumes_changed || self.refresh_at.is_some_and(|at| at <= now);
        let Some(sandbox) = self.sandbox.as_ref().filter(|_| due && !self.refreshing) else { return };
        (self.refreshing, self.volumes_changed, self.refresh_at) = (true, false, None);
        let (ctx, pod, address) = (self.ctx.clone(), self.pod.clone(), sandbox.address);
        self.tasks.spawn(async move {
            let facts = super::prepare::facts(&ctx, &pod, address);
            Done::Refreshed(crate::volumes::set_up(&ctx, &facts).await)
        });
    }

    pub(super) fn refreshed(&mut self, result: Result<Volumes, VolumeError>) {
        self.refreshing = false;
        match result {
            Ok(volumes) => self.refresh_at = volumes.renew_after.map(|after| Instant::now() + after),
            Err(error) => {
                let about = About::pod(&self.pod);
                self.ctx.events.record(about, Severity::Warning, "FailedMount", error.to_string());
                self.refresh_at = Some(Instant::now() + Duration::from_secs(60));
            }
        }
    }
}
