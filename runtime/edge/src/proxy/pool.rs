//! Connections to endpoints, of one thread.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;

use super::body::Outgoing;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a connection is kept without a request.
const IDLE: Duration = Duration::from_secs(60);
/// Idle connections per endpoint and thread.
const MOST_IDLE: usize = 128;
/// How often idle connections are looked through.
pub const SWEEP: Duration = Duration::from_secs(15);
/// How long an endpoint that refused a connection is tried last.
const SHUNNED: Duration = Duration::from_secs(1);
/// The largest head of an answer.
const MAX_HEAD: usize = 64 << 10;
const PING_EVERY: Duration = Duration::from_secs(30);

pub type Http1 = http1::SendRequest<Outgoing>;
pub type Http2 = http2::SendRequest<Outgoing>;

/// What is known of the endpoints.
#[derive(Default)]
pub struct Pools(Mutex<HashMap<SocketAddr, Pool>>);

#[derive(Default)]
struct Pool {
    /// Those that were used last are at the end.
    idle: Vec<(Http1, Instant)>,
    http2: Option<Http2>,
    shunned: Option<Instant>,
}

/// A connection that is in use, and where it goes afterwards.
pub struct Lease {
    sender: Http1,
    endpoint: SocketAddr,
    pools: Arc<Pools>,
}

impl Lease {
    pub fn new(sender: Http1, endpoint: SocketAddr, pools: Arc<Pools>) -> Self {
        Self { sender, endpoint, pools }
    }

    /// The answer was read to its end.
    pub fn give_back(self) {
        let Self { sender, endpoint, pools } = self;
        if sender.is_closed() {
            return;
        }
        let mut all = pools.all();
        // An endpoint that isn't known any more is gone.
        if let Some(pool) = all.get_mut(&endpoint)
            && pool.idle.len() < MOST_IDLE
        {
            pool.idle.push((sender, Instant::now()));
        }
    }
}

impl Pools {
    fn all(&self) -> MutexGuard<'_, HashMap<SocketAddr, Pool>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that waits for a request.
    pub fn take(&self, endpoint: SocketAddr) -> Option<Http1> {
        let mut all = self.all();
        let pool = all.get_mut(&endpoint)?;
        let mut at = pool.idle.len();
        while at > 0 {
            at -= 1;
            let (sender, _) = &pool.idle[at];
            if sender.is_closed() {
                pool.idle.remove(at);
            } else if sender.is_ready() {
                return Some(pool.idle.remove(at).0);
            }
            // Otherwise it was answered early, and its client still sends: that may take long.
        }
        None
    }

    /// The connection for many requests at once.
    pub fn shared(&self, endpoint: SocketAddr) -> Option<Http2> {
        let mut all = self.all();
        let pool = all.get_mut(&endpoint)?;
        pool.http2.take_if(|sender| sender.is_closed());
        pool.http2.clone()
    }

    /// A connection failed after it was idle: others that were idle as long have most likely ended, too.
    pub fn forget(&self, endpoint: SocketAddr) {
        if let Some(pool) = self.all().get_mut(&endpoint) {
            pool.idle.clear();
            pool.http2 = None;
        }
    }

    /// Those that refused a moment ago come last.
    pub fn sort(&self, endpoints: &mut [SocketAddr]) {
        if endpoints.len() < 2 {
            return;
        }
        let all = self.all();
        let now = Instant::now();
        let shunned = |at: &SocketAddr| all.get(at).and_then(|pool| pool.shunned).is_some_and(|until| until > now);
        if endpoints.iter().any(shunned) {
            endpoints.sort_by_key(shunned);
        }
    }

    /// An endpoint cannot be connected to.
    pub fn shun(&self, endpoint: SocketAddr) {
        self.all().entry(endpoint).or_default().shunned = Some(Instant::now() + SHUNNED);
    }

    /// Forgets all other endpoints.
    pub fn keep(&self, live: &HashSet<SocketAddr>) {
        self.all().retain(|endpoint, _| live.contains(endpoint));
    }

    /// Closes what was idle for long.
    pub fn sweep(&self) {
        for pool in self.all().values_mut() {
            pool.idle.retain(|(sender, since)| !sender.is_closed() && since.elapsed() < IDLE);
        }
    }

    /// A new connection for one request at a time.
    pub async fn connect(&self, endpoint: SocketAddr) -> io::Result<Http1> {
        let stream = dial(endpoint).await?;
        let mut builder = http1::Builder::new();
        builder.max_buf_size(MAX_HEAD);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        // What fails is told to who sends.
        tokio::spawn(connection.with_upgrades());
        let mut all = self.all();
        all.entry(endpoint).or_default().shunned = None;
        Ok(sender)
    }

    /// A new connection for many requests.
    pub async fn connect_shared(&self, endpoint: SocketAddr) -> io::Result<Http2> {
        let stream = dial(endpoint).await?;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .adaptive_window(true)
            .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
            .keep_alive_interval(PING_EVERY);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        tokio::spawn(connection);
        let mut all = self.all();
        let pool = all.entry(endpoint).or_default();
        pool.shunned = None;
        pool.http2 = Some(sender.clone());
        Ok(sender)
    }
}

async fn dial(endpoint: SocketAddr) -> io::Result<TcpStream> {
    let connecting = tokio::time::timeout(CONNECT, TcpStream::connect(endpoint));
    let stream = connecting.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
