//! Containers, init containers and ephemeral containers.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::field::{ErrorList, Path};
use crate::validation::json::{dig, flag, get, int, items, str_at, texts};
use crate::validation::paths::{descending, no_backsteps};
use crate::validation::probes::{self, Probe};
use crate::validation::{env, names, resources, security};

/// When an image is pulled.
pub const PULL_POLICIES: [&str; 3] = ["Always", "IfNotPresent", "Never"];
/// When the containers of a job's pod are started again.
pub const RESTART_OF_JOBS: [&str; 2] = ["OnFailure", "Never"];
/// When a container is started again.
const RESTART_POLICIES: [&str; 3] = ["Always", "Never", "OnFailure"];
/// Rules that a container may have, and exit codes that one of them may name.
const MOST_RULES: usize = 20;
const MOST_CODES: usize = 255;

/// What a container of any kind is checked against.
pub struct Pod<'a> {
    /// Its spec.
    pub spec: &'a Value,
    /// Those of its volumes that are right.
    pub volumes: BTreeMap<&'a str, &'a Value>,
    /// Names of its resource claims.
    pub claims: Vec<&'a str>,
    /// Seconds it has to end.
    pub grace: i64,
}

/// What is wrong with the containers of a pod, all three lists.
pub fn all(pod: &Pod<'_>, path: &Path) -> ErrorList {
    let mut errors = regular(pod, &path.child("containers"));
    errors.extend(init(pod, &path.child("initContainers")));
    errors.extend(ephemeral(pod, &path.child("ephemeralContainers")));
    errors
}

fn regular(pod: &Pod<'_>, path: &Path) -> ErrorList {
    let containers = items(pod.spec, "containers");
    if containers.is_empty() {
        return vec![path.required("")];
    }
    let mut errors = ErrorList::new();
    let mut seen = BTreeSet::new();
    for (index, container) in containers.iter().enumerate() {
        let path = path.index(index);
        errors.extend(common(container, pod, &path));
        let name = str_at(container, "name");
        if !seen.insert(name) && !name.is_empty() {
            errors.push(path.child("name").duplicate(name));
        }
        errors.extend(hooks_and_probes(container, pod, &path));
        errors.extend(resize_policy(container, &path.child("resizePolicy")));
        errors.extend(restart_policy(container, &RESTART_POLICIES, &path));
    }
    errors.extend(host_port_conflicts(containers, path));
    errors
}

fn init(pod: &Pod<'_>, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut seen: BTreeSet<&str> = items(pod.spec, "containers").iter().map(|c| str_at(c, "name")).collect();
    for (index, container) in items(pod.spec, "initContainers").iter().enumerate() {
        let place = path.index(index);
        errors.extend(common(container, pod, &place));
        let name = str_at(container, "name");
        if !name.is_empty() && !seen.insert(name) {
            errors.push(place.child("name").duplicate(name));
        }
        errors.extend(host_port_conflicts(std::slice::from_ref(container), path));
        if str_at(container, "restartPolicy") == "Always" {
            errors.extend(hooks_and_probes(container, pod, &place));
        } else {
            for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                if get(container, field).is_some() {
                    let why = "may not be set for init containers without restartPolicy=Always";
                    errors.push(place.child(field).forbidden(why));
                }
            }
        }
        errors.extend(resize_policy(container, &place.child("resizePolicy")));
        errors.extend(restart_policy(container, &RESTART_POLICIES, &place));
    }
    errors
}

/// Fields that an ephemeral container can't have.
const NOT_EPHEMERAL: [&str; 8] = [
    "ports",
    "resources",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "lifecycle",
    "resizePolicy",
    "restartPolicy",
];

fn ephemeral(pod: &Pod<'_>, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let others: Vec<&str> =
        ["containers", "initContainers"].iter().flat_map(|l| items(pod.spec, l)).map(|c| str_at(c, "name")).collect();
    let mut seen: BTreeSet<&str> = others.iter().copied().collect();
    for (index, container) in items(pod.spec, "ephemeralContainers").iter().enumerate() {
        let path = path.index(index);
        errors.extend(common(container, pod, &path));
        let name = str_at(container, "name");
        if !name.is_empty() && !seen.insert(name) {
            errors.push(path.child("name").duplicate(name));
        }
        let target = str_at(container, "targetContainerName");
        if !target.is_empty() && !others.contains(&target) {
            errors.push(path.child("targetContainerName").not_found(target));
        }
        for field in NOT_EPHEMERAL {
            if get(container, field).is_some_and(|value| value != &serde_json::json!({})) {
                errors.push(path.child(field).forbidden("cannot be set for an Ephemeral Container"));
            }
        }
        for (index, mount) in items(container, "volumeMounts").iter().enumerate() {
            for field in ["subPath", "subPathExpr"] {
                if !str_at(mount, field).is_empty() {
                    let path = path.child("volumeMounts").index(index).child(field);
                    errors.push(path.forbidden("cannot be set for an Ephemeral Container"));
                }
            }
        }
    }
    errors
}

/// What all containers have in common.
fn common(container: &Value, pod: &Pod<'_>, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let name = str_at(container, "name");
    if name.is_empty() {
        errors.push(path.child("name").required(""));
    } else {
        errors.extend(label(name, &path.child("name")));
    }
    let image = str_at(container, "image");
    if image.is_empty() {
        errors.push(path.child("image").required(""));
    } else if image.trim() != image {
        errors.push(path.child("image").invalid(image, "must not have leading or trailing whitespace"));
    }
    let field = path.child("terminationMessagePolicy");
    match str_at(container, "terminationMessagePolicy") {
        "File" | "FallbackToLogsOnError" => {}
        "" => errors.push(field.required("")),
        other => errors.push(field.not_supported(other, &["File", "FallbackToLogsOnError"])),
    }
    errors.extend(ports(container, &path.child("ports")));
    errors.extend(env::variables(container, path));
    errors.extend(volume_mounts(container, pod, &path.child("volumeMounts")));
    errors.extend(volume_devices(container, pod, &path.child("volumeDevices")));
    let field = path.child("imagePullPolicy");
    match str_at(container, "imagePullPolicy") {
        "" => errors.push(field.required("")),
        policy if PULL_POLICIES.contains(&policy) => {}
        other => errors.push(field.not_supported(other, &PULL_POLICIES)),
    }
    if let Some(value) = get(container, "resources") {
        errors.extend(resources::container(value, &pod.claims, &path.child("resources")));
    }
    if let Some(context) = get(container, "securityContext") {
        errors.extend(security::container(context, pod.spec, &path.child("securityContext")));
    }
    errors
}

/// A DNS label.
pub fn label(text: &str, path: &Path) -> ErrorList {
    names::dns1123_label(text).into_iter().map(|message| path.invalid(text, message)).collect()
}

fn hooks_and_probes(container: &Value, pod: &Pod<'_>, path: &Path) -> ErrorList {
    let mut errors = probes::lifecycle(container, pod.spec, pod.grace, path);
    for (field, which) in
        [("livenessProbe", Probe::Liveness), ("readinessProbe", Probe::Readiness), ("startupProbe", Probe::Startup)]
    {
        errors.extend(probes::probe(container, field, which, path));
    }
    errors
}

fn ports(container: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut seen = BTreeSet::new();
    for (index, port) in items(container, "ports").iter().enumerate() {
        let path = path.index(index);
        let name = str_at(port, "name");
        if !name.is_empty() {
            let messages = names::port_name(name);
            if messages.is_empty() && !seen.insert(name) {
                errors.push(path.child("name").duplicate(name));
            }
            errors.extend(messages.into_iter().map(|text| path.child("name").invalid(name, text)));
        }
        let number = int(port, "containerPort").unwrap_or(0);
        let field = path.child("containerPort");
        if number == 0 {
            errors.push(field.required(""));
        } else {
            errors.extend(names::port_number(number).into_iter().map(|text| field.invalid(number, text)));
        }
        let host = int(port, "hostPort").unwrap_or(0);
        if host != 0 {
            let field = path.child("hostPort");
            errors.extend(names::port_number(host).into_iter().map(|text| field.invalid(host, text)));
        }
        match str_at(port, "protocol") {
            "SCTP" | "TCP" | "UDP" => {}
            "" => errors.push(path.child("protocol").required("")),
            other => errors.push(path.child("protocol").not_supported(other, &["SCTP", "TCP", "UDP"])),
        }
    }
    errors
}

fn host_port_conflicts(containers: &[Value], path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut seen = BTreeSet::new();
    for (index, container) in containers.iter().enumerate() {
        for (port_index, port) in items(container, "ports").iter().enumerate() {
            let host = int(port, "hostPort").unwrap_or(0);
            if host == 0 {
                continue;
            }
            let text = format!("{}/{}/{host}", str_at(port, "protocol"), str_at(port, "hostIP"));
            if !seen.insert(text.clone()) {
                errors.push(path.index(index).child("ports").index(port_index).child("hostPort").duplicate(text));
            }
        }
    }
    errors
}

/// A field of the items of a list.
fn fields_of<'a>(container: &'a Value, list: &str, field: &str) -> BTreeSet<&'a str> {
    items(container, list).iter().map(|item| str_at(item, field)).collect()
}

fn volume_mounts(container: &Value, pod: &Pod<'_>, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut places = BTreeSet::new();
    let devices = fields_of(container, "volumeDevices", "name");
    let device_places = fields_of(container, "volumeDevices", "devicePath");
    for (index, mount) in items(container, "volumeMounts").iter().enumerate() {
        let item = path.index(index);
        let (name, place) = (str_at(mount, "name"), str_at(mount, "mountPath"));
        if name.is_empty() {
            errors.push(item.child("name").required(""));
        }
        if !pod.volumes.contains_key(name) {
            errors.push(item.child("name").not_found(name));
        }
        if place.is_empty() {
            errors.push(item.child("mountPath").required(""));
        }
        if !places.insert(place) {
            errors.push(item.child("mountPath").invalid(place, "must be unique"));
        }
        if devices.contains(name) {
            errors.push(item.child("name").invalid(name, "must not already exist in volumeDevices"));
        }
        if device_places.contains(place) {
            errors.push(item.child("mountPath").invalid(place, "must not already exist as a path in volumeDevices"));
        }
        // The paths of these errors lack the index, in Kubernetes as well.
        let (sub, expression) = (str_at(mount, "subPath"), str_at(mount, "subPathExpr"));
        errors.extend(descending(sub, &path.child("subPath")));
        if !expression.is_empty() {
            let field = path.child("subPathExpr");
            if !sub.is_empty() {
                errors.push(field.invalid(expression, "subPathExpr and subPath are mutually exclusive"));
            }
            errors.extend(descending(expression, &field));
        }
        errors.extend(propagation(mount, container, &path.child("mountPropagation")));
        errors.extend(recursive_read_only(mount, &item.child("recursiveReadOnly")));
    }
    errors
}

fn propagation(mount: &Value, container: &Value, path: &Path) -> ErrorList {
    let Some(mode) = get(mount, "mountPropagation").and_then(Value::as_str) else { return ErrorList::new() };
    let mut errors = ErrorList::new();
    if !matches!(mode, "Bidirectional" | "HostToContainer" | "None") {
        errors.push(path.not_supported(mode, &["Bidirectional", "HostToContainer", "None"]));
    }
    let privileged = dig(container, &["securityContext", "privileged"]).and_then(Value::as_bool).unwrap_or(false);
    if mode == "Bidirectional" && !privileged {
        errors.push(path.forbidden("Bidirectional mount propagation is available only to privileged containers"));
    }
    errors
}

fn recursive_read_only(mount: &Value, path: &Path) -> ErrorList {
    match get(mount, "recursiveReadOnly").and_then(Value::as_str) {
        None | Some("Disabled") => ErrorList::new(),
        Some("Enabled" | "IfPossible") => {
            let mut errors = ErrorList::new();
            if !flag(mount, "readOnly") {
                errors.push(path.forbidden("may only be specified when readOnly is true"));
            }
            if !matches!(str_at(mount, "mountPropagation"), "" | "None") {
                errors.push(path.forbidden("may only be specified when mountPropagation is None or not specified"));
            }
            errors
        }
        Some(other) => vec![path.not_supported(other, &["Disabled", "Enabled", "IfPossible"])],
    }
}

fn volume_devices(container: &Value, pod: &Pod<'_>, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let (mut names, mut places) = (BTreeSet::new(), BTreeSet::new());
    let mounts = fields_of(container, "volumeMounts", "name");
    let mount_places = fields_of(container, "volumeMounts", "mountPath");
    for (index, device) in items(container, "volumeDevices").iter().enumerate() {
        let path = path.index(index);
        let (name, place) = (str_at(device, "name"), str_at(device, "devicePath"));
        let field = path.child("name");
        if name.is_empty() {
            errors.push(field.required(""));
        }
        if !names.insert(name) {
            errors.push(field.invalid(name, "must be unique"));
        }
        match pod.volumes.get(name) {
            None => errors.push(field.not_found(name)),
            Some(volume) if get(volume, "persistentVolumeClaim").or(get(volume, "ephemeral")).is_none() => {
                let why = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.push(field.invalid(name, why));
            }
            Some(_) => {}
        }
        let field = path.child("devicePath");
        if place.is_empty() {
            errors.push(field.required(""));
        }
        if !places.insert(place) {
            errors.push(field.invalid(place, "must be unique"));
        }
        if !no_backsteps(place, &field).is_empty() {
            errors.push(field.invalid(place, "can not contain backsteps ('..')"));
        }
        if mounts.contains(name) {
            errors.push(path.child("name").invalid(name, "must not already exist in volumeMounts"));
        }
        if mount_places.contains(place) {
            errors.push(field.invalid(place, "must not already exist as a path in volumeMounts"));
        }
    }
    errors
}

fn resize_policy(container: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut seen = BTreeSet::new();
    for (index, policy) in items(container, "resizePolicy").iter().enumerate() {
        let path = path.index(index);
        let (resource, restart) = (str_at(policy, "resourceName"), str_at(policy, "restartPolicy"));
        if !seen.insert(resource) {
            errors.push(path.duplicate(resource));
        }
        match resource {
            "cpu" | "memory" => {}
            "" => errors.push(path.required("")),
            other => errors.push(path.not_supported(other, &["cpu", "memory"])),
        }
        match restart {
            "NotRequired" | "RestartContainer" => {}
            "" => errors.push(path.required("")),
            other => errors.push(path.not_supported(other, &["NotRequired", "RestartContainer"])),
        }
    }
    errors
}

fn restart_policy(container: &Value, allowed: &[&str], path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let rules = items(container, "restartPolicyRules");
    match get(container, "restartPolicy").and_then(Value::as_str) {
        Some(policy) if !allowed.contains(&policy) => {
            errors.push(path.child("restartPolicy").not_supported(policy, allowed));
        }
        None if !rules.is_empty() => {
            errors.push(path.child("restartPolicy").required("must specify restartPolicy when restart rules are used"));
        }
        _ => {}
    }
    if rules.len() > MOST_RULES {
        errors.push(path.child("restartPolicyRules").too_many(rules.len(), MOST_RULES));
    }
    for (index, rule) in rules.iter().enumerate() {
        let path = path.child("restartPolicyRules").index(index);
        let action = str_at(rule, "action");
        if !matches!(action, "Restart" | "RestartAllContainers") {
            errors.push(path.child("action").not_supported(action, &["Restart", "RestartAllContainers"]));
        }
        match get(rule, "exitCodes") {
            None => errors.push(path.child("exitCodes").required("must be specified")),
            Some(codes) => {
                let operator = str_at(codes, "operator");
                if !matches!(operator, "In" | "NotIn") {
                    let field = path.child("exitCodes").child("operator");
                    errors.push(field.not_supported(operator, &["In", "NotIn"]));
                }
                let codes = items(codes, "values").len();
                if codes > MOST_CODES {
                    errors.push(path.child("exitCodes").child("values").too_many(codes, MOST_CODES));
                }
            }
        }
    }
    errors
}

/// On the host's network a container's port is the host's.
pub fn host_network_ports(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    if !flag(spec, "hostNetwork") {
        return errors;
    }
    for list in ["containers", "initContainers"] {
        for (index, container) in items(spec, list).iter().enumerate() {
            for (port_index, port) in items(container, "ports").iter().enumerate() {
                let host = int(port, "hostPort").unwrap_or(0);
                if host != int(port, "containerPort").unwrap_or(0) {
                    let path = path.child(list).index(index).child("ports").index(port_index).child("hostPort");
                    errors.push(path.invalid(host, "must match `containerPort` when `hostNetwork` is true"));
                }
            }
        }
    }
    errors
}

/// The names that containers' resource claims can refer to.
pub fn claim_names(spec: &Value) -> Vec<&str> {
    items(spec, "resourceClaims").iter().map(|claim| str_at(claim, "name")).collect()
}

/// What is wrong with the resource claims of a pod.
pub fn resource_claims(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut seen = BTreeSet::new();
    for (index, claim) in items(spec, "resourceClaims").iter().enumerate() {
        let path = path.index(index);
        let name = str_at(claim, "name");
        if name.is_empty() {
            errors.push(path.child("name").required(""));
        } else if !seen.insert(name) {
            errors.push(path.child("name").duplicate(name));
        } else {
            errors.extend(label(name, &path.child("name")));
        }
        match (get(claim, "resourceClaimName"), get(claim, "resourceClaimTemplateName")) {
            (None, None) => {
                errors.push(path.required("must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"));
            }
            (Some(_), Some(_)) => {
                errors.push(path.invalid(
                    claim.clone(),
                    "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
                ));
            }
            _ => {}
        }
    }
    errors
}

/// Names in a list of texts that aren't what `rule` wants.
pub fn each_text(value: &Value, field: &str, path: &Path, rule: fn(&str) -> Vec<String>) -> ErrorList {
    texts(value, field)
        .enumerate()
        .flat_map(|(index, text)| {
            let path = path.child(field).index(index);
            rule(text).into_iter().map(move |message| path.invalid(text, message)).collect::<Vec<_>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn causes(spec: &Value) -> Vec<String> {
        let mut spec = spec.clone();
        crate::strategy::pod_spec::default(&mut spec);
        let (volumes, _) = crate::validation::volumes::volumes(&spec, &Path::new("volumes"));
        let volumes = volumes.into_iter().map(|volume| (str_at(volume, "name"), volume)).collect();
        let pod = Pod { spec: &spec, volumes, claims: Vec::new(), grace: 30 };
        all(&pod, &Path::root()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_container_has_a_name_and_an_image() {
        assert_eq!(causes(&json!({})), ["containers: Required value"]);
        assert_eq!(
            causes(&json!({"containers": [{}]})),
            ["containers[0].name: Required value", "containers[0].image: Required value"]
        );
        assert_eq!(
            causes(&json!({"containers": [{"name": "c", "image": " "}]})),
            ["containers[0].image: Invalid value: \" \": must not have leading or trailing whitespace"]
        );
    }

    #[test]
    fn names_are_unique_over_all_lists() {
        let c = json!({"name": "c", "image": "x"});
        assert_eq!(
            causes(&json!({"containers": [c, c], "initContainers": [c], "ephemeralContainers": [c]})),
            [
                "containers[1].name: Duplicate value: \"c\"",
                "initContainers[0].name: Duplicate value: \"c\"",
                "ephemeralContainers[0].name: Duplicate value: \"c\""
            ]
        );
    }

    #[test]
    fn mounts_are_of_volumes_at_places_of_their_own() {
        let spec = json!({"volumes": [{"name": "v", "emptyDir": {}}], "containers": [{"name": "c", "image": "x",
            "volumeMounts": [{"name": "v", "mountPath": ""}, {"name": "v", "mountPath": "/a"},
                {"name": "v", "mountPath": "/a"}, {"name": "v", "mountPath": "/b", "subPath": "../x"},
                {"name": "nope", "mountPath": "/c"}]}]});
        assert_eq!(
            causes(&spec),
            [
                "containers[0].volumeMounts[0].mountPath: Required value",
                "containers[0].volumeMounts[2].mountPath: Invalid value: \"/a\": must be unique",
                "containers[0].volumeMounts.subPath: Invalid value: \"../x\": must not contain '..'",
                "containers[0].volumeMounts[4].name: Not found: \"nope\""
            ]
        );
    }

    #[test]
    fn init_containers_have_no_probes_unless_they_stay() {
        let with = |policy: &Value| {
            json!({"containers": [{"name": "c", "image": "x"}], "initContainers": [{"name": "i", "image": "x",
                "restartPolicy": policy, "startupProbe": {"exec": {"command": ["true"]}}}]})
        };
        assert!(causes(&with(&json!("Always"))).is_empty());
        assert_eq!(
            causes(&with(&Value::Null)),
            ["initContainers[0].startupProbe: Forbidden: may not be set for init containers without \
              restartPolicy=Always"]
        );
    }

    #[test]
    fn host_ports_are_used_once() {
        let port = json!({"containerPort": 80, "hostPort": 80});
        assert_eq!(
            causes(&json!({"containers": [{"name": "c", "image": "x", "ports": [port, port]}]})),
            ["containers[0].ports[1].hostPort: Duplicate value: \"TCP//80\""]
        );
    }

    #[test]
    fn ephemeral_containers_have_few_fields() {
        let spec = json!({"containers": [{"name": "c", "image": "x"}], "ephemeralContainers": [{"name": "f",
            "image": "i", "ports": [{"containerPort": 1}], "resources": {"limits": {"cpu": "1"}},
            "targetContainerName": "zz"}]});
        assert_eq!(
            causes(&spec),
            [
                "ephemeralContainers[0].targetContainerName: Not found: \"zz\"",
                "ephemeralContainers[0].ports: Forbidden: cannot be set for an Ephemeral Container",
                "ephemeralContainers[0].resources: Forbidden: cannot be set for an Ephemeral Container"
            ]
        );
    }
}
