//! Pulling: resolve, fetch the documents, fetch and unpack all missing layers at once, record.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures::future::try_join_all;
use tokio::sync::{mpsc, watch};

use crate::access::Access;
use crate::digest::Digest;
use crate::document::{Configuration, Document, Manifest, Part, choose};
use crate::images::{Inner, Origin};
use crate::layer::{Expected, unpack_stream};
use crate::progress::{LayerPart, LayerStep};
use crate::registry::{Fetched, Session};
use crate::store::{LayerLease, LayerRecord, Store, layer_name};
use crate::{Credential, Error, Image, Reference, credential};

/// An index may point to an index, but not for ever.
const MAX_INDEXES: usize = 3;
/// Pieces of a layer between the network and the unpacker.
const QUEUE: usize = 32;

/// How far a pull is: its layers, lowest first.
pub(crate) type Steps = Vec<(LayerPart, Option<LayerStep>)>;

/// All documents of an image.
pub(crate) struct Documents {
    pub target: Fetched,
    /// Digest and bytes of the manifest for this platform.
    pub manifest_digest: Digest,
    pub manifest_bytes: Vec<u8>,
    pub manifest: Manifest,
    pub config_bytes: Vec<u8>,
    pub config: Configuration,
}

/// Pulls one image. Credentials are tried one after the other, as kubelet does.
pub(crate) async fn pull(
    inner: Arc<Inner>,
    reference: Reference,
    credentials: Vec<Credential>,
    steps: watch::Sender<Steps>,
) -> Result<Image, Error> {
    let mut candidates = credential::matching(&credentials, &reference).into_iter().map(Some).collect::<Vec<_>>();
    if candidates.is_empty() {
        candidates.push(None);
    }
    let mut last = Error::Cancelled;
    for candidate in candidates {
        let access = Access::by(candidate.as_ref());
        let session = Arc::new(inner.registries.session(&reference, candidate)?);
        match documents(&inner, &session, &reference).await {
            Ok(documents) => {
                let origin = Origin::Registry(access);
                return fetch(inner, session, &reference, documents, (origin, steps)).await;
            }
            Err(error @ Error::Unauthorized { .. }) => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

async fn documents(inner: &Arc<Inner>, session: &Session, reference: &Reference) -> Result<Documents, Error> {
    let asked = reference.digest.as_deref().or(reference.tag.as_deref()).unwrap_or("latest");
    let target = session.manifest(asked, None).await?;
    let mut at = Fetched {
        digest: target.digest.clone(),
        bytes: target.bytes.clone(),
        content_type: target.content_type.clone(),
    };
    for _ in 0..=MAX_INDEXES {
        match Document::parse(at.digest.as_str(), &at.bytes, at.content_type.as_deref())? {
            Document::Index(entries) => {
                let entry = choose(at.digest.as_str(), &entries)?;
                at = session.manifest(entry.digest.as_str(), Some(entry.size)).await?;
            }
            Document::Manifest(manifest) => {
                let config_bytes = config(inner, session, &manifest.config).await?;
                let what = manifest.config.digest.as_str();
                let config = Configuration::parse(what, &config_bytes)?;
                config.check_layers(what, &manifest)?;
                return Ok(Documents {
                    target,
                    manifest_digest: at.digest,
                    manifest_bytes: at.bytes,
                    manifest,
                    config_bytes,
                    config,
                });
            }
        }
    }
    let problem = format!("more than {MAX_INDEXES} indexes in one another");
    Err(Error::Malformed { what: target.digest.to_string(), problem })
}

async fn config(inner: &Arc<Inner>, session: &Session, part: &Part) -> Result<Vec<u8>, Error> {
    let digest = part.digest.clone();
    let here = inner.blocking(move |inner| inner.store.read_blob(&digest)).await?;
    match here {
        Some(bytes) => Ok(bytes),
        None => session.small_blob(part).await,
    }
}

async fn fetch(
    inner: Arc<Inner>,
    session: Arc<Session>,
    reference: &Reference,
    documents: Documents,
    (origin, steps): (Origin, watch::Sender<Steps>),
) -> Result<Image, Error> {
    let parts = documents.manifest.layers.iter();
    steps.send_replace(
        parts.map(|part| (LayerPart { digest: part.digest.to_string(), size: part.size }, None)).collect(),
    );
    let layers = documents.manifest.layers.iter().zip(&documents.config.diff_ids);
    let flights: Vec<_> = layers
        .map(|(part, diff_id)| {
            inner.layers.join((part.digest.clone(), diff_id.clone()), |progress| {
                layer(Arc::clone(&inner), Arc::clone(&session), part.clone(), diff_id.clone(), progress)
            })
        })
        .collect();
    let outcomes: Vec<_> = flights.iter().map(|flight| flight.outcome.clone()).collect();
    let steps = &steps;
    let watched = flights.into_iter().enumerate().map(|(number, flight)| {
        flight.watch(move |step| {
            let step = *step;
            steps.send_if_modified(|steps| {
                let changed = steps[number].1 != step;
                steps[number].1 = step;
                changed
            });
        })
    });
    let layers = try_join_all(watched).await.inspect_err(|error| {
        // A registry that was unavailable may be back at the next attempt, which needs only the rest then.
        let arrived = outcomes.iter().filter_map(|outcome| outcome.peek()?.as_ref().ok());
        if matches!(error, Error::Unavailable { .. }) {
            arrived.for_each(|lease| lease.keep());
        }
    })?;
    let reference = reference.clone();
    inner.blocking(move |inner| crate::images::commit(inner, &reference, &documents, &layers, origin)).await
}

/// Has one layer in place, unpacking it while it downloads.
async fn layer(
    inner: Arc<Inner>,
    session: Arc<Session>,
    part: Part,
    diff_id: Digest,
    progress: watch::Sender<Option<LayerStep>>,
) -> Result<Arc<LayerLease>, Error> {
    let (digest, diff) = (part.digest.clone(), diff_id.clone());
    if let Some(lease) = inner.blocking(move |inner| inner.store.lease_layer(&diff, &digest)).await? {
        progress.send_replace(Some(LayerStep::Present));
        return Ok(lease);
    }
    // The semaphore is never closed.
    let _permit = inner.downloads.acquire().await.map_err(|_| Error::Cancelled)?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    let expected =
        Expected { digest: Some(part.digest.clone()), size: Some(part.size), diff_id: Some(diff_id.clone()) };
    let unpacking = inner.blocking(move |inner| {
        let stream = Incoming { receiver, chunk: Bytes::new() };
        unpack_layer(&inner.store, &expected, stream, &inner.config.limits)
    });
    let downloading = async {
        session.blob(&part, &sender, |bytes| _ = progress.send_replace(Some(LayerStep::Bytes(bytes)))).await;
        drop(sender);
    };
    let (lease, ()) = tokio::join!(unpacking, downloading);
    let lease = lease?.lease;
    progress.send_replace(Some(LayerStep::Done));
    Ok(lease)
}

/// A layer that was just unpacked, with its transported digest and size.
pub(crate) struct Layer {
    pub lease: Arc<LayerLease>,
    pub digest: Digest,
    pub size: u64,
}

/// Unpacks, verifies and commits one layer; leaves nothing behind if that fails.
pub(crate) fn unpack_layer(
    store: &Store,
    expected: &Expected,
    stream: impl Read,
    limits: &crate::Limits,
) -> Result<Layer, Error> {
    let temp = store.temp()?;
    let root = Store::layer_in_making(&temp)?;
    let what = match (&expected.digest, &expected.diff_id) {
        (Some(digest), _) | (None, Some(digest)) => format!("layer {digest}"),
        (None, None) => "layer".to_owned(),
    };
    let unpacked =
        unpack_stream(&what, stream, expected, &root, limits).map_err(|error| naming_the_layer(error, &what))?;
    let name = layer_name(&unpacked.diff_id);
    let record = LayerRecord::new(unpacked.diff_id, unpacked.written);
    let lease = store.commit_layer(&temp, &name, record, Some(&unpacked.digest))?;
    Ok(Layer { lease, digest: unpacked.digest, size: unpacked.size })
}

/// What reads an archive doesn't know which one: the error says it.
fn naming_the_layer(error: Error, what: &str) -> Error {
    match error {
        Error::Malformed { what: part, problem } if !part.contains(what) => {
            Error::Malformed { what: what.to_owned(), problem: format!("{part}: {problem}") }
        }
        Error::Hostile { entry, problem } => Error::Hostile { entry, problem: format!("{problem} (in {what})") },
        Error::Protocol { host, problem } => Error::Protocol { host, problem: format!("{problem} (for {what})") },
        other => other,
    }
}

/// The network's pieces as a blocking stream.
struct Incoming {
    receiver: mpsc::Receiver<Result<Bytes, Error>>,
    chunk: Bytes,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.receiver.blocking_recv() {
                Some(Ok(chunk)) => self.chunk = chunk,
                Some(Err(error)) => return Err(io::Error::other(error)),
                // The sender ends in order or with an error: a stream that just stops was abandoned, unless it is whole,
                // which its size and digest will show.
                None => return Ok(0),
            }
        }
        let size = self.chunk.len().min(buffer.len());
        buffer[..size].copy_from_slice(&self.chunk[..size]);
        self.chunk.advance(size);
        Ok(size)
    }
}
