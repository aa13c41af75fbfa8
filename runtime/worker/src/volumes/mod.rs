//! A pod's volumes: directories under `D/pods/{uid}/volumes` that are filled before its containers start and kept up to
//! date while they run.

pub(crate) mod atomic;
pub(crate) mod host_path;
pub(crate) mod ownership;
pub(crate) mod payload;
pub(crate) mod sources;
pub(crate) mod sub_path;

use crate::container::env::Facts;
use crate::container::resources;
use crate::context::Context;
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, PodSpec, Volume};
use std::collections::HashMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A volume that can be mounted into containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountedVolume {
    /// The directory or file on the host.
    pub path: PathBuf,
    /// Whether no container may write it.
    pub read_only: bool,
    /// A tmpfs that only the sandbox sees; this process sees an empty directory there.
    pub memory: bool,
}

/// All volumes of a pod, and when the tokens in them want renewal.
#[derive(Debug, Default)]
pub(crate) struct Volumes {
    pub mounted: HashMap<String, MountedVolume>,
    /// Time until the first service account token should be replaced.
    pub renew_after: Option<Duration>,
}

/// Why a volume isn't ready. The text is the `FailedMount` event's.
#[derive(Debug, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume \"{volume}\" : {message}")]
pub(crate) struct VolumeError {
    pub volume: String,
    pub message: String,
}

/// A volume source that failed: what it needs isn't there, or the disk refuses.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    #[error("{0}")]
    Missing(String),
    #[error("{what} {}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl SourceError {
    pub fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }

    /// The error and its causes in one line.
    pub fn describe(&self) -> String {
        match self {
            Self::Missing(message) => message.clone(),
            Self::Io { source, .. } => format!("{self}: {source}"),
        }
    }
}

/// Makes or refreshes all volumes of the pod. Volumes that exist stay what they are (after a restart of this process); the
/// content that comes from the API is brought up to date.
pub(crate) async fn set_up(ctx: &Context, facts: &Facts<'_>) -> Result<Volumes, VolumeError> {
    let mut volumes = Volumes::default();
    let Some(spec) = facts.pod.spec.as_ref() else { return Ok(volumes) };
    let uid = facts.pod.metadata.uid.as_deref().unwrap_or_default();
    let base = ctx.dirs.pod(uid).join("volumes");
    for volume in spec.volumes.iter().flatten() {
        let path = base.join(&volume.name);
        let failed = |error: SourceError| VolumeError { volume: volume.name.clone(), message: error.describe() };
        let (mounted, renew_after) = one(ctx, facts, spec, volume, path).await.map_err(failed)?;
        volumes.mounted.insert(volume.name.clone(), mounted);
        volumes.renew_after = [volumes.renew_after, renew_after].into_iter().flatten().min();
    }
    Ok(volumes)
}

async fn one(
    ctx: &Context,
    facts: &Facts<'_>,
    spec: &PodSpec,
    volume: &Volume,
    path: PathBuf,
) -> Result<(MountedVolume, Option<Duration>), SourceError> {
    let fs_group = spec.security_context.as_ref().and_then(|context| context.fs_group);
    let plain = |path: PathBuf, read_only| MountedVolume { path, read_only, memory: false };
    if let Some(source) = &volume.empty_dir {
        let memory = source.medium.as_deref() == Some("Memory");
        empty_dir(&path, fs_group)?;
        if memory {
            // The sandbox mounts it once, however often it is asked.
            let uid = facts.pod.metadata.uid.as_deref().unwrap_or_default();
            let size = memory_size(source, spec, facts.allocatable.memory_bytes);
            let mounted = ctx.runtime.mount_tmpfs(uid, &path, size).await;
            mounted.map_err(|error| SourceError::Missing(error.to_string()))?;
        }
        return Ok((MountedVolume { path, read_only: false, memory }, None));
    }
    if let Some(source) = &volume.host_path {
        let kind = source.type_.as_deref().unwrap_or("");
        host_path::check(Path::new(&source.path), kind).map_err(SourceError::Missing)?;
        return Ok((plain(PathBuf::from(&source.path), false), None));
    }
    let Some(filled) = sources::payload(ctx, facts, spec, volume).await? else {
        return Err(SourceError::Missing("this kind of volume is not supported".to_owned()));
    };
    let target = path.clone();
    // Writing a handful of small files takes less than handing them to another thread.
    atomic::write(&target, &filled.payload, fs_group)?;
    Ok((plain(path, true), filled.renew_after))
}

fn empty_dir(path: &Path, fs_group: Option<i64>) -> Result<(), SourceError> {
    if path.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(path).map_err(SourceError::io("create", path))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).map_err(SourceError::io("chmod", path))?;
    if let Some(group) = fs_group {
        ownership::apply(path, group, false).map_err(SourceError::io("chown", path))?;
    }
    Ok(())
}

/// A tmpfs may hold as much as its limit, and never more than the pod may have or the node has.
fn memory_size(source: &EmptyDirVolumeSource, spec: &PodSpec, node_bytes: i64) -> Option<u64> {
    let given = source.size_limit.as_ref().map(resources::value).filter(|bytes| *bytes > 0);
    let pod = resources::pod_cgroup(spec).memory_bytes;
    let size = [given, pod, Some(node_bytes)].into_iter().flatten().filter(|bytes| *bytes > 0).min();
    size.and_then(|bytes| u64::try_from(bytes).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_memory_volume_is_bounded_by_its_limit_the_pod_and_the_node() {
        let spec: PodSpec =
            serde_json::from_value(json!({"containers": [{"name": "c", "resources": {"limits": {"memory": "64Mi"}}}]}))
                .unwrap();
        let source = |limit: Option<&str>| -> EmptyDirVolumeSource {
            serde_json::from_value(json!({"medium": "Memory", "sizeLimit": limit})).unwrap()
        };
        assert_eq!(memory_size(&source(Some("16Mi")), &spec, 1 << 30), Some(16 << 20));
        assert_eq!(memory_size(&source(Some("1Gi")), &spec, 1 << 30), Some(64 << 20));
        let free: PodSpec = serde_json::from_value(json!({"containers": [{"name": "c"}]})).unwrap();
        assert_eq!(memory_size(&source(None), &free, 1 << 30), Some(1 << 30));
    }
}
