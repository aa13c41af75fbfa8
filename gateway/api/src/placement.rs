//! Whether a node will have a pod: selectors, affinity, taints. The scheduler, DaemonSets, taint eviction and the nodes themselves ask.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration,
};

/// Whether any of these tolerates a taint.
pub fn tolerated(tolerations: Option<&Vec<Toleration>>, taint: &Taint) -> bool {
    tolerations.into_iter().flatten().any(|toleration| tolerates(toleration, taint))
}

pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let given = |text: &Option<String>| text.as_deref().unwrap_or_default().to_owned();
    let (effect, key) = (given(&toleration.effect), given(&toleration.key));
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    let (value, taint_value) = (given(&toleration.value), given(&taint.value));
    let compared = |test: fn(i64, i64) -> bool| matches!((taint_value.parse(), value.parse()), (Ok(taint), Ok(own)) if test(taint, own));
    match toleration.operator.as_deref() {
        Some("Exists") => true,
        None | Some("" | "Equal") => value == taint_value && !key.is_empty(),
        Some("Gt") => compared(|taint, own| taint > own),
        Some("Lt") => compared(|taint, own| taint < own),
        Some(_) => false,
    }
}

/// The first taint with one of these effects that keeps the pod away.
pub fn untolerated<'a>(spec: &PodSpec, node: &'a Node, effects: &[&str]) -> Option<&'a Taint> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref()).into_iter().flatten();
    taints
        .into_iter()
        .find(|taint| effects.contains(&taint.effect.as_str()) && !tolerated(spec.tolerations.as_ref(), taint))
}

/// Whether the pod's node selector and required node affinity choose this node.
pub fn selected(spec: &PodSpec, node: &Node) -> bool {
    let empty = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&empty);
    let by_selector = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    by_selector && required.is_none_or(|required| chosen(required, node))
}

/// Whether any term of a node selector holds.
pub fn chosen(selector: &NodeSelector, node: &Node) -> bool {
    selector.node_selector_terms.iter().any(|term| matches(term, node))
}

/// Requirements of a term all hold; a term without any matches nothing.
pub fn matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let name = node.metadata.name.as_deref();
    let label = |key: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
    let expressions = || term.match_expressions.iter().flatten();
    let fields = || term.match_fields.iter().flatten();
    (expressions().next().is_some() || fields().next().is_some())
        && expressions().all(|requirement| holds(requirement, label(&requirement.key)))
        && fields().all(|requirement| requirement.key == "metadata.name" && holds(requirement, name))
}

fn holds(requirement: &NodeSelectorRequirement, actual: Option<&str>) -> bool {
    let values = || requirement.values.iter().flatten();
    let among = || actual.is_some_and(|actual| values().any(|value| value == actual));
    let compared = |test: fn(i64, i64) -> bool| {
        let bound = values().next().and_then(|value| value.parse().ok());
        let actual = actual.and_then(|actual| actual.parse().ok());
        matches!((actual, bound), (Some(actual), Some(bound)) if test(actual, bound))
    };
    match requirement.operator.as_str() {
        "In" => among(),
        "NotIn" => !among(),
        "Exists" => actual.is_some(),
        "DoesNotExist" => actual.is_none(),
        "Gt" => compared(|actual, bound| actual > bound),
        "Lt" => compared(|actual, bound| actual < bound),
        _ => false,
    }
}
