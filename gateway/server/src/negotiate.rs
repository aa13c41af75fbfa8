//! What form a client sends and takes: `Content-Type`, `Accept`, and the views `as=Table` and `as=PartialObjectMetadata`.

use bytes::Bytes;
use carob_api::status::Status;
use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};
use serde_json::Value;

use crate::protobuf;

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Format {
    Json,
    Yaml,
    Protobuf,
}

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyFormat {
    Json,
    Yaml,
    Protobuf,
}

impl Format {
    /// The answer's content type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
            Self::Protobuf => protobuf::CONTENT_TYPE,
        }
    }

    /// A watch's content type.
    pub fn stream_content_type(self) -> &'static str {
        match self {
            Self::Json | Self::Yaml => "application/json",
            Self::Protobuf => protobuf::STREAM_CONTENT_TYPE,
        }
    }
}

/// What of an object an answer shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum View {
    /// All of it.
    Object,
    /// A row of a table, of this version of `meta.k8s.io`.
    Table(&'static str),
    /// Only its metadata.
    Metadata(&'static str),
    /// A list of metadata.
    MetadataList(&'static str),
}

/// What the client takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Accept {
    pub format: Format,
    pub view: View,
}

const OFFERED: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
const OFFERED_STREAMS: &str = "application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch";

/// One clause of an `Accept` header.
struct Clause<'a> {
    media_type: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
    quality: f32,
}

impl Clause<'_> {
    fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }

    fn format(&self) -> Option<Format> {
        match self.media_type {
            "application/json" | "*/*" => Some(Format::Json),
            "application/yaml" => Some(Format::Yaml),
            protobuf::CONTENT_TYPE => Some(Format::Protobuf),
            _ => None,
        }
    }

    fn view(&self) -> Option<View> {
        let version = match self.parameter("v") {
            Some("v1") => "v1",
            Some("v1beta1") => "v1beta1",
            _ => "",
        };
        let metadata = self.parameter("g") == Some("meta.k8s.io") && !version.is_empty();
        match self.parameter("as") {
            None => Some(View::Object),
            Some("Table") if metadata => Some(View::Table(version)),
            Some("PartialObjectMetadata") if metadata => Some(View::Metadata(version)),
            Some("PartialObjectMetadataList") if metadata => Some(View::MetadataList(version)),
            Some(_) => None,
        }
    }
}

impl Accept {
    /// JSON of whole objects.
    pub const JSON: Self = Self { format: Format::Json, view: View::Object };

    /// Reads the header of a request about objects. Custom resources have no protobuf form.
    pub fn of_objects(headers: &HeaderMap, has_protobuf: bool) -> Result<Self, Status> {
        Self::chosen(headers, has_protobuf, true)
    }

    /// Reads the header of a question, whose answer is no object that a table could show.
    pub fn of_questions(headers: &HeaderMap) -> Result<Self, Status> {
        Self::chosen(headers, true, false)
    }

    fn chosen(headers: &HeaderMap, has_protobuf: bool, has_tables: bool) -> Result<Self, Status> {
        let clauses = clauses(headers)?;
        if clauses.is_empty() {
            return Ok(Self::JSON);
        }
        let mut known_type = false;
        for clause in &clauses {
            let Some(format) = clause.format() else { continue };
            known_type = true;
            let Some(view) = clause.view() else { continue };
            let written = match view {
                View::Object => format != Format::Protobuf || has_protobuf,
                View::Table(_) => has_tables && format != Format::Protobuf,
                View::Metadata(_) | View::MetadataList(_) => true,
            };
            if written {
                return Ok(Self { format, view });
            }
        }
        Err(if known_type { no_such_view() } else { unacceptable(true) })
    }

    /// Reads the header of a watch, which is not written in YAML.
    pub fn of_watches(headers: &HeaderMap, has_protobuf: bool) -> Result<Self, Status> {
        let accept = Self::of_objects(headers, has_protobuf)?;
        if accept.format == Format::Yaml {
            return Err(Status::not_acceptable(format!(
                "only the following media types are accepted: {OFFERED_STREAMS}"
            )));
        }
        Ok(accept)
    }

    /// How a failure or another object without views is written: in the first form that the client takes, else in JSON.
    pub fn of_statuses(headers: &HeaderMap) -> Format {
        let Ok(clauses) = clauses(headers) else { return Format::Json };
        let mut plain = clauses.iter().filter(|clause| clause.parameter("as").is_none());
        plain.find_map(Clause::format).unwrap_or(Format::Json)
    }

    /// Reads the header of a request for discovery or another document.
    pub fn of_documents(headers: &HeaderMap) -> Result<Format, Status> {
        let clauses = clauses(headers)?;
        if clauses.is_empty() {
            return Ok(Format::Json);
        }
        let mut plain = clauses.iter().filter(|clause| clause.parameter("as").is_none());
        plain.find_map(Clause::format).ok_or_else(|| {
            let known_type = clauses.iter().any(|clause| clause.format().is_some());
            if known_type { no_such_view() } else { unacceptable(false) }
        })
    }

    /// Whether aggregated discovery of version v2 comes before plain discovery in what the client takes.
    pub fn prefers_aggregated_discovery(headers: &HeaderMap) -> bool {
        let Ok(clauses) = clauses(headers) else { return false };
        clauses
            .iter()
            .find_map(|clause| {
                let format = clause.format()?;
                let aggregated = clause.parameter("as") == Some("APIGroupDiscoveryList")
                    && clause.parameter("g") == Some("apidiscovery.k8s.io")
                    && clause.parameter("v") == Some("v2");
                match clause.parameter("as") {
                    None => Some(false),
                    Some(_) if aggregated && format == Format::Json => Some(true),
                    Some(_) => None,
                }
            })
            .unwrap_or(false)
    }
}

/// The media type is known, but not as what the client wants it.
fn no_such_view() -> Status {
    Status::not_acceptable(format!("only the following media types are accepted: {OFFERED}"))
}

fn unacceptable(streams: bool) -> Status {
    let all = if streams { format!("{OFFERED}, {OFFERED_STREAMS}") } else { OFFERED.to_owned() };
    Status::not_acceptable(format!("406: Not Acceptable\n\nAvailable representations: {all}"))
}

/// The clauses in the order of the client's preference.
fn clauses(headers: &HeaderMap) -> Result<Vec<Clause<'_>>, Status> {
    let mut clauses = Vec::new();
    for value in headers.get_all(ACCEPT) {
        let text = value.to_str().map_err(|_| unacceptable(true))?;
        clauses.extend(text.split(',').map(str::trim).filter(|clause| !clause.is_empty()).map(clause));
    }
    clauses.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    Ok(clauses)
}

fn clause(text: &str) -> Clause<'_> {
    let mut parts = text.split(';').map(str::trim);
    let media_type = parts.next().unwrap_or_default();
    let parameters: Vec<_> =
        parts.filter_map(|part| part.split_once('=')).map(|(key, value)| (key.trim(), value.trim())).collect();
    let quality = parameters.iter().find(|(key, _)| *key == "q").and_then(|(_, q)| q.parse().ok()).unwrap_or(1.0);
    Clause { media_type, parameters, quality }
}

/// The media type of the body, without parameters; empty when there is none.
pub(crate) fn content_type(headers: &HeaderMap) -> &str {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

/// The form of a body that holds an object.
pub(crate) fn body_format(headers: &HeaderMap) -> Result<BodyFormat, Status> {
    match content_type(headers) {
        "" | "application/json" => Ok(BodyFormat::Json),
        "application/yaml" => Ok(BodyFormat::Yaml),
        protobuf::CONTENT_TYPE => Ok(BodyFormat::Protobuf),
        _ => Err(Status::unsupported_media_type(format!(
            "the body of the request was in an unknown format - accepted media types include: {OFFERED}"
        ))),
    }
}

/// A small body (options, a review) that no schema describes.
pub(crate) fn body_value(headers: &HeaderMap, body: &Bytes) -> Result<Value, Status> {
    match body_format(headers)? {
        BodyFormat::Json => serde_json::from_slice(body)
            .map_err(|error| Status::bad_request(format!("couldn't get version/kind; json parse error: {error}"))),
        BodyFormat::Yaml => std::str::from_utf8(body)
            .ok()
            .and_then(|text| serde_saphyr::from_str(text).ok())
            .ok_or_else(|| Status::bad_request("error converting YAML to JSON")),
        BodyFormat::Protobuf => protobuf::to_json(body),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(text: &str) -> Result<Accept, Status> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, text.parse().expect("a header"));
        Accept::of_objects(&headers, true)
    }

    #[test]
    fn kubectl_gets_a_table_whatever_the_order_of_the_parameters() {
        let table = Accept { format: Format::Json, view: View::Table("v1") };
        assert_eq!(accept("application/json;as=Table;v=v1;g=meta.k8s.io,application/json"), Ok(table));
        assert_eq!(accept("application/json;as=Table;g=meta.k8s.io;v=v1"), Ok(table));
    }

    #[test]
    fn an_unknown_view_falls_back_to_the_next_clause_or_is_refused() {
        assert_eq!(accept("application/json;as=Table;v=v9;g=meta.k8s.io,application/json"), Ok(Accept::JSON));
        let refused = accept("application/json;as=Nope;v=v1;g=meta.k8s.io").expect_err("refused");
        assert!(refused.message().starts_with("only the following media types are accepted"));
    }

    #[test]
    fn questions_have_no_tables_and_documents_no_views() {
        let headers = |text| HeaderMap::from_iter([(ACCEPT, http::HeaderValue::from_static(text))]);
        let table = headers("application/json;as=Table;v=v1;g=meta.k8s.io");
        assert_eq!(Accept::of_questions(&table).expect_err("refused").code(), 406);
        let fallback = headers("application/json;as=Table;v=v1;g=meta.k8s.io,application/json");
        assert_eq!(Accept::of_questions(&fallback), Ok(Accept::JSON));
        let old = headers("application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList");
        assert_eq!(Accept::of_documents(&old).expect_err("refused").code(), 406);
        assert_eq!(Accept::of_documents(&fallback), Ok(Format::Json));
    }

    #[test]
    fn quality_decides_and_types_that_are_not_offered_are_refused() {
        assert_eq!(accept("text/html,*/*;q=0.1"), Ok(Accept::JSON));
        let protobuf = "application/vnd.kubernetes.protobuf,application/json";
        assert_eq!(accept(protobuf).map(|accept| accept.format), Ok(Format::Protobuf));
        assert_eq!(accept("text/html").expect_err("refused").code(), 406);
        assert_eq!(accept("application/*").expect_err("refused").code(), 406);
    }

    #[test]
    fn protobuf_is_given_where_there_is_such_a_form() {
        let mut headers = HeaderMap::new();
        let set = |headers: &mut HeaderMap, text: &str| headers.insert(ACCEPT, text.parse().expect("a header"));
        set(&mut headers, "application/vnd.kubernetes.protobuf,application/json");
        assert_eq!(Accept::of_objects(&headers, false), Ok(Accept::JSON));
        set(&mut headers, "application/vnd.kubernetes.protobuf");
        assert_eq!(Accept::of_objects(&headers, false).expect_err("none").code(), 406);
        set(&mut headers, "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1");
        assert_eq!(Accept::of_objects(&headers, false).map(|accept| accept.format), Ok(Format::Protobuf));
        let table = "application/vnd.kubernetes.protobuf;as=Table;g=meta.k8s.io;v=v1,application/json";
        set(&mut headers, table);
        assert_eq!(Accept::of_objects(&headers, true), Ok(Accept::JSON));
    }

    #[test]
    fn a_watch_is_not_written_in_yaml_and_a_failure_is() {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, "application/yaml".parse().expect("a header"));
        assert_eq!(Accept::of_watches(&headers, true).expect_err("refused").code(), 406);
        assert_eq!(Accept::of_statuses(&headers), Format::Yaml);
        let table = "application/json;as=Table;g=meta.k8s.io;v=v1";
        headers.insert(ACCEPT, table.parse().expect("a header"));
        assert_eq!(Accept::of_statuses(&headers), Format::Json);
    }

    #[test]
    fn aggregated_discovery_is_given_to_those_who_prefer_it() {
        let mut headers = HeaderMap::new();
        let text = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
        headers.insert(ACCEPT, text.parse().expect("a header"));
        assert!(Accept::prefers_aggregated_discovery(&headers));
        headers.insert(ACCEPT, "application/json".parse().expect("a header"));
        assert!(!Accept::prefers_aggregated_discovery(&headers));
    }
}
