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

/// Reads the range below `prefix`, and follows it in the background until told to stop.
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
                match listen(&*store, &range, &revision, &*mirror).await {
                    Error::Closed => return,
                    error => tracing::debug!(range = range.start, %error, "reading a part of the store again"),
                }
                match read(&*store, &range, &*mirror).await {
                    Ok(now) => drop(revision.send_replace(now)),
                    Err(Error::Closed) => return,
                    Err(_) => tokio::time::sleep(PAUSE).await,
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = follow => {}
        }
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
