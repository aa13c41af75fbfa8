//! The garbage collector: what is left without any of its owners goes.
//!
//! The [`graph`] of owners and dependents tells what may have to go; before anything is deleted, the API is asked
//! whether that is still so.

mod graph;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use futures::future::try_join_all;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, Preconditions};
use serde_json::json;

use self::graph::{FOREGROUND, Graph, Node, ORPHAN, Task};
use crate::cluster::Cluster;
use crate::controller::{Controller, Setup};
use crate::events::Voice;
use crate::inventory::{Inventory, News, Uid};
use crate::queue::{Again, Queue};

pub(crate) struct Collector {
    cluster: Cluster,
    voice: Voice,
    inventory: Inventory,
    graph: Mutex<Graph>,
    queue: OnceLock<Queue<Task>>,
}

/// What became of an object's owners.
#[derive(Default)]
struct Owners {
    solid: usize,
    absent: Vec<String>,
    /// They go when this object has gone.
    waiting: Vec<String>,
}

impl Controller for Collector {
    type Item = Task;
    const NAME: &'static str = "generic-garbage-collector";
    const VOICE: &'static str = "garbage-collector-controller";

    fn new(setup: &Setup<'_>) -> Self {
        Self {
            cluster: setup.cluster.clone(),
            voice: setup.voice.clone(),
            inventory: setup.inventory.clone(),
            graph: Mutex::new(Graph::new(setup.inventory.kinds().clone())),
            queue: OnceLock::new(),
        }
    }

    fn listen(self: &Arc<Self>, setup: &Setup<'_>, queue: &Queue<Task>) {
        let (collector, queue) = (Arc::clone(self), queue.clone());
        // Set once: a controller listens once.
        let _ = self.queue.set(queue.clone());
        setup.inventory.on_news(move |news| {
            let tasks = match news {
                News::Here(kind, meta) => collector.graph().put(kind, meta),
                News::Gone(uid, _) => collector.graph().remove(*uid),
            };
            for task in tasks {
                queue.add(task);
            }
        });
    }

    async fn reconcile(&self, task: Task) -> Result<Again, kube::Error> {
        self.carry_out(task).await
    }

    async fn ready(&self) {
        self.inventory.synced().await;
    }
}

impl Collector {
    async fn carry_out(&self, task: Task) -> Result<Again, kube::Error> {
        let (Task::Judge(uid) | Task::Orphan(uid)) = task;
        let Some(node) = self.graph().node(uid).cloned() else { return Ok(None) };
        let Some(live) = self.live(&node, uid).await? else { return Ok(None) };
        match task {
            Task::Judge(_) if node.deleting && !node.foreground => Ok(()),
            Task::Judge(_) if waits(&live) => self.wait_for_dependents(&node, uid, &live).await,
            Task::Judge(_) => self.judge(&node, uid, &live).await,
            Task::Orphan(_) => self.orphan(&node, uid, &live).await,
        }?;
        Ok(None)
    }

    /// The object as the API has it now, if it still is that very object.
    async fn live(&self, node: &Node, uid: Uid) -> Result<Option<ObjectMeta>, kube::Error> {
        let api = node.kind.api(&self.cluster.client, &node.namespace);
        let live = api.get_metadata_opt(&node.name).await?;
        Ok(live.map(|live| live.metadata).filter(|meta| Uid::of(meta) == uid))
    }

    /// Lets an object go whose dependents are gone; makes them go otherwise.
    async fn wait_for_dependents(&self, node: &Node, uid: Uid, live: &ObjectMeta) -> Result<(), kube::Error> {
        let (blocking, pending): (Vec<Uid>, Vec<Uid>) = {
            let graph = self.graph();
            let blocking = graph.blocking(uid);
            let pending = blocking.iter().filter(|dependent| !graph.waits(**dependent)).copied().collect();
            (blocking, pending)
        };
        if blocking.is_empty() {
            return self.take_off(node, live, FOREGROUND).await;
        }
        for dependent in pending {
            self.queue.get().into_iter().for_each(|queue| queue.add(Task::Judge(dependent)));
        }
        Ok(())
    }

    /// Deletes an object that nobody wants any more, by what has become of its owners.
    async fn judge(&self, node: &Node, uid: Uid, live: &ObjectMeta) -> Result<(), kube::Error> {
        let references = live.owner_references.as_deref().unwrap_or_default();
        if references.is_empty() {
            return Ok(());
        }
        let owners = self.owners(node, live, references).await?;
        if owners.solid > 0 {
            let gone = |reference: &&OwnerReference| {
                owners.absent.contains(&reference.uid) || owners.waiting.contains(&reference.uid)
            };
            let left: Vec<&OwnerReference> = references.iter().filter(|reference| !gone(reference)).collect();
            if left.len() < references.len() {
                self.set(node, live, json!({"ownerReferences": left})).await?;
            }
            return Ok(());
        }
        let (is_owner, in_a_circle) = {
            let graph = self.graph();
            let dependents = graph.dependents_of(uid);
            (!dependents.is_empty(), dependents.iter().any(|dependent| graph.waits(*dependent)))
        };
        let has = |finalizer: &str| live.finalizers.iter().flatten().any(|known| known == finalizer);
        let mut version = live.resource_version.clone();
        let params = if !owners.waiting.is_empty() && is_owner {
            if in_a_circle {
                // Its dependents wait too: nobody would ever go first.
                let free = |reference: &OwnerReference| OwnerReference {
                    block_owner_deletion: Some(false),
                    ..reference.clone()
                };
                let references: Vec<OwnerReference> = references.iter().map(free).collect();
                self.set(node, live, json!({"ownerReferences": references})).await?;
                version = None;
            }
            DeleteParams::foreground()
        } else if has(ORPHAN) {
            DeleteParams::orphan()
        } else if has(FOREGROUND) {
            DeleteParams::foreground()
        } else {
            DeleteParams::background()
        };
        // Only what was judged: whoever changed its owners meanwhile is heard first.
        let preconditions = Preconditions { uid: live.uid.clone(), resource_version: version };
        let params = DeleteParams { preconditions: Some(preconditions), ..params };
        let api = node.kind.api(&self.cluster.client, &node.namespace);
        match api.delete(&node.name, &params).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            outcome => outcome.map(|_| ()),
        }
    }

    async fn owners(
        &self,
        node: &Node,
        live: &ObjectMeta,
        references: &[OwnerReference],
    ) -> Result<Owners, kube::Error> {
        let mut owners = Owners::default();
        for reference in references {
            let uid = Uid::parse(&reference.uid);
            let (right, waits) = {
                let graph = self.graph();
                (graph.is_right(reference, &node.namespace), graph.waits(uid))
            };
            let verdict = if right { Some(waits) } else { self.ask(node, live, reference).await? };
            match verdict {
                Some(false) => owners.solid += 1,
                Some(true) => owners.waiting.push(reference.uid.clone()),
                None => owners.absent.push(reference.uid.clone()),
            }
        }
        Ok(owners)
    }

    /// Asks the API for an owner: whether it waits for its dependents; none if it doesn't exist.
    async fn ask(
        &self,
        node: &Node,
        live: &ObjectMeta,
        reference: &OwnerReference,
    ) -> Result<Option<bool>, kube::Error> {
        let kind = self.inventory.kinds().get(graph::group(&reference.api_version), &reference.kind);
        let Some(kind) = kind else {
            // Nobody can tell whether an owner of an unknown kind exists.
            return Ok(Some(false));
        };
        if kind.namespaced && node.namespace.is_empty() {
            // Which namespace would it be in?
            return Ok(Some(false));
        }
        let namespace = if kind.namespaced { node.namespace.as_str() } else { "" };
        let owner = kind.api(&self.cluster.client, namespace).get_metadata_opt(&reference.name).await?;
        let owner = owner.filter(|owner| owner.metadata.uid.as_deref() == Some(&reference.uid));
        if owner.is_none() && self.graph().exists(Uid::parse(&reference.uid)) {
            let text = format!(
                "ownerRef [{}/{}, namespace: {}, name: {}, uid: {}] does not exist in namespace {:?}",
                reference.api_version, reference.kind, node.namespace, reference.name, reference.uid, node.namespace
            );
            self.voice.publish(about(node, live), "Warning", "OwnerRefInvalidNamespace", text);
        }
        Ok(owner.map(|owner| waits(&owner.metadata)))
    }

    /// Takes an object off its dependents, and then the finalizer off it.
    async fn orphan(&self, node: &Node, uid: Uid, live: &ObjectMeta) -> Result<(), kube::Error> {
        let dependents: Vec<(Uid, Node)> = {
            let graph = self.graph();
            let dependents = graph.dependents_of(uid).into_iter();
            dependents.filter_map(|dependent| Some((dependent, graph.node(dependent)?.clone()))).collect()
        };
        let releases = dependents.iter().map(|(dependent, node)| async move {
            let Some(live) = self.live(node, *dependent).await? else { return Ok(()) };
            let references = live.owner_references.iter().flatten();
            let others: Vec<&OwnerReference> =
                references.filter(|reference| Uid::parse(&reference.uid) != uid).collect();
            self.set(node, &live, json!({"ownerReferences": others})).await
        });
        try_join_all(releases).await?;
        self.take_off(node, live, ORPHAN).await
    }

    async fn take_off(&self, node: &Node, live: &ObjectMeta, finalizer: &str) -> Result<(), kube::Error> {
        let left: Vec<&String> = live.finalizers.iter().flatten().filter(|known| *known != finalizer).collect();
        self.set(node, live, json!({"finalizers": left})).await
    }

    /// Changes the metadata of the very object that was looked at; one that is gone is fine.
    async fn set(&self, node: &Node, live: &ObjectMeta, mut metadata: serde_json::Value) -> Result<(), kube::Error> {
        metadata["uid"] = json!(live.uid);
        metadata["resourceVersion"] = json!(live.resource_version);
        let api = node.kind.api(&self.cluster.client, &node.namespace);
        let patch = Patch::Merge(json!({"metadata": metadata}));
        match api.patch_metadata(&node.name, &PatchParams::default(), &patch).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            outcome => outcome.map(|_| ()),
        }
    }

    fn graph(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an object waits until its dependents are gone.
fn waits(meta: &ObjectMeta) -> bool {
    meta.deletion_timestamp.is_some() && meta.finalizers.iter().flatten().any(|known| known == FOREGROUND)
}

fn about(node: &Node, live: &ObjectMeta) -> ObjectReference {
    ObjectReference {
        api_version: Some(node.kind.api_version()),
        kind: Some(node.kind.name.clone()),
        namespace: Some(node.namespace.clone()).filter(|namespace| !namespace.is_empty()),
        name: Some(node.name.clone()),
        uid: live.uid.clone(),
        ..ObjectReference::default()
    }
}
