//! What billing learns of containers and of pods' networks: the hooks that the worker calls, free of any knowledge of what is done with them.

use crate::pod::NETWORK;
use async_trait::async_trait;
use carob_network::{Traffic, TrafficCounters};
use carob_sandbox::{CgroupPaths, RecoveredPod};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// Called for every container that runs. `started` may be called again for one that a restarted worker found running, and
/// `exited` again for one whose removal was interrupted: both carry the same container id then.
#[async_trait]
pub trait ContainerObserver: Send + Sync {
    /// The container's program runs.
    async fn started(&self, container: &ObservedContainer);
    /// A running container asks for something else from now on. What it was given is shown only after this returned.
    async fn resized(&self, container: &ObservedContainer, requests: ContainerRequests);
    /// The container has ended. The worker removes its cgroup only after this returned.
    async fn exited(&self, container: &ObservedContainer, end: &ContainerEnd);
    /// A pod has a network of its own. What it receives and sends is counted there; it may be told again, like a start.
    async fn network_started(&self, network: &ObservedNetwork, counters: &TrafficCounters);
    /// The pod has left its network, where it had received and sent this, as far as is known. May be told again, like an
    /// end.
    async fn network_ended(&self, network: &ObservedNetwork, last: Option<Traffic>);
}

/// A pod's network: it belongs to a sandbox, of which a pod may have several, one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedNetwork {
    /// Unique for ever.
    pub id: String,
    /// uid of the pod.
    pub pod_uid: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Labels of the pod when its network was made.
    pub labels: BTreeMap<String, String>,
    /// The node.
    pub node: String,
    /// The pod's address, under which it is counted.
    pub address: Ipv4Addr,
    /// When the pod got it.
    pub started_at: Timestamp,
}

impl ObservedNetwork {
    /// That a pod gets now.
    pub(crate) fn of(pod: &Pod, node: &str, address: Ipv4Addr) -> Self {
        let started_at = Timestamp::now();
        let pod_uid = pod.metadata.uid.clone().unwrap_or_default();
        Self {
            id: format!("network-{pod_uid}-{}", started_at.as_nanosecond()),
            pod_uid,
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            pod: pod.metadata.name.clone().unwrap_or_default(),
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            node: node.to_owned(),
            address,
            started_at,
        }
    }

    /// That of a pod which was there before this process.
    pub(crate) fn recovered(pod: &RecoveredPod) -> Option<Self> {
        serde_json::from_str(pod.annotations.get(NETWORK)?).ok()
    }

    /// What was counted of it, as far as is known.
    pub(crate) fn last(&self, counters: &TrafficCounters) -> Option<Traffic> {
        counters.of(self.address).unwrap_or_else(|error| {
            tracing::error!(%error, pod = self.pod, "what a pod received and sent last can't be read");
            None
        })
    }
}

/// Who a container is and where its counters are.
#[derive(Debug, Clone)]
pub struct ObservedContainer {
    /// 64 hexadecimal digits; unique for ever.
    pub container_id: String,
    /// uid of the pod.
    pub pod_uid: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Name of the container in the pod's spec.
    pub container: String,
    /// 0 for the first start, then one more for each restart.
    pub attempt: u32,
    /// Labels of the pod when the container started.
    pub labels: BTreeMap<String, String>,
    /// The node.
    pub node: String,
    /// When the program was started.
    pub started_at: Timestamp,
    /// What the container asked for when it started.
    pub requests: ContainerRequests,
    /// Where the kernel counts what it uses.
    pub cgroup: CgroupPaths,
}

/// What of an observed container doesn't depend on how it runs; kept beside its sandbox, so that its end can be told also
/// when nothing else knows it any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub pod_uid: String,
    pub namespace: String,
    pub pod: String,
    pub container: String,
    pub attempt: u32,
    pub labels: BTreeMap<String, String>,
    pub node: String,
    pub requests: ContainerRequests,
}

impl Identity {
    /// The container, as it was started.
    pub fn observed(self, container_id: &str, started_at: Timestamp, cgroup: CgroupPaths) -> ObservedContainer {
        let Self { pod_uid, namespace, pod, container, attempt, labels, node, requests } = self;
        let container_id = container_id.to_owned();
        ObservedContainer {
            container_id,
            pod_uid,
            namespace,
            pod,
            container,
            attempt,
            labels,
            node,
            started_at,
            requests,
            cgroup,
        }
    }
}

/// `resources.requests` of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRequests {
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
}

/// How a container ended, with its last counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContainerEnd {
    /// When the kernel reported the exit.
    pub finished_at: Timestamp,
    /// Exit code; 128 + n for a signal.
    pub exit_code: i32,
    /// True when nobody saw it end: `finished_at` is when it was found, and the counters are what was left, zeros perhaps.
    pub unknown: bool,
    /// CPU time in nanoseconds over its whole life.
    pub cpu_ns: u64,
    /// The most memory it held, in bytes.
    pub memory_peak_bytes: u64,
}

/// An observer that notes nothing, for workers without billing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unobserved;

#[async_trait]
impl ContainerObserver for Unobserved {
    async fn started(&self, _container: &ObservedContainer) {}
    async fn resized(&self, _container: &ObservedContainer, _requests: ContainerRequests) {}
    async fn exited(&self, _container: &ObservedContainer, _end: &ContainerEnd) {}
    async fn network_started(&self, _network: &ObservedNetwork, _counters: &TrafficCounters) {}
    async fn network_ended(&self, _network: &ObservedNetwork, _last: Option<Traffic>) {}
}
