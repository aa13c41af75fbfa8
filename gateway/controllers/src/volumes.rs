//! Claims and volumes: which belong together, who makes volumes that are missing, and when either may go.

pub(crate) mod binder;
mod directory;
pub(crate) mod ephemeral;
pub(crate) mod protection;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Client;
use kube::api::{Api, PostParams};

use crate::cluster::Cluster;
use crate::informer::Key;

/// On a claim whose volume is settled.
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On a claim or volume whose other half the controller chose, not a user.
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a volume: who made it.
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";

/// Makes the default StorageClass where there is none at all. No controller may; the server does.
pub(crate) async fn furnish_class(server: Client, cluster: Cluster) {
    cluster.storage_classes.synced().await;
    if !cluster.storage_classes.list(|_| true).is_empty() {
        return;
    }
    let api: Api<StorageClass> = Api::all(server);
    if let Err(error) = api.create(&PostParams::default(), &directory::default_class()).await {
        tracing::warn!(%error, "there is no default StorageClass");
    }
}

fn annotation<'a>(meta: &'a kube::api::ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

fn volume_phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

fn claim_phase(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// The volume that a claim names.
fn volume_name(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.spec.as_ref()?.volume_name.as_deref().filter(|name| !name.is_empty())
}

/// The claim that a volume is for.
fn claim_key(volume: &PersistentVolume) -> Option<Key> {
    let reference = volume.spec.as_ref()?.claim_ref.as_ref()?;
    Some(Key::new(reference.namespace.clone().unwrap_or_default(), reference.name.clone().unwrap_or_default()))
}

/// Whether a volume is for this claim, though perhaps not for this very object of its name.
fn is_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let uid = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()?.uid.clone()).filter(|uid| !uid.is_empty());
    claim_key(volume).as_ref() == Some(&Key::of(claim)) && uid.is_none_or(|uid| Some(uid) == claim.metadata.uid)
}
