//! `carob up`: gateway, controllers, worker and billing in one process.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use carob_billing::price::PriceBook;
use carob_billing::{Billing, BillingConfig};
use carob_gateway::{Extension, Gateway};
use carob_image::Images;
use carob_network::{ApiService, Ipv4Net, Network, NetworkConfig};
use carob_sandbox::{Runtime, RuntimeConfig};
use carob_store::redb::RedbStore;
use carob_worker::{ClusterInfo, Worker, WorkerConfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::DataDirOption;
use crate::config::ConfigFile;
use crate::data_dir::{DataDir, Instance, random_id};
use crate::wiring::{LocalNode, Metered};

/// What pods are told of the cluster's names.
const CLUSTER_DOMAIN: &str = "cluster.local";
/// The port of the `kubernetes` service.
const API_SERVICE_PORT: u16 = 443;
/// Namespaces that wait ready for pods.
const NAMESPACE_POOL: usize = 8;
/// How often the meter reads the counters.
const METER_INTERVAL: Duration = Duration::from_secs(1);
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
    /// Services' addresses [default: 10.96.0.0/16]
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
    let config = ConfigFile::read(options.config.as_deref())?;
    let dir = DataDir::create(&options.data.data_dir)?;
    let _lock = dir.lock()?;
    let instance = instance(&dir, &options)?;
    let listener = listen(options.listen)?;
    let listen_address = listener.local_addr()?;
    let mut tasks = Tasks::default();

    let store = RedbStore::open(&dir.store(), carob_store::redb::Options::default())
        .with_context(|| format!("cannot open {}", dir.store().display()))?;
    let prices = match &config.price_book {
        Some(path) => PriceBook::read(path).with_context(|| format!("{} is no price book", path.display()))?,
        None => PriceBook::default(),
    };
    let billing = Billing::open(BillingConfig { dir: dir.ledger(), prices, interval: METER_INTERVAL })?;
    let node = LocalNode::default();
    let bridge = carob_network::gateway_of(instance.pod_cidr)?;
    let service = SocketAddrV4::new(first_host(instance.service_cidr), API_SERVICE_PORT);
    let gateway = Arc::new(
        Gateway::new(carob_gateway::Config {
            listen: vec![listen_address],
            extra_sans: vec![bridge.to_string(), service.ip().to_string()],
            pki_dir: dir.pki(),
            store: Arc::new(store.clone()),
            dialer: Arc::new(node.clone()),
            service_account_issuer: format!("https://kubernetes.default.svc.{CLUSTER_DOMAIN}"),
            extensions: vec![Extension {
                prefix: carob_billing::http::PREFIX,
                router: carob_billing::http::router(Arc::clone(&billing)),
            }],
            max_body_bytes: 3 << 20,
        })
        .await
        .context("cannot start the gateway")?,
    );
    let kubeconfig = options.kubeconfig.unwrap_or_else(|| dir.kubeconfig());
    write_private(&kubeconfig, &gateway.admin_kubeconfig(&format!("https://{}", reachable(listen_address))))?;

    let mut listeners = vec![listener];
    if options.workers > 0 {
        let api_target = SocketAddrV4::new(bridge, listen_address.port());
        let network = Network::start(NetworkConfig {
            instance: instance.id.clone(),
            pod_cidr: instance.pod_cidr,
            pool: NAMESPACE_POOL,
            api_service: Some(ApiService { service, target: api_target }),
        })
        .await
        .context("cannot set up the pods' network")?;
        if !listen_address.ip().is_unspecified() && listen_address.ip() != IpAddr::V4(bridge) {
            listeners.push(listen(api_target.into())?);
        }
        let exe = std::env::current_exe().context("cannot find this program's own file")?;
        let (runtime, recovered, exits) =
            Runtime::start(RuntimeConfig { dir: dir.sandboxes(), instance: instance.id.clone(), exe })
                .await
                .context("cannot start the spawner")?;
        let node_name = node_name(config.node_name)?;
        let worker = Worker::new(WorkerConfig {
            node_name: node_name.clone(),
            data_dir: dir.root().to_owned(),
            client: gateway.client(&format!("system:node:{node_name}"), &["system:nodes", "system:masters"]),
            runtime,
            recovered,
            exits,
            images: Images::open(&dir.images(), config.images)?,
            network: network.clone(),
            observer: Arc::new(Metered(Arc::clone(&billing))),
            cluster: ClusterInfo {
                api_service_ip: IpAddr::V4(*service.ip()),
                api_port: service.port(),
                ca_pem: gateway.ca_certificate().to_owned(),
                cluster_domain: CLUSTER_DOMAIN.to_owned(),
                dns_servers: Vec::new(),
            },
        })
        .await
        .context("cannot start the worker")?;
        network.fill_pool();
        node.serve(node_name, worker.router());
        tasks.spawn("worker", |stop| async move {
            worker.run(stop).await;
            Ok(())
        });
    }

    tasks.spawn("meter", |stop| async move {
        billing.run(stop).await;
        Ok(())
    });
    let root_ca = gateway.ca_certificate().to_owned();
    let controllers = gateway.client("system:kube-controller-manager", &["system:masters"]);
    tasks.spawn("controllers", |stop| async move {
        let options = carob_controllers::Options { root_ca, ..carob_controllers::Options::default() };
        Ok(carob_controllers::run(controllers, options, stop).await?)
    });
    let server = Arc::clone(&gateway);
    tasks.spawn("gateway", |stop| async move { Ok(server.serve(listeners, stop).await?) });

    greet(listen_address, &kubeconfig, dir.root());
    let outcome = tasks.until_told_to_stop().await;
    store.close().await;
    outcome
}

/// What tells this Carob apart: kept from the first start on.
fn instance(dir: &DataDir, options: &Options) -> Result<Instance> {
    if let Some(kept) = dir.instance()? {
        unchanged("--pod-cidr", options.pod_cidr, kept.pod_cidr)?;
        unchanged("--service-cidr", options.service_cidr, kept.service_cidr)?;
        return Ok(kept);
    }
    let id = random_id()?;
    let service_cidr = options.service_cidr.unwrap_or(Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16)).trunc();
    let pod_cidr = match options.pod_cidr {
        Some(cidr) => cidr.trunc(),
        None => carob_network::free_cidr(
            &id,
            (42..=250)
                .filter(|second| *second != 96)
                .map(|second| Ipv4Net::new_assert(Ipv4Addr::new(10, second, 0, 0), 16)),
        )?,
    };
    if pod_cidr.contains(&service_cidr) || service_cidr.contains(&pod_cidr) {
        bail!("--pod-cidr {pod_cidr} and --service-cidr {service_cidr} overlap");
    }
    let instance = Instance { id, pod_cidr, service_cidr };
    dir.save_instance(&instance)?;
    Ok(instance)
}

fn unchanged(flag: &str, wanted: Option<Ipv4Net>, kept: Ipv4Net) -> Result<()> {
    match wanted {
        Some(wanted) if wanted.trunc() != kept => {
            bail!("{flag} {wanted}: this data directory was started with {kept}, and that can't change")
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
    Ok(name.to_ascii_lowercase())
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    file.write_all(text.as_bytes())?;
    Ok(())
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
