//! Reading a request's body: bounded in size and in time, and all bodies together in memory.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use carob_api::status::Status;
use http_body_util::BodyExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::audit;

/// How long a client may take for the whole body.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long and how much is read of a body that is too large, and dropped: whoever is still sending when the connection closes
/// would never see the answer.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 64 << 20;

/// How many bytes of bodies may be in memory at a time.
const ROOM: usize = 128 << 20;
/// When a client may try again for whose body there was no room, in seconds.
const TRY_AGAIN: u32 = 1;

/// Room for the bodies of all requests, one permit per byte.
pub(crate) fn room() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(ROOM))
}

/// A body that is to be read.
pub(crate) struct Incoming {
    pub body: Body,
    /// The room that it takes. None for requests from inside the process, which strangers' bodies must not keep out.
    pub room: Option<Arc<Semaphore>>,
}

/// A body in memory, which takes room until it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub bytes: Bytes,
    _room: Option<OwnedSemaphorePermit>,
}

/// The whole body, at most `limit` bytes.
pub(crate) async fn read(incoming: Incoming, limit: usize) -> Result<Held, Status> {
    match tokio::time::timeout(PATIENCE, collect(incoming, limit)).await {
        Ok(result) => result.inspect(|held| audit::keep_request(&held.bytes)),
        Err(_) => Err(Status::generic(408, "Timeout", "the body of the request did not arrive in time")),
    }
}

async fn collect(Incoming { mut body, room }: Incoming, limit: usize) -> Result<Held, Status> {
    let mut taken: Option<OwnedSemaphorePermit> = None;
    let mut first: Option<Bytes> = None;
    let mut all = BytesMut::new();
    let mut size = 0usize;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Status::bad_request(format!("cannot read the body: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        size = size.saturating_add(data.len());
        if size > limit {
            drop((taken, first, all));
            pass_over(body).await;
            return Err(Status::too_large(format!("limit is {limit}")));
        }
        if let Some(room) = &room {
            let more = take(room, data.len())?;
            match &mut taken {
                Some(taken) => taken.merge(more),
                None => taken = Some(more),
            }
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
    Ok(Held { bytes: first.unwrap_or_else(|| all.freeze()), _room: taken })
}

async fn pass_over(mut body: Body) {
    let read = async {
        let mut left = LINGER_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(length) {
                Some(less) => left = less,
                None => return,
            }
        }
    };
    // In time or not, the answer is the same.
    let _ = tokio::time::timeout(LINGER, read).await;
}

fn take(room: &Arc<Semaphore>, bytes: usize) -> Result<OwnedSemaphorePermit, Status> {
    let full = || Status::too_many_requests("Too many requests, please try again later.", TRY_AGAIN);
    let bytes = u32::try_from(bytes).map_err(|_| full())?;
    Arc::clone(room).try_acquire_many_owned(bytes).map_err(|_| full())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn incoming(text: &'static str) -> Incoming {
        Incoming { body: Body::from(text), room: None }
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_413_and_one_at_the_limit_is_read() {
        assert_eq!(read(incoming("abcd"), 4).await.expect("read").bytes, "abcd");
        let status = read(incoming("abcde"), 4).await.expect_err("too large");
        assert_eq!((status.code(), status.message()), (413, "Request entity too large: limit is 4"));
    }

    #[tokio::test]
    async fn pieces_are_put_together() {
        let pieces = ["a", "b", "c"].map(|piece| Ok::<_, std::io::Error>(Bytes::from(piece)));
        let body = Body::from_stream(futures::stream::iter(pieces));
        assert_eq!(read(Incoming { body, room: None }, 10).await.expect("read").bytes, "abc");
    }

    #[tokio::test]
    async fn bodies_beyond_the_room_are_429_until_there_is_room_again() {
        let room = Arc::new(Semaphore::new(6));
        let try_to_read = || read(Incoming { body: Body::from("abcd"), room: Some(room.clone()) }, 10);
        let held = try_to_read().await.expect("room");
        let status = try_to_read().await.expect_err("no room");
        assert_eq!((status.code(), status.retry_after()), (429, Some(1)));
        assert_eq!(read(incoming("abcd"), 10).await.expect("from inside").bytes, "abcd");
        drop(held);
        try_to_read().await.expect("room again");
    }
}
