//! Answers: objects, failures, warnings.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use carob_api::status::Status;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WARNING};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::Value;

use crate::negotiate::Format;

/// Plain text.
pub(crate) fn text(code: StatusCode, text: impl Into<Bytes>) -> Response {
    finished(code, "text/plain; charset=utf-8", text.into())
}

/// What Go's HTTP server says about a path that it doesn't know.
pub(crate) fn page_not_found() -> Response {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

/// A value as JSON.
pub(crate) fn json(code: StatusCode, value: &Value) -> Response {
    finished(code, Format::Json.content_type(), to_json(value))
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
    let body = match format {
        Format::Json if !pretty => json,
        Format::Json => serde_json::from_slice::<Value>(&json)
            .and_then(|value| serde_json::to_vec_pretty(&value))
            .map(Bytes::from)
            .map_err(|_| Status::internal("an answer is not JSON"))?,
        Format::Yaml => {
            let value: Value = serde_json::from_slice(&json).map_err(|_| Status::internal("an answer is not JSON"))?;
            let text = serde_saphyr::to_string(&value)
                .map_err(|error| Status::internal(format!("cannot write YAML: {error}")))?;
            text.into()
        }
    };
    Ok(finished(code, format.content_type(), body))
}

/// A whole body.
pub(crate) fn finished(code: StatusCode, content_type: &'static str, body: Bytes) -> Response {
    let mut response = Response::new(Body::from(body));
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

/// Adds a `Warning: 299 - "…"` header per text, each text once.
pub(crate) fn warn(headers: &mut HeaderMap, warnings: &[String]) {
    for (index, warning) in warnings.iter().enumerate() {
        if warnings[..index].contains(warning) {
            continue;
        }
        let mut quoted = String::with_capacity(warning.len() + 10);
        quoted.push_str("299 - \"");
        for c in warning.chars() {
            match c {
                '"' | '\\' => quoted.extend(['\\', c]),
                '\n' | '\t' => quoted.push(' '),
                c if c.is_control() => {}
                c => quoted.push(c),
            }
        }
        quoted.push('"');
        if let Ok(value) = HeaderValue::from_bytes(quoted.as_bytes()) {
            headers.append(WARNING, value);
        }
    }
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
}
