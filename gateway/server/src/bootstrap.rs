//! The objects that every cluster has from its first start.

use std::net::SocketAddrV4;
use std::sync::Arc;

use carob_api::decode::FieldValidation;
use carob_api::status::Status;
use http::HeaderMap;
use serde_json::{Value, json};

use crate::Server;
use crate::authn::{Identity, MASTERS};
use crate::call::Call;
use crate::handlers::create::{self, Tracking};
use crate::negotiate::Accept;
use crate::options::WriteOptions;

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Makes what isn't there yet.
pub(crate) async fn first_objects(server: &Arc<Server>, api: Option<(SocketAddrV4, u16)>) -> Result<(), Status> {
    for name in NAMESPACES {
        make(server, "namespaces", json!({ "kind": "Namespace", "apiVersion": "v1", "metadata": { "name": name } }))
            .await?;
    }
    match api {
        Some((address, target)) => make(server, "services", kubernetes_service(address, target)).await,
        None => Ok(()),
    }
}

async fn make(server: &Arc<Server>, plural: &str, object: Value) -> Result<(), Status> {
    let Some(kind) = server.kind("", "v1", plural) else {
        return Err(Status::internal(format!("{plural} are not served")));
    };
    let identity = Identity::authenticated("system:apiserver", [MASTERS.to_owned()]);
    let mut call = Call::new(Arc::clone(server), kind, identity, HeaderMap::new(), Accept::JSON);
    call.namespace = object.pointer("/metadata/namespace").and_then(Value::as_str).map(str::to_owned);
    let options =
        WriteOptions { dry_run: false, manager: "carob".to_owned(), validation: FieldValidation::Strict, force: false };
    match create::create_object(&call, object, &options, Tracking::Update).await {
        Ok(_) => Ok(()),
        Err(status) if status.reason() == "AlreadyExists" => Ok(()),
        Err(status) => Err(status),
    }
}

/// How pods reach the API server. The worker's network carries it out.
fn kubernetes_service(address: SocketAddrV4, target: u16) -> Value {
    let labels = json!({ "component": "apiserver", "provider": "kubernetes" });
    json!({
        "kind": "Service",
        "apiVersion": "v1",
        "metadata": { "name": "kubernetes", "namespace": "default", "labels": labels },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address.ip().to_string(),
            "clusterIPs": [address.ip().to_string()],
            "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "ports": [{ "name": "https", "port": address.port(), "protocol": "TCP", "targetPort": target }],
            "sessionAffinity": "None"
        },
        "status": { "loadBalancer": {} }
    })
}
