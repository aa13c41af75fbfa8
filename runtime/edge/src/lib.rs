//! The L7 proxy: what Ingresses and the Gateway API's objects say, carried out inside this process.
//!
//! [`watch`] follows the API; [`plan`] makes of what is there, by pure functions, what is served and what is said of it;
//! [`route`] is the data that requests are looked up in; [`proxy`] has the sockets and passes requests on; [`publish`]
//! tells the API. Nobody but clients and endpoints waits for the proxy, and the proxy waits for no one else.

mod fixed;
mod gateway_api;
mod install;
mod plan;
mod proxy;
mod publish;
mod route;
mod state;
mod watch;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

pub use ipnet::IpNet;
use kube::Client;
use tokio_util::sync::CancellationToken;

pub use crate::fixed::Fixed;
use crate::plan::{Certificates, Frontend, Plan, Served, Setting};
use crate::proxy::{Metrics, Proxy, Settings};
use crate::publish::{Opened, Place, Ports, Publisher, Sockets};
use crate::state::{Key, State};
use crate::watch::Watch;

/// How long to wait for more changes: a rollout changes many things at once.
const GATHER: Duration = Duration::from_millis(5);
/// How long until something that went wrong is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often it is tried to make the proxy's kinds and classes.
const INSTALLS: usize = 5;
/// The Service of all Ingresses.
const INGRESS_SERVICE: (&str, &str) = ("kube-system", "carob-ingress");

/// The name by which the proxy is known to the API; a bootstrap role of the same name has its rights.
pub const USER: &str = "system:carob:edge";

/// How the proxy works.
pub struct Config {
    /// Acts as [`USER`].
    pub client: Client,
    /// This machine's address among the pods, at which the proxy listens for Services.
    pub address: Ipv4Addr,
    /// The same by IPv6, where the cluster has it.
    pub address6: Option<Ipv6Addr>,
    /// The node that this is.
    pub node: String,
    /// Whether Services of type LoadBalancer get addresses.
    pub balanced: bool,
    /// Where Ingresses are served beside their Service: none of the machine's own ports, if it is empty.
    pub listen: Vec<IpAddr>,
    pub http_port: u16,
    pub https_port: u16,
    /// Proxies in front of this one, whose `X-Forwarded-…` is passed on.
    pub trusted: Vec<IpNet>,
    /// Threads that pass requests on.
    pub threads: usize,
    /// What the process may have open: clients may make the proxy open half as much.
    pub descriptors: usize,
}

/// The proxy.
pub struct Edge {
    watch_client: Client,
    setting: Setting,
    publisher: Publisher,
    proxy: Proxy,
    metrics: Metrics,
    http_port: u16,
    https_port: u16,
    sockets: Sockets,
}

impl Edge {
    /// A proxy that does nothing yet.
    pub fn new(config: Config) -> Self {
        let Config { client, address, address6, node, balanced, listen, .. } = config;
        let Config { http_port, https_port, trusted, threads, descriptors, .. } = config;
        let metrics = Metrics::default();
        Self {
            setting: Setting {
                balanced,
                listen,
                ingress_service: Key::new(INGRESS_SERVICE.0, INGRESS_SERVICE.1),
                certificates: Certificates::default(),
            },
            publisher: Publisher { client: client.clone(), place: Place { address, address6, node, balanced } },
            proxy: Proxy::new(Settings { trusted, threads, descriptors, metrics: metrics.clone() }),
            watch_client: client,
            metrics,
            http_port,
            https_port,
            sockets: HashMap::new(),
        }
    }

    /// Adds what is counted to a registry.
    pub fn register_metrics(&self, registry: &mut prometheus_client::registry::Registry) {
        self.metrics.register(registry);
    }

    /// Follows the API and answers requests until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let work = self.work();
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = work => {}
        }
        self.proxy.stop().await;
    }

    async fn work(&mut self) {
        // Ingresses are served even where the Gateway API's kinds can't be.
        for _ in 0..INSTALLS {
            let Err(error) = install::install(&self.watch_client).await else { break };
            tracing::warn!(error = error.text(), "the proxy's kinds and classes are not all there");
            tokio::time::sleep(RETRY).await;
        }
        let mut watch = Watch::start(self.watch_client.clone()).await;
        loop {
            let mut state = watch.state();
            if plan::is_needed(&state) {
                watch.follow_targets().await;
                state = watch.state();
            }
            let again = self.carry_out(&mut state).await;
            tokio::select! {
                () = watch.changed() => tokio::time::sleep(GATHER).await,
                () = tokio::time::sleep(RETRY), if again => {}
            }
        }
    }

    /// Does what the API says, and says what was done. Whether something has to be tried again.
    async fn carry_out(&mut self, state: &mut State) -> bool {
        state.own = self.sockets.values().flat_map(Opened::all).collect();
        let plan = Plan::of(state, &self.setting);
        self.setting.certificates.keep(|key| state.secrets.contains_key(key));
        self.close_others(&plan);
        let mut again = false;
        let mut reached: Vec<(&Served, Ports)> = Vec::new();
        for (frontend, served) in &plan.frontends {
            let mut ports = BTreeMap::new();
            for (number, port) in &served.ports {
                if let Err(error) = self.open(frontend, *number).await {
                    tracing::error!(?frontend, number, %error, "the proxy cannot listen");
                    again = true;
                }
                let Some(opened) = self.sockets.get(&(frontend.clone(), *number)) else { continue };
                for at in opened.all() {
                    self.proxy.serve(at, *number, Arc::clone(port));
                }
                if !opened.inside.is_empty() {
                    ports.insert(*number, opened.inside.clone());
                }
            }
            reached.push((served, ports));
        }
        self.proxy.keep(plan.endpoints());
        let services = reached.iter().map(|(served, ports)| self.publisher.service(state, &served.service, ports));
        for outcome in futures::future::join_all(services).await {
            again |= failed(outcome);
        }
        let statuses = plan.statuses.iter().map(|status| self.publisher.status(status));
        for outcome in futures::future::join_all(statuses).await {
            again |= failed(outcome);
        }
        again
    }

    /// The sockets of a frontend's port for its Service; Ingresses may have others beside them.
    async fn open(&mut self, frontend: &Frontend, number: u16) -> std::io::Result<()> {
        let key = (frontend.clone(), number);
        let is_new = !self.sockets.contains_key(&key);
        let opened = self.sockets.entry(key).or_default();
        let mut outcome = Ok(());
        for address in self.publisher.place.addresses() {
            // One family goes without the other.
            if !opened.inside.iter().any(|at| at.ip() == address) {
                match self.proxy.open(SocketAddr::new(address, 0), number).await {
                    Ok(at) => opened.inside.push(at),
                    Err(error) => outcome = Err(error),
                }
            }
        }
        if is_new && *frontend == Frontend::Ingress {
            let own = if number == 80 { self.http_port } else { self.https_port };
            for address in &self.setting.listen {
                match self.proxy.open(SocketAddr::new(*address, own), number).await {
                    Ok(at) => opened.beside.push(at),
                    Err(error) => {
                        tracing::error!(%address, port = own, %error, "the proxy cannot listen for Ingresses");
                    }
                }
            }
        }
        outcome
    }

    fn close_others(&mut self, plan: &Plan) {
        let proxy = &self.proxy;
        self.sockets.retain(|(frontend, number), opened| {
            let wanted = plan.frontends.get(frontend).is_some_and(|served| served.ports.contains_key(number));
            if !wanted {
                opened.all().for_each(|at| proxy.close(at, *number));
            }
            wanted
        });
    }
}

fn failed(outcome: Result<(), kube::Error>) -> bool {
    let tell = |error: &kube::Error| {
        tracing::warn!(error = publish::reason(error), "the API was not told all of the proxy");
    };
    outcome.inspect_err(tell).is_err()
}
