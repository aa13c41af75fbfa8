//! A tree against the schema of its kind.

use std::collections::HashSet;
use std::fmt::Write as _;

use serde_json::{Map, Number, Value};

use super::raw::{Entry, Raw};
use super::{base64_text, normalize, time};
use crate::quantity::Quantity;
use crate::schema::{Schema, Type};
use crate::status::quote;

/// So many strict errors are told at most.
const MOST_STRICT_ERRORS: usize = 100;

/// What a tree comes to.
pub(super) struct Walked {
    pub value: Value,
    /// `unknown field "spec.foo"`, `duplicate field "spec.x"`, in the order of the document.
    pub strict: Vec<String>,
}

/// Drops what the schema doesn't know, and nulls; checks types; brings times and quantities into their one form.
///
/// # Errors
/// The first thing that is of a wrong type, in Go's words.
pub(super) fn walk(schema: &Schema, raw: Raw) -> Result<Walked, String> {
    let mut walker = Walker::default();
    let value = walker.value(schema, raw);
    match walker.error {
        Some(error) => Err(error),
        None => Ok(Walked { value, strict: walker.strict }),
    }
}

/// The first thing in a tree that is of a wrong type.
pub(super) fn first_error(schema: &Schema, raw: &Raw) -> Option<String> {
    let mut walker = Walker::default();
    walker.value(schema, copy(raw));
    walker.error
}

/// The fields that are set twice, whatever the schema.
pub(super) fn duplicates(raw: &Raw) -> Vec<String> {
    let mut walker = Walker::default();
    walker.untyped(raw);
    walker.strict
}

#[derive(Default)]
struct Walker<'a> {
    error: Option<String>,
    strict: Vec<String>,
    told: HashSet<String>,
    /// `spec.containers[0].name`, for strict errors.
    path: String,
    /// `spec`, `containers`, `name`, for type errors.
    fields: Vec<&'a str>,
    /// The Go struct that holds the field.
    holder: &'a str,
}

impl<'a> Walker<'a> {
    fn value(&mut self, schema: &'a Schema, raw: Raw) -> Value {
        match (schema.type_(), raw) {
            (_, Raw::Null) => Value::Null,
            (Type::Any, raw) => raw.into(),
            (Type::Object, Raw::Object(entries)) => self.object(schema, entries),
            (Type::Map, Raw::Object(entries)) => self.map(schema, entries),
            (Type::Array, Raw::Array(items)) => self.array(schema, items),
            (Type::String | Type::IntOrString, Raw::String(text)) => Value::String(text),
            (Type::Bytes, Raw::String(text)) => self.text(base64_text::check(&text)),
            (Type::Time, Raw::String(text)) => self.text(time::seconds(&text)),
            (Type::MicroTime, Raw::String(text)) => self.text(time::micros(&text)),
            (Type::Boolean, Raw::Bool(value)) => Value::Bool(value),
            (type_, Raw::Number(number)) if fits(type_, &number) => Value::Number(number),
            (Type::IntOrString, raw) => self.standalone(&raw, "int32"),
            (Type::Quantity, raw) => self.quantity(&raw),
            (Type::Time | Type::MicroTime, raw) => self.standalone(&raw, "string"),
            (_, raw) => self.mismatch(schema, &raw),
        }
    }

    fn object(&mut self, schema: &'a Schema, entries: Vec<Entry>) -> Value {
        let holder = std::mem::replace(&mut self.holder, schema.name().map_or("", last_segment));
        let mut object = Map::with_capacity(entries.len());
        let mut seen = HashSet::with_capacity(entries.len());
        for entry in entries {
            let length = self.enter(&entry.key);
            match schema.known(&entry.key) {
                None => self.strict(format_args!("unknown field {}", quote(&self.path))),
                Some((name, field)) => {
                    if !seen.insert(name) {
                        self.strict(format_args!("duplicate field {}", quote(&self.path)));
                    }
                    self.fields.push(name);
                    let value = self.value(field, entry.value);
                    self.fields.pop();
                    if !value.is_null() {
                        object.insert(entry.key, value);
                    }
                }
            }
            self.path.truncate(length);
        }
        self.holder = holder;
        Value::Object(object)
    }

    fn map(&mut self, schema: &'a Schema, entries: Vec<Entry>) -> Value {
        let Some(element) = schema.additional() else { return Value::Null };
        let mut map = Map::with_capacity(entries.len());
        for entry in entries {
            let length = self.enter(&entry.key);
            if map.contains_key(&entry.key) {
                self.strict(format_args!("duplicate field {}", quote(&self.path)));
            }
            let value = self.element(element, entry.value);
            map.insert(entry.key, value);
            self.path.truncate(length);
        }
        Value::Object(map)
    }

    fn array(&mut self, schema: &'a Schema, items: Vec<Raw>) -> Value {
        let Some(element) = schema.items() else { return Value::Null };
        let length = self.path.len();
        let mut array = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            self.enter_index(index);
            array.push(self.element(element, item));
            self.path.truncate(length);
        }
        Value::Array(array)
    }

    /// In a list or map null stands for the zero value.
    fn element(&mut self, schema: &'a Schema, raw: Raw) -> Value {
        match self.value(schema, raw) {
            Value::Null => normalize::zero(schema),
            value => value,
        }
    }

    fn quantity(&mut self, raw: &Raw) -> Value {
        let text = match raw {
            Raw::String(text) => text.clone(),
            Raw::Number(number) => number.to_string(),
            Raw::Bool(value) => value.to_string(),
            _ => "{}".to_owned(),
        };
        let parsed = Quantity::parse(text.trim()).map(|quantity| quantity.canonical());
        self.text(parsed.map_err(|error| error.to_string()))
    }

    fn text(&mut self, outcome: Result<String, String>) -> Value {
        match outcome {
            Ok(text) => Value::String(text),
            Err(error) => self.fail(error),
        }
    }

    /// A value of a type with a decoder of its own is read without knowing its field.
    fn standalone(&mut self, raw: &Raw, go_type: &str) -> Value {
        let error = format!("json: cannot unmarshal {} into Go value of type {go_type}", described(raw));
        self.fail(error)
    }

    fn mismatch(&mut self, schema: &Schema, raw: &Raw) -> Value {
        let is_number = matches!(schema.type_(), Type::Int32 | Type::Int64 | Type::Double);
        let what = if is_number { described(raw) } else { raw.word().to_owned() };
        let go_type = if schema.go_type().is_empty() { fallback_type(schema) } else { schema.go_type() };
        let error = format!(
            "json: cannot unmarshal {what} into Go struct field {}.{} of type {go_type}",
            self.holder,
            self.fields.join(".")
        );
        self.fail(error)
    }

    /// Only the first error is told; reading goes on as in Go.
    fn fail(&mut self, error: String) -> Value {
        self.error.get_or_insert(error);
        Value::Null
    }

    fn strict(&mut self, text: std::fmt::Arguments<'_>) {
        let text = text.to_string();
        if self.strict.len() < MOST_STRICT_ERRORS && self.told.insert(text.clone()) {
            self.strict.push(text);
        }
    }

    /// Goes down to a key; answers the length to truncate the path to afterwards.
    fn enter(&mut self, key: &str) -> usize {
        let length = self.path.len();
        if length > 0 {
            self.path.push('.');
        }
        self.path.push_str(key);
        length
    }

    fn enter_index(&mut self, index: usize) {
        // Writing to a String doesn't fail.
        let _ = write!(self.path, "[{index}]");
    }

    fn untyped(&mut self, raw: &Raw) {
        match raw {
            Raw::Object(entries) => {
                let mut seen = HashSet::new();
                for entry in entries {
                    let length = self.enter(&entry.key);
                    if !seen.insert(&entry.key) {
                        self.strict(format_args!("duplicate field {}", quote(&self.path)));
                    }
                    self.untyped(&entry.value);
                    self.path.truncate(length);
                }
            }
            Raw::Array(items) => {
                let length = self.path.len();
                for (index, item) in items.iter().enumerate() {
                    self.enter_index(index);
                    self.untyped(item);
                    self.path.truncate(length);
                }
            }
            _ => {}
        }
    }
}

fn fits(type_: Type, number: &Number) -> bool {
    match type_ {
        Type::Int32 | Type::IntOrString => number.as_i64().is_some_and(|value| i32::try_from(value).is_ok()),
        Type::Int64 => number.is_i64(),
        Type::Double => true,
        _ => false,
    }
}

/// A number that is the wrong one is shown itself.
fn described(raw: &Raw) -> String {
    match raw {
        Raw::Number(number) => format!("number {number}"),
        other => other.word().to_owned(),
    }
}

fn fallback_type(schema: &Schema) -> &'static str {
    match schema.type_() {
        Type::Boolean => "bool",
        Type::Int32 => "int32",
        Type::Int64 => "int64",
        Type::Double => "float64",
        Type::Bytes => "[]uint8",
        _ => "string",
    }
}

fn last_segment(name: &'static str) -> &'static str {
    name.rsplit('.').next().unwrap_or_default()
}

fn copy(raw: &Raw) -> Raw {
    match raw {
        Raw::Null => Raw::Null,
        Raw::Bool(value) => Raw::Bool(*value),
        Raw::Number(number) => Raw::Number(number.clone()),
        Raw::String(text) => Raw::String(text.clone()),
        Raw::Array(items) => Raw::Array(items.iter().map(copy).collect()),
        Raw::Object(entries) => Raw::Object(
            entries
                .iter()
                .map(|entry| Entry { key: entry.key.clone(), line: entry.line, value: copy(&entry.value) })
                .collect(),
        ),
    }
}
