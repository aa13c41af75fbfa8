//! Which objects belong to which node: its Pods, what these use, and the volumes behind their claims.

use std::collections::{HashMap, HashSet};

use carob_store::{Entry, Event};
use serde_json::Value;

use crate::objects::text;

/// Where the objects lie that say what is related.
pub(super) const PREFIXES: [&str; 4] = [
    "/core/pods/",
    "/core/persistentvolumes/",
    "/storage.k8s.io/volumeattachments/",
    "/resource.k8s.io/resourceslices/",
];

/// Mirror pods show what a node runs by itself. They give it nothing, or it could ask for any secret by making one.
const MIRROR: &str = "/metadata/annotations/kubernetes.io~1config.mirror";

/// Kinds of which nodes see only what is related to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Pod,
    Secret,
    ConfigMap,
    Claim,
    Volume,
    ServiceAccount,
    ResourceClaim,
    Attachment,
    Slice,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Object {
    kind: Kind,
    namespace: String,
    name: String,
}

/// What is related to nodes.
#[derive(Default)]
pub(super) struct Graph {
    /// By key in the store: the node and what the Pod uses.
    pods: HashMap<String, (String, Vec<Object>)>,
    /// By node: its Pods and what they use, and how many of them do.
    used: HashMap<String, HashMap<Object, usize>>,
    /// By key in the store.
    volumes: HashMap<String, Volume>,
    /// Keys of the volumes that need a secret, by namespace and name.
    volumes_with: HashMap<(String, String), HashSet<String>>,
    /// By key in the store: attachments and slices, which name their node.
    owned: HashMap<String, String>,
}

/// A persistent volume: the claim that has it (namespace, name), and the secrets that mounting it takes.
struct Volume {
    claim: (String, String),
    secrets: Vec<(String, String)>,
}

/// Where a Pod's volumes name secrets.
const VOLUME_SECRETS: [&str; 8] = [
    "/secret/secretName",
    "/csi/nodePublishSecretRef/name",
    "/azureFile/secretName",
    "/cephfs/secretRef/name",
    "/flexVolume/secretRef/name",
    "/iscsi/secretRef/name",
    "/rbd/secretRef/name",
    "/scaleIO/secretRef/name",
];

/// Where a persistent volume names secrets: name and namespace beside each other.
const PERSISTENT_SECRETS: [&str; 9] = [
    "/spec/csi/nodePublishSecretRef",
    "/spec/csi/nodeStageSecretRef",
    "/spec/csi/nodeExpandSecretRef",
    "/spec/csi/controllerPublishSecretRef",
    "/spec/csi/controllerExpandSecretRef",
    "/spec/cephfs/secretRef",
    "/spec/flexVolume/secretRef",
    "/spec/iscsi/secretRef",
    "/spec/rbd/secretRef",
];

impl Graph {
    /// Whether an object belongs to a node.
    pub fn is_related(&self, node: &str, kind: Kind, namespace: &str, name: &str) -> bool {
        let uses = |kind: Kind, namespace: &str, name: &str| {
            let object = Object { kind, namespace: namespace.to_owned(), name: name.to_owned() };
            self.used.get(node).is_some_and(|used| used.contains_key(&object))
        };
        let has_volume = |key: &String| {
            self.volumes.get(key).is_some_and(|volume| uses(Kind::Claim, &volume.claim.0, &volume.claim.1))
        };
        let owns = |key: String| self.owned.get(&key).is_some_and(|owner| owner == node);
        match kind {
            Kind::Volume => has_volume(&format!("/core/persistentvolumes/{name}")),
            Kind::Attachment => owns(format!("/storage.k8s.io/volumeattachments/{name}")),
            Kind::Slice => owns(format!("/resource.k8s.io/resourceslices/{name}")),
            Kind::Secret => {
                let wanted = (namespace.to_owned(), name.to_owned());
                uses(kind, namespace, name)
                    || self.volumes_with.get(&wanted).is_some_and(|volumes| volumes.iter().any(has_volume))
            }
            kind => uses(kind, namespace, name),
        }
    }

    /// Only these lie below `prefix` now.
    pub fn reset(&mut self, prefix: &str, entries: &[Entry]) {
        let below = |key: &&String| key.starts_with(prefix);
        let known = self.pods.keys().chain(self.volumes.keys()).chain(self.owned.keys());
        for key in known.filter(below).cloned().collect::<Vec<_>>() {
            self.remove(&key);
        }
        for entry in entries {
            self.put(&entry.key, &entry.value);
        }
    }

    /// Takes a change in.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Put { entry, .. } => self.put(&entry.key, &entry.value),
            Event::Delete { entry, .. } => self.remove(&entry.key),
        }
    }

    fn put(&mut self, key: &str, value: &[u8]) {
        if key.starts_with(PREFIXES[0]) {
            return self.put_pod(key, value);
        }
        self.remove(key);
        let Ok(object) = serde_json::from_slice::<Value>(value) else { return };
        if key.starts_with(PREFIXES[1]) {
            self.put_volume(key, &object);
        } else {
            self.owned.insert(key.to_owned(), text(&object, "/spec/nodeName").to_owned());
        }
    }

    pub(super) fn put_pod(&mut self, key: &str, value: &[u8]) {
        self.remove(key);
        // Most writes of new Pods are about some that have no node yet: they aren't even decoded.
        if !contains(value, b"\"nodeName\":") {
            return;
        }
        let Ok(pod) = serde_json::from_slice::<Value>(value) else { return };
        let node = text(&pod, "/spec/nodeName");
        let mut parts = key.rsplit('/');
        let (Some(name), Some(namespace), false) = (parts.next(), parts.next(), node.is_empty()) else { return };
        let mut objects = vec![Object { kind: Kind::Pod, namespace: namespace.to_owned(), name: name.to_owned() }];
        if pod.pointer(MIRROR).is_none() {
            let used = used_by(&pod, name).into_iter();
            objects.extend(used.map(|(kind, name)| Object { kind, namespace: namespace.to_owned(), name }));
        }
        let used = self.used.entry(node.to_owned()).or_default();
        for object in &objects {
            *used.entry(object.clone()).or_default() += 1;
        }
        self.pods.insert(key.to_owned(), (node.to_owned(), objects));
    }

    fn put_volume(&mut self, key: &str, object: &Value) {
        let claim = (text(object, "/spec/claimRef/namespace"), text(object, "/spec/claimRef/name"));
        if claim.1.is_empty() {
            return;
        }
        let claim = (claim.0.to_owned(), claim.1.to_owned());
        let secrets = PERSISTENT_SECRETS.iter().filter_map(|pointer| {
            let reference = object.pointer(pointer)?;
            let namespace = text(reference, "/namespace");
            let namespace = if namespace.is_empty() { claim.0.as_str() } else { namespace };
            Some((namespace.to_owned(), text(reference, "/name").to_owned()))
        });
        let secrets: Vec<_> = secrets.filter(|(_, name)| !name.is_empty()).collect();
        for secret in &secrets {
            self.volumes_with.entry(secret.clone()).or_default().insert(key.to_owned());
        }
        self.volumes.insert(key.to_owned(), Volume { claim, secrets });
    }

    pub(super) fn remove(&mut self, key: &str) {
        if let Some((node, objects)) = self.pods.remove(key)
            && let Some(used) = self.used.get_mut(&node)
        {
            for object in objects {
                if let Some(count) = used.get_mut(&object) {
                    *count -= 1;
                    if *count == 0 {
                        used.remove(&object);
                    }
                }
            }
            if used.is_empty() {
                self.used.remove(&node);
            }
        }
        if let Some(volume) = self.volumes.remove(key) {
            for secret in volume.secrets {
                if let Some(volumes) = self.volumes_with.get_mut(&secret) {
                    volumes.remove(key);
                    if volumes.is_empty() {
                        self.volumes_with.remove(&secret);
                    }
                }
            }
        }
        self.owned.remove(key);
    }
}

/// What a Pod uses, in its own namespace.
pub(super) fn used_by(pod: &Value, pod_name: &str) -> HashSet<(Kind, String)> {
    let mut found = HashSet::new();
    let mut add = |kind: Kind, name: &str| {
        if !name.is_empty() {
            found.insert((kind, name.to_owned()));
        }
    };
    let list =
        |value: &'_ Value, pointer: &str| value.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
    add(Kind::ServiceAccount, text(pod, "/spec/serviceAccountName"));
    for secret in list(pod, "/spec/imagePullSecrets") {
        add(Kind::Secret, text(&secret, "/name"));
    }
    for containers in ["/spec/initContainers", "/spec/containers", "/spec/ephemeralContainers"] {
        for container in list(pod, containers) {
            for source in list(&container, "/envFrom") {
                add(Kind::ConfigMap, text(&source, "/configMapRef/name"));
                add(Kind::Secret, text(&source, "/secretRef/name"));
            }
            for variable in list(&container, "/env") {
                add(Kind::ConfigMap, text(&variable, "/valueFrom/configMapKeyRef/name"));
                add(Kind::Secret, text(&variable, "/valueFrom/secretKeyRef/name"));
            }
        }
    }
    for volume in list(pod, "/spec/volumes") {
        for pointer in VOLUME_SECRETS {
            add(Kind::Secret, text(&volume, pointer));
        }
        add(Kind::ConfigMap, text(&volume, "/configMap/name"));
        add(Kind::Claim, text(&volume, "/persistentVolumeClaim/claimName"));
        if volume.get("ephemeral").is_some_and(|source| !source.is_null()) {
            add(Kind::Claim, &format!("{pod_name}-{}", text(&volume, "/name")));
        }
        for source in list(&volume, "/projected/sources") {
            add(Kind::Secret, text(&source, "/secret/name"));
            add(Kind::ConfigMap, text(&source, "/configMap/name"));
        }
    }
    for claim in list(pod, "/spec/resourceClaims") {
        add(Kind::ResourceClaim, text(&claim, "/resourceClaimName"));
    }
    for claim in list(pod, "/status/resourceClaimStatuses") {
        add(Kind::ResourceClaim, text(&claim, "/resourceClaimName"));
    }
    found
}

fn contains(text: &[u8], wanted: &[u8]) -> bool {
    text.windows(wanted.len()).any(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(node: &str, spec: &Value) -> Vec<u8> {
        let mut pod = json!({"spec": spec});
        pod["spec"]["nodeName"] = node.into();
        pod.to_string().into_bytes()
    }

    #[test]
    fn a_volume_belongs_to_the_node_whose_pod_has_the_claim_and_so_do_its_secrets() {
        let mut graph = Graph::default();
        let volume = json!({"spec": {"claimRef": {"namespace": "a", "name": "c"},
            "csi": {"nodeStageSecretRef": {"namespace": "storage", "name": "key"}}}});
        graph.put("/core/persistentvolumes/v", volume.to_string().as_bytes());
        let spec = json!({"volumes": [{"persistentVolumeClaim": {"claimName": "c"}}]});
        graph.put("/core/pods/a/p", &pod("n", &spec));
        assert!(graph.is_related("n", Kind::Volume, "", "v"));
        assert!(graph.is_related("n", Kind::Secret, "storage", "key"));
        assert!(!graph.is_related("m", Kind::Volume, "", "v"));
        assert!(!graph.is_related("m", Kind::Secret, "storage", "key"));
        graph.remove("/core/pods/a/p");
        assert!(!graph.is_related("n", Kind::Secret, "storage", "key"));
        graph.reset("/core/persistentvolumes/", &[]);
        assert!(graph.volumes.is_empty() && graph.volumes_with.is_empty() && graph.used.is_empty());
    }

    #[test]
    fn what_two_pods_use_stays_until_both_are_gone() {
        let mut graph = Graph::default();
        let spec = json!({"volumes": [{"secret": {"secretName": "s"}}]});
        graph.put("/core/pods/a/p", &pod("n", &spec));
        graph.put("/core/pods/a/q", &pod("n", &spec));
        graph.remove("/core/pods/a/p");
        assert!(graph.is_related("n", Kind::Secret, "a", "s"));
        graph.remove("/core/pods/a/q");
        assert!(!graph.is_related("n", Kind::Secret, "a", "s"));
    }

    #[test]
    fn a_mirror_pod_gives_its_node_nothing() {
        let mut graph = Graph::default();
        let mirror = json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}},
            "spec": {"nodeName": "n", "volumes": [{"secret": {"secretName": "s"}}]}});
        graph.put("/core/pods/a/p", mirror.to_string().as_bytes());
        assert!(graph.is_related("n", Kind::Pod, "a", "p"));
        assert!(!graph.is_related("n", Kind::Secret, "a", "s"));
    }
}
