//! Whether a pod may run on a node, and how well it would fit there.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, NodeSpec, Pod, PodSpec, Taint};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::affinity::{self, Affinities};
use super::board::{Board, priority};
use super::spread::{self, Spread};
use crate::informer::{Informer, Key};
use crate::ownership::controller_of;
use crate::requests::Requests;
use carob_api::host_port::{HostPort, host_ports};
use carob_api::placement;

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

/// Why a node won't do, in Kubernetes' words.
#[derive(Debug, PartialEq)]
pub(super) struct Refusal {
    pub(super) reasons: Vec<String>,
    /// Whether it would do if pods went from it.
    pub(super) resolvable: bool,
}

impl Refusal {
    fn final_(reason: &str) -> Self {
        Self { reasons: vec![reason.to_owned()], resolvable: false }
    }

    fn for_now(reason: &str) -> Self {
        Self { reasons: vec![reason.to_owned()], resolvable: true }
    }
}

/// A pod that is to be placed, with what the pods that are there mean for it.
pub(super) struct Scene<'a> {
    key: Key,
    spec: PodSpec,
    pod: &'a Pod,
    requests: Requests,
    ports: Vec<HostPort>,
    board: &'a Board,
    /// Pods that are taken for gone.
    gone: HashSet<Key>,
    affinities: Affinities,
    spread: Spread,
}

impl<'a> Scene<'a> {
    pub(super) fn new(
        pod: &'a Pod,
        board: &'a Board,
        nodes: &[Arc<Node>],
        namespaces: &Informer<Namespace>,
        gone: HashSet<Key>,
    ) -> Self {
        let by_name: BTreeMap<&str, &Arc<Node>> =
            nodes.iter().map(|node| (node.metadata.name.as_deref().unwrap_or_default(), node)).collect();
        Self {
            key: Key::of(pod),
            spec: pod.spec.clone().unwrap_or_default(),
            pod,
            requests: Requests::of(pod),
            ports: pod.spec.as_ref().map(host_ports).unwrap_or_default(),
            board,
            affinities: Affinities::of(pod, board, &by_name, &gone, namespaces),
            spread: Spread::of(pod, board, &by_name, &gone),
            gone,
        }
    }

    /// Everything that is in the way of the pod on a node; of the first thing that is.
    pub(super) fn check(&self, node: &Node) -> Result<(), Refusal> {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let unschedulable = node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true);
        if unschedulable && !placement::tolerated(self.spec.tolerations.as_ref(), &unschedulable_taint()) {
            return Err(Refusal::final_("node(s) were unschedulable"));
        }
        if placement::untolerated(&self.spec, node, &["NoSchedule", "NoExecute"]).is_some() {
            return Err(Refusal::final_("node(s) had untolerated taint(s)"));
        }
        if !placement::selected(&self.spec, node) {
            return Err(Refusal::final_("node(s) didn't match Pod's node affinity/selector"));
        }
        if !self.ports.is_empty() {
            let taken = self.board.host_ports(name, &self.gone);
            if self.ports.iter().any(|port| taken.iter().any(|other| port.collides(other))) {
                return Err(Refusal::for_now("node(s) didn't have free ports for the requested pod ports"));
            }
        }
        self.room(node, name)?;
        match self.spread.refuse(node) {
            Some(spread::UNLABELED) => return Err(Refusal::final_(spread::UNLABELED)),
            Some(reason) => return Err(Refusal::for_now(reason)),
            None => {}
        }
        match self.affinities.refuse(node) {
            Some(affinity::AFFINITY) => Err(Refusal::final_(affinity::AFFINITY)),
            Some(reason) => Err(Refusal::for_now(reason)),
            None => Ok(()),
        }
    }

    fn room(&self, node: &Node, name: &str) -> Result<(), Refusal> {
        let allocatable = Requests::read(node.status.as_ref().and_then(|status| status.allocatable.as_ref()));
        let taken = self.board.taken(name, &self.key, priority(self.pod), &self.gone);
        let text = |resource: &str| {
            if resource == "pods" { "Too many pods".to_owned() } else { format!("Insufficient {resource}") }
        };
        let lacking: Vec<&str> = self
            .requests
            .iter()
            .filter(|(resource, amount)| taken.amount(resource) + amount > allocatable.amount(resource))
            .map(|(resource, _)| resource)
            .collect();
        if lacking.is_empty() {
            return Ok(());
        }
        // What the node doesn't have at all, nobody can give back.
        let resolvable = lacking.iter().all(|resource| self.requests.amount(resource) <= allocatable.amount(resource));
        Err(Refusal { reasons: lacking.into_iter().map(text).collect(), resolvable })
    }

    /// How well the pod fits, among nodes that would do; more is better.
    pub(super) fn scores(&self, nodes: &[&Arc<Node>]) -> Vec<i64> {
        let measures: [(i64, Vec<i64>); 6] = [
            (1, nodes.iter().map(|node| self.free_share(node)).collect()),
            (2, share_of_most(nodes.iter().map(|node| self.node_preference(node)).collect())),
            (3, share_of_least(nodes.iter().map(|node| self.unwanted_taints(node)).collect())),
            (2, share_of_most(nodes.iter().map(|node| self.affinities.preference(node)).collect())),
            (2, share_of_least(nodes.iter().map(|node| self.spread.crowd(node)).collect())),
            (2, share_of_least(nodes.iter().map(|node| self.siblings(node)).collect())),
        ];
        (0..nodes.len()).map(|index| measures.iter().map(|(weight, scores)| weight * scores[index]).sum()).collect()
    }

    /// What is left of CPU and memory, in percent.
    fn free_share(&self, node: &Node) -> i64 {
        let allocatable = Requests::read(node.status.as_ref().and_then(|status| status.allocatable.as_ref()));
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let taken = self.board.taken(name, &self.key, priority(self.pod), &self.gone);
        let share = |resource: &str| {
            let all = allocatable.amount(resource).max(1);
            (all - taken.amount(resource) - self.requests.amount(resource)) * 100 / all
        };
        i64::try_from(i128::midpoint(share("cpu"), share("memory"))).unwrap_or(0)
    }

    fn node_preference(&self, node: &Node) -> i64 {
        let affinity = self.spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
        let terms =
            affinity.and_then(|affinity| affinity.preferred_during_scheduling_ignored_during_execution.as_ref());
        let holding = terms.into_iter().flatten().filter(|term| placement::matches(&term.preference, node));
        holding.map(|term| i64::from(term.weight)).sum()
    }

    fn unwanted_taints(&self, node: &Node) -> i64 {
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref()).into_iter().flatten();
        let unwanted = taints.filter(|taint| {
            taint.effect == "PreferNoSchedule" && !placement::tolerated(self.spec.tolerations.as_ref(), taint)
        });
        i64::try_from(unwanted.count()).unwrap_or(0)
    }

    /// Pods of the same controller that are on a node already.
    fn siblings(&self, node: &Node) -> i64 {
        let Some(owner) = controller_of(&self.pod.metadata) else { return 0 };
        let on_node = self.board.on(node.metadata.name.as_deref().unwrap_or_default());
        let pods = on_node.into_iter().flat_map(|on_node| on_node.pods.values());
        let same =
            pods.filter(|placed| controller_of(&placed.pod.metadata).is_some_and(|other| other.uid == owner.uid));
        i64::try_from(same.count()).unwrap_or(0)
    }
}

/// Measures as parts of a hundred, the most being best.
fn share_of_most(measures: Vec<i64>) -> Vec<i64> {
    let (least, most) = (measures.iter().min().copied().unwrap_or(0), measures.iter().max().copied().unwrap_or(0));
    measures
        .into_iter()
        .map(|measure| if most == least { 0 } else { (measure - least) * 100 / (most - least) })
        .collect()
}

/// The same, the least being best.
fn share_of_least(measures: Vec<i64>) -> Vec<i64> {
    share_of_most(measures.into_iter().map(|measure| -measure).collect())
}

fn unschedulable_taint() -> Taint {
    Taint { key: "node.kubernetes.io/unschedulable".into(), effect: "NoSchedule".into(), ..Taint::default() }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::{Value, json};

    // A literal object reads better as an argument by value.
    #[allow(clippy::needless_pass_by_value)]
    pub(in super::super) fn node(name: &str, more: Value) -> Arc<Node> {
        let mut node = json!({
            "metadata": {"name": name, "labels": {"disk": "ssd", "cores": "4", "kubernetes.io/hostname": name}},
            "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "10"}}
        });
        json_patch::merge(&mut node, &more);
        Arc::new(serde_json::from_value(node).unwrap())
    }

    // A literal object reads better as an argument by value.
    #[allow(clippy::needless_pass_by_value)]
    pub(in super::super) fn pod(name: &str, more: Value) -> Arc<Pod> {
        let mut pod = json!({
            "metadata": {"name": name, "namespace": "n", "uid": name, "labels": {"app": "a"}},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "500m", "memory": "100Mi"}}}]}
        });
        json_patch::merge(&mut pod, &more);
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    pub(in super::super) fn board(pods: &[(&Arc<Pod>, &str)]) -> Board {
        let mut board = Board::default();
        for (pod, node) in pods {
            board.place(&Key::of(&***pod), Arc::clone(pod), node);
        }
        board
    }

    // A literal object reads better as an argument by value.
    #[allow(clippy::needless_pass_by_value)]
    fn reasons(pod: &Arc<Pod>, nodes: &[Arc<Node>], board: &Board) -> Vec<String> {
        let scene = Scene::new(pod, board, nodes, &Informer::new(), HashSet::new());
        nodes
            .iter()
            .map(|node| scene.check(node).map_or_else(|why| why.reasons.join("+"), |()| String::new()))
            .collect()
    }

    fn refused(more: Value, node_more: Value) -> String {
        reasons(&pod("p", more), &[node("n", node_more)], &Board::default()).remove(0)
    }

    #[test]
    fn a_pod_fits_exactly_up_to_the_last_millicore_and_the_last_place() {
        let first =
            pod("first", json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1500m"}}}]}}));
        let more = pod(
            "more",
            json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1m", "memory": "1Gi"}}}]}}),
        );
        let nodes = [node("n", json!({}))];
        assert_eq!(reasons(&pod("p", json!({})), &nodes, &board(&[(&first, "n")])), [""]);
        assert_eq!(
            reasons(&pod("p", json!({})), &nodes, &board(&[(&first, "n"), (&more, "n")])),
            ["Insufficient cpu+Insufficient memory"]
        );
        assert_eq!(refused(json!({}), json!({"status": {"allocatable": {"pods": "0"}}})), "Too many pods");
    }

    #[test]
    fn taints_selectors_and_affinity_choose_nodes() {
        let taint = json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}});
        assert_eq!(refused(json!({}), taint.clone()), "node(s) had untolerated taint(s)");
        assert_eq!(refused(json!({"spec": {"tolerations": [{"key": "k", "value": "v"}]}}), taint.clone()), "");
        assert_eq!(refused(json!({"spec": {"tolerations": [{"operator": "Exists"}]}}), taint), "");
        assert_eq!(refused(json!({}), json!({"spec": {"unschedulable": true}})), "node(s) were unschedulable");
        let wrong = "node(s) didn't match Pod's node affinity/selector";
        assert_eq!(refused(json!({"spec": {"nodeSelector": {"disk": "hdd"}}}), json!({})), wrong);
        let with = |term: Value| {
            json!({"spec": {"affinity": {"nodeAffinity":
            {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}}})
        };
        assert_eq!(
            refused(
                with(json!({"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["3"]}]})),
                json!({})
            ),
            ""
        );
        assert_eq!(
            refused(
                with(json!({"matchExpressions": [{"key": "cores", "operator": "Lt", "values": ["4"]}]})),
                json!({})
            ),
            wrong
        );
        assert_eq!(
            refused(
                with(json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]})),
                json!({})
            ),
            ""
        );
        assert_eq!(refused(with(json!({})), json!({})), wrong);
    }

    #[test]
    fn a_port_of_the_host_is_taken_once() {
        let port = json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]}});
        let (one, two) = (pod("one", port.clone()), pod("two", port));
        let nodes = [node("a", json!({})), node("b", json!({}))];
        let why = "node(s) didn't have free ports for the requested pod ports";
        assert_eq!(reasons(&two, &nodes, &board(&[(&one, "a")])), [why, ""]);
    }

    #[test]
    fn pods_that_must_be_together_or_apart_are() {
        let affinity = |kind: &str| {
            json!({"spec": {"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "a"}}}]}}}})
        };
        let nodes = [node("a", json!({})), node("b", json!({}))];
        let there = pod("there", json!({}));
        assert_eq!(
            reasons(&pod("p", affinity("podAffinity")), &nodes, &board(&[(&there, "a")])),
            ["", affinity::AFFINITY]
        );
        // The first of its kind goes anywhere.
        assert_eq!(reasons(&pod("p", affinity("podAffinity")), &nodes, &Board::default()), ["", ""]);
        assert_eq!(
            reasons(&pod("p", affinity("podAntiAffinity")), &nodes, &board(&[(&there, "a")])),
            [affinity::ANTI_AFFINITY, ""]
        );
        let jealous = pod("jealous", affinity("podAntiAffinity"));
        assert_eq!(reasons(&pod("p", json!({})), &nodes, &board(&[(&jealous, "b")])), ["", affinity::EXISTING]);
        let elsewhere = pod("elsewhere", json!({"metadata": {"namespace": "other"}}));
        assert_eq!(reasons(&pod("p", affinity("podAntiAffinity")), &nodes, &board(&[(&elsewhere, "a")])), ["", ""]);
    }

    #[test]
    fn pods_are_spread_within_the_skew() {
        let spread = json!({"spec": {"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "a"}}}]}});
        let zone = |name: &str, zone: Value| node(name, json!({"metadata": {"labels": {"zone": zone}}}));
        let nodes = [zone("a", json!("x")), zone("b", json!("y")), node("c", json!({}))];
        let there = pod("there", json!({}));
        assert_eq!(
            reasons(&pod("p", spread), &nodes, &board(&[(&there, "a")])),
            [spread::UNEVEN, "", spread::UNLABELED]
        );
    }
}
