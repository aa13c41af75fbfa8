//! The current entries in memory: a sorted map whose snapshots cost one reference count.
//!
//! Keys lie in sorted chunks behind reference counts. A reader clones the outer count; only while it holds that does the
//! writer copy what it changes: the list of chunks, and chunks. So a change costs the same however many keys there are.
//! That is smaller than a persistent tree (one pointer per key), and counting what is left of a range doesn't visit its
//! entries.

use std::sync::Arc;

use bytes::Bytes;

use crate::{Entry, KeyRange, Revision};

/// A chunk is split when it has this many entries.
const FULL: usize = 128;
/// A chunk with fewer entries is joined to its neighbour.
const SPARSE: usize = 32;

/// A current entry, and what is needed to write its next version.
#[derive(Debug)]
pub(super) struct Stored {
    pub entry: Entry,
    /// Where the revision's digits begin in `entry.value`.
    pub hole: Option<u32>,
    /// The number of the write within its transaction.
    pub index: u32,
}

impl Stored {
    /// The value with another revision in the hole.
    pub(super) fn rendered_at(&self, revision: Revision) -> Bytes {
        let Some(hole) = self.hole else { return self.entry.value.clone() };
        let (head, rest) = self.entry.value.split_at(hole as usize);
        let tail = &rest[self.entry.revision.to_string().len()..];
        [head, revision.to_string().as_bytes(), tail].concat().into()
    }
}

type Chunk = Arc<Vec<Arc<Stored>>>;

/// The sorted map. Chunks are never empty.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    chunks: Arc<Vec<Chunk>>,
}

impl Index {
    pub(super) fn get(&self, key: &str) -> Option<&Arc<Stored>> {
        let (chunk, at) = self.seek(key);
        self.chunks.get(chunk)?.get(at).filter(|stored| &*stored.entry.key == key)
    }

    /// Adds or replaces; gives what was there.
    pub(super) fn insert(&mut self, stored: Arc<Stored>) -> Option<Arc<Stored>> {
        let (number, at) = self.seek(&stored.entry.key);
        let chunks = Arc::make_mut(&mut self.chunks);
        let Some(chunk) = chunks.get_mut(number) else {
            chunks.push(Arc::new(vec![stored]));
            return None;
        };
        if chunk.get(at).is_some_and(|old| old.entry.key == stored.entry.key) {
            return Some(std::mem::replace(&mut Arc::make_mut(chunk)[at], stored));
        }
        if chunk.len() < FULL {
            Arc::make_mut(chunk).insert(at, stored);
        } else if at == FULL {
            // Keys that arrive in order leave full chunks behind.
            chunks.insert(number + 1, Arc::new(vec![stored]));
        } else {
            let entries = Arc::make_mut(chunk);
            let mut upper = entries.split_off(FULL / 2);
            if at <= FULL / 2 {
                entries.insert(at, stored);
            } else {
                upper.insert(at - FULL / 2, stored);
            }
            chunks.insert(number + 1, Arc::new(upper));
        }
        None
    }

    /// Removes; gives what was there.
    pub(super) fn remove(&mut self, key: &str) -> Option<Arc<Stored>> {
        self.get(key)?;
        let (number, at) = self.seek(key);
        let chunks = Arc::make_mut(&mut self.chunks);
        let removed = Arc::make_mut(&mut chunks[number]).remove(at);
        let left = chunks[number].len();
        if left == 0 {
            chunks.remove(number);
        } else if left < SPARSE && number > 0 && chunks[number - 1].len() + left < FULL {
            let joined = chunks.remove(number);
            Arc::make_mut(&mut chunks[number - 1]).extend(joined.iter().cloned());
        }
        Some(removed)
    }

    /// The entries of a range in key order.
    pub(super) fn range<'a>(&'a self, range: &'a KeyRange) -> impl Iterator<Item = &'a Arc<Stored>> {
        let (chunk, at) = self.seek(&range.start);
        let first = self.chunks.get(chunk).map_or(&[][..], |chunk| &chunk[at..]);
        let others = self.chunks.get(chunk + 1..).unwrap_or_default().iter().flat_map(|chunk| chunk.iter());
        first.iter().chain(others).take_while(|stored| *stored.entry.key < *range.end)
    }

    /// How many entries a range has.
    pub(super) fn count(&self, range: &KeyRange) -> usize {
        let (first, start) = self.seek(&range.start);
        let (last, end) = self.seek(&range.end);
        if (first, start) >= (last, end) {
            return 0;
        }
        let whole: usize = self.chunks[first..last].iter().map(|chunk| chunk.len()).sum();
        whole + end - start
    }

    /// The chunk and the place in it where `key` is or belongs.
    fn seek(&self, key: &str) -> (usize, usize) {
        let chunk = self.chunks.partition_point(|chunk| *chunk[0].entry.key <= *key).saturating_sub(1);
        let at = self.chunks.get(chunk).map_or(0, |chunk| chunk.partition_point(|stored| *stored.entry.key < *key));
        (chunk, at)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn stored(key: &str, revision: Revision) -> Arc<Stored> {
        let entry = Entry { key: key.into(), value: Bytes::new(), revision, created: revision };
        Arc::new(Stored { entry, hole: None, index: 0 })
    }

    proptest! {
        #[test]
        fn index_equals_a_sorted_map_and_snapshots_do_not_change(
            steps in prop::collection::vec((any::<bool>(), 0_u32..700), 0..2000),
            (low, high) in (0_u32..700, 0_u32..700),
        ) {
            let (mut index, mut model) = (Index::default(), BTreeMap::new());
            let mut snapshot = None;
            for (number, (insert, key)) in steps.iter().enumerate() {
                let key = format!("/{key:04}");
                if number == steps.len() / 2 {
                    snapshot = Some((index.clone(), model.clone()));
                }
                // Insertions twice as often, so that chunks fill and split.
                if *insert || number % 3 == 0 {
                    let replaced = index.insert(stored(&key, number as u64));
                    prop_assert_eq!(replaced.map(|s| s.entry.revision), model.insert(key, number as u64));
                } else {
                    prop_assert_eq!(index.remove(&key).map(|s| s.entry.revision), model.remove(&key));
                }
            }
            let range = KeyRange { start: format!("/{low:04}"), end: format!("/{high:04}") };
            for (index, model) in snapshot.into_iter().chain([(index, model)]) {
                let got: Vec<_> = index.range(&range).map(|s| (s.entry.key.to_string(), s.entry.revision)).collect();
                let want: Vec<_> = model.iter().filter(|(k, _)| range.contains(k)).map(|(k, r)| (k.clone(), *r)).collect();
                prop_assert_eq!(index.count(&range), want.len());
                prop_assert_eq!(got, want);
                for (key, revision) in &model {
                    prop_assert_eq!(index.get(key).map(|s| s.entry.revision), Some(*revision));
                }
                prop_assert!(index.get("/absent").is_none());
            }
        }
    }

    #[test]
    fn without_a_reader_nothing_is_copied() {
        let mut index = Index::default();
        for number in 0..FULL * 4 {
            index.insert(stored(&format!("/{number:04}"), 1));
        }
        let places = |index: &Index| index.chunks.iter().map(|chunk| chunk.as_ptr()).collect::<Vec<_>>();
        let before = (Arc::as_ptr(&index.chunks), places(&index));
        index.insert(stored("/0001", 2));
        assert_eq!((Arc::as_ptr(&index.chunks), places(&index)), before);
        let reader = index.clone();
        index.insert(stored("/0001", 3));
        assert_ne!(Arc::as_ptr(&index.chunks), before.0);
        assert_eq!(places(&index).iter().zip(&before.1).filter(|(now, before)| now != before).count(), 1);
        assert_eq!(reader.get("/0001").map(|stored| stored.entry.revision), Some(2));
    }

    #[test]
    fn rendering_again_replaces_the_digits_of_the_old_revision() {
        let entry =
            Entry { key: "/a".into(), value: Bytes::from_static(b"{\"rv\":\"999\"}"), revision: 999, created: 1 };
        let stored = Stored { entry, hole: Some(7), index: 0 };
        assert_eq!(stored.rendered_at(1000), Bytes::from_static(b"{\"rv\":\"1000\"}"));
    }
}
