//! Following the API: what tells whether there is anything to do always, the rest once there is.

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Namespace, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::{Mutex, Notify};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::gateway_api::{GRPCRoute, Gateway, GatewayClass, HTTPRoute, ReferenceGrant};
use crate::state::State;

/// How long a kind's first list is waited for. Somebody may have removed the Gateway API's kinds.
const FIRST_LIST: Duration = Duration::from_secs(10);

/// Copies of what the API has.
pub struct Watch {
    client: Client,
    changed: Arc<Notify>,
    tasks: JoinSet<()>,
    ingress_classes: Store<IngressClass>,
    ingresses: Store<Ingress>,
    gateway_classes: Store<GatewayClass>,
    gateways: Store<Gateway>,
    targets: Option<Targets>,
}

/// What is followed only while there is an Ingress or a Gateway for the proxy.
struct Targets {
    http_routes: Store<HTTPRoute>,
    grpc_routes: Store<GRPCRoute>,
    grants: Store<ReferenceGrant>,
    services: Store<Service>,
    slices: Store<EndpointSlice>,
    secrets: Store<Secret>,
    namespaces: Store<Namespace>,
}

impl Watch {
    /// Begins, and waits until the first lists are there.
    pub async fn start(client: Client) -> Self {
        let (changed, mut tasks) = (Arc::new(Notify::new()), JoinSet::new());
        let mut follower = Follower { client: &client, changed: &changed, tasks: &mut tasks };
        let ingress_classes = follower.follow(watcher::Config::default());
        let ingresses = follower.follow(watcher::Config::default());
        let gateway_classes = follower.follow(watcher::Config::default());
        let gateways = follower.follow(watcher::Config::default());
        tokio::join!(ready(&ingress_classes), ready(&ingresses), ready(&gateway_classes), ready(&gateways));
        Self { client, changed, tasks, ingress_classes, ingresses, gateway_classes, gateways, targets: None }
    }

    /// Waits for a change.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Follows everything from now on, and waits until the first lists are there.
    pub async fn follow_targets(&mut self) {
        if self.targets.is_some() {
            return;
        }
        let mut follower = Follower { client: &self.client, changed: &self.changed, tasks: &mut self.tasks };
        let all = watcher::Config::default;
        let targets = Targets {
            http_routes: follower.follow(all()),
            grpc_routes: follower.follow(all()),
            grants: follower.follow(all()),
            services: follower.follow(all()),
            slices: follower.follow(all()),
            // No other Secrets are of any interest.
            secrets: follower.follow(all().fields("type=kubernetes.io/tls")),
            namespaces: follower.follow(all()),
        };
        tokio::join!(
            ready(&targets.http_routes),
            ready(&targets.grpc_routes),
            ready(&targets.grants),
            ready(&targets.services),
            ready(&targets.slices),
            ready(&targets.secrets),
            ready(&targets.namespaces),
        );
        self.targets = Some(targets);
    }

    /// What there is at this moment.
    pub fn state(&self) -> State {
        let mut state = State {
            ingress_classes: self.ingress_classes.state(),
            ingresses: self.ingresses.state(),
            gateway_classes: self.gateway_classes.state(),
            gateways: self.gateways.state(),
            ..State::default()
        };
        if let Some(targets) = &self.targets {
            state.http_routes = targets.http_routes.state();
            state.grpc_routes = targets.grpc_routes.state();
            state.grants = targets.grants.state();
            state.services = State::by_key(targets.services.state());
            state.slices = State::by_service(targets.slices.state());
            state.secrets = State::by_key(targets.secrets.state());
            let namespaces = targets.namespaces.state().into_iter();
            let named = namespaces.map(|namespace| (namespace.metadata.name.clone().unwrap_or_default(), namespace));
            state.namespaces = named.collect();
        }
        state
    }
}

struct Follower<'a> {
    client: &'a Client,
    changed: &'a Arc<Notify>,
    tasks: &'a mut JoinSet<()>,
}

impl Follower<'_> {
    fn follow<K>(&mut self, config: watcher::Config) -> Store<K>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
        K::DynamicType: Eq + Hash + Clone + Default,
    {
        let (store, writer) = reflector::store();
        let (api, writer, changed) =
            (Api::all(self.client.clone()), Arc::new(Mutex::new(writer)), self.changed.clone());
        // The set of tasks ends it.
        self.tasks.spawn(carob_keep::keep("what the proxy follows", CancellationToken::new(), move || {
            let (api, config) = (api.clone(), config.clone());
            listen(api, config, Arc::clone(&writer), Arc::clone(&changed))
        }));
        store
    }
}

/// Keeps the copy of a kind.
async fn listen<K>(api: Api<K>, config: watcher::Config, writer: Arc<Mutex<Writer<K>>>, changed: Arc<Notify>)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    // Nobody asks who set which field, and it is much.
    let events = watcher(api, config).default_backoff().modify(|object| object.meta_mut().managed_fields = None);
    let mut events = std::pin::pin!(events);
    let mut writer = writer.lock().await;
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                writer.apply_watcher_event(&event);
                if !matches!(event, watcher::Event::Init | watcher::Event::InitApply(_)) {
                    changed.notify_one();
                }
            }
            Err(error) => tracing::debug!(kind = %K::kind(&()), %error, "watching again"),
        }
    }
}

async fn ready<K>(store: &Store<K>)
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    if tokio::time::timeout(FIRST_LIST, store.wait_until_ready()).await.is_err() {
        tracing::warn!(kind = %K::kind(&()), "no list of them yet: the proxy begins without");
    }
}
