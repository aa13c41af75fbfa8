//! A client that keeps to no rules: bytes over TLS, as an administrator.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use carob_tests::Carob;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// What the administrator's kubeconfig holds.
#[derive(Clone)]
pub struct Client {
    connector: TlsConnector,
    port: u16,
}

/// A connection.
pub struct Connection(pub TlsStream<TcpStream>);

/// An answer to a request.
#[derive(Debug)]
pub struct Answer {
    /// HTTP's status code.
    pub status: u16,
    /// The body, if its length was told.
    pub body: String,
}

impl Client {
    /// A client that speaks `protocol` (`http/1.1` or `h2`).
    pub fn new(carob: &Carob, protocol: &str) -> Self {
        let kubeconfig = std::fs::read_to_string(carob.kubeconfig()).expect("a kubeconfig");
        let pem = |name: &str| {
            let line = kubeconfig.lines().find_map(|line| line.split_once(name)).expect("it is there").1;
            STANDARD.decode(line.trim_matches([' ', '"', ':', ',', '}'])).expect("base64")
        };
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(&pem("certificate-authority-data")) {
            roots.add(authority.expect("a certificate")).expect("an authority");
        }
        let chain = pem("client-certificate-data");
        let chain = CertificateDer::pem_slice_iter(&chain).map(|found| found.expect("a certificate")).collect();
        let key = PrivateKeyDer::from_pem_slice(&pem("client-key-data")).expect("a key");
        let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .expect("a certificate with its key");
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        Self { connector: TlsConnector::from(Arc::new(config)), port: carob.port() }
    }

    /// Opens a socket and says nothing.
    pub async fn knock(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).await.expect("somebody listens")
    }

    /// Opens a connection.
    pub async fn connect(&self) -> Connection {
        let name = ServerName::try_from("127.0.0.1").expect("an address");
        Connection(self.connector.connect(name, self.knock().await).await.expect("a handshake"))
    }

    /// One request on a connection of its own.
    pub async fn send(&self, head: &str, body: &[u8]) -> Answer {
        self.connect().await.ask(head, body).await
    }
}

impl Connection {
    /// Sends a request and reads its answer. `head` is the first line and headers beside `host` and `content-length`.
    pub async fn ask(&mut self, head: &str, body: &[u8]) -> Answer {
        let head = format!("{head}\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
        // Who refuses a large head or body needn't read it: the answer tells.
        let _ = self.0.write_all(head.as_bytes()).await;
        let _ = self.0.write_all(body).await;
        let _ = self.0.flush().await;
        self.answer().await
    }

    /// Reads an answer whose length is told.
    async fn answer(&mut self) -> Answer {
        let mut seen = Vec::new();
        let mut wanted = None;
        let mut piece = vec![0; 16 << 10];
        while wanted.is_none_or(|wanted| seen.len() < wanted) {
            let read = self.0.read(&mut piece).await.unwrap_or(0);
            if read == 0 {
                break;
            }
            seen.extend_from_slice(&piece[..read]);
            if wanted.is_none()
                && let Some(end) = seen.windows(4).position(|four| four == b"\r\n\r\n")
            {
                let head = String::from_utf8_lossy(&seen[..end]).to_lowercase();
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                wanted = Some(end + 4 + length.and_then(|length| length.parse::<usize>().ok()).unwrap_or(0));
            }
        }
        let text = String::from_utf8_lossy(&seen).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split_whitespace().nth(1).and_then(|code| code.parse().ok());
        Answer { status: status.unwrap_or_else(|| panic!("no HTTP: {text:?}")), body: body.to_owned() }
    }
}
