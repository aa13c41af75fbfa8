//! Which pods get users of their own.

use k8s_openapi::api::core::v1::{Container, PodSpec, Volume};
use serde::Deserialize;

use carob_sandbox::UserRange;

/// Which pods get a user namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum UserNamespacePolicy {
    /// All that don't say `hostUsers: true` and don't ask for what is the host's.
    #[default]
    WherePossible,
    /// Those with `hostUsers: false`.
    WhenAsked,
}

/// Whether a pod gets users of its own; `default` is what happens where it doesn't say.
pub(crate) fn own(spec: &PodSpec, default: bool) -> bool {
    match spec.host_users {
        Some(host) => !host,
        None => default && !needs_the_hosts(spec),
    }
}

/// Whether something in the spec means the host's users: they would be others, or have fewer rights, in a user namespace.
fn needs_the_hosts(spec: &PodSpec) -> bool {
    let namespaces = [spec.host_network, spec.host_pid, spec.host_ipc].contains(&Some(true));
    let mut containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    namespaces
        || spec.volumes.iter().flatten().any(is_of_the_host)
        || ids(spec).any(|id| !u32::try_from(id).is_ok_and(|id| id < UserRange::LENGTH))
        || containers.any(has_rights_over_the_host)
}

/// Files that others than pods write, or a file system that can't show them as somebody else's.
fn is_of_the_host(volume: &Volume) -> bool {
    volume.host_path.is_some() || volume.nfs.is_some()
}

fn ids(spec: &PodSpec) -> impl Iterator<Item = i64> {
    let pod = spec.security_context.iter().flat_map(|context| {
        let groups = context.supplemental_groups.iter().flatten().copied();
        [context.run_as_user, context.run_as_group, context.fs_group].into_iter().flatten().chain(groups)
    });
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let contexts = containers.filter_map(|container| container.security_context.as_ref());
    pod.chain(contexts.flat_map(|context| [context.run_as_user, context.run_as_group].into_iter().flatten()))
}

/// What a process may do to the namespaces and files of its pod, or to itself, by these it may in a user namespace as well
/// (capabilities(7)). All others are rights over the machine.
const OF_THE_POD: [&str; 18] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
    "SYS_PTRACE",
];

fn has_rights_over_the_host(container: &Container) -> bool {
    if container.volume_devices.as_ref().is_some_and(|devices| !devices.is_empty()) {
        return true;
    }
    let Some(context) = &container.security_context else { return false };
    let added = context.capabilities.iter().flat_map(|capabilities| capabilities.add.iter().flatten());
    let of_the_pod = |name: &str| OF_THE_POD.contains(&name.strip_prefix("CAP_").unwrap_or(name));
    context.privileged == Some(true) || added.map(String::as_str).any(|name| !of_the_pod(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(more: Value) -> PodSpec {
        let mut spec = json!({"containers": [{"name": "main"}]});
        spec.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        serde_json::from_value(spec).expect("a spec")
    }

    fn container(context: Value) -> Value {
        json!({"containers": [{"name": "main"}], "initContainers": [{"name": "first", "securityContext": context}]})
    }

    #[test]
    fn what_the_pod_says_holds_and_what_it_needs_decides_otherwise() {
        assert!(own(&spec(json!({"hostUsers": false})), false));
        assert!(!own(&spec(json!({"hostUsers": true})), true));
        assert!(!own(&spec(json!({})), false));
        for plain in [
            json!({}),
            json!({"volumes": [{"name": "v", "emptyDir": {}}], "securityContext": {"runAsUser": 65535, "fsGroup": 1}}),
            container(json!({"capabilities": {"add": ["NET_ADMIN", "CAP_SYS_PTRACE"], "drop": ["ALL"]}})),
        ] {
            assert!(own(&spec(plain.clone()), true), "{plain}");
        }
        for needy in [
            json!({"hostNetwork": true}),
            json!({"containers": [{"name": "main", "volumeDevices": [{"name": "v", "devicePath": "/dev/v"}]}]}),
            json!({"hostPID": true}),
            json!({"hostIPC": true}),
            json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}),
            json!({"securityContext": {"supplementalGroups": [65536]}}),
            container(json!({"privileged": true})),
            container(json!({"runAsUser": 1_000_650_000})),
            container(json!({"capabilities": {"add": ["ALL"]}})),
            container(json!({"capabilities": {"add": ["SYS_TIME"]}})),
        ] {
            assert!(!own(&spec(needy.clone()), true), "{needy}");
        }
    }
}
