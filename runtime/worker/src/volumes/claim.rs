//! A claim's volume: the directory that the bound PersistentVolume names.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use kube::Client;
use kube::api::Api;

use super::{MountedVolume, SourceError, host_path};

/// Marks volumes that were made for a claim.
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";

/// A claim's volume.
pub(super) struct Claimed {
    pub mounted: MountedVolume,
    /// Its files are given to the pod's group.
    pub takes_group: bool,
}

/// The claim that a volume of a pod stands for, and whether the pod only reads it.
pub(super) fn of(pod: &Pod, volume: &Volume) -> Option<(String, bool)> {
    if let Some(source) = &volume.persistent_volume_claim {
        return Some((source.claim_name.clone(), source.read_only == Some(true)));
    }
    let pod = pod.metadata.name.as_deref().unwrap_or_default();
    volume.ephemeral.as_ref().map(|_| (format!("{pod}-{}", volume.name), false))
}

/// Finds the volume of a bound claim. One that isn't bound, or is of a kind that isn't carried out, is an error in words
/// for the pod's events.
pub(super) async fn mount(
    client: &Client,
    pod: &Pod,
    (claim, read_only): (String, bool),
) -> Result<Claimed, SourceError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let failed = |error: kube::Error| SourceError::Missing(error.to_string());
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let known = claims.get(&claim).await.map_err(failed)?;
    let bound = known.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
    let name = known.spec.and_then(|spec| spec.volume_name).filter(|_| bound);
    let Some(name) = name else {
        return Err(SourceError::Missing(format!("PVC {namespace}/{claim} is not bound")));
    };
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let volume = volumes.get(&name).await.map_err(failed)?;
    let made_here = volume.metadata.annotations.as_ref().and_then(|all| all.get(PROVISIONED_BY)).is_some();
    let spec = volume.spec.unwrap_or_default();
    let is_device = spec.volume_mode.as_deref() == Some("Block");
    // What somebody else's path of the host holds is theirs.
    let takes_group = (made_here || spec.local.is_some()) && !is_device;
    let (path, kind) = match (spec.host_path, spec.local) {
        (Some(source), _) => (source.path, source.type_.unwrap_or_default()),
        (None, Some(source)) => (source.path, "Directory".to_owned()),
        _ => return Err(SourceError::Missing(format!("the kind of volume {name} is not supported"))),
    };
    let kind = if is_device { "BlockDevice" } else { kind.as_str() };
    host_path::check(Path::new(&path), kind).map_err(SourceError::Missing)?;
    Ok(Claimed { mounted: MountedVolume { path: PathBuf::from(path), read_only, memory: None }, takes_group })
}
