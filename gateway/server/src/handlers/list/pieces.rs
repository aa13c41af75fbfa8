//! A list as it goes over the wire: piece by piece, as fast as the client takes it. What a list takes of memory is
//! then the entries, which the store has anyway, and one piece.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use carob_api::kind::KindRef;
use carob_api::status::Status;
use carob_api::table::{IncludeObject, Rows};
use carob_store::Entry;
use http_body::{Frame, SizeHint};
use serde_json::Value;

use super::written::metadata_into;
use crate::{events, objects, response, stored};

/// How much is written at a time, in bytes.
const PIECE: usize = 64 << 10;
/// How many objects are decoded at a time.
const DECODED_AT_ONCE: usize = 64;

/// How items are written.
pub(super) enum Form {
    /// As they are stored, without this opening.
    Stored(String),
    /// Decoded and brought into the kind's form.
    Shown,
    Rows(Rows<'static>),
    /// `PartialObjectMetadata` of this version of `meta.k8s.io`.
    Metadata(&'static str),
}

impl Form {
    /// How whole objects of a kind are listed.
    pub fn of(kind: &KindRef) -> Self {
        if events::is_converted(kind) { Self::Shown } else { Self::Stored(objects::opening(kind)) }
    }

    /// Whether it takes so much work that others get their turn between two pieces.
    fn is_work(&self) -> bool {
        !matches!(self, Self::Stored(_))
    }
}

/// The rest of a list.
pub(super) struct Pieces {
    kind: KindRef,
    form: Form,
    /// What comes before the items; taken by the first piece.
    head: Vec<u8>,
    entries: std::vec::IntoIter<Entry>,
    first: bool,
    ended: bool,
    /// Whether others had their turn since the last piece.
    rested: bool,
}

impl Pieces {
    /// `head` ends where the items begin.
    pub fn new(kind: KindRef, form: Form, head: Vec<u8>, entries: Vec<Entry>) -> Self {
        Self { kind, form, head, entries: entries.into_iter(), first: true, ended: false, rested: true }
    }

    /// Whether writing it is more than copying.
    pub fn is_work(&self) -> bool {
        self.form.is_work()
    }

    /// The next piece.
    pub fn next(&mut self) -> Option<Result<Bytes, Status>> {
        if self.ended {
            return None;
        }
        let mut out = Vec::with_capacity(PIECE + PIECE / 4);
        out.append(&mut self.head);
        let mut count = 0;
        while out.len() < PIECE && !(self.form.is_work() && count == DECODED_AT_ONCE) {
            let Some(entry) = self.entries.next() else {
                out.extend_from_slice(b"]}");
                self.ended = true;
                break;
            };
            if !std::mem::take(&mut self.first) {
                out.push(b',');
            }
            if let Err(status) = self.item(&entry, &mut out) {
                self.ended = true;
                return Some(Err(status));
            }
            count += 1;
        }
        Some(Ok(out.into()))
    }

    /// All of it, in memory.
    pub async fn whole(mut self) -> Result<Bytes, Status> {
        let mut out = Vec::new();
        while let Some(piece) = self.next() {
            out.extend_from_slice(&piece?);
            tokio::task::yield_now().await;
        }
        Ok(out.into())
    }

    fn item(&self, entry: &Entry, out: &mut Vec<u8>) -> Result<(), Status> {
        match &self.form {
            Form::Stored(opening) => {
                // Items don't say what they are.
                if let Some(rest) = entry.value.strip_prefix(opening.as_bytes()) {
                    out.push(b'{');
                    out.extend_from_slice(rest);
                } else {
                    out.extend_from_slice(&entry.value);
                }
            }
            Form::Shown => {
                let mut object = self.shown(&entry.value)?;
                // Items of custom resources say what they are, those of built-in ones don't.
                if self.kind.custom.is_none()
                    && let Some(fields) = object.as_object_mut()
                {
                    fields.shift_remove("kind");
                    fields.shift_remove("apiVersion");
                }
                out.extend_from_slice(&response::to_json(&object));
            }
            Form::Rows(form) => {
                let metadata = stored::metadata(&entry.value).filter(|_| !events::is_converted(&self.kind));
                if let (IncludeObject::Metadata, Some(metadata)) = (form.include, metadata) {
                    let object = objects::decode(&stored::without_managed_fields(&entry.value))?;
                    form.write_row(&self.kind, &object, metadata, out);
                } else {
                    let row = form.row(&self.kind, &self.shown(&entry.value)?);
                    serde_json::to_writer(out, &row).expect("a JSON value is written into memory");
                }
            }
            Form::Metadata(version) => metadata_into(out, &self.kind, &entry.value, version)?,
        }
        Ok(())
    }

    fn shown(&self, bytes: &Bytes) -> Result<Value, Status> {
        let mut object = objects::decode(bytes)?;
        events::from_stored(&self.kind, &mut object);
        Ok(object)
    }

    /// How long the rest is, where that is known without writing it.
    fn size(&self) -> Option<u64> {
        let Form::Stored(opening) = &self.form else { return None };
        if self.ended {
            return Some(0);
        }
        let items = self.entries.as_slice().iter().map(|entry| {
            if entry.value.starts_with(opening.as_bytes()) {
                entry.value.len() - opening.len() + 1
            } else {
                entry.value.len()
            }
        });
        let commas = self.entries.len().saturating_sub(usize::from(self.first));
        Some((self.head.len() + items.sum::<usize>() + commas + 2) as u64)
    }
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.form.is_work() && !std::mem::replace(&mut self.rested, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.rested = false;
        Poll::Ready(self.next().map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        self.size().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use carob_api::kinds::Registry;
    use carob_api::table::Rows;
    use http_body::Body as _;
    use http_body_util::BodyExt as _;
    use serde_json::json;

    use super::*;

    fn pods(count: usize) -> Vec<Entry> {
        (0..count)
            .map(|number| {
                let object = json!({
                    "kind": "Pod",
                    "apiVersion": "v1",
                    "metadata": {
                        "name": format!("pod-{number}"),
                        "labels": { "text": "}\\\",{".repeat(number % 7) },
                        "managedFields": [{ "manager": "me", "fieldsV1": { "f:spec": { "f:x": {} } } }],
                    },
                    "spec": { "containers": [{ "name": "main", "image": "x".repeat(number * 13 % 500) }] },
                    "status": { "phase": "Running" },
                });
                let value = objects::encode(&object).render(number as u64 + 1);
                Entry {
                    key: format!("/core/pods/a/pod-{number}").into(),
                    value,
                    revision: number as u64 + 1,
                    created: 1,
                }
            })
            .collect()
    }

    fn pieces(form: fn(&KindRef) -> Form, entries: &[Entry]) -> Pieces {
        let registry = Registry::builtin();
        let kind = KindRef::from(registry.by_resource("", "v1", "pods").expect("a kind"));
        let form = form(&kind);
        Pieces::new(kind, form, b"{\"items\":[".to_vec(), entries.to_vec())
    }

    async fn read(body: Pieces) -> Value {
        let bytes = body.collect().await.expect("a body").to_bytes();
        serde_json::from_slice(&bytes).expect("JSON")
    }

    const FORMS: [fn(&KindRef) -> Form; 3] = [
        Form::of,
        |_| Form::Rows(Rows { include: IncludeObject::Metadata, version: "v1", now: jiff::Timestamp::UNIX_EPOCH }),
        |_| Form::Metadata("v1"),
    ];

    #[tokio::test]
    async fn pieces_make_up_what_decoding_and_encoding_would() {
        for count in [0, 1, 2, 700] {
            let entries = pods(count);
            let decoded: Vec<Value> =
                entries.iter().map(|entry| objects::decode(&entry.value).expect("JSON")).collect();
            let items = |of: &dyn Fn(&Value) -> Value| json!({ "items": decoded.iter().map(of).collect::<Vec<_>>() });
            let bare = items(&|object| {
                let mut object = object.clone();
                let fields = object.as_object_mut().expect("an object");
                fields.shift_remove("kind");
                fields.shift_remove("apiVersion");
                object
            });
            assert_eq!(read(pieces(FORMS[0], &entries)).await, bare);
            let registry = Registry::builtin();
            let kind = registry.by_resource("", "v1", "pods").expect("a kind");
            let form = Rows { include: IncludeObject::Metadata, version: "v1", now: jiff::Timestamp::UNIX_EPOCH };
            assert_eq!(read(pieces(FORMS[1], &entries)).await, items(&|object| form.row(kind, object)));
            let metadata = items(
                &|object| json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"] }),
            );
            assert_eq!(read(pieces(FORMS[2], &entries)).await, metadata);
        }
    }

    #[tokio::test]
    async fn the_length_that_is_told_is_the_length_that_comes_and_pieces_are_small() {
        for count in [0, 1, 3, 900] {
            let entries = pods(count);
            let mut body = pieces(Form::of, &entries);
            let told = body.size_hint().exact().expect("known");
            let mut came = 0;
            while let Some(frame) = body.frame().await {
                let length = frame.expect("a piece").into_data().expect("data").len();
                assert!(length < 2 * PIECE, "{length}");
                came += length as u64;
                assert_eq!(body.size_hint().exact(), Some(told - came));
            }
            assert_eq!(came, told);
        }
    }

    #[tokio::test]
    async fn a_damaged_object_ends_the_list_with_an_error() {
        let mut entries = pods(300);
        entries[200].value = Bytes::from_static(b"{\"kind\":");
        for form in &FORMS[1..] {
            pieces(*form, &entries).collect().await.expect_err("damaged");
        }
    }
}
