//! The shape that all controllers share: an identity, what wakes it, and what it does about one object.
//!
//! A controller is a type that implements [`Controller`] and a line in the table of `lib.rs`. It has a client of its own,
//! in the name by which Kubernetes' bootstrap roles know it.

use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;

use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Options;
use crate::cluster::Cluster;
use crate::events::Voice;
use crate::informer::{Informer, Key};
use crate::inventory::Inventory;
use crate::ownership::controller_of;
use crate::queue::{Again, Queue};

/// Makes a client that acts as this user, in these groups.
pub type Clients = Arc<dyn Fn(&str, &[&str]) -> Client + Send + Sync>;

/// Groups of every ServiceAccount of kube-system.
const GROUPS: [&str; 3] = ["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"];

/// Keeps the cluster as its objects say it should be, one object at a time.
pub(crate) trait Controller: Sized + Send + Sync + 'static {
    /// What is looked at: mostly an object's name.
    type Item: Clone + Debug + Eq + Hash + Send + Sync + 'static;
    /// Its ServiceAccount in kube-system.
    const NAME: &'static str;
    /// As whom its events speak.
    const VOICE: &'static str = Self::NAME;
    /// The user that it is, where that is no ServiceAccount.
    const USER: Option<&'static str> = None;
    /// The groups of that user.
    const GROUPS: &'static [&'static str] = &["system:authenticated"];

    /// Made before anything is heard of.
    fn new(setup: &Setup<'_>) -> Self;

    /// Arranges that `queue` hears of what has to be looked at.
    fn listen(self: &Arc<Self>, setup: &Setup<'_>, queue: &Queue<Self::Item>);

    /// Looks at one item, and takes the next step. It may be stopped at any moment, and is then begun again.
    fn reconcile(&self, item: Self::Item) -> impl Future<Output = Result<Again, kube::Error>> + Send;

    /// Waits for what it needs besides the informers.
    fn ready(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

/// What a controller is made of.
pub(crate) struct Setup<'a> {
    /// With the controller's own client.
    pub(crate) cluster: Cluster,
    pub(crate) voice: Voice,
    pub(crate) inventory: &'a Inventory,
    pub(crate) options: &'a Options,
}

/// All that the controllers have in common while they are being started.
pub(crate) struct Start<'a> {
    pub(crate) clients: &'a Clients,
    pub(crate) cluster: &'a Cluster,
    pub(crate) inventory: &'a Inventory,
    pub(crate) options: &'a Options,
    pub(crate) stop: &'a CancellationToken,
}

/// Starts one controller. It works as soon as the copy of everything is complete: one that acts on less may make what is
/// already there.
pub(crate) fn start<C: Controller>(start: &Start<'_>, tasks: &mut JoinSet<()>) {
    let client = match C::USER {
        Some(user) => (start.clients)(user, C::GROUPS),
        None => (start.clients)(&format!("system:serviceaccount:kube-system:{}", C::NAME), &GROUPS),
    };
    let cluster = start.cluster.with_client(client);
    let voice = cluster.events.of(C::VOICE);
    let setup = Setup { cluster: cluster.clone(), voice, inventory: start.inventory, options: start.options };
    let controller = Arc::new(C::new(&setup));
    let queue = Queue::new();
    controller.listen(&setup, &queue);
    let (workers, stop) = (start.options.workers, start.stop.clone());
    tasks.spawn(async move {
        tokio::select! {
            () = stop.cancelled() => return,
            () = async { cluster.synced().await; controller.ready().await } => {}
        }
        let work = move |item| {
            let controller = Arc::clone(&controller);
            // The future is large: kept out of the worker's own.
            async move { Box::pin(controller.reconcile(item)).await }
        };
        queue.run(C::NAME, workers, stop, work).await;
    });
}

/// Every change of an object leads to a look at it.
pub(crate) fn each<K>(informer: &Informer<K>, queue: &Queue<Key>)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let queue = queue.clone();
    informer.on_change(move |change| {
        if let Some(object) = change.new.or(change.old) {
            queue.add(Key::of(&**object));
        }
    });
}

/// Every change of an object leads to a look at the object of this kind that controls it.
pub(crate) fn controllers_of<K>(informer: &Informer<K>, kind: &'static str, queue: &Queue<Key>)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let queue = queue.clone();
    informer.on_change(move |change| {
        for object in [change.old, change.new].into_iter().flatten() {
            if let Some(owner) = controller_of(object.meta()).filter(|owner| owner.kind == kind) {
                queue.add(Key::new(object.meta().namespace.clone().unwrap_or_default(), &owner.name));
            }
        }
    });
}
