//! A connection's stream that loses patience: with a client that says nothing, and with one that doesn't read.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::activity::Activity;
use crate::places::Place;

/// How long a client may make the server wait.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// For the first bytes behind the handshake.
    pub first_bytes: Duration,
    /// While it takes nothing of what is to be sent. Tunnels may stand still as long as they like: who sits before
    /// `kubectl exec` may stop its output.
    pub stall: Duration,
}

/// A stream with deadlines. It holds the connection's place, also when it outlives HTTP as a tunnel.
pub(crate) struct Patient<S> {
    inner: S,
    /// How many of the first bytes are still to come in time.
    missing: usize,
    first: Pin<Box<Sleep>>,
    stall: Pin<Box<Sleep>>,
    stalled: bool,
    limits: Limits,
    activity: Arc<Activity>,
    _place: Option<Place>,
}

impl<S> Patient<S> {
    /// Expects `first` bytes soon.
    pub fn new(inner: S, first: usize, limits: Limits, activity: Arc<Activity>, place: Option<Place>) -> Self {
        Self {
            inner,
            missing: first,
            first: Box::pin(tokio::time::sleep(limits.first_bytes)),
            stall: Box::pin(tokio::time::sleep(limits.stall)),
            stalled: false,
            limits,
            activity,
            _place: place,
        }
    }

    /// Passes on what became of something to be sent, unless it has waited for too long.
    fn sent<T>(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() || self.activity.is_tunnel() {
            self.stalled = false;
            return outcome;
        }
        if !self.stalled {
            self.stalled = true;
            let deadline = Instant::now() + self.limits.stall;
            self.stall.as_mut().reset(deadline);
        }
        ready!(self.stall.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.inner).poll_read(cx, buf);
        if self.missing == 0 {
            return outcome;
        }
        if outcome.is_ready() {
            self.missing = self.missing.saturating_sub(buf.filled().len() - before);
            return outcome;
        }
        ready!(self.first.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client says nothing")))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.sent(cx, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.sent(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_flush(cx);
        self.sent(cx, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.sent(cx, outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    const SHORT: Limits = Limits { first_bytes: Duration::from_millis(40), stall: Duration::from_millis(40) };

    #[tokio::test]
    async fn a_client_that_says_too_little_is_given_up() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut stream = Patient::new(near, 24, SHORT, Arc::default(), None);
        far.write_all(b"PRI * HTTP").await.expect("sent");
        let error = stream.read_to_end(&mut Vec::new()).await.expect_err("too slow");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_client_that_has_spoken_may_be_silent() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut stream = Patient::new(near, 1, SHORT, Arc::default(), None);
        far.write_all(b"G").await.expect("sent");
        assert_eq!(stream.read_u8().await.expect("read"), b'G');
        let silent = tokio::time::timeout(SHORT.first_bytes * 4, stream.read_u8()).await;
        assert!(silent.is_err(), "{silent:?}");
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_given_up_unless_it_has_a_tunnel() {
        let (near, _far) = tokio::io::duplex(64);
        let mut stream = Patient::new(near, 1, SHORT, Arc::default(), None);
        let error = stream.write_all(&[0; 100]).await.expect_err("stalled");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let (near, _far) = tokio::io::duplex(64);
        let activity = Arc::<Activity>::default();
        activity.becomes_tunnel();
        let mut stream = Patient::new(near, 1, SHORT, activity, None);
        let waiting = tokio::time::timeout(SHORT.stall * 4, stream.write_all(&[0; 100])).await;
        assert!(waiting.is_err(), "{waiting:?}");
    }
}
