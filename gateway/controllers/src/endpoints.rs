//! From Services to the addresses behind them: what EndpointSlices and Endpoints have in common.

pub(crate) mod legacy;
pub(crate) mod mirror;
pub(crate) mod slices;

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::cluster::Cluster;
use crate::informer::Key;
use crate::ownership::Selector;
use crate::pod_control::{phase, ready_since};
use crate::queue::Queue;

/// On slices and Endpoints: who keeps them.
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// On slices: whose they are.
const SERVICE: &str = "kubernetes.io/service-name";
/// On those of Services without an address of their own.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// When the last of the pods behind changed.
const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// A change of a Service or of a pod that it selects leads to a look at the Service.
fn listen(cluster: &Cluster, queue: &Queue<Key>) {
    crate::controller::each(&cluster.services, queue);
    let (services, queue) = (cluster.services.clone(), queue.clone());
    cluster.pods.on_change(move |change| {
        let facts = |pod: &Arc<Pod>| {
            let (meta, spec, status) =
                (&pod.metadata, pod.spec.clone().unwrap_or_default(), pod.status.clone().unwrap_or_default());
            let ready = ready_since(pod).is_some();
            let ending = meta.deletion_timestamp.is_some();
            (meta.labels.clone(), ending, spec.node_name, status.phase, status.pod_ips, ready)
        };
        if change.old.map(facts) == change.new.map(facts) {
            return;
        }
        for pod in [change.old, change.new].into_iter().flatten() {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let selects = |service: &Service| selector(service).is_some_and(|known| known.matches(&pod.metadata));
            services.list_in(namespace, selects).iter().for_each(|service| queue.add(Key::of(&**service)));
        }
    });
}

/// Which pods are behind a Service; none if somebody else says so, or there are none by its nature.
fn selector(service: &Service) -> Option<Selector> {
    let spec = service.spec.as_ref()?;
    let labels = spec.selector.clone().filter(|labels| !labels.is_empty())?;
    (spec.type_.as_deref() != Some("ExternalName")).then(|| Selector::of_labels(labels))
}

fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

fn publishes_not_ready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses) == Some(true)
}

/// The pods behind a Service that have an address, and will not lose it for having ended.
fn pods(cluster: &Cluster, service: &Service, selector: &Selector) -> Vec<Arc<Pod>> {
    let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
    let has_ended = |pod: &Pod| matches!(phase(pod), "Succeeded" | "Failed");
    cluster
        .pods
        .list_in(namespace, |pod| selector.matches(&pod.metadata) && !has_ended(pod) && !addresses(pod).is_empty())
}

fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let status = pod.status.clone().unwrap_or_default();
    let all = status.pod_ips.into_iter().flatten().map(|address| address.ip);
    let mut all: Vec<IpAddr> = all.filter_map(|text| text.parse().ok()).collect();
    if all.is_empty() {
        all.extend(status.pod_ip.and_then(|text| text.parse::<IpAddr>().ok()));
    }
    all
}

/// The number of a Service's port on a pod; none if the pod has no port of that name.
fn target_port(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match port.target_port.as_ref() {
        None | Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let sidecars = spec.init_containers.iter().flatten();
            let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
            let mut ports =
                spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let found = ports.find(|known| {
                known.name.as_ref() == Some(name) && known.protocol.as_deref().unwrap_or("TCP") == protocol
            });
            found.map(|port| port.container_port)
        }
    }
}

fn target(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// The name by which a headless Service's DNS knows a pod.
fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let hostname = spec.hostname.clone().filter(|name| !name.is_empty())?;
    (spec.subdomain == service.metadata.name && pod.metadata.namespace == service.metadata.namespace)
        .then_some(hostname)
}
