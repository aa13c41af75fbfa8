//! The proxy: sockets, connections, requests. What belongs where it is told as a [`Port`]; of Kubernetes it knows nothing.
//!
//! Each core has a thread with an event loop, sockets and pools of connections of its own: a request, its answer and the
//! connections to both sides stay on one thread, and no thread waits for another. The kernel spreads connections.

mod affinity;
pub mod body;
mod certificate;
mod connection;
pub mod headers;
mod metrics;
mod mirror;
mod patience;
mod pool;
mod request;
mod share;
mod websocket;
mod withdrawn;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::affinity::Affinities;
pub use self::metrics::Metrics;
use self::pool::Pools;
use self::share::{Place, Shares};
use crate::route::Port;

/// Connections that the kernel has taken and nobody has accepted yet.
const BACKLOG: u32 = 4096;
/// How long connections have to end when a socket is closed.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long after it failed to accept a thread tries again: it is out of descriptors, most likely.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// What the threads have in common.
pub struct Settings {
    /// Whose word on `X-Forwarded-…` is taken.
    pub trusted: Vec<IpNet>,
    pub threads: usize,
    /// What the process may have open; clients may make the proxy open half as much.
    pub descriptors: usize,
    pub metrics: Metrics,
}

/// A socket, and what is served on it.
pub struct Door {
    /// The port as clients know it.
    pub number: u16,
    port: watch::Sender<Arc<Port>>,
    /// For clients, if they speak TLS here.
    tls: TlsAcceptor,
    closing: CancellationToken,
}

impl Door {
    /// What is served at this moment.
    fn port(&self) -> Arc<Port> {
        Arc::clone(&self.port.borrow())
    }
}

/// The threads with their sockets. They begin with the first one.
pub struct Proxy {
    settings: Arc<Settings>,
    threads: OnceLock<Vec<Thread>>,
    doors: Mutex<HashMap<(SocketAddr, u16), Arc<Door>>>,
    /// All endpoints that are in use.
    live: watch::Sender<Arc<HashSet<SocketAddr>>>,
    affinities: Arc<Affinities>,
    conversations: TaskTracker,
}

struct Thread {
    orders: mpsc::UnboundedSender<Listen>,
}

/// To listen at an address.
struct Listen {
    door: Arc<Door>,
    address: SocketAddr,
    /// Where it does.
    outcome: oneshot::Sender<io::Result<SocketAddr>>,
}

impl Proxy {
    pub fn new(settings: Settings) -> Self {
        Self {
            settings: Arc::new(settings),
            threads: OnceLock::new(),
            doors: Mutex::default(),
            live: watch::Sender::default(),
            affinities: Arc::default(),
            conversations: TaskTracker::new(),
        }
    }

    /// Listens at an address (port 0: any) for what clients know as port `number`. Gives the address.
    ///
    /// # Errors
    /// If the address can't be had.
    pub async fn open(&self, address: SocketAddr, number: u16) -> io::Result<SocketAddr> {
        // The threads share a port among themselves; the kernel would let another process have a share as well.
        if address.port() != 0 {
            drop(std::net::TcpListener::bind(address)?);
        }
        let port = watch::Sender::default();
        let tls = certificate::acceptor(port.subscribe()).map_err(io::Error::other)?;
        let door = Arc::new(Door { number, port, tls, closing: CancellationToken::new() });
        let mut bound = address;
        for thread in self.threads() {
            let (outcome, answer) = oneshot::channel();
            let order = Listen { door: Arc::clone(&door), address: bound, outcome };
            let ended = || io::Error::other("a thread of the proxy has ended");
            let sent = thread.orders.send(order).map_err(|_| ended());
            let listening = match sent {
                Ok(()) => answer.await.unwrap_or_else(|_| Err(ended())),
                Err(error) => Err(error),
            };
            match listening {
                Ok(at) => bound = at,
                Err(error) => {
                    door.closing.cancel();
                    return Err(error);
                }
            }
        }
        self.doors().insert((bound, number), door);
        Ok(bound)
    }

    /// Serves this from now on at a door.
    pub fn serve(&self, at: SocketAddr, number: u16, port: Arc<Port>) {
        if let Some(door) = self.doors().get(&(at, number)) {
            door.port.send_replace(port);
        }
    }

    /// Listens no more at an address.
    pub fn close(&self, at: SocketAddr, number: u16) {
        if let Some(door) = self.doors().remove(&(at, number)) {
            door.closing.cancel();
        }
    }

    /// Connections to all other endpoints are of no use any more.
    pub fn keep(&self, endpoints: HashSet<SocketAddr>) {
        self.live.send_if_modified(|live| {
            let changed = **live != endpoints;
            *live = Arc::new(endpoints);
            changed
        });
    }

    /// Ends; what is under way has a moment.
    pub async fn stop(&self) {
        for (_, door) in self.doors().drain() {
            door.closing.cancel();
        }
        self.conversations.close();
        if tokio::time::timeout(FAREWELL, self.conversations.wait()).await.is_err() {
            tracing::info!("some connections to the proxy did not end in time");
        }
    }

    fn doors(&self) -> std::sync::MutexGuard<'_, HashMap<(SocketAddr, u16), Arc<Door>>> {
        self.doors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn threads(&self) -> &[Thread] {
        self.threads.get_or_init(|| (0..self.settings.threads.max(1)).filter_map(|index| self.thread(index)).collect())
    }

    fn thread(&self, index: usize) -> Option<Thread> {
        let (orders, queue) = mpsc::unbounded_channel();
        let shared = Shared {
            settings: Arc::clone(&self.settings),
            pools: Arc::default(),
            shares: Arc::new(Shares::new(self.settings.descriptors / 2 / self.settings.threads.max(1))),
            affinities: Arc::clone(&self.affinities),
            conversations: self.conversations.clone(),
        };
        let live = self.live.subscribe();
        let queue = Arc::new(tokio::sync::Mutex::new(queue));
        // Who begins again goes on with what is listened at.
        let follow = move || shared.clone().follow(Arc::clone(&queue), live.clone());
        let body = move || match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(carob_keep::keep("proxy", CancellationToken::new(), follow)),
            Err(error) => tracing::error!(%error, "a thread of the proxy has no event loop"),
        };
        match std::thread::Builder::new().name(format!("edge-{index}")).spawn(body) {
            Ok(_) => Some(Thread { orders }),
            Err(error) => {
                tracing::error!(%error, "the proxy has a thread less");
                None
            }
        }
    }
}

/// What the connections of one thread share.
#[derive(Clone)]
struct Shared {
    settings: Arc<Settings>,
    pools: Arc<Pools>,
    shares: Arc<Shares>,
    /// All threads' together: a client's connections may be on any of them.
    affinities: Arc<Affinities>,
    conversations: TaskTracker,
}

impl Shared {
    /// Does what the thread is told, until nobody is left to tell it anything.
    async fn follow(
        self,
        orders: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Listen>>>,
        mut live: watch::Receiver<Arc<HashSet<SocketAddr>>>,
    ) {
        let mut orders = orders.lock().await;
        let mut sweep = tokio::time::interval(pool::SWEEP);
        loop {
            tokio::select! {
                order = orders.recv() => {
                    let Some(Listen { door, address, outcome }) = order else { return };
                    let listener = listen(address);
                    let at = listener.as_ref().map_err(copy).and_then(TcpListener::local_addr);
                    if let Ok(listener) = listener {
                        let (shared, listener, closing) = (self.clone(), Arc::new(listener), door.closing.clone());
                        let accept = move || shared.clone().accept(Arc::clone(&listener), Arc::clone(&door));
                        tokio::spawn(carob_keep::keep("accepting", closing, accept));
                    }
                    // Who asked may be gone: the door is closed then.
                    let _ = outcome.send(at);
                }
                Ok(()) = live.changed() => self.pools.keep(&live.borrow_and_update()),
                _ = sweep.tick() => self.pools.sweep(),
            }
        }
    }

    /// A place for a client's connection or request; none if there are too many.
    fn place(&self, peer: IpAddr) -> Option<Arc<Place>> {
        let place = self.shares.take(peer, headers::is_trusted(peer, &self.settings.trusted));
        if place.is_none() {
            self.settings.metrics.refused.inc();
        }
        place.map(Arc::new)
    }

    /// Until the door is closed.
    async fn accept(self, listener: Arc<TcpListener>, door: Arc<Door>) {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    // A socket of all addresses shows those of IPv4 as addresses of IPv6.
                    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                    // Who has too many is closed at once.
                    let Some(place) = self.place(peer.ip()) else { continue };
                    let talk = connection::converse(self.clone(), Arc::clone(&door), stream, peer, place);
                    self.conversations.spawn(talk);
                }
                Err(error) => {
                    tracing::warn!(%error, "the proxy cannot accept a connection");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }
}

/// A share of the port, which all threads have.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn copy(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    /// What is answered on a connection; none if it is closed.
    async fn ask(stream: &mut TcpStream) -> Option<String> {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.ok()?;
        let mut answer = vec![0; 1024];
        let length = stream.read(&mut answer).await.ok().filter(|length| *length > 0)?;
        Some(String::from_utf8_lossy(&answer[..length]).into_owned())
    }

    #[test]
    fn one_client_leaves_connections_to_others() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let settings = Settings { trusted: Vec::new(), threads: 1, descriptors: 256, metrics: Metrics::default() };
        let refused = settings.metrics.refused.clone();
        let proxy = Proxy::new(settings);
        runtime.block_on(async {
            let at = proxy.open(([127, 0, 0, 1], 0).into(), 80).await.unwrap();
            let mut mine = Vec::new();
            // The last place is for a request.
            for _ in 0..31 {
                let mut stream = TcpStream::connect(at).await.unwrap();
                assert!(ask(&mut stream).await.unwrap().contains("404"));
                mine.push(stream);
            }
            let mut last = TcpStream::connect(at).await.unwrap();
            assert!(ask(&mut last).await.unwrap().contains("503"), "a place for it, none for a request");
            let mut over = TcpStream::connect(at).await.unwrap();
            assert_eq!(ask(&mut over).await, None);
            assert_eq!(refused.get(), 2);
            let other = TcpSocket::new_v4().unwrap();
            other.bind(([127, 0, 0, 2], 0).into()).unwrap();
            assert!(ask(&mut other.connect(at).await.unwrap()).await.unwrap().contains("404"));
            drop(last);
            // Its end is noticed a moment later.
            while !ask(&mut mine[0]).await.unwrap().contains("404") {}
            proxy.stop().await;
        });
    }
}
