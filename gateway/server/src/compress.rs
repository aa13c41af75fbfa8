//! gzip for large answers, made piece by piece while the client takes them.

use std::io::Write as _;

use axum::body::{Body, BodyDataStream};
use axum::response::Response;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::{StreamExt as _, stream};
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, VARY};
use http::{HeaderMap, HeaderValue};

/// Smaller bodies are sent as they are, as Kubernetes does.
pub(crate) const COMPRESS_FROM: usize = 128 << 10;
/// How much is compressed at a time.
const PIECE: usize = 64 << 10;
/// Compressed bytes are sent when there are so many.
const SENT_FROM: usize = 16 << 10;

/// Put on answers whose body is worth compressing.
#[derive(Clone, Copy)]
pub(crate) struct Large;

/// Whether the client takes gzip.
pub(crate) fn accepts_gzip(headers: &HeaderMap) -> bool {
    headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok()).any(|value| {
        value.split(',').any(|coding| {
            let mut parts = coding.split(';').map(str::trim);
            parts.next() == Some("gzip") && !parts.any(|part| matches!(part, "q=0" | "q=0.0"))
        })
    })
}

/// Compresses an answer that is [`Large`].
pub(crate) fn gzip(mut response: Response) -> Response {
    if response.extensions_mut().remove::<Large>().is_none() || response.headers().contains_key(CONTENT_ENCODING) {
        return response;
    }
    let body = std::mem::take(response.body_mut()).into_data_stream();
    let state = Compressing {
        encoder: GzEncoder::new(Vec::with_capacity(PIECE), Compression::fast()),
        body,
        rest: Bytes::new(),
    };
    *response.body_mut() = Body::from_stream(stream::try_unfold(Some(state), next));
    let headers = response.headers_mut();
    headers.remove(CONTENT_LENGTH);
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
    response
}

/// A body that is being compressed.
struct Compressing {
    encoder: GzEncoder<Vec<u8>>,
    body: BodyDataStream,
    /// Of what came last.
    rest: Bytes,
}

/// The next compressed bytes, and what is left to do.
async fn next(state: Option<Compressing>) -> Result<Option<(Bytes, Option<Compressing>)>, axum::Error> {
    let Some(mut state) = state else { return Ok(None) };
    loop {
        // Compressing takes a while: others get their turn between two pieces.
        tokio::task::yield_now().await;
        if state.rest.is_empty() {
            let Some(rest) = state.body.next().await else {
                let last = state.encoder.finish().expect("written into memory");
                return Ok(Some((Bytes::from(last), None)));
            };
            state.rest = rest?;
        }
        let piece = state.rest.split_to(state.rest.len().min(PIECE));
        state.encoder.write_all(&piece).expect("written into memory");
        if state.encoder.get_ref().len() >= SENT_FROM {
            let made = std::mem::take(state.encoder.get_mut());
            return Ok(Some((Bytes::from(made), Some(state))));
        }
    }
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
        response.extensions_mut().insert(Large);
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
