//! Which kind a document says it is, and whether it may be that here.

use serde_json::Value;

use super::raw::Raw;
use super::{Refusal, walk};
use crate::kind::Kind;
use crate::kinds::Registry;
use crate::schema;
use crate::status::{Status, quote};

/// Where Kubernetes' list of types stands; part of an error text.
const SCHEME: &str = "pkg/api/legacyscheme/scheme.go:30";
/// Where its extension server's list stands.
const EXTENSION_SCHEME: &str = "pkg/apiserver/apiserver.go:55";

/// Where its aggregator's list stands.
const AGGREGATION_SCHEME: &str = "pkg/apiserver/scheme/scheme.go:28";

fn scheme_of(group: &str) -> &'static str {
    match group {
        "apiextensions.k8s.io" => EXTENSION_SCHEME,
        "apiregistration.k8s.io" => AGGREGATION_SCHEME,
        _ => SCHEME,
    }
}

/// What the document says, or what it leaves to be understood.
#[derive(Debug)]
pub(super) struct Found {
    pub api_version: String,
    pub kind: String,
}

impl Found {
    /// `v1` of `apps/v1`
    pub fn version(&self) -> &str {
        self.api_version.rsplit('/').next().unwrap_or_default()
    }

    fn group(&self) -> &str {
        self.api_version.split_once('/').map_or("", |(group, _)| group)
    }
}

/// What the document says it is; what it doesn't say is taken from the kind that is expected.
///
/// # Errors
/// Kubernetes' text for a document that can't say it.
pub(super) fn find(raw: &Raw, expected: &Kind) -> Result<Found, String> {
    const TARGET: &str =
        r#"struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"#;
    if !matches!(raw, Raw::Object(_) | Raw::Null) {
        return Err(format!(
            "couldn't get version/kind; json parse error: json: cannot unmarshal {} into Go value of type {TARGET}",
            raw.word()
        ));
    }
    let text = |field: &str| match raw.get(field) {
        None | Some(Raw::Null) => Ok(String::new()),
        Some(Raw::String(text)) => Ok(text.clone()),
        Some(other) => Err(format!(
            "couldn't get version/kind; json parse error: json: cannot unmarshal {} into Go struct field .{field} of type string",
            other.word()
        )),
    };
    let (mut api_version, mut kind) = (text("apiVersion")?, text("kind")?);
    if api_version.matches('/').count() > 1 {
        return Err(format!("unexpected GroupVersion string: {api_version}"));
    }
    // A custom resource must say what it is.
    if api_version.is_empty() && expected.custom.is_none() {
        api_version = expected.api_version();
    }
    if kind.is_empty() {
        expected.kind.clone_into(&mut kind);
    }
    Ok(Found { api_version, kind })
}

/// Whether a document of that kind can stand for the expected one.
pub(super) fn accept(expected: &Kind, found: &Found, raw: &Raw) -> Result<(), Refusal> {
    // DeleteOptions belong to every group and version.
    if found.kind == expected.kind && found.kind == "DeleteOptions" {
        return Ok(());
    }
    if found.kind == expected.kind && found.group() == expected.group && found.version() == expected.version {
        return Ok(());
    }
    let Some(other) = Registry::builtin().type_of(found.group(), found.version(), &found.kind) else {
        return Err(Refusal::Decoding(format!(
            "no kind {} is registered for version {} in scheme {}",
            quote(&found.kind),
            quote(&found.api_version),
            quote(scheme_of(expected.group))
        )));
    };
    // It is read as what it says it is before that turns out to be the wrong thing.
    if let Some(error) = walk::first_error(schema::schema_of(other), raw) {
        return Err(Refusal::Decoding(error));
    }
    if stored_group(other) == stored_group(expected) && other.kind == expected.kind {
        return Err(Refusal::Complete(Status::bad_request(format!(
            "the API version in the data ({}) does not match the expected API version ({})",
            found.api_version,
            expected.api_version()
        ))));
    }
    Err(Refusal::Decoding(format!(
        "converting ({}.{}) to ({}.{}): unknown conversion",
        found.version(),
        found.kind,
        package(stored_group(expected)),
        expected.kind
    )))
}

/// Writes kind and apiVersion, which the document may have left out.
pub(super) fn stamp(kind: &Kind, value: &mut Value) {
    let Value::Object(fields) = value else { return };
    for (at, (name, text)) in
        [("kind", kind.kind.to_owned()), ("apiVersion", kind.api_version())].into_iter().enumerate()
    {
        if fields.contains_key(name) {
            fields.insert(name.to_owned(), text.into());
        } else {
            fields.shift_insert(at.min(fields.len()), name.to_owned(), text.into());
        }
    }
}

fn stored_group(kind: &Kind) -> &'static str {
    kind.stored_as.map_or(kind.group, |form| form.group)
}

/// The Go package of a group's internal types.
fn package(group: &str) -> &str {
    if group.is_empty() { "core" } else { group.split('.').next().unwrap_or_default() }
}
