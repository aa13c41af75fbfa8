//! Requests and limits as numbers: what the scheduler counts and what cgroups are given.

use super::huge_pages::HugePages;
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
    /// Bytes of the node's disk (`ephemeral-storage`).
    pub storage_bytes: i64,
    pub huge_pages: HugePages,
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

const STORAGE: &str = "ephemeral-storage";

fn storage(list: Option<&Amounts>) -> Option<i64> {
    list.and_then(|list| list.get(STORAGE)).map(value)
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
        storage_bytes: storage(asked).or(storage(limited)).unwrap_or(0),
        huge_pages: HugePages::of(asked).or(HugePages::of(limited)),
    }
}

/// What a container holds of CPU and memory while it runs: what it requests, and its share of what the pod requests beyond
/// its containers, overhead included. Init containers have nobody to share that with but sidecars, which have none of it.
pub(crate) fn held_requests(spec: &PodSpec, container: &Container) -> PodAmounts {
    let pod_level = requests(spec.resources.as_ref());
    let own = container_requests(container);
    let held = |of: fn(PodAmounts) -> i64, whole: Option<i64>, overhead: Option<i64>| {
        let sum = |containers: &[&Container]| {
            containers.iter().map(|container| of(container_requests(container))).fold(0, i64::saturating_add)
        };
        let is_this = |other: &&Container| other.name == container.name;
        let init: Vec<&Container> = spec.init_containers.iter().flatten().collect();
        let (beside, sharers, place) = if let Some(place) = init.iter().position(is_this) {
            if is_sidecar(container) {
                return of(own);
            }
            (init[..place].iter().filter(|other| is_sidecar(other)).copied().collect(), 1, 0)
        } else {
            let Some(place) = spec.containers.iter().position(|other| other.name == container.name) else { return 0 };
            let others = spec.containers.iter().filter(|other| other.name != container.name);
            let sidecars = init.iter().filter(|other| is_sidecar(other)).copied();
            (sidecars.chain(others).collect::<Vec<_>>(), spec.containers.len(), place)
        };
        let beyond = whole.unwrap_or(0).saturating_sub(sum(&beside).saturating_add(of(own))).max(0);
        let beyond = beyond.saturating_add(overhead.unwrap_or(0));
        let (sharers, place) = (i64::try_from(sharers).unwrap_or(1), i64::try_from(place).unwrap_or(0));
        of(own).saturating_add(beyond / sharers).saturating_add(i64::from(place < beyond % sharers))
    };
    let overhead = spec.overhead.as_ref();
    PodAmounts {
        cpu_millis: held(|amounts| amounts.cpu_millis, cpu(pod_level), cpu(overhead)),
        memory_bytes: held(|amounts| amounts.memory_bytes, memory(pod_level), memory(overhead)),
        ..own
    }
}

/// Limits of CPU and memory, where there are any.
fn limited(resources: Option<&ResourceRequirements>) -> (Option<i64>, Option<i64>) {
    let limited = limits(resources);
    (cpu(limited).filter(|cpu| *cpu > 0), memory(limited).filter(|bytes| *bytes > 0))
}

/// A container's limits, where it has them.
pub(crate) fn container_limits(container: &Container) -> (Option<i64>, Option<i64>) {
    limited(container.resources.as_ref())
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
    let huge = hungriest(spec, |container| container_requests(container).huge_pages);
    PodAmounts {
        cpu_millis: cpu(pod_level)
            .unwrap_or_else(|| amount(|a| a.cpu_millis))
            .saturating_add(cpu(overhead).unwrap_or(0)),
        memory_bytes: memory(pod_level)
            .unwrap_or_else(|| amount(|a| a.memory_bytes))
            .saturating_add(memory(overhead).unwrap_or(0)),
        storage_bytes: amount(|a| a.storage_bytes).saturating_add(storage(overhead).unwrap_or(0)),
        huge_pages: HugePages::of(pod_level).or(huge).plus(HugePages::of(overhead)),
    }
}

/// What is held beside other such, or instead of them.
trait Held: Copy + Default {
    #[must_use]
    fn plus(self, other: Self) -> Self;
    #[must_use]
    fn or_more(self, other: Self) -> Self;
}

impl Held for i64 {
    fn plus(self, other: Self) -> Self {
        self.saturating_add(other)
    }

    fn or_more(self, other: Self) -> Self {
        self.max(other)
    }
}

impl Held for HugePages {
    fn plus(self, other: Self) -> Self {
        self.with(other, i64::saturating_add)
    }

    fn or_more(self, other: Self) -> Self {
        self.with(other, i64::max)
    }
}

fn hungriest<T: Held>(spec: &PodSpec, of: impl Fn(&Container) -> T) -> T {
    let (mut sidecars, mut peak) = (T::default(), T::default());
    for container in spec.init_containers.iter().flatten() {
        if is_sidecar(container) {
            sidecars = sidecars.plus(of(container));
            peak = peak.or_more(sidecars);
        } else {
            peak = peak.or_more(sidecars.plus(of(container)));
        }
    }
    peak.or_more(spec.containers.iter().map(of).fold(sidecars, T::plus))
}

/// The class by which the kernel's OOM killer and the pod's cgroup are set.
pub(crate) fn qos_class(spec: &PodSpec) -> QosClass {
    let containers: Vec<&Container> = spec.init_containers.iter().flatten().chain(&spec.containers).collect();
    let is_said = |resources: &&ResourceRequirements| resources.requests.is_some() || resources.limits.is_some();
    if let Some(resources) = spec.resources.as_ref().filter(is_said) {
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

/// The container's cgroup: shares of its request, quota and memory of its limits, or of the pod's where it has none.
pub(crate) fn container_cgroup(spec: &PodSpec, container: &Container) -> Limits {
    let ((own_cpu, own_memory), (pod_cpu, pod_memory)) =
        (container_limits(container), limited(spec.resources.as_ref()));
    let (cpu_limit, memory_limit) = (own_cpu.or(pod_cpu), own_memory.or(pod_memory));
    Limits {
        cpu_shares: Some(shares(container_requests(container).cpu_millis)),
        cpu_quota_us: cpu_limit.map(quota),
        cpu_period_us: cpu_limit.and(u64::try_from(QUOTA_PERIOD_US).ok()),
        memory_bytes: memory_limit,
        ..Limits::default()
    }
}

/// The huge pages that a container may use: its own limits, or the pod's where it has none.
pub(crate) fn container_huge_pages(spec: &PodSpec, container: &Container) -> HugePages {
    let of = |resources: Option<&ResourceRequirements>| HugePages::of(limits(resources));
    of(container.resources.as_ref()).or(of(spec.resources.as_ref()))
}

/// What a container that sets no limit is told that it may have: the pod's own limits before the node's.
pub(crate) fn unless_limited(spec: &PodSpec, node: PodAmounts) -> PodAmounts {
    let (pod_cpu, pod_memory) = limited(spec.resources.as_ref());
    PodAmounts {
        cpu_millis: pod_cpu.unwrap_or(node.cpu_millis),
        memory_bytes: pod_memory.unwrap_or(node.memory_bytes),
        ..node
    }
}

/// The pod's cgroup: shares of all requests, and the sum of the limits where every container has one.
pub(crate) fn pod_cgroup(spec: &PodSpec) -> Limits {
    let (pod_cpu, pod_memory) = limited(spec.resources.as_ref());
    let all = || spec.init_containers.iter().flatten().chain(&spec.containers);
    let sum = |of: fn(&Container) -> Option<i64>, overhead: Option<i64>| {
        all()
            .all(|container| of(container).is_some())
            .then(|| hungriest(spec, |container| of(container).unwrap_or(0)).saturating_add(overhead.unwrap_or(0)))
    };
    let overhead = spec.overhead.as_ref();
    let cpu_limit = pod_cpu.or_else(|| sum(|container| container_limits(container).0, cpu(overhead)));
    let memory_limit = pod_memory.or_else(|| sum(|container| container_limits(container).1, memory(overhead)));
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
            let spare = unshared_memory(spec);
            let own = container_requests(container).memory_bytes;
            // A sidecar lives at least as long as the first of those that need it.
            let least = spec.containers.iter().map(|main| container_requests(main).memory_bytes).min().unwrap_or(0);
            let request = if is_sidecar(container) { own.max(least) } else { own } + spare;
            let part = 1000_i64.saturating_mul(request) / node_memory_bytes.max(1);
            i32::try_from((1000 - part).clamp(3, 999)).unwrap_or(999)
        }
    }
}

/// Each container's share of what the pod requests beyond what its containers do.
fn unshared_memory(spec: &PodSpec) -> i64 {
    let Some(whole) = memory(requests(spec.resources.as_ref())).filter(|bytes| *bytes > 0) else { return 0 };
    let count = spec.containers.len() + spec.init_containers.as_ref().map_or(0, Vec::len);
    let own = hungriest(spec, |container| container_requests(container).memory_bytes);
    (whole - own) / i64::try_from(count.max(1)).unwrap_or(1)
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
        let default = match name {
            "memory" => whole_node(node.memory_bytes),
            STORAGE => whole_node(node.storage_bytes),
            _ => 0,
        };
        (given.and_then(|given| given.get(name)).map(value).filter(|a| *a > 0).unwrap_or(default), unit)
    };
    Some((amount / unit + i64::from(amount % unit > 0)).to_string())
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
    fn what_is_said_of_the_pod_is_what_its_containers_may_have_together() {
        let pod = spec(json!({"containers": [{"name": "free"}, limited("250m", "64Mi")],
            "resources": {"requests": {"cpu": "1", "memory": "128Mi"}, "limits": {"cpu": "2", "memory": "256Mi"}}}));
        let requests = pod_requests(&pod);
        assert_eq!((requests.cpu_millis, requests.memory_bytes), (1000, 128 << 20));
        let whole = pod_cgroup(&pod);
        assert_eq!(
            (whole.cpu_shares, whole.cpu_quota_us, whole.memory_bytes),
            (Some(1024), Some(200_000), Some(256 << 20))
        );
        let free = container_cgroup(&pod, &pod.containers[0]);
        assert_eq!((free.cpu_shares, free.cpu_quota_us, free.memory_bytes), (Some(2), Some(200_000), Some(256 << 20)));
        let own = container_cgroup(&pod, &pod.containers[1]);
        assert_eq!((own.cpu_quota_us, own.memory_bytes), (Some(25_000), Some(64 << 20)));
        let node = PodAmounts { cpu_millis: 9000, memory_bytes: 1 << 40, ..PodAmounts::default() };
        assert_eq!(field(&pod.containers[0], "limits.cpu", None, unless_limited(&pod, node)).unwrap(), "2");
        // What the pod requests beyond its containers is shared by both.
        assert_eq!(unshared_memory(&pod), 32 << 20);
        assert_eq!(oom_score_adj(&pod, &pod.containers[0], 1 << 30), 1000 - 31);
    }

    #[test]
    fn what_containers_hold_is_together_what_the_pod_requests() {
        let asking = |name: &str, cpu: &str| json!({"name": name, "resources": {"requests": {"cpu": cpu}}});
        let mut sidecar = asking("sidecar", "100m");
        sidecar["restartPolicy"] = json!("Always");
        let pod = spec(json!({"containers": [asking("one", "200m"), {"name": "two"}],
            "initContainers": [asking("init", "50m"), sidecar],
            "resources": {"requests": {"cpu": "1001m"}}, "overhead": {"cpu": "10m", "memory": "7"}}));
        let held = |place: &Container| held_requests(&pod, place);
        let init = pod.init_containers.as_ref().unwrap();
        assert_eq!(held(&init[0]).cpu_millis, 1011);
        let together: Vec<i64> = init[1..].iter().chain(&pod.containers).map(|one| held(one).cpu_millis).collect();
        assert_eq!(together, [100, 200 + 356, 355]);
        assert_eq!([held(&pod.containers[0]).memory_bytes, held(&pod.containers[1]).memory_bytes], [4, 3]);
        let debugger: Container = serde_json::from_value(json!({"name": "debugger"})).unwrap();
        assert_eq!(held(&debugger).cpu_millis, 0);
        let plain = spec(
            json!({"containers": [asking("one", "200m"), {"name": "two"}], "initContainers": [asking("init", "1")]}),
        );
        assert_eq!(held_requests(&plain, &plain.containers[0]).cpu_millis, 200);
        assert_eq!(held_requests(&plain, &plain.containers[1]).cpu_millis, 0);
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
        let node =
            PodAmounts { cpu_millis: 2000, memory_bytes: 1 << 30, storage_bytes: 4 << 20, ..PodAmounts::default() };
        let quantity = |text: &str| ApiQuantity(text.into());
        let of = |index: usize, resource: &str, divisor: Option<&str>| {
            field(&pod.containers[index], resource, divisor.map(quantity).as_ref(), node).unwrap()
        };
        assert_eq!(of(0, "limits.cpu", None), "1");
        assert_eq!(of(0, "limits.cpu", Some("1m")), "250");
        assert_eq!(of(0, "requests.memory", Some("1Mi")), "64");
        assert_eq!(of(1, "limits.cpu", None), "2");
        assert_eq!(of(1, "limits.memory", None), "1073741824");
        assert_eq!(of(1, "limits.ephemeral-storage", Some("1Mi")), "4");
        assert_eq!(of(1, "requests.cpu", None), "0");
    }
}
