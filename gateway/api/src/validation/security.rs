//! Security contexts of pods and containers.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::field::{ErrorList, Path};
use crate::validation::go;
use crate::validation::json::{dig, flag, get, int, items, str_at, texts};
use crate::validation::names;
use crate::validation::paths::descending;

/// Sysctls that belong to a namespace which the pod may share with the host.
const HOST_SYSCTLS: [(&str, &str); 5] = [
    ("net.", "hostNetwork"),
    ("kernel.shm", "hostIPC"),
    ("kernel.msg", "hostIPC"),
    ("kernel.sem", "hostIPC"),
    ("fs.mqueue.", "hostIPC"),
];

/// What is wrong with the security context of a container.
pub fn container(context: &Value, spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ids(context, &["runAsUser", "runAsGroup"], path);
    let mount = str_at(context, "procMount");
    if get(context, "procMount").is_some() {
        let path = path.child("procMount");
        if !matches!(mount, "Default" | "Unmasked") {
            errors.push(path.not_supported(mount, &["Default", "Unmasked"]));
        }
        let host_users = get(spec, "hostUsers").and_then(Value::as_bool).unwrap_or(true);
        if mount == "Unmasked" && host_users {
            errors.push(path.invalid(mount, "`hostUsers` must be false to use `Unmasked`"));
        }
    }
    errors.extend(seccomp(context, path));
    if get(context, "allowPrivilegeEscalation").and_then(Value::as_bool) == Some(false) {
        let mut conflict = |what: &str| {
            let why = format!("cannot set `allowPrivilegeEscalation` to false and {what}");
            errors.push(path.invalid(go::value(go::SECURITY_CONTEXT, context), why));
        };
        if flag(context, "privileged") {
            conflict("`privileged` to true");
        }
        let added = get(context, "capabilities").unwrap_or(&Value::Null);
        if texts(added, "add").any(|capability| capability == "CAP_SYS_ADMIN") {
            conflict("`capabilities.Add` CAP_SYS_ADMIN");
        }
    }
    errors.extend(app_armor(context, path));
    errors
}

/// What is wrong with the security context of a pod, and with namespaces that it shares.
pub fn pod(spec: &Value, path: &Path) -> ErrorList {
    let Some(context) = get(spec, "securityContext") else { return ErrorList::new() };
    let path = path.child("securityContext");
    let mut errors = ids(context, &["fsGroup", "runAsUser", "runAsGroup"], &path);
    for (index, group) in items(context, "supplementalGroups").iter().enumerate() {
        errors.extend(id(group.as_i64().unwrap_or(0), &path.child("supplementalGroups").index(index)));
    }
    // The field is the spec's; Kubernetes reports it where it has it internally.
    if flag(spec, "hostPID") && flag(spec, "shareProcessNamespace") {
        let field = path.child("shareProcessNamespace");
        errors.push(field.invalid(true, "ShareProcessNamespace and HostPID cannot both be enabled"));
    }
    errors.extend(sysctls(context, spec, &path.child("sysctls")));
    for (field, allowed) in [
        ("fsGroupChangePolicy", ["Always", "OnRootMismatch"]),
        ("supplementalGroupsPolicy", ["Merge", "Strict"]),
        ("seLinuxChangePolicy", ["MountOption", "Recursive"]),
    ] {
        if field == "supplementalGroupsPolicy" {
            errors.extend(seccomp(context, &path));
        }
        if get(context, field).is_some() && !allowed.contains(&str_at(context, field)) {
            errors.push(path.child(field).not_supported(str_at(context, field), &allowed));
        }
    }
    errors.extend(app_armor(context, &path));
    errors
}

/// What is wrong with user namespaces beside host namespaces.
pub fn host_users(spec: &Value, path: &Path) -> ErrorList {
    if get(spec, "hostUsers").and_then(Value::as_bool) != Some(false) {
        return ErrorList::new();
    }
    let mut errors = ErrorList::new();
    let lists = items(spec, "containers").iter().chain(items(spec, "initContainers"));
    if lists.into_iter().any(|container| !items(container, "volumeDevices").is_empty()) {
        errors.push(path.child("hostUsers").forbidden("when `pod.Spec.volumeDevices` is used"));
    }
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        if flag(spec, field) {
            errors.push(path.child(field).forbidden("when `hostUsers` is false"));
        }
    }
    errors
}

fn ids(context: &Value, fields: &[&str], path: &Path) -> ErrorList {
    fields
        .iter()
        .filter_map(|field| Some((field, int(context, field)?)))
        .flat_map(|(field, number)| id(number, &path.child(field)))
        .collect()
}

fn id(number: i64, path: &Path) -> ErrorList {
    if (0..=i64::from(i32::MAX)).contains(&number) {
        return ErrorList::new();
    }
    vec![path.invalid(number, names::in_range(0, i64::from(i32::MAX)))]
}

fn seccomp(context: &Value, path: &Path) -> ErrorList {
    let Some(profile) = get(context, "seccompProfile") else { return ErrorList::new() };
    let path = path.child("seccompProfile");
    let mut errors = ErrorList::new();
    let kind = str_at(profile, "type");
    let place = get(profile, "localhostProfile").and_then(Value::as_str);
    let field = path.child("localhostProfile");
    match kind {
        "Localhost" => {
            if place.unwrap_or("").is_empty() {
                errors.push(field.required("must be set when seccomp type is Localhost"));
            }
            errors.extend(descending(place.unwrap_or(""), &field));
        }
        "RuntimeDefault" | "Unconfined" => {
            if let Some(place) = place {
                errors.push(field.invalid(place, "can only be set when seccomp type is Localhost"));
            }
        }
        "" => errors.push(path.child("type").required("type is required when seccompProfile is set")),
        _ => errors.push(path.child("type").not_supported(kind, &["Localhost", "RuntimeDefault", "Unconfined"])),
    }
    errors
}

fn app_armor(context: &Value, path: &Path) -> ErrorList {
    let Some(profile) = get(context, "appArmorProfile") else { return ErrorList::new() };
    let path = path.child("appArmorProfile");
    let place = get(profile, "localhostProfile").and_then(Value::as_str);
    let field = path.child("localhostProfile");
    match (str_at(profile, "type"), place) {
        ("Localhost", Some(place)) if place.trim() != place => {
            vec![field.invalid(place, "must not be padded with whitespace")]
        }
        ("Localhost", None | Some("")) => vec![field.required("must be set when AppArmor type is Localhost")],
        ("RuntimeDefault" | "Unconfined", Some(place)) => {
            vec![field.invalid(place, "can only be set when AppArmor type is Localhost")]
        }
        ("Localhost" | "RuntimeDefault" | "Unconfined", _) => ErrorList::new(),
        ("", _) => vec![path.child("type").required("type is required when appArmorProfile is set")],
        (kind, _) => {
            vec![path.child("type").not_supported(kind, &["Localhost", "RuntimeDefault", "Unconfined"])]
        }
    }
}

fn sysctls(context: &Value, spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut seen = BTreeSet::new();
    for (index, sysctl) in items(context, "sysctls").iter().enumerate() {
        let path = path.index(index).child("name");
        let name = str_at(sysctl, "name");
        let dotted = dotted(name);
        if name.is_empty() {
            errors.push(path.required(""));
        } else if !is_sysctl_name(name) {
            errors.push(path.invalid(
                name,
                r"must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
            ));
        } else if !seen.insert(dotted.clone()) {
            errors.push(path.duplicate(name));
        }
        for (prefix, host) in HOST_SYSCTLS {
            if dotted.starts_with(prefix) && flag(spec, host) {
                errors.push(path.invalid(name, format!("may not be specified when '{host}' is true")));
            }
        }
    }
    errors
}

/// A sysctl with dots, whichever separator it was written with: the first one decides.
fn dotted(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name[at..].starts_with('/') => name
            .chars()
            .map(|c| {
                if c == '/' {
                    '.'
                } else if c == '.' {
                    '/'
                } else {
                    c
                }
            })
            .collect(),
        _ => name.to_owned(),
    }
}

fn is_sysctl_name(name: &str) -> bool {
    let alphanumeric = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    name.len() <= 253
        && name.split(['.', '/']).all(|part| {
            alphanumeric(part.bytes().next())
                && alphanumeric(part.bytes().last())
                && part.bytes().all(|b| alphanumeric(Some(b)) || matches!(b, b'-' | b'_'))
        })
}

/// What is wrong with the operating system that a pod asks for.
pub fn os(spec: &Value, path: &Path) -> ErrorList {
    let Some(os) = get(spec, "os") else { return ErrorList::new() };
    let mut errors = ErrorList::new();
    let name = str_at(os, "name");
    let path_os = path.child("os");
    if name.is_empty() {
        errors.push(path_os.child("name").required("cannot be empty"));
    } else if !matches!(name, "linux" | "windows") {
        errors.push(path_os.not_supported(name, &["linux", "windows"]));
    }
    let windows = "windows options cannot be set for a linux pod";
    if name == "linux" {
        if dig(spec, &["securityContext", "windowsOptions"]).is_some() {
            errors.push(path.child("securityContext").child("windowsOptions").forbidden(windows));
        }
        for list in ["containers", "initContainers", "ephemeralContainers"] {
            for (index, container) in items(spec, list).iter().enumerate() {
                if dig(container, &["securityContext", "windowsOptions"]).is_some() {
                    let path = path.child(list).index(index).child("securityContext");
                    errors.push(path.child("windowsOptions").forbidden(windows));
                }
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod_causes(spec: &Value) -> Vec<String> {
        pod(spec, &Path::root()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ids_are_not_negative() {
        let spec = json!({"securityContext": {"runAsUser": -1, "fsGroup": -5, "supplementalGroups": [-1]}});
        let paths: Vec<String> = pod(&spec, &Path::root()).into_iter().map(|error| error.path).collect();
        assert_eq!(
            paths,
            ["securityContext.fsGroup", "securityContext.runAsUser", "securityContext.supplementalGroups[0]"]
        );
    }

    #[test]
    fn sysctls_have_names_of_their_own() {
        let spec = json!({"securityContext": {"sysctls": [
            {"name": "A b", "value": "x"}, {"name": "a", "value": "1"}, {"name": "a", "value": "2"}]}});
        let causes = pod_causes(&spec);
        assert!(
            causes[0].starts_with("securityContext.sysctls[0].name: Invalid value: \"A b\": must have at most 253")
        );
        assert_eq!(causes[1], "securityContext.sysctls[2].name: Duplicate value: \"a\"");
        assert_eq!(dotted("net/ipv4/conf/eth0.1/x"), "net.ipv4.conf.eth0/1.x");
    }

    #[test]
    fn a_local_profile_is_named() {
        let spec = json!({"securityContext": {"seccompProfile": {"type": "Localhost"}}});
        assert_eq!(
            pod_causes(&spec),
            [
                "securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost"
            ]
        );
    }

    #[test]
    fn a_shared_process_namespace_is_not_the_hosts() {
        let spec = json!({"hostPID": true, "shareProcessNamespace": true, "securityContext": {}});
        assert_eq!(
            pod_causes(&spec),
            ["securityContext.shareProcessNamespace: Invalid value: true: ShareProcessNamespace and HostPID cannot \
              both be enabled"]
        );
    }

    #[test]
    fn privileged_containers_may_escalate() {
        let context = json!({"privileged": true, "allowPrivilegeEscalation": false});
        let errors = container(&context, &Value::Null, &Path::new("c"));
        assert_eq!(
            errors[0].to_string(),
            "c: Invalid value: {\"Capabilities\":null,\"Privileged\":true,\"SELinuxOptions\":null,\
             \"WindowsOptions\":null,\"RunAsUser\":null,\"RunAsGroup\":null,\"RunAsNonRoot\":null,\
             \"ReadOnlyRootFilesystem\":null,\"AllowPrivilegeEscalation\":false,\"ProcMount\":null,\
             \"SeccompProfile\":null,\"AppArmorProfile\":null}: cannot set `allowPrivilegeEscalation` to false and \
             `privileged` to true"
        );
    }
}
