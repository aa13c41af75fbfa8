//! Defaults of a pod's spec, a pod's own or a template's: tables of paths, and one loop over each.

use serde_json::{Map, Value, json};

use super::{object_at, set_default, set_default_text};
use crate::quantity::Quantity;
use crate::validation::json::{flag, str_at};

/// The lists of containers in a spec.
pub const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// Texts that are set where absent or empty: path in the spec, field, value. `[]` goes through a list; `*` is each list
/// of containers.
const TEXTS: &[(&str, &str, &str)] = &[
    ("", "restartPolicy", "Always"),
    ("", "dnsPolicy", "ClusterFirst"),
    ("", "schedulerName", "default-scheduler"),
    ("*[]", "terminationMessagePath", "/dev/termination-log"),
    ("*[]", "terminationMessagePolicy", "File"),
    ("*[].ports[]", "protocol", "TCP"),
    ("*[].env[].valueFrom.fieldRef", "apiVersion", "v1"),
    ("*[].lifecycle.postStart.httpGet", "path", "/"),
    ("*[].lifecycle.postStart.httpGet", "scheme", "HTTP"),
    ("*[].lifecycle.preStop.httpGet", "path", "/"),
    ("*[].lifecycle.preStop.httpGet", "scheme", "HTTP"),
    ("volumes[].downwardAPI.items[].fieldRef", "apiVersion", "v1"),
    ("volumes[].projected.sources[].downwardAPI.items[].fieldRef", "apiVersion", "v1"),
    ("volumes[].iscsi", "iscsiInterface", "default"),
    ("volumes[].rbd", "pool", "rbd"),
    ("volumes[].rbd", "user", "admin"),
    ("volumes[].rbd", "keyring", "/etc/ceph/keyring"),
    ("volumes[].scaleIO", "storageMode", "ThinProvisioned"),
    ("volumes[].scaleIO", "fsType", "xfs"),
    ("volumes[].azureDisk", "cachingMode", "ReadWrite"),
    ("volumes[].azureDisk", "kind", "Shared"),
    ("volumes[].azureDisk", "fsType", "ext4"),
    ("volumes[].ephemeral.volumeClaimTemplate.spec", "volumeMode", "Filesystem"),
];

/// Numbers that are set where absent or zero.
const NUMBERS: &[(&str, &str, i64)] = &[
    ("volumes[].projected.sources[].serviceAccountToken", "expirationSeconds", 3600),
    ("volumes[].projected.sources[].podCertificate", "maxExpirationSeconds", 86400),
    ("volumes[].secret", "defaultMode", 0o644),
    ("volumes[].configMap", "defaultMode", 0o644),
    ("volumes[].downwardAPI", "defaultMode", 0o644),
    ("volumes[].projected", "defaultMode", 0o644),
    ("", "terminationGracePeriodSeconds", 30),
];

/// Fields that are pointers in Go: zero is a value of its own.
const KEEPS_ZERO: [&str; 3] = ["defaultMode", "terminationGracePeriodSeconds", "expirationSeconds"];

const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];

/// A probe's numbers.
const PROBE_NUMBERS: [(&str, i64); 4] =
    [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)];

/// Objects that are always written.
const OBJECTS: &[(&str, &str)] = &[("", "securityContext"), ("*[]", "resources")];

/// Fields that aren't written where they hold nothing: no pointers in Go, so that absent and zero are one.
const OMITTED_EMPTY: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "volumes",
            "initContainers",
            "ephemeralContainers",
            "nodeSelector",
            "nodeName",
            "hostNetwork",
            "hostPID",
            "hostIPC",
            "hostname",
            "subdomain",
            "serviceAccountName",
            "serviceAccount",
            "priorityClassName",
            "imagePullSecrets",
            "tolerations",
            "hostAliases",
            "readinessGates",
            "schedulingGates",
            "topologySpreadConstraints",
            "resourceClaims",
            "overhead",
        ],
    ),
    ("securityContext", &["supplementalGroups", "sysctls"]),
    ("imagePullSecrets[]", &["name"]),
    ("tolerations[]", &["key", "operator", "value", "effect"]),
    (
        "*[]",
        &[
            "image",
            "command",
            "args",
            "workingDir",
            "ports",
            "env",
            "envFrom",
            "volumeMounts",
            "volumeDevices",
            "resizePolicy",
            "stdin",
            "stdinOnce",
            "tty",
            "targetContainerName",
        ],
    ),
    ("*[].ports[]", &["name", "hostPort", "hostIP"]),
    ("*[].env[]", &["value"]),
    ("*[].envFrom[]", &["prefix"]),
    ("*[].resources", &["limits", "requests", "claims"]),
    ("*[].volumeMounts[]", &["readOnly", "subPath", "subPathExpr"]),
    ("*[].securityContext.capabilities", &["add", "drop"]),
    ("volumes[].emptyDir", &["medium"]),
    ("volumes[].secret", &["secretName", "items"]),
    ("volumes[].configMap", &["name", "items"]),
    ("volumes[].persistentVolumeClaim", &["readOnly"]),
    ("volumes[].nfs", &["readOnly"]),
    ("volumes[].iscsi", &["readOnly", "fsType"]),
];

/// Fills in what a pod's spec leaves open, wherever the spec is.
pub fn default(spec: &mut Value) {
    drop_nulls(spec);
    for (path, field) in OBJECTS {
        each(spec, path, &mut |object| set_default(object, field, json!({})));
    }
    for (path, field, text) in TEXTS {
        each(spec, path, &mut |object| set_default_text(object, field, text));
    }
    for (path, field, number) in NUMBERS {
        each(spec, path, &mut |object| {
            if KEEPS_ZERO.contains(field) {
                set_default(object, field, *number);
            } else {
                set_default_number(object, field, *number);
            }
        });
    }
    each(spec, "*[]", &mut |container| {
        let image = container.get("image").and_then(Value::as_str).unwrap_or("");
        let policy = pull_policy(image);
        set_default_text(container, "imagePullPolicy", policy);
        for probe in PROBES {
            if let Some(probe) = container.get_mut(probe) {
                default_probe(probe);
            }
        }
    });
    each(spec, "volumes[]", &mut default_volume);
    each(spec, "*[].env[].valueFrom.resourceFieldRef", &mut |field| set_default(field, "divisor", "0"));
    each(spec, "volumes[].downwardAPI.items[].resourceFieldRef", &mut |field| set_default(field, "divisor", "0"));
    each(spec, "volumes[].projected.sources[].downwardAPI.items[].resourceFieldRef", &mut |field| {
        set_default(field, "divisor", "0");
    });
    for list in ["*[].resources", "resources"] {
        each(spec, list, &mut |resources| {
            for field in ["limits", "requests"] {
                if let Some(quantities) = resources.get_mut(field).and_then(Value::as_object_mut) {
                    quantities.values_mut().for_each(round_quantity);
                }
            }
        });
    }
    for (path, fields) in OMITTED_EMPTY {
        each(spec, path, &mut |object| fields.iter().for_each(|field| drop_if_empty(object, field)));
    }
    mirror_service_account(spec);
}

/// Defaults that only a pod's own spec gets.
pub fn default_of_pod(spec: &mut Value) {
    if let Some(object) = spec.as_object_mut() {
        set_default(object, "enableServiceLinks", true);
    }
    if flag(spec, "hostNetwork") {
        for list in ["initContainers[].ports[]", "containers[].ports[]"] {
            each(spec, list, &mut |port| {
                if let Some(number) = port.get("containerPort").cloned() {
                    set_default_number(port, "hostPort", number.as_i64().unwrap_or(0));
                }
            });
        }
    }
    for list in ["initContainers[].resources", "containers[].resources"] {
        each(spec, list, &mut |resources| {
            let Some(Value::Object(limits)) = resources.get("limits").cloned() else { return };
            let requests = resources.entry("requests").or_insert_with(|| json!({}));
            if let Some(requests) = requests.as_object_mut() {
                for (name, limit) in limits {
                    requests.entry(name).or_insert(limit);
                }
            }
        });
    }
}

/// Calls `visit` for every object that a path leads to.
fn each(value: &mut Value, path: &str, visit: &mut dyn FnMut(&mut Map<String, Value>)) {
    let (segment, rest) = path.split_once('.').unwrap_or((path, ""));
    if segment.is_empty() {
        if let Some(object) = value.as_object_mut() {
            visit(object);
        }
    } else if segment == "*[]" {
        for list in CONTAINER_LISTS {
            each_item(value, list, rest, visit);
        }
    } else if let Some(list) = segment.strip_suffix("[]") {
        each_item(value, list, rest, visit);
    } else if let Some(inner) = value.get_mut(segment) {
        each(inner, rest, visit);
    }
}

fn each_item(value: &mut Value, list: &str, rest: &str, visit: &mut dyn FnMut(&mut Map<String, Value>)) {
    for item in value.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
        each(item, rest, visit);
    }
}

fn default_probe(probe: &mut Value) {
    if let Some(probe) = probe.as_object_mut() {
        for (field, number) in PROBE_NUMBERS {
            set_default_number(probe, field, number);
        }
        drop_if_empty(probe, "initialDelaySeconds");
    }
    each(probe, "httpGet", &mut |http| {
        set_default_text(http, "path", "/");
        set_default_text(http, "scheme", "HTTP");
        drop_if_empty(http, "host");
        drop_if_empty(http, "httpHeaders");
    });
    each(probe, "grpc", &mut |grpc| set_default(grpc, "service", ""));
}

/// A volume without a source is an empty directory.
fn default_volume(volume: &mut Map<String, Value>) {
    if volume.keys().all(|field| field == "name") {
        volume.insert("emptyDir".to_owned(), json!({}));
    }
    if let Some(path) = volume.get_mut("hostPath").and_then(Value::as_object_mut) {
        set_default(path, "type", "");
    }
    if let Some(disk) = volume.get_mut("azureDisk").and_then(Value::as_object_mut) {
        set_default(disk, "readOnly", false);
    }
    if let Some(limit) = volume.get_mut("emptyDir").and_then(|dir| dir.get_mut("sizeLimit")) {
        canonical_quantity(limit);
    }
    if let Some(image) = volume.get_mut("image").and_then(Value::as_object_mut) {
        let policy = pull_policy(image.get("reference").and_then(Value::as_str).unwrap_or(""));
        set_default_text(image, "pullPolicy", policy);
    }
}

/// `Always` for what may be another image tomorrow, tag `latest`, written or not.
fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').map_or((image, false), |(name, _)| (name, true));
    let last = name.rsplit('/').next().unwrap_or(name);
    let tag = last.split_once(':').map(|(_, tag)| tag);
    match tag {
        Some("latest") => "Always",
        None if !digest && !image.trim().is_empty() => "Always",
        _ => "IfNotPresent",
    }
}

/// Quantities of resources have at most three decimal places.
pub fn round_quantity(value: &mut Value) {
    canonical_quantity(value);
    let Some(quantity) = value.as_str().and_then(|text| Quantity::parse(text).ok()) else { return };
    if quantity.nanos() % 1_000_000 != 0 {
        *value = Value::from(Quantity::from_millis(quantity.millis_ceil()).canonical());
    }
}

/// Writes a quantity as Kubernetes does, `1024Mi` as `1Gi`. What isn't one stays, for validation to find.
fn canonical_quantity(value: &mut Value) {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return,
    };
    if let Ok(quantity) = Quantity::parse(&text) {
        *value = Value::from(quantity.canonical());
    }
}

/// The account has an old and a new field name; each stands for the other.
fn mirror_service_account(spec: &mut Value) {
    let name = [str_at(spec, "serviceAccountName"), str_at(spec, "serviceAccount")]
        .into_iter()
        .find(|name| !name.is_empty())
        .map(str::to_owned);
    if let (Some(name), Some(spec)) = (name, spec.as_object_mut()) {
        spec.insert("serviceAccountName".to_owned(), Value::from(name.as_str()));
        spec.insert("serviceAccount".to_owned(), Value::from(name));
    }
}

fn set_default_number(object: &mut Map<String, Value>, field: &str, number: i64) {
    let slot = object.entry(field).or_insert(Value::Null);
    if slot.is_null() || slot.as_i64() == Some(0) {
        *slot = Value::from(number);
    }
}

/// Removes a field that holds nothing.
pub fn drop_if_empty(object: &mut Map<String, Value>, field: &str) {
    let empty = object.get(field).is_some_and(|value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    });
    if empty {
        object.shift_remove(field);
    }
}

/// Removes a field that is null.
pub fn drop_null(object: &mut Map<String, Value>, field: &str) {
    if object.get(field).is_some_and(Value::is_null) {
        object.shift_remove(field);
    }
}

/// In a pod's spec null is the same as absent.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// Fills in what a pod template leaves open.
pub fn default_template(owner_spec: &mut Value) {
    let Some(template) = object_at(owner_spec, "template") else { return };
    set_default(template, "metadata", json!({}));
    set_default(template, "spec", json!({}));
    if let Some(metadata) = template.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|_, field| !field.is_null());
        drop_if_empty(metadata, "labels");
        drop_if_empty(metadata, "annotations");
    }
    if let Some(spec) = template.get_mut("spec") {
        default(spec);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaulted(spec: &Value) -> Value {
        let mut spec = spec.clone();
        default(&mut spec);
        default_of_pod(&mut spec);
        let once = spec.clone();
        default(&mut spec);
        default_of_pod(&mut spec);
        assert_eq!(spec, once, "defaults are idempotent");
        spec
    }

    #[test]
    fn a_bare_pod_gets_its_policies() {
        assert_eq!(
            defaulted(&json!({"containers": [{"name": "c", "image": "nginx"}]})),
            json!({
                "containers": [{"name": "c", "image": "nginx", "resources": {},
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                    "imagePullPolicy": "Always"}],
                "securityContext": {}, "restartPolicy": "Always", "dnsPolicy": "ClusterFirst",
                "schedulerName": "default-scheduler", "terminationGracePeriodSeconds": 30,
                "enableServiceLinks": true,
            })
        );
    }

    #[test]
    fn requests_follow_limits_in_canonical_form() {
        let spec = defaulted(&json!({"containers": [{"name": "c", "image": "x", "resources": {
            "limits": {"cpu": "1.0", "memory": "1024Mi", "ephemeral-storage": "1e3"}, "requests": {"cpu": "0.0001"}}}]}));
        assert_eq!(
            spec["containers"][0]["resources"],
            json!({"limits": {"cpu": "1", "memory": "1Gi", "ephemeral-storage": "1e3"},
                   "requests": {"cpu": "1m", "memory": "1Gi", "ephemeral-storage": "1e3"}})
        );
    }

    #[test]
    fn probes_and_volumes_are_completed() {
        let spec = defaulted(&json!({
            "containers": [{"name": "c", "image": "x", "livenessProbe": {"grpc": {"port": 9}},
                "readinessProbe": {"httpGet": {"port": 80}, "timeoutSeconds": 0}, "env": [{"name": "A", "value": ""}]}],
            "volumes": [{"name": "e"}, {"name": "h", "hostPath": {"path": "/x"}},
                {"name": "s", "secret": {"secretName": "s", "defaultMode": 0}}],
        }));
        let container = &spec["containers"][0];
        assert_eq!(
            container["livenessProbe"],
            json!({"grpc": {"port": 9, "service": ""}, "timeoutSeconds": 1, "periodSeconds": 10,
                   "successThreshold": 1, "failureThreshold": 3})
        );
        assert_eq!(container["readinessProbe"]["httpGet"], json!({"port": 80, "path": "/", "scheme": "HTTP"}));
        assert_eq!(container["readinessProbe"]["timeoutSeconds"], 1);
        assert_eq!(container["env"], json!([{"name": "A"}]));
        assert_eq!(
            spec["volumes"],
            json!([{"name": "e", "emptyDir": {}}, {"name": "h", "hostPath": {"path": "/x", "type": ""}},
                   {"name": "s", "secret": {"secretName": "s", "defaultMode": 0}}])
        );
    }

    #[test]
    fn the_tag_decides_when_to_pull() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("reg:5000/x", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1", "IfNotPresent"),
            ("nginx@sha256:00", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn host_network_ports_are_host_ports() {
        let spec = defaulted(&json!({"hostNetwork": true,
            "containers": [{"name": "c", "image": "x", "ports": [{"containerPort": 80}]}]}));
        assert_eq!(spec["containers"][0]["ports"], json!([{"containerPort": 80, "protocol": "TCP", "hostPort": 80}]));
    }
}
