//! What a rule asks of a request.

use std::cell::OnceCell;

use http::request::Parts;
use http::{HeaderName, Method};
use regex::Regex;

use super::path::{lies_under, trimmed};

/// All of it must hold.
#[derive(Clone, Debug)]
pub struct Match {
    pub path: PathMatch,
    pub method: Option<Method>,
    pub headers: Vec<(HeaderName, Text)>,
    pub query: Vec<(String, Text)>,
}

/// Which paths are meant.
#[derive(Clone, Debug)]
pub enum PathMatch {
    Exact(String),
    /// Everything under it, element by element; without the slash at its end.
    Prefix(String),
    /// The whole path, as one expression.
    Regex(Regex),
    /// A call of gRPC: `/SERVICE/METHOD`.
    Call(Call),
    /// Everything, after all else: an Ingress' default backend.
    Rest,
}

/// Which calls are meant. What isn't given may be anything.
#[derive(Clone, Debug)]
pub struct Call {
    service: Option<Text>,
    method: Option<Text>,
    /// How long the two are, as they were written.
    lengths: (usize, usize),
}

impl Call {
    /// Calls of a method of a service, each with the text that it was written as.
    pub fn new(service: Option<(Text, String)>, method: Option<(Text, String)>) -> Self {
        let length = |part: &Option<(Text, String)>| part.as_ref().map_or(0, |(_, written)| written.len());
        let lengths = (length(&service), length(&method));
        Self { service: service.map(|(text, _)| text), method: method.map(|(text, _)| text), lengths }
    }

    fn holds(&self, path: &str) -> bool {
        // A method's name has no slash, its service's may.
        let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.rsplit_once('/')) else {
            return false;
        };
        let holds = |text: &Option<Text>, value: &str| text.as_ref().is_none_or(|text| text.holds(value));
        !service.is_empty() && !method.is_empty() && holds(&self.service, service) && holds(&self.method, method)
    }
}

impl PathMatch {
    /// Everything under `path`.
    pub fn prefix(path: &str) -> Self {
        Self::Prefix(trimmed(path).to_owned())
    }

    fn holds(&self, path: &str) -> bool {
        match self {
            Self::Exact(wanted) => path == wanted,
            Self::Prefix(prefix) => lies_under(path, prefix),
            Self::Regex(regex) => regex.is_match(path),
            Self::Call(call) => call.holds(path),
            Self::Rest => true,
        }
    }

    /// Whether it is what all else comes before.
    pub(super) fn is_rest(&self) -> bool {
        matches!(self, Self::Rest)
    }

    /// The prefix that a rewrite may replace.
    pub fn replaceable(&self) -> &str {
        match self {
            Self::Prefix(prefix) => prefix,
            _ => "",
        }
    }

    /// Exact paths before expressions before prefixes; the longer first. Of calls, those with the longer service, then
    /// those with the longer method.
    fn weight(&self) -> (u8, usize, usize) {
        match self {
            Self::Exact(path) => (3, path.len(), 0),
            Self::Regex(regex) => (2, regex.as_str().len(), 0),
            Self::Call(Call { lengths: (service, method), .. }) => (2, *service, *method),
            Self::Prefix(prefix) => (1, prefix.len(), 0),
            Self::Rest => (0, 0, 0),
        }
    }
}

/// How a value is compared.
#[derive(Clone, Debug)]
pub enum Text {
    Exact(String),
    Regex(Regex),
}

impl Text {
    fn holds(&self, value: &str) -> bool {
        match self {
            Self::Exact(wanted) => value == wanted,
            Self::Regex(regex) => regex.is_match(value),
        }
    }
}

/// An expression that must be true of the whole of a text.
pub fn whole(expression: &str) -> Result<Regex, regex::Error> {
    regex::RegexBuilder::new(&format!("^(?:{expression})$")).size_limit(1 << 20).build()
}

/// A request, with its query taken apart when that is asked for.
pub(super) struct Asked<'a> {
    parts: &'a Parts,
    query: OnceCell<Vec<(String, String)>>,
}

impl<'a> Asked<'a> {
    pub fn new(parts: &'a Parts) -> Self {
        Self { parts, query: OnceCell::new() }
    }

    /// The first value of a parameter.
    fn parameter(&self, name: &str) -> Option<&str> {
        let parse = || serde_urlencoded::from_str(self.parts.uri.query().unwrap_or_default()).unwrap_or_default();
        let query: &Vec<(String, String)> = self.query.get_or_init(parse);
        query.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// All values of a header as one.
    fn header(&self, name: &HeaderName) -> Option<std::borrow::Cow<'a, str>> {
        let mut values = self.parts.headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        let first = values.next()?;
        let rest: Vec<&str> = values.collect();
        if rest.is_empty() {
            return Some(first.into());
        }
        Some(std::iter::once(first).chain(rest).collect::<Vec<_>>().join(",").into())
    }
}

impl Match {
    /// Everything under a path.
    pub fn of_path(path: PathMatch) -> Self {
        Self { path, method: None, headers: Vec::new(), query: Vec::new() }
    }

    pub(super) fn holds(&self, request: &Asked<'_>) -> bool {
        self.path.holds(request.parts.uri.path())
            && self.method.as_ref().is_none_or(|method| *method == request.parts.method)
            && self.headers.iter().all(|(name, text)| request.header(name).is_some_and(|value| text.holds(&value)))
            && self.query.iter().all(|(name, text)| request.parameter(name).is_some_and(|value| text.holds(value)))
    }

    /// How specific it is: the larger is tried first.
    pub(super) fn weight(&self) -> ((u8, usize, usize), bool, usize, usize) {
        (self.path.weight(), self.method.is_some(), self.headers.len(), self.query.len())
    }
}
