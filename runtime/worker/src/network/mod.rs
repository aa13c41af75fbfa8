//! Services on this node: what kube-proxy and the cluster's DNS are in Kubernetes. Follows Services and EndpointSlices and
//! tells the network.

pub(crate) mod bandwidth;
mod claims;
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
use carob_network::{Backend, DnsSockets, Frontend, Side};
use claims::Claims;
use copy::{Copy, Key};
use frontends::Place;
use futures::TryStreamExt;
use health::HealthChecks;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
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
/// The label that says where a node is.
const ZONE: &str = "topology.kubernetes.io/zone";
/// Services with one of these labels are not for this proxy: somebody else carries them out, or their address is to lead
/// nowhere. Their names and their addresses are theirs all the same.
const NOT_OURS: [&str; 2] = ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"];

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
    let services = watcher(Api::<Service>::all(client.clone()), watcher::Config::default()).default_backoff();
    let slices = watcher(Api::<EndpointSlice>::all(client), watcher::Config::default()).default_backoff();
    let (mut services, mut slices) = (pin!(services), pin!(slices));
    let mut own_node = ctx.own_node.subscribe();
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
            Ok(()) = own_node.changed() => proxy.found(own_node.borrow_and_update().as_deref()),
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
    held: BTreeSet<IpAddr>,
    /// This node's.
    zone: Option<String>,
    /// Which Service has which cluster address.
    owners: HashMap<IpAddr, Key>,
    claims: Claims,
    /// Ports of this machine that the kernel leads to Services; nothing before it was told of all Services.
    told: Option<HashSet<Frontend>>,
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
            zone: None,
            owners: HashMap::new(),
            claims: Claims::default(),
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

    /// Where this node is in another zone now, others may be nearer.
    fn found(&mut self, own: Option<&Node>) {
        let zone = own.and_then(|node| node.metadata.labels.as_ref()?.get(ZONE));
        if self.zone.as_ref() != zone {
            self.zone = zone.cloned();
            self.changed.extend(self.services.keys().cloned());
        }
    }

    fn place(&self) -> Place<'_> {
        Place { node: &self.ctx.node, zone: self.zone.as_deref() }
    }

    fn slices_of(&self, key: &Key) -> impl Iterator<Item = &EndpointSlice> + Clone {
        self.slices_of.get(key).into_iter().flat_map(BTreeMap::values).map(AsRef::as_ref)
    }

    /// Whether there is something to tell: before both lists are complete, what the kernel knows is better.
    fn has_news(&self) -> bool {
        self.services.complete()
            && self.slices.complete()
            && (self.told.is_none() || !self.changed.is_empty() || self.claims.moved())
    }

    /// Names first: an address that is known leads somewhere a moment later.
    fn name(&self) {
        for key in &self.changed {
            let names = self.services.get(key).and_then(|service| names::of(service, self.slices_of(key)));
            self.ctx.dns.set(&key.namespace, &key.name, names);
        }
        self.ctx.dns.complete();
    }

    /// Answers at the ports where outside balancers ask.
    fn answer_health_checks(&mut self) {
        let wanted = |key: &Key| frontends::health_check(self.proxied(key)?, self.slices_of(key), self.place());
        let wanted: Vec<_> = self.changed.iter().map(|key| (key.clone(), wanted(key))).collect();
        for (key, wanted) in wanted {
            self.health.set(&key, wanted);
        }
    }

    /// Has the machine answer for the addresses of the pool that Services have.
    async fn hold_addresses(&mut self) -> Result<(), carob_network::Error> {
        let pool = &self.ctx.cluster.load_balancers;
        let ours = |address: &IpAddr| pool.iter().any(|(first, last)| (*first..=*last).contains(address));
        let services = self.services.keys().filter(|_| !pool.is_empty()).filter_map(|key| self.services.get(key));
        let wanted: BTreeSet<IpAddr> = services
            .flat_map(|service| frontends::balanced_addresses(service).collect::<Vec<_>>())
            .filter(ours)
            .collect();
        if wanted != self.held || self.told.is_none() {
            self.ctx.network.hold(wanted.iter().copied().collect()).await?;
            self.held = wanted;
        }
        Ok(())
    }

    /// Takes down who has which cluster address. Whoever asks for one that changed hands may get more or less now.
    fn find_owners(&mut self) {
        let services = self.services.keys().filter_map(|key| Some((key, self.services.get(key)?.spec.as_ref()?)));
        let owners: HashMap<IpAddr, Key> =
            services.flat_map(|(key, spec)| frontends::cluster_ips(spec).map(|ip| (ip, key.clone()))).collect();
        let differs = |address: &IpAddr| owners.get(address) != self.owners.get(address);
        let asks = |key: &&Key| {
            let service = self.services.get(key);
            service.is_some_and(|service| frontends::other_addresses(service).any(|address| differs(&address)))
        };
        let affected: Vec<Key> = self.services.keys().filter(asks).cloned().collect();
        self.changed.extend(affected);
        self.owners = owners;
    }

    /// A Service that is carried out here.
    fn proxied(&self, key: &Key) -> Option<&Service> {
        let service = self.services.get(key)?;
        let labels = service.metadata.labels.as_ref();
        let others = labels.is_some_and(|labels| NOT_OURS.iter().any(|label| labels.contains_key(*label)));
        (!others).then_some(&**service)
    }

    /// What leads to a Service on this node, apart from others' cluster addresses: whoever may make Services could else
    /// take them, by externalIPs (CVE-2020-8554) or a balancer's.
    fn frontends(&self, key: &Key) -> HashMap<Frontend, Backend> {
        let Some(service) = self.proxied(key) else { return HashMap::new() };
        let mut all = frontends::of(service, self.slices_of(key), self.place());
        let owner = |frontend: &Frontend| self.owners.get(&frontend.address);
        all.retain(|frontend, _| owner(frontend).is_none_or(|owner| owner == key));
        answer_names_here(&self.ctx, &mut all);
        all
    }

    async fn tell(&mut self) -> Result<(), carob_network::Error> {
        self.name();
        self.answer_health_checks();
        self.hold_addresses().await?;
        self.find_owners();
        for key in std::mem::take(&mut self.changed) {
            let created = self.services.get(&key).and_then(|service| service.metadata.creation_timestamp.clone());
            self.claims.set(&key, created, self.frontends(&key));
        }
        let mut fresh: Vec<Frontend> = if let Some(told) = &mut self.told {
            let changes = self.claims.changes();
            if !changes.is_empty() {
                self.ctx.network.change_services(changes.clone()).await?;
            }
            let (come, gone): (Vec<_>, Vec<_>) = changes.into_iter().partition(|(_, backend)| backend.is_some());
            for (frontend, _) in gone {
                told.remove(&frontend);
            }
            come.into_iter()
                .map(|(frontend, _)| frontend)
                .filter(|port| is_machines(port) && told.insert(*port))
                .collect()
        } else {
            let all = self.claims.all();
            let ports: Vec<Frontend> = all.keys().copied().filter(is_machines).collect();
            self.ctx.network.replace_services(all).await?;
            self.told = Some(ports.iter().copied().collect());
            ports
        };
        self.claims.told();
        fresh.sort_unstable();
        self.report_contested(fresh).await;
        Ok(())
    }

    /// Says of new ports of this machine that another Carob has them as well.
    async fn report_contested(&self, ports: Vec<Frontend>) {
        if ports.is_empty() {
            return;
        }
        let contested = match self.ctx.network.contested(ports).await {
            Ok(contested) => contested,
            Err(error) => {
                tracing::debug!(%error, "whether other Carobs have the same ports is not known");
                return;
            }
        };
        for (frontend, other) in contested {
            let owner = self.claims.owner(&frontend).and_then(|key| self.services.get(key));
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

/// Whether it is a port of every address of this machine, for whoever comes from outside.
fn is_machines(frontend: &Frontend) -> bool {
    frontend.is_everywhere() && frontend.side == Side::Outside
}

/// Names are asked of this worker by its own pods, also while the gateway's machine can't be reached.
fn answer_names_here(ctx: &Context, frontends: &mut HashMap<Frontend, Backend>) {
    let Some(own) = ctx.own_dns else { return };
    for (frontend, backend) in frontends {
        if ctx.cluster.dns_servers.contains(&frontend.address) && frontend.port == DNS_PORT {
            *backend = Backend::Endpoints { endpoints: vec![own.into()], affinity: None, clients: None };
        }
    }
}

fn service_of(slice: &EndpointSlice) -> Option<Key> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?.clone();
    Some(Key { namespace: slice.metadata.namespace.clone()?, name })
}
