//! A server of JSON over TLS on loopback, as webhooks and identity providers are.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls_pki_types::PrivateKeyDer;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, rustls};

/// A running server.
pub struct Server {
    /// Where it is.
    pub address: SocketAddr,
    /// PEM of the authority that vouches for it.
    pub authority: String,
}

impl Server {
    /// Starts one: the answer to a path and a body (null if there is none) is made by `answer`.
    pub async fn start(answer: impl Fn(&str, Value) -> Value + Send + Sync + 'static) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("a configuration");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let answer = Arc::new(answer);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, answer) = (acceptor.clone(), answer.clone());
                // A client that goes away is no business of ours.
                tokio::spawn(async move { serve(acceptor, stream, &*answer).await.ok() });
            }
        });
        Self { address, authority: made.cert.pem() }
    }

    /// A URL on it.
    pub fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }
}

/// Answers requests of one connection until it ends.
async fn serve(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    answer: &(dyn Fn(&str, Value) -> Value + Sync),
) -> io::Result<()> {
    let mut stream = BufReader::new(acceptor.accept(stream).await?);
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            match line.trim() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let length = lines
            .iter()
            .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        stream.read_exact(&mut body).await?;
        let path = lines.first().and_then(|line| line.split(' ').nth(1)).unwrap_or("/");
        let text = answer(path, serde_json::from_slice(&body).unwrap_or_default()).to_string();
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", text.len());
        stream.write_all((head + &text).as_bytes()).await?;
        stream.flush().await?;
    }
}
