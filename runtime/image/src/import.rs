//! Importing images from files: OCI layouts and archives of `docker save`.

mod source;

use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;

use crate::digest::Digest;
use crate::document::{
    Configuration, Document, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Part, choose, no_platform,
};
use crate::images::{Inner, Origin, commit};
use crate::layer::Expected;
use crate::progress::{LayerPart, LayerStep};
use crate::pull::{Documents, Steps, unpack_layer};
use crate::registry::Fetched;
use crate::{Error, Image, Reference};
use source::Source;

const CONTAINERD_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Every so many bytes the watcher hears of it.
const STEP_BYTES: u64 = 1 << 20;

/// Imports all images of a folder or file. `name` is for the only one there is.
pub(crate) fn import(
    inner: &Inner,
    path: &Path,
    name: Option<&Reference>,
    stop: &AtomicBool,
    steps: &watch::Sender<Steps>,
) -> Result<Vec<Image>, Error> {
    let temp = inner.store.temp()?;
    let source = Source::open(path, &temp, &inner.config.limits)?;
    let import = Import { inner, source: &source, stop, steps };
    let found = if source.has("index.json") {
        import.layout()?
    } else if source.has("manifest.json") {
        import.docker()?
    } else {
        let problem = "neither an OCI layout (index.json) nor an archive of docker save (manifest.json)".to_owned();
        return Err(Error::Malformed { what: path.display().to_string(), problem });
    };
    let what = path.display().to_string();
    if let (Some(name), [only]) = (name, found.as_slice()) {
        return Ok(vec![import.one(only, std::slice::from_ref(name))?.remove(0)]);
    }
    if name.is_some() {
        let problem = format!("it holds {} images, and a name can be given to one only", found.len());
        return Err(Error::Malformed { what, problem });
    }
    let mut images = Vec::new();
    for candidate in &found {
        let names = candidate.names.iter().map(|name| Reference::parse(name)).collect::<Result<Vec<_>, _>>()?;
        if names.is_empty() {
            let problem = "an image in it has no name: give one".to_owned();
            return Err(Error::Malformed { what, problem });
        }
        images.extend(import.one(candidate, &names)?);
    }
    Ok(images)
}

/// An image in the source, not yet unpacked.
struct Candidate {
    names: Vec<String>,
    kind: Kind,
}

enum Kind {
    /// By the descriptor in index.json.
    Layout(Part),
    Docker(DockerImage),
}

/// An element of docker's manifest.json.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

struct Import<'a> {
    inner: &'a Inner,
    source: &'a Source,
    stop: &'a AtomicBool,
    steps: &'a watch::Sender<Steps>,
}

impl Import<'_> {
    fn layout(&self) -> Result<Vec<Candidate>, Error> {
        let index = self.document("index.json")?;
        let Document::Index(entries) = Document::parse("index.json", &index, None)? else {
            return Err(malformed("index.json", "it is not an index"));
        };
        let mut found: Vec<Candidate> = Vec::new();
        for part in entries {
            // Another platform's, or a signature or attestation.
            let alone = std::slice::from_ref(&part);
            if part.platform.is_some() && choose("index.json", alone).is_err() {
                continue;
            }
            let name =
                part.annotation(CONTAINERD_NAME).or_else(|| part.annotation(REF_NAME).filter(|name| is_whole(name)));
            let name = name.map(str::to_owned);
            match found.iter_mut().find(|it| matches!(&it.kind, Kind::Layout(other) if other.digest == part.digest)) {
                Some(same) => same.names.extend(name),
                None => found.push(Candidate { names: name.into_iter().collect(), kind: Kind::Layout(part) }),
            }
        }
        if found.is_empty() { Err(no_platform("index.json")) } else { Ok(found) }
    }

    fn docker(&self) -> Result<Vec<Candidate>, Error> {
        let text = self.document("manifest.json")?;
        let images: Vec<DockerImage> =
            serde_json::from_slice(&text).map_err(|error| malformed("manifest.json", error.to_string()))?;
        let candidate = |image: DockerImage| Candidate {
            names: image.repo_tags.clone().unwrap_or_default(),
            kind: Kind::Docker(image),
        };
        Ok(images.into_iter().map(candidate).collect())
    }

    /// Unpacks one image and records it under its names.
    fn one(&self, candidate: &Candidate, names: &[Reference]) -> Result<Vec<Image>, Error> {
        let (documents, layers) = match &candidate.kind {
            Kind::Layout(part) => self.unpack_layout(part)?,
            Kind::Docker(image) => self.unpack_docker(image)?,
        };
        names.iter().map(|name| commit(self.inner, name, &documents, &layers, Origin::Import)).collect()
    }

    fn unpack_layout(&self, part: &Part) -> Result<(Documents, Leases), Error> {
        let target = Fetched { digest: part.digest.clone(), bytes: self.blob(part)?, content_type: None };
        let (mut digest, mut bytes) = (part.digest.clone(), target.bytes.clone());
        let manifest = loop {
            match Document::parse(digest.as_str(), &bytes, None)? {
                // Digests cannot form a circle, so this ends.
                Document::Index(entries) => {
                    let entry = choose(digest.as_str(), &entries)?;
                    (digest, bytes) = (entry.digest.clone(), self.blob(entry)?);
                }
                Document::Manifest(manifest) => break manifest,
            }
        };
        let config_bytes = self.blob(&manifest.config)?;
        let config = Configuration::parse(manifest.config.digest.as_str(), &config_bytes)?;
        config.check_layers(manifest.config.digest.as_str(), &manifest)?;
        self.announce(manifest.layers.iter().map(|part| (part.digest.to_string(), part.size)));
        let mut leases = Leases::new();
        for (number, (part, diff_id)) in manifest.layers.iter().zip(&config.diff_ids).enumerate() {
            if let Some(lease) = self.inner.store.lease_layer(diff_id, &part.digest)? {
                self.step(number, LayerStep::Present);
                leases.push(lease);
                continue;
            }
            let expected =
                Expected { digest: Some(part.digest.clone()), size: Some(part.size), diff_id: Some(diff_id.clone()) };
            leases.push(self.layer(number, &blob_name(&part.digest), &expected)?.lease);
        }
        let documents =
            Documents { target, manifest_digest: digest, manifest_bytes: bytes, manifest, config_bytes, config };
        Ok((documents, leases))
    }

    /// Docker's archive has no manifest in the sense of registries: one is made of what it holds.
    fn unpack_docker(&self, image: &DockerImage) -> Result<(Documents, Leases), Error> {
        let config_bytes = self.document(&image.config)?;
        let config_digest = Digest::of(&config_bytes);
        let named = image.config.trim_end_matches(".json").rsplit('/').next().unwrap_or_default();
        if named.len() == 64 && named != config_digest.hex() {
            let problem = format!("its digest is {config_digest}");
            return Err(Error::Corrupt { what: image.config.clone(), problem });
        }
        let config = Configuration::parse(&image.config, &config_bytes)?;
        if config.diff_ids.len() != image.layers.len() || image.layers.is_empty() {
            return Err(malformed("manifest.json", "it has other layers than the configuration"));
        }
        let sizes = image.layers.iter().map(|name| self.source.size(name));
        let sizes = sizes.collect::<Result<Vec<u64>, Error>>()?;
        self.announce(config.diff_ids.iter().map(ToString::to_string).zip(sizes.iter().copied()));
        let mut leases = Leases::new();
        let mut layers = Vec::new();
        for (number, (name, diff_id)) in image.layers.iter().zip(&config.diff_ids).enumerate() {
            // Uncompressed, as docker writes them, a layer's digest is its diff id.
            let (lease, digest, size) = if let Some(lease) = self.inner.store.lease_layer(diff_id, diff_id)? {
                self.step(number, LayerStep::Present);
                (lease, diff_id.clone(), sizes[number])
            } else {
                let expected = Expected { diff_id: Some(diff_id.clone()), ..Expected::default() };
                let unpacked = self.layer(number, name, &expected)?;
                (unpacked.lease, unpacked.digest, unpacked.size)
            };
            leases.push(lease);
            layers.push(Part { media_type: OCI_LAYER.to_owned(), digest, size, platform: None, annotations: None });
        }
        let config_part = Part {
            media_type: OCI_CONFIG.to_owned(),
            digest: config_digest,
            size: config_bytes.len() as u64,
            platform: None,
            annotations: None,
        };
        let manifest_bytes =
            json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config_part, "layers": layers});
        let manifest_bytes = manifest_bytes.to_string().into_bytes();
        let digest = Digest::of(&manifest_bytes);
        let documents = Documents {
            target: Fetched { digest: digest.clone(), bytes: manifest_bytes.clone(), content_type: None },
            manifest_digest: digest,
            manifest_bytes,
            manifest: Manifest { config: config_part, layers },
            config_bytes,
            config,
        };
        Ok((documents, leases))
    }

    fn layer(&self, number: usize, name: &str, expected: &Expected) -> Result<crate::pull::Layer, Error> {
        let (reader, _) = self.source.open_file(name)?;
        let watched = Watched { import: self, number, reader, bytes: 0, shown: 0 };
        let layer = unpack_layer(&self.inner.store, expected, watched, &self.inner.config.limits)?;
        self.step(number, LayerStep::Done);
        Ok(layer)
    }

    fn blob(&self, part: &Part) -> Result<Vec<u8>, Error> {
        let bytes = self.document(&blob_name(&part.digest))?;
        let digest = Digest::of(&bytes);
        if digest != part.digest || bytes.len() as u64 != part.size {
            let problem = format!("it has {} bytes and digest {digest}", bytes.len());
            return Err(Error::Corrupt { what: part.digest.to_string(), problem });
        }
        Ok(bytes)
    }

    fn document(&self, name: &str) -> Result<Vec<u8>, Error> {
        let most = self.inner.config.limits.document_bytes;
        let (reader, _) = self.source.open_file(name)?;
        let mut bytes = Vec::new();
        reader.take(most + 1).read_to_end(&mut bytes).map_err(Error::io("read", name))?;
        if bytes.len() as u64 > most {
            return Err(Error::TooLarge { what: name.to_owned(), problem: format!("over {most} bytes") });
        }
        Ok(bytes)
    }

    fn announce(&self, layers: impl Iterator<Item = (String, u64)>) {
        self.steps.send_replace(layers.map(|(digest, size)| (LayerPart { digest, size }, None)).collect());
    }

    fn step(&self, number: usize, step: LayerStep) {
        self.steps.send_modify(|steps| steps[number].1 = Some(step));
    }
}

type Leases = Vec<std::sync::Arc<crate::store::LayerLease>>;

/// A layer being read: shows how far it is, and stops when nobody waits any more.
struct Watched<'a, R> {
    import: &'a Import<'a>,
    number: usize,
    reader: R,
    bytes: u64,
    shown: u64,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.import.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other(Error::Cancelled));
        }
        let size = self.reader.read(buffer)?;
        self.bytes += size as u64;
        if self.bytes >= self.shown + STEP_BYTES {
            self.shown = self.bytes;
            self.import.step(self.number, LayerStep::Bytes(self.bytes));
        }
        Ok(size)
    }
}

/// A name with a registry, a path or a tag; a bare word in an index is only a tag.
fn is_whole(name: &str) -> bool {
    name.contains(['/', ':'])
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn malformed(what: &str, problem: impl Into<String>) -> Error {
    Error::Malformed { what: what.to_owned(), problem: problem.into() }
}
