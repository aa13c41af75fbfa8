//! The file of `--config`: what is too large for a flag.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use carob_image::RegistryConfig;
use serde::Deserialize;

/// Settings of one Carob. Unknown ones are refused.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ConfigFile {
    /// Name of the node; the machine's host name where it isn't given.
    pub node_name: Option<String>,
    /// Mirrors, certificates and limits for pulling images.
    pub images: RegistryConfig,
    /// Who is known, what is audited, what is asked of Pods.
    pub cluster: carob_gateway::Settings,
    /// The price book; list prices of 0 where it isn't given.
    pub price_book: Option<PathBuf>,
}

impl ConfigFile {
    /// Reads the file, or takes the defaults.
    pub fn read(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path else { return Ok(Self::default()) };
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_saphyr::from_str(&text).with_context(|| format!("{} is no configuration", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_setting_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("carob.yaml");
        std::fs::write(&path, "nodeName: a\nnodename: b\n").unwrap();
        let refused = format!("{:#}", ConfigFile::read(Some(&path)).unwrap_err());
        assert!(refused.contains("nodename"), "{refused}");
    }
}
