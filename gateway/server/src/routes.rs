//! The way of a request: who, may they, about what, and the handler for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use carob_api::kind::{Kind, Part, Scope};
use carob_api::status::{GroupResource, Status};
use carob_api::validation::names::path_segment;
use http::header::{ACCEPT, HOST};
use http::request::Parts;
use http::{Method, Request, StatusCode, Uri};
use hyper::body::Body as _;
use hyper::upgrade::OnUpgrade;
use tower::ServiceExt as _;
use tracing::Instrument as _;

use crate::audit::Record;
use crate::authn::{self, Identity, Impersonation, InProcess};
use crate::authz::Attributes;
use crate::body::{Held, Incoming};
use crate::call::Call;
use crate::handlers::{binding, create, delete, eviction, get, list, patch, scale, token, update, watch};
use crate::metrics::RequestLabels;
use crate::negotiate::{Accept, Format};
use crate::query::Query;
use crate::request::{RequestInfo, ResourcePath, Target, percent_decode};
use crate::reviews::Review;
use crate::stream::{self, Socket, Stream};
use crate::{Server, activity, body, compress, deprecated, discovery, flow, health, protobuf, proxy, response};

/// A form of metrics that clients may prefer.
const OPEN_METRICS: &str = "application/openmetrics-text";
const OPEN_METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The longest that an ordinary request may take.
const LONGEST: Duration = Duration::from_secs(60);
/// The largest body of a review, in bytes.
const LARGEST_REVIEW: usize = 64 << 10;

/// Answers a request.
pub(crate) async fn handle(server: Arc<Server>, request: Request<Body>) -> Response {
    let started = Instant::now();
    let (parts, body) = request.into_parts();
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let info = RequestInfo::parse(&parts.method, parts.uri.path(), &query);
    let kind = match &info.target {
        Target::Resource(path) => server.kind(&path.group, &path.version, &path.resource),
        Target::Path(_) => None,
    };
    let labels = RequestLabels::of(&info, kind.as_deref(), &parts, &query);
    let running = server.metrics.begins(&labels);
    let span = tracing::debug_span!("request", verb = info.verb, path = parts.uri.path());
    let (format, gzip) = (Accept::of_statuses(&parts.headers), compress::accepts_gzip(&parts.headers));
    let answer = answer(Arc::clone(&server), parts, body, query, info).instrument(span).await;
    let mut response = answer.unwrap_or_else(|status| response::failure(&status));
    let size = response.body().size_hint().exact();
    if format != Format::Json {
        response = response::in_format(response, format);
    }
    if gzip {
        response = compress::gzip(response);
    }
    server.metrics.observe(&labels, response.status().as_u16(), started.elapsed(), size);
    if kind.is_some_and(|kind| deprecated::warning(&kind).is_some()) {
        server.metrics.deprecated(&labels, "");
    }
    if labels.is_long_running() { activity::until_sent(response, running) } else { response }
}

async fn answer(
    server: Arc<Server>,
    parts: Parts,
    body: Body,
    query: Query,
    info: RequestInfo,
) -> Result<Response, Status> {
    let sender = authn::authenticate(&server, &parts).await?;
    // What is no text is no resource either, and would be decided and passed on as any other path.
    if parts.uri.path().split('/').any(|segment| percent_decode(segment).is_none()) {
        return Err(Status::bad_request("the path is not UTF-8"));
    }
    let wanted = Attributes::of(&info, &query);
    let record = server.audit.as_ref().and_then(|audit| {
        let long = flow::is_long_running(&wanted, &query);
        audit.begin(&parts, &sender, &wanted, long)
    });
    let work = Box::pin(admitted(server, parts, body, query, info, sender, wanted, record.clone()));
    match record {
        None => work.await,
        Some(record) => {
            let answer = async { work.await.unwrap_or_else(|status| response::failure(&status)) };
            Ok(record.accompany(answer).await)
        }
    }
}

/// What somebody known wants: as whom, whether there is room for it, and whether they may.
#[expect(clippy::too_many_arguments, reason = "the parts of one request, taken apart on the way here")]
async fn admitted(
    server: Arc<Server>,
    mut parts: Parts,
    body: Body,
    query: Query,
    info: RequestInfo,
    sender: Identity,
    wanted: Attributes,
    record: Option<Arc<Record>>,
) -> Result<Response, Status> {
    let borrows = parts.headers.contains_key(authn::IMPERSONATE_USER);
    let borrowed = authn::impersonate(&server.authorizer, &*server.store, sender, &parts.headers).await?;
    let identity = match borrowed {
        Impersonation::As(identity) => identity,
        Impersonation::WithoutUser(why) => {
            let text = format!("Internal Server Error: {:?}: {why}\n", parts.uri.path());
            return Ok(response::text(StatusCode::INTERNAL_SERVER_ERROR, text));
        }
    };
    if let Some(record) = record.as_ref().filter(|_| borrows) {
        record.impersonates(&identity);
    }
    let seat = match server.flow.seat(&identity, &wanted, &query).await {
        Ok(seat) => seat,
        Err(flow::Full) => return Ok(flow::Full::answer()),
    };
    let decision = server.authorizer.decide_for_sender(&*server.store, &identity, &wanted).await;
    if let Some(record) = &record {
        record.decided(&decision);
    }
    if !decision.allowed {
        return Err(wanted.refusal(&identity, &decision.why));
    }
    if let Some(api) = server.aggregation.of_path(parts.uri.path()) {
        let upgrade = parts.extensions.remove::<OnUpgrade>();
        let long = flow::is_long_running(&wanted, &query);
        let mut answer = api.answer(&server, &identity, &parts, body, upgrade, long).await;
        seat.name_in(answer.headers_mut());
        return Ok(answer);
    }
    let answer = match info.target {
        Target::Path(path) => other(&server, &identity, parts, body, &path, &query).await,
        Target::Resource(path) => {
            let upgrade = parts.extensions.remove::<OnUpgrade>();
            Box::pin(resource(Arc::clone(&server), parts, body, query, identity, path, info.verb, upgrade)).await
        }
    };
    let mut answer = answer.unwrap_or_else(|status| response::failure(&status));
    seat.name_in(answer.headers_mut());
    if answer.extensions_mut().remove::<response::Worked>().is_some() {
        answer = activity::until_sent(answer, seat);
    }
    Ok(answer)
}

/// Paths that are no objects.
async fn other(
    server: &Arc<Server>,
    identity: &Identity,
    parts: Parts,
    body: Body,
    path: &str,
    query: &Query,
) -> Result<Response, Status> {
    // Documents of a group are discovery's, whoever serves its objects.
    for extension in server.extensions.iter().filter(|extension| extension.group.is_none()) {
        if let Some(rest) = path.strip_prefix(extension.prefix)
            && (rest.is_empty() || rest.starts_with('/'))
        {
            return extend(extension, identity, parts, body, rest).await;
        }
    }
    let reading = matches!(parts.method, Method::GET | Method::HEAD);
    let address = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
    let address = address.or_else(|| parts.uri.authority().map(http::uri::Authority::as_str)).unwrap_or_default();
    let found = if let Some(answer) = health::answer(server, path, query).await {
        answer
    } else if path == "/version" || path == "/version/" {
        let version = response::to_json(&health::version());
        response::finished(StatusCode::OK, Format::Json.content_type(), version)
    } else if path == "/metrics" {
        server.metrics.count_objects(&*server.store, server.registry().iter()).await;
        let open =
            parts.headers.get_all(ACCEPT).iter().any(|value| value.to_str().is_ok_and(|v| v.contains(OPEN_METRICS)));
        let content_type = if open { OPEN_METRICS_TYPE } else { "text/plain; version=0.0.4; charset=utf-8" };
        response::finished(StatusCode::OK, content_type, server.metrics.text(open).into())
    } else if let Some(answer) = authn::publication::answer(server, path, address) {
        answer
    } else if let Some(answer) = discovery::answer(server, path, query, &parts.headers, address) {
        answer?
    } else {
        return Ok(response::page_not_found());
    };
    if reading { Ok(found) } else { Err(Status::method_not_allowed()) }
}

/// Hands a request on, with the path behind the extension's prefix.
async fn extend(
    extension: &crate::Extension,
    identity: &Identity,
    mut parts: Parts,
    body: Body,
    rest: &str,
) -> Result<Response, Status> {
    let path = if rest.is_empty() { "/" } else { rest };
    let target = match parts.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    parts.uri = target.parse::<Uri>().map_err(|_| Status::generic_not_found())?;
    parts.extensions.insert(crate::Requester { user: identity.user.clone(), groups: identity.groups.clone() });
    let Ok(response) = extension.router.clone().oneshot(Request::from_parts(parts, body)).await;
    Ok(response)
}

#[expect(clippy::too_many_arguments, reason = "the parts of one request, taken apart on the way here")]
async fn resource(
    server: Arc<Server>,
    parts: Parts,
    body: Body,
    query: Query,
    identity: Identity,
    path: ResourcePath,
    verb: &'static str,
    upgrade: Option<OnUpgrade>,
) -> Result<Response, Status> {
    let inside = parts.extensions.get::<InProcess>().is_some();
    let body = Incoming { body, room: (!inside).then(|| Arc::clone(&server.body_room)) };
    if let Some(review) = Review::of(&server, &path) {
        if parts.method != Method::POST || path.name.is_some() {
            return Err(Status::method_not_allowed());
        }
        let patience = patience(&query)?;
        let work = async {
            let held = body::read(body, server.max_body_bytes.min(LARGEST_REVIEW)).await?;
            review.answer(&server, &identity, &parts.headers, query, &held.bytes).await
        };
        return Box::pin(within(patience, work)).await;
    }
    let serves = |extension: &&crate::Extension| {
        extension.group.as_ref().is_some_and(|group| group.name == path.group && group.version == path.version)
    };
    if let Some(extension) = server.extensions.iter().find(serves) {
        let whole = parts.uri.path().to_owned();
        return extend(
            extension,
            &identity,
            parts,
            body.body,
            whole.strip_prefix(extension.prefix).unwrap_or_default(),
        )
        .await;
    }
    let Some(kind) = server.kind(&path.group, &path.version, &path.resource) else {
        let known = server.registry().iter().any(|kind| kind.group == path.group && kind.version == path.version);
        return if known { Err(Status::generic_not_found()) } else { Ok(response::page_not_found()) };
    };
    if proxy::is_meant(&kind, &path) {
        let mut call = Call::new(server, kind, identity, parts.headers.clone(), Accept::JSON);
        (call.namespace, call.name, call.query) = (path.namespace, path.name, query);
        return proxy::answer(call, &parts, body.body, upgrade).await;
    }
    let operation = Operation::of(&kind, &path, verb)?;
    if let Some(name) = &path.name {
        let mistakes = path_segment(name);
        if !mistakes.is_empty() {
            return Err(Status::bad_request(format!("Name parameter invalid: {name:?}: {}", mistakes.join(";"))));
        }
    }
    let patience = patience(&query)?;
    let accept = match operation {
        Operation::Stream(_) => Accept::JSON,
        Operation::Watch => Accept::of_watches(&parts.headers, protobuf::knows(&kind))?,
        _ => Accept::of_objects(&parts.headers, protobuf::knows(&kind))?,
    };
    let raw_query = parts.uri.query().unwrap_or_default().to_owned();
    let mut call = Call::new(server, kind, identity, parts.headers, accept);
    call.namespace = path.namespace;
    call.name = path.name;
    call.query = query;
    call.raw_query = raw_query;
    let deprecation = deprecated::warning(&call.kind).map(ToOwned::to_owned);
    if let Some(text) = &deprecation {
        call.warn(text.as_str());
    }
    match operation {
        Operation::Watch => {
            let lines = call.accept.format == Format::Json;
            let socket = Socket::for_watch(&call.headers, upgrade, lines)?;
            let stopping = call.server.stopping.clone();
            let mut answer = watch::watch(call).await?;
            if let Some(socket) = socket {
                answer = socket.send(answer, stopping);
            }
            response::warn(answer.headers_mut(), deprecation.as_slice());
            Ok(answer)
        }
        Operation::Stream(kind) => stream::answer(&call, kind, upgrade).await,
        operation => {
            let work = perform(&call, operation, body);
            let answer = Box::pin(within(patience, work)).await;
            let mut answer = answer.unwrap_or_else(|status| response::failure(&status));
            response::warn(answer.headers_mut(), &call.take_warnings());
            Ok(answer)
        }
    }
}

/// Ends work that takes too long.
async fn within(patience: Duration, work: impl Future<Output = Result<Response, Status>>) -> Result<Response, Status> {
    match tokio::time::timeout(patience, work).await {
        Ok(answer) => answer,
        Err(_) => Err(Status::timeout("request did not complete within the requested timeout", 0)),
    }
}

/// What is to be done.
#[derive(Clone, Copy)]
enum Operation {
    Get,
    List,
    Watch,
    Create,
    Update(Part),
    Patch(Part),
    Delete,
    DeleteCollection,
    GetScale(&'static Kind),
    UpdateScale(&'static Kind),
    PatchScale(&'static Kind),
    Bind(&'static Kind),
    CreateBinding,
    Evict(&'static Kind),
    Token(&'static Kind),
    Stream(Stream),
}

impl Operation {
    /// 404 for a path that leads to nothing, 405 for a verb that it doesn't take.
    fn of(kind: &Kind, path: &ResourcePath, verb: &str) -> Result<Self, Status> {
        let namespaced = kind.scope == Scope::Namespaced;
        let in_namespace = path.namespace.is_some();
        let shape =
            !path.excess && (namespaced || !in_namespace) && (in_namespace || !namespaced || path.name.is_none());
        if !shape {
            return Err(Status::generic_not_found());
        }
        if let Some(subresource) = &path.subresource {
            if kind.custom.is_some() && kind.subresource(subresource).is_none() {
                return Err(Status::not_found(&kind.group_resource(), path.name.as_deref().unwrap_or_default()));
            }
            return Self::of_part(kind, subresource, verb);
        }
        let named = path.name.is_some();
        let everywhere = namespaced && !in_namespace;
        let operation = match verb {
            "get" => Self::Get,
            "list" => Self::List,
            "watch" => Self::Watch,
            "create" if !named && !everywhere && is_binding(kind) => Self::CreateBinding,
            "create" if !named && !everywhere => Self::Create,
            "update" if named => Self::Update(Part::Main),
            "patch" if named => Self::Patch(Part::Main),
            "delete" => Self::Delete,
            "deletecollection" if !everywhere => Self::DeleteCollection,
            _ => return Err(Status::method_not_allowed()),
        };
        if kind.verbs.contains(&verb) { Ok(operation) } else { Err(Status::method_not_allowed()) }
    }

    fn of_part(kind: &Kind, subresource: &str, verb: &str) -> Result<Self, Status> {
        let known = kind.subresources.iter().find(|known| known.name == subresource);
        let Some(known) = known else { return Err(Status::generic_not_found()) };
        if !known.verbs.contains(&verb) {
            return Err(Status::method_not_allowed());
        }
        let (group, version, name) = known.gvk;
        let form = || {
            carob_api::kinds::Registry::builtin()
                .type_of(group, version, name)
                .ok_or_else(|| Status::internal(format!("there is no type {name}")))
        };
        let part = match subresource {
            "status" => Part::Status,
            "ephemeralcontainers" => Part::EphemeralContainers,
            "resize" => Part::Resize,
            "finalize" => Part::Finalize,
            "approval" => Part::Approval,
            "scale" => {
                return Ok(match verb {
                    "get" => Self::GetScale(form()?),
                    "update" => Self::UpdateScale(form()?),
                    _ => Self::PatchScale(form()?),
                });
            }
            "binding" => return Ok(Self::Bind(form()?)),
            "eviction" => return Ok(Self::Evict(form()?)),
            "token" => return Ok(Self::Token(form()?)),
            other => {
                let stream = Stream::of(other).ok_or_else(Status::generic_not_found)?;
                return Ok(Self::Stream(stream));
            }
        };
        match verb {
            "get" => Ok(Self::Get),
            "update" => Ok(Self::Update(part)),
            "patch" => Ok(Self::Patch(part)),
            _ => Err(Status::method_not_allowed()),
        }
    }
}

/// A Binding isn't kept: it is what is done to a pod.
fn is_binding(kind: &Kind) -> bool {
    kind.group.is_empty() && kind.plural == "bindings"
}

async fn perform(call: &Call, operation: Operation, body: Incoming) -> Result<Response, Status> {
    let held = match operation {
        Operation::Get | Operation::List | Operation::GetScale(_) => Held::default(),
        _ => body::read(body, call.server.max_body_bytes).await?,
    };
    let body = &held.bytes;
    call.server.heavy.run(body.len(), carried_out(call, operation, body)).await
}

async fn carried_out(call: &Call, operation: Operation, body: &Bytes) -> Result<Response, Status> {
    match operation {
        Operation::Get => get::get(call).await,
        Operation::List => list::list(call).await,
        Operation::Create => create::create(call, body).await,
        Operation::Update(part) => update::update(call, part, body).await,
        Operation::Patch(part) => patch::patch(call, part, body).await,
        Operation::Delete => delete::delete(call, body).await,
        Operation::DeleteCollection => delete::delete_collection(call, body).await,
        Operation::GetScale(scale) => scale::get(call, scale).await,
        Operation::UpdateScale(scale) => scale::update(call, scale, body).await,
        Operation::PatchScale(scale) => scale::patch(call, scale, body).await,
        Operation::Bind(form) => binding::bind(call, form, body).await,
        Operation::CreateBinding => binding::create(call, body).await,
        Operation::Evict(form) => eviction::evict(call, form, body).await,
        Operation::Token(form) => token::issue(call, form, body).await,
        Operation::Watch | Operation::Stream(_) => {
            let resource = GroupResource::new(call.kind.group, call.kind.plural);
            Err(Status::method_not_supported(&resource, "this"))
        }
    }
}

/// How long the request may take: `?timeout=`, a duration as Go writes it.
fn patience(query: &Query) -> Result<Duration, Status> {
    let Some(text) = query.text("timeout") else { return Ok(LONGEST) };
    match go_duration(text) {
        Some(duration) if duration.is_zero() => Ok(LONGEST),
        Some(duration) => Ok(duration.min(LONGEST)),
        None => Err(Status::bad_request(format!(
            "invalid timeout specified in the request URL - time: invalid duration {text:?}"
        ))),
    }
}

/// `1m30s`, `500ms`, `0`.
pub(crate) fn go_duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, f64); 7] =
        [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut seconds = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let length = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let (_, unit) = UNITS.iter().find(|(unit, _)| *unit == &rest[..length])?;
        seconds += number * unit;
        rest = &rest[length..];
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(seconds).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        assert_eq!(go_duration("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(go_duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(go_duration("0"), Some(Duration::ZERO));
        for bad in ["x", "5", "1y", "", "-"] {
            assert_eq!(go_duration(bad), None, "{bad}");
        }
    }
}
