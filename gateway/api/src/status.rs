//! A refusal in Kubernetes' words: the `Status` object (`metav1.Status`) that a failed request is answered with.
//!
//! Texts, codes and reasons are those of `k8s.io/apimachinery/pkg/api/errors`.

use std::collections::HashSet;
use std::fmt::{self, Write as _};

use serde_json::{Map, Value, json};

use crate::field::{ErrorList, FieldError};

/// A resource of a group, as messages name it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct GroupResource {
    /// Empty for the core group.
    pub group: String,
    /// `deployments`
    pub resource: String,
}

impl GroupResource {
    /// `group` is empty for the core group; `resource` is the plural.
    pub fn new(group: impl Into<String>, resource: impl Into<String>) -> Self {
        Self { group: group.into(), resource: resource.into() }
    }
}

impl fmt::Display for GroupResource {
    /// `deployments.apps`, `pods`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() { f.write_str(&self.resource) } else { write!(f, "{}.{}", self.resource, self.group) }
    }
}

/// One of several causes of a failure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cause {
    /// `FieldValueInvalid`, `FieldManagerConflict`, …; may be empty.
    pub reason: String,
    /// What is wrong.
    pub message: String,
    /// Where, for example `spec.containers[0].name`; may be empty.
    pub field: String,
}

/// What the failure is about. Empty strings and lists are left out of the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// Name of the object.
    pub name: String,
    /// Its group.
    pub group: String,
    /// Its resource (plural), or for an invalid object its kind.
    pub kind: String,
    /// Its uid.
    pub uid: String,
    /// Each thing that is wrong.
    pub causes: Vec<Cause>,
    /// When to try again.
    pub retry_after_seconds: Option<u32>,
}

/// A failed request's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    code: u16,
    reason: String,
    message: String,
    details: Option<Box<Details>>,
}

/// So many errors of one object are told: an answer should not be many times larger than its request.
const MOST_ERRORS: usize = 2000;

impl Status {
    /// The HTTP status code.
    pub fn code(&self) -> u16 {
        self.code
    }

    /// The machine-readable reason, for example `NotFound`; may be empty.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// The text for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What it is about.
    pub fn details(&self) -> Option<&Details> {
        self.details.as_deref()
    }

    /// Seconds for a Retry-After header.
    pub fn retry_after(&self) -> Option<u32> {
        self.details.as_ref().and_then(|details| details.retry_after_seconds)
    }

    /// The object to answer with.
    pub fn to_value(&self) -> Value {
        let mut status = Map::new();
        status.insert("kind".into(), "Status".into());
        status.insert("apiVersion".into(), "v1".into());
        status.insert("metadata".into(), json!({}));
        status.insert("status".into(), "Failure".into());
        insert_text(&mut status, "message", &self.message);
        insert_text(&mut status, "reason", &self.reason);
        if let Some(details) = &self.details {
            status.insert("details".into(), details.to_value());
        }
        status.insert("code".into(), self.code.into());
        Value::Object(status)
    }

    /// Any failure.
    pub fn generic(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Self { code, reason: reason.to_owned(), message: message.into(), details: None }
    }

    /// The same failure with these details.
    #[must_use]
    pub fn with_details(mut self, details: Details) -> Self {
        self.details = Some(Box::new(details));
        self
    }

    /// 400: the request cannot be understood.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::generic(400, "BadRequest", message)
    }

    /// 401: who is asking is not known.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        let message = message.into();
        Self::generic(401, "Unauthorized", if message.is_empty() { "not authorized".to_owned() } else { message })
    }

    /// 403: `pods "x" is forbidden: MESSAGE`; an empty name or resource is left out of the text.
    pub fn forbidden(resource: &GroupResource, name: &str, message: impl fmt::Display) -> Self {
        let text = if resource.resource.is_empty() {
            format!("forbidden: {message}")
        } else if name.is_empty() {
            format!("{resource} is forbidden: {message}")
        } else {
            format!("{resource} {} is forbidden: {message}", quote(name))
        };
        Self::generic(403, "Forbidden", text).about(resource, name)
    }

    /// 404: `pods "x" not found`
    pub fn not_found(resource: &GroupResource, name: &str) -> Self {
        Self::generic(404, "NotFound", format!("{resource} {} not found", quote(name))).about(resource, name)
    }

    /// 404: the path leads to nothing.
    pub fn generic_not_found() -> Self {
        Self::generic(404, "NotFound", "the server could not find the requested resource")
            .with_details(Details::default())
    }

    /// 409: `pods "x" already exists`
    pub fn already_exists(resource: &GroupResource, name: &str) -> Self {
        Self::generic(409, "AlreadyExists", format!("{resource} {} already exists", quote(name))).about(resource, name)
    }

    /// 409: `Operation cannot be fulfilled on pods "x": MESSAGE`
    pub fn conflict(resource: &GroupResource, name: &str, message: impl fmt::Display) -> Self {
        let text = format!("Operation cannot be fulfilled on {resource} {}: {message}", quote(name));
        Self::generic(409, "Conflict", text).about(resource, name)
    }

    /// 409: fields are owned by other managers (server-side apply).
    pub fn apply_conflict(causes: Vec<Cause>, message: impl Into<String>) -> Self {
        Self::generic(409, "Conflict", message).with_details(Details { causes, ..Details::default() })
    }

    /// 422: the object breaks these rules. `group_kind` is for example `("apps", "Deployment")`.
    pub fn invalid(group_kind: (&str, &str), name: &str, mut errors: ErrorList) -> Self {
        errors.truncate(MOST_ERRORS);
        let (group, kind) = group_kind;
        let subject = GroupResource::new(group, kind);
        let mut text = format!("{subject} {} is invalid", quote(name));
        if let Some(all) = aggregate(&errors) {
            text.push_str(": ");
            text.push_str(&all);
        }
        let causes = errors
            .into_iter()
            .map(|error| Cause { reason: error.kind.reason().to_owned(), message: error.body(), field: error.path })
            .collect();
        Self::generic(422, "Invalid", text).with_details(Details {
            name: name.to_owned(),
            group: group.to_owned(),
            kind: kind.to_owned(),
            causes,
            ..Details::default()
        })
    }

    /// 410: the resource version is older than the history that is kept.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::generic(410, "Expired", message)
    }

    /// 410: what was there no longer is.
    pub fn gone(message: impl Into<String>) -> Self {
        Self::generic(410, "Gone", message)
    }

    /// 405: `ACTION is not supported on resources of kind "pods"`
    pub fn method_not_supported(resource: &GroupResource, action: &str) -> Self {
        let text = format!("{action} is not supported on resources of kind {}", quote(&resource.to_string()));
        Self::generic(405, "MethodNotAllowed", text).about(resource, "")
    }

    /// 405: the path has no such verb.
    pub fn method_not_allowed() -> Self {
        Self::generic(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
            .with_details(Details::default())
    }

    /// 406: no answer in a form that the client takes.
    pub fn not_acceptable(message: impl Into<String>) -> Self {
        Self::negotiation(406, "NotAcceptable", message.into())
    }

    /// 415: the body is in no form that the server takes.
    pub fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::negotiation(415, "UnsupportedMediaType", message.into())
    }

    /// Texts that begin with their code (`406: Not Acceptable…`) come with empty details, the others without.
    fn negotiation(code: u16, reason: &str, message: String) -> Self {
        let wrapped = message.starts_with(&format!("{code}:"));
        let status = Self::generic(code, reason, message);
        if wrapped { status.with_details(Details::default()) } else { status }
    }

    /// 413: `Request entity too large: MESSAGE`
    pub fn too_large(message: impl fmt::Display) -> Self {
        Self::generic(413, "RequestEntityTooLarge", format!("Request entity too large: {message}"))
    }

    /// 500: `Internal error occurred: MESSAGE`
    pub fn internal(message: impl fmt::Display) -> Self {
        let cause = Cause { message: message.to_string(), ..Cause::default() };
        Self::generic(500, "InternalError", format!("Internal error occurred: {message}"))
            .with_details(Details { causes: vec![cause], ..Details::default() })
    }

    /// 504: `Timeout: MESSAGE`
    pub fn timeout(message: impl fmt::Display, retry_after_seconds: u32) -> Self {
        Self::generic(504, "Timeout", format!("Timeout: {message}")).with_details(Details {
            retry_after_seconds: Some(retry_after_seconds).filter(|seconds| *seconds > 0),
            ..Details::default()
        })
    }

    /// 504: a resource version that this server hasn't reached yet.
    pub fn resource_version_too_large(wanted: &str, current: u64) -> Self {
        let cause = Cause {
            reason: "ResourceVersionTooLarge".into(),
            message: "Too large resource version".into(),
            ..Cause::default()
        };
        let text = format!("Timeout: Too large resource version: {wanted}, current: {current}");
        Self::generic(504, "Timeout", text).with_details(Details {
            causes: vec![cause],
            retry_after_seconds: Some(1),
            ..Details::default()
        })
    }

    /// 429: try again after so many seconds.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        Self::generic(429, "TooManyRequests", message).with_details(Details {
            retry_after_seconds: Some(retry_after_seconds).filter(|seconds| *seconds > 0),
            ..Details::default()
        })
    }

    /// 503: not now.
    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Self::generic(503, "ServiceUnavailable", message)
    }

    fn about(self, resource: &GroupResource, name: &str) -> Self {
        self.with_details(Details {
            name: name.to_owned(),
            group: resource.group.clone(),
            kind: resource.resource.clone(),
            ..Details::default()
        })
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

impl Details {
    fn to_value(&self) -> Value {
        let mut details = Map::new();
        insert_text(&mut details, "name", &self.name);
        insert_text(&mut details, "group", &self.group);
        insert_text(&mut details, "kind", &self.kind);
        insert_text(&mut details, "uid", &self.uid);
        if !self.causes.is_empty() {
            details.insert("causes".into(), self.causes.iter().map(Cause::to_value).collect());
        }
        if let Some(seconds) = self.retry_after_seconds {
            details.insert("retryAfterSeconds".into(), seconds.into());
        }
        Value::Object(details)
    }
}

impl Cause {
    fn to_value(&self) -> Value {
        let mut cause = Map::new();
        insert_text(&mut cause, "reason", &self.reason);
        insert_text(&mut cause, "message", &self.message);
        insert_text(&mut cause, "field", &self.field);
        Value::Object(cause)
    }
}

fn insert_text(map: &mut Map<String, Value>, key: &str, text: &str) {
    if !text.is_empty() {
        map.insert(key.to_owned(), text.into());
    }
}

/// All errors in one text: a single one as it is, several in brackets, each text once.
fn aggregate(errors: &[FieldError]) -> Option<String> {
    let mut told = HashSet::with_capacity(errors.len());
    let all = errors.iter().map(ToString::to_string);
    let mut texts: Vec<String> = all.filter(|text| told.insert(text.clone())).collect();
    match texts.len() {
        0 => None,
        1 => texts.pop(),
        _ => Some(format!("[{}]", texts.join(", "))),
    }
}

/// A string in double quotes as Go's `%q` prints it.
pub(crate) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '\u{b}' => quoted.push_str("\\v"),
            c if c.is_ascii_control() => drop(write!(quoted, "\\x{:02x}", c as u32)),
            c if c.is_control() => drop(write!(quoted, "\\u{:04x}", c as u32)),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::Path;

    #[test]
    fn not_found_names_the_object_and_its_group() {
        let status = Status::not_found(&GroupResource::new("apps", "deployments"), "web");
        assert_eq!(
            status.to_value(),
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "deployments.apps \"web\" not found", "reason": "NotFound",
                "details": {"name": "web", "group": "apps", "kind": "deployments"}, "code": 404})
        );
    }

    #[test]
    fn invalid_joins_several_errors_in_brackets_and_lists_each_cause() {
        let errors = vec![Path::new("spec").required("a"), Path::new("spec").child("x").invalid("v", "bad")];
        let status = Status::invalid(("", "Pod"), "p", errors);
        assert_eq!(
            status.message(),
            "Pod \"p\" is invalid: [spec: Required value: a, spec.x: Invalid value: \"v\": bad]"
        );
        assert_eq!(status.to_value()["details"]["causes"][1]["field"], "spec.x");
    }

    #[test]
    fn forbidden_without_a_name_leaves_it_out() {
        let status = Status::forbidden(&GroupResource::new("", "pods"), "", "no");
        assert_eq!(status.message(), "pods is forbidden: no");
    }

    #[test]
    fn internal_errors_carry_their_cause() {
        assert_eq!(Status::internal("x").to_value()["details"], json!({"causes": [{"message": "x"}]}));
    }
}
