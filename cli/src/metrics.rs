//! `metrics.k8s.io`: what pods and nodes use, from the meter, for `kubectl top` and autoscalers.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use carob_api::quantity::Quantity;
use carob_api::selector::LabelSelector;
use carob_api::status::{GroupResource, Status};
use carob_billing::Billing;
use carob_billing::rate::Usage;
use carob_gateway::{Extension, GroupExtension};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::machine::Machine;

const GROUP: &str = "metrics.k8s.io";
const VERSION: &str = "v1beta1";
const PREFIX: &str = "/apis/metrics.k8s.io/v1beta1";

const API_VERSION: &str = "metrics.k8s.io/v1beta1";

/// Which of them.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Wanted {
    label_selector: Option<String>,
    field_selector: Option<String>,
}

#[derive(Clone)]
struct Source {
    billing: Arc<Billing>,
    machine: Arc<Machine>,
    nodes: Arc<[String]>,
}

/// The group, served for the nodes of this machine.
pub fn extension(billing: Arc<Billing>, names: Vec<String>) -> Extension {
    let source = Source { billing, machine: Arc::new(Machine::new()), nodes: names.into() };
    let router = Router::new()
        .route("/nodes", get(nodes))
        .route("/nodes/{name}", get(node_named))
        .route("/pods", get(pods_everywhere))
        .route("/namespaces/{namespace}/pods", get(pods))
        .route("/namespaces/{namespace}/pods/{name}", get(pod_named))
        .with_state(source);
    let resource = |name: &str, kind: &str, namespaced: bool| json!({"name": name, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": ["get", "list"]});
    let resources = vec![resource("nodes", "NodeMetrics", false), resource("pods", "PodMetrics", true)];
    Extension { prefix: PREFIX, router, group: Some(GroupExtension { name: GROUP, version: VERSION, resources }) }
}

async fn nodes(State(source): State<Source>, Query(wanted): Query<Wanted>) -> Response {
    list("NodeMetricsList", source.nodes(), &wanted)
}

async fn node_named(State(source): State<Source>, Path(name): Path<String>) -> Response {
    let found = source.nodes().into_iter().find(|node| node["metadata"]["name"] == name.as_str());
    one(found, "nodes", &name)
}

async fn pods_everywhere(State(source): State<Source>, Query(wanted): Query<Wanted>) -> Response {
    list("PodMetricsList", source.pods(None), &wanted)
}

async fn pods(State(source): State<Source>, Path(namespace): Path<String>, Query(wanted): Query<Wanted>) -> Response {
    list("PodMetricsList", source.pods(Some(&namespace)), &wanted)
}

async fn pod_named(State(source): State<Source>, Path((namespace, name)): Path<(String, String)>) -> Response {
    let found = source.pods(Some(&namespace)).into_iter().find(|pod| pod["metadata"]["name"] == name.as_str());
    one(found, "pods", &name)
}

fn one(found: Option<Value>, resource: &str, name: &str) -> Response {
    match found {
        Some(object) => Json(object).into_response(),
        None => failure(&Status::not_found(&GroupResource::new(GROUP, resource), name)),
    }
}

fn failure(status: &Status) -> Response {
    let code = StatusCode::from_u16(status.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (code, Json(status.to_value())).into_response()
}

fn list(kind: &str, mut items: Vec<Value>, wanted: &Wanted) -> Response {
    let labels = match LabelSelector::parse(wanted.label_selector.as_deref().unwrap_or_default()) {
        Ok(labels) => labels,
        Err(why) => return failure(&Status::bad_request(why)),
    };
    let fields = wanted.field_selector.as_deref().unwrap_or_default();
    let name = fields.strip_prefix("metadata.name=").map(|name| name.trim_start_matches('='));
    items.retain(|item| {
        labels.matches(Some(&item["metadata"]["labels"])) && name.is_none_or(|name| item["metadata"]["name"] == name)
    });
    Json(json!({"kind": kind, "apiVersion": API_VERSION, "metadata": {}, "items": items})).into_response()
}

impl Source {
    /// The machine's usage is that of the one node it is; of several, each has what its containers use.
    fn nodes(&self) -> Vec<Value> {
        if let [name] = &*self.nodes {
            let usage = self.machine.usage().into_iter();
            return usage
                .map(|usage| node(name, usage.at, usage.window_seconds, usage.cpu_nanocores, usage.memory_bytes))
                .collect();
        }
        let all = self.billing.usage();
        let sum = |name: &String| {
            let of = || all.iter().filter(|usage| usage.node == *name);
            let window = of().map(|usage| usage.window_seconds).fold(f64::INFINITY, f64::min);
            let at = of().map(|usage| usage.at).min().unwrap_or_else(Timestamp::now);
            let (cpu, memory) =
                (of().map(|usage| usage.cpu_nanocores).sum(), of().map(|usage| usage.memory_bytes).sum());
            node(name, at, if window.is_finite() { window } else { 0.0 }, cpu, memory)
        };
        self.nodes.iter().map(sum).collect()
    }

    fn pods(&self, namespace: Option<&str>) -> Vec<Value> {
        let mut by_pod: BTreeMap<(String, String), Vec<Usage>> = BTreeMap::new();
        for usage in self.billing.usage() {
            if namespace.is_none_or(|wanted| usage.namespace == wanted) {
                by_pod.entry((usage.namespace.clone(), usage.pod.clone())).or_default().push(usage);
            }
        }
        by_pod.into_iter().map(|((namespace, name), containers)| pod(&namespace, &name, containers)).collect()
    }
}

fn node(name: &str, at: Timestamp, window_seconds: f64, cpu_nanocores: u64, memory_bytes: u64) -> Value {
    json!({
        "kind": "NodeMetrics", "apiVersion": API_VERSION,
        "metadata": {"name": name, "creationTimestamp": second(Timestamp::now())},
        "timestamp": second(at), "window": window(window_seconds), "usage": amounts(cpu_nanocores, memory_bytes),
    })
}

fn pod(namespace: &str, name: &str, mut containers: Vec<Usage>) -> Value {
    containers.sort_by(|one, other| one.container.cmp(&other.container));
    let at = containers.iter().map(|usage| usage.at).min().unwrap_or_default();
    let shortest = containers.iter().map(|usage| usage.window_seconds).fold(f64::INFINITY, f64::min);
    let labels = containers.first().map(|usage| usage.labels.clone()).unwrap_or_default();
    let used =
        |usage: &Usage| json!({"name": usage.container, "usage": amounts(usage.cpu_nanocores, usage.memory_bytes)});
    json!({
        "kind": "PodMetrics", "apiVersion": API_VERSION,
        "metadata": {"name": name, "namespace": namespace, "labels": labels, "creationTimestamp": second(Timestamp::now())},
        "timestamp": second(at), "window": window(shortest),
        "containers": containers.iter().map(used).collect::<Vec<_>>(),
    })
}

fn amounts(cpu_nanocores: u64, memory_bytes: u64) -> Value {
    let kibibytes = i64::try_from(memory_bytes / 1024).unwrap_or(i64::MAX / 1024);
    json!({
        "cpu": Quantity::from_nanos(i128::from(cpu_nanocores)).canonical(),
        "memory": Quantity::from_bytes(kibibytes * 1024).canonical(),
    })
}

fn second(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn window(seconds: f64) -> String {
    format!("{seconds:.3}s")
}
