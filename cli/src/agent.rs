//! Starts one worker: its spawner, its pods' network, the agent. Wherever it is; what it is told says so.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use carob_image::Images;
use carob_network::{DnsSockets, Ipv4Net, Ipv6Net, Network};
use carob_sandbox::{Runtime, RuntimeConfig};
use carob_worker::{
    ClusterInfo, ContainerObserver, CredentialProviders, NodeSettings, Share, Tenants, Worker, WorkerConfig,
};

use crate::data_dir::{DataDir, WorkerDir};

/// The three that a worker is to the API.
pub struct Clients {
    /// As its node.
    pub node: kube::Client,
    /// As kube-proxy.
    pub services: kube::Client,
    /// As who carries NetworkPolicies out.
    pub policies: kube::Client,
}

/// What a worker is made of.
pub struct Plan {
    pub node: String,
    pub data_dir: PathBuf,
    /// Profiles of seccomp.
    pub profiles: PathBuf,
    pub runtime: RuntimeConfig,
    pub pod_cidr: Ipv4Net,
    pub pod_cidr6: Option<Ipv6Net>,
    pub clients: Clients,
    pub images: Images,
    /// Where those are.
    pub images_dir: PathBuf,
    /// Who else has them.
    pub tenants: Tenants,
    pub observer: Arc<dyn ContainerObserver>,
    pub cluster: ClusterInfo,
    pub share: Share,
    /// The node's address, where it isn't what the machine uses towards the world.
    pub address: Option<IpAddr>,
    /// The address of the machine that it shares with the first worker.
    pub annexed: Option<IpAddr>,
    /// The port at which it answers a gateway elsewhere.
    pub serves: Option<u16>,
    /// Where sockets are the machine's own.
    pub machine: tokio::runtime::Handle,
    pub owner: Owner,
}

/// What the machine's owner has decided for its workers.
pub struct Owner {
    /// OCI runtimes that RuntimeClasses can name, by their handlers' names.
    pub runtimes: BTreeMap<String, PathBuf>,
    pub credential_providers: CredentialProviders,
    pub settings: NodeSettings,
}

impl Plan {
    /// Starts it, on the runtime that this is called on: what it opens belongs to that one's network namespace.
    pub async fn begin(self, network: Network, dns: Option<DnsSockets>) -> Result<Arc<Worker>> {
        let (runtime, recovered, exits) = Runtime::start(self.runtime).await.context("cannot start the spawner")?;
        Worker::new(WorkerConfig {
            node_name: self.node,
            data_dir: self.data_dir,
            client: self.clients.node,
            services: self.clients.services,
            policies: self.clients.policies,
            runtime,
            recovered,
            exits,
            images: self.images,
            network,
            observer: self.observer,
            cluster: self.cluster,
            dns,
            pod_cidr: self.pod_cidr,
            pod_cidr6: self.pod_cidr6,
            address: self.address,
            annexed: self.annexed,
            serves: self.serves,
            share: self.share,
            profiles: self.profiles,
            images_dir: self.images_dir,
            tenants: self.tenants,
            machine: self.machine,
            runtimes: self.owner.runtimes,
            credential_providers: self.owner.credential_providers,
            settings: self.owner.settings,
        })
        .await
        .context("cannot start the worker")
    }
}

/// Where localhost profiles of seccomp lie, for all workers of a data directory.
pub fn profiles(dir: &DataDir) -> PathBuf {
    dir.root().join("seccomp")
}

/// The spawner of a worker.
pub fn spawner(worker: &WorkerDir, instance: &str) -> RuntimeConfig {
    RuntimeConfig { dir: worker.sandboxes(), instance: worker.instance(instance), exe: crate::own_program() }
}
