//! The `kubernetes` Service of the API server itself and `kube-dns` of the cluster's names, with the endpoints behind them.
//! They select no pods, so the server writes what an endpoints controller would.

use std::net::SocketAddrV4;
use std::sync::Arc;

use carob_api::status::Status;
use serde_json::{Value, json};

use crate::bootstrap::{Existing, ensure};
use crate::{ApiService, Server};

/// A Service that this process answers for.
struct Own {
    namespace: &'static str,
    name: &'static str,
    labels: Value,
    service: SocketAddrV4,
    endpoint: Option<SocketAddrV4>,
    /// Name and protocol of each port.
    ports: &'static [(&'static str, &'static str)],
}

impl Own {
    fn kubernetes(api: &ApiService) -> Self {
        Self {
            namespace: "default",
            name: "kubernetes",
            labels: json!({ "component": "apiserver", "provider": "kubernetes" }),
            service: api.service,
            endpoint: Some(api.endpoint),
            ports: &[("https", "TCP")],
        }
    }

    fn dns((service, endpoint): (SocketAddrV4, Option<SocketAddrV4>)) -> Self {
        Self {
            namespace: "kube-system",
            name: "kube-dns",
            labels: json!({ "k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS" }),
            service,
            endpoint,
            ports: &[("dns", "UDP"), ("dns-tcp", "TCP")],
        }
    }

    fn target_port(&self) -> u16 {
        self.endpoint.unwrap_or(self.service).port()
    }

    fn endpoint_ports(&self) -> Value {
        let port = |(name, protocol)| json!({ "name": name, "port": self.target_port(), "protocol": protocol });
        self.ports.iter().copied().map(port).collect()
    }
}

/// What of a stored object has to be as it is here.
const OWN: [&str; 4] = ["/subsets", "/endpoints", "/ports", "/addressType"];

/// Makes three objects for each, and corrects what has changed since: the address and port may be others at each start.
pub(crate) async fn reconcile(server: &Arc<Server>, api: &ApiService) -> Result<(), Status> {
    let own: Vec<Own> = [Own::kubernetes(api)].into_iter().chain(api.dns.map(Own::dns)).collect();
    let all = |make: fn(&Own) -> Value| own.iter().map(make).collect::<Vec<_>>();
    ensure(server, ("", "v1", "services"), all(service), settle_service).await?;
    ensure(server, ("", "v1", "endpoints"), all(endpoints), settle_endpoints).await?;
    if server.kind("discovery.k8s.io", "v1", "endpointslices").is_some() {
        ensure(server, ("discovery.k8s.io", "v1", "endpointslices"), all(slice), settle_endpoints).await?;
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

fn service(own: &Own) -> Value {
    let ip = own.service.ip().to_string();
    let port = |(name, protocol)| {
        let (port, target) = (own.service.port(), own.target_port());
        json!({ "name": name, "port": port, "protocol": protocol, "targetPort": target })
    };
    let ports: Value = own.ports.iter().copied().map(port).collect();
    json!({
        "kind": "Service",
        "apiVersion": "v1",
        "metadata": { "name": own.name, "namespace": own.namespace, "labels": own.labels },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": ip,
            "clusterIPs": [ip],
            "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "ports": ports,
            "sessionAffinity": "None"
        },
        "status": { "loadBalancer": {} }
    })
}

fn endpoints(own: &Own) -> Value {
    // Nobody is to make a slice of it: there is one.
    let labels = json!({ "endpointslice.kubernetes.io/skip-mirror": "true" });
    let subset = |endpoint: SocketAddrV4| json!({ "addresses": [{ "ip": endpoint.ip().to_string() }], "ports": own.endpoint_ports() });
    json!({
        "kind": "Endpoints",
        "apiVersion": "v1",
        "metadata": { "name": own.name, "namespace": own.namespace, "labels": labels },
        "subsets": own.endpoint.into_iter().map(subset).collect::<Value>(),
    })
}

fn slice(own: &Own) -> Value {
    let labels = json!({ "kubernetes.io/service-name": own.name });
    let ready =
        |endpoint: SocketAddrV4| json!({ "addresses": [endpoint.ip().to_string()], "conditions": { "ready": true } });
    json!({
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": { "name": own.name, "namespace": own.namespace, "labels": labels },
        "addressType": "IPv4",
        "endpoints": own.endpoint.into_iter().map(ready).collect::<Value>(),
        "ports": own.endpoint_ports(),
    })
}
