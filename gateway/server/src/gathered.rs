//! HTTP/2 to a client in few writes.
//!
//! Hyper sends each frame by itself, and flushes behind it. Where one event goes to hundreds of streams of a connection,
//! that is a TLS record and a system call for each. Here frames are gathered, and sent when everybody who has something
//! to say at this moment has said it: the connection stands in line once more before it sends.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Never more than this is held back. It is what a TLS session takes at once.
const LARGEST: usize = 64 << 10;

/// A stream that holds back what is written to it until [`Gathered::poll_send`], or until it is full.
pub(crate) struct Gathered<S>(Arc<Mutex<Held<S>>>);

struct Held<S> {
    inner: S,
    bytes: BytesMut,
}

impl<S> Gathered<S> {
    pub fn new(inner: S) -> Self {
        Self(Arc::new(Mutex::new(Held { inner, bytes: BytesMut::new() })))
    }

    /// The same stream.
    fn again(&self) -> Self {
        Self(Arc::clone(&self.0))
    }

    /// Never contended: a connection is polled by one thread at a time.
    fn held(&self) -> MutexGuard<'_, Held<S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: AsyncWrite + Unpin> Held<S> {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.bytes.is_empty() {
            let count = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.bytes))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.bytes.advance(count);
        }
        // An idle connection holds no memory.
        self.bytes = BytesMut::new();
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    /// Takes a part of what is to be sent.
    fn poll_take(&mut self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.bytes.len() >= LARGEST {
            ready!(self.poll_send(cx))?;
        }
        let mut taken = 0;
        for part in parts {
            let fits = part.len().min(LARGEST - self.bytes.len());
            self.bytes.extend_from_slice(&part[..fits]);
            taken += fits;
        }
        Poll::Ready(Ok(taken))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.held().inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.held().poll_take(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.held().poll_take(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// That is for [`Sending`] to do, which polls whoever asks for it here.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut held = self.held();
        ready!(held.poll_send(cx))?;
        Pin::new(&mut held.inner).poll_shutdown(cx)
    }
}

/// A connection together with the sending of what it has gathered.
pub(crate) struct Sending<C, S> {
    pub connection: C,
    stream: Gathered<S>,
    /// Whether others have had their turn since something was gathered.
    stood_in_line: bool,
}

impl<C, S> Sending<C, S> {
    /// Of a connection that `make` makes of the stream.
    pub fn new(inner: S, make: impl FnOnce(Gathered<S>) -> C) -> Self {
        let stream = Gathered::new(inner);
        Self { connection: make(stream.again()), stream, stood_in_line: false }
    }
}

impl<C, S, E> Future for Sending<C, S>
where
    C: Future<Output = Result<(), E>> + Unpin,
    S: AsyncWrite + Unpin,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Output = Result<(), Box<dyn std::error::Error + Send + Sync>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Poll::Ready(ended) = Pin::new(&mut this.connection).poll(cx) {
            return Poll::Ready(ended.map_err(Into::into));
        }
        let mut held = this.stream.held();
        if held.bytes.is_empty() {
            return Poll::Pending;
        }
        if !this.stood_in_line {
            this.stood_in_line = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        match held.poll_send(cx) {
            Poll::Ready(Ok(())) => {
                this.stood_in_line = false;
                Poll::Pending
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Counts what reaches the network.
    struct Counted<S>(S, Arc<AtomicUsize>);

    impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            let outcome = Pin::new(&mut self.0).poll_write(cx, buf);
            self.1.fetch_add(usize::from(outcome.is_ready()), Ordering::Relaxed);
            outcome
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    /// A connection that writes what it is told by many, and flushes behind each.
    async fn connection(
        mut stream: Gathered<Counted<tokio::io::DuplexStream>>,
        mut said: tokio::sync::mpsc::UnboundedReceiver<Vec<u8>>,
    ) -> io::Result<()> {
        while let Some(bytes) = said.recv().await {
            stream.write_all(&bytes).await?;
            stream.flush().await?;
        }
        stream.shutdown().await
    }

    #[tokio::test]
    async fn what_many_say_at_once_is_sent_at_once() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let writes = Arc::new(AtomicUsize::new(0));
        let (say, said) = tokio::sync::mpsc::unbounded_channel();
        let counted = Counted(near, Arc::clone(&writes));
        let sending = tokio::spawn(Sending::new(counted, |stream| Box::pin(connection(stream, said))));
        for _ in 0..100 {
            let say = say.clone();
            tokio::spawn(async move { say.send(vec![7; 100]) });
        }
        let mut read = vec![0; 100 * 100];
        far.read_exact(&mut read).await.expect("all of it, without any further reason to send");
        assert!(writes.load(Ordering::Relaxed) < 10, "{writes:?} writes");
        drop(say);
        sending.await.expect("no panic").expect("ended well");
        assert_eq!(far.read(&mut read).await.expect("the end"), 0);
    }

    #[tokio::test]
    async fn more_than_is_held_back_passes_whole_also_to_a_slow_reader() {
        let (near, mut far) = tokio::io::duplex(1000);
        let (say, said) = tokio::sync::mpsc::unbounded_channel();
        let counted = Counted(near, Arc::default());
        let sending = tokio::spawn(Sending::new(counted, |stream| Box::pin(connection(stream, said))));
        let all: Vec<u8> = (0..3 * LARGEST).map(|index| u8::try_from(index % 251).unwrap_or_default()).collect();
        say.send(all.clone()).expect("it listens");
        drop(say);
        let mut read = Vec::new();
        far.read_to_end(&mut read).await.expect("read");
        assert!(read == all, "{} bytes of {}", read.len(), all.len());
        sending.await.expect("no panic").expect("ended well");
    }

    #[tokio::test]
    async fn a_client_that_is_gone_ends_the_connection() {
        let (near, far) = tokio::io::duplex(1000);
        drop(far);
        let (say, said) = tokio::sync::mpsc::unbounded_channel();
        let counted = Counted(near, Arc::default());
        let sending = tokio::spawn(Sending::new(counted, |stream| Box::pin(connection(stream, said))));
        say.send(vec![1; 10]).expect("it listens");
        sending.await.expect("no panic").expect_err("nobody reads");
    }
}
