//! The part of Carob's configuration file that is about registries and sizes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where images come from and how large they may be. In YAML:
///
/// ```yaml
/// registries:
///   docker.io:
///     mirrors: [https://mirror.internal, "10.0.0.5:5000"]
///   registry.internal:5000:
///     ca_file: /etc/carob/registry-ca.pem
///   10.0.0.5:5000:
///     insecure: true
/// ```
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistryConfig {
    /// By registry host as it stands in references (`docker.io`, `registry.internal:5000`).
    pub registries: BTreeMap<String, Registry>,
    /// Bounds on what an image may be.
    pub limits: Limits,
}

/// How one registry host is spoken to.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registry {
    /// Asked in this order before the registry itself: `host`, `host:port` or a URL with an optional path.
    pub mirrors: Vec<String>,
    /// Plain HTTP is allowed, and a certificate isn't verified. Loopback hosts are always insecure in this sense.
    pub insecure: bool,
    /// PEM certificates trusted in addition to the system's.
    pub ca_file: Option<PathBuf>,
}

/// Bounds on what an image may be; beyond them a pull is refused.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Compressed bytes of one layer.
    pub layer_bytes: u64,
    /// Bytes of one layer's archive when decompressed.
    pub unpacked_bytes: u64,
    /// Entries (files, directories, links) in one layer.
    pub entries: u64,
    /// Decompressed bytes per compressed byte, enforced beyond the first 256 MiB.
    pub ratio: u64,
    /// Bytes of a manifest, an index or an image configuration.
    pub document_bytes: u64,
    /// Layers downloaded at once, over all pulls.
    pub parallel_layers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layer_bytes: 16 << 30,
            unpacked_bytes: 32 << 30,
            entries: 1_000_000,
            ratio: 500,
            document_bytes: 4 << 20,
            parallel_layers: 4,
        }
    }
}
