//! Where a Carob sits: the addresses that it chooses at its first start, and which part of them each worker's pods get.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use carob_controllers::NodeRanges;
use carob_gateway::{IpNet, PodRange};
use carob_network::{DnsSockets, Ipv4Net, Ipv6Net, Network, NetworkConfig};
use carob_worker::ClusterInfo;
use nix::fcntl::{Flock, FlockArg};

use crate::config::NetworkSettings;
use crate::data_dir::{DataDir, Instance, WorkerDir, random_id};
use crate::ranges::{self, Ranges, overlap};

/// What pods are told of the cluster's names.
pub const CLUSTER_DOMAIN: &str = "cluster.local";
/// The port of the `kubernetes` service.
const API_SERVICE_PORT: u16 = 443;
/// The port of the `kube-dns` service.
const DNS_PORT: u16 = 53;
/// How often the meter reads the counters.
pub const METER_INTERVAL: Duration = Duration::from_secs(1);
/// Held while a Carob chooses addresses that no other has.
const MACHINE_LOCK: &str = "/run/carob.lock";
/// How large a part of the pods' addresses one worker gets: two thousand, for a thousand pods and those that come and go. A smaller
/// range is the first worker's whole.
const BLOCK_PREFIX: u8 = 21;

/// What was asked for on the command line.
pub struct Wanted {
    /// Where the API is served.
    pub address: SocketAddr,
    pub pod_cidr: Option<Ranges>,
    pub service_cidr: Option<Ranges>,
    /// Workers on this machine.
    pub workers: u8,
    pub open_metadata: bool,
}

/// Where this Carob sits on the machine and its network.
pub struct Site {
    pub instance: Instance,
    /// The pods' addresses, of all workers.
    pub pod_cidr: Ipv4Net,
    /// Where the API is served.
    pub address: SocketAddr,
    /// The first worker's address among the pods.
    pub bridge: Ipv4Addr,
    /// The `kubernetes` service as pods see it.
    pub service: SocketAddrV4,
    /// Where the first worker answers for names.
    dns: Option<SocketAddrV4>,
    workers: u8,
    open_metadata: bool,
}

/// What the first worker's pods need of the machine.
pub struct PodNetwork {
    pub network: Network,
    pub dns: DnsSockets,
}

impl Site {
    /// Chooses the addresses, at the first start, and sets up the first worker's network on them. One Carob of the machine
    /// at a time does so: two that look at once would choose the same.
    pub async fn claim(dir: &DataDir, wanted: &Wanted) -> Result<(Self, Option<PodNetwork>)> {
        let _turn = tokio::task::spawn_blocking(machine_lock).await??;
        let before = dir.instance()?;
        let (instance, pod_cidr) = instance(dir, wanted)?;
        let mut site = Self {
            bridge: carob_network::gateway_of(block(pod_cidr, 1)?)?,
            service: SocketAddrV4::new(first_host(instance.service_cidr), API_SERVICE_PORT),
            instance,
            pod_cidr,
            address: wanted.address,
            dns: None,
            workers: wanted.workers,
            open_metadata: wanted.open_metadata,
        };
        if wanted.workers == 0 {
            return Ok((site, None));
        }
        // Whether there is room for all is said before anything is made.
        block(pod_cidr, wanted.workers)?;
        let config = site.network(&dir.worker(1))?;
        let network = match Network::start(config).await {
            // Nothing is made yet, and ranges that can't be had are not to be kept.
            Err(error @ carob_network::Error::Overlap { .. }) => {
                dir.put_instance(before.as_ref())?;
                Err(error)
            }
            outcome => outcome,
        };
        let network = network.context("cannot set up the pods' network")?;
        let dns = DnsSockets::bind(site.bridge).with_context(|| format!("cannot listen for DNS on {}", site.bridge))?;
        site.dns = Some(dns.address()?);
        Ok((site, Some(PodNetwork { network, dns })))
    }

    /// The DNS server's address among the Services: the tenth, as everywhere in Kubernetes.
    pub fn dns_service(&self) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::from(u32::from(*self.service.ip()) + 9), DNS_PORT)
    }

    /// The cluster's DNS as pods see it, and where it listens, if not only on workers elsewhere.
    pub fn dns(&self) -> (SocketAddrV4, Option<SocketAddrV4>) {
        (self.dns_service(), self.dns)
    }

    /// Where pods reach the API: by the first worker, or else where workers elsewhere do.
    pub fn api_endpoint(&self) -> SocketAddrV4 {
        if self.workers > 0 {
            return self.api_on_bridge();
        }
        match self.machine_address().unwrap_or_else(carob_worker::machine_address) {
            IpAddr::V4(ip) => SocketAddrV4::new(ip, self.address.port()),
            IpAddr::V6(_) => self.api_on_bridge(),
        }
    }

    /// Where pods reach the API by the first worker, whatever address it is served on for others.
    pub fn api_on_bridge(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.bridge, self.address.port())
    }

    /// Whether pods may ask for the machine's metadata.
    pub fn open_metadata(&self) -> bool {
        self.open_metadata
    }

    /// The first worker's address among machines, if the API's tells: where others find the one, they find the other.
    pub fn machine_address(&self) -> Option<IpAddr> {
        Some(self.address.ip()).filter(|ip| !ip.is_unspecified() && !ip.is_loopback())
    }

    /// Under which addresses the API is known beside the one that it is served on: where that is every address, under all.
    pub fn names(&self) -> Vec<String> {
        let mut names = vec![self.bridge.to_string(), self.service.ip().to_string()];
        if self.address.ip().is_unspecified() {
            let all = nix::ifaddrs::getifaddrs().into_iter().flatten();
            let addresses = all.filter_map(|interface| Some(interface.address?.as_sockaddr_in()?.ip()));
            names.extend(addresses.filter(|ip| !ip.is_loopback()).map(|ip| ip.to_string()));
        }
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Addresses of pods for nodes that join.
    pub fn node_ranges(&self) -> NodeRanges {
        NodeRanges {
            first: self.pod_cidr.network(),
            first6: self.instance.pod_cidr6.map(|range| range.network()),
            prefix: self.pod_cidr.prefix_len(),
            block: self.pod_cidr.prefix_len().max(BLOCK_PREFIX),
            reserved: self.workers.max(1).into(),
        }
    }

    /// Pods' addresses, and which of them nodes get that join.
    pub fn pods(&self) -> PodRange {
        let whole = [Some(IpNet::V4(self.pod_cidr)), self.instance.pod_cidr6.map(IpNet::V6)];
        let parsed = |block: Vec<String>| block.iter().map(|range| range.parse().ok()).collect::<Option<Vec<_>>>();
        PodRange {
            whole: whole.into_iter().flatten().collect(),
            blocks: self.node_ranges().given().filter_map(parsed).collect(),
        }
    }

    /// How many workers are on this machine.
    pub fn workers(&self) -> u8 {
        self.workers
    }

    /// The addresses of a worker's pods.
    pub fn block(&self, worker: u8) -> Result<Ipv4Net> {
        block(self.pod_cidr, worker)
    }

    /// The same addresses, of IPv6, in a dual-stack cluster.
    pub fn block6(&self, block: Ipv4Net) -> Option<Ipv6Net> {
        self.instance.pod_cidr6.map(|range| carob_network::block6(range, block))
    }

    /// The first worker's IPv6 address among the pods.
    pub fn bridge6(&self) -> Option<Ipv6Addr> {
        self.instance.pod_cidr6.map(|range| carob_network::address6(range, self.bridge))
    }

    /// A worker's network.
    pub fn network(&self, worker: &WorkerDir) -> Result<NetworkConfig> {
        Ok(NetworkConfig {
            instance: self.instance.id.clone(),
            pod_cidr: self.block(worker.number)?,
            cluster_cidr: self.pod_cidr,
            annexed: worker.number > 1,
            service_cidr: Some(self.instance.service_cidr),
            cluster_cidr6: self.instance.pod_cidr6,
            service_cidr6: self.instance.service_cidr6,
            open_metadata: self.open_metadata,
        })
    }

    /// What pods of a worker are told.
    pub fn cluster(&self, ca_pem: &str, settings: &NetworkSettings, worker: u8) -> ClusterInfo {
        ClusterInfo {
            api_service_ip: IpAddr::V4(*self.service.ip()),
            api_port: self.service.port(),
            ca_pem: ca_pem.to_owned(),
            cluster_domain: CLUSTER_DOMAIN.to_owned(),
            dns_servers: vec![IpAddr::V4(*self.dns_service().ip())],
            // The machine's networks reach the first worker alone.
            load_balancers: if worker == 1 { settings.pool() } else { Vec::new() },
            upstream_dns: settings.resolvers.clone(),
        }
    }
}

/// A worker's part of the pods' addresses.
fn block(pod_cidr: Ipv4Net, worker: u8) -> Result<Ipv4Net> {
    let prefix = pod_cidr.prefix_len().max(BLOCK_PREFIX);
    let index = u32::from(worker.max(1)) - 1;
    if index >> u32::from(prefix - pod_cidr.prefix_len()) != 0 {
        bail!("--pod-cidr {pod_cidr} has no room for {worker} workers: each takes a /{BLOCK_PREFIX}");
    }
    let first = u32::from(pod_cidr.network()) + (index << (32 - u32::from(prefix)));
    Ok(Ipv4Net::new(Ipv4Addr::from(first), prefix)?)
}

/// Waits for the other Carobs of this machine.
fn machine_lock() -> Result<Flock<File>> {
    let file = File::create(MACHINE_LOCK).with_context(|| format!("cannot open {MACHINE_LOCK}"))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .with_context(|| format!("cannot lock {MACHINE_LOCK}"))
}

/// What tells this Carob apart, kept from the first start on, and the pods' addresses.
fn instance(dir: &DataDir, wanted: &Wanted) -> Result<(Instance, Ipv4Net)> {
    let kept = dir.instance()?;
    if let Some(kept) = &kept {
        let services = Some(Ranges { v4: kept.service_cidr, v6: kept.service_cidr6 });
        unchanged("--service-cidr", wanted.service_cidr, services, "Services have their addresses from it")?;
        let pods = kept.pod_cidr.map(|v4| Ranges { v4, v6: kept.pod_cidr6 });
        unchanged("--pod-cidr", wanted.pod_cidr, pods, "carob down lets go of it")?;
    }
    let Instance { id, service_cidr, service_cidr6, pod_cidr, pod_cidr6 } = if let Some(kept) = kept {
        kept
    } else {
        let id = random_id()?;
        // Each has a range of its own: this machine, too, finds Services by their addresses.
        let service_cidr = match wanted.service_cidr {
            Some(ranges) => ranges.v4,
            None => carob_network::free_cidr(&id, sixteens(SERVICE_RANGES))?,
        };
        Instance { id, service_cidr, service_cidr6: None, pod_cidr: None, pod_cidr6: None }
    };
    let pod_cidr = match pod_cidr.or(wanted.pod_cidr.map(|ranges| ranges.v4)) {
        Some(cidr) => cidr.trunc(),
        None => carob_network::free_cidr(
            &id,
            sixteens(POD_RANGES)
                .filter(|candidate| !SERVICE_RANGES.contains(&candidate.network().octets()[1]))
                .filter(|candidate| !overlap(*candidate, service_cidr)),
        )?,
    };
    // A cluster of one family may get the other later.
    let pod_cidr6 = wanted.pod_cidr.map_or(pod_cidr6, |ranges| ranges.v6);
    let service_cidr6 = wanted.service_cidr.map_or(service_cidr6, |ranges| ranges.v6);
    ranges::check(Ranges { v4: pod_cidr, v6: pod_cidr6 }, Ranges { v4: service_cidr, v6: service_cidr6 })?;
    let instance = Instance { id, pod_cidr: Some(pod_cidr), pod_cidr6, service_cidr, service_cidr6 };
    dir.save_instance(&instance)?;
    Ok((instance, pod_cidr))
}

/// Second bytes of the ranges of pods and of Services where nobody chooses others.
const POD_RANGES: RangeInclusive<u8> = 42..=250;
const SERVICE_RANGES: RangeInclusive<u8> = 96..=127;

fn sixteens(second: RangeInclusive<u8>) -> impl Iterator<Item = Ipv4Net> {
    second.map(|second| Ipv4Net::new_assert(Ipv4Addr::new(10, second, 0, 0), 16))
}

/// Ranges that are in use stay what they are; one of IPv6 may come to one of IPv4.
fn unchanged(flag: &str, wanted: Option<Ranges>, kept: Option<Ranges>, why: &str) -> Result<()> {
    match (wanted, kept) {
        (Some(wanted), Some(kept)) if wanted.v4 != kept.v4 || kept.v6.is_some() && wanted.v6 != kept.v6 => {
            bail!("{flag} {wanted}: this data directory has {kept}; {why}")
        }
        _ => Ok(()),
    }
}

fn first_host(cidr: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(cidr.network()) + 1)
}

/// Many containers mean many open counters and watches; the limit that a login shell gives is meant for people.
/// Gives what may be open.
pub fn raise_open_files() -> usize {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (now, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let limit = match setrlimit(Resource::RLIMIT_NOFILE, most, most) {
        Ok(()) => most,
        Err(error) => {
            tracing::warn!(%error, "the limit of open files stays as it is");
            now
        }
    };
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// The name of a machine's first node: the machine's own, unless it is chosen.
pub fn node_name(configured: Option<String>) -> Result<String> {
    let name = match configured {
        Some(name) => name,
        None => nix::unistd::gethostname().context("this machine has no host name")?.to_string_lossy().into_owned(),
    };
    let name = name.to_ascii_lowercase();
    match carob_api::validation::names::dns1123_subdomain(&name).first() {
        Some(problem) => bail!("nodeName {name:?}: {problem}"),
        None => Ok(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_worker_has_a_part_of_the_pods_addresses_and_too_many_are_refused() {
        let of = |cidr: &str, worker| block(cidr.parse().unwrap(), worker).map(|block| block.to_string());
        assert_eq!(of("10.42.0.0/16", 1).unwrap(), "10.42.0.0/21");
        assert_eq!(of("10.42.0.0/16", 32).unwrap(), "10.42.248.0/21");
        assert!(of("10.42.0.0/16", 33).unwrap_err().to_string().contains("no room for 33 workers"));
        assert_eq!(of("192.0.2.0/24", 1).unwrap(), "192.0.2.0/24");
        assert!(of("192.0.2.0/24", 2).is_err());
    }

    #[test]
    fn ranges_in_use_stay_what_they_are_but_may_get_the_other_family() {
        let kept = |wanted: &str, kept: &str| {
            unchanged("--pod-cidr", Some(wanted.parse().unwrap()), Some(kept.parse().unwrap()), "why")
                .map_err(|error| error.to_string())
        };
        kept("10.42.0.0/16", "10.42.0.0/16").unwrap();
        kept("10.42.0.0/16,fd42::/64", "10.42.0.0/16").unwrap();
        kept("10.42.0.0/16,fd42::/64", "10.42.0.0/16,fd42::/64").unwrap();
        for (wanted, there) in [
            ("10.43.0.0/16", "10.42.0.0/16"),
            ("10.42.0.0/16", "10.42.0.0/16,fd42::/64"),
            ("10.42.0.0/16,fd43::/64", "10.42.0.0/16,fd42::/64"),
        ] {
            let refused = kept(wanted, there).unwrap_err();
            assert_eq!(refused, format!("--pod-cidr {wanted}: this data directory has {there}; why"));
        }
    }
}
