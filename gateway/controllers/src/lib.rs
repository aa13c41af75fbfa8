//! The controllers: what makes Deployments into Pods, puts Pods on nodes, and clears away what nobody needs.
//!
//! Each is an ordinary client of the API. They share one watch per kind ([`informer`]), and each has a queue of objects
//! to look at ([`queue`]); a reconciliation compares what is with what should be and takes the next step, so that it can
//! be stopped at any moment and begun again.

mod cluster;
mod deployment;
mod event_expiry;
mod events;
mod garbage;
mod informer;
mod inventory;
mod job;
mod kinds;
mod namespace;
mod ownership;
mod pod_control;
mod pod_gc;
mod queue;
mod replica_set;
mod requests;
mod scheduler;
mod service_account;

use std::time::Duration;

use kube::Client;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::inventory::Inventory;

/// How the controllers work.
#[derive(Clone, Debug)]
pub struct Options {
    /// Objects of one kind that are worked on at the same time.
    pub workers: usize,
    /// The cluster's certificate authority, in PEM, for `kube-root-ca.crt` in every namespace.
    pub root_ca: String,
    /// How long an event is kept after it was last written. Kubernetes keeps it for an hour.
    pub event_ttl: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { workers: 8, root_ca: String::new(), event_ttl: Duration::from_secs(3600) }
    }
}

/// Why the controllers ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One of them panicked.
    #[error("a controller panicked")]
    Panic(#[from] tokio::task::JoinError),
}

/// Runs all controllers until told to stop.
pub async fn run(client: Client, options: Options, shutdown: CancellationToken) -> Result<(), Error> {
    let cluster = Cluster::new(client);
    let inventory = Inventory::new();
    let mut tasks = JoinSet::new();
    scheduler::start(&cluster, &options, &shutdown, &mut tasks);
    replica_set::start(&cluster, &options, &shutdown, &mut tasks);
    deployment::start(&cluster, &options, &shutdown, &mut tasks);
    job::start(&cluster, &options, &shutdown, &mut tasks);
    service_account::start(&cluster, &options, &shutdown, &mut tasks);
    namespace::start(&cluster, &inventory, &options, &shutdown, &mut tasks);
    garbage::start(&cluster, &inventory, &options, &shutdown, &mut tasks);
    // Handlers are in place: nothing that the informers see from here on is missed.
    pod_gc::start(&cluster, &shutdown, &mut tasks);
    event_expiry::start(&cluster, &options, &shutdown, &mut tasks);
    inventory.start(&cluster, &shutdown, &mut tasks);
    cluster.start(&shutdown, &mut tasks);
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    Ok(())
}
