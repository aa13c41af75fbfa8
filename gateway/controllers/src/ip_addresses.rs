//! Each address of a Service has an object of its own, an `IPAddress`, that says whose it is.
//!
//! The addresses themselves are chosen by the server, from the Services that there are. These objects tell of it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::{IPAddress, IPAddressSpec, ParentReference};
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams, Preconditions};

use crate::cluster::Cluster;
use crate::controller::{Controller, Setup};
use crate::informer::Key;
use crate::queue::{Again, Queue};
use crate::replica_set::tolerate_gone;

const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const ALLOCATOR: &str = "ipallocator.k8s.io";

pub(crate) struct Addresses {
    cluster: Cluster,
}

impl Controller for Addresses {
    /// An address.
    type Item = IpAddr;
    const NAME: &'static str = "service-ip-addresses";
    // In Kubernetes the server itself makes them.
    const USER: Option<&'static str> = Some("system:apiserver");
    const GROUPS: &'static [&'static str] = &["system:masters", "system:authenticated"];

    fn new(setup: &Setup<'_>) -> Self {
        Self { cluster: setup.cluster.clone() }
    }

    fn listen(self: &Arc<Self>, _: &Setup<'_>, queue: &Queue<IpAddr>) {
        let items = queue.clone();
        self.cluster.services.on_change(move |change| {
            let before: Vec<IpAddr> = change.old.map(|service| addresses(service)).unwrap_or_default();
            let after: Vec<IpAddr> = change.new.map(|service| addresses(service)).unwrap_or_default();
            before.iter().filter(|address| !after.contains(address)).for_each(|address| items.add(*address));
            after.iter().filter(|address| !before.contains(address)).for_each(|address| items.add(*address));
        });
        let items = queue.clone();
        self.cluster.ip_addresses.on_change(move |change| {
            let object = change.new.or(change.old).and_then(|object| object.metadata.name.as_deref()?.parse().ok());
            object.into_iter().for_each(|address| items.add(address));
        });
    }

    async fn reconcile(&self, address: IpAddr) -> Result<Again, kube::Error> {
        let owner = self.cluster.services.list(|service| addresses(service).contains(&address)).into_iter().next();
        let known = self.cluster.ip_addresses.get(&Key::new("", address.to_string()));
        let api: Api<IPAddress> = Api::all(self.cluster.client.clone());
        match (owner, known) {
            (Some(service), None) => match api.create(&PostParams::default(), &object(address, &service)).await {
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                outcome => drop(outcome?),
            },
            (owner, Some(known)) if is_ours(&known) => {
                let right = owner.is_some_and(|service| object(address, &service).spec == known.spec);
                if !right {
                    let only_this = Preconditions { uid: known.metadata.uid.clone(), resource_version: None };
                    let params = DeleteParams { preconditions: Some(only_this), ..DeleteParams::default() };
                    tolerate_gone(api.delete(&address.to_string(), &params).await.map(|_| ()))?;
                }
            }
            _ => {}
        }
        Ok(None)
    }
}

/// The addresses by which a Service is reached inside the cluster.
fn addresses(service: &Service) -> Vec<IpAddr> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let all = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let mut addresses: Vec<IpAddr> = all.filter_map(|text| text.parse().ok()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// Whether an object was made here, and not by somebody who keeps an address for himself.
fn is_ours(object: &IPAddress) -> bool {
    object.metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|by| by == ALLOCATOR)
}

fn object(address: IpAddr, service: &Service) -> IPAddress {
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let labels = [(FAMILY, family), (MANAGED_BY, ALLOCATOR)];
    IPAddress {
        metadata: ObjectMeta {
            name: Some(address.to_string()),
            labels: Some(
                labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into_iter().collect::<BTreeMap<_, _>>(),
            ),
            ..ObjectMeta::default()
        },
        spec: Some(IPAddressSpec {
            parent_ref: ParentReference {
                group: None,
                resource: "services".to_owned(),
                namespace: service.metadata.namespace.clone(),
                name: service.metadata.name.clone().unwrap_or_default(),
            },
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_address_says_whose_it_is() {
        let service: Service = serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "n"},
            "spec": {"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"]}}))
        .unwrap();
        let all = addresses(&service);
        assert_eq!(all.len(), 1);
        let object = object(all[0], &service);
        assert!(is_ours(&object));
        assert_eq!(object.metadata.name.as_deref(), Some("10.96.0.7"));
        assert_eq!(json!(object.spec), json!({"parentRef": {"resource": "services", "namespace": "n", "name": "s"}}));
        let headless: Service = serde_json::from_value(json!({"metadata": {}, "spec": {"clusterIP": "None"}})).unwrap();
        assert!(addresses(&headless).is_empty());
    }
}
