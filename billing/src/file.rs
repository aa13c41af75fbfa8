//! The ledger's file, which is opened anew after its disk has failed: redb does nothing more with one that has.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Instant;

use redb::{Database, Error};

/// Opens the file again.
type Open = Box<dyn Fn() -> Result<Database, Error> + Send + Sync>;

/// So many times as long as opening it took, the file is left alone before it is opened again: all of it may have to be read
/// for that.
const REST: u32 = 9;

pub(crate) struct File {
    open: Open,
    /// Who uses it holds the lock shared.
    state: RwLock<State>,
    /// What is open is of no use any more.
    failed: AtomicBool,
}

struct State {
    /// None while it can't be opened.
    database: Option<Database>,
    /// It isn't opened again before.
    again: Instant,
}

impl File {
    /// The file that `create` opens or makes, and `open` opens once it is there.
    pub(crate) fn new(
        create: impl FnOnce() -> Result<Database, Error>,
        open: impl Fn() -> Result<Database, Error> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let state = State { database: Some(create()?), again: Instant::now() };
        Ok(Self { open: Box::new(open), state: RwLock::new(state), failed: AtomicBool::new(false) })
    }

    /// Works with the database. What isn't committed after an error never happened; what was being committed may have.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, Error>) -> Result<T, Error> {
        if self.failed.load(Ordering::Acquire) {
            self.reopen()?;
        }
        // A panic of another user's leaves the database as it was.
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let outcome = work(state.database.as_ref().ok_or(Error::PreviousIo)?);
        if let Err(Error::Io(_) | Error::PreviousIo | Error::LockPoisoned(_) | Error::DatabaseClosed) = outcome {
            self.failed.store(true, Ordering::Release);
        }
        outcome
    }

    fn reopen(&self) -> Result<(), Error> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if !self.failed.load(Ordering::Acquire) {
            // Somebody else was quicker.
            return Ok(());
        }
        let begun = Instant::now();
        if begun < state.again {
            return Err(Error::PreviousIo);
        }
        // It holds a lock on the file.
        state.database = None;
        let opened = (self.open)();
        state.again = Instant::now() + begun.elapsed() * REST;
        state.database = Some(opened?);
        self.failed.store(false, Ordering::Release);
        tracing::warn!("the ledger was opened anew after its storage had failed");
        Ok(())
    }
}
