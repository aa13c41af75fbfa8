//! The kubelet's HTTP paths, which the gateway dials: logs, exec, attach, port-forward; metrics and start latencies.

mod attach;
mod channels;
pub(crate) mod cri;
mod exec;
mod logs;
mod pods;
mod port_channels;
mod port_forward;
mod remote;
pub(crate) mod spdy;
mod upgrade;
mod websocket;

use crate::context::Context;
use crate::pod::{ContainerView, PodHandle, PodView};
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use std::sync::Arc;

/// All paths.
pub(crate) fn router(ctx: Arc<Context>) -> Router {
    Router::new()
        .route("/containerLogs/{namespace}/{pod}/{container}", get(logs::logs))
        .route("/exec/{namespace}/{pod}/{container}", get(exec::exec).post(exec::exec))
        .route("/attach/{namespace}/{pod}/{container}", get(attach::attach).post(attach::attach))
        .route("/portForward/{namespace}/{pod}", get(port_forward::port_forward).post(port_forward::port_forward))
        .route("/pods", get(pods::pods))
        .route("/startLatency/{namespace}/{pod}", get(start_latency))
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok" }))
        .with_state(ctx)
}

async fn metrics(State(ctx): State<Arc<Context>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], ctx.metrics.text()).into_response()
}

async fn start_latency(
    State(ctx): State<Arc<Context>>,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Response, Refused> {
    let (handle, _) = find(&ctx, &namespace, &name)?;
    Ok(Json(handle.latency.to_json()).into_response())
}

/// A refusal in the kubelet's manner: a status code and a line of text.
#[derive(Debug)]
pub(crate) struct Refused(pub StatusCode, pub String);

impl Refused {
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, message.into())
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self(StatusCode::NOT_FOUND, message.into())
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, message.into())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, self.1).into_response()
    }
}

/// The pod of that name.
pub(crate) fn find(ctx: &Context, namespace: &str, name: &str) -> Result<(PodHandle, PodView), Refused> {
    let handle = ctx.pods.find(namespace, name);
    let handle = handle.ok_or_else(|| Refused::not_found(format!("pod \"{name}\" not found")))?;
    let view = handle.view.borrow().clone();
    Ok((handle, view))
}

/// The pod's container of that name.
pub(crate) fn container<'a>(view: &'a PodView, name: &str) -> Result<&'a ContainerView, Refused> {
    view.containers.iter().find(|container| container.name == name).ok_or_else(|| {
        Refused::not_found(format!("container \"{name}\" not found in pod \"{}_{}\"", view.name, view.namespace))
    })
}

/// The running container of that name, for streams.
pub(crate) fn running(view: &PodView, name: &str) -> Result<carob_sandbox::ContainerId, Refused> {
    let container = container(view, name)?;
    container.running.clone().ok_or_else(|| match &container.waiting {
        Some(_) if container.attempt.is_none() => Refused::not_found(format!("container not found (\"{name}\")")),
        _ => Refused::internal(format!("container {name} is not running")),
    })
}
