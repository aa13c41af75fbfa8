//! What is committed, in memory: the current entries, and a ring of the latest transactions.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::index::Index;
use super::open::Recovered;
use crate::{Entry, Event, KeyRange, Page, Revision};

/// The committed state. The writer replaces it after each durable batch; readers take snapshots of its parts.
#[derive(Debug)]
pub(super) struct Committed {
    pub index: Index,
    pub revision: Revision,
    /// Events up to here are forgotten.
    pub compacted: Revision,
    pub ring: Ring,
}

impl Committed {
    pub(super) fn new(recovered: Recovered, limits: RingLimits) -> Self {
        let Recovered { index, revision, compacted, .. } = recovered;
        let ring = Ring { limits, last: revision, transactions: VecDeque::new(), bytes: 0 };
        Self { index, revision, compacted, ring }
    }
}

/// How much of the history is kept in memory; what goes over either limit is left to the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct RingLimits {
    pub transactions: usize,
    pub bytes: usize,
}

/// The latest transactions, without a gap.
#[derive(Debug)]
pub(super) struct Ring {
    limits: RingLimits,
    last: Revision,
    transactions: VecDeque<Arc<[Event]>>,
    bytes: usize,
}

impl Ring {
    /// Adds the transaction behind the last.
    pub(super) fn push(&mut self, transaction: Arc<[Event]>) {
        self.last += 1;
        self.bytes += weight(&transaction);
        self.transactions.push_back(transaction);
        while self.transactions.len() > self.limits.transactions || self.bytes > self.limits.bytes {
            self.pop();
        }
    }

    /// Gives back the memory of transactions up to `revision`.
    pub(super) fn forget(&mut self, revision: Revision) {
        while self.first() <= revision && !self.transactions.is_empty() {
            self.pop();
        }
        if self.transactions.is_empty() {
            self.transactions.shrink_to_fit();
        }
    }

    /// The transactions after `revision`, or none if the ring begins later.
    pub(super) fn after(&self, revision: Revision) -> Option<impl Iterator<Item = &Arc<[Event]>>> {
        let skip = (revision + 1).checked_sub(self.first())?;
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        Some(self.transactions.range(skip.min(self.transactions.len())..))
    }

    /// The revision of the oldest transaction, or the next one to come.
    fn first(&self) -> Revision {
        self.last + 1 - self.transactions.len() as u64
    }

    fn pop(&mut self) {
        if let Some(oldest) = self.transactions.pop_front() {
            self.bytes -= weight(&oldest);
        }
    }
}

/// Bytes that a transaction's events hold. The values before are not counted: mostly the ring has them already.
fn weight(transaction: &[Event]) -> usize {
    let entries = transaction.iter().map(|event| match event {
        Event::Put { entry, .. } | Event::Delete { entry, .. } => entry.key.len() + entry.value.len(),
    });
    entries.sum::<usize>() + size_of_val(transaction)
}

/// What the keys of `range` that `transactions` changed were before them; none for those that were not.
pub(super) fn before<'a>(
    range: &KeyRange,
    transactions: impl Iterator<Item = &'a Arc<[Event]>>,
) -> BTreeMap<Arc<str>, Option<Entry>> {
    let mut before = BTreeMap::new();
    for event in transactions.flat_map(|transaction| transaction.iter()) {
        let (entry, previous) = match event {
            Event::Put { entry, previous } => (entry, previous.as_ref()),
            Event::Delete { entry, previous } => (entry, Some(previous)),
        };
        if range.contains(&entry.key) {
            before.entry(entry.key.clone()).or_insert_with(|| previous.cloned());
        }
    }
    before
}

/// The first `limit` entries of a range of the current state.
pub(super) fn page(index: &Index, range: &KeyRange, limit: Option<usize>, revision: Revision) -> Page {
    let count = index.count(range);
    let size = limit.map_or(count, |limit| limit.min(count));
    let entries = index.range(range).take(size).map(|stored| stored.entry.clone()).collect();
    Page { revision, entries, remaining: (count - size) as u64 }
}

/// The same of a former state, given what has changed since.
pub(super) fn former_page(
    index: &Index,
    before: &BTreeMap<Arc<str>, Option<Entry>>,
    range: &KeyRange,
    limit: Option<usize>,
    revision: Revision,
) -> Page {
    let unchanged = index.range(range).map(|stored| &stored.entry).filter(|entry| !before.contains_key(&entry.key));
    let mut entries: Vec<&Entry> = unchanged.chain(before.values().flatten()).collect();
    entries.sort_by(|a, b| a.key.cmp(&b.key));
    let size = limit.map_or(entries.len(), |limit| limit.min(entries.len()));
    let remaining = (entries.len() - size) as u64;
    Page { revision, entries: entries.into_iter().take(size).cloned().collect(), remaining }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn transaction(revision: Revision, bytes: usize) -> Arc<[Event]> {
        let entry = Entry { key: "/a".into(), value: Bytes::from(vec![0; bytes]), revision, created: revision };
        [Event::Put { entry, previous: None }].into()
    }

    fn after(ring: &Ring, revision: Revision) -> Option<Vec<Revision>> {
        Some(ring.after(revision)?.map(|transaction| transaction[0].revision()).collect())
    }

    #[test]
    fn a_ring_answers_only_for_what_it_has_without_a_gap() {
        let limits = RingLimits { transactions: 3, bytes: 10_000 };
        let mut ring = Ring { limits, last: 10, transactions: VecDeque::new(), bytes: 0 };
        assert_eq!(after(&ring, 10), Some(vec![]));
        assert_eq!(after(&ring, 9), None);
        for revision in 11..=14 {
            ring.push(transaction(revision, 10));
        }
        assert_eq!(after(&ring, 10), None);
        assert_eq!(after(&ring, 11), Some(vec![12, 13, 14]));
        assert_eq!(after(&ring, 14), Some(vec![]));
        ring.push(transaction(15, 20_000));
        assert_eq!(after(&ring, 14), None, "a transaction over the limit is left to the log");
        assert_eq!(after(&ring, 15), Some(vec![]));
        ring.push(transaction(16, 10));
        assert_eq!(after(&ring, 15), Some(vec![16]));
        ring.forget(16);
        assert_eq!(after(&ring, 16), Some(vec![]));
        assert_eq!(ring.bytes, 0);
    }
}
