//! What is served, as documents: groups, resources, OpenAPI. They are made once and sent compressed and by reference.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::{Mutex, PoisonError};

use axum::response::Response;
use bytes::Bytes;
use carob_api::status::Status;
use carob_api::{discovery, openapi};
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, EXPIRES, IF_NONE_MATCH, LOCATION, VARY,
};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::{Value, json};

use crate::compress::accepts_gzip;
use crate::negotiate::{Accept, Format};
use crate::query::Query;
use crate::served::Served;
use crate::{Server, aggregation, response};

/// Documents smaller than this are not worth compressing.
const COMPRESS_FROM: usize = 1024;
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// Documents that were asked for, by name.
#[derive(Default)]
pub(crate) struct Documents {
    made: Mutex<HashMap<String, Document>>,
}

#[derive(Clone)]
struct Document {
    plain: Bytes,
    /// Smaller, if it is worth it.
    compressed: Option<Bytes>,
    etag: String,
}

impl Documents {
    /// The document of this name, made at the first time.
    fn get(&self, name: &str, make: impl FnOnce() -> Option<Bytes>) -> Option<Document> {
        if let Some(document) = self.made.lock().unwrap_or_else(PoisonError::into_inner).get(name) {
            return Some(document.clone());
        }
        let document = Document::new(make()?);
        self.made.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), document.clone());
        Some(document)
    }
}

impl Document {
    fn new(plain: Bytes) -> Self {
        let compressed = (plain.len() >= COMPRESS_FROM)
            .then(|| {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
                encoder.write_all(&plain).and_then(|()| encoder.finish()).ok().map(Bytes::from)
            })
            .flatten();
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &plain);
        let etag = hex(digest.as_ref());
        Self { plain, compressed, etag }
    }

    fn answer(&self, headers: &HeaderMap, content_type: &'static str) -> Response {
        let quoted = format!("\"{}\"", self.etag);
        let known = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok()).any(|value| {
            value
                .split(',')
                .map(str::trim)
                .any(|tag| tag == quoted || tag == "*" || tag.strip_prefix("W/") == Some(&quoted))
        });
        let gzip = accepts_gzip(headers);
        let mut answer = match &self.compressed {
            _ if known => response::finished(StatusCode::NOT_MODIFIED, content_type, Bytes::new()),
            Some(compressed) if gzip => {
                let mut answer = response::finished(StatusCode::OK, content_type, compressed.clone());
                answer.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                answer
            }
            _ => response::finished(StatusCode::OK, content_type, self.plain.clone()),
        };
        let headers = answer.headers_mut();
        if known {
            headers.remove(CONTENT_TYPE);
        }
        if let Ok(value) = HeaderValue::from_str(&quoted) {
            headers.insert(ETAG, value);
        }
        headers.insert(VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("public"));
        answer
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let digit = |value: u8| char::from(DIGITS[usize::from(value)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// Answers a path of discovery or OpenAPI, if it is one.
pub(crate) fn answer(
    server: &Server,
    path: &str,
    query: &Query,
    headers: &HeaderMap,
    address: &str,
) -> Option<Result<Response, Status>> {
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    let served = server.live.now();
    let registry = &*served.registry;
    match segments.as_slice() {
        [] => Some(value(headers, || Some(json!({ "paths": paths(server) })))),
        ["api" | "apis"] if Accept::prefers_aggregated_discovery(headers) => {
            let core = segments[0] == "api";
            let make = || {
                let mut document = discovery::aggregated(registry, core);
                if let Some(items) = document["items"].as_array_mut().filter(|_| !core) {
                    items.extend(groups(server).map(aggregated_group));
                    server.aggregation.add_to_aggregated(registry, items);
                }
                Some(response::to_json(&document))
            };
            let document = served.documents.get(&format!("aggregated {}", segments[0]), make)?;
            Some(Ok(document.answer(headers, AGGREGATED)))
        }
        ["api"] => Some(value(headers, || Some(discovery::api_versions(address)))),
        ["apis"] => Some(value(headers, || {
            let mut document = discovery::group_list(registry);
            if let Some(list) = document["groups"].as_array_mut() {
                list.extend(groups(server).map(group_document));
                server.aggregation.add_to_list(registry, list);
            }
            Some(document)
        })),
        ["api", version] => Some(value(headers, || discovery::resources(registry, "", version))),
        ["apis", group] if server.aggregation.group(registry, group).is_some() => {
            Some(value(headers, || server.aggregation.group(registry, group)))
        }
        ["apis", group] if groups(server).any(|known| known.name == *group) => Some(value(headers, || {
            let mut document = group_document(groups(server).find(|known| known.name == *group)?);
            document["kind"] = json!("APIGroup");
            document["apiVersion"] = json!("v1");
            Some(document)
        })),
        ["apis", group, version] if groups(server).any(|known| (known.name, known.version) == (*group, *version)) => {
            Some(value(headers, || {
                let known = groups(server).find(|known| (known.name, known.version) == (*group, *version))?;
                Some(json!({
                    "kind": "APIResourceList", "apiVersion": "v1",
                    "groupVersion": format!("{group}/{version}"), "resources": known.resources,
                }))
            }))
        }
        ["apis", group] => discovery::group(registry, group).map(|found| value(headers, || Some(found))),
        ["apis", group, version] => {
            discovery::group(registry, group)?;
            Some(value(headers, || discovery::resources(registry, group, version)))
        }
        ["openapi", "v2"] => Some(openapi_v2(server, &served, headers)),
        ["openapi", "v3"] => {
            let make = || {
                let mut index = openapi::openapi_v3_index(registry);
                for other in server.aggregation.described() {
                    index["paths"].as_object_mut()?.extend(other.index);
                }
                Some(response::to_json(&index))
            };
            let document = served.documents.get("openapi v3", make)?;
            // JSON, though Kubernetes calls it text.
            Some(Ok(document.answer(headers, "text/plain; charset=utf-8")))
        }
        ["openapi", "v3", rest @ ..] => openapi_v3(&served, &rest.join("/"), query, headers).map(Ok),
        _ => None,
    }
}

/// The groups that extensions serve.
fn groups(server: &Server) -> impl Iterator<Item = &crate::GroupExtension> {
    let groups = server.extensions.iter().filter_map(|extension| extension.group.as_ref());
    // An APIService that names another server comes first.
    groups.filter(|group| !server.aggregation.delegates(group.name, group.version))
}

fn group_document(group: &crate::GroupExtension) -> Value {
    let version = json!({"groupVersion": format!("{}/{}", group.name, group.version), "version": group.version});
    json!({"name": group.name, "versions": [version], "preferredVersion": version})
}

fn aggregated_group(group: &crate::GroupExtension) -> Value {
    let resources: Vec<Value> = group
        .resources
        .iter()
        .map(|resource| {
            let scope = if resource["namespaced"] == true { "Namespaced" } else { "Cluster" };
            json!({
                "resource": resource["name"], "singularResource": resource["singularName"], "scope": scope,
                "verbs": resource["verbs"],
                "responseKind": {"group": group.name, "version": group.version, "kind": resource["kind"]},
            })
        })
        .collect();
    let version = json!({"version": group.version, "resources": resources, "freshness": "Current"});
    json!({"metadata": {"name": group.name}, "versions": [version]})
}

/// A small document in the form that the client takes; 404 if there is none.
fn value(headers: &HeaderMap, make: impl FnOnce() -> Option<Value>) -> Result<Response, Status> {
    let format = Accept::of_documents(headers)?;
    let value = make().ok_or_else(Status::generic_not_found)?;
    let mut answer = response::in_format(response::json(StatusCode::OK, &value), format);
    if accepts_gzip(headers) && format == Format::Json {
        answer = Document::new(response::to_json(&value)).answer(headers, format.content_type());
    }
    Ok(answer)
}

fn openapi_v2(server: &Server, served: &Served, headers: &HeaderMap) -> Result<Response, Status> {
    let accepted = headers.get(ACCEPT).and_then(|accepted| accepted.to_str().ok()).unwrap_or_default();
    let protobuf = accepted.contains(openapi::protobuf::MEDIA_TYPE);
    let media = if protobuf { "application/octet-stream" } else { Format::Json.content_type() };
    if !protobuf {
        Accept::of_documents(headers)?;
    }
    let make = || {
        let others = server.aggregation.described();
        Some(match (others.is_empty(), protobuf) {
            (true, false) => openapi::openapi_v2(&served.registry),
            (true, true) => openapi::openapi_v2_protobuf(&served.registry),
            (false, _) => {
                let own = serde_json::from_slice(&openapi::openapi_v2(&served.registry)).ok()?;
                aggregation::merged(own, &others, protobuf)
            }
        })
    };
    let name = if protobuf { "openapi v2 protobuf" } else { "openapi v2" };
    let document = served.documents.get(name, make).ok_or_else(Status::generic_not_found)?;
    Ok(document.answer(headers, media))
}

/// One group's document. With its hash in the query it may be kept for ever; with an old one the client is sent on.
fn openapi_v3(served: &Served, path: &str, query: &Query, headers: &HeaderMap) -> Option<Response> {
    let registry = &served.registry;
    let document = served.documents.get(&format!("openapi v3 {path}"), || openapi::openapi_v3(registry, path))?;
    let mut answer = document.answer(headers, Format::Json.content_type());
    let Some(hash) = query.text("hash") else { return Some(answer) };
    let index = openapi::openapi_v3_index(registry);
    let current = index["paths"][path]["serverRelativeURL"].as_str().unwrap_or_default();
    if current.ends_with(&format!("hash={hash}")) {
        let headers = answer.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
        let in_a_year = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * 365);
        let text = in_a_year.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(EXPIRES, value);
        }
    } else if let Ok(location) = HeaderValue::from_str(current) {
        answer = response::finished(StatusCode::MOVED_PERMANENTLY, Format::Json.content_type(), Bytes::new());
        answer.headers_mut().insert(LOCATION, location);
    }
    Some(answer)
}

/// Every path below `/`, for people who look around.
fn paths(server: &Server) -> Vec<String> {
    let fixed = [
        "/api",
        "/api/v1",
        "/apis",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/readyz",
        "/version",
        "/.well-known/openid-configuration",
    ];
    let mut paths: Vec<String> = fixed.iter().map(ToString::to_string).collect();
    for kind in server.registry().iter().filter(|kind| !kind.group.is_empty()) {
        paths.push(format!("/apis/{}", kind.group));
        paths.push(format!("/apis/{}/{}", kind.group, kind.version));
    }
    paths.extend(server.extensions.iter().map(|extension| extension.prefix.to_owned()));
    paths.sort();
    paths.dedup();
    paths
}

#[cfg(test)]
mod tests {
    use http::header::ACCEPT_ENCODING;

    use super::*;

    #[test]
    fn a_document_is_compressed_for_those_who_take_it_and_not_sent_twice() {
        let document = Document::new(Bytes::from(vec![b'x'; 4096]));
        let mut headers = HeaderMap::new();
        assert!(document.answer(&headers, "application/json").headers().get(CONTENT_ENCODING).is_none());
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("br, gzip"));
        let answer = document.answer(&headers, "application/json");
        assert_eq!(answer.headers()[CONTENT_ENCODING], "gzip");
        headers.insert(IF_NONE_MATCH, answer.headers()[ETAG].clone());
        assert_eq!(document.answer(&headers, "application/json").status(), StatusCode::NOT_MODIFIED);
    }
}
