//! The `kubernetes` Service of the API server itself, with the endpoint behind it. It selects no pods, so the server
//! writes what an endpoints controller would.

use std::sync::Arc;

use carob_api::status::Status;
use serde_json::{Value, json};

use crate::bootstrap::{Existing, ensure};
use crate::{ApiService, Server};

const NAME: &str = "kubernetes";
const NAMESPACE: &str = "default";
/// What of a stored object has to be as it is here.
const OWN: [&str; 4] = ["/subsets", "/endpoints", "/ports", "/addressType"];

/// Makes the three objects, and corrects what has changed since: the address and port may be others at each start.
pub(crate) async fn reconcile(server: &Arc<Server>, api: &ApiService) -> Result<(), Status> {
    ensure(server, ("", "v1", "services"), vec![service(api)], settle_service).await?;
    ensure(server, ("", "v1", "endpoints"), vec![endpoints(api)], settle_endpoints).await?;
    if server.kind("discovery.k8s.io", "v1", "endpointslices").is_some() {
        ensure(server, ("discovery.k8s.io", "v1", "endpointslices"), vec![slice(api)], settle_endpoints).await?;
    }
    Ok(())
}

fn settle_service(found: &Value, wanted: &Value) -> Existing {
    if found.pointer("/spec/ports") == wanted.pointer("/spec/ports") {
        return Existing::Keep;
    }
    let mut new = found.clone();
    new["spec"]["ports"] = wanted["spec"]["ports"].clone();
    Existing::Change(new)
}

fn settle_endpoints(found: &Value, wanted: &Value) -> Existing {
    let mut new = found.clone();
    for pointer in OWN {
        if let Some(value) = wanted.pointer(pointer) {
            new[&pointer[1..]] = value.clone();
        }
    }
    if new == *found { Existing::Keep } else { Existing::Change(new) }
}

fn service(api: &ApiService) -> Value {
    let labels = json!({ "component": "apiserver", "provider": "kubernetes" });
    let ip = api.service.ip().to_string();
    let port = json!({
        "name": "https", "port": api.service.port(), "protocol": "TCP", "targetPort": api.endpoint.port(),
    });
    json!({
        "kind": "Service",
        "apiVersion": "v1",
        "metadata": { "name": NAME, "namespace": NAMESPACE, "labels": labels },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": ip,
            "clusterIPs": [ip],
            "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "ports": [port],
            "sessionAffinity": "None"
        },
        "status": { "loadBalancer": {} }
    })
}

fn endpoints(api: &ApiService) -> Value {
    // Nobody is to make a slice of it: there is one.
    let labels = json!({ "endpointslice.kubernetes.io/skip-mirror": "true" });
    json!({
        "kind": "Endpoints",
        "apiVersion": "v1",
        "metadata": { "name": NAME, "namespace": NAMESPACE, "labels": labels },
        "subsets": [{
            "addresses": [{ "ip": api.endpoint.ip().to_string() }],
            "ports": [{ "name": "https", "port": api.endpoint.port(), "protocol": "TCP" }],
        }],
    })
}

fn slice(api: &ApiService) -> Value {
    let labels = json!({ "kubernetes.io/service-name": NAME });
    json!({
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": { "name": NAME, "namespace": NAMESPACE, "labels": labels },
        "addressType": "IPv4",
        "endpoints": [{ "addresses": [api.endpoint.ip().to_string()], "conditions": { "ready": true } }],
        "ports": [{ "name": "https", "port": api.endpoint.port(), "protocol": "TCP" }],
    })
}
