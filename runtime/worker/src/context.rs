//! What every part of the worker shares: the API client, the runtime crates, directories and the table of pods.

use crate::addresses::Addresses;
use crate::admission::Admission;
use crate::credential_providers::CredentialProviders;
use crate::events::{About, Recorder, Severity};
use crate::metrics::Metrics;
use crate::network::host_ports;
use crate::network::metered::Networks;
use crate::network::policies::{Policies, Requests};
use crate::node::{Disk, Machine};
use crate::objects::Interests;
use crate::pod::PodTable;
use crate::pressure::{Pressure, Tenants};
use crate::settings::NodeSettings;
use crate::users::{Homes, Ranges, UserNamespacePolicy, possible};
use crate::volumes::InUse;
use crate::{ContainerObserver, Error};
use carob_image::Images;
use carob_network::{Dns, DnsSockets, Ipv4Net, Ipv6Net, Network};
use carob_sandbox::{Exit, RecoveredPod, Runtime};
use k8s_openapi::api::core::v1::{Node, Pod};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

/// All that a worker is made of.
pub struct WorkerConfig {
    /// Name of the Node object, and of this worker in `spec.nodeName`.
    pub node_name: String,
    /// `D`: the worker keeps `D/pods` and `D/logs/pods`.
    pub data_dir: PathBuf,
    /// A client that may do what a node may.
    pub client: kube::Client,
    /// A client that may do what kube-proxy may: list and watch Services and EndpointSlices.
    pub services: kube::Client,
    /// A client that may list and watch NetworkPolicies, Pods and Namespaces.
    pub policies: kube::Client,
    /// The sandbox.
    pub runtime: Runtime,
    /// Pods that were there when the sandbox was connected.
    pub recovered: Vec<RecoveredPod>,
    /// Exits of containers, as the sandbox delivers them.
    pub exits: mpsc::UnboundedReceiver<Exit>,
    /// The image store.
    pub images: Images,
    /// Where it is, of which only the disk is looked at.
    pub images_dir: PathBuf,
    /// Who else has it.
    pub tenants: Tenants,
    /// The pods' network.
    pub network: Network,
    /// Learns of every container.
    pub observer: Arc<dyn ContainerObserver>,
    /// Facts of the cluster that pods are told.
    pub cluster: ClusterInfo,
    /// Where pods ask for names; without it, nobody answers.
    pub dns: Option<DnsSockets>,
    /// OCI runtimes that RuntimeClasses can name, by their handlers' names.
    pub runtimes: BTreeMap<String, PathBuf>,
    /// Programs that know registries' credentials.
    pub credential_providers: CredentialProviders,
    /// What the node's owner has set.
    pub settings: NodeSettings,
    /// Addresses of this worker's pods, as the Node object shows them.
    pub pod_cidr: Ipv4Net,
    /// The same, of IPv6, in a dual-stack cluster.
    pub pod_cidr6: Option<Ipv6Net>,
    /// The node's address; without it, that which the machine uses towards the world.
    pub address: Option<IpAddr>,
    /// In a network namespace of its own on somebody else's machine: the address of that.
    pub annexed: Option<IpAddr>,
    /// The port at which [`crate::Worker::router`] is served to a gateway elsewhere.
    pub serves: Option<u16>,
    /// The part of the machine that this worker has.
    pub share: Share,
    /// `D/seccomp` of the machine: profiles of type Localhost.
    pub profiles: PathBuf,
    /// Where sockets belong to the machine's own network, in which images are found: a worker may run in another.
    pub machine: Handle,
}

/// A part of a machine: one worker's, where several are on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// One of how many equal parts.
    pub of: u32,
}

impl Share {
    /// All of it.
    pub const WHOLE: Self = Self { of: 1 };
}

/// Facts of the cluster that pods are told.
#[derive(Debug, Clone)]
pub struct ClusterInfo {
    /// Address of the `kubernetes` service.
    pub api_service_ip: IpAddr,
    /// Its port.
    pub api_port: u16,
    /// The cluster's certificate authority, in PEM; pods find it in `kube-root-ca.crt`.
    pub ca_pem: String,
    /// As in `cluster.local`.
    pub cluster_domain: String,
    /// Cluster DNS servers; without any, pods use the host's resolvers.
    pub dns_servers: Vec<IpAddr>,
    /// Where names are asked that aren't the cluster's; without any, the machine's resolvers.
    pub upstream_dns: Vec<SocketAddr>,
    /// The addresses of load balancers that this machine answers for, from the first to the last of each range.
    pub load_balancers: Vec<(IpAddr, IpAddr)>,
}

/// Where resolvers are asked.
const DNS_PORT: u16 = 53;

/// The directories of the worker.
#[derive(Debug, Clone)]
pub(crate) struct Dirs {
    pods: PathBuf,
    logs: PathBuf,
    seccomp: PathBuf,
    images: PathBuf,
}

impl Dirs {
    pub fn new(data_dir: &Path, profiles: PathBuf, images: PathBuf) -> Self {
        Self { pods: data_dir.join("pods"), logs: data_dir.join("logs").join("pods"), seccomp: profiles, images }
    }

    /// `D/pods`
    pub fn pods(&self) -> &Path {
        &self.pods
    }

    /// `D/logs/pods`
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// `D/pods/{uid}`: volumes, files and writable layers of a pod.
    pub fn pod(&self, uid: &str) -> PathBuf {
        self.pods.join(uid)
    }

    /// `D/logs/pods/{namespace}_{name}_{uid}`: a directory per container.
    pub fn pod_logs(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.logs.join(format!("{namespace}_{name}_{uid}"))
    }

    /// Where images are, of which only the disk is looked at.
    pub fn images(&self) -> &Path {
        &self.images
    }

    /// `D/seccomp`: profiles of type Localhost.
    pub fn seccomp(&self) -> &Path {
        &self.seccomp
    }
}

/// What every part of the worker shares.
pub(crate) struct Context {
    pub node: String,
    /// The node as it was seen last; none before it was.
    pub own_node: watch::Sender<Option<Arc<Node>>>,
    pub dirs: Dirs,
    pub client: kube::Client,
    pub services: kube::Client,
    pub policies_client: kube::Client,
    pub policies: Policies,
    pub runtime: Runtime,
    pub images: Images,
    pub tenants: Tenants,
    pub network: Network,
    pub networks: Networks,
    pub observer: Arc<dyn ContainerObserver>,
    pub cluster: ClusterInfo,
    pub machine: Machine,
    pub machine_network: Handle,
    pub pod_cidr: Ipv4Net,
    pub pod_cidr6: Option<Ipv6Net>,
    pub machine_address: Option<IpAddr>,
    pub annexed: bool,
    pub serves: Option<u16>,
    /// Where this worker itself answers for names.
    pub own_dns: Option<SocketAddrV4>,
    pub host_ip: IpAddr,
    /// With that of the other kind, where pods have such.
    pub host_ips: Addresses,
    pub admission: Admission,
    pub events: Arc<Recorder>,
    pub metrics: Metrics,
    pub interests: Interests,
    pub pods: PodTable,
    pub dns: Dns,
    pub ranges: Ranges,
    pub homes: Homes,
    /// Which pods have which claims.
    pub claims: InUse,
    /// Whether pods that don't say have users of their own.
    pub own_users: bool,
    pub settings: NodeSettings,
    pub pressure: Pressure,
    pub credential_providers: CredentialProviders,
    pub runtimes: BTreeMap<String, PathBuf>,
}

impl Context {
    pub async fn new(
        config: WorkerConfig,
        own_dns: Option<SocketAddrV4>,
    ) -> Result<(Arc<Self>, Vec<RecoveredPod>, mpsc::UnboundedReceiver<Exit>, Requests), Error> {
        let dirs = Dirs::new(&config.data_dir, config.profiles, config.images_dir);
        for path in [dirs.pods(), dirs.logs()] {
            tokio::fs::create_dir_all(path)
                .await
                .map_err(|source| Error::Directory { path: path.to_owned(), source })?;
        }
        let ranges = Ranges::new(&config.data_dir);
        let own_users = match config.settings.user_namespaces {
            UserNamespacePolicy::WhenAsked => false,
            UserNamespacePolicy::WherePossible => {
                let possible = possible(&config.runtime, &ranges, [dirs.pods(), dirs.images()]).await;
                if let Err(reason) = &possible {
                    tracing::warn!(reason, "pods have the machine's users: they can't have their own here");
                }
                possible.is_ok()
            }
        };
        let machine = Machine::read(config.share)?;
        let host_ip = config.address.or_else(host_address).unwrap_or(IpAddr::V4(config.network.gateway_address()));
        let gateway6 = config.network.address6(config.network.gateway_address());
        // On the gateway's machine the bridge's will do; a worker elsewhere can't say of itself that a pod's is its own.
        let of_bridge = gateway6.filter(|_| config.serves.is_none()).map(IpAddr::from);
        let of_machine = host_address6().filter(|address| gateway6.is_some_and(|gateway| *address != gateway));
        let host_ips = Addresses::new(host_ip, of_machine.or(of_bridge));
        let mut adopted = Vec::new();
        for pod in config.recovered.iter().filter(|pod| pod.alive && !pod.host_network) {
            // Their addresses must not be given away before their objects are seen.
            let addresses = pod.annotations.get(crate::pod::ADDRESS).and_then(|ip| ip.parse::<Addresses>().ok());
            if let Some(addresses) = addresses
                && let IpAddr::V4(address) = addresses.first
            {
                adopted.push((pod.uid.clone(), addresses));
                config.network.adopt(&pod.uid, address);
                let text = pod.annotations.get(crate::pod::HOST_PORTS).map_or("", String::as_str);
                if let Err(error) =
                    config.network.publish(&pod.uid, addresses.all().collect(), host_ports::from_text(text)).await
                {
                    tracing::warn!(%error, pod = pod.uid, "a pod's ports of this machine may not lead to it");
                }
            }
        }
        let networks = Networks::adopt(&config.recovered, &config.network, &config.observer).await;
        let upstream = config.cluster.upstream_dns.clone();
        let resolvers = move || {
            if upstream.is_empty() {
                let host = crate::files::host_resolvers().into_iter();
                return host.map(|server| SocketAddr::new(server, DNS_PORT)).collect();
            }
            upstream.clone()
        };
        let dns = Dns::new(&config.cluster.cluster_domain, Arc::new(resolvers));
        // Where nobody answers for names here, the first worker does, which has the first block.
        let first = carob_network::gateway_of(config.network.cluster_cidr()).ok();
        let names = own_dns.map(|at| *at.ip()).or(first).unwrap_or(config.network.gateway_address());
        let own = Addresses::from(IpAddr::V4(names));
        let (policies, requests) = Policies::new(own, adopted);
        let disk = Disk::of(dirs.pods(), &config.settings, machine.share);
        let context = Arc::new(Self {
            admission: Admission::new(machine.allocatable(config.settings.max_pods, disk.allocatable)),
            events: Arc::new(Recorder::new(config.node_name.clone())),
            node: config.node_name,
            own_node: watch::Sender::new(None),
            dirs,
            client: config.client,
            services: config.services,
            policies_client: config.policies,
            policies,
            runtime: config.runtime,
            images: config.images,
            tenants: config.tenants,
            network: config.network,
            networks,
            observer: config.observer,
            cluster: config.cluster,
            machine,
            machine_network: config.machine,
            pod_cidr: config.pod_cidr,
            pod_cidr6: config.pod_cidr6,
            machine_address: config.annexed,
            annexed: config.annexed.is_some(),
            serves: config.serves,
            own_dns,
            host_ip,
            host_ips,
            metrics: Metrics::default(),
            interests: Interests::default(),
            pods: PodTable::default(),
            dns,
            ranges,
            homes: Homes::default(),
            claims: InUse::default(),
            own_users,
            runtimes: config.runtimes,
            settings: config.settings,
            pressure: Pressure::default(),
            credential_providers: config.credential_providers,
        });
        Ok((context, config.recovered, config.exits, requests))
    }

    /// Gives a pod's address back, once nothing is said of it any more and what it received and sent is on the bill.
    pub async fn give_back(&self, uid: &str) {
        self.networks.end(uid, self).await;
        self.policies.release(uid).await;
        self.network.release(uid).await;
    }

    /// Puts a pod's policies in force, and then leads its ports of this machine to it.
    pub async fn admit_network(&self, pod: &Pod, addresses: Addresses) -> Result<(), Arc<carob_network::Error>> {
        self.policies.admit(pod, addresses).await?;
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let elsewhere =
            self.network.publish(uid, addresses.all().collect(), host_ports::of(pod)).await.map_err(Arc::new)?;
        for port in host_ports::without_way(&elsewhere) {
            self.events.record(About::pod(pod), Severity::Warning, "HostPortNotAvailable", port);
        }
        Ok(())
    }
}

/// The address that this machine uses towards the world; loopback where it has no way there.
pub fn machine_address() -> IpAddr {
    host_address().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

/// The address that this machine uses towards the world.
fn host_address() -> Option<IpAddr> {
    // Documentation addresses (RFC 5737, RFC 3849).
    address_towards((Ipv4Addr::UNSPECIFIED, Ipv4Addr::new(192, 0, 2, 1)))
}

fn host_address6() -> Option<IpAddr> {
    address_towards((Ipv6Addr::UNSPECIFIED, Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)))
}

/// Connecting a datagram socket sends nothing: the kernel only chooses the route.
fn address_towards<A: Into<IpAddr>>((own, world): (A, A)) -> Option<IpAddr> {
    let socket = std::net::UdpSocket::bind((own.into(), 0)).ok()?;
    socket.connect((world.into(), 9)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_unspecified()).then_some(address)
}
