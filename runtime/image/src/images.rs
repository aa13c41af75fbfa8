//! The public face of the image directory.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use futures::FutureExt;
use tokio::sync::{Semaphore, watch};

use crate::access::Access;
use crate::digest::Digest;
use crate::document::Configuration;
use crate::flight::{Flight, Flights};
use crate::layer::variant;
use crate::progress::{LayerStep, Reporter};
use crate::pull::{self, Documents, Steps};
use crate::registry::Registries;
use crate::store::{LayerLease, Record, Store};
use crate::{Credential, Error, Image, ImageSummary, Progress, Reference, RegistryConfig, import};

/// The images of one data directory. A handle: clones share it.
#[derive(Clone)]
pub struct Images {
    inner: Arc<Inner>,
}

/// Pulls are shared only between callers who show the same credentials.
type PullKey = (String, Vec<Credential>);

pub(crate) struct Inner {
    pub store: Arc<Store>,
    pub config: Arc<RegistryConfig>,
    pub registries: Registries,
    pub downloads: Semaphore,
    pulls: Flights<PullKey, Image, Steps>,
    /// By transported digest and diff id.
    pub layers: Flights<(Digest, Digest), Arc<LayerLease>, Option<LayerStep>>,
}

impl fmt::Debug for Images {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Images").field("store", &self.inner.store).finish_non_exhaustive()
    }
}

impl Inner {
    /// The names of the images that a reference or an id means.
    fn names(&self, reference: &str) -> Result<Vec<String>, Error> {
        Ok(match Digest::parse(reference) {
            Ok(id) => self.store.records_by_id(id.as_str())?.into_iter().map(|record| record.reference).collect(),
            Err(_) => vec![Reference::parse(reference)?.to_string()],
        })
    }

    /// Runs what waits for the disk away from the async threads.
    pub async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let inner = Arc::clone(self);
        tokio::task::spawn_blocking(move || work(&inner)).await.unwrap_or(Err(Error::Cancelled))
    }
}

/// What a garbage collection removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Unpacked layers.
    pub layers: usize,
    /// Bytes of the files in them.
    pub bytes: u64,
}

impl Images {
    /// Opens or makes the directory. Several processes may have it open; what crashed ones left half-done is removed.
    pub fn open(dir: &Path, config: RegistryConfig) -> Result<Images, Error> {
        let config = Arc::new(config);
        let inner = Inner {
            store: Store::open(dir)?,
            registries: Registries::new(Arc::clone(&config)),
            downloads: Semaphore::new(config.limits.parallel_layers.clamp(1, 64)),
            pulls: Flights::default(),
            layers: Flights::default(),
            config,
        };
        Ok(Images { inner: Arc::new(inner) })
    }

    /// Fetches an image, or what is missing of it. Always asks the registry; see [`Images::get`] for IfNotPresent.
    ///
    /// Pulls of the same image with the same credentials are one pull, and so are downloads of one layer. Dropping the
    /// future cancels what nobody else waits for and leaves nothing behind.
    pub async fn pull(&self, reference: &str, auth: &[Credential], progress: &dyn Progress) -> Result<Image, Error> {
        let parsed = Reference::parse(reference)?;
        let name = parsed.to_string();
        let flight = self.inner.pulls.join((name.clone(), auth.to_vec()), |steps| {
            pull::pull(Arc::clone(&self.inner), parsed, auth.to_vec(), steps)
        });
        let mut reporter = Reporter::new(progress, &name);
        let outcome = flight.watch(|steps| reporter.show(steps)).await;
        outcome.map_err(|error| Error::Pull { reference: name, source: Box::new(error) })
    }

    /// The image if it is already here. `reference` may also be an image id (`sha256:…`).
    pub async fn get(&self, reference: &str) -> Result<Option<Image>, Error> {
        let reference = reference.to_owned();
        let find = move |inner: &Inner| match Digest::parse(&reference) {
            Ok(id) => Ok(inner.store.records_by_id(id.as_str())?.into_iter().next()),
            Err(_) => inner.store.record(&Reference::parse(&reference)?),
        };
        let load = move |inner: &Inner| match find(inner)? {
            Some(record) => load(inner, &record),
            None => Ok(None),
        };
        self.inner.blocking(load).await
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
        let name = reference.map(Reference::parse).transpose()?;
        let label = name.as_ref().map_or_else(|| path.display().to_string(), ToString::to_string);
        let stop = Stop(Arc::new(AtomicBool::new(false)));
        let (flag, path) = (Arc::clone(&stop.0), path.to_owned());
        let (sender, receiver) = watch::channel(Steps::new());
        let inner = Arc::clone(&self.inner);
        let work = async move {
            inner.blocking(move |inner| import::import(inner, &path, name.as_ref(), &flag, &sender)).await
        };
        let flight = Flight { outcome: work.boxed().shared(), progress: receiver };
        let mut reporter = Reporter::new(progress, &label);
        flight.watch(|steps| reporter.show(steps)).await
    }

    /// All images, sorted by reference.
    pub async fn list(&self) -> Result<Vec<ImageSummary>, Error> {
        let records = self.inner.blocking(|inner| inner.store.records()).await?;
        let summary = |record: Record| ImageSummary {
            reference: record.reference,
            digest: record.target.into(),
            image_id: record.config.into(),
            size: record.size,
            created_at: record.created_at,
            imported: record.imported,
        };
        Ok(records.into_iter().map(summary).collect())
    }

    /// Forgets a reference (or, by image id, all references of that image), then collects garbage; none if there was no
    /// such reference.
    pub async fn remove(&self, reference: &str) -> Result<Option<Collected>, Error> {
        let reference = reference.to_owned();
        let remove = move |inner: &Inner| {
            let names = inner.names(&reference)?;
            let mut removed = false;
            for name in names {
                removed |= inner.store.delete_record(&name)?;
            }
            let collected = inner.store.collect()?;
            Ok(removed.then_some(collected))
        };
        self.inner.blocking(remove).await
    }

    /// How many owners hold an image that would have no name any more without this one.
    pub async fn users(&self, reference: &str) -> Result<usize, Error> {
        let reference = reference.to_owned();
        let count = move |inner: &Inner| {
            let names = inner.names(&reference)?;
            let (going, staying): (Vec<Record>, Vec<Record>) =
                inner.store.records()?.into_iter().partition(|record| names.contains(&record.reference));
            let last = going.iter().filter(|record| staying.iter().all(|other| other.layers != record.layers));
            let last: Vec<&Record> = last.collect();
            inner.store.count_holds(|layers| {
                last.iter().any(|record| record.layers.iter().all(|layer| layers.contains(layer)))
            })
        };
        self.inner.blocking(count).await
    }

    /// Removes layers that no reference names, nobody leases and no [`Images::hold`] keeps.
    pub async fn collect_garbage(&self) -> Result<Collected, Error> {
        self.inner.blocking(|inner| inner.store.collect()).await
    }

    /// Keeps an image's layers until [`Images::release`], across restarts of every process: for containers, which
    /// outlive the gateway. `owner` is a name of the caller's choice (a container id); holding twice is harmless.
    pub async fn hold(&self, owner: &str, image: &Image) -> Result<(), Error> {
        self.hold_all(owner, &[image]).await
    }

    /// The same for all images that an owner needs.
    pub async fn hold_all(&self, owner: &str, images: &[&Image]) -> Result<(), Error> {
        let owner = owner.to_owned();
        let leases = images.iter().flat_map(|image| image.leases.iter());
        let layers: BTreeSet<String> = leases.map(|lease| lease.name.clone()).collect();
        self.inner
            .blocking(move |inner| {
                let _guard = inner.store.shared()?;
                inner.store.write_hold(&owner, layers)
            })
            .await
    }

    /// Ends [`Images::hold`]; nothing happens if there was none.
    pub async fn release(&self, owner: &str) -> Result<(), Error> {
        let owner = owner.to_owned();
        self.inner.blocking(move |inner| inner.store.delete_hold(&owner).map(|_| ())).await
    }

    /// The owners of all holds, to release those whose containers are gone.
    pub async fn holders(&self) -> Result<Vec<String>, Error> {
        self.inner.blocking(|inner| inner.store.holders()).await
    }
}

/// Stops an import whose caller went away.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Where an image came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A registry, which let these have it.
    Registry(Access),
    /// An archive or a folder.
    Import,
}

/// Records an image whose layers are all in place.
pub(crate) fn commit(
    inner: &Inner,
    reference: &Reference,
    documents: &Documents,
    layers: &[Arc<LayerLease>],
    origin: Origin,
) -> Result<Image, Error> {
    let mounted = variant::fit(&inner.store, layers)?;
    let imported = origin == Origin::Import;
    let access = match origin {
        Origin::Registry(access) => access,
        Origin::Import => Access::Anybody,
    };
    let before = inner.store.record(reference)?.filter(|record| record.manifest == documents.manifest_digest);
    let access = before.map_or(access.clone(), |before| before.access.or(access));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let names = |layers: &[Arc<LayerLease>]| layers.iter().map(|layer| layer.name.clone()).collect();
    let record = Record {
        reference: reference.to_string(),
        target: documents.target.digest.clone(),
        manifest: documents.manifest_digest.clone(),
        config: documents.manifest.config.digest.clone(),
        layers: names(&mounted),
        sources: names(layers),
        size: documents.manifest.config.size + documents.manifest.layers.iter().map(|layer| layer.size).sum::<u64>(),
        created_at: now,
        imported,
        access,
    };
    let same = |old: &Record| Record { created_at: now, ..old.clone() } == record;
    if !inner.store.record(reference)?.as_ref().is_some_and(same) {
        inner.store.sync()?;
    }
    let _guard = inner.store.shared()?;
    inner.store.write_blob(&record.target, &documents.target.bytes)?;
    inner.store.write_blob(&record.manifest, &documents.manifest_bytes)?;
    inner.store.write_blob(&record.config, &documents.config_bytes)?;
    inner.store.write_record(&record)?;
    for layer in mounted.iter().chain(layers) {
        layer.keep();
    }
    Ok(image(&record, &documents.config, &mounted, layers))
}

/// Opens an image that was recorded; `None` if part of it has gone.
fn load(inner: &Inner, record: &Record) -> Result<Option<Image>, Error> {
    let _guard = inner.store.shared()?;
    let Some(config) = inner.store.read_blob(&record.config)? else { return Ok(None) };
    let config = Configuration::parse(record.config.as_str(), &config)?;
    let lease = |name: &String| inner.store.lease_named(name).transpose();
    let mounted = record.layers.iter().filter_map(lease).collect::<Result<Vec<_>, Error>>()?;
    let sources = record.sources.iter().filter_map(lease).collect::<Result<Vec<_>, Error>>()?;
    let whole = mounted.len() == record.layers.len();
    Ok(whole.then(|| image(record, &config, &mounted, &sources)))
}

fn image(record: &Record, config: &Configuration, mounted: &[Arc<LayerLease>], sources: &[Arc<LayerLease>]) -> Image {
    Image {
        reference: record.reference.clone(),
        digest: record.manifest.to_string(),
        target: record.target.to_string(),
        image_id: record.config.to_string(),
        config: config.run.clone(),
        layers: mounted.iter().rev().map(|layer| layer.path.clone()).collect(),
        size: record.size,
        access: record.access.clone(),
        leases: mounted.iter().chain(sources).cloned().collect(),
    }
}
