//! What a pod asks of its node.

use std::collections::BTreeMap;
use std::ops::{AddAssign, SubAssign};

use carob_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Written;

/// CPU and memory, and whatever else nodes have by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Requests(BTreeMap<String, i128>);

impl Requests {
    /// Amounts in nanos, by resource. A value that isn't a quantity was refused by validation.
    pub(crate) fn read(written: Option<&BTreeMap<String, Written>>) -> Self {
        let amounts = written.into_iter().flatten().filter_map(|(name, amount)| {
            Quantity::parse(&amount.0).ok().map(|quantity| (name.clone(), quantity.nanos()))
        });
        Self(amounts.collect())
    }

    /// What a pod needs at once: its containers together, or its most demanding init container beside the sidecars that
    /// run by then, whichever is more; and one of its node's places for pods. While a resize is under way, a container
    /// counts with the most of what it is to have, was promised and has.
    pub(crate) fn of(pod: &Pod) -> Self {
        let resizing = Resizing::of(pod);
        let mut total = pod.spec.as_ref().map(|spec| of_spec(spec, &resizing)).unwrap_or_default();
        total.0.insert("pods".to_owned(), Quantity::from_units(1).nanos());
        total
    }

    /// The most that a pod may take, by the same rules.
    pub(crate) fn limits_of(pod: &Pod) -> Self {
        let limits = |resources: &Option<ResourceRequirements>| {
            Self::read(resources.as_ref().and_then(|resources| resources.limits.as_ref()))
        };
        let of_container = |container: &Container| limits(&container.resources);
        pod.spec.as_ref().map(|spec| sum(spec, of_container, limits(&spec.resources))).unwrap_or_default()
    }

    /// How much of a resource.
    pub(crate) fn amount(&self, resource: &str) -> i128 {
        self.0.get(resource).copied().unwrap_or(0)
    }

    /// The resources of which there is something.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, i128)> {
        self.0.iter().filter(|(_, amount)| **amount > 0).map(|(name, amount)| (name.as_str(), *amount))
    }

    fn at_least(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let own = self.0.entry(name.clone()).or_default();
            *own = (*own).max(*amount);
        }
    }
}

impl AddAssign<&Self> for Requests {
    fn add_assign(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            *self.0.entry(name.clone()).or_default() += amount;
        }
    }
}

impl SubAssign<&Self> for Requests {
    fn sub_assign(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            *self.0.entry(name.clone()).or_default() -= amount;
        }
    }
}

/// What the status says of containers whose resources are being changed.
struct Resizing<'a> {
    statuses: Vec<&'a ContainerStatus>,
    /// The node will never have what the spec wants: that counts for nothing.
    infeasible: bool,
}

impl<'a> Resizing<'a> {
    fn of(pod: &'a Pod) -> Self {
        let Some(status) = &pod.status else { return Self { statuses: Vec::new(), infeasible: false } };
        let conditions = status.conditions.iter().flatten();
        let infeasible = conditions.into_iter().any(|condition| {
            condition.type_ == "PodResizePending" && condition.reason.as_deref() == Some("Infeasible")
        });
        let lists = [&status.container_statuses, &status.init_container_statuses];
        let statuses = lists.into_iter().flatten().flatten().filter(|status| status.allocated_resources.is_some());
        Self { statuses: statuses.collect(), infeasible }
    }

    fn requests(&self, container: &Container) -> Requests {
        let asked = Requests::read(container.resources.as_ref().and_then(|resources| resources.requests.as_ref()));
        let Some(status) = self.statuses.iter().find(|status| status.name == container.name) else { return asked };
        let mut most = if self.infeasible { Requests::default() } else { asked };
        most.at_least(&Requests::read(status.allocated_resources.as_ref()));
        let has = status.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        most.at_least(&Requests::read(has));
        most
    }
}

fn of_spec(spec: &PodSpec, resizing: &Resizing<'_>) -> Requests {
    let whole = Requests::read(spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()));
    let mut total = sum(spec, |container| resizing.requests(container), whole);
    total += &Requests::read(spec.overhead.as_ref());
    total
}

/// What the containers have of something together, and the pod as a `whole`.
fn sum(spec: &PodSpec, of: impl Fn(&Container) -> Requests, whole: Requests) -> Requests {
    let mut sidecars = Requests::default();
    let mut starting = Requests::default();
    for container in spec.init_containers.iter().flatten() {
        let mut needed = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars += &needed;
            needed = Requests::default();
        }
        needed += &sidecars;
        starting.at_least(&needed);
    }
    let mut running = sidecars;
    for container in &spec.containers {
        running += &of(container);
    }
    running.at_least(&starting);
    // What is said of the pod as a whole counts instead of what its containers add up to.
    running.0.extend(whole.0);
    running
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_resize_counts_with_the_most_until_it_is_done_and_an_infeasible_wish_not_at_all() {
        let pod = |conditions: serde_json::Value| -> Pod {
            serde_json::from_value(json!({
                "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "3"}}}]},
                "status": {"conditions": conditions, "containerStatuses": [{
                    "name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
                    "allocatedResources": {"cpu": "1"}, "resources": {"requests": {"cpu": "2"}}}]}
            }))
            .unwrap()
        };
        let cpus = |pod: &Pod| Requests::of(pod).amount("cpu") / Quantity::from_units(1).nanos();
        assert_eq!(cpus(&pod(json!([]))), 3);
        let infeasible = json!([{"type": "PodResizePending", "status": "True", "reason": "Infeasible"}]);
        assert_eq!(cpus(&pod(infeasible)), 2);
    }

    #[test]
    fn init_containers_count_only_as_far_as_they_need_more_than_the_rest() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "initContainers": [
                {"name": "a", "resources": {"requests": {"cpu": "3", "memory": "1Mi"}}},
                {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "500m"}}},
                {"name": "b", "resources": {"requests": {"memory": "9Mi"}}}
            ],
            "containers": [
                {"name": "c", "resources": {"requests": {"cpu": "1", "memory": "2Mi"}}},
                {"name": "d", "resources": {"requests": {"cpu": "250m"}}}
            ]
        }}))
        .unwrap();
        let requests = Requests::of(&pod);
        assert_eq!(requests.amount("cpu"), Quantity::parse("3").unwrap().nanos());
        assert_eq!(requests.amount("memory"), Quantity::parse("9Mi").unwrap().nanos());
        assert_eq!(requests.amount("pods"), Quantity::parse("1").unwrap().nanos());
    }
}
