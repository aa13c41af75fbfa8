//! API server and controllers, without workers: `control_plane [DATA-DIR [ADDRESS:PORT]]`.
//!
//! Prints where the administrator's kubeconfig is, and serves until Ctrl-C.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use carob_gateway::{Config, Gateway, NodeDialer, NodeStream};
use carob_store::redb::{Options, RedbStore};
use tokio_util::sync::CancellationToken;

/// There are no nodes.
struct NoNodes;

#[async_trait]
impl NodeDialer for NoNodes {
    async fn dial(&self, node: &str) -> std::io::Result<Box<dyn NodeStream>> {
        Err(std::io::Error::new(std::io::ErrorKind::NotConnected, format!("no worker runs on {node}")))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().unwrap_or_else(|| "control-plane-data".to_owned()));
    let address: SocketAddr = arguments.next().unwrap_or_else(|| "127.0.0.1:6443".to_owned()).parse()?;
    std::fs::create_dir_all(&dir)?;
    let listener = TcpListener::bind(address)?;
    let address = listener.local_addr()?;
    let gateway = Gateway::new(Config {
        listen: vec![address],
        extra_sans: Vec::new(),
        pki_dir: dir.join("pki"),
        store: Arc::new(RedbStore::open(dir.join("store.redb"), Options::default())?),
        dialer: Arc::new(NoNodes),
        pods: None,
        service_account_issuer: "https://kubernetes.default.svc".to_owned(),
        settings: carob_gateway::Settings::default(),
        extensions: Vec::new(),
        max_body_bytes: 3 << 20,
        api_service: None,
    })
    .await?;
    let kubeconfig = dir.join("admin.kubeconfig");
    std::fs::write(&kubeconfig, gateway.admin_kubeconfig(&format!("https://{address}")))?;
    println!("{}", kubeconfig.display());
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stop.cancel();
        }
    });
    let options = carob_controllers::Options { root_ca: gateway.ca_certificate(), ..Default::default() };
    let gateway = Arc::new(gateway);
    let server = Arc::clone(&gateway);
    let clients: carob_controllers::Clients = Arc::new(move |user, groups| server.client(user, groups));
    let controllers = tokio::spawn(carob_controllers::run(clients, options, shutdown.clone()));
    gateway.serve(vec![listener], shutdown).await?;
    controllers.await??;
    Ok(())
}
