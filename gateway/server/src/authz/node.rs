//! What a node may do: of objects those that belong to it or to its Pods, of the rest what the role `system:node` says.
//! (Kubernetes' node authorizer; that a node changes only what is its own is admission's part.)

use std::sync::LazyLock;

use serde_json::Value;

use super::graph::{Graph, Kind, used_by};
use super::rules::Rule;
use super::{Attributes, bootstrap};
use crate::authn::Identity;

/// The group of nodes.
const NODES: &str = "system:nodes";
const LEASE_NAMESPACE: &str = "kube-node-lease";

/// The node's name, if it is a node's identity.
pub(crate) fn of(identity: &Identity) -> Option<&str> {
    let name = identity.user.strip_prefix("system:node:")?;
    identity.is_in(NODES).then_some(name)
}

/// What sort of objects a Pod refers to that a node must not come to know by making one.
pub(crate) fn references(pod: &Value) -> Option<&'static str> {
    let used = used_by(pod, "");
    let kinds = [
        (Kind::Secret, "secrets"),
        (Kind::ConfigMap, "configmaps"),
        (Kind::Claim, "persistentvolumeclaims"),
        (Kind::ResourceClaim, "resourceclaims"),
    ];
    kinds.into_iter().find(|(kind, _)| used.iter().any(|(found, _)| found == kind)).map(|(_, name)| name)
}

/// Whether a Pod refers to a secret.
pub(crate) fn refers_to_secrets(pod: &Value) -> bool {
    used_by(pod, "").iter().any(|(kind, _)| *kind == Kind::Secret)
}

/// The rules of the role `system:node`, which no binding gives.
static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| bootstrap::rules_of("system:node"));

/// Whether a node may, or why not (empty: nothing to say).
pub(super) fn decide(node: &str, wanted: &Attributes, graph: &Graph) -> Result<(), String> {
    if node.is_empty() {
        return Err("unknown node for user \"system:node:\"".to_owned());
    }
    if wanted.path.is_empty() {
        match (wanted.group.as_str(), wanted.resource.as_str()) {
            ("", "secrets") => return read_in_namespace(node, Kind::Secret, wanted, graph),
            ("", "configmaps") => return read_in_namespace(node, Kind::ConfigMap, wanted, graph),
            ("", "persistentvolumeclaims") if wanted.subresource == "status" => {
                return claim_status(node, wanted, graph);
            }
            ("", "persistentvolumeclaims") => return get(node, Kind::Claim, wanted, graph),
            ("", "persistentvolumes") => return get(node, Kind::Volume, wanted, graph),
            ("resource.k8s.io", "resourceclaims") => return get(node, Kind::ResourceClaim, wanted, graph),
            ("storage.k8s.io", "volumeattachments") => return get(node, Kind::Attachment, wanted, graph),
            ("", "serviceaccounts") => return service_account(node, wanted, graph),
            ("coordination.k8s.io", "leases") => return lease(node, wanted),
            ("storage.k8s.io", "csinodes") => return csi_node(node, wanted),
            ("resource.k8s.io", "resourceslices") => return slice(node, wanted, graph),
            ("", "nodes") => return nodes(node, wanted),
            ("", "pods") => return pods(node, wanted, graph),
            _ => {}
        }
    }
    if RULES.iter().any(|rule| rule.allows(wanted)) { Ok(()) } else { Err(String::new()) }
}

fn refuse(why: &str) -> Result<(), String> {
    Err(why.to_owned())
}

fn related(node: &str, kind: Kind, wanted: &Attributes, graph: &Graph) -> Result<(), String> {
    if wanted.name.is_empty() {
        return refuse("No Object name found");
    }
    if graph.is_related(node, kind, &wanted.namespace, &wanted.name) {
        return Ok(());
    }
    Err(format!("no relationship found between node '{node}' and this object"))
}

fn get(node: &str, kind: Kind, wanted: &Attributes, graph: &Graph) -> Result<(), String> {
    if wanted.verb != "get" {
        return refuse("can only get individual resources of this type");
    }
    if !wanted.subresource.is_empty() {
        return refuse("cannot get subresource");
    }
    related(node, kind, wanted, graph)
}

fn read_in_namespace(node: &str, kind: Kind, wanted: &Attributes, graph: &Graph) -> Result<(), String> {
    if !matches!(wanted.verb.as_str(), "get" | "list" | "watch") {
        return refuse("can only read resources of this type");
    }
    if !wanted.subresource.is_empty() {
        return refuse("cannot read subresource");
    }
    if wanted.namespace.is_empty() {
        return refuse("can only read namespaced object of this type");
    }
    related(node, kind, wanted, graph)
}

fn claim_status(node: &str, wanted: &Attributes, graph: &Graph) -> Result<(), String> {
    if !matches!(wanted.verb.as_str(), "update" | "patch") {
        return refuse("can only get/update/patch this type");
    }
    related(node, Kind::Claim, wanted, graph)
}

fn service_account(node: &str, wanted: &Attributes, graph: &Graph) -> Result<(), String> {
    if wanted.verb == "get" && wanted.subresource.is_empty() {
        return get(node, Kind::ServiceAccount, wanted, graph);
    }
    if wanted.verb != "create" || wanted.name.is_empty() {
        return refuse("can only create tokens for individual service accounts");
    }
    if wanted.subresource != "token" {
        return refuse("can only create token subresource of service account");
    }
    related(node, Kind::ServiceAccount, wanted, graph)
}

fn lease(node: &str, wanted: &Attributes) -> Result<(), String> {
    if !matches!(wanted.verb.as_str(), "get" | "create" | "update" | "patch" | "delete") {
        return refuse("can only get, create, update, patch, or delete a node lease");
    }
    if wanted.namespace != LEASE_NAMESPACE {
        return Err(format!("can only access leases in the {LEASE_NAMESPACE:?} system namespace"));
    }
    if wanted.verb != "create" && wanted.name != node {
        return refuse("can only access node lease with the same name as the requesting node");
    }
    Ok(())
}

fn csi_node(node: &str, wanted: &Attributes) -> Result<(), String> {
    if !wanted.subresource.is_empty() {
        return refuse("cannot authorize CSINode subresources");
    }
    if !matches!(wanted.verb.as_str(), "get" | "create" | "update" | "patch" | "delete") {
        return refuse("can only get, create, update, patch, or delete a CSINode");
    }
    if wanted.verb != "create" && wanted.name != node {
        return refuse("can only access CSINode with the same name as the requesting node");
    }
    Ok(())
}

fn slice(node: &str, wanted: &Attributes, graph: &Graph) -> Result<(), String> {
    if !wanted.subresource.is_empty() {
        return refuse("cannot authorize ResourceSlice subresources");
    }
    match wanted.verb.as_str() {
        "create" => Ok(()),
        "get" | "update" | "patch" | "delete" => related(node, Kind::Slice, wanted, graph),
        "list" | "watch" | "deletecollection" if selects(wanted, "spec.nodeName", node) => Ok(()),
        "list" | "watch" | "deletecollection" => {
            refuse("can only list/watch/deletecollection resourceslices with nodeName field selector")
        }
        _ => refuse(
            "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection",
        ),
    }
}

fn nodes(node: &str, wanted: &Attributes) -> Result<(), String> {
    match (wanted.subresource.as_str(), wanted.verb.as_str()) {
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Ok(()),
        ("", "get" | "list" | "watch") => match wanted.name.as_str() {
            name if name == node => Ok(()),
            "" => Err(format!("node '{node}' cannot read all nodes, only its own Node object")),
            name => Err(format!("node '{node}' cannot read '{name}', only its own Node object")),
        },
        _ => refuse(""),
    }
}

fn pods(node: &str, wanted: &Attributes, graph: &Graph) -> Result<(), String> {
    match (wanted.subresource.as_str(), wanted.verb.as_str()) {
        ("", "get") => related(node, Kind::Pod, wanted, graph),
        ("", "list" | "watch") if selects(wanted, "spec.nodeName", node) => Ok(()),
        ("", "list" | "watch") if !wanted.name.is_empty() => related(node, Kind::Pod, wanted, graph),
        ("", "list" | "watch") => refuse("can only list/watch pods with spec.nodeName field selector"),
        ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => Ok(()),
        _ => refuse(""),
    }
}

fn selects(wanted: &Attributes, field: &str, value: &str) -> bool {
    wanted.fields.iter().any(|(known, demanded)| known == field && demanded == value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wants(verb: &str, group: &str, resource: &str, namespace: &str, name: &str) -> Attributes {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Attributes {
            verb: verb.into(),
            group: group.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            name: name.into(),
            ..Attributes::default()
        }
    }

    #[test]
    fn a_name_alone_makes_no_node() {
        assert_eq!(of(&Identity::authenticated("system:node:n", [])), None);
        assert_eq!(of(&Identity::authenticated("n", [NODES.to_owned()])), None);
        assert_eq!(of(&Identity::authenticated("system:node:n", [NODES.to_owned()])), Some("n"));
    }

    #[test]
    fn a_node_reads_what_its_pods_use_and_nothing_else() {
        let mut graph = Graph::default();
        graph.put_pod(
            "/core/pods/a/p",
            br#"{"spec":{"nodeName":"n","serviceAccountName":"s","imagePullSecrets":[{"name":"pull"}],
                "containers":[{"envFrom":[{"configMapRef":{"name":"c"}}],
                "env":[{"valueFrom":{"secretKeyRef":{"name":"key"}}}]}],
                "volumes":[{"secret":{"secretName":"vol"}},{"projected":{"sources":[{"secret":{"name":"proj"}}]}},
                {"persistentVolumeClaim":{"claimName":"pvc"}}]}}"#,
        );
        let may = |node: &str, wanted: Attributes| decide(node, &wanted, &graph);
        for secret in ["pull", "key", "vol", "proj"] {
            assert_eq!(may("n", wants("get", "", "secrets", "a", secret)), Ok(()), "{secret}");
            assert_eq!(may("n", wants("watch", "", "secrets", "a", secret)), Ok(()), "{secret}");
            assert!(may("other", wants("get", "", "secrets", "a", secret)).is_err(), "{secret}");
            assert!(may("n", wants("get", "", "secrets", "b", secret)).is_err(), "{secret}");
            assert!(may("n", wants("delete", "", "secrets", "a", secret)).is_err(), "{secret}");
        }
        assert_eq!(may("n", wants("get", "", "configmaps", "a", "c")), Ok(()));
        assert_eq!(may("n", wants("get", "", "persistentvolumeclaims", "a", "pvc")), Ok(()));
        assert_eq!(may("n", wants("create", "", "serviceaccounts/token", "a", "s")), Ok(()));
        assert!(may("n", wants("create", "", "serviceaccounts/token", "a", "default")).is_err());
        assert_eq!(
            may("n", wants("get", "", "secrets", "a", "x")),
            Err("no relationship found between node 'n' and this object".to_owned())
        );
        assert!(may("n", wants("list", "", "secrets", "a", "")).is_err());
        graph.remove("/core/pods/a/p");
        assert!(decide("n", &wants("get", "", "secrets", "a", "key"), &graph).is_err());
    }

    #[test]
    fn a_node_looks_after_its_own_node_lease_and_pods() {
        let graph = Graph::default();
        let may = |wanted: &Attributes| decide("n", wanted, &graph).is_ok();
        assert!(may(&wants("get", "", "nodes", "", "n")) && !may(&wants("get", "", "nodes", "", "m")));
        assert!(!may(&wants("list", "", "nodes", "", "")));
        assert!(may(&wants("update", "coordination.k8s.io", "leases", LEASE_NAMESPACE, "n")));
        assert!(!may(&wants("update", "coordination.k8s.io", "leases", LEASE_NAMESPACE, "m")));
        assert!(!may(&wants("update", "coordination.k8s.io", "leases", "kube-system", "n")));
        let mut pods = wants("watch", "", "pods", "", "");
        assert!(!may(&pods));
        pods.fields = vec![("spec.nodeName".into(), "n".into())];
        assert!(may(&pods));
        pods.fields = vec![("spec.nodeName".into(), "m".into())];
        assert!(!may(&pods));
        assert!(may(&wants("create", "", "events", "a", "")), "by the role of nodes");
        assert!(!may(&wants("create", "apps", "deployments", "a", "")));
    }
}
