//! The server over real TLS: certificates, HTTP/1.1 and HTTP/2, tokens, limits, streams to a node.

mod support;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use async_trait::async_trait;
use carob_gateway::{NodeDialer, NodeStream};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, ServiceAccount};
use kube::api::{DeleteParams, ListParams, LogParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::json;
use support::Cluster;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A served cluster; it stops when dropped.
struct Served {
    cluster: Cluster,
    address: SocketAddr,
    _stop: DropGuard,
}

fn serve(cluster: Cluster) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let shutdown = CancellationToken::new();
    tokio::spawn(Arc::clone(&cluster.gateway).serve(vec![listener], shutdown.clone()));
    Served { cluster, address, _stop: shutdown.drop_guard() }
}

impl Served {
    fn kubeconfig(&self) -> Kubeconfig {
        let text = self.cluster.gateway.admin_kubeconfig(&format!("https://{}", self.address));
        Kubeconfig::from_yaml(&text).expect("a kubeconfig")
    }

    async fn client(&self) -> Client {
        let config = Config::from_custom_kubeconfig(self.kubeconfig(), &KubeConfigOptions::default()).await;
        Client::try_from(config.expect("a configuration")).expect("a client")
    }

    /// A connection without a client certificate.
    async fn connect(&self) -> TlsStream<TcpStream> {
        self.connect_with(&[]).await
    }

    /// The same, offering these protocols.
    async fn connect_with(&self, protocols: &[&[u8]]) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        let ca = self.cluster.gateway.ca_certificate();
        roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).expect("PEM")).expect("a root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let tcp = TcpStream::connect(self.address).await.expect("connected");
        let name = ServerName::try_from("localhost").expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await.expect("TLS")
    }

    /// What the server answers to these bytes until it closes.
    async fn exchange(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }
}

#[tokio::test]
async fn the_admin_kubeconfig_gives_everything_and_a_stranger_gets_the_version_only() {
    let served = serve(Cluster::new().await);
    let maps: Api<ConfigMap> = Api::namespaced(served.client().await, "default");
    maps.list(&ListParams::default()).await.expect("listed");
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let version = served.exchange(&get("/version")).await;
    assert!(version.starts_with("HTTP/1.1 200") && version.contains("+carob"), "{version}");
    let pods = served.exchange(&get("/api/v1/pods")).await;
    assert!(pods.starts_with("HTTP/1.1 403") && pods.contains("system:anonymous"), "{pods}");
}

#[tokio::test]
async fn http2_is_spoken_where_it_was_agreed_upon() {
    let served = serve(Cluster::new().await);
    let stream = hyper_util::rt::TokioIo::new(served.connect_with(&[b"h2"]).await);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    let request = http::Request::get("https://localhost/version").body(axum::body::Body::empty()).expect("a request");
    let answer = sender.send_request(request).await.expect("answered");
    assert_eq!((answer.status().as_u16(), answer.version()), (200, http::Version::HTTP_2));
    assert!(answer.headers().contains_key("content-length"), "{answer:?}");
}

#[tokio::test]
async fn a_stranger_cannot_claim_to_be_inside_or_somebody_else() {
    let served = serve(Cluster::new().await);
    let answer = served
        .exchange(
            "GET /api/v1/pods HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Remote-User: admin\r\n\
             X-Remote-Group: system:masters\r\nImpersonate-User: admin\r\nImpersonate-Group: system:masters\r\n\r\n",
        )
        .await;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("cannot impersonate"), "{answer}");
    let answer = served
        .exchange(
            "GET /version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer x.y.z\r\n\r\n",
        )
        .await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
}

#[tokio::test]
async fn a_service_accounts_token_holds_while_the_account_exists() {
    let served = serve(Cluster::new().await);
    let client = served.cluster.admin();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    let account = serde_json::from_value(json!({ "metadata": { "name": "robot" } })).expect("an account");
    accounts.create(&PostParams::default(), &account).await.expect("made");
    let request = http::Request::post("/api/v1/namespaces/default/serviceaccounts/robot/token")
        .header("content-type", "application/json")
        .body(b"{}".to_vec())
        .expect("a request");
    let answer: serde_json::Value = client.request(request).await.expect("a token");
    let token = answer["status"]["token"].as_str().expect("text");
    let get = |path: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n")
    };
    assert!(served.exchange(&get("/apis")).await.starts_with("HTTP/1.1 200"));
    let refused = served.exchange(&get("/api/v1/namespaces/default/secrets")).await;
    assert!(refused.contains("system:serviceaccount:default:robot"), "{refused}");
    accounts.delete("robot", &kube::api::DeleteParams::default()).await.expect("deleted");
    assert!(served.exchange(&get("/apis")).await.starts_with("HTTP/1.1 401"));
}

#[tokio::test]
async fn a_body_over_the_limit_is_413() {
    let served = serve(Cluster::new().await);
    let maps: Api<ConfigMap> = Api::namespaced(served.client().await, "default");
    let large: ConfigMap =
        serde_json::from_value(json!({ "metadata": { "name": "large" }, "data": { "k": "x".repeat((3 << 20) + 1) } }))
            .expect("a ConfigMap");
    let kube::Error::Api(status) = maps.create(&PostParams::default(), &large).await.expect_err("refused") else {
        panic!("no answer");
    };
    assert_eq!(status.code, 413);
}

#[tokio::test]
async fn an_endless_head_is_refused() {
    let served = serve(Cluster::new().await);
    let head = format!("GET /version HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(200 << 10));
    let answer = served.exchange(&head).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
}

/// A worker that answers every connection with these bytes, then echoes.
struct Scripted(&'static str);

#[async_trait]
impl NodeDialer for Scripted {
    async fn dial(&self, _: &str) -> std::io::Result<Box<dyn NodeStream>> {
        let (near, far) = tokio::io::duplex(64 << 10);
        let answer = self.0;
        tokio::spawn(async move {
            let (mut reader, mut writer) = tokio::io::split(far);
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(reader.read_u8().await?);
            }
            writer.write_all(answer.as_bytes()).await?;
            tokio::io::copy(&mut reader, &mut writer).await
        });
        Ok(Box::new(near))
    }
}

async fn with_running_pod(worker: &'static str) -> Served {
    let served = serve(Cluster::with_dialer(Arc::new(Scripted(worker))).await);
    let client = served.cluster.admin();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    let account = serde_json::from_value(json!({ "metadata": { "name": "default" } })).expect("an account");
    accounts.create(&PostParams::default(), &account).await.expect("made");
    let pods: Api<Pod> = Api::namespaced(client, "default");
    let pod = serde_json::from_value(json!({ "metadata": { "name": "p" },
        "spec": { "nodeName": "n", "containers": [{ "name": "c", "image": "x" }] } }))
    .expect("a Pod");
    pods.create(&PostParams::default(), &pod).await.expect("made");
    served
}

fn exec(token: &str) -> String {
    format!(
        "GET /api/v1/namespaces/default/pods/p/exec?command=sh&stdin=true HTTP/1.1\r\nHost: localhost\r\n\
         Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{token}\r\n"
    )
}

/// A connection of the administrator, whose certificate is in the kubeconfig.
async fn admin_connection(served: &Served) -> TlsStream<TcpStream> {
    use base64::Engine as _;
    let text = served.cluster.gateway.admin_kubeconfig("https://localhost");
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name)).expect("a field");
        base64::engine::general_purpose::STANDARD.decode(line.trim()).expect("base64")
    };
    let (certificate, key) = (field("client-certificate-data:"), field("client-key-data:"));
    let mut roots = RootCertStore::empty();
    let ca = served.cluster.gateway.ca_certificate();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).expect("PEM")).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(&certificate).expect("PEM")],
            rustls_pki_types::PrivateKeyDer::from_pem_slice(&key).expect("PEM"),
        )
        .expect("a client");
    let tcp = TcpStream::connect(served.address).await.expect("connected");
    let name = ServerName::try_from("localhost").expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await.expect("TLS")
}

async fn read_head(stream: &mut TlsStream<TcpStream>) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a head"));
    }
    String::from_utf8(head).expect("text")
}

#[tokio::test]
async fn after_a_101_bytes_go_both_ways() {
    let worker = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let served = with_running_pod(worker).await;
    let mut stream = admin_connection(&served).await;
    stream.write_all(exec("").as_bytes()).await.expect("sent");
    let head = read_head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    // A binary message of four bytes.
    let message = b"\x82\x04ping";
    stream.write_all(message).await.expect("sent");
    let mut echo = [0; 6];
    stream.read_exact(&mut echo).await.expect("echoed");
    assert_eq!(&echo, message);
}

#[tokio::test]
async fn without_a_101_there_is_no_tunnel_and_no_redirect() {
    for worker in [
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 302 Found\r\nLocation: https://elsewhere/\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n",
    ] {
        let served = with_running_pod(worker).await;
        let mut stream = admin_connection(&served).await;
        // A second request is sent along, as a smuggler would: it must be answered by the gateway.
        let smuggled = "GET /version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(format!("{}{smuggled}", exec("")).as_bytes()).await.expect("sent");
        let head = read_head(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 502"), "{worker}: {head}");
        assert!(!head.to_ascii_lowercase().contains("location"), "{head}");
    }
}

#[tokio::test]
async fn a_stranger_reaches_no_worker() {
    let worker = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let served = with_running_pod(worker).await;
    let mut stream = served.connect().await;
    stream.write_all(exec("").as_bytes()).await.expect("sent");
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 403"));
}

#[tokio::test]
async fn a_log_is_passed_on_and_a_refusal_is_a_status() {
    let served = with_running_pod("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n").await;
    let pods: Api<Pod> = Api::namespaced(served.client().await, "default");
    assert_eq!(pods.logs("p", &LogParams::default()).await.expect("a log"), "hello\n");
    let served = with_running_pod("HTTP/1.1 400 Bad Request\r\nContent-Length: 7\r\n\r\nno, no\n").await;
    let pods: Api<Pod> = Api::namespaced(served.client().await, "default");
    let kube::Error::Api(status) = pods.logs("p", &LogParams::default()).await.expect_err("refused") else {
        panic!("no answer");
    };
    assert_eq!((status.code, status.message.as_str()), (400, "no, no"));
}

#[tokio::test]
async fn a_token_bound_to_a_node_holds_while_the_node_exists() {
    let served = serve(Cluster::new().await);
    let client = served.cluster.admin();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    let account = serde_json::from_value(json!({ "metadata": { "name": "s" } })).expect("an account");
    accounts.create(&PostParams::default(), &account).await.expect("made");
    let nodes: Api<Node> = Api::all(client.clone());
    let node = serde_json::from_value(json!({ "metadata": { "name": "n" } })).expect("a Node");
    nodes.create(&PostParams::default(), &node).await.expect("made");
    let body = json!({ "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1",
        "spec": { "boundObjectRef": { "kind": "Node", "apiVersion": "v1", "name": "n" } } });
    let request = http::Request::post("/api/v1/namespaces/default/serviceaccounts/s/token")
        .header("Content-Type", "application/json")
        .body(body.to_string().into_bytes())
        .expect("a request");
    let issued: serde_json::Value = client.request(request).await.expect("a token");
    let token = issued["status"]["token"].as_str().expect("a token");
    let ask = format!(
        "GET /version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    let answer = served.exchange(&ask).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    nodes.delete("n", &DeleteParams::default()).await.expect("deleted");
    let answer = served.exchange(&ask).await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
}
