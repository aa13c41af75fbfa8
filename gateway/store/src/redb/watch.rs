//! One watcher's stream: from the log, then from the ring, then waiting.
//!
//! `cursor` is all there is to exactness: whatever the source, a transaction is taken only behind the cursor, in order,
//! and moves it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, PoisonError};

use futures::stream;

use super::Shared;
use super::watchers::{News, Progress, Slot};
use crate::{Error, Event, KeyRange, Revision, Watch, Watched};

/// Transactions taken from the ring at a time, so that the lock is held shortly.
const STRIDE: usize = 128;
/// Bytes read from the log at a time.
const LOG_BYTES: usize = 1 << 20;

/// Watches `range` from behind `after`, which the caller has checked.
pub(super) fn watch(shared: Arc<Shared>, range: KeyRange, after: Revision) -> Watch {
    let slot = shared.watchers.add(&range);
    // What is committed after this look is announced in the slot.
    let behind = after < shared.committed.read().unwrap_or_else(PoisonError::into_inner).revision;
    let watcher = Watcher { shared, range, slot, cursor: after, told: after, behind, ready: VecDeque::new() };
    Box::pin(stream::unfold(Some(watcher), |watcher| async {
        let mut watcher = watcher?;
        match watcher.next().await {
            Ok(Some(item)) => Some((Ok(item), Some(watcher))),
            Ok(None) | Err(Error::Closed) => None,
            Err(error) => Some((Err(error), None)),
        }
    }))
}

struct Watcher {
    shared: Arc<Shared>,
    range: KeyRange,
    slot: Arc<Slot>,
    /// Every transaction up to here has been taken.
    cursor: Revision,
    /// The revision of the last item given out.
    told: Revision,
    /// Whether there may be something behind the cursor.
    behind: bool,
    /// Taken, not yet given out.
    ready: VecDeque<Arc<[Event]>>,
}

impl Watcher {
    async fn next(&mut self) -> Result<Option<Watched>, Error> {
        loop {
            if let Some(events) = self.ready.pop_front() {
                self.told = events.first().map_or(self.told, Event::revision);
                return Ok(Some(Watched::Events(events)));
            }
            if self.behind {
                if let Some(until) = self.take_from_ring() {
                    self.take_from_log(until).await?;
                }
                continue;
            }
            match poll_fn(|context| self.slot.poll(&self.shared.watchers, context)).await {
                News::Events(first) => {
                    // What lies between didn't hit the range.
                    self.cursor = self.cursor.max(first - 1);
                    self.behind = true;
                }
                News::Progress(progress, published) => {
                    self.cursor = self.cursor.max(published);
                    if progress == Progress::Requested || self.cursor > self.told {
                        self.told = self.cursor;
                        return Ok(Some(Watched::Progress(self.cursor)));
                    }
                }
                News::Closed => return Ok(None),
            }
        }
    }

    /// Advances the cursor through the ring. If the ring begins later: up to where the log is to be read.
    fn take_from_ring(&mut self) -> Option<Revision> {
        let taken: Vec<_> = {
            let committed = self.shared.committed.read().unwrap_or_else(PoisonError::into_inner);
            let Some(transactions) = committed.ring.after(self.cursor) else { return Some(committed.revision) };
            let taken: Vec<_> = transactions.take(STRIDE).cloned().collect();
            self.behind = self.cursor + (taken.len() as u64) < committed.revision;
            taken
        };
        self.cursor += taken.len() as u64;
        self.ready.extend(taken.iter().filter_map(|transaction| within(&self.range, transaction)));
        None
    }

    async fn take_from_log(&mut self, until: Revision) -> Result<(), Error> {
        let (shared, range, after) = (self.shared.clone(), self.range.clone(), self.cursor);
        let read =
            tokio::task::spawn_blocking(move || shared.ask_log(|log| log.history(&range, after, until, LOG_BYTES)));
        // The runtime ends before the store does: nobody is left to tell.
        let history = read.await.map_err(|_| Error::Closed)??;
        self.cursor = history.reached;
        self.ready.extend(history.transactions);
        Ok(())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.watchers.remove(&self.range, &self.slot);
    }
}

/// The part of a transaction that lies in the range; mostly that is all of it, and shared.
fn within(range: &KeyRange, transaction: &Arc<[Event]>) -> Option<Arc<[Event]>> {
    let hit = |event: &Event| {
        let (Event::Put { entry, .. } | Event::Delete { entry, .. }) = event;
        range.contains(&entry.key)
    };
    match transaction.iter().filter(|event| hit(event)).count() {
        0 => None,
        all if all == transaction.len() => Some(transaction.clone()),
        _ => Some(transaction.iter().filter(|event| hit(event)).cloned().collect()),
    }
}
