//! `carob up`: gateway, controllers, worker and billing in one process.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use carob_billing::price::PriceBook;
use carob_billing::{Ask, Billing, BillingConfig, Keeping};
use carob_edge::Edge;
use carob_gateway::{Extension, Gateway};
use carob_image::Images;
use carob_store::redb::RedbStore;
use carob_worker::{Share, Tenants};
use tokio_util::sync::CancellationToken;

use crate::DataDirOption;
use crate::agent::{self, Clients, Plan};
use crate::annex::Annex;
use crate::config::ConfigFile;
use crate::data_dir::{DataDir, Purpose, WorkerDir};
use crate::down::retire;
use crate::metrics;
use crate::nodes;
use crate::ranges::Ranges;
use crate::remote;
use crate::remote::bindings::Bindings;
use crate::remote::dial::Nodes;
use crate::remote::facts::Facts;
use crate::rest;
use crate::say;
use crate::site::{CLUSTER_DOMAIN, METER_INTERVAL, PodNetwork, Site, Wanted, node_name, raise_open_files};
use crate::tasks::Tasks;
use crate::wiring::{LocalNodes, Metered};

/// Every kubeconfig of Carob's says so.
const OUR_CONTEXT: &str = "current-context: carob";
/// How often certificates are looked at.
const RENEWAL: Duration = Duration::from_secs(24 * 60 * 60);
/// Workers that one process may have.
const MOST_WORKERS: i64 = 32;

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
    /// Pods' addresses: an IPv4 range and, for a dual-stack cluster, an IPv6 one, a /96 or larger, as in
    /// 10.42.0.0/16,fd42::/64 [default: the first free /16 from 10.42.0.0/16 on]
    #[arg(long, value_name = "CIDR[,CIDR]")]
    pod_cidr: Option<Ranges>,
    /// Services' addresses: a range of each family that pods have, as in 10.96.0.0/16,fd96::/112 [default: the first free /16
    /// from 10.96.0.0/16 on]
    #[arg(long, value_name = "CIDR[,CIDR]")]
    service_cidr: Option<Ranges>,
    /// Workers in this process, which share the machine out equally: 0 is a gateway alone, and each beyond the first has a
    /// network namespace of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=MOST_WORKERS), value_name = "N")]
    workers: u8,
    /// Further settings: registries, prices.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub async fn run(options: Options) -> Result<()> {
    let mut config = ConfigFile::read(options.config.as_deref())?;
    let node_name = node_name(config.node_name.take())?;
    let dir = DataDir::create(&options.data.data_dir)?;
    if remote::worker::is_one(&dir) {
        bail!("{} is the data directory of a worker: a gateway has one of its own", dir.root().display());
    }
    let _lock = dir.lock(Purpose::Serving)?;
    let descriptors = raise_open_files();
    let listener = listen(options.listen)?;
    let address = listener.local_addr()?;
    let wanted = Wanted {
        address,
        pod_cidr: options.pod_cidr,
        service_cidr: options.service_cidr,
        workers: options.workers,
        open_metadata: config.network.open_metadata,
    };
    let (site, network) = Site::claim(&dir, &wanted).await?;
    let mut tasks = Tasks::default();

    let store = RedbStore::open(dir.store(), carob_store::redb::Options::default())
        .with_context(|| format!("cannot open {}", dir.store().display()))?;
    let prices = match &config.price_book {
        Some(path) => PriceBook::read(path).with_context(|| format!("{} is no price book", path.display()))?,
        None => PriceBook::default(),
    };
    let billing =
        Billing::open(BillingConfig { dir: dir.ledger(), prices, interval: METER_INTERVAL, keeping: Keeping::Ledger })?;
    let nodes = Nodes::default();
    let bindings = Bindings::default();
    let local: Vec<String> = (1..=site.workers()).map(|number| dir.worker(number).node(&node_name)).collect();
    let volumes = network.is_some().then(|| dir.volumes());
    let gateway = Arc::new(
        gateway(
            &dir,
            &site,
            &store,
            &nodes,
            (&billing, bindings.ask()),
            local.clone(),
            std::mem::take(&mut config.cluster),
        )
        .await
        .context("cannot start the gateway")?,
    );
    nodes.reach(&gateway).context("cannot reach workers on other machines")?;
    bindings.reach(&gateway);
    let admin = gateway.client("system:carob:up", &["system:masters"]);
    nodes::complete(&admin, &site).await?;
    Facts::of(&site).publish(&admin).await?;
    let kubeconfig = options.kubeconfig.unwrap_or_else(|| dir.kubeconfig());
    let url = format!("https://{}", reachable(address));
    write_kubeconfig(&kubeconfig, &gateway.admin_kubeconfig(&url))?;
    let certificates =
        Certificates { gateway: Arc::clone(&gateway), nodes: nodes.clone(), kubeconfig: kubeconfig.clone(), url };
    tasks.spawn("certificates", |stop| async move {
        certificates.keep_young(stop).await;
        Ok(())
    });

    let load_balancers = config.network.pool();
    let mut listeners = vec![listener];
    if let Some(network) = network {
        if config.network.edge.enabled {
            let edge = edge(&site, &gateway, &config, &node_name, descriptors);
            gateway.register_metrics(|registry| edge.register_metrics(registry));
            tasks.spawn("edge", |stop| async move {
                Box::pin(edge.run(stop)).await;
                Ok(())
            });
        }
        if !address.ip().is_unspecified() {
            listeners.push(listen(site.api_on_bridge().into())?);
        }
        let images = Images::open(&dir.images(), std::mem::take(&mut config.images))?;
        let (site, gateway, billing, config, node) = (&site, &*gateway, &billing, &config, node_name.as_str());
        let machine_address = Some(site.machine_address().unwrap_or_else(carob_worker::machine_address));
        let tenants = Tenants::new(site.workers().into());
        let workers = Workers { dir: &dir, site, gateway, billing, images, tenants, config, node, machine_address };
        workers.start(network, &nodes.local, &mut tasks).await?;
    }
    let bill = Arc::clone(&billing);
    tasks.spawn("bindings", |stop| async move {
        bindings.run(bill, local.into_iter().collect(), stop).await;
        Ok(())
    });
    tasks.spawn("meter", |stop| async move { Ok(billing.run(stop).await?) });
    let clients = Arc::clone(&gateway);
    let clients: carob_controllers::Clients = Arc::new(move |user, groups| clients.client(user, groups));
    let plain = carob_controllers::Options::default();
    let controller_options = carob_controllers::Options {
        node_grace: config.node_grace_seconds.map_or(plain.node_grace, |grace| grace.0),
        signing_duration: config.signing_duration_seconds.map_or(plain.signing_duration, |duration| duration.0),
        root_ca: gateway.ca_certificate(),
        authority: Some(gateway.signing_authority()),
        volumes,
        load_balancers,
        node_ranges: Some(site.node_ranges()),
        reserved: gateway.reserved(),
        ..plain
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

    let written = store.clone();
    tasks.spawn("store", |stop| async move {
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            // Nobody knows what is on the disk: the next start reads it.
            error = written.failed() => Err(error.into()),
        }
    });

    greet(address, &kubeconfig, dir.root());
    let outcome = tasks.until_told_to_stop().await;
    store.close().await;
    outcome
}

/// What ends while the gateway runs, and where it is given out.
struct Certificates {
    gateway: Arc<Gateway>,
    nodes: Nodes,
    kubeconfig: PathBuf,
    url: String,
}

impl Certificates {
    async fn keep_young(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RENEWAL) => {}
            }
            if let Err(error) = self.renew() {
                tracing::warn!(error = %format!("{error:#}"), "certificates are not renewed yet");
            }
        }
    }

    fn renew(&self) -> Result<()> {
        self.gateway.renew_certificates()?;
        self.nodes.reach(&self.gateway)?;
        let text = self.gateway.admin_kubeconfig(&self.url);
        match std::fs::read_to_string(&self.kubeconfig) {
            Ok(there) if there != text => write_kubeconfig(&self.kubeconfig, &text),
            // Who took it away doesn't want it.
            _ => Ok(()),
        }
    }
}

/// The node that delivers readings.
fn sender(request: &http::Extensions) -> Option<String> {
    request.get::<carob_gateway::Requester>().and_then(|requester| requester.node().map(str::to_owned))
}

async fn gateway(
    dir: &DataDir,
    site: &Site,
    store: &RedbStore,
    nodes: &Nodes,
    (billing, ask): (&Arc<Billing>, Ask),
    measured: Vec<String>,
    settings: carob_gateway::Settings,
) -> Result<Gateway, carob_gateway::Error> {
    let bill = Extension {
        prefix: carob_billing::http::PREFIX,
        router: carob_billing::http::router(Arc::clone(billing)).merge(carob_billing::http::deliveries(
            Arc::clone(billing),
            sender,
            ask,
        )),
        group: None,
    };
    let metrics = (!measured.is_empty()).then(|| metrics::extension(Arc::clone(billing), measured));
    Gateway::new(carob_gateway::Config {
        listen: vec![site.address],
        extra_sans: site.names(),
        pki_dir: dir.pki(),
        store: Arc::new(store.clone()),
        dialer: Arc::new(nodes.clone()),
        api_service: Some(carob_gateway::ApiService {
            service: site.service,
            endpoint: site.api_endpoint(),
            range: site.instance.service_cidr,
            range6: site.instance.service_cidr6,
            dns: Some(site.dns()),
        }),
        pods: Some(site.pods()),
        service_account_issuer: format!("https://kubernetes.default.svc.{CLUSTER_DOMAIN}"),
        settings,
        extensions: [bill].into_iter().chain(metrics).collect(),
        max_body_bytes: 3 << 20,
    })
    .await
}

/// The proxy behind Ingresses and Gateways.
fn edge(site: &Site, gateway: &Gateway, config: &ConfigFile, node: &str, descriptors: usize) -> Edge {
    let settings = &config.network.edge;
    let processors = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Edge::new(carob_edge::Config {
        client: gateway.client(carob_edge::USER, &["system:authenticated"]),
        address: site.bridge,
        address6: site.bridge6(),
        node: node.to_owned(),
        balanced: !config.network.pool().is_empty(),
        listen: settings.listen.clone(),
        http_port: settings.http_port,
        https_port: settings.https_port,
        trusted: settings.trusted_proxies.clone(),
        threads: settings.threads.unwrap_or_else(processors),
        descriptors,
    })
}

/// What the workers of this machine are made of.
struct Workers<'a> {
    dir: &'a DataDir,
    site: &'a Site,
    gateway: &'a Gateway,
    billing: &'a Arc<Billing>,
    images: Images,
    /// Of those images.
    tenants: Tenants,
    config: &'a ConfigFile,
    /// The first one's node.
    node: &'a str,
    /// This machine's address.
    machine_address: Option<IpAddr>,
}

impl Workers<'_> {
    fn plan(&self, worker: &WorkerDir) -> Result<Plan> {
        let (site, gateway) = (self.site, self.gateway);
        let node = worker.node(self.node);
        let pod_cidr = site.block(worker.number)?;
        Ok(Plan {
            data_dir: worker.root().to_owned(),
            profiles: agent::profiles(self.dir),
            runtime: agent::spawner(worker, &site.instance.id),
            pod_cidr,
            pod_cidr6: site.block6(pod_cidr),
            clients: Clients {
                node: gateway.client(&format!("system:node:{node}"), &["system:nodes"]),
                services: gateway.client("system:kube-proxy", &[]),
                policies: gateway.client("system:carob:network-policy", &[]),
            },
            images: self.images.clone(),
            images_dir: self.dir.images(),
            tenants: self.tenants.clone(),
            observer: Arc::new(Metered(Arc::clone(self.billing))),
            cluster: site.cluster(&gateway.ca_certificate(), &self.config.network, worker.number),
            share: Share { of: site.workers().into() },
            address: site.machine_address().filter(|_| worker.number == 1),
            annexed: self.machine_address.filter(|_| worker.number > 1),
            serves: None,
            machine: tokio::runtime::Handle::current(),
            owner: self.config.owner()?,
            node,
        })
    }

    /// Has a worker's node have the ranges that its pods have.
    async fn settle(&self, admin: &kube::Client, node: &str, worker: u8) -> Result<()> {
        let block = self.site.block(worker)?;
        nodes::settle(admin, node, &nodes::ranges(block, self.site.block6(block))).await
    }

    /// Starts them, the first in the machine's own network, and has them answer for their pods.
    async fn start(
        &self,
        PodNetwork { network, dns }: PodNetwork,
        nodes: &LocalNodes,
        tasks: &mut Tasks,
    ) -> Result<()> {
        let admin = self.gateway.client("system:carob:up", &["system:masters"]);
        for gone in self.dir.workers()?.into_iter().filter(|worker| worker.number > self.site.workers()) {
            let observer = Metered(Arc::clone(self.billing));
            let id = &self.site.instance.id;
            retire(&gone, agent::spawner(&gone, id), id, &observer, &self.images).await?;
            nodes::remove(&admin, &gone.node(self.node)).await?;
        }
        let first = self.dir.worker(1);
        self.settle(&admin, self.node, 1).await?;
        let agent = self.plan(&first)?.begin(network.clone(), Some(dns)).await?;
        nodes.serve(self.node.to_owned(), agent.router(), tokio::runtime::Handle::current());
        self.gateway.register_metrics(|registry| agent.register_metrics(registry));
        tasks.spawn("worker", |stop| async move { Ok(Box::pin(agent.run(stop)).await?) });
        for number in 2..=self.site.workers() {
            let worker = self.dir.worker(number);
            let node = worker.node(self.node);
            self.settle(&admin, &node, number).await?;
            let annex = Annex::start(self.plan(&worker)?, &network, self.site.network(&worker)?)
                .await
                .with_context(|| format!("cannot start the worker {node}"))?;
            let (router, threads) = annex.answers();
            nodes.serve(node, router, threads);
            tasks.spawn("worker", |stop| annex.run(stop));
        }
        Ok(())
    }
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

/// Puts the kubeconfig in place, readable for its owner alone. A file that holds other clusters is not overwritten; one that
/// was just made holds none.
fn write_kubeconfig(path: &Path, text: &str) -> Result<()> {
    if let Ok(there) = std::fs::read_to_string(path)
        && !there.trim().is_empty()
        && !there.contains(OUR_CONTEXT)
    {
        bail!("{} is another cluster's kubeconfig: name a file of its own with --kubeconfig", path.display());
    }
    carob_store::file::put(path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

fn greet(address: SocketAddr, kubeconfig: &Path, data_dir: &Path) {
    say(format_args!(
        "Carob serves the Kubernetes API on https://{}\n\n  export KUBECONFIG={}\n  kubectl get nodes\n\n\
         SIGTERM ends the gateway and leaves pods running; this stops them:\n  carob down --data-dir {}",
        reachable(address),
        kubeconfig.display(),
        data_dir.display()
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_replaces_ours_or_an_empty_file_and_no_other_clusters() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kubeconfig");
        std::fs::write(&path, "").unwrap();
        for number in 0..2 {
            let text = format!("{OUR_CONTEXT}\n# {number}\n");
            write_kubeconfig(&path, &text).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        std::fs::write(&path, "current-context: another\n").unwrap();
        let refused = write_kubeconfig(&path, OUR_CONTEXT).unwrap_err().to_string();
        assert!(refused.contains("is another cluster's kubeconfig"), "{refused}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "current-context: another\n");
    }
}
