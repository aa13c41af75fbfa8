//! A revisioned key-value log with watch: what the API server keeps its objects in.
//!
//! The trait is as small as etcd's, so that etcd can implement it natively: get, range, transaction with expected
//! revisions, watch from a revision, compact. A revision is the number of a committed transaction; it never repeats and
//! never goes back, also across a crash.

pub mod file;
pub mod redb;

use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;

/// The number of a committed transaction. 0 means "before the first".
pub type Revision = u64;

/// A value that may have one hole, which the store fills with the decimal revision of the write.
///
/// This is how an object is encoded once: `metadata.resourceVersion` is known only when the transaction commits, so the
/// encoder leaves a hole for it and every reader gets the finished bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    bytes: Bytes,
    hole: Option<u32>,
}

impl Document {
    /// A value without a hole.
    pub fn plain(bytes: impl Into<Bytes>) -> Self {
        Self { bytes: bytes.into(), hole: None }
    }

    /// A value into which the revision is written at byte `offset`.
    ///
    /// # Panics
    /// If `offset` lies behind the end: the caller made both.
    pub fn with_revision_at(bytes: impl Into<Bytes>, offset: usize) -> Self {
        let bytes = bytes.into();
        assert!(offset <= bytes.len(), "hole at {offset} in {} bytes", bytes.len());
        let hole = Some(u32::try_from(offset).expect("documents are far below 4 GiB"));
        Self { bytes, hole }
    }

    /// The finished bytes as of `revision`.
    pub fn render(&self, revision: Revision) -> Bytes {
        let Some(hole) = self.hole else { return self.bytes.clone() };
        let (head, tail) = self.bytes.split_at(hole as usize);
        [head, revision.to_string().as_bytes(), tail].concat().into()
    }

    /// The bytes without the revision, and where it belongs.
    pub fn parts(&self) -> (&Bytes, Option<u32>) {
        (&self.bytes, self.hole)
    }
}

/// A key with its committed value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Path-like, for example `/core/pods/default/web-1`.
    pub key: Arc<str>,
    /// The finished bytes, the revision filled in.
    pub value: Bytes,
    /// The transaction that last wrote this key.
    pub revision: Revision,
    /// The transaction that created it.
    pub created: Revision,
}

/// Keys from `start` (included) to `end` (excluded).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// First key of the range.
    pub start: String,
    /// First key behind the range.
    pub end: String,
}

impl KeyRange {
    /// All keys that begin with `prefix` (which ends in `/`).
    pub fn prefix(prefix: impl Into<String>) -> Self {
        let start = prefix.into();
        let mut end = start.clone();
        // '/' + 1 == '0': the first string behind everything below "prefix/".
        assert_eq!(end.pop(), Some('/'), "a prefix ends in '/'");
        end.push('0');
        Self { start, end }
    }

    /// Just this key.
    pub fn key(key: impl Into<String>) -> Self {
        let start = key.into();
        let end = format!("{start}\0");
        Self { start, end }
    }

    /// Whether `key` lies inside.
    pub fn contains(&self, key: &str) -> bool {
        self.start.as_str() <= key && key < self.end.as_str()
    }
}

/// What must hold of a key for a transaction to commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The key does not exist.
    Absent,
    /// The key was last written by this transaction.
    At(Revision),
}

/// One change of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Create or replace.
    Put(String, Document),
    /// Delete; watchers get the last value, rendered at the deleting revision.
    Delete(String),
}

/// Changes that commit together or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold.
    pub expect: Vec<(String, Expect)>,
    /// Applied in order. A key is written at most once.
    pub writes: Vec<Write>,
}

/// How a transaction ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Durable. Entries as written, in the order of `writes` (for a delete: the last value at this revision).
    Committed {
        /// The revision of this transaction.
        revision: Revision,
        /// What was written.
        entries: Vec<Entry>,
    },
    /// An expectation did not hold; nothing was written. The current entries of the expected keys, in their order.
    Conflict(Vec<Option<Entry>>),
}

/// A part of a range as of one revision.
#[derive(Clone, Debug)]
pub struct Page {
    /// The state that was read.
    pub revision: Revision,
    /// In key order.
    pub entries: Vec<Entry>,
    /// How many keys of the range follow behind the last entry.
    pub remaining: u64,
}

/// Something that happened to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Created (`previous` is none) or changed.
    Put {
        /// The new state.
        entry: Entry,
        /// The state before.
        previous: Option<Entry>,
    },
    /// Deleted.
    Delete {
        /// The last value, rendered at the deleting revision.
        entry: Entry,
        /// The state before, as it was last seen.
        previous: Entry,
    },
}

impl Event {
    /// The transaction that did it.
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put { entry, .. } | Self::Delete { entry, .. } => entry.revision,
        }
    }
}

/// What a watcher gets: every event of its range exactly once, in order of revision.
#[derive(Clone, Debug)]
pub enum Watched {
    /// The events of one transaction that lie in the range, never empty.
    Events(Arc<[Event]>),
    /// Nothing more has happened in the range up to this revision (for bookmarks); sent when the watcher is idle.
    Progress(Revision),
}

/// Why a request to the store failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The revision asked for is older than what is kept. Kubernetes' 410.
    #[error("revision {requested} is compacted; the oldest kept is {oldest}")]
    Compacted {
        /// What was asked for.
        requested: Revision,
        /// The oldest that can be had.
        oldest: Revision,
    },
    /// The revision asked for has not happened.
    #[error("revision {requested} is in the future; the newest is {newest}")]
    Future {
        /// What was asked for.
        requested: Revision,
        /// The newest that can be had.
        newest: Revision,
    },
    /// A watcher fell too far behind and must start again.
    #[error("the watcher fell behind")]
    Lagged,
    /// There is no room for it on the disk. Nothing of it was written; once there is room it can be asked again.
    #[error("there is no room for it on the disk")]
    Full(#[source] Arc<std::io::Error>),
    /// The engine failed; the store takes no more writes.
    #[error("the storage engine failed")]
    Engine(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The store is shutting down.
    #[error("the store is closed")]
    Closed,
}

/// A stream of what happens in a range. It ends with an error or when the store closes.
pub type Watch = Pin<Box<dyn Stream<Item = Result<Watched, Error>> + Send>>;

/// A revisioned key-value log.
#[async_trait]
pub trait Store: Send + Sync {
    /// The current entry of a key.
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error>;

    /// Up to `limit` entries of a range, as of `at` or now.
    async fn range(&self, range: &KeyRange, limit: Option<usize>, at: Option<Revision>) -> Result<Page, Error>;

    /// Commits durably, or reports the conflict. Deleting a key that does not exist is a conflict too. A transaction
    /// without writes changes nothing and is answered with the newest revision.
    ///
    /// # Panics
    /// If the transaction writes a key twice: the caller made it.
    async fn txn(&self, txn: Txn) -> Result<Outcome, Error>;

    /// Everything that happens in `range` after revision `after`.
    async fn watch(&self, range: KeyRange, after: Revision) -> Result<Watch, Error>;

    /// Forgets the events up to and including `revision`. The state as of `revision`, and everything that happened
    /// after it, can still be read; anything older answers [`Error::Compacted`]. Compacting what is compacted already
    /// is no error.
    async fn compact(&self, revision: Revision) -> Result<(), Error>;

    /// The newest committed revision.
    async fn revision(&self) -> Result<Revision, Error>;

    /// Whether it takes writes: what keeps it from that, if anything does.
    async fn health(&self) -> Result<(), Error>;

    /// Asks that every watcher be told soon how far it is: after the events it still has to get, each receives a
    /// [`Watched::Progress`] of at least the revision that is current now. Cheap enough to call per list request.
    async fn request_progress(&self) -> Result<(), Error>;
}
