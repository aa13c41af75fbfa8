//! What a connection is doing: how many of its requests are unanswered, and since when it has none.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::Response;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;

/// The requests of a connection.
#[derive(Default)]
pub(crate) struct Activity {
    requests: Mutex<Requests>,
    tunnel: AtomicBool,
}

struct Requests {
    running: usize,
    /// When the last one ended or, without any, the connection began.
    rested_at: Instant,
}

impl Default for Requests {
    fn default() -> Self {
        Self { running: 0, rested_at: Instant::now() }
    }
}

/// One request, until its answer is sent or given up.
pub(crate) struct Running(Arc<Activity>);

impl Activity {
    /// A request begins.
    pub fn begin(self: &Arc<Self>) -> Running {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).running += 1;
        Running(Arc::clone(self))
    }

    /// The connection is no longer HTTP.
    pub fn becomes_tunnel(&self) {
        self.tunnel.store(true, Ordering::Relaxed);
    }

    /// Whether the connection is no longer HTTP.
    pub fn is_tunnel(&self) -> bool {
        self.tunnel.load(Ordering::Relaxed)
    }

    /// Returns when there was no request for so long.
    pub async fn rests_for(&self, limit: Duration) {
        loop {
            let next = {
                let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
                let since = if requests.running > 0 { Instant::now() } else { requests.rested_at };
                since + limit
            };
            if next <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(next).await;
        }
    }
}

impl Running {
    /// The answer, which is sent as long as this request runs.
    pub fn until_sent(self, answer: Response) -> Response {
        until_sent(answer, self)
    }
}

/// An answer that holds something until it is sent or given up.
pub(crate) fn until_sent(answer: Response, held: impl Send + Unpin + 'static) -> Response {
    answer.map(|body| Body::new(Sending { body, _held: held }))
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut requests = self.0.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.running -= 1;
        requests.rested_at = Instant::now();
    }
}

/// A body that is being sent.
struct Sending<T> {
    body: Body,
    _held: T,
}

impl<T: Unpin> HttpBody for Sending<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_rests_when_its_last_answer_is_sent() {
        let activity = Arc::<Activity>::default();
        let limit = Duration::from_millis(40);
        let answer = activity.begin().until_sent(Response::new(Body::from("x")));
        assert_eq!(answer.body().size_hint().exact(), Some(1), "the length is still known");
        assert!(tokio::time::timeout(limit * 5, activity.rests_for(limit)).await.is_err());
        drop(answer);
        let sent = Instant::now();
        activity.rests_for(limit).await;
        assert!(sent.elapsed() >= limit);
    }
}
