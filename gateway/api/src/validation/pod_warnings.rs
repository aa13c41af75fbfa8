//! What Kubernetes takes but warns about, in pods and in templates.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::field::Path;
use crate::validation::json::{dig, entries, get, int, items, map, str_at};
use crate::validation::{names, resources};

/// Labels of nodes that have other names by now.
const DEPRECATED_LABELS: [(&str, &str); 5] = [
    ("beta.kubernetes.io/arch", "deprecated since v1.14; use \"kubernetes.io/arch\" instead"),
    ("beta.kubernetes.io/os", "deprecated since v1.14; use \"kubernetes.io/os\" instead"),
    (
        "failure-domain.beta.kubernetes.io/region",
        "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
    ),
    ("failure-domain.beta.kubernetes.io/zone", "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead"),
    ("beta.kubernetes.io/instance-type", "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead"),
];

/// Annotations that have become fields.
const DEPRECATED_ANNOTATIONS: [(&str, &str); 2] = [
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "non-functional in v1.16+; use the \"priorityClassName\" field instead",
    ),
    ("security.alpha.kubernetes.io/sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
];

/// Volumes that are on their way out.
const DEPRECATED_VOLUMES: [(&str, &str); 9] = [
    ("gitRepo", "deprecated in v1.11"),
    ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
];

/// Warnings about a pod.
pub fn pod(pod: &Value) -> Vec<String> {
    let mut warnings = name(pod, "the Pod's hostname");
    let metadata = pod.get("metadata").unwrap_or(&Value::Null);
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    warnings.extend(spec_warnings(spec, metadata, &Path::root()));
    warnings
}

/// Warnings about a workload, whose pods are named after it and made from its template.
pub fn workload(object: &Value) -> Vec<String> {
    let mut warnings = name(object, "Pod names and hostnames");
    warnings.extend(template(object));
    warnings
}

/// Warnings about the pod template of a workload.
pub fn template(object: &Value) -> Vec<String> {
    object.get("spec").map_or_else(Vec::new, |spec| template_at(spec, &Path::new("spec")))
}

/// Warnings about the pod template of an object at `path`.
pub fn template_at(owner: &Value, path: &Path) -> Vec<String> {
    let Some(template) = get(owner, "template") else { return Vec::new() };
    let part = |field| template.get(field).unwrap_or(&Value::Null);
    spec_warnings(part("spec"), part("metadata"), &path.child("template"))
}

/// A name that is no DNS label makes odd host names.
fn name(object: &Value, used: &str) -> Vec<String> {
    let name = object.get("metadata").map_or("", |metadata| str_at(metadata, "name"));
    let messages = names::dns1123_label(name);
    if name.is_empty() || messages.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "metadata.name: this is used in {used}, which can result in surprising behavior; a DNS label is recommended: \
         [{}]",
        messages.join(" ")
    )]
}

fn spec_warnings(spec: &Value, metadata: &Value, top: &Path) -> Vec<String> {
    let path = top.child("spec");
    let mut warnings = node_labels(spec, &path);
    for (annotation, why) in DEPRECATED_ANNOTATIONS {
        if map(metadata, "annotations").is_some_and(|annotations| annotations.contains_key(annotation)) {
            warnings.push(format!("{}: {why}", top.child("metadata").child("annotations").key(annotation)));
        }
    }
    for (index, volume) in items(spec, "volumes").iter().enumerate() {
        for (kind, why) in DEPRECATED_VOLUMES {
            if get(volume, kind).is_some() {
                warnings.push(format!("{}: {why}", path.child("volumes").index(index).child(kind)));
            }
        }
    }
    warnings.extend(repeated(spec, "hostAliases", "ip", &path));
    warnings.extend(repeated(spec, "imagePullSecrets", "name", &path));
    if let Some(seconds) = int(spec, "terminationGracePeriodSeconds")
        && seconds < 0
    {
        warnings.push(format!(
            "{}: must be >= 0; negative values are invalid and will be treated as 1",
            path.child("terminationGracePeriodSeconds")
        ));
    }
    warnings.extend(fractions(spec, "overhead", &path.child("overhead")));
    for list in ["initContainers", "containers"] {
        for (index, container) in items(spec, list).iter().enumerate() {
            warnings.extend(container_warnings(container, &path.child(list).index(index)));
        }
    }
    warnings
}

fn node_labels(spec: &Value, path: &Path) -> Vec<String> {
    let deprecated = |key: &str| DEPRECATED_LABELS.iter().find(|(label, _)| *label == key).map(|(_, why)| *why);
    let mut warnings = Vec::new();
    for (key, _) in entries(spec, "nodeSelector") {
        if let Some(why) = deprecated(key) {
            warnings.push(format!("{}: {why}", path.child("nodeSelector").key(key)));
        }
    }
    let affinity = path.child("affinity").child("nodeAffinity");
    let (required, preferred) =
        ("requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution");
    let node = dig(spec, &["affinity", "nodeAffinity"]).unwrap_or(&Value::Null);
    let mut terms: Vec<(&Value, Path)> = Vec::new();
    for (index, term) in
        get(node, required).map_or(&[][..], |selector| items(selector, "nodeSelectorTerms")).iter().enumerate()
    {
        terms.push((term, affinity.child(required).child("nodeSelectorTerms").index(index)));
    }
    for (index, weighted) in items(node, preferred).iter().enumerate() {
        let path = affinity.child(preferred).index(index).child("preference");
        terms.push((weighted.get("preference").unwrap_or(&Value::Null), path));
    }
    for (term, path) in terms {
        for (index, expression) in items(term, "matchExpressions").iter().enumerate() {
            let key = str_at(expression, "key");
            if let Some(why) = deprecated(key) {
                let path = path.child("matchExpressions").index(index).child("key");
                warnings.push(format!("{path}: {key} is {why}"));
            }
        }
    }
    for (index, constraint) in items(spec, "topologySpreadConstraints").iter().enumerate() {
        let path = path.child("topologySpreadConstraints").index(index);
        let key = str_at(constraint, "topologyKey");
        if let Some(why) = deprecated(key) {
            warnings.push(format!("{}: {key} is {why}", path.child("topologyKey")));
        }
        if get(constraint, "labelSelector").is_none() {
            let field = path.child("labelSelector");
            warnings.push(format!("{field}: a null labelSelector results in matching no pod"));
        }
    }
    warnings
}

/// Entries of a list that are meant to differ in a field.
fn repeated(spec: &Value, list: &str, field: &str, path: &Path) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for (index, item) in items(spec, list).iter().enumerate() {
        let path = path.child(list).index(index).child(field);
        let text = str_at(item, field);
        if text.is_empty() && field == "name" {
            warnings.push(format!("{path}: invalid empty name \"\""));
        } else if !seen.insert(text) {
            warnings.push(format!("{path}: duplicate {field} {text:?}"));
        }
    }
    warnings
}

fn container_warnings(container: &Value, path: &Path) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(own) = get(container, "resources") {
        for field in ["limits", "requests"] {
            warnings.extend(fractions(own, field, &path.child("resources").child(field)));
        }
    }
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for (index, variable) in items(container, "env").iter().enumerate() {
        let name = str_at(variable, "name");
        if !seen.insert(name) {
            warnings.push(format!(
                "{}: hides previous definition of {name:?}, which may be dropped when using apply",
                path.child("env").index(index)
            ));
        }
    }
    let mut ports: BTreeMap<(i64, &str, i64, &str), Path> = BTreeMap::new();
    for (index, port) in items(container, "ports").iter().enumerate() {
        let path = path.child("ports").index(index);
        let key = (
            int(port, "containerPort").unwrap_or(0),
            str_at(port, "protocol"),
            int(port, "hostPort").unwrap_or(0),
            str_at(port, "hostIP"),
        );
        if let Some(first) = ports.get(&key) {
            warnings.push(format!("{path}: duplicate port definition with {first}"));
        } else {
            ports.insert(key, path);
        }
    }
    warnings
}

/// Half a byte can't be had.
fn fractions(value: &Value, field: &str, path: &Path) -> Vec<String> {
    ["memory", "ephemeral-storage"]
        .iter()
        .filter_map(|name| {
            let quantity = resources::quantity(map(value, field)?.get(*name)?)?;
            (quantity.nanos() % 1_000_000_000 != 0).then(|| {
                format!(
                    "{}: fractional byte value {:?} is invalid, must be an integer",
                    path.key(name),
                    quantity.canonical()
                )
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn warned(spec: &Value) -> Vec<String> {
        pod(&json!({"metadata": {"name": "p"}, "spec": spec}))
    }

    #[test]
    fn old_labels_are_deprecated() {
        assert_eq!(
            warned(&json!({"nodeSelector": {"beta.kubernetes.io/os": "linux"}})),
            ["spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead"]
        );
    }

    #[test]
    fn repetitions_hide_each_other() {
        let spec = json!({
            "hostAliases": [{"ip": "192.0.2.1"}, {"ip": "192.0.2.1"}], "imagePullSecrets": [{"name": ""}],
            "containers": [{"name": "c", "env": [{"name": "A"}, {"name": "A"}],
                "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "TCP"}]}]});
        assert_eq!(
            warned(&spec),
            [
                "spec.hostAliases[1].ip: duplicate ip \"192.0.2.1\"",
                "spec.imagePullSecrets[0].name: invalid empty name \"\"",
                "spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply",
                "spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]"
            ]
        );
    }

    #[test]
    fn fractions_of_bytes_are_odd() {
        let spec = json!({"containers": [{"name": "c", "resources": {"limits": {"memory": "1m"}}}]});
        assert_eq!(
            warned(&spec),
            [
                "spec.containers[0].resources.limits[memory]: fractional byte value \"1m\" is invalid, must be an integer"
            ]
        );
    }

    #[test]
    fn volumes_end() {
        let spec = json!({"volumes": [{"name": "r", "rbd": {}}]});
        assert_eq!(warned(&spec), ["spec.volumes[0].rbd: deprecated in v1.28, non-functional in v1.31+"]);
    }
}
