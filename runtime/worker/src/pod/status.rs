//! A pod's status from its containers' records: phase, conditions, container statuses. No I/O.

use super::conditions::{Facts, PASSING, Verdict, conditions};
use super::record::{CREATING, Ended, INITIALIZING, Record, Role, State};
use crate::addresses::Addresses;
use crate::container::mounts;
use crate::container::resources::qos_class;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    ContainerUser, HostIP, LinuxContainerUser, Pod, PodIP, PodSpec, PodStatus, ResourceRequirements, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::Value;

/// All that a status is computed from.
pub(crate) struct Inputs<'a> {
    pub pod: &'a Pod,
    pub records: &'a [Record],
    /// Which of the records that have ended will run again.
    pub again: &'a [bool],
    /// The ephemeral ones of the records, as containers.
    pub ephemeral: &'a [Container],
    /// The sandbox exists and has its network.
    pub sandbox_ready: bool,
    pub address: Option<Addresses>,
    pub host_ips: Addresses,
    pub start_time: Timestamp,
    /// The pod will run nothing any more: it is being deleted, was refused, or has ended.
    pub terminal: bool,
    /// A phase, reason and message that the containers don't show (refused, deadline exceeded).
    pub verdict: Option<(&'static str, &'a str)>,
    /// `spec.resources` as the pod has them.
    pub whole: Option<&'a ResourceRequirements>,
    /// Conditions that hold only now and then.
    pub passing: Vec<Verdict>,
    pub now: Timestamp,
}

/// The status to be written.
pub(crate) fn status(inputs: &Inputs<'_>) -> PodStatus {
    let default = PodSpec::default();
    let spec = inputs.pod.spec.as_ref().unwrap_or(&default);
    let before = inputs.pod.status.as_ref();
    let all_ended = inputs.records.iter().all(|record| !record.is_running());
    let phase = match (inputs.verdict, phase(inputs.records, inputs.again, inputs.terminal)) {
        (Some(_), _) if all_ended => "Failed",
        // Whoever sees the end may give away what the pod had: it is told once nothing runs any more, as by the kubelet.
        (_, "Succeeded" | "Failed") if !all_ended => {
            before.and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
        }
        (_, phase) => phase,
    };
    let old_conditions = before.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let generation = inputs.pod.metadata.generation;
    let facts = Facts { spec, phase, sandbox_ready: inputs.sandbox_ready, records: inputs.records };
    let all = conditions(&facts, &inputs.passing, old_conditions, generation, inputs.now);
    let of = |wanted: fn(Role) -> bool, containers: &[Container]| -> Vec<ContainerStatus> {
        let records = inputs.records.iter().filter(|record| wanted(record.role));
        records.zip(containers).map(|(record, container)| container_status(record, container, inputs.records)).collect()
    };
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let pod_ips = inputs.address.map(|addresses| addresses.all().map(|ip| PodIP { ip: ip.to_string() }).collect());
    let refused = inputs.verdict.is_some() && inputs.records.iter().all(|record| record.starts == 0);
    PodStatus {
        phase: Some(phase.to_owned()),
        reason: inputs.verdict.map(|(reason, _)| reason.to_owned()),
        message: inputs.verdict.map(|(_, message)| message.to_owned()),
        conditions: Some(all),
        host_ip: Some(inputs.host_ips.first.to_string()),
        host_ips: Some(inputs.host_ips.all().map(|ip| HostIP { ip: ip.to_string() }).collect()),
        pod_ip: inputs.address.map(|addresses| addresses.first.to_string()),
        pod_ips,
        start_time: Some(Time(inputs.start_time)),
        qos_class: before
            .and_then(|status| status.qos_class.clone())
            .or_else(|| Some(qos_class(spec).name().to_owned())),
        observed_generation: generation,
        resources: inputs.whole.cloned(),
        allocated_resources: inputs.whole.and_then(|whole| whole.requests.clone()),
        container_statuses: (!refused).then(|| of(|role| role == Role::Main, &spec.containers)),
        init_container_statuses: (!refused && !init.is_empty())
            .then(|| of(|role| matches!(role, Role::Init | Role::Sidecar), init)),
        ephemeral_container_statuses: (!refused && !inputs.ephemeral.is_empty())
            .then(|| of(|role| role == Role::Ephemeral, inputs.ephemeral)),
        ..PodStatus::default()
    }
}

/// The pod's phase, as the kubelet derives it (`getPhase`). `again` says of each that has ended whether it will run again.
pub(crate) fn phase(records: &[Record], again: &[bool], terminal: bool) -> &'static str {
    let begun = records.iter().any(|record| record.role == Role::Main && record.starts > 0);
    let failed = |record: &Record| matches!(&record.state, State::Ended(ended) if ended.code != 0);
    let failed_for_good =
        |(record, again): (&Record, &bool)| record.role == Role::Init && failed(record) && (terminal || !again);
    if !begun && records.iter().zip(again).any(failed_for_good) {
        return "Failed";
    }
    let returns = records.iter().zip(again).any(|(record, again)| record.role == Role::Main && *again);
    let pending_init = records.iter().any(|record| match record.role {
        Role::Init => !matches!(&record.state, State::Ended(ended) if ended.code == 0),
        Role::Sidecar => !record.started && !matches!(record.state, State::Ended(_)),
        Role::Main | Role::Ephemeral => false,
    });
    let (mut running, mut waiting, mut succeeded, mut stopped) = (0, 0, 0, 0);
    for record in records.iter().filter(|record| matches!(record.role, Role::Main | Role::Sidecar)) {
        match (&record.state, record.newest_end()) {
            (State::Running { .. }, _) => running += 1,
            // A sidecar that has ended, or not begun, decides nothing.
            _ if record.role == Role::Sidecar => {}
            (_, Some(ended)) => {
                stopped += 1;
                succeeded += usize::from(ended.code == 0 && matches!(record.state, State::Ended(_)));
            }
            (_, None) => waiting += 1,
        }
    }
    if terminal && running == 0 && stopped > 0 {
        return if waiting == 0 && succeeded == stopped { "Succeeded" } else { "Failed" };
    }
    if (pending_init && !begun) || waiting > 0 {
        return "Pending";
    }
    match (running, stopped) {
        (0, 0) => "Pending",
        (0, _) if returns => "Running",
        (0, _) if succeeded == stopped => "Succeeded",
        (0, _) => "Failed",
        _ => "Running",
    }
}

fn container_status(record: &Record, container: &Container, all: &[Record]) -> ContainerStatus {
    // Of a pod with init containers every container that waits, and for nothing else, waits for the pod's initialization.
    let initializing =
        record.role != Role::Ephemeral && all.iter().any(|other| matches!(other.role, Role::Init | Role::Sidecar));
    let state = match &record.state {
        State::Waiting { reason, message } => ContainerState {
            waiting: Some(ContainerStateWaiting {
                reason: Some(if reason == CREATING && initializing { INITIALIZING.to_owned() } else { reason.clone() }),
                message: message.clone(),
            }),
            ..ContainerState::default()
        },
        State::Running { started_at, .. } => ContainerState {
            running: Some(ContainerStateRunning { started_at: Some(Time(*started_at)) }),
            ..ContainerState::default()
        },
        State::Ended(ended) => terminated(ended),
    };
    let id = match &record.state {
        State::Running { id, .. } => Some(id),
        State::Ended(ended) => ended.id.as_ref(),
        State::Waiting { .. } => record.last.as_ref().and_then(|ended| ended.id.as_ref()),
    };
    let running = record.is_running();
    let (image, image_id) = record.resolved.clone().unwrap_or_else(|| (record.image.clone(), String::new()));
    let ready = match record.role {
        // An init container is ready once it has done its work.
        Role::Init => matches!(&record.state, State::Ended(ended) if ended.code == 0),
        Role::Ephemeral => false,
        _ => running && record.ready,
    };
    ContainerStatus {
        name: record.name.clone(),
        image,
        image_id,
        container_id: id.map(|id| container_id(id)),
        ready,
        started: (record.role != Role::Ephemeral).then_some(running && record.started),
        restart_count: i32::try_from(record.restarts()).unwrap_or(i32::MAX),
        state: Some(state),
        last_state: Some(record.last.as_ref().map_or_else(ContainerState::default, terminated)),
        allocated_resources: record.allocated.requests.clone(),
        resources: running.then(|| record.actuated.clone()),
        stop_signal: record.stop_signal.clone(),
        volume_mounts: container.volume_mounts.as_ref().map(|mounts| {
            let status = |mount: &k8s_openapi::api::core::v1::VolumeMount| VolumeMountStatus {
                name: mount.name.clone(),
                mount_path: mount.mount_path.clone(),
                read_only: mount.read_only,
                recursive_read_only: mount.read_only.filter(|ro| *ro).map(|_| {
                    let recursive = mounts::is_recursive(mount);
                    if recursive { "Enabled".to_owned() } else { "Disabled".to_owned() }
                }),
            };
            mounts.iter().map(status).collect()
        }),
        user: record.user.as_ref().filter(|_| running).map(|user| ContainerUser {
            linux: Some(LinuxContainerUser {
                uid: i64::from(user.uid),
                gid: i64::from(user.gid),
                supplemental_groups: Some(user.groups.iter().map(|group| i64::from(*group)).collect()),
            }),
        }),
        ..ContainerStatus::default()
    }
}

fn terminated(ended: &Ended) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: ended.id.as_deref().map(container_id),
            exit_code: ended.code,
            signal: ended.signal,
            reason: Some(ended.reason.clone()),
            message: ended.message.clone(),
            started_at: ended.started_at.map(Time),
            finished_at: ended.finished_at.map(Time),
        }),
        ..ContainerState::default()
    }
}

/// `containerID` as clients expect it: type and id.
fn container_id(id: &str) -> String {
    format!("carob://{id}")
}

/// The strategic merge patch that brings a status about. What a condition or the status no longer says is set to null, since
/// a merge would keep it; conditions of others stay untouched.
pub(crate) fn patch(pod: &Pod, status: &PodStatus) -> Value {
    let mut value = serde_json::to_value(status).unwrap_or_default();
    if let Some(conditions) = value.get_mut("conditions").and_then(Value::as_array_mut) {
        let old = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let old: Vec<_> = old.collect();
        for condition in conditions.iter_mut().filter_map(Value::as_object_mut) {
            let type_ = condition.get("type").and_then(Value::as_str).unwrap_or_default();
            let Some(before) = old.iter().find(|before| before.type_ == type_) else { continue };
            let stale = [("reason", before.reason.is_some()), ("message", before.message.is_some())];
            for (field, had) in stale {
                if had && !condition.contains_key(field) {
                    condition.insert(field.to_owned(), Value::Null);
                }
            }
        }
        for gone in PASSING.iter().filter(|type_| old.iter().any(|before| before.type_ == **type_)) {
            if !conditions.iter().any(|condition| condition["type"] == **gone) {
                conditions.push(serde_json::json!({"$patch": "delete", "type": gone}));
            }
        }
    }
    if let (Some(fields), Some(before)) = (value.as_object_mut(), pod.status.as_ref()) {
        let stale = [
            ("reason", before.reason.is_some()),
            ("message", before.message.is_some()),
            ("podIP", before.pod_ip.is_some()),
            ("podIPs", before.pod_ips.is_some()),
        ];
        for (field, had) in stale {
            if had && !fields.contains_key(field) {
                fields.insert(field.to_owned(), Value::Null);
            }
        }
        // Lists that a strategic merge joins by address: a pod that has another one now has only that.
        for field in ["podIPs", "hostIPs"] {
            if let Some(addresses) = fields.get_mut(field).and_then(Value::as_array_mut) {
                addresses.insert(0, serde_json::json!({"$patch": "replace"}));
            }
        }
    }
    serde_json::json!({"metadata": {"uid": pod.metadata.uid}, "status": value})
}

#[cfg(test)]
mod tests {
    use super::super::plan::runs_again;
    use super::super::record::{CRASH_LOOP, end_reason};
    use super::*;
    use serde_json::json;

    fn phase_under(policy: &str, records: &[Record], terminal: bool) -> &'static str {
        let again = |record: &Record| {
            let ended = record.newest_end();
            ended.is_some_and(|ended| runs_again(policy, &Container::default(), record.role, ended.code))
        };
        phase(records, &records.iter().map(again).collect::<Vec<_>>(), terminal)
    }

    fn record(name: &str, role: Role, state: State) -> Record {
        Record { starts: 1, state, started: true, ..Record::new(name, "img", role) }
    }

    fn up() -> State {
        State::Running { id: "f00".into(), started_at: Timestamp::UNIX_EPOCH }
    }

    fn end(code: i32) -> Ended {
        Ended {
            id: Some("f00".into()),
            code,
            signal: None,
            reason: end_reason(code, false).into(),
            message: None,
            started_at: Some(Timestamp::UNIX_EPOCH),
            finished_at: Some(Timestamp::UNIX_EPOCH),
        }
    }

    fn ended(code: i32) -> State {
        State::Ended(end(code))
    }

    #[test]
    fn phases_follow_the_kubelet() {
        let new = || State::Waiting { reason: CREATING.into(), message: None };
        for (policy, a, b, terminal, expected) in [
            ("Always", up(), up(), false, "Running"),
            ("Always", up(), ended(1), false, "Running"),
            ("Always", ended(1), ended(0), false, "Running"),
            ("OnFailure", ended(0), ended(0), false, "Succeeded"),
            ("OnFailure", ended(1), ended(0), false, "Running"),
            ("Never", ended(1), ended(0), false, "Failed"),
            ("Never", ended(0), up(), false, "Running"),
            ("Always", ended(0), ended(0), true, "Succeeded"),
            ("Always", ended(137), ended(0), true, "Failed"),
            ("Always", up(), new(), false, "Pending"),
            ("Always", new(), new(), true, "Pending"),
        ] {
            let mut records = [record("a", Role::Main, a), record("b", Role::Main, b)];
            for record in &mut records {
                record.starts = u32::from(!matches!(record.state, State::Waiting { .. }));
            }
            assert_eq!(phase_under(policy, &records, terminal), expected, "{policy} {records:?}");
        }
    }

    #[test]
    fn init_containers_keep_the_pod_pending_or_fail_it() {
        let main = Record::new("a", "img", Role::Main);
        let with = |state| [record("i", Role::Init, state), main.clone()];
        assert_eq!(phase_under("Always", &with(up()), false), "Pending");
        assert_eq!(phase_under("Always", &with(ended(1)), false), "Pending");
        assert_eq!(phase_under("Never", &with(ended(1)), false), "Failed");
    }

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 2},
            "spec": {"containers": [{"name": "a", "image": "img"}]},
            "status": {"conditions": [
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2024-01-01T00:00:00Z"},
                {"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "m"},
                {"type": "lb", "status": "True"}
            ], "message": "old", "qosClass": "BestEffort"}
        }))
        .unwrap()
    }

    fn compute(pod: &Pod, records: &[Record]) -> PodStatus {
        status(&Inputs {
            pod,
            records,
            again: &records.iter().map(|record| record.newest_end().is_some()).collect::<Vec<_>>(),
            ephemeral: &[],
            sandbox_ready: true,
            address: Some("10.0.0.2".parse().unwrap()),
            host_ips: "192.168.0.1".parse().unwrap(),
            start_time: Timestamp::UNIX_EPOCH,
            terminal: false,
            verdict: None,
            whole: None,
            passing: Vec::new(),
            now: Timestamp::UNIX_EPOCH,
        })
    }

    #[test]
    fn a_running_container_shows_all_that_clients_read() {
        let mut container = record("a", Role::Main, up());
        container.ready = true;
        container.resolved = Some(("docker.io/library/img:latest".into(), "docker.io/library/img@sha256:1".into()));
        let status = serde_json::to_value(compute(&pod(), &[container])).unwrap();
        assert_eq!(status["phase"], "Running");
        assert_eq!(status["podIP"], "10.0.0.2");
        assert_eq!(status["hostIPs"][0]["ip"], "192.168.0.1");
        assert_eq!(status["observedGeneration"], 2);
        let container = &status["containerStatuses"][0];
        assert_eq!(container["containerID"], "carob://f00");
        assert_eq!(container["imageID"], "docker.io/library/img@sha256:1");
        assert_eq!(container["state"]["running"]["startedAt"], "1970-01-01T00:00:00Z");
        assert_eq!((&container["ready"], &container["started"]), (&json!(true), &json!(true)));
        assert_eq!(container["lastState"], json!({}));
    }

    #[test]
    fn a_crash_loop_waits_and_remembers_its_last_end() {
        let mut container = record("a", Role::Main, State::Waiting { reason: CRASH_LOOP.into(), message: None });
        (container.last, container.starts) = (Some(end(3)), 2);
        let status = serde_json::to_value(compute(&pod(), &[container])).unwrap();
        let container = &status["containerStatuses"][0];
        assert_eq!(container["state"]["waiting"]["reason"], CRASH_LOOP);
        assert_eq!(container["lastState"]["terminated"]["exitCode"], 3);
        assert_eq!((&container["restartCount"], &status["phase"]), (&json!(1), &json!("Running")));
    }

    #[test]
    fn a_pod_with_another_address_has_only_that() {
        let mut before = pod();
        let status = before.status.get_or_insert_default();
        status.pod_ips = Some(vec![PodIP { ip: "10.0.0.9".into() }]);
        let body = patch(&before, &compute(&before, &[record("a", Role::Main, up())]));
        let kind = carob_api::kinds::Registry::builtin().by_gvk("", "v1", "Pod").unwrap();
        let merged = carob_api::patch::strategic_merge(
            kind,
            &serde_json::to_value(&before).unwrap(),
            body.to_string().as_bytes(),
        );
        assert_eq!(merged.unwrap()["status"]["podIPs"], json!([{"ip": "10.0.0.2"}]));
    }

    #[test]
    fn the_patch_clears_what_no_longer_holds_and_leaves_others_alone() {
        let mut container = record("a", Role::Main, up());
        container.ready = true;
        let pod = pod();
        let patch = patch(&pod, &compute(&pod, &[container]));
        assert_eq!(patch["metadata"]["uid"], "u");
        assert_eq!(patch["status"]["message"], Value::Null);
        assert!(patch["status"].as_object().unwrap().contains_key("message"));
        let conditions = patch["status"]["conditions"].as_array().unwrap();
        let ready = conditions.iter().find(|condition| condition["type"] == "Ready").unwrap();
        assert!(ready.as_object().unwrap().contains_key("reason") && ready["reason"].is_null());
        assert!(!conditions.iter().any(|condition| condition["type"] == "lb"));
    }
}
