//! Answers: objects, failures, warnings.

use std::collections::HashSet;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use carob_api::status::Status;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WARNING, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::Value;

use crate::negotiate::Format;
use crate::{compress, protobuf};

/// Plain text.
pub(crate) fn text(code: StatusCode, text: impl Into<Bytes>) -> Response {
    let mut answer = finished(code, "text/plain; charset=utf-8", text.into());
    answer.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

/// What Go's HTTP server says about a path that it doesn't know.
pub(crate) fn page_not_found() -> Response {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

/// A value as JSON, or in whatever form the client takes: see [`in_format`].
pub(crate) fn json(code: StatusCode, value: &Value) -> Response {
    let bytes = to_json(value);
    let mut response = finished(code, Format::Json.content_type(), bytes.clone());
    response.extensions_mut().insert(Convertible(bytes));
    response
}

/// The JSON of an answer that may be written in another form.
#[derive(Clone)]
struct Convertible(Bytes);

/// An answer made by [`json`] in the form that the client takes; anything else as it is.
pub(crate) fn in_format(mut response: Response, format: Format) -> Response {
    let Some(Convertible(json)) = response.extensions_mut().remove() else { return response };
    // What has no such form stays JSON.
    let Ok(body) = written(json, format, false) else { return response };
    *response.body_mut() = Body::from(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    response
}

/// A failure.
pub(crate) fn failure(status: &Status) -> Response {
    let code = StatusCode::from_u16(status.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json(code, &status.to_value());
    if let Some(seconds) = status.retry_after() {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// JSON bytes in the form that the client takes.
pub(crate) fn object(code: StatusCode, json: Bytes, format: Format, pretty: bool) -> Result<Response, Status> {
    Ok(finished(code, format.content_type(), written(json, format, pretty)?))
}

fn written(json: Bytes, format: Format, pretty: bool) -> Result<Bytes, Status> {
    let parse = || serde_json::from_slice::<Value>(&json).map_err(|_| Status::internal("an answer is not JSON"));
    match format {
        Format::Json if !pretty => Ok(json),
        Format::Json => {
            let mut text =
                serde_json::to_vec_pretty(&parse()?).map_err(|_| Status::internal("an answer is not JSON"))?;
            text.push(b'\n');
            Ok(text.into())
        }
        Format::Yaml => {
            let mut value = parse()?;
            // As sigs.k8s.io/yaml has it: by name.
            value.sort_all_objects();
            let text = serde_saphyr::to_string(&value)
                .map_err(|error| Status::internal(format!("cannot write YAML: {error}")))?;
            Ok(text.into())
        }
        Format::Protobuf => protobuf::from_json(&json),
    }
}

/// A whole body.
pub(crate) fn finished(code: StatusCode, content_type: &'static str, body: Bytes) -> Response {
    if body.len() >= compress::COMPRESS_FROM {
        return streamed(code, content_type, Body::from(body));
    }
    headed(code, content_type, Body::from(body))
}

/// Put on answers whose body is work while it is sent: they keep their seat until its end.
#[derive(Clone, Copy)]
pub(crate) struct Worked;

/// A large body, which may be made while it is sent.
pub(crate) fn streamed(code: StatusCode, content_type: &'static str, body: Body) -> Response {
    let mut response = headed(code, content_type, body);
    response.extensions_mut().insert(compress::Large);
    response
}

fn headed(code: StatusCode, content_type: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// The bytes of a value.
pub(crate) fn to_json(value: &Value) -> Bytes {
    serde_json::to_vec(value).expect("a JSON value is written into memory").into()
}

/// The characters of all warnings of an answer; beyond them, warnings are cut and then left out, as in Kubernetes.
const MOST_WARNING: usize = 4 << 10;
/// The characters of one warning where there are too many.
const MOST_OF_ONE: usize = 256;

/// Adds a `Warning: 299 - "…"` header per text, each text once.
pub(crate) fn warn(headers: &mut HeaderMap, warnings: &[String]) {
    let mut told = HashSet::new();
    let texts: Vec<&str> = warnings.iter().map(String::as_str).filter(|text| told.insert(*text)).collect();
    let too_many = texts.iter().map(|text| text.chars().count()).sum::<usize>() > MOST_WARNING;
    let mut written = 0;
    for text in texts {
        let length = text.chars().count().min(if too_many { MOST_OF_ONE } else { MOST_WARNING });
        written += length;
        if written > MOST_WARNING {
            break;
        }
        if let Ok(value) = HeaderValue::from_bytes(quoted(text.chars().take(length)).as_bytes()) {
            headers.append(WARNING, value);
        }
    }
}

fn quoted(text: impl Iterator<Item = char>) -> String {
    let mut quoted = String::from("299 - \"");
    for c in text {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' | '\t' => quoted.push(' '),
            c if c.is_control() => {}
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_quoted_and_come_once() {
        let mut headers = HeaderMap::new();
        warn(&mut headers, &["unknown field \"x\"".into(), "unknown field \"x\"".into(), "b\nc".into()]);
        let values: Vec<_> = headers.get_all(WARNING).iter().map(|v| v.to_str().expect("ASCII")).collect();
        assert_eq!(values, [r#"299 - "unknown field \"x\"""#, r#"299 - "b c""#]);
    }

    #[test]
    fn many_warnings_are_cut_and_then_left_out() {
        let mut headers = HeaderMap::new();
        let many: Vec<String> = (0..100).map(|number| format!("{number:03}{}", "x".repeat(500))).collect();
        warn(&mut headers, &many);
        let values: Vec<_> = headers.get_all(WARNING).iter().collect();
        assert_eq!(values.len(), MOST_WARNING / MOST_OF_ONE);
        assert_eq!(values[0].len(), MOST_OF_ONE + "299 - \"\"".len());
    }
}
