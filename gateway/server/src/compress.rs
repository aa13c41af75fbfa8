//! gzip for large answers, made piece by piece while the client takes them.

use std::convert::Infallible;
use std::io::Write as _;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::stream;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, VARY};
use http::{HeaderMap, HeaderValue};

/// Smaller bodies are sent as they are, as Kubernetes does.
pub(crate) const COMPRESS_FROM: usize = 128 << 10;
/// How much is compressed at a time.
const PIECE: usize = 64 << 10;

/// A body that is worth compressing.
#[derive(Clone)]
pub(crate) struct Large(pub Bytes);

/// Whether the client takes gzip.
pub(crate) fn accepts_gzip(headers: &HeaderMap) -> bool {
    headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok()).any(|value| {
        value.split(',').any(|coding| {
            let mut parts = coding.split(';').map(str::trim);
            parts.next() == Some("gzip") && !parts.any(|part| matches!(part, "q=0" | "q=0.0"))
        })
    })
}

/// Compresses an answer with a [`Large`] body.
pub(crate) fn gzip(mut response: Response) -> Response {
    let Some(Large(body)) = response.extensions_mut().remove() else { return response };
    if response.headers().contains_key(CONTENT_ENCODING) {
        return response;
    }
    let encoder = GzEncoder::new(Vec::with_capacity(PIECE), Compression::fast());
    let pieces = stream::unfold(Some((encoder, body)), |state| async move {
        let (mut encoder, mut rest) = state?;
        loop {
            // Compressing takes a while: others get their turn between two pieces.
            tokio::task::yield_now().await;
            let piece = rest.split_to(rest.len().min(PIECE));
            encoder.write_all(&piece).expect("written into memory");
            if rest.is_empty() {
                let last = encoder.finish().expect("written into memory");
                return Some((Ok::<_, Infallible>(Bytes::from(last)), None));
            }
            let made = std::mem::take(encoder.get_mut());
            if !made.is_empty() {
                return Some((Ok(Bytes::from(made)), Some((encoder, rest))));
            }
        }
    });
    *response.body_mut() = Body::from_stream(pieces);
    let headers = response.headers_mut();
    headers.remove(CONTENT_LENGTH);
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
    response
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn a_large_body_arrives_whole() {
        let body: Bytes = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
        let mut response = Response::new(Body::from(body.clone()));
        response.extensions_mut().insert(Large(body.clone()));
        let response = gzip(response);
        assert_eq!(response.headers()[CONTENT_ENCODING], "gzip");
        let sent = response.into_body().collect().await.expect("a body").to_bytes();
        let mut read = Vec::new();
        GzDecoder::new(&sent[..]).read_to_end(&mut read).expect("gzip");
        assert!(read == body, "the body changed on its way");
    }

    #[test]
    fn gzip_is_taken_by_those_who_say_so() {
        let taken = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, text.parse().expect("a header"));
            accepts_gzip(&headers)
        };
        assert!(taken("gzip") && taken("br, gzip;q=0.5"));
        assert!(!taken("br") && !taken("gzip;q=0"));
    }
}
