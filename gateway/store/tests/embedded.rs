//! What the embedded engine promises beyond the model: files it refuses, batches, late watchers, retention, closing.

use std::error::Error as _;
use std::path::Path;
use std::time::Duration;

use carob_store::redb::{LogError, OpenError, Options, RedbStore};
use carob_store::{Document, Entry, Error, Expect, KeyRange, Outcome, Revision, Store, Txn, Watch, Watched, Write};
use futures::StreamExt;
use redb::{Database, ReadableDatabase, ReadableTableMetadata, TableDefinition};

fn put(key: &str, value: &str) -> Txn {
    Txn { expect: Vec::new(), writes: vec![Write::Put(key.into(), Document::plain(value.to_owned()))] }
}

async fn commit(store: &RedbStore, txn: Txn) -> Revision {
    match store.txn(txn).await.unwrap() {
        Outcome::Committed { revision, .. } => revision,
        Outcome::Conflict(current) => panic!("conflict with {current:?}"),
    }
}

/// The revisions of the next events of a watch.
async fn revisions(watch: &mut Watch, count: usize) -> Vec<Revision> {
    let mut revisions = Vec::new();
    while revisions.len() < count {
        match watch.next().await.unwrap().unwrap() {
            Watched::Events(events) => revisions.push(events[0].revision()),
            Watched::Progress(_) => {}
        }
    }
    revisions
}

fn refusal(path: &Path) -> OpenError {
    match RedbStore::open(path, Options::default()).map(|_| ()) {
        Err(Error::Engine(reason)) => *reason.downcast().unwrap(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_file_that_is_not_a_store_or_of_a_newer_one_is_refused_and_untouched() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    for foreign in ["", "something else altogether"] {
        std::fs::write(&path, foreign).unwrap();
        assert!(matches!(refusal(&path), OpenError::Foreign { .. }));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), foreign);
    }
    std::fs::remove_file(&path).unwrap();
    // A database of another program.
    drop(Database::create(&path).unwrap());
    assert!(matches!(refusal(&path), OpenError::Foreign { .. }));
    std::fs::remove_file(&path).unwrap();

    RedbStore::open(&path, Options::default()).unwrap().close().await;
    let database = Database::open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    let meta: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
    transaction.open_table(meta).unwrap().insert("format", 3).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let newer = refusal(&path);
    assert!(matches!(newer, OpenError::Newer { found: 3, supported: 2, .. }));
    assert!(newer.to_string().ends_with("has format 3, this version of Carob reads up to 2"), "{newer}");

    let missing = refusal(&directory.path().join("missing/store.redb"));
    assert!(missing.source().is_some(), "{missing}");
}

#[tokio::test]
async fn a_store_from_before_there_was_a_journal_is_given_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let store = RedbStore::open(&path, Options::default()).unwrap();
    commit(&store, put("/a", "1")).await;
    store.close().await;
    let journal = directory.path().join("store.redb.journal");
    assert_eq!(std::fs::metadata(&journal).unwrap().len(), 0, "after an orderly end everything is in the database");
    std::fs::remove_file(&journal).unwrap();
    let database = Database::open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut meta = transaction.open_table(TableDefinition::<&str, u64>::new("meta")).unwrap();
        meta.insert("format", 1).unwrap();
        meta.remove("epoch").unwrap();
    }
    transaction.commit().unwrap();
    drop(database);
    for revision in 2..4 {
        let store = RedbStore::open(&path, Options::default()).unwrap();
        assert_eq!(commit(&store, put("/a", "2")).await, revision);
        store.close().await;
    }
}

#[tokio::test]
async fn a_store_whose_journal_is_missing_or_damaged_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (path, left) = (directory.path().join("store.redb"), directory.path().join("left.redb"));
    let store = RedbStore::open(&path, Options::default()).unwrap();
    for value in ["1", "2", "3"] {
        commit(&store, put("/a", value)).await;
    }
    // As after a crash: what was committed is in the journal alone.
    std::fs::copy(&path, &left).unwrap();
    let refused = || match refusal(&left) {
        OpenError::Content { source, .. } => source,
        other => panic!("{other:?}"),
    };
    let journal = directory.path().join("left.redb.journal");
    let missing = refused();
    assert!(matches!(missing, LogError::NoJournal { .. }), "{missing:?}");
    assert!(missing.to_string().contains("left.redb.journal is missing"), "{missing}");
    assert!(!journal.exists(), "what is refused is left alone");

    let content = std::fs::read(directory.path().join("store.redb.journal")).unwrap();
    let mut damaged = content.clone();
    damaged[20] ^= 1;
    std::fs::write(&journal, damaged).unwrap();
    assert!(matches!(refused(), LogError::Damaged { at: 0 }));
    std::fs::write(&journal, content).unwrap();
    assert_eq!(RedbStore::open(&left, Options::default()).unwrap().revision().await.unwrap(), 3);
}

#[tokio::test]
async fn another_stores_journal_is_none_of_ours() {
    let directory = tempfile::tempdir().unwrap();
    let (one, other) = (directory.path().join("one.redb"), directory.path().join("other.redb"));
    let store = RedbStore::open(&one, Options::default()).unwrap();
    commit(&store, put("/a", "1")).await;
    // As after a crash: what was committed is in the journal alone.
    let left = std::fs::read(directory.path().join("one.redb.journal")).unwrap();
    assert!(left.windows(2).any(|bytes| bytes == b"/a"));
    std::fs::write(directory.path().join("other.redb.journal"), left).unwrap();
    let other = RedbStore::open(&other, Options::default()).unwrap();
    assert_eq!(other.revision().await.unwrap(), 0);
}

#[tokio::test]
async fn a_store_that_is_open_cannot_be_opened_again_until_it_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let store = RedbStore::open(&path, Options::default()).unwrap();
    assert!(matches!(refusal(&path), OpenError::InUse { .. }));
    assert_eq!(commit(&store, put("/a", "1")).await, 1);
    let mut watch = store.watch(KeyRange::prefix("/"), 0).await.unwrap();
    drop(store);
    assert_eq!(revisions(&mut watch, 1).await, [1], "what is in memory is still given out");
    assert!(watch.next().await.is_none());
    let store = RedbStore::open(&path, Options::default()).unwrap();
    assert_eq!(store.revision().await.unwrap(), 1);
    let clone = store.clone();
    store.close().await;
    assert!(matches!(clone.get("/a").await, Err(Error::Closed)));
    assert!(matches!(clone.txn(put("/a", "2")).await, Err(Error::Closed)));
    assert!(matches!(clone.watch(KeyRange::prefix("/"), 1).await, Err(Error::Closed)));
    assert!(matches!(clone.request_progress().await, Err(Error::Closed)));
}

#[tokio::test]
async fn a_draft_left_by_a_crash_during_creation_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("store.redb.new"), "half a st").unwrap();
    let store = RedbStore::open(directory.path().join("store.redb"), Options::default()).unwrap();
    assert_eq!(commit(&store, put("/a", "1")).await, 1);
    assert!(!directory.path().join("store.redb.new").exists());
}

#[tokio::test]
async fn of_concurrent_creations_of_one_key_exactly_one_commits() {
    let directory = tempfile::tempdir().unwrap();
    let store = RedbStore::open(directory.path().join("store.redb"), Options::default()).unwrap();
    let create = |number: usize| Txn { expect: vec![("/a".into(), Expect::Absent)], ..put("/a", &number.to_string()) };
    let outcomes = futures::future::join_all((0..50).map(|number| store.txn(create(number)))).await;
    let (mut committed, mut conflicts) = (Vec::new(), Vec::new());
    for outcome in outcomes {
        match outcome.unwrap() {
            Outcome::Committed { revision, entries } => committed.push((revision, entries)),
            Outcome::Conflict(current) => conflicts.push(current),
        }
    }
    let winner: Entry = store.get("/a").await.unwrap().unwrap();
    assert_eq!(committed, [(1, vec![winner.clone()])]);
    assert_eq!(conflicts, vec![vec![Some(winner)]; 49]);
    assert_eq!(store.revision().await.unwrap(), 1, "conflicts take no revision");
}

#[tokio::test]
async fn deleting_what_is_absent_conflicts_and_an_empty_transaction_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = RedbStore::open(directory.path().join("store.redb"), Options::default()).unwrap();
    commit(&store, put("/a", "1")).await;
    let txn = Txn {
        expect: vec![("/a".into(), Expect::At(1))],
        writes: vec![Write::Put("/a".into(), Document::plain("2")), Write::Delete("/b".into())],
    };
    let Outcome::Conflict(current) = store.txn(txn).await.unwrap() else { panic!("committed") };
    assert_eq!(current[0].as_ref().unwrap().value, "1");
    assert_eq!(store.get("/a").await.unwrap().unwrap().revision, 1, "nothing of it was written");
    let nothing = store.txn(Txn::default()).await.unwrap();
    assert_eq!(nothing, Outcome::Committed { revision: 1, entries: Vec::new() });
}

#[tokio::test]
#[should_panic(expected = "a transaction writes /a twice")]
async fn writing_a_key_twice_is_the_callers_bug() {
    let directory = tempfile::tempdir().unwrap();
    let store = RedbStore::open(directory.path().join("store.redb"), Options::default()).unwrap();
    let writes = [put("/a", "1").writes, put("/a", "2").writes].concat();
    let _ = store.txn(Txn { expect: Vec::new(), writes }).await;
}

#[tokio::test]
async fn a_late_watcher_goes_on_from_the_log_and_ends_only_where_that_is_compacted() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options { ring_transactions: 8, ..Options::default() };
    let store = RedbStore::open(directory.path().join("store.redb"), options).unwrap();
    let mut late = store.watch(KeyRange::prefix("/a/"), 0).await.unwrap();
    let mut too_late = store.watch(KeyRange::prefix("/a/"), 0).await.unwrap();
    let mut elsewhere = store.watch(KeyRange::prefix("/b/"), 0).await.unwrap();
    for number in 0..100 {
        commit(&store, put("/a/x", &number.to_string())).await;
    }
    assert_eq!(revisions(&mut late, 100).await, (1..=100).collect::<Vec<_>>());
    store.compact(60).await.unwrap();
    match too_late.next().await.unwrap() {
        Err(Error::Compacted { requested: 0, oldest: 60 }) => {}
        other => panic!("{other:?}"),
    }
    assert!(too_late.next().await.is_none(), "an error ends a watch");
    // One whose range was quiet has missed nothing, wherever it stood.
    let revision = commit(&store, put("/b/x", "1")).await;
    assert_eq!(revisions(&mut elsewhere, 1).await, [revision]);
    assert!(matches!(store.compact(102).await, Err(Error::Future { requested: 102, newest: 101 })));
}

#[tokio::test]
async fn a_watcher_far_behind_gets_all_of_what_memory_has_before_it_is_told_its_progress() {
    let directory = tempfile::tempdir().unwrap();
    let store = RedbStore::open(directory.path().join("store.redb"), Options::default()).unwrap();
    let mut idle = store.watch(KeyRange::prefix("/a/"), 0).await.unwrap();
    let keys = (0..1000).map(|number| format!("/a/{number}"));
    futures::future::join_all(keys.map(|key| store.txn(put(&key, "1"))).collect::<Vec<_>>()).await;
    store.request_progress().await.unwrap();
    for watch in [&mut idle, &mut store.watch(KeyRange::prefix("/a/"), 10).await.unwrap()] {
        store.request_progress().await.unwrap();
        let mut seen = Vec::new();
        let told = loop {
            match watch.next().await.unwrap().unwrap() {
                Watched::Events(events) => seen.push(events[0].revision()),
                Watched::Progress(revision) => break revision,
            }
        };
        assert_eq!(told, 1000);
        assert!(seen.iter().copied().eq(1001 - seen.len() as u64..=1000), "{seen:?}");
        assert!(seen.len() >= 990);
    }
}

#[tokio::test]
async fn watchers_that_were_not_concerned_are_told_their_progress_unasked() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options { progress_interval: Duration::from_millis(20), ..Options::default() };
    let store = RedbStore::open(directory.path().join("store.redb"), options).unwrap();
    let mut watch = store.watch(KeyRange::prefix("/b/"), 0).await.unwrap();
    commit(&store, put("/a/x", "1")).await;
    assert!(matches!(watch.next().await.unwrap().unwrap(), Watched::Progress(1)));
    // Nothing happened since, so only who asks is told again.
    store.request_progress().await.unwrap();
    assert!(matches!(watch.next().await.unwrap().unwrap(), Watched::Progress(1)));
}

/// Waits until the oldest state that can be read is `oldest`.
async fn compacted_to(store: &RedbStore, oldest: Revision) {
    let everything = KeyRange::prefix("/");
    while store.range(&everything, Some(1), Some(oldest - 1)).await.is_ok() {
        tokio::task::yield_now().await;
    }
    store.range(&everything, Some(1), Some(oldest)).await.unwrap();
}

#[tokio::test]
async fn history_is_forgotten_when_it_is_old_also_that_of_the_last_run() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let options = Options { retention: Duration::from_millis(50), ..Options::default() };
    let store = RedbStore::open(&path, options.clone()).unwrap();
    for number in 0..10 {
        commit(&store, put("/a", &number.to_string())).await;
    }
    compacted_to(&store, 10).await;
    store.close().await;

    let store = RedbStore::open(&path, Options::default()).unwrap();
    commit(&store, put("/a", "10")).await;
    store.close().await;
    let store = RedbStore::open(&path, options).unwrap();
    compacted_to(&store, 11).await;
    assert_eq!(store.get("/a").await.unwrap().unwrap().value, "10");
}

#[tokio::test]
async fn a_long_history_is_cut_so_the_file_stays_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let options = Options { history_limit: 100, ..Options::default() };
    let store = RedbStore::open(&path, options).unwrap();
    let text = "x".repeat(4000);
    for number in 0..1000 {
        let key = format!("/a/{}", number % 7);
        commit(&store, put(&key, &text)).await;
        // A key that comes and goes leaves nothing behind.
        if number % 10 == 0 {
            commit(&store, put("/b", &text)).await;
            commit(&store, Txn { expect: Vec::new(), writes: vec![Write::Delete("/b".into())] }).await;
        }
    }
    let revision = store.revision().await.unwrap();
    assert!(matches!(store.watch(KeyRange::prefix("/"), revision - 111).await, Err(Error::Compacted { .. })));
    assert!(store.watch(KeyRange::prefix("/"), revision - 100).await.is_ok());
    store.compact(revision).await.unwrap();
    store.close().await;
    let size = std::fs::metadata(&path).unwrap().len();
    assert!(size < 6 << 20, "{size} bytes for a history of 110 documents of 4 KB out of 1100");

    // What was left to be removed when the store closed is removed later; in the end the log has only living keys.
    let store = RedbStore::open(&path, Options::default()).unwrap();
    let page = store.range(&KeyRange::prefix("/"), None, None).await.unwrap();
    assert_eq!((page.entries.len(), page.revision), (7, revision));
    store.close().await;
    let mut left = records(&path);
    for _ in 0..20 {
        let store = RedbStore::open(&path, Options::default()).unwrap();
        store.compact(revision).await.unwrap();
        store.close().await;
        left = records(&path);
    }
    assert_eq!(left, 7);
}

#[tokio::test]
async fn what_is_forgotten_is_removed_as_fast_as_it_is_added() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let options = Options { history_limit: 2, ..Options::default() };
    let store = RedbStore::open(&path, options).unwrap();
    for number in 0..20 {
        let writes = (0..1000).flat_map(|key| put(&format!("/a/{key}"), &number.to_string()).writes);
        commit(&store, Txn { expect: Vec::new(), writes: writes.collect() }).await;
    }
    store.close().await;
    let left = records(&path);
    assert!(left <= 4000, "{left} records of a thousand keys and a history of two transactions");
}

/// How many records a closed store's log has.
fn records(path: &Path) -> u64 {
    let database = Database::open(path).unwrap();
    let log: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("log");
    database.begin_read().unwrap().open_table(log).unwrap().len().unwrap()
}
