//! Another API server: how it is reached, and how it learns on whose behalf.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, LOCATION};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Limited};
use hyper::upgrade::OnUpgrade;
use rustls_pki_types::ServerName;
use serde_json::Value;

use super::Registered;
use super::resolve::{Nowhere, Reference};
use crate::authn::{Identity, MASTERS};
use crate::pki::Pair;
use crate::proxy::forward::{self, Passage};
use crate::proxy::rewrite::Rewriting;
use crate::proxy::wire::{self, Sender, Trust, Wires};
use crate::{Server, response};

/// Who asks when the server asks for itself.
const AGGREGATOR: &str = "system:kube-aggregator";
/// How long an answer to the server itself may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long an answer may take to begin, unless it is one that goes on.
const LONGEST: Duration = Duration::from_secs(60);
/// The largest document that is read, in bytes.
const LARGEST: usize = 16 << 20;

/// Another API server.
pub(crate) struct Delegate {
    pub(super) service: Reference,
    sender: Result<Sender, String>,
}

/// A document of another API server.
pub(super) struct Document {
    pub media: String,
    pub bytes: Bytes,
}

impl Delegate {
    /// The server of an APIService's spec, to which `client` is shown.
    pub fn new(spec: &Value, client: &Pair) -> Self {
        let service = Reference::read(&spec["service"]);
        let authorities = spec["caBundle"].as_str().and_then(|bundle| STANDARD.decode(bundle).ok()).unwrap_or_default();
        let trust =
            if spec["insecureSkipTLSVerify"] == true { Trust::Anybody } else { Trust::Authorities(&authorities) };
        let sender = wire::tls(&trust, Some(client)).and_then(|tls| {
            let name = ServerName::try_from(service.host()).map_err(|error| error.to_string())?;
            Ok(Wires::Network { tls, name: Some(name) }.sender())
        });
        Self { service, sender }
    }

    /// Asks for a document in the server's own name.
    ///
    /// # Errors
    /// Why there is none, as Kubernetes says it.
    pub(super) async fn ask(&self, server: &Server, path: &str, accept: &'static str) -> Result<Document, Refusal> {
        let authority = self.service.resolve(server).await.map_err(Refusal::Nowhere)?;
        let url = format!("https://{authority}{path}");
        let missing = |why: String| Refusal::Failed(format!("failing or missing response from {url}: {why}"));
        let no_answer = |why: &str| missing(format!("Get {url:?}: {why}"));
        let sender = self.sender.as_ref().map_err(|why| missing(why.clone()))?;
        let uri: Uri = url.parse().map_err(|_| missing("invalid address".to_owned()))?;
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = uri;
        *request.headers_mut() = identity_headers(&Identity {
            user: AGGREGATOR.to_owned(),
            groups: vec![MASTERS.to_owned()],
            ..Identity::default()
        });
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static(accept));
        let exchange = async {
            let answer = sender.request(request).await.map_err(|error| no_answer(&forward::innermost(&error)))?;
            if !answer.status().is_success() && !answer.status().is_redirection() {
                let code = answer.status().as_u16();
                return Err(missing(format!("bad status from {url}: {code}")));
            }
            let media = answer.headers().get(CONTENT_TYPE).and_then(|media| media.to_str().ok()).unwrap_or_default();
            let media = media.to_owned();
            let body = Limited::new(answer.into_body(), LARGEST).collect().await;
            let bytes = body.map_err(|error| no_answer(&error.to_string()))?.to_bytes();
            Ok(Document { media, bytes })
        };
        match tokio::time::timeout(PATIENCE, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(no_answer("context deadline exceeded (Client.Timeout exceeded while awaiting headers)")),
        }
    }
}

/// Why another server gave no document.
#[derive(Debug)]
pub(super) enum Refusal {
    Nowhere(Nowhere),
    Failed(String),
}

impl Registered {
    /// Passes a request on to the server of this APIService.
    pub async fn answer(
        &self,
        server: &Server,
        identity: &Identity,
        parts: &Parts,
        body: Body,
        upgrade: Option<OnUpgrade>,
        long: bool,
    ) -> Response {
        let unavailable = || failure(StatusCode::SERVICE_UNAVAILABLE, "service unavailable");
        let Some(delegate) = self.delegate.as_ref().filter(|_| self.is_available()) else { return unavailable() };
        let sender = match &delegate.sender {
            Ok(sender) => sender,
            Err(why) => return failure(StatusCode::INTERNAL_SERVER_ERROR, why),
        };
        let authority = match delegate.service.resolve(server).await {
            Ok(authority) => authority,
            Err(Nowhere { message, .. }) => {
                tracing::debug!(api = self.name, message, "an API has no server");
                return unavailable();
            }
        };
        let asked = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let Ok(target) = format!("https://{authority}{asked}").parse::<Uri>() else { return unavailable() };
        let mut added = identity_headers(identity);
        let forwarded = [
            ("x-forwarded-uri", parts.uri.path()),
            ("x-forwarded-host", authority.as_str()),
            ("x-forwarded-proto", "https"),
        ];
        for (name, value) in forwarded {
            added.extend(HeaderValue::from_str(value).ok().map(|value| (HeaderName::from_static(name), value)));
        }
        let rewriting = Rewriting { target: authority, ..Rewriting::default() };
        let passage = Passage { target, rewriting, added, upgrade, stopping: server.stopping.clone() };
        let passing = forward::pass(sender, parts, body, passage);
        let passed = if long { Ok(passing.await) } else { tokio::time::timeout(LONGEST, passing).await };
        match passed {
            Ok(Ok(answer)) if answer.status().is_redirection() && answer.headers().contains_key(LOCATION) => {
                let why = "the backend attempted to redirect this request, which is not permitted";
                response::text(StatusCode::BAD_GATEWAY, why)
            }
            Ok(Ok(answer)) => answer,
            Ok(Err(why)) => failure(StatusCode::SERVICE_UNAVAILABLE, &why.to_string()),
            Err(_) => {
                let why = "error trying to reach service: context deadline exceeded";
                failure(StatusCode::SERVICE_UNAVAILABLE, why)
            }
        }
    }
}

/// A failure as Go's HTTP server writes it.
fn failure(code: StatusCode, why: &str) -> Response {
    let mut answer = response::text(code, format!("{why}\n"));
    answer.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    answer
}

/// On whose behalf a request is made. Only who trusts the client certificate believes it.
fn identity_headers(identity: &Identity) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut add = |name: String, value: &str| {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_bytes(value.as_bytes())) {
            headers.append(name, value);
        }
    };
    add("x-remote-user".to_owned(), &identity.user);
    if !identity.uid.is_empty() {
        add("x-remote-uid".to_owned(), &identity.uid);
    }
    for group in &identity.groups {
        add("x-remote-group".to_owned(), group);
    }
    for (key, values) in &identity.extra {
        for value in values {
            add(format!("x-remote-extra-{}", escape(key)), value);
        }
    }
    headers
}

/// A key as part of a header's name.
fn escape(key: &str) -> String {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte);
    let mut escaped = String::with_capacity(key.len());
    for byte in key.bytes() {
        if legal(byte) {
            escaped.push(char::from(byte.to_ascii_lowercase()));
        } else {
            escaped.push_str(&format!("%{byte:02x}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_says_on_whose_behalf_it_asks() {
        let mut identity = Identity::authenticated("u", ["g".to_owned()]);
        identity.extra.insert("authentication.kubernetes.io/pod-name".to_owned(), vec!["p".to_owned()]);
        let headers = identity_headers(&identity);
        assert_eq!(headers["x-remote-user"], "u");
        let groups: Vec<&HeaderValue> = headers.get_all("x-remote-group").iter().collect();
        assert_eq!(groups, ["g", "system:authenticated"]);
        assert_eq!(headers["x-remote-extra-authentication.kubernetes.io%2fpod-name"], "p");
        assert!(!headers.contains_key("x-remote-uid"));
    }
}
