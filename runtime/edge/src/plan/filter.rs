//! A route's filters and what they refer to.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, StatusCode};

use super::backend::{self, Missing, PortName};
use super::reference::{self, From, To};
use crate::gateway_api::{BackendRef, Filter, GROUP, HeaderFilter, PathModifier, RedirectFilter, Reference};
use crate::route::action::Rewrite;
use crate::route::path::PathChange;
use crate::route::{Backend, HeaderChange, Mirror, Protocol, Redirect, Target};
use crate::state::{Key, State};

/// What frames messages, says whose they are, or keeps them from going round: the proxy's own, not a route's. A length that
/// isn't the body's would let what follows on the connection be taken for another request.
const RESERVED: [&str; 9] =
    ["content-length", "transfer-encoding", "trailer", "connection", "keep-alive", "upgrade", "te", "host", "cdn-loop"];

/// Something that isn't as it should be: a reason of the Gateway API, and a text for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub reason: &'static str,
    pub message: String,
}

impl Problem {
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    fn value(message: impl Into<String>) -> Self {
        Self::new("UnsupportedValue", message)
    }
}

/// A route while it is read, and what is wrong with it.
pub struct Reading<'a> {
    pub state: &'a State,
    /// The route's kind.
    pub kind: &'static str,
    pub namespace: &'a str,
    /// Its endpoints speak HTTP/2, whatever their Services say.
    pub http2: bool,
    /// Values of the rule at hand that can't be carried out: the first one.
    pub accepted: Option<Problem>,
    /// References that lead nowhere: the first one.
    pub resolved: Option<Problem>,
}

/// What filters come to.
#[derive(Default)]
pub struct Filters {
    pub request: HeaderChange,
    pub response: HeaderChange,
    pub rewrite: Option<Rewrite>,
    pub redirect: Option<Redirect>,
    pub mirrors: Vec<Mirror>,
    /// One of them isn't known: requests must not pass it by.
    pub broken: bool,
}

impl Reading<'_> {
    /// Reads filters. Those of a backend change no address.
    pub fn filters(&mut self, filters: &[Filter], of_backend: bool) -> Filters {
        let mut read = Filters::default();
        for filter in filters {
            match filter.kind.as_str() {
                "RequestHeaderModifier" => read.request = self.headers(filter.request_header_modifier.as_ref()),
                "ResponseHeaderModifier" => read.response = self.headers(filter.response_header_modifier.as_ref()),
                "RequestRedirect" if !of_backend => {
                    read.redirect = filter.request_redirect.as_ref().and_then(|redirect| self.redirect(redirect));
                }
                "URLRewrite" if !of_backend => {
                    read.rewrite = filter.url_rewrite.as_ref().map(|rewrite| Rewrite {
                        host: rewrite.hostname.clone(),
                        path: rewrite.path.as_ref().and_then(path_change),
                    });
                }
                "RequestMirror" => {
                    let Some(mirror) = &filter.request_mirror else { continue };
                    let share = match (&mirror.fraction, mirror.percent) {
                        (Some(fraction), _) => (fraction.numerator, fraction.denominator.unwrap_or(100).max(1)),
                        (None, percent) => (percent.unwrap_or(100), 100),
                    };
                    match self.backend(&mirror.backend_ref) {
                        Ok(to) => read.mirrors.push(Mirror::new(to, share)),
                        Err(problem) => self.unresolved(problem),
                    }
                }
                "ExtensionRef" => {
                    self.unresolved(Problem::new("InvalidKind", "filters of type ExtensionRef are not known here"));
                    read.broken = true;
                }
                other => {
                    self.unsupported(Problem::value(format!("a filter of type {other} is not carried out here")));
                    read.broken = true;
                }
            }
        }
        read
    }

    fn unresolved(&mut self, problem: Problem) {
        self.resolved.get_or_insert(problem);
    }

    pub fn unsupported(&mut self, problem: Problem) {
        self.accepted.get_or_insert(problem);
    }

    pub fn unsupported_value(&mut self, message: impl Into<String>) {
        self.unsupported(Problem::value(message));
    }

    /// A header's name.
    pub fn header(&mut self, name: &str) -> Option<HeaderName> {
        let read = HeaderName::from_bytes(name.as_bytes());
        if read.is_err() {
            self.unsupported_value(format!("{name:?} is no name of a header"));
        }
        read.ok()
    }

    /// The name of a header that a filter may change.
    fn changeable(&mut self, name: &str) -> Option<HeaderName> {
        let read = self.header(name)?;
        if RESERVED.contains(&read.as_str()) {
            self.unsupported_value(format!("header {read} can't be changed by a filter"));
            return None;
        }
        Some(read)
    }

    fn headers(&mut self, filter: Option<&HeaderFilter>) -> HeaderChange {
        let Some(filter) = filter else { return HeaderChange::default() };
        let mut pairs = |pairs: &[crate::gateway_api::NamedValue]| {
            let mut read = Vec::new();
            for pair in pairs {
                let value = HeaderValue::from_str(&pair.value);
                match (self.changeable(&pair.name), value) {
                    (Some(name), Ok(value)) => read.push((name, value)),
                    (_, Err(_)) => self.unsupported_value(format!("header {}: its value can't be sent", pair.name)),
                    (None, _) => {}
                }
            }
            read
        };
        let (set, add) = (pairs(&filter.set), pairs(&filter.add));
        let remove = filter.remove.iter().filter_map(|name| self.changeable(name)).collect();
        HeaderChange { set, add, remove }
    }

    fn redirect(&mut self, filter: &RedirectFilter) -> Option<Redirect> {
        let Ok(status) = StatusCode::from_u16(filter.status_code.unwrap_or(302)) else {
            self.unsupported_value("a redirect needs a status");
            return None;
        };
        Some(Redirect {
            scheme: filter.scheme.clone(),
            host: filter.hostname.clone(),
            port: filter.port,
            path: filter.path.as_ref().and_then(path_change),
            status,
        })
    }

    /// What a reference leads to.
    fn backend(&self, reference: &Reference) -> Result<Arc<Backend>, Problem> {
        let (group, kind) = (reference.group.as_deref().unwrap_or(""), reference.kind.as_deref().unwrap_or("Service"));
        if !group.is_empty() || kind != "Service" {
            return Err(Problem::new("InvalidKind", format!("a backend is a Service, not {kind}.{group}")));
        }
        let namespace = reference.namespace.as_deref().unwrap_or(self.namespace);
        let name = &reference.name;
        let from = From { group: GROUP, kind: self.kind, namespace: self.namespace };
        let to = To { group, kind, namespace, name };
        if !reference::is_permitted(self.state, &from, &to) {
            let message = format!("no ReferenceGrant in {namespace} lets routes of {} refer to {name}", self.namespace);
            return Err(Problem::new("RefNotPermitted", message));
        }
        let port = reference.port.unwrap_or_default();
        let found = backend::find(self.state, &Key::new(namespace, name), PortName::Number(port));
        let found = found.map_err(|missing| match missing {
            Missing::Service => Problem::new("BackendNotFound", format!("there is no Service {namespace}/{name}")),
            Missing::Port => Problem::new("BackendNotFound", format!("Service {namespace}/{name} has no port {port}")),
            Missing::Protocol => Problem::new(
                "UnsupportedProtocol",
                format!("port {port} of Service {namespace}/{name} speaks TLS by its appProtocol, which backends are not spoken to in"),
            ),
            Missing::External => Problem::new(
                "UnsupportedProtocol",
                format!("Service {namespace}/{name} is a name of something elsewhere"),
            ),
        })?;
        if self.http2 && found.protocol != Protocol::Http2 {
            let mut spoken = Backend::new(found.endpoints.clone(), Protocol::Http2);
            spoken.affinity.clone_from(&found.affinity);
            return Ok(Arc::new(spoken));
        }
        Ok(found)
    }

    /// What requests are answered that lead to no backend. Clients of gRPC take 503 for `UNAVAILABLE`, which they are
    /// promised; 500 would be `UNKNOWN`.
    pub fn nowhere(&self) -> StatusCode {
        if self.http2 { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::INTERNAL_SERVER_ERROR }
    }

    /// A backend with its part of the requests.
    pub fn target(&mut self, reference: &BackendRef) -> Target {
        let to = self.backend(&reference.to).map_err(|problem| {
            self.unresolved(problem);
            self.nowhere()
        });
        let filters = self.filters(&reference.filters, true);
        Target {
            weight: reference.weight.unwrap_or(1),
            to: if filters.broken { Err(StatusCode::INTERNAL_SERVER_ERROR) } else { to },
            request: filters.request,
            response: filters.response,
            mirrors: filters.mirrors,
        }
    }
}

fn path_change(modifier: &PathModifier) -> Option<PathChange> {
    match (&modifier.replace_full_path, &modifier.replace_prefix_match) {
        (Some(path), _) => Some(PathChange::Full(path.clone())),
        (None, Some(prefix)) => Some(PathChange::Prefix(prefix.clone())),
        (None, None) => None,
    }
}
