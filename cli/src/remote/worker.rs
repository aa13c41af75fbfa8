//! `carob worker`: a worker of a gateway on another machine.
//!
//! It is the worker that `carob up` has, with the network between: an API client over HTTPS, an endpoint where the gateway
//! asks for logs and streams, an outbox for the bill. Its pods go on while the gateway can't be reached, and while this
//! process is away; what was decided meanwhile is carried out when both are back.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use carob_billing::price::PriceBook;
use carob_billing::{Billing, BillingConfig, Keeping};
use carob_image::Images;
use carob_network::{DnsSockets, Ipv4Net, Ipv6Net, Network, NetworkConfig};
use carob_worker::{Share, Tenants};
use k8s_openapi::api::core::v1::{Node, NodeSpec};
use kube::Api;
use kube::api::PostParams;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use super::facts::Facts;
use super::identity::{self, Identity, Renewable, Wanted};
use super::{deliver, serve};
use crate::DataDirOption;
use crate::agent::{self, Clients, Plan};
use crate::config::ConfigFile;
use crate::data_dir::{DataDir, Instance, Purpose, random_id};
use crate::nodes;
use crate::ranges::Ranges;
use crate::say;
use crate::site::METER_INTERVAL;
use crate::tasks::Tasks;
use crate::wiring::Metered;

/// How long the gateway may take to give the pods' addresses.
const PATIENCE: Duration = Duration::from_secs(60);
/// How rarely certificates are looked at, and a renewal that failed is tried again.
const RENEWAL: Duration = Duration::from_secs(60);
/// How soon the first certificate for logs and streams is asked for again.
const FIRST_RETRY: Duration = Duration::from_secs(2);

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    data: DataDirOption,
    /// The gateway; needed the first time
    #[arg(long, value_name = "https://HOST:PORT")]
    join: Option<String>,
    /// What `carob token create` printed; needed the first time
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The certificate of the cluster's authority, where the token file doesn't hold it
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Name of the node [default: the machine's host name]
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// Where the gateway asks for logs and streams: on the address that leads to it, if none is given
    #[arg(long, default_value = "0.0.0.0:10250", value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// Further settings: registries, resolvers
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// What a worker knows of its place in the cluster, for starts without a gateway.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Place {
    block: Ipv4Net,
    facts: Facts,
}

impl Place {
    /// The IPv6 addresses of the pods, in a dual-stack cluster.
    fn block6(&self) -> Option<Ipv6Net> {
        self.facts.pod_cidr6.map(|range| carob_network::block6(range, self.block))
    }

    /// Whether pods that have addresses of the one place can keep them at the other: a second family may come.
    fn holds(&self, other: &Self) -> bool {
        let six = other.facts.pod_cidr6;
        self.block == other.block
            && self.facts.pod_cidr == other.facts.pod_cidr
            && (six.is_none() || self.facts.pod_cidr6 == six)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.block, Ranges { v4: self.facts.pod_cidr, v6: self.facts.pod_cidr6 })
    }
}

pub async fn run(options: Options) -> Result<()> {
    let mut config = ConfigFile::read(options.config.as_deref())?;
    let dir = DataDir::create(&options.data.data_dir)?;
    let chosen = options.node_name.or_else(|| config.node_name.take());
    let node = crate::site::node_name(match chosen {
        Some(name) => Some(name),
        None => identity::kept_node(dir.root())?,
    })?;
    if dir.store().exists() {
        bail!("{} is the data directory of a gateway: a worker has one of its own", dir.root().display());
    }
    let _lock = dir.lock(Purpose::Serving)?;
    crate::site::raise_open_files();
    let wanted = Wanted {
        gateway: options.join.as_deref(),
        token_file: options.token_file.as_deref(),
        ca_file: options.ca_file.as_deref(),
        node: &node,
    };
    let identity = Identity::open(dir.root(), &wanted).await?;
    let renewable = Renewable::new(identity.connect()?);
    let client = renewable.client();
    let place = place(&dir, &client, &node).await?;
    let facts = place.facts.clone();
    let instance = instance(&dir, &place)?;

    let listener = TcpListener::bind(options.listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {}", options.listen))?;
    let port = listener.local_addr()?.port();
    let address = match options.listen.ip() {
        ip if ip.is_unspecified() => way_to(&identity.gateway).await?,
        ip => ip,
    };
    let network = Network::start(NetworkConfig {
        instance: instance.id.clone(),
        pod_cidr: place.block,
        cluster_cidr: facts.pod_cidr,
        annexed: false,
        service_cidr: Some(facts.service_cidr),
        cluster_cidr6: facts.pod_cidr6,
        service_cidr6: facts.service_cidr6,
        open_metadata: facts.open_metadata,
    })
    .await
    .context("cannot set up the pods' network")?;
    let own = carob_network::gateway_of(place.block)?;
    let dns = DnsSockets::bind(own).with_context(|| format!("cannot listen for DNS on {own}"))?;
    let outbox = Billing::open(BillingConfig {
        dir: dir.ledger(),
        prices: PriceBook::default(),
        interval: METER_INTERVAL,
        keeping: Keeping::Outbox,
    })?;
    let worker = dir.worker(1);
    let owner = config.owner()?;
    let plan = Plan {
        node: node.clone(),
        data_dir: worker.root().to_owned(),
        profiles: agent::profiles(&dir),
        runtime: agent::spawner(&worker, &instance.id),
        pod_cidr: place.block,
        pod_cidr6: place.block6(),
        clients: Clients {
            node: client.clone(),
            services: renewable.client_as("system:kube-proxy"),
            policies: renewable.client_as("system:carob:network-policy"),
        },
        images: Images::open(&dir.images(), config.images)?,
        images_dir: dir.images(),
        tenants: Tenants::new(1),
        observer: Arc::new(Metered(Arc::clone(&outbox))),
        cluster: facts.cluster(&identity.authority, config.network.resolvers),
        share: Share::WHOLE,
        address: Some(address),
        annexed: None,
        serves: Some(port),
        machine: tokio::runtime::Handle::current(),
        owner,
    };
    let agent = plan.begin(network, Some(dns)).await?;

    let mut tasks = Tasks::default();
    let (shown, router, authority) = (Arc::<serve::Shown>::default(), agent.router(), identity.authority.clone());
    let answering = Arc::clone(&shown);
    tasks.spawn("endpoint", |stop| async move { serve::serve(listener, &authority, answering, router, stop).await });
    let (meter, outbox_client, told) = (Arc::clone(&outbox), client.clone(), Arc::clone(&agent));
    tasks.spawn("worker", |stop| async move { Ok(Box::pin(agent.run(stop)).await?) });
    tasks.spawn("meter", |stop| async move { Ok(meter.run(stop).await?) });
    tasks.spawn("delivery", |stop| async move {
        deliver::run(outbox, outbox_client, told, stop).await;
        Ok(())
    });
    let root = dir.root().to_owned();
    tasks.spawn("identity", |stop| async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = renew(identity, &root, &renewable, &shown, address) => {}
        }
        Ok(())
    });
    say(format_args!(
        "Carob's worker {node} answers on {address}:{port}; its pods have addresses of {}\n\n\
         SIGTERM ends it and leaves pods running; this stops them:\n  carob down --data-dir {}",
        place.block,
        dir.root().display()
    ));
    tasks.until_told_to_stop().await
}

/// Keeps both certificates young.
async fn renew(mut identity: Identity, dir: &Path, renewable: &Renewable, shown: &serve::Shown, address: IpAddr) {
    let mut serving: Option<identity::Pair> = None;
    loop {
        let client = renewable.client();
        if identity.client.fresh_for().is_none() {
            let renewed = async {
                let renewed = identity.renewed(&client, dir).await?;
                renewable.replace(renewed.connect()?);
                anyhow::Ok(renewed)
            };
            match renewed.await {
                Ok(renewed) => identity = renewed,
                Err(error) => {
                    tracing::warn!(error = %format!("{error:#}"), "the worker's certificate is not renewed yet");
                }
            }
        }
        if serving.as_ref().is_none_or(|pair| pair.fresh_for().is_none()) {
            let renewed = async {
                let pair = identity::serving(&client, &identity.node, address).await?;
                shown.set(&pair.certificate, &pair.key)?;
                anyhow::Ok(pair)
            };
            match renewed.await {
                Ok(pair) => serving = Some(pair),
                Err(error) => {
                    tracing::warn!(error = %format!("{error:#}"), "logs and streams have no new certificate yet");
                }
            }
        }
        tokio::time::sleep(next_look(&identity.client).min(serving.as_ref().map_or(FIRST_RETRY, next_look))).await;
    }
}

/// When to look at a certificate again: when it is old, and then the more often, the sooner it ends.
fn next_look(pair: &identity::Pair) -> Duration {
    pair.fresh_for().unwrap_or_else(|| (pair.holds_for() / 10).max(Duration::from_secs(1))).min(RENEWAL)
}

/// The gateway has no such node.
#[derive(Debug, thiserror::Error)]
#[error("the gateway refuses this worker's node: {0}")]
struct Refused(String);

/// The addresses of the pods and what else the gateway tells, or what it told before.
async fn place(dir: &DataDir, client: &kube::Client, node: &str) -> Result<Place> {
    let file = dir.root().join("place.json");
    let kept: Option<Place> = read_kept(&file)?;
    let asked = async {
        let facts = Facts::ask(client).await?;
        let block = block(client, node, kept.as_ref()).await?;
        anyhow::Ok(Place { block, facts })
    };
    match (asked.await, kept) {
        (Ok(place), Some(kept)) if !place.holds(&kept) => bail!(
            "the gateway gives this worker the addresses {place}; it has {kept}: carob down --data-dir {} lets go of them",
            dir.root().display()
        ),
        (Ok(place), _) => {
            keep(&file, &place)?;
            Ok(place)
        }
        (Err(error), Some(kept)) if error.is::<Refused>() => Err(error.context(format!(
            "this worker's pods have addresses of {}, which are another's by now: carob down --data-dir {} ends them, and the \
             next start gets other addresses",
            kept.block,
            dir.root().display()
        ))),
        (Err(error), Some(kept)) => {
            tracing::warn!(error = %format!("{error:#}"), "the gateway is not there; the worker goes on as it was");
            Ok(kept)
        }
        (Err(error), None) => Err(error),
    }
}

/// The node's block: what its object has, once the gateway has given it one.
async fn block(client: &kube::Client, name: &str, kept: Option<&Place>) -> Result<Ipv4Net> {
    let api: Api<Node> = Api::all(client.clone());
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let found = api.get_opt(name).await.context("cannot read this worker's node")?;
        let node = if let Some(node) = found {
            node
        } else {
            let spec = NodeSpec {
                pod_cidr: kept.map(|kept| kept.block.to_string()),
                pod_cidrs: kept.map(|kept| nodes::ranges(kept.block, kept.block6())),
                ..NodeSpec::default()
            };
            let mut node = Node { spec: Some(spec), ..Node::default() };
            node.metadata.name = Some(name.to_owned());
            match api.create(&PostParams::default(), &node).await {
                Err(kube::Error::Api(status)) if status.code == 409 => continue,
                Err(kube::Error::Api(status)) if status.code == 403 => bail!(Refused(status.message)),
                other => other.context("cannot register this worker's node")?,
            }
        };
        if let Some(block) = node.spec.and_then(|spec| spec.pod_cidr).filter(|block| !block.is_empty()) {
            return block.parse().with_context(|| format!("the node's spec.podCIDR {block} is no IPv4 range"));
        }
        if tokio::time::Instant::now() > deadline {
            bail!("the gateway gives this worker no addresses for pods: its --pod-cidr may be used up");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn instance(dir: &DataDir, place: &Place) -> Result<Instance> {
    let id = match dir.instance()? {
        Some(kept) => kept.id,
        None => random_id()?,
    };
    let facts = &place.facts;
    let instance = Instance {
        id,
        pod_cidr: Some(place.block),
        pod_cidr6: place.block6(),
        service_cidr: facts.service_cidr,
        service_cidr6: facts.service_cidr6,
    };
    dir.save_instance(&instance)?;
    Ok(instance)
}

/// The address that this machine has towards the gateway. Connecting a datagram socket sends nothing.
async fn way_to(gateway: &str) -> Result<IpAddr> {
    let url: http::Uri = gateway.parse()?;
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = url.port_u16().unwrap_or(443);
    let mut found =
        tokio::net::lookup_host((host.clone(), port)).await.with_context(|| format!("cannot find {host}"))?;
    let to = found.next().with_context(|| format!("{host} has no address"))?;
    let socket = std::net::UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(to)?;
    Ok(socket.local_addr()?.ip())
}

/// What an earlier start kept.
pub(super) fn read_kept<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match std::fs::read(path) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Keeps it for the next start, for the owner's eyes alone.
pub(super) fn keep<T: Serialize>(path: &Path, what: &T) -> Result<()> {
    let text = serde_json::to_vec_pretty(what)?;
    carob_store::file::put(path, &text).with_context(|| format!("cannot write {}", path.display()))
}

/// Tells the gateway's ledger what an outbox still holds, as the last act of a worker.
pub async fn settle(dir: &DataDir, outbox: &Arc<Billing>) -> Result<()> {
    let kept: Option<Identity> = read_kept(&dir.root().join("identity.json"))?;
    let Some(identity) = kept else { return Ok(()) };
    let client = identity.connect()?;
    let patience = Duration::from_secs(20);
    tokio::time::timeout(patience, deliver::all(outbox, &client)).await.context("the gateway does not answer")?
}

/// Whether a data directory is that of a worker of a gateway elsewhere.
pub fn is_one(dir: &DataDir) -> bool {
    dir.root().join("identity.json").exists()
}

/// Forgets the addresses: the next start takes those that the gateway then gives.
pub fn forget_place(dir: &DataDir) -> Result<()> {
    match std::fs::remove_file(dir.root().join("place.json")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_may_get_a_second_family_and_no_other_change() {
        let place = |block: &str, pods6: &str| -> Place {
            let six = if pods6.is_empty() { String::new() } else { format!(r#""podCidr6": "{pods6}","#) };
            serde_json::from_str(&format!(
                r#"{{"block": "{block}", "facts": {{"podCidr": "10.42.0.0/16", {six} "serviceCidr": "10.96.0.0/16",
                "apiService": "10.96.0.1", "apiPort": 443, "dnsService": "10.96.0.10", "clusterDomain": "cluster.local",
                "openMetadata": false}}}}"#
            ))
            .unwrap()
        };
        let (single, dual) = (place("10.42.8.0/21", ""), place("10.42.8.0/21", "fd42::/64"));
        assert!(single.holds(&single) && dual.holds(&dual) && dual.holds(&single));
        assert!(!single.holds(&dual) && !place("10.42.8.0/21", "fd43::/64").holds(&dual));
        assert!(!place("10.42.16.0/21", "").holds(&single));
        assert_eq!(dual.block6(), Some("fd42::a2a:800/117".parse().unwrap()));
        assert_eq!(dual.to_string(), "10.42.8.0/21 of 10.42.0.0/16,fd42::/64");
    }
}
