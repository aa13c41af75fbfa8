//! A container's block devices: claims of volumes that are devices of the machine.

use super::ConfigError;
use crate::volumes::MountedVolume;
use carob_sandbox::DeviceNode;
use k8s_openapi::api::core::v1::Container;
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

/// The device nodes of `volumeDevices`, with the permissions of the machine's own.
pub(crate) fn devices(
    container: &Container,
    volumes: &HashMap<String, MountedVolume>,
) -> Result<Vec<DeviceNode>, ConfigError> {
    container
        .volume_devices
        .iter()
        .flatten()
        .map(|device| {
            let name = &device.name;
            let volume = volumes.get(name).ok_or_else(|| {
                ConfigError(format!("cannot find volume {name:?} to pass into container {:?}", container.name))
            })?;
            let meta = fs::metadata(&volume.path)
                .map_err(|error| ConfigError(format!("failed to stat {}: {error}", volume.path.display())))?;
            if !meta.file_type().is_block_device() {
                let text = format!("volume {name} has volumeMode Filesystem, but is specified in volumeDevices");
                return Err(ConfigError(text));
            }
            let number = meta.rdev();
            Ok(DeviceNode {
                path: device.device_path.clone(),
                block: true,
                major: i64::try_from(nix::sys::stat::major(number)).unwrap_or(-1),
                minor: i64::try_from(nix::sys::stat::minor(number)).unwrap_or(-1),
                mode: meta.mode() & 0o777,
                access: if volume.read_only { "mr" } else { "mrw" }.to_owned(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_directory_is_no_device() {
        let container: Container = serde_json::from_value(
            json!({"name": "c", "volumeDevices": [{"name": "disk", "devicePath": "/dev/disk"}]}),
        )
        .unwrap();
        let why = |volumes: &HashMap<String, MountedVolume>| devices(&container, volumes).unwrap_err().0;
        assert!(why(&HashMap::new()).starts_with("cannot find volume \"disk\""));
        let place = tempfile::tempdir().unwrap();
        let volume = MountedVolume { path: place.path().to_owned(), read_only: false, memory: None };
        let text = "volume disk has volumeMode Filesystem, but is specified in volumeDevices";
        assert_eq!(why(&[("disk".to_owned(), volume)].into()), text);
    }
}
