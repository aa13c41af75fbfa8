//! What the controllers share: the client, a copy of the objects, and a voice.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, ServiceAccount};
use kube::Client;
use kube::runtime::watcher;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::events::Recorder;
use crate::informer::Informer;

/// Clones share everything.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) pods: Informer<Pod>,
    pub(crate) nodes: Informer<Node>,
    pub(crate) namespaces: Informer<Namespace>,
    /// Those named `default`.
    pub(crate) service_accounts: Informer<ServiceAccount>,
    /// Those named `kube-root-ca.crt`.
    pub(crate) root_cas: Informer<ConfigMap>,
    pub(crate) replica_sets: Informer<ReplicaSet>,
    pub(crate) deployments: Informer<Deployment>,
    pub(crate) jobs: Informer<Job>,
    pub(crate) events: Recorder,
}

impl Cluster {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            events: Recorder::new(client.clone()),
            client,
            pods: Informer::new(),
            nodes: Informer::new(),
            namespaces: Informer::new(),
            service_accounts: Informer::new(),
            root_cas: Informer::new(),
            replica_sets: Informer::new(),
            deployments: Informer::new(),
            jobs: Informer::new(),
        }
    }

    /// Begins to follow the API.
    pub(crate) fn start(&self, stop: &CancellationToken, tasks: &mut JoinSet<()>) {
        let all = watcher::Config::default;
        let named = |name: &str| all().fields(&format!("metadata.name={name}"));
        let (client, stop) = (|| self.client.clone(), || stop.clone());
        tasks.spawn(self.pods.clone().run(client(), all(), stop()));
        tasks.spawn(self.nodes.clone().run(client(), all(), stop()));
        tasks.spawn(self.namespaces.clone().run(client(), all(), stop()));
        tasks.spawn(self.service_accounts.clone().run(client(), named("default"), stop()));
        tasks.spawn(self.root_cas.clone().run(client(), named("kube-root-ca.crt"), stop()));
        tasks.spawn(self.replica_sets.clone().run(client(), all(), stop()));
        tasks.spawn(self.deployments.clone().run(client(), all(), stop()));
        tasks.spawn(self.jobs.clone().run(client(), all(), stop()));
    }

    /// Waits until the copy of everything is complete: a controller that acts on less may make what is already there.
    pub(crate) async fn synced(&self) {
        self.pods.synced().await;
        self.nodes.synced().await;
        self.namespaces.synced().await;
        self.service_accounts.synced().await;
        self.root_cas.synced().await;
        self.replica_sets.synced().await;
        self.deployments.synced().await;
        self.jobs.synced().await;
    }
}
