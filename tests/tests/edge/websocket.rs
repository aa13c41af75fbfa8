//! WebSockets of clients that speak HTTP/2.

use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use carob_tests::pods::list;
use carob_tests::{Setup, eventually};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::ext::Protocol;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::ingress::{ingress, path, secret};
use crate::programs::{WEB_SOCKET, python};
use crate::{service, start, web};

type Sender = SendRequest<Empty<Bytes>>;

/// A connection of HTTP/2, over TLS if a certificate is expected.
async fn connect(at: &str, certificate: Option<&[u8]>) -> Option<Sender> {
    let port = if certificate.is_some() { 443 } else { 80 };
    let stream = tokio::net::TcpStream::connect((at, port)).await.ok()?;
    let Some(certificate) = certificate else { return shake(stream).await };
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(certificate.to_vec())).expect("a certificate");
    let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = versions.expect("versions").with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from("ws.test").expect("a name");
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()?;
    shake(stream).await
}

/// Begins with HTTP/2; the server must say of itself that it can open WebSockets.
async fn shake(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Option<Sender> {
    let (sender, mut connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.ok()?;
    let told = std::future::poll_fn(|cx| {
        let ended = Pin::new(&mut connection).poll(cx).is_ready();
        let is_told = connection.is_extended_connect_protocol_enabled();
        if ended || is_told { Poll::Ready(is_told) } else { Poll::Pending }
    });
    let told = tokio::time::timeout(Duration::from_secs(10), told).await;
    assert!(told.unwrap_or(false), "SETTINGS_ENABLE_CONNECT_PROTOCOL");
    tokio::spawn(connection);
    Some(sender)
}

async fn open(sender: &mut Sender, path: &str, protocol: &'static str) -> Option<Response<Incoming>> {
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri(format!("https://ws.test{path}"))
        .header("sec-websocket-version", "13")
        .header("sec-websocket-protocol", "chat")
        .header("origin", "https://ws.test")
        .extension(Protocol::from_static(protocol))
        .body(Empty::new())
        .expect("a request");
    sender.send_request(request).await.ok()
}

async fn get(sender: &mut Sender, path: &str) -> Option<(StatusCode, String)> {
    let request = Request::get(format!("https://ws.test{path}")).body(Empty::new()).expect("a request");
    let response = sender.send_request(request).await.ok()?;
    let status = response.status();
    let body = response.into_body().collect().await.ok()?.to_bytes();
    Some((status, String::from_utf8_lossy(&body).into_owned()))
}

#[test]
fn a_websocket_is_opened_by_http2_and_nothing_else_is() {
    let carob = start(&Setup { images: &["tools", "python"], ..Setup::default() });
    let (secret, certificate) = secret("cert", "ws.test");
    carob.apply(&list(&[
        python("ws", WEB_SOCKET),
        web("plain", "plain"),
        service("ws"),
        service("plain"),
        secret,
        ingress(
            "main",
            json!({"tls": [{"hosts": ["ws.test"], "secretName": "cert"}], "rules": [{"host": "ws.test", "http": {
                "paths": [path("/", "Prefix", "ws"), path("/plain", "Prefix", "plain"), path("/gone", "Prefix", "gone")]}}]}),
        ),
    ]));
    carob.wait("ingress/main", "jsonpath={.status.loadBalancer.ingress[0].ip}");
    let at = carob.jsonpath("ingress/main", ".status.loadBalancer.ingress[0].ip");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut sender = None;
    eventually("a plain request is answered", || {
        runtime
            .block_on(async {
                sender = connect(&at, Some(&certificate)).await;
                get(sender.as_mut()?, "/plain").await.filter(|(status, _)| *status == 200)
            })
            .is_some()
    });
    let mut sender = sender.expect("a connection");
    let mut opened = None;
    eventually("a WebSocket is opened", || {
        opened = runtime.block_on(open(&mut sender, "/chat", "websocket")).filter(|answer| answer.status() == 200);
        opened.is_some()
    });
    let first = opened.expect("an answer");
    for name in ["connection", "upgrade", "sec-websocket-accept"] {
        assert!(!first.headers().contains_key(name), "{:?}", first.headers());
    }
    runtime.block_on(async {
        let mut sockets = vec![TokioIo::new(hyper::upgrade::on(first).await.expect("a stream"))];
        // Another on the same connection, and requests between them.
        let second = open(&mut sender, "/chat", "websocket").await.expect("an answer");
        sockets.push(TokioIo::new(hyper::upgrade::on(second).await.expect("a stream")));
        for (number, socket) in sockets.iter_mut().enumerate() {
            let frame = format!("\u{1}\u{3}abcd{number:03}");
            socket.write_all(frame.as_bytes()).await.expect("it is open");
            let mut heard = vec![0; frame.len()];
            socket.read_exact(&mut heard).await.expect("an echo");
            assert_eq!(heard, frame.as_bytes());
        }
        let large = vec![7_u8; 1 << 20];
        let (mut reader, mut writer) = tokio::io::split(sockets.remove(0));
        let mut heard = vec![0; large.len()];
        let (written, read) = tokio::join!(writer.write_all(&large), reader.read_exact(&mut heard));
        written.and(read.map(drop)).expect("both ways at once");
        assert!(heard == large);
        writer.shutdown().await.expect("it is open");
        assert_eq!(reader.read(&mut [0; 1]).await.expect("its end"), 0, "the endpoint saw the end and ended");

        let status = |answer: Option<Response<Incoming>>| answer.map_or(0, |answer| answer.status().as_u16());
        assert_eq!(status(open(&mut sender, "/plain", "websocket").await), 502, "it speaks no WebSocket");
        assert_eq!(status(open(&mut sender, "/gone", "websocket").await), 503, "nobody is there");
        assert_eq!(status(open(&mut sender, "/chat", "connect-udp").await), 501);
        let tunnel = Request::connect("ws.test:443").body(Empty::new()).expect("a request");
        assert_eq!(status(sender.send_request(tunnel).await.ok()), 405, "the proxy is no tunnel");
        assert_eq!(get(&mut sender, "/plain").await.map(|(status, _)| status.as_u16()), Some(200));

        let mut plain = connect(&at, None).await.expect("a connection without TLS");
        assert!(get(&mut plain, "/plain").await.is_some());
        assert_eq!(status(open(&mut plain, "/chat", "websocket").await), 200);
        let mut still = [0; 9];
        sockets[0].write_all(b"\x81\x83abcd456").await.expect("it is open still");
        sockets[0].read_exact(&mut still).await.expect("an echo");
    });
}
