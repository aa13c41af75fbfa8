//! Where a worker on another machine answers for its pods' logs and streams: the gateway, which shows who it is, and nobody
//! else.

use std::sync::{Arc, PoisonError, RwLock};
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
/// Connections at a time, so that strangers can't use up the worker's descriptors.
const CONNECTIONS: usize = 1024;

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
    loop {
        let place = Arc::clone(&places).acquire_owned().await?;
        let stream = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let (acceptor, router) = (acceptor.clone(), router.clone());
        tokio::spawn(async move {
            converse(stream, acceptor, router).await;
            drop(place);
        });
    }
}

async fn converse(stream: TcpStream, acceptor: TlsAcceptor, router: Router) {
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "a stranger is not answered"),
        Err(_) => return,
    };
    let who = tls::common_name(stream.get_ref().1.peer_certificates());
    if who.as_deref() != Some(carob_gateway::WORKER_CLIENT) {
        return tracing::warn!(?who, "somebody who isn't the gateway asked this worker");
    }
    let connection = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection of the gateway's ended");
    }
}
