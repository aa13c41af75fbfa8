//! Copies of requests, whose answers nobody waits for.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http::header::{CONNECTION, UPGRADE};
use http::request::Parts;

use super::body::Outgoing;
use super::request::{Sending, address};
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
    let http2 = to.protocol == Protocol::Http2;
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
