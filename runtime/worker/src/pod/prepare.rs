//! What a pod needs before its first container: network, sandbox, files and volumes.

use crate::addresses::Addresses;
use crate::container::env::Facts;
use crate::container::resources::{PodAmounts, pod_cgroup, pod_requests};
use crate::context::Context;
use crate::errors::chain;
use crate::files::{self, PodFiles};
use crate::metrics::StartLatency;
use crate::network::{bandwidth, host_ports};
use crate::observer::ObservedNetwork;
use crate::users::Home;
use crate::volumes::{self, VolumeError, Volumes};
use carob_sandbox::{Limits, PodConfig, UserNamespaces, UserRange};
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::Api;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Instant;

/// A pod's sandbox: it exists, and this is its address.
#[derive(Debug, Clone)]
pub(super) struct Sandbox {
    pub address: Option<Addresses>,
    pub hostname: String,
    pub files: PodFiles,
}

/// The outcome of one try. What succeeded stays: the next try is given the sandbox.
#[derive(Debug)]
pub(super) struct Prepared {
    pub sandbox: Result<Sandbox, String>,
    pub volumes: Result<Volumes, VolumeError>,
}

/// Keys of the sandbox's annotations, by which a pod is found again after a restart.
pub(super) const NAMESPACE: &str = "namespace";
pub(super) const NAME: &str = "name";
pub(crate) const ADDRESS: &str = "address";
pub(crate) const HOST_PORTS: &str = "hostPorts";
pub(crate) const NETWORK: &str = "network";

/// References of this pod's fields.
pub(super) fn facts<'a>(ctx: &'a Context, pod: &'a Pod, address: Option<Addresses>) -> Facts<'a> {
    let allocatable = ctx.admission.allocatable();
    Facts {
        pod,
        pod_ips: address,
        host_ips: ctx.host_ips,
        node: &ctx.node,
        allocatable: PodAmounts {
            cpu_millis: allocatable.cpu_millis,
            memory_bytes: allocatable.memory_bytes,
            storage_bytes: allocatable.storage_bytes,
            huge_pages: allocatable.huge_pages,
        },
    }
}

/// Makes the sandbox (unless `existing`) and the volumes. `own_users`: of the pod's own.
pub(super) async fn prepare(
    ctx: &Context,
    pod: &Pod,
    existing: Option<Sandbox>,
    own_users: bool,
    latency: &StartLatency,
) -> Prepared {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    if let Some(sandbox) = existing {
        let volumes = volumes::set_up(ctx, &facts(ctx, pod, sandbox.address)).await;
        return Prepared { sandbox: Ok(sandbox), volumes };
    }
    ctx.runtime.warm();
    let names = files::names(pod, ctx.machine.hostname(), &ctx.cluster.cluster_domain);
    let failed = |message: String| Prepared { sandbox: Err(message), volumes: Ok(Volumes::default()) };
    let names = match names {
        Ok(names) => names,
        Err(message) => return failed(message),
    };
    let runtime = match handler(ctx, spec).await {
        Ok(runtime) => runtime,
        Err(message) => return failed(message),
    };
    let begin = Instant::now();
    let own_users = own_users && runtime.is_none();
    let namespaces = match namespaces(ctx, pod, spec, uid, own_users).await {
        Ok(namespaces) => namespaces,
        Err(message) => {
            ctx.give_back(uid).await;
            return failed(message);
        }
    };
    let address = namespaces.address;
    latency.stage(&ctx.metrics, "network", begin);

    let begin = Instant::now();
    let directory = ctx.dirs.pod(uid);
    let hostname = names.hostname.clone();
    let made = std::fs::create_dir_all(&directory)
        .and_then(|()| std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o711)))
        .and_then(|()| PodFiles::write(&directory, pod, &names, address, &ctx.cluster));
    let files = match made {
        Ok(files) => files,
        Err(error) => {
            ctx.give_back(uid).await;
            return failed(format!("cannot write {}: {error}", directory.display()));
        }
    };
    latency.stage(&ctx.metrics, "files", begin);

    let network = namespaces.network.map(|address| ObservedNetwork::of(pod, &ctx.node, address));
    let annotations = [
        (NAMESPACE, pod.metadata.namespace.clone().unwrap_or_default()),
        (NAME, pod.metadata.name.clone().unwrap_or_default()),
        (ADDRESS, address.map(|address| address.to_string()).unwrap_or_default()),
        (HOST_PORTS, host_ports::to_text(&host_ports::of(pod))),
        (NETWORK, network.as_ref().and_then(|network| serde_json::to_string(network).ok()).unwrap_or_default()),
    ];
    let config = PodConfig {
        runtime,
        users: namespaces.users.as_ref().map(|(range, _)| *range),
        user_namespaces: namespaces.users.map(|(_, made)| made),
        limits: Limits { huge_pages: pod_requests(spec).huge_pages.limits(ctx.machine.huge_pages), ..pod_cgroup(spec) },
        annotations: annotations.map(|(key, value)| (key.to_owned(), value)).into(),
        ..config(uid, spec, &hostname, namespaces.net)
    };
    let create = async {
        let begin = Instant::now();
        let result = ctx.runtime.create_pod(config).await;
        latency.stage(&ctx.metrics, "pod sandbox", begin);
        result
    };
    let facts = facts(ctx, pod, address);
    // What is in memory is mounted into a sandbox that is there; all content can be fetched meanwhile.
    let begin = Instant::now();
    let (created, gathered) = tokio::join!(create, volumes::gather(ctx, &facts));
    match created {
        Ok(()) => {
            if let Some(network) = network {
                ctx.networks.start(network, ctx).await;
            }
            let volumes = match gathered {
                Ok(gathered) => volumes::place(ctx, &facts, gathered).await,
                Err(error) => Err(error),
            };
            latency.stage(&ctx.metrics, "volumes", begin);
            Prepared { sandbox: Ok(Sandbox { address, hostname, files }), volumes }
        }
        Err(error) => {
            ctx.give_back(uid).await;
            if let Err(error) = ctx.runtime.remove_pod(uid).await {
                tracing::warn!(uid, error = chain(&error), "what is left of a failed sandbox could not be removed");
            }
            failed(chain(&error))
        }
    }
}

/// A sandbox as the spec alone decides it.
pub(crate) fn config(uid: &str, spec: &PodSpec, hostname: &str, netns: Option<OwnedFd>) -> PodConfig {
    PodConfig {
        uid: uid.to_owned(),
        hostname: hostname.to_owned(),
        runtime: None,
        netns,
        users: None,
        user_namespaces: None,
        host_ipc: spec.host_ipc == Some(true),
        host_pid: spec.host_pid == Some(true),
        share_pid: spec.share_process_namespace == Some(true),
        limits: pod_cgroup(spec),
        sysctls: sysctls(spec),
        annotations: BTreeMap::new(),
    }
}

/// What the pod's sandbox is made of.
struct Namespaces {
    /// None on the host's network, and where it comes with the users.
    net: Option<OwnedFd>,
    users: Option<(UserRange, UserNamespaces)>,
    address: Option<Addresses>,
    /// The first address, unless it is the host's.
    network: Option<Ipv4Addr>,
}

async fn namespaces(
    ctx: &Context,
    pod: &Pod,
    spec: &PodSpec,
    uid: &str,
    own_users: bool,
) -> Result<Namespaces, String> {
    if spec.host_network == Some(true) {
        return Ok(Namespaces { net: None, users: None, address: Some(ctx.host_ips), network: None });
    }
    let in_network = |error: &dyn std::error::Error| format!("failed to set up the pod's network: {}", chain(error));
    let (network, users) = if own_users {
        let Home { range, namespaces, link } = ctx.homes.take(ctx).await?;
        (ctx.network.give(uid, link), Some((range, namespaces)))
    } else {
        (ctx.network.attach(uid).await.map_err(|error| in_network(&error))?, None)
    };
    // Its policies are in force before it has a process that could send or hear anything.
    let address = Addresses::new(network.address, network.address6);
    ctx.admit_network(pod, address).await.map_err(|error| in_network(&error))?;
    let bandwidth = bandwidth::of(pod).map_err(|message| format!("failed to set up the pod's network: {message}"))?;
    ctx.network.shape(network.address, bandwidth).await.map_err(|error| in_network(&error))?;
    let net = users.is_none().then_some(network.netns);
    Ok(Namespaces { net, users, address: Some(address), network: Some(network.address) })
}

/// The runtime that the handler of the pod's RuntimeClass names; `None` is Carob's own. The errors are containerd's.
async fn handler(ctx: &Context, spec: &PodSpec) -> Result<Option<PathBuf>, String> {
    let Some(class) = spec.runtime_class_name.as_deref().filter(|class| !class.is_empty()) else { return Ok(None) };
    let api: Api<RuntimeClass> = Api::all(ctx.client.clone());
    let found = api.get_opt(class).await.map_err(|error| crate::objects::message(&error))?;
    let Some(RuntimeClass { handler, .. }) = found else {
        return Err(format!("failed to get sandbox runtime: RuntimeClass {class:?} not found"));
    };
    if handler == RUNTIME {
        return Ok(None);
    }
    let Some(binary) = ctx.runtimes.get(&handler) else {
        return Err(format!("failed to get sandbox runtime: no runtime for {handler:?} is configured"));
    };
    if spec.host_users == Some(false) {
        return Err(format!(
            "can't set `spec.hostUsers: false`, runtime handler {handler:?} does not support user namespaces"
        ));
    }
    Ok(Some(binary.clone()))
}

/// The handler that is always there.
const RUNTIME: &str = "carob";

/// The pod's sysctls. In a network of its own a pod may bind low ports without privileges, as CRI runtimes allow.
fn sysctls(spec: &PodSpec) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    if spec.host_network != Some(true) {
        all.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned());
    }
    for sysctl in spec.security_context.iter().flat_map(|context| context.sysctls.iter().flatten()) {
        all.insert(sysctl.name.clone(), sysctl.value.clone());
    }
    all
}
