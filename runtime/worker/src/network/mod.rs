//! Services on this node: what kube-proxy and the cluster's DNS are in Kubernetes. Follows Services and EndpointSlices and
//! tells the network.

mod copy;
mod frontends;
mod names;

use crate::context::Context;
use carob_network::{Backend, Change, DnsSockets, Frontend};
use copy::{Copy, Key};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long to wait for more changes before the kernel is told: a rollout changes many things at once.
const GATHER: Duration = Duration::from_millis(5);
/// How long after a refusal the kernel is told again.
const RETRY: Duration = Duration::from_secs(1);
/// The label by which a slice names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Somebody else carries a Service out that has this label.
const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";

/// Follows Services until `shutdown`; the kernel goes on as it was told last.
pub(crate) async fn run(ctx: Arc<Context>, dns: Option<DnsSockets>, shutdown: CancellationToken) {
    let answering = async {
        if let Some(sockets) = dns
            && let Err(error) = ctx.dns.clone().serve(sockets, shutdown.clone()).await
        {
            tracing::error!(%error, "the cluster's DNS does not answer");
        }
    };
    tokio::join!(answering, follow(ctx.clone(), shutdown.clone()));
}

async fn follow(ctx: Arc<Context>, shutdown: CancellationToken) {
    let client = ctx.services.clone();
    let config = || watcher::Config::default().labels(&format!("!{OTHER_PROXY}"));
    let services = watcher(Api::<Service>::all(client.clone()), config()).default_backoff();
    let slices = watcher(Api::<EndpointSlice>::all(client), watcher::Config::default()).default_backoff();
    let (mut services, mut slices) = (pin!(services), pin!(slices));
    let mut proxy = Proxy::new(ctx);
    let mut timer = None;
    loop {
        let due = async {
            match timer {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            event = services.try_next() => match event {
                Ok(Some(event)) => proxy.service(event),
                Ok(None) => return,
                Err(error) => tracing::debug!(%error, "the watch of Services is being renewed"),
            },
            event = slices.try_next() => match event {
                Ok(Some(event)) => proxy.slice(event),
                Ok(None) => return,
                Err(error) => tracing::debug!(%error, "the watch of EndpointSlices is being renewed"),
            },
            () = due => {
                timer = None;
                if let Err(error) = proxy.tell().await {
                    tracing::error!(%error, "the kernel did not take the Services");
                    timer = Some(tokio::time::Instant::now() + RETRY);
                }
            }
        }
        if timer.is_none() && proxy.has_news() {
            timer = Some(tokio::time::Instant::now() + GATHER);
        }
    }
}

/// Slices of one Service, by name.
type Slices = BTreeMap<String, Arc<EndpointSlice>>;

struct Proxy {
    ctx: Arc<Context>,
    services: Copy<Service>,
    slices: Copy<EndpointSlice>,
    slices_of: HashMap<Key, Slices>,
    /// What has changed since the kernel was told.
    changed: HashSet<Key>,
    /// What the kernel was told of each Service; nothing before it was told of all.
    told: Option<HashMap<Key, HashMap<Frontend, Backend>>>,
}

impl Proxy {
    fn new(ctx: Arc<Context>) -> Self {
        Self {
            ctx,
            services: Copy::default(),
            slices: Copy::default(),
            slices_of: HashMap::new(),
            changed: HashSet::new(),
            told: None,
        }
    }

    fn service(&mut self, event: watcher::Event<Service>) {
        for (key, _) in self.services.take(event) {
            self.changed.insert(key);
        }
    }

    fn slice(&mut self, event: watcher::Event<EndpointSlice>) {
        for (key, old) in self.slices.take(event) {
            if let Some(service) = old.as_deref().and_then(service_of) {
                if let Some(slices) = self.slices_of.get_mut(&service) {
                    slices.remove(&key.name);
                }
                self.changed.insert(service);
            }
            let Some(new) = self.slices.get(&key) else { continue };
            if let Some(service) = service_of(new) {
                self.slices_of.entry(service.clone()).or_default().insert(key.name, Arc::clone(new));
                self.changed.insert(service);
            }
        }
        self.slices_of.retain(|_, slices| !slices.is_empty());
    }

    /// Whether there is something to tell: before both lists are complete, what the kernel knows is better.
    fn has_news(&self) -> bool {
        self.services.complete() && self.slices.complete() && (self.told.is_none() || !self.changed.is_empty())
    }

    /// Names first: an address that is known leads somewhere a moment later.
    fn name(&self) {
        for key in &self.changed {
            let slices = self.slices_of.get(key).into_iter().flat_map(BTreeMap::values).map(AsRef::as_ref);
            let names = self.services.get(key).and_then(|service| names::of(service, slices));
            self.ctx.dns.set(&key.namespace, &key.name, names);
        }
        self.ctx.dns.complete();
    }

    async fn tell(&mut self) -> Result<(), carob_network::Error> {
        self.name();
        let frontends = |key: &Key| match self.services.get(key) {
            Some(service) => {
                let none = Slices::new();
                let slices = self.slices_of.get(key).unwrap_or(&none);
                frontends::of(service, slices.values().map(AsRef::as_ref), &self.ctx.node)
            }
            None => HashMap::new(),
        };
        let Some(told) = &mut self.told else {
            let all: HashMap<_, _> = self.services.keys().map(|key| (key.clone(), frontends(key))).collect();
            let services = all.values().flat_map(Clone::clone).collect();
            self.ctx.network.replace_services(services).await?;
            self.told = Some(all);
            self.changed.clear();
            return Ok(());
        };
        // What goes comes first: another Service may have got its address.
        let (mut gone, mut come): (Vec<Change>, Vec<Change>) = (Vec::new(), Vec::new());
        let mut new = HashMap::new();
        for key in &self.changed {
            let now = frontends(key);
            let before = told.get(key);
            for frontend in before.iter().flat_map(|before| before.keys()) {
                if !now.contains_key(frontend) {
                    gone.push((*frontend, None));
                }
            }
            for (frontend, backend) in &now {
                if before.and_then(|before| before.get(frontend)) != Some(backend) {
                    come.push((*frontend, Some(backend.clone())));
                }
            }
            new.insert(key.clone(), now);
        }
        gone.extend(come);
        if !gone.is_empty() {
            self.ctx.network.change_services(gone).await?;
        }
        for (key, frontends) in new {
            if frontends.is_empty() {
                told.remove(&key)
            } else {
                told.insert(key, frontends)
            };
        }
        self.changed.clear();
        Ok(())
    }
}

fn service_of(slice: &EndpointSlice) -> Option<Key> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?.clone();
    Some(Key { namespace: slice.metadata.namespace.clone()?, name })
}
