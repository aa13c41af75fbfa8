//! What the fuzz targets (`tests/fuzz`) reach of this crate, and what nobody else should use.

use std::path::Path;

use crate::document::{Configuration, Document, choose};
use crate::layer::{Expected, unpack_stream};
use crate::{Error, Limits};

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

/// Reads an image's configuration.
///
/// # Errors
/// As a pull would fail.
pub fn configuration(bytes: &[u8]) -> Result<(), Error> {
    Configuration::parse("fuzzed", bytes).map(drop)
}
