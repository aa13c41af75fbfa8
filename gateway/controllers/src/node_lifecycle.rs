//! Nodes that fall silent: their conditions become Unknown, taints say so to the scheduler and to the eviction of pods.
//!
//! A node is alive while its Lease or its Ready condition is renewed. What counts is when a renewal was seen here, so that
//! clocks needn't agree.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeStatus, Pod, Taint};
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::cluster::Cluster;
use crate::controller::{Controller, Setup};
use crate::events::Voice;
use crate::informer::Key;
use crate::queue::{Again, Queue};
use crate::replica_set::tolerate_gone;
use crate::status;

/// How long a node may be silent, where nobody chooses.
pub(crate) const GRACE: Duration = Duration::from_secs(50);
/// How long a node may take for its first word.
const STARTUP_GRACE: Duration = Duration::from_secs(60);
/// Another look at each node even if nothing was heard: that is when silence is noticed.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// Conditions, the status with which they are bad, and the taint that says so.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// The last sign of life of a node.
struct Sign {
    /// What was renewed, as written.
    written: String,
    seen: Instant,
}

pub(crate) struct NodeLifecycle {
    cluster: Cluster,
    voice: Voice,
    signs: Mutex<HashMap<String, Sign>>,
    grace: Duration,
}

impl Controller for NodeLifecycle {
    /// A node.
    type Item = String;
    const NAME: &'static str = "node-controller";

    fn new(setup: &Setup<'_>) -> Self {
        Self {
            cluster: setup.cluster.clone(),
            voice: setup.voice.clone(),
            signs: Mutex::default(),
            grace: setup.options.node_grace,
        }
    }

    fn listen(self: &Arc<Self>, _: &Setup<'_>, queue: &Queue<String>) {
        let nodes = queue.clone();
        self.cluster.nodes.on_change(move |change| {
            if let Some(node) = change.new.or(change.old) {
                nodes.add(node.metadata.name.clone().unwrap_or_default());
            }
        });
        let nodes = queue.clone();
        self.cluster.node_leases.on_change(move |change| {
            if let Some(lease) = change.new {
                nodes.add(lease.metadata.name.clone().unwrap_or_default());
            }
        });
    }

    async fn reconcile(&self, name: String) -> Result<Again, kube::Error> {
        let Some(node) = self.cluster.nodes.get(&Key::new("", &name)) else {
            self.signs.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
            return Ok(None);
        };
        let before = ready(&node).map(|ready| ready.status.clone());
        let node = if self.is_silent(&node, &name) { self.give_up(&node, &name).await? } else { node };
        let after = ready(&node).map(|ready| ready.status.clone());
        self.taint(&node, &name).await?;
        if after.as_deref() != Some("True") && before.as_deref() == Some("True") {
            self.voice.normal(&*node, "NodeNotReady", format!("Node {name} status is now: NodeNotReady"));
        }
        if after.as_deref().is_some_and(|status| status != "True") {
            self.mark_pods(&name).await?;
        }
        Ok(Some(LOOK_AGAIN))
    }
}

impl NodeLifecycle {
    /// Whether nothing was heard of a node for too long.
    fn is_silent(&self, node: &Node, name: &str) -> bool {
        let lease = self.cluster.node_leases.get(&Key::new("kube-node-lease", name));
        let renewed = lease.and_then(|lease| lease.spec.as_ref()?.renew_time.clone());
        let beat = ready(node).and_then(|ready| ready.last_heartbeat_time.clone());
        let first = renewed.is_none() && ready(node).is_none();
        // What this controller itself writes is no sign of life of the node.
        let unknown = ready(node).is_some_and(|ready| ready.status == "Unknown");
        let written = format!("{renewed:?} {:?}", beat.filter(|_| !unknown));
        let mut signs = self.signs.lock().unwrap_or_else(PoisonError::into_inner);
        let sign =
            signs.entry(name.to_owned()).or_insert_with(|| Sign { written: written.clone(), seen: Instant::now() });
        if sign.written != written {
            // Becoming Unknown drops the beat from the sign, which is no sign either.
            let renewal = !unknown || !sign.written.starts_with(&format!("{renewed:?} "));
            *sign = Sign { written, seen: if renewal { Instant::now() } else { sign.seen } };
        }
        sign.seen.elapsed() > if first { STARTUP_GRACE.max(self.grace) } else { self.grace }
    }

    /// Says of a silent node that nothing is known of it.
    async fn give_up(&self, node: &Arc<Node>, name: &str) -> Result<Arc<Node>, kube::Error> {
        let known = node.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        let mut conditions = known.clone();
        for type_ in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
            let unknown = |reason: &str, message: &str, beat| NodeCondition {
                type_: type_.to_owned(),
                status: "Unknown".to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message.to_owned()),
                last_heartbeat_time: beat,
                last_transition_time: Some(status::now()),
            };
            match conditions.iter_mut().find(|condition| condition.type_ == type_) {
                None => conditions.push(unknown("NodeStatusNeverUpdated", "Kubelet never posted node status.", None)),
                Some(condition) if condition.status != "Unknown" => {
                    let beat = condition.last_heartbeat_time.clone();
                    *condition = unknown("NodeStatusUnknown", "Kubelet stopped posting node status.", beat);
                }
                Some(_) => {}
            }
        }
        if conditions == known {
            return Ok(Arc::clone(node));
        }
        let mut wanted: NodeStatus = node.status.clone().unwrap_or_default();
        wanted.conditions = Some(conditions);
        let api: Api<Node> = Api::all(self.cluster.client.clone());
        status::write_in(&api, &self.cluster.nodes, &**node, node.status.as_ref(), &wanted).await?;
        Ok(self.cluster.nodes.get(&Key::new("", name)).unwrap_or_else(|| Arc::clone(node)))
    }

    /// Gives a node the taints that its conditions ask for.
    async fn taint(&self, node: &Arc<Node>, _: &str) -> Result<(), kube::Error> {
        let known = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
        let wanted = taints(node, &known);
        if wanted == known {
            return Ok(());
        }
        let patch = Patch::Merge(json!({
            "metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version},
            "spec": {"taints": wanted},
        }));
        let api: Api<Node> = Api::all(self.cluster.client.clone());
        let name = node.metadata.name.as_deref().unwrap_or_default();
        match api.patch(name, &PatchParams::default(), &patch).await {
            Ok(node) => {
                self.cluster.nodes.learn(node);
                Ok(())
            }
            other => tolerate_gone(other.map(|_| ())),
        }
    }

    /// The pods of a node that isn't ready aren't either.
    async fn mark_pods(&self, name: &str) -> Result<(), kube::Error> {
        let is_ready = |pod: &Pod| {
            let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
            conditions.into_iter().flatten().any(|known| known.type_ == "Ready" && known.status == "True")
        };
        let here = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(name);
        for pod in self.cluster.pods.list(|pod| here(pod) && is_ready(pod)) {
            let key = Key::of(&*pod);
            let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [{
                "type": "Ready", "status": "False", "reason": "NodeNotReady", "message": "Node is not ready",
                "lastTransitionTime": status::now(),
            }]}});
            let api: Api<Pod> = Api::namespaced(self.cluster.client.clone(), &key.namespace);
            tolerate_gone(
                api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await.map(|_| ()),
            )?;
            self.voice.warning(&*pod, "NodeNotReady", "Node is not ready".to_owned());
        }
        Ok(())
    }
}

fn condition<'a>(node: &'a Node, type_: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == type_)
}

fn ready(node: &Node) -> Option<&NodeCondition> {
    condition(node, "Ready")
}

/// The taints that a node should have: those that others gave it, and those of its conditions.
fn taints(node: &Node, known: &[Taint]) -> Vec<Taint> {
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    match ready(node).map(|ready| ready.status.as_str()) {
        Some("False") => wanted.extend([(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")]),
        Some("Unknown") => wanted.extend([(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")]),
        Some(_) => {}
        // Not a word yet: what was put on it at its making stays.
        None => wanted.extend(
            [(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")]
                .into_iter()
                .filter(|wanted| known.iter().any(|taint| taint.key == wanted.0 && taint.effect == wanted.1)),
        ),
    }
    let bad = |type_: &str| condition(node, type_).is_some_and(|condition| condition.status == "True");
    wanted.extend(PRESSURES.iter().filter(|(type_, _)| bad(type_)).map(|(_, key)| (*key, "NoSchedule")));
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let ours = |taint: &Taint| {
        let by_condition = PRESSURES.iter().any(|(_, key)| *key == taint.key) || taint.key == UNSCHEDULABLE;
        by_condition && taint.effect == "NoSchedule"
            || [NOT_READY, UNREACHABLE].contains(&taint.key.as_str()) && taint.effect != "PreferNoSchedule"
    };
    let is_wanted = |taint: &Taint| wanted.contains(&(taint.key.as_str(), taint.effect.as_str()));
    let mut taints: Vec<Taint> = known.iter().filter(|taint| !ours(taint) || is_wanted(taint)).cloned().collect();
    for (key, effect) in wanted {
        if !taints.iter().any(|taint| taint.key == key && taint.effect == effect) {
            taints.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                value: None,
                time_added: Some(status::now()),
            });
        }
    }
    taints
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    // A literal object reads better as an argument by value.
    #[allow(clippy::needless_pass_by_value)]
    fn keys(ready: &str, more: Value) -> Vec<String> {
        let mut node = json!({"metadata": {"name": "n"}, "spec": {}, "status": {"conditions": [
            {"type": "Ready", "status": ready}, {"type": "DiskPressure", "status": "False"}]}});
        json_patch::merge(&mut node, &more);
        let node: Node = serde_json::from_value(node).unwrap();
        let known = node.spec.as_ref().unwrap().taints.clone().unwrap_or_default();
        taints(&node, &known).iter().map(|taint| format!("{}:{}", taint.key, taint.effect)).collect()
    }

    #[test]
    fn conditions_become_taints_and_others_taints_stay() {
        let own = json!({"spec": {"taints": [{"key": "mine", "effect": "NoSchedule"}, {"key": NOT_READY, "effect": "NoExecute"}]}});
        assert_eq!(keys("True", own), ["mine:NoSchedule"]);
        assert_eq!(keys("False", json!({})), [format!("{NOT_READY}:NoSchedule"), format!("{NOT_READY}:NoExecute")]);
        assert_eq!(
            keys("Unknown", json!({})),
            [format!("{UNREACHABLE}:NoSchedule"), format!("{UNREACHABLE}:NoExecute")]
        );
        assert_eq!(keys("True", json!({"spec": {"unschedulable": true}})), [format!("{UNSCHEDULABLE}:NoSchedule")]);
        let full = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "DiskPressure", "status": "True"}]}});
        assert_eq!(keys("True", full), ["node.kubernetes.io/disk-pressure:NoSchedule"]);
    }
}
