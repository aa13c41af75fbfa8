//! What the fuzz targets (`tests/fuzz`) reach of this crate, and what nobody else should use.

use std::path::Path;

use crate::config::{ContainerConfig, PodConfig};
use crate::create::spec::{self, Joined, Staged};

/// The runtime specification of a container whose namespaces are all its own and whose mounts are all directories.
///
/// # Errors
/// What the specification cannot express.
pub fn spec(pod: &PodConfig, container: &ContainerConfig) -> Result<serde_json::Value, String> {
    let joined = Joined { network: None, ipc: None, uts: None, pid: None };
    let stage = |mount: &crate::Mount| Staged {
        source: Path::new("/staged").to_owned(),
        destination: mount.destination.clone(),
        options: vec!["rbind"],
    };
    let staged: Vec<Staged> = container.mounts.iter().map(stage).collect();
    let spec = spec::build(pod, container, &joined, None, &staged).map_err(|failure| format!("{failure:?}"))?;
    serde_json::to_value(&spec).map_err(|error| error.to_string())
}
