//! Copies of requests, whose answers nobody waits for.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http::header::{CONNECTION, UPGRADE};
use http::request::Parts;

use super::body::Outgoing;
use super::request::{Sending, address, is_grpc};
use super::share::Place;
use super::{Shared, headers};
use crate::route::{Backend, Protocol};

/// How long a copy may take.
const LIMIT: Duration = Duration::from_secs(30);

/// A request of which a copy is sent.
pub struct Original<'a> {
    /// Ready to be sent.
    pub head: &'a Parts,
    pub authority: &'a str,
    /// Who sent it.
    pub client: IpAddr,
}

/// Sends a copy of a request beside the original.
pub fn send(shared: &Shared, to: &Arc<Backend>, original: &Original<'_>, body: Outgoing, place: Arc<Place>) {
    let Original { head: original, authority, client } = *original;
    let http2 = is_http2(to, original);
    let mut request = Request::new(body);
    *request.method_mut() = original.method.clone();
    *request.uri_mut() = original.uri.clone();
    *request.headers_mut() = original.headers.clone();
    let (mut parts, body) = request.into_parts();
    parts.headers.remove(CONNECTION);
    parts.headers.remove(UPGRADE);
    headers::tell_pass(&mut parts.headers, true);
    if address(&mut parts, authority, http2).is_err() {
        return;
    }
    let (shared, to) = (shared.clone(), Arc::clone(to));
    tokio::spawn(async move {
        let sending = Sending { shared: &shared, backend: &to, http2, limit: None, client };
        let copy = sending.and_forget(Request::from_parts(parts, body));
        // How it went is of no interest.
        let _ = tokio::time::timeout(LIMIT, copy).await;
        drop(place);
    });
}

/// Whether a copy goes by HTTP/2: what is gRPC has no other way, whatever its route is.
fn is_http2(to: &Backend, original: &Parts) -> bool {
    to.protocol == Protocol::Http2 || is_grpc(original)
}

#[cfg(test)]
mod tests {
    use http::Version;
    use http::header::CONTENT_TYPE;

    use super::*;

    #[test]
    fn copies_of_calls_go_by_http2() {
        let backend = |protocol| Backend::new(Vec::new(), protocol);
        let head = |content: &str| {
            let request = Request::post("http://h/s/M").version(Version::HTTP_2).header(CONTENT_TYPE, content);
            request.body(()).unwrap().into_parts().0
        };
        assert!(is_http2(&backend(Protocol::Guess), &head("application/grpc")));
        assert!(is_http2(&backend(Protocol::Http2), &head("text/plain")));
        assert!(!is_http2(&backend(Protocol::Guess), &head("text/plain")));
    }
}
