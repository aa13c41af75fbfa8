//! One connection to the API, as bare as it can be: whoever measures a server on its own cores must not be in its way.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use http::header::{CONTENT_TYPE, HOST};
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use kube::Config;
use kube::client::ConfigExt;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A TLS connection with the client certificate of a kubeconfig, that takes one request at a time.
pub struct Wire {
    sender: SendRequest<Full<Bytes>>,
    authority: String,
}

impl Wire {
    /// Connects.
    pub async fn connect(config: &Config) -> Result<Self> {
        let host = config.cluster_url.host().context("a server without a host")?.to_owned();
        let authority = config.cluster_url.authority().context("a server without a host")?.to_string();
        let stream = TcpStream::connect(&authority).await?;
        stream.set_nodelay(true)?;
        let tls = TlsConnector::from(Arc::new(config.rustls_client_config()?));
        let stream = tls.connect(ServerName::try_from(host)?, stream).await?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // It ends with the sender; what fails is told to who sends.
        tokio::spawn(connection);
        Ok(Self { sender, authority })
    }

    /// Sends a body as JSON (nothing if empty); gives the answer's body.
    ///
    /// # Errors
    /// Also where the answer is no success.
    pub async fn send(&mut self, method: Method, path: &str, body: Vec<u8>) -> Result<Bytes> {
        let mut request = Request::builder().method(method).uri(path).header(HOST, &self.authority);
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        self.sender.ready().await?;
        let answer = self.sender.send_request(request.body(Full::from(body))?).await?;
        let status = answer.status();
        let bytes = answer.into_body().collect().await?.to_bytes();
        if !status.is_success() {
            bail!("{path}: {status}: {}", String::from_utf8_lossy(&bytes));
        }
        Ok(bytes)
    }
}
