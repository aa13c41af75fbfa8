//! What becomes of a request whose rule is found.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::path::PathChange;

/// What is done with a request.
#[derive(Debug, Default)]
pub struct Rule {
    pub request: HeaderChange,
    pub response: HeaderChange,
    pub rewrite: Option<Rewrite>,
    pub mirrors: Vec<Mirror>,
    pub action: Action,
    /// How long until the client has its answer, whole.
    pub timeout: Option<Duration>,
    /// How long until an endpoint has answered, if not as long as usual; at most forever.
    pub backend_timeout: Option<Duration>,
}

/// Where a request ends up.
#[derive(Debug)]
pub enum Action {
    Forward(Split),
    Redirect(Redirect),
    /// It is answered with this status.
    Fail(StatusCode),
}

impl Default for Action {
    fn default() -> Self {
        Self::Fail(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl Rule {
    /// All that requests of this rule may be sent to, copies included.
    pub fn backends(&self) -> impl Iterator<Item = &Arc<Backend>> {
        let targets = match &self.action {
            Action::Forward(split) => &split.targets[..],
            _ => &[],
        };
        let main = targets.iter().filter_map(|target| target.to.as_ref().ok());
        let inner = targets.iter().flat_map(|target| &target.mirrors);
        main.chain(self.mirrors.iter().chain(inner).map(|mirror| &mirror.to))
    }
}

/// How the host and the path change on the way to the backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    pub host: Option<String>,
    pub path: Option<PathChange>,
}

/// The client is sent elsewhere. What isn't given stays as it was asked for.
#[derive(Clone, Debug)]
pub struct Redirect {
    pub scheme: Option<String>,
    pub host: Option<String>,
    pub port: Option<u16>,
    pub path: Option<PathChange>,
    pub status: StatusCode,
}

impl Redirect {
    /// The `Location` for a request to `path` (of which `matched` is the prefix that matched) that came to `host` on
    /// `port` of a listener that speaks `scheme`.
    pub fn location(&self, scheme: &str, host: &str, port: u16, uri: &http::Uri, matched: &str) -> String {
        let own_scheme = self.scheme.as_deref().unwrap_or(scheme);
        let usual = match own_scheme {
            "https" => 443,
            _ => 80,
        };
        // Whoever changes the scheme alone means the port that it usually has.
        let port = self.port.unwrap_or(if self.scheme.is_some() { usual } else { port });
        let host = self.host.as_deref().unwrap_or(host);
        let shown = if port == usual { String::new() } else { format!(":{port}") };
        let path = self.path.as_ref().map_or_else(|| uri.path().to_owned(), |change| change.apply(uri.path(), matched));
        let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        format!("{own_scheme}://{host}{shown}{path}{query}")
    }
}

/// Headers that are written over, added and taken away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderChange {
    pub set: Vec<(HeaderName, HeaderValue)>,
    pub add: Vec<(HeaderName, HeaderValue)>,
    pub remove: Vec<HeaderName>,
}

impl HeaderChange {
    pub fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.set {
            headers.insert(name.clone(), value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name.clone(), value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }
}

/// A copy of requests, whose answers nobody waits for.
#[derive(Debug)]
pub struct Mirror {
    pub to: Arc<Backend>,
    /// Of how many requests, so many are copied.
    pub share: (u32, u32),
    turn: Turn,
}

impl Mirror {
    /// Copies `share.0` of `share.1` requests.
    pub fn new(to: Arc<Backend>, share: (u32, u32)) -> Self {
        Self { to, share, turn: Turn::default() }
    }

    /// Whether this request's turn has come.
    pub fn is_due(&self) -> bool {
        self.turn.below(u64::from(self.share.1)) < u64::from(self.share.0)
    }
}

/// Backends that share requests by weight.
#[derive(Debug, Default)]
pub struct Split {
    targets: Vec<Target>,
    total: u64,
    turn: Turn,
}

/// A backend's part of the requests.
#[derive(Debug)]
pub struct Target {
    pub weight: u32,
    /// The status, if it refers to nothing.
    pub to: Result<Arc<Backend>, StatusCode>,
    pub request: HeaderChange,
    pub response: HeaderChange,
    pub mirrors: Vec<Mirror>,
}

impl Target {
    /// A backend that changes nothing.
    pub fn plain(weight: u32, to: Result<Arc<Backend>, StatusCode>) -> Self {
        Self { weight, to, request: HeaderChange::default(), response: HeaderChange::default(), mirrors: Vec::new() }
    }
}

impl Split {
    pub fn new(targets: Vec<Target>) -> Self {
        let total = targets.iter().map(|target| u64::from(target.weight)).sum();
        Self { targets, total, turn: Turn::default() }
    }

    /// The next request's target; nothing if none has any weight.
    pub fn choose(&self) -> Option<&Target> {
        if let [only] = &self.targets[..] {
            return (only.weight > 0).then_some(only);
        }
        let mut at = self.turn.below(self.total);
        self.targets.iter().find(|target| {
            let weight = u64::from(target.weight);
            let here = at < weight;
            at = at.wrapping_sub(weight);
            here
        })
    }
}

/// What requests are sent to: one port of a Service.
#[derive(Debug, Default)]
pub struct Backend {
    pub endpoints: Vec<SocketAddr>,
    pub protocol: Protocol,
    /// Where a client's requests all go to one endpoint.
    pub affinity: Option<Affinity>,
    turn: Turn,
}

/// How clients stay with endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// Names the Service's port: whoever stays with an endpoint of it does so by whatever route.
    pub whose: Arc<str>,
    /// For how long after a client's last request.
    pub time: Duration,
}

/// What endpoints speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1, but HTTP/2 for what is gRPC.
    #[default]
    Guess,
    /// HTTP/2 without TLS.
    Http2,
}

impl Backend {
    pub fn new(endpoints: Vec<SocketAddr>, protocol: Protocol) -> Self {
        Self { endpoints, protocol, affinity: None, turn: Turn::default() }
    }

    /// The endpoints in the order in which this request tries them.
    pub fn order(&self) -> impl Iterator<Item = SocketAddr> {
        let count = self.endpoints.len();
        let first = match count {
            0 | 1 => 0,
            // In turn: no scattering.
            _ => usize::try_from(self.turn.0.fetch_add(1, Ordering::Relaxed) % count as u64).unwrap_or(0),
        };
        (0..count).map(move |step| self.endpoints[(first + step) % count])
    }
}

/// Counts requests.
#[derive(Debug, Default)]
struct Turn(AtomicU64);

impl Turn {
    /// Numbers below `limit` that come equally often, evenly mixed: steps of the golden section.
    fn below(&self, limit: u64) -> u64 {
        const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
        let turn = self.0.fetch_add(1, Ordering::Relaxed).wrapping_mul(GOLDEN);
        u64::try_from((u128::from(turn) * u128::from(limit)) >> 64).unwrap_or(0)
    }
}
