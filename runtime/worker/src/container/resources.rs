//! Requests and limits as numbers: what the scheduler counts and what cgroups are given.

use carob_api::quantity::Quantity;
use carob_sandbox::Limits;
use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use std::collections::BTreeMap;

/// Period of the CPU quota in µs.
const QUOTA_PERIOD_US: i64 = 100_000;
/// The smallest quota that the kernel takes, in µs.
const MIN_QUOTA_US: i64 = 1_000;
/// CPU shares of one CPU, and of nothing.
const SHARES_PER_CPU: i64 = 1024;
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
/// Tasks that one pod may have: enough for any honest program, and a fork bomb's end.
const POD_PIDS: i64 = 4096;

/// A pod's or container's amounts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PodAmounts {
    pub cpu_millis: i64,
    pub memory_bytes: i64,
}

/// `status.qosClass`, computed where the API didn't say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QosClass {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl QosClass {
    pub fn name(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// A quantity in thousandths, rounded up; 0 when it cannot be read (the API validated it).
pub(crate) fn millis(quantity: &ApiQuantity) -> i64 {
    Quantity::parse(&quantity.0).map_or(0, |parsed| parsed.millis_ceil())
}

/// A quantity in whole units (bytes), rounded up; 0 when it cannot be read.
pub(crate) fn value(quantity: &ApiQuantity) -> i64 {
    Quantity::parse(&quantity.0).map_or(0, |parsed| parsed.value_ceil())
}

type Amounts = BTreeMap<String, ApiQuantity>;

fn cpu(list: Option<&Amounts>) -> Option<i64> {
    list.and_then(|list| list.get("cpu")).map(millis)
}

fn memory(list: Option<&Amounts>) -> Option<i64> {
    list.and_then(|list| list.get("memory")).map(value)
}

pub(crate) fn requests(resources: Option<&ResourceRequirements>) -> Option<&Amounts> {
    resources.and_then(|resources| resources.requests.as_ref())
}

pub(crate) fn limits(resources: Option<&ResourceRequirements>) -> Option<&Amounts> {
    resources.and_then(|resources| resources.limits.as_ref())
}

/// A container's requests; what it limits without requesting it requests too, as the API's defaults say.
pub(crate) fn container_requests(container: &Container) -> PodAmounts {
    let (asked, limited) = (requests(container.resources.as_ref()), limits(container.resources.as_ref()));
    PodAmounts {
        cpu_millis: cpu(asked).or(cpu(limited)).unwrap_or(0),
        memory_bytes: memory(asked).or(memory(limited)).unwrap_or(0),
    }
}

/// A container's limits, where it has them.
pub(crate) fn container_limits(container: &Container) -> (Option<i64>, Option<i64>) {
    let limited = limits(container.resources.as_ref());
    (cpu(limited).filter(|cpu| *cpu > 0), memory(limited).filter(|bytes| *bytes > 0))
}

/// Whether this init container is a sidecar.
pub(crate) fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// What the pod holds at its hungriest moment: all containers with the sidecars, or one init container with the sidecars
/// before it; plus overhead. Pod-level requests come first.
pub(crate) fn pod_requests(spec: &PodSpec) -> PodAmounts {
    let pod_level = requests(spec.resources.as_ref());
    let amount = |of: fn(PodAmounts) -> i64| hungriest(spec, |container| of(container_requests(container)));
    let overhead = spec.overhead.as_ref();
    PodAmounts {
        cpu_millis: cpu(pod_level).unwrap_or_else(|| amount(|a| a.cpu_millis)) + cpu(overhead).unwrap_or(0),
        memory_bytes: memory(pod_level).unwrap_or_else(|| amount(|a| a.memory_bytes)) + memory(overhead).unwrap_or(0),
    }
}

fn hungriest(spec: &PodSpec, of: impl Fn(&Container) -> i64) -> i64 {
    let (mut sidecars, mut peak) = (0, 0);
    for container in spec.init_containers.iter().flatten() {
        if is_sidecar(container) {
            sidecars += of(container);
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(sidecars + of(container));
        }
    }
    peak.max(sidecars + spec.containers.iter().map(of).sum::<i64>())
}

/// The class by which the kernel's OOM killer and the pod's cgroup are set.
pub(crate) fn qos_class(spec: &PodSpec) -> QosClass {
    let containers: Vec<&Container> = spec.init_containers.iter().flatten().chain(&spec.containers).collect();
    if let Some(resources) = &spec.resources {
        return class_of(std::iter::once(Some(resources)));
    }
    class_of(containers.iter().map(|container| container.resources.as_ref()))
}

fn class_of<'a>(all: impl Iterator<Item = Option<&'a ResourceRequirements>>) -> QosClass {
    let (mut any, mut guaranteed) = (false, true);
    for resources in all {
        let (asked, limited) = (requests(resources), limits(resources));
        let positive = |amount: Option<i64>| amount.filter(|amount| *amount > 0);
        let (cpu_limit, memory_limit) = (positive(cpu(limited)), positive(memory(limited)));
        let (cpu_request, memory_request) = (positive(cpu(asked)), positive(memory(asked)));
        any |= [cpu_limit, memory_limit, cpu_request, memory_request].iter().any(Option::is_some);
        guaranteed &= cpu_limit.is_some()
            && memory_limit.is_some()
            && cpu_request.is_none_or(|request| Some(request) == cpu_limit)
            && memory_request.is_none_or(|request| Some(request) == memory_limit);
    }
    match (any, guaranteed) {
        (false, _) => QosClass::BestEffort,
        (true, true) => QosClass::Guaranteed,
        (true, false) => QosClass::Burstable,
    }
}

/// The container's cgroup: shares of its request, quota and memory of its limits.
pub(crate) fn container_cgroup(container: &Container) -> Limits {
    let (cpu_limit, memory_limit) = container_limits(container);
    Limits {
        cpu_shares: Some(shares(container_requests(container).cpu_millis)),
        cpu_quota_us: cpu_limit.map(quota),
        cpu_period_us: cpu_limit.and(u64::try_from(QUOTA_PERIOD_US).ok()),
        memory_bytes: memory_limit,
        ..Limits::default()
    }
}

/// The pod's cgroup: shares of all requests, and the sum of the limits where every container has one.
pub(crate) fn pod_cgroup(spec: &PodSpec) -> Limits {
    let pod_level = limits(spec.resources.as_ref());
    let all = || spec.init_containers.iter().flatten().chain(&spec.containers);
    let sum = |of: fn(&Container) -> Option<i64>, overhead: Option<i64>| {
        all()
            .all(|container| of(container).is_some())
            .then(|| hungriest(spec, |container| of(container).unwrap_or(0)) + overhead.unwrap_or(0))
    };
    let overhead = spec.overhead.as_ref();
    let cpu_limit = cpu(pod_level).or_else(|| sum(|container| container_limits(container).0, cpu(overhead)));
    let memory_limit = memory(pod_level).or_else(|| sum(|container| container_limits(container).1, memory(overhead)));
    let best_effort = qos_class(spec) == QosClass::BestEffort;
    Limits {
        cpu_shares: Some(shares(if best_effort { 0 } else { pod_requests(spec).cpu_millis })),
        cpu_quota_us: cpu_limit.map(quota),
        cpu_period_us: cpu_limit.and(u64::try_from(QUOTA_PERIOD_US).ok()),
        memory_bytes: memory_limit,
        pids: Some(POD_PIDS),
        ..Limits::default()
    }
}

fn shares(millis: i64) -> u64 {
    let shares = (millis.saturating_mul(SHARES_PER_CPU) / 1000).clamp(MIN_SHARES, MAX_SHARES);
    shares.unsigned_abs()
}

fn quota(millis: i64) -> i64 {
    (millis.saturating_mul(QUOTA_PERIOD_US) / 1000).max(MIN_QUOTA_US)
}

/// How willingly the kernel kills the container when memory is short: the more of its request it leaves to others, the
/// more (Kubernetes: "Node-pressure Eviction", node out of memory behaviour).
pub(crate) fn oom_score_adj(spec: &PodSpec, container: &Container, node_memory_bytes: i64) -> i32 {
    const NODE_CRITICAL_PRIORITY: i32 = 2_000_001_000;
    if spec.priority.is_some_and(|priority| priority >= NODE_CRITICAL_PRIORITY) {
        return -997;
    }
    match qos_class(spec) {
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let request = container_requests(container).memory_bytes;
            let part = 1000_i64.saturating_mul(request) / node_memory_bytes.max(1);
            i32::try_from((1000 - part).clamp(3, 999)).unwrap_or(999)
        }
    }
}

/// What `resourceFieldRef` gives: the amount in units of the divisor, rounded up; what has no limit is given the node's.
pub(crate) fn field(
    container: &Container,
    resource: &str,
    divisor: Option<&ApiQuantity>,
    node: PodAmounts,
) -> Option<String> {
    let (asked, limited) = (requests(container.resources.as_ref()), limits(container.resources.as_ref()));
    let (list, name) = resource.split_once('.')?;
    let given = if list == "limits" { limited } else { asked };
    let whole_node = |amount: i64| if list == "limits" { amount } else { 0 };
    let (amount, unit) = if name == "cpu" {
        let unit = divisor.map(millis).filter(|unit| *unit > 0).unwrap_or(1000);
        (cpu(given).filter(|a| *a > 0).unwrap_or(whole_node(node.cpu_millis)), unit)
    } else {
        let unit = divisor.map(value).filter(|unit| *unit > 0).unwrap_or(1);
        let default = if name == "memory" { whole_node(node.memory_bytes) } else { 0 };
        (given.and_then(|given| given.get(name)).map(value).filter(|a| *a > 0).unwrap_or(default), unit)
    };
    Some(((amount + unit - 1) / unit).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(value: serde_json::Value) -> PodSpec {
        serde_json::from_value(value).unwrap()
    }

    fn limited(cpu: &str, memory: &str) -> serde_json::Value {
        json!({"name": "c", "resources": {"limits": {"cpu": cpu, "memory": memory}, "requests": {"cpu": cpu, "memory": memory}}})
    }

    #[test]
    fn shares_and_quota_are_the_kubelets() {
        for (millis, expected) in [(0, 2), (1, 2), (100, 102), (1000, 1024), (1_000_000, 262_144)] {
            assert_eq!(shares(millis), expected, "{millis}");
        }
        for (millis, expected) in [(1, 1000), (10, 1000), (250, 25_000), (2000, 200_000)] {
            assert_eq!(quota(millis), expected, "{millis}");
        }
    }

    #[test]
    fn the_pods_limit_exists_only_when_every_container_has_one() {
        let all = spec(json!({"containers": [limited("100m", "64Mi"), limited("200m", "64Mi")]}));
        let cgroup = pod_cgroup(&all);
        assert_eq!((cgroup.cpu_quota_us, cgroup.memory_bytes), (Some(30_000), Some(128 << 20)));
        let some = spec(json!({"containers": [limited("100m", "64Mi"), {"name": "free"}]}));
        let cgroup = pod_cgroup(&some);
        assert_eq!((cgroup.cpu_quota_us, cgroup.memory_bytes), (None, None));
    }

    #[test]
    fn init_containers_count_at_their_peak_and_sidecars_beside_the_rest() {
        let pod = spec(json!({
            "initContainers": [
                {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
                {"name": "big", "resources": {"requests": {"cpu": "1"}}}
            ],
            "containers": [{"name": "c", "resources": {"requests": {"cpu": "200m"}}}]
        }));
        assert_eq!(pod_requests(&pod).cpu_millis, 1100);
    }

    #[test]
    fn qos_classes_and_their_oom_scores() {
        let guaranteed = spec(json!({"containers": [limited("1", "1Gi")]}));
        let burstable = spec(json!({"containers": [{"name": "c", "resources": {"requests": {"memory": "1Gi"}}}]}));
        let best_effort = spec(json!({"containers": [{"name": "c"}]}));
        for (pod, class, score) in [
            (&guaranteed, QosClass::Guaranteed, -997),
            (&burstable, QosClass::Burstable, 750),
            (&best_effort, QosClass::BestEffort, 1000),
        ] {
            assert_eq!(qos_class(pod), class);
            assert_eq!(oom_score_adj(pod, &pod.containers[0], 4 << 30), score);
        }
    }

    #[test]
    fn resource_fields_are_divided_and_rounded_up() {
        let pod = spec(json!({"containers": [limited("250m", "64Mi"), {"name": "free"}]}));
        let node = PodAmounts { cpu_millis: 2000, memory_bytes: 1 << 30 };
        let quantity = |text: &str| ApiQuantity(text.into());
        let of = |index: usize, resource: &str, divisor: Option<&str>| {
            field(&pod.containers[index], resource, divisor.map(quantity).as_ref(), node).unwrap()
        };
        assert_eq!(of(0, "limits.cpu", None), "1");
        assert_eq!(of(0, "limits.cpu", Some("1m")), "250");
        assert_eq!(of(0, "requests.memory", Some("1Mi")), "64");
        assert_eq!(of(1, "limits.cpu", None), "2");
        assert_eq!(of(1, "limits.memory", None), "1073741824");
        assert_eq!(of(1, "requests.cpu", None), "0");
    }
}
