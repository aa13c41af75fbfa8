//! The log on disk: committing batches, reading history, removing what is compacted.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use ::redb::{Database, Durability, ReadOnlyTable, ReadableDatabase, ReadableTable};

use super::index::Stored;
use super::journal::{Journal, Record};
use super::open::LogError;
use super::record::{self, CLEANED, COMPACTED, Change, EPOCH, Head, LOG, META, Position, REVISION};
use crate::{Entry, Error, Event, KeyRange, Revision};

/// What must be free on the disk beside what a commit writes: pages are written anew, and the file grows in strides.
const SPARE: u64 = 8 << 20;
/// How much of the disk a commit may take for each byte of its records.
const SPREAD: u64 = 4;

/// The open files.
pub(super) struct Log {
    /// What is filed. Readers hold the lock shared, closing takes it alone and so waits for them.
    database: RwLock<Option<Database>>,
    recent: Mutex<Recent>,
    /// Bytes of records in the journal that are worth a commit of the database.
    enough: usize,
    /// Where the files lie, if they are files.
    folder: Option<PathBuf>,
}

/// What is durable in the journal only.
struct Recent {
    journal: Journal,
    /// What the journal holds.
    records: Vec<Record>,
    bytes: usize,
    /// An append or a commit has failed: nobody knows what is on the disk, so nothing is added.
    broken: bool,
}

/// What one commit writes.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub records: Vec<Record>,
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
    pub(super) fn new(database: Database, journal: Journal, folder: Option<PathBuf>) -> Self {
        let recent = Recent { journal, records: Vec::new(), bytes: 0, broken: false };
        Self { database: RwLock::new(Some(database)), recent: Mutex::new(recent), enough: 0, folder }
    }

    /// Files the journal when it holds so many bytes of records.
    pub(super) fn filing_after(self, enough: usize) -> Self {
        Self { enough, ..self }
    }

    /// Writes a batch durably, all or nothing. Returns how far the log is clean, if it was asked to clean. After
    /// [`Error::Full`] the log is as it was.
    pub(super) fn commit(&self, batch: Batch) -> Result<Option<Revision>, Error> {
        self.with(|database| {
            let mut recent = self.recent();
            recent.check()?;
            let bytes: usize = batch.records.iter().map(|(_, record)| record.len()).sum();
            let file = batch.clean.is_some() || recent.bytes + bytes > self.enough;
            if file {
                self.check_room(recent.bytes + bytes)?;
            } else {
                recent.append(&batch.records)?;
            }
            recent.records.extend(batch.records);
            recent.bytes += bytes;
            if !file {
                return Ok(None);
            }
            let compaction = batch.clean.map(|(after, limit)| Compaction { until: batch.compacted, after, limit });
            recent.file(database, compaction)
        })
    }

    /// Whether the disk has room for filing so many bytes of records. The database doesn't survive the lack of it: this is
    /// asked before.
    pub(super) fn check_room(&self, bytes: usize) -> Result<(), Error> {
        let Some(folder) = &self.folder else { return Ok(()) };
        // What can't be asked may still be written.
        let Ok(disk) = nix::sys::statvfs::statvfs(folder) else { return Ok(()) };
        let free = disk.blocks_free().saturating_mul(disk.fragment_size());
        if free < SPARE + SPREAD * bytes as u64 {
            return Err(full(std::io::ErrorKind::StorageFull.into()));
        }
        Ok(())
    }

    /// Whether nothing is added any more.
    pub(super) fn is_broken(&self) -> bool {
        self.recent().broken
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        // What panics under this lock leaves files that nobody knows: nothing is to be added.
        self.recent.lock().unwrap_or_else(|poisoned| {
            let mut recent = poisoned.into_inner();
            recent.broken = true;
            recent
        })
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
            self.file_up_to(database, until)?;
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
            self.file_up_to(database, until)?;
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

    /// Closes the files once nobody reads. Everything after answers [`Error::Closed`].
    pub(super) fn close(&self) {
        if let Err(error) = self.with(|database| self.recent().tidy(database)) {
            // Nothing is lost: it is filed when the store is opened again.
            tracing::warn!(error = &error as &dyn std::error::Error, "the journal could not be filed");
        }
        drop(self.database.write().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Files the journal if it holds something of this revision or an older one, which a reader is about to look for.
    fn file_up_to(&self, database: &Database, until: Revision) -> Result<(), Error> {
        let mut recent = self.recent();
        if recent.records.first().is_some_and(|(at, _)| at.revision <= until) {
            self.check_room(recent.bytes)?;
            recent.file(database, None)?;
        }
        Ok(())
    }

    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, Error>) -> Result<T, Error> {
        // A reader's panic leaves the database as it was.
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        work(database.as_ref().ok_or(Error::Closed)?)
    }
}

/// What is to be forgotten.
pub(super) struct Compaction {
    /// The compaction revision.
    until: Revision,
    /// Superseded records up to here are gone already.
    after: Revision,
    /// Of the others, about so many are removed.
    limit: usize,
}

impl Recent {
    fn check(&self) -> Result<(), Error> {
        if self.broken { Err(LogError::Broken.into()) } else { Ok(()) }
    }

    /// Makes records durable in the journal.
    fn append(&mut self, records: &[Record]) -> Result<(), Error> {
        self.check()?;
        // Nothing of them is in the file yet.
        self.journal.make_room(records).map_err(full)?;
        // Until it is known to have worked.
        self.broken = true;
        self.journal.append(records).map_err(LogError::Journal)?;
        self.broken = false;
        Ok(())
    }

    /// Commits what is in `records` to the database, and begins the journal anew. Returns how far the log is clean, if
    /// it was asked to clean.
    fn file(&mut self, database: &Database, compaction: Option<Compaction>) -> Result<Option<Revision>, Error> {
        self.check()?;
        self.broken = true;
        let epoch = self.journal.epoch().wrapping_add(1);
        let cleaned = write(database, &self.records, epoch, compaction)?;
        self.journal.begin(epoch);
        self.records.clear();
        self.bytes = 0;
        self.broken = false;
        Ok(cleaned)
    }

    /// Leaves everything in the database and nothing in the journal.
    fn tidy(&mut self, database: &Database) -> Result<(), Error> {
        if !self.records.is_empty() {
            self.file(database, None)?;
        }
        self.check()?;
        Ok(self.journal.truncate().map_err(LogError::Journal)?)
    }
}

fn full(why: std::io::Error) -> Error {
    Error::Full(Arc::new(why))
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

pub(super) fn decode(at: Position, record: &[u8]) -> Result<(Head<'_>, &[u8]), LogError> {
    record::decode(record).map_err(|source| LogError::Record { revision: at.revision, index: at.index, source })
}

/// Commits records to the database, with the epoch of the journal that begins with it.
pub(super) fn write(
    database: &Database,
    records: &[Record],
    epoch: u64,
    compaction: Option<Compaction>,
) -> Result<Option<Revision>, LogError> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    let mut cleaned = None;
    {
        let mut log = transaction.open_table(LOG)?;
        for (at, record) in records {
            log.insert(at.key(), record.as_slice())?;
        }
        let mut meta = transaction.open_table(META)?;
        meta.insert(EPOCH, epoch)?;
        if let Some((newest, _)) = records.last() {
            meta.insert(REVISION, newest.revision)?;
        }
        if let Some(Compaction { until, after, limit }) = compaction {
            let reached = clean(&mut log, after, until, limit)?;
            meta.insert(COMPACTED, until)?;
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
