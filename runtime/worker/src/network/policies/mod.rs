//! NetworkPolicies on this node. Follows policies, and, as long as there are any, pods and namespaces; a pod's rules are
//! in force before it has a process.

mod model;
mod rules;

use super::copy::Copy;
use super::{GATHER, RETRY};
use crate::addresses::Addresses;
use crate::context::Context;
use carob_network::Error;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use model::{Model, PodFacts};
use rules::Policy;
use std::collections::HashSet;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Where the worker tells of its pods' networks.
pub(crate) struct Policies {
    requests: mpsc::UnboundedSender<Request>,
}

/// What [`run`] needs of the worker.
pub(crate) struct Requests {
    inbox: mpsc::UnboundedReceiver<Request>,
    model: Model,
}

enum Request {
    Admit { uid: String, facts: PodFacts, done: oneshot::Sender<Result<(), Arc<Error>>> },
    Release { uid: String, done: oneshot::Sender<Result<(), Arc<Error>>> },
}

impl Policies {
    /// `names` are the addresses that names are asked of, `adopted` those of pods that an earlier run has started, by uid.
    pub fn new(names: Addresses, adopted: Vec<(String, Addresses)>) -> (Self, Requests) {
        let (requests, inbox) = mpsc::unbounded_channel();
        (Self { requests }, Requests { inbox, model: Model::new(names, adopted) })
    }

    /// A pod has these addresses from now on. Returns when the kernel has its rules.
    pub async fn admit(&self, pod: &Pod, addresses: Addresses) -> Result<(), Arc<Error>> {
        let mut facts = PodFacts::of(pod, "");
        (facts.addresses, facts.local) = (addresses.all().collect(), true);
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        self.ask(|done| Request::Admit { uid, facts, done }).await
    }

    /// A pod's network is gone: its address may be another's soon.
    pub async fn release(&self, uid: &str) {
        let uid = uid.to_owned();
        if let Err(error) = self.ask(|done| Request::Release { uid, done }).await {
            tracing::warn!(%error, "a pod that is gone may still be part of policies");
        }
    }

    async fn ask(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<(), Arc<Error>>>) -> Request,
    ) -> Result<(), Arc<Error>> {
        let (done, answer) = oneshot::channel();
        let closed = || Arc::new(Error::Closed);
        self.requests.send(request(done)).map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }
}

type Watch<K> = BoxStream<'static, watcher::Result<Event<K>>>;

fn watch<K>(client: &kube::Client) -> Watch<K>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    watcher(Api::<K>::all(client.clone()), watcher::Config::default()).default_backoff().boxed()
}

/// Pods and namespaces, watched while there is a policy.
struct Surroundings {
    pods: Watch<Pod>,
    namespaces: Watch<Namespace>,
    listed: Listed,
}

/// Which lists are complete, and what the ones that are being received have.
#[derive(Default)]
struct Listed {
    pods: bool,
    namespaces: bool,
    pods_seen: HashSet<String>,
    namespaces_seen: HashSet<String>,
    all_pods: HashSet<String>,
    all_namespaces: HashSet<String>,
}

/// Carries policies out until `shutdown`; the kernel goes on as it was told last.
pub(super) async fn run(ctx: Arc<Context>, mut requests: Requests, shutdown: CancellationToken) {
    let mut policies = watch::<NetworkPolicy>(&ctx.policies_client);
    let mut engine = Engine::new(ctx, std::mem::take(&mut requests.model));
    let mut timer: Option<tokio::time::Instant> = None;
    loop {
        let due = async {
            match timer {
                // A timer takes a millisecond at least.
                Some(at) if at <= tokio::time::Instant::now() => {}
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            event = policies.try_next() => match event {
                Ok(Some(event)) => engine.policy(event),
                Ok(None) => return,
                Err(error) => tracing::debug!(%error, "the watch of NetworkPolicies is being renewed"),
            },
            event = Surroundings::next(&mut engine.surroundings) => match event {
                Surrounding::Pod(event) => engine.pod(*event),
                Surrounding::Namespace(event) => engine.namespace(*event),
            },
            request = requests.inbox.recv() => {
                let Some(request) = request else { return };
                engine.request(request);
                // Nobody waits for others' changes to gather who has a pod to start.
                timer = Some(tokio::time::Instant::now());
            }
            () = due => {
                timer = None;
                if let Err(error) = engine.tell().await {
                    tracing::error!(%error, "the kernel did not take the NetworkPolicies");
                    timer = Some(tokio::time::Instant::now() + RETRY);
                }
            }
        }
        if timer.is_none() && engine.has_news() {
            timer = Some(tokio::time::Instant::now() + GATHER);
        }
    }
}

enum Surrounding {
    Pod(Box<Event<Pod>>),
    Namespace(Box<Event<Namespace>>),
}

impl Surroundings {
    fn new(client: &kube::Client) -> Self {
        Self { pods: watch(client), namespaces: watch(client), listed: Listed::default() }
    }

    /// The next event; never, while nothing is watched.
    async fn next(this: &mut Option<Self>) -> Surrounding {
        let Some(this) = this else { return std::future::pending().await };
        loop {
            let event = tokio::select! {
                event = this.pods.next() => event.map(|event| event.map(|event| Surrounding::Pod(Box::new(event)))),
                event = this.namespaces.next() => event.map(|event| event.map(|event| Surrounding::Namespace(Box::new(event)))),
            };
            match event {
                Some(Ok(event)) => return event,
                Some(Err(error)) => tracing::debug!(%error, "a watch for NetworkPolicies is being renewed"),
                None => std::future::pending().await,
            }
        }
    }
}

struct Engine {
    ctx: Arc<Context>,
    policies: Copy<NetworkPolicy>,
    surroundings: Option<Surroundings>,
    model: Model,
    waiting: Vec<oneshot::Sender<Result<(), Arc<Error>>>>,
    /// The kernel was told of everything once.
    told: bool,
}

impl Engine {
    fn new(ctx: Arc<Context>, model: Model) -> Self {
        Self { ctx, policies: Copy::default(), surroundings: None, model, waiting: Vec::new(), told: false }
    }

    fn policy(&mut self, event: Event<NetworkPolicy>) {
        for (key, _) in self.policies.take(event) {
            let policy = self.policies.get(&key).map(|object| Policy::of(object));
            self.model.set_policy(key, policy);
        }
        if self.model.has_policies() {
            if self.surroundings.is_none() {
                self.surroundings = Some(Surroundings::new(&self.ctx.policies_client));
            }
        } else if self.policies.complete() && self.surroundings.take().is_some() {
            self.model.forget_others();
        }
    }

    fn pod(&mut self, event: Event<Pod>) {
        let Some(Surroundings { listed, .. }) = &mut self.surroundings else { return };
        match event {
            Event::Apply(pod) | Event::InitApply(pod) => {
                let uid = pod.metadata.uid.clone().unwrap_or_default();
                self.model.set_pod(&uid, Some(PodFacts::of(&pod, &self.ctx.node)));
                listed.pods_seen.insert(uid.clone());
                listed.all_pods.insert(uid);
            }
            Event::Delete(pod) => {
                let uid = pod.metadata.uid.unwrap_or_default();
                self.model.set_pod(&uid, None);
                listed.all_pods.remove(&uid);
            }
            Event::Init => listed.pods_seen.clear(),
            Event::InitDone => {
                listed.pods = true;
                listed.all_pods.difference(&listed.pods_seen).for_each(|uid| self.model.set_pod(uid, None));
                listed.all_pods = std::mem::take(&mut listed.pods_seen);
            }
        }
    }

    fn namespace(&mut self, event: Event<Namespace>) {
        let Some(Surroundings { listed, .. }) = &mut self.surroundings else { return };
        match event {
            Event::Apply(namespace) | Event::InitApply(namespace) => {
                let name = namespace.metadata.name.unwrap_or_default();
                self.model.set_namespace(&name, Some(namespace.metadata.labels.unwrap_or_default()));
                listed.namespaces_seen.insert(name.clone());
                listed.all_namespaces.insert(name);
            }
            Event::Delete(namespace) => {
                let name = namespace.metadata.name.unwrap_or_default();
                self.model.set_namespace(&name, None);
                listed.all_namespaces.remove(&name);
            }
            Event::Init => listed.namespaces_seen.clear(),
            Event::InitDone => {
                listed.namespaces = true;
                let gone = listed.all_namespaces.difference(&listed.namespaces_seen);
                gone.for_each(|name| self.model.set_namespace(name, None));
                listed.all_namespaces = std::mem::take(&mut listed.namespaces_seen);
            }
        }
    }

    fn request(&mut self, request: Request) {
        match request {
            Request::Admit { uid, facts, done } => {
                self.model.admit(&uid, facts);
                self.waiting.push(done);
            }
            Request::Release { uid, done } => {
                self.model.release(&uid);
                self.waiting.push(done);
            }
        }
    }

    /// Whether enough is known to tell the kernel; before, what it knows of an earlier run is better.
    fn complete(&self) -> bool {
        self.policies.complete()
            && self.surroundings.as_ref().is_none_or(|all| all.listed.pods && all.listed.namespaces)
    }

    fn has_news(&self) -> bool {
        self.complete() && (!self.told || self.model.has_news() || !self.waiting.is_empty())
    }

    async fn tell(&mut self) -> Result<(), Arc<Error>> {
        if !self.complete() {
            return Ok(());
        }
        let changes = self.model.changes();
        let outcome = if self.told {
            self.ctx.network.change_policies(changes).await
        } else {
            self.ctx.network.replace_policies(changes).await
        };
        // The network keeps in mind what the kernel did not take.
        self.told = true;
        let outcome = outcome.map_err(Arc::new);
        for done in self.waiting.drain(..) {
            // Who asked may have been stopped meanwhile.
            let _ = done.send(outcome.clone());
        }
        outcome
    }
}
