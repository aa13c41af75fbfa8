//! Connections to what requests are passed on to: TCP with or without TLS, or the stream to a node's worker.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use futures::future::BoxFuture;
use http::Uri;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::pki::Pair;
use crate::{NodeDialer, NodeStream};

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(30);
/// How long a connection is kept without a request.
const IDLE: Duration = Duration::from_secs(30);
/// How many connections to one place are kept without a request.
const KEPT: usize = 16;

/// Sends requests, over connections that it keeps.
pub(crate) type Sender = Client<Wires, Body>;

/// How connections are made.
#[derive(Clone)]
pub(crate) enum Wires {
    /// To a network address; of `https` with these rules, and the name that the server must prove to have (that of the
    /// address, if none is given).
    Network { tls: Arc<ClientConfig>, name: Option<ServerName<'static>> },
    /// To the worker of the node whose name is the address's host.
    Node(Arc<dyn NodeDialer>),
}

/// Whose word is taken for who a server is.
pub(crate) enum Trust<'a> {
    /// Whoever answers is the right one. For pods, which have no certificates that anybody could know.
    Anybody,
    /// PEM of the authorities.
    Authorities(&'a [u8]),
}

impl Wires {
    /// A sender over such connections.
    pub fn sender(self) -> Sender {
        Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(KEPT)
            .build(self)
    }

    async fn dial(self, to: Uri) -> io::Result<Wire> {
        let host = to.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        match self {
            Self::Node(dialer) => Ok(Wire(dialer.dial(&host).await?)),
            Self::Network { tls, name } => {
                let secure = to.scheme_str() == Some("https");
                let port = to.port_u16().unwrap_or(if secure { 443 } else { 80 });
                let stream = connect(&host, port).await?;
                if !secure {
                    return Ok(Wire(Box::new(stream)));
                }
                let name = match name {
                    Some(name) => name,
                    None => ServerName::try_from(host).map_err(io::Error::other)?,
                };
                Ok(Wire(Box::new(TlsConnector::from(tls).connect(name, stream).await?)))
            }
        }
    }
}

async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let place = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    // As Go's dialer says it.
    let failed = |why: String| io::Error::other(format!("dial tcp {place}: {why}"));
    match tokio::time::timeout(CONNECT, TcpStream::connect((host, port))).await {
        Ok(Ok(stream)) => {
            stream.set_nodelay(true)?;
            Ok(stream)
        }
        Ok(Err(error)) => Err(failed(match error.kind() {
            io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
            io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
            io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
            io::ErrorKind::TimedOut => "connect: connection timed out".to_owned(),
            _ => error.to_string(),
        })),
        Err(_) => Err(failed("i/o timeout".to_owned())),
    }
}

impl tower::Service<Uri> for Wires {
    type Response = TokioIo<Wire>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let wires = self.clone();
        Box::pin(async move { wires.dial(to).await.map(TokioIo::new) })
    }
}

/// A connection.
pub(crate) struct Wire(Box<dyn NodeStream>);

impl Connection for Wire {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));

/// The rules of TLS connections to servers whom one trusts like this, and to whom one shows `own`.
///
/// # Errors
/// What is wrong with the authorities or the certificate.
pub(crate) fn tls(trust: &Trust<'_>, own: Option<&Pair>) -> Result<Arc<ClientConfig>, String> {
    let builder = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = match trust {
        Trust::Anybody => builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified)),
        Trust::Authorities(pem) => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Authorities::read(pem)?))
        }
    };
    let config = match own.map(Pair::for_rustls) {
        None => builder.with_no_client_auth(),
        Some(Some((certificate, key))) => {
            builder.with_client_auth_cert(vec![certificate], key).map_err(|error| error.to_string())?
        }
        Some(None) => return Err("the client certificate is damaged".to_owned()),
    };
    Ok(Arc::new(config))
}

/// Takes the word of authorities, and that of a server whose own certificate stands among them, as Go does.
#[derive(Debug)]
struct Authorities {
    known: Vec<CertificateDer<'static>>,
    /// None if there are no authorities.
    chains: Option<Arc<WebPkiServerVerifier>>,
}

impl Authorities {
    fn read(pem: &[u8]) -> Result<Self, String> {
        let known: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        let known = known.map_err(|error| error.to_string())?;
        let mut roots = RootCertStore::empty();
        for authority in &known {
            roots.add(authority.clone()).map_err(|error| error.to_string())?;
        }
        if roots.is_empty() {
            return Ok(Self { known, chains: None });
        }
        let chains = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&PROVIDER)).build();
        Ok(Self { known, chains: Some(chains.map_err(|error| error.to_string())?) })
    }
}

impl ServerCertVerifier for Authorities {
    fn verify_server_cert(
        &self,
        server: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chains) = &self.chains else { return Err(CertificateError::UnknownIssuer.into()) };
        let chained = chains.verify_server_cert(server, others, name, ocsp, now);
        if chained.is_ok() || !self.known.iter().any(|known| **known == **server) {
            return chained;
        }
        verify_server_name(&ParsedCertificate::try_from(server)?, name)?;
        let (_, certificate) = X509Certificate::from_der(server).map_err(|_| CertificateError::BadEncoding)?;
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let validity = certificate.validity();
        if now < validity.not_before.timestamp() {
            return Err(CertificateError::NotValidYet.into());
        }
        if now > validity.not_after.timestamp() {
            return Err(CertificateError::Expired.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &PROVIDER.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &PROVIDER.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER.signature_verification_algorithms.supported_schemes()
    }
}

/// Takes everybody's word.
#[derive(Debug)]
struct Unverified;

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &PROVIDER.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &PROVIDER.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER.signature_verification_algorithms.supported_schemes()
    }
}
