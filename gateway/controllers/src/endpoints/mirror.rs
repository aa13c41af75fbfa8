//! Endpoints that somebody wrote by hand, for a Service without selector, are repeated as EndpointSlices.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};
use kube::api::ObjectMeta;

use super::slices::{Shape, is_managed_by, port_text, service_of, write};
use super::{MANAGED_BY, SERVICE, legacy, selector};
use crate::cluster::Cluster;
use crate::controller::{self, Controller, Setup};
use crate::informer::Key;
use crate::ownership;
use crate::queue::{Again, Queue};

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
/// The label of Endpoints that are not to be repeated.
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// The annotation of objects that clients elect a leader with.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Addresses of one subset that are repeated.
const MOST: usize = 1000;

pub(crate) struct Mirror {
    cluster: Cluster,
}

impl Controller for Mirror {
    type Item = Key;
    const NAME: &'static str = "endpointslicemirroring-controller";
    const VOICE: &'static str = "endpoint-slice-mirroring-controller";

    fn new(setup: &Setup<'_>) -> Self {
        Self { cluster: setup.cluster.clone() }
    }

    fn listen(self: &Arc<Self>, _: &Setup<'_>, queue: &Queue<Key>) {
        controller::each(&self.cluster.services, queue);
        controller::each(&self.cluster.endpoints, queue);
        let items = queue.clone();
        self.cluster.endpoint_slices.on_change(move |change| {
            for slice in [change.old, change.new].into_iter().flatten().filter(|slice| is_managed_by(slice, MANAGER)) {
                if let Some(service) = service_of(slice) {
                    items.add(Key::new(slice.metadata.namespace.as_deref().unwrap_or_default(), service));
                }
            }
        });
    }

    async fn reconcile(&self, key: Key) -> Result<Again, kube::Error> {
        let service = self.cluster.services.get(&key).filter(|service| {
            let spec = service.spec.clone().unwrap_or_default();
            spec.type_.as_deref() != Some("ExternalName") && selector(service).is_none()
        });
        let written = self.cluster.endpoints.get(&key).filter(|endpoints| {
            let has = |map: &Option<BTreeMap<String, String>>, key: &str| {
                map.as_ref().is_some_and(|map| map.contains_key(key))
            };
            !has(&endpoints.metadata.labels, SKIP)
                && !has(&endpoints.metadata.annotations, LEADER)
                && !legacy::is_managed(endpoints)
        });
        let known = self.cluster.endpoint_slices.list_in(&key.namespace, |slice| {
            is_managed_by(slice, MANAGER) && service_of(slice) == Some(key.name.as_str())
        });
        let mut meta = ObjectMeta { namespace: Some(key.namespace.clone()), ..ObjectMeta::default() };
        let (Some(_), Some(endpoints)) = (service, written) else {
            write(&self.cluster, &meta, &known, BTreeMap::new()).await?;
            return Ok(None);
        };
        let mut labels: BTreeMap<String, String> = endpoints.metadata.labels.clone().unwrap_or_default();
        labels.insert(SERVICE.to_owned(), key.name.clone());
        labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
        meta.generate_name = Some(format!("{}-", key.name));
        meta.labels = Some(labels);
        let own =
            ["endpoints.kubernetes.io/last-change-trigger-time", "kubectl.kubernetes.io/last-applied-configuration"];
        let notes = endpoints.metadata.annotations.iter().flatten().filter(|(key, _)| !own.contains(&key.as_str()));
        let notes: BTreeMap<String, String> = notes.map(|(key, value)| (key.clone(), value.clone())).collect();
        meta.annotations = Some(notes).filter(|notes| !notes.is_empty());
        meta.owner_references = Some(vec![ownership::reference(&*endpoints)]);
        write(&self.cluster, &meta, &known, repeated(&endpoints)).await?;
        Ok(None)
    }
}

fn repeated(endpoints: &Endpoints) -> BTreeMap<Shape, (Vec<EndpointPort>, Vec<Endpoint>)> {
    let mut wanted: BTreeMap<Shape, (Vec<EndpointPort>, Vec<Endpoint>)> = BTreeMap::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports = subset.ports.iter().flatten().map(|port| EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
            port: Some(port.port),
            app_protocol: port.app_protocol.clone(),
        });
        let mut ports: Vec<EndpointPort> = ports.collect();
        ports.sort_by_key(port_text);
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let unready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        for (address, ready) in ready.chain(unready).take(MOST) {
            let Ok(ip) = address.ip.parse::<IpAddr>() else { continue };
            let family = if ip.is_ipv6() { "IPv6" } else { "IPv4" };
            let shape = (family.to_owned(), ports.iter().map(port_text).collect());
            wanted.entry(shape).or_insert_with(|| (ports.clone(), Vec::new())).1.push(endpoint(address, ready));
        }
    }
    wanted
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}
