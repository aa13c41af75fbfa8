//! Where a worker on another machine answers for its pods' logs and streams: the gateway, which shows who it is, and nobody
//! else.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::tls;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The gateway's connections at a time.
const CONNECTIONS: usize = 1024;
/// Connections of which nobody knows yet whose they are, so that strangers use up neither the worker's descriptors nor the
/// gateway's room: of all, and of one peer.
const STRANGERS: usize = 512;
const STRANGERS_OF_PEER: usize = 128;

/// What the worker shows; it changes when it is renewed.
#[derive(Debug, Default)]
pub struct Shown(RwLock<Option<Arc<CertifiedKey>>>);

impl Shown {
    /// Shows this one to whoever comes from now on.
    pub fn set(&self, certificate: &str, key: &str) -> Result<()> {
        let (chain, key) = tls::pair(certificate, key)?;
        let certified =
            CertifiedKey::from_der(chain, key, &tls::provider()).context("a certificate has another key")?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(certified));
        Ok(())
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Answers until told to stop. Before there is a certificate to be shown, nobody is answered.
pub async fn serve(
    listener: TcpListener,
    ca_pem: &str,
    shown: Arc<Shown>,
    router: Router,
    stop: CancellationToken,
) -> Result<()> {
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(tls::roots(ca_pem)?), tls::provider()).build()?;
    let config = ServerConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(shown);
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let strangers = Arc::<Strangers>::default();
    loop {
        let (stream, peer) = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => (stream, peer.ip()),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let Some(stranger) = strangers.admit(peer) else {
            tracing::debug!(%peer, "too many strangers knock");
            continue;
        };
        tokio::spawn(converse(stream, stranger, Arc::clone(&places), acceptor.clone(), router.clone()));
    }
}

/// Connections of which nobody knows yet whose they are, by their peers.
#[derive(Default)]
struct Strangers(Mutex<HashMap<IpAddr, usize>>);

/// A place among the strangers.
struct Stranger {
    peer: IpAddr,
    all: Arc<Strangers>,
}

impl Strangers {
    /// A place for one more of this peer, if there is one.
    fn admit(self: &Arc<Self>, peer: IpAddr) -> Option<Stranger> {
        let peer = site_of(peer);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.values().sum::<usize>() >= STRANGERS {
            return None;
        }
        let of_peer = all.entry(peer).or_default();
        if *of_peer >= STRANGERS_OF_PEER {
            return None;
        }
        *of_peer += 1;
        drop(all);
        Some(Stranger { peer, all: Arc::clone(self) })
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut all = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_peer) = all.get_mut(&self.peer) {
            *of_peer -= 1;
            if *of_peer == 0 {
                all.remove(&self.peer);
            }
        }
    }
}

/// Who has one IPv6 address has all of its /64.
fn site_of(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => IpAddr::from((u128::from(address) >> 64 << 64).to_be_bytes()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

async fn converse(
    stream: TcpStream,
    stranger: Stranger,
    places: Arc<Semaphore>,
    acceptor: TlsAcceptor,
    router: Router,
) {
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "a stranger is not answered"),
        Err(_) => return,
    };
    let who = tls::common_name(stream.get_ref().1.peer_certificates());
    if who.as_deref() != Some(carob_gateway::WORKER_CLIENT) {
        return tracing::warn!(?who, "somebody who isn't the gateway asked this worker");
    }
    drop(stranger);
    // Never closed.
    let Ok(_place) = places.acquire_owned().await else { return };
    let connection = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection of the gateway's ended");
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
    use rustls::ClientConfig;
    use rustls::pki_types::ServerName;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpSocket;
    use tokio_rustls::TlsConnector;

    use super::*;

    /// Connects from this address.
    async fn connect(from: &str, to: SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
        socket.connect(to).await.unwrap()
    }

    #[tokio::test]
    async fn the_gateway_is_answered_however_many_strangers_are_silent() {
        crate::site::raise_open_files();
        let ca_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key).unwrap().pem();
        let issuer = Issuer::from_ca_cert_pem(&ca, ca_key).unwrap();
        let leaf = |name: &str, usage: ExtendedKeyUsagePurpose| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
            params.subject_alt_names = vec![SanType::IpAddress("127.0.0.1".parse().unwrap())];
            params.extended_key_usages = vec![usage];
            (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
        };
        let shown = Arc::<Shown>::default();
        let (certificate, key) = leaf("system:node:far", ExtendedKeyUsagePurpose::ServerAuth);
        shown.set(&certificate, &key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", axum::routing::get(|| async { "hello" }));
        let (stop, authority) = (CancellationToken::new(), ca.clone());
        let (serving, told) = (stop.clone(), Arc::clone(&shown));
        let server = tokio::spawn(async move { serve(listener, &authority, told, router, serving).await });

        let mut silent = Vec::new();
        for _ in 0..=CONNECTIONS {
            silent.push(connect("127.0.0.2", address).await);
        }
        let (certificate, key) = leaf(carob_gateway::WORKER_CLIENT, ExtendedKeyUsagePurpose::ClientAuth);
        let (chain, key) = tls::pair(&certificate, &key).unwrap();
        let config = ClientConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(tls::roots(&ca).unwrap())
            .with_client_auth_cert(chain, key)
            .unwrap();
        let asked = async {
            let stream = connect("127.0.0.1", address).await;
            let name = ServerName::from(address.ip());
            let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        // Sooner than the first stranger is sent away.
        let answer = tokio::time::timeout(HANDSHAKE / 2, asked).await.expect("an answer");
        assert!(answer.ends_with("hello"), "{answer}");
        stop.cancel();
        server.await.unwrap().unwrap();
    }

    #[test]
    fn a_peer_has_some_places_and_all_have_some_more() {
        let strangers = Arc::<Strangers>::default();
        let admit = |peer: &str| strangers.admit(peer.parse().unwrap());
        let mut held: Vec<Stranger> = (0..STRANGERS_OF_PEER).map(|_| admit("2001:db8::1").unwrap()).collect();
        assert!(admit("2001:db8::2").is_none(), "the same site");
        let more = (0..).map_while(|peer| admit(&format!("192.0.{}.{}", peer / 256, peer % 256)));
        held.extend(more.take(STRANGERS));
        assert_eq!(held.len(), STRANGERS);
        held.pop();
        assert!(admit("198.51.100.1").is_some());
        held.clear();
        assert!(strangers.0.lock().unwrap().is_empty());
    }
}
