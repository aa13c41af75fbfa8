//! Pods that don't tolerate a NoExecute taint of their node are deleted: at once, or when their toleration has run out.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;

use crate::cluster::Cluster;
use crate::controller::{self, Controller, Setup};
use crate::events::Voice;
use crate::informer::Key;
use crate::queue::{Again, Queue};
use crate::replica_set::tolerate_gone;
use crate::status;
use carob_api::placement::tolerates;

pub(crate) struct TaintEviction {
    cluster: Cluster,
    voice: Voice,
}

impl Controller for TaintEviction {
    /// A pod.
    type Item = Key;
    const NAME: &'static str = "node-controller";
    const VOICE: &'static str = "taint-eviction-controller";

    fn new(setup: &Setup<'_>) -> Self {
        Self { cluster: setup.cluster.clone(), voice: setup.voice.clone() }
    }

    fn listen(self: &Arc<Self>, _: &Setup<'_>, queue: &Queue<Key>) {
        controller::each(&self.cluster.pods, queue);
        let (pods, queue) = (self.cluster.pods.clone(), queue.clone());
        self.cluster.nodes.on_change(move |change| {
            let Some(node) = change.new.filter(|new| change.old.map(|old| evicting(old)) != Some(evicting(new))) else {
                return;
            };
            let name = node.metadata.name.as_deref();
            let here = pods.list(|pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == name);
            here.iter().for_each(|pod| queue.add(Key::of(&**pod)));
        });
    }

    async fn reconcile(&self, key: Key) -> Result<Again, kube::Error> {
        let Some(pod) = self.cluster.pods.get(&key).filter(|pod| pod.metadata.deletion_timestamp.is_none()) else {
            return Ok(None);
        };
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
        let Some(node) = self.cluster.nodes.get(&Key::new("", node)) else { return Ok(None) };
        match stay(&pod, &evicting(&node), Timestamp::now()) {
            Stay::Forever => Ok(None),
            Stay::For(left) => Ok(Some(left)),
            Stay::Over => self.evict(&pod, &key).await.map(|()| None),
        }
    }
}

impl TaintEviction {
    async fn evict(&self, pod: &Pod, key: &Key) -> Result<(), kube::Error> {
        let text = format!("Marking for deletion Pod {}/{}", key.namespace, key.name);
        self.voice.normal(pod, "TaintManagerEviction", text);
        let api: Api<Pod> = Api::namespaced(self.cluster.client.clone(), &key.namespace);
        let condition = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [{
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint", "lastTransitionTime": status::now(),
            "observedGeneration": pod.metadata.generation,
        }]}});
        let params = PatchParams::default();
        tolerate_gone(api.patch_status(&key.name, &params, &Patch::Strategic(condition)).await.map(|_| ()))?;
        let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        tolerate_gone(api.delete(&key.name, &params).await.map(|_| ()))
    }
}

/// How long a pod may stay.
#[derive(Debug, PartialEq)]
enum Stay {
    Forever,
    For(Duration),
    Over,
}

/// The taints of a node that pods have to leave for.
fn evicting(node: &Node) -> Vec<Taint> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref()).into_iter().flatten();
    taints.filter(|taint| taint.effect == "NoExecute").cloned().collect()
}

/// Every taint has to be tolerated; the shortest toleration counts, from when its taint was added.
fn stay(pod: &Pod, taints: &[Taint], now: Timestamp) -> Stay {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let mut shortest: Option<Duration> = None;
    for taint in taints {
        let mut matching = tolerations.iter().filter(|toleration| tolerates(toleration, taint)).peekable();
        if matching.peek().is_none() {
            return Stay::Over;
        }
        let since = taint.time_added.as_ref().map_or(now, |at| at.0);
        let passed = Duration::try_from(now.duration_since(since)).unwrap_or_default();
        for seconds in matching.filter_map(|toleration| toleration.toleration_seconds) {
            let left = Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).saturating_sub(passed);
            shortest = Some(shortest.map_or(left, |known| known.min(left)));
        }
    }
    match shortest {
        None => Stay::Forever,
        Some(left) if left.is_zero() => Stay::Over,
        Some(left) => Stay::For(left),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    // A literal object reads better as an argument by value.
    #[allow(clippy::needless_pass_by_value)]
    fn stays(tolerations: Value, taints: Value) -> Stay {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [], "tolerations": tolerations}})).unwrap();
        let taints: Vec<Taint> = serde_json::from_value(taints).unwrap();
        stay(&pod, &taints, "2026-01-01T00:01:00Z".parse().unwrap())
    }

    #[test]
    fn a_pod_stays_as_long_as_its_shortest_toleration() {
        let taint = |key: &str| json!({"key": key, "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"});
        let toleration =
            |key: &str, seconds: Value| json!({"key": key, "operator": "Exists", "tolerationSeconds": seconds});
        assert_eq!(stays(json!([]), json!([])), Stay::Forever);
        assert_eq!(stays(json!([]), json!([taint("a")])), Stay::Over);
        assert_eq!(stays(json!([toleration("a", json!(null))]), json!([taint("a")])), Stay::Forever);
        assert_eq!(
            stays(json!([toleration("a", json!(300))]), json!([taint("a")])),
            Stay::For(Duration::from_secs(240))
        );
        assert_eq!(stays(json!([toleration("a", json!(60))]), json!([taint("a")])), Stay::Over);
        assert_eq!(stays(json!([toleration("a", json!(300))]), json!([taint("a"), taint("b")])), Stay::Over);
    }
}
