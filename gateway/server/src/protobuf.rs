//! Bodies in Kubernetes' protobuf form, which kubectl's typed commands send: turned into the JSON of the same object.
//!
//! Which number is which field stands in a table ([`FIELDS`]); the decoder is written once. Zero values are kept: what of
//! them a Go server would leave out is decided where all objects are brought into shape.

use std::collections::HashMap;
use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use carob_api::status::Status;
use jiff::Timestamp;
use serde_json::{Map, Value};

/// The content type.
pub(crate) const CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// Messages and their fields; its head explains it.
const FIELDS: &str = include_str!("protobuf/fields.txt");
/// What every body begins with.
const MAGIC: &[u8] = b"k8s\0";
/// How deep messages may lie in each other; `JSONSchemaProps` aside, no object comes near.
const MAX_DEPTH: usize = 64;

/// One message's fields by number.
type Message = HashMap<u32, Field>;

struct Field {
    name: &'static str,
    label: Label,
    form: Form,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Label {
    Single,
    Repeated,
    Map,
    /// Its fields stand in the outer object.
    Inline,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    Boolean,
    Integer,
    Double,
    Bytes,
    Time,
    MicroTime,
    Duration,
    Quantity,
    IntOrString,
    /// JSON inside bytes.
    Raw,
    Message(&'static str),
}

fn table() -> &'static HashMap<&'static str, Message> {
    static TABLE: OnceLock<HashMap<&'static str, Message>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut table: HashMap<&'static str, Message> = HashMap::new();
        let mut message = "";
        for line in FIELDS.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let mut words = line.split(' ');
            match (words.next(), words.next(), words.next()) {
                (Some(name), None, _) => {
                    message = name;
                    table.entry(name).or_default();
                }
                (Some(number), Some(name), Some(form)) => {
                    let (label, form) = Form::parse(form);
                    if let Ok(number) = number.parse() {
                        table.entry(message).or_default().insert(number, Field { name, label, form });
                    }
                }
                _ => {}
            }
        }
        table
    })
}

impl Form {
    fn parse(text: &'static str) -> (Label, Self) {
        let (label, text) = match text.as_bytes() {
            [b'[', ..] => (Label::Repeated, &text[1..]),
            [b'{', ..] => (Label::Map, &text[1..]),
            [b'^', ..] => (Label::Inline, &text[1..]),
            _ => (Label::Single, text),
        };
        let form = match text {
            "s" => Self::Text,
            "b" => Self::Boolean,
            "i" => Self::Integer,
            "d" => Self::Double,
            "y" => Self::Bytes,
            "@time" => Self::Time,
            "@microtime" => Self::MicroTime,
            "@duration" => Self::Duration,
            "@quantity" => Self::Quantity,
            "@intstr" => Self::IntOrString,
            "@raw" | "@rawext" => Self::Raw,
            message => Self::Message(message),
        };
        (label, form)
    }
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
    let message = message_name(&api_version, &kind);
    let Some((message, _)) = table().get_key_value(message.as_str()) else {
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

/// `core.v1.Pod`: the first label of the group, the version, the kind.
fn message_name(api_version: &str, kind: &str) -> String {
    if kind == "DeleteOptions" {
        return "meta.v1.DeleteOptions".to_owned();
    }
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("core", api_version));
    let group = group.split('.').next().unwrap_or(group);
    format!("{group}.{version}.{kind}")
}

/// One field as it is written.
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The next field; `Some(None)` at the end, `None` if the bytes make no sense.
    #[expect(clippy::option_option, reason = "the end is not a mistake, and a mistake is not the end")]
    fn field(&mut self) -> Option<Option<(u32, Wire<'a>)>> {
        if self.0.is_empty() {
            return Some(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok()?;
        let wire = match tag & 7 {
            0 => Wire::Number(self.varint()?),
            1 => Wire::Number(u64::from_le_bytes(self.take(8)?.try_into().ok()?)),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Number(u64::from(u32::from_le_bytes(self.take(4)?.try_into().ok()?))),
            _ => return None,
        };
        Some(Some((number, wire)))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.take(1)?.first()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }
}

/// The fields of a message; none if its bytes make no sense.
fn decode(message: &str, bytes: &[u8], depth: usize) -> Option<Map<String, Value>> {
    if depth > MAX_DEPTH {
        return None;
    }
    let fields = table().get(message)?;
    let mut object = Map::new();
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.field()? {
        // What a newer client knows and this table doesn't has no name to be shown under.
        let Some(field) = fields.get(&number) else { continue };
        match field.label {
            Label::Inline => {
                if let (Wire::Bytes(bytes), Form::Message(message)) = (wire, field.form) {
                    object.extend(decode(message, bytes, depth + 1)?);
                }
            }
            Label::Single => {
                object.insert(field.name.to_owned(), value(field.form, &wire, depth)?);
            }
            Label::Repeated => {
                let list = object.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
                list.as_array_mut()?.extend(elements(field.form, &wire, depth)?);
            }
            Label::Map => {
                let Wire::Bytes(bytes) = wire else { return None };
                let (key, entry) = map_entry(field.form, bytes, depth)?;
                let map = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
                map.as_object_mut()?.insert(key, entry);
            }
        }
    }
    Some(object)
}

/// One element, or several numbers packed into bytes.
fn elements(form: Form, wire: &Wire<'_>, depth: usize) -> Option<Vec<Value>> {
    if let (Form::Integer | Form::Boolean, Wire::Bytes(bytes)) = (form, wire) {
        let mut reader = Reader(bytes);
        let mut values = Vec::new();
        while !reader.0.is_empty() {
            values.push(value(form, &Wire::Number(reader.varint()?), depth)?);
        }
        return Some(values);
    }
    Some(vec![value(form, wire, depth)?])
}

fn map_entry(form: Form, bytes: &[u8], depth: usize) -> Option<(String, Value)> {
    let (mut key, mut entry) = (String::new(), None);
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.field()? {
        match (number, &wire) {
            (1, Wire::Bytes(bytes)) => key = String::from_utf8(bytes.to_vec()).ok()?,
            (2, wire) => entry = Some(value(form, wire, depth)?),
            _ => {}
        }
    }
    let empty = || value(form, &Wire::Bytes(&[]), depth);
    Some((key, entry.or_else(empty)?))
}

fn value(form: Form, wire: &Wire<'_>, depth: usize) -> Option<Value> {
    match (form, wire) {
        (Form::Boolean, Wire::Number(number)) => Some((*number != 0).into()),
        (Form::Integer, Wire::Number(number)) => Some(number.cast_signed().into()),
        (Form::Double, Wire::Number(bits)) => Some(f64::from_bits(*bits).into()),
        (Form::Text, Wire::Bytes(bytes)) => Some(std::str::from_utf8(bytes).ok()?.into()),
        (Form::Bytes, Wire::Bytes(bytes)) => Some(STANDARD.encode(bytes).into()),
        (Form::Time, Wire::Bytes(bytes)) => time(bytes, "%Y-%m-%dT%H:%M:%SZ"),
        (Form::MicroTime, Wire::Bytes(bytes)) => time(bytes, "%Y-%m-%dT%H:%M:%S%.6fZ"),
        (Form::Duration, Wire::Bytes(bytes)) => {
            let (nanoseconds, _, _) = small(bytes)?;
            Some(format!("{nanoseconds}ns").into())
        }
        (Form::Quantity, Wire::Bytes(bytes)) => small(bytes).map(|(_, _, text)| text.into()),
        (Form::IntOrString, Wire::Bytes(bytes)) => int_or_string(bytes),
        (Form::Raw, Wire::Bytes(bytes)) => match Reader(bytes).field()? {
            Some((1, Wire::Bytes(json))) if !json.is_empty() => serde_json::from_slice(json).ok(),
            _ => Some(Value::Null),
        },
        // A list under a name of its own: in JSON it is just the list.
        (Form::Message(message), Wire::Bytes(bytes)) if message.ends_with(".ExtraValue") => {
            Some(decode(message, bytes, depth + 1)?.shift_remove("items").unwrap_or_else(|| Value::Array(Vec::new())))
        }
        (Form::Message(message), Wire::Bytes(bytes)) => Some(Value::Object(decode(message, bytes, depth + 1)?)),
        // A number where bytes belong, or the reverse.
        _ => None,
    }
}

/// The first two numbers and the first text of a small message.
fn small(bytes: &[u8]) -> Option<(i64, i64, &str)> {
    let (mut first, mut second, mut text) = (0, 0, "");
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.field()? {
        match (number, wire) {
            (1, Wire::Number(number)) => first = number.cast_signed(),
            (2, Wire::Number(number)) => second = number.cast_signed(),
            (_, Wire::Bytes(bytes)) => text = std::str::from_utf8(bytes).ok()?,
            _ => {}
        }
    }
    Some((first, second, text))
}

/// Seconds and nanoseconds since 1970; nothing at all is no time.
fn time(bytes: &[u8], form: &str) -> Option<Value> {
    if bytes.is_empty() {
        return Some(Value::Null);
    }
    let (seconds, nanoseconds, _) = small(bytes)?;
    let at = Timestamp::new(seconds, i32::try_from(nanoseconds).ok()?).ok()?;
    Some(at.strftime(form).to_string().into())
}

fn int_or_string(bytes: &[u8]) -> Option<Value> {
    const STRING: i64 = 1;
    let (form, number, text) = small(bytes)?;
    Some(if form == STRING { text.into() } else { number.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn bytes(number: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(content.len()).expect("short")];
        out.extend_from_slice(content);
        out
    }

    fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let types = [bytes(1, api_version.as_bytes()), bytes(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), bytes(1, &types), bytes(2, raw)].concat()
    }

    #[test]
    fn a_config_map_is_read() {
        let metadata = bytes(1, b"x");
        let entry = [bytes(1, b"a"), bytes(2, b"b")].concat();
        let raw = [bytes(1, &metadata), bytes(2, &entry)].concat();
        assert_eq!(
            to_json(&body("v1", "ConfigMap", &raw)).expect("read"),
            json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "x"}, "data": {"a": "b"}})
        );
    }

    #[test]
    fn a_volume_source_stands_in_its_volume_and_an_empty_time_is_null() {
        let volume = [bytes(1, b"v"), bytes(2, &bytes(2, &[]))].concat();
        let raw = [bytes(1, &bytes(8, &[])), bytes(2, &bytes(1, &volume))].concat();
        assert_eq!(
            to_json(&body("v1", "Pod", &raw)).expect("read"),
            json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"creationTimestamp": null},
                "spec": {"volumes": [{"name": "v", "emptyDir": {}}]}})
        );
    }

    #[test]
    fn bytes_that_make_no_sense_are_refused_and_never_panic() {
        for broken in [&b"k8s\0\xff\xff"[..], b"{}", b"", b"k8s\0\x0a\x7f", b"k8s\0"] {
            assert_eq!(to_json(broken).expect_err("refused").code(), 400);
        }
        let good = body("v1", "Pod", &bytes(1, &bytes(1, b"name")));
        for end in 0..good.len() {
            let _ = to_json(&good[..end]);
        }
    }

    #[test]
    fn the_table_names_only_messages_that_are_in_it() {
        for (message, fields) in table() {
            for field in fields.values() {
                if let Form::Message(inner) = field.form {
                    assert!(table().contains_key(inner), "{message}.{}: {inner}", field.name);
                }
            }
        }
    }
}
