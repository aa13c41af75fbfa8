//! Reading a request's body: bounded in size and in time.

use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use carob_api::status::Status;
use http_body_util::BodyExt as _;

/// How long a client may take for the whole body.
const PATIENCE: Duration = Duration::from_secs(30);

/// The whole body, at most `limit` bytes.
pub(crate) async fn read(body: Body, limit: usize) -> Result<Bytes, Status> {
    match tokio::time::timeout(PATIENCE, collect(body, limit)).await {
        Ok(result) => result,
        Err(_) => Err(Status::generic(408, "Timeout", "the body of the request did not arrive in time")),
    }
}

async fn collect(mut body: Body, limit: usize) -> Result<Bytes, Status> {
    let mut first: Option<Bytes> = None;
    let mut all = BytesMut::new();
    let mut size = 0usize;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Status::bad_request(format!("cannot read the body: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        size = size.saturating_add(data.len());
        if size > limit {
            return Err(Status::too_large(format!("limit is {limit}")));
        }
        // The usual body is one piece and needs no copy.
        match first.take() {
            None if all.is_empty() => first = Some(data),
            None => all.extend_from_slice(&data),
            Some(piece) => {
                all.extend_from_slice(&piece);
                all.extend_from_slice(&data);
            }
        }
    }
    Ok(first.unwrap_or_else(|| all.freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_over_the_limit_is_413_and_one_at_the_limit_is_read() {
        assert_eq!(read(Body::from("abcd"), 4).await.expect("read"), "abcd");
        let status = read(Body::from("abcde"), 4).await.expect_err("too large");
        assert_eq!((status.code(), status.message()), (413, "Request entity too large: limit is 4"));
    }

    #[tokio::test]
    async fn pieces_are_put_together() {
        let pieces = ["a", "b", "c"].map(|piece| Ok::<_, std::io::Error>(Bytes::from(piece)));
        let body = Body::from_stream(futures::stream::iter(pieces));
        assert_eq!(read(body, 10).await.expect("read"), "abc");
    }
}
