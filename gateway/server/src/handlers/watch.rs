//! Watches: what happens to objects of a kind, as it happens, each event sent at once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::{BufMut as _, Bytes, BytesMut};
use carob_api::status::Status;
use carob_store::{Entry, Error, Event, KeyRange, Watch, Watched};
use futures::StreamExt as _;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use serde_json::{Value, json};
use tokio::time::{Instant, Sleep};

use super::list;
use super::selection::Selection;
use super::views;
use crate::call::Call;
use crate::negotiate::{Format, View};
use crate::options::ListOptions;
use crate::{events, objects, response};

/// How often a watcher that takes bookmarks is told how far it is.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// The last bookmark comes so long before the end.
const BOOKMARK_BEFORE_END: Duration = Duration::from_secs(2);
/// A watch without `timeoutSeconds` lasts between this and twice as long.
const SHORTEST: Duration = Duration::from_secs(30 * 60);
/// The longest that a client may ask for.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Answers with a stream of events.
pub(crate) async fn watch(call: Call) -> Result<Response, Status> {
    let options = ListOptions::read(&call, true)?;
    if matches!(call.accept.view, View::Table(_)) {
        // A wrong ?includeObject= is refused before the stream begins.
        views::table(&call, "v1", &[], json!({}), false)?;
    }
    let watcher = Watcher::start(call, options).await?;
    let stream = futures::stream::unfold(Box::pin(watcher), |mut watcher| async move {
        let bytes = watcher.next().await?;
        Some((Ok::<_, std::convert::Infallible>(bytes), watcher))
    });
    let mut response = Response::new(Body::from_stream(stream));
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(Format::Json.content_type()));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    Ok(response)
}

/// One client's watch.
struct Watcher {
    call: Call,
    selection: Selection,
    events: Option<Watch>,
    /// Written and not yet sent.
    waiting: VecDeque<Bytes>,
    bookmarks: bool,
    /// How far the client will be when it has everything that was sent.
    revision: u64,
    next_bookmark: Instant,
    end: std::pin::Pin<Box<Sleep>>,
    ends_at: Instant,
    columns_sent: bool,
}

/// What a watcher waits for.
enum Turn {
    Happened(Option<Result<Watched, Error>>),
    Bookmark,
    End,
}

impl Watcher {
    async fn start(call: Call, options: ListOptions) -> Result<Self, Status> {
        let wanted = options.timeout_seconds.filter(|seconds| *seconds > 0);
        let lifetime = wanted.map_or_else(lifetime, |seconds| Duration::from_secs(seconds).min(LONGEST));
        let now = Instant::now();
        let ends_at = now + lifetime;
        let first_bookmark =
            (now + BOOKMARK_EVERY).min(ends_at.checked_sub(BOOKMARK_BEFORE_END).unwrap_or(now).max(now));
        let mut watcher = Self {
            selection: Selection::new(&call.kind, options.labels, options.fields),
            events: None,
            waiting: VecDeque::new(),
            bookmarks: options.bookmarks,
            revision: 0,
            next_bookmark: first_bookmark,
            end: Box::pin(tokio::time::sleep_until(ends_at)),
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
            let page = store.range(&range, None, None).await.map_err(|error| objects::store_failure(&error))?;
            if after > page.revision {
                return Err(Status::resource_version_too_large(&after.to_string(), page.revision));
            }
            for (index, entry) in page.entries.iter().enumerate() {
                list::let_others(index).await;
                if self.selection.matches_once(entry)? {
                    let event = self.event("ADDED", entry)?;
                    self.waiting.push_back(event);
                }
            }
            after = page.revision;
            self.revision = after;
            if initial_events == Some(true) && self.bookmarks {
                let bookmark = self.bookmark(true);
                self.waiting.push_back(bookmark);
            }
        } else if after == 0 {
            after = store.revision().await.map_err(|error| objects::store_failure(&error))?;
        }
        self.revision = after;
        match store.watch(range, after).await {
            Ok(events) => self.events = Some(events),
            Err(error) => {
                let last = error_event(&error);
                self.waiting.push_back(last);
            }
        }
        Ok(())
    }

    /// The next piece of the answer; none at its end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(bytes) = self.take_waiting() {
                return Some(bytes);
            }
            let turn = self.wait().await;
            match turn {
                Turn::End | Turn::Happened(None) => return None,
                Turn::Bookmark => {
                    let bookmark = self.bookmark(false);
                    self.waiting.push_back(bookmark);
                    self.plan_bookmark();
                }
                Turn::Happened(Some(Ok(Watched::Progress(revision)))) => self.revision = self.revision.max(revision),
                Turn::Happened(Some(Ok(Watched::Events(happened)))) => {
                    if let Err(status) = self.take(&happened) {
                        self.fail(wrap("ERROR", &response::to_json(&status.to_value())));
                    }
                }
                Turn::Happened(Some(Err(error))) => match error {
                    Error::Closed => return None,
                    error => self.fail(error_event(&error)),
                },
            }
        }
    }

    /// Sends this, and ends.
    fn fail(&mut self, last: Bytes) {
        self.waiting.push_back(last);
        self.events = None;
    }

    async fn wait(&mut self) -> Turn {
        let Some(events) = &mut self.events else { return Turn::End };
        let stopping = &self.call.server.stopping;
        tokio::select! {
            biased;
            () = stopping.cancelled() => Turn::End,
            happened = events.next() => Turn::Happened(happened),
            () = &mut self.end => Turn::End,
            () = tokio::time::sleep_until(self.next_bookmark), if self.bookmarks => Turn::Bookmark,
        }
    }

    fn plan_bookmark(&mut self) {
        let last = self.ends_at.checked_sub(BOOKMARK_BEFORE_END).unwrap_or(self.ends_at);
        let next = Instant::now() + BOOKMARK_EVERY;
        self.next_bookmark = if Instant::now() < last { next.min(last) } else { next };
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

    fn event(&mut self, name: &str, entry: &Entry) -> Result<Bytes, Status> {
        if self.call.accept.view == View::Object && !events::is_converted(&self.call.kind) {
            return Ok(wrap(name, &entry.value));
        }
        let object = self.call.server.decoded.get(entry)?;
        self.write(name, entry, Some(&object))
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
        Ok(wrap(name, &response::to_json(&shown)))
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
        wrap("BOOKMARK", &response::to_json(&object))
    }
}

/// `{"type":"ADDED","object":…}` and a line feed.
fn wrap(name: &str, object: &Bytes) -> Bytes {
    let mut line = BytesMut::with_capacity(object.len() + 40);
    line.put_slice(b"{\"type\":\"");
    line.put_slice(name.as_bytes());
    line.put_slice(b"\",\"object\":");
    line.put_slice(object);
    line.put_slice(b"}\n");
    line.freeze()
}

fn error_event(error: &Error) -> Bytes {
    let status = match error {
        Error::Compacted { requested, oldest } => {
            Status::expired(format!("too old resource version: {requested} ({oldest})"))
        }
        Error::Lagged => Status::expired("too old resource version: the watcher fell behind"),
        error => objects::store_failure(error),
    };
    wrap("ERROR", &response::to_json(&status.to_value()))
}

/// Spread, so that watches that began together don't end together.
fn lifetime() -> Duration {
    let spread = u64::from(jiff::Timestamp::now().subsec_nanosecond().unsigned_abs()) % SHORTEST.as_secs();
    SHORTEST + Duration::from_secs(spread)
}
