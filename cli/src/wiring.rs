//! The two places where crates meet that don't know each other: the gateway reaches the worker's streams, and the worker
//! tells billing of its containers and of its pods' networks.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use axum::Router;
use carob_billing::{Billing, Counters, End, Meterable, Requests, Traffic, TrafficSource};
use carob_gateway::{NodeDialer, NodeStream};
use carob_network::TrafficCounters;
use carob_sandbox::{CgroupPaths, CgroupVersion};
use carob_worker::{ContainerEnd, ContainerObserver, ContainerRequests, ObservedContainer, ObservedNetwork};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::runtime::Handle;

/// How much of a stream may be under way between the gateway and the worker of the same process.
const PIPE_BYTES: usize = 64 << 10;

/// Dials the workers of this process, over pipes in memory on which they speak HTTP as they would over the network.
#[derive(Clone, Default)]
pub struct LocalNodes {
    workers: Arc<Mutex<HashMap<String, (Router, Handle)>>>,
}

impl LocalNodes {
    /// A worker that answers from now on, on its own threads.
    pub fn serve(&self, node: String, router: Router, threads: Handle) {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).insert(node, (router, threads));
    }
}

#[async_trait]
impl NodeDialer for LocalNodes {
    async fn dial(&self, node: &str) -> io::Result<Box<dyn NodeStream>> {
        let known = self.workers.lock().unwrap_or_else(PoisonError::into_inner).get(node).cloned();
        let Some((router, threads)) = known else {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("node {node} has no worker here")));
        };
        let (gateway_end, worker_end) = tokio::io::duplex(PIPE_BYTES);
        threads.spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(worker_end), TowerToHyperService::new(router))
                .with_upgrades();
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the worker ended");
            }
        });
        Ok(Box::new(gateway_end))
    }
}

/// How long to wait before something is told again to a ledger that did not take it.
const LEDGER_RETRY: Duration = Duration::from_millis(500);

/// Tells billing of the worker's containers.
pub struct Metered(pub Arc<Billing>);

#[async_trait]
impl ContainerObserver for Metered {
    async fn started(&self, container: &ObservedContainer) {
        self.0.container_started(meterable(container));
    }

    async fn resized(&self, container: &ObservedContainer, requests: ContainerRequests) {
        let id = &container.container_id;
        while let Err(error) = self.0.container_resized(id, asked(requests)).await {
            tracing::error!(container = %id, %error, "the ledger did not take what a container asks for now");
            tokio::time::sleep(LEDGER_RETRY).await;
        }
    }

    async fn exited(&self, container: &ObservedContainer, end: &ContainerEnd) {
        // The container's counters stay until this returns: no reading is given up.
        while let Err(error) = self.0.container_exited(meterable(container), ended(end)).await {
            tracing::error!(container = %container.container_id, %error, "the ledger did not take a container's end");
            tokio::time::sleep(LEDGER_RETRY).await;
        }
    }

    async fn network_started(&self, network: &ObservedNetwork, counters: &TrafficCounters) {
        let reader = counters.clone();
        let read = move || Ok(reader.read()?.into_iter().map(|(pod, bytes)| (pod, traffic(bytes))).collect());
        let source = TrafficSource::new(network.node.clone(), read);
        let counters = Some(Counters::Network(source, network.address));
        self.0.container_started(Meterable { counters, ..metered_network(network) });
    }

    async fn network_ended(&self, network: &ObservedNetwork, last: Option<carob_network::Traffic>) {
        while let Err(error) = self.0.network_ended(metered_network(network), last.map(traffic)).await {
            tracing::error!(pod = %network.pod, %error, "the ledger did not take what a pod received and sent");
            tokio::time::sleep(LEDGER_RETRY).await;
        }
    }
}

/// How long `carob down` tries to write one container's end.
const LAST_READING_PATIENCE: Duration = Duration::from_secs(5);

/// Tells billing of the last ends, for `carob down`: a ledger that doesn't take one in time is not asked again, and
/// [`LastReadings::outcome`] says why.
pub struct LastReadings {
    billing: Arc<Billing>,
    failure: Mutex<Option<carob_billing::LedgerError>>,
}

impl LastReadings {
    /// Into this ledger.
    pub fn new(billing: Arc<Billing>) -> Self {
        Self { billing, failure: Mutex::new(None) }
    }

    /// Why an end could not be written, if any could not.
    pub fn outcome(self) -> Result<(), carob_billing::LedgerError> {
        self.failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// What follows from a refusal: a pause, or the end of all patience.
    async fn refused(&self, begin: Instant, error: carob_billing::LedgerError) {
        if begin.elapsed() >= LAST_READING_PATIENCE {
            *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        } else {
            tokio::time::sleep(LEDGER_RETRY).await;
        }
    }

    fn failed(&self) -> bool {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

#[async_trait]
impl ContainerObserver for LastReadings {
    async fn started(&self, _container: &ObservedContainer) {}

    async fn resized(&self, _container: &ObservedContainer, _requests: ContainerRequests) {}

    async fn exited(&self, container: &ObservedContainer, end: &ContainerEnd) {
        let begin = Instant::now();
        while !self.failed() {
            let Err(error) = self.billing.container_exited(meterable(container), ended(end)).await else { return };
            self.refused(begin, error).await;
        }
    }

    async fn network_started(&self, _network: &ObservedNetwork, _counters: &TrafficCounters) {}

    async fn network_ended(&self, network: &ObservedNetwork, last: Option<carob_network::Traffic>) {
        let begin = Instant::now();
        while !self.failed() {
            let written = self.billing.network_ended(metered_network(network), last.map(traffic)).await;
            let Err(error) = written else { return };
            self.refused(begin, error).await;
        }
    }
}

fn ended(end: &ContainerEnd) -> End {
    End {
        finished_at: end.finished_at,
        unknown: end.unknown,
        cpu_ns: end.cpu_ns,
        memory_peak_bytes: end.memory_peak_bytes,
    }
}

fn meterable(container: &ObservedContainer) -> Meterable {
    Meterable {
        container_id: container.container_id.clone(),
        pod_uid: container.pod_uid.clone(),
        namespace: container.namespace.clone(),
        pod: container.pod.clone(),
        container: container.container.clone(),
        attempt: container.attempt,
        labels: container.labels.clone(),
        node: container.node.clone(),
        started_at: container.started_at,
        requests: asked(container.requests),
        counters: Some(counters(&container.cgroup)),
    }
}

/// A pod's network, which has no container's name and requests nothing.
fn metered_network(network: &ObservedNetwork) -> Meterable {
    Meterable {
        container_id: network.id.clone(),
        pod_uid: network.pod_uid.clone(),
        namespace: network.namespace.clone(),
        pod: network.pod.clone(),
        container: String::new(),
        attempt: 0,
        labels: network.labels.clone(),
        node: network.node.clone(),
        started_at: network.started_at,
        requests: Requests::default(),
        counters: None,
    }
}

fn traffic(bytes: carob_network::Traffic) -> Traffic {
    Traffic {
        internet_received_bytes: bytes.internet_received,
        internet_sent_bytes: bytes.internet_sent,
        cluster_received_bytes: bytes.cluster_received,
        cluster_sent_bytes: bytes.cluster_sent,
    }
}

fn asked(requests: ContainerRequests) -> Requests {
    Requests { cpu_millis: requests.cpu_millis, memory_bytes: requests.memory_bytes }
}

fn counters(cgroup: &CgroupPaths) -> Counters {
    match cgroup.version {
        CgroupVersion::V1 => Counters::V1 { cpuacct: cgroup.cpuacct.clone(), memory: cgroup.memory.clone() },
        CgroupVersion::V2 => Counters::V2(cgroup.memory.clone()),
    }
}
