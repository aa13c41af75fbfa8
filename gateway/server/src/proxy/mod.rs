//! `proxy` of pods, Services and nodes: a request behind `…/proxy` is passed on to where the object leads.

pub(crate) mod forward;
mod location;
mod page;
pub(crate) mod path;
pub(crate) mod rewrite;
pub(crate) mod wire;

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use carob_api::kind::Kind;
use carob_api::status::Status;
use http::header::{HOST, LOCATION};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use hyper::upgrade::OnUpgrade;
use serde_json::json;

use crate::call::Call;
use crate::request::{ResourcePath, percent_decode};
use crate::{NodeDialer, admission};
use forward::{Failure, Passage};
use location::Place;
use rewrite::Rewriting;
use wire::{Sender, Trust, Wires};

const METHODS: [Method; 7] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];
/// The part of the URL that proxied requests have in common.
const PROXY: &str = "proxy";

/// What sends proxied requests.
pub(crate) struct Proxy {
    network: Sender,
    nodes: Sender,
}

impl Proxy {
    /// Nodes' workers are reached through `dialer`.
    pub fn new(dialer: &Arc<dyn NodeDialer>) -> Result<Self, String> {
        let tls = wire::tls(&Trust::Anybody, None)?;
        Ok(Self {
            network: Wires::Network { tls, name: None }.sender(),
            nodes: Wires::Node(Arc::clone(dialer)).sender(),
        })
    }
}

/// Whether a path leads through an object of this kind.
pub(crate) fn is_meant(kind: &Kind, path: &ResourcePath) -> bool {
    path.subresource.as_deref() == Some(PROXY) && kind.subresource(PROXY).is_some()
}

/// Passes a request on to where the object of the call leads.
pub(crate) async fn answer(
    mut call: Call,
    parts: &Parts,
    body: Body,
    upgrade: Option<OnUpgrade>,
) -> Result<Response, Status> {
    if !METHODS.contains(&parts.method) {
        return Err(Status::method_not_allowed());
    }
    let whole = percent_decode(parts.uri.path()).ok_or_else(|| Status::bad_request("the path is not UTF-8"))?;
    let behind = path::join("", &behind_proxy(&whole, call.namespaced()));
    let place = location::find(&mut call).await?;
    let options = json!({ "kind": options_kind(&call.kind), "apiVersion": "v1", "path": behind });
    admission::review(&mut admission::Request::connect(&call, PROXY, options)).await?;

    let upgrades = forward::wants_upgrade(&parts.headers);
    let query = parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    if behind.is_empty() && !upgrades && matches!(parts.method, Method::GET | Method::HEAD) {
        return Ok(with_slash(&whole, &query));
    }
    let prefix = whole.strip_suffix(&behind).unwrap_or(&whole).to_owned();
    let seen = path::encode(if behind.is_empty() { "/" } else { &behind });
    let (scheme, authority, sender) = match place {
        Place::Network { scheme, authority } => (scheme, authority, &call.server.proxy.network),
        Place::Worker(node) => ("http", node, &call.server.proxy.nodes),
    };
    let target = format!("{scheme}://{authority}{seen}{query}");
    let target: Uri = target.parse().map_err(|_| Status::bad_request(format!("invalid address {target:?}")))?;
    let mut added = HeaderMap::new();
    if let Ok(path) = HeaderValue::from_str(&path::join(&path::encode(&prefix), &seen)) {
        added.insert(HeaderName::from_static("x-forwarded-uri"), path);
    }
    let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default().to_owned();
    let passage = Passage {
        target,
        rewriting: Rewriting { prefix: path::encode(&prefix), target: authority, host },
        added,
        upgrade,
        stopping: call.server.stopping.clone(),
    };
    forward::pass(sender, parts, body, passage).await.map_err(|failure| match failure {
        Failure::Unreachable(_) => Status::service_unavailable(failure.to_string()),
        Failure::NoUpgrade(_) => Status::generic(500, "", failure.to_string()),
    })
}

/// What a path has behind `…/NAME/proxy`, with its slashes.
fn behind_proxy(whole: &str, namespaced: bool) -> String {
    // api, v1, namespaces, NAMESPACE, pods, NAME, proxy
    let before = if namespaced { 7 } else { 5 };
    let segments: Vec<&str> = whole.trim_matches('/').split('/').filter(|segment| !segment.is_empty()).collect();
    let mut behind: String = segments.iter().skip(before).flat_map(|segment| ["/", segment]).collect();
    if whole.ends_with('/') {
        behind.push('/');
    }
    behind
}

fn options_kind(kind: &Kind) -> &'static str {
    kind.subresource(PROXY).map_or("", |part| part.gvk.2)
}

/// Relative links of a page only lead behind the proxy if its own path ends with a slash.
fn with_slash(path: &str, query: &str) -> Response {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(location) = HeaderValue::from_str(&format!("{path}/{query}")) {
        answer.headers_mut().insert(LOCATION, location);
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_behind_the_proxy_keeps_its_trailing_slash() {
        for (whole, namespaced, behind) in [
            ("/api/v1/namespaces/n/pods/p/proxy", true, ""),
            ("/api/v1/namespaces/n/pods/p/proxy/", true, "/"),
            ("/api/v1/namespaces/n/services/https:s:a/proxy/x/y", true, "/x/y"),
            ("/api/v1/namespaces/n/pods/p/proxy/x/", true, "/x/"),
            ("/api/v1/nodes/n/proxy/logs/", false, "/logs/"),
        ] {
            assert_eq!(behind_proxy(whole, namespaced), behind, "{whole}");
        }
    }
}
