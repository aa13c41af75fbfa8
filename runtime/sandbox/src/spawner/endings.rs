//! Containers' ends: what is left of one dies, its end is recorded, its log is finished, and then its end is told.

use super::service::{Service, State};
use super::starts::follow;
use crate::config::ContainerId;
use crate::kernel::process::Death;
use crate::logs::{self, Drained};
use crate::protocol::Tell;
use crate::state::Exit;
use jiff::Timestamp;
use nix::poll::{PollFlags, PollTimeout};
use std::time::{Duration, Instant};

/// Between two kills of what is left in a container.
const KILL_STEP: Duration = Duration::from_millis(5);
/// A process that isn't gone by then hangs in the kernel and burns nothing.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// An end is told with its log whole, unless the log pump takes longer than this: its disk hangs, and that must not keep a
/// container from being restarted.
const LOG_PATIENCE: Duration = Duration::from_secs(2);

impl Service {
    /// The init is gone: what else is in the container goes.
    pub(super) fn container_died(&mut self, id: &ContainerId, death: Death, finished_at: Timestamp) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let started_at = match &container.state {
            State::Running { started_at, .. } | State::Ending { started_at, .. } => *started_at,
            State::Starting { .. } | State::Draining { .. } | State::Exited(_) => finished_at,
        };
        let now = Instant::now();
        container.state = State::Ending { death, started_at, finished_at, since: now, again: now };
        container.stdin = None;
        self.end_processes(id);
    }

    /// When poll is to return for another kill, or for a log that is no longer waited for.
    pub(super) fn next_kill(&self) -> PollTimeout {
        let next = self.containers.values().filter_map(|container| match &container.state {
            State::Ending { again: at, .. } | State::Draining { until: at, .. } => Some(*at),
            _ => None,
        });
        let Some(next) = next.min() else { return PollTimeout::NONE };
        // Rounded up: a timeout of 0 would spin.
        let left = next.saturating_duration_since(Instant::now()).as_millis() + 1;
        PollTimeout::from(u16::try_from(left).unwrap_or(u16::MAX))
    }

    /// Kills again what is left in containers, and tells ends whose log has had its time.
    pub(super) fn end_rests(&mut self) {
        let now = Instant::now();
        let due = |at: &Instant| *at <= now;
        let matching = |wanted: fn(&State) -> Option<&Instant>| -> Vec<ContainerId> {
            let all = self.containers.iter();
            all.filter(|(_, container)| wanted(&container.state).is_some_and(due)).map(|(id, _)| id.clone()).collect()
        };
        let kill = matching(|state| if let State::Ending { again, .. } = state { Some(again) } else { None });
        let late = matching(|state| if let State::Draining { until, .. } = state { Some(until) } else { None });
        for id in kill {
            self.end_processes(&id);
        }
        for id in late {
            say!("the log of {id} is not written yet: its end is told without it");
            self.tell_end(&id);
        }
    }

    /// With a PID namespace of its own the kernel has already killed everything; with a shared one processes are left,
    /// may fork while they are killed, and use CPU time until they are gone. Then the end is recorded and the log finished.
    fn end_processes(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get(id) else { return };
        let State::Ending { since, .. } = &container.state else { return };
        let waited = since.elapsed();
        let gone = self.container_cgroup(&container.pod, id).kill_once(waited);
        if !gone && waited < KILL_PATIENCE {
            if let Some(State::Ending { again, .. }) = self.containers.get_mut(id).map(|container| &mut container.state)
            {
                *again = Instant::now() + KILL_STEP;
            }
            return;
        }
        if !gone {
            say!("processes of {id} do not die");
        }
        self.record_end(id);
        let log = self.containers.get(id).map(|container| container.log.number);
        if !log.is_some_and(|log| self.end_log(log)) {
            self.tell_end(id);
        }
    }

    /// Has a log finished; false when nobody can.
    pub(super) fn end_log(&mut self, log: u64) -> bool {
        self.pump.as_mut().is_some_and(|pump| pump.tell(&logs::Command::End { log }, Vec::new()))
    }

    pub(super) fn serve_pump(&mut self, events: PollFlags) {
        let Some(pump) = &mut self.pump else { return };
        let sent = !events.contains(PollFlags::POLLOUT) || pump.flush();
        let received = if events.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            pump.receive()
        } else {
            Ok(None)
        };
        match received {
            Ok(drained) => {
                if let Some(drained) = drained {
                    self.log_ended(&drained);
                }
                if !sent {
                    self.restart_pump();
                }
            }
            Err(error) => {
                say!("the log pump is lost: {error}");
                self.restart_pump();
            }
        }
    }

    fn log_ended(&mut self, drained: &Drained) {
        if drained.lost > 0 {
            say!("{} bytes of a container's log could not be written", drained.lost);
        }
        let ended = self.containers.iter_mut().find(|(_, container)| container.log.number == drained.log);
        if let Some((id, container)) = ended {
            container.log.outputs.clear();
            let id = id.clone();
            self.tell_end(&id);
        }
    }

    /// A new pump takes the outputs over where the old one stopped reading: what that had read and not written is lost.
    #[expect(unsafe_code, reason = "forks")]
    pub(super) fn restart_pump(&mut self) {
        // Its own end first: the new one must not inherit it, or the old one would never notice.
        if let Some(old) = self.pump.take() {
            // It may only be deaf. Two that read from one pipe would mix lines up.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(old.pid), nix::sys::signal::Signal::SIGKILL);
        }
        // SAFETY: the spawner has one thread.
        self.pump = unsafe { logs::start() }.map_err(|error| say!("no log pump: {error}")).ok();
        let mut draining = Vec::new();
        for (id, container) in &self.containers {
            if container.log.outputs.is_empty() {
                continue;
            }
            follow(self.pump.as_mut(), &container.log);
            if matches!(container.state, State::Draining { .. } | State::Exited(_)) {
                draining.push((id.clone(), container.log.number));
            }
        }
        for (id, log) in draining {
            if !self.end_log(log) {
                self.tell_end(&id);
            }
        }
    }

    /// Records the end: from here on a spawner that dies loses nothing of it.
    fn record_end(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get(id) else { return };
        let State::Ending { death, started_at, finished_at, .. } = &container.state else { return };
        let cgroup = self.container_cgroup(&container.pod, id);
        let exit = Exit {
            container: id.clone(),
            pod_uid: container.pod.clone(),
            code: death.code,
            signal: death.signal,
            oom_killed: cgroup.oom_killed(),
            unknown: false,
            started_at: *started_at,
            finished_at: *finished_at,
            usage: cgroup.final_usage(),
        };
        if let Err(error) = self.records.write_exit(&exit) {
            // It is still told and kept in memory; only the spawner's own death could lose it now.
            say!("the end of {id} could not be recorded: {error}");
        }
        if let Some(container) = self.containers.get_mut(id) {
            container.state = State::Draining { exit, until: Instant::now() + LOG_PATIENCE };
        }
    }

    /// Tells the end, once.
    fn tell_end(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let State::Draining { exit, .. } = &container.state else { return };
        let exit = exit.clone();
        container.state = State::Exited(exit.clone());
        self.tell(&Tell::Exit(exit), Vec::new());
    }
}
