//! What the fuzz targets (`tests/fuzz`) reach of this crate, and what nobody else should use.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::access::Access;
use crate::document::{Configuration, Document, choose};
use crate::layer::{Expected, unpack_stream};
use crate::{Error, Image, ImageConfig, Limits};

/// Unpacks a layer, however it is compressed, into an empty directory; gives the bytes of all its files.
///
/// # Errors
/// As a pull would fail.
pub fn unpack(layer: &[u8], root: &Path, limits: &Limits) -> Result<u64, Error> {
    unpack_stream("fuzzed", layer, &Expected::default(), root, limits).map(|unpacked| unpacked.written.bytes)
}

/// Reads a manifest or an index, and chooses from the latter.
///
/// # Errors
/// As a pull would fail.
pub fn manifest(bytes: &[u8]) -> Result<(), Error> {
    match Document::parse("fuzzed", bytes, None)? {
        Document::Index(entries) => choose("fuzzed", &entries).map(drop),
        Document::Manifest(_) => Ok(()),
    }
}

/// An image that was never pulled.
pub fn image(layers: Vec<PathBuf>, config: ImageConfig) -> Image {
    let digest = format!("sha256:{}", "0".repeat(64));
    Image {
        reference: "docker.io/library/fuzzed:latest".to_owned(),
        digest: digest.clone(),
        target: digest.clone(),
        image_id: digest,
        config,
        layers,
        size: 0,
        access: Access::Anybody,
        leases: Arc::new([]),
    }
}

/// Reads an image's configuration.
///
/// # Errors
/// As a pull would fail.
pub fn configuration(bytes: &[u8]) -> Result<(), Error> {
    Configuration::parse("fuzzed", bytes).map(drop)
}
