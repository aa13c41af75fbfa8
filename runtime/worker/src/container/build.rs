//! Puts a container's configuration together: the spec, the image and the pod's sandbox become one `ContainerConfig`.

use super::env::{Facts, Objects};
use super::mounts::mounts;
use super::user::{ImageUser, Wishes, user};
use super::{ConfigError, command, devices, env, env_file, resources, security, service_env};
use crate::context::{ClusterInfo, Context};
use crate::files::PodFiles;
use crate::volumes::MountedVolume;
use carob_image::Image;
use carob_sandbox::{ContainerConfig, ContainerId, Limits, Rootfs};
use k8s_openapi::api::core::v1::{Container, FileKeySelector};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// What one start of a container needs beyond the context.
pub(crate) struct Inputs<'a> {
    pub id: ContainerId,
    pub facts: Facts<'a>,
    pub container: &'a Container,
    /// The container whose PID namespace it joins.
    pub pid_of: Option<ContainerId>,
    pub image: &'a Image,
    /// Layers of the images that its volumes show, by the volume's name.
    pub image_volumes: &'a HashMap<String, Image>,
    pub objects: &'a Objects,
    pub volumes: &'a HashMap<String, MountedVolume>,
    pub files: &'a PodFiles,
    pub hostname: &'a str,
    pub annotations: BTreeMap<String, String>,
}

/// Where the files of one start of a container are.
#[derive(Debug, Clone)]
pub(crate) struct ContainerPaths {
    /// Holds the writable layer and the termination message.
    pub directory: PathBuf,
    /// The termination message, as the program wrote it.
    pub termination_log: PathBuf,
    /// The CRI log.
    pub log: PathBuf,
}

impl ContainerPaths {
    pub fn new(ctx: &Context, namespace: &str, pod: &str, uid: &str, container: &str, attempt: u32) -> Self {
        let directory = ctx.dirs.pod(uid).join("containers").join(container).join(attempt.to_string());
        Self {
            termination_log: directory.join("termination-log"),
            log: ctx.dirs.pod_logs(namespace, pod, uid).join(container).join(format!("{attempt}.log")),
            directory,
        }
    }

    /// Removes the logs of earlier starts that nobody can ask for while `attempt` is the newest: its own log and the one
    /// before (`kubectl logs --previous`) stay.
    pub fn remove_old_logs(&self, attempt: u32) {
        let entries = self.log.parent().and_then(|logs| std::fs::read_dir(logs).ok());
        for entry in entries.into_iter().flatten().flatten() {
            let name = entry.file_name();
            let of = name.to_str().and_then(|name| name.split_once(".log")).and_then(|(of, _)| of.parse::<u32>().ok());
            if of.is_some_and(|of| of.saturating_add(2) <= attempt)
                && let Err(error) = std::fs::remove_file(entry.path())
            {
                tracing::warn!(path = %entry.path().display(), %error, "an old log could not be removed");
            }
        }
    }

    /// Makes the directories and the empty message file, which any user in the container may write.
    pub fn create(&self) -> std::io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        std::fs::create_dir_all(&self.directory)?;
        if let Some(logs) = self.log.parent() {
            std::fs::create_dir_all(logs)?;
        }
        std::fs::write(&self.termination_log, b"")?;
        std::fs::set_permissions(&self.termination_log, std::fs::Permissions::from_mode(0o666))
    }
}

/// The sandbox's configuration. Makes the container's directories; everything else is computed. `profiles` is the directory
/// of Localhost seccomp profiles.
pub(crate) fn build(
    cluster: &ClusterInfo,
    profiles: &Path,
    inputs: Inputs<'_>,
    paths: &ContainerPaths,
) -> Result<ContainerConfig, ConfigError> {
    let Inputs { id, facts, container, pid_of, image, image_volumes, objects, volumes, files, hostname, annotations } =
        inputs;
    let (meta, spec) = (&facts.pod.metadata, facts.pod.spec.as_ref());
    let spec = spec.ok_or_else(|| ConfigError("pod has no spec".to_owned()))?;
    let (namespace, name) = (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
    let uid = meta.uid.as_deref().unwrap_or_default();

    let mut services = service_env::of_api(cluster.api_service_ip, cluster.api_port);
    services.extend(service_env::of_services(&objects.services));
    let from_file = |key: &FileKeySelector| env_file::value(volumes, key);
    let own = env::environment(container, &facts, objects, &services, &from_file)?;
    let argv = command::argv(container, &image.config.entrypoint, &image.config.cmd, &own)?;
    let own_security = container.security_context.as_ref();
    let pod_security = spec.security_context.as_ref();
    let pod_shown = format!("{name}_{namespace}({uid})");
    let wishes = Wishes {
        pod: &pod_shown,
        container: &container.name,
        pod_context: pod_security,
        context: own_security,
        image_user: &image.config.user,
    };
    let mut home = None;
    let identity = user(&wishes, |name| {
        let found = image.resolve_user(name).map_err(|error| error.describe())?;
        Ok(ImageUser { uid: found.uid, gid: found.gid, groups: found.groups })
    })?;
    if let Ok(found) = image.resolve_user(&identity.uid.to_string()) {
        home = Some(found.home);
    }
    let security = security::security(pod_security, own_security, profiles)?;
    let mounts = mounts(container, volumes, image_volumes, &own, files.mounts(), paths.termination_log.clone())?;
    paths.create().map_err(|error| {
        ConfigError(format!("cannot make the container's directory {}: {error}", paths.directory.display()))
    })?;

    let mut defaults = vec![("HOSTNAME".to_owned(), hostname.to_owned())];
    let has = |name: &str, list: &[(String, String)]| list.iter().any(|(key, _)| key == name);
    if !has("PATH", &image.config.env) {
        defaults.push(("PATH".to_owned(), DEFAULT_PATH.to_owned()));
    }
    if container.tty == Some(true) {
        defaults.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    if let Some(home) = home {
        defaults.push(("HOME".to_owned(), home));
    }
    defaults.extend(image.config.env.iter().cloned());

    let cwd = container.working_dir.clone().filter(|cwd| !cwd.is_empty());
    Ok(ContainerConfig {
        id,
        pod_uid: uid.to_owned(),
        argv,
        env: env::over_image(&defaults, own),
        cwd: cwd.unwrap_or_else(|| image.config.working_dir.clone()),
        user: identity,
        rootfs: Rootfs {
            lower: image.layers.clone(),
            upper: paths.directory.join("rootfs"),
            read_only: security.read_only_root,
        },
        mounts,
        limits: Limits {
            huge_pages: resources::container_huge_pages(spec, container).limits(facts.allocatable.huge_pages),
            ..resources::container_cgroup(spec, container)
        },
        capabilities: security.capabilities,
        privileged: security.privileged,
        no_new_privs: security.no_new_privs,
        seccomp: security.seccomp,
        masks: security.masks,
        tty: container.tty.unwrap_or(false),
        pid_of,
        stdin: container.stdin.unwrap_or(false),
        log_path: paths.log.clone(),
        oom_score_adj: resources::oom_score_adj(spec, container, facts.allocatable.memory_bytes),
        rlimits: Vec::new(),
        devices: devices::devices(container, volumes)?,
        annotations,
    })
}

/// What containerd gives images that set no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Removes what one start of a container left on disk, except its log.
pub(crate) fn remove_directory(directory: &Path) {
    if let Err(error) = carob_sandbox::remove_tree(directory)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %directory.display(), %error, "a container's directory could not be removed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_two_starts_keep_their_logs() {
        let logs = tempfile::tempdir().unwrap();
        let names = ["0.log", "1.log", "1.log.20240101-000000", "2.log", "2.log.20240101-000000", "3.log", "other"];
        for name in names {
            std::fs::write(logs.path().join(name), "").unwrap();
        }
        let directory = logs.path().join("absent");
        let paths =
            ContainerPaths { termination_log: directory.join("log"), directory, log: logs.path().join("3.log") };
        paths.remove_old_logs(3);
        let left = std::fs::read_dir(logs.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut left: Vec<_> = left.map(|name| name.into_string().unwrap()).collect();
        left.sort();
        assert_eq!(left, ["2.log", "2.log.20240101-000000", "3.log", "other"]);
    }
}
