//! Word of every object of every kind: that it is there, with its metadata, and that it is gone.
//!
//! Kinds that the controllers follow anyway are heard of through their informers; of the others only metadata is asked
//! for, and nothing of it is kept but uid and namespace.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use carob_api::kind::Kind;
use futures::StreamExt;
use kube::api::ObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::informer::{Change, Informer};
use crate::kinds;

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
    Here(&'static Kind, &'a ObjectMeta),
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
}

impl Inventory {
    pub(crate) fn new() -> Self {
        Self { shared: Arc::new(Shared { handlers: RwLock::default(), awaited: watch::Sender::new(0) }) }
    }

    /// Calls `handler` with all news from now on.
    pub(crate) fn on_news(&self, handler: impl Fn(&News<'_>) + Send + Sync + 'static) {
        self.shared.handlers.write().unwrap_or_else(PoisonError::into_inner).push(Box::new(handler));
    }

    /// Begins to listen.
    pub(crate) fn start(&self, cluster: &Cluster, stop: &CancellationToken, tasks: &mut JoinSet<()>) {
        let followed = [
            self.follow(&cluster.pods),
            self.follow(&cluster.nodes),
            self.follow(&cluster.namespaces),
            self.follow(&cluster.replica_sets),
            self.follow(&cluster.deployments),
            self.follow(&cluster.jobs),
        ];
        let is_followed = |kind: &Kind| followed.iter().flatten().any(|known| std::ptr::eq(*known, kind));
        // Events own nothing, nobody owns them, and they are many.
        for kind in kinds::deletable().filter(|kind| !is_followed(kind) && kind.kind != "Event") {
            self.shared.awaited.send_modify(|count| *count += 1);
            tasks.spawn(self.clone().watch(cluster.client.clone(), kind, stop.clone()));
        }
    }

    /// Waits until every object has been heard of (those of the informers: when these are complete).
    pub(crate) async fn synced(&self) {
        // The sender lives as long as this inventory does.
        let _ = self.shared.awaited.subscribe().wait_for(|count| *count == 0).await;
    }

    fn follow<K>(&self, informer: &Informer<K>) -> Option<&'static Kind>
    where
        K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + Sync + 'static,
    {
        let kind = kinds::by_group_kind(&K::group(&()), &K::kind(&()))?;
        let inventory = self.clone();
        informer.on_change(move |change: &Change<'_, K>| {
            let gone = change.old.filter(|old| change.new.is_none_or(|new| new.meta().uid != old.meta().uid));
            if let Some(old) = gone {
                inventory.tell(&News::Gone(Uid::of(old.meta()), old.meta().namespace.as_deref().unwrap_or_default()));
            }
            if let Some(new) = change.new {
                inventory.tell(&News::Here(kind, new.meta()));
            }
        });
        Some(kind)
    }

    async fn watch(self, client: Client, kind: &'static Kind, stop: CancellationToken) {
        let api = kinds::metadata_api(&client, kind);
        let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
        let mut known: HashMap<Uid, Arc<str>> = HashMap::new();
        let mut before: HashMap<Uid, Arc<str>> = HashMap::new();
        let mut complete = false;
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                None => return,
                Some(Err(error)) => tracing::debug!(kind = kind.plural, %error, "watching again"),
                Some(Ok(watcher::Event::Init)) => before.extend(known.drain()),
                Some(Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object))) => {
                    let uid = Uid::of(&object.metadata);
                    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
                    let namespace = before.remove(&uid).unwrap_or_else(|| namespace.into());
                    known.entry(uid).or_insert(namespace);
                    self.tell(&News::Here(kind, &object.metadata));
                }
                Some(Ok(watcher::Event::InitDone)) => {
                    for (uid, namespace) in before.drain() {
                        self.tell(&News::Gone(uid, &namespace));
                    }
                    if !complete {
                        complete = true;
                        self.shared.awaited.send_modify(|count| *count -= 1);
                    }
                }
                Some(Ok(watcher::Event::Delete(object))) => {
                    let uid = Uid::of(&object.metadata);
                    known.remove(&uid);
                    self.tell(&News::Gone(uid, object.metadata.namespace.as_deref().unwrap_or_default()));
                }
            }
        }
    }

    fn tell(&self, news: &News<'_>) {
        for handler in self.shared.handlers.read().unwrap_or_else(PoisonError::into_inner).iter() {
            handler(news);
        }
    }
}
