//! The one thread that writes: it gathers the transactions that wait, decides each against the state its predecessors
//! leave, commits them together with one sync, and only then shows and answers them.

use std::collections::{HashMap, VecDeque};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::index::{Index, Stored};
use super::journal::Record;
use super::log::{Batch, deletion};
use super::record::{self, Change, Head, Position};
use super::watchers::Progress;
use super::{Options, Shared};
use crate::{Entry, Error, Event, Expect, Outcome, Revision, Txn, Write};

/// Transactions per commit, at most.
const BATCH: usize = 512;
/// Document bytes per commit, about at most.
const BATCH_BYTES: usize = 8 << 20;
/// Records visited per commit when removing what compaction left; more where a commit adds more, so that it keeps up.
const CLEAN_STEP: usize = 256;
/// How long compaction rests when the disk was full. Transactions are tried as they come.
const REST: Duration = Duration::from_secs(1);
/// Into how many parts the retention is cut: history is kept this much longer than asked for, at most.
const RETENTION_PARTS: u32 = 30;

/// What the store asks of its writer.
#[derive(Debug)]
pub(super) enum Message {
    Transact(Txn, oneshot::Sender<Result<Outcome, Error>>),
    Compact(Revision, oneshot::Sender<Result<(), Error>>),
    Progress,
    Close,
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    inbox: Receiver<Message>,
    options: Options,
    cleaned: Revision,
    /// When the history up to a revision will be old enough to forget, oldest first.
    aging: VecDeque<Age>,
    /// When watchers are to be told their progress.
    progress_due: Option<Instant>,
    /// The disk was full at the last commit: until when nothing is tried unasked.
    rests_until: Option<Instant>,
}

/// The transactions of a short time.
struct Age {
    from: Instant,
    until: Instant,
    revision: Revision,
}

/// What waits to be done in one round.
#[derive(Default)]
struct Round {
    transactions: Vec<(Txn, oneshot::Sender<Result<Outcome, Error>>)>,
    bytes: usize,
    compactions: Vec<(Revision, oneshot::Sender<Result<(), Error>>)>,
    progress: bool,
    close: bool,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, inbox: Receiver<Message>, options: Options, cleaned: Revision) -> Self {
        let aging = VecDeque::new();
        let mut writer = Self { shared, inbox, options, cleaned, aging, progress_due: None, rests_until: None };
        // How old the history in the file is isn't known: as if it had happened just now.
        let (revision, compacted) = writer.revisions();
        if revision > compacted {
            writer.note_age(revision);
        }
        writer
    }

    /// Works until the store is closed or dropped, then closes the file.
    pub(super) fn run(mut self) {
        // Also when this thread panics: nobody may wait for ever.
        let _end = End(self.shared.clone());
        while let Some(round) = self.gather() {
            let close = round.close;
            self.work(round);
            if close {
                return;
            }
        }
    }

    /// Waits for something to do, then takes what else is there. None when nobody is left to ask.
    fn gather(&mut self) -> Option<Round> {
        let mut round = Round::default();
        let first = match self.next_duty() {
            None => Some(self.inbox.recv().ok()?),
            Some(at) => match self.inbox.recv_timeout(at.saturating_duration_since(Instant::now())) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return None,
            },
        };
        let mut next = first;
        while let Some(message) = next {
            match message {
                Message::Transact(transaction, reply) => {
                    round.bytes += transaction.writes.iter().map(weight).sum::<usize>();
                    round.transactions.push((transaction, reply));
                }
                Message::Compact(revision, reply) => round.compactions.push((revision, reply)),
                Message::Progress => round.progress = true,
                Message::Close => round.close = true,
            }
            if round.close || round.transactions.len() >= BATCH || round.bytes >= BATCH_BYTES {
                break;
            }
            next = self.inbox.try_recv().ok();
        }
        Some(round)
    }

    /// When something is to be done unasked. An idle store has nothing of the kind.
    fn next_duty(&self) -> Option<Instant> {
        if self.shared.failure().is_some() {
            return self.progress_due;
        }
        let (_, compacted) = self.revisions();
        let forget = if self.cleaned < compacted {
            Some(Instant::now())
        } else {
            self.aging.front().map(|age| age.until + self.options.retention)
        };
        let forget = forget.map(|due| self.rests_until.map_or(due, |rests| rests.max(due)));
        self.progress_due.into_iter().chain(forget).min()
    }

    fn work(&mut self, round: Round) {
        let now = Instant::now();
        if let Some(failure) = self.shared.failure() {
            let why = || failure.clone().into();
            refuse(why, round.transactions.into_iter().map(|(_, reply)| reply));
            refuse(why, round.compactions.into_iter().map(|(_, reply)| reply));
        } else {
            self.commit(round.transactions, round.compactions, now);
        }
        if round.progress {
            self.shared.watchers.progress(Progress::Requested);
        }
        if self.progress_due.is_some_and(|due| due <= now) {
            self.progress_due = None;
            self.shared.watchers.progress(Progress::Periodic);
        }
    }

    fn commit(
        &mut self,
        transactions: Vec<(Txn, oneshot::Sender<Result<Outcome, Error>>)>,
        compactions: Vec<(Revision, oneshot::Sender<Result<(), Error>>)>,
        now: Instant,
    ) {
        let mut plan = Plan::on(&self.shared);
        let outcomes: Vec<_> =
            transactions.into_iter().map(|(transaction, reply)| (reply, plan.decide(transaction))).collect();
        let (_, compacted) = self.revisions();
        let (forget, trim) = self.due_compaction(now, plan.revision);
        let asked = compactions.iter().map(|(revision, _)| *revision).filter(|asked| *asked <= plan.revision).max();
        let target = compacted.max(forget).max(asked.unwrap_or(0));

        let cleaning = self.cleaned < target;
        let writes = cleaning || !plan.records.is_empty();
        let mut written = Ok(None);
        if writes {
            let clean = cleaning.then_some((self.cleaned, CLEAN_STEP.max(2 * plan.records.len())));
            let records = std::mem::take(&mut plan.records);
            written = self.shared.log.commit(Batch { records, compacted: target, clean });
        }
        match written {
            Ok(cleaned) => self.cleaned = cleaned.unwrap_or(self.cleaned),
            // In both cases it is told before it is logged, which may not be possible either.
            Err(Error::Full(full)) => {
                let why = || Error::Full(full.clone());
                refuse(why, outcomes.into_iter().map(|(reply, _)| reply));
                refuse(why, compactions.into_iter().map(|(_, reply)| reply));
                if self.rests_until.replace(now + REST).is_none() {
                    tracing::error!("the disk is full: the store takes no writes until there is room again");
                }
                return;
            }
            Err(error) => {
                let failure = self.shared.fail(error);
                let why = || failure.clone().into();
                refuse(why, outcomes.into_iter().map(|(reply, _)| reply));
                refuse(why, compactions.into_iter().map(|(_, reply)| reply));
                tracing::error!(error = &failure as &dyn std::error::Error, "the store takes no more writes");
                return;
            }
        }
        self.rests_until = self.rests_until.filter(|_| !writes);
        while self.aging.front().is_some_and(|age| age.revision <= trim) {
            self.aging.pop_front();
        }

        // Durable: from here on it is so for everybody. Who has stopped waiting for an answer needs none.
        let newest = plan.revision;
        let events = plan.show(&self.shared, target, trim);
        if !events.is_empty() {
            self.note_age(newest);
            self.progress_due.get_or_insert(now + self.options.progress_interval);
            self.shared.watchers.publish(&events, newest);
        }
        for (reply, outcome) in outcomes {
            drop(reply.send(Ok(outcome)));
        }
        for (requested, reply) in compactions {
            let answer = if requested > newest { Err(Error::Future { requested, newest }) } else { Ok(()) };
            drop(reply.send(answer));
        }
    }

    /// Up to where the history is too old or too long (0: nowhere), and up to where the ring needn't keep it either.
    fn due_compaction(&self, now: Instant, newest: Revision) -> (Revision, Revision) {
        let due = self.aging.iter().take_while(|age| age.until + self.options.retention <= now);
        let old = due.last().map_or(0, |age| age.revision);
        let (_, compacted) = self.revisions();
        let limit = self.options.history_limit;
        // In portions, so that a full history isn't compacted with every commit.
        let long = if newest - compacted > limit.saturating_add(limit / 10) { newest - limit } else { 0 };
        (old.max(long), old)
    }

    fn note_age(&mut self, revision: Revision) {
        let now = Instant::now();
        let part = (self.options.retention / RETENTION_PARTS).max(Duration::from_millis(1));
        match self.aging.back_mut().filter(|age| now - age.from < part) {
            Some(age) => (age.until, age.revision) = (now, revision),
            None => self.aging.push_back(Age { from: now, until: now, revision }),
        }
    }

    fn revisions(&self) -> (Revision, Revision) {
        let committed = self.shared.committed.read().unwrap_or_else(PoisonError::into_inner);
        (committed.revision, committed.compacted)
    }
}

fn refuse<T>(why: impl Fn() -> Error, replies: impl Iterator<Item = oneshot::Sender<Result<T, Error>>>) {
    for reply in replies {
        drop(reply.send(Err(why())));
    }
}

fn weight(write: &Write) -> usize {
    match write {
        Write::Put(key, document) => key.len() + document.parts().0.len(),
        Write::Delete(key) => key.len(),
    }
}

/// A batch in the making: what it changes of the committed state, and what must be written for it.
struct Plan {
    /// The state before it. Given up before the state is changed, which then costs no copy.
    committed: Index,
    /// What the batch leaves of the keys that it writes.
    changed: HashMap<Arc<str>, Option<Arc<Stored>>>,
    revision: Revision,
    records: Vec<Record>,
    events: Vec<Arc<[Event]>>,
}

impl Plan {
    fn on(shared: &Shared) -> Self {
        let state = shared.committed.read().unwrap_or_else(PoisonError::into_inner);
        let (committed, revision) = (state.index.clone(), state.revision);
        Self { committed, changed: HashMap::new(), revision, records: Vec::new(), events: Vec::new() }
    }

    /// What the transactions before leave of a key.
    fn get(&self, key: &str) -> Option<&Arc<Stored>> {
        match self.changed.get(key) {
            Some(changed) => changed.as_ref(),
            None => self.committed.get(key),
        }
    }

    /// Decides a transaction against the state that its predecessors leave.
    fn decide(&mut self, transaction: Txn) -> Outcome {
        let holds = |(key, expect): &(String, Expect)| match (self.get(key), expect) {
            (None, Expect::Absent) => true,
            (Some(stored), Expect::At(revision)) => stored.entry.revision == *revision,
            _ => false,
        };
        let possible = |write: &Write| match write {
            Write::Put(..) => true,
            Write::Delete(key) => self.get(key).is_some(),
        };
        if !transaction.expect.iter().all(holds) || !transaction.writes.iter().all(possible) {
            let current = transaction.expect.iter().map(|(key, _)| self.get(key).map(|s| s.entry.clone()));
            return Outcome::Conflict(current.collect());
        }
        if transaction.writes.is_empty() {
            return Outcome::Committed { revision: self.revision, entries: Vec::new() };
        }
        self.revision += 1;
        let events: Arc<[Event]> =
            (0..).zip(transaction.writes).map(|(index, write)| self.apply(index, write)).collect();
        let entries = events.iter().map(|event| match event {
            Event::Put { entry, .. } | Event::Delete { entry, .. } => entry.clone(),
        });
        let entries = entries.collect();
        self.events.push(events);
        Outcome::Committed { revision: self.revision, entries }
    }

    fn apply(&mut self, index: u32, write: Write) -> Event {
        let revision = self.revision;
        let at = Position { revision, index };
        match write {
            Write::Put(key, document) => {
                let previous = self.get(&key).cloned();
                let created = previous.as_ref().map_or(revision, |previous| previous.entry.created);
                let (bytes, hole) = document.parts();
                let superseded = previous.as_deref().map(Position::of);
                let head = Head { key: &key, previous: superseded, change: Change::Put { created, hole } };
                self.records.push((at, record::encode(&head, bytes)));
                let key = previous.as_ref().map_or_else(|| Arc::from(key), |previous| previous.entry.key.clone());
                let entry = Entry { key, value: document.render(revision), revision, created };
                let stored = Arc::new(Stored { entry: entry.clone(), hole, index });
                self.changed.insert(entry.key.clone(), Some(stored));
                Event::Put { entry, previous: previous.map(|previous| previous.entry.clone()) }
            }
            Write::Delete(key) => {
                let previous: Arc<Stored> =
                    self.get(&key).expect("checked before; a transaction writes a key once").clone();
                let head = Head { key: &key, previous: Some(Position::of(&previous)), change: Change::Delete };
                self.records.push((at, record::encode(&head, &[])));
                self.changed.insert(previous.entry.key.clone(), None);
                deletion(&previous, revision)
            }
        }
    }

    /// Makes the batch the committed state. Returns its transactions' events.
    fn show(self, shared: &Shared, compacted: Revision, trim: Revision) -> Vec<Arc<[Event]>> {
        let Self { committed: before, changed, revision, events, .. } = self;
        drop(before);
        let mut outdated = Vec::with_capacity(changed.len());
        let mut committed = shared.committed.write().unwrap_or_else(PoisonError::into_inner);
        for (key, stored) in changed {
            outdated.push(match stored {
                Some(stored) => committed.index.insert(stored),
                None => committed.index.remove(&key),
            });
        }
        committed.revision = revision;
        committed.compacted = compacted;
        events.iter().for_each(|events| committed.ring.push(events.clone()));
        committed.ring.forget(trim);
        // What is freed is freed without holding up readers.
        drop(committed);
        drop(outdated);
        events
    }
}

/// Closes the store when the writer ends.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.fail(Error::Closed);
        self.0.watchers.close();
        self.0.log.close();
    }
}
