//! From protobuf to JSON.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::table::{Form, Label, Message, json_schema};
use super::wire::{Reader, Wire};

/// How deep messages may lie in each other: as deep as JSON may.
const MAX_DEPTH: usize = 120;

/// The fields of a message; none if its bytes make no sense.
pub(super) fn decode(message: &Message, bytes: &[u8], depth: usize) -> Option<Map<String, Value>> {
    if depth > MAX_DEPTH {
        return None;
    }
    let mut object = Map::new();
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.field()? {
        // What a newer client knows and this table doesn't has no name to be shown under.
        let Some(field) = message.by_number(number) else { continue };
        match field.label {
            Label::Inline => {
                if let (Wire::Bytes(bytes), Form::Message(message)) = (wire, field.form) {
                    object.extend(decode(message.get(), bytes, depth + 1)?);
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
        (Form::Quantity, Wire::Bytes(bytes)) => small(bytes).map(|(_, _, text)| text.into()),
        (Form::IntOrString, Wire::Bytes(bytes)) => int_or_string(bytes),
        (Form::Raw, Wire::Bytes(bytes)) => match Reader(bytes).field()? {
            Some((1, Wire::Bytes(json))) if !json.is_empty() => serde_json::from_slice(json).ok(),
            _ => Some(Value::Null),
        },
        (Form::Texts, Wire::Bytes(bytes)) => texts(bytes, 1).map(Value::Array),
        (Form::Schemas | Form::SchemaOrBoolean | Form::SchemaOrTexts, Wire::Bytes(bytes)) => {
            schema_or(form, bytes, depth)
        }
        (Form::Message(message), Wire::Bytes(bytes)) => Some(Value::Object(decode(message.get(), bytes, depth + 1)?)),
        // A number where bytes belong, or the reverse.
        _ => None,
    }
}

/// The texts in a message's field of this number.
fn texts(bytes: &[u8], wanted: u32) -> Option<Vec<Value>> {
    let mut texts = Vec::new();
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.field()? {
        if let (true, Wire::Bytes(bytes)) = (number == wanted, wire) {
            texts.push(std::str::from_utf8(bytes).ok()?.into());
        }
    }
    Some(texts)
}

/// The three forms of "a schema, or something else". Where the something is a boolean, it comes first.
fn schema_or(form: Form, bytes: &[u8], depth: usize) -> Option<Value> {
    let schema_number = if matches!(form, Form::SchemaOrBoolean) { 2 } else { 1 };
    let (mut schema, mut allows, mut schemas) = (None, false, Vec::new());
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.field()? {
        match (form, number, wire) {
            (_, number, Wire::Bytes(bytes)) if number == schema_number => {
                schema = Some(Value::Object(decode(json_schema(), bytes, depth + 1)?));
            }
            (Form::SchemaOrBoolean, 1, Wire::Number(number)) => allows = number != 0,
            (Form::Schemas, 2, Wire::Bytes(bytes)) => {
                schemas.push(Value::Object(decode(json_schema(), bytes, depth + 1)?));
            }
            _ => {}
        }
    }
    Some(match (schema, form) {
        (Some(schema), _) => schema,
        (None, Form::SchemaOrBoolean) => allows.into(),
        (None, Form::SchemaOrTexts) => texts(bytes, 2)?.into(),
        (None, _) => schemas.into(),
    })
}

/// The first two numbers and the first text of a small message.
pub(super) fn small(bytes: &[u8]) -> Option<(i64, i64, &str)> {
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
