//! The proxy behind Ingresses and Gateways: real requests to real pods.

mod client;
mod gateway;
mod ingress;
mod programs;

use carob_tests::pods::{pod, tools};
use serde_json::{Value, json};

/// A pod that says what it is asked, on port 8080.
fn web(name: &str, app: &str) -> Value {
    let mut web = pod(name, &[tools("main", &["http-server"])]);
    web["metadata"]["labels"] = json!({"app": app});
    web["spec"]["terminationGracePeriodSeconds"] = json!(1);
    web
}

/// A Service of that name for pods of this label, on port 80.
fn service(app: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": app}, "spec": {
        "selector": {"app": app}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}})
}
