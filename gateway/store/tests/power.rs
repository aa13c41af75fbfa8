//! A power failure keeps what was synced and any part of what was not. What was acknowledged must be in what is kept;
//! and when the device fails, nothing more is acknowledged.

mod history;
mod observer;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use carob_store::redb::{Options, RedbStore};
use carob_store::{Document, Error, Expect, Outcome, Store, Txn, Write};
use history::{Fact, History};
use observer::Dice;
use redb::StorageBackend;

/// A device whose writes are volatile until they are synced.
#[derive(Clone, Debug, Default)]
struct Device(Arc<Mutex<Content>>);

#[derive(Clone, Debug, Default)]
struct Content {
    /// What readers see.
    seen: Vec<u8>,
    /// What survives for certain.
    synced: Vec<u8>,
    /// What may survive or not, in order.
    volatile: Vec<(usize, Vec<u8>)>,
    broken: bool,
}

impl Device {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap()
    }

    /// The device after a power failure at this moment: any of the volatile sectors are there.
    fn after_power_failure(&self, dice: &mut Dice) -> Self {
        let Content { mut synced, volatile, .. } = self.content().clone();
        for (offset, data) in volatile {
            for (number, sector) in data.chunks(512).enumerate() {
                let start = offset + number * 512;
                if dice.roll(2) == 0 {
                    synced.resize(synced.len().max(start + sector.len()), 0);
                    synced[start..start + sector.len()].copy_from_slice(sector);
                }
            }
        }
        Self(Arc::new(Mutex::new(Content { seen: synced.clone(), synced, ..Content::default() })))
    }
}

impl StorageBackend for Device {
    fn len(&self) -> io::Result<u64> {
        Ok(self.content().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        let end = offset + out.len();
        out.copy_from_slice(self.content().seen.get(offset..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        // The length is metadata, journaled by the file system: it survives.
        let (mut content, length) = (self.content(), usize::try_from(length).unwrap());
        content.seen.resize(length, 0);
        content.synced.resize(length, 0);
        content.volatile.retain(|(offset, data)| offset + data.len() <= length);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut content = self.content();
        if content.broken {
            return Err(io::Error::other("the device is broken"));
        }
        let Content { synced, volatile, .. } = &mut *content;
        for (offset, data) in volatile.drain(..) {
            synced[offset..offset + data.len()].copy_from_slice(&data);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let (mut content, offset) = (self.content(), usize::try_from(offset).unwrap());
        content.seen[offset..offset + data.len()].copy_from_slice(data);
        content.volatile.push((offset, data.to_vec()));
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
    let mut device = Device::default();
    let mut log = BTreeMap::new();
    let facts = Arc::new(Mutex::new(Vec::new()));
    for round in 0..20 {
        let store = Arc::new(RedbStore::open_on(device.clone(), Options::default()).unwrap());
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
        device = device.after_power_failure(&mut dice);
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

#[tokio::test]
async fn a_broken_device_ends_writing_and_nothing_unsynced_is_shown() {
    let device = Device::default();
    let store = RedbStore::open_on(device.clone(), Options::default()).unwrap();
    let create = |key: &str| Txn {
        expect: vec![(key.into(), Expect::Absent)],
        writes: vec![Write::Put(key.into(), Document::plain("{}"))],
    };
    assert!(matches!(store.txn(create("/a/1")).await, Ok(Outcome::Committed { revision: 1, .. })));
    device.content().broken = true;
    for _ in 0..2 {
        assert!(matches!(store.txn(create("/a/2")).await, Err(Error::Engine(_))));
    }
    // Mended behind its back: the store has lost trust for good.
    device.content().broken = false;
    assert!(matches!(store.txn(create("/a/3")).await, Err(Error::Engine(_))));
    assert!(matches!(store.compact(1).await, Err(Error::Engine(_))));
    assert_eq!(store.revision().await.unwrap(), 1);
    assert!(store.get("/a/1").await.unwrap().is_some(), "reading goes on");
    assert!(store.get("/a/2").await.unwrap().is_none());
    let page = store.range(&carob_store::KeyRange::prefix("/a/"), None, None).await.unwrap();
    assert_eq!((page.entries.len(), page.revision), (1, 1));
}
