//! The Node object: registered with the machine's capacity, kept alive by a lease every ten seconds and a status every
//! five minutes.

use crate::Error;
use crate::admission::Allocatable;
use crate::container::huge_pages::HugePages;
use crate::context::{Context, Share};
use crate::events::{About, Severity};
use crate::pressure::Shortage;
use crate::settings::{NodeSettings, Signal};
use carob_api::placement;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
    NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeSpec, NodeStatus, NodeSystemInfo, PodSpec,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// Renewal of the lease, and how long others wait for it (Kubernetes: 10 s and 40 s).
const LEASE_EVERY: Duration = Duration::from_secs(10);
const LEASE_SECONDS: i32 = 40;
/// The status is written this often when nothing changes: every 30th lease.
const STATUS_EVERY: u32 = 30;
/// Memory kept back for Carob itself and the machine: 1 part in 16, half a GiB at most.
const RESERVED_PART: i64 = 16;
const RESERVED_MOST: i64 = 512 << 20;
/// The Kubernetes release whose node behaviour is offered.
const KUBELET_VERSION: &str = "v1.35.0";
/// The annotation with the address of the machine that a node shares with others: theirs isn't known on other machines.
pub(crate) const MACHINE_ADDRESS: &str = "carob.dev/machine-address";
const LEASE_NAMESPACE: &str = "kube-node-lease";

/// Facts of the machine, or of the part of it that this worker has; read once.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub cpu_millis: i64,
    pub memory_bytes: i64,
    pub share: Share,
    /// Set aside when this process began, and none where cgroups can't limit them or several workers share the machine.
    pub huge_pages: HugePages,
    info: NodeSystemInfo,
    hostname: String,
}

impl Machine {
    /// Reads /proc and /etc.
    pub fn read(share: Share) -> Result<Self, Error> {
        let failed = |what| move |source| Error::Machine { what, source };
        let cpus = std::thread::available_parallelism().map_err(failed("the number of processors"))?.get();
        let meminfo = fs::read_to_string("/proc/meminfo").map_err(failed("/proc/meminfo"))?;
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").map_err(failed("the kernel's release"))?;
        let hostname = fs::read_to_string("/proc/sys/kernel/hostname").map_err(failed("the host name"))?;
        // Containers of this machine's maker may lack these; a node without them is still a node.
        let optional = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
        let info = NodeSystemInfo {
            architecture: architecture().to_owned(),
            boot_id: optional("/proc/sys/kernel/random/boot_id"),
            container_runtime_version: format!("carob://{}", env!("CARGO_PKG_VERSION")),
            kernel_version: kernel.trim().to_owned(),
            kube_proxy_version: String::new(),
            kubelet_version: KUBELET_VERSION.to_owned(),
            machine_id: optional("/etc/machine-id"),
            operating_system: "linux".to_owned(),
            os_image: os_name(&optional("/etc/os-release")),
            system_uuid: optional("/sys/class/dmi/id/product_uuid"),
            ..NodeSystemInfo::default()
        };
        Ok(Self {
            cpu_millis: i64::try_from(cpus).unwrap_or(1) * 1000 / i64::from(share.of),
            memory_bytes: total_memory(&meminfo).unwrap_or(0) / i64::from(share.of),
            share,
            huge_pages: huge_pages(share),
            info,
            hostname: hostname.trim().to_owned(),
        })
    }

    /// What is left for pods, of which no more than so many come here.
    pub fn allocatable(&self, pods: u32, storage_bytes: u64) -> Allocatable {
        let reserved = (self.memory_bytes / RESERVED_PART).min(RESERVED_MOST / i64::from(self.share.of));
        Allocatable {
            cpu_millis: self.cpu_millis,
            memory_bytes: self.memory_bytes - reserved - self.huge_pages.total(),
            storage_bytes: i64::try_from(storage_bytes).unwrap_or(i64::MAX),
            pods: pods.into(),
            huge_pages: self.huge_pages,
        }
    }

    /// The host's name, which pods on its network bear.
    pub fn hostname(&self) -> &str {
        &self.hostname
    }
}

fn huge_pages(share: Share) -> HugePages {
    if share.of == 1 && carob_sandbox::has_controller("hugetlb") {
        HugePages::of_machine(Path::new("/sys/kernel/mm/hugepages"))
    } else {
        HugePages::default()
    }
}

/// Go's name of this architecture, as images use it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn total_memory(meminfo: &str) -> Option<i64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn os_name(os_release: &str) -> String {
    let name = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.unwrap_or("Linux").trim_matches('"').to_owned()
}

/// Registers the node and keeps it alive until `shutdown`.
pub(crate) async fn run(ctx: Arc<Context>, shutdown: CancellationToken) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = keep_alive(&ctx) => {}
    }
}

async fn keep_alive(ctx: &Context) {
    // From before the first status is written: what is found out meanwhile is news.
    let mut short = ctx.pressure.subscribe();
    let mut wait = Duration::from_millis(100);
    while let Err(error) = register(ctx).await {
        tracing::warn!(%error, node = ctx.node, "the node could not be registered yet");
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(7));
    }
    tracing::info!(node = ctx.node, "the node is registered");
    ctx.events.record(About::node(&ctx.node), Severity::Normal, "Starting", "Starting kubelet.".to_owned());
    let mut ticks = tokio::time::interval(LEASE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut count: u32 = 0;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            // What the node is short of keeps pods away from it: that is told at once.
            Ok(()) = short.changed() => {
                if let Err(error) = register(ctx).await {
                    tracing::warn!(%error, "the node's conditions could not be written");
                    short.mark_changed();
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                continue;
            }
        }
        if let Err(error) = renew_lease(ctx).await {
            tracing::debug!(%error, "the node's lease could not be renewed");
        }
        count = count.wrapping_add(1);
        // A node that was removed under us, or given up while nothing was heard of it, comes back with the next status.
        if (count.is_multiple_of(STATUS_EVERY) || !is_up_to_date(ctx).await)
            && let Err(error) = register(ctx).await
        {
            tracing::warn!(%error, "the node's status could not be written");
        }
    }
}

/// Whether others take the node for ready, and for the owner of what somebody added to its capacity. Where they can't be
/// asked, nothing can be told either.
async fn is_up_to_date(ctx: &Context) -> bool {
    let api: Api<Node> = Api::all(ctx.client.clone());
    let Ok(found) = api.get_opt(&ctx.node).await else { return true };
    let Some(status) = found.and_then(|node| node.status) else { return false };
    let ready = |condition: &NodeCondition| condition.type_ == "Ready" && condition.status == "True";
    status.conditions.iter().flatten().any(ready)
        && extended(status.capacity.as_ref()) == extended(status.allocatable.as_ref())
}

type Amounts = BTreeMap<String, Quantity>;

/// Resources that the node's owner says it has (a PATCH of `status.capacity`): of other domains than Kubernetes' own.
fn extended(amounts: Option<&Amounts>) -> Amounts {
    let all = amounts.into_iter().flatten();
    let of_others = |name: &str| name.split_once('/').is_some_and(|(domain, _)| !domain.ends_with("kubernetes.io"));
    all.filter(|(name, _)| of_others(name)).map(|(name, amount)| (name.clone(), amount.clone())).collect()
}

/// Whether the pod's selector and required affinity choose this node; the scheduler sees to that, but not every pod is
/// placed by it. Where the node can't be asked for its labels, whoever placed the pod is believed.
pub(crate) async fn is_chosen(ctx: &Context, spec: &PodSpec) -> bool {
    let anywhere =
        spec.node_selector.is_none() && spec.affinity.as_ref().is_none_or(|affinity| affinity.node_affinity.is_none());
    if anywhere {
        return true;
    }
    let api: Api<Node> = Api::all(ctx.client.clone());
    match api.get(&ctx.node).await {
        Ok(node) => placement::selected(spec, &node),
        Err(error) => {
            tracing::debug!(%error, "the node's labels could not be read");
            true
        }
    }
}

/// Whether the node has a taint under which the pod may not run.
pub(crate) fn sends_away(ctx: &Context, spec: &PodSpec) -> bool {
    let node = ctx.own_node.borrow();
    node.as_ref().is_some_and(|node| placement::untolerated(spec, node, &["NoExecute"]).is_some())
}

/// The ranges of its pods, one of each family that they have.
fn pod_cidrs(ctx: &Context) -> Vec<String> {
    [ctx.pod_cidr.to_string()].into_iter().chain(ctx.pod_cidr6.map(|range| range.to_string())).collect()
}

/// Creates the node if it isn't there, and writes its labels and status.
async fn register(ctx: &Context) -> Result<(), kube::Error> {
    let api: Api<Node> = Api::all(ctx.client.clone());
    let labels = labels(&ctx.node);
    let machine = ctx.machine_address.map(|address| address.to_string());
    let existing = api.get_opt(&ctx.node).await?;
    let node = if let Some(node) = existing {
        let has = node.metadata.labels.clone().unwrap_or_default();
        let without_range = node.spec.as_ref().is_none_or(|spec| spec.pod_cidr.is_none());
        let moved = node.metadata.annotations.as_ref().and_then(|all| all.get(MACHINE_ADDRESS)) != machine.as_ref();
        if without_range || moved || labels.iter().any(|(key, value)| has.get(key) != Some(value)) {
            let mut patch = json!({"metadata": {"labels": labels, "annotations": {MACHINE_ADDRESS: machine}}});
            if without_range {
                patch["spec"] = json!({"podCIDR": ctx.pod_cidr.to_string(), "podCIDRs": pod_cidrs(ctx)});
            }
            api.patch(&ctx.node, &PatchParams::default(), &Patch::Merge(patch)).await?
        } else {
            node
        }
    } else {
        let attach = ("volumes.kubernetes.io/controller-managed-attach-detach".to_owned(), "true".to_owned());
        let machine = machine.map(|address| (MACHINE_ADDRESS.to_owned(), address));
        let node = Node {
            metadata: ObjectMeta {
                name: Some(ctx.node.clone()),
                labels: Some(labels),
                annotations: Some([attach].into_iter().chain(machine).collect()),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec {
                pod_cidr: Some(ctx.pod_cidr.to_string()),
                pod_cidrs: Some(pod_cidrs(ctx)),
                ..NodeSpec::default()
            }),
            status: None,
        };
        api.create(&PostParams::default(), &node).await?
    };
    let status = status(ctx, node.status.as_ref(), Timestamp::now()).await;
    let mut patch = json!({"status": status});
    // Pods may have what the owner says is there, and no more what isn't.
    let before = node.status.unwrap_or_default();
    let there = extended(before.capacity.as_ref());
    for name in extended(before.allocatable.as_ref()).keys().chain(there.keys()) {
        patch["status"]["allocatable"][name] = json!(there.get(name));
    }
    // The key by which lists of addresses are merged is their type, of which a node may have two.
    if let Some(addresses) = patch["status"]["addresses"].as_array_mut() {
        addresses.insert(0, json!({"$patch": "replace"}));
    }
    api.patch_status(&ctx.node, &PatchParams::default(), &Patch::Strategic(patch)).await?;
    Ok(())
}

/// Bytes of disk that are a node's.
pub(crate) struct Disk {
    pub capacity: u64,
    pub allocatable: u64,
}

impl Disk {
    /// A share of the file system that pods write to. What is left below the threshold belongs to nobody: pods are evicted
    /// for it.
    pub fn of(pods: &Path, settings: &NodeSettings, share: Share) -> Self {
        let (parts, whole) = (u64::from(share.of), disk_bytes(pods).unwrap_or(0));
        let threshold = settings.eviction_hard.get(&Signal::NodefsAvailable);
        let kept = threshold.map_or(0, |threshold| threshold.of(whole)) / parts;
        Self { capacity: whole / parts, allocatable: (whole / parts).saturating_sub(kept) }
    }
}

/// The size of the file system that pods write to.
fn disk_bytes(root: &Path) -> Option<u64> {
    let system = nix::sys::statvfs::statvfs(root).ok()?;
    Some(system.blocks() * system.fragment_size())
}

fn labels(node: &str) -> BTreeMap<String, String> {
    [
        ("kubernetes.io/hostname", node),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", architecture()),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

async fn status(ctx: &Context, before: Option<&NodeStatus>, now: Timestamp) -> NodeStatus {
    let (machine, allocatable) = (&ctx.machine, ctx.admission.allocatable());
    let disk = Disk::of(ctx.dirs.pods(), &ctx.settings, machine.share);
    let amounts = |cpu_millis: i64, memory_bytes: i64, disk_bytes: u64| -> BTreeMap<String, Quantity> {
        let cpu = if cpu_millis % 1000 == 0 { (cpu_millis / 1000).to_string() } else { format!("{cpu_millis}m") };
        let amounts = [
            ("cpu", cpu),
            ("ephemeral-storage", format!("{}Ki", disk_bytes / 1024)),
            ("memory", format!("{}Ki", memory_bytes / 1024)),
            ("pods", allocatable.pods.to_string()),
        ];
        let huge = machine.huge_pages.iter().map(|(size, bytes)| (size.resource, binary(bytes)));
        amounts.into_iter().chain(huge).map(|(name, amount)| (name.to_owned(), Quantity(amount))).collect()
    };
    let address = |type_: &str, address: String| NodeAddress { type_: type_.to_owned(), address };
    let addresses = ctx.host_ips.all().map(|ip| address("InternalIP", ip.to_string()));
    let images = ctx.images.list().await.unwrap_or_default();
    NodeStatus {
        addresses: Some(addresses.chain([address("Hostname", ctx.node.clone())]).collect()),
        capacity: Some(amounts(machine.cpu_millis, machine.memory_bytes, disk.capacity)),
        allocatable: Some(amounts(allocatable.cpu_millis, allocatable.memory_bytes, disk.allocatable)),
        conditions: Some(conditions(before, &|short| ctx.pressure.has(short), now)),
        node_info: Some(machine.info.clone()),
        daemon_endpoints: ctx
            .serves
            .map(|port| NodeDaemonEndpoints { kubelet_endpoint: Some(DaemonEndpoint { port: port.into() }) }),
        features: Some(NodeFeatures { supplemental_groups_policy: Some(true) }),
        runtime_handlers: Some(runtime_handlers(&ctx.runtimes)),
        images: Some(
            images
                .into_iter()
                .take(50)
                .map(|image| ContainerImage {
                    names: Some(vec![image.reference]),
                    size_bytes: i64::try_from(image.size).ok(),
                })
                .collect(),
        ),
        ..NodeStatus::default()
    }
}

/// Bytes with the largest unit that leaves no rest.
fn binary(bytes: i64) -> String {
    let units = [(30, "Gi"), (20, "Mi"), (10, "Ki")];
    let fits = |(shift, _): &(i32, &str)| bytes != 0 && bytes % (1 << shift) == 0;
    let unit = units.into_iter().find(fits);
    unit.map_or_else(|| bytes.to_string(), |(shift, unit)| format!("{}{unit}", bytes >> shift))
}

/// What the runtimes can do: Carob's own under the empty name of the default handler and under its own, and those of the
/// configuration, whose containers have the host's users.
fn runtime_handlers(others: &BTreeMap<String, PathBuf>) -> Vec<NodeRuntimeHandler> {
    let handler = |name: &str, users: bool| NodeRuntimeHandler {
        name: Some(name.to_owned()),
        features: Some(NodeRuntimeHandlerFeatures {
            recursive_read_only_mounts: Some(true),
            user_namespaces: Some(users),
        }),
    };
    let own = ["", "carob"].map(|name| handler(name, true));
    own.into_iter().chain(others.keys().map(|name| handler(name, false))).collect()
}

type Condition = (&'static str, Option<Shortage>, [&'static str; 2], [&'static str; 2]);

/// Conditions with the kubelet's reasons and messages: type, what has to be short for it, both texts of where it doesn't
/// hold and of where it does.
const CONDITIONS: [Condition; 4] = [
    (
        "MemoryPressure",
        Some(Shortage::Memory),
        ["KubeletHasSufficientMemory", "kubelet has sufficient memory available"],
        ["KubeletHasInsufficientMemory", "kubelet has insufficient memory available"],
    ),
    (
        "DiskPressure",
        Some(Shortage::Disk),
        ["KubeletHasNoDiskPressure", "kubelet has no disk pressure"],
        ["KubeletHasDiskPressure", "kubelet has disk pressure"],
    ),
    (
        "PIDPressure",
        Some(Shortage::Processes),
        ["KubeletHasSufficientPID", "kubelet has sufficient PID available"],
        ["KubeletHasInsufficientPID", "kubelet has insufficient PID available"],
    ),
    ("Ready", None, ["", ""], ["KubeletReady", "kubelet is posting ready status"]),
];

/// A transition time is kept as long as the status is.
fn conditions(before: Option<&NodeStatus>, short: &impl Fn(Shortage) -> bool, now: Timestamp) -> Vec<NodeCondition> {
    let old = before.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    CONDITIONS
        .iter()
        .map(|(type_, shortage, no, yes)| {
            let holds = shortage.is_none_or(short);
            let ([reason, message], status) = if holds { (yes, "True") } else { (no, "False") };
            let same = old.iter().find(|condition| condition.type_ == *type_ && condition.status == status);
            NodeCondition {
                type_: (*type_).to_owned(),
                status: status.to_owned(),
                reason: Some((*reason).to_owned()),
                message: Some((*message).to_owned()),
                last_heartbeat_time: Some(Time(now)),
                last_transition_time: same
                    .and_then(|condition| condition.last_transition_time.clone())
                    .or(Some(Time(now))),
            }
        })
        .collect()
}

async fn renew_lease(ctx: &Context) -> Result<(), kube::Error> {
    let api: Api<Lease> = Api::namespaced(ctx.client.clone(), LEASE_NAMESPACE);
    let patch = json!({"spec": {"renewTime": MicroTime(Timestamp::now()), "holderIdentity": ctx.node}});
    match api.patch(&ctx.node, &PatchParams::default(), &Patch::Merge(patch)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        other => return other.map(drop),
    }
    let nodes: Api<Node> = Api::all(ctx.client.clone());
    let owner = nodes.get_opt(&ctx.node).await?.and_then(|node| node.metadata.uid);
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(ctx.node.clone()),
            namespace: Some(LEASE_NAMESPACE.to_owned()),
            owner_references: owner.map(|uid| {
                vec![OwnerReference {
                    api_version: "v1".to_owned(),
                    kind: "Node".to_owned(),
                    name: ctx.node.clone(),
                    uid,
                    ..OwnerReference::default()
                }]
            }),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(ctx.node.clone()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        }),
    };
    api.create(&PostParams::default(), &lease).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_names_are_read_from_the_systems_files() {
        assert_eq!(total_memory("MemTotal:        8000 kB\nMemFree: 1 kB\n"), Some(8_192_000));
        assert_eq!(
            os_name("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
            "Debian GNU/Linux 12 (bookworm)"
        );
        assert_eq!(os_name(""), "Linux");
    }

    #[test]
    fn a_condition_keeps_its_transition_time_while_its_status_lasts() {
        let (early, late) = (Timestamp::UNIX_EPOCH, Timestamp::from_second(1000).unwrap());
        let nothing = |_| false;
        let first = Some(conditions(None, &nothing, early));
        let mut before = NodeStatus { conditions: first, ..NodeStatus::default() };
        before.conditions.as_mut().unwrap()[3].status = "Unknown".to_owned();
        let after = conditions(Some(&before), &|short| short == Shortage::Disk, late);
        assert_eq!(after[0].last_transition_time, Some(Time(early)));
        assert_eq!(after[3].last_transition_time, Some(Time(late)));
        assert_eq!((after[1].status.as_str(), after[1].reason.as_deref()), ("True", Some("KubeletHasDiskPressure")));
        assert_eq!(after[1].last_transition_time, Some(Time(late)));
        assert_eq!(after[0].last_heartbeat_time, Some(Time(late)));
    }
}
