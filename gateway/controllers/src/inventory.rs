//! Word of every object of every kind: that it is there, with its metadata, and that it is gone.
//!
//! Kinds that the controllers follow anyway are heard of through their informers; of the others only metadata is asked
//! for, and nothing of it is kept but uid and namespace.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use futures::StreamExt;
use kube::api::ObjectMeta;
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::aggregated;
use crate::cluster::Cluster;
use crate::informer::{Change, Informer, is_not_served};
use crate::kinds::{Kind, Kinds};

/// A uid as a number: half of what its text takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Uid(u128);

impl Uid {
    /// Reads a UUID. Whatever else somebody may have written as a uid gets a number of its own, with no object behind it.
    pub(crate) fn parse(text: &str) -> Self {
        let hex: String = text.chars().filter(|c| *c != '-').collect();
        match u128::from_str_radix(&hex, 16) {
            Ok(number) if hex.len() == 32 => Self(number),
            _ => Self(text.bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash, byte| {
                (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
            })),
        }
    }

    pub(crate) fn of(meta: &ObjectMeta) -> Self {
        Self::parse(meta.uid.as_deref().unwrap_or_default())
    }
}

/// What the inventory tells.
pub(crate) enum News<'a> {
    /// The object is new, or has changed.
    Here(&'a Arc<Kind>, &'a ObjectMeta),
    /// It is gone from this namespace (empty for those in none).
    Gone(Uid, &'a str),
}

type Handler = Box<dyn Fn(&News<'_>) + Send + Sync>;

/// Clones share it.
#[derive(Clone)]
pub(crate) struct Inventory {
    shared: Arc<Shared>,
}

struct Shared {
    handlers: RwLock<Vec<Handler>>,
    /// How many kinds' lists are still awaited.
    awaited: watch::Sender<usize>,
    kinds: Kinds,
}

/// What one kind's watch has told so far.
#[derive(Default)]
struct Heard {
    /// The namespaces of what is there.
    known: HashMap<Uid, Arc<str>>,
    /// Of what was there before the list that is being received.
    before: HashMap<Uid, Arc<str>>,
    /// The first list was there.
    complete: bool,
}

impl Inventory {
    pub(crate) fn new() -> Self {
        let shared = Shared { handlers: RwLock::default(), awaited: watch::Sender::new(0), kinds: Kinds::builtin() };
        Self { shared: Arc::new(shared) }
    }

    /// The kinds that it tells of.
    pub(crate) fn kinds(&self) -> &Kinds {
        &self.shared.kinds
    }

    /// Calls `handler` with all news from now on.
    pub(crate) fn on_news(&self, handler: impl Fn(&News<'_>) + Send + Sync + 'static) {
        self.shared.handlers.write().unwrap_or_else(PoisonError::into_inner).push(Box::new(handler));
    }

    /// Begins to listen. `client` may read everything.
    pub(crate) fn start(&self, client: &Client, cluster: &Cluster, stop: &CancellationToken, tasks: &mut JoinSet<()>) {
        let followed = cluster.tell(self);
        // Events own nothing, nobody owns them, and they are many.
        let others = self.kinds().all().into_iter().filter(|kind| {
            kind.name != "Event" && !followed.iter().any(|(group, name)| *group == kind.group && *name == kind.name)
        });
        for kind in others {
            self.shared.awaited.send_modify(|count| *count += 1);
            tasks.spawn(self.clone().watch(client.clone(), kind, stop.clone()));
        }
        self.follow_definitions(client, cluster, stop);
        aggregated::follow(self, client, cluster, stop);
    }

    /// Kinds come and go with their definitions.
    fn follow_definitions(&self, client: &Client, cluster: &Cluster, stop: &CancellationToken) {
        let (inventory, client, stop) = (self.clone(), client.clone(), stop.clone());
        let watched: Mutex<HashMap<String, (Arc<Kind>, CancellationToken)>> = Mutex::default();
        cluster.definitions.on_change(move |change| {
            let Some(definition) = change.new.or(change.old) else { return };
            let name = definition.metadata.name.clone().unwrap_or_default();
            let kind = change.new.and_then(|new| Kind::of_definition(new)).map(Arc::new);
            let mut watched = watched.lock().unwrap_or_else(PoisonError::into_inner);
            if watched.get(&name).map(|(known, _)| known) == kind.as_ref() {
                return;
            }
            if let Some((known, watch)) = watched.remove(&name) {
                watch.cancel();
                inventory.kinds().remove(&known);
            }
            if let Some(kind) = kind {
                inventory.kinds().add(Arc::clone(&kind));
                let watch = stop.child_token();
                inventory.shared.awaited.send_modify(|count| *count += 1);
                tokio::spawn(inventory.clone().watch(client.clone(), Arc::clone(&kind), watch.clone()));
                watched.insert(name, (kind, watch));
            }
        });
    }

    /// Waits until every object has been heard of (those of the informers: when these are complete).
    pub(crate) async fn synced(&self) {
        // The sender lives as long as this inventory does.
        let _ = self.shared.awaited.subscribe().wait_for(|count| *count == 0).await;
    }

    /// Hears of a kind through its informer. Gives its group and name.
    pub(crate) fn follow<K>(&self, informer: &Informer<K>) -> Option<(String, String)>
    where
        K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + Sync + 'static,
    {
        let kind = self.kinds().get(&K::group(&()), &K::kind(&()))?;
        let told = (kind.group.clone(), kind.name.clone());
        let inventory = self.clone();
        informer.on_change(move |change: &Change<'_, K>| {
            let gone = change.old.filter(|old| change.new.is_none_or(|new| new.meta().uid != old.meta().uid));
            if let Some(old) = gone {
                inventory.tell(&News::Gone(Uid::of(old.meta()), old.meta().namespace.as_deref().unwrap_or_default()));
            }
            if let Some(new) = change.new {
                inventory.tell(&News::Here(&kind, new.meta()));
            }
        });
        Some(told)
    }

    /// Hears of a kind that nobody waits for, until told to stop.
    pub(crate) async fn hear_of(self, client: Client, kind: Arc<Kind>, stop: CancellationToken) {
        self.watch_of(client, kind, stop, true).await;
    }

    async fn watch(self, client: Client, kind: Arc<Kind>, stop: CancellationToken) {
        self.watch_of(client, kind, stop, false).await;
    }

    /// Unless its first list is `complete` from the beginning, it is awaited.
    async fn watch_of(self, client: Client, kind: Arc<Kind>, stop: CancellationToken, complete: bool) {
        // Whoever begins again misses nothing that has gone meanwhile.
        let heard = Arc::new(tokio::sync::Mutex::new(Heard { complete, ..Heard::default() }));
        carob_keep::keep(&kind.plural, stop, || {
            let (inventory, api, kind, heard) =
                (self.clone(), kind.metadata_api(&client), Arc::clone(&kind), Arc::clone(&heard));
            async move { inventory.listen(api, &kind, &mut *heard.lock().await).await }
        })
        .await;
        // Its definition has gone, or everything ends.
        let Heard { known, before, complete } = &mut *heard.lock().await;
        self.complete(complete);
        for (uid, namespace) in known.drain().chain(before.drain()) {
            self.tell(&News::Gone(uid, &namespace));
        }
    }

    async fn listen(&self, api: Api<PartialObjectMeta>, kind: &Arc<Kind>, heard: &mut Heard) {
        let Heard { known, before, complete } = heard;
        let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
        while let Some(event) = events.next().await {
            match event {
                Err(error) => {
                    tracing::debug!(kind = kind.plural, %error, "watching again");
                    if is_not_served(&error) {
                        self.complete(complete);
                    }
                }
                Ok(watcher::Event::Init) => before.extend(known.drain()),
                Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object)) => {
                    let uid = Uid::of(&object.metadata);
                    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
                    let namespace = before.remove(&uid).unwrap_or_else(|| namespace.into());
                    known.entry(uid).or_insert(namespace);
                    self.tell(&News::Here(kind, &object.metadata));
                }
                Ok(watcher::Event::InitDone) => {
                    for (uid, namespace) in before.drain() {
                        self.tell(&News::Gone(uid, &namespace));
                    }
                    self.complete(complete);
                }
                Ok(watcher::Event::Delete(object)) => {
                    let uid = Uid::of(&object.metadata);
                    known.remove(&uid);
                    self.tell(&News::Gone(uid, object.metadata.namespace.as_deref().unwrap_or_default()));
                }
            }
        }
    }

    /// The first list of a kind is there.
    fn complete(&self, already: &mut bool) {
        if !std::mem::replace(already, true) {
            self.shared.awaited.send_modify(|count| *count -= 1);
        }
    }

    fn tell(&self, news: &News<'_>) {
        for handler in self.shared.handlers.read().unwrap_or_else(PoisonError::into_inner).iter() {
            handler(news);
        }
    }
}
