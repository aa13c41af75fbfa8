//! When containers that have ended are started again, and what is shown meanwhile.

use super::actor::Actor;
use super::backoff::go_seconds;
use super::plan::runs_again;
use super::record::{CRASH_LOOP, State};
use crate::events::{About, Severity};
use std::time::{Duration, Instant};

impl Actor {
    pub(super) fn show_back_offs(&mut self, now: Instant) {
        for (record, control) in self.records.iter_mut().zip(&mut self.controls) {
            if let Some((at, _)) = &control.shows_later
                && *at <= now
                && let Some((_, state)) = control.shows_later.take()
            {
                if let State::Ended(ended) = std::mem::replace(&mut record.state, state) {
                    record.last = Some(ended);
                }
                self.writer.mark_now();
            }
            if control.retry_at.is_some_and(|at| at <= now) {
                control.retry_at = None;
            }
        }
    }

    /// Whether a container that has ended will run again, for its policy and rules or because its end was wanted.
    pub(super) fn will_run_again(&self, index: usize) -> bool {
        let policy = self.spec().restart_policy.as_deref().unwrap_or("Always");
        let record = &self.records[index];
        record.newest_end().is_some_and(|ended| {
            record.anew
                || self.controls[index].restart_wanted
                || runs_again(policy, self.container(index), record.role, ended.code)
        })
    }

    /// A container that was stopped because its postStart hook failed waits for its next run with that reason.
    pub(super) fn show_hook_error(&mut self, index: usize) {
        let Some(message) = self.controls[index].hook_error.take().filter(|_| self.will_run_again(index)) else {
            return;
        };
        let record = &mut self.records[index];
        let state = State::Waiting { reason: "PostStartHookError".to_owned(), message: Some(message) };
        if let State::Ended(ended) = std::mem::replace(&mut record.state, state) {
            record.last = Some(ended);
        }
    }

    /// Plans the next run of a container that has just ended, and what is shown while it waits.
    pub(super) fn back_off(&mut self, index: usize) {
        if !self.will_run_again(index) || self.restarts_all().is_some() {
            return;
        }
        let record = &self.records[index];
        let now = Instant::now();
        let delay = self.controls[index].crash.next(now);
        if delay.is_zero() {
            return;
        }
        let shown = format!("{}_{}({})", self.name, self.namespace, self.uid);
        let name = record.name.clone();
        let message = format!("back-off {} restarting failed container={name} pod={shown}", go_seconds(delay));
        let state = State::Waiting { reason: CRASH_LOOP.to_owned(), message: Some(message) };
        let control = &mut self.controls[index];
        control.retry_at = Some(now + delay);
        control.shows_later = Some((now + Duration::from_secs(1), state));
        let about = About::container(&self.pod, &name);
        let text = format!("Back-off restarting failed container {name} in pod {shown}");
        self.ctx.events.record(about, Severity::Warning, "BackOff", text);
    }
}
