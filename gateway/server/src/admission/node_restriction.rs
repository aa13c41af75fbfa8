//! `NodeRestriction`: a node changes itself, its lease and its own Pods, and nothing that would draw Pods to it.

mod audience;
mod place;

use std::collections::BTreeSet;

use carob_api::status::{GroupResource, Status};
use carob_store::Entry;
use serde_json::{Map, Value};

use super::{Operation, Request, certificates};
use crate::authz::node;
use crate::objects::{self, store_failure, text};
pub(crate) use place::{Reserved, claim};

const LEASE_NAMESPACE: &str = "kube-node-lease";
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Their certificates are taken for nodes.
const NODE_SIGNERS: [&str; 2] = ["kubernetes.io/kubelet-serving", "kubernetes.io/kube-apiserver-client-kubelet"];

/// Labels under Kubernetes' names that a node may set on itself.
const OWN_LABELS: [&str; 10] = [
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/instance-type",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];
/// And these with all that lies below.
const OWN_PREFIXES: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

/// Refuses what is not the node's.
pub(super) async fn admit(request: &Request<'_>) -> Result<(), Status> {
    let Some(node) = node::of(&request.call.identity) else { return Ok(()) };
    if node.is_empty() {
        return refuse(request, format!("could not determine node from user {:?}", request.call.identity.user));
    }
    match (request.call.kind.plural, request.subresource) {
        ("pods", "") if request.operation == Operation::Create => mirror_pod(request, node).await,
        ("pods", "") if request.operation == Operation::Delete => own_pod(request, node, request.old, || {
            format!("node {node:?} can only delete pods with spec.nodeName set to itself")
        }),
        ("pods", "") => refuse(
            request,
            format!("unexpected operation \"UPDATE\", node {node:?} can only create and delete mirror pods"),
        ),
        ("pods", "status") => pod_status(request, node),
        ("pods", "eviction") => {
            let pod = find(request, "pods", &request.name).await?;
            own_pod(request, node, Some(&pod), || {
                format!("node {node} can only evict pods with spec.nodeName set to itself")
            })
        }
        ("pods", other) => {
            refuse(request, format!("unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"))
        }
        ("nodes", _) => {
            own_node(request, node)?;
            place::check(request, node).await
        }
        ("persistentvolumeclaims", "status") => claim_status(request, node),
        ("persistentvolumeclaims", _) => refuse(request, "may only update PVC status".to_owned()),
        ("serviceaccounts", "token") => token(request, node).await,
        ("leases", _) => lease(request, node),
        ("csinodes", _) if request.name != node => {
            refuse(request, "can only access CSINode with the same name as the requesting node".to_owned())
        }
        ("resourceslices", _) => own_slice(request, node),
        ("certificatesigningrequests", "") if request.operation == Operation::Create => own_certificate(request, node),
        _ => Ok(()),
    }
}

fn refuse(request: &Request<'_>, why: String) -> Result<(), Status> {
    Err(Status::forbidden(&request.call.resource(), &request.name, why))
}

async fn find(request: &Request<'_>, resource: &str, name: &str) -> Result<Value, Status> {
    let namespaced = !matches!(resource, "nodes" | "persistentvolumes");
    let key = objects::core_key(resource, request.call.namespace.as_deref().filter(|_| namespaced), name);
    read(request, &key, &GroupResource::new("", resource), name).await
}

async fn read(request: &Request<'_>, key: &str, resource: &GroupResource, name: &str) -> Result<Value, Status> {
    let entry: Option<Entry> = request.call.server.store.get(key).await.map_err(|error| store_failure(&error))?;
    let entry = entry.ok_or_else(|| Status::not_found(resource, name))?;
    objects::decode(&entry.value)
}

fn own_pod(request: &Request<'_>, node: &str, pod: Option<&Value>, why: impl FnOnce() -> String) -> Result<(), Status> {
    let own = pod.is_some_and(|pod| text(pod, "/spec/nodeName") == node);
    if own { Ok(()) } else { refuse(request, why()) }
}

/// A node shows what it runs by itself, and may refer to nothing in doing so: the reference would let it read it.
async fn mirror_pod(request: &Request<'_>, node: &str) -> Result<(), Status> {
    let pod = &request.object;
    let annotations = pod.pointer("/metadata/annotations").and_then(Value::as_object);
    if !annotations.is_some_and(|annotations| annotations.contains_key(MIRROR)) {
        let why = format!("pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods");
        return refuse(request, why);
    }
    if text(pod, "/spec/nodeName") != node {
        return refuse(request, format!("node {node:?} can only create pods with spec.nodeName set to itself"));
    }
    let owners = pod.pointer("/metadata/ownerReferences").and_then(Value::as_array).cloned().unwrap_or_default();
    let owner = match owners.as_slice() {
        [] => {
            return refuse(
                request,
                format!("node {node:?} can only create pods with an owner reference set to itself"),
            );
        }
        [owner] => owner,
        _ => {
            let why = format!("node {node:?} can only create pods with a single owner reference set to itself");
            return refuse(request, why);
        }
    };
    if (text(owner, "/apiVersion"), text(owner, "/kind"), text(owner, "/name")) != ("v1", "Node", node) {
        return refuse(request, format!("node {node:?} can only create pods with an owner reference set to itself"));
    }
    if owner.get("controller") != Some(&Value::Bool(true)) {
        let why = format!("node {node:?} can only create pods with a controller owner reference set to itself");
        return refuse(request, why);
    }
    if owner.get("blockOwnerDeletion") == Some(&Value::Bool(true)) {
        return refuse(request, format!("node {node:?} must not set blockOwnerDeletion on an owner reference"));
    }
    let found = find(request, "nodes", node).await?;
    let (uid, given) = (text(&found, "/metadata/uid"), text(owner, "/uid"));
    if uid != given {
        return refuse(request, format!("node {node} UID mismatch: expected {given} got {uid}"));
    }
    if !text(pod, "/spec/serviceAccountName").is_empty() {
        return refuse(request, format!("node {node:?} can not create pods that reference a service account"));
    }
    match node::references(pod) {
        Some(what) => refuse(request, format!("node {node:?} can not create pods that reference {what}")),
        None => Ok(()),
    }
}

fn pod_status(request: &Request<'_>, node: &str) -> Result<(), Status> {
    own_pod(request, node, request.old, || {
        format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself")
    })?;
    let old = request.old.unwrap_or(&Value::Null);
    let differs = |pointer: &str| {
        let filled = |value: &Value| match value {
            Value::Object(map) => !map.is_empty(),
            Value::Array(list) => !list.is_empty(),
            other => !other.is_null(),
        };
        let (new, old) = (request.object.pointer(pointer), old.pointer(pointer));
        new.filter(|value| filled(value)) != old.filter(|value| filled(value))
    };
    if differs("/metadata/labels") {
        return refuse(request, format!("node {node:?} cannot update labels through pod status"));
    }
    if differs("/status/resourceClaimStatuses") {
        return refuse(request, format!("node {node:?} cannot update resource claim statues"));
    }
    if differs("/status/extendedResourceClaimStatus") {
        return refuse(request, format!("node {node:?} cannot update extended resource claim status"));
    }
    Ok(())
}

fn own_node(request: &Request<'_>, node: &str) -> Result<(), Status> {
    if request.name != node {
        return refuse(request, format!("node {node:?} is not allowed to modify node {:?}", request.name));
    }
    let nothing = Map::new();
    let labels = |object: Option<&Value>| {
        object.and_then(|object| object.pointer("/metadata/labels")).and_then(Value::as_object).cloned()
    };
    let new = labels(Some(&request.object)).unwrap_or_else(|| nothing.clone());
    let old = labels(request.old).unwrap_or(nothing);
    match request.operation {
        Operation::Create => {
            let bad = forbidden(&new, &old);
            if !bad.is_empty() {
                let why = format!("node {node:?} is not allowed to set the following labels: {}", bad.join(", "));
                return refuse(request, why);
            }
        }
        Operation::Update => {
            for (pointer, field) in [("/spec/taints", "taints"), ("/metadata/ownerReferences", "ownerReferences")] {
                let list =
                    |object: &Value| object.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
                if list(&request.object) != request.old.map(list).unwrap_or_default() {
                    return refuse(request, format!("node {node:?} is not allowed to modify {field}"));
                }
            }
            let bad = forbidden(&new, &old);
            if !bad.is_empty() {
                return refuse(request, format!("is not allowed to modify labels: {}", bad.join(", ")));
            }
        }
        _ => {}
    }
    Ok(())
}

/// Labels that differ and that a node may not touch.
fn forbidden(new: &Map<String, Value>, old: &Map<String, Value>) -> Vec<String> {
    let keys: BTreeSet<&String> = new.keys().chain(old.keys()).collect();
    let changed = keys.into_iter().filter(|key| new.get(*key) != old.get(*key));
    changed.filter(|key| !may_set(key)).cloned().collect()
}

fn may_set(label: &str) -> bool {
    let domain = label.split_once('/').map_or("", |(domain, _)| domain);
    let within = |parent: &str| domain == parent || domain.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'));
    if within("node-restriction.kubernetes.io") {
        return false;
    }
    let ours = within("kubernetes.io") || within("k8s.io");
    !ours || OWN_LABELS.contains(&label) || OWN_PREFIXES.iter().any(|parent| within(parent))
}

fn claim_status(request: &Request<'_>, node: &str) -> Result<(), Status> {
    let without = |object: &Value| {
        let mut object = object.clone();
        if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
            for field in ["capacity", "conditions", "allocatedResources", "allocatedResourceStatuses"] {
                status.shift_remove(field);
            }
        }
        for field in ["resourceVersion", "managedFields"] {
            objects::metadata_mut(&mut object).shift_remove(field);
        }
        object
    };
    if request.old.is_some_and(|old| without(old) == without(&request.object)) {
        return Ok(());
    }
    let why = format!("node {node:?} is not allowed to update fields other than status.capacity and status.conditions");
    refuse(request, why)
}

/// Tokens that a node asks for are bound to a Pod that it runs, and for those who the Pod wants them for.
async fn token(request: &Request<'_>, node: &str) -> Result<(), Status> {
    let reference = request.object.pointer("/spec/boundObjectRef").unwrap_or(&Value::Null);
    let name = text(reference, "/name");
    if (text(reference, "/apiVersion"), text(reference, "/kind")) != ("v1", "Pod") || name.is_empty() {
        return refuse(request, "node requested token not bound to a pod".to_owned());
    }
    let uid = text(reference, "/uid");
    if uid.is_empty() {
        return refuse(request, "node requested token with a pod binding without a uid".to_owned());
    }
    let pod = find(request, "pods", name).await?;
    if uid != text(&pod, "/metadata/uid") {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have \
             been deleted and then recreated"
        );
        return refuse(request, why);
    }
    own_pod(request, node, Some(&pod), || {
        "node requested token bound to a pod scheduled on a different node".to_owned()
    })?;
    audience::check(request, &pod).await
}

fn lease(request: &Request<'_>, node: &str) -> Result<(), Status> {
    if request.call.namespace.as_deref() != Some(LEASE_NAMESPACE) {
        return refuse(request, format!("can only access leases in the {LEASE_NAMESPACE:?} system namespace"));
    }
    if request.name != node {
        let why = "can only access node lease with the same name as the requesting node".to_owned();
        return refuse(request, why);
    }
    Ok(())
}

/// What a node offers of devices is its own. (Of updates, the authorizer knows whose slice it is.)
fn own_slice(request: &Request<'_>, node: &str) -> Result<(), Status> {
    let (slice, what) = match request.operation {
        Operation::Create => (Some(&request.object), "create"),
        Operation::Delete => (request.old, "delete"),
        _ => return Ok(()),
    };
    if slice.is_some_and(|slice| text(slice, "/spec/nodeName") == node) {
        return Ok(());
    }
    refuse(request, format!("can only {what} ResourceSlice with the same NodeName as the requesting node"))
}

/// A node asks for no certificate of another. The rest of such requests is the signer's to judge.
fn own_certificate(request: &Request<'_>, node: &str) -> Result<(), Status> {
    if !NODE_SIGNERS.contains(&text(&request.object, "/spec/signerName")) {
        return Ok(());
    }
    match certificates::subject(&request.object) {
        Ok(subject) if subject.common_name == format!("system:node:{node}") => Ok(()),
        Ok(_) => refuse(request, format!("can only create a node CSR with CN=system:node:{node}")),
        Err(why) => refuse(request, format!("unable to parse csr: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_sets_its_own_labels_and_none_that_draw_pods_to_it() {
        for label in ["team", "example.com/disk", "kubernetes.io/hostname", "node.kubernetes.io/instance-type"] {
            assert!(may_set(label), "{label}");
        }
        for label in [
            "node-role.kubernetes.io/control-plane",
            "node-restriction.kubernetes.io/fips",
            "x.node-restriction.kubernetes.io/y",
            "kubernetes.io/other",
            "foo.k8s.io/bar",
        ] {
            assert!(!may_set(label), "{label}");
        }
        let labels = |value: Value| value.as_object().cloned().expect("labels");
        let role = labels(json!({"node-role.kubernetes.io/worker": ""}));
        assert_eq!(forbidden(&role, &role), Vec::<String>::new(), "what stays is not touched");
        assert_eq!(forbidden(&Map::new(), &role).len(), 1, "taking one away is touching it");
    }
}
