//! From an HTTP request to a client's streams: WebSocket for kubectl since 1.31, SPDY/3.1 for those before and for others.

use super::Refused;
use super::channels::{Channel, Channels};
use super::{port_channels, remote, spdy, websocket};
use axum::body::Body;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts, Request};
use axum::http::header::{CONNECTION, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use hyper_util::rt::TokioIo;
use std::future::Future;

const SPDY: &str = "SPDY/3.1";
/// Which of Kubernetes' protocols runs on SPDY's streams.
const PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// The subprotocol of port-forward in a WebSocket: SPDY's frames as its messages' bytes.
const TUNNELLED: &str = "SPDY/3.1+portforward.k8s.io";
const PORT_FORWARD: &str = "portforward.k8s.io";

/// The streams that a remote command has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "they are the API's")]
pub(super) struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// Answers a request for a remote command; `serve` is given the client's streams when it has opened them.
pub(super) async fn command<F, Fut>(request: Request, wanted: Wanted, serve: F) -> Result<Response, Refused>
where
    F: FnOnce(Channels) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    if asks_for_spdy(request.headers()) {
        let protocol = choose(request.headers(), &remote::PROTOCOLS)?;
        return Ok(switch(request, protocol, move |connection| async move {
            match remote::open(connection, wanted, protocol).await {
                Ok(channels) => serve(channels).await,
                Err(error) => tracing::debug!(%error, "a remote command's streams were not opened"),
            }
        }));
    }
    let upgrade = web_socket(request).await?.protocols(websocket::PROTOCOLS);
    let first = if wanted.stdout || !wanted.stderr { Channel::Stdout } else { Channel::Stderr };
    Ok(upgrade.on_upgrade(move |socket| async move { serve(websocket::open(socket, first)).await }))
}

/// Answers a request for port-forward; `serve` is given the connection.
pub(super) async fn port_forward<F, Fut>(request: Request, serve: F) -> Result<Response, Refused>
where
    F: FnOnce(spdy::Connection) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    if asks_for_spdy(request.headers()) {
        let protocol = choose(request.headers(), &[PORT_FORWARD])?;
        return Ok(switch(request, protocol, serve));
    }
    let upgrade = web_socket(request).await?.protocols([TUNNELLED]);
    Ok(upgrade.on_upgrade(move |socket| async move {
        serve(spdy::Connection::serve(websocket::tunnel(socket))).await;
    }))
}

/// Whether port-forward is asked for with a channel for each port instead of SPDY in one form or another.
pub(super) fn asks_for_channels(headers: &HeaderMap) -> bool {
    let offers = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    !asks_for_spdy(headers) && !offers.flat_map(|value| value.split(',')).any(|offer| offer.trim() == TUNNELLED)
}

/// Answers such a request; `serve` is given the socket.
pub(super) async fn port_channels<F, Fut>(request: Request, serve: F) -> Result<Response, Refused>
where
    F: FnOnce(WebSocket) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    Ok(web_socket(request).await?.protocols(port_channels::PROTOCOLS).on_upgrade(serve))
}

async fn web_socket(request: Request) -> Result<WebSocketUpgrade, Refused> {
    let (mut parts, _) = request.into_parts();
    match WebSocketUpgrade::from_request_parts(&mut parts, &()).await {
        Ok(upgrade) => Ok(upgrade.max_message_size(websocket::MESSAGE_MAX)),
        Err(_) => Err(Refused::bad_request("streams need an upgrade to WebSocket or SPDY/3.1")),
    }
}

fn asks_for_spdy(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(SPDY.as_bytes()))
}

/// The first of our protocols that the client speaks. One that names none speaks the oldest.
fn choose(headers: &HeaderMap, ours: &[&'static str]) -> Result<&'static str, Refused> {
    let offers: Vec<&str> = headers
        .get_all(PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect();
    let chosen = if offers.is_empty() { ours.last() } else { ours.iter().find(|protocol| offers.contains(*protocol)) };
    chosen.copied().ok_or_else(|| {
        let text = format!(
            "unable to upgrade: unable to negotiate protocol: client supports {offers:?}, server accepts {ours:?}"
        );
        Refused(StatusCode::FORBIDDEN, text)
    })
}

fn switch<F, Fut>(mut request: Request, protocol: &'static str, serve: F) -> Response
where
    F: FnOnce(spdy::Connection) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => serve(spdy::Connection::serve(TokioIo::new(upgraded))).await,
            Err(error) => tracing::debug!(%error, "a stream ended before it began"),
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for (name, value) in [(CONNECTION, "Upgrade"), (UPGRADE, SPDY), (PROTOCOL, protocol)] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_protocol_is_the_first_of_ours_that_is_offered() {
        let offered = |values: &[&'static str]| {
            let headers = values.iter().map(|value| (PROTOCOL, HeaderValue::from_static(value))).collect();
            choose(&headers, &["v5", "v4", "v3"]).map_err(|refused| refused.0)
        };
        assert_eq!(offered(&["v3", "v4"]), Ok("v4"));
        assert_eq!(offered(&["v3, v5"]), Ok("v5"));
        assert_eq!(offered(&[]), Ok("v3"));
        assert_eq!(offered(&["v9"]), Err(StatusCode::FORBIDDEN));
    }
}
