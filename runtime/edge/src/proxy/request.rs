//! One request: its rule, its endpoint, and the answer back.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, CONTENT_TYPE, EXPECT, HOST, LOCATION, SEC_WEBSOCKET_ACCEPT, UPGRADE};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::body::{Outgoing, Reply};
use super::headers::{self, Origin};
use super::mirror::{self, Original};
use super::pool::{Http1, Lease};
use super::share::Place;
use super::websocket::{self, Proof};
use super::{Door, Shared};
use crate::route::host::name_of;
use crate::route::{Action, Backend, Found, Mirror, Protocol, Rule, Target};

/// How many endpoints are tried, if they cannot be connected to.
const TRIES: usize = 4;
/// How long an endpoint may take to begin its answer, where no rule says so. Streams of gRPC may take longer.
const ANSWER: Duration = Duration::from_secs(300);
/// Said of answers of the proxy's own.
const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// Who asks.
pub struct Client {
    pub peer: SocketAddr,
    /// What it called this side when it opened the connection.
    pub server_name: Option<String>,
    pub secure: bool,
    /// Its connection's.
    pub place: Arc<Place>,
}

/// A client that wants to change the protocol. Afterwards the places are those of the stream.
struct Changing {
    client: OnUpgrade,
    /// What the endpoint has to show, if the client speaks HTTP/2.
    proof: Option<Proof>,
    _places: [Arc<Place>; 2],
}

/// Why there is no answer of an endpoint.
enum Failure {
    /// No endpoint takes requests.
    Nobody,
    /// It broke off, or spoke no HTTP.
    Broken,
    /// It took too long.
    Late,
}

impl Failure {
    fn status(&self) -> StatusCode {
        match self {
            Self::Nobody => StatusCode::SERVICE_UNAVAILABLE,
            Self::Broken => StatusCode::BAD_GATEWAY,
            Self::Late => StatusCode::GATEWAY_TIMEOUT,
        }
    }
}

/// Answers a request.
pub async fn answer(shared: &Shared, door: &Door, client: &Client, request: Request<Incoming>) -> Response<Reply> {
    let response = match shared.place(client.peer.ip()) {
        Some(place) => route(shared, door, client, request, place).await,
        None => Err(StatusCode::SERVICE_UNAVAILABLE),
    };
    let response = response.unwrap_or_else(own);
    shared.settings.metrics.answered(response.status());
    response
}

/// An answer of the proxy's own.
fn own(status: StatusCode) -> Response<Reply> {
    let text = format!("{} {}\n", status.as_u16(), status.canonical_reason().unwrap_or_default());
    let mut response = Response::new(Reply::text(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, PLAIN);
    response
}

async fn route(
    shared: &Shared,
    door: &Door,
    client: &Client,
    mut request: Request<Incoming>,
    place: Arc<Place>,
) -> Result<Response<Reply>, StatusCode> {
    let changes = request.headers().contains_key(UPGRADE) || request.method() == Method::CONNECT;
    let upgrade = changes.then(|| hyper::upgrade::on(&mut request));
    let (mut parts, body) = request.into_parts();
    if headers::is_ambiguous(&parts) {
        return Err(StatusCode::BAD_REQUEST);
    }
    if headers::is_coded(&parts.headers) {
        return Err(StatusCode::NOT_IMPLEMENTED);
    }
    if headers::is_looping(&parts.headers) {
        return Err(StatusCode::LOOP_DETECTED);
    }
    let proof = websocket::translate(&mut parts)?;
    if parts.method == Method::CONNECT {
        return Err(StatusCode::METHOD_NOT_ALLOWED);
    }
    let authority = headers::host(&parts).ok_or(StatusCode::BAD_REQUEST)?;
    let host = name_of(&authority).ok_or(StatusCode::BAD_REQUEST)?;
    let port = door.port();
    let server_name = client.server_name.as_deref();
    let entry = match port.find(&host, server_name, &parts) {
        Found::Entry(entry) => entry,
        Found::Nothing => return Err(StatusCode::NOT_FOUND),
        Found::Misdirected => return Err(StatusCode::MISDIRECTED_REQUEST),
    };
    let rule = Arc::clone(&entry.rule);
    let matched = entry.matches.path.replaceable();
    let split = match &rule.action {
        Action::Fail(status) => return Err(*status),
        Action::Redirect(redirect) => {
            let scheme = if client.secure { "https" } else { "http" };
            let location = redirect.location(scheme, &host, door.number, &parts.uri, matched);
            let mut response = own(redirect.status);
            let location = HeaderValue::from_str(&location).map_err(|_| StatusCode::BAD_REQUEST)?;
            response.headers_mut().insert(LOCATION, location);
            rule.response.apply(response.headers_mut());
            return Ok(response);
        }
        Action::Forward(split) => split,
    };
    let target = split.choose().ok_or(StatusCode::INTERNAL_SERVER_ERROR)?;
    let backend = target.to.as_ref().map_err(|status| *status)?;

    let wanted = headers::upgrade(&parts);
    let upgrade = upgrade.filter(|_| wanted.is_some());
    headers::strip(&mut parts.headers);
    // What the client waits for before it sends its body, this side has said already.
    parts.headers.remove(EXPECT);
    if let (Some(protocol), Some(_)) = (wanted, &upgrade) {
        parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(UPGRADE, protocol);
    }
    let trusted = &shared.settings.trusted;
    let whose = headers::client(&parts.headers, client.peer.ip(), trusted);
    let origin = Origin {
        peer: client.peer.ip(),
        secure: client.secure,
        port: door.number,
        host: &authority,
        trusted: headers::is_trusted(client.peer.ip(), trusted),
    };
    headers::tell_origin(&mut parts.headers, &origin);
    let authority = rewrite(&mut parts, &rule, matched, authority);
    let grpc = is_grpc(&parts);
    let http2 = upgrade.is_none() && (backend.protocol == Protocol::Http2 || grpc);
    rule.request.apply(&mut parts.headers);
    target.request.apply(&mut parts.headers);
    address(&mut parts, &authority, http2).map_err(|()| StatusCode::BAD_REQUEST)?;

    let mirrors: Vec<&Mirror> = rule.mirrors.iter().chain(&target.mirrors).filter(|mirror| mirror.is_due()).collect();
    let (body, copies) = Outgoing::of_client(body, grpc, mirrors.len());
    for (to, copy) in mirrors.into_iter().zip(copies) {
        if let Some(place) = shared.place(client.peer.ip()) {
            let original = Original { head: &parts, authority: &authority, client: whose };
            mirror::send(shared, &to.to, &original, copy, place);
        }
    }
    headers::tell_pass(&mut parts.headers, false);

    let deadline = rule.timeout.map(|limit| Instant::now() + limit);
    let limit = match (rule.backend_timeout, deadline) {
        (Some(limit), _) => Some(limit),
        (None, None) if !grpc && upgrade.is_none() => Some(ANSWER),
        (None, _) => None,
    };
    let sending = Sending { shared, backend, http2, limit, client: whose };
    let sent = sending.send(Request::from_parts(parts, body));
    let sent = match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline, sent).await.unwrap_or(Err(Failure::Late)),
        None => sent.await,
    };
    let (response, lease) = sent.map_err(|failure| failure.status())?;
    let places = [Arc::clone(&client.place), Arc::clone(&place)];
    let changing = upgrade.map(|client| Changing { client, proof, _places: places });
    let mut response = finish(response, lease, changing, &rule, target, deadline, &door.closing)?;
    response.body_mut().hold(place);
    Ok(response)
}

/// The endpoint's answer as the client gets it.
fn finish(
    mut response: Response<Incoming>,
    lease: Option<Lease>,
    changing: Option<Changing>,
    rule: &Rule,
    target: &Target,
    deadline: Option<Instant>,
    closing: &CancellationToken,
) -> Result<Response<Reply>, StatusCode> {
    let proof = changing.as_ref().and_then(|changing| changing.proof.as_ref());
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        if proof.is_some_and(|proof| !proof.is_in(response.headers())) {
            return Err(StatusCode::BAD_GATEWAY);
        }
        let of_http2 = proof.is_some();
        // Nobody asked for it.
        let client = changing.ok_or(StatusCode::BAD_GATEWAY)?;
        tokio::spawn(splice(client, hyper::upgrade::on(&mut response), closing.clone()));
        let (mut parts, _) = response.into_parts();
        if of_http2 {
            parts.status = StatusCode::OK;
            parts.version = Version::default();
            headers::strip(&mut parts.headers);
            parts.headers.remove(SEC_WEBSOCKET_ACCEPT);
        }
        return Ok(Response::from_parts(parts, Reply::text("")));
    }
    // To a client that speaks HTTP/2 this would say that its WebSocket is open.
    if proof.is_some() && response.status().is_success() {
        return Err(StatusCode::BAD_GATEWAY);
    }
    let (mut parts, body) = response.into_parts();
    headers::strip(&mut parts.headers);
    parts.version = Version::default();
    target.response.apply(&mut parts.headers);
    rule.response.apply(&mut parts.headers);
    Ok(Response::from_parts(parts, Reply::endpoint(body, lease, deadline)))
}

/// Connects two ends until one of them is done.
async fn splice(changing: Changing, endpoint: OnUpgrade, closing: CancellationToken) {
    let both = async {
        let Changing { client, proof: _, _places } = changing;
        let (client, endpoint) = tokio::try_join!(client, endpoint).map_err(std::io::Error::other)?;
        tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(endpoint)).await
    };
    if let Some(Err(error)) = closing.run_until_cancelled(both).await {
        tracing::debug!(%error, "a stream through the proxy ended");
    }
}

/// Whether it is a call of gRPC.
pub fn is_grpc(parts: &Parts) -> bool {
    let content = parts.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    parts.version == Version::HTTP_2 && content.is_some_and(|content| content.starts_with(b"application/grpc"))
}

/// Changes the path as the rule says; gives the host that the endpoint is told.
fn rewrite(parts: &mut Parts, rule: &Rule, matched: &str, authority: String) -> String {
    let Some(rewrite) = &rule.rewrite else { return authority };
    if let Some(change) = &rewrite.path {
        let path = change.apply(parts.uri.path(), matched);
        let whole = parts.uri.query().map_or_else(|| path.clone(), |query| format!("{path}?{query}"));
        if let Ok(uri) = whole.parse() {
            parts.uri = uri;
        }
    }
    rewrite.host.clone().unwrap_or(authority)
}

/// Puts the host where the endpoint's protocol has it.
pub fn address(parts: &mut Parts, authority: &str, http2: bool) -> Result<(), ()> {
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    if http2 {
        parts.headers.remove(HOST);
        parts.uri = Uri::builder().scheme("http").authority(authority).path_and_query(path).build().map_err(drop)?;
        parts.version = Version::HTTP_2;
    } else {
        if parts.uri.authority().is_some() {
            parts.uri = path.parse().map_err(drop)?;
        }
        parts.headers.insert(HOST, HeaderValue::from_str(authority).map_err(drop)?);
        headers::join_cookies(&mut parts.headers);
        parts.version = Version::HTTP_11;
    }
    Ok(())
}

/// A request on its way to one of a backend's endpoints.
pub struct Sending<'a> {
    pub shared: &'a Shared,
    pub backend: &'a Backend,
    pub http2: bool,
    /// How long an endpoint may take to begin its answer.
    pub limit: Option<Duration>,
    /// Whom it is from.
    pub client: IpAddr,
}

/// What came of an attempt.
enum Attempt {
    Answer(Response<Incoming>, Option<Lease>),
    /// The endpoint has not seen the request, which is here again.
    Unsent(Request<Outgoing>),
    /// It may have.
    Failed,
}

impl Sending<'_> {
    /// Sends it to an endpoint that can be connected to.
    async fn send(&self, request: Request<Outgoing>) -> Result<(Response<Incoming>, Option<Lease>), Failure> {
        let sent = self.to_any(request);
        match self.limit {
            Some(limit) => tokio::time::timeout(limit, sent).await.unwrap_or(Err(Failure::Late)),
            None => sent.await,
        }
    }

    async fn to_any(&self, mut request: Request<Outgoing>) -> Result<(Response<Incoming>, Option<Lease>), Failure> {
        let pools = &self.shared.pools;
        let mut endpoints: Vec<SocketAddr> = match &self.backend.affinity {
            Some(affinity) => {
                self.shared.affinities.order(self.backend, affinity, self.client, std::time::Instant::now())
            }
            None => self.backend.order().collect(),
        };
        pools.sort(&mut endpoints);
        for endpoint in endpoints.into_iter().take(TRIES) {
            // What waited idle may have ended just now. What can safely be asked twice is asked again then.
            if let Some(attempt) = self.on_idle(endpoint, &mut request).await {
                match attempt {
                    Attempt::Answer(response, lease) => return Ok((response, lease)),
                    Attempt::Unsent(unsent) => request = unsent,
                    Attempt::Failed => return Err(Failure::Broken),
                }
                pools.forget(endpoint);
            }
            match self.on_new(endpoint, request).await {
                Attempt::Answer(response, lease) => return Ok((response, lease)),
                Attempt::Unsent(unsent) => request = unsent,
                Attempt::Failed => return Err(Failure::Broken),
            }
        }
        Err(Failure::Nobody)
    }

    /// Sends it on a connection that is there already; nothing if there is none.
    async fn on_idle(&self, endpoint: SocketAddr, request: &mut Request<Outgoing>) -> Option<Attempt> {
        let pools = &self.shared.pools;
        let again = repeatable(request);
        let take = |request: &mut Request<Outgoing>| std::mem::replace(request, Request::new(Outgoing::Empty));
        let sent = if self.http2 {
            let mut sender = pools.shared(endpoint)?;
            match sender.try_send_request(take(request)).await {
                Ok(response) => return Some(Attempt::Answer(response, None)),
                Err(mut error) => error.take_message(),
            }
        } else {
            let sender = pools.take(endpoint)?;
            match self.converse(endpoint, sender, take(request)).await {
                Ok((response, lease)) => return Some(Attempt::Answer(response, Some(lease))),
                Err(unsent) => unsent,
            }
        };
        Some(sent.or(again).map_or(Attempt::Failed, Attempt::Unsent))
    }

    async fn on_new(&self, endpoint: SocketAddr, request: Request<Outgoing>) -> Attempt {
        let pools = &self.shared.pools;
        let refused = |error: std::io::Error| {
            tracing::debug!(%endpoint, %error, "an endpoint cannot be connected to");
            self.shared.settings.metrics.unreachable.inc();
            pools.shun(endpoint);
        };
        let unsent = if self.http2 {
            let mut sender = match pools.connect_shared(endpoint).await {
                Ok(sender) => sender,
                Err(error) => {
                    refused(error);
                    return Attempt::Unsent(request);
                }
            };
            match sender.try_send_request(request).await {
                Ok(response) => return Attempt::Answer(response, None),
                Err(mut error) => error.take_message(),
            }
        } else {
            let sender = match pools.connect(endpoint).await {
                Ok(sender) => sender,
                Err(error) => {
                    refused(error);
                    return Attempt::Unsent(request);
                }
            };
            match self.converse(endpoint, sender, request).await {
                Ok((response, lease)) => return Attempt::Answer(response, Some(lease)),
                Err(unsent) => unsent,
            }
        };
        unsent.map_or(Attempt::Failed, Attempt::Unsent)
    }

    /// Sends it on a connection for one request at a time. Gives it back if nothing of it was sent.
    async fn converse(
        &self,
        endpoint: SocketAddr,
        mut sender: Http1,
        request: Request<Outgoing>,
    ) -> Result<(Response<Incoming>, Lease), Option<Request<Outgoing>>> {
        if sender.ready().await.is_err() {
            return Err(Some(request));
        }
        match sender.try_send_request(request).await {
            Ok(response) => Ok((response, Lease::new(sender, endpoint, Arc::clone(&self.shared.pools)))),
            Err(mut error) => {
                tracing::debug!(%endpoint, error = %error.error(), "an endpoint did not answer");
                Err(error.take_message())
            }
        }
    }

    /// Sends it, and lets the answer come to its end unread.
    pub async fn and_forget(&self, request: Request<Outgoing>) {
        use http_body_util::BodyExt as _;
        let Ok((response, lease)) = self.send(request).await else { return };
        let mut body = Reply::endpoint(response.into_body(), lease, None);
        while let Some(Ok(_)) = body.frame().await {}
    }
}

/// The same request again, if it is one that changes nothing and has no body.
fn repeatable(request: &Request<Outgoing>) -> Option<Request<Outgoing>> {
    if !request.method().is_safe() || !request.body().is_empty() {
        return None;
    }
    let mut copy = Request::new(Outgoing::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}
