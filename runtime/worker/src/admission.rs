//! Whether a bound pod fits this node: the last check before it starts, since schedulers race and users set nodeName.

use crate::container::huge_pages::HugePages;
use crate::container::resources::{PodAmounts, pod_requests};
use carob_api::host_port::{HostPort, host_ports};
use k8s_openapi::api::core::v1::PodSpec;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// The amounts that pods on this node share, and who holds them.
pub(crate) struct Admission {
    allocatable: Allocatable,
    held: Mutex<HashMap<String, Held>>,
}

/// What one pod holds.
struct Held {
    amounts: PodAmounts,
    ports: Vec<HostPort>,
}

impl Held {
    fn by(spec: &PodSpec) -> Self {
        Self { amounts: pod_requests(spec), ports: host_ports(spec) }
    }
}

/// What pods may hold together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allocatable {
    /// Thousandths of a CPU.
    pub cpu_millis: i64,
    /// Bytes.
    pub memory_bytes: i64,
    /// Bytes of disk.
    pub storage_bytes: i64,
    /// Number of pods.
    pub pods: i64,
    /// Bytes in huge pages.
    pub huge_pages: HugePages,
}

/// Why a pod was refused: `reason` and `message` of its status.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub reason: &'static str,
    pub message: String,
}

impl Admission {
    pub fn new(allocatable: Allocatable) -> Self {
        Self { allocatable, held: Mutex::default() }
    }

    /// What pods may hold together.
    pub fn allocatable(&self) -> Allocatable {
        self.allocatable
    }

    /// Takes what the pod asks for, or says what is short. A pod that already holds its share keeps it.
    pub fn admit(&self, uid: &str, spec: &PodSpec) -> Result<(), Refusal> {
        let wanted = Held::by(spec);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.contains_key(uid) {
            return Ok(());
        }
        self.check(wanted.amounts, held.values())?;
        if held
            .values()
            .flat_map(|other| &other.ports)
            .any(|taken| wanted.ports.iter().any(|port| port.collides(taken)))
        {
            let message = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
            return Err(Refusal { reason: "NodePorts", message: message.to_owned() });
        }
        held.insert(uid.to_owned(), wanted);
        Ok(())
    }

    /// Takes these requests instead of those that the pod holds, or says which resource is short, and all stays as it was.
    pub fn resize(&self, uid: &str, spec: &PodSpec) -> Result<(), Refusal> {
        let wanted = Held::by(spec);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        self.check(wanted.amounts, held.iter().filter(|(other, _)| *other != uid).map(|(_, held)| held))?;
        held.insert(uid.to_owned(), wanted);
        Ok(())
    }

    /// Why the pod could not run here even alone; `None` when it could.
    pub fn infeasible(&self, spec: &PodSpec) -> Option<String> {
        let wanted = pod_requests(spec);
        let checks = [
            ("cpu", wanted.cpu_millis, self.allocatable.cpu_millis),
            ("memory", wanted.memory_bytes, self.allocatable.memory_bytes),
        ];
        checks.into_iter().find(|(_, requested, capacity)| requested > capacity).map(
            |(resource, requested, capacity)| {
                format!("Node didn't have enough capacity: {resource}, requested: {requested}, capacity: {capacity}")
            },
        )
    }

    /// Whether `wanted` fits beside the others.
    fn check<'a>(&self, wanted: PodAmounts, others: impl Iterator<Item = &'a Held>) -> Result<(), Refusal> {
        let mut count: i64 = 0;
        let used = others.inspect(|_| count += 1).fold(PodAmounts::default(), |sum, pod| PodAmounts {
            cpu_millis: sum.cpu_millis.saturating_add(pod.amounts.cpu_millis),
            memory_bytes: sum.memory_bytes.saturating_add(pod.amounts.memory_bytes),
            storage_bytes: sum.storage_bytes.saturating_add(pod.amounts.storage_bytes),
            huge_pages: sum.huge_pages.with(pod.amounts.huge_pages, i64::saturating_add),
        });
        let whole = self.allocatable;
        let checks = [
            ("OutOfpods", "pods", 1, count, whole.pods),
            ("OutOfcpu", "cpu", wanted.cpu_millis, used.cpu_millis, whole.cpu_millis),
            ("OutOfmemory", "memory", wanted.memory_bytes, used.memory_bytes, whole.memory_bytes),
            (
                "OutOfephemeral-storage",
                "ephemeral-storage",
                wanted.storage_bytes,
                used.storage_bytes,
                whole.storage_bytes,
            ),
        ];
        let huge = wanted.huge_pages.iter().map(|(size, bytes)| {
            (size.refusal, size.resource, bytes, used.huge_pages.of_size(size), whole.huge_pages.of_size(size))
        });
        for (reason, resource, requested, used, capacity) in checks.into_iter().chain(huge) {
            if requested > 0 && used.saturating_add(requested) > capacity {
                let message = format!(
                    "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
                );
                return Err(Refusal { reason, message });
            }
        }
        Ok(())
    }

    /// Takes the pod's requests without asking: it runs already.
    pub fn readmit(&self, uid: &str, spec: &PodSpec) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned(), Held::by(spec));
    }

    /// Gives back what the pod held.
    pub fn release(&self, uid: &str) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(cpu: &str) -> PodSpec {
        serde_json::from_value(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]})).unwrap()
    }

    #[test]
    fn a_pod_that_does_not_fit_is_refused_with_the_kubelets_reason_until_room_appears() {
        let admission = Admission::new(Allocatable {
            cpu_millis: 1000,
            memory_bytes: 1 << 30,
            storage_bytes: 1 << 30,
            pods: 10,
            huge_pages: HugePages::default(),
        });
        admission.admit("a", &spec("600m")).unwrap();
        let refusal = admission.admit("b", &spec("500m")).unwrap_err();
        assert_eq!(refusal.reason, "OutOfcpu");
        assert_eq!(refusal.message, "Node didn't have enough resource: cpu, requested: 500, used: 600, capacity: 1000");
        admission.admit("a", &spec("600m")).unwrap();
        admission.release("a");
        admission.admit("b", &spec("500m")).unwrap();
    }

    #[test]
    fn no_amount_is_so_large_that_it_fits() {
        let allocatable = Allocatable {
            cpu_millis: 1000,
            memory_bytes: 1 << 30,
            pods: 10,
            storage_bytes: 1 << 30,
            huge_pages: HugePages::default(),
        };
        let admission = Admission::new(allocatable);
        let all = |amount: &str| -> PodSpec {
            let amounts = json!({"requests": {"memory": amount}});
            serde_json::from_value(json!({"overhead": {"memory": amount}, "containers": [
                {"name": "c", "resources": amounts}, {"name": "d", "resources": amounts}]}))
            .unwrap()
        };
        admission.admit("small", &spec("1m")).unwrap();
        admission.readmit("there", &all("9223372036854775807"));
        for amount in ["9223372036854775807", "1Mi"] {
            assert_eq!(admission.admit("late", &all(amount)).unwrap_err().reason, "OutOfmemory", "{amount}");
        }
    }

    #[test]
    fn a_resize_counts_the_others_alone_and_changes_nothing_when_refused() {
        let admission = Admission::new(Allocatable {
            cpu_millis: 1000,
            memory_bytes: 1 << 30,
            storage_bytes: 1 << 30,
            pods: 2,
            huge_pages: HugePages::default(),
        });
        admission.admit("a", &spec("600m")).unwrap();
        admission.admit("b", &spec("300m")).unwrap();
        admission.resize("a", &spec("700m")).unwrap();
        let refusal = admission.resize("b", &spec("400m")).unwrap_err();
        assert_eq!(refusal.message, "Node didn't have enough resource: cpu, requested: 400, used: 700, capacity: 1000");
        admission.resize("a", &spec("650m")).unwrap();
        admission.resize("b", &spec("350m")).unwrap();
        assert_eq!(
            admission.infeasible(&spec("2")).unwrap(),
            "Node didn't have enough capacity: cpu, requested: 2000, capacity: 1000"
        );
        assert_eq!(admission.infeasible(&spec("1")), None);
    }

    #[test]
    fn a_port_of_the_machine_is_one_pods() {
        let admission = Admission::new(Allocatable {
            cpu_millis: 1000,
            memory_bytes: 1 << 30,
            storage_bytes: 1 << 30,
            pods: 3,
            huge_pages: HugePages::default(),
        });
        let spec = |port: u16| {
            let ports = json!([{"containerPort": 80, "hostPort": port, "protocol": "TCP"}]);
            serde_json::from_value(json!({"containers": [{"name": "c", "ports": ports}]})).unwrap()
        };
        admission.admit("a", &spec(80)).unwrap();
        assert_eq!(admission.admit("b", &spec(80)).unwrap_err().reason, "NodePorts");
        admission.admit("b", &spec(81)).unwrap();
        admission.release("a");
        admission.admit("c", &spec(80)).unwrap();
    }

    #[test]
    fn the_number_of_pods_is_a_limit_of_its_own() {
        let admission = Admission::new(Allocatable {
            cpu_millis: 1000,
            memory_bytes: 1 << 30,
            storage_bytes: 1 << 30,
            pods: 1,
            huge_pages: HugePages::default(),
        });
        admission.admit("a", &spec("0")).unwrap();
        assert_eq!(admission.admit("b", &spec("0")).unwrap_err().reason, "OutOfpods");
    }
}
