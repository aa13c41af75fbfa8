//! The file's tables, and how one change is written in the log.
//!
//! There is one table of data, `log`: (revision, number within the transaction) -> record. Current values are not kept a
//! second time: the index in memory is built from the log when the store opens, and compaction leaves the last record of
//! every living key. So a write touches only the log's rightmost pages.

use std::sync::Arc;

use ::redb::TableDefinition;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::index::Stored;
use crate::{Entry, Revision};

/// Every change since the last compaction, and the last version of every key that is older.
pub(super) const LOG: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("log");
/// Numbers about the store as a whole.
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// `META`: the version of this layout.
pub(super) const FORMAT: &str = "format";
/// `META`: the newest revision. It cannot be read off the log, whose last record may have been a compacted deletion.
pub(super) const REVISION: &str = "revision";
/// `META`: events up to here are forgotten.
pub(super) const COMPACTED: &str = "compacted";
/// `META`: which frames of the journal follow on what is filed.
pub(super) const EPOCH: &str = "epoch";
/// `META`: superseded records up to here have been removed; follows `COMPACTED` in steps.
pub(super) const CLEANED: &str = "cleaned";

/// The layout this version writes. Files of a newer one are refused.
pub(super) const CURRENT_FORMAT: u64 = 2;

/// Where a record lies in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    pub revision: Revision,
    pub index: u32,
}

impl Position {
    pub(super) fn of(stored: &Stored) -> Self {
        Self { revision: stored.entry.revision, index: stored.index }
    }

    pub(super) fn key(self) -> (u64, u32) {
        (self.revision, self.index)
    }
}

/// What precedes the document's bytes in a record.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head<'a> {
    pub key: &'a str,
    /// The record this one supersedes.
    pub previous: Option<Position>,
    pub change: Change,
}

/// What happened to the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Change {
    /// The document follows, without the revision.
    Put { created: Revision, hole: Option<u32> },
    /// Nothing follows: the last value is that of the previous record.
    Delete,
}

/// Writes a record.
pub(super) fn encode(head: &Head<'_>, document: &[u8]) -> Vec<u8> {
    let room = Vec::with_capacity(head.key.len() + document.len() + 32);
    let mut record = postcard::to_extend(head, room).expect("a vector takes everything, and every field has a length");
    record.extend_from_slice(document);
    record
}

/// Reads a record: its head, and the document's bytes.
pub(super) fn decode(record: &[u8]) -> Result<(Head<'_>, &[u8]), postcard::Error> {
    postcard::take_from_bytes(record)
}

/// The finished entry of a record, or none if it is a deletion (or its hole lies outside).
pub(super) fn stored(at: Position, head: &Head<'_>, document: &[u8]) -> Option<Stored> {
    let Change::Put { created, hole } = head.change else { return None };
    // Copied once: opening a store does this for every object.
    let value = match hole {
        None => Bytes::copy_from_slice(document),
        Some(hole) => {
            let (before, behind) = document.split_at_checked(hole as usize)?;
            [before, at.revision.to_string().as_bytes(), behind].concat().into()
        }
    };
    let entry = Entry { key: Arc::from(head.key), value, revision: at.revision, created };
    Some(Stored { entry, hole, index: at.index })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let previous = Some(Position { revision: 300, index: 2 });
        for change in
            [Change::Delete, Change::Put { created: 7, hole: Some(1) }, Change::Put { created: 7, hole: None }]
        {
            let head = Head { key: "/core/pods/default/web", previous, change };
            let record = encode(&head, b"[]");
            assert_eq!(decode(&record).unwrap(), (head, &b"[]"[..]));
        }
    }

    #[test]
    fn a_record_renders_the_revision_into_its_hole() {
        let head = Head { key: "/a", previous: None, change: Change::Put { created: 12, hole: Some(1) } };
        let stored = stored(Position { revision: 12, index: 0 }, &head, b"[]").unwrap();
        assert_eq!(stored.entry.value.as_ref(), b"[12]");
    }
}
