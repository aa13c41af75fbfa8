//! Passing a request on, and the answer back; after a switch of protocols, nothing but bytes.

use std::net::IpAddr;

use axum::body::Body;
use axum::response::Response;
use http::header::{CONNECTION, HOST, LOCATION, TE, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri, Version};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;

use super::page;
use super::rewrite::Rewriting;
use super::wire::Sender;
use crate::serve::Peer;

/// Headers of one connection, which are not passed on.
const OF_CONNECTION: [&str; 9] = [
    "connection",
    "proxy-connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// Whose the request is, and what else only the gateway is to know of it.
const OF_IDENTITY: [&str; 2] = ["authorization", "proxy-authorization"];
const IDENTITY_PREFIXES: [&str; 2] = ["impersonate-", "x-remote-"];
/// Who may read an answer is the gateway's to say.
const OF_ORIGINS: [&str; 4] = [
    "access-control-allow-credentials",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-allow-origin",
];

/// A request on its way.
pub(crate) struct Passage {
    /// Where to, absolute.
    pub target: Uri,
    /// How the target's paths are the gateway's.
    pub rewriting: Rewriting,
    /// What is added to the headers.
    pub added: HeaderMap,
    /// The client's end, if it wants to change the protocol.
    pub upgrade: Option<OnUpgrade>,
    /// Ends what goes on for long.
    pub stopping: CancellationToken,
}

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// The target cannot be reached, or broke off.
    #[error("error trying to reach service: {0}")]
    Unreachable(String),
    /// The same for a request to change the protocol.
    #[error("{0}")]
    NoUpgrade(String),
}

/// Whether a client wants to change the protocol.
pub(crate) fn wants_upgrade(headers: &HeaderMap) -> bool {
    let options = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    options.flat_map(|value| value.split(',')).any(|option| option.trim().eq_ignore_ascii_case("upgrade"))
}

/// Passes a request on.
pub(crate) async fn pass(sender: &Sender, parts: &Parts, body: Body, passage: Passage) -> Result<Response, Failure> {
    let Passage { target, rewriting, added, upgrade, stopping } = passage;
    let upgrade = upgrade.filter(|_| wants_upgrade(&parts.headers) && parts.headers.contains_key(UPGRADE));
    let mut headers = headers_for_target(&parts.headers, parts.extensions.get::<Peer>().map(|peer| peer.0));
    if upgrade.is_some() {
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        if let Some(protocol) = parts.headers.get(UPGRADE) {
            headers.insert(UPGRADE, protocol.clone());
        }
    }
    if !headers.contains_key(HOST)
        && let Some(host) = parts.uri.authority().and_then(|host| HeaderValue::from_str(host.as_str()).ok())
    {
        headers.insert(HOST, host);
    }
    for (name, value) in &added {
        headers.append(name.clone(), value.clone());
    }
    let mut request = Request::new(body);
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = target;
    *request.version_mut() = Version::HTTP_11;
    *request.headers_mut() = headers;
    let sent = sender.request(request).await.map_err(|error| innermost(&error));
    let Some(client) = upgrade else {
        return Ok(answer(sent.map_err(Failure::Unreachable)?.map(Body::new), &rewriting).await);
    };
    let mut sent = sent.map_err(Failure::NoUpgrade)?;
    if sent.status() != StatusCode::SWITCHING_PROTOCOLS {
        if sent.status().as_u16() < 400 {
            let code = sent.status().as_u16();
            return Err(Failure::NoUpgrade(format!("invalid upgrade response: status code {code}")));
        }
        return Ok(answer(sent.map(Body::new), &rewriting).await);
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = sent.headers().clone();
    tokio::spawn(splice(client, hyper::upgrade::on(&mut sent), stopping));
    Ok(response)
}

/// Connects two ends until one of them is done or the server stops.
async fn splice(client: OnUpgrade, target: OnUpgrade, stopping: CancellationToken) {
    let both = async {
        let (client, target) = tokio::try_join!(client, target).map_err(std::io::Error::other)?;
        tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(target)).await
    };
    if let Some(Err(error)) = stopping.run_until_cancelled(both).await {
        tracing::debug!(%error, "a proxied stream ended");
    }
}

/// What of a client's headers its target sees.
fn headers_for_target(headers: &HeaderMap, peer: Option<IpAddr>) -> HeaderMap {
    let mut passed = without_connection(headers);
    for name in OF_IDENTITY {
        passed.remove(name);
    }
    let private: Vec<HeaderName> =
        passed.keys().filter(|name| IDENTITY_PREFIXES.iter().any(|p| name.as_str().starts_with(p))).cloned().collect();
    for name in private {
        passed.remove(name);
    }
    // The only word of it that has a meaning for more than a connection.
    let trailers = |value: &HeaderValue| value.to_str().is_ok_and(|value| value.contains("trailers"));
    if headers.get_all(TE).iter().any(trailers) {
        passed.insert(TE, HeaderValue::from_static("trailers"));
    }
    if let Some(peer) = peer {
        let name = HeaderName::from_static("x-forwarded-for");
        let before = passed.get_all(&name).iter().filter_map(|value| value.to_str().ok());
        let all: Vec<String> = before.map(str::to_owned).chain([peer.to_canonical().to_string()]).collect();
        if let Ok(value) = HeaderValue::from_str(&all.join(", ")) {
            passed.insert(name, value);
        }
    }
    passed
}

fn without_connection(headers: &HeaderMap) -> HeaderMap {
    let mut passed = headers.clone();
    let named = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    for name in named.flat_map(|value| value.split(',')) {
        passed.remove(name.trim());
    }
    for name in OF_CONNECTION {
        passed.remove(name);
    }
    passed
}

/// A target's answer as the client sees it.
async fn answer(answer: http::Response<Body>, rewriting: &Rewriting) -> Response {
    let (mut parts, body) = answer.into_parts();
    parts.version = Version::default();
    parts.headers = without_connection(&parts.headers);
    for name in OF_ORIGINS {
        parts.headers.remove(name);
    }
    let location = parts.headers.get(LOCATION).and_then(|value| value.to_str().ok());
    if let Some(location) = location {
        if let Some(new) = rewriting.url(location)
            && let Ok(new) = HeaderValue::from_str(&new)
        {
            parts.headers.insert(LOCATION, new);
        }
        return Response::from_parts(parts, body);
    }
    page::rewritten(parts, body, rewriting).await
}

/// The first cause, which says most.
pub(crate) fn innermost(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_sees_neither_who_asks_nor_headers_of_the_connection() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer x"),
            ("impersonate-user", "u"),
            ("x-remote-user", "root"),
            ("connection", "keep-alive, x-hop"),
            ("x-hop", "1"),
            ("te", "gzip, trailers"),
            ("x-forwarded-for", "1.2.3.4"),
            ("accept", "*/*"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let passed = headers_for_target(&headers, Some([10, 0, 0, 1].into()));
        let mut names: Vec<&str> = passed.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["accept", "te", "x-forwarded-for"]);
        assert_eq!(
            (&passed["te"], &passed["x-forwarded-for"]),
            (&HeaderValue::from_static("trailers"), &HeaderValue::from_static("1.2.3.4, 10.0.0.1"))
        );
    }

    #[test]
    fn an_upgrade_is_asked_for_by_a_word_of_connection() {
        let mut headers = HeaderMap::new();
        assert!(!wants_upgrade(&headers));
        headers.insert(CONNECTION, HeaderValue::from_static("keep-alive, Upgrade"));
        assert!(wants_upgrade(&headers));
    }
}
