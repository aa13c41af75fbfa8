//! Opening a store: its files, what they are refused for, and the state that they describe.

use std::fs::File;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::redb::backends::FileBackend;
use ::redb::{Builder, Database, ReadableDatabase, ReadableTable, StorageBackend};

use super::index::Index;
use super::journal::Journal;
use super::log::{self, Log};
use super::record::{self, CLEANED, COMPACTED, CURRENT_FORMAT, Change, EPOCH, FORMAT, LOG, META, Position, REVISION};
use crate::Revision;
use crate::file::{folder, sync_directory};

/// The log's pages are written once and read seldom (values live in the index), so a small cache does.
const CACHE_BYTES: usize = 8 << 20;
/// What every redb file begins with.
const MAGIC: &[u8] = b"redb\x1A\x0A\xA9\x0D\x0A";
/// The layout before there was a journal. Such a store is given one.
const WITHOUT_JOURNAL: u64 = 1;

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
    /// The journal cannot be read or written.
    #[error("the journal failed")]
    Journal(#[source] std::io::Error),
    /// The journal is damaged where no crash leaves it torn.
    #[error(
        "the journal is damaged at byte {at}: of what was acknowledged, something is lost there, and more lies behind it"
    )]
    Damaged {
        /// Where in the file.
        at: usize,
    },
    /// There is no journal.
    #[error(
        "{} is missing: what was written last may be in it. If it can't be had any more, an empty file of this name opens \
         the store as it was before",
        path.display()
    )]
    NoJournal {
        /// Its file.
        path: PathBuf,
    },
    /// An earlier write failed, and nobody knows what became of it.
    #[error("an earlier write of the log failed")]
    Broken,
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

/// The state that a log describes.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    pub index: Index,
    pub revision: Revision,
    pub compacted: Revision,
    pub cleaned: Revision,
}

/// Opens or creates the file, and its journal beside it. A new file appears under its name only when it is complete and
/// durable.
pub(super) fn open(path: &Path) -> Result<(Log, Recovered), OpenError> {
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
    recover(database, |may_be_made| journal_beside(path, may_be_made), path, Some(folder(path).to_owned()))
}

/// A log on something other than files.
pub(super) fn on(backend: impl StorageBackend, journal: impl StorageBackend) -> Result<(Log, Recovered), OpenError> {
    let path = Path::new("(backend)");
    let database = Builder::new().create_with_backend(backend).map_err(|error| explain(path, error))?;
    initialise(&database).map_err(|source| OpenError::Content { path: path.into(), source })?;
    recover(database, |_| Ok(Box::new(journal)), path, None)
}

/// `journal` gives the journal, which may be made or must be there.
fn recover(
    database: Database,
    journal: impl FnOnce(bool) -> Result<Box<dyn StorageBackend>, OpenError>,
    path: &Path,
    folder: Option<PathBuf>,
) -> Result<(Log, Recovered), OpenError> {
    let content = |source| OpenError::Content { path: path.into(), source };
    let format = format(&database).map_err(content)?.ok_or_else(|| OpenError::Foreign { path: path.into() })?;
    let journal = match format {
        CURRENT_FORMAT => journal(false)?,
        WITHOUT_JOURNAL => {
            // In this order: one of the current format always has it.
            let journal = journal(true)?;
            initialise(&database).map_err(content)?;
            journal
        }
        found => return Err(OpenError::Newer { path: path.into(), found, supported: CURRENT_FORMAT }),
    };
    let epoch = epoch(&database).map_err(content)?;
    let (mut journal, records) = Journal::open(journal, epoch).map_err(content)?;
    if !records.is_empty() {
        let epoch = epoch.wrapping_add(1);
        log::write(&database, &records, epoch, None).map_err(content)?;
        journal.begin(epoch);
    }
    let recovered = replay(&database).map_err(content)?;
    Ok((Log::new(database, journal, folder), recovered))
}

/// The file of the journal, made durably if there is none and it may be made.
fn journal_beside(path: &Path, may_be_made: bool) -> Result<Box<dyn StorageBackend>, OpenError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".journal");
    let beside = PathBuf::from(beside);
    let file_error = |source| OpenError::File { path: beside.clone(), source };
    let is_new = !beside.try_exists().map_err(file_error)?;
    if is_new && !may_be_made {
        return Err(OpenError::Content { path: path.into(), source: LogError::NoJournal { path: beside } });
    }
    let file = File::options().read(true).write(true).create(true).truncate(false).open(&beside);
    let file = file.map_err(file_error)?;
    if is_new {
        sync_directory(&beside).map_err(file_error)?;
    }
    // The database's lock is the store's: this file needs none.
    Ok(Box::new(FileBackend::new(file).map_err(|error| explain(&beside, error))?))
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
    // Before the store has its name: from then on a journal that is missing was there.
    drop(journal_beside(path, true)?);
    std::fs::rename(&draft, path).map_err(file_error)?;
    sync_directory(path).map_err(file_error)
}

/// Makes the tables of a store, and gives it the current layout.
fn initialise(database: &Database) -> Result<(), LogError> {
    let transaction = database.begin_write()?;
    transaction.open_table(LOG)?;
    {
        let mut meta = transaction.open_table(META)?;
        let format = meta.get(FORMAT)?.map(|value| value.value());
        if format.is_none_or(|format| format == WITHOUT_JOURNAL) {
            meta.insert(FORMAT, CURRENT_FORMAT)?;
            // By chance, so that a journal that another store left under this name is none of this one's.
            meta.insert(EPOCH, RandomState::new().build_hasher().finish())?;
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

fn epoch(database: &Database) -> Result<u64, LogError> {
    Ok(database.begin_read()?.open_table(META)?.get(EPOCH)?.map_or(0, |value| value.value()))
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
        let (head, document) = log::decode(at, value.value())?;
        match head.change {
            Change::Delete => drop(index.remove(head.key)),
            Change::Put { .. } => {
                let missing = LogError::Missing { revision, index: number };
                drop(index.insert(Arc::new(record::stored(at, &head, document).ok_or(missing)?)));
            }
        }
    }
    Ok(Recovered { index, revision: number(REVISION)?, compacted: number(COMPACTED)?, cleaned: number(CLEANED)? })
}
