//! HTML pages on their way to the client: read whole, unless they are too large for that, and their links rewritten.

use std::io::{Read, Write};

use axum::body::Body;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use flate2::Compression;
use flate2::read::{DeflateDecoder, GzDecoder};
use flate2::write::{DeflateEncoder, GzEncoder};
use futures::StreamExt as _;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::response::Parts;
use http_body_util::BodyExt as _;

use super::rewrite::Rewriting;

/// The largest page whose links are rewritten, in bytes.
const LARGEST: usize = 4 << 20;

/// How a page is packed.
#[derive(Clone, Copy)]
enum Coding {
    Plain,
    Gzip,
    Deflate,
}

/// The answer, with its links rewritten if it is a page.
pub(super) async fn rewritten(mut parts: Parts, mut body: Body, rewriting: &Rewriting) -> Response {
    let header = |name| parts.headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
    let media = header(CONTENT_TYPE).unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let coding = match header(CONTENT_ENCODING).unwrap_or_default() {
        "" => Coding::Plain,
        "gzip" => Coding::Gzip,
        "deflate" => Coding::Deflate,
        _ => return Response::from_parts(parts, body),
    };
    if media != "text/html" {
        return Response::from_parts(parts, body);
    }
    let mut whole = BytesMut::new();
    let mut broken = None;
    while whole.len() <= LARGEST
        && let Some(frame) = body.frame().await
    {
        match frame.map(http_body::Frame::into_data) {
            Ok(Ok(data)) => whole.extend_from_slice(&data),
            Ok(Err(_)) => {}
            Err(error) => {
                broken = Some(error);
                break;
            }
        }
    }
    let whole = whole.freeze();
    if whole.len() > LARGEST || broken.is_some() {
        // Too much to look at, or not all there: what came, then what follows.
        let begun = futures::stream::iter([Ok(whole)].into_iter().chain(broken.map(Err)));
        let all = Body::from_stream(begun.chain(body.into_data_stream()));
        return Response::from_parts(parts, all);
    }
    let new = match unpack(coding, &whole) {
        Some(page) => pack(coding, rewriting.page(&page)),
        None => None,
    };
    if new.is_some() {
        parts.headers.remove(CONTENT_LENGTH);
    }
    Response::from_parts(parts, Body::from(new.unwrap_or(whole)))
}

fn unpack(coding: Coding, bytes: &Bytes) -> Option<String> {
    let mut page = String::new();
    let limit = u64::try_from(4 * LARGEST).ok()?;
    match coding {
        Coding::Plain => return String::from_utf8(bytes.to_vec()).ok(),
        Coding::Gzip => GzDecoder::new(&bytes[..]).take(limit).read_to_string(&mut page).ok()?,
        Coding::Deflate => DeflateDecoder::new(&bytes[..]).take(limit).read_to_string(&mut page).ok()?,
    };
    (page.len() < 4 * LARGEST).then_some(page)
}

fn pack(coding: Coding, page: String) -> Option<Bytes> {
    let packed = match coding {
        Coding::Plain => return Some(page.into()),
        Coding::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(page.as_bytes()).and_then(|()| encoder.finish())
        }
        Coding::Deflate => {
            let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(page.as_bytes()).and_then(|()| encoder.finish())
        }
    };
    packed.ok().map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    async fn through(coding: Coding, name: Option<&'static str>, page: &str) -> String {
        let mut answer = http::Response::new(());
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
        if let Some(name) = name {
            answer.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static(name));
        }
        let body = Body::from(pack(coding, page.to_owned()).expect("packed"));
        let rewriting = Rewriting { prefix: "/p".into(), ..Rewriting::default() };
        let answer = rewritten(answer.into_parts().0, body, &rewriting).await;
        let bytes = answer.into_body().collect().await.expect("whole").to_bytes();
        unpack(coding, &bytes).expect("unpacked")
    }

    #[tokio::test]
    async fn a_page_is_rewritten_however_it_is_packed() {
        for (coding, name) in [(Coding::Plain, None), (Coding::Gzip, Some("gzip")), (Coding::Deflate, Some("deflate"))]
        {
            assert_eq!(through(coding, name, r#"<a href="/x">"#).await, r#"<a href="/p/x">"#);
        }
    }

    #[tokio::test]
    async fn a_page_that_is_too_large_is_passed_on() {
        let page = format!("<a href=\"/x\">{}", "y".repeat(LARGEST));
        assert_eq!(through(Coding::Plain, None, &page).await, page);
    }
}
