//! A claim's volume: the directory that the bound PersistentVolume names.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use kube::Client;
use kube::api::Api;

use super::{MountedVolume, SourceError, host_path};

/// Marks volumes that were made for a claim.
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";

/// The access mode of a volume that one pod alone may have.
const EXCLUSIVE: &str = "ReadWriteOncePod";

/// Which pods of this node have which claims.
#[derive(Default)]
pub(crate) struct InUse {
    /// By namespace and name, the pods' uids.
    claims: Mutex<HashMap<(String, String), BTreeSet<String>>>,
}

impl InUse {
    /// Whether the pod has the claim now: not where it has to be alone with it and others have it.
    fn take(&self, namespace: &str, claim: &str, uid: &str, alone: bool) -> bool {
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        let users = claims.entry((namespace.to_owned(), claim.to_owned())).or_default();
        let free = !alone || users.iter().all(|user| user == uid);
        if free {
            users.insert(uid.to_owned());
        }
        free
    }

    /// The pod was here before this process was: it has all of its claims.
    pub(crate) fn adopt(&self, pod: &Pod) {
        let (namespace, uid) = (pod.metadata.namespace.as_deref(), pod.metadata.uid.as_deref());
        let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        for (claim, _) in volumes.filter_map(|volume| of(pod, volume)) {
            self.take(namespace.unwrap_or_default(), &claim, uid.unwrap_or_default(), false);
        }
    }

    pub(crate) fn release(&self, uid: &str) {
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        claims.retain(|_, users| {
            users.remove(uid);
            !users.is_empty()
        });
    }
}

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
    in_use: &InUse,
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
    let alone = spec.access_modes.as_deref().is_some_and(|modes| modes == [EXCLUSIVE]);
    if !in_use.take(namespace, &claim, pod.metadata.uid.as_deref().unwrap_or_default(), alone) {
        let why = format!(
            "MountVolume.SetUp failed for volume \"{name}\" : volume uses the {EXCLUSIVE} access mode and is already in use by another pod"
        );
        return Err(SourceError::Missing(why));
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_must_be_alone_with_a_claim_waits_for_the_others() {
        let in_use = InUse::default();
        assert!(in_use.take("n", "c", "one", true) && in_use.take("n", "c", "one", true));
        assert!(!in_use.take("n", "c", "two", true));
        assert!(in_use.take("other", "c", "two", true));
        in_use.release("one");
        assert!(in_use.take("n", "c", "two", true), "a refused pod has nothing");
        assert!(in_use.take("n", "shared", "one", false) && in_use.take("n", "shared", "two", false));
    }

    #[test]
    fn a_pod_that_was_here_before_has_its_claims() {
        let pod = serde_json::json!({"metadata": {"name": "p", "namespace": "n", "uid": "one"}, "spec": {"containers": [],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}, {"name": "e", "ephemeral": {}}]}});
        let in_use = InUse::default();
        in_use.adopt(&serde_json::from_value(pod).unwrap());
        assert!(!in_use.take("n", "c", "two", true) && !in_use.take("n", "p-e", "two", true));
    }
}
