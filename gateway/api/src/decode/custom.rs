//! Custom resources: metadata is read like everybody's, the rest is pruned along its own schema.

use serde_json::Value;

use super::gvk::{self, Found};
use super::raw::{Entry, Raw};
use super::{Decoded, FieldValidation, Refusal, normalize, walk};
use crate::custom::{Custom, prune};
use crate::field::Path;
use crate::kind::Kind;
use crate::schema;
use crate::status::{Status, quote};

/// Makes an object of a tree.
pub(super) fn finish(
    kind: &Kind,
    custom: &Custom,
    found: &Found,
    raw: Raw,
    mut strict: Vec<String>,
    validation: FieldValidation,
) -> Result<Decoded, Refusal> {
    let expected = kind.api_version();
    if found.api_version != expected {
        return Err(Refusal::Complete(Status::bad_request(format!(
            "the API version in the data ({}) does not match the expected API version ({expected})",
            found.api_version
        ))));
    }
    if strict.is_empty() {
        strict = walk::duplicates(&raw);
    }
    let (metadata, rest) = split(raw);
    let mut value = Value::from(rest);
    if let Some(metadata) = metadata {
        let schema = schema::custom::object();
        let mut walked = walk::walk(schema, Raw::Object(vec![metadata])).map_err(Refusal::Decoding)?;
        strict.extend(walked.strict.into_iter().filter(|text| text.starts_with("unknown field")));
        normalize::normalize_with(schema, &mut walked.value);
        if let (Some(fields), Some(metadata)) = (value.as_object_mut(), walked.value.get_mut("metadata")) {
            if let Some(metadata) = metadata.as_object_mut() {
                metadata.retain(|_, value| !value.is_null());
            }
            fields.insert("metadata".to_owned(), metadata.take());
        }
    }
    if found.kind != kind.kind {
        let name = value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        let error = Path::new("kind").invalid(found.kind.as_str(), format!("must be {}", kind.kind));
        return Err(Refusal::Complete(Status::invalid((kind.group, &found.kind), name, vec![error])));
    }
    strict.extend(prune(custom.structural(), &mut value).iter().map(|path| format!("unknown field {}", quote(path))));
    if validation == FieldValidation::Strict && !strict.is_empty() {
        return Err(Refusal::Decoding(format!("strict decoding error: {}", strict.join(", "))));
    }
    gvk::stamp(kind, &mut value);
    let warnings = if validation == FieldValidation::Warn { strict } else { Vec::new() };
    Ok(Decoded { value, warnings })
}

/// The last `metadata` of a document, and everything else.
fn split(raw: Raw) -> (Option<Entry>, Raw) {
    match raw {
        Raw::Object(entries) => {
            let (mut metadata, rest): (Vec<_>, Vec<_>) = entries.into_iter().partition(|entry| entry.key == "metadata");
            (metadata.pop(), Raw::Object(rest))
        }
        other => (None, other),
    }
}
