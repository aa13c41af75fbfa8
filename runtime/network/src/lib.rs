//! The network of the pods of one worker: namespaces, addresses, a bridge, a way out.
//!
//! Every pod gets a network namespace with loopback, one address of the pod CIDR on `eth0` and a link of its own to the
//! machine, which routes between pods: so every packet passes the machine's rules, and no pod hears another's. Namespaces
//! are made ahead of need and wait in a pool, so that a starting pod finds one ready. Services are maps in the kernel
//! (`services.rs`). Nothing here is kept in files: the kernel is the state, and a worker that starts again finds out from
//! it which addresses are taken.

mod address;
mod annex;
mod bridge;
mod conntrack;
mod dns;
mod family;
mod firewall;
#[doc(hidden)]
pub mod fuzzing;
mod host_port;
mod namespace;
mod netfilter;
mod netlink;
mod nodes;
mod policies;
mod pool;
mod rules;
mod services;
mod shaping;
mod traffic;

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

pub use dns::{Dns, DnsSockets, NamedEndpoint, NamedPort, Resolvers, ServiceNames};
pub use firewall::Side;
pub use host_port::HostPort;
pub use ipnet::{IpNet, Ipv4Net, Ipv6Net};
pub use nodes::{Doors, Ways};
pub use policies::{
    Allow, Direction, GroupId, Member, Peers, PolicyChange, Ports, Rules, block_without, is_port_group, merged,
    next_address,
};
pub use services::{Backend, Change, Frontend, Protocol};
pub use shaping::Bandwidth;
pub use traffic::{Traffic, TrafficCounters};

use crate::address::Addresses;
use crate::firewall::Table;
use crate::policies::Policies;
use crate::pool::Pool;
use crate::services::Services;

/// What a worker's network is made of.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Tells the networks of several Carobs on one machine apart: lower-case hex, at least 6 characters.
    pub instance: String,
    /// Addresses of this worker's pods; the first host address is the bridge's.
    pub pod_cidr: Ipv4Net,
    /// Addresses of the pods of all workers; `pod_cidr` is a part of it, or all of it.
    pub cluster_cidr: Ipv4Net,
    /// Whether this is in a namespace that [`Network::annex`] gave: other workers' pods then lie by way of the machine.
    pub annexed: bool,
    /// Services' addresses: what is sent to one of them that no service has is refused. None where there are no services.
    pub service_cidr: Option<Ipv4Net>,
    /// Where pods have an IPv6 address as well, those of all workers, a /96 or larger: a pod's ends in its IPv4 one.
    pub cluster_cidr6: Option<Ipv6Net>,
    /// Services' IPv6 addresses.
    pub service_cidr6: Option<Ipv6Net>,
    /// Whether pods may reach 169.254.169.254, where clouds tell a machine's secrets.
    pub open_metadata: bool,
}

/// A pod's network, ready to be joined.
#[derive(Debug)]
pub struct PodNetwork {
    /// The namespace; it lives as long as somebody holds it.
    pub netns: OwnedFd,
    /// The pod's address.
    pub address: Ipv4Addr,
    /// Its IPv6 address, where it has one.
    pub address6: Option<Ipv6Addr>,
    /// The bridge's address, the pod's default route.
    pub gateway: Ipv4Addr,
    /// Name of the interface inside.
    pub interface: &'static str,
}

/// A namespace that is linked to the network, and no pod's yet. Its address stays taken until it is given to one.
#[derive(Debug)]
pub struct Link(namespace::Made);

/// Why the network could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a request.
    #[error("cannot {action}")]
    Kernel {
        /// What was attempted.
        action: String,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// All addresses are in use.
    #[error("no free address in {0}: every pod needs one")]
    Exhausted(Ipv4Net),
    /// The CIDR has no room for a bridge and a pod.
    #[error("pod CIDR {0} is too small: at least a /29 is needed")]
    TooSmall(Ipv4Net),
    /// Another network of this machine overlaps.
    #[error("{wanted} overlaps {taken} on interface {interface}: choose another with --pod-cidr or --service-cidr")]
    Overlap {
        /// What was asked for.
        wanted: IpNet,
        /// What is there.
        taken: IpNet,
        /// Where it is.
        interface: String,
    },
    /// The thread that makes namespaces ended.
    #[error("the network is shut down")]
    Closed,
}

impl Error {
    fn kernel(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let action = action.into();
        move |source| Self::Kernel { action, source }
    }
}

/// One worker's network. Clones share it.
#[derive(Clone)]
pub struct Network {
    shared: Arc<Shared>,
}

struct Shared {
    config: NetworkConfig,
    instance: String,
    gateway: Ipv4Addr,
    cidr6: Option<Ipv6Net>,
    mtu: u32,
    addresses: Arc<Mutex<Addresses>>,
    owners: Mutex<HashMap<String, Ipv4Addr>>,
    pool: Pool,
    /// Of each kind of addresses that pods have.
    services: Mutex<Vec<Services>>,
    policies: Mutex<Vec<Policies>>,
    traffic: TrafficCounters,
    told: Mutex<Told>,
    /// Rules are being put back, and aren't all there.
    unfinished: Mutex<bool>,
}

/// Does something with each, also where one refuses; the first refusal is returned.
fn each<T>(all: &mut [T], work: impl FnMut(&mut T) -> Result<(), Error>) -> Result<(), Error> {
    all.iter_mut().map(work).fold(Ok(()), Result::and)
}

/// Lists that the rules were told as wholes.
#[derive(Default)]
struct Told {
    nodes: BTreeSet<IpAddr>,
    doors: nodes::Doors,
    held: Vec<IpAddr>,
}

impl Shared {
    /// The tables of this worker's rules.
    fn tables(&self) -> impl Iterator<Item = Table> {
        firewall::tables(&self.instance, self.cidr6.is_some())
    }

    fn write_told(&self) -> Result<(), Error> {
        let told = lock(&self.told);
        self.tables().try_for_each(|table| {
            traffic::set_nodes(&table, told.nodes.iter().copied())?;
            firewall::close(&table, &told.doors)?;
            firewall::hold(&table, &told.held)
        })
    }

    /// Puts the rules back if somebody has taken them away; whether that was so.
    fn restore(&self) -> Result<bool, Error> {
        let mut unfinished = lock(&self.unfinished);
        if !*unfinished && firewall::are_there(self.tables()).map_err(Error::kernel("look for the rules"))? {
            return Ok(false);
        }
        *unfinished = true;
        firewall::install(&self.config)?;
        each(&mut lock(&self.policies), Policies::restore)?;
        each(&mut lock(&self.services), Services::restore)?;
        lock(&self.addresses).taken().into_iter().try_for_each(|pod| self.traffic.resume(pod))?;
        self.write_told()?;
        *unfinished = false;
        Ok(true)
    }
}

impl Network {
    /// Makes the bridge and the packet rules, or takes over those of an earlier run. No namespace is made ahead before
    /// [`Network::fill_pool`]: first the pods of an earlier run are to be adopted.
    pub async fn start(config: NetworkConfig) -> Result<Self, Error> {
        let gateway = address::gateway(config.pod_cidr)?;
        let setup = config.clone();
        let (mtu, traffic) = tokio::task::spawn_blocking(move || {
            let own = Ipv4Net::new_assert(gateway, setup.pod_cidr.prefix_len());
            let own6 = setup.cluster_cidr6.map(|range| address6(range, gateway));
            let cluster6 = setup.cluster_cidr6.map(|range| block6(range, setup.cluster_cidr));
            let ranges: Vec<IpNet> =
                std::iter::once(setup.cluster_cidr.into()).chain(cluster6.map(IpNet::from)).collect();
            let bridge = bridge::ensure(&setup.instance, own, own6, &ranges)?;
            let route = |range: IpNet| match (range, own6) {
                (IpNet::V6(_), Some(own)) => bridge::route(bridge, range, own.into()),
                _ => bridge::route(bridge, range, gateway.into()),
            };
            if setup.annexed {
                // What no pod of its block has goes nowhere: it came by way of the machine.
                let own = setup.cluster_cidr6.map(|range| block6(range, setup.pod_cidr).into());
                own.into_iter().try_for_each(route)?;
            } else {
                // What no worker has goes nowhere, and other Carobs see whose the range is.
                ranges
                    .iter()
                    .filter(|range| **range != IpNet::from(setup.pod_cidr))
                    .try_for_each(|range| route(*range))?;
            }
            let services = setup.service_cidr.map(IpNet::from);
            services.into_iter().chain(setup.service_cidr6.map(IpNet::from)).try_for_each(route)?;
            firewall::install(&setup)?;
            shaping::remove_orphans(&setup.instance).map_err(Error::kernel("remove links of pods that are gone"))?;
            bridge::enable_forwarding(own6.is_some())?;
            Ok::<_, Error>((bridge::uplink_mtu()?, TrafficCounters::open(&setup.instance, None)?))
        })
        .await
        .map_err(|_| Error::Closed)??;
        let addresses = Arc::new(Mutex::new(Addresses::new(config.pod_cidr, gateway)));
        let maker = namespace::Maker {
            instance: config.instance.clone(),
            gateway,
            cidr6: config.cluster_cidr6,
            mtu,
            addresses: Arc::clone(&addresses),
            traffic: traffic.clone(),
        };
        let pool = Pool::start(maker)?;
        let tables = || firewall::tables(&config.instance, config.cluster_cidr6.is_some());
        let services = Mutex::new(tables().map(Services::new).collect());
        let policies = Mutex::new(tables().map(Policies::new).collect());
        let owners = Mutex::default();
        Ok(Self {
            shared: Arc::new(Shared {
                instance: config.instance.clone(),
                gateway,
                cidr6: config.cluster_cidr6,
                config,
                told: Mutex::default(),
                unfinished: Mutex::default(),
                mtu,
                addresses,
                owners,
                pool,
                services,
                policies,
                traffic,
            }),
        })
    }

    /// Begins to keep so many namespaces ready. To be called once.
    pub fn fill_pool(&self, target: usize) {
        self.shared.pool.fill(target);
    }

    /// A network for a pod: out of the pool, or made now.
    pub async fn attach(&self, pod_uid: &str) -> Result<PodNetwork, Error> {
        let made = self.shared.pool.take().await?;
        Ok(self.owned(pod_uid, made))
    }

    /// Links a namespace that is there, and empty, to the network: for a pod to come.
    pub async fn link(&self, netns: OwnedFd) -> Result<Link, Error> {
        self.shared.pool.link(netns).await.map(Link)
    }

    /// Makes such a link the pod's.
    pub fn give(&self, pod_uid: &str, link: Link) -> PodNetwork {
        self.owned(pod_uid, link.0)
    }

    fn owned(&self, pod_uid: &str, made: namespace::Made) -> PodNetwork {
        lock(&self.shared.owners).insert(pod_uid.to_owned(), made.address);
        PodNetwork {
            netns: made.netns,
            address: made.address,
            address6: self.address6(made.address),
            gateway: self.shared.gateway,
            interface: namespace::INTERFACE,
        }
    }

    /// The IPv6 address of who has this one, where pods have any.
    pub fn address6(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        self.shared.cidr6.map(|range| address6(range, address))
    }

    /// The addresses of who has this one.
    fn all_of(&self, address: Ipv4Addr) -> Vec<IpAddr> {
        std::iter::once(address.into()).chain(self.address6(address).map(IpAddr::from)).collect()
    }

    /// Keeps the address of a pod that an earlier run attached.
    pub fn adopt(&self, pod_uid: &str, address: Ipv4Addr) {
        lock(&self.shared.addresses).reserve(address);
        if let Err(error) = self.shared.traffic.resume(address) {
            tracing::warn!(%error, pod_uid, "what a pod receives and sends may not be counted");
        }
        lock(&self.shared.owners).insert(pod_uid.to_owned(), address);
    }

    /// Leads ports of this machine to ports of a pod that has these addresses, the first of them of IPv4, until it is
    /// released. Gives those that lead nowhere: their addresses aren't this machine's.
    pub async fn publish(&self, pod_uid: &str, pod: Vec<IpAddr>, ports: Vec<HostPort>) -> Result<Vec<HostPort>, Error> {
        if ports.is_empty() {
            return Ok(Vec::new());
        }
        if let Some(IpAddr::V4(address)) = pod.first()
            && ports.iter().any(HostPort::is_on_loopback)
        {
            bridge::accept_loopback(&bridge::port_name(&self.shared.instance, *address))?;
        }
        let (uid, gateways) = (pod_uid.to_owned(), self.all_of(self.shared.gateway));
        self.with_services(move |known| {
            let (ports, elsewhere) = host_port::on_this_machine(ports, &gateways)?;
            let mut pod = pod.into_iter();
            each(known, |known| {
                let frontends =
                    pod.next().into_iter().flat_map(|pod| ports.iter().flat_map(move |port| port.frontends(pod)));
                known.publish(&uid, frontends.collect())
            })?;
            Ok(elsewhere)
        })
        .await
    }

    /// Limits how fast the pod that has this address sends and receives.
    pub async fn shape(&self, pod: Ipv4Addr, bandwidth: Bandwidth) -> Result<(), Error> {
        if bandwidth == Bandwidth::default() {
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        let work = move || shaping::shape(&shared.instance, pod, bandwidth);
        let shaped = tokio::task::spawn_blocking(work).await.map_err(|_| Error::Closed)?;
        shaped.map_err(Error::kernel(format!("limit the bandwidth of {pod}")))
    }

    /// What this worker's pods receive and send, until they are released.
    pub fn traffic(&self) -> &TrafficCounters {
        &self.shared.traffic
    }

    /// Tells the addresses of the cluster's nodes, which are not the internet to pods, and no others.
    pub async fn set_nodes(&self, addresses: BTreeSet<IpAddr>) -> Result<(), Error> {
        self.tell(move |told| told.nodes = addresses).await
    }

    async fn tell(&self, change: impl FnOnce(&mut Told) + Send + 'static) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let work = move || {
            change(&mut lock(&shared.told));
            shared.write_told()
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| Error::Closed)?
    }

    /// Puts the rules back if somebody has taken them away, as `nft flush ruleset` does; whether that was so. What they
    /// counted is lost.
    pub async fn restore(&self) -> Result<bool, Error> {
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || shared.restore()).await.map_err(|_| Error::Closed)?
    }

    /// Gives a pod's address and its ports of this machine back. Its link goes with its namespace.
    pub async fn release(&self, pod_uid: &str) {
        let uid = pod_uid.to_owned();
        let unpublish = move |known: &mut [Services]| each(known, |known| known.unpublish(&uid));
        if let Err(error) = self.with_services(unpublish).await {
            tracing::warn!(%error, pod_uid, "ports of a pod that is gone may still lead to it");
        }
        let owned = lock(&self.shared.owners).remove(pod_uid);
        if let Some(address) = owned {
            if let Err(error) = shaping::release(&self.shared.instance, address) {
                tracing::warn!(%error, pod_uid, "a link of a pod that is gone is still there");
            }
            if let Err(error) = self.shared.traffic.end(address) {
                tracing::warn!(%error, pod_uid, "counters of a pod that is gone are still there");
            }
            // The next owner's policies would let them through as what is under way.
            let all = self.all_of(address);
            let forget = move || all.into_iter().try_for_each(conntrack::forget_address);
            let forgotten = tokio::task::spawn_blocking(forget).await;
            if let Ok(Err(error)) = forgotten {
                tracing::warn!(%error, pod_uid, "flows of a pod that is gone may go on with the next one that has its address");
            }
            lock(&self.shared.addresses).free(address);
        }
    }

    /// A network namespace for a further worker of this machine, whose pods have the addresses of `block`: linked to this
    /// one and routed. `kept` is the one that it had before, if it is still there. To be called in this machine's namespace.
    pub async fn annex(&self, block: Ipv4Net, kept: Option<OwnedFd>) -> Result<OwnedFd, Error> {
        let shared = Arc::clone(&self.shared);
        let work = move || annex::prepare(&shared.instance, (shared.gateway, shared.cidr6), shared.mtu, block, kept);
        tokio::task::spawn_blocking(work).await.map_err(|_| Error::Closed)?
    }

    /// Routes to the pods of these nodes and of no others, from the machine that has this address; those that can't be had are said. Other nodes' pods aren't for
    /// a network that is annexed: the machine's own leads to them.
    pub async fn set_ways(&self, ways: nodes::Ways, machine: Option<Ipv4Addr>) -> Result<Vec<(IpNet, Error)>, Error> {
        let shared = Arc::clone(&self.shared);
        let work = move || {
            let (gateway, cidr6, mtu) = (shared.gateway, shared.cidr6, shared.mtu);
            nodes::Here { instance: &shared.instance, gateway, cidr6, machine, mtu }.set_ways(&ways)
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| Error::Closed)?
    }

    /// Closes these addresses and ports to this worker's pods, and no others: workers answer the gateway there.
    pub async fn close(&self, doors: nodes::Doors) -> Result<(), Error> {
        self.tell(move |told| told.doors = doors).await
    }

    /// The addresses of the pods of all workers.
    pub fn cluster_cidr(&self) -> Ipv4Net {
        self.shared.config.cluster_cidr
    }

    /// The bridge's address: the pods' way out and the address under which they reach this machine.
    pub fn gateway_address(&self) -> Ipv4Addr {
        self.shared.gateway
    }

    /// Makes the kernel know these services and no others. Services of an earlier run hold until then, and connections to
    /// a service that stays notice nothing.
    pub async fn replace_services(&self, services: HashMap<Frontend, Backend>) -> Result<(), Error> {
        self.with_services(move |known| {
            let mut six = services;
            let four = six.extract_if(|frontend, _| frontend.address.is_ipv4()).collect();
            let mut services = [four, six].into_iter();
            each(known, |known| known.replace(services.next().unwrap_or_default()))
        })
        .await
    }

    /// Makes these addresses this machine's own, for services alone, and no others: it answers for them on its networks,
    /// and what no service wants is refused.
    pub async fn hold(&self, addresses: Vec<IpAddr>) -> Result<(), Error> {
        let (own, held) = (self.all_of(self.shared.gateway), addresses.clone());
        self.tell(move |told| told.held = held).await?;
        let shared = Arc::clone(&self.shared);
        let work = move || bridge::hold(&shared.instance, &own, &addresses);
        tokio::task::spawn_blocking(work).await.map_err(|_| Error::Closed)?
    }

    /// Which of these ports of the machine another Carob's Services have as well, with its id: one of the two gets the
    /// connections.
    pub async fn contested(&self, ports: Vec<Frontend>) -> Result<Vec<(Frontend, String)>, Error> {
        let shared = Arc::clone(&self.shared);
        let work = move || services::contested(&shared.instance, &ports);
        let found = tokio::task::spawn_blocking(work).await.map_err(|_| Error::Closed)?;
        found.map_err(Error::kernel("look for other Carobs' ports"))
    }

    /// Carries changes of services out, all in one step.
    pub async fn change_services(&self, changes: Vec<Change>) -> Result<(), Error> {
        self.with_services(move |known| {
            let (four, six) = changes.into_iter().partition(|(frontend, _)| frontend.address.is_ipv4());
            let mut changes = [four, six].into_iter();
            each(known, |known| known.change(changes.next().unwrap_or_default()))
        })
        .await
    }

    /// Makes the kernel know the policies that these changes make up, and no others. Those of an earlier run hold until
    /// then.
    pub async fn replace_policies(&self, changes: Vec<PolicyChange>) -> Result<(), Error> {
        self.with_policies(move |known| known.replace(changes.clone())).await
    }

    /// Carries changes of policies out, all in one step. What is under way goes on.
    pub async fn change_policies(&self, changes: Vec<PolicyChange>) -> Result<(), Error> {
        self.with_policies(move |known| known.change(changes.clone())).await
    }

    async fn with_policies(
        &self,
        work: impl FnMut(&mut Policies) -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let work = move || each(&mut lock(&shared.policies), work);
        tokio::task::spawn_blocking(work).await.map_err(|_| Error::Closed)?
    }

    async fn with_services<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut [Services]) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || work(&mut lock(&shared.services))).await.map_err(|_| Error::Closed)?
    }

    /// Removes the bridge, what is left of its links, and the packet rules of an instance.
    pub async fn teardown(instance: &str) -> Result<(), Error> {
        let instance = instance.to_owned();
        tokio::task::spawn_blocking(move || {
            firewall::remove(&instance)?;
            bridge::remove(&instance)
        })
        .await
        .map_err(|_| Error::Closed)?
    }
}

/// The first address of a CIDR: the bridge's.
pub fn gateway_of(pod_cidr: Ipv4Net) -> Result<Ipv4Addr, Error> {
    address::gateway(pod_cidr)
}

/// The IPv6 address of whoever has this IPv4 one: the last 32 bits of an address of `cidr6`.
pub fn address6(cidr6: Ipv6Net, address: Ipv4Addr) -> Ipv6Addr {
    address::in_range6(cidr6, address)
}

/// The IPv6 addresses of those who have the IPv4 ones of a block.
pub fn block6(cidr6: Ipv6Net, block: Ipv4Net) -> Ipv6Net {
    Ipv6Net::new_assert(address6(cidr6, block.network()), 96 + block.prefix_len())
}

/// The first of `candidates` that no other interface of this machine overlaps; `instance`'s own bridge doesn't count.
pub fn free_cidr(instance: &str, candidates: impl IntoIterator<Item = Ipv4Net>) -> Result<Ipv4Net, Error> {
    let mut refused = None;
    for candidate in candidates {
        match bridge::overlap(instance, candidate.into())? {
            None => return Ok(candidate),
            Some((taken, interface)) => {
                refused = refused.or(Some(Error::Overlap { wanted: candidate.into(), taken, interface }));
            }
        }
    }
    Err(refused.unwrap_or(Error::Closed))
}

/// What this machine lacks for pods' networks: name, whether it works, and why not.
pub fn check() -> Vec<(&'static str, Result<(), Error>)> {
    vec![
        ("network namespaces", namespace::probe()),
        ("bridge and veth links", bridge::probe()),
        ("nftables", firewall::probe()),
    ]
}

/// Locks; a panic of another holder leaves plain data that is still right.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
