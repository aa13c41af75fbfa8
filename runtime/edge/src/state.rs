//! What the API has, at one moment, of all that the proxy's work depends on.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::Resource;

use crate::gateway_api::{GRPCRoute, Gateway, GatewayClass, HTTPRoute, ReferenceGrant};

/// Namespace and name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    pub fn of<K: Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self::new(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
    }
}

/// Objects that the proxy is told by.
#[derive(Default)]
pub struct State {
    pub ingress_classes: Vec<Arc<IngressClass>>,
    pub ingresses: Vec<Arc<Ingress>>,
    pub gateway_classes: Vec<Arc<GatewayClass>>,
    pub gateways: Vec<Arc<Gateway>>,
    pub http_routes: Vec<Arc<HTTPRoute>>,
    pub grpc_routes: Vec<Arc<GRPCRoute>>,
    pub grants: Vec<Arc<ReferenceGrant>>,
    pub services: HashMap<Key, Arc<Service>>,
    /// By their Service.
    pub slices: HashMap<Key, Vec<Arc<EndpointSlice>>>,
    pub secrets: HashMap<Key, Arc<Secret>>,
    pub namespaces: HashMap<String, Arc<Namespace>>,
    /// Where the proxy listens: Services of Gateways lead there, and requests that it sent there would never end.
    pub own: HashSet<SocketAddr>,
}

/// The label by which a slice names its Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

impl State {
    /// Objects by their names.
    pub fn by_key<K: Resource>(objects: Vec<Arc<K>>) -> HashMap<Key, Arc<K>> {
        objects.into_iter().map(|object| (Key::of(&*object), object)).collect()
    }

    /// Slices by the Service that they are of.
    pub fn by_service(slices: Vec<Arc<EndpointSlice>>) -> HashMap<Key, Vec<Arc<EndpointSlice>>> {
        let mut all: HashMap<Key, Vec<Arc<EndpointSlice>>> = HashMap::new();
        for slice in slices {
            let name = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
            if let Some(name) = name {
                all.entry(Key::new(slice.metadata.namespace.as_deref().unwrap_or_default(), name))
                    .or_default()
                    .push(slice);
            }
        }
        all
    }

    /// A namespace's labels.
    pub fn labels(&self, namespace: &str) -> BTreeMap<String, String> {
        self.namespaces.get(namespace).and_then(|namespace| namespace.metadata.labels.clone()).unwrap_or_default()
    }

    /// The addresses at which a Service answers: a load balancer's, or those of the cluster where it has none.
    pub fn addresses(&self, service: &Key, balanced: bool) -> Vec<IpAddr> {
        let Some(service) = self.services.get(service) else { return Vec::new() };
        if balanced {
            let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
            let ingress = status.and_then(|balancer| balancer.ingress.as_ref()).into_iter().flatten();
            return ingress.filter_map(|ingress| ingress.ip.as_ref()?.parse().ok()).collect();
        }
        let Some(spec) = &service.spec else { return Vec::new() };
        let all = spec.cluster_ips.as_deref().filter(|all| !all.is_empty()).unwrap_or(spec.cluster_ip.as_slice());
        all.iter().filter_map(|ip| ip.parse().ok()).collect()
    }
}
