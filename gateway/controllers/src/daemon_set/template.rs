//! The pod of a DaemonSet for one node, and which nodes it is for.

use k8s_openapi::api::core::v1::{
    Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration,
};

use super::{HASH, Look};
use crate::pod_control;
use carob_api::placement;

/// The label with the number of the template.
const GENERATION: &str = "pod-template-generation";
/// The annotation of the DaemonSet with that number.
const GENERATION_NOTE: &str = "deprecated.daemonset.template.generation";

/// What a daemon puts up with on its node: key and effect.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
/// The same with the host's network.
const TOLERATED_ON_HOST_NETWORK: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// Whether a node should get a pod, and whether one that is there may stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wants {
    pub(super) run: bool,
    pub(super) keep: bool,
}

/// The node that a pod is on, or is for.
pub(super) fn node_of(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    if let Some(node) = spec.node_name.as_deref().filter(|node| !node.is_empty()) {
        return Some(node);
    }
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let mut fields = terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    let named = fields.find(|field| field.key == "metadata.name" && field.operator == "In")?;
    named.values.as_ref()?.first().map(String::as_str)
}

impl Look {
    pub(super) fn wants(&self, node: &Node) -> Wants {
        let mut spec = self.spec.template.spec.clone().unwrap_or_default();
        tolerate(&mut spec);
        let named = spec.node_name.as_deref().unwrap_or_default();
        if !named.is_empty() && Some(named) != node.metadata.name.as_deref() || !placement::selected(&spec, node) {
            return Wants { run: false, keep: false };
        }
        if placement::untolerated(&spec, node, &["NoSchedule", "NoExecute"]).is_some() {
            let keep = placement::untolerated(&spec, node, &["NoExecute"]).is_none();
            return Wants { run: false, keep };
        }
        Wants { run: true, keep: true }
    }

    /// The pod for a node.
    pub(super) fn pod(&self, node: &str) -> Pod {
        let mut pod = pod_control::from_template(&*self.set, &self.spec.template);
        let labels = pod.metadata.labels.get_or_insert_default();
        labels.insert(HASH.to_owned(), self.hash.clone());
        let notes = self.set.metadata.annotations.as_ref();
        if let Some(generation) = notes.and_then(|notes| notes.get(GENERATION_NOTE)) {
            labels.insert(GENERATION.to_owned(), generation.clone());
        }
        let spec = pod.spec.get_or_insert_default();
        tolerate(spec);
        let here = NodeSelectorRequirement {
            key: "metadata.name".to_owned(),
            operator: "In".to_owned(),
            values: Some(vec![node.to_owned()]),
        };
        let term = NodeSelectorTerm { match_fields: Some(vec![here]), match_expressions: None };
        let affinity: &mut NodeAffinity = spec.affinity.get_or_insert_default().node_affinity.get_or_insert_default();
        affinity.required_during_scheduling_ignored_during_execution =
            Some(NodeSelector { node_selector_terms: vec![term] });
        pod
    }
}

fn tolerate(spec: &mut PodSpec) {
    let on_host = spec.host_network == Some(true);
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in TOLERATED.into_iter().chain(on_host.then_some(TOLERATED_ON_HOST_NETWORK)) {
        let toleration = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        if !tolerations.contains(&toleration) {
            tolerations.push(toleration);
        }
    }
}
