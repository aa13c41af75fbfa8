//! From a request's body to an object: what Kubernetes' decoder takes, refuses and says about it.
//!
//! A body is parsed into a tree that still has duplicate keys, walked along the schema of its kind (unknown fields and
//! nulls fall out, types are checked, times and quantities brought into their one form), and given the shape that a Go
//! server would write it with.

mod base64_text;
mod custom;
mod gvk;
mod json;
mod normalize;
mod raw;
mod time;
mod walk;
mod yaml;
mod yaml_errors;

pub use normalize::normalize;
pub use yaml_errors::yaml_error;

use std::fmt;

use serde_json::Value;

use crate::field::Path;
use crate::kind::Kind;
use crate::schema;
use crate::status::Status;
use raw::Raw;

/// What happens to fields that a kind doesn't have and to fields that are set twice (`?fieldValidation=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// They are dropped.
    Ignore,
    /// They are dropped, with a warning each.
    #[default]
    Warn,
    /// The request is refused.
    Strict,
}

impl FieldValidation {
    /// The value of the query parameter; empty is the default. None for a value that doesn't exist.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "Ignore" => Some(Self::Ignore),
            "" | "Warn" => Some(Self::Warn),
            "Strict" => Some(Self::Strict),
            _ => None,
        }
    }
}

/// An object, and what there is to warn of.
#[derive(Debug)]
pub struct Decoded {
    /// The object, in the shape in which it is answered: see [`normalize`].
    pub value: Value,
    /// Texts for Warning headers.
    pub warnings: Vec<String>,
}

/// Why something is no object of the kind, before it becomes a [`Status`].
#[derive(Debug)]
enum Refusal {
    /// The text that Kubernetes' decoder gives.
    Decoding(String),
    /// A complete answer.
    Complete(Status),
}

/// Reads a JSON body.
pub fn decode_json(kind: &Kind, body: &[u8], validation: FieldValidation) -> Result<Decoded, Status> {
    let raw = json::parse(body).map_err(|error| {
        let text = format!("couldn't get version/kind; json parse error: {error}");
        unrecognized(kind, body, &text)
    })?;
    decode(kind, body, raw, Vec::new(), validation)
}

/// Reads a YAML body.
pub fn decode_yaml(kind: &Kind, body: &[u8], validation: FieldValidation) -> Result<Decoded, Status> {
    let (raw, duplicates) = yaml::parse(body).map_err(|error| {
        let text = format!("error converting YAML to JSON: {error}");
        unrecognized(kind, body, &text)
    })?;
    decode(kind, body, raw, duplicates, validation)
}

/// Checks and prunes an object that is there already, in particular the outcome of a patch. What is wrong is answered
/// with 422 as for a patch that leads to no valid object.
pub fn check(kind: &Kind, value: Value, validation: FieldValidation) -> Result<Decoded, Status> {
    check_patched(kind, value, Vec::new(), validation, None)
}

/// As [`check`]: `duplicates` are texts about the patch itself (see [`duplicate_fields`]), and `shown` is what the
/// error shows as the offending value (the object if none; for a strategic merge patch Kubernetes shows the patch as
/// [`crate::patch::go_text`]).
pub fn check_patched(
    kind: &Kind,
    value: Value,
    duplicates: Vec<String>,
    validation: FieldValidation,
    shown: Option<String>,
) -> Result<Decoded, Status> {
    let shown = shown.unwrap_or_else(|| value.to_string());
    let raw = Raw::from(value);
    finish(kind, raw, duplicates, validation).map_err(|refusal| match refusal {
        Refusal::Decoding(text) => Status::invalid(("", ""), "", vec![Path::new("patch").invalid(shown, text)]),
        Refusal::Complete(status) => status,
    })
}

/// Texts about fields that a JSON document sets twice: `duplicate field "data.x"`. None for what isn't JSON.
pub fn duplicate_fields(body: &[u8]) -> Vec<String> {
    json::parse(body).map(|raw| walk::duplicates(&raw)).unwrap_or_default()
}

fn decode(
    kind: &Kind,
    body: &[u8],
    raw: Raw,
    duplicates: Vec<String>,
    validation: FieldValidation,
) -> Result<Decoded, Status> {
    let found = gvk::find(&raw, kind).map_err(|text| unrecognized(kind, body, &text))?;
    let says = raw.get("kind").is_some_and(|kind| matches!(kind, Raw::String(text) if !text.is_empty()));
    if kind.custom.is_some() && !says {
        let text = format!("Object 'Kind' is missing in '{}'", String::from_utf8_lossy(body));
        return Err(unrecognized(kind, body, &text));
    }
    finish(kind, raw, duplicates, validation).map_err(|refusal| match refusal {
        Refusal::Decoding(text) => Status::bad_request(format!(
            "{} in version {} cannot be handled as a {}: {text}",
            found.kind,
            crate::status::quote(found.version()),
            kind.kind
        )),
        Refusal::Complete(status) => status,
    })
}

fn finish(kind: &Kind, raw: Raw, duplicates: Vec<String>, validation: FieldValidation) -> Result<Decoded, Refusal> {
    let found = gvk::find(&raw, kind).map_err(Refusal::Decoding)?;
    if let Some(custom) = &kind.custom {
        return custom::finish(kind, custom, &found, raw, duplicates, validation);
    }
    gvk::accept(kind, &found, &raw)?;
    let schema = schema::schema_of(kind);
    let mut walked = walk::walk(schema, raw).map_err(Refusal::Decoding)?;
    let mut strict = duplicates;
    strict.append(&mut walked.strict);
    if validation == FieldValidation::Strict && !strict.is_empty() {
        return Err(Refusal::Decoding(format!("strict decoding error: {}", strict.join(", "))));
    }
    let mut value = walked.value;
    normalize::normalize_with(schema, &mut value);
    gvk::stamp(kind, &mut value);
    let warnings = if validation == FieldValidation::Warn { strict } else { Vec::new() };
    Ok(Decoded { value, warnings })
}

/// 400: not even a kind can be made out.
fn unrecognized(kind: &Kind, body: &[u8], text: &str) -> Status {
    Status::bad_request(format!(
        "the object provided is unrecognized (must be of type {}): {text} ({})",
        kind.kind,
        summary(body)
    ))
}

/// The beginning of a body: as text if it looks like JSON, otherwise in hexadecimal.
fn summary(body: &[u8]) -> String {
    const LONGEST: usize = 30;
    let start = &body[..body.len().min(LONGEST)];
    let text = match body.first() {
        None => return "<empty>".to_owned(),
        Some(b'{') => String::from_utf8_lossy(start).into_owned(),
        Some(_) => format!("{:x}", Hex(start)),
    };
    if body.len() > LONGEST { format!("{text} ...") } else { text }
}

/// Bytes in hexadecimal.
struct Hex<'a>(&'a [u8]);

impl fmt::LowerHex for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests;
