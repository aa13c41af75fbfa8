//! Lists: stored bytes put in a row, page by page.

use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use carob_api::status::Status;
use carob_store::{Entry, Error, KeyRange, Page};
use http::StatusCode;
use serde_json::{Value, json};

use super::selection::Selection;
use super::views;
use crate::call::Call;
use crate::negotiate::View;
use crate::options::{Freshness, ListOptions};
use crate::{events, objects, response};

/// How many keys are read at once when a selector skips some.
const CHUNK: usize = 500;
/// After how many objects others get their turn.
const TURN: usize = 256;

/// Answers with a list.
pub(crate) async fn list(call: &Call) -> Result<Response, Status> {
    let options = ListOptions::read(call, false)?;
    let found = match find(call, options).await? {
        Listing::Found(found) => found,
        Listing::Expired(status) => return Ok(response::json(StatusCode::GONE, &status)),
    };
    let meta = found.meta();
    let body = match call.accept.view {
        View::Object => found.bytes(call).await?,
        View::Table(version) => {
            let objects = found.objects(call).await?;
            let objects: Vec<&Value> = objects.iter().collect();
            response::to_json(&views::table(call, version, &objects, meta, true)?)
        }
        View::Metadata(version) | View::MetadataList(version) => {
            let items: Vec<Value> =
                found.objects(call).await?.iter().map(|object| views::metadata_only(object, version)).collect();
            response::to_json(&json!({
                "kind": "PartialObjectMetadataList",
                "apiVersion": format!("meta.k8s.io/{version}"),
                "metadata": meta,
                "items": items,
            }))
        }
    };
    response::object(StatusCode::OK, body, call.accept.format, call.query.is_set("pretty"))
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
        let mut rest = page.entries.into_iter();
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
pub(crate) async fn let_others(index: usize) {
    if index % TURN == TURN - 1 {
        tokio::task::yield_now().await;
    }
}

/// 410 with a token that goes on where the list stopped, in the newest state.
fn expired(prefix: &str, start: &str) -> Value {
    let start = start.strip_prefix(prefix).unwrap_or(start).to_owned();
    let token = Continuation { revision: -1, start }.token();
    let mut status = Status::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list \
         without the continue parameter, or use the continue token in this response to retrieve the remainder of the \
         results. Continuing with the provided token results in an inconsistent list - objects that were created, \
         modified, or deleted between the time the first chunk was returned and now may show up in the list.",
    )
    .to_value();
    status["metadata"] = json!({ "continue": token });
    status
}

/// Where a paged list goes on.
struct Continuation {
    /// The state that the list shows; -1 for the newest.
    revision: i64,
    /// The first key, without the prefix.
    start: String,
}

impl Continuation {
    fn token(&self) -> String {
        let token = json!({ "v": "meta.k8s.io/v1", "rv": self.revision, "start": self.start });
        URL_SAFE_NO_PAD.encode(token.to_string())
    }

    fn parse(token: &str) -> Result<Self, Status> {
        let bad =
            |why: String| Status::bad_request(format!("invalid continue token: continue key is not valid: {why}"));
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|error| {
            let offset = match error {
                base64::DecodeError::InvalidByte(offset, _) => offset,
                _ => token.len().saturating_sub(1),
            };
            bad(format!("illegal base64 data at input byte {offset}"))
        })?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|_| {
            let first = bytes.first().map_or_else(String::new, |byte| match byte {
                0x20..0x7f => char::from(*byte).to_string(),
                byte => format!("\\u{byte:04x}"),
            });
            bad(format!("invalid character '{first}' looking for beginning of value"))
        })?;
        if value["v"] != "meta.k8s.io/v1" {
            return Err(bad("server does not recognize this encoded version".to_owned()));
        }
        match (value["rv"].as_i64(), value["start"].as_str()) {
            (Some(revision), Some(start)) if revision != 0 && !start.is_empty() => {
                Ok(Self { revision, start: start.to_owned() })
            }
            _ => Err(bad("incorrect encoded start resourceVersion (version meta.k8s.io/v1)".to_owned())),
        }
    }

    fn start(&self, prefix: &str) -> (Option<String>, Option<u64>) {
        // The start lies behind the prefix by construction: a token cannot lead into another kind or namespace.
        (Some(format!("{prefix}{}", self.start)), u64::try_from(self.revision).ok())
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

    /// The list as JSON: the stored bytes of its items, without their kind and apiVersion.
    pub async fn bytes(&self, call: &Call) -> Result<Bytes, Status> {
        let kind = &call.kind;
        let size: usize = self.entries.iter().map(|entry| entry.value.len() + 1).sum();
        let mut out = Vec::with_capacity(size + 256);
        let head = format!(
            "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{},\"items\":[",
            kind.kind,
            objects::api_version(kind),
            self.meta()
        );
        out.extend_from_slice(head.as_bytes());
        let opening = objects::opening(kind);
        for (index, entry) in self.entries.iter().enumerate() {
            let_others(index).await;
            if index > 0 {
                out.push(b',');
            }
            if events::is_converted(kind) {
                let mut object = call.shown(&entry.value)?;
                if let Some(fields) = object.as_object_mut() {
                    fields.shift_remove("kind");
                    fields.shift_remove("apiVersion");
                }
                out.extend_from_slice(&response::to_json(&object));
            } else if let Some(rest) = entry.value.strip_prefix(opening.as_bytes()) {
                out.push(b'{');
                out.extend_from_slice(rest);
            } else {
                out.extend_from_slice(&entry.value);
            }
        }
        out.extend_from_slice(b"]}");
        Ok(out.into())
    }

    /// The items, decoded.
    pub async fn objects(&self, call: &Call) -> Result<Vec<Value>, Status> {
        let mut objects = Vec::with_capacity(self.entries.len());
        for (index, entry) in self.entries.iter().enumerate() {
            let_others(index).await;
            objects.push(call.shown(&entry.value)?);
        }
        Ok(objects)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_leads_back_to_where_it_was_made_and_never_out_of_its_prefix() {
        let token = Continuation { revision: 7, start: "ns/a\0".into() }.token();
        let (start, at) = Continuation::parse(&token).expect("good").start("/core/pods/");
        assert_eq!((start.as_deref(), at), (Some("/core/pods/ns/a\0"), Some(7)));
    }

    #[test]
    fn bad_tokens_are_refused_in_kubernetes_words() {
        let message = |token| Continuation::parse(token).err().expect("refused").message().to_owned();
        assert_eq!(
            message("nope"),
            "invalid continue token: continue key is not valid: invalid character '\\u009e' looking for beginning of \
             value"
        );
        assert_eq!(
            message("x"),
            "invalid continue token: continue key is not valid: illegal base64 data at input byte 0"
        );
    }
}
