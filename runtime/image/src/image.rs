//! An image that is here: its configuration, its layers on disk and the lease that keeps them there.

use std::path::PathBuf;
use std::sync::Arc;

use crate::access::Access;
use crate::merged::Merged;
use crate::store::LayerLease;
use crate::{Credential, Error, user};

/// An image whose layers are unpacked on this machine.
///
/// As long as this value (or a clone, or a [`Lease`]) lives, garbage collection leaves its layers alone, also one
/// started by another process.
#[derive(Clone, Debug)]
pub struct Image {
    /// Normalised: `docker.io/library/nginx:latest`, or with `@sha256:…` when it was asked for by digest.
    pub reference: String,
    /// The digest of the manifest for this machine's platform.
    pub digest: String,
    /// The digest that the reference resolved to: an index's, or the same as `digest`.
    pub target: String,
    /// The digest of the image configuration.
    pub image_id: String,
    /// What the image says about how to run it.
    pub config: ImageConfig,
    /// Unpacked layers, topmost first, for overlay's `lowerdir`. Never empty.
    pub layers: Vec<PathBuf>,
    /// Bytes transported for the layers and the configuration.
    pub size: u64,
    pub(crate) access: Access,
    /// Also of layers that are here in another form than they are mounted in.
    pub(crate) leases: Arc<[Arc<LayerLease>]>,
}

impl Image {
    /// Whether it may be used by who has these credentials for its registry, without asking that. It may be by everybody if
    /// it was imported, or pulled without credentials or with the machine's own.
    pub fn is_for(&self, credentials: &[Credential]) -> bool {
        self.access.is_for(credentials)
    }
}

/// The parts of an OCI image configuration that a container's start depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub cmd: Vec<String>,
    /// `Env`, split at the first `=`.
    pub env: Vec<(String, String)>,
    /// `WorkingDir`, or empty.
    pub working_dir: String,
    /// `User` as written: a name, a number, or either with `:group`; or empty.
    pub user: String,
    /// `StopSignal` as written: `SIGQUIT`, `QUIT` or a number; `None` means SIGTERM.
    pub stop_signal: Option<String>,
    /// `ExposedPorts`: `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// `Volumes`: absolute paths.
    pub volumes: Vec<String>,
    /// `Labels`.
    pub labels: Vec<(String, String)>,
}

/// A line of `carob image ls`, and of a node's `status.images`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSummary {
    /// The normalised reference.
    pub reference: String,
    /// What the reference resolved to.
    pub digest: String,
    /// The digest of the image configuration.
    pub image_id: String,
    /// Bytes transported.
    pub size: u64,
    /// When it was pulled or imported, seconds since 1970.
    pub created_at: u64,
    /// It was imported: no registry need have it.
    pub imported: bool,
}

/// Who a container runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageUser {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups from the image's group file, the primary one first.
    pub groups: Vec<u32>,
    /// The home directory that passwd gives, or `/`.
    pub home: String,
}

/// Keeps an image's layers from being collected for as long as it lives.
#[derive(Clone, Debug)]
pub struct Lease {
    _layers: Arc<[Arc<LayerLease>]>,
}

impl Image {
    /// A guard that can outlive the image.
    pub fn lease(&self) -> Lease {
        Lease { _layers: Arc::clone(&self.leases) }
    }

    /// `docker.io/library/nginx@sha256:…`, for a container status' `imageID`.
    pub fn repo_digest(&self) -> String {
        let name = self.reference.split('@').next().unwrap_or_default();
        let name = match name.rfind(':') {
            Some(colon) if !name[colon..].contains('/') => &name[..colon],
            _ => name,
        };
        format!("{name}@{}", self.target)
    }

    /// Finds who `user` is in the image's own `/etc/passwd` and `/etc/group`: `""` (root), `1000`, `1000:1000`,
    /// `nginx`, `nginx:www-data`. A number needs no entry.
    pub fn resolve_user(&self, user: &str) -> Result<ImageUser, Error> {
        user::resolve(&Merged::open(&self.layers)?, user)
    }

    /// Reads a file of the merged layers, following symlinks inside the image only; `None` if it isn't there or isn't
    /// a file. A file over `max_bytes` is an error.
    pub fn read_file(&self, path: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, Error> {
        Merged::open(&self.layers)?.read(path, max_bytes)
    }
}
