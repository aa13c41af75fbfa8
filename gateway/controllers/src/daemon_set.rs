//! The DaemonSet controller: one pod on each node that will have it.
//!
//! A pod names its node by an affinity, and the scheduler puts it there. What is there and what should be is compared
//! node by node ([`plan`]); which template a pod is of, its label with the revision's hash says.

mod plan;
mod template;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};

use self::plan::Plan;
use crate::cluster::Cluster;
use crate::controller::{self, Setup};
use crate::events::Voice;
use crate::informer::Key;
use crate::ownership::{self, Selector, controller_of};
use crate::pod_control::{self, Expectations, phase, ready_since};
use crate::queue::{Again, Queue};
use crate::revisions::{self, History};
use crate::status;

/// Pods made or removed in one go; more wait for the next look.
const BURST: usize = 250;
/// The label of a pod with the hash of its revision.
const HASH: &str = "controller-revision-hash";

pub(crate) struct Controller {
    cluster: Cluster,
    voice: Voice,
    expected: Expectations,
}

/// A DaemonSet as of one look.
struct Look {
    set: Arc<DaemonSet>,
    spec: DaemonSetSpec,
    nodes: Vec<Arc<Node>>,
    /// Its pods by node, oldest first.
    pods: BTreeMap<String, Vec<Arc<Pod>>>,
    hash: String,
    now: Timestamp,
}

impl controller::Controller for Controller {
    type Item = Key;
    const NAME: &'static str = "daemon-set-controller";
    const VOICE: &'static str = "daemonset-controller";

    fn new(setup: &Setup<'_>) -> Self {
        let (cluster, voice) = (setup.cluster.clone(), setup.voice.clone());
        Self { cluster, voice, expected: Expectations::default() }
    }

    fn listen(self: &Arc<Self>, _: &Setup<'_>, queue: &Queue<Key>) {
        controller::each(&self.cluster.daemon_sets, queue);
        let (this, sets) = (Arc::clone(self), queue.clone());
        self.cluster.pods.on_change(move |change| {
            let (old, new) = (change.old.map(|pod| &**pod), change.new.map(|pod| &**pod));
            for pod in [old, new].into_iter().flatten() {
                let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                match controller_of(&pod.metadata) {
                    Some(owner) if owner.kind == "DaemonSet" => {
                        let key = Key::new(namespace, &owner.name);
                        this.expected.observe(&key, old, new);
                        sets.add(key);
                    }
                    None if new.is_some() => {
                        let could_adopt = |set: &DaemonSet| selector(set).matches(&pod.metadata);
                        let found = this.cluster.daemon_sets.list_in(namespace, could_adopt);
                        found.iter().for_each(|set| sets.add(Key::of(&**set)));
                    }
                    _ => {}
                }
            }
        });
        let (this, sets) = (Arc::clone(self), queue.clone());
        self.cluster.nodes.on_change(move |change| {
            let facts = |node: &Arc<Node>| (node.metadata.labels.clone(), node.spec.clone());
            if change.old.map(facts) != change.new.map(facts) {
                this.cluster.daemon_sets.list(|_| true).iter().for_each(|set| sets.add(Key::of(&**set)));
            }
        });
    }

    async fn reconcile(&self, key: Key) -> Result<Again, kube::Error> {
        let Some(set) = self.cluster.daemon_sets.get(&key) else {
            self.expected.forget(&key);
            return Ok(None);
        };
        let unseen = self.expected.unseen(&key, &self.cluster.pods);
        let (look, history) = self.look(set, &key).await?;
        let pods: Vec<Arc<Pod>> = look.pods.values().flatten().cloned().collect();
        let unseen = pod_control::still_unseen(&unseen, &pods);
        let mut outcome = Ok(());
        if look.set.metadata.deletion_timestamp.is_none() && unseen == 0 {
            outcome = self.act(&look, &key).await;
        }
        let again = self.report(&look).await?;
        outcome?;
        let name = |hash: &String| format!("{}-{hash}", key.name);
        let hashes = pods.iter().filter_map(|pod| pod.metadata.labels.as_ref()?.get(HASH));
        let mut in_use: HashSet<String> = hashes.map(name).collect();
        in_use.insert(name(&look.hash));
        let in_use: HashSet<&str> = in_use.iter().map(String::as_str).collect();
        revisions::truncate(&self.cluster, &history, &in_use, look.spec.revision_history_limit).await?;
        Ok(if unseen > 0 { again.or(Some(pod_control::FORGET_AFTER)) } else { again })
    }
}

impl Controller {
    async fn look(&self, set: Arc<DaemonSet>, key: &Key) -> Result<(Look, History), kube::Error> {
        let spec = set.spec.clone().unwrap_or_default();
        let candidates = self.cluster.pods.list_in(&key.namespace, |_| true);
        let own = ownership::claim(&self.cluster.client, &*set, &selector(&set), candidates, |_| true).await?;
        let mut pods: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
        for pod in own.into_iter().filter(|pod| !self.expected.is_deleted(key, pod)) {
            if let Some(node) = template::node_of(&pod) {
                pods.entry(node.to_owned()).or_default().push(pod);
            }
        }
        for pods in pods.values_mut() {
            pods.sort_by_key(|pod| {
                let placed = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()).is_some();
                (!placed, pod.metadata.creation_timestamp.clone().map(|at| at.0), pod.metadata.name.clone())
            });
        }
        let owner = revisions::Owner {
            object: &*set,
            selector: selector(&set),
            template: &spec.template,
            hash_label: HASH,
            annotations: set.metadata.annotations.clone(),
            collisions: set.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0),
        };
        let history = owner.history(&self.cluster).await?;
        let hash = history.update.metadata.labels.as_ref().and_then(|labels| labels.get(HASH)).cloned();
        let hash = hash.unwrap_or_default();
        let nodes = self.cluster.nodes.list(|_| true);
        Ok((Look { set, spec, nodes, pods, hash, now: Timestamp::now() }, history))
    }

    async fn act(&self, look: &Look, key: &Key) -> Result<(), kube::Error> {
        let plan = Plan::of(look);
        for pod in &plan.failed {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let node = template::node_of(pod).unwrap_or_default();
            let text = format!("Found failed daemon pod {}/{name} on node {node}, will try to kill it", key.namespace);
            self.voice.warning(&*look.set, "FailedDaemonPod", text);
        }
        let pods = plan.create.iter().take(BURST).map(|node| look.pod(node)).collect();
        let (client, voice, expected) = (&self.cluster.client, &self.voice, &self.expected);
        pod_control::create_all(client, voice, expected, &*look.set, key, pods).await?;
        let victims = plan.failed.iter().chain(&plan.delete).take(BURST);
        let removals = victims.map(|pod| pod_control::delete_expectedly(client, voice, expected, &*look.set, key, pod));
        join_all(removals).await.into_iter().collect()
    }

    async fn report(&self, look: &Look) -> Result<Again, kube::Error> {
        let (status, again) = look.status();
        status::write(&self.cluster.client, &self.cluster.daemon_sets, &*look.set, look.set.status.as_ref(), &status)
            .await?;
        Ok(again)
    }
}

impl Look {
    fn min_ready(&self) -> Duration {
        Duration::from_secs(self.spec.min_ready_seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(0))
    }

    fn of_node(&self, node: &Node) -> &[Arc<Pod>] {
        self.pods.get(node.metadata.name.as_deref().unwrap_or_default()).map_or(&[], Vec::as_slice)
    }

    fn is_updated(&self, pod: &Pod) -> bool {
        pod.metadata.labels.as_ref().and_then(|labels| labels.get(HASH)) == Some(&self.hash)
    }

    /// Whether a pod has been ready for long enough, or how long it will take.
    fn availability(&self, pod: &Pod) -> Result<(), Again> {
        let since = ready_since(pod).filter(|_| phase(pod) == "Running").ok_or(None)?;
        let passed = Duration::try_from(self.now.duration_since(since)).unwrap_or_default();
        match self.min_ready().checked_sub(passed).filter(|left| !left.is_zero()) {
            Some(left) => Err(Some(left)),
            None => Ok(()),
        }
    }

    fn status(&self) -> (DaemonSetStatus, Again) {
        let (mut desired, mut current, mut ready, mut available, mut updated, mut misplaced) = (0, 0, 0, 0, 0, 0);
        let mut again: Again = None;
        for node in &self.nodes {
            let pods = self.of_node(node);
            if !self.wants(node).run {
                misplaced += i32::from(!pods.is_empty());
                continue;
            }
            desired += 1;
            let Some(oldest) = pods.first() else { continue };
            current += 1;
            updated += i32::from(pods.iter().any(|pod| self.is_updated(pod)));
            ready += i32::from(pods.iter().any(|pod| ready_since(pod).is_some()));
            match pods.iter().find_map(|pod| self.availability(pod).ok()) {
                Some(()) => available += 1,
                None => again = again.into_iter().chain(self.availability(oldest).err().flatten()).min(),
            }
        }
        let old = self.set.status.clone().unwrap_or_default();
        let some = |count: i32| Some(count).filter(|count| *count > 0);
        let status = DaemonSetStatus {
            current_number_scheduled: current,
            desired_number_scheduled: desired,
            number_misscheduled: misplaced,
            number_ready: ready,
            number_available: some(available),
            number_unavailable: some(desired - available),
            updated_number_scheduled: some(updated),
            observed_generation: self.set.metadata.generation,
            collision_count: old.collision_count,
            conditions: old.conditions,
        };
        (status, again)
    }
}

fn selector(set: &DaemonSet) -> Selector {
    Selector::read(set.spec.as_ref().map(|spec| &spec.selector))
}
