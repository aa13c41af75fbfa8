//! The API server alone, without controllers or workers: `apiserver [DATA-DIR [ADDRESS:PORT]]`.
//!
//! Prints where the administrator's kubeconfig is, and serves until Ctrl-C.

use kube::runtime::WatchStreamExt;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use carob_gateway::{Config, Gateway, NodeDialer, NodeStream};
use carob_store::redb::{Options, RedbStore};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, ResourceExt as _};
use tokio_util::sync::CancellationToken;

/// There are no nodes.
struct NoNodes;

#[async_trait]
impl NodeDialer for NoNodes {
    async fn dial(&self, node: &str) -> std::io::Result<Box<dyn NodeStream>> {
        Err(std::io::Error::new(std::io::ErrorKind::NotConnected, format!("no worker runs on {node}")))
    }
}

/// What controllers would put into every namespace, without which there are no pods.
async fn furnish(client: kube::Client, ca: String) -> kube::Result<()> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let mut appearing =
        std::pin::pin!(kube::runtime::watcher(namespaces, kube::runtime::watcher::Config::default()).default_backoff());
    while let Some(event) = appearing.next().await {
        use kube::runtime::watcher::Event;
        let Ok(Event::InitApply(namespace) | Event::Apply(namespace)) = event else { continue };
        let name = namespace.name_any();
        if namespace.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let account: ServiceAccount = serde_json::from_value(serde_json::json!({ "metadata": { "name": "default" } }))
            .map_err(kube::Error::SerdeError)?;
        let authority = serde_json::json!({ "metadata": { "name": "kube-root-ca.crt" }, "data": { "ca.crt": ca } });
        let authority: ConfigMap = serde_json::from_value(authority).map_err(kube::Error::SerdeError)?;
        let _ = Api::namespaced(client.clone(), &name).create(&PostParams::default(), &account).await;
        let _ = Api::namespaced(client.clone(), &name).create(&PostParams::default(), &authority).await;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().unwrap_or_else(|| "apiserver-data".to_owned()));
    let address: SocketAddr = arguments.next().unwrap_or_else(|| "127.0.0.1:6443".to_owned()).parse()?;
    std::fs::create_dir_all(&dir)?;
    let store = RedbStore::open(dir.join("store.redb"), Options::default())?;
    let listener = TcpListener::bind(address)?;
    let address = listener.local_addr()?;
    let gateway = Gateway::new(Config {
        listen: vec![address],
        extra_sans: Vec::new(),
        pki_dir: dir.join("pki"),
        store: Arc::new(store),
        dialer: Arc::new(NoNodes),
        api_service: None,
        pods: None,
        service_account_issuer: "https://kubernetes.default.svc.cluster.local".to_owned(),
        settings: carob_gateway::Settings::default(),
        extensions: Vec::new(),
        max_body_bytes: 3 << 20,
    })
    .await?;
    let kubeconfig = dir.join("admin.kubeconfig");
    std::fs::write(&kubeconfig, gateway.admin_kubeconfig(&format!("https://{address}")))?;
    println!("{}", kubeconfig.display());
    let admin = gateway.client("system:serviceaccount:kube-system:furnisher", &["system:masters"]);
    let ca = gateway.ca_certificate();
    tokio::spawn(furnish(admin, ca));
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stop.cancel();
        }
    });
    Arc::new(gateway).serve(vec![listener], shutdown).await?;
    Ok(())
}
