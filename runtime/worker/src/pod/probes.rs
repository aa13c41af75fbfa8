//! Probes of a running container: when each runs, and when its verdict changes.

pub(super) mod tls;

use super::Message;
use super::probe::{self, Outcome};
use crate::context::Context;
use crate::events::{About, Severity};
use carob_sandbox::ContainerId;
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::CancellationToken;

/// Which question a probe answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Startup,
    Readiness,
    Liveness,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }
}

/// A changed verdict about one run of a container.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub container: usize,
    pub id: String,
    pub kind: Kind,
    pub success: bool,
}

/// Whom to probe and whom to tell.
#[derive(Clone)]
pub(super) struct Subject {
    pub ctx: Arc<Context>,
    pub pod: Arc<Pod>,
    pub container: Arc<Container>,
    pub index: usize,
    pub id: ContainerId,
    pub address: Option<IpAddr>,
    pub sender: UnboundedSender<Message>,
}

/// Probes until the verdict is final.
pub(super) async fn run(subject: Subject, kind: Kind, probe: Probe) {
    // Whoever has it run ends it.
    let until_aborted = CancellationToken::new();
    carob_keep::keep("a probe", until_aborted, || probing(subject.clone(), kind, probe.clone())).await;
}

/// Counts successes and failures in a row, and says when a threshold is passed.
#[derive(Debug, Default)]
struct Counter {
    last: Option<bool>,
    run: i32,
    told: Option<bool>,
}

impl Counter {
    fn observe(&mut self, success: bool, success_threshold: i32, failure_threshold: i32) -> Option<bool> {
        if self.last == Some(success) {
            self.run = self.run.saturating_add(1);
        } else {
            (self.last, self.run) = (Some(success), 1);
        }
        let threshold = if success { success_threshold } else { failure_threshold };
        if self.run < threshold.max(1) || self.told == Some(success) {
            return None;
        }
        self.told = Some(success);
        Some(success)
    }
}

/// The first waits of an eager probe; then its period holds.
const EAGER_FIRST: Duration = Duration::from_millis(50);

async fn probing(subject: Subject, kind: Kind, probe: Probe) {
    let seconds = |value: Option<i32>, default: i32| {
        Duration::from_secs(u64::from(value.filter(|value| *value > 0).unwrap_or(default).unsigned_abs()))
    };
    let (period, timeout) = (seconds(probe.period_seconds, 10), seconds(probe.timeout_seconds, 1));
    let thresholds = (probe.success_threshold.unwrap_or(1), probe.failure_threshold.unwrap_or(3));
    tokio::time::sleep(Duration::from_secs(u64::from(probe.initial_delay_seconds.unwrap_or(0).max(0).unsigned_abs())))
        .await;
    // A server needs a moment to listen, and a period is long beside it: until the first success, network probes for
    // readiness and startup ask more often at first. These tries count as nothing when they fail.
    let eager = kind != Kind::Liveness && probe.exec.is_none();
    let mut wait = EAGER_FIRST;
    let (mut waited, mut early_success) = (Duration::ZERO, false);
    while eager && waited + wait < period {
        if matches!(once(&subject, &probe, timeout).await, Outcome::Success | Outcome::Warning(_)) {
            early_success = true;
            break;
        }
        tokio::time::sleep(wait).await;
        waited += wait;
        wait *= 2;
    }
    let mut counter = Counter::default();
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let outcome =
            if std::mem::take(&mut early_success) { Outcome::Success } else { once(&subject, &probe, timeout).await };
        let success = match outcome {
            Outcome::Success => true,
            Outcome::Warning(doubt) => {
                let about = About::container(&subject.pod, &subject.container.name);
                let text = format!("{} probe warning: {doubt}", kind.name());
                subject.ctx.events.record(about, Severity::Warning, "ProbeWarning", text);
                true
            }
            Outcome::Failure(output) => {
                report(&subject, kind, &format!("{} probe failed: {output}", kind.name()));
                false
            }
            Outcome::Unknown(why) => {
                report(&subject, kind, &format!("{} probe errored and resulted in unknown state: {why}", kind.name()));
                continue;
            }
        };
        let Some(success) = counter.observe(success, thresholds.0, thresholds.1) else { continue };
        let verdict = Verdict { container: subject.index, id: subject.id.as_str().to_owned(), kind, success };
        if subject.sender.send(Message::Probed(verdict)).is_err() || (kind == Kind::Startup && success) {
            return;
        }
        if kind != Kind::Readiness && !success {
            // The container is killed for it; its next run gets new probes.
            return;
        }
    }
}

fn report(subject: &Subject, kind: Kind, message: &str) {
    tracing::debug!(pod = subject.pod.metadata.name, ?kind, message, "a probe failed");
    let about = About::container(&subject.pod, &subject.container.name);
    subject.ctx.events.record(about, Severity::Warning, "Unhealthy", message.to_owned());
}

async fn once(subject: &Subject, probe: &Probe, timeout: Duration) -> Outcome {
    let Subject { ctx, container, id, address, .. } = subject;
    let host = |given: Option<&String>| {
        given.filter(|host| !host.is_empty()).cloned().or_else(|| address.map(|address| address.to_string()))
    };
    if let Some(exec) = &probe.exec {
        return probe::command(ctx, id, exec.command.as_deref().unwrap_or_default(), timeout).await;
    }
    if let Some(action) = &probe.http_get {
        return probe::http_get(action, container, *address, timeout).await;
    }
    if let Some(action) = &probe.tcp_socket {
        let (Some(host), Some(port)) = (host(action.host.as_ref()), probe::port(container, &action.port)) else {
            return Outcome::Unknown(format!("couldn't find port: {:?}", action.port));
        };
        return probe::tcp(&host, port, timeout).await;
    }
    if let Some(action) = &probe.grpc {
        let (Some(host), Ok(port)) = (host(None), u16::try_from(action.port)) else {
            return Outcome::Unknown("the pod has no address".to_owned());
        };
        return probe::grpc(&host, port, action.service.as_deref().unwrap_or(""), timeout).await;
    }
    Outcome::Unknown("missing probe handler".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_change_only_at_their_thresholds() {
        let mut counter = Counter::default();
        let told: Vec<Option<bool>> = [true, false, false, true, false, false, false, false, true]
            .into_iter()
            .map(|success| counter.observe(success, 1, 3))
            .collect();
        assert_eq!(told, [Some(true), None, None, None, None, None, Some(false), None, Some(true)]);
    }

    #[test]
    fn a_success_threshold_wants_a_run_of_successes() {
        let mut counter = Counter::default();
        assert_eq!(counter.observe(true, 2, 1), None);
        assert_eq!(counter.observe(false, 2, 1), Some(false));
        assert_eq!(counter.observe(true, 2, 1), None);
        assert_eq!(counter.observe(true, 2, 1), Some(true));
    }
}
