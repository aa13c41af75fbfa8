//! Who watches which range, and how the writer wakes them.
//!
//! A commit touches only the watchers whose range it hits: ranges are grouped, and a key finds its groups by its own
//! path prefixes. Nothing is queued per watcher. The writer notes in the watcher's slot the first revision it hasn't
//! seen; the watcher reads from the ring, or from the log if it is late. So a slow watcher costs no memory.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::{Event, KeyRange, Revision};

/// All watchers of a store.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    groups: Mutex<Groups>,
    /// Every watcher concerned knows of the transactions up to here.
    published: AtomicU64,
    closed: AtomicBool,
}

/// What the writer and one watcher share.
#[derive(Debug, Default)]
pub(super) struct Slot(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The first transaction that hit the range since the watcher last looked.
    pending: Option<Revision>,
    progress: Option<Progress>,
    closed: bool,
    waker: Option<Waker>,
}

/// A progress item that is owed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Progress {
    /// Only if it says something new.
    Periodic,
    /// In any case.
    Requested,
}

/// Why a watcher was woken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    /// This transaction hit the range; others behind it may have.
    Events(Revision),
    /// There is nothing in the range up to this revision that wasn't announced as events.
    Progress(Progress, Revision),
    /// The store is closed.
    Closed,
}

impl Slot {
    /// Waits for news.
    pub(super) fn poll(&self, published: &Watchers, context: &mut Context<'_>) -> Poll<News> {
        // Read before looking for events: what is published after the look would be unannounced.
        let published = published.published.load(Ordering::Acquire);
        let mut state = self.state();
        if let Some(revision) = state.pending.take() {
            return Poll::Ready(News::Events(revision));
        }
        if state.closed {
            return Poll::Ready(News::Closed);
        }
        if let Some(progress) = state.progress.take() {
            return Poll::Ready(News::Progress(progress, published));
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }

    fn announce(&self, revision: Revision) -> Option<Waker> {
        let mut state = self.state();
        state.pending.get_or_insert(revision);
        state.waker.take()
    }

    fn owe(&self, progress: Progress) -> Option<Waker> {
        let mut state = self.state();
        state.progress = state.progress.max(Some(progress));
        state.waker.take()
    }

    fn close(&self) -> Option<Waker> {
        let mut state = self.state();
        state.closed = true;
        state.waker.take()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of a slot is a single step, so a panic leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watchers {
    pub(super) fn new(revision: Revision) -> Self {
        Self { published: AtomicU64::new(revision), ..Self::default() }
    }

    /// Adds a watcher. From the return on, every transaction that hits the range is announced.
    pub(super) fn add(&self, range: &KeyRange) -> Arc<Slot> {
        let slot = Arc::new(Slot::default());
        let mut groups = self.groups();
        // Under the lock, as in `close`: either that sees the slot, or this the flag.
        if self.closed() {
            slot.close();
        }
        groups.of(range).slots.push(slot.clone());
        slot
    }

    pub(super) fn remove(&self, range: &KeyRange, slot: &Arc<Slot>) {
        self.groups().remove(range, slot);
    }

    /// Announces committed transactions, which are readable already.
    pub(super) fn publish(&self, transactions: &[Arc<[Event]>], revision: Revision) {
        let wakers = self.groups().announce(transactions);
        self.published.store(revision, Ordering::Release);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Tells every watcher how far it is.
    pub(super) fn progress(&self, progress: Progress) {
        let wakers = self.groups().each(|slot| slot.owe(progress));
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Ends every watcher, those to come too.
    pub(super) fn close(&self) {
        let wakers = {
            let groups = self.groups();
            self.closed.store(true, Ordering::Release);
            groups.each(Slot::close)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(super) fn closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn groups(&self) -> MutexGuard<'_, Groups> {
        // Nothing that runs under this lock panics but for a broken invariant of the groups themselves.
        self.groups.lock().expect("the watchers' groups are whole")
    }
}

/// The watchers of one range.
#[derive(Debug)]
struct Group {
    range: KeyRange,
    slots: Vec<Arc<Slot>>,
    /// The first transaction of the batch being announced that hit the range.
    hit: Option<Revision>,
}

/// How a range is found from a key.
enum Shape<'a> {
    /// All keys below a path.
    Prefix(&'a str),
    /// One key.
    Key(&'a str),
    Other,
}

fn shape(range: &KeyRange) -> Shape<'_> {
    if range.end.strip_suffix('\0') == Some(&range.start) {
        return Shape::Key(&range.start);
    }
    match (range.start.strip_suffix('/'), range.end.strip_suffix('0')) {
        (Some(start), Some(end)) if start == end => Shape::Prefix(&range.start),
        _ => Shape::Other,
    }
}

/// Groups by the shape of their range. Empty places are used again.
#[derive(Debug, Default)]
struct Groups {
    places: Vec<Option<Group>>,
    free: Vec<usize>,
    prefixes: HashMap<String, usize>,
    keys: HashMap<String, usize>,
    others: Vec<usize>,
}

impl Groups {
    fn find(&self, range: &KeyRange) -> Option<usize> {
        match shape(range) {
            Shape::Prefix(prefix) => self.prefixes.get(prefix).copied(),
            Shape::Key(key) => self.keys.get(key).copied(),
            Shape::Other => {
                let same = |at: &usize| self.places[*at].as_ref().is_some_and(|group| group.range == *range);
                self.others.iter().copied().find(same)
            }
        }
    }

    fn of(&mut self, range: &KeyRange) -> &mut Group {
        let at = self.find(range).unwrap_or_else(|| {
            let at = self.free.pop().unwrap_or_else(|| {
                self.places.push(None);
                self.places.len() - 1
            });
            match shape(range) {
                Shape::Prefix(prefix) => drop(self.prefixes.insert(prefix.into(), at)),
                Shape::Key(key) => drop(self.keys.insert(key.into(), at)),
                Shape::Other => self.others.push(at),
            }
            at
        });
        self.places[at].get_or_insert_with(|| Group { range: range.clone(), slots: Vec::new(), hit: None })
    }

    fn remove(&mut self, range: &KeyRange, slot: &Arc<Slot>) {
        let Some(at) = self.find(range) else { return };
        let Some(group) = &mut self.places[at] else { return };
        group.slots.retain(|other| !Arc::ptr_eq(other, slot));
        if group.slots.is_empty() {
            match shape(range) {
                Shape::Prefix(prefix) => drop(self.prefixes.remove(prefix)),
                Shape::Key(key) => drop(self.keys.remove(key)),
                Shape::Other => self.others.retain(|other| *other != at),
            }
            self.places[at] = None;
            self.free.push(at);
        }
    }

    fn announce(&mut self, transactions: &[Arc<[Event]>]) -> Vec<Waker> {
        let mut hit = Vec::new();
        for event in transactions.iter().flat_map(|transaction| transaction.iter()) {
            let (Event::Put { entry, .. } | Event::Delete { entry, .. }) = event;
            let key = &*entry.key;
            let below = key.match_indices('/').filter_map(|(slash, _)| self.prefixes.get(&key[..=slash]));
            for at in below.chain(self.keys.get(key)).chain(&self.others) {
                if let Some(group) = &mut self.places[*at]
                    && group.hit.is_none()
                    && group.range.contains(key)
                {
                    group.hit = Some(entry.revision);
                    hit.push(*at);
                }
            }
        }
        let mut wakers = Vec::new();
        for at in hit {
            if let Some(group) = &mut self.places[at]
                && let Some(revision) = group.hit.take()
            {
                wakers.extend(group.slots.iter().filter_map(|slot| slot.announce(revision)));
            }
        }
        wakers
    }

    fn each(&self, act: impl Fn(&Slot) -> Option<Waker>) -> Vec<Waker> {
        self.places.iter().flatten().flat_map(|group| &group.slots).filter_map(|slot| act(slot)).collect()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::Entry;

    fn put(key: &str, revision: Revision) -> Arc<[Event]> {
        let entry = Entry { key: key.into(), value: Bytes::new(), revision, created: revision };
        [Event::Put { entry, previous: None }].into()
    }

    fn look(watchers: &Watchers, slot: &Slot) -> Poll<News> {
        slot.poll(watchers, &mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_transaction_is_announced_to_the_ranges_it_hits_and_to_no_other() {
        let watchers = Watchers::new(0);
        let ranges = [
            (KeyRange::prefix("/core/pods/"), true),
            (KeyRange::prefix("/core/pods/default/"), true),
            (KeyRange::prefix("/"), true),
            (KeyRange::key("/core/pods/default/web"), true),
            (KeyRange { start: "/b".into(), end: "/d".into() }, true),
            (KeyRange { start: "/d".into(), end: "/e".into() }, false),
            (KeyRange::key("/core/pods/default/web2"), false),
            (KeyRange::prefix("/core/pods/def/"), false),
        ];
        let slots: Vec<_> = ranges.iter().map(|(range, hit)| (watchers.add(range), range, *hit)).collect();
        watchers.publish(&[put("/core/secrets/a/b", 3), put("/core/pods/default/web", 4)], 4);
        for (slot, range, hit) in &slots[3..] {
            let news = if *hit { Poll::Ready(News::Events(4)) } else { Poll::Pending };
            let first = if range.start == "/b" { Poll::Ready(News::Events(3)) } else { news };
            assert_eq!(look(&watchers, slot), first, "{range:?}");
            watchers.remove(range, slot);
        }
        watchers.publish(&[put("/core/pods/default/web", 5)], 5);
        assert_eq!(look(&watchers, &slots[0].0), Poll::Ready(News::Events(4)), "the first it has not seen");
        assert_eq!(look(&watchers, &slots[0].0), Poll::Pending);
        assert_eq!(look(&watchers, &slots[3].0), Poll::Pending, "removed");
        let groups = watchers.groups();
        assert_eq!((groups.keys.len(), groups.others.len(), groups.prefixes.len()), (0, 0, 3));
    }

    #[test]
    fn progress_waits_behind_events_and_a_request_outweighs_the_period() {
        let watchers = Watchers::new(0);
        let slot = watchers.add(&KeyRange::prefix("/a/"));
        watchers.publish(&[put("/a/x", 1)], 1);
        watchers.progress(Progress::Requested);
        watchers.progress(Progress::Periodic);
        watchers.publish(&[put("/b/x", 2)], 2);
        assert_eq!(look(&watchers, &slot), Poll::Ready(News::Events(1)));
        assert_eq!(look(&watchers, &slot), Poll::Ready(News::Progress(Progress::Requested, 2)));
        assert_eq!(look(&watchers, &slot), Poll::Pending);
        watchers.close();
        assert_eq!(look(&watchers, &slot), Poll::Ready(News::Closed));
        assert_eq!(look(&watchers, &watchers.add(&KeyRange::prefix("/a/"))), Poll::Ready(News::Closed));
    }
}
