//! Something in memory that is kept current with a part of the store.

use std::sync::Arc;
use std::time::Duration;

use carob_store::{Entry, Error, Event, KeyRange, Revision, Store, Watched};
use futures::StreamExt as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long to wait before the store is read again after a failure.
const PAUSE: Duration = Duration::from_millis(100);

/// What is kept current.
pub(crate) trait Mirror: Send + Sync + 'static {
    /// Everything there is: whatever was known before no longer holds.
    fn reset(&self, entries: &[Entry]);
    /// What happened since.
    fn apply(&self, events: &[Event]);
}

/// The state of the store that a mirror shows.
pub(crate) type Reached = watch::Receiver<Revision>;

/// Reads the range below `prefix`, and follows it in the background until told to stop. When a mirror panics nobody knows what it
/// shows: it is read anew, and where that can't be done, all that `stop` stops ends.
pub(crate) async fn follow(
    store: &Arc<dyn Store>,
    prefix: &str,
    mirror: Arc<dyn Mirror>,
    stop: CancellationToken,
) -> Result<Reached, Error> {
    let range = KeyRange::prefix(prefix);
    let first = read(&**store, &range, &*mirror).await?;
    let (revision, reached) = watch::channel(first);
    let store = Arc::clone(store);
    tokio::spawn(async move {
        let follow = async {
            loop {
                match carob_keep::caught(listen(&*store, &range, &revision, &*mirror)).await {
                    Ok(Error::Closed) => return,
                    Ok(error) => tracing::debug!(range = range.start, %error, "reading a part of the store again"),
                    Err(panic) => tracing::error!(range = range.start, %panic, "a change could not be followed"),
                }
                match carob_keep::caught(read(&*store, &range, &*mirror)).await {
                    Ok(Ok(now)) => drop(revision.send_replace(now)),
                    Ok(Err(Error::Closed)) => return,
                    Ok(Err(_)) => tokio::time::sleep(PAUSE).await,
                    Err(panic) => {
                        tracing::error!(range = range.start, %panic, "a part of the store can't be shown");
                        return stop.cancel();
                    }
                }
            }
        };
        stop.run_until_cancelled(follow).await;
    });
    Ok(reached)
}

/// Waits until all of these show at least what the store holds now; false if that takes longer than `patience`.
pub(crate) async fn catch_up(store: &dyn Store, mirrors: &[Reached], patience: Duration) -> bool {
    let Ok(now) = store.revision().await else { return false };
    let behind = || mirrors.iter().filter(|reached| *reached.borrow() < now);
    if behind().next().is_none() {
        return true;
    }
    if store.request_progress().await.is_err() {
        return false;
    }
    let all = async {
        for reached in behind() {
            if reached.clone().wait_for(|revision| *revision >= now).await.is_err() {
                return false;
            }
        }
        true
    };
    tokio::time::timeout(patience, all).await.unwrap_or(false)
}

async fn read(store: &dyn Store, range: &KeyRange, mirror: &dyn Mirror) -> Result<Revision, Error> {
    let page = store.range(range, None, None).await?;
    mirror.reset(&page.entries);
    Ok(page.revision)
}

/// Follows until that fails; says why.
async fn listen(store: &dyn Store, range: &KeyRange, revision: &watch::Sender<Revision>, mirror: &dyn Mirror) -> Error {
    let after = *revision.borrow();
    let mut happens = match store.watch(range.clone(), after).await {
        Ok(happens) => happens,
        Err(error) => return error,
    };
    while let Some(happened) = happens.next().await {
        match happened {
            Ok(Watched::Events(events)) => {
                mirror.apply(&events);
                if let Some(last) = events.last() {
                    revision.send_replace(last.revision());
                }
            }
            Ok(Watched::Progress(reached)) => {
                revision.send_if_modified(|revision| {
                    let further = reached > *revision;
                    *revision = reached.max(*revision);
                    further
                });
            }
            Err(error) => return error,
        }
    }
    Error::Closed
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use carob_store::redb::{Options, RedbStore};
    use carob_store::{Txn, Write};

    use super::*;
    use crate::objects;

    /// Shows keys; panics on a change of one that is called `poison`, and once told so, on all there is.
    #[derive(Default)]
    struct Touchy {
        shown: Mutex<Vec<String>>,
        hopeless: AtomicBool,
    }

    impl Mirror for Touchy {
        fn reset(&self, entries: &[Entry]) {
            assert!(!self.hopeless.load(Ordering::SeqCst), "hopeless");
            *self.shown.lock().unwrap() = entries.iter().map(|entry| entry.key.to_string()).collect();
        }

        fn apply(&self, events: &[Event]) {
            for event in events {
                let Event::Put { entry, .. } = event else { continue };
                assert!(!entry.key.contains("poison"), "poison");
                self.shown.lock().unwrap().push(entry.key.to_string());
            }
        }
    }

    async fn put(store: &dyn Store, key: &str) -> Revision {
        let writes = vec![Write::Put(key.to_owned(), objects::encode(&serde_json::json!({})))];
        store.txn(Txn { expect: Vec::new(), writes }).await.unwrap();
        store.revision().await.unwrap()
    }

    #[tokio::test]
    async fn what_a_mirror_panics_on_is_read_anew_and_where_it_cannot_be_everything_stops() {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(RedbStore::open(folder.path().join("store"), Options::default()).unwrap());
        let (mirror, stop) = (Arc::new(Touchy::default()), CancellationToken::new());
        let mut reached = follow(&store, "/a/", mirror.clone(), stop.clone()).await.unwrap();
        put(&*store, "/a/poison").await;
        let last = put(&*store, "/a/after").await;
        reached.wait_for(|revision| *revision >= last).await.unwrap();
        let shown = mirror.shown.lock().unwrap().clone();
        assert!(["/a/poison", "/a/after"].iter().all(|key| shown.iter().any(|known| known == key)), "{shown:?}");
        assert!(!stop.is_cancelled());
        mirror.hopeless.store(true, Ordering::SeqCst);
        put(&*store, "/a/more-poison").await;
        stop.cancelled().await;
    }
}
