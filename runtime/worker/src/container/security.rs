//! What a container may do: capabilities, privileges, system call filter, masked paths.

use super::ConfigError;
use carob_sandbox::{ALL_CAPABILITIES, DEFAULT_CAPABILITIES, PathMasks, Seccomp};
use k8s_openapi::api::core::v1::{Capabilities, PodSecurityContext, SeccompProfile, SecurityContext};
use std::path::{Component, Path};

/// The sandbox's security settings.
#[derive(Debug)]
pub(crate) struct Security {
    pub capabilities: Vec<String>,
    pub privileged: bool,
    pub no_new_privs: bool,
    pub seccomp: Seccomp,
    pub masks: PathMasks,
    pub read_only_root: bool,
}

/// Settings of one container, its own before the pod's. `profiles` is the directory of Localhost seccomp profiles.
pub(crate) fn security(
    pod: Option<&PodSecurityContext>,
    container: Option<&SecurityContext>,
    profiles: &Path,
) -> Result<Security, ConfigError> {
    let privileged = container.and_then(|c| c.privileged).unwrap_or(false);
    let profile =
        container.and_then(|c| c.seccomp_profile.as_ref()).or_else(|| pod.and_then(|p| p.seccomp_profile.as_ref()));
    Ok(Security {
        capabilities: if privileged {
            ALL_CAPABILITIES.map(str::to_owned).to_vec()
        } else {
            capabilities(container.and_then(|c| c.capabilities.as_ref()))
        },
        privileged,
        no_new_privs: container.and_then(|c| c.allow_privilege_escalation) == Some(false),
        seccomp: if privileged { Seccomp::Unconfined } else { seccomp(profile, profiles)? },
        masks: match container.and_then(|c| c.proc_mount.as_deref()) {
            Some("Unmasked") => PathMasks::Unmasked,
            _ if privileged => PathMasks::Unmasked,
            _ => PathMasks::Default,
        },
        read_only_root: container.and_then(|c| c.read_only_root_filesystem).unwrap_or(false),
    })
}

/// The default set with `ALL` in either list first, then additions, then drops: the order of the CRI runtimes.
fn capabilities(asked: Option<&Capabilities>) -> Vec<String> {
    let names = |list: Option<&Vec<String>>| -> Vec<String> {
        list.into_iter()
            .flatten()
            .map(|name| name.to_ascii_uppercase())
            .map(|name| if name == "ALL" || name.starts_with("CAP_") { name } else { format!("CAP_{name}") })
            .collect()
    };
    let (add, drop) = (names(asked.and_then(|c| c.add.as_ref())), names(asked.and_then(|c| c.drop.as_ref())));
    let all = |list: &[String]| list.iter().any(|name| name == "ALL");
    let mut set: Vec<String> = if all(&drop) {
        Vec::new()
    } else if all(&add) {
        ALL_CAPABILITIES.map(str::to_owned).to_vec()
    } else {
        DEFAULT_CAPABILITIES.map(str::to_owned).to_vec()
    };
    for name in add {
        if name != "ALL" && !set.contains(&name) && ALL_CAPABILITIES.contains(&name.as_str()) {
            set.push(name);
        }
    }
    set.retain(|name| !drop.contains(name));
    set
}

/// Without a profile the runtime's default one holds: Carob filters unless told not to (kubelet's `seccompDefault`).
fn seccomp(profile: Option<&SeccompProfile>, profiles: &Path) -> Result<Seccomp, ConfigError> {
    let Some(profile) = profile else { return Ok(Seccomp::RuntimeDefault) };
    match profile.type_.as_str() {
        "RuntimeDefault" => Ok(Seccomp::RuntimeDefault),
        "Unconfined" => Ok(Seccomp::Unconfined),
        "Localhost" => {
            let name = Path::new(profile.localhost_profile.as_deref().unwrap_or(""));
            let plain = name.components().next().is_some()
                && name.components().all(|part| matches!(part, Component::Normal(_)));
            if !plain {
                return Err(ConfigError(
                    "localhostProfile must be set if seccompProfile type is Localhost.".to_owned(),
                ));
            }
            // One that isn't there fails the creation, as with the kubelet, which doesn't look either.
            Ok(Seccomp::Localhost(profiles.join(name)))
        }
        other => Err(ConfigError(format!("unknown seccomp profile type {other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(add: &[&str], drop: &[&str]) -> Vec<String> {
        let list = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect());
        capabilities(Some(&Capabilities { add: list(add), drop: list(drop) }))
    }

    #[test]
    fn capabilities_are_added_and_dropped_as_cri_runtimes_do() {
        assert_eq!(capabilities(None).len(), DEFAULT_CAPABILITIES.len());
        assert_eq!(set(&["NET_ADMIN"], &["ALL"]), ["CAP_NET_ADMIN"]);
        assert!(!set(&[], &["CHOWN"]).contains(&"CAP_CHOWN".to_owned()));
        assert_eq!(set(&["ALL"], &[]).len(), ALL_CAPABILITIES.len());
        assert!(set(&["ALL"], &["ALL"]).is_empty());
        let all_but_one = set(&["ALL"], &["SYS_ADMIN"]);
        assert_eq!(all_but_one.len(), ALL_CAPABILITIES.len() - 1);
        assert!(set(&["CAP_SYS_TIME"], &[]).contains(&"CAP_SYS_TIME".to_owned()));
    }

    #[test]
    fn privileged_means_everything_and_no_filter() {
        let context = SecurityContext { privileged: Some(true), ..SecurityContext::default() };
        let security = security(None, Some(&context), Path::new("/nowhere")).unwrap();
        assert_eq!(security.capabilities.len(), ALL_CAPABILITIES.len());
        assert_eq!(security.seccomp, Seccomp::Unconfined);
    }

    #[test]
    fn a_localhost_profile_cannot_leave_its_directory() {
        let profile = SeccompProfile { type_: "Localhost".into(), localhost_profile: Some("../../etc/passwd".into()) };
        assert!(seccomp(Some(&profile), Path::new("/nowhere")).is_err());
    }
}
