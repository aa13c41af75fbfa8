//! The embedded engine against a simple model: random transactions, reads of old states, watches from anywhere,
//! compactions and reopenings must give what a list of states would.

use std::collections::BTreeMap;
use std::path::Path;

use carob_store::redb::{Options, RedbStore};
use carob_store::{Document, Entry, Error, Event, Expect, KeyRange, Outcome, Store, Txn, Watched, Write};
use futures::StreamExt;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    /// Transactions that are sent at once, so that the writer may batch them: (key, delete?, how the expectation is
    /// made) per change.
    Together(Vec<Vec<(u8, bool, Guess)>>),
    Compact(u8),
    Reopen,
    Range {
        start: u8,
        end: u8,
        limit: Option<usize>,
        back: u8,
    },
    Watch {
        start: u8,
        end: u8,
        back: u8,
    },
}

#[derive(Clone, Copy, Debug)]
enum Guess {
    None,
    Right,
    Absent,
    Stale,
}

fn step() -> impl Strategy<Value = Step> {
    let guess =
        prop_oneof![4 => Just(Guess::None), 4 => Just(Guess::Right), 1 => Just(Guess::Absent), 1 => Just(Guess::Stale)];
    let change = (0_u8..12, prop::bool::weighted(0.3), guess);
    let transaction = prop::collection::vec(change, 1..4);
    prop_oneof![
        12 => prop::collection::vec(transaction, 1..4).prop_map(Step::Together),
        1 => (0_u8..6).prop_map(Step::Compact),
        1 => Just(Step::Reopen),
        3 => (0_u8..13, 0_u8..13, prop::option::of(0_usize..8), 0_u8..20)
            .prop_map(|(start, end, limit, back)| Step::Range { start, end, limit, back }),
        3 => (0_u8..13, 0_u8..13, 0_u8..20).prop_map(|(start, end, back)| Step::Watch { start, end, back }),
    ]
}

type State = BTreeMap<String, Entry>;

/// The state after each revision, and the events of each.
struct Model {
    states: Vec<State>,
    events: Vec<Vec<Event>>,
    compacted: u64,
}

fn key(number: u8) -> String {
    format!("/core/pods/{}/{number:02}", if number.is_multiple_of(2) { "even" } else { "odd" })
}

fn bounds(start: u8, end: u8) -> KeyRange {
    match (start, end) {
        (0, _) => KeyRange::prefix("/core/pods/even/"),
        (1, _) => KeyRange::prefix("/core/pods/"),
        (2, end) => KeyRange::key(key(end)),
        (start, end) => KeyRange { start: key(start), end: key(end) },
    }
}

fn value(key: &str, revision: u64) -> String {
    format!("{{\"key\":\"{key}\",\"rv\":\"{revision}\"}}")
}

impl Model {
    fn newest(&self) -> u64 {
        self.events.len() as u64
    }

    fn now(&self) -> &State {
        self.states.last().expect("begins with the empty state")
    }

    /// What a transaction should answer, and does to the model.
    fn apply(&mut self, txn: &Txn) -> Outcome {
        let now = self.now();
        let expected = txn.expect.iter().all(|(key, expect)| match expect {
            Expect::Absent => !now.contains_key(key),
            Expect::At(revision) => now.get(key).is_some_and(|entry| entry.revision == *revision),
        });
        let there = txn.writes.iter().all(|write| match write {
            Write::Put(..) => true,
            Write::Delete(key) => now.contains_key(key),
        });
        if !expected || !there {
            return Outcome::Conflict(txn.expect.iter().map(|(key, _)| now.get(key).cloned()).collect());
        }
        let revision = self.newest() + 1;
        let (mut state, mut events, mut entries) = (now.clone(), Vec::new(), Vec::new());
        for write in &txn.writes {
            let (Write::Put(key, _) | Write::Delete(key)) = write;
            let previous = state.remove(key);
            let created = previous.as_ref().map_or(revision, |previous| previous.created);
            let value = value(key, revision).into_bytes().into();
            let entry = Entry { key: key.as_str().into(), value, revision, created };
            entries.push(entry.clone());
            events.push(match (write, previous) {
                (Write::Put(..), previous) => {
                    state.insert(key.clone(), entry.clone());
                    Event::Put { entry, previous }
                }
                (Write::Delete(_), previous) => Event::Delete { entry, previous: previous.expect("checked above") },
            });
        }
        self.states.push(state);
        self.events.push(events);
        Outcome::Committed { revision, entries }
    }

    /// The transaction that a description means now.
    fn transaction(&self, changes: &[(u8, bool, Guess)]) -> Txn {
        let mut txn = Txn::default();
        for (number, delete, guess) in changes {
            let key = key(*number);
            if txn
                .writes
                .iter()
                .any(|write| matches!(write, Write::Put(other, _) | Write::Delete(other) if *other == key))
            {
                continue;
            }
            let current = self.now().get(&key).map(|entry| entry.revision);
            match (guess, current) {
                (Guess::None, _) => {}
                (Guess::Right, None) | (Guess::Absent, _) => txn.expect.push((key.clone(), Expect::Absent)),
                (Guess::Right, Some(revision)) => txn.expect.push((key.clone(), Expect::At(revision))),
                (Guess::Stale, current) => txn.expect.push((key.clone(), Expect::At(current.unwrap_or(1) / 2))),
            }
            txn.writes.push(if *delete {
                Write::Delete(key)
            } else {
                let text = value(&key, 0);
                let hole = text.len() - 3;
                let bytes = [&text.as_bytes()[..hole], &text.as_bytes()[hole + 1..]].concat();
                Write::Put(key, Document::with_revision_at(bytes, hole))
            });
        }
        txn
    }
}

fn small() -> Options {
    // A ring of few transactions, so that watches and reads go to the log as well.
    Options { ring_transactions: 5, ..Options::default() }
}

async fn run(steps: Vec<Step>, path: &Path) {
    let mut store = RedbStore::open(path, small()).unwrap();
    let mut model = Model { states: vec![State::default()], events: Vec::new(), compacted: 0 };
    let mut whole = store.watch(KeyRange::prefix("/"), 0).await.unwrap();
    let mut whole_at = 0;
    for step in steps {
        match step {
            Step::Together(descriptions) => {
                // Sent in order, answered in any: the writer takes them in the order in which they were sent.
                let mut answers = Vec::new();
                let mut wanted = Vec::new();
                for changes in &descriptions {
                    let txn = model.transaction(changes);
                    wanted.push(model.apply(&txn));
                    answers.push(store.txn(txn));
                }
                assert_eq!(
                    futures::future::join_all(answers).await.into_iter().map(Result::unwrap).collect::<Vec<_>>(),
                    wanted
                );
            }
            Step::Compact(back) => {
                let revision = model.newest().saturating_sub(back.into());
                store.compact(revision).await.unwrap();
                model.compacted = model.compacted.max(revision);
            }
            Step::Reopen => {
                whole_at = follow(&mut whole, &model, whole_at).await;
                store.close().await;
                assert!(whole.next().await.is_none(), "a closed store ends its watches");
                store = RedbStore::open(path, small()).unwrap();
                whole_at = whole_at.max(model.compacted);
                whole = store.watch(KeyRange::prefix("/"), whole_at).await.unwrap();
            }
            Step::Range { start, end, limit, back } => {
                let at = (back > 0).then(|| (model.newest() + 2).saturating_sub(back.into()));
                let range = bounds(start, end);
                compare_range(&store, &model, &range, limit, at).await;
            }
            Step::Watch { start, end, back } => {
                let after = (model.newest() + 1).saturating_sub(back.into());
                compare_watch(&store, &model, bounds(start, end), after).await;
            }
        }
        assert_eq!(store.revision().await.unwrap(), model.newest());
    }
    if whole_at >= model.compacted {
        follow(&mut whole, &model, whole_at).await;
    }
}

/// Reads the watch of everything up to the newest revision. It may have been compacted away under it, but only while it
/// was behind; then it starts again.
async fn follow(watch: &mut carob_store::Watch, model: &Model, mut at: u64) -> u64 {
    while at < model.newest() {
        match watch.next().await.unwrap() {
            Ok(Watched::Events(events)) => {
                at += 1;
                assert_eq!(*events, *model.events[usize::try_from(at).unwrap() - 1]);
            }
            Ok(Watched::Progress(revision)) => assert_eq!(revision, at),
            Err(Error::Compacted { requested, .. }) => {
                assert!(requested < model.compacted && requested == at);
                return model.newest();
            }
            Err(error) => panic!("{error}"),
        }
    }
    at
}

async fn compare_range(store: &RedbStore, model: &Model, range: &KeyRange, limit: Option<usize>, at: Option<u64>) {
    let revision = at.unwrap_or(model.newest());
    let got = store.range(range, limit, at).await;
    if revision > model.newest() {
        assert!(matches!(got, Err(Error::Future { .. })), "{got:?}");
    } else if revision < model.compacted {
        assert!(matches!(got, Err(Error::Compacted { oldest, .. }) if oldest == model.compacted), "{got:?}");
    } else {
        let state = &model.states[usize::try_from(revision).unwrap()];
        let all: Vec<_> = state.values().filter(|entry| range.contains(&entry.key)).cloned().collect();
        let size = limit.unwrap_or(usize::MAX).min(all.len());
        let page = got.unwrap();
        assert_eq!((page.revision, page.remaining), (revision, (all.len() - size) as u64));
        assert_eq!(page.entries, all[..size]);
    }
}

async fn compare_watch(store: &RedbStore, model: &Model, range: KeyRange, after: u64) {
    let got = store.watch(range.clone(), after).await;
    if after > model.newest() {
        assert!(matches!(got, Err(Error::Future { .. })));
        return;
    }
    if after < model.compacted {
        assert!(matches!(got, Err(Error::Compacted { oldest, .. }) if oldest == model.compacted));
        return;
    }
    let mut watch = got.unwrap();
    store.request_progress().await.unwrap();
    for events in &model.events[usize::try_from(after).unwrap()..] {
        let wanted: Vec<_> = events.iter().filter(|event| range.contains(&entry(event).key)).cloned().collect();
        if !wanted.is_empty() {
            match watch.next().await.unwrap().unwrap() {
                Watched::Events(got) => assert_eq!(*got, *wanted),
                Watched::Progress(revision) => panic!("progress {revision} before the events of {after}.."),
            }
        }
    }
    match watch.next().await.unwrap().unwrap() {
        Watched::Progress(revision) => assert_eq!(revision, model.newest()),
        Watched::Events(events) => panic!("more than happened: {events:?}"),
    }
}

fn entry(event: &Event) -> &Entry {
    let (Event::Put { entry, .. } | Event::Delete { entry, .. }) = event;
    entry
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn the_engine_equals_the_model(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let directory = tempfile::tempdir().unwrap();
        runtime.block_on(run(steps, &directory.path().join("store.redb")));
    }
}
