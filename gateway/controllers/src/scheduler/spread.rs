//! Topology spread: no place gets many more of some pods than the others have.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use carob_api::selector::LabelSelector;
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec, TopologySpreadConstraint};
use serde_json::json;

use super::board::Board;
use crate::informer::Key;
use carob_api::placement;

pub(super) const UNEVEN: &str = "node(s) didn't match pod topology spread constraints";
pub(super) const UNLABELED: &str = "node(s) didn't match pod topology spread constraints (missing required label)";

/// A constraint with the pods that it counts.
struct Counted {
    key: String,
    most: i64,
    required: bool,
    /// Whether the pod itself counts.
    itself: i64,
    by_value: HashMap<String, i64>,
    fewest: i64,
}

pub(super) struct Spread(Vec<Counted>);

impl Spread {
    pub(super) fn of(pod: &Pod, board: &Board, nodes: &BTreeMap<&str, &Arc<Node>>, gone: &HashSet<Key>) -> Self {
        let Some(spec) = &pod.spec else { return Self(Vec::new()) };
        let constraints = spec.topology_spread_constraints.as_deref().unwrap_or_default();
        let keys: Vec<&str> = constraints
            .iter()
            .filter(|constraint| is_required(constraint))
            .map(|constraint| constraint.topology_key.as_str())
            .collect();
        let count = |constraint: &TopologySpreadConstraint| {
            let selector = selector(pod, constraint);
            let mut by_value: HashMap<String, i64> = HashMap::new();
            let mut counted: HashSet<&str> = HashSet::new();
            for (name, node) in nodes {
                let has_all = keys.iter().all(|key| value(node, key).is_some());
                let Some(value) = value(node, &constraint.topology_key).filter(|_| has_all) else { continue };
                if is_eligible(spec, constraint, node) {
                    by_value.entry(value.clone()).or_default();
                    counted.insert(name);
                }
            }
            for (node, there) in board.pods(gone) {
                let same = there.metadata.namespace == pod.metadata.namespace
                    && there.metadata.deletion_timestamp.is_none()
                    && counted.contains(node)
                    && matches(selector.as_ref(), there);
                if let Some(value) =
                    nodes.get(node).and_then(|node| value(node, &constraint.topology_key)).filter(|_| same)
                {
                    *by_value.entry(value.clone()).or_default() += 1;
                }
            }
            let few_domains =
                constraint.min_domains.is_some_and(|least| by_value.len() < usize::try_from(least).unwrap_or(0));
            let fewest = if few_domains { 0 } else { by_value.values().copied().min().unwrap_or(0) };
            Counted {
                key: constraint.topology_key.clone(),
                most: i64::from(constraint.max_skew),
                required: is_required(constraint),
                itself: i64::from(matches(selector.as_ref(), pod)),
                by_value,
                fewest,
            }
        };
        Self(constraints.iter().map(count).collect())
    }

    /// What speaks against a node.
    pub(super) fn refuse(&self, node: &Node) -> Option<&'static str> {
        self.0.iter().filter(|counted| counted.required).find_map(|counted| {
            let Some(value) = value(node, &counted.key) else { return Some(UNLABELED) };
            let there = counted.by_value.get(value).copied().unwrap_or(0);
            (there + counted.itself - counted.fewest > counted.most).then_some(UNEVEN)
        })
    }

    /// How many pods are in this node's places already, by the constraints that are wishes.
    pub(super) fn crowd(&self, node: &Node) -> i64 {
        let wishes = self.0.iter().filter(|counted| !counted.required);
        let there = |counted: &Counted| {
            value(node, &counted.key).and_then(|value| counted.by_value.get(value).copied()).unwrap_or(0)
        };
        wishes.map(there).sum()
    }
}

fn is_required(constraint: &TopologySpreadConstraint) -> bool {
    constraint.when_unsatisfiable == "DoNotSchedule"
}

fn value<'a>(node: &'a Node, key: &str) -> Option<&'a String> {
    node.metadata.labels.as_ref()?.get(key)
}

/// Whether a node's place counts, by the policies of the constraint.
fn is_eligible(spec: &PodSpec, constraint: &TopologySpreadConstraint, node: &Node) -> bool {
    let by_affinity = constraint.node_affinity_policy.as_deref() == Some("Ignore") || placement::selected(spec, node);
    let by_taints = constraint.node_taints_policy.as_deref() != Some("Honor")
        || placement::untolerated(spec, node, &["NoSchedule", "NoExecute"]).is_none();
    by_affinity && by_taints
}

fn selector(pod: &Pod, constraint: &TopologySpreadConstraint) -> Option<LabelSelector> {
    let mut written = constraint.label_selector.clone()?;
    let labels = pod.metadata.labels.as_ref();
    for key in constraint.match_label_keys.iter().flatten() {
        if let Some(value) = labels.and_then(|labels| labels.get(key)) {
            written.match_labels.get_or_insert_default().insert(key.clone(), value.clone());
        }
    }
    LabelSelector::from_object(&json!(written)).ok()
}

fn matches(selector: Option<&LabelSelector>, pod: &Pod) -> bool {
    selector.is_some_and(|selector| selector.matches(Some(&json!(pod.metadata.labels))))
}
