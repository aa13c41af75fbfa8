//! The proxy behind Ingresses and Gateways: real requests to real pods.

mod affinity;
mod client;
mod gateway;
mod ingress;
mod programs;
mod websocket;

use carob_tests::pods::{pod, tools};
use carob_tests::{Carob, Setup};
use serde_json::{Value, json};

/// A Carob whose proxy has brought its kinds and classes.
fn start(setup: &Setup<'_>) -> Carob {
    let carob = Carob::start_with(setup);
    let accepted = "jsonpath={.status.conditions[?(@.type==\"Accepted\")].status}";
    carob.until(&["get", "gatewayclass", "carob", "-o", accepted], |seen| seen == "True");
    carob
}

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
