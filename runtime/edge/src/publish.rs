//! Telling the API: Services through which the proxy is reached, and what became of Ingresses, Gateways and routes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::Ingress;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::gateway_api::{GRPCRoute, Gateway, GatewayClass, HTTPRoute};
use crate::plan::{Frontend, Kind, Status, WantedService, with_times};
use crate::state::{Key, SERVICE_NAME, State};

/// Whose the fields are that are written here.
pub const MANAGER: &str = "carob-edge";
/// Who keeps the slices.
const SLICE_KEEPER: (&str, &str) = ("endpointslice.kubernetes.io/managed-by", MANAGER);

/// Where the ports of frontends are listened for.
pub type Sockets = HashMap<(Frontend, u16), Opened>;

/// The sockets of one port.
#[derive(Debug, Default)]
pub struct Opened {
    /// Where its Service leads: one of each family.
    pub inside: Vec<SocketAddr>,
    /// Those beside it.
    pub beside: Vec<SocketAddr>,
}

impl Opened {
    pub fn all(&self) -> impl Iterator<Item = SocketAddr> {
        self.inside.iter().chain(&self.beside).copied()
    }
}

/// A frontend's ports, and the sockets that its Service leads to.
pub type Ports = BTreeMap<u16, Vec<SocketAddr>>;

/// Where the proxy is, for Services.
pub struct Place {
    pub address: Ipv4Addr,
    /// Where the cluster has IPv6.
    pub address6: Option<Ipv6Addr>,
    pub node: String,
    /// Whether Services get addresses of load balancers.
    pub balanced: bool,
}

/// The writer.
pub struct Publisher {
    pub client: Client,
    pub place: Place,
}

impl Place {
    /// One of each family.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        [Some(self.address.into()), self.address6.map(IpAddr::from)].into_iter().flatten()
    }

    fn service(&self, wanted: &WantedService, ports: &Ports) -> Value {
        let balanced = self.balanced;
        let target = |sockets: &[SocketAddr]| sockets.first().map(SocketAddr::port);
        let of_service: Vec<Value> = ports
            .iter()
            .map(|(port, at)| json!({"name": port_name(*port), "port": port, "targetPort": target(at), "protocol": "TCP"}))
            .collect();
        let mut spec = json!({"type": if balanced { "LoadBalancer" } else { "ClusterIP" }, "ports": of_service});
        if balanced {
            spec["allocateLoadBalancerNodePorts"] = json!(false);
        }
        if let Some(address) = wanted.address.filter(|_| balanced) {
            spec["loadBalancerIP"] = json!(address);
        }
        if self.address6.is_some() {
            spec["ipFamilyPolicy"] = json!("PreferDualStack");
        }
        json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata(wanted), "spec": spec})
    }

    /// The Service's slices, one of each family: without endpoints where the proxy has no socket of it. A Service's name has
    /// no dot, so that of the second one is nobody else's.
    fn slices(&self, wanted: &WantedService, ports: &Ports) -> [Value; 2] {
        let name = &wanted.key.name;
        let mut metadata = metadata(wanted);
        let mut labels = wanted.labels.clone();
        labels.insert(SERVICE_NAME.to_owned(), name.clone());
        labels.insert(SLICE_KEEPER.0.to_owned(), SLICE_KEEPER.1.to_owned());
        metadata["labels"] = json!(labels);
        let families = [("IPv4", name.clone()), ("IPv6", format!("{name}.ipv6"))];
        families.map(|(family, name)| {
            let here = |at: &&SocketAddr| at.is_ipv6() == (family == "IPv6");
            let sockets = || ports.iter().filter_map(move |(port, all)| Some((*port, all.iter().find(here)?)));
            let of_slice: Vec<Value> = sockets()
                .map(|(port, at)| json!({"name": port_name(port), "port": at.port(), "protocol": "TCP"}))
                .collect();
            let addresses: HashSet<IpAddr> = sockets().map(|(_, at)| at.ip()).collect();
            let endpoint = |address: &IpAddr| {
                let conditions = json!({"ready": true, "serving": true, "terminating": false});
                json!({"addresses": [address], "conditions": conditions, "nodeName": self.node})
            };
            let mut metadata = metadata.clone();
            metadata["name"] = json!(name);
            json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": metadata,
                "addressType": family,
                "ports": of_slice,
                "endpoints": addresses.iter().map(endpoint).collect::<Vec<_>>(),
            })
        })
    }
}

fn metadata(wanted: &WantedService) -> Value {
    let Key { namespace, name } = &wanted.key;
    let mut metadata = json!({"name": name, "namespace": namespace, "labels": wanted.labels});
    if !wanted.annotations.is_empty() {
        metadata["annotations"] = json!(wanted.annotations);
    }
    if let Some(owner) = &wanted.owner {
        metadata["ownerReferences"] = json!([owner]);
    }
    metadata
}

impl Publisher {
    /// Sees to it that a frontend's Service leads to its sockets.
    pub async fn service(&self, state: &State, wanted: &WantedService, ports: &Ports) -> Result<(), kube::Error> {
        let known = state.slices.get(&wanted.key).map_or(&[][..], Vec::as_slice);
        for slice in self.place.slices(wanted, ports) {
            let name = slice["metadata"]["name"].as_str().unwrap_or_default();
            let known = known.iter().find(|known| known.metadata.name.as_deref() == Some(name));
            // One that has never led anywhere is of no use.
            let is_empty = slice["endpoints"].as_array().is_none_or(Vec::is_empty);
            if known.is_some() || !is_empty {
                let key = Key::new(&wanted.key.namespace, name);
                self.apply::<EndpointSlice>(&key, &slice, known.map(AsRef::as_ref)).await?;
            }
        }
        let service = self.place.service(wanted, ports);
        self.apply::<Service>(&wanted.key, &service, state.services.get(&wanted.key).map(AsRef::as_ref)).await
    }

    async fn apply<K>(&self, key: &Key, wanted: &Value, known: Option<&K>) -> Result<(), kube::Error>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + Serialize,
    {
        let known = known.and_then(|known| serde_json::to_value(known).ok());
        if known.is_some_and(|known| covers(&known, wanted)) {
            return Ok(());
        }
        let api = Api::<K>::namespaced(self.client.clone(), &key.namespace);
        api.patch(&key.name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(wanted)).await.map(drop)
    }

    /// Writes a status, if it is not as it should be.
    pub async fn status(&self, status: &Status) -> Result<(), kube::Error> {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let timed = with_times(&status.wanted, &status.before, &now);
        if timed == status.before {
            return Ok(());
        }
        let (client, key) = (self.client.clone(), &status.key);
        let namespace = key.namespace.as_str();
        match status.kind {
            Kind::Ingress => write(Api::<Ingress>::namespaced(client, namespace), key, &timed).await,
            Kind::Gateway => write(Api::<Gateway>::namespaced(client, namespace), key, &timed).await,
            Kind::HttpRoute => write(Api::<HTTPRoute>::namespaced(client, namespace), key, &timed).await,
            Kind::GrpcRoute => write(Api::<GRPCRoute>::namespaced(client, namespace), key, &timed).await,
            Kind::GatewayClass => write(Api::<GatewayClass>::all(client), key, &timed).await,
        }
    }
}

async fn write<K>(api: Api<K>, key: &Key, status: &Value) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    match api.patch_status(&key.name, &parameters, &Patch::Merge(json!({"status": status}))).await {
        // It was deleted meanwhile.
        Err(kube::Error::Api(refusal)) if refusal.code == 404 => Ok(()),
        written => written.map(drop),
    }
}

fn port_name(port: u16) -> String {
    format!("port-{port}")
}

/// Whether everything of `wanted` is in `known`.
fn covers(known: &Value, wanted: &Value) -> bool {
    match (known, wanted) {
        (Value::Object(known), Value::Object(wanted)) => {
            wanted.iter().all(|(name, value)| known.get(name).is_some_and(|known| covers(known, value)))
        }
        (Value::Array(known), Value::Array(wanted)) => {
            known.len() == wanted.len() && known.iter().zip(wanted).all(|(known, wanted)| covers(known, wanted))
        }
        (known, wanted) => known == wanted,
    }
}

/// What the API said, without all that it said it with.
pub fn reason(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> WantedService {
        WantedService {
            key: Key::new("shop", "gw-carob"),
            labels: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
            annotations: BTreeMap::new(),
            owner: None,
            address: None,
        }
    }

    fn ports(all: &[(u16, &[&str])]) -> Ports {
        let sockets = |all: &[&str]| all.iter().map(|at| at.parse().unwrap()).collect();
        all.iter().map(|(port, all)| (*port, sockets(all))).collect()
    }

    fn place(address6: Option<&str>) -> Place {
        let address6 = address6.map(|text| text.parse().unwrap());
        Place { address: [10, 42, 0, 1].into(), address6, node: "n".to_owned(), balanced: false }
    }

    #[test]
    fn a_service_leads_to_the_sockets_of_both_families() {
        let place = place(Some("fd00::a2a:1"));
        let ports =
            ports(&[(80, &["10.42.0.1:4080", "[fd00::a2a:1]:6080"]), (443, &["10.42.0.1:4443", "[fd00::a2a:1]:6443"])]);
        let service = place.service(&wanted(), &ports);
        assert_eq!(service["spec"]["ipFamilyPolicy"], "PreferDualStack");
        assert_eq!(service["spec"]["ports"][0]["targetPort"], 4080);
        let [v4, v6] = place.slices(&wanted(), &ports);
        assert_eq!((&v4["addressType"], &v4["metadata"]["name"]), (&json!("IPv4"), &json!("gw-carob")));
        assert_eq!((&v6["addressType"], &v6["metadata"]["name"]), (&json!("IPv6"), &json!("gw-carob.ipv6")));
        let numbers = |slice: &Value| [slice["ports"][0]["port"].clone(), slice["ports"][1]["port"].clone()];
        assert_eq!((numbers(&v4), numbers(&v6)), ([json!(4080), json!(4443)], [json!(6080), json!(6443)]));
        assert_eq!(v4["endpoints"].as_array().unwrap().len(), 1);
        assert_eq!(v4["endpoints"][0]["addresses"], json!(["10.42.0.1"]));
        assert_eq!(v6["endpoints"].as_array().unwrap().len(), 1);
        assert_eq!(v6["endpoints"][0]["addresses"], json!(["fd00::a2a:1"]));
        assert_eq!(v6["metadata"]["labels"]["kubernetes.io/service-name"], "gw-carob");
    }

    #[test]
    fn without_ipv6_there_are_no_endpoints_of_it() {
        let place = place(None);
        let ports = ports(&[(80, &["10.42.0.1:4080"])]);
        assert!(place.service(&wanted(), &ports)["spec"].get("ipFamilyPolicy").is_none());
        let [v4, v6] = place.slices(&wanted(), &ports);
        assert_eq!(v4["endpoints"][0]["addresses"], json!(["10.42.0.1"]));
        assert_eq!((&v6["endpoints"], &v6["ports"]), (&json!([]), &json!([])));
    }
}
