//! Services on this node: what kube-proxy and the cluster's DNS are in Kubernetes. Follows Services and EndpointSlices and
//! tells the network.

pub(crate) mod bandwidth;
mod copy;
mod frontends;
mod health;
pub(crate) mod host_ports;
pub(crate) mod metered;
mod names;
mod nodes;
pub(crate) mod policies;

use crate::context::Context;
use crate::events::{About, Severity};
use carob_network::{Backend, Change, DnsSockets, Frontend, Side};
use copy::{Copy, Key};
use futures::TryStreamExt;
use health::HealthChecks;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long to wait for more changes before the kernel is told: a rollout changes many things at once.
const GATHER: Duration = Duration::from_millis(5);
/// How long after a refusal the kernel is told again.
const RETRY: Duration = Duration::from_secs(1);
/// Where names are asked.
const DNS_PORT: u16 = 53;
/// The label by which a slice names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Somebody else carries a Service out that has this label.
const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";

/// What [`run`] begins with.
pub(crate) struct Inputs {
    pub dns: Option<DnsSockets>,
    pub policies: policies::Requests,
}

/// Follows Services and policies until `shutdown`; the kernel goes on as it was told last.
pub(crate) async fn run(ctx: Arc<Context>, inputs: Inputs, shutdown: CancellationToken) {
    let Inputs { dns, policies } = inputs;
    let answering = async {
        if let Some(sockets) = dns
            && let Err(error) = ctx.dns.clone().serve(sockets, shutdown.clone()).await
        {
            tracing::error!(%error, "the cluster's DNS does not answer");
        }
    };
    let policies = policies::run(ctx.clone(), policies, shutdown.clone());
    let nodes = nodes::run(ctx.clone(), shutdown.clone());
    tokio::join!(answering, follow(ctx.clone(), shutdown.clone()), policies, nodes);
}

async fn follow(ctx: Arc<Context>, shutdown: CancellationToken) {
    let client = ctx.services.clone();
    let config = || watcher::Config::default().labels(&format!("!{OTHER_PROXY}"));
    let services = watcher(Api::<Service>::all(client.clone()), config()).default_backoff();
    let slices = watcher(Api::<EndpointSlice>::all(client), watcher::Config::default()).default_backoff();
    let (mut services, mut slices) = (pin!(services), pin!(slices));
    let mut proxy = Proxy::new(ctx);
    let mut timer = None;
    loop {
        let due = async {
            match timer {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            event = services.try_next() => match event {
                Ok(Some(event)) => proxy.service(event),
                Ok(None) => return,
                Err(error) => tracing::debug!(%error, "the watch of Services is being renewed"),
            },
            event = slices.try_next() => match event {
                Ok(Some(event)) => proxy.slice(event),
                Ok(None) => return,
                Err(error) => tracing::debug!(%error, "the watch of EndpointSlices is being renewed"),
            },
            () = due => {
                timer = None;
                if let Err(error) = proxy.tell().await {
                    tracing::error!(%error, "the kernel did not take the Services");
                    timer = Some(tokio::time::Instant::now() + RETRY);
                }
            }
        }
        if timer.is_none() && proxy.has_news() {
            timer = Some(tokio::time::Instant::now() + GATHER);
        }
    }
}

/// Slices of one Service, by name.
type Slices = BTreeMap<String, Arc<EndpointSlice>>;

struct Proxy {
    ctx: Arc<Context>,
    services: Copy<Service>,
    slices: Copy<EndpointSlice>,
    slices_of: HashMap<Key, Slices>,
    /// What has changed since the kernel was told.
    changed: HashSet<Key>,
    health: HealthChecks,
    /// The addresses of balancers that this machine has.
    held: BTreeSet<Ipv4Addr>,
    /// What the kernel was told of each Service; nothing before it was told of all.
    told: Option<HashMap<Key, HashMap<Frontend, Backend>>>,
}

impl Proxy {
    fn new(ctx: Arc<Context>) -> Self {
        Self {
            ctx,
            services: Copy::default(),
            slices: Copy::default(),
            slices_of: HashMap::new(),
            changed: HashSet::new(),
            health: HealthChecks::default(),
            held: BTreeSet::new(),
            told: None,
        }
    }

    fn service(&mut self, event: watcher::Event<Service>) {
        for (key, _) in self.services.take(event) {
            self.changed.insert(key);
        }
    }

    fn slice(&mut self, event: watcher::Event<EndpointSlice>) {
        for (key, old) in self.slices.take(event) {
            if let Some(service) = old.as_deref().and_then(service_of) {
                if let Some(slices) = self.slices_of.get_mut(&service) {
                    slices.remove(&key.name);
                }
                self.changed.insert(service);
            }
            let Some(new) = self.slices.get(&key) else { continue };
            if let Some(service) = service_of(new) {
                self.slices_of.entry(service.clone()).or_default().insert(key.name, Arc::clone(new));
                self.changed.insert(service);
            }
        }
        self.slices_of.retain(|_, slices| !slices.is_empty());
    }

    /// Whether there is something to tell: before both lists are complete, what the kernel knows is better.
    fn has_news(&self) -> bool {
        self.services.complete() && self.slices.complete() && (self.told.is_none() || !self.changed.is_empty())
    }

    /// Names first: an address that is known leads somewhere a moment later.
    fn name(&self) {
        for key in &self.changed {
            let slices = self.slices_of.get(key).into_iter().flat_map(BTreeMap::values).map(AsRef::as_ref);
            let names = self.services.get(key).and_then(|service| names::of(service, slices));
            self.ctx.dns.set(&key.namespace, &key.name, names);
        }
        self.ctx.dns.complete();
    }

    /// Answers at the ports where outside balancers ask.
    fn answer_health_checks(&mut self) {
        for key in &self.changed {
            let slices = self.slices_of.get(key).into_iter().flat_map(BTreeMap::values).map(AsRef::as_ref);
            let service = self.services.get(key);
            let wanted = service.and_then(|service| frontends::health_check(service, slices, &self.ctx.node));
            self.health.set(key, wanted);
        }
    }

    /// Has the machine answer for the addresses of the pool that Services have.
    async fn hold_addresses(&mut self) -> Result<(), carob_network::Error> {
        let pool = &self.ctx.cluster.load_balancers;
        let ours = |address: &Ipv4Addr| pool.iter().any(|(first, last)| (*first..=*last).contains(address));
        let services = self.services.keys().filter(|_| !pool.is_empty()).filter_map(|key| self.services.get(key));
        let wanted: BTreeSet<Ipv4Addr> = services
            .flat_map(|service| frontends::balanced_addresses(service).collect::<Vec<_>>())
            .filter(ours)
            .collect();
        if wanted != self.held || self.told.is_none() {
            self.ctx.network.hold(wanted.iter().copied().collect()).await?;
            self.held = wanted;
        }
        Ok(())
    }

    /// Which Service has which cluster address.
    fn owners(&self) -> HashMap<Ipv4Addr, Key> {
        let services = self.services.keys().filter_map(|key| Some((key, self.services.get(key)?.spec.as_ref()?)));
        services.filter_map(|(key, spec)| Some((frontends::cluster_ip(spec)?, key.clone()))).collect()
    }

    async fn tell(&mut self) -> Result<(), carob_network::Error> {
        self.name();
        self.answer_health_checks();
        self.hold_addresses().await?;
        // Whoever may make Services could else take others' addresses, by externalIPs (CVE-2020-8554) or a balancer's.
        let owners = self.owners();
        let is_anothers = |frontend: &Frontend, key: &Key| {
            frontend.address.and_then(|address| owners.get(&address)).is_some_and(|owner| owner != key)
        };
        let frontends = |key: &Key| match self.services.get(key) {
            Some(service) => {
                let none = Slices::new();
                let slices = self.slices_of.get(key).unwrap_or(&none);
                let mut all = frontends::of(service, slices.values().map(AsRef::as_ref), &self.ctx.node);
                all.retain(|frontend, _| !is_anothers(frontend, key));
                answer_names_here(&self.ctx, &mut all);
                all
            }
            None => HashMap::new(),
        };
        let Some(told) = &mut self.told else {
            let all: HashMap<_, _> = self.services.keys().map(|key| (key.clone(), frontends(key))).collect();
            let services = all.values().flat_map(Clone::clone).collect();
            self.ctx.network.replace_services(services).await?;
            let ports =
                all.iter().flat_map(|(key, of)| of.keys().map(move |frontend| (*frontend, key.clone()))).collect();
            self.told = Some(all);
            self.report_contested(ports).await;
            self.changed.clear();
            return Ok(());
        };
        // What goes comes first: another Service may have got its address.
        let (mut gone, mut come): (Vec<Change>, Vec<Change>) = (Vec::new(), Vec::new());
        let mut new = HashMap::new();
        for key in &self.changed {
            let now = frontends(key);
            let before = told.get(key);
            for frontend in before.iter().flat_map(|before| before.keys()) {
                if !now.contains_key(frontend) && !is_anothers(frontend, key) {
                    gone.push((*frontend, None));
                }
            }
            for (frontend, backend) in &now {
                if before.and_then(|before| before.get(frontend)) != Some(backend) {
                    come.push((*frontend, Some(backend.clone())));
                }
            }
            new.insert(key.clone(), now);
        }
        gone.extend(come);
        if !gone.is_empty() {
            self.ctx.network.change_services(gone).await?;
        }
        let come = new.iter().flat_map(|(key, now)| {
            let before = told.get(key);
            let fresh = now.keys().filter(move |frontend| before.is_none_or(|before| !before.contains_key(*frontend)));
            fresh.map(move |frontend| (*frontend, key.clone()))
        });
        let come: Vec<_> = come.collect();
        for (key, frontends) in new {
            if frontends.is_empty() {
                told.remove(&key)
            } else {
                told.insert(key, frontends)
            };
        }
        self.changed.clear();
        self.report_contested(come).await;
        Ok(())
    }

    /// Says of new ports of this machine that another Carob has them as well.
    async fn report_contested(&self, mut ports: Vec<(Frontend, Key)>) {
        ports.retain(|(frontend, _)| frontend.address.is_none() && frontend.side == Side::Outside);
        if ports.is_empty() {
            return;
        }
        let frontends = ports.iter().map(|(frontend, _)| *frontend).collect();
        let contested = match self.ctx.network.contested(frontends).await {
            Ok(contested) => contested,
            Err(error) => {
                tracing::debug!(%error, "whether other Carobs have the same ports is not known");
                return;
            }
        };
        for (frontend, other) in contested {
            let owner = ports.iter().find(|(port, _)| *port == frontend).and_then(|(_, key)| self.services.get(key));
            let Some(service) = owner else { continue };
            let message = format!(
                "Port {} ({}) of this machine belongs to a Service of another Carob ({other}) as well: connections go to one of the two",
                frontend.port,
                frontend.protocol.name()
            );
            self.ctx.events.record(About::service(service), Severity::Warning, "NodePortContested", message);
        }
    }
}

/// Names are asked of this worker by its own pods, also while the gateway's machine can't be reached.
fn answer_names_here(ctx: &Context, frontends: &mut HashMap<Frontend, Backend>) {
    let Some(own) = ctx.own_dns else { return };
    for (frontend, backend) in frontends {
        let asked = frontend.address.is_some_and(|ip| ctx.cluster.dns_servers.contains(&IpAddr::V4(ip)));
        if asked && frontend.port == DNS_PORT {
            *backend = Backend::Endpoints { endpoints: vec![own], affinity: None, clients: None };
        }
    }
}

fn service_of(slice: &EndpointSlice) -> Option<Key> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?.clone();
    Some(Key { namespace: slice.metadata.namespace.clone()?, name })
}
