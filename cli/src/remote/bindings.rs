//! Notes which pods are bound to nodes of other machines, so that such a node can bill those and no others, also when they are
//! gone.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};

use carob_api::validation::names::dns1123_subdomain;
use carob_billing::{Ask, Billing, Binding};
use carob_gateway::Gateway;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

/// What a node itself may make in any namespace.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// So many pods are noted at once.
const BATCH: usize = 256;

/// What the API knows of pods and nodes, once there is a gateway.
#[derive(Clone, Default)]
pub struct Bindings(Arc<OnceLock<kube::Client>>);

impl Bindings {
    /// The API can be asked from now on.
    pub fn reach(&self, gateway: &Gateway) {
        // The first one stays: there is one gateway.
        let _ = self.0.set(gateway.client("system:carob:up", &["system:masters"]));
    }

    /// Asks the API how the pod is bound that somebody claims.
    pub fn ask(&self) -> Ask {
        let known = Arc::clone(&self.0);
        Arc::new(move |claim| {
            let client = known.get().cloned();
            Box::pin(async move {
                let client = client.ok_or("the gateway is starting")?;
                let named = [&claim.namespace, &claim.pod].into_iter().all(|name| dns1123_subdomain(name).is_empty());
                if !named {
                    return Ok(None);
                }
                let pods: Api<Pod> = Api::namespaced(client, &claim.namespace);
                let found = pods.get_opt(&claim.pod).await.map_err(|error| error.to_string())?;
                Ok(found.as_ref().and_then(binding))
            })
        })
    }

    /// Follows the nodes that aren't `local`, and their pods, until told to stop.
    pub async fn run(self, billing: Arc<Billing>, local: BTreeSet<String>, stop: CancellationToken) {
        let Some(client) = self.0.get() else { return };
        let mut nodes = watcher(Api::<Node>::all(client.clone()), watcher::Config::default()).default_backoff().boxed();
        let mut pods = JoinSet::new();
        let mut followed: HashMap<String, AbortHandle> = HashMap::new();
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return,
                event = nodes.next() => event,
            };
            match event {
                None => return,
                Some(Ok(Event::Apply(node) | Event::InitApply(node))) if !local.contains(&node.name_any()) => {
                    let (client, billing, name) = (client.clone(), Arc::clone(&billing), node.name_any());
                    let follow = move || follow(client.clone(), Arc::clone(&billing), name.clone());
                    let begin = || pods.spawn(carob_keep::keep("a node's pods", stop.clone(), follow));
                    followed.entry(node.name_any()).or_insert_with(begin);
                }
                Some(Ok(Event::Delete(node))) => {
                    if let Some(task) = followed.remove(&node.name_any()) {
                        task.abort();
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => tracing::debug!(%error, "the watch of nodes is being renewed"),
            }
        }
    }
}

/// Notes every pod of a node.
async fn follow(client: kube::Client, billing: Arc<Billing>, node: String) {
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    let mut pods = watcher(Api::<Pod>::all(client), config).default_backoff().ready_chunks(BATCH).boxed();
    let mut noted = BTreeSet::new();
    while let Some(events) = pods.next().await {
        let mut new = Vec::new();
        for event in events {
            match event {
                Ok(Event::Apply(pod) | Event::InitApply(pod)) => {
                    new.extend(binding(&pod).filter(|binding| noted.insert(binding.pod_uid.clone())));
                }
                Ok(Event::Delete(pod)) => {
                    noted.remove(&pod.uid().unwrap_or_default());
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, node, "the watch of pods is being renewed"),
            }
        }
        if !new.is_empty()
            && let Err(error) = billing.bind(new).await
        {
            // While a pod is there, the API is asked.
            tracing::error!(%error, node, "the ledger did not note which pods are the node's");
        }
    }
}

fn binding(pod: &Pod) -> Option<Binding> {
    if pod.annotations().contains_key(MIRROR) {
        return None;
    }
    let node = pod.spec.as_ref()?.node_name.clone()?;
    let created = pod.creation_timestamp().map(|at| at.0);
    Some(Binding { pod_uid: pod.uid()?, namespace: pod.namespace()?, pod: pod.name_any(), node, created })
}
