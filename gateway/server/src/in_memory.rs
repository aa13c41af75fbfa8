//! A client of this server inside its own process: the same requests, without a socket.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use http::Request;

use crate::authn::{Identity, InProcess};
use crate::{Server, routes};

/// A client that acts as `user` in `groups`.
pub(crate) fn client(server: &Arc<Server>, user: &str, groups: &[&str]) -> kube::Client {
    let server = Arc::clone(server);
    let identity = InProcess(Identity::authenticated(user, groups.iter().map(ToString::to_string)));
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(identity.clone());
        let answer = routes::handle(Arc::clone(&server), request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    kube::Client::new(service, "default")
}
