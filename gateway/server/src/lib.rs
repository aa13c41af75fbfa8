//! The API server: routes, identity, admission, watch, streams. Written once for all kinds.
//!
//! A request goes through [`routes`]: who is asking ([`authn`]), may they ([`authz`]), which row of the kinds table and
//! which verb it is about, and then one of the [`handlers`]. Objects live in a [`carob_store::Store`] as finished bytes
//! ([`objects`]) that lists and watches send as they are.

mod activity;
mod admission;
mod aggregation;
mod aside;
mod audit;
mod authn;
mod authz;
mod body;
mod bootstrap;
mod call;
mod callout;
mod compress;
mod conversion;
mod decoded;
mod definitions;
mod deprecated;
mod discovery;
mod events;
mod flow;
#[doc(hidden)]
pub mod fuzzing;
mod gathered;
mod handlers;
mod health;
mod heavy;
mod in_memory;
mod kubeconfig;
mod metrics;
mod negotiate;
mod objects;
mod options;
mod patience;
mod pki;
mod places;
mod protobuf;
mod proxy;
mod query;
mod random;
mod request;
mod response;
mod reviews;
mod routes;
mod serve;
mod served;
mod services;
mod settings;
mod stored;
mod stream;
mod verbatim;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use carob_api::kind::KindRef;
use carob_api::kinds;
use carob_store::Store;
pub use ipnet::IpNet;
use ipnet::{Ipv4Net, Ipv6Net};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::{CancellationToken, DropGuard};

pub use pki::Error as PkiError;
pub use settings::{Error as SettingsError, Settings};

/// What a gateway is made of.
pub struct Config {
    /// Where it will listen: these addresses get into the server's certificate.
    pub listen: Vec<SocketAddr>,
    /// More names and addresses for the certificate: the service's virtual address, the bridge's address.
    pub extra_sans: Vec<String>,
    /// Where keys and certificates are kept.
    pub pki_dir: PathBuf,
    /// Where objects are kept.
    pub store: Arc<dyn Store>,
    /// The way to a node's worker, for logs, exec, attach and port-forward.
    pub dialer: Arc<dyn NodeDialer>,
    /// Where pods find this server.
    pub api_service: Option<ApiService>,
    /// Where pods have their addresses from; without it, nodes may say what they like of theirs.
    pub pods: Option<PodRange>,
    /// Issuer and default audience of service accounts' tokens, for example `https://kubernetes.default.svc`.
    pub service_account_issuer: String,
    /// What the cluster's owner chose.
    pub settings: Settings,
    /// What else is served, beside the Kubernetes API.
    pub extensions: Vec<Extension>,
    /// The largest body that is read, in bytes. Kubernetes' limit is 3 MiB.
    pub max_body_bytes: usize,
}

/// Where pods find the API server, and the range from which Services get their addresses.
#[derive(Clone, Copy, Debug)]
pub struct ApiService {
    /// The address and port of the `kubernetes` Service.
    pub service: SocketAddrV4,
    /// What it leads to.
    pub endpoint: SocketAddrV4,
    /// Addresses of Services.
    pub range: Ipv4Net,
    /// Their IPv6 addresses, in a dual-stack cluster.
    pub range6: Option<Ipv6Net>,
    /// The cluster's DNS: the address and port of the `kube-dns` Service, and what it leads to where a node's own worker
    /// doesn't answer.
    pub dns: Option<(SocketAddrV4, Option<SocketAddrV4>)>,
}

/// What a name or an address is, if it can't be that of a node that joins.
pub type Reserved = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Pods' addresses.
#[derive(Clone, Debug)]
pub struct PodRange {
    /// All of them, of each family.
    pub whole: Vec<IpNet>,
    /// The blocks that nodes get that join, one of each family.
    pub blocks: Vec<Vec<IpNet>>,
}

/// Addresses of Services where nothing is said of them.
const SERVICE_RANGE: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16);

/// Paths served by somebody else, behind the gateway's authentication and for administrators only.
pub struct Extension {
    /// The paths' beginning, for example `/billing/v1`.
    pub prefix: &'static str,
    /// Gets requests with their path behind the prefix.
    pub router: axum::Router,
    /// The API group that it serves, if its paths are resources: `prefix` is then `/apis/GROUP/VERSION`.
    pub group: Option<GroupExtension>,
}

/// Resources that an extension serves, for discovery; authorization asks for them by name.
pub struct GroupExtension {
    /// `metrics.k8s.io`
    pub name: &'static str,
    /// `v1beta1`
    pub version: &'static str,
    /// As an APIResourceList has them.
    pub resources: Vec<serde_json::Value>,
}

/// A byte stream to a node's worker, which speaks HTTP/1.1 with upgrades on it, with kubelet's paths.
pub trait NodeStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> NodeStream for T {}

/// Who sent a request that an [`Extension`] answers.
#[derive(Clone, Debug)]
pub struct Requester {
    /// The user, after impersonation.
    pub user: String,
    /// Its groups.
    pub groups: Vec<String>,
}

impl Requester {
    /// The name of the node that this is, if it is one.
    pub fn node(&self) -> Option<&str> {
        let name = self.user.strip_prefix("system:node:")?;
        self.groups.iter().any(|group| group == "system:nodes").then_some(name)
    }
}

pub use authn::certified_name;
/// The common name of what the gateway shows to workers on other machines.
pub use pki::WORKER_CLIENT;

/// Opens streams to the workers of nodes.
#[async_trait]
pub trait NodeDialer: Send + Sync {
    /// A new stream to the worker of this node.
    async fn dial(&self, node: &str) -> std::io::Result<Box<dyn NodeStream>>;
}

/// Why the gateway could not start or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Keys and certificates could not be had.
    #[error("cannot set up the cluster's keys")]
    Pki(#[from] PkiError),
    /// The key of service accounts' tokens cannot be used.
    #[error("cannot use the key of service accounts' tokens")]
    TokenKey(#[source] jsonwebtoken::errors::Error),
    /// What the cluster's owner chose cannot be used.
    #[error("cannot use the settings")]
    Settings(#[source] settings::Error),
    /// What the store holds could not be read.
    #[error("cannot read the store")]
    Store(#[source] carob_store::Error),
    /// The objects that every cluster has could not be made.
    #[error("cannot make the first objects")]
    Bootstrap(#[source] carob_api::status::Status),
    /// The certificates cannot be used.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
    /// A listener cannot be used.
    #[error("cannot listen")]
    Listen(#[source] std::io::Error),
}

/// The API server.
pub struct Gateway {
    server: Arc<Server>,
    /// The newest.
    pki: RwLock<Arc<pki::Pki>>,
    pki_dir: PathBuf,
    /// What the server's certificate is for.
    names: Vec<String>,
    shown: Arc<serve::Shown>,
    /// Ends what runs in the background with the gateway.
    _end: DropGuard,
}

/// What all requests share.
pub(crate) struct Server {
    pub store: Arc<dyn Store>,
    pub dialer: Arc<dyn NodeDialer>,
    pub live: served::Live,
    /// Kinds that are off by default and were switched on.
    pub optional: Vec<&'static carob_api::kind::Kind>,
    pub authn: authn::Authenticators,
    pub authorizer: Arc<authz::Authorizer>,
    /// Room for requests, shared out.
    pub flow: Arc<flow::Flow>,
    /// The audit log, if one is kept.
    pub audit: Option<audit::Audit>,
    /// Webhooks and policies.
    pub registered: Arc<admission::extension::Registered>,
    pub pod_security: admission::pod_security::Configuration,
    /// Requests that are charged to quotas wait for each other.
    pub turns: admission::quota::Turns,
    pub extensions: Vec<Extension>,
    pub max_body_bytes: usize,
    /// What requests' bodies take of memory.
    pub body_room: Arc<tokio::sync::Semaphore>,
    /// Turns for work on what is large.
    pub heavy: heavy::Heavy,
    pub metrics: metrics::Metrics,
    pub decoded: decoded::Cache,
    pub converters: conversion::Converters,
    /// API groups that other servers serve.
    pub aggregation: Arc<aggregation::Aggregation>,
    /// Sends what is proxied to pods, Services and nodes.
    pub proxy: proxy::Proxy,
    /// What Services can have.
    pub services: services::Pool,
    /// What nodes that join can't have.
    pub reserved: Arc<admission::node_restriction::Reserved>,
    /// Ends long requests when the server stops.
    pub stopping: CancellationToken,
}

impl Server {
    /// The row of a resource.
    pub fn kind(&self, group: &str, version: &str, plural: &str) -> Option<KindRef> {
        self.live.now().registry.by_resource(group, version, plural).cloned()
    }

    /// All resources that are served now.
    pub fn registry(&self) -> Arc<kinds::Registry> {
        Arc::clone(&self.live.now().registry)
    }
}

impl Gateway {
    /// Makes what is missing under `pki_dir` and in the store, and is ready to answer.
    ///
    /// # Errors
    /// When keys or the first objects cannot be read or made.
    pub async fn new(config: Config) -> Result<Self, Error> {
        let mut names = config.extra_sans;
        names.extend(config.listen.iter().filter(|a| !a.ip().is_unspecified()).map(|a| a.ip().to_string()));
        let pki = match config.store.revision().await.map_err(Error::Store)? {
            0 => pki::Pki::open(&config.pki_dir, &names)?,
            _ => pki::Pki::of_cluster(&config.pki_dir, &names)?,
        };
        let authn = authn::Authenticators::new(&pki, &config.service_account_issuer, &config.settings.authentication)?;
        let stopping = CancellationToken::new();
        let authorizer = authz::Authorizer::open(&config.store, &stopping).await.map_err(Error::Store)?;
        let metrics = metrics::Metrics::new();
        let store = Arc::clone(&config.store);
        let registered = Arc::<admission::extension::Registered>::default();
        let mirror: Arc<dyn authz::follow::Mirror> = registered.clone();
        authz::follow::follow(&config.store, admission::extension::PREFIX, mirror, stopping.clone())
            .await
            .map_err(Error::Store)?;
        let service_range = config.api_service.map_or(SERVICE_RANGE, |api| api.range);
        let service_range6 = config.api_service.and_then(|api| api.range6);
        let services = [Some(IpNet::V4(service_range)), service_range6.map(IpNet::V6)];
        let of_server: Vec<String> = pki::server_names(&names);
        let reserved =
            admission::node_restriction::Reserved::new(&of_server, services.into_iter().flatten(), config.pods);
        let proxy = proxy::Proxy::new(&config.dialer).map_err(|why| Error::Tls(rustls::Error::General(why)))?;
        let optional = config.settings.optional_kinds().map_err(Error::Settings)?;
        let server = Server {
            store,
            dialer: config.dialer,
            live: served::Live::builtin(&optional),
            optional,
            authn,
            authorizer,
            flow: flow::Flow::open(&config.store, config.settings.concurrency, &metrics, &stopping)
                .await
                .map_err(Error::Store)?,
            audit: config.settings.audit.as_ref().map(audit::Audit::open).transpose().map_err(Error::Settings)?,
            registered,
            pod_security: admission::pod_security::Configuration::new(&config.settings.pod_security)
                .map_err(Error::Settings)?,
            turns: admission::quota::Turns::default(),
            extensions: config.extensions,
            max_body_bytes: config.max_body_bytes,
            body_room: body::room(),
            heavy: heavy::Heavy::default(),
            metrics,
            decoded: decoded::Cache::default(),
            converters: conversion::Converters::default(),
            aggregation: Arc::new(aggregation::Aggregation::new(pki.front_proxy.clone())),
            proxy,
            services: services::Pool::new(service_range, service_range6),
            reserved: Arc::new(reserved),
            stopping: stopping.clone(),
        };
        let gateway = Self {
            server: Arc::new(server),
            shown: Arc::new(serve::Shown::new(&pki)?),
            pki: RwLock::new(Arc::new(pki)),
            pki_dir: config.pki_dir,
            names,
            _end: stopping.clone().drop_guard(),
        };
        let pki = gateway.pki();
        bootstrap::first_objects(&gateway.server, config.api_service).await.map_err(Error::Bootstrap)?;
        aggregation::publish(&gateway.server, &pki).await.map_err(Error::Bootstrap)?;
        definitions::start(&gateway.server, &stopping).await.map_err(Error::Store)?;
        aggregation::start(&gateway.server, &stopping).await.map_err(Error::Store)?;
        authn::legacy::start(&gateway.server, &pki.ca_certificate, &stopping).await?;
        authn::bootstrap::start(&gateway.server, &stopping);
        Ok(gateway)
    }

    /// A client of this server that needs no socket, acting as `user` in `groups`. Must be called inside a tokio runtime.
    pub fn client(&self, user: &str, groups: &[&str]) -> kube::Client {
        in_memory::client(&self.server, user, groups)
    }

    /// Tells of a name or an address what it is, if it can't be that of a node that joins.
    pub fn reserved(&self) -> Reserved {
        let reserved = Arc::clone(&self.server.reserved);
        Arc::new(move |name| reserved.problem(name))
    }

    /// The administrator's kubeconfig for a server reached at `server`, for example `https://127.0.0.1:6443`.
    pub fn admin_kubeconfig(&self, server: &str) -> String {
        kubeconfig::admin(&self.pki(), server)
    }

    /// The authority that signed the server's certificate, PEM.
    pub fn ca_certificate(&self) -> String {
        self.pki().ca_certificate.clone()
    }

    /// What signs for the cluster: that authority and its key, PEM.
    pub fn signing_authority(&self) -> (String, String) {
        let pki = self.pki();
        (pki.ca_certificate.clone(), pki.ca_key.clone())
    }

    /// What the gateway shows to workers on other machines, certificate and key, PEM: they answer nobody else.
    pub fn worker_client(&self) -> (String, String) {
        let pki = self.pki();
        (pki.worker_client.certificate.clone(), pki.worker_client.key.clone())
    }

    /// Renews the certificates that have lived for half of their life, and shows the new ones from then on; to be called
    /// now and then. What was given out of them, for example a kubeconfig, has to be fetched again.
    ///
    /// # Errors
    /// When they cannot be read or made: they are shown as they were.
    pub fn renew_certificates(&self) -> Result<(), Error> {
        let (old, new) = (self.pki(), pki::Pki::of_cluster(&self.pki_dir, &self.names)?);
        if new.leaves().eq(old.leaves()) {
            return Ok(());
        }
        self.shown.renew(&new)?;
        self.server.aggregation.show(new.front_proxy.clone());
        *self.pki.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        Ok(())
    }

    fn pki(&self) -> Arc<pki::Pki> {
        Arc::clone(&self.pki.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The kinds that are served now.
    pub fn registry(&self) -> Arc<kinds::Registry> {
        self.server.registry()
    }

    /// Lets somebody add metrics to what `/metrics` shows.
    pub fn register_metrics(&self, register: impl FnOnce(&mut prometheus_client::registry::Registry)) {
        self.server.metrics.register(register);
    }

    /// Serves until `shutdown`, or until the store can't be followed any more, then lets running requests end.
    ///
    /// # Errors
    /// When a listener or the certificates cannot be used.
    pub async fn serve(
        self: Arc<Self>,
        listeners: Vec<std::net::TcpListener>,
        shutdown: CancellationToken,
    ) -> Result<(), Error> {
        let shutdown = shutdown.child_token();
        let (failed, end) = (self.server.stopping.clone(), shutdown.clone());
        tokio::spawn(async move {
            failed.cancelled().await;
            end.cancel();
        });
        serve::serve(&self.server, &self.pki(), Arc::clone(&self.shown), listeners, shutdown).await
    }
}
