//! Kubernetes' protobuf form, which client-go and kubectl's typed commands send and ask for: read into the JSON of the
//! same object, and written from it.
//!
//! Which number is which field stands in a table (`protobuf/fields.txt`); reading and writing are written once. Zero
//! values are kept when reading: what of them a Go server would leave out is decided where all objects are brought into
//! shape. Custom resources have no such form.

mod decode;
mod encode;
mod table;
mod wire;

use std::borrow::Cow;

use bytes::Bytes;
use carob_api::kind::Kind;
use carob_api::status::Status;
use serde::Deserialize;
use serde_json::{Map, Value};

use decode::decode;
use table::{Message, message};
use wire::{Reader, Wire, write_bytes, write_length, write_message};

/// The content type.
pub(crate) const CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// The content type of a watch.
pub(crate) const STREAM_CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf;stream=watch";

/// What every body begins with.
const MAGIC: &[u8] = b"k8s\0";

/// Whether objects of a kind have this form.
pub(crate) fn knows(kind: &Kind) -> bool {
    kind.custom.is_none() && message(&kind.api_version(), kind.kind).is_some()
}

/// The JSON of a body.
///
/// # Errors
/// 400 if it isn't in this form, or its type is not in the table.
pub(crate) fn to_json(body: &[u8]) -> Result<Value, Status> {
    let bad = || Status::bad_request("the body is not in Kubernetes' protobuf form");
    let envelope = body.strip_prefix(MAGIC).ok_or_else(bad)?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    let mut reader = Reader(envelope);
    while let Some((number, wire)) = reader.field().ok_or_else(bad)? {
        match (number, wire) {
            (1, Wire::Bytes(bytes)) => {
                let mut types = Reader(bytes);
                while let Some((number, wire)) = types.field().ok_or_else(bad)? {
                    let Wire::Bytes(bytes) = wire else { continue };
                    let text = String::from_utf8(bytes.to_vec()).map_err(|_| bad())?;
                    match number {
                        1 => api_version = text,
                        2 => kind = text,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let Some(message) = message(&api_version, &kind) else {
        return Err(Status::bad_request(format!(
            "{kind} in version {api_version:?} is not known in the protobuf form; send application/json"
        )));
    };
    let mut object = Map::new();
    object.insert("kind".to_owned(), kind.into());
    object.insert("apiVersion".to_owned(), api_version.into());
    object.extend(decode(message, raw, 0).ok_or_else(bad)?);
    Ok(Value::Object(object))
}

/// The protobuf form of an object's JSON, which says what it is.
///
/// # Errors
/// 406 if it has none.
pub(crate) fn from_json(json: &[u8]) -> Result<Bytes, Status> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Types<'a> {
        #[serde(borrow, default)]
        kind: Cow<'a, str>,
        #[serde(borrow, default)]
        api_version: Cow<'a, str>,
    }
    let types: Types<'_> = serde_json::from_slice(json).map_err(|_| Status::internal("an answer is not JSON"))?;
    let version = if types.api_version.is_empty() { "v1" } else { &types.api_version };
    let message = message(version, &types.kind).ok_or_else(|| no_form(&types.kind))?;
    let mut raw = Vec::with_capacity(json.len() / 2 + 64);
    encode_into(message, json, &mut raw)?;
    Ok(enveloped(version, &types.kind, &raw))
}

fn no_form(kind: &str) -> Status {
    Status::not_acceptable(format!(
        "object does not implement the protobuf marshalling interface and cannot be encoded to a protobuf message: {kind}"
    ))
}

fn encode_into(message: &'static Message, json: &[u8], out: &mut Vec<u8>) -> Result<(), Status> {
    encode::encode(message, json, out).map_err(|error| {
        tracing::error!(%error, message = message.name, "an object does not fit its protobuf form");
        Status::internal("an object does not fit its protobuf form")
    })
}

/// A list that is written item by item. Its length comes before it, so it is sent when all of it is there.
pub(crate) struct List {
    api_version: String,
    kind: String,
    item: &'static Message,
    item_number: u32,
    /// Room for the envelope's head, then the list.
    out: Vec<u8>,
    room: usize,
}

/// The most bytes of an envelope's head but for the names in it: magic, tags, lengths.
const HEAD: usize = 64;

impl List {
    /// Begins a list of this type, `PodList` of `v1`, with its metadata.
    ///
    /// # Errors
    /// 406 if it has no protobuf form.
    pub fn new(api_version: &str, kind: String, metadata: &Value) -> Result<Self, Status> {
        let list = message(api_version, &kind).ok_or_else(|| no_form(&kind))?;
        let (item_number, item) = match list.by_name("items") {
            Some((_, table::Field { number, form: table::Form::Message(item), .. })) => (*number, item.get()),
            _ => return Err(no_form(&kind)),
        };
        let room = HEAD + api_version.len() + kind.len();
        let mut out = vec![0; room];
        let head = serde_json::json!({ "metadata": metadata }).to_string();
        encode_into(list, head.as_bytes(), &mut out)?;
        Ok(Self { api_version: api_version.to_owned(), kind, item, item_number, out, room })
    }

    /// Adds an item by its JSON.
    pub fn push(&mut self, json: &[u8]) -> Result<(), Status> {
        let item = self.item;
        write_message(&mut self.out, self.item_number, |out| encode_into(item, json, out))
    }

    /// The finished list.
    pub fn finish(self) -> Bytes {
        let Self { api_version, kind, mut out, room, .. } = self;
        let head = envelope_head(&api_version, &kind, out.len() - room);
        // The head goes right before the list, into the room that was left for it.
        let start = room - head.len();
        out[start..room].copy_from_slice(&head);
        write_envelope_tail(&mut out);
        Bytes::from(out).slice(start..)
    }
}

fn enveloped(api_version: &str, kind: &str, raw: &[u8]) -> Bytes {
    let mut out = envelope_head(api_version, kind, raw.len());
    out.reserve(raw.len() + 4);
    out.extend_from_slice(raw);
    write_envelope_tail(&mut out);
    out.into()
}

/// What comes before an object of this length.
fn envelope_head(api_version: &str, kind: &str, length: usize) -> Vec<u8> {
    let mut head = Vec::with_capacity(HEAD + api_version.len() + kind.len());
    head.extend_from_slice(MAGIC);
    write_message(&mut head, 1, |out| {
        write_bytes(out, 1, api_version.as_bytes());
        write_bytes(out, 2, kind.as_bytes());
    });
    write_length(&mut head, 2, length);
    head
}

/// What comes behind it: no encoding, no content type.
fn write_envelope_tail(out: &mut Vec<u8>) {
    write_bytes(out, 3, b"");
    write_bytes(out, 4, b"");
}

/// An event of a watch: its length in four bytes, then a `WatchEvent`, whose object has an envelope of its own.
pub(crate) fn frame(event: &str, object: &[u8]) -> Bytes {
    let mut out = vec![0; 4];
    write_bytes(&mut out, 1, event.as_bytes());
    write_message(&mut out, 2, |out| write_bytes(out, 1, object));
    let length = u32::try_from(out.len() - 4).expect("an object is far below 4 GiB");
    out[..4].copy_from_slice(&length.to_be_bytes());
    out.into()
}

#[cfg(test)]
mod tests;
