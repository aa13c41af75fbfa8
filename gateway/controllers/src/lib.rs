//! The controllers: what makes Deployments into Pods, puts Pods on nodes, and clears away what nobody needs.
//!
//! Each is an ordinary client of the API. They share one watch per kind ([`informer`]), and each has a queue of objects
//! to look at ([`queue`]); a reconciliation compares what is with what should be and takes the next step, so that it can
//! be stopped at any moment and begun again. What they have in common is in [`controller`].

mod aggregated;
mod autoscaler;
mod certificates;
mod cluster;
mod controller;
mod cron_job;
mod daemon_set;
mod deployment;
mod disruption;
mod endpoints;
mod event_expiry;
mod events;
mod flow_schemas;
mod garbage;
mod informer;
mod inventory;
mod ip_addresses;
mod job;
mod kinds;
mod load_balancer;
mod namespace;
mod node_lifecycle;
mod node_ranges;
mod ownership;
mod pod_control;
mod pod_gc;
mod policy_status;
mod queue;
mod quota;
mod replica_set;
mod requests;
mod revisions;
mod role_aggregation;
mod root_ca;
mod scheduler;
mod service_account;
mod stateful_set;
mod status;
mod taint_eviction;
mod volumes;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::ReplicationController;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
pub use crate::controller::Clients;
use crate::controller::{Start, start};
use crate::inventory::Inventory;
pub use crate::load_balancer::CLASS as LOAD_BALANCER_CLASS;
pub use crate::node_ranges::NodeRanges;
use crate::replica_set::Replicas;

/// All of them.
const CONTROLLERS: &[fn(&Start<'_>, &mut JoinSet<()>)] = &[
    start::<scheduler::Scheduler>,
    start::<Replicas<ReplicaSet>>,
    start::<Replicas<ReplicationController>>,
    start::<deployment::Controller>,
    start::<stateful_set::Controller>,
    start::<daemon_set::Controller>,
    start::<job::Controller>,
    start::<job::ttl::Ttl>,
    start::<cron_job::Controller>,
    start::<disruption::Budgets>,
    start::<endpoints::slices::Slices>,
    start::<endpoints::legacy::Endpoints>,
    start::<endpoints::mirror::Mirror>,
    start::<ip_addresses::Addresses>,
    start::<load_balancer::LoadBalancers>,
    start::<service_account::DefaultAccounts>,
    start::<root_ca::RootCa>,
    start::<namespace::Controller>,
    start::<garbage::Collector>,
    start::<pod_gc::PodGc>,
    start::<node_lifecycle::NodeLifecycle>,
    start::<node_ranges::Ranges>,
    start::<taint_eviction::TaintEviction>,
    start::<autoscaler::Autoscaler>,
    start::<quota::Quotas>,
    start::<volumes::binder::Binder>,
    start::<volumes::ephemeral::Ephemeral>,
    start::<volumes::protection::Claims>,
    start::<volumes::protection::Volumes>,
    start::<volumes::protection::Attributes>,
    start::<role_aggregation::Aggregation>,
    start::<policy_status::PolicyStatus>,
    start::<flow_schemas::FlowSchemas>,
    start::<certificates::approver::Approver>,
    start::<certificates::signer::Signer>,
    start::<certificates::cleaner::Cleaner>,
];

/// A year, as `--cluster-signing-duration` has it.
const SIGNING_DURATION: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// What a name or an address is, if it can't be a node's.
pub type Reserved = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// How the controllers work.
#[derive(Clone)]
pub struct Options {
    /// Objects of one kind that are worked on at the same time.
    pub workers: usize,
    /// The cluster's certificate authority, in PEM, for `kube-root-ca.crt` in every namespace.
    pub root_ca: String,
    /// What requests for certificates are signed with: certificate and key, in PEM. Without it they are not signed.
    pub authority: Option<(String, String)>,
    /// How long such a certificate holds if nobody asks for less.
    pub signing_duration: Duration,
    /// Where the directories of volumes of the default StorageClass are made; none if nobody here could mount them.
    pub volumes: Option<PathBuf>,
    /// Addresses for Services of type LoadBalancer, from the first to the last of each range; without any, they wait.
    pub load_balancers: Vec<(IpAddr, IpAddr)>,
    /// Whence nodes that join get the addresses of their pods; without it, somebody else gives them.
    pub node_ranges: Option<NodeRanges>,
    /// Tells of a name or an address what it is, if it can't be that of a node that joins.
    pub reserved: Reserved,
    /// How long a node may be silent before it counts as lost. Leases are renewed every ten seconds.
    pub node_grace: Duration,
    /// How often an autoscaler looks at its metrics. In Kubernetes every 15 seconds.
    pub autoscaler_period: Duration,
    /// How long an event is kept after it was last written. Kubernetes keeps it for an hour.
    pub event_ttl: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            workers: 8,
            root_ca: String::new(),
            authority: None,
            signing_duration: SIGNING_DURATION,
            volumes: None,
            load_balancers: Vec::new(),
            node_ranges: None,
            reserved: Arc::new(|_| None),
            node_grace: node_lifecycle::GRACE,
            autoscaler_period: Duration::from_secs(15),
            event_ttl: Duration::from_secs(3600),
        }
    }
}

/// Why the controllers ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One of them panicked.
    #[error("a controller panicked")]
    Panic(#[from] tokio::task::JoinError),
}

/// Runs all controllers until told to stop. Each acts in its own name, through a client that `clients` makes.
pub async fn run(clients: Clients, options: Options, shutdown: CancellationToken) -> Result<(), Error> {
    let reader = clients("system:kube-controller-manager", &["system:authenticated"]);
    let cluster = Cluster::new(reader.clone());
    let inventory = Inventory::new();
    let mut tasks = JoinSet::new();
    let common =
        Start { clients: &clients, cluster: &cluster, inventory: &inventory, options: &options, stop: &shutdown };
    for start in CONTROLLERS {
        start(&common, &mut tasks);
    }
    // In Kubernetes the server itself forgets events.
    let server = clients("system:apiserver", &["system:masters", "system:authenticated"]);
    if options.volumes.is_some() {
        tasks.spawn(volumes::furnish_class(server.clone(), cluster.clone()));
    }
    event_expiry::start(server, &options, &shutdown, &mut tasks);
    // Handlers are in place: nothing that the informers see from here on is missed.
    inventory.start(&reader, &cluster, &shutdown, &mut tasks);
    cluster.start(&shutdown, &mut tasks);
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    Ok(())
}
