//! A client of this server inside its own process: the same requests, without a socket.
//!
//! Requests are worked on where the client was made: who asks may be on a runtime whose threads are in another network
//! namespace, and what this server opens on the way (connections to webhooks) belongs to its own.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use http::header::USER_AGENT;
use http::{HeaderValue, Request};
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

use crate::authn::{Identity, InProcess};
use crate::{Server, routes};

/// A client that acts as `user` in `groups`.
pub(crate) fn client(server: &Arc<Server>, user: &str, groups: &[&str]) -> kube::Client {
    let server = Arc::clone(server);
    let program = HeaderValue::from_static(program(user));
    let identity = InProcess(Identity::authenticated(user, groups.iter().map(ToString::to_string)));
    let home = Handle::try_current().ok();
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(identity.clone());
        request.headers_mut().entry(USER_AGENT).or_insert_with(|| program.clone());
        let answer = routes::handle(Arc::clone(&server), request);
        let home = home.clone();
        async move {
            let elsewhere = home.filter(|home| Handle::try_current().is_ok_and(|here| here.id() != home.id()));
            let Some(home) = elsewhere else { return Ok::<_, Infallible>(answer.await) };
            match AbortOnDropHandle::new(home.spawn(answer)).await {
                Ok(answer) => Ok(answer),
                // A panic goes on where it was asked for, as it would without the way between.
                Err(panic) => {
                    std::panic::resume_unwind(panic.try_into_panic().unwrap_or_else(|_| Box::new("cancelled")))
                }
            }
        }
    });
    kube::Client::new(service, "default")
}

/// What a part of the process is called where it is a program of its own: whose the fields are that it sets.
fn program(user: &str) -> &'static str {
    match user {
        "system:apiserver" => "kube-apiserver/v1.35",
        "system:kube-scheduler" => "kube-scheduler/v1.35",
        "system:kube-proxy" => "kube-proxy/v1.35",
        node if node.starts_with("system:node:") => "kubelet/v1.35",
        part if part.starts_with("system:") => "kube-controller-manager/v1.35",
        _ => "carob",
    }
}
