//! The network of the pods of one worker: namespaces, addresses, a bridge, a way out.
//!
//! Every pod gets a network namespace with loopback, one address of the pod CIDR on `eth0` and a default route to the
//! bridge. Namespaces are made ahead of need and wait in a pool, so that a starting pod finds one ready. Nothing here is
//! kept in files: the kernel is the state, and a worker that starts again finds out from it which addresses are taken.

mod address;
mod bridge;
mod firewall;
mod namespace;
mod netlink;
mod pool;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

pub use ipnet::Ipv4Net;

use crate::address::Addresses;
use crate::pool::Pool;

/// What a worker's network is made of.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Tells the networks of several Carobs on one machine apart: lower-case hex, at least 6 characters.
    pub instance: String,
    /// Pods' addresses; the first host address is the bridge's.
    pub pod_cidr: Ipv4Net,
    /// How many namespaces wait ready.
    pub pool: usize,
    /// Where pods find the API server.
    pub api_service: Option<ApiService>,
}

/// The `kubernetes` service as pods see it: connections to `service` go to `target`.
#[derive(Clone, Copy, Debug)]
pub struct ApiService {
    /// Address and port that pods are told.
    pub service: SocketAddrV4,
    /// Where the API server listens, an address that pods can reach.
    pub target: SocketAddrV4,
}

/// A pod's network, ready to be joined.
#[derive(Debug)]
pub struct PodNetwork {
    /// The namespace; it lives as long as somebody holds it.
    pub netns: OwnedFd,
    /// The pod's address.
    pub address: Ipv4Addr,
    /// Length of the pod CIDR's prefix.
    pub prefix: u8,
    /// The bridge's address, the pod's default route.
    pub gateway: Ipv4Addr,
    /// Name of the interface inside.
    pub interface: &'static str,
}

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
    #[error("pod CIDR {wanted} overlaps {taken} on interface {interface}: choose another with --pod-cidr")]
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
    config: NetworkConfig,
    gateway: Ipv4Addr,
    addresses: Arc<Mutex<Addresses>>,
    owners: Mutex<HashMap<String, Ipv4Addr>>,
    pool: Pool,
}

impl Network {
    /// Makes the bridge and the packet rules, or takes over those of an earlier run. No namespace is made ahead before
    /// [`Network::fill_pool`]: first the pods of an earlier run are to be adopted.
    pub async fn start(config: NetworkConfig) -> Result<Self, Error> {
        let gateway = address::gateway(config.pod_cidr)?;
        let setup = config.clone();
        let (bridge, mtu) = tokio::task::spawn_blocking(move || {
            let bridge = bridge::ensure(&setup.instance, Ipv4Net::new_assert(gateway, setup.pod_cidr.prefix_len()))?;
            firewall::install(&setup)?;
            bridge::enable_forwarding()?;
            Ok((bridge, bridge::uplink_mtu()?))
        })
        .await
        .map_err(|_| Error::Closed)??;
        let addresses = Arc::new(Mutex::new(Addresses::new(config.pod_cidr, gateway)));
        let maker = namespace::Maker {
            instance: config.instance.clone(),
            bridge,
            gateway,
            mtu,
            prefix: config.pod_cidr.prefix_len(),
            addresses: Arc::clone(&addresses),
        };
        let pool = Pool::start(maker, config.pool)?;
        Ok(Self { shared: Arc::new(Shared { config, gateway, addresses, owners: Mutex::default(), pool }) })
    }

    /// Begins to make namespaces ahead of need.
    pub fn fill_pool(&self) {
        self.shared.pool.fill();
    }

    /// A network for a pod: out of the pool, or made now.
    pub async fn attach(&self, pod_uid: &str) -> Result<PodNetwork, Error> {
        let made = self.shared.pool.take().await?;
        lock(&self.shared.owners).insert(pod_uid.to_owned(), made.address);
        Ok(PodNetwork {
            netns: made.netns,
            address: made.address,
            prefix: self.shared.config.pod_cidr.prefix_len(),
            gateway: self.shared.gateway,
            interface: namespace::INTERFACE,
        })
    }

    /// Keeps the address of a pod that an earlier run attached.
    pub fn adopt(&self, pod_uid: &str, address: Ipv4Addr) {
        lock(&self.shared.addresses).reserve(address);
        lock(&self.shared.owners).insert(pod_uid.to_owned(), address);
    }

    /// Gives a pod's address back. Its link goes with its namespace.
    pub fn release(&self, pod_uid: &str) {
        if let Some(address) = lock(&self.shared.owners).remove(pod_uid) {
            lock(&self.shared.addresses).free(address);
        }
    }

    /// The bridge's address: the pods' way out and the address under which they reach this machine.
    pub fn gateway_address(&self) -> Ipv4Addr {
        self.shared.gateway
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

/// The first of `candidates` that no other interface of this machine overlaps; `instance`'s own bridge doesn't count.
pub fn free_cidr(instance: &str, candidates: impl IntoIterator<Item = Ipv4Net>) -> Result<Ipv4Net, Error> {
    let mut refused = None;
    for candidate in candidates {
        match bridge::overlap(instance, candidate)? {
            None => return Ok(candidate),
            Some(error) => refused = refused.or(Some(error)),
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
