//! What the fuzz targets (`tests/fuzz`) reach of this crate, and what nobody else should use.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use crate::config::{ContainerConfig, PodConfig};
use crate::create::foreign;
use crate::create::spec::{Joined, Staged};

/// The whole runtime specification of a container, as another runtime would be given it: in a pod that joins the namespaces
/// which its configuration promises, with all mounts staged at `/staged`.
///
/// # Errors
/// What the specification cannot express.
pub fn spec(pod: &PodConfig, container: &ContainerConfig) -> Result<serde_json::Value, String> {
    let null = File::open("/dev/null").map_err(|error| error.to_string())?;
    let joined = Joined {
        network: pod.netns.as_ref().map(AsFd::as_fd),
        ipc: (!pod.host_ipc).then_some(null.as_fd()),
        uts: pod.netns.is_some().then_some(null.as_fd()),
        pid: (pod.share_pid && !pod.host_pid).then_some(null.as_fd()),
    };
    let stage = |mount: &crate::Mount| Staged {
        source: Path::new("/staged").to_owned(),
        destination: mount.destination.clone(),
        options: if mount.read_only { vec!["rbind", "ro"] } else { vec!["rbind"] },
    };
    let staged: Vec<Staged> = container.mounts.iter().map(stage).collect();
    foreign::specification(pod, container, &joined, &staged, Path::new("/root"), Path::new("carob/pod/container"))
        .map_err(|failure| format!("{failure:?}"))
}
