//! EndpointSlices of Services with a selector.
//!
//! The endpoints that there should be are laid out anew at each look, in an order that changes little, and compared with
//! the slices that are there: each is kept with what of it is still right, filled up, and only then are new ones made.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};

use super::{
    HEADLESS, MANAGED_BY, SERVICE, TRIGGER, addresses, hostname, is_headless, publishes_not_ready, selector, target,
    target_port,
};
use crate::cluster::Cluster;
use crate::controller::{Controller, Setup};
use crate::events::Voice;
use crate::informer::Key;
use crate::ownership::{self, is_terminating};
use crate::pod_control::{message, ready_since};
use crate::queue::{Again, Queue};
use crate::replica_set::tolerate_gone;

/// Who keeps these slices.
pub(super) const MANAGER: &str = "endpointslice-controller.k8s.io";
/// Endpoints in one slice.
pub(super) const MOST: usize = 100;
/// The zone of a node.
const ZONE: &str = "topology.kubernetes.io/zone";

pub(crate) struct Slices {
    cluster: Cluster,
    voice: Voice,
}

/// What slices may share: the family of their addresses and their ports.
pub(super) type Shape = (String, Vec<String>);

impl Controller for Slices {
    type Item = Key;
    const NAME: &'static str = "endpointslice-controller";
    const VOICE: &'static str = "endpoint-slice-controller";

    fn new(setup: &Setup<'_>) -> Self {
        Self { cluster: setup.cluster.clone(), voice: setup.voice.clone() }
    }

    fn listen(self: &Arc<Self>, _: &Setup<'_>, queue: &Queue<Key>) {
        super::listen(&self.cluster, queue);
        let items = queue.clone();
        self.cluster.endpoint_slices.on_change(move |change| {
            for slice in [change.old, change.new].into_iter().flatten().filter(|slice| is_managed_by(slice, MANAGER)) {
                items.extend_of(slice);
            }
        });
        let (services, items) = (self.cluster.services.clone(), queue.clone());
        self.cluster.nodes.on_change(move |change| {
            let zone = |node: &Arc<Node>| node.metadata.labels.as_ref().and_then(|labels| labels.get(ZONE)).cloned();
            if change.old.map(zone) != change.new.map(zone) {
                services
                    .list(|service| selector(service).is_some())
                    .iter()
                    .for_each(|service| items.add(Key::of(&**service)));
            }
        });
    }

    async fn reconcile(&self, key: Key) -> Result<Again, kube::Error> {
        let Some(service) = self.cluster.services.get(&key) else { return Ok(None) };
        let Some(selector) = selector(&service) else {
            // Without a selector its slices are whoever's: those that this controller made are in nobody's way.
            return Ok(None);
        };
        if service.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let pods = super::pods(&self.cluster, &service, &selector);
        let mut wanted: BTreeMap<Shape, (Vec<EndpointPort>, Vec<Endpoint>)> = BTreeMap::new();
        for family in families(&service) {
            let others = wanted.len();
            for pod in &pods {
                let Some(address) = addresses(pod).into_iter().find(|address| address.is_ipv6() == (family == "IPv6"))
                else {
                    continue;
                };
                let Some(endpoint) = self.endpoint(&service, pod, address.to_string()) else { continue };
                let ports = ports(&service, pod);
                let shape = (family.clone(), ports.iter().map(port_text).collect());
                wanted.entry(shape).or_insert_with(|| (ports, Vec::new())).1.push(endpoint);
            }
            if wanted.len() == others {
                // A slice without endpoints says that somebody has looked.
                wanted.insert((family, Vec::new()), (Vec::new(), Vec::new()));
            }
        }
        let mut labels: BTreeMap<String, String> = service.metadata.labels.clone().unwrap_or_default();
        labels.remove(HEADLESS);
        if is_headless(&service) {
            labels.insert(HEADLESS.to_owned(), String::new());
        }
        labels.insert(SERVICE.to_owned(), key.name.clone());
        labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
        let annotations = service.metadata.annotations.as_ref().and_then(|notes| notes.get(TRIGGER).cloned());
        let meta = ObjectMeta {
            generate_name: Some(format!("{}-", key.name)),
            namespace: Some(key.namespace.clone()),
            labels: Some(labels),
            annotations: annotations.map(|at| BTreeMap::from([(TRIGGER.to_owned(), at)])),
            owner_references: Some(vec![ownership::reference(&*service)]),
            ..ObjectMeta::default()
        };
        let known = self.cluster.endpoint_slices.list_in(&key.namespace, |slice| {
            is_managed_by(slice, MANAGER) && service_of(slice) == Some(key.name.as_str())
        });
        if let Err(error) = write(&self.cluster, &meta, &known, wanted).await {
            let text = format!(
                "Error updating Endpoint Slices for Service {}/{}: {}",
                key.namespace,
                key.name,
                message(&error)
            );
            self.voice.warning(&*service, "FailedToUpdateEndpointSlices", text);
            return Err(error);
        }
        Ok(None)
    }
}

impl Slices {
    fn endpoint(&self, service: &Service, pod: &Pod, address: String) -> Option<Endpoint> {
        let ending = pod.metadata.deletion_timestamp.is_some();
        let serving = ready_since(pod).is_some();
        let published = publishes_not_ready(service);
        let node_name = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).filter(|name| !name.is_empty());
        let node = node_name.as_ref().and_then(|name| self.cluster.nodes.get(&Key::new("", name)));
        // The node of an address that everybody may use is known, or the address would be nowhere.
        if node.is_none() && !published {
            return None;
        }
        let zone = node.and_then(|node| node.metadata.labels.as_ref()?.get(ZONE).cloned());
        let near = service.spec.as_ref().and_then(|spec| spec.traffic_distribution.as_deref());
        let ready = published || serving && !ending;
        let for_zones = match near {
            Some("PreferClose" | "PreferSameZone" | "PreferSameNode") => {
                zone.clone().map(|name| vec![ForZone { name }])
            }
            _ => None,
        };
        // Where none is on the client's node, one in its zone is the next best.
        let for_nodes = match near {
            Some("PreferSameNode") => node_name.clone().map(|name| vec![ForNode { name }]),
            _ => None,
        };
        let hinted = ready && (for_zones.is_some() || for_nodes.is_some());
        let hints = hinted.then_some(EndpointHints { for_nodes, for_zones });
        Some(Endpoint {
            addresses: vec![address],
            conditions: Some(EndpointConditions {
                ready: Some(ready),
                serving: Some(serving),
                terminating: Some(ending),
            }),
            hostname: hostname(service, pod),
            node_name,
            target_ref: Some(target(pod)),
            zone,
            hints,
            deprecated_topology: None,
        })
    }
}

/// Families of addresses that a Service has.
fn families(service: &Service) -> Vec<String> {
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.clone()).unwrap_or_default();
    if families.is_empty() { vec!["IPv4".to_owned()] } else { families }
}

fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref()).into_iter().flatten();
    let mut ports: Vec<EndpointPort> = ports
        .filter_map(|port| {
            Some(EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                port: Some(target_port(port, pod)?),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect();
    ports.sort_by_key(port_text);
    ports
}

pub(super) fn port_text(port: &EndpointPort) -> String {
    format!("{:?} {:?} {:?} {:?}", port.name, port.protocol, port.port, port.app_protocol)
}

pub(super) fn is_managed_by(slice: &EndpointSlice, manager: &str) -> bool {
    slice.metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|known| known == manager)
}

pub(super) fn service_of(slice: &EndpointSlice) -> Option<&str> {
    slice.metadata.labels.as_ref()?.get(SERVICE).map(String::as_str)
}

/// What tells one endpoint from another.
fn identity(endpoint: &Endpoint) -> (Vec<String>, Option<String>) {
    (endpoint.addresses.clone(), endpoint.target_ref.as_ref().and_then(|target| target.uid.clone()))
}

/// What has to be done so that the slices hold what is wanted.
#[derive(Debug, Default)]
struct Changes {
    create: Vec<EndpointSlice>,
    replace: Vec<EndpointSlice>,
    delete: Vec<Arc<EndpointSlice>>,
}

fn changes(
    meta: &ObjectMeta,
    known: &[Arc<EndpointSlice>],
    wanted: BTreeMap<Shape, (Vec<EndpointPort>, Vec<Endpoint>)>,
) -> Changes {
    let mut changes = Changes::default();
    let mut left: Vec<&Arc<EndpointSlice>> = known.iter().collect();
    left.sort_by_key(|slice| slice.metadata.name.clone());
    for ((family, texts), (ports, endpoints)) in wanted {
        let same_shape = |slice: &EndpointSlice| {
            let mut known: Vec<String> = slice.ports.iter().flatten().map(port_text).collect();
            known.sort();
            slice.address_type == family && known == texts
        };
        let (own, others): (Vec<_>, Vec<_>) = left.into_iter().partition(|slice| same_shape(slice));
        left = others;
        let mut new: BTreeMap<_, Endpoint> = endpoints.into_iter().map(|one| (identity(&one), one)).collect();
        // Each slice keeps those of its endpoints that are still wanted, as they are now.
        let mut kept: Vec<(&Arc<EndpointSlice>, Vec<Endpoint>)> = Vec::new();
        for slice in own {
            let still = slice.endpoints.iter().filter_map(|known| new.remove(&identity(known))).collect();
            kept.push((slice, still));
        }
        let mut new = new.into_values();
        // The fullest are filled first, so that few slices change.
        kept.sort_by_key(|(_, endpoints)| std::cmp::Reverse(endpoints.len()));
        for (slice, mut endpoints) in kept {
            endpoints.extend(new.by_ref().take(MOST.saturating_sub(endpoints.len())));
            if endpoints.is_empty() && (new.len() == 0) && !texts.is_empty() {
                changes.delete.push(Arc::clone(slice));
                continue;
            }
            let mut now = (**slice).clone();
            now.endpoints = endpoints;
            now.metadata.labels.clone_from(&meta.labels);
            if meta.annotations.is_some() {
                now.metadata.annotations.clone_from(&meta.annotations);
            }
            now.metadata.owner_references.clone_from(&meta.owner_references);
            if now != **slice {
                changes.replace.push(now);
            }
        }
        let fresh: Vec<Endpoint> = new.collect();
        let has_any = known.iter().any(|slice| same_shape(slice));
        if fresh.is_empty() && !has_any {
            changes.create.push(slice(meta, &family, &ports, Vec::new()));
        }
        for chunk in fresh.chunks(MOST) {
            changes.create.push(slice(meta, &family, &ports, chunk.to_vec()));
        }
    }
    changes.delete.extend(left.into_iter().cloned());
    changes
}

fn slice(meta: &ObjectMeta, family: &str, ports: &[EndpointPort], endpoints: Vec<Endpoint>) -> EndpointSlice {
    EndpointSlice { metadata: meta.clone(), address_type: family.to_owned(), ports: Some(ports.to_vec()), endpoints }
}

/// Writes the slices that should be there.
pub(super) async fn write(
    cluster: &Cluster,
    meta: &ObjectMeta,
    known: &[Arc<EndpointSlice>],
    wanted: BTreeMap<Shape, (Vec<EndpointPort>, Vec<Endpoint>)>,
) -> Result<(), kube::Error> {
    let changes = changes(meta, known, wanted);
    let api: Api<EndpointSlice> =
        Api::namespaced(cluster.client.clone(), meta.namespace.as_deref().unwrap_or_default());
    let (api, params) = (&api, &PostParams::default());
    try_join_all(changes.create.iter().map(|slice| async move {
        match api.create(params, slice).await {
            Err(kube::Error::Api(status)) if is_terminating(&status) => Ok(()),
            Err(error) => Err(error),
            Ok(made) => {
                // The next look must know of it, or it would make another.
                cluster.endpoint_slices.put(made);
                Ok(())
            }
        }
    }))
    .await?;
    try_join_all(changes.replace.iter().map(|slice| async move {
        let name = slice.metadata.name.as_deref().unwrap_or_default();
        match api.replace(name, params, slice).await {
            Ok(written) => {
                cluster.endpoint_slices.learn(written);
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error),
        }
    }))
    .await?;
    let names: BTreeSet<&str> = changes.delete.iter().filter_map(|slice| slice.metadata.name.as_deref()).collect();
    try_join_all(
        names
            .into_iter()
            .map(|name| async move { tolerate_gone(api.delete(name, &DeleteParams::default()).await.map(|_| ())) }),
    )
    .await?;
    Ok(())
}

impl Queue<Key> {
    /// Asks for the Service of a slice to be looked at.
    fn extend_of(&self, slice: &EndpointSlice) {
        if let Some(service) = service_of(slice) {
            self.add(Key::new(slice.metadata.namespace.as_deref().unwrap_or_default(), service));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn endpoint(number: usize) -> Endpoint {
        Endpoint { addresses: vec![format!("10.0.{}.{}", number / 250, number % 250)], ..Endpoint::default() }
    }

    fn wanted(numbers: impl Iterator<Item = usize>) -> BTreeMap<Shape, (Vec<EndpointPort>, Vec<Endpoint>)> {
        let port: EndpointPort = serde_json::from_value(json!({"name": "h", "port": 80, "protocol": "TCP"})).unwrap();
        let shape = ("IPv4".to_owned(), vec![port_text(&port)]);
        BTreeMap::from([(shape, (vec![port], numbers.map(endpoint).collect()))])
    }

    fn laid_out(slices: Vec<EndpointSlice>) -> Vec<Arc<EndpointSlice>> {
        let named = |(number, mut slice): (usize, EndpointSlice)| {
            slice.metadata.name = Some(format!("s-{number}"));
            Arc::new(slice)
        };
        slices.into_iter().enumerate().map(named).collect()
    }

    #[test]
    fn no_slice_holds_more_than_a_hundred_and_few_slices_change() {
        let meta = ObjectMeta::default();
        let first = changes(&meta, &[], wanted(0..250)).create;
        assert_eq!(first.iter().map(|slice| slice.endpoints.len()).collect::<Vec<_>>(), [100, 100, 50]);
        let known = laid_out(first);
        let same = changes(&meta, &known, wanted(0..250));
        assert!(same.create.is_empty() && same.replace.is_empty() && same.delete.is_empty());
        // One goes, one comes: it takes the place that is left in one of them.
        let one = changes(&meta, &known, wanted((1..250).chain([300])));
        assert_eq!((one.create.len(), one.replace.len(), one.delete.len()), (0, 1, 0));
        let few = changes(&meta, &known, wanted(0..10));
        assert!(few.create.is_empty());
        assert_eq!(few.replace.iter().map(|slice| slice.endpoints.len()).sum::<usize>(), 10);
    }

    #[test]
    fn slices_of_a_family_that_is_no_longer_wanted_go() {
        let meta = ObjectMeta::default();
        let mut both = wanted(0..3);
        both.insert(("IPv6".to_owned(), Vec::new()), (Vec::new(), Vec::new()));
        let first = changes(&meta, &[], both).create;
        assert_eq!(first.iter().map(|slice| &*slice.address_type).collect::<Vec<_>>(), ["IPv4", "IPv6"]);
        let after = changes(&meta, &laid_out(first), wanted(0..3));
        assert!(after.create.is_empty() && after.replace.is_empty());
        assert_eq!(after.delete.iter().map(|slice| &*slice.address_type).collect::<Vec<_>>(), ["IPv6"]);
    }

    #[test]
    fn without_pods_one_empty_slice_remains() {
        let meta = ObjectMeta::default();
        let nothing = || BTreeMap::from([(("IPv4".to_owned(), Vec::new()), (Vec::new(), Vec::new()))]);
        let first = changes(&meta, &[], nothing()).create;
        assert_eq!(first.len(), 1);
        let again = changes(&meta, &laid_out(first), nothing());
        assert!(again.create.is_empty() && again.delete.is_empty());
    }
}
