//! An API server with controllers, and hands to play the kubelet with.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use carob_gateway::{Config, Gateway, NodeDialer, NodeStream};
use carob_store::redb::{Options, RedbStore};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Longer than anything takes on a busy machine; only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Cluster {
    pub client: Client,
    pub namespace: String,
    _stop: DropGuard,
    _dir: tempfile::TempDir,
}

struct NoNodes;

#[async_trait]
impl NodeDialer for NoNodes {
    async fn dial(&self, node: &str) -> std::io::Result<Box<dyn NodeStream>> {
        Err(std::io::Error::new(std::io::ErrorKind::NotConnected, node.to_owned()))
    }
}

/// A cluster with a namespace `test` that is ready for pods.
pub async fn start() -> Cluster {
    start_with(carob_controllers::Options::default()).await
}

/// The same, with controllers that work so.
pub async fn start_with(options: carob_controllers::Options) -> Cluster {
    let dir = tempfile::tempdir().unwrap();
    let store = RedbStore::open(dir.path().join("store.redb"), Options::default()).unwrap();
    let gateway = Gateway::new(Config {
        listen: Vec::new(),
        extra_sans: Vec::new(),
        pki_dir: dir.path().join("pki"),
        store: Arc::new(store),
        dialer: Arc::new(NoNodes),
        api_service: None,
        pods: None,
        service_account_issuer: "https://kubernetes.default.svc".to_owned(),
        settings: carob_gateway::Settings::default(),
        extensions: Vec::new(),
        max_body_bytes: 3 << 20,
    })
    .await
    .unwrap();
    let client = gateway.client("test", &["system:masters"]);
    let stop = CancellationToken::new();
    let authority = Some(gateway.signing_authority());
    let options = carob_controllers::Options { workers: 4, root_ca: "the authority".to_owned(), authority, ..options };
    let clients: carob_controllers::Clients = Arc::new(move |user, groups| gateway.client(user, groups));
    tokio::spawn(carob_controllers::run(clients, options, stop.clone()));
    let cluster = Cluster { client, namespace: "test".to_owned(), _stop: stop.drop_guard(), _dir: dir };
    cluster.make_namespace("test").await;
    cluster
}

pub fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

impl Cluster {
    pub async fn make_namespace(&self, name: &str) {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        namespaces.create(&PostParams::default(), &object(json!({"metadata": {"name": name}}))).await.unwrap();
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), name);
        until(&accounts, |accounts| !accounts.is_empty()).await;
    }

    pub fn api<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub async fn create<K>(&self, value: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + Serialize,
    {
        self.api::<K>().create(&PostParams::default(), &object(value)).await.unwrap()
    }

    pub async fn patch<K>(&self, name: &str, patch: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        self.api::<K>().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap()
    }

    pub async fn pod_status(&self, pod: &Pod, status: Value) {
        let patch = Patch::Merge(json!({"status": status}));
        self.api::<Pod>().patch_status(&pod.name_any(), &PatchParams::default(), &patch).await.unwrap();
    }

    /// From now on every pod becomes ready at once, and a pod that is to end on a node ends at once.
    pub fn run_pods(&self) {
        let pods = self.api::<Pod>();
        let mut events = watcher(pods.clone(), watcher::Config::default()).boxed();
        tokio::spawn(async move {
            while let Ok(Some(event)) = events.try_next().await {
                let (watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) = event else { continue };
                let pending = pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Pending");
                if pod.metadata.deletion_timestamp.is_some() {
                    let _ = pods.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await;
                } else if pending {
                    let patch = Patch::Merge(json!({"status": ready()}));
                    let _ = pods.patch_status(&pod.name_any(), &PatchParams::default(), &patch).await;
                }
            }
        });
    }
}

pub fn ready() -> Value {
    let now = k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}]})
}

/// Waits until the objects of an API are as wanted, and gives them, by name.
pub async fn until<K>(api: &Api<K>, wanted: impl Fn(&[K]) -> bool) -> Vec<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut objects: BTreeMap<String, K> = BTreeMap::new();
    let mut complete = false;
    let mut events = watcher(api.clone(), watcher::Config::default()).boxed();
    let watching = async {
        while let Some(event) = events.next().await {
            match event.unwrap() {
                watcher::Event::Init => objects.clear(),
                watcher::Event::InitDone => complete = true,
                watcher::Event::Apply(object) | watcher::Event::InitApply(object) => {
                    objects.insert(object.name_any(), object);
                }
                watcher::Event::Delete(object) => {
                    objects.remove(&object.name_any());
                }
            }
            let now: Vec<K> = objects.values().cloned().collect();
            if complete && wanted(&now) {
                return;
            }
        }
    };
    let outcome = tokio::time::timeout(PATIENCE, watching).await;
    assert!(outcome.is_ok(), "waited in vain; the last that was seen: {objects:#?}");
    objects.into_values().collect()
}

/// Waits until the object of this name is as wanted, and gives it.
pub async fn until_one<K>(api: &Api<K>, name: &str, wanted: impl Fn(&K) -> bool) -> K
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let is_it = |object: &K| object.name_any() == name && wanted(object);
    let objects = until(api, |objects| objects.iter().any(is_it)).await;
    objects.into_iter().find(is_it).unwrap()
}

/// Waits until there is no object of this name.
pub async fn until_gone<K>(api: &Api<K>, name: &str)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    until(api, |objects| !objects.iter().any(|object| object.name_any() == name)).await;
}

pub fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": image}]}})
}
