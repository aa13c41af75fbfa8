//! Columns of Pods: what `kubectl get pods` says of readiness, status and restarts.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::cells::{AGE, column, condition_true, list, number, text, text_or};
use super::{NAME, age};
use crate::kind::Column;

/// Name, ready containers, status, restarts, age; wide: address, node, gates.
pub const COLUMNS: &[Column] = &[
    NAME,
    column("Ready", "string", 0, |object, _| {
        let summary = Summary::of(object);
        format!("{}/{}", summary.ready, summary.containers).into()
    }),
    column("Status", "string", 0, |object, _| Summary::of(object).reason.into()),
    column("Restarts", "string", 0, |object, now| Summary::of(object).restarts_text(now).into()),
    AGE,
    column("IP", "string", 1, |object, _| text_or(object, "/status/podIPs/0/ip", "<none>").into()),
    column("Node", "string", 1, |object, _| text_or(object, "/spec/nodeName", "<none>").into()),
    column("Nominated Node", "string", 1, |object, _| text_or(object, "/status/nominatedNodeName", "<none>").into()),
    column("Readiness Gates", "string", 1, |object, _| readiness_gates(object).into()),
];

/// Conditions of the row of a pod that has ended.
pub(super) fn row_conditions(pod: &Value) -> Option<Value> {
    let (reason, message) = match text(pod, "/status/phase") {
        "Succeeded" => ("Succeeded", "The pod has completed successfully."),
        "Failed" => ("Failed", "The pod failed."),
        _ => return None,
    };
    Some(json!([{"type": "Completed", "status": "True", "reason": reason, "message": message}]))
}

/// What a pod's container statuses come to.
struct Summary {
    ready: usize,
    containers: usize,
    reason: String,
    restarts: Restarts,
}

#[derive(Clone, Default)]
struct Restarts {
    count: i64,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, container: &Value) {
        self.count += number(container, "/restartCount");
        self.last = self.last.max(age::parse(container.pointer("/lastState/terminated/finishedAt")));
    }
}

impl Summary {
    fn of(pod: &Value) -> Self {
        let mut summary = Self {
            ready: 0,
            containers: list(pod, "/spec/containers").len()
                + list(pod, "/spec/initContainers").iter().filter(|container| restartable(container)).count(),
            reason: text_or(pod, "/status/reason", text(pod, "/status/phase")).to_owned(),
            restarts: Restarts::default(),
        };
        let gated = |condition: &Value| condition["type"] == "PodScheduled" && condition["reason"] == "SchedulingGated";
        if list(pod, "/status/conditions").iter().any(gated) {
            "SchedulingGated".clone_into(&mut summary.reason);
        }
        let sidecar_restarts = summary.look_at_init_containers(pod);
        if let Some(sidecar_restarts) = sidecar_restarts {
            summary.restarts = sidecar_restarts;
            summary.look_at_containers(pod);
        }
        if pod.pointer("/metadata/deletionTimestamp").is_some() {
            if text(pod, "/status/reason") == "NodeLost" {
                "Unknown".clone_into(&mut summary.reason);
            } else if !matches!(text(pod, "/status/phase"), "Succeeded" | "Failed") {
                "Terminating".clone_into(&mut summary.reason);
            }
        }
        summary
    }

    /// Answers the restarts of sidecars if the pod is past initialization, so that the main containers decide.
    fn look_at_init_containers(&mut self, pod: &Value) -> Option<Restarts> {
        let specs = list(pod, "/spec/initContainers");
        let mut sidecars = Restarts::default();
        let mut initializing = None;
        for (index, container) in list(pod, "/status/initContainerStatuses").iter().enumerate() {
            self.restarts.add(container);
            let sidecar = specs.iter().any(|spec| spec["name"] == container["name"] && restartable(spec));
            if sidecar {
                sidecars.add(container);
            }
            let terminated = container.pointer("/state/terminated");
            if terminated.is_some_and(|terminated| number(terminated, "/exitCode") == 0) {
                continue;
            }
            if sidecar && container["started"] == true {
                self.ready += usize::from(container["ready"] == true);
                continue;
            }
            let waiting = text(container, "/state/waiting/reason");
            initializing = Some(match terminated {
                Some(terminated) => format!("Init:{}", end_of(terminated)),
                None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
                None => format!("Init:{index}/{}", specs.len()),
            });
            break;
        }
        match initializing {
            Some(reason) => {
                self.reason = reason;
                condition_true(pod, "Initialized").then_some(sidecars)
            }
            None => Some(sidecars),
        }
    }

    fn look_at_containers(&mut self, pod: &Value) {
        let mut running = false;
        for container in list(pod, "/status/containerStatuses").iter().rev() {
            self.restarts.add(container);
            let waiting = text(container, "/state/waiting/reason");
            if !waiting.is_empty() {
                waiting.clone_into(&mut self.reason);
            } else if let Some(terminated) = container.pointer("/state/terminated").filter(|state| state.is_object()) {
                self.reason = end_of(terminated);
            } else if container["ready"] == true && container.pointer("/state/running").is_some() {
                running = true;
                self.ready += 1;
            }
        }
        if running && self.reason == "Completed" {
            let ready = condition_true(pod, "Ready");
            (if ready { "Running" } else { "NotReady" }).clone_into(&mut self.reason);
        }
    }

    fn restarts_text(&self, now: Timestamp) -> String {
        match self.restarts.last {
            Some(last) if self.restarts.count != 0 => {
                format!("{} ({} ago)", self.restarts.count, age::human(now.as_second() - last.as_second()))
            }
            _ => self.restarts.count.to_string(),
        }
    }
}

/// Why a container ended: its reason, or its signal or exit code.
fn end_of(terminated: &Value) -> String {
    match (text(terminated, "/reason"), number(terminated, "/signal")) {
        ("", 0) => format!("ExitCode:{}", number(terminated, "/exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

/// Whether an init container is a sidecar.
fn restartable(spec: &Value) -> bool {
    spec["restartPolicy"] == "Always"
}

fn readiness_gates(pod: &Value) -> String {
    let gates = list(pod, "/spec/readinessGates");
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let met = gates.iter().filter(|gate| condition_true(pod, gate["conditionType"].as_str().unwrap_or_default()));
    format!("{}/{}", met.count(), gates.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(pod: &Value) -> Vec<Value> {
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        COLUMNS[1..4].iter().map(|column| (column.cell)(pod, now)).collect()
    }

    #[test]
    fn a_running_pod() {
        let pod = json!({"spec": {"containers": [{"name": "a"}]}, "status": {"phase": "Running",
            "containerStatuses": [{"name": "a", "ready": true, "restartCount": 0, "state": {"running": {}}}]}});
        assert_eq!(cells(&pod), [json!("1/1"), json!("Running"), json!("0")]);
    }

    #[test]
    fn a_crashing_container_shows_when_it_last_ended() {
        let pod = json!({"spec": {"containers": [{"name": "a"}]}, "status": {"phase": "Running",
            "containerStatuses": [{"name": "a", "ready": false, "restartCount": 3,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"finishedAt": "2026-01-01T00:00:55Z"}}}]}});
        assert_eq!(cells(&pod), [json!("0/1"), json!("CrashLoopBackOff"), json!("3 (5s ago)")]);
    }

    #[test]
    fn a_new_pod_is_pending_and_then_creating_its_containers() {
        let mut pod = json!({"spec": {"containers": [{"name": "a"}]}, "status": {"phase": "Pending"}});
        assert_eq!(cells(&pod)[1], "Pending");
        pod["status"]["containerStatuses"] =
            json!([{"name": "a", "state": {"waiting": {"reason": "ContainerCreating"}}}]);
        assert_eq!(cells(&pod)[1], "ContainerCreating");
    }

    #[test]
    fn init_containers_count_up_and_show_their_failure() {
        let mut pod = json!({"spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "i"}, {"name": "j"}]},
            "status": {"phase": "Pending", "initContainerStatuses": [
                {"name": "i", "state": {"terminated": {"exitCode": 0}}}, {"name": "j", "state": {"running": {}}}]}});
        assert_eq!(cells(&pod)[1], "Init:1/2");
        pod["status"]["initContainerStatuses"][1]["state"] = json!({"terminated": {"exitCode": 3, "reason": "Error"}});
        assert_eq!(cells(&pod)[1], "Init:Error");
        pod["status"]["initContainerStatuses"][1]["state"] = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        assert_eq!(cells(&pod)[1], "Init:CrashLoopBackOff");
    }

    #[test]
    fn a_started_sidecar_counts_as_a_container() {
        let pod = json!({"spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "s", "restartPolicy": "Always"}]},
            "status": {"phase": "Running",
                "initContainerStatuses": [{"name": "s", "started": true, "ready": true, "restartCount": 1, "state": {"running": {}}}],
                "containerStatuses": [{"name": "a", "ready": true, "restartCount": 1, "state": {"running": {}}}]}});
        assert_eq!(cells(&pod), [json!("2/2"), json!("Running"), json!("2")]);
    }

    #[test]
    fn ends_are_named_and_deletion_comes_first() {
        let mut pod = json!({"spec": {"containers": [{"name": "a"}]}, "status": {"phase": "Failed",
            "containerStatuses": [{"name": "a", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]}});
        assert_eq!(cells(&pod)[1], "OOMKilled");
        pod["metadata"] = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
        assert_eq!(cells(&pod)[1], "OOMKilled");
        pod["status"]["phase"] = json!("Running");
        assert_eq!(cells(&pod)[1], "Terminating");
        assert!(row_conditions(&json!({"status": {"phase": "Succeeded"}})).is_some());
    }

    #[test]
    fn one_completed_and_one_running_container_are_running_or_not_ready() {
        let mut pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}, "status": {"phase": "Running",
            "containerStatuses": [{"name": "a", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}},
                {"name": "b", "ready": true, "state": {"running": {}}}]}});
        assert_eq!(cells(&pod)[1], "NotReady");
        pod["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
        assert_eq!(cells(&pod)[1], "Running");
    }
}
