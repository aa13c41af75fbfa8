//! Telling the API: Services through which the proxy is reached, and what became of Ingresses, Gateways and routes.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::net::{Ipv4Addr, SocketAddr};

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
pub type Sockets = HashMap<(Frontend, u16), Vec<SocketAddr>>;

/// The writer.
pub struct Publisher {
    pub client: Client,
    /// Whether Services get addresses of load balancers.
    pub balanced: bool,
    /// Where the proxy is, for Services.
    pub address: Ipv4Addr,
    pub node: String,
}

impl Publisher {
    /// Sees to it that a frontend's Service leads to its sockets.
    pub async fn service(
        &self,
        state: &State,
        wanted: &WantedService,
        ports: &BTreeMap<u16, SocketAddr>,
    ) -> Result<(), kube::Error> {
        let Key { namespace, name } = &wanted.key;
        let balanced = self.balanced;
        let of_service: Vec<Value> = ports
            .iter()
            .map(|(port, at)| json!({"name": port_name(*port), "port": port, "targetPort": at.port(), "protocol": "TCP"}))
            .collect();
        let mut spec = json!({"type": if balanced { "LoadBalancer" } else { "ClusterIP" }, "ports": of_service});
        if balanced {
            spec["allocateLoadBalancerNodePorts"] = json!(false);
        }
        if let Some(address) = wanted.address.filter(|_| balanced) {
            spec["loadBalancerIP"] = json!(address);
        }
        let mut metadata = json!({"name": name, "namespace": namespace, "labels": wanted.labels});
        if !wanted.annotations.is_empty() {
            metadata["annotations"] = json!(wanted.annotations);
        }
        if let Some(owner) = &wanted.owner {
            metadata["ownerReferences"] = json!([owner]);
        }
        let of_slice: Vec<Value> = ports
            .iter()
            .map(|(port, at)| json!({"name": port_name(*port), "port": at.port(), "protocol": "TCP"}))
            .collect();
        let mut labels = wanted.labels.clone();
        labels.insert(SERVICE_NAME.to_owned(), name.clone());
        labels.insert(SLICE_KEEPER.0.to_owned(), SLICE_KEEPER.1.to_owned());
        let mut slice_metadata = metadata.clone();
        slice_metadata["labels"] = json!(labels);
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": slice_metadata,
            "addressType": "IPv4",
            "ports": of_slice,
            "endpoints": [{
                "addresses": [self.address],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": self.node,
            }],
        });
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec});
        let known = state.slices.get(&wanted.key).into_iter().flatten();
        let known = known.into_iter().find(|slice| slice.metadata.name.as_ref() == Some(name));
        self.apply::<EndpointSlice>(&wanted.key, &slice, known.map(AsRef::as_ref)).await?;
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
