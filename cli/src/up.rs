//! `carob up`: gateway, controllers, worker and billing in one process.

use std::fs::File;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use carob_billing::price::PriceBook;
use carob_billing::{Billing, BillingConfig};
use carob_edge::Edge;
use carob_gateway::{Extension, Gateway};
use carob_image::Images;
use carob_network::{DnsSockets, Ipv4Net, Network, NetworkConfig};
use carob_sandbox::{Runtime, RuntimeConfig};
use carob_store::redb::RedbStore;
use carob_worker::{ClusterInfo, Worker, WorkerConfig};
use nix::fcntl::{Flock, FlockArg};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::DataDirOption;
use crate::config::ConfigFile;
use crate::data_dir::{DataDir, Instance, random_id};
use crate::metrics;
use crate::rest;
use crate::wiring::{LocalNode, Metered};

/// What pods are told of the cluster's names.
const CLUSTER_DOMAIN: &str = "cluster.local";
/// The port of the `kubernetes` service.
const API_SERVICE_PORT: u16 = 443;
/// The port of the `kube-dns` service.
const DNS_PORT: u16 = 53;
/// How often the meter reads the counters.
const METER_INTERVAL: Duration = Duration::from_secs(1);
/// Held while a Carob chooses addresses that no other has.
const MACHINE_LOCK: &str = "/run/carob.lock";
/// Every kubeconfig of Carob's says so.
const OUR_CONTEXT: &str = "current-context: carob";
/// How long everything may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    data: DataDirOption,
    /// Where the API is served.
    #[arg(long, default_value = "127.0.0.1:6443", value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// Where the administrator's kubeconfig is written [default: admin.kubeconfig in the data directory]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Pods' addresses [default: the first free /16 from 10.42.0.0/16 on]
    #[arg(long, value_name = "CIDR")]
    pod_cidr: Option<Ipv4Net>,
    /// Services' addresses [default: the first free /16 from 10.96.0.0/16 on]
    #[arg(long, value_name = "CIDR")]
    service_cidr: Option<Ipv4Net>,
    /// Workers in this process: 1, or 0 for a gateway alone.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=1), value_name = "N")]
    workers: u8,
    /// Further settings: registries, prices.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub async fn run(options: Options) -> Result<()> {
    let mut config = ConfigFile::read(options.config.as_deref())?;
    let node_name = node_name(config.node_name.take())?;
    let dir = DataDir::create(&options.data.data_dir)?;
    let _lock = dir.lock()?;
    raise_open_files();
    let listener = listen(options.listen)?;
    let address = listener.local_addr()?;
    let (site, network) = claim_site(&dir, &options, address, config.network.open_metadata).await?;
    let mut tasks = Tasks::default();

    let store = RedbStore::open(dir.store(), carob_store::redb::Options::default())
        .with_context(|| format!("cannot open {}", dir.store().display()))?;
    let prices = match &config.price_book {
        Some(path) => PriceBook::read(path).with_context(|| format!("{} is no price book", path.display()))?,
        None => PriceBook::default(),
    };
    let billing = Billing::open(BillingConfig { dir: dir.ledger(), prices, interval: METER_INTERVAL })?;
    let node = LocalNode::default();
    let measured = network.is_some().then(|| node_name.clone());
    let volumes = network.is_some().then(|| dir.volumes());
    let gateway = Arc::new(
        gateway(&dir, &site, &store, &node, &billing, measured, std::mem::take(&mut config.cluster))
            .await
            .context("cannot start the gateway")?,
    );
    let kubeconfig = options.kubeconfig.unwrap_or_else(|| dir.kubeconfig());
    write_kubeconfig(&kubeconfig, &gateway.admin_kubeconfig(&format!("https://{}", reachable(address))))?;

    let load_balancers = config.network.pool();
    let mut listeners = vec![listener];
    if let Some(network) = network {
        if config.network.edge.enabled {
            let edge = edge(&site, &gateway, &config, &node_name);
            gateway.register_metrics(|registry| edge.register_metrics(registry));
            tasks.spawn("edge", |stop| async move {
                Box::pin(edge.run(stop)).await;
                Ok(())
            });
        }
        if !address.ip().is_unspecified() {
            listeners.push(listen(site.api_on_bridge().into())?);
        }
        let worker = worker(&dir, &site, &gateway, &billing, (node_name, config), network).await?;
        node.serve(worker.name, worker.agent.router());
        gateway.register_metrics(|registry| worker.agent.register_metrics(registry));
        tasks.spawn("worker", |stop| async move {
            Box::pin(worker.agent.run(stop)).await;
            Ok(())
        });
    }
    tasks.spawn("meter", |stop| async move {
        billing.run(stop).await;
        Ok(())
    });
    let clients = Arc::clone(&gateway);
    let clients: carob_controllers::Clients = Arc::new(move |user, groups| clients.client(user, groups));
    let controller_options = carob_controllers::Options {
        root_ca: gateway.ca_certificate().to_owned(),
        authority: Some(gateway.signing_authority()),
        volumes,
        load_balancers,
        ..carob_controllers::Options::default()
    };
    tasks.spawn(
        "controllers",
        |stop| async move { Ok(carob_controllers::run(clients, controller_options, stop).await?) },
    );
    tasks.spawn("rest", |stop| async move {
        rest::run(stop).await;
        Ok(())
    });
    let server = Arc::clone(&gateway);
    tasks.spawn("gateway", |stop| async move { Ok(server.serve(listeners, stop).await?) });

    greet(address, &kubeconfig, dir.root());
    let outcome = tasks.until_told_to_stop().await;
    store.close().await;
    outcome
}

/// Where this Carob sits on the machine and its network.
struct Site {
    instance: Instance,
    /// The pods' addresses.
    pod_cidr: Ipv4Net,
    /// Where the API is served.
    address: SocketAddr,
    /// The bridge's address.
    bridge: Ipv4Addr,
    /// The `kubernetes` service as pods see it.
    service: SocketAddrV4,
    /// The cluster's DNS as pods see it, and where it listens.
    dns: Option<(SocketAddrV4, SocketAddrV4)>,
}

impl Site {
    fn new(instance: Instance, pod_cidr: Ipv4Net, address: SocketAddr) -> Result<Self> {
        let bridge = carob_network::gateway_of(pod_cidr)?;
        let service = SocketAddrV4::new(first_host(instance.service_cidr), API_SERVICE_PORT);
        Ok(Self { instance, pod_cidr, address, bridge, service, dns: None })
    }

    /// The DNS server's address among the Services: the tenth, as everywhere in Kubernetes.
    fn dns_service(&self) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::from(u32::from(*self.service.ip()) + 9), DNS_PORT)
    }

    /// Where pods reach the API, whatever address it is served on for others.
    fn api_on_bridge(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.bridge, self.address.port())
    }
}

/// Chooses the addresses, at the first start, and sets up the pods' network on them. One Carob of the machine at a time
/// does so: two that look at once would choose the same.
async fn claim_site(
    dir: &DataDir,
    options: &Options,
    address: SocketAddr,
    open_metadata: bool,
) -> Result<(Site, Option<PodNetwork>)> {
    let _turn = tokio::task::spawn_blocking(machine_lock).await??;
    let (instance, pod_cidr) = instance(dir, options)?;
    let mut site = Site::new(instance, pod_cidr, address)?;
    if options.workers == 0 {
        return Ok((site, None));
    }
    let network = Network::start(NetworkConfig {
        instance: site.instance.id.clone(),
        pod_cidr: site.pod_cidr,
        service_cidr: Some(site.instance.service_cidr),
        open_metadata,
    })
    .await
    .context("cannot set up the pods' network")?;
    let dns = DnsSockets::bind(site.bridge).with_context(|| format!("cannot listen for DNS on {}", site.bridge))?;
    site.dns = Some((site.dns_service(), dns.address()?));
    Ok((site, Some(PodNetwork { network, dns })))
}

/// What pods need of the machine.
struct PodNetwork {
    network: Network,
    dns: DnsSockets,
}

/// Waits for the other Carobs of this machine.
fn machine_lock() -> Result<Flock<File>> {
    let file = File::create(MACHINE_LOCK).with_context(|| format!("cannot open {MACHINE_LOCK}"))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .with_context(|| format!("cannot lock {MACHINE_LOCK}"))
}

async fn gateway(
    dir: &DataDir,
    site: &Site,
    store: &RedbStore,
    node: &LocalNode,
    billing: &Arc<Billing>,
    measured: Option<String>,
    settings: carob_gateway::Settings,
) -> Result<Gateway, carob_gateway::Error> {
    let bill = Extension {
        prefix: carob_billing::http::PREFIX,
        router: carob_billing::http::router(Arc::clone(billing)),
        group: None,
    };
    let metrics = measured.map(|node| metrics::extension(Arc::clone(billing), node));
    Gateway::new(carob_gateway::Config {
        listen: vec![site.address],
        extra_sans: vec![site.bridge.to_string(), site.service.ip().to_string()],
        pki_dir: dir.pki(),
        store: Arc::new(store.clone()),
        dialer: Arc::new(node.clone()),
        api_service: Some(carob_gateway::ApiService {
            service: site.service,
            endpoint: site.api_on_bridge(),
            range: site.instance.service_cidr,
            dns: site.dns,
        }),
        service_account_issuer: format!("https://kubernetes.default.svc.{CLUSTER_DOMAIN}"),
        settings,
        extensions: [bill].into_iter().chain(metrics).collect(),
        max_body_bytes: 3 << 20,
    })
    .await
}

/// The proxy behind Ingresses and Gateways.
fn edge(site: &Site, gateway: &Gateway, config: &ConfigFile, node: &str) -> Edge {
    let settings = &config.network.edge;
    let processors = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Edge::new(carob_edge::Config {
        client: gateway.client(carob_edge::USER, &["system:authenticated"]),
        address: site.bridge,
        node: node.to_owned(),
        balanced: !config.network.pool().is_empty(),
        listen: settings.listen.clone(),
        http_port: settings.http_port,
        https_port: settings.https_port,
        trusted: settings.trusted_proxies.clone(),
        threads: settings.threads.unwrap_or_else(processors),
    })
}

/// A worker with its node's name.
struct NamedWorker {
    name: String,
    agent: Arc<Worker>,
}

async fn worker(
    dir: &DataDir,
    site: &Site,
    gateway: &Gateway,
    billing: &Arc<Billing>,
    (name, config): (String, ConfigFile),
    PodNetwork { network, dns }: PodNetwork,
) -> Result<NamedWorker> {
    let exe = std::env::current_exe().context("cannot find this program's own file")?;
    let runtime_config = RuntimeConfig { dir: dir.sandboxes(), instance: site.instance.id.clone(), exe };
    let (runtime, recovered, exits) = Runtime::start(runtime_config).await.context("cannot start the spawner")?;
    let credential_providers = config.credential_providers()?;
    let agent = Worker::new(WorkerConfig {
        node_name: name.clone(),
        data_dir: dir.root().to_owned(),
        client: gateway.client(&format!("system:node:{name}"), &["system:nodes"]),
        services: gateway.client("system:kube-proxy", &[]),
        policies: gateway.client("system:carob:network-policy", &[]),
        runtime,
        recovered,
        exits,
        images: Images::open(&dir.images(), config.images)?,
        network: network.clone(),
        observer: Arc::new(Metered(Arc::clone(billing))),
        cluster: ClusterInfo {
            api_service_ip: IpAddr::V4(*site.service.ip()),
            api_port: site.service.port(),
            ca_pem: gateway.ca_certificate().to_owned(),
            cluster_domain: CLUSTER_DOMAIN.to_owned(),
            dns_servers: site.dns.iter().map(|(service, _)| IpAddr::V4(*service.ip())).collect(),
            load_balancers: config.network.pool(),
            upstream_dns: config.network.resolvers.clone(),
        },
        dns: Some(dns),
        runtimes: config.runtimes,
        credential_providers,
        settings: config.node,
    })
    .await
    .context("cannot start the worker")?;
    Ok(NamedWorker { name, agent })
}

/// Many containers mean many open counters and watches; the limit that a login shell gives is meant for people.
fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE)
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, most, most)
    {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// What tells this Carob apart, kept from the first start on, and the pods' addresses.
fn instance(dir: &DataDir, options: &Options) -> Result<(Instance, Ipv4Net)> {
    let kept = dir.instance()?;
    if let Some(kept) = &kept {
        let service_cidr = Some(kept.service_cidr);
        unchanged("--service-cidr", options.service_cidr, service_cidr, "Services have their addresses from it")?;
        unchanged("--pod-cidr", options.pod_cidr, kept.pod_cidr, "carob down lets go of it")?;
    }
    let (id, service_cidr, pod_cidr) = if let Some(Instance { id, service_cidr, pod_cidr }) = kept {
        (id, service_cidr, pod_cidr)
    } else {
        let id = random_id()?;
        // Each has a range of its own: this machine, too, finds Services by their addresses.
        let service_cidr = match options.service_cidr {
            Some(cidr) => cidr.trunc(),
            None => carob_network::free_cidr(&id, sixteens(SERVICE_RANGES))?,
        };
        (id, service_cidr, None)
    };
    let pod_cidr = match pod_cidr.or(options.pod_cidr) {
        Some(cidr) => cidr.trunc(),
        None => carob_network::free_cidr(
            &id,
            sixteens(POD_RANGES)
                .filter(|candidate| !SERVICE_RANGES.contains(&candidate.network().octets()[1]))
                .filter(|candidate| !overlap(*candidate, service_cidr)),
        )?,
    };
    if overlap(pod_cidr, service_cidr) {
        bail!("--pod-cidr {pod_cidr} and --service-cidr {service_cidr} overlap");
    }
    let instance = Instance { id, pod_cidr: Some(pod_cidr), service_cidr };
    dir.save_instance(&instance)?;
    Ok((instance, pod_cidr))
}

/// Second bytes of the ranges of pods and of Services where nobody chooses others.
const POD_RANGES: RangeInclusive<u8> = 42..=250;
const SERVICE_RANGES: RangeInclusive<u8> = 96..=127;

fn sixteens(second: RangeInclusive<u8>) -> impl Iterator<Item = Ipv4Net> {
    second.map(|second| Ipv4Net::new_assert(Ipv4Addr::new(10, second, 0, 0), 16))
}

fn overlap(one: Ipv4Net, other: Ipv4Net) -> bool {
    one.contains(&other) || other.contains(&one)
}

fn unchanged(flag: &str, wanted: Option<Ipv4Net>, kept: Option<Ipv4Net>, why: &str) -> Result<()> {
    match (wanted, kept) {
        (Some(wanted), Some(kept)) if wanted.trunc() != kept => {
            bail!("{flag} {wanted}: this data directory has {kept}; {why}")
        }
        _ => Ok(()),
    }
}

fn first_host(cidr: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(cidr.network()) + 1)
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// An address that a client of this machine can connect to.
fn reachable(address: SocketAddr) -> SocketAddr {
    let mut address = address;
    if address.ip().is_unspecified() {
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    address
}

fn node_name(configured: Option<String>) -> Result<String> {
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

/// Puts the kubeconfig in place, readable for its owner alone. A file that holds other clusters is not overwritten.
fn write_kubeconfig(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    if let Ok(there) = std::fs::read_to_string(path)
        && !there.contains(OUR_CONTEXT)
    {
        bail!("{} is another cluster's kubeconfig: name a file of its own with --kubeconfig", path.display());
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let partial = PathBuf::from(name);
    let write = || -> std::io::Result<()> {
        // What an interrupted start left behind.
        if partial.exists() {
            std::fs::remove_file(&partial)?;
        }
        let mut file = std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&partial)?;
        file.write_all(text.as_bytes())?;
        std::fs::rename(&partial, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

fn greet(address: SocketAddr, kubeconfig: &Path, data_dir: &Path) {
    println!("Carob serves the Kubernetes API on https://{}", reachable(address));
    println!();
    println!("  export KUBECONFIG={}", kubeconfig.display());
    println!("  kubectl get nodes");
    println!();
    println!("SIGTERM ends the gateway and leaves pods running; this stops them:");
    println!("  carob down --data-dir {}", data_dir.display());
}

/// The parts of the process, which end together.
#[derive(Default)]
struct Tasks {
    set: JoinSet<(&'static str, Result<()>)>,
    stop: CancellationToken,
}

impl Tasks {
    fn spawn<F>(&mut self, name: &'static str, start: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let work = start(self.stop.clone());
        self.set.spawn(async move { (name, work.await) });
    }

    /// Waits for SIGTERM, SIGINT or the end of a part, then ends the others.
    async fn until_told_to_stop(mut self) -> Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let first = tokio::select! {
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
            ended = self.set.join_next() => ended,
        };
        self.stop.cancel();
        let others = async { while self.set.join_next().await.is_some() {} };
        if tokio::time::timeout(PATIENCE, others).await.is_err() {
            tracing::warn!("some parts did not end within {} s", PATIENCE.as_secs());
        }
        match first {
            None => Ok(()),
            Some(Ok((name, Err(error)))) => Err(error.context(format!("the {name} failed"))),
            Some(Ok((name, Ok(())))) => bail!("the {name} ended by itself"),
            Some(Err(panic)) => Err(panic).context("a part of the process panicked"),
        }
    }
}
