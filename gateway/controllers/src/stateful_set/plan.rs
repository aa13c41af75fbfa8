//! Which steps may be taken now. Decided from the pods alone, so that a second look after a crash decides the same.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::{Look, identity};
use crate::deployment::pods_of;
use crate::pod_control::{phase, ready_since};
use crate::revisions;

/// One change.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// Make the pod of this ordinal.
    Create(i32),
    Delete(Arc<Pod>),
    /// Give the pod the labels of its place.
    Identify(Arc<Pod>),
}

/// Steps that may be taken at once.
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
}

impl Plan {
    pub(super) fn of(look: &Look) -> Self {
        let mut plan = Self { steps: Vec::new() };
        // With ordered management, whatever isn't as it should be is waited for before the next ordinal.
        let ordered = look.spec.pod_management_policy.as_deref() != Some("Parallel");
        if !plan.fill(look, ordered) || !plan.shrink(look, ordered) {
            return plan;
        }
        if look.rolls() {
            plan.update(look);
        }
        plan
    }

    /// Makes what is missing, lowest ordinal first. Whether to go on.
    fn fill(&mut self, look: &Look, ordered: bool) -> bool {
        for ordinal in look.spec_range() {
            let Some(pod) = look.at(ordinal) else {
                self.steps.push(Step::Create(ordinal));
                if ordered {
                    return false;
                }
                continue;
            };
            let terminating = pod.metadata.deletion_timestamp.is_some();
            if matches!(phase(&pod), "Succeeded" | "Failed") {
                if !terminating {
                    self.steps.push(Step::Delete(pod));
                }
                if ordered {
                    return false;
                }
                continue;
            }
            if ordered && (terminating || !look.is_available(&pod)) {
                return false;
            }
            if !terminating && !identity::is_marked(&pod) {
                self.steps.push(Step::Identify(pod));
            }
        }
        true
    }

    /// Removes what is too many, highest ordinal first. Whether to go on.
    fn shrink(&mut self, look: &Look, ordered: bool) -> bool {
        let mut condemned: Vec<Arc<Pod>> = look.pods.iter().filter(|pod| !look.is_wanted(pod)).cloned().collect();
        condemned.sort_by_key(|pod| std::cmp::Reverse(identity::ordinal(pod)));
        // One that is broken doesn't hold up its own end.
        let mut all: Vec<&Arc<Pod>> = look.pods.iter().collect();
        all.sort_by_key(|pod| identity::ordinal(pod));
        let first_unhealthy = all.into_iter().find(|pod| !look.is_available(pod)).cloned();
        for pod in condemned {
            if pod.metadata.deletion_timestamp.is_some() {
                if ordered {
                    return false;
                }
                continue;
            }
            let is_first = first_unhealthy.as_ref().is_some_and(|first| Arc::ptr_eq(first, &pod));
            if ordered && !look.is_available(&pod) && !is_first {
                return false;
            }
            self.steps.push(Step::Delete(pod));
            if ordered {
                return false;
            }
        }
        true
    }

    /// Replaces pods of other revisions, highest ordinal first, as many as may be missing at once.
    fn update(&mut self, look: &Look) {
        let wanted: Vec<Arc<Pod>> = look.spec_range().rev().filter_map(|ordinal| look.at(ordinal)).collect();
        let missing = usize::try_from(look.wanted()).unwrap_or(0) - wanted.len();
        let unavailable = missing + wanted.iter().filter(|pod| !look.is_available(pod)).count();
        let mut room = look.max_unavailable().saturating_sub(unavailable);
        let first = look.start() + look.partition();
        let outdated = wanted.iter().filter(|pod| {
            identity::ordinal(pod) >= Some(first)
                && pod.metadata.deletion_timestamp.is_none()
                && identity::revision(pod) != Some(revisions::name(&look.history.update))
        });
        for pod in outdated {
            // One that serves nobody can go at any time.
            if look.is_available(pod) {
                if room == 0 {
                    return;
                }
                room -= 1;
            }
            if !self.steps.iter().any(|step| matches!(step, Step::Delete(known) if Arc::ptr_eq(known, pod))) {
                self.steps.push(Step::Delete(Arc::clone(pod)));
            }
        }
    }
}

impl Look {
    fn at(&self, ordinal: i32) -> Option<Arc<Pod>> {
        self.pods.iter().find(|pod| identity::ordinal(pod) == Some(ordinal)).cloned()
    }

    fn is_wanted(&self, pod: &Pod) -> bool {
        identity::ordinal(pod).is_some_and(|ordinal| self.spec_range().contains(&ordinal))
    }

    /// Whether a pod runs, isn't ending, and has been ready for long enough.
    pub(super) fn is_available(&self, pod: &Pod) -> bool {
        let ready = ready_since(pod).filter(|_| phase(pod) == "Running" && pod.metadata.deletion_timestamp.is_none());
        ready.is_some_and(|since| {
            std::time::Duration::try_from(self.now.duration_since(since)).unwrap_or_default() >= self.min_ready()
        })
    }

    /// Pods that may be unavailable during an update.
    fn max_unavailable(&self) -> usize {
        let rolling = self.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
        let most = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
        most.map_or(1, |most| usize::try_from(pods_of(Some(most), self.wanted(), true)).unwrap_or(0)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::revisions::History;
    use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
    use serde_json::{Value, json};

    fn pod(ordinal: i32, revision: &str, state: &str) -> Arc<Pod> {
        let mut pod = json!({
            "metadata": {"name": format!("s-{ordinal}"), "labels": {
                "controller-revision-hash": revision, "statefulset.kubernetes.io/pod-name": format!("s-{ordinal}"),
                "apps.kubernetes.io/pod-index": ordinal.to_string()}},
            "status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
        });
        match state {
            "ending" => pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"),
            "unready" => pod["status"]["conditions"] = json!([]),
            "failed" => pod["status"]["phase"] = json!("Failed"),
            _ => {}
        }
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    // A literal object reads better as an argument by value.
    #[allow(clippy::needless_pass_by_value)]
    fn steps(spec: Value, pods: Vec<Arc<Pod>>) -> Vec<String> {
        let mut whole = json!({"replicas": 3, "selector": {}, "template": {}, "serviceName": "s"});
        json_patch::merge(&mut whole, &spec);
        let revision = |name: &str| -> Arc<ControllerRevision> {
            Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "revision": 1})).unwrap())
        };
        let set: StatefulSet = serde_json::from_value(json!({"metadata": {"name": "s"}, "spec": whole})).unwrap();
        let look = Look {
            spec: set.spec.clone().unwrap(),
            set: Arc::new(set),
            pods,
            current: revision("old"),
            history: History { all: Vec::new(), update: revision("new"), collisions: 0 },
            now: "2026-01-01T00:01:00Z".parse().unwrap(),
        };
        let name = |step: Step| match step {
            Step::Create(ordinal) => format!("+{ordinal}"),
            Step::Delete(pod) => format!("-{}", identity::ordinal(&pod).unwrap()),
            Step::Identify(pod) => format!("={}", identity::ordinal(&pod).unwrap()),
        };
        Plan::of(&look).steps.into_iter().map(name).collect()
    }

    fn parallel() -> Value {
        json!({"podManagementPolicy": "Parallel"})
    }

    #[test]
    fn pods_are_made_one_after_the_other_or_all_at_once() {
        assert_eq!(steps(json!({}), vec![]), ["+0"]);
        assert_eq!(steps(json!({}), vec![pod(0, "new", "unready")]), Vec::<String>::new());
        assert_eq!(steps(json!({}), vec![pod(0, "new", "")]), ["+1"]);
        assert_eq!(steps(parallel(), vec![pod(1, "new", "unready")]), ["+0", "+2"]);
        assert_eq!(steps(json!({"ordinals": {"start": 5}}), vec![pod(5, "new", "")]), ["+6"]);
    }

    #[test]
    fn a_pod_that_failed_is_made_anew_and_one_that_ends_is_waited_for() {
        assert_eq!(steps(json!({}), vec![pod(0, "new", "failed")]), ["-0"]);
        assert_eq!(steps(json!({}), vec![pod(0, "new", "ending")]), Vec::<String>::new());
    }

    #[test]
    fn the_highest_goes_first_and_waits_for_unhealthy_ones_before_it() {
        let four = |state: &str| (0..5).map(|n| pod(n, "new", if n == 1 { state } else { "" })).collect::<Vec<_>>();
        assert_eq!(steps(json!({}), four("")), ["-4"]);
        assert_eq!(steps(json!({}), four("unready")), Vec::<String>::new());
        assert_eq!(steps(parallel(), four("unready")), ["-4", "-3"]);
        let last_is_broken = (0..5).map(|n| pod(n, "new", if n == 4 { "unready" } else { "" })).collect::<Vec<_>>();
        assert_eq!(steps(json!({}), last_is_broken), ["-4"]);
    }

    #[test]
    fn an_update_goes_from_the_highest_down_to_the_partition() {
        let all =
            |outdated: i32| (0..3).map(|n| pod(n, if n < outdated { "old" } else { "new" }, "")).collect::<Vec<_>>();
        assert_eq!(steps(json!({}), all(3)), ["-2"]);
        assert_eq!(steps(json!({}), all(1)), ["-0"]);
        let partition =
            |n: i32| json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": n}}});
        assert_eq!(steps(partition(2), all(3)), ["-2"]);
        assert_eq!(steps(partition(2), all(2)), Vec::<String>::new());
        assert_eq!(steps(json!({"updateStrategy": {"type": "OnDelete"}}), all(3)), Vec::<String>::new());
        let two = json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 2}}});
        assert_eq!(steps(two.clone(), all(3)), ["-2", "-1"]);
        let mut parallel_two = two;
        json_patch::merge(&mut parallel_two, &parallel());
        let one_is_down = vec![pod(0, "old", ""), pod(1, "old", ""), pod(2, "new", "unready")];
        assert_eq!(steps(parallel_two, one_is_down), ["-1"]);
    }
}
