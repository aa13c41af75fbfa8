//! Containers' ends: what is left of one dies, its log is finished, and only then its end is recorded and told.

use super::service::{Rest, Service, State};
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

impl Service {
    /// The init is gone: what else is in the container goes.
    pub(super) fn container_died(&mut self, id: &ContainerId, death: Death, finished_at: Timestamp) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let started_at = match &container.state {
            State::Running { started_at, .. } | State::Ending { started_at, .. } => *started_at,
            State::Starting { .. } | State::Exited(_) => finished_at,
        };
        let now = Instant::now();
        let rest = Rest::Processes { since: now, again: now };
        container.state = State::Ending { death, started_at, finished_at, rest };
        container.stdin = None;
        self.end_processes(id);
    }

    /// When poll is to return for another kill.
    pub(super) fn next_kill(&self) -> PollTimeout {
        let next = self.containers.values().filter_map(|container| match &container.state {
            State::Ending { rest: Rest::Processes { again, .. }, .. } => Some(*again),
            _ => None,
        });
        let Some(next) = next.min() else { return PollTimeout::NONE };
        // Rounded up: a timeout of 0 would spin.
        let left = next.saturating_duration_since(Instant::now()).as_millis() + 1;
        PollTimeout::from(u16::try_from(left).unwrap_or(u16::MAX))
    }

    /// Kills again what is left in containers, where it is time.
    pub(super) fn end_rests(&mut self) {
        let now = Instant::now();
        let due: Vec<ContainerId> = self
            .containers
            .iter()
            .filter(|(_, container)| {
                matches!(&container.state, State::Ending { rest: Rest::Processes { again, .. }, .. } if *again <= now)
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            self.end_processes(&id);
        }
    }

    /// With a PID namespace of its own the kernel has already killed everything; with a shared one processes are left,
    /// may fork while they are killed, and use CPU time until they are gone. Then the log is finished.
    fn end_processes(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get(id) else { return };
        let State::Ending { rest: Rest::Processes { since, .. }, .. } = &container.state else { return };
        let waited = since.elapsed();
        let gone = self.container_cgroup(&container.pod, id).kill_once(waited);
        if !gone && waited >= KILL_PATIENCE {
            eprintln!("processes of {id} do not die");
        }
        let over = gone || waited >= KILL_PATIENCE;
        let Some(container) = self.containers.get_mut(id) else { return };
        let log = container.log;
        if let State::Ending { rest, .. } = &mut container.state {
            match rest {
                Rest::Processes { again, .. } if !over => *again = Instant::now() + KILL_STEP,
                _ => *rest = Rest::Log,
            }
        }
        if over && !self.end_log(log) {
            self.container_ended(id);
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
                eprintln!("the log pump is lost: {error}");
                self.restart_pump();
            }
        }
    }

    fn log_ended(&mut self, drained: &Drained) {
        if drained.lost > 0 {
            eprintln!("{} bytes of a container's log could not be written", drained.lost);
        }
        let ended =
            self.containers.iter().find(|(_, container)| container.log == drained.log).map(|(id, _)| id.clone());
        if let Some(id) = ended {
            self.container_ended(&id);
        }
    }

    /// A new pump serves new containers. What the old one read of running ones is lost if it has died, and those that
    /// waited for it end.
    #[expect(unsafe_code, reason = "forks")]
    pub(super) fn restart_pump(&mut self) {
        // Its own end first: the new one must not inherit it, or the old one would never notice.
        self.pump = None;
        // SAFETY: the spawner has one thread.
        self.pump = unsafe { logs::start() }.map_err(|error| eprintln!("no log pump: {error}")).ok();
        let ending: Vec<ContainerId> = self
            .containers
            .iter()
            .filter(|(_, container)| matches!(container.state, State::Ending { rest: Rest::Log, .. }))
            .map(|(id, _)| id.clone())
            .collect();
        for id in ending {
            self.container_ended(&id);
        }
    }

    /// Records the end and tells it.
    fn container_ended(&mut self, id: &ContainerId) {
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
            eprintln!("the end of {id} could not be recorded: {error}");
        }
        if let Some(container) = self.containers.get_mut(id) {
            container.state = State::Exited(exit.clone());
        }
        self.tell(&Tell::Exit(exit), Vec::new());
    }
}
