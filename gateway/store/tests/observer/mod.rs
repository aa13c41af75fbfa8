//! Clients and watchers of a store that put down what they observe as facts of a history.

use std::collections::BTreeMap;

use carob_store::{Document, Error, Event, Expect, KeyRange, Outcome, Revision, Store, Txn, Watched, Write};
use futures::StreamExt;

use crate::history::{Change, Fact, State};

/// A small generator, so that a seed tells a whole run.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below `limit`.
    pub fn roll(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }

    pub fn size(&mut self, limit: u32) -> usize {
        usize::try_from(self.roll(limit.into())).expect("a 32-bit number is a size")
    }
}

/// A document that tells which transaction wrote it and at which revision, of about `size` bytes.
fn document(token: &str, size: usize) -> (Document, String) {
    let text = format!("{{\"rv\":\"\",\"token\":\"{token}\",\"filler\":\"{}\"}}", "x".repeat(size));
    let shortened = format!("{token}+{size}");
    (Document::with_revision_at(text, 7), shortened)
}

/// What `document` was made from, after checking that the bytes are whole and carry their revision.
fn shorten(bytes: &[u8], revision: Revision) -> String {
    let text = std::str::from_utf8(bytes).expect("written as text");
    let parts: Vec<&str> = text.split('"').collect();
    let [_, "rv", _, rv, _, "token", _, token, _, "filler", _, filler, "}"] = parts[..] else { panic!("torn: {text}") };
    assert_eq!(rv, revision.to_string(), "the revision in the document");
    assert!(filler.bytes().all(|byte| byte == b'x'), "torn: {text}");
    format!("{token}+{}", filler.len())
}

pub fn change(event: &Event) -> Change {
    match event {
        Event::Put { entry, .. } => {
            Change::Put { key: entry.key.to_string(), value: shorten(&entry.value, entry.revision) }
        }
        Event::Delete { entry, previous } => {
            assert_eq!(shorten(&entry.value, entry.revision), shorten(&previous.value, previous.revision));
            Change::Delete { key: entry.key.to_string() }
        }
    }
}

/// One random transaction on a few contended keys. Every transaction writes the client's own key, so that its changes
/// are unique to it.
pub async fn transact(
    store: &impl Store,
    client: &str,
    token: &str,
    dice: &mut Dice,
    record: &mut impl FnMut(Fact),
) -> Result<(), Error> {
    let (own, value) = document(token, dice.size(200));
    let own_key = format!("/clients/{client}");
    let mut txn = Txn { expect: Vec::new(), writes: vec![Write::Put(own_key.clone(), own)] };
    let mut changes = vec![Change::Put { key: own_key, value }];
    for _ in 0..dice.roll(3) {
        let key = format!("/core/things/{}", dice.roll(20));
        if changes.iter().any(
            |change| matches!(change, Change::Put { key: other, .. } | Change::Delete { key: other } if *other == key),
        ) {
            continue;
        }
        let current = store.get(&key).await?;
        txn.expect.push((key.clone(), current.as_ref().map_or(Expect::Absent, |entry| Expect::At(entry.revision))));
        if current.is_some() && dice.roll(3) == 0 {
            changes.push(Change::Delete { key: key.clone() });
            txn.writes.push(Write::Delete(key));
        } else {
            let (document, value) = document(token, dice.size(5000));
            changes.push(Change::Put { key: key.clone(), value });
            txn.writes.push(Write::Put(key, document));
        }
    }
    record(Fact::Asked { token: token.into(), changes });
    match store.txn(txn).await? {
        Outcome::Committed { revision, entries } => {
            assert!(entries.iter().all(|entry| entry.revision == revision));
            record(Fact::Acknowledged { token: token.into(), revision });
        }
        Outcome::Conflict(_) => record(Fact::Refused { token: token.into() }),
    }
    Ok(())
}

/// Watches everything behind `after` until the store closes; `item` runs after each fact is put down.
pub async fn observe<F: Future<Output = ()>>(
    store: &impl Store,
    name: &str,
    after: Revision,
    mut record: impl FnMut(Fact),
    mut item: impl FnMut() -> F,
) -> Result<(), Error> {
    let mut watch = store.watch(KeyRange::prefix("/"), after).await?;
    record(Fact::Watching { watcher: name.into(), after });
    while let Some(watched) = watch.next().await {
        record(fact(name, &watched?));
        item().await;
    }
    Ok(())
}

fn fact(name: &str, item: &Watched) -> Fact {
    let watcher = name.into();
    match item {
        Watched::Progress(revision) => Fact::Progress { watcher, revision: *revision },
        Watched::Events(events) => {
            let revision = events.first().expect("never empty").revision();
            assert!(events.iter().all(|event| event.revision() == revision), "one transaction");
            Fact::Saw { watcher, revision, changes: events.iter().map(change).collect() }
        }
    }
}

/// Adds to `log` what has happened in the store since, and returns the state it shows now.
pub async fn inspect(store: &impl Store, log: &mut BTreeMap<u64, Vec<Change>>) -> State {
    let after = log.last_key_value().map_or(0, |(revision, _)| *revision);
    let page = store.range(&KeyRange::prefix("/"), None, None).await.unwrap();
    let mut watch = store.watch(KeyRange::prefix("/"), after).await.unwrap();
    let mut reached = after;
    while reached < page.revision {
        let Watched::Events(events) = watch.next().await.unwrap().unwrap() else { continue };
        reached = events[0].revision();
        log.insert(reached, events.iter().map(change).collect());
    }
    let entry =
        |entry: &carob_store::Entry| (entry.key.to_string(), (shorten(&entry.value, entry.revision), entry.revision));
    State { revision: page.revision, entries: page.entries.iter().map(entry).collect() }
}
