//! Watches: what happens to objects of a kind, as it happens, each event sent at once.
//!
//! A thousand watchers may wait for the same object, so what one event costs each of them is little: the answer's body
//! asks the store itself, without a future in between, deadlines are looked at when they come, and whoever wants the
//! same line gets the same bytes.

mod lines;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::{BufMut as _, Bytes, BytesMut};
use carob_api::status::Status;
use carob_store::{Entry, Error, Event, KeyRange, Watch, Watched};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::Frame;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::list;
use super::selection::Selection;
use super::views;
use crate::aside::Aside;
use crate::call::Call;
use crate::negotiate::{Accept, Format, View};
use crate::options::ListOptions;
use crate::{conversion, events, objects, protobuf, response};

/// How often a watcher that takes bookmarks is told how far it is.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// The last bookmark comes so long before the end.
const BOOKMARK_BEFORE_END: Duration = Duration::from_secs(2);
/// A watch without `timeoutSeconds` lasts between this and twice as long.
const SHORTEST: Duration = Duration::from_secs(30 * 60);
/// The longest that a client may ask for.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// How many objects of the initial state are written before others get their turn.
const INITIAL_AT_ONCE: usize = 64;

/// Answers with a stream of events.
pub(crate) async fn watch(call: Call) -> Result<Response, Status> {
    let options = ListOptions::read(&call, true)?;
    if matches!(call.accept.view, View::Table(_)) {
        // A wrong ?includeObject= is refused before the stream begins.
        views::table(&call, "v1", &[], json!({}), false)?;
    }
    let content_type = call.accept.format.stream_content_type();
    let watcher = Box::new(Watcher::start(call, options).await?);
    let mut response = Response::new(Body::new(Watching { watcher: Some(watcher), work: None }));
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    Ok(response)
}

/// The answer's body: what a watcher has to say.
struct Watching {
    /// It is away while it works.
    watcher: Option<Box<Watcher>>,
    work: Option<Work>,
}

/// What can't be done at once; it gives the watcher back.
type Work = Pin<Box<dyn Future<Output = Box<Watcher>> + Send>>;

impl http_body::Body for Watching {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(work) = &mut self.work {
                let watcher = std::task::ready!(work.as_mut().poll(cx));
                self.work = None;
                self.watcher = Some(watcher);
            }
            // Without one, the body has ended.
            let Some(watcher) = &mut self.watcher else { return Poll::Ready(None) };
            if let Some(bytes) = watcher.take_waiting() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if watcher.has_initial() {
                let watcher = self.watcher.take().expect("just looked at");
                self.work = Some(Box::pin(watcher.write_initial()));
                continue;
            }
            match std::task::ready!(watcher.poll_turn(cx)) {
                Turn::Happened(happened) if conversion::may_convert(&watcher.call) => {
                    let watcher = self.watcher.take().expect("just looked at");
                    self.work = Some(Box::pin(watcher.convert(happened)));
                }
                Turn::Happened(happened) => watcher.happened(&happened),
                Turn::Progress(revision) => watcher.revision = watcher.revision.max(revision),
                Turn::Failed(error) => watcher.fail(&failure_of(&error)),
                Turn::Bookmark => {
                    let bookmark = watcher.bookmark(false);
                    watcher.waiting.push_back(bookmark);
                    watcher.plan_bookmark();
                }
                Turn::End => {
                    self.watcher = None;
                    return Poll::Ready(None);
                }
            }
        }
    }
}

/// One client's watch.
struct Watcher {
    call: Call,
    selection: Selection,
    events: Option<Watch>,
    /// The state at the beginning, as far as it isn't written yet: a slow client costs no memory.
    initial: std::vec::IntoIter<Entry>,
    /// Whether the end of the initial state is still to be told.
    tell_end: bool,
    /// Written and not yet sent.
    waiting: VecDeque<Bytes>,
    bookmarks: bool,
    /// How far the client will be when it has everything that was sent.
    revision: u64,
    /// The next bookmark, and the end.
    deadlines: Aside<Turn>,
    ends_at: Instant,
    columns_sent: bool,
}

/// What a watcher waits for.
enum Turn {
    Happened(Arc<[Event]>),
    Progress(u64),
    Failed(Error),
    Bookmark,
    End,
}

/// Waits for the next bookmark, the watch's end, or the server's.
fn deadlines(call: &Call, next_bookmark: Option<Instant>, ends_at: Instant) -> Aside<Turn> {
    let stopping = call.server.stopping.clone();
    Aside::new(async move {
        let bookmark = next_bookmark.filter(|at| *at < ends_at);
        tokio::select! {
            biased;
            () = stopping.cancelled_owned() => Turn::End,
            () = tokio::time::sleep_until(bookmark.unwrap_or(ends_at)) => {
                if bookmark.is_some() { Turn::Bookmark } else { Turn::End }
            }
        }
    })
}

impl Watcher {
    async fn start(mut call: Call, options: ListOptions) -> Result<Self, Status> {
        // Nothing asks for them from here on, and thousands of idle watches would keep them.
        call.headers = HeaderMap::new();
        call.raw_query = String::new();
        let wanted = options.timeout_seconds.filter(|seconds| *seconds > 0);
        let lifetime = wanted.map_or_else(lifetime, |seconds| Duration::from_secs(seconds).min(LONGEST));
        let now = Instant::now();
        let ends_at = now + lifetime;
        let first_bookmark =
            (now + BOOKMARK_EVERY).min(ends_at.checked_sub(BOOKMARK_BEFORE_END).unwrap_or(now).max(now));
        let mut watcher = Self {
            selection: Selection::new(&call.kind, options.labels, options.fields),
            events: None,
            initial: Vec::new().into_iter(),
            tell_end: false,
            waiting: VecDeque::new(),
            bookmarks: options.bookmarks,
            revision: 0,
            deadlines: deadlines(&call, options.bookmarks.then_some(first_bookmark), ends_at),
            ends_at,
            columns_sent: false,
            call,
        };
        watcher.begin(options.watch_after.unwrap_or(0), options.initial_events).await?;
        Ok(watcher)
    }

    /// Opens the store's watch, and first sends the state as it is now where the client wants that.
    async fn begin(&mut self, after: u64, initial_events: Option<bool>) -> Result<(), Status> {
        let store = self.call.server.store.clone();
        let prefix = objects::prefix(&self.call.kind, self.call.namespace.as_deref());
        let range = match (self.selection.name(), &self.call.namespace) {
            (Some(name), Some(_)) => KeyRange::key(self.call.key(name)),
            (Some(name), None) if !self.call.namespaced() => KeyRange::key(self.call.key(name)),
            _ => KeyRange::prefix(prefix),
        };
        let wants_state = initial_events.unwrap_or(after == 0);
        let mut after = after;
        if wants_state {
            let mut page = store.range(&range, None, None).await.map_err(|error| objects::store_failure(&error))?;
            page.entries = conversion::entries(&self.call, page.entries).await?;
            if after > page.revision {
                return Err(Status::resource_version_too_large(&after.to_string(), page.revision));
            }
            after = page.revision;
            self.initial = page.entries.into_iter();
            self.tell_end = initial_events == Some(true) && self.bookmarks;
        } else if after == 0 {
            after = store.revision().await.map_err(|error| objects::store_failure(&error))?;
        }
        self.revision = after;
        match store.watch(range, after).await {
            Ok(events) => self.events = Some(events),
            Err(error) => self.fail(&failure_of(&error)),
        }
        Ok(())
    }

    /// Whether the initial state, or word of its end, is still to be written.
    fn has_initial(&self) -> bool {
        self.initial.len() > 0 || self.tell_end
    }

    /// Writes the next few objects of the initial state.
    async fn write_initial(mut self: Box<Self>) -> Box<Self> {
        for _ in 0..INITIAL_AT_ONCE {
            let Some(entry) = self.initial.next() else { break };
            let matches = self.selection.matches_once(&entry);
            let event = matches.and_then(|matches| matches.then(|| self.event("ADDED", &entry)).transpose());
            match event {
                Ok(event) => self.waiting.extend(event),
                Err(status) => self.fail(&status),
            }
        }
        tokio::task::yield_now().await;
        if self.initial.len() == 0 && std::mem::take(&mut self.tell_end) {
            let bookmark = self.bookmark(true);
            self.waiting.push_back(bookmark);
        }
        self
    }

    /// What happened, by way of a webhook.
    async fn convert(mut self: Box<Self>, happened: Arc<[Event]>) -> Box<Self> {
        match conversion::events(&self.call, happened).await {
            Ok(happened) => self.happened(&happened),
            Err(status) => self.fail(&status),
        }
        self
    }

    fn happened(&mut self, happened: &Arc<[Event]>) {
        if let Err(status) = self.take(happened) {
            self.fail(&status);
        }
    }

    /// Says why, and ends.
    fn fail(&mut self, status: &Status) {
        let last = self.failure(status);
        self.waiting.push_back(last);
        self.events = None;
        self.initial = Vec::new().into_iter();
        self.tell_end = false;
    }

    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        let Some(events) = &mut self.events else { return Poll::Ready(Turn::End) };
        // First, so that they come also where events never stop.
        if let Poll::Ready(turn) = Pin::new(&mut self.deadlines).poll(cx) {
            return Poll::Ready(turn);
        }
        if let Poll::Ready(happened) = events.as_mut().poll_next(cx) {
            return Poll::Ready(match happened {
                Some(Ok(Watched::Events(happened))) => Turn::Happened(happened),
                Some(Ok(Watched::Progress(revision))) => Turn::Progress(revision),
                None | Some(Err(Error::Closed)) => Turn::End,
                Some(Err(error)) => Turn::Failed(error),
            });
        }
        Poll::Pending
    }

    fn plan_bookmark(&mut self) {
        let last = self.ends_at.checked_sub(BOOKMARK_BEFORE_END).unwrap_or(self.ends_at);
        let now = Instant::now();
        let next = now + BOOKMARK_EVERY;
        let next = if now < last { next.min(last) } else { next };
        self.deadlines = deadlines(&self.call, Some(next), self.ends_at);
    }

    fn take_waiting(&mut self) -> Option<Bytes> {
        if self.waiting.len() <= 1 {
            return self.waiting.pop_front();
        }
        let size = self.waiting.iter().map(Bytes::len).sum();
        let mut all = BytesMut::with_capacity(size);
        for bytes in self.waiting.drain(..) {
            all.put(bytes);
        }
        Some(all.freeze())
    }

    /// Turns what happened into what the client sees: for a selector, objects come into view and leave it.
    fn take(&mut self, happened: &Arc<[Event]>) -> Result<(), Status> {
        for event in happened.iter() {
            self.revision = self.revision.max(event.revision());
            let server = &self.call.server;
            let (entry, is, was) = match event {
                Event::Put { entry, previous } => {
                    let was = match previous {
                        Some(previous) => self.selection.matches(server, previous)?,
                        None => false,
                    };
                    (entry, self.selection.matches(server, entry)?, was)
                }
                Event::Delete { entry, previous } => (entry, false, self.selection.matches(server, previous)?),
            };
            let event = match (event, was, is) {
                (_, false, false) => continue,
                (_, false, true) => self.event("ADDED", entry)?,
                (_, true, true) => self.event("MODIFIED", entry)?,
                (Event::Delete { .. }, true, false) => self.event("DELETED", entry)?,
                // The watcher sees the object for the last time as it was, at the revision of the change.
                (Event::Put { entry, previous }, true, false) => {
                    let previous = previous.as_ref().unwrap_or(entry);
                    let mut object = objects::decode(&previous.value)?;
                    objects::set_metadata(&mut object, "resourceVersion", entry.revision.to_string());
                    let last = Entry { value: response::to_json(&object), ..entry.clone() };
                    self.write("DELETED", &last, None)?
                }
            };
            self.waiting.push_back(event);
        }
        Ok(())
    }

    fn event(&mut self, name: &'static str, entry: &Entry) -> Result<Bytes, Status> {
        let Accept { format, view } = self.call.accept;
        let whole = view == View::Object;
        if whole && format == Format::Json && !events::is_converted(&self.call.kind) {
            return Ok(lines::of(name, &entry.value));
        }
        if matches!(view, View::Table(_)) {
            let object = self.call.server.decoded.get(entry)?;
            return self.write(name, entry, Some(&object));
        }
        // Every watcher of this form gets the same bytes.
        let call = &self.call;
        let key = (entry.key.clone(), entry.revision, name, call.kind.api_version(), call.accept);
        call.server.decoded.event(key, || {
            let json = match view {
                View::Metadata(version) | View::MetadataList(version) => {
                    list::metadata_of(&call.kind, &entry.value, version)?
                }
                _ => call.present(&entry.value)?,
            };
            framed(format, name, &json)
        })
    }

    /// An event in the client's view.
    fn write(&mut self, name: &str, entry: &Entry, object: Option<&Arc<Value>>) -> Result<Bytes, Status> {
        let mut object = match object {
            Some(object) => (**object).clone(),
            None => objects::decode(&entry.value)?,
        };
        events::from_stored(&self.call.kind, &mut object);
        let shown = match self.call.accept.view {
            View::Object => object,
            View::Table(version) => {
                let meta = json!({ "resourceVersion": entry.revision.to_string() });
                let first = !std::mem::replace(&mut self.columns_sent, true);
                views::table(&self.call, version, &[&object], meta, first)?
            }
            View::Metadata(version) | View::MetadataList(version) => views::metadata_only(&object, version),
        };
        framed(self.call.accept.format, name, &response::to_json(&shown))
    }

    /// The last event of a watch that fails.
    fn failure(&self, status: &Status) -> Bytes {
        let json = response::to_json(&status.to_value());
        framed(self.call.accept.format, "ERROR", &json).unwrap_or_else(|_| lines::written("ERROR", &json))
    }

    /// How far the watcher is. The one after the initial events says so.
    fn bookmark(&self, initial: bool) -> Bytes {
        let kind = &self.call.kind;
        let mut metadata = json!({ "resourceVersion": self.revision.to_string() });
        if initial {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let object = match self.call.accept.view {
            View::Table(version) => json!({
                "kind": "Table",
                "apiVersion": format!("meta.k8s.io/{version}"),
                "metadata": { "resourceVersion": self.revision.to_string() },
                "columnDefinitions": null,
                "rows": [{ "cells": [], "object": {
                    "kind": "PartialObjectMetadata",
                    "apiVersion": format!("meta.k8s.io/{version}"),
                    "metadata": metadata,
                } }],
            }),
            View::Metadata(version) | View::MetadataList(version) => json!({
                "kind": "PartialObjectMetadata",
                "apiVersion": format!("meta.k8s.io/{version}"),
                "metadata": metadata,
            }),
            View::Object => json!({
                "kind": kind.kind,
                "apiVersion": objects::api_version(kind),
                "metadata": metadata,
            }),
        };
        let json = response::to_json(&object);
        framed(self.call.accept.format, "BOOKMARK", &json).unwrap_or_else(|_| lines::written("BOOKMARK", &json))
    }
}

/// An event in the client's form.
fn framed(format: Format, name: &str, json: &Bytes) -> Result<Bytes, Status> {
    match format {
        Format::Json | Format::Yaml => Ok(lines::written(name, json)),
        Format::Protobuf => Ok(protobuf::frame(name, &protobuf::from_json(json)?)),
    }
}

fn failure_of(error: &Error) -> Status {
    match error {
        Error::Compacted { requested, oldest } => {
            Status::expired(format!("too old resource version: {requested} ({oldest})"))
        }
        Error::Lagged => Status::expired("too old resource version: the watcher fell behind"),
        error => objects::store_failure(error),
    }
}

/// Spread, so that watches that began together don't end together.
fn lifetime() -> Duration {
    let spread = u64::from(jiff::Timestamp::now().subsec_nanosecond().unsigned_abs()) % SHORTEST.as_secs();
    SHORTEST + Duration::from_secs(spread)
}
