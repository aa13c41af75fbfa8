//! One client's connection: TLS, HTTP/1.1 or HTTP/2, with limits against clients that are slow, greedy or gone.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::patience::Patient;
use super::request::{self, Client};
use super::share::Place;
use super::withdrawn::Tally;
use super::{Door, FAREWELL, Shared};

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long the head of a request may take; also how long a connection of HTTP/1.1 may be without one.
const HEAD: Duration = Duration::from_secs(75);
/// The largest head.
const MAX_HEAD: usize = 64 << 10;
const MAX_HEADERS: usize = 128;
/// HTTP/2: requests of one connection at a time.
const MAX_STREAMS: u32 = 256;
/// HTTP/2: how often a silent connection is asked whether it lives, and how long it has for the answer.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_PATIENCE: Duration = Duration::from_secs(15);

/// A silent connection is asked whether its client is there after so long, so often, and so many times: a stream may pause for
/// as long as it wants, and nobody else would notice that there is no one any more.
const SILENT_SECONDS: u32 = 60;
const ASK_AGAIN_SECONDS: u32 = 15;
const ASK_TIMES: u32 = 4;

/// Serves a client until it leaves or the door is closed.
pub async fn converse(shared: Shared, door: Arc<Door>, stream: TcpStream, peer: SocketAddr, place: Arc<Place>) {
    let metrics = shared.settings.metrics.clone();
    metrics.connections.inc();
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "cannot switch off Nagle's algorithm");
    }
    if let Err(error) = look_after(&stream) {
        tracing::debug!(%peer, %error, "whether a client is gone will not be asked");
    }
    let client = Client { peer, server_name: None, secure: false, place };
    if door.port().tls {
        match Box::pin(tokio::time::timeout(HANDSHAKE, door.tls.accept(stream))).await {
            Ok(Ok(stream)) => {
                let server_name = stream.get_ref().1.server_name().map(str::to_ascii_lowercase);
                serve(shared, door, stream, Client { server_name, secure: true, ..client }).await;
            }
            Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake with the proxy failed"),
            Err(_) => tracing::debug!(%peer, "TLS handshake with the proxy took too long"),
        }
    } else {
        serve(shared, door, stream, client).await;
    }
    metrics.connections.dec();
}

fn look_after(stream: &TcpStream) -> nix::Result<()> {
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &SILENT_SECONDS)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &ASK_AGAIN_SECONDS)?;
    setsockopt(stream, sockopt::TcpKeepCount, &ASK_TIMES)
}

async fn serve<S>(shared: Shared, door: Arc<Door>, stream: S, client: Client)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let peer = client.peer;
    let client = Arc::new(client);
    let stream = TokioIo::new(Patient::new(stream));
    let closing = door.closing.clone();
    let tally = Arc::new(Tally::default());
    let counted = Arc::clone(&tally);
    let refused = shared.settings.metrics.refused.clone();
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (shared, door, client) = (shared.clone(), Arc::clone(&door), Arc::clone(&client));
        let begun = counted.begin();
        async move {
            let answer = request::answer(&shared, &door, &client, request).await;
            begun.answered();
            Ok::<_, Infallible>(answer)
        }
    });
    let rules = rules();
    let mut connection = pin!(rules.serve_connection_with_upgrades(stream, service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = tally.exceeded.cancelled() => {
            refused.inc();
            tracing::debug!(%peer, "a client of the proxy takes back what it asks for, again and again");
            Ok(())
        }
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(FAREWELL, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "a connection to the proxy ended");
    }
}

fn rules() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(MAX_HEAD).max_headers(MAX_HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .adaptive_window(true)
        .enable_connect_protocol()
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(64)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_PATIENCE);
    builder
}
