//! The audit log: who did what, when, and how it ended (`audit.k8s.io/v1` Events, a line each).

mod log;
mod policy;

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt as _;
use http::header::USER_AGENT;
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{BodyExt as _, BodyStream, StreamBody};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::authn::Identity;
use crate::authz::{Attributes, Decision};
use crate::protobuf;
use crate::random;
use crate::reviews::user_info;
use crate::serve::Peer;
use crate::settings::{self, AuditSettings};
use log::Log;
use policy::{Level, Plan, Policy, Stage};

const AUDIT_ID: &str = "audit-id";
/// The longest id that a client may give.
const LONGEST_ID: usize = 64;

/// The longest answer that is written down. A program behind a proxy may answer without end.
const LONGEST_ANSWER: usize = 16 << 20;

/// Reads an answer that isn't too long; gives it back in any case.
async fn gather(mut body: Body) -> (Option<Bytes>, Body) {
    if body.size_hint().exact().is_some_and(|size| size > LONGEST_ANSWER as u64) {
        return (None, body);
    }
    let (mut frames, mut text) = (Vec::new(), Vec::new());
    while let Some(frame) = body.frame().await {
        if let Some(data) = frame.as_ref().ok().and_then(Frame::data_ref) {
            text.extend_from_slice(data);
        }
        let broken = frame.is_err();
        frames.push(frame);
        if broken || text.len() > LONGEST_ANSWER {
            let all = futures::stream::iter(frames).chain(BodyStream::new(body));
            return (None, Body::new(StreamBody::new(all)));
        }
    }
    let whole = Bytes::from(text);
    let plain = frames.iter().all(|frame| frame.as_ref().is_ok_and(Frame::is_data));
    let frames = StreamBody::new(futures::stream::iter(frames));
    (Some(whole.clone()), if plain { Body::from(whole) } else { Body::new(frames) })
}

/// What is written down, and where.
pub(crate) struct Audit {
    policy: Policy,
    log: Log,
}

tokio::task_local! {
    /// The record of the request that is being answered.
    static CURRENT: Arc<Record>;
}

/// What is known of a request so far.
pub(crate) struct Record {
    plan: Plan,
    log: Log,
    received: Timestamp,
    /// The event, as far as it doesn't change any more.
    event: Map<String, Value>,
    more: Mutex<More>,
    /// Whether the answer may take long: a watch, a log, a shell.
    long: bool,
}

#[derive(Default)]
struct More {
    impersonated: Option<Value>,
    annotations: Map<String, Value>,
    sent: Option<Bytes>,
    answered: Option<Bytes>,
    code: u16,
}

impl Audit {
    /// As the settings have it.
    pub fn open(settings: &AuditSettings) -> Result<Self, settings::Error> {
        let policy = Policy::read(&settings.policy)
            .map_err(|why| settings::Error::Invalid { what: "audit.policy".to_owned(), why })?;
        let or = |value: u64, default: u64| if value == 0 { default } else { value };
        let kept = if settings.max_backups == 0 { 10 } else { settings.max_backups };
        let log = Log::open(&settings.log_path, or(settings.max_size_mb, 100) << 20, kept)
            .map_err(|source| settings::Error::Read { path: settings.log_path.clone(), source })?;
        Ok(Self { policy, log })
    }

    /// The record of a request, if it is to be written down.
    pub fn begin(&self, parts: &Parts, sender: &Identity, wanted: &Attributes, long: bool) -> Option<Arc<Record>> {
        let plan = self.policy.plan(sender, wanted);
        if plan.level == Level::None {
            return None;
        }
        let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
        let id = header(AUDIT_ID).filter(|id| !id.is_empty() && id.len() <= LONGEST_ID);
        let mut event = Map::new();
        event.insert("kind".to_owned(), "Event".into());
        event.insert("apiVersion".to_owned(), "audit.k8s.io/v1".into());
        event.insert("level".to_owned(), plan.level.name().into());
        event.insert("auditID".to_owned(), id.map_or_else(random::uuid, str::to_owned).into());
        event.insert("requestURI".to_owned(), parts.uri.to_string().into());
        event.insert("verb".to_owned(), wanted.verb.as_str().into());
        event.insert("user".to_owned(), user_info(sender));
        let forwarded = header("x-forwarded-for").into_iter().flat_map(|list| list.split(',')).map(str::trim);
        let peer = parts.extensions.get::<Peer>().map(|peer| peer.0.to_canonical().to_string());
        let sources: Vec<String> = forwarded.map(str::to_owned).chain(peer).collect();
        if !sources.is_empty() {
            event.insert("sourceIPs".to_owned(), sources.into());
        }
        if let Some(agent) = parts.headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok()) {
            event.insert("userAgent".to_owned(), agent.into());
        }
        if wanted.path.is_empty() {
            event.insert("objectRef".to_owned(), object_reference(wanted));
        }
        let record =
            Record { plan, log: self.log.clone(), received: Timestamp::now(), event, more: Mutex::default(), long };
        Some(Arc::new(record))
    }
}

fn object_reference(wanted: &Attributes) -> Value {
    let fields = [
        ("resource", &wanted.resource),
        ("namespace", &wanted.namespace),
        ("name", &wanted.name),
        ("apiGroup", &wanted.group),
        ("apiVersion", &wanted.version),
        ("subresource", &wanted.subresource),
    ];
    let fields = fields.into_iter().filter(|(_, value)| !value.is_empty());
    Value::Object(fields.map(|(name, value)| (name.to_owned(), value.as_str().into())).collect())
}

/// Adds a note to the record of the request that is being answered, if there is one.
pub(crate) fn annotate(key: &str, note: impl FnOnce() -> String) {
    // Without a record nobody reads the note.
    let _ = CURRENT.try_with(|record| {
        record.more().annotations.insert(key.to_owned(), note().into());
    });
}

/// Keeps what the client sent for the record of the request that is being answered, if that is to show it.
pub(crate) fn keep_request(body: &Bytes) {
    let _ = CURRENT.try_with(|record| {
        if record.plan.level >= Level::Request && !body.is_empty() {
            record.more().sent = Some(body.clone());
        }
    });
}

impl Record {
    fn more(&self) -> std::sync::MutexGuard<'_, More> {
        self.more.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes as whom the request is made.
    pub fn impersonates(&self, identity: &Identity) {
        self.more().impersonated = Some(user_info(identity));
    }

    /// Notes whether it is allowed.
    pub fn decided(&self, decision: &Decision) {
        let annotations = &mut self.more().annotations;
        let word = if decision.allowed { "allow" } else { "forbid" };
        annotations.insert("authorization.k8s.io/decision".to_owned(), word.into());
        annotations.insert("authorization.k8s.io/reason".to_owned(), decision.why.to_string().into());
    }

    /// Answers the request, and writes down what becomes of it.
    pub async fn accompany(self: Arc<Self>, work: impl Future<Output = Response>) -> Response {
        self.write(Stage::RequestReceived).await;
        let mut answer = CURRENT.scope(Arc::clone(&self), work).await;
        let id = self.event.get("auditID").and_then(Value::as_str).unwrap_or_default();
        if let Ok(id) = HeaderValue::from_str(id) {
            answer.headers_mut().insert(AUDIT_ID, id);
        }
        self.more().code = answer.status().as_u16();
        if self.long && answer.status().is_success() {
            self.write(Stage::ResponseStarted).await;
            let end = End(self);
            return answer.map(|body| Body::new(Watched { body, _end: end }));
        }
        let fails = !answer.status().is_success() && answer.status() != StatusCode::SWITCHING_PROTOCOLS;
        if self.plan.level == Level::RequestResponse || fails {
            let (head, body) = answer.into_parts();
            let (whole, body) = gather(body).await;
            self.more().answered = whole;
            answer = Response::from_parts(head, body);
        }
        self.write(Stage::ResponseComplete).await;
        answer
    }

    async fn write(&self, stage: Stage) {
        if let Some(line) = self.line(stage) {
            self.log.write(line).await;
        }
    }

    /// The event of a stage as a line; none if the policy leaves it out.
    fn line(&self, stage: Stage) -> Option<Vec<u8>> {
        if self.plan.omit_stages.contains(&stage) {
            return None;
        }
        let mut event = self.event.clone();
        let more = self.more();
        event.insert("stage".to_owned(), stage.name().into());
        if let Some(user) = &more.impersonated {
            event.insert("impersonatedUser".to_owned(), user.clone());
        }
        if stage != Stage::RequestReceived {
            let answered = more.answered.as_ref().and_then(|body| serde_json::from_slice::<Value>(body).ok());
            event.insert("responseStatus".to_owned(), status(more.code, answered.as_ref()));
            if let Some(sent) = more.sent.as_ref().and_then(|body| self.object(body)) {
                event.insert("requestObject".to_owned(), sent);
            }
            if self.plan.level == Level::RequestResponse
                && let Some(answered) = more.answered.as_ref().and_then(|body| self.object(body))
            {
                event.insert("responseObject".to_owned(), answered);
            }
        }
        let time = |at: Timestamp| at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
        event.insert("requestReceivedTimestamp".to_owned(), time(self.received).into());
        event.insert("stageTimestamp".to_owned(), time(Timestamp::now()).into());
        if !more.annotations.is_empty() && stage != Stage::RequestReceived {
            event.insert("annotations".to_owned(), Value::Object(more.annotations.clone()));
        }
        drop(more);
        let mut line = serde_json::to_vec(&Value::Object(event)).expect("JSON is written into memory");
        line.push(b'\n');
        Some(line)
    }

    /// A body that is an object, in JSON or in protobuf, as events show it.
    fn object(&self, body: &Bytes) -> Option<Value> {
        let mut object: Value = serde_json::from_slice(body).ok().or_else(|| protobuf::to_json(body).ok())?;
        if self.plan.omit_managed_fields {
            let items = object.get_mut("items").and_then(Value::as_array_mut);
            for item in items.into_iter().flatten() {
                forget_managers(item);
            }
            forget_managers(&mut object);
        }
        Some(object)
    }
}

fn forget_managers(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.shift_remove("managedFields");
    }
}

/// The code of an answer, and of a refusal what it says.
fn status(code: u16, answered: Option<&Value>) -> Value {
    let mut status = json!({ "metadata": {} });
    if let Some(refusal) = answered.filter(|answered| answered["kind"] == "Status") {
        for field in ["status", "message", "reason"] {
            if let Some(value) = refusal.get(field) {
                status[field] = value.clone();
            }
        }
    }
    status["code"] = code.into();
    status
}

/// The body of a long answer.
struct Watched {
    body: Body,
    _end: End,
}

/// Writes down, when dropped, that a long answer ended.
struct End(Arc<Record>);

impl Drop for End {
    fn drop(&mut self) {
        if let Some(line) = self.0.line(Stage::ResponseComplete) {
            self.0.log.write_now(line);
        }
    }
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_is_read_up_to_a_length_and_passed_on_whole() {
        let (whole, body) = gather(Body::from("{}")).await;
        assert_eq!((whole.as_deref(), body.size_hint().exact()), (Some(b"{}".as_slice()), Some(2)));
        let block = Bytes::from(vec![b'x'; 1 << 20]);
        let endless = futures::stream::repeat_with(move || Ok::<_, std::io::Error>(block.clone()));
        let (whole, body) = gather(Body::from_stream(endless)).await;
        assert!(whole.is_none());
        let mut stream = body.into_data_stream();
        for _ in 0..20 {
            assert_eq!(stream.next().await.expect("more").expect("whole").len(), 1 << 20);
        }
    }
}
