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
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

pub use dns::{Dns, DnsSockets, NamedEndpoint, NamedPort, Resolvers, ServiceNames};
pub use firewall::Side;
pub use host_port::HostPort;
pub use ipnet::{Ipv4Net, Ipv6Net};
pub use nodes::{Doors, Ways};
pub use policies::{
    Allow, Direction, GroupId, Member, Peers, PolicyChange, Ports, Rules, block_without, is_port_group, merged,
};
pub use services::{Backend, Change, Frontend, Protocol};
pub use shaping::Bandwidth;
pub use traffic::{Traffic, TrafficCounters};

use crate::address::Addresses;
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
        wanted: Ipv4Net,
        /// What is there.
        taken: Ipv4Net,
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
    instance: String,
    gateway: Ipv4Addr,
    mtu: u32,
    addresses: Arc<Mutex<Addresses>>,
    owners: Mutex<HashMap<String, Ipv4Addr>>,
    pool: Pool,
    services: Mutex<Services>,
    policies: Mutex<Policies>,
    traffic: TrafficCounters,
}

impl Network {
    /// Makes the bridge and the packet rules, or takes over those of an earlier run. No namespace is made ahead before
    /// [`Network::fill_pool`]: first the pods of an earlier run are to be adopted.
    pub async fn start(config: NetworkConfig) -> Result<Self, Error> {
        let gateway = address::gateway(config.pod_cidr)?;
        let setup = config.clone();
        let (mtu, traffic) = tokio::task::spawn_blocking(move || {
            let own = Ipv4Net::new_assert(gateway, setup.pod_cidr.prefix_len());
            let bridge = bridge::ensure(&setup.instance, own, setup.cluster_cidr)?;
            if setup.cluster_cidr != setup.pod_cidr && !setup.annexed {
                // What no worker has goes nowhere, and other Carobs see whose the range is.
                bridge::route(bridge, setup.cluster_cidr, gateway)?;
            }
            if let Some(services) = setup.service_cidr {
                bridge::route(bridge, services, gateway)?;
            }
            firewall::install(&setup)?;
            shaping::remove_orphans(&setup.instance).map_err(Error::kernel("remove links of pods that are gone"))?;
            bridge::enable_forwarding()?;
            Ok::<_, Error>((bridge::uplink_mtu()?, TrafficCounters::open(&setup.instance, None)?))
        })
        .await
        .map_err(|_| Error::Closed)??;
        let addresses = Arc::new(Mutex::new(Addresses::new(config.pod_cidr, gateway)));
        let maker = namespace::Maker {
            instance: config.instance.clone(),
            gateway,
            mtu,
            addresses: Arc::clone(&addresses),
            traffic: traffic.clone(),
        };
        let pool = Pool::start(maker)?;
        let services = Mutex::new(Services::new(&config.instance));
        let policies = Mutex::new(Policies::new(&config.instance));
        let owners = Mutex::default();
        Ok(Self {
            shared: Arc::new(Shared {
                instance: config.instance,
                gateway,
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
            gateway: self.shared.gateway,
            interface: namespace::INTERFACE,
        }
    }

    /// Keeps the address of a pod that an earlier run attached.
    pub fn adopt(&self, pod_uid: &str, address: Ipv4Addr) {
        lock(&self.shared.addresses).reserve(address);
        // An earlier version left it on.
        if let Err(error) = netlink::without_ipv6(&bridge::port_name(&self.shared.instance, address)) {
            tracing::warn!(%error, pod_uid, "a pod may tell this machine false ways by IPv6");
        }
        if let Err(error) = self.shared.traffic.resume(address) {
            tracing::warn!(%error, pod_uid, "what a pod receives and sends may not be counted");
        }
        lock(&self.shared.owners).insert(pod_uid.to_owned(), address);
    }

    /// Leads ports of this machine to ports of a pod, until it is released. Gives those that lead nowhere: their addresses
    /// aren't this machine's.
    pub async fn publish(&self, pod_uid: &str, pod: Ipv4Addr, ports: Vec<HostPort>) -> Result<Vec<HostPort>, Error> {
        if ports.is_empty() {
            return Ok(Vec::new());
        }
        if ports.iter().any(HostPort::is_on_loopback) {
            bridge::accept_loopback(&bridge::port_name(&self.shared.instance, pod))?;
        }
        let (uid, gateway) = (pod_uid.to_owned(), self.shared.gateway);
        self.with_services(move |known| {
            let (ports, elsewhere) = host_port::on_this_machine(ports, gateway)?;
            known.publish(&uid, ports.iter().flat_map(|port| port.frontends(pod)).collect())?;
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
    pub async fn set_nodes(&self, addresses: BTreeSet<Ipv4Addr>) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let work = move || traffic::set_nodes(&shared.instance, addresses);
        tokio::task::spawn_blocking(work).await.map_err(|_| Error::Closed)?
    }

    /// Gives a pod's address and its ports of this machine back. Its link goes with its namespace.
    pub async fn release(&self, pod_uid: &str) {
        let uid = pod_uid.to_owned();
        if let Err(error) = self.with_services(move |known| known.unpublish(&uid)).await {
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
            let forgotten = tokio::task::spawn_blocking(move || conntrack::forget_address(address)).await;
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
        let work = move || annex::prepare(&shared.instance, shared.gateway, shared.mtu, block, kept);
        tokio::task::spawn_blocking(work).await.map_err(|_| Error::Closed)?
    }

    /// Routes to the pods of these nodes and of no others; those that can't be had are said. Other nodes' pods aren't for
    /// a network that is annexed: the machine's own leads to them.
    pub async fn set_ways(&self, ways: nodes::Ways) -> Result<Vec<(Ipv4Net, Error)>, Error> {
        let shared = Arc::clone(&self.shared);
        let work = move || {
            let here = nodes::Here { instance: &shared.instance, gateway: shared.gateway, mtu: shared.mtu };
            here.set_ways(&ways)
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| Error::Closed)?
    }

    /// Closes these addresses and ports to this worker's pods, and no others: workers answer the gateway there.
    pub async fn close(&self, doors: nodes::Doors) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let work = move || firewall::close(&shared.instance, &doors);
        tokio::task::spawn_blocking(work).await.map_err(|_| Error::Closed)?
    }

    /// The bridge's address: the pods' way out and the address under which they reach this machine.
    pub fn gateway_address(&self) -> Ipv4Addr {
        self.shared.gateway
    }

    /// Makes the kernel know these services and no others. Services of an earlier run hold until then, and connections to
    /// a service that stays notice nothing.
    pub async fn replace_services(&self, services: HashMap<Frontend, Backend>) -> Result<(), Error> {
        self.with_services(move |known| known.replace(services)).await
    }

    /// Makes these addresses this machine's own, for services alone, and no others: it answers for them on its networks,
    /// and what no service wants is refused.
    pub async fn hold(&self, addresses: Vec<Ipv4Addr>) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let work = move || {
            firewall::hold(&shared.instance, &addresses)?;
            bridge::hold(&shared.instance, shared.gateway, &addresses)
        };
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
        self.with_services(move |known| known.change(changes)).await
    }

    /// Makes the kernel know the policies that these changes make up, and no others. Those of an earlier run hold until
    /// then.
    pub async fn replace_policies(&self, changes: Vec<PolicyChange>) -> Result<(), Error> {
        self.with_policies(move |known| known.replace(changes)).await
    }

    /// Carries changes of policies out, all in one step. What is under way goes on.
    pub async fn change_policies(&self, changes: Vec<PolicyChange>) -> Result<(), Error> {
        self.with_policies(move |known| known.change(changes)).await
    }

    async fn with_policies(
        &self,
        work: impl FnOnce(&mut Policies) -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || work(&mut lock(&shared.policies))).await.map_err(|_| Error::Closed)?
    }

    async fn with_services<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Services) -> Result<T, Error> + Send + 'static,
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
        match bridge::overlap(instance, candidate)? {
            None => return Ok(candidate),
            Some((taken, interface)) => {
                refused = refused.or(Some(Error::Overlap { wanted: candidate, taken, interface }));
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
