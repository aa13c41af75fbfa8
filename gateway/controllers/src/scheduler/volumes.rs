//! Claims and the nodes where their volumes are.

use std::collections::HashSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use super::board::Board;
use super::fit::Refusal;
use crate::cluster::Cluster;
use crate::informer::Key;
use crate::replica_set::tolerate_gone;
use carob_api::placement;

/// The annotation of a claim with the node that its volume is to be made on.
pub(crate) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

/// The access mode of a claim that one pod alone may use.
const EXCLUSIVE: &str = "ReadWriteOncePod";
/// Why a pod waits for another that has such a claim.
pub(super) const TAKEN: &str =
    "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod";

/// The volumes of a pod, as far as they are bound.
pub(super) struct Volumes {
    missing: Option<String>,
    bound: Vec<Arc<PersistentVolume>>,
    /// Claims that one pod alone may use.
    exclusive: Vec<String>,
    /// Claims whose volume is made where the pod goes.
    pub(super) waiting: Vec<Arc<PersistentVolumeClaim>>,
}

impl Volumes {
    pub(super) fn of(cluster: &Cluster, pod: &Pod) -> Self {
        let mut this = Self { missing: None, bound: Vec::new(), exclusive: Vec::new(), waiting: Vec::new() };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
        for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            let Some(name) = claim_of(pod_name, volume) else { continue };
            let Some(claim) = cluster.claims.get(&Key::new(namespace, &name)) else {
                this.missing = Some(format!("persistentvolumeclaim {name:?} not found"));
                return this;
            };
            if claim.metadata.deletion_timestamp.is_some() {
                this.missing = Some(format!("persistentvolumeclaim {name:?} is being deleted"));
                return this;
            }
            let spec = claim.spec.clone().unwrap_or_default();
            if spec.access_modes.iter().flatten().any(|mode| mode == EXCLUSIVE) {
                this.exclusive.push(name);
            }
            let is_bound = claim
                .metadata
                .annotations
                .as_ref()
                .is_some_and(|notes| notes.contains_key("pv.kubernetes.io/bind-completed"));
            if let Some(volume) = spec.volume_name.filter(|name| is_bound && !name.is_empty()) {
                this.bound.extend(cluster.volumes.get(&Key::new("", volume)));
                continue;
            }
            let class = spec.storage_class_name.unwrap_or_default();
            let class = cluster.storage_classes.get(&Key::new("", class));
            if class.is_some_and(|class| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")) {
                this.waiting.push(claim);
            } else {
                this.missing = Some("pod has unbound immediate PersistentVolumeClaims".to_owned());
                return this;
            }
        }
        this
    }

    /// What keeps the pod from every node.
    pub(super) fn missing(&self) -> Option<String> {
        self.missing.clone()
    }

    /// Whether all are bound.
    pub(super) fn is_ready(&self) -> bool {
        self.missing.is_none() && self.waiting.is_empty()
    }

    /// Whether another pod that has its place uses what one alone may use. Then no node will do.
    pub(super) fn is_taken(&self, pod: &Key, board: &Board) -> bool {
        let nobody = HashSet::new();
        let is_other = |other: &Pod| {
            let key = Key::of(other);
            key.namespace == pod.namespace && key.name != pod.name
        };
        let mut used = |claim: &String| board.pods(&nobody).any(|(_, other)| is_other(other) && uses(other, claim));
        self.exclusive.iter().any(&mut used)
    }

    pub(super) fn check(&self, node: &Node) -> Result<(), Refusal> {
        let here = |volume: &Arc<PersistentVolume>| {
            let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref()?.required.as_ref());
            affinity.is_none_or(|required| placement::chosen(required, node))
        };
        if self.bound.iter().all(here) {
            return Ok(());
        }
        let reasons = vec!["node(s) didn't match PersistentVolume's node affinity".to_owned()];
        Err(Refusal { reasons, resolvable: false })
    }
}

/// The claim behind a volume.
fn claim_of(pod: &str, volume: &Volume) -> Option<String> {
    match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some(claim.claim_name.clone()),
        (None, Some(_)) => Some(format!("{pod}-{}", volume.name)),
        _ => None,
    }
}

/// Whether a pod has a volume of this claim.
pub(crate) fn uses(pod: &Pod, claim: &str) -> bool {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let mut volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.any(|volume| claim_of(name, volume).as_deref() == Some(claim))
}

/// Says where a claim's volume is to be made.
pub(super) async fn choose_node(
    cluster: &Cluster,
    claim: &PersistentVolumeClaim,
    node: &str,
) -> Result<(), kube::Error> {
    let known = claim.metadata.annotations.as_ref().and_then(|notes| notes.get(SELECTED_NODE));
    if known.is_some_and(|known| known == node) {
        return Ok(());
    }
    let patch = Patch::Merge(json!({"metadata": {
        "uid": claim.metadata.uid, "annotations": {SELECTED_NODE: node},
    }}));
    let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<PersistentVolumeClaim> = Api::namespaced(cluster.client.clone(), namespace);
    let name = claim.metadata.name.as_deref().unwrap_or_default();
    tolerate_gone(api.patch(name, &PatchParams::default(), &patch).await.map(|_| ()))
}
