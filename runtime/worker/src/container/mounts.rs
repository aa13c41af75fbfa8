//! A container's mounts: its volumes in the order of their paths, and the pod's own files.

use super::ConfigError;
use super::expand::{Room, expand, first_unknown};
use crate::volumes::{MountedVolume, sub_path};
use carob_image::Image;
use carob_sandbox::{Mount, MountKind, Propagation};
use k8s_openapi::api::core::v1::{Container, VolumeMount};
use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// A file of the pod that appears in every container unless a volume is mounted there.
pub(crate) struct PodFile {
    pub destination: &'static str,
    pub source: PathBuf,
}

/// All mounts of a container, shallow paths first, as CRI runtimes order them.
pub(crate) fn mounts(
    container: &Container,
    volumes: &HashMap<String, MountedVolume>,
    images: &HashMap<String, Image>,
    env: &[(String, String)],
    files: Vec<PodFile>,
    termination_log: PathBuf,
) -> Result<Vec<Mount>, ConfigError> {
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let volume = volumes.get(&mount.name).ok_or_else(|| {
            ConfigError(format!("cannot find volume \"{}\" to mount into container \"{}\"", mount.name, container.name))
        })?;
        mounts.push(match images.get(&mount.name) {
            Some(image) => image_mount(mount, image, env)?,
            None => volume_mount(container, mount, volume, env)?,
        });
    }
    for file in files {
        if !mounts.iter().any(|mount| same_path(&mount.destination, file.destination)) {
            mounts.push(bind(file.source, file.destination.to_owned(), false));
        }
    }
    let destination = container.termination_message_path.as_deref().filter(|path| !path.is_empty());
    let destination = destination.unwrap_or("/dev/termination-log");
    if !mounts.iter().any(|mount| same_path(&mount.destination, destination)) {
        mounts.push(bind(termination_log, destination.to_owned(), false));
    }
    mounts.sort_by_key(|mount| Path::new(&mount.destination).components().count());
    Ok(mounts)
}

fn same_path(one: &str, other: &str) -> bool {
    Path::new(one).components().eq(Path::new(other).components())
}

fn bind(source: PathBuf, destination: String, read_only: bool) -> Mount {
    let (propagation, kind) = (Propagation::Private, MountKind::Bind);
    Mount { source, source_fd: None, in_pod: false, destination, read_only, recursive: false, propagation, kind }
}

/// Whether a read-only mount is so in what is mounted below it, too: what can be done here, `IfPossible` is.
pub(crate) fn is_recursive(mount: &VolumeMount) -> bool {
    mount.read_only == Some(true) && matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible"))
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

/// The files of an image, read-only.
fn image_mount(mount: &VolumeMount, image: &Image, env: &[(String, String)]) -> Result<Mount, ConfigError> {
    let sub_path = expanded_sub_path(mount, env)?.map(PathBuf::from);
    let mut result = bind(PathBuf::new(), absolute(&mount.mount_path), true);
    result.kind = MountKind::Image { lower: image.layers.clone(), sub_path };
    Ok(result)
}

fn volume_mount(
    container: &Container,
    mount: &VolumeMount,
    volume: &MountedVolume,
    env: &[(String, String)],
) -> Result<Mount, ConfigError> {
    let sub_path = expanded_sub_path(mount, env)?;
    let destination = absolute(&mount.mount_path);
    let mut result = bind(volume.path.clone(), destination, volume.read_only || mount.read_only.unwrap_or(false));
    result.recursive = is_recursive(mount);
    result.propagation = match mount.mount_propagation.as_deref() {
        Some("HostToContainer") => Propagation::HostToContainer,
        Some("Bidirectional") => Propagation::Bidirectional,
        _ => Propagation::Private,
    };
    if let Some(sub_path) = sub_path {
        // In memory, this process reaches the volume by its descriptor only.
        let reachable = volume.memory.as_ref().map(|root| PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd())));
        let fd = sub_path::resolve(reachable.as_ref().unwrap_or(&volume.path), &sub_path).map_err(|error| {
            ConfigError(format!(
                "failed to prepare subPath for volumeMount \"{}\" of container \"{}\": {error}",
                mount.name, container.name
            ))
        })?;
        result.source = volume.path.join(&sub_path);
        result.source_fd = Some(fd);
        result.in_pod = volume.memory.is_some();
    }
    Ok(result)
}

/// `subPath`, or `subPathExpr` with all its variables known; the empty one is none.
fn expanded_sub_path(mount: &VolumeMount, env: &[(String, String)]) -> Result<Option<String>, ConfigError> {
    let lookup = |name: &str| env.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let text = match mount.sub_path_expr.as_deref().filter(|expression| !expression.is_empty()) {
        Some(expression) => {
            if let Some(name) = first_unknown(expression, lookup) {
                return Err(ConfigError(format!("missing value for {name:?}")));
            }
            expand(expression, lookup, &mut Room::default())?
        }
        None => mount.sub_path.clone().unwrap_or_default(),
    };
    if text.starts_with('/') {
        return Err(ConfigError(format!("error SubPath `{text}` must not be an absolute path")));
    }
    if text.split('/').any(|part| part == "..") {
        return Err(ConfigError(format!("unable to provision SubPath `{text}`: must not contain '..'")));
    }
    Ok((!text.is_empty()).then_some(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn volumes(path: &Path) -> HashMap<String, MountedVolume> {
        [("v".to_owned(), MountedVolume { path: path.to_owned(), read_only: false, memory: None })].into()
    }

    fn container(mounts: &serde_json::Value) -> Container {
        serde_json::from_value(json!({"name": "c", "volumeMounts": mounts})).unwrap()
    }

    fn hosts() -> Vec<PodFile> {
        vec![PodFile { destination: "/etc/hosts", source: "/pod/hosts".into() }]
    }

    #[test]
    fn a_volume_on_a_pods_file_takes_its_place_and_parents_come_first() {
        let container = container(&json!([
            {"name": "v", "mountPath": "/data/deep/er"},
            {"name": "v", "mountPath": "/etc/hosts/"},
            {"name": "v", "mountPath": "/data"}
        ]));
        let mounts =
            mounts(&container, &volumes(Path::new("/vol")), &HashMap::new(), &[], hosts(), "/log".into()).unwrap();
        let paths: Vec<&str> = mounts.iter().map(|mount| mount.destination.as_str()).collect();
        assert_eq!(paths, ["/data", "/etc/hosts/", "/dev/termination-log", "/data/deep/er"]);
    }

    #[test]
    fn sub_paths_may_not_climb_and_expressions_need_their_variables() {
        let error = |mount: serde_json::Value| {
            let (volumes, images) = (volumes(Path::new("/")), HashMap::new());
            mounts(&container(&json!([mount])), &volumes, &images, &[], vec![], "/log".into()).unwrap_err().0
        };
        assert!(error(json!({"name": "v", "mountPath": "/x", "subPath": "a/../../etc"})).contains("must not contain"));
        assert!(error(json!({"name": "v", "mountPath": "/x", "subPathExpr": "$(NO)"})).contains("missing value"));
        assert!(error(json!({"name": "w", "mountPath": "/x"})).contains("cannot find volume"));
    }
}
