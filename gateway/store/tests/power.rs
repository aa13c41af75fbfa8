//! A power failure keeps what was synced and any part of what was not. What was acknowledged must be in what is kept;
//! and when the device fails, nothing more is acknowledged.

mod history;
mod observer;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use carob_store::redb::{Options, RedbStore};
use carob_store::{Document, Error, Expect, Outcome, Store, Txn, Write};
use history::{Fact, History};
use observer::Dice;
use redb::StorageBackend;

/// One of the files of a machine. Writes are volatile until they are synced; power fails for all files at once.
#[derive(Clone, Debug)]
struct Device {
    machine: Arc<Mutex<Machine>>,
    file: usize,
}

/// The store's database and its journal.
#[derive(Clone, Debug, Default)]
struct Machine {
    files: [Content; 2],
    broken: bool,
    /// The files have the room that they have.
    full: bool,
    /// The next sync ends the thread that asks for it.
    panics: bool,
}

#[derive(Clone, Debug, Default)]
struct Content {
    /// What readers see.
    seen: Vec<u8>,
    /// What survives for certain.
    synced: Vec<u8>,
    /// What may survive or not, in order.
    volatile: Vec<(usize, Vec<u8>)>,
}

impl Machine {
    /// The machine after a power failure at this moment: any of the volatile sectors are there.
    fn after_power_failure(machine: &Mutex<Self>, dice: &mut Dice) -> Arc<Mutex<Self>> {
        let files = machine.lock().unwrap().files.clone().map(|file| {
            let Content { mut synced, volatile, .. } = file;
            for (offset, data) in volatile {
                for (number, sector) in data.chunks(512).enumerate() {
                    let start = offset + number * 512;
                    if dice.roll(2) == 0 {
                        synced.resize(synced.len().max(start + sector.len()), 0);
                        synced[start..start + sector.len()].copy_from_slice(sector);
                    }
                }
            }
            Content { seen: synced.clone(), synced, volatile: Vec::new() }
        });
        Arc::new(Mutex::new(Self { files, ..Self::default() }))
    }

    fn open(machine: &Arc<Mutex<Self>>) -> Result<RedbStore, Error> {
        let device = |file| Device { machine: machine.clone(), file };
        // So few bytes that batches are filed again and again between two failures.
        RedbStore::open_on(device(0), device(1), Options { journal_bytes: 20_000, ..Options::default() })
    }
}

impl Device {
    fn content<T>(&self, work: impl FnOnce(&mut Content) -> T) -> T {
        work(&mut self.machine.lock().unwrap().files[self.file])
    }
}

impl StorageBackend for Device {
    fn len(&self) -> io::Result<u64> {
        Ok(self.content(|content| content.seen.len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        let end = offset + out.len();
        self.content(|content| {
            out.copy_from_slice(content.seen.get(offset..end).ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        // The length is metadata, journaled by the file system: it survives.
        let length = usize::try_from(length).unwrap();
        let full = self.machine.lock().unwrap().full;
        if full && self.content(|content| length > content.seen.len()) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.content(|content| {
            content.seen.resize(length, 0);
            content.synced.resize(length, 0);
            content.volatile.retain(|(offset, data)| offset + data.len() <= length);
        });
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let (broken, panics) = {
            let mut machine = self.machine.lock().unwrap();
            (machine.broken, std::mem::take(&mut machine.panics))
        };
        assert!(!panics, "as asked for");
        if broken {
            return Err(io::Error::other("the device is broken"));
        }
        self.content(|Content { synced, volatile, .. }| {
            for (offset, data) in volatile.drain(..) {
                synced[offset..offset + data.len()].copy_from_slice(&data);
            }
        });
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        self.content(|content| {
            content.seen[offset..offset + data.len()].copy_from_slice(data);
            content.volatile.push((offset, data.to_vec()));
        });
        Ok(())
    }
}

fn recorder(facts: &Arc<Mutex<Vec<Fact>>>) -> impl FnMut(Fact) + Send + use<> {
    let facts = facts.clone();
    move |fact| facts.lock().unwrap().push(fact)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_a_power_failure() {
    let mut dice = Dice::new(u64::from(std::process::id()));
    let mut machine = Arc::<Mutex<Machine>>::default();
    let mut log = BTreeMap::new();
    let facts = Arc::new(Mutex::new(Vec::new()));
    for round in 0..20 {
        let store = Arc::new(Machine::open(&machine).unwrap());
        let last = observer::inspect(&*store, &mut log).await;
        let history = History { facts: facts.lock().unwrap().clone() };
        history.check(&log, &last).unwrap_or_else(|problem| panic!("before round {round}: {problem}"));
        let mut clients = tokio::task::JoinSet::new();
        let (watched, record) = (store.clone(), recorder(&facts));
        let after = history.facts.iter().rev().find_map(|fact| match fact {
            Fact::Saw { revision, .. } | Fact::Progress { revision, .. } => Some(*revision),
            _ => None,
        });
        clients.spawn(async move {
            observer::observe(&*watched, "watcher", after.unwrap_or(0), record, || std::future::ready(()))
                .await
                .unwrap();
        });
        for number in 0..4_u64 {
            let (store, mut record, mut dice) = (store.clone(), recorder(&facts), Dice::new(dice.roll(u64::MAX)));
            clients.spawn(async move {
                for count in 0_u64.. {
                    let token = format!("{round}.{number}.{count}");
                    if observer::transact(&*store, &number.to_string(), &token, &mut dice, &mut record).await.is_err() {
                        return;
                    }
                }
            });
        }
        let enough = last.revision + 20 + dice.roll(60);
        while store.revision().await.unwrap() < enough {
            tokio::task::yield_now().await;
        }
        // The failure: facts from after it are of a machine that is off, so they are cut off before it.
        let known = facts.lock().unwrap().clone();
        machine = Machine::after_power_failure(&machine, &mut dice);
        store.close().await;
        while clients.join_next().await.is_some() {}
        let asked = facts.lock().unwrap()[known.len()..]
            .iter()
            .filter(|fact| matches!(fact, Fact::Asked { .. }))
            .cloned()
            .collect();
        *facts.lock().unwrap() = [known, asked].concat();
    }
}

fn create(key: &str, value: &str) -> Txn {
    Txn {
        expect: vec![(key.into(), Expect::Absent)],
        writes: vec![Write::Put(key.into(), Document::plain(value.to_owned()))],
    }
}

#[tokio::test]
async fn what_a_full_disk_refused_is_written_once_there_is_room() {
    let machine = Arc::<Mutex<Machine>>::default();
    let device = |file| Device { machine: machine.clone(), file };
    let store = RedbStore::open_on(device(0), device(1), Options::default()).unwrap();
    let large = "x".repeat(400 << 10);
    assert!(store.txn(create("/a/1", "{}")).await.is_ok());
    machine.lock().unwrap().full = true;
    for _ in 0..2 {
        assert!(matches!(store.txn(create("/a/2", &large)).await, Err(Error::Full(_))));
    }
    // For this there is room, and nothing of the other was written before it.
    assert!(matches!(store.txn(create("/a/3", "{}")).await, Ok(Outcome::Committed { revision: 2, .. })));
    store.health().await.unwrap();
    machine.lock().unwrap().full = false;
    assert!(matches!(store.txn(create("/a/2", &large)).await, Ok(Outcome::Committed { revision: 3, .. })));
}

#[tokio::test]
async fn a_writer_that_panics_is_told_of_and_nobody_waits_for_it() {
    let machine = Arc::<Mutex<Machine>>::default();
    let store = Machine::open(&machine).unwrap();
    machine.lock().unwrap().panics = true;
    assert!(matches!(store.txn(create("/a/1", "{}")).await, Err(Error::Closed)));
    assert!(matches!(store.failed().await, Error::Engine(_)));
    assert!(store.health().await.is_err());
}

#[tokio::test]
async fn a_broken_device_ends_writing_and_nothing_unsynced_is_shown() {
    let machine = Arc::<Mutex<Machine>>::default();
    let store = Machine::open(&machine).unwrap();
    assert!(matches!(store.txn(create("/a/1", "{}")).await, Ok(Outcome::Committed { revision: 1, .. })));
    store.health().await.unwrap();
    machine.lock().unwrap().broken = true;
    for _ in 0..2 {
        assert!(matches!(store.txn(create("/a/2", "{}")).await, Err(Error::Engine(_))));
    }
    assert!(matches!(store.health().await, Err(Error::Engine(_))));
    assert!(matches!(store.failed().await, Error::Engine(_)));
    // Mended behind its back: the store has lost trust for good.
    machine.lock().unwrap().broken = false;
    assert!(matches!(store.txn(create("/a/3", "{}")).await, Err(Error::Engine(_))));
    assert!(matches!(store.compact(1).await, Err(Error::Engine(_))));
    assert_eq!(store.revision().await.unwrap(), 1);
    assert!(store.get("/a/1").await.unwrap().is_some(), "reading goes on");
    assert!(store.get("/a/2").await.unwrap().is_none());
    let page = store.range(&carob_store::KeyRange::prefix("/a/"), None, None).await.unwrap();
    assert_eq!((page.entries.len(), page.revision), (1, 1));
}
