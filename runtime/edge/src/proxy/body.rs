//! Bodies on their way: frame by frame, never whole.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tokio::time::Sleep;

use super::pool::Lease;
use super::share::Place;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// How long a client may be silent in the middle of a request's body, if it isn't a stream.
const SILENCE: Duration = Duration::from_secs(60);

/// What is sent to an endpoint.
pub enum Outgoing {
    Empty,
    Client(ClientBody),
    /// What a mirror gets of a client's body.
    Copy(Copy),
}

/// A request's body, of which mirrors get copies.
pub struct ClientBody {
    incoming: Incoming,
    /// A stream both ways: the client may listen for as long as it wants.
    streams: bool,
    silent: Option<Pin<Box<Sleep>>>,
    copies: Vec<mpsc::Sender<Piece>>,
}

/// The other end of a copy. It ends with an error if it lags too far behind, or the original breaks off.
pub struct Copy {
    pieces: mpsc::Receiver<Piece>,
    ended: bool,
}

pub enum Piece {
    Data(Bytes),
    Trailers(http::HeaderMap),
    End,
}

/// How many frames a copy may lag behind.
const LAG: usize = 64;

impl Outgoing {
    /// A client's body, which `streams` if it may pause for as long as it wants, and its copies.
    pub fn of_client(incoming: Incoming, streams: bool, copies: usize) -> (Self, Vec<Self>) {
        if incoming.is_end_stream() {
            return (Self::Empty, (0..copies).map(|_| Self::Empty).collect());
        }
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..copies).map(|_| mpsc::channel(LAG)).unzip();
        let copies = receivers.into_iter().map(|pieces| Self::Copy(Copy { pieces, ended: false })).collect();
        (Self::Client(ClientBody { incoming, streams, silent: None, copies: senders }), copies)
    }

    /// Whether it can be sent a second time.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }
}

impl ClientBody {
    fn tell(&mut self, piece: impl Fn() -> Piece) {
        // One that is full is given up: it must not hold up the client.
        self.copies.retain(|copy| copy.try_send(piece()).is_ok());
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(cx) else {
            if self.streams {
                return Poll::Pending;
            }
            let silent = self.silent.get_or_insert_with(|| Box::pin(tokio::time::sleep(SILENCE)));
            ready!(silent.as_mut().poll(cx));
            return Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::TimedOut).into())));
        };
        self.silent = None;
        if !self.copies.is_empty() {
            match &frame {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.tell(|| Piece::Data(data.clone()));
                    } else if let Some(trailers) = frame.trailers_ref() {
                        self.tell(|| Piece::Trailers(trailers.clone()));
                    }
                }
                Some(Err(_)) => self.copies.clear(),
                None => self.tell(|| Piece::End),
            }
            if self.incoming.is_end_stream() {
                self.tell(|| Piece::End);
                self.copies.clear();
            }
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Client(body) => body.poll(cx),
            Self::Copy(copy) if copy.ended => Poll::Ready(None),
            Self::Copy(copy) => Poll::Ready(match ready!(copy.pieces.poll_recv(cx)) {
                Some(Piece::Data(data)) => Some(Ok(Frame::data(data))),
                Some(Piece::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
                Some(Piece::End) => {
                    copy.ended = true;
                    None
                }
                None => Some(Err("the body broke off".into())),
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Client(body) => body.incoming.is_end_stream(),
            Self::Copy(copy) => copy.ended,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Client(body) => body.incoming.size_hint(),
            Self::Copy(_) => SizeHint::default(),
        }
    }
}

/// What a client is answered.
pub enum Reply {
    Own(Full<Bytes>),
    Endpoint(EndpointBody),
}

/// An endpoint's answer. At its end the connection is free for others.
pub struct EndpointBody {
    incoming: Incoming,
    lease: Option<Lease>,
    place: Option<Arc<Place>>,
    /// When it must be there, whole.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Reply {
    /// A text of the proxy's own.
    pub fn text(text: impl Into<Bytes>) -> Self {
        Self::Own(Full::new(text.into()))
    }

    pub fn endpoint(incoming: Incoming, lease: Option<Lease>, deadline: Option<tokio::time::Instant>) -> Self {
        let mut body = EndpointBody {
            incoming,
            lease,
            place: None,
            deadline: deadline.map(|at| Box::pin(tokio::time::sleep_until(at))),
        };
        if body.incoming.is_end_stream() {
            body.done();
        }
        Self::Endpoint(body)
    }

    /// Keeps the request's place until the answer has ended.
    pub fn hold(&mut self, place: Arc<Place>) {
        if let Self::Endpoint(body) = self {
            body.place = Some(place);
        }
    }
}

impl EndpointBody {
    fn done(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
        self.deadline = None;
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let body = match self.get_mut() {
            Self::Own(text) => return Pin::new(text).poll_frame(cx).map_err(|never| match never {}),
            Self::Endpoint(body) => body,
        };
        let Poll::Ready(frame) = Pin::new(&mut body.incoming).poll_frame(cx) else {
            let Some(deadline) = &mut body.deadline else { return Poll::Pending };
            ready!(deadline.as_mut().poll(cx));
            return Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::TimedOut).into())));
        };
        match &frame {
            None => body.done(),
            Some(Ok(_)) if body.incoming.is_end_stream() => body.done(),
            Some(_) => {}
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(text) => text.is_end_stream(),
            Self::Endpoint(body) => body.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(text) => text.size_hint(),
            Self::Endpoint(body) => body.incoming.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use hyper_util::rt::{TokioExecutor, TokioIo};

    use super::*;

    /// A body whose sender never sends any of it, as a server gets it; and what keeps it open.
    async fn silent() -> (Incoming, impl Sized) {
        let (client, server) = tokio::io::duplex(1 << 16);
        let (bodies, mut arrived) = mpsc::channel(1);
        let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
            let bodies = bodies.clone();
            async move {
                let _ = bodies.send(request.into_body()).await;
                std::future::pending::<Result<http::Response<Full<Bytes>>, Error>>().await
            }
        });
        let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let serving = tokio::spawn(serving.serve_connection(TokioIo::new(server), service));
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(client));
        let (mut sender, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        let (never, pieces) = mpsc::channel(1);
        let body = Outgoing::Copy(Copy { pieces, ended: false });
        let asking = tokio::spawn(sender.send_request(http::Request::post("http://a/").body(body).unwrap()));
        (arrived.recv().await.unwrap(), (sender, never, serving, asking))
    }

    #[test]
    fn a_stream_may_pause_and_another_body_must_come() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            for streams in [true, false] {
                let (incoming, _open) = silent().await;
                let (mut body, _) = Outgoing::of_client(incoming, streams, 0);
                tokio::time::pause();
                let waited = tokio::time::timeout(10 * SILENCE, body.frame()).await;
                tokio::time::resume();
                match waited {
                    Ok(frame) => assert!(!streams && frame.unwrap().is_err()),
                    Err(_) => assert!(streams, "it waits for ever"),
                }
            }
        });
    }
}
