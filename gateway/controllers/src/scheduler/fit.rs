//! Whether a pod may run on a node, and how well it would fit there.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeSpec, Pod, Taint};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::placement;
use crate::requests::Requests;

/// What of a node decides about pods.
#[derive(PartialEq)]
pub(super) struct Facts {
    labels: Option<BTreeMap<String, String>>,
    spec: Option<NodeSpec>,
    allocatable: Option<BTreeMap<String, Quantity>>,
}

/// The facts of a node: changes of anything else (heartbeats) need no second look.
pub(super) fn schedulable_part(node: &Node) -> Facts {
    let allocatable = node.status.as_ref().and_then(|status| status.allocatable.clone());
    Facts { labels: node.metadata.labels.clone(), spec: node.spec.clone(), allocatable }
}

/// How well the pod fits (more is better), or everything that is in the way, in Kubernetes' words.
pub(super) fn check(pod: &Pod, requests: &Requests, node: &Node, taken: &Requests) -> Result<i128, Vec<String>> {
    let spec = pod.spec.clone().unwrap_or_default();
    let node_spec = node.spec.clone().unwrap_or_default();
    if node_spec.unschedulable == Some(true) && !placement::tolerated(spec.tolerations.as_ref(), &unschedulable_taint()) {
        return Err(vec!["node(s) were unschedulable".to_owned()]);
    }
    if !placement::selected(&spec, node) {
        return Err(vec!["node(s) didn't match Pod's node affinity/selector".to_owned()]);
    }
    let forbidding = |taint: &&Taint| taint.effect != "PreferNoSchedule" && !placement::tolerated(spec.tolerations.as_ref(), taint);
    if let Some(taint) = node_spec.taints.iter().flatten().find(forbidding) {
        let value = taint.value.as_deref().unwrap_or_default();
        return Err(vec![format!("node(s) had untolerated taint {{{}: {value}}}", taint.key)]);
    }
    room(requests, node, taken)
}

fn room(requests: &Requests, node: &Node, taken: &Requests) -> Result<i128, Vec<String>> {
    let allocatable = Requests::read(node.status.as_ref().and_then(|status| status.allocatable.as_ref()));
    let lacking: Vec<String> = requests
        .iter()
        .filter(|(resource, amount)| taken.amount(resource) + amount > allocatable.amount(resource))
        .map(
            |(resource, _)| {
                if resource == "pods" { "Too many pods".to_owned() } else { format!("Insufficient {resource}") }
            },
        )
        .collect();
    if !lacking.is_empty() {
        return Err(lacking);
    }
    let free_share = |resource: &str| {
        let all = allocatable.amount(resource).max(1);
        (all - taken.amount(resource) - requests.amount(resource)) * 100 / all
    };
    Ok(free_share("cpu") + free_share("memory"))
}

fn unschedulable_taint() -> Taint {
    Taint { key: "node.kubernetes.io/unschedulable".into(), effect: "NoSchedule".into(), ..Taint::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    // A literal object reads better as an argument by value.
    #[allow(clippy::needless_pass_by_value)]
    fn node(more: Value) -> Node {
        let mut node = json!({
            "metadata": {"name": "n", "labels": {"disk": "ssd", "cores": "4"}},
            "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "2"}}
        });
        json_patch::merge(&mut node, &more);
        serde_json::from_value(node).unwrap()
    }

    // A literal object reads better as an argument by value.
    #[allow(clippy::needless_pass_by_value)]
    fn fits(spec: Value, node: &Node, taken: &Value) -> Result<i128, Vec<String>> {
        let pod: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
        let taken = Requests::read(serde_json::from_value::<Option<_>>(taken.clone()).unwrap().as_ref());
        check(&pod, &Requests::of(&pod), node, &taken)
    }

    fn container(cpu: &str) -> Value {
        json!([{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": "100Mi"}}}])
    }

    #[test]
    fn a_pod_fits_exactly_up_to_the_last_millicore() {
        let spec = json!({"containers": container("500m")});
        assert!(fits(spec.clone(), &node(json!({})), &json!({"cpu": "1500m"})).is_ok());
        let refused = fits(spec, &node(json!({})), &json!({"cpu": "1501m", "memory": "1000Mi"})).unwrap_err();
        assert_eq!(refused, ["Insufficient cpu", "Insufficient memory"]);
    }

    #[test]
    fn a_full_node_takes_no_more_pods() {
        let refused =
            fits(json!({"containers": container("1m")}), &node(json!({})), &json!({"pods": "2"})).unwrap_err();
        assert_eq!(refused, ["Too many pods"]);
    }

    #[test]
    fn taints_keep_pods_away_that_do_not_tolerate_them() {
        let tainted = node(json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}}));
        let refused = fits(json!({"containers": container("1m")}), &tainted, &json!({})).unwrap_err();
        assert_eq!(refused, ["node(s) had untolerated taint {k: v}"]);
        let tolerant = json!({"containers": container("1m"), "tolerations": [{"key": "k", "value": "v"}]});
        assert!(fits(tolerant, &tainted, &json!({})).is_ok());
        let all = json!({"containers": container("1m"), "tolerations": [{"operator": "Exists"}]});
        assert!(fits(all, &tainted, &json!({})).is_ok());
    }

    #[test]
    fn selectors_and_required_affinity_choose_nodes() {
        let node = node(json!({}));
        let with = |affinity: Value| {
            let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [affinity]}}});
            fits(json!({"containers": container("1m"), "affinity": affinity}), &node, &json!({})).is_ok()
        };
        assert!(with(json!({"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["3"]}]})));
        assert!(!with(json!({"matchExpressions": [{"key": "cores", "operator": "Lt", "values": ["4"]}]})));
        assert!(with(json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]})));
        assert!(!with(json!({})));
        let selector = json!({"containers": container("1m"), "nodeSelector": {"disk": "hdd"}});
        assert_eq!(
            fits(selector, &node, &json!({})).unwrap_err(),
            ["node(s) didn't match Pod's node affinity/selector"]
        );
    }
}
