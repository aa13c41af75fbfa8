//! Endpoints, the older form: one object per Service, addresses grouped by the ports that they have.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints as Object};
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};

use super::{HEADLESS, hostname, is_headless, publishes_not_ready, selector, target, target_port};
use crate::cluster::Cluster;
use crate::controller::{Controller, Setup};
use crate::events::Voice;
use crate::informer::Key;
use crate::ownership::is_terminating;
use crate::pod_control::{message, ready_since};
use crate::queue::{Again, Queue};
use crate::replica_set::tolerate_gone;

/// The label of those that this controller keeps.
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
pub(super) const MANAGER: &str = "endpoint-controller";
/// More addresses are left out.
const MOST: usize = 1000;
/// Says that some were.
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";

pub(crate) struct Endpoints {
    cluster: Cluster,
    voice: Voice,
}

impl Controller for Endpoints {
    type Item = Key;
    const NAME: &'static str = "endpoint-controller";

    fn new(setup: &Setup<'_>) -> Self {
        Self { cluster: setup.cluster.clone(), voice: setup.voice.clone() }
    }

    fn listen(self: &Arc<Self>, _: &Setup<'_>, queue: &Queue<Key>) {
        super::listen(&self.cluster, queue);
        let items = queue.clone();
        self.cluster.endpoints.on_change(move |change| {
            if let (Some(gone), None) = (change.old, change.new) {
                items.add(Key::of(&**gone));
            }
        });
    }

    async fn reconcile(&self, key: Key) -> Result<Again, kube::Error> {
        let api: Api<Object> = Api::namespaced(self.cluster.client.clone(), &key.namespace);
        let known = self.cluster.endpoints.get(&key);
        let Some(service) = self.cluster.services.get(&key) else {
            if known.is_some_and(|known| is_managed(&known)) {
                tolerate_gone(api.delete(&key.name, &DeleteParams::default()).await.map(|_| ()))?;
            }
            return Ok(None);
        };
        let Some(selector) = selector(&service) else { return Ok(None) };
        let mut labels: BTreeMap<String, String> = service.metadata.labels.clone().unwrap_or_default();
        labels.remove(HEADLESS);
        if is_headless(&service) {
            labels.insert(HEADLESS.to_owned(), String::new());
        }
        labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
        let (subsets, truncated) = self.subsets(&service, &selector);
        let base = known.as_deref().cloned().unwrap_or_default();
        let mut annotations = base.metadata.annotations.clone().unwrap_or_default();
        annotations.remove(OVER_CAPACITY);
        if truncated {
            annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
        }
        let wanted = Object {
            metadata: ObjectMeta {
                name: Some(key.name.clone()),
                namespace: Some(key.namespace.clone()),
                labels: Some(labels),
                annotations: Some(annotations).filter(|annotations| !annotations.is_empty()),
                ..base.metadata.clone()
            },
            subsets: Some(subsets).filter(|subsets| !subsets.is_empty()),
        };
        if known.as_deref() == Some(&wanted) {
            return Ok(None);
        }
        let outcome = match &known {
            Some(_) => api.replace(&key.name, &PostParams::default(), &wanted).await,
            None => api.create(&PostParams::default(), &wanted).await,
        };
        match outcome {
            Ok(written) if known.is_some() => self.cluster.endpoints.learn(written),
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 || is_terminating(&status) => {}
            Err(kube::Error::Api(status)) if status.code == 409 && known.is_none() => {}
            Err(error) => {
                let text = format!("Failed to update endpoint {}/{}: {}", key.namespace, key.name, message(&error));
                self.voice.warning(&*service, "FailedToUpdateEndpoint", text);
                return Err(error);
            }
        }
        Ok(None)
    }
}

impl Endpoints {
    fn subsets(
        &self,
        service: &k8s_openapi::api::core::v1::Service,
        selector: &crate::ownership::Selector,
    ) -> (Vec<EndpointSubset>, bool) {
        let six = service.spec.as_ref().and_then(|spec| spec.ip_families.as_ref()?.first().cloned()).as_deref()
            == Some("IPv6");
        // By the ports that addresses share.
        let mut groups: BTreeMap<Vec<String>, EndpointSubset> = BTreeMap::new();
        let pods = super::pods(&self.cluster, service, selector);
        let truncated = pods.len() > MOST;
        for pod in pods.iter().take(MOST) {
            let ending = pod.metadata.deletion_timestamp.is_some();
            if ending && !publishes_not_ready(service) {
                continue;
            }
            let Some(address) = super::addresses(pod).into_iter().find(|address| address.is_ipv6() == six) else {
                continue;
            };
            let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref()).into_iter().flatten();
            let has_ports = ports.clone().next().is_some();
            let mut ports: Vec<EndpointPort> = ports
                .filter_map(|port| {
                    Some(EndpointPort {
                        name: port.name.clone(),
                        port: target_port(port, pod)?,
                        protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                        app_protocol: port.app_protocol.clone(),
                    })
                })
                .collect();
            if has_ports && ports.is_empty() {
                continue;
            }
            ports.sort_by_key(|port| (port.name.clone(), port.port));
            let shape: Vec<String> = ports.iter().map(|port| format!("{port:?}")).collect();
            let address = EndpointAddress {
                ip: address.to_string(),
                hostname: hostname(service, pod),
                node_name: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).filter(|name| !name.is_empty()),
                target_ref: Some(target(pod)),
            };
            let group = groups.entry(shape).or_insert_with(|| EndpointSubset {
                ports: Some(ports).filter(|ports| !ports.is_empty()),
                ..EndpointSubset::default()
            });
            let list = if ready_since(pod).is_some() || publishes_not_ready(service) {
                &mut group.addresses
            } else {
                &mut group.not_ready_addresses
            };
            list.get_or_insert_default().push(address);
        }
        for group in groups.values_mut() {
            for list in [&mut group.addresses, &mut group.not_ready_addresses].into_iter().flatten() {
                list.sort_by(|one, other| one.ip.cmp(&other.ip));
            }
        }
        (groups.into_values().collect(), truncated)
    }
}

/// Whether Endpoints were made by this controller.
pub(super) fn is_managed(object: &Object) -> bool {
    object.metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|known| known == MANAGER)
}
