//! A gateway over an in-memory store, for tests.

use std::sync::Arc;

use async_trait::async_trait;
use carob_gateway::{Config, Gateway, NodeDialer, NodeStream};
use carob_store::redb::{Options, RedbStore};
use tempfile::TempDir;

/// No node can be reached.
pub struct NoNodes;

#[async_trait]
impl NodeDialer for NoNodes {
    async fn dial(&self, node: &str) -> std::io::Result<Box<dyn NodeStream>> {
        Err(std::io::Error::new(std::io::ErrorKind::NotConnected, format!("no worker runs on {node}")))
    }
}

/// A gateway and the directory that it lives in.
pub struct Cluster {
    pub gateway: Arc<Gateway>,
    _dir: TempDir,
}

impl Cluster {
    /// A new one whose nodes are reached through `dialer`.
    pub async fn with_dialer(dialer: Arc<dyn NodeDialer>) -> Self {
        Self::made(dialer, carob_gateway::Settings::default()).await
    }

    /// A new one with settings.
    #[allow(dead_code, reason = "not every test file has settings")]
    pub async fn with_settings(settings: serde_json::Value) -> Self {
        let settings = serde_json::from_value(settings).expect("settings");
        Self::made(Arc::new(NoNodes), settings).await
    }

    async fn made(dialer: Arc<dyn NodeDialer>, settings: carob_gateway::Settings) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = RedbStore::open(dir.path().join("store.redb"), Options::default()).expect("a store");
        let gateway = Gateway::new(Config {
            listen: Vec::new(),
            extra_sans: vec!["10.96.0.1".to_owned()],
            pki_dir: dir.path().join("pki"),
            store: Arc::new(store),
            dialer,
            api_service: None,
            pods: Some(carob_gateway::PodRange {
                whole: vec!["10.42.0.0/16".parse().expect("a range")],
                blocks: ["10.42.240.0/21", "10.42.248.0/21"].map(|block| vec![block.parse().expect("a range")]).into(),
            }),
            service_account_issuer: "https://kubernetes.default.svc".to_owned(),
            settings,
            extensions: Vec::new(),
            max_body_bytes: 3 << 20,
        })
        .await
        .expect("a gateway");
        Self { gateway: Arc::new(gateway), _dir: dir }
    }

    /// A new one without nodes.
    pub async fn new() -> Self {
        Self::with_dialer(Arc::new(NoNodes)).await
    }

    /// An administrator's client.
    pub fn admin(&self) -> kube::Client {
        self.gateway.client("admin", &["system:masters"])
    }
}
