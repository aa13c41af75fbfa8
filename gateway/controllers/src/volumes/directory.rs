//! Volumes that are directories: the default StorageClass's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{
    HostPathVolumeSource, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, ObjectReference,
    PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, VolumeNodeAffinity,
};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::ObjectMeta;

use super::PROVISIONED_BY;

/// Who makes such volumes.
pub(super) const PROVISIONER: &str = "carob.dev/directory";
const CLASS: &str = "standard";
const HOSTNAME: &str = "kubernetes.io/hostname";

/// The class that claims get which name none.
pub(super) fn default_class() -> StorageClass {
    let notes = [("storageclass.kubernetes.io/is-default-class".to_owned(), "true".to_owned())];
    StorageClass {
        metadata: ObjectMeta {
            name: Some(CLASS.to_owned()),
            annotations: Some(BTreeMap::from(notes)),
            ..ObjectMeta::default()
        },
        provisioner: PROVISIONER.to_owned(),
        reclaim_policy: Some("Delete".to_owned()),
        allow_volume_expansion: Some(true),
        volume_binding_mode: Some("WaitForFirstConsumer".to_owned()),
        ..StorageClass::default()
    }
}

/// Makes the directory of a claim's volume, and the object that says where it is.
pub(super) async fn make(
    root: &Path,
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    node: &Node,
) -> std::io::Result<PersistentVolume> {
    let name = format!("pvc-{}", claim.metadata.uid.as_deref().unwrap_or_default());
    let path = root.join(&name);
    let made = path.clone();
    tokio::task::spawn_blocking(move || create(&made)).await.map_err(std::io::Error::other)??;
    let spec = claim.spec.clone().unwrap_or_default();
    let host = node.metadata.labels.as_ref().and_then(|labels| labels.get(HOSTNAME)).cloned();
    let here = host.map(|host| NodeSelectorTerm {
        match_expressions: Some(vec![NodeSelectorRequirement {
            key: HOSTNAME.to_owned(),
            operator: "In".to_owned(),
            values: Some(vec![host]),
        }]),
        match_fields: None,
    });
    Ok(PersistentVolume {
        metadata: ObjectMeta {
            name: Some(name),
            annotations: Some(BTreeMap::from([(PROVISIONED_BY.to_owned(), PROVISIONER.to_owned())])),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: spec.access_modes,
            capacity: spec.resources.and_then(|resources| resources.requests),
            claim_ref: Some(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("PersistentVolumeClaim".to_owned()),
                namespace: claim.metadata.namespace.clone(),
                name: claim.metadata.name.clone(),
                uid: claim.metadata.uid.clone(),
                resource_version: claim.metadata.resource_version.clone(),
                field_path: None,
            }),
            host_path: Some(HostPathVolumeSource {
                path: path.to_string_lossy().into_owned(),
                type_: Some("DirectoryOrCreate".to_owned()),
            }),
            node_affinity: here
                .map(|term| VolumeNodeAffinity { required: Some(NodeSelector { node_selector_terms: vec![term] }) }),
            persistent_volume_reclaim_policy: Some(class.reclaim_policy.clone().unwrap_or_else(|| "Delete".to_owned())),
            storage_class_name: class.metadata.name.clone(),
            mount_options: class.mount_options.clone(),
            volume_mode: Some("Filesystem".to_owned()),
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    })
}

/// Every user of a pod may write in it, as in other provisioners' directories.
fn create(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777))
}

/// Removes the directory of a volume that was made here; anything else is left alone.
pub(super) async fn remove(root: &Path, volume: &PersistentVolume) -> std::io::Result<()> {
    let name = volume.metadata.name.clone().unwrap_or_default();
    let path: PathBuf = root.join(&name);
    let written = volume.spec.as_ref().and_then(|spec| Some(spec.host_path.as_ref()?.path.clone()));
    if written.as_deref() != path.to_str() || !name.starts_with("pvc-") || name.contains('/') {
        return Err(std::io::Error::other(format!("{written:?} is no directory of this provisioner")));
    }
    match tokio::task::spawn_blocking(move || std::fs::remove_dir_all(path)).await.map_err(std::io::Error::other)? {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn a_volume_is_made_and_removed_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({
            "metadata": {"name": "c", "namespace": "n", "uid": "u"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}))
        .unwrap();
        let node: Node =
            serde_json::from_value(json!({"metadata": {"name": "a", "labels": {(HOSTNAME): "a"}}})).unwrap();
        let volume = make(dir.path(), &claim, &default_class(), &node).await.unwrap();
        assert!(dir.path().join("pvc-u").is_dir());
        let foreign = PersistentVolume {
            metadata: volume.metadata.clone(),
            spec: Some(PersistentVolumeSpec {
                host_path: Some(HostPathVolumeSource { path: "/etc".to_owned(), type_: None }),
                ..PersistentVolumeSpec::default()
            }),
            status: None,
        };
        assert!(remove(dir.path(), &foreign).await.is_err());
        remove(dir.path(), &volume).await.unwrap();
        assert!(!dir.path().join("pvc-u").exists());
        remove(dir.path(), &volume).await.unwrap();
    }
}
