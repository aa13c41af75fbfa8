//! Which pods go first when there are too many.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::pod_control::{phase, ready_since};

/// The annotation by which users say what a pod's end would cost.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The `count` pods whose end hurts least, by Kubernetes' order: not placed before placed, not running before running,
/// not ready before ready, cheap before dear, crowded nodes before others, ready for a short time before long, often
/// restarted before seldom, young before old.
pub(crate) fn first_to_go(pods: &[Arc<Pod>], count: usize) -> Vec<Arc<Pod>> {
    let mut per_node: HashMap<&str, usize> = HashMap::new();
    for pod in pods {
        *per_node.entry(node(pod)).or_default() += 1;
    }
    let mut ranked: Vec<_> = pods.iter().map(|pod| (rank(pod, per_node[node(pod)]), pod)).collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().take(count).map(|(_, pod)| Arc::clone(pod)).collect()
}

type Rank = (bool, u8, bool, i32, Reverse<usize>, Reverse<Timestamp>, Reverse<i32>, Reverse<Timestamp>);

fn rank(pod: &Pod, on_same_node: usize) -> Rank {
    let state = match phase(pod) {
        "Pending" => 0,
        "Running" => 2,
        _ => 1,
    };
    let since = ready_since(pod);
    let cost = pod.metadata.annotations.as_ref().and_then(|notes| notes.get(DELETION_COST)?.parse().ok()).unwrap_or(0);
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    let restarts = statuses.into_iter().flatten().map(|status| status.restart_count).max().unwrap_or(0);
    let created = pod.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    (
        !node(pod).is_empty(),
        state,
        since.is_some(),
        cost,
        Reverse(on_same_node),
        Reverse(since.unwrap_or(Timestamp::UNIX_EPOCH)),
        Reverse(restarts),
        Reverse(created),
    )
}

fn node(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    // A literal object reads better as an argument by value.
    #[allow(clippy::needless_pass_by_value)]
    fn pod(name: &str, more: Value) -> Arc<Pod> {
        let mut pod = json!({
            "metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"nodeName": "n", "containers": []},
            "status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}
        });
        json_patch::merge(&mut pod, &more);
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn order(pods: &[Arc<Pod>]) -> Vec<String> {
        first_to_go(pods, pods.len()).iter().map(|pod| pod.metadata.name.clone().unwrap()).collect()
    }

    #[test]
    fn unplaced_then_pending_then_unready_then_ready_pods_go() {
        let pods = [
            pod("ready", json!({})),
            pod("unready", json!({"status": {"conditions": []}})),
            pod("pending", json!({"status": {"phase": "Pending", "conditions": []}})),
            pod("unplaced", json!({"spec": {"nodeName": null}, "status": {"phase": "Pending", "conditions": []}})),
        ];
        assert_eq!(order(&pods), ["unplaced", "pending", "unready", "ready"]);
    }

    #[test]
    fn cheap_pods_and_then_young_ones_go_first() {
        let pods = [
            pod("old", json!({})),
            pod("dear", json!({"metadata": {"annotations": {DELETION_COST: "10"}}})),
            pod("young", json!({"metadata": {"creationTimestamp": "2026-01-02T00:00:00Z"}})),
            pod("cheap", json!({"metadata": {"annotations": {DELETION_COST: "-1"}}})),
        ];
        assert_eq!(order(&pods), ["cheap", "young", "old", "dear"]);
    }
}
