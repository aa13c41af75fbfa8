//! The way to a worker and back: an HTTP/1.1 request, and after a real switch of protocols nothing but bytes.
//!
//! A tunnel opens only when the worker itself has answered 101 to an upgrade that the client asked for. Otherwise its
//! answer is passed on as an answer and the connection to it is closed, so that no client can go on talking to a worker
//! under the gateway's name; and no redirect of a worker is ever followed or passed on.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use carob_api::status::Status;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::target::Target;
use crate::call::Call;
use crate::proxy::forward::wants_upgrade;

/// Headers of the client that a worker sees: those of the upgrade.
const PASSED: [&str; 6] = [
    "sec-websocket-key",
    "sec-websocket-version",
    "sec-websocket-protocol",
    "sec-websocket-extensions",
    "x-stream-protocol-version",
    "user-agent",
];
/// What streams over a WebSocket are called.
const SUBPROTOCOLS: [&str; 8] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "SPDY/3.1+portforward.k8s.io",
];
/// The longest error text that is taken from a worker.
const MAX_ERROR: usize = 64 << 10;

/// 204
pub(super) fn no_content() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// Passes an ordinary answer on, as it comes.
pub(super) async fn fetch(call: &Call, target: &Target) -> Result<Response, Status> {
    let request = request(Method::GET, target, HeaderMap::new())?;
    let answer = send(call, target, request).await?;
    if answer.status() != StatusCode::OK {
        return Err(failure(answer).await);
    }
    let content_type = answer.headers().get(CONTENT_TYPE).cloned();
    let mut response = Response::new(Body::new(answer.into_body()));
    let text = HeaderValue::from_static("text/plain");
    response.headers_mut().insert(CONTENT_TYPE, content_type.unwrap_or(text));
    Ok(response)
}

/// 400 for a WebSocket client that knows none of the subprotocols. One that names none gets the oldest.
fn check_subprotocol(headers: &HeaderMap) -> Result<(), Status> {
    let offered = super::socket::offered(headers);
    if offered.is_empty() || offered.iter().any(|name| SUBPROTOCOLS.contains(name)) {
        return Ok(());
    }
    Err(Status::bad_request(format!(
        "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts {SUBPROTOCOLS:?}"
    )))
}

/// Connects the client with the worker.
pub(super) async fn tunnel(call: &Call, target: &Target, upgrade: Option<OnUpgrade>) -> Result<Response, Status> {
    let wanted = call.headers.get(UPGRADE).filter(|_| wants_upgrade(&call.headers)).cloned();
    let (Some(wanted), Some(upgrade)) = (wanted, upgrade) else {
        return Err(Status::bad_request("Upgrade request required"));
    };
    check_subprotocol(&call.headers)?;
    let mut headers = HeaderMap::new();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, wanted.clone());
    for name in PASSED.map(HeaderName::from_static) {
        for value in call.headers.get_all(&name) {
            headers.append(name.clone(), value.clone());
        }
    }
    // WebSocket begins with GET (RFC 6455), SPDY with what the client sent; workers take GET for both.
    let answer = send(call, target, request(Method::GET, target, headers)?).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(failure(answer).await);
    }
    let agreed = answer.headers().get(UPGRADE).is_some_and(|agreed| {
        agreed.to_str().is_ok_and(|agreed| wanted.to_str().is_ok_and(|wanted| agreed.eq_ignore_ascii_case(wanted)))
    });
    if !agreed {
        return Err(Status::generic(502, "InternalError", "the node switched to a protocol that was not asked for"));
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for (name, value) in answer.headers() {
        if name != CONTENT_LENGTH && name != TRANSFER_ENCODING {
            response.headers_mut().append(name.clone(), value.clone());
        }
    }
    let stopping = call.server.stopping.clone();
    let messages = wanted.as_bytes().eq_ignore_ascii_case(b"websocket");
    tokio::spawn(async move {
        let (client, worker) = match tokio::try_join!(upgrade, hyper::upgrade::on(answer)) {
            Ok(both) => both,
            Err(error) => {
                tracing::debug!(%error, "a stream ended before it began");
                return;
            }
        };
        let (mut client, mut worker) = (TokioIo::new(client), TokioIo::new(worker));
        let relayed = async {
            if messages {
                return super::messages::relay(client, worker).await;
            }
            tokio::io::copy_bidirectional(&mut client, &mut worker).await.map(drop)
        };
        tokio::select! {
            () = stopping.cancelled() => {}
            copied = relayed => {
                if let Err(error) = copied {
                    tracing::debug!(%error, "a stream broke");
                }
            }
        }
    });
    Ok(response)
}

fn request(method: Method, target: &Target, headers: HeaderMap) -> Result<Request<Empty<Bytes>>, Status> {
    let mut request = Request::builder()
        .method(method)
        .uri(&target.uri)
        .body(Empty::new())
        .map_err(|error| Status::bad_request(format!("the request cannot be passed on: {error}")))?;
    *request.headers_mut() = headers;
    let host = HeaderValue::from_str(&target.node).unwrap_or(HeaderValue::from_static("node"));
    request.headers_mut().insert(HOST, host);
    Ok(request)
}

/// Sends a request on a new stream to the worker.
async fn send(
    call: &Call,
    target: &Target,
    request: Request<Empty<Bytes>>,
) -> Result<http::Response<Incoming>, Status> {
    let unreachable = |error: &dyn std::fmt::Display| {
        Status::generic(502, "InternalError", format!("error dialing node {}: {error}", target.node))
    };
    let stream = call.server.dialer.dial(&target.node).await.map_err(|error| unreachable(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| unreachable(&error))?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a stream to a node ended");
        }
    });
    sender.send_request(request).await.map_err(|error| unreachable(&error))
}

/// What a worker's refusal is to the client.
async fn failure(answer: http::Response<Incoming>) -> Status {
    let code = answer.status();
    let text = match Limited::new(answer.into_body(), MAX_ERROR).collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).trim().to_owned(),
        Err(_) => String::new(),
    };
    if code.is_redirection() || code.is_informational() || code.is_success() {
        return Status::generic(502, "InternalError", "the node answered with something that is not passed on");
    }
    // A worker may answer with a Status of its own.
    let status: Option<serde_json::Value> = serde_json::from_str(&text).ok();
    let message =
        status.as_ref().and_then(|status| status["message"].as_str()).map_or(text.as_str(), |message| message);
    let reason = match code.as_u16() {
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "InternalError",
    };
    Status::generic(code.as_u16(), reason, message)
}
