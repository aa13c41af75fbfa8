//! Making room: which less important pods would have to go so that a pod finds a place, at the least cost.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use super::board::{Board, priority};
use super::fit::{Refusal, Scene};
use crate::informer::{Informer, Key};
use crate::ownership::Selector;

/// A node and the pods that would have to go from it.
pub(super) struct Candidate {
    pub(super) node: String,
    pub(super) victims: Vec<Arc<Pod>>,
    violations: usize,
}

/// What is known while a place is looked for.
pub(super) struct World<'a> {
    pub(super) board: &'a Board,
    pub(super) nodes: &'a [Arc<Node>],
    pub(super) namespaces: &'a Informer<Namespace>,
    pub(super) budgets: &'a [Arc<PodDisruptionBudget>],
}

impl World<'_> {
    /// The best node to clear a place on, or why there is none: in how many nodes which way.
    pub(super) fn preempt(&self, pod: &Pod, refusals: &BTreeMap<String, Refusal>) -> Result<Candidate, String> {
        if pod.spec.as_ref().and_then(|spec| spec.preemption_policy.as_deref()) == Some("Never") {
            return Err("not eligible due to preemptionPolicy=Never.".to_owned());
        }
        let nominated = pod.status.as_ref().and_then(|status| status.nominated_node_name.as_deref());
        if nominated.is_some_and(|node| self.is_being_cleared(pod, node)) {
            return Err("not eligible due to a terminating pod on the nominated node.".to_owned());
        }
        let (mut helpless, mut hopeless) = (0, 0);
        let mut best: Option<Candidate> = None;
        for node in self.nodes {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            if !refusals.get(name).is_some_and(|refusal| refusal.resolvable) {
                helpless += 1;
                continue;
            }
            match self.victims(pod, node, name) {
                Some(candidate) if best.as_ref().is_none_or(|best| cost(&candidate) < cost(best)) => {
                    best = Some(candidate);
                }
                Some(_) => {}
                None => hopeless += 1,
            }
        }
        best.ok_or_else(|| {
            let mut reasons = Vec::new();
            if hopeless > 0 {
                reasons.push(format!("{hopeless} No preemption victims found for incoming pod"));
            }
            if helpless > 0 {
                reasons.push(format!("{helpless} Preemption is not helpful for scheduling"));
            }
            reasons.sort();
            format!("0/{} nodes are available: {}.", self.nodes.len(), reasons.join(", "))
        })
    }

    /// Whether less important pods end on a node already, for this pod.
    fn is_being_cleared(&self, pod: &Pod, node: &str) -> bool {
        let pods = self.board.on(node).into_iter().flat_map(|on_node| on_node.pods.values());
        pods.into_iter()
            .any(|there| there.pod.metadata.deletion_timestamp.is_some() && priority(&there.pod) < priority(pod))
    }

    /// The pods that would have to go from a node: all that are less important, without those that can stay after all.
    fn victims(&self, pod: &Pod, node: &Arc<Node>, name: &str) -> Option<Candidate> {
        let on_node = self.board.on(name)?;
        let mut lesser: Vec<Arc<Pod>> = on_node
            .pods
            .values()
            .map(|placed| &placed.pod)
            .filter(|there| priority(there) < priority(pod))
            .cloned()
            .collect();
        if lesser.is_empty() {
            return None;
        }
        let scene = |gone: &HashSet<Key>| Scene::new(pod, self.board, self.nodes, self.namespaces, gone.clone());
        let mut gone: HashSet<Key> = lesser.iter().map(|there| Key::of(&**there)).collect();
        scene(&gone).check(node).ok()?;
        // The important and the old are let off first, and before all those whose end a budget forbids.
        let protected = self.protected(&lesser);
        lesser
            .sort_by_key(|there| (!protected.contains(&Key::of(&**there)), -i64::from(priority(there)), start(there)));
        let mut victims = Vec::new();
        for there in lesser {
            let key = Key::of(&*there);
            gone.remove(&key);
            if scene(&gone).check(node).is_err() {
                gone.insert(key);
                victims.push(there);
            }
        }
        let violations = victims.iter().filter(|there| protected.contains(&Key::of(&***there))).count();
        victims.sort_by_key(|there| -i64::from(priority(there)));
        Some(Candidate { node: name.to_owned(), victims, violations })
    }

    /// Those of the pods whose end together would break a budget.
    fn protected(&self, pods: &[Arc<Pod>]) -> HashSet<Key> {
        let mut protected = HashSet::new();
        for budget in self.budgets {
            let selector = Selector::read_or_everything(budget.spec.as_ref().and_then(|spec| spec.selector.as_ref()));
            let status = budget.status.clone().unwrap_or_default();
            let disrupted = status.disrupted_pods.unwrap_or_default();
            let mut left = usize::try_from(status.disruptions_allowed).unwrap_or(0);
            for pod in pods {
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                if pod.metadata.namespace != budget.metadata.namespace
                    || !selector.matches(&pod.metadata)
                    || disrupted.contains_key(name)
                {
                    continue;
                }
                if left > 0 {
                    left -= 1;
                } else {
                    protected.insert(Key::of(&**pod));
                }
            }
        }
        protected
    }
}

fn start(pod: &Pod) -> Timestamp {
    let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
    started.or(pod.metadata.creation_timestamp.as_ref()).map_or(Timestamp::UNIX_EPOCH, |at| at.0)
}

/// What orders candidates: few budgets broken, unimportant victims, few of them, young ones.
type Cost = (usize, i32, i64, usize, std::cmp::Reverse<Timestamp>);

fn cost(candidate: &Candidate) -> Cost {
    let highest = candidate.victims.iter().map(|pod| priority(pod)).max().unwrap_or(i32::MIN);
    // Shifted, so that more victims always weigh more.
    let sum = candidate.victims.iter().map(|pod| i64::from(priority(pod)) + (1 << 31)).sum();
    let oldest = candidate.victims.iter().filter(|pod| priority(pod) == highest).map(|pod| start(pod)).min();
    (candidate.violations, highest, sum, candidate.victims.len(), std::cmp::Reverse(oldest.unwrap_or(Timestamp::MAX)))
}

#[cfg(test)]
mod tests {
    use super::super::fit::tests::{board, node, pod};
    use super::*;
    use serde_json::{Value, json};

    fn of_priority(name: &str, priority: i32, cpu: &str) -> Arc<Pod> {
        pod(
            name,
            json!({"spec": {"priority": priority,
            "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}}),
        )
    }

    fn preempt(
        pod: &Arc<Pod>,
        placed: &[(&Arc<Pod>, &str)],
        budgets: &[Value],
    ) -> Result<(String, Vec<String>), String> {
        let (board, nodes) = (board(placed), [node("a", json!({})), node("b", json!({}))]);
        let namespaces = Informer::new();
        let budgets: Vec<_> =
            budgets.iter().map(|budget| Arc::new(serde_json::from_value(budget.clone()).unwrap())).collect();
        let world = World { board: &board, nodes: &nodes, namespaces: &namespaces, budgets: &budgets };
        let scene = Scene::new(pod, &board, &nodes, &namespaces, HashSet::new());
        let refusals =
            nodes.iter().filter_map(|node| Some((node.metadata.name.clone().unwrap(), scene.check(node).err()?)));
        let candidate = world.preempt(pod, &refusals.collect())?;
        let names = candidate.victims.iter().map(|pod| pod.metadata.name.clone().unwrap());
        Ok((candidate.node, names.collect()))
    }

    #[test]
    fn the_least_important_and_no_more_than_needed_go() {
        let (low, mid, big) = (of_priority("low", 1, "1"), of_priority("mid", 5, "1"), of_priority("big", 5, "2"));
        let vip = of_priority("vip", 10, "1");
        let placed = [(&low, "a"), (&mid, "a"), (&big, "b")];
        assert_eq!(preempt(&vip, &placed, &[]), Ok(("a".into(), vec!["low".into()])));
        let vip = of_priority("vip", 10, "1500m");
        assert_eq!(preempt(&vip, &placed, &[]), Ok(("b".into(), vec!["big".into()])));
    }

    #[test]
    fn nobody_goes_for_one_who_is_no_more_important_or_who_would_not_fit_anyway() {
        let (big, other) = (of_priority("big", 5, "2"), of_priority("other", 5, "2"));
        let placed = [(&big, "a"), (&other, "b")];
        let nobody = "0/2 nodes are available: 2 No preemption victims found for incoming pod.";
        assert_eq!(preempt(&of_priority("p", 5, "1"), &placed, &[]), Err(nobody.into()));
        let useless = "0/2 nodes are available: 2 Preemption is not helpful for scheduling.";
        assert_eq!(preempt(&of_priority("p", 9, "3"), &placed, &[]), Err(useless.into()));
        let polite = pod(
            "p",
            json!({"spec": {"priority": 9, "preemptionPolicy": "Never",
            "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]}}),
        );
        assert_eq!(preempt(&polite, &placed, &[]), Err("not eligible due to preemptionPolicy=Never.".into()));
    }

    #[test]
    fn budgets_are_kept_where_there_is_a_choice() {
        let (one, two) = (of_priority("one", 1, "2"), of_priority("two", 2, "2"));
        let budget = json!({"metadata": {"name": "b", "namespace": "n"},
            "spec": {"selector": {"matchLabels": {"guarded": "yes"}}},
            "status": {"disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}});
        let guarded = pod("one", json!({"metadata": {"labels": {"guarded": "yes"}}, "spec": one.spec}));
        assert_eq!(
            preempt(&of_priority("vip", 9, "2"), &[(&guarded, "a"), (&two, "b")], &[budget]),
            Ok(("b".into(), vec!["two".into()]))
        );
    }
}
