//! The embedded engine: one file, one writer thread, everything current in memory.
//!
//! Design: the file is a log (`record`, `log`), whose latest part lies in a journal beside it (`journal`); memory holds the current entries (`index`) and the latest transactions
//! (`committed`); one thread writes (`writer`); watchers read the latest transactions, or the log if they are late
//! (`watchers`, `watch`). Only what is durable is ever shown: to readers, watchers or the writer's own caller.

mod committed;
mod index;
mod journal;
mod log;
mod open;
mod record;
mod watch;
mod watchers;
mod writer;

use std::collections::HashSet;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;

use self::committed::{Committed, RingLimits};
use self::log::Log;
use self::open::Recovered;
pub use self::open::{LogError, OpenError};
use self::watchers::Watchers;
use self::writer::{Message, Writer};
use crate::{Entry, Error, KeyRange, Outcome, Page, Revision, Store, Txn, Watch, Write};

/// Entries that are read while the writer waits.
const SMALL_PAGE: usize = 64;

/// How much history a store keeps, and how often it tells watchers where it is.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long history is kept. Default: 5 minutes, as kube-apiserver does with etcd.
    pub retention: Duration,
    /// How many transactions of history are kept at most (a tenth more for a while). Default: 100,000.
    pub history_limit: u64,
    /// How many transactions are kept in memory at most. Default: 4,096.
    pub ring_transactions: usize,
    /// How many bytes of them. Default: 8 MiB.
    pub ring_bytes: usize,
    /// How many bytes of records lie in the journal before they are filed in the database. Default: 1 MiB.
    pub journal_bytes: usize,
    /// How soon after a commit the watchers it didn't concern are told that they missed nothing. Default: 5 s.
    pub progress_interval: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            retention: Duration::from_secs(5 * 60),
            history_limit: 100_000,
            ring_transactions: 4096,
            ring_bytes: 8 << 20,
            journal_bytes: 1 << 20,
            progress_interval: Duration::from_secs(5),
        }
    }
}

/// A store in one file. Clones are handles of the same store; the last one closes it.
#[derive(Clone)]
pub struct RedbStore {
    handle: Arc<Handle>,
}

/// What everything in the engine shares.
struct Shared {
    log: Log,
    committed: RwLock<Committed>,
    watchers: Watchers,
    /// Why no more writes are taken, once that is so.
    failure: tokio::sync::watch::Sender<Option<Failure>>,
}

/// Why the engine stopped taking writes; every later write is told the same.
#[derive(Clone, Debug, thiserror::Error)]
#[error("an earlier write failed")]
struct Failure(#[source] Arc<Error>);

struct Handle {
    shared: Arc<Shared>,
    inbox: Sender<Message>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl RedbStore {
    /// Opens the store in the file `path`, or creates it; its directory must exist. Reads the whole file, and the journal
    /// beside it (`path` with `.journal` behind), which holds nothing after an orderly end.
    ///
    /// # Errors
    /// [`Error::Engine`] with an [`OpenError`].
    pub fn open(path: impl AsRef<Path>, options: Options) -> Result<Self, Error> {
        Self::start(open::open(path.as_ref()), options)
    }

    /// Opens a store on something other than files: one device for what is filed, one for the journal.
    ///
    /// # Errors
    /// [`Error::Engine`] with an [`OpenError`].
    pub fn open_on(
        backend: impl ::redb::StorageBackend,
        journal: impl ::redb::StorageBackend,
        options: Options,
    ) -> Result<Self, Error> {
        Self::start(open::on(backend, journal), options)
    }

    fn start(opened: Result<(Log, Recovered), OpenError>, options: Options) -> Result<Self, Error> {
        let (log, recovered) = opened.map_err(|error| Error::Engine(Box::new(error)))?;
        let limits = RingLimits { transactions: options.ring_transactions, bytes: options.ring_bytes };
        let cleaned = recovered.cleaned;
        let log = log.filing_after(options.journal_bytes);
        let shared = Arc::new(Shared {
            log,
            watchers: Watchers::new(recovered.revision),
            committed: RwLock::new(Committed::new(recovered, limits)),
            failure: tokio::sync::watch::Sender::default(),
        });
        let (inbox, messages) = std::sync::mpsc::channel();
        let writer = Writer::new(shared.clone(), messages, options, cleaned);
        let thread = std::thread::Builder::new().name("store-writer".into()).spawn(move || writer.run());
        let writer = Mutex::new(Some(thread.map_err(|error| Error::Engine(Box::new(error)))?));
        Ok(Self { handle: Arc::new(Handle { shared, inbox, writer }) })
    }

    /// Finishes the writes asked for before, closes the file and ends the watches. Everything after answers
    /// [`Error::Closed`]. When this returns, the file can be opened again.
    pub async fn close(&self) {
        let handle = self.handle.clone();
        // A runtime that is ending runs nothing more; then the drop of the last handle closes.
        let _ = tokio::task::spawn_blocking(move || handle.close()).await;
    }

    /// Waits until the store takes no more writes for good, and gives why: its engine failed, the writer has panicked, or
    /// it was closed. Nobody knows then what of the last write is on the disk; who opens the store again learns it.
    pub async fn failed(&self) -> Error {
        let mut failure = self.shared().failure.subscribe();
        let failed = failure.wait_for(Option::is_some).await.ok().and_then(|failure| failure.clone());
        failed.map_or(Error::Closed, Error::from)
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    async fn ask<T>(&self, message: Message, answer: oneshot::Receiver<Result<T, Error>>) -> Result<T, Error> {
        self.handle.inbox.send(message).map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }
}

impl Handle {
    fn close(&self) {
        // Held while waiting, so that a second caller returns only when it is done too.
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = writer.take() {
            // Fails only if the writer has ended, which is what is wanted; its panic was reported when it happened.
            let _ = self.inbox.send(Message::Close);
            let _ = thread.join();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn failure(&self) -> Option<Failure> {
        self.failure.borrow().clone()
    }

    /// From here on no writes are taken. Gives what is answered to all: the first failure.
    fn fail(&self, error: Error) -> Failure {
        let failure = Failure(Arc::new(error));
        self.failure.send_if_modified(|known| known.is_none() && known.replace(failure.clone()).is_none());
        self.failure().unwrap_or(failure)
    }

    /// Asks the log something. Where that breaks it, nobody has to write to learn of it.
    fn ask_log<T>(&self, ask: impl FnOnce(&Log) -> Result<T, Error>) -> Result<T, Error> {
        let answer = ask(&self.log);
        if answer.is_err() && self.log.is_broken() {
            self.fail(LogError::Broken.into());
        }
        answer
    }

    /// The state, unless the store is closed. Readers' panics cannot harm it: only the writer changes it.
    fn committed(&self) -> Result<std::sync::RwLockReadGuard<'_, Committed>, Error> {
        if self.watchers.closed() {
            return Err(Error::Closed);
        }
        Ok(self.committed.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::Engine(Box::new(failure))
    }
}

#[async_trait]
impl Store for RedbStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        Ok(self.shared().committed()?.index.get(key).map(|stored| stored.entry.clone()))
    }

    async fn range(&self, range: &KeyRange, limit: Option<usize>, at: Option<Revision>) -> Result<Page, Error> {
        let (index, newest, at, recent) = {
            let committed = self.shared().committed()?;
            let newest = committed.revision;
            let at = at.unwrap_or(newest);
            check(at, committed.compacted, newest)?;
            // Without a snapshot, which would make the writer copy what it changes.
            if at == newest && limit.unwrap_or(usize::MAX).min(committed.index.count(range)) <= SMALL_PAGE {
                return Ok(committed::page(&committed.index, range, limit, at));
            }
            let recent = committed.ring.after(at).map(|transactions| committed::before(range, transactions));
            (committed.index.clone(), newest, at, recent)
        };
        let before = match recent {
            _ if at == newest => return Ok(committed::page(&index, range, limit, at)),
            Some(before) => before,
            None => {
                let (shared, range) = (self.shared().clone(), range.clone());
                let read = tokio::task::spawn_blocking(move || shared.ask_log(|log| log.before(&range, at, newest)));
                read.await.map_err(|_| Error::Closed)??
            }
        };
        Ok(committed::former_page(&index, &before, range, limit, at))
    }

    async fn txn(&self, txn: Txn) -> Result<Outcome, Error> {
        let mut keys = HashSet::new();
        for write in txn.writes.iter().filter(|_| txn.writes.len() > 1) {
            let (Write::Put(key, _) | Write::Delete(key)) = write;
            assert!(keys.insert(key.as_str()), "a transaction writes {key} twice");
        }
        drop(keys);
        let (reply, answer) = oneshot::channel();
        self.ask(Message::Transact(txn, reply), answer).await
    }

    async fn watch(&self, range: KeyRange, after: Revision) -> Result<Watch, Error> {
        {
            let committed = self.shared().committed()?;
            check(after, committed.compacted, committed.revision)?;
        }
        Ok(watch::watch(self.shared().clone(), range, after))
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.ask(Message::Compact(revision, reply), answer).await
    }

    async fn revision(&self) -> Result<Revision, Error> {
        Ok(self.shared().committed()?.revision)
    }

    async fn health(&self) -> Result<(), Error> {
        drop(self.shared().committed()?);
        match self.shared().failure() {
            Some(failure) => Err(failure.into()),
            None => self.shared().log.check_room(0),
        }
    }

    async fn request_progress(&self) -> Result<(), Error> {
        // Through the writer, behind whatever it has answered.
        self.handle.inbox.send(Message::Progress).map_err(|_| Error::Closed)
    }
}

fn check(requested: Revision, oldest: Revision, newest: Revision) -> Result<(), Error> {
    if requested < oldest {
        return Err(Error::Compacted { requested, oldest });
    }
    if requested > newest {
        return Err(Error::Future { requested, newest });
    }
    Ok(())
}
