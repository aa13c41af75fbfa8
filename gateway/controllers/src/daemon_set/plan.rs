//! What to make and what to remove, on which nodes.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};

use super::Look;
use crate::deployment::pods_of;
use crate::pod_control::phase;

#[derive(Default)]
pub(super) struct Plan {
    /// Nodes to make a pod for.
    pub(super) create: Vec<String>,
    pub(super) delete: Vec<Arc<Pod>>,
    /// Pods that ended, to be removed so that new ones take their place.
    pub(super) failed: Vec<Arc<Pod>>,
}

/// The pods of one node that are at work or begin to be.
struct OnNode {
    old: Vec<Arc<Pod>>,
    new: Vec<Arc<Pod>>,
}

impl Plan {
    pub(super) fn of(look: &Look) -> Self {
        let mut plan = Self::default();
        let rolls =
            look.spec.update_strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) != Some("OnDelete");
        let wanting: Vec<&Arc<Node>> = look.nodes.iter().filter(|node| look.wants(node).run).collect();
        let (surge, unavailable) = look.bounds(i32::try_from(wanting.len()).unwrap_or(i32::MAX));
        for node in &look.nodes {
            plan.populate(look, node, rolls && surge > 0);
        }
        // Pods of nodes that are gone are left to the garbage collection of pods.
        if rolls && surge > 0 {
            plan.surge(look, &wanting, surge);
        } else if rolls {
            plan.replace(look, &wanting, unavailable);
        }
        plan
    }

    /// Makes the pod that is missing on a node, removes those that are too many.
    fn populate(&mut self, look: &Look, node: &Node, surges: bool) {
        let wants = look.wants(node);
        let pods = look.of_node(node);
        if !wants.keep {
            self.delete.extend(pods.iter().filter(|pod| !is_ending(pod)).cloned());
            return;
        }
        if pods.is_empty() {
            if wants.run {
                self.create.push(node.metadata.name.clone().unwrap_or_default());
            }
            return;
        }
        let (ended, running): (Vec<_>, Vec<_>) = pods
            .iter()
            .filter(|pod| !is_ending(pod))
            .cloned()
            .partition(|pod| matches!(phase(pod), "Failed" | "Succeeded"));
        self.failed.extend(ended);
        if surges {
            // One of each template at most.
            for updated in [true, false] {
                let same = running.iter().filter(|pod| look.is_updated(pod) == updated);
                self.delete.extend(same.skip(1).cloned());
            }
        } else {
            self.delete.extend(running.into_iter().skip(1));
        }
    }

    /// Removes old pods first; their nodes are then without one for a while.
    fn replace(&mut self, look: &Look, nodes: &[&Arc<Node>], most: usize) {
        let (mut missing, mut broken, mut candidates) = (0, Vec::new(), Vec::new());
        for node in nodes {
            let there = OnNode::of(look, node);
            match (there.old.first(), there.new.first()) {
                (Some(old), None) if look.availability(old).is_err() => {
                    // It serves nobody: it may go at once.
                    missing += 1;
                    broken.push(Arc::clone(old));
                }
                (Some(old), None) => candidates.push(Arc::clone(old)),
                (None, Some(new)) => missing += usize::from(look.availability(new).is_err()),
                // Made or cleaned up at this moment.
                _ => missing += 1,
            }
        }
        candidates.truncate(most.saturating_sub(missing));
        let known: Vec<Arc<Pod>> = self.delete.iter().chain(&self.failed).cloned().collect();
        let chosen = broken.into_iter().chain(candidates);
        self.delete.extend(chosen.filter(|pod| !known.iter().any(|known| Arc::ptr_eq(known, pod))));
    }

    /// Makes new pods beside old ones, which go when the new are available.
    fn surge(&mut self, look: &Look, nodes: &[&Arc<Node>], most: usize) {
        let (mut surging, mut at_once, mut candidates) = (0, Vec::new(), Vec::new());
        for node in nodes {
            let there = OnNode::of(look, node);
            let name = || node.metadata.name.clone().unwrap_or_default();
            match (there.old.first(), there.new.first()) {
                (Some(old), None) if look.availability(old).is_err() => at_once.push(name()),
                (Some(_), None) => candidates.push(name()),
                (Some(old), Some(new)) if look.availability(new).is_ok() => self.delete.push(Arc::clone(old)),
                (Some(_), Some(_)) => surging += 1,
                _ => {}
            }
        }
        candidates.truncate(most.saturating_sub(surging));
        self.create.extend(at_once.into_iter().chain(candidates));
    }
}

impl OnNode {
    fn of(look: &Look, node: &Node) -> Self {
        let alive = look.of_node(node).iter().filter(|pod| !is_ending(pod) && phase(pod) != "Failed").cloned();
        let (new, old) = alive.partition(|pod| look.is_updated(pod));
        Self { old, new }
    }
}

impl Look {
    /// Pods that may be there beyond one per node, and that may be missing. Not both are nothing.
    fn bounds(&self, nodes: i32) -> (usize, usize) {
        let rolling = self.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.clone());
        let rolling = rolling.unwrap_or_default();
        let count = |number: i32| usize::try_from(number).unwrap_or(0);
        let surge = count(pods_of(rolling.max_surge.as_ref(), nodes, true));
        let unavailable = rolling.max_unavailable.as_ref().map_or(1, |most| count(pods_of(Some(most), nodes, true)));
        if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
    }
}

fn is_ending(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// Nodes a, b, c and so on, each with the pods that the text names: `o` old, `n` new, capital if available, `x` failed.
    // A literal object reads better as an argument by value.
    #[allow(clippy::needless_pass_by_value)]
    fn look(spec: Value, nodes: &[&str]) -> Look {
        let mut whole = json!({"selector": {}, "template": {}});
        json_patch::merge(&mut whole, &spec);
        let mut made = Vec::new();
        let mut pods = std::collections::BTreeMap::new();
        for (number, states) in nodes.iter().enumerate() {
            let name = char::from(b'a' + u8::try_from(number).unwrap()).to_string();
            made.push(Arc::new(serde_json::from_value(json!({"metadata": {"name": name}})).unwrap()));
            let on_node: Vec<Arc<Pod>> = states
                .chars()
                .map(|state| {
                    let hash = if state.eq_ignore_ascii_case(&'n') { "new" } else { "old" };
                    let ready = if state.is_uppercase() { "True" } else { "False" };
                    let phase = if state == 'x' { "Failed" } else { "Running" };
                    let pod = json!({
                        "metadata": {"name": format!("{name}{state}"), "labels": {"controller-revision-hash": hash}},
                        "spec": {"nodeName": name, "containers": []},
                        "status": {"phase": phase, "conditions": [
                            {"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
                    Arc::new(serde_json::from_value(pod).unwrap())
                })
                .collect();
            if !on_node.is_empty() {
                pods.insert(name, on_node);
            }
        }
        let set = json!({"metadata": {"name": "d"}, "spec": whole});
        let set: k8s_openapi::api::apps::v1::DaemonSet = serde_json::from_value(set).unwrap();
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        Look { spec: set.spec.clone().unwrap(), set: Arc::new(set), nodes: made, pods, hash: "new".into(), now }
    }

    fn plan(spec: Value, nodes: &[&str]) -> (Vec<String>, Vec<String>) {
        let plan = Plan::of(&look(spec, nodes));
        let name = |pod: &Arc<Pod>| pod.metadata.name.clone().unwrap();
        (plan.create, plan.failed.iter().chain(&plan.delete).map(name).collect())
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn rolling(surge: Value, unavailable: Value) -> Value {
        json!({"updateStrategy": {"type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}})
    }

    #[test]
    fn each_node_gets_one_pod_and_failed_ones_go() {
        assert_eq!(plan(json!({}), &["", "N", "x"]), (names(&["a"]), names(&["cx"])));
        assert_eq!(plan(json!({}), &["NN"]), (names(&[]), names(&["aN"])));
    }

    #[test]
    fn old_pods_go_as_many_as_may_be_missing_and_broken_ones_at_once() {
        assert_eq!(plan(rolling(json!(0), json!(1)), &["O", "O", "O"]).1, names(&["aO"]));
        assert_eq!(plan(rolling(json!(0), json!("50%")), &["O", "O", "O"]).1, names(&["aO", "bO"]));
        assert_eq!(plan(rolling(json!(0), json!(1)), &["n", "O", "O"]).1, names(&[]));
        assert_eq!(plan(rolling(json!(0), json!(1)), &["n", "o", "O"]).1, names(&["bo"]));
        assert_eq!(plan(json!({"updateStrategy": {"type": "OnDelete"}}), &["O", "o"]).1, names(&[]));
    }

    #[test]
    fn a_surge_makes_new_pods_beside_the_old_which_go_when_these_are_available() {
        assert_eq!(plan(rolling(json!(1), json!(0)), &["O", "O"]), (names(&["a"]), names(&[])));
        assert_eq!(plan(rolling(json!(1), json!(0)), &["On", "O"]), (names(&[]), names(&[])));
        assert_eq!(plan(rolling(json!(1), json!(0)), &["ON", "O"]), (names(&["b"]), names(&["aO"])));
    }
}
