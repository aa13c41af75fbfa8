//! The gateway's way to workers: those of its own process over pipes, others over TLS, where both show who they are.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use carob_gateway::{Gateway, NodeDialer, NodeStream};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::tls;
use crate::wiring::LocalNodes;

/// How long a worker may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// All workers.
#[derive(Clone, Default)]
pub struct Nodes {
    /// Those of this process.
    pub local: LocalNodes,
    elsewhere: Arc<RwLock<Option<Arc<Elsewhere>>>>,
}

struct Elsewhere {
    nodes: Api<Node>,
    connector: TlsConnector,
}

impl Nodes {
    /// Workers elsewhere are reached from now on, by what the gateway shows them now.
    pub fn reach(&self, gateway: &Gateway) -> anyhow::Result<()> {
        let (certificate, key) = gateway.worker_client();
        let (chain, key) = tls::pair(&certificate, &key)?;
        let config = ClientConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(tls::roots(&gateway.ca_certificate())?)
            .with_client_auth_cert(chain, key)
            .context("the gateway's certificate for workers is damaged")?;
        let nodes = Api::all(gateway.client("system:apiserver", &["system:masters"]));
        let connector = TlsConnector::from(Arc::new(config));
        let elsewhere = Arc::new(Elsewhere { nodes, connector });
        *self.elsewhere.write().unwrap_or_else(PoisonError::into_inner) = Some(elsewhere);
        Ok(())
    }
}

#[async_trait]
impl NodeDialer for Nodes {
    async fn dial(&self, node: &str) -> io::Result<Box<dyn NodeStream>> {
        let local = self.local.dial(node).await;
        let elsewhere = self.elsewhere.read().unwrap_or_else(PoisonError::into_inner).clone();
        match (local, elsewhere) {
            (Err(error), Some(elsewhere)) if error.kind() == io::ErrorKind::NotFound => {
                let dialled = tokio::time::timeout(PATIENCE, elsewhere.dial(node)).await;
                dialled
                    .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, format!("node {node} is silent"))))
            }
            (outcome, _) => outcome,
        }
    }
}

impl Elsewhere {
    async fn dial(&self, node: &str) -> io::Result<Box<dyn NodeStream>> {
        let nowhere = || io::Error::new(io::ErrorKind::NotFound, format!("node {node} doesn't say where it answers"));
        let found = self.nodes.get_opt(node).await.map_err(io::Error::other)?;
        let (address, port) = found.as_ref().and_then(endpoint).ok_or_else(nowhere)?;
        let stream = TcpStream::connect((address, port)).await?;
        stream.set_nodelay(true)?;
        let stream = self.connector.connect(ServerName::from(address), stream).await?;
        let who = tls::common_name(stream.get_ref().1.peer_certificates());
        if who.as_deref().and_then(|name| name.strip_prefix("system:node:")) != Some(node) {
            let why = format!("who answers for node {node} is {}", who.as_deref().unwrap_or("nobody known"));
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        Ok(Box::new(stream))
    }
}

/// Where a node's worker answers.
fn endpoint(node: &Node) -> Option<(IpAddr, u16)> {
    let status = node.status.as_ref()?;
    let port = status.daemon_endpoints.as_ref()?.kubelet_endpoint.as_ref()?.port;
    let internal = status.addresses.iter().flatten().find(|address| address.type_ == "InternalIP")?;
    Some((internal.address.parse().ok()?, u16::try_from(port).ok().filter(|port| *port != 0)?))
}
