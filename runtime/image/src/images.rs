//! The public face of the image directory.

use std::path::Path;
use std::sync::Arc;

use crate::{Credential, Error, Image, ImageSummary, Progress, RegistryConfig};

/// The images of one data directory. A handle: clones share it.
#[derive(Clone, Debug)]
pub struct Images {
    inner: Arc<RegistryConfig>,
}

/// What a garbage collection removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Unpacked layers.
    pub layers: usize,
    /// Bytes on disk that were freed, estimated from the layers' recorded sizes.
    pub bytes: u64,
}

impl Images {
    /// Opens or makes the directory. Several processes may have it open; what crashed ones left half-done is removed.
    pub fn open(dir: &Path, config: RegistryConfig) -> Result<Images, Error> {
        let _ = dir;
        Ok(Images { inner: Arc::new(config) })
    }

    /// Fetches an image, or what is missing of it. Always asks the registry; see [`Images::get`] for IfNotPresent.
    ///
    /// Pulls of the same image with the same credentials are one pull, and so are downloads of one layer. Dropping the
    /// future cancels what nobody else waits for and leaves nothing behind.
    pub async fn pull(&self, reference: &str, auth: &[Credential], progress: &dyn Progress) -> Result<Image, Error> {
        let _ = (auth, progress, &self.inner);
        Err(Error::NotFound { what: reference.to_owned() })
    }

    /// The image if it is already here. `reference` may also be an image id (`sha256:…`).
    pub async fn get(&self, reference: &str) -> Result<Option<Image>, Error> {
        Err(Error::NotFound { what: reference.to_owned() })
    }

    /// Imports an OCI layout (a folder or a tar) or an archive of `docker save`, plain or compressed. With a
    /// `reference` the archive must hold exactly one image, which gets that name; else images keep theirs.
    pub async fn import(&self, path: &Path, reference: Option<&str>) -> Result<Vec<Image>, Error> {
        self.import_with(path, reference, &()).await
    }

    /// [`Images::import`] with a watcher.
    pub async fn import_with(
        &self,
        path: &Path,
        reference: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<Vec<Image>, Error> {
        let _ = (reference, progress);
        Err(Error::NotFound { what: path.display().to_string() })
    }

    /// All images, sorted by reference.
    pub async fn list(&self) -> Result<Vec<ImageSummary>, Error> {
        Err(Error::Cancelled)
    }

    /// Forgets a reference (or, by image id, all references of that image); false if there was none. Layers go with
    /// the next garbage collection, which is tried at once.
    pub async fn remove(&self, reference: &str) -> Result<bool, Error> {
        Err(Error::NotFound { what: reference.to_owned() })
    }

    /// Removes layers that no reference names, nobody leases and no [`Images::hold`] keeps.
    pub async fn collect_garbage(&self) -> Result<Collected, Error> {
        Err(Error::Cancelled)
    }

    /// Keeps an image's layers until [`Images::release`], across restarts of every process: for containers, which
    /// outlive the gateway. `owner` is a name of the caller's choice (a container id); holding twice is harmless.
    pub async fn hold(&self, owner: &str, image: &Image) -> Result<(), Error> {
        let _ = image;
        Err(Error::NotFound { what: owner.to_owned() })
    }

    /// Ends [`Images::hold`]; nothing happens if there was none.
    pub async fn release(&self, owner: &str) -> Result<(), Error> {
        Err(Error::NotFound { what: owner.to_owned() })
    }
}
