//! What is wrong with a field: the errors that validation collects, in Kubernetes' words.

use std::fmt;

use serde_json::Value;

/// The kind of a field error; its name is the `reason` of a cause in a Status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// `Required value`
    Required,
    /// `Invalid value: X`
    Invalid,
    /// `Unsupported value: X`
    NotSupported,
    /// `Duplicate value: X`
    Duplicate,
    /// `Forbidden`
    Forbidden,
    /// `Not found: X`
    NotFound,
    /// `Too long: may not be more than N bytes`
    TooLong,
    /// `Too many: N: must have at most M items`
    TooMany,
    /// `Invalid value: X` where the JSON type is wrong
    TypeInvalid,
    /// `Invalid value` where the value says nothing
    InvalidUnshown,
    /// `Internal error`
    Internal,
}

impl ErrorKind {
    /// The machine-readable reason of the cause.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid | Self::InvalidUnshown => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Forbidden => "FieldValueForbidden",
            Self::NotFound => "FieldValueNotFound",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::Internal => "InternalError",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::Invalid | Self::TypeInvalid | Self::InvalidUnshown => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Duplicate => "Duplicate value",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "Not found",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::Internal => "Internal error",
        }
    }

    fn shows_value(self) -> bool {
        !matches!(self, Self::Required | Self::Forbidden | Self::TooLong | Self::Internal | Self::InvalidUnshown)
    }
}

/// One thing that is wrong with one field.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// What sort of mistake.
    pub kind: ErrorKind,
    /// Where, for example `spec.containers[0].name`.
    pub path: String,
    /// The offending value as it is shown.
    pub value: Value,
    /// What would be right; may be empty.
    pub detail: String,
}

impl FieldError {
    /// The message of the cause: the error without its path.
    pub fn body(&self) -> String {
        let mut text = self.kind.words().to_owned();
        if self.kind.shows_value() {
            text.push_str(": ");
            text.push_str(&show(&self.value));
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

/// A value as Kubernetes prints it in a message: strings quoted as in Go, the rest as JSON.
fn show(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        other => other.to_string(),
    }
}

/// All that is wrong with an object, in the order in which it was found.
pub type ErrorList = Vec<FieldError>;

/// The path to a field, built on the way down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    /// The top of the object.
    pub fn root() -> Self {
        Self::default()
    }

    /// Starts at a field, for example `spec`.
    pub fn new(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// `self.name`
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() { Self::new(name) } else { Self(format!("{}.{name}", self.0)) }
    }

    /// `self[index]`
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    /// `self[key]`
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }

    /// `Required value`
    pub fn required(&self, detail: impl Into<String>) -> FieldError {
        self.error(ErrorKind::Required, Value::String(String::new()), detail)
    }

    /// `Invalid value: VALUE: DETAIL`
    pub fn invalid(&self, value: impl Into<Value>, detail: impl Into<String>) -> FieldError {
        self.error(ErrorKind::Invalid, value.into(), detail)
    }

    /// `Invalid value: DETAIL`
    pub fn invalid_unshown(&self, detail: impl Into<String>) -> FieldError {
        self.error(ErrorKind::InvalidUnshown, Value::Null, detail)
    }

    /// `Forbidden: DETAIL`
    pub fn forbidden(&self, detail: impl Into<String>) -> FieldError {
        self.error(ErrorKind::Forbidden, Value::Null, detail)
    }

    /// `Duplicate value: VALUE`
    pub fn duplicate(&self, value: impl Into<Value>) -> FieldError {
        self.error(ErrorKind::Duplicate, value.into(), "")
    }

    /// `Not found: VALUE`
    pub fn not_found(&self, value: impl Into<Value>) -> FieldError {
        self.error(ErrorKind::NotFound, value.into(), "")
    }

    /// `Unsupported value: VALUE: supported values: "A", "B"`
    pub fn not_supported(&self, value: impl Into<Value>, supported: &[&str]) -> FieldError {
        let supported: Vec<String> = supported.iter().map(|v| format!("{v:?}")).collect();
        let detail =
            if supported.is_empty() { String::new() } else { format!("supported values: {}", supported.join(", ")) };
        self.error(ErrorKind::NotSupported, value.into(), detail)
    }

    /// `Duplicate value: VALUE: DETAIL`
    pub fn duplicate_because(&self, value: impl Into<Value>, detail: impl Into<String>) -> FieldError {
        self.error(ErrorKind::Duplicate, value.into(), detail)
    }

    /// `Too long: may not be more than MAX bytes`
    pub fn too_long(&self, max: usize) -> FieldError {
        self.error(ErrorKind::TooLong, Value::Null, format!("may not be more than {max} bytes"))
    }

    /// `Too many: COUNT: must have at most MAX items`
    pub fn too_many(&self, count: usize, max: usize) -> FieldError {
        self.error(ErrorKind::TooMany, Value::from(count), format!("must have at most {max} items"))
    }

    /// Any other error at this path.
    pub fn error(&self, kind: ErrorKind, value: Value, detail: impl Into<String>) -> FieldError {
        FieldError { kind, path: self.to_string(), value, detail: detail.into() }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "<nil>" } else { &self.0 })
    }
}
