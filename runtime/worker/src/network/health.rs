//! What an outside load balancer asks a node: whether it has endpoints of a Service of its own
//! (`healthCheckNodePort`, where `externalTrafficPolicy` is Local).

use super::copy::Key;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::IntoResponse;
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio_util::sync::CancellationToken;

/// A Service's answer.
struct Answer {
    service: Key,
    local: AtomicUsize,
}

/// The ports that are answered at.
#[derive(Default)]
pub(super) struct HealthChecks {
    served: HashMap<Key, (u16, Arc<Answer>, CancellationToken)>,
}

impl HealthChecks {
    /// A Service's port and how many endpoints it has here; none when it has no such port.
    pub fn set(&mut self, service: &Key, wanted: Option<(u16, usize)>) {
        let now = self.served.get(service);
        match wanted {
            Some((port, local)) if now.is_some_and(|(known, ..)| *known == port) => {
                if let Some((_, answer, _)) = now {
                    answer.local.store(local, Ordering::Relaxed);
                }
            }
            _ => {
                if let Some((_, _, stop)) = self.served.remove(service) {
                    stop.cancel();
                }
                let Some((port, local)) = wanted else { return };
                let answer = Arc::new(Answer { service: service.clone(), local: AtomicUsize::new(local) });
                let stop = CancellationToken::new();
                tokio::spawn(serve(port, Arc::clone(&answer), stop.clone()));
                self.served.insert(service.clone(), (port, answer, stop));
            }
        }
    }
}

impl Drop for HealthChecks {
    fn drop(&mut self) {
        self.served.values().for_each(|(_, _, stop)| stop.cancel());
    }
}

async fn serve(port: u16, answer: Arc<Answer>, stop: CancellationToken) {
    let Key { namespace, name } = answer.service.clone();
    let listener = match tokio::net::TcpListener::bind(("0.0.0.0", port)).await {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(namespace, name, port, %error, "nobody answers at a Service's healthCheckNodePort");
            return;
        }
    };
    let router = Router::new().fallback(respond).with_state(answer);
    let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
    if let Err(error) = served.await {
        tracing::warn!(namespace, name, port, %error, "a Service's healthCheckNodePort is no longer answered at");
    }
}

/// As kube-proxy answers.
async fn respond(State(answer): State<Arc<Answer>>) -> impl IntoResponse {
    let local = answer.local.load(Ordering::Relaxed);
    let code = if local > 0 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let Key { namespace, name } = &answer.service;
    let service = json!({"namespace": namespace, "name": name});
    let body = json!({"service": service, "localEndpoints": local, "serviceProxyHealthy": true}).to_string();
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::from_static("application/json"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    headers.insert("x-load-balancing-endpoint-weight", HeaderValue::from(local));
    (code, headers, body)
}
