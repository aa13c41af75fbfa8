//! Connections: TLS, HTTP/1.1 and HTTP/2, with limits against clients that are slow, greedy or many.

use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::body::Body;
use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::RootCertStore;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::activity::Activity;
use crate::aside::Aside;
use crate::authn::front_proxy::FrontProxy;
use crate::authn::{Certified, Identity};
use crate::gathered::Sending;
use crate::patience::{Limits, Patient};
use crate::pki::Pki;
use crate::places::{Place, Places};
use crate::{Error, Server, routes};

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long the head of a request may take.
const HEAD: Duration = Duration::from_secs(90);
/// How long a connection may be without a request. Kubernetes' limit.
const IDLE: Duration = Duration::from_secs(90);
/// How long a client may be silent or deaf.
const LIMITS: Limits = Limits { first_bytes: Duration::from_secs(15), stall: Duration::from_secs(60) };
/// What an HTTP/2 connection begins with, in bytes. Of HTTP/1.1 the first is waited for; [`HEAD`] is for the rest.
const PREFACE: usize = 24;
/// The largest head.
const MAX_HEAD: usize = 64 << 10;
const MAX_HEADERS: usize = 128;
/// HTTP/2: requests of one connection at a time.
const MAX_STREAMS: u32 = 512;
/// HTTP/2: how often a silent connection is asked whether it lives, and how long it has for the answer.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_PATIENCE: Duration = Duration::from_secs(15);
/// How long running requests have to end when the server stops.
const FAREWELL: Duration = Duration::from_secs(10);

/// Put on requests of a network connection: from where it comes.
#[derive(Clone, Copy)]
pub(crate) struct Peer(pub IpAddr);

/// What the server shows of itself; it changes when it is renewed.
#[derive(Debug)]
pub(crate) struct Shown(RwLock<Arc<CertifiedKey>>);

impl Shown {
    pub fn new(pki: &Pki) -> Result<Self, Error> {
        Ok(Self(RwLock::new(Arc::new(certified(pki)?))))
    }

    /// Shows these to whoever comes from now on.
    pub fn renew(&self, pki: &Pki) -> Result<(), Error> {
        let certified = Arc::new(certified(pki)?);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = certified;
        Ok(())
    }

    fn now(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.now())
    }
}

fn certified(pki: &Pki) -> Result<CertifiedKey, Error> {
    let general = |text: &str| Error::Tls(rustls::Error::General(text.to_owned()));
    let (certificate, key) = pki.server.for_rustls().ok_or_else(|| general("the server's certificate is damaged"))?;
    let ca = CertificateDer::from_pem_slice(pki.ca_certificate.as_bytes())
        .map_err(|_| general("the authority's certificate is damaged"))?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    CertifiedKey::from_der(vec![certificate, ca], key, &provider).map_err(Error::Tls)
}

/// Serves until `shutdown`.
pub(crate) async fn serve(
    server: &Arc<Server>,
    pki: &Pki,
    shown: Arc<Shown>,
    listeners: Vec<std::net::TcpListener>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let acceptor = TlsAcceptor::from(Arc::new(tls(pki, shown)?));
    let proxies = verifier(&[&pki.front_proxy_ca])?;
    let conversations = TaskTracker::new();
    let places = Places::new(server.metrics.connections.clone());
    let mut accepting = tokio::task::JoinSet::new();
    for listener in listeners {
        listener.set_nonblocking(true).map_err(Error::Listen)?;
        let listener = TcpListener::from_std(listener).map_err(Error::Listen)?;
        let door = Door {
            server: Arc::clone(server),
            acceptor: acceptor.clone(),
            proxies: Arc::clone(&proxies),
            conversations: conversations.clone(),
            places: places.clone(),
        };
        accepting.spawn(door.accept(listener, shutdown.clone()));
    }
    tokio::select! {
        () = shutdown.cancelled() => {}
        // Only by a panic: nobody would be let in any more.
        Some(ended) = accepting.join_next() => {
            let why = ended.err().map_or_else(|| "a listener has ended".to_owned(), |panic| panic.to_string());
            return Err(Error::Listen(std::io::Error::other(why)));
        }
    }
    accepting.join_all().await;
    // Watches and other long requests end now; the rest may finish.
    server.stopping.cancel();
    conversations.close();
    if tokio::time::timeout(FAREWELL, conversations.wait()).await.is_err() {
        tracing::info!("some connections did not end in time");
    }
    Ok(())
}

fn tls(pki: &Pki, shown: Arc<Shown>) -> Result<rustls::ServerConfig, Error> {
    let verifier = verifier(&[&pki.ca_certificate, &pki.front_proxy_ca])?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Error::Tls)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(shown);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Verifies clients' certificates by these authorities.
fn verifier(authorities: &[&str]) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let general = |text: &str| Error::Tls(rustls::Error::General(text.to_owned()));
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        let authority = CertificateDer::from_pem_slice(authority.as_bytes())
            .map_err(|_| general("an authority's certificate is damaged"))?;
        roots.add(authority).map_err(Error::Tls)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .allow_unauthenticated()
        .build()
        .map_err(|error| general(&error.to_string()))
}

/// Where connections come in.
struct Door {
    server: Arc<Server>,
    acceptor: TlsAcceptor,
    /// Knows the certificates of front proxies.
    proxies: Arc<dyn ClientCertVerifier>,
    conversations: TaskTracker,
    places: Places,
}

impl Door {
    async fn accept(self, listener: TcpListener, shutdown: CancellationToken) {
        loop {
            let free = tokio::select! {
                () = shutdown.cancelled() => return,
                free = self.places.free() => free,
            };
            let Some(free) = free else { return };
            let (stream, peer) = tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of descriptors, most likely: others must close first.
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
            };
            let Some(place) = self.places.take(free, peer.ip()) else {
                tracing::debug!(%peer, "too many connections");
                continue;
            };
            let (server, proxies) = (Arc::clone(&self.server), Arc::clone(&self.proxies));
            self.conversations.spawn(converse(server, self.acceptor.clone(), proxies, stream, peer, place));
        }
    }
}

/// One connection from its handshake to its end.
async fn converse(
    server: Arc<Server>,
    acceptor: TlsAcceptor,
    proxies: Arc<dyn ClientCertVerifier>,
    stream: TcpStream,
    peer: SocketAddr,
    place: Place,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "cannot switch off Nagle's algorithm");
    }
    // What a connection needs while it waits for the next event stays small: thousands of them do nothing else. So the
    // handshake, each answer's making and the TLS state have places of their own, and the first two are given back.
    let stream = match Box::pin(tokio::time::timeout(HANDSHAKE, acceptor.accept(stream))).await {
        Ok(Ok(stream)) => Box::new(stream),
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "TLS handshake failed");
            return;
        }
        Err(_) => {
            tracing::debug!(%peer, "TLS handshake took too long");
            return;
        }
    };
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let proxy = chain
        .split_first()
        .filter(|(certificate, rest)| proxies.verify_client_cert(certificate, rest, UnixTime::now()).is_ok());
    let proxy = proxy.map(|(certificate, _)| FrontProxy::of_certificate(certificate));
    let certified = chain.first().filter(|_| proxy.is_none()).and_then(|der| Identity::of_certificate(der));
    let certified = certified.map(Certified);
    drop(proxies);
    // Over TLS the version is agreed upon beforehand.
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let activity = Arc::<Activity>::default();
    let stream = Patient::new(stream, if http2 { PREFACE } else { 1 }, LIMITS, Arc::clone(&activity), Some(place));
    let stopping = server.stopping.clone();
    let requests = Arc::clone(&activity);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Peer(peer.ip()));
        if let Some(certified) = &certified {
            request.extensions_mut().insert(certified.clone());
        }
        if let Some(proxy) = proxy {
            request.extensions_mut().insert(proxy);
        }
        let (running, activity) = (requests.begin(), Arc::clone(&requests));
        let answer = Box::pin(routes::handle(Arc::clone(&server), request));
        async move {
            let answer = answer.await;
            if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
                activity.becomes_tunnel();
            }
            Ok::<_, std::convert::Infallible>(running.until_sent(answer))
        }
    });
    let rests = Arc::clone(&activity);
    let ending = Aside::new(async move {
        tokio::select! {
            () = stopping.cancelled() => {}
            () = rests.rests_for(IDLE) => {}
        }
    });
    // Also with a client that never takes its leave.
    let gone = activity.rests_for(IDLE + FAREWELL);
    let ended = if http2 {
        let connection = Sending::new(stream, |stream| http2_rules().serve_connection(TokioIo::new(stream), service));
        drive(connection, |sending| Pin::new(&mut sending.get_mut().connection).graceful_shutdown(), ending, gone).await
    } else {
        let connection = http1_rules().serve_connection(TokioIo::new(stream), service).with_upgrades();
        drive(connection, http1::UpgradeableConnection::graceful_shutdown, ending, gone).await.map_err(Into::into)
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "connection ended");
    }
}

fn http1_rules() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(MAX_HEAD).max_headers(MAX_HEADERS);
    builder
}

fn http2_rules() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(64)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_PATIENCE);
    builder
}

/// Runs a connection; when it is `ending`, its running requests are the last, and nothing more is expected of it when
/// it is `gone`.
async fn drive<E, C: Future<Output = Result<(), E>>>(
    connection: C,
    farewell: impl FnOnce(Pin<&mut C>),
    ending: impl Future<Output = ()>,
    gone: impl Future<Output = ()>,
) -> Result<(), E> {
    let mut connection = pin!(connection);
    tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = ending => {
            farewell(connection.as_mut());
            tokio::select! {
                ended = connection => ended,
                () = gone => Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewed_certificate_is_shown_without_a_restart() {
        let folder = tempfile::tempdir().expect("a directory");
        let pki = Pki::open(folder.path(), &[]).expect("made");
        let shown = Shown::new(&pki).expect("shown");
        let first = shown.now();
        let renewed = Pki::open(folder.path(), &["another.name".into()]).expect("renewed");
        shown.renew(&renewed).expect("shown");
        assert_ne!(shown.now().cert[0], first.cert[0]);
        assert_eq!(shown.now().cert[0], renewed.server.for_rustls().expect("a pair").0);
        assert_eq!(shown.now().cert[1], first.cert[1], "of the same authority");
    }
}
