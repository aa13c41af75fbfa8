//! From a Pod's spec to running sandboxes and a status: what the kubelet is in Kubernetes.
//!
//! The worker is an ordinary client of the API. One watch brings the pods bound to this node; each pod is an actor of its
//! own (`pod/actor.rs`) that prepares volumes and network, starts containers through the sandbox, probes them, restarts
//! them and writes their status. Everything that survives a restart of this process lives in the sandbox's annotations
//! and in the pod's status, never only in memory.

mod addresses;
mod admission;
mod container;
mod context;
mod credential_providers;
mod drain;
mod errors;
mod events;
mod files;
#[doc(hidden)]
pub mod fuzzing;
mod http;
mod images;
mod metrics;
mod network;
mod node;
mod objects;
mod observer;
mod pod;
mod pods;
mod pressure;
mod settings;
mod stream;
mod users;
mod volumes;

pub use context::{ClusterInfo, Share, WorkerConfig, machine_address};
pub use credential_providers::{CredentialProviderConfig, CredentialProviders};
pub use drain::drain;
pub use observer::{
    ContainerEnd, ContainerObserver, ContainerRequests, ObservedContainer, ObservedNetwork, Unobserved,
};
pub use pressure::Tenants;
pub use settings::{NodeSettings, Signal, Threshold};
pub use users::UserNamespacePolicy;

use carob_sandbox::{Exit, RecoveredPod};
use context::Context;
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// What keeps a worker from starting, or from going on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A directory of the worker's could not be made.
    #[error("cannot make directory {}", path.display())]
    Directory {
        /// The directory.
        path: std::path::PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The machine's facts (processors, memory, kernel) could not be read.
    #[error("cannot read {what}")]
    Machine {
        /// What was read.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The process that makes containers has ended. The next one ends what is left of them; a worker that starts then finds
    /// their ends, and starts them again.
    #[error("the spawner has ended")]
    Spawner,
}

/// One node's agent. [`Worker::run`] registers the node and runs its pods; [`Worker::router`] answers for their logs and
/// streams.
pub struct Worker {
    context: Arc<Context>,
    /// What [`Worker::run`] consumes: pods found again, and the exits to come.
    inherited: Mutex<Option<Inherited>>,
}

type Inherited = (Vec<RecoveredPod>, mpsc::UnboundedReceiver<Exit>, network::Inputs);

impl Worker {
    /// Prepares the directories under `data_dir`, reads the machine's facts and keeps the addresses of recovered pods: only
    /// then may the network's pool be filled. Nothing runs yet.
    pub async fn new(mut config: WorkerConfig) -> Result<Arc<Worker>, Error> {
        let own_dns = config.dns.as_ref().and_then(|sockets| sockets.address().ok());
        let dns = config.dns.take();
        let (context, recovered, exits, policies) = Context::new(config, own_dns).await?;
        let network = network::Inputs { dns, policies };
        Ok(Arc::new(Worker { context, inherited: Mutex::new(Some((recovered, exits, network))) }))
    }

    /// Runs until `shutdown` is cancelled. Containers keep running then: the next worker adopts them. A second call
    /// returns at once.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) -> Result<(), Error> {
        let inherited = self.inherited.lock().ok().and_then(|mut guard| guard.take());
        let Some((recovered, exits, network)) = inherited else { return Ok(()) };
        let shutdown = shutdown.child_token();
        let node = node::run(self.context.clone(), shutdown.clone());
        let pods = async {
            let outcome = pods::run(self.context.clone(), recovered, exits, shutdown.clone()).await;
            shutdown.cancel();
            outcome
        };
        let events = self.context.events.clone().run(self.context.client.clone(), shutdown.clone());
        let network = network::run(self.context.clone(), network, shutdown.clone());
        let pressure = pressure::run(self.context.clone(), shutdown.clone());
        let homes = users::keep(&self.context, shutdown.clone());
        let ((), outcome, ..) = tokio::join!(node, pods, events, network, pressure, homes);
        self.context.interests.clear();
        outcome
    }

    /// Adds the worker's metrics to a registry that somebody shows.
    pub fn register_metrics(&self, registry: &mut prometheus_client::registry::Registry) {
        self.context.metrics.register(registry);
    }

    /// Tells in the metrics how many readings are on no bill, for the gateway never takes them.
    pub fn usage_set_aside(&self, readings: u64) {
        self.context.metrics.usage_set_aside(readings);
    }

    /// The kubelet's HTTP paths: logs, exec, attach, port-forward, metrics and start latencies.
    pub fn router(self: &Arc<Self>) -> axum::Router {
        http::router(self.context.clone())
    }
}
