//! `RestartAllContainers`: an exit that a rule names makes the whole pod begin anew, in the sandbox and with the volumes
//! that it has. All others are killed without grace, sidecars after those that may need them, and what was recorded of
//! each run gives way; then init containers run again, and so on.

use super::actor::Actor;
use super::plan::rule;
use super::record::{Ended, RESTARTING_ALL, Record, Role, State};
use k8s_openapi::api::core::v1::{Container, PodSpec};
use std::time::Instant;

/// The action of such rules.
const ACTION: &str = "RestartAllContainers";
const MESSAGE: &str = "The container is removed because RestartAllContainers in place";
/// What a container that was killed for it ends with.
const KILLED: i32 = 137;

/// The containers that a rule can be of, in the order of their records.
fn ruled(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

/// Whether a rule of the pod may ask for it.
pub(super) fn is_possible(spec: &PodSpec) -> bool {
    ruled(spec).flat_map(|container| container.restart_policy_rules.iter().flatten()).any(|rule| rule.action == ACTION)
}

/// The container whose end asks for it now.
pub(super) fn source(spec: &PodSpec, records: &[Record]) -> Option<usize> {
    let asks = |(container, record): (&Container, &Record)| match &record.state {
        State::Ended(ended) => rule(container, ended.code).is_some_and(|rule| rule.action == ACTION),
        _ => false,
    };
    ruled(spec).zip(records).position(asks)
}

impl Actor {
    /// The container whose end asks for all to begin anew.
    pub(super) fn restarts_all(&self) -> Option<usize> {
        source(self.spec(), &self.records)
    }

    /// One step of it. True while others still run: nothing is started meanwhile.
    pub(super) fn restart_all(&mut self, now: Instant) -> bool {
        let Some(source) = self.restarts_all() else { return false };
        let (records, controls) = (&self.records, &self.controls);
        let busy = |index: usize| controls[index].live.is_some() || controls[index].starting;
        let of_pod = (0..records.len()).filter(|index| records[*index].role != Role::Ephemeral);
        let running: Vec<usize> = of_pod.filter(|index| busy(*index)).collect();
        let mains = running.iter().any(|index| records[*index].role == Role::Main);
        let next: Vec<usize> =
            running.iter().copied().filter(|index| !mains || records[*index].role == Role::Main).collect();
        for index in next {
            self.kill_container(index, now);
        }
        if running.is_empty() {
            self.begin_anew(source, now);
        }
        !running.is_empty()
    }

    /// Forgets the runs that there were. Pods that do so over and over wait as if their source alone were restarted.
    fn begin_anew(&mut self, source: usize, now: Instant) {
        let delay = self.controls[source].crash.next(now);
        for (record, control) in self.records.iter_mut().zip(&mut self.controls) {
            if record.role == Role::Ephemeral || record.newest_end().is_none() {
                continue;
            }
            (control.retry_at, control.shows_later) = ((!delay.is_zero()).then(|| now + delay), None);
            control.restart_wanted = false;
            record.last = Some(Ended {
                id: record.newest_end().and_then(|ended| ended.id.clone()),
                code: KILLED,
                signal: None,
                reason: RESTARTING_ALL.to_owned(),
                message: Some(MESSAGE.to_owned()),
                started_at: None,
                finished_at: None,
            });
            let message = Some(MESSAGE.to_owned());
            record.state = State::Waiting { reason: RESTARTING_ALL.to_owned(), message };
            (record.anew, record.started, record.ready) = (true, false, false);
        }
        self.writer.mark_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_rule_that_matches_an_exit_says_what_follows() {
        let rule = |action: &str, operator: &str, codes: &[i32]| json!({"action": action, "exitCodes": {"operator": operator, "values": codes}});
        let spec: PodSpec = serde_json::from_value(json!({"containers": [{"name": "c", "restartPolicy": "Never",
            "restartPolicyRules": [rule("Restart", "In", &[1]), rule(ACTION, "NotIn", &[0])]}]}))
        .unwrap();
        assert!(is_possible(&spec) && !is_possible(&PodSpec::default()));
        let ended = |code| {
            let end = Ended {
                id: None,
                code,
                signal: None,
                reason: String::new(),
                message: None,
                started_at: None,
                finished_at: None,
            };
            [Record { state: State::Ended(end), ..Record::new("c", "img", Role::Main) }]
        };
        for (code, expected) in [(0, None), (1, None), (2, Some(0))] {
            assert_eq!(source(&spec, &ended(code)), expected, "{code}");
        }
    }
}
