//! A pod's volumes: directories under `D/pods/{uid}/volumes` that are filled before its containers start and kept up to
//! date while they run. What Secrets and tokens are written to is one tmpfs per pod, at `D/pods/{uid}/secrets` in the pod's
//! own mount namespace: no disk has it, and the host's mount table doesn't show it.

pub(crate) mod atomic;
mod claim;
pub(crate) mod host_path;
pub(crate) mod ownership;
pub(crate) mod payload;
pub(crate) mod sources;
pub(crate) mod sub_path;

pub(crate) use claim::InUse;

use crate::container::env::Facts;
use crate::container::{huge_pages, resources};
use crate::context::Context;
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod, PodSpec, Volume};
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use sources::Filled;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A volume that can be mounted into containers.
#[derive(Debug, Clone)]
pub(crate) struct MountedVolume {
    /// The directory or file on the host; in memory, in the pod's mount namespace.
    pub path: PathBuf,
    /// Whether no container may write it.
    pub read_only: bool,
    /// The same directory for this process, when it is on a tmpfs that only the sandbox sees at `path`.
    pub memory: Option<Arc<OwnedFd>>,
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

/// Where it is noted which volumes have been given to the pod's group.
const GIVEN: &str = "given";
/// Where a pod's Secrets and tokens are.
const SECRETS: &str = "secrets";

/// What the volumes are filled with, in the order of `spec.volumes`; `None` for those that don't come from the API.
pub(crate) type Gathered = Vec<Option<Filled>>;

/// Fetches what the volumes are filled with: the part that takes time, and needs no sandbox.
pub(crate) async fn gather(ctx: &Context, facts: &Facts<'_>) -> Result<Gathered, VolumeError> {
    let Some(spec) = facts.pod.spec.as_ref() else { return Ok(Vec::new()) };
    let mut gathered = Vec::new();
    for volume in spec.volumes.iter().flatten() {
        let filled = sources::payload(ctx, facts, spec, volume).await;
        gathered.push(filled.map_err(|error| failed(volume, &error))?);
    }
    Ok(gathered)
}

/// Makes or refreshes all volumes of the pod, whose sandbox is there. Volumes that exist stay what they are (after a restart
/// of this process); the content that comes from the API is brought up to date.
pub(crate) async fn place(ctx: &Context, facts: &Facts<'_>, gathered: Gathered) -> Result<Volumes, VolumeError> {
    let mut volumes = Volumes::default();
    let Some(spec) = facts.pod.spec.as_ref() else { return Ok(volumes) };
    let pod = PodVolumes {
        ctx,
        pod: facts.pod,
        spec,
        uid: facts.pod.metadata.uid.as_deref().unwrap_or_default(),
        node_memory: facts.allocatable.memory_bytes,
        fs_group: spec.security_context.as_ref().and_then(|context| context.fs_group),
    };
    let mut secrets = None;
    for (volume, filled) in spec.volumes.iter().flatten().zip(gathered) {
        let failed = |error: SourceError| failed(volume, &error);
        let mounted = match filled {
            Some(filled) => {
                volumes.renew_after = [volumes.renew_after, filled.renew_after].into_iter().flatten().min();
                if volume.secret.is_some() || volume.projected.is_some() {
                    let root = match &secrets {
                        Some(root) => root,
                        None => secrets.insert(pod.secrets().await.map_err(failed)?),
                    };
                    pod.fill_in_memory(root, &volume.name, &filled)
                } else {
                    pod.fill(&volume.name, &filled)
                }
            }
            None => pod.without_content(volume).await,
        };
        volumes.mounted.insert(volume.name.clone(), mounted.map_err(failed)?);
    }
    Ok(volumes)
}

/// Fetches and places: for a pod whose sandbox is there.
pub(crate) async fn set_up(ctx: &Context, facts: &Facts<'_>) -> Result<Volumes, VolumeError> {
    let gathered = gather(ctx, facts).await?;
    place(ctx, facts, gathered).await
}

fn failed(volume: &Volume, error: &SourceError) -> VolumeError {
    VolumeError { volume: volume.name.clone(), message: error.describe() }
}

/// A descriptor's directory as a path: of this process, and wherever it is mounted.
fn own_path(directory: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()))
}

/// What all volumes of one pod have in common.
struct PodVolumes<'a> {
    ctx: &'a Context,
    pod: &'a Pod,
    spec: &'a PodSpec,
    uid: &'a str,
    node_memory: i64,
    fs_group: Option<i64>,
}

impl PodVolumes<'_> {
    fn path(&self, volume: &str) -> PathBuf {
        self.ctx.dirs.pod(self.uid).join("volumes").join(volume)
    }

    /// A tmpfs of the pod's. The sandbox mounts it once, however often it is asked.
    async fn tmpfs(&self, path: &Path, size: Option<u64>) -> Result<OwnedFd, SourceError> {
        let mounted = self.ctx.runtime.mount_tmpfs(self.uid, path, size).await;
        mounted.map_err(|error| SourceError::Missing(error.to_string()))
    }

    async fn secrets(&self) -> Result<OwnedFd, SourceError> {
        self.tmpfs(&self.ctx.dirs.pod(self.uid).join(SECRETS), None).await
    }

    fn fill_in_memory(&self, root: &OwnedFd, volume: &str, filled: &Filled) -> Result<MountedVolume, SourceError> {
        let reachable = own_path(root).join(volume);
        atomic::write(&reachable, &filled.payload, self.fs_group)?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = nix::fcntl::open(&reachable, flags, Mode::empty())
            .map_err(|errno| SourceError::io("open", &reachable)(errno.into()))?;
        let path = self.ctx.dirs.pod(self.uid).join(SECRETS).join(volume);
        Ok(MountedVolume { path, read_only: true, memory: Some(Arc::new(directory)) })
    }

    fn fill(&self, volume: &str, filled: &Filled) -> Result<MountedVolume, SourceError> {
        let path = self.path(volume);
        // Writing a handful of small files takes less than handing them to another thread.
        atomic::write(&path, &filled.payload, self.fs_group)?;
        Ok(MountedVolume { path, read_only: true, memory: None })
    }

    async fn without_content(&self, volume: &Volume) -> Result<MountedVolume, SourceError> {
        if let Some(source) = &volume.empty_dir {
            return self.empty_dir(&volume.name, source).await;
        }
        if let Some(source) = &volume.host_path {
            let kind = source.type_.as_deref().unwrap_or("");
            host_path::check(Path::new(&source.path), kind).map_err(SourceError::Missing)?;
            return Ok(MountedVolume { path: PathBuf::from(&source.path), read_only: false, memory: None });
        }
        if volume.image.is_some() {
            // Its layers are mounted by each container that shows them.
            return Ok(MountedVolume { path: PathBuf::new(), read_only: true, memory: None });
        }
        if let Some(claim) = claim::of(self.pod, volume) {
            let claimed = claim::mount(&self.ctx.client, &self.ctx.claims, self.pod, claim).await?;
            if let Some(group) = self.fs_group.filter(|_| claimed.takes_group) {
                self.give_once(&volume.name, &claimed.mounted, group).await?;
            }
            return Ok(claimed.mounted);
        }
        Err(SourceError::Missing(format!(
            "no volume plugin matched: {} volumes are not carried out by Carob",
            kind(volume)
        )))
    }

    /// Gives a claim's files to the pod's group before the pod's first container, and not again while it lives.
    async fn give_once(&self, volume: &str, mounted: &MountedVolume, group: i64) -> Result<(), SourceError> {
        let done = self.ctx.dirs.pod(self.uid).join(GIVEN).join(volume);
        if done.exists() {
            return Ok(());
        }
        let policy = self.spec.security_context.as_ref().and_then(|context| context.fs_group_change_policy.as_deref());
        let only_on_mismatch = policy == Some("OnRootMismatch");
        let (path, read_only) = (mounted.path.clone(), mounted.read_only);
        let work = move || {
            if only_on_mismatch && ownership::root_matches(&path, group, read_only)? {
                return Ok(());
            }
            ownership::apply(&path, group, read_only)
        };
        let given = tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.into()));
        given.map_err(SourceError::io("chown", &mounted.path))?;
        let noted =
            std::fs::create_dir_all(self.ctx.dirs.pod(self.uid).join(GIVEN)).and_then(|()| std::fs::write(&done, b""));
        noted.map_err(SourceError::io("create", &done))
    }

    async fn empty_dir(&self, volume: &str, source: &EmptyDirVolumeSource) -> Result<MountedVolume, SourceError> {
        let path = self.path(volume);
        let own = |group: Option<i64>, place: &Path| match group {
            Some(group) => ownership::apply(place, group, false).map_err(SourceError::io("chown", place)),
            None => Ok(()),
        };
        if source.medium.as_deref() == Some("Memory") {
            let root = self.tmpfs(&path, memory_size(source, self.spec, self.node_memory)).await?;
            let reachable = own_path(&root);
            // As it was mounted: what containers have put there since is theirs.
            let fresh = std::fs::read_dir(&reachable).map_err(SourceError::io("list", &path))?.next().is_none();
            own(self.fs_group.filter(|_| fresh), &reachable)?;
            return Ok(MountedVolume { path, read_only: false, memory: Some(Arc::new(root)) });
        }
        if let Some(page) = huge_pages::of_volume(source, self.spec).map_err(SourceError::Missing)? {
            let mounted = self.ctx.runtime.mount_huge_pages(self.uid, &path, page).await;
            let root = mounted.map_err(|error| SourceError::Missing(error.to_string()))?;
            own(self.fs_group, &own_path(&root))?;
            return Ok(MountedVolume { path, read_only: false, memory: Some(Arc::new(root)) });
        }
        if !path.is_dir() {
            // It has its name when it is whole: what ends in between leaves nothing that is taken for it.
            let fresh = self.path(&format!(".{volume}"));
            std::fs::create_dir_all(&fresh).map_err(SourceError::io("create", &fresh))?;
            let all = std::fs::Permissions::from_mode(0o777);
            std::fs::set_permissions(&fresh, all).map_err(SourceError::io("chmod", &fresh))?;
            own(self.fs_group, &fresh)?;
            std::fs::rename(&fresh, &path).map_err(SourceError::io("rename", &path))?;
        }
        Ok(MountedVolume { path, read_only: false, memory: None })
    }
}

/// The name of the volume's source.
fn kind(volume: &Volume) -> String {
    let fields = serde_json::to_value(volume).unwrap_or_default();
    let source = fields.as_object().and_then(|fields| fields.keys().find(|field| *field != "name").cloned());
    source.unwrap_or_default()
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
