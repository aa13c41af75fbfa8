//! Lists: what a selector means, page by page.

mod continuation;
mod pieces;
mod written;

use axum::response::Response;
use carob_api::status::Status;
use carob_store::{Entry, Error, KeyRange, Page};
use http::StatusCode;
use serde_json::{Value, json};

use super::selection::Selection;
use crate::call::Call;
use crate::options::{Freshness, ListOptions};
use crate::{conversion, objects, response};
use continuation::{Continuation, expired};
pub(crate) use written::{answer, metadata_of};

/// How many keys are read at once when a selector skips some.
const CHUNK: usize = 500;
/// After how many objects others get their turn.
const TURN: usize = 64;

/// Answers with a list.
pub(crate) async fn list(call: &Call) -> Result<Response, Status> {
    let options = ListOptions::read(call, false)?;
    let found = match find(call, options).await? {
        Listing::Found(found) => found,
        Listing::Expired(status) => return Ok(response::json(StatusCode::GONE, &status)),
    };
    answer(call, found).await
}

/// How a list ended.
pub(crate) enum Listing {
    Found(Found),
    /// The state that it showed is compacted: 410 with a token to go on in the newest state.
    Expired(Value),
}

/// What a list found.
pub(crate) struct Found {
    pub entries: Vec<Entry>,
    pub revision: u64,
    continuation: Option<String>,
    remaining: Option<u64>,
}

/// Finds the objects that a list is about.
pub(crate) async fn find(call: &Call, options: ListOptions) -> Result<Listing, Status> {
    let prefix = objects::prefix(&call.kind, call.namespace.as_deref());
    let limit = options.limit;
    let (start, at) = match &options.continuation {
        Some(token) => Continuation::parse(token)?.start(&prefix),
        None => match options.freshness {
            Freshness::Newest => (None, None),
            Freshness::Exactly(revision) => (None, Some(revision)),
            Freshness::NotOlderThan(revision) => {
                let newest = call.server.store.revision().await.map_err(|error| objects::store_failure(&error))?;
                if revision > newest {
                    return Err(Status::resource_version_too_large(&revision.to_string(), newest));
                }
                (None, None)
            }
        },
    };
    let selection = Selection::new(&call.kind, options.labels, options.fields);
    let mut range = KeyRange::prefix(prefix.as_str());
    if let Some(start) = start {
        range.start = start;
    } else if let (Some(name), Some(_)) = (selection.name(), &call.namespace) {
        range = KeyRange::key(call.key(name));
    }
    read(call, &prefix, range, &selection, limit, at, options.continuation.is_some()).await
}

async fn read(
    call: &Call,
    prefix: &str,
    mut range: KeyRange,
    selection: &Selection,
    limit: Option<usize>,
    mut at: Option<u64>,
    continued: bool,
) -> Result<Listing, Status> {
    let mut entries = Vec::new();
    loop {
        let wanted = limit.map(|limit| limit - entries.len());
        let chunk = match wanted {
            Some(wanted) if selection.is_everything() => Some(wanted),
            Some(_) => Some(CHUNK),
            None => None,
        };
        let page: Page = match call.server.store.range(&range, chunk, at).await {
            Ok(page) => page,
            Err(Error::Compacted { .. }) if continued => return Ok(Listing::Expired(expired(prefix, &range.start))),
            Err(error) => return Err(objects::store_failure(&error)),
        };
        at = Some(page.revision);
        let mut remaining = page.remaining;
        let mut last = None;
        let mut rest = conversion::entries(call, page.entries).await?.into_iter();
        let mut looked_at = 0_usize;
        for entry in rest.by_ref() {
            looked_at += 1;
            let_others(looked_at).await;
            last = Some(entry.key.clone());
            if selection.matches_once(&entry)? {
                entries.push(entry);
                if limit.is_some_and(|limit| entries.len() >= limit) {
                    break;
                }
            }
        }
        remaining += rest.len() as u64;
        let full = limit.is_some_and(|limit| entries.len() >= limit);
        match last {
            Some(last) if remaining > 0 && full => {
                let start = last.strip_prefix(prefix).unwrap_or(&last);
                let continuation = Continuation {
                    revision: i64::try_from(page.revision).unwrap_or(i64::MAX),
                    start: format!("{start}\0"),
                };
                return Ok(Listing::Found(Found {
                    entries,
                    revision: page.revision,
                    continuation: Some(continuation.token()),
                    remaining: Some(remaining).filter(|_| selection.is_everything()),
                }));
            }
            Some(last) if remaining > 0 => range.start = format!("{last}\0"),
            _ => {
                let found = Found { entries, revision: page.revision, continuation: None, remaining: None };
                return Ok(Listing::Found(found));
            }
        }
    }
}

/// Gives other requests their turn now and then: a long list must not hold up its thread.
pub(super) async fn let_others(index: usize) {
    if index % TURN == TURN - 1 {
        tokio::task::yield_now().await;
    }
}

impl Found {
    /// `ListMeta`
    pub fn meta(&self) -> Value {
        let mut meta = json!({ "resourceVersion": self.revision.to_string() });
        if let Some(continuation) = &self.continuation {
            meta["continue"] = continuation.as_str().into();
        }
        if let Some(remaining) = self.remaining {
            meta["remainingItemCount"] = remaining.into();
        }
        meta
    }
}
