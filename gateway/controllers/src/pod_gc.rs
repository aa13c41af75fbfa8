//! Pods of nodes that are no more: nobody will ever end them, so they are removed.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;

use crate::cluster::Cluster;
use crate::controller::{Controller, Setup};
use crate::informer::Key;
use crate::pod_control::phase;
use crate::queue::{Again, Queue};

/// How long a node may be away before its pods are given up: it may be about to register again.
const QUARANTINE: Duration = Duration::from_secs(40);

pub(crate) struct PodGc {
    cluster: Cluster,
}

impl Controller for PodGc {
    /// A node.
    type Item = String;
    const NAME: &'static str = "pod-garbage-collector";

    fn new(setup: &Setup<'_>) -> Self {
        Self { cluster: setup.cluster.clone() }
    }

    fn listen(self: &Arc<Self>, _: &Setup<'_>, queue: &Queue<String>) {
        let gone = queue.clone();
        self.cluster.nodes.on_change(move |change| {
            if let (Some(node), None) = (change.old, change.new) {
                gone.add_after(node.metadata.name.clone().unwrap_or_default(), QUARANTINE);
            }
        });
        let (nodes, gone) = (self.cluster.nodes.clone(), queue.clone());
        self.cluster.pods.on_change(move |change| {
            if let Some(node) = change.new.and_then(|pod| node_of(pod))
                && nodes.get(&Key::new("", node)).is_none()
            {
                gone.add_after(node.to_owned(), QUARANTINE);
            }
        });
    }

    async fn reconcile(&self, node: String) -> Result<Again, kube::Error> {
        give_up(&self.cluster, &node).await
    }
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).filter(|node| !node.is_empty())
}

async fn give_up(cluster: &Cluster, node: &str) -> Result<Again, kube::Error> {
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    if cluster.nodes.get(&Key::new("", node)).is_some() || nodes.get_metadata_opt(node).await?.is_some() {
        return Ok(None);
    }
    for pod in cluster.pods.list(|pod| node_of(pod) == Some(node)) {
        remove(cluster, &pod).await?;
    }
    Ok(None)
}

/// Marks a pod as failed, so that whoever counts it can, and deletes it.
async fn remove(cluster: &Cluster, pod: &Arc<Pod>) -> Result<(), kube::Error> {
    let key = Key::of(&**pod);
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), &key.namespace);
    if !matches!(phase(pod), "Succeeded" | "Failed") {
        let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"phase": "Failed", "conditions": [{
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
            "message": "PodGC: node no longer exists",
            "lastTransitionTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        }]}});
        gone_is_fine(api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await.map(|_| ()))?;
    }
    let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() }.grace_period(0);
    gone_is_fine(api.delete(&key.name, &params).await.map(|_| ()))
}

fn gone_is_fine(outcome: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match outcome {
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        outcome => outcome,
    }
}
