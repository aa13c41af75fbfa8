//! A pod's conditions, with the kubelet's reasons and messages.

use super::record::{Record, Role, State};
use super::restart_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PodCondition, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// A condition before it is compared with what it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    type_: &'static str,
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

/// Types of conditions that are removed when they no longer hold.
pub(crate) const PASSING: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];

/// What conditions are computed from.
pub(crate) struct Facts<'a> {
    pub spec: &'a PodSpec,
    pub phase: &'a str,
    pub sandbox_ready: bool,
    pub records: &'a [Record],
}

pub(crate) fn verdict(
    type_: &'static str,
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
) -> Verdict {
    Verdict { type_, holds, reason, message }
}

/// The conditions that the node owns: the `passing` ones that hold now, then the lasting ones in the kubelet's order. A
/// transition time changes only with the status.
pub(crate) fn conditions(
    facts: &Facts<'_>,
    passing: &[Verdict],
    before: &[PodCondition],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<PodCondition> {
    let Facts { spec, phase, sandbox_ready, records } = *facts;
    let containers_ready = containers_ready(phase, records);
    let verdicts = [
        verdict("PodReadyToStartContainers", sandbox_ready, None, None),
        initialized(phase, records),
        ready(spec, phase, &containers_ready, before),
        containers_ready,
    ];
    let of = |Verdict { type_, holds, reason, message }: Verdict| {
        let status = if holds { "True" } else { "False" };
        let old = before.iter().find(|condition| condition.type_ == type_);
        let since = old.filter(|old| old.status == status).and_then(|old| old.last_transition_time.clone());
        PodCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.map(str::to_owned),
            message,
            last_transition_time: since.or(Some(Time(now))),
            last_probe_time: None,
            observed_generation: generation,
        }
    };
    let mut all: Vec<PodCondition> = passing.iter().cloned().chain(verdicts).map(of).collect();
    let scheduled = before.iter().find(|condition| condition.type_ == "PodScheduled");
    if let Some(scheduled) = scheduled {
        all.push(PodCondition { observed_generation: generation, ..scheduled.clone() });
    } else {
        all.push(PodCondition {
            type_: "PodScheduled".to_owned(),
            status: "True".to_owned(),
            last_transition_time: Some(Time(now)),
            observed_generation: generation,
            ..PodCondition::default()
        });
    }
    if restart_all::is_possible(spec) {
        all.push(of(restarting_all(facts)));
    }
    all
}

/// Whether the pod begins anew.
fn restarting_all(facts: &Facts<'_>) -> Verdict {
    const TYPE: &str = "AllContainersRestarting";
    match facts.phase {
        "Succeeded" => return verdict(TYPE, false, Some("PodCompleted"), None),
        "Failed" => return verdict(TYPE, false, Some("PodFailed"), None),
        _ => {}
    }
    if restart_all::source(facts.spec, facts.records).is_none() {
        return verdict(TYPE, false, None, None);
    }
    let message = "container exited with restart policy rule".to_owned();
    verdict(TYPE, true, Some("RestartAllContainersStarted"), Some(message))
}

fn initialized(phase: &str, records: &[Record]) -> Verdict {
    const TYPE: &str = "Initialized";
    if phase == "Succeeded" {
        return verdict(TYPE, true, Some("PodCompleted"), None);
    }
    let begun = records.iter().any(|record| record.role == Role::Main && record.starts > 0);
    let incomplete: Vec<&str> = records
        .iter()
        .filter(|record| match record.role {
            Role::Main | Role::Ephemeral => false,
            Role::Sidecar => !record.started && !begun,
            Role::Init => !begun && !matches!(&record.state, State::Ended(ended) if ended.code == 0),
        })
        .map(|record| record.name.as_str())
        .collect();
    if incomplete.is_empty() {
        return verdict(TYPE, true, None, None);
    }
    let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
    verdict(TYPE, false, Some("ContainersNotInitialized"), Some(message))
}

fn containers_ready(phase: &str, records: &[Record]) -> Verdict {
    const TYPE: &str = "ContainersReady";
    match phase {
        "Succeeded" => return verdict(TYPE, false, Some("PodCompleted"), None),
        "Failed" => return verdict(TYPE, false, Some("PodFailed"), None),
        _ => {}
    }
    let unready: Vec<&str> = records
        .iter()
        .filter(|record| matches!(record.role, Role::Main | Role::Sidecar) && !(record.is_running() && record.ready))
        .map(|record| record.name.as_str())
        .collect();
    if unready.is_empty() {
        return verdict(TYPE, true, None, None);
    }
    let message = format!("containers with unready status: [{}]", unready.join(" "));
    verdict(TYPE, false, Some("ContainersNotReady"), Some(message))
}

/// Ready is ContainersReady and every readiness gate.
fn ready(spec: &PodSpec, phase: &str, containers: &Verdict, before: &[PodCondition]) -> Verdict {
    const TYPE: &str = "Ready";
    if !containers.holds || phase == "Succeeded" || phase == "Failed" {
        return verdict(TYPE, false, containers.reason, containers.message.clone());
    }
    let mut missing = Vec::new();
    for gate in spec.readiness_gates.iter().flatten() {
        let name = &gate.condition_type;
        match before.iter().find(|condition| condition.type_ == *name) {
            None => missing.push(format!("corresponding condition of pod readiness gate \"{name}\" does not exist.")),
            Some(condition) if condition.status != "True" => missing
                .push(format!("the status of pod readiness gate \"{name}\" is not \"True\", but {}", condition.status)),
            Some(_) => {}
        }
    }
    if missing.is_empty() {
        return verdict(TYPE, true, None, None);
    }
    verdict(TYPE, false, Some("ReadinessGatesNotReady"), Some(missing.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn running(name: &str, ready: bool) -> Record {
        let mut record = Record::new(name, "i", Role::Main);
        record.starts = 1;
        record.state = State::Running { id: "x".into(), started_at: Timestamp::UNIX_EPOCH };
        (record.started, record.ready) = (true, ready);
        record
    }

    fn find<'a>(all: &'a [PodCondition], type_: &str) -> &'a PodCondition {
        all.iter().find(|condition| condition.type_ == type_).unwrap()
    }

    fn compute(spec: serde_json::Value, phase: &str, records: &[Record], before: &[PodCondition]) -> Vec<PodCondition> {
        let spec: PodSpec = serde_json::from_value(spec).unwrap();
        let facts = Facts { spec: &spec, phase, sandbox_ready: true, records };
        conditions(&facts, &[], before, Some(3), Timestamp::from_second(50).unwrap())
    }

    #[test]
    fn unready_containers_are_named() {
        let all = compute(json!({"containers": []}), "Running", &[running("a", true), running("b", false)], &[]);
        let ready = find(&all, "Ready");
        assert_eq!((ready.status.as_str(), ready.reason.as_deref()), ("False", Some("ContainersNotReady")));
        assert_eq!(ready.message.as_deref(), Some("containers with unready status: [b]"));
        assert_eq!(find(&all, "PodScheduled").status, "True");
        let types: Vec<&str> = all.iter().map(|condition| condition.type_.as_str()).collect();
        assert_eq!(types, ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"]);
    }

    #[test]
    fn init_containers_that_have_not_finished_are_named() {
        let records = [Record::new("one", "i", Role::Init), Record::new("main", "i", Role::Main)];
        let all = compute(json!({"containers": []}), "Pending", &records, &[]);
        let condition = find(&all, "Initialized");
        assert_eq!(condition.message.as_deref(), Some("containers with incomplete status: [one]"));
    }

    #[test]
    fn readiness_gates_hold_ready_back() {
        let spec = json!({"containers": [], "readinessGates": [{"conditionType": "lb"}]});
        let all = compute(spec.clone(), "Running", &[running("a", true)], &[]);
        let ready = find(&all, "Ready");
        assert_eq!(ready.reason.as_deref(), Some("ReadinessGatesNotReady"));
        assert_eq!(
            ready.message.as_deref(),
            Some("corresponding condition of pod readiness gate \"lb\" does not exist.")
        );
        let gate = PodCondition { type_: "lb".into(), status: "True".into(), ..PodCondition::default() };
        let all = compute(spec, "Running", &[running("a", true)], &[gate]);
        assert_eq!(find(&all, "Ready").status, "True");
    }

    #[test]
    fn ended_pods_say_so_and_transitions_keep_their_time() {
        let all = compute(json!({"containers": []}), "Succeeded", &[running("a", true)], &[]);
        assert_eq!(find(&all, "Ready").reason.as_deref(), Some("PodCompleted"));
        assert_eq!(find(&all, "Initialized").reason.as_deref(), Some("PodCompleted"));
        let mut before = all.clone();
        for condition in &mut before {
            condition.last_transition_time = Some(Time(Timestamp::UNIX_EPOCH));
        }
        let all = compute(json!({"containers": []}), "Succeeded", &[running("a", true)], &before);
        assert!(all.iter().all(|condition| condition.last_transition_time == Some(Time(Timestamp::UNIX_EPOCH))));
    }
}
