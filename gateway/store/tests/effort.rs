//! What a commit costs, in operations: the speed that does not depend on the machine.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use carob_store::redb::{Options, RedbStore};
use carob_store::{Document, Expect, Outcome, Store, Txn, Write};
use redb::StorageBackend;
use redb::backends::InMemoryBackend;

/// A device that counts.
#[derive(Debug)]
struct Counting {
    device: InMemoryBackend,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    writes: AtomicUsize,
    bytes: AtomicUsize,
    syncs: AtomicUsize,
}

impl Counts {
    /// Writes, bytes and syncs since the last look.
    fn take(&self) -> [usize; 3] {
        [&self.writes, &self.bytes, &self.syncs].map(|count| count.swap(0, Ordering::Relaxed))
    }
}

impl StorageBackend for Counting {
    fn len(&self) -> io::Result<u64> {
        self.device.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.device.read(offset, out)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.device.set_len(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.counts.syncs.fetch_add(1, Ordering::Relaxed);
        self.device.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.counts.writes.fetch_add(1, Ordering::Relaxed);
        self.counts.bytes.fetch_add(data.len(), Ordering::Relaxed);
        self.device.write(offset, data)
    }
}

async fn create(store: &RedbStore, number: usize, size: usize) {
    let key = format!("/core/configmaps/default/{number}");
    let txn = Txn {
        expect: vec![(key.clone(), Expect::Absent)],
        writes: vec![Write::Put(key, Document::plain(vec![b'x'; size]))],
    };
    assert!(matches!(store.txn(txn).await.unwrap(), Outcome::Committed { .. }));
}

#[tokio::test]
async fn a_commit_is_one_write_and_one_sync_however_many_objects_there_are() {
    const SIZE: usize = 500;
    let (filed, journal) = (Arc::<Counts>::default(), Arc::<Counts>::default());
    let device = |counts: &Arc<Counts>| Counting { device: InMemoryBackend::new(), counts: counts.clone() };
    let store = RedbStore::open_on(device(&filed), device(&journal), Options::default()).unwrap();
    create(&store, 0, SIZE).await;
    for objects in [1, 5000] {
        for number in objects..objects + 100 {
            create(&store, number, SIZE).await;
        }
        // Whatever was left of a journal before.
        filed.take();
        journal.take();
        let mut costly = 0;
        for number in objects + 100..objects + 200 {
            create(&store, number, SIZE).await;
            let [writes, bytes, syncs] = journal.take();
            let simple = (writes, syncs) == (1, 1) && bytes < SIZE + 100 && filed.take() == [0; 3];
            costly += usize::from(!simple);
        }
        assert!(costly <= 2, "with {objects} objects, {costly} of 100 commits did more");
        for number in objects + 200..5000 {
            create(&store, number, SIZE).await;
        }
    }
    // A thousand transactions of a thousand bytes go to the database about once.
    filed.take();
    for number in 10_000..11_000 {
        create(&store, number, 1000).await;
    }
    let [_, bytes, syncs] = filed.take();
    assert!(syncs <= 4, "{syncs} syncs of the database");
    assert!(bytes < 3_000_000, "{bytes} bytes written to the database for 1,000,000 of documents");
}
