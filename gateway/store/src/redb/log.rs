//! The log on disk: opening, committing batches, reading history, removing what is compacted.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use ::redb::{Builder, Database, Durability, ReadOnlyTable, ReadableDatabase, ReadableTable, StorageBackend};

use super::index::{Index, Stored};
use super::record::{self, CLEANED, COMPACTED, CURRENT_FORMAT, Change, FORMAT, Head, LOG, META, Position, REVISION};
use crate::{Entry, Error, Event, KeyRange, Revision};

/// The log's pages are written once and read seldom (values live in the index), so a small cache does.
const CACHE_BYTES: usize = 8 << 20;
/// What every redb file begins with.
const MAGIC: &[u8] = b"redb\x1A\x0A\xA9\x0D\x0A";

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file or its directory cannot be read or made.
    #[error("cannot access {}", path.display())]
    File {
        /// The store's file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is something else.
    #[error("{} is not a Carob store", path.display())]
    Foreign {
        /// The store's file.
        path: PathBuf,
    },
    /// The file was written by a newer Carob.
    #[error("{} has format {found}, this version of Carob reads up to {supported}", path.display())]
    Newer {
        /// The store's file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The newest format this version knows.
        supported: u64,
    },
    /// Another process has it open.
    #[error("{} is in use by another process", path.display())]
    InUse {
        /// The store's file.
        path: PathBuf,
    },
    /// The content cannot be read.
    #[error("{} cannot be read as a store", path.display())]
    Content {
        /// The store's file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: LogError,
    },
}

/// Why the log cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The database failed.
    #[error("the database failed")]
    Database(#[source] Box<::redb::Error>),
    /// A record has bytes that no version wrote.
    #[error("record {revision}/{index} of the log cannot be decoded")]
    Record {
        /// The record's transaction.
        revision: Revision,
        /// Its number within.
        index: u32,
        /// What the decoder said.
        #[source]
        source: postcard::Error,
    },
    /// A record needs another that is not there.
    #[error("record {revision}/{index} of the log is missing or holds no value")]
    Missing {
        /// The missing record's transaction.
        revision: Revision,
        /// Its number within.
        index: u32,
    },
}

macro_rules! from_redb {
    ($($error:ty),*) => {$(
        impl From<$error> for LogError {
            fn from(error: $error) -> Self {
                Self::Database(Box::new(error.into()))
            }
        }
    )*};
}
from_redb!(
    ::redb::CommitError,
    ::redb::DatabaseError,
    ::redb::SetDurabilityError,
    ::redb::StorageError,
    ::redb::TableError,
    ::redb::TransactionError
);

/// The open file. Readers hold the lock shared, closing takes it alone and so waits for them.
pub(super) struct Log {
    database: RwLock<Option<Database>>,
}

/// The state that a log describes.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    pub index: Index,
    pub revision: Revision,
    pub compacted: Revision,
    pub cleaned: Revision,
}

/// What one commit writes.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub records: Vec<(Position, Vec<u8>)>,
    /// The newest revision with this batch.
    pub revision: Revision,
    /// The compaction revision with this batch.
    pub compacted: Revision,
    /// Remove superseded records behind this revision, and at most so many.
    pub clean: Option<(Revision, usize)>,
}

/// A part of the history, filtered by range.
#[derive(Debug)]
pub(super) struct History {
    pub transactions: Vec<Arc<[Event]>>,
    /// Everything up to here has been seen.
    pub reached: Revision,
}

impl Log {
    /// Opens or creates the file. A new file appears under its name only when it is complete and durable.
    pub(super) fn open(path: &Path) -> Result<(Self, Recovered), OpenError> {
        let file_error = |source| OpenError::File { path: path.into(), source };
        if !path.try_exists().map_err(file_error)? {
            create(path)?;
        }
        let mut magic = Vec::new();
        let file = File::open(path).map_err(file_error)?;
        file.take(MAGIC.len() as u64).read_to_end(&mut magic).map_err(file_error)?;
        if magic != MAGIC {
            return Err(OpenError::Foreign { path: path.into() });
        }
        let database = Builder::new().set_cache_size(CACHE_BYTES).open(path).map_err(|error| explain(path, error))?;
        Self::recover(database, path)
    }

    /// A log on something other than a file.
    pub(super) fn on(backend: impl StorageBackend) -> Result<(Self, Recovered), OpenError> {
        let path = Path::new("(backend)");
        let database = Builder::new().create_with_backend(backend).map_err(|error| explain(path, error))?;
        initialise(&database).map_err(|source| OpenError::Content { path: path.into(), source })?;
        Self::recover(database, path)
    }

    fn recover(database: Database, path: &Path) -> Result<(Self, Recovered), OpenError> {
        let content = |source| OpenError::Content { path: path.into(), source };
        match format(&database).map_err(content)? {
            Some(CURRENT_FORMAT) => {}
            Some(found) => return Err(OpenError::Newer { path: path.into(), found, supported: CURRENT_FORMAT }),
            None => return Err(OpenError::Foreign { path: path.into() }),
        }
        let recovered = replay(&database).map_err(content)?;
        Ok((Self { database: RwLock::new(Some(database)) }, recovered))
    }

    /// Writes a batch durably, all or nothing. Returns how far the log is clean, if it was asked to clean.
    pub(super) fn commit(&self, batch: &Batch) -> Result<Option<Revision>, Error> {
        self.with(|database| Ok(write(database, batch)?))
    }

    /// The events of `range` after `after`, up to `until`; stops between two transactions once `budget` bytes are read.
    pub(super) fn history(
        &self,
        range: &KeyRange,
        after: Revision,
        until: Revision,
        budget: usize,
    ) -> Result<History, Error> {
        self.with(|database| {
            let log = Reader::begin(database, after)?;
            let mut transactions = Vec::new();
            let mut events = Vec::new();
            let (mut reached, mut bytes) = (after, 0);
            for item in log.table.range((after + 1, 0)..=(until, u32::MAX)).map_err(LogError::from)? {
                let (key, value) = item.map_err(LogError::from)?;
                let (revision, index) = key.value();
                if revision != reached + 1 {
                    // The first record of the next transaction: the one before is complete.
                    reached = revision - 1;
                    seal(&mut events, &mut transactions);
                    if bytes >= budget {
                        return Ok(History { transactions, reached });
                    }
                }
                bytes += value.value().len();
                let at = Position { revision, index };
                let (head, document) = decode(at, value.value())?;
                if range.contains(head.key) {
                    events.push(log.event(at, &head, document)?);
                }
            }
            seal(&mut events, &mut transactions);
            Ok(History { transactions, reached: until })
        })
    }

    /// What the keys of `range` that changed between `at` and `until` were at `at`; none for those that were not.
    pub(super) fn before(
        &self,
        range: &KeyRange,
        at: Revision,
        until: Revision,
    ) -> Result<BTreeMap<Arc<str>, Option<Entry>>, Error> {
        self.with(|database| {
            let log = Reader::begin(database, at)?;
            let mut before = BTreeMap::new();
            for item in log.table.range((at + 1, 0)..=(until, u32::MAX)).map_err(LogError::from)? {
                let (key, value) = item.map_err(LogError::from)?;
                let (revision, index) = key.value();
                let (head, _) = decode(Position { revision, index }, value.value())?;
                if range.contains(head.key) && !before.contains_key(head.key) {
                    let entry = head.previous.map(|previous| log.stored(previous)).transpose()?.map(|s| s.entry);
                    before.insert(Arc::from(head.key), entry);
                }
            }
            Ok(before)
        })
    }

    /// Closes the file once nobody reads. Everything after answers [`Error::Closed`].
    pub(super) fn close(&self) {
        drop(self.database.write().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, Error>) -> Result<T, Error> {
        // A reader's panic leaves the database as it was.
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        work(database.as_ref().ok_or(Error::Closed)?)
    }
}

impl From<LogError> for Error {
    fn from(error: LogError) -> Self {
        Self::Engine(Box::new(error))
    }
}

/// A consistent view of the log.
struct Reader {
    table: ReadOnlyTable<(u64, u32), &'static [u8]>,
}

impl Reader {
    /// Fails if what happened after `after` is no longer complete in this view.
    fn begin(database: &Database, after: Revision) -> Result<Self, Error> {
        let open = || -> Result<_, LogError> {
            let view = database.begin_read()?;
            let compacted = view.open_table(META)?.get(COMPACTED)?.map_or(0, |value| value.value());
            Ok((compacted, view.open_table(LOG)?))
        };
        let (compacted, table) = open()?;
        if after < compacted {
            return Err(Error::Compacted { requested: after, oldest: compacted });
        }
        Ok(Self { table })
    }

    fn stored(&self, at: Position) -> Result<Stored, LogError> {
        let missing = LogError::Missing { revision: at.revision, index: at.index };
        let Some(value) = self.table.get(at.key())? else { return Err(missing) };
        let (head, document) = decode(at, value.value())?;
        record::stored(at, &head, document).ok_or(missing)
    }

    fn event(&self, at: Position, head: &Head<'_>, document: &[u8]) -> Result<Event, LogError> {
        let previous = head.previous.map(|previous| self.stored(previous)).transpose()?;
        if let Change::Put { .. } = head.change {
            let missing = LogError::Missing { revision: at.revision, index: at.index };
            let entry = record::stored(at, head, document).ok_or(missing)?.entry;
            return Ok(Event::Put { entry, previous: previous.map(|previous| previous.entry) });
        }
        let previous = previous.ok_or(LogError::Missing { revision: at.revision, index: at.index })?;
        Ok(deletion(&previous, at.revision))
    }
}

/// The event of deleting what was stored.
pub(super) fn deletion(previous: &Stored, revision: Revision) -> Event {
    let entry = Entry { value: previous.rendered_at(revision), revision, ..previous.entry.clone() };
    Event::Delete { entry, previous: previous.entry.clone() }
}

fn seal(events: &mut Vec<Event>, transactions: &mut Vec<Arc<[Event]>>) {
    if !events.is_empty() {
        transactions.push(std::mem::take(events).into());
    }
}

fn decode(at: Position, record: &[u8]) -> Result<(Head<'_>, &[u8]), LogError> {
    record::decode(record).map_err(|source| LogError::Record { revision: at.revision, index: at.index, source })
}

/// Makes a complete store beside `path`, then gives it the name: a crash leaves no half-made file under it.
fn create(path: &Path) -> Result<(), OpenError> {
    let file_error = |source| OpenError::File { path: path.into(), source };
    let content = |source| OpenError::Content { path: path.into(), source };
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    match std::fs::remove_file(&draft) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(file_error(error)),
        _ => {}
    }
    let database = Builder::new().create(&draft).map_err(|error| explain(path, error))?;
    initialise(&database).map_err(content)?;
    database.close().map_err(|error| content(error.into()))?;
    File::open(&draft).and_then(|file| file.sync_all()).map_err(file_error)?;
    std::fs::rename(&draft, path).map_err(file_error)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(file_error)
}

fn initialise(database: &Database) -> Result<(), LogError> {
    let transaction = database.begin_write()?;
    transaction.open_table(LOG)?;
    {
        let mut meta = transaction.open_table(META)?;
        if meta.get(FORMAT)?.is_none() {
            meta.insert(FORMAT, CURRENT_FORMAT)?;
        }
    }
    Ok(transaction.commit()?)
}

fn explain(path: &Path, error: ::redb::DatabaseError) -> OpenError {
    match error {
        ::redb::DatabaseError::DatabaseAlreadyOpen => OpenError::InUse { path: path.into() },
        error => OpenError::Content { path: path.into(), source: error.into() },
    }
}

/// The layout of a file, if it is one of ours.
fn format(database: &Database) -> Result<Option<u64>, LogError> {
    let view = database.begin_read()?;
    match view.open_table(META) {
        Ok(meta) => Ok(meta.get(FORMAT)?.map(|value| value.value())),
        Err(::redb::TableError::Storage(error)) => Err(error.into()),
        Err(_) => Ok(None),
    }
}

fn replay(database: &Database) -> Result<Recovered, LogError> {
    let view = database.begin_read()?;
    let meta = view.open_table(META)?;
    let number = |name| -> Result<u64, LogError> { Ok(meta.get(name)?.map_or(0, |value| value.value())) };
    let mut index = Index::default();
    for item in view.open_table(LOG)?.iter()? {
        let (key, value) = item?;
        let (revision, number) = key.value();
        let at = Position { revision, index: number };
        let (head, document) = decode(at, value.value())?;
        match head.change {
            Change::Delete => index.remove(head.key),
            Change::Put { .. } => {
                let missing = LogError::Missing { revision, index: number };
                index.insert(Arc::new(record::stored(at, &head, document).ok_or(missing)?));
            }
        }
    }
    Ok(Recovered { index, revision: number(REVISION)?, compacted: number(COMPACTED)?, cleaned: number(CLEANED)? })
}

fn write(database: &Database, batch: &Batch) -> Result<Option<Revision>, LogError> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    let mut cleaned = None;
    {
        let mut log = transaction.open_table(LOG)?;
        for (at, record) in &batch.records {
            log.insert(at.key(), record.as_slice())?;
        }
        let mut meta = transaction.open_table(META)?;
        meta.insert(REVISION, batch.revision)?;
        meta.insert(COMPACTED, batch.compacted)?;
        if let Some((after, limit)) = batch.clean {
            let reached = clean(&mut log, after, batch.compacted, limit)?;
            meta.insert(CLEANED, reached)?;
            cleaned = Some(reached);
        }
    }
    transaction.commit()?;
    Ok(cleaned)
}

/// Removes what the records between `after` and `until` supersede, and those of them that are deletions: nothing that
/// is still readable refers to either. Stops between two transactions after about `limit` records.
fn clean(
    log: &mut ::redb::Table<'_, (u64, u32), &[u8]>,
    after: Revision,
    until: Revision,
    limit: usize,
) -> Result<Revision, LogError> {
    let mut doomed = Vec::new();
    let mut reached = until;
    for (seen, item) in log.range((after + 1, 0)..=(until, u32::MAX))?.enumerate() {
        let (key, value) = item?;
        let (revision, index) = key.value();
        if seen >= limit && index == 0 {
            reached = revision - 1;
            break;
        }
        let at = Position { revision, index };
        let (head, _) = decode(at, value.value())?;
        doomed.extend(head.previous);
        if head.change == Change::Delete {
            doomed.push(at);
        }
    }
    for at in doomed {
        log.remove(at.key())?;
    }
    Ok(reached)
}
