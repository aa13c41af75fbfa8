//! The ledger: readings as they were made, each exactly once, every container's chained by hashes.
//!
//! One thread writes: it gathers what waits and commits it in one transaction. A reading enters only if it follows the
//! container's last one (its checkpoint is compared in the same transaction), so that a reading told twice, or made
//! again after a crash, changes nothing. Nothing is ever changed or removed.
//!
//! A worker on another machine keeps no ledger but an outbox (`outbox.rs`): the same checkpoints, and in the same
//! transaction the readings themselves, until the gateway's ledger has them. That one takes each by its sequence.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, mpsc};

use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::bindings::BINDINGS;
use crate::file::File;
use crate::reading::{Checkpoint, Reading};
use crate::{Keeping, Meterable};

/// Container id (for those of other machines see [`key`]) to its number and description (JSON).
pub(crate) const CONTAINERS: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("containers");
/// Container number to the hash of its last reading and where the next one begins (postcard).
pub(crate) const CHECKPOINTS: TableDefinition<'_, u64, (Hash, &[u8])> = TableDefinition::new("checkpoints");
/// Container number, begin and sequence of a reading to the reading (postcard) and its hash: that over the hash before
/// it (for the first one: over the container's description) and the reading.
const READINGS: TableDefinition<'_, (u64, i64, u64), (Hash, &[u8])> = TableDefinition::new("readings");

/// In an outbox: records in the order in which they were made (JSON), until they are delivered.
pub(crate) const OUTBOX: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("outbox");
/// In an outbox: records (JSON) that the other ledger did not take and never will.
pub(crate) const ASIDE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("aside");

pub(crate) type Hash = [u8; 32];

/// Why the ledger did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The file can't be opened, read or written.
    #[error("the ledger's storage failed")]
    Storage(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// Something in the file isn't what was written.
    #[error("the ledger is damaged: {0}")]
    Damaged(&'static str),
    /// A reading does not follow the container's last one: one before it was not written.
    #[error("a reading before this one was not written")]
    Gap,
    /// The writer has ended.
    #[error("the ledger is closed")]
    Closed,
}

impl Error {
    pub(crate) fn storage(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Storage(Arc::new(error))
    }
}

/// A reading with its container, and the checkpoints around it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    pub(crate) container: Meterable,
    pub(crate) before: Checkpoint,
    pub(crate) after: Checkpoint,
    pub(crate) reading: Reading,
}

/// Who makes readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The meter of this process, which knows where the ledger ends.
    Meter,
    /// Another machine's outbox, which delivers each until it hears that it is here.
    Outbox,
}

struct Order {
    records: Vec<Record>,
    origin: Origin,
    done: oneshot::Sender<Written>,
}

/// Containers of which readings were refused, with the reason.
pub(crate) type Refused = BTreeMap<String, String>;

/// What became of records: those of an outbox that can't be true were refused; or all that were not written, and why.
pub(crate) type Written = Result<Refused, (Vec<Record>, Error)>;

/// Tells when records are durable.
pub(crate) struct Pending(oneshot::Receiver<Written>);

impl Pending {
    /// Waits for the commit.
    pub(crate) async fn written(self) -> Written {
        self.0.await.unwrap_or_else(|_| Err((Vec::new(), Error::Closed)))
    }
}

/// The ledger's file and its writer.
pub struct Ledger {
    pub(crate) file: Arc<File>,
    orders: mpsc::Sender<Order>,
    /// Cancelled when the writer has ended.
    ended: CancellationToken,
}

impl Ledger {
    pub(crate) fn open(dir: &Path, keeping: Keeping) -> Result<Self, Error> {
        std::fs::create_dir_all(dir).map_err(Error::storage)?;
        let path = dir.join("ledger.redb");
        let builder = || {
            let mut builder = Database::builder();
            builder.set_cache_size(4 << 20);
            builder
        };
        let file = File::new(|| Ok(builder().create(&path)?), {
            let path = path.clone();
            move || Ok(builder().open(&path)?)
        });
        Self::start(file.map_err(Error::storage)?, keeping)
    }

    fn start(file: File, keeping: Keeping) -> Result<Self, Error> {
        file.with(create_tables).map_err(Error::storage)?;
        let (file, ended) = (Arc::new(file), CancellationToken::new());
        let (orders, inbox) = mpsc::channel();
        let (writer, ending) = (Arc::clone(&file), ended.clone().drop_guard());
        std::thread::Builder::new()
            .name("ledger".into())
            .spawn(move || {
                // Also when it panics.
                let _ending = ending;
                write_orders(&writer, keeping, &inbox);
            })
            .map_err(Error::storage)?;
        Ok(Self { file, orders, ended })
    }

    /// Returns when nothing will be written any more.
    pub(crate) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Where a container's next reading begins, if the ledger knows it.
    pub(crate) fn checkpoint(&self, container_id: &str) -> Result<Option<Checkpoint>, Error> {
        let read = |database: &Database| -> Result<Option<Vec<u8>>, redb::Error> {
            let transaction = database.begin_read()?;
            let Some(found) = transaction.open_table(CONTAINERS)?.get(container_id)? else { return Ok(None) };
            let checkpoints = transaction.open_table(CHECKPOINTS)?;
            let row = checkpoints.get(found.value().0)?;
            Ok(row.map(|row| row.value().1.to_vec()))
        };
        let Some(bytes) = self.file.with(read).map_err(Error::storage)? else { return Ok(None) };
        decode(&bytes).map(Some).ok_or(Error::Damaged("a checkpoint"))
    }

    /// Queues records: they are written in the order of these calls.
    pub(crate) fn write(&self, records: Vec<Record>, origin: Origin) -> Pending {
        let (done, outcome) = oneshot::channel();
        if let Err(mpsc::SendError(order)) = self.orders.send(Order { records, origin, done }) {
            // Only a receiver could mind, and this one is still here.
            let _ = order.done.send(Err((order.records, Error::Closed)));
        }
        Pending(outcome)
    }

    /// Shows `visit` the readings, between two moments (nanoseconds since the epoch), of every container that `wanted`
    /// chooses, each container's in order of time, until it has seen enough. They are not held in memory: a ledger may be
    /// larger than that.
    pub fn visit(
        &self,
        from_ns: i64,
        to_ns: i64,
        wanted: impl Fn(&Meterable) -> bool,
        mut visit: impl FnMut(&Meterable, Reading) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let read = |database: &Database| -> Result<Result<(), Error>, redb::Error> {
            let transaction = database.begin_read()?;
            let readings = transaction.open_table(READINGS)?;
            for row in transaction.open_table(CONTAINERS)?.iter()? {
                let (_, value) = row?;
                let (number, description) = value.value();
                let Ok(container) = serde_json::from_slice::<Meterable>(description) else {
                    return Ok(Err(Error::Damaged("a container's description")));
                };
                if !wanted(&container) {
                    continue;
                }
                // The reading before the first that begins inside may reach into the span.
                let earlier = readings.range((number, i64::MIN, 0)..(number, from_ns, 0))?.next_back();
                let inside = readings.range((number, from_ns, 0)..(number, to_ns, 0))?;
                for row in earlier.into_iter().chain(inside) {
                    let (_, value) = row?;
                    let Some(reading) = decode::<Reading>(value.value().1) else {
                        return Ok(Err(Error::Damaged("a reading")));
                    };
                    // A reading without duration counts where it is.
                    let inside = reading.end_ns > from_ns || reading.start_ns >= from_ns;
                    if inside && visit(&container, reading).is_break() {
                        return Ok(Ok(()));
                    }
                }
            }
            Ok(Ok(()))
        };
        self.file.with(read).map_err(Error::storage)?
    }

    /// Recomputes every container's chain of hashes; the number of readings when all is as it was written.
    pub fn verify(&self) -> Result<u64, Error> {
        let read = |database: &Database| -> Result<Result<u64, Error>, redb::Error> {
            let transaction = database.begin_read()?;
            let readings = transaction.open_table(READINGS)?;
            let checkpoints = transaction.open_table(CHECKPOINTS)?;
            let mut count = 0;
            for row in transaction.open_table(CONTAINERS)?.iter()? {
                let (_, value) = row?;
                let (number, description) = value.value();
                let mut hash = hash(&[0; 32], description);
                for row in readings.range((number, i64::MIN, 0)..=(number, i64::MAX, u64::MAX))? {
                    let (_, value) = row?;
                    let (stored, encoded) = value.value();
                    hash = self::hash(&hash, encoded);
                    if stored != hash {
                        return Ok(Err(Error::Damaged("a reading isn't what was written")));
                    }
                    count += 1;
                }
                if checkpoints.get(number)?.is_none_or(|row| row.value().0 != hash) {
                    return Ok(Err(Error::Damaged("readings are missing")));
                }
            }
            Ok(Ok(count))
        };
        self.file.with(read).map_err(Error::storage)?
    }
}

fn create_tables(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(CONTAINERS)?;
    transaction.open_table(CHECKPOINTS)?;
    transaction.open_table(READINGS)?;
    transaction.open_table(OUTBOX)?;
    transaction.open_table(ASIDE)?;
    transaction.open_table(BINDINGS)?;
    transaction.commit()?;
    Ok(())
}

fn write_orders(file: &File, keeping: Keeping, inbox: &mpsc::Receiver<Order>) {
    while let Ok(first) = inbox.recv() {
        let mut orders = vec![first];
        orders.extend(inbox.try_iter());
        let mut outcome = file.with(|database| commit(database, keeping, &orders)).map_err(Error::storage);
        for (index, order) in orders.into_iter().enumerate() {
            let written = match &mut outcome {
                Ok(judged) if judged.gaps.contains(&index) => Err((order.records, Error::Gap)),
                Ok(judged) => Ok(judged.refused.remove(&index).unwrap_or_default()),
                Err(error) => Err((order.records, error.clone())),
            };
            // A caller that went away needs no answer: what it told is written.
            let _ = order.done.send(written);
        }
    }
}

/// What of the orders was not written, by their indices.
#[derive(Default)]
struct Judged {
    /// Those of the meter that hold a reading which does not follow the one before it.
    gaps: Vec<usize>,
    /// What was refused of those of outboxes.
    refused: BTreeMap<usize, Refused>,
}

/// Writes all in one transaction.
fn commit(database: &Database, keeping: Keeping, orders: &[Order]) -> Result<Judged, redb::Error> {
    let transaction = database.begin_write()?;
    let mut judged = Judged::default();
    {
        let mut containers = transaction.open_table(CONTAINERS)?;
        let mut checkpoints = transaction.open_table(CHECKPOINTS)?;
        let mut readings = transaction.open_table(READINGS)?;
        let mut outbox = transaction.open_table(OUTBOX)?;
        let records = orders
            .iter()
            .enumerate()
            .flat_map(|(index, order)| order.records.iter().map(move |record| (index, order.origin, record)));
        for (index, origin, record) in records {
            let (number, first_hash) = number_of(&mut containers, keeping, origin, &record.container)?;
            let (previous, known) = match checkpoints.get(number)? {
                Some(row) => (row.value().0, decode::<Checkpoint>(row.value().1)),
                None => (first_hash, None),
            };
            let again = |known: Checkpoint| match origin {
                Origin::Meter => known == record.after,
                Origin::Outbox => known.next_sequence >= record.after.next_sequence,
            };
            if known.is_some_and(|known| known.ended || again(known)) {
                // Told before.
                continue;
            }
            let first = Checkpoint::start(&record.container);
            if record.before != known.unwrap_or(first) {
                if origin == Origin::Meter {
                    judged.gaps.push(index);
                    continue;
                }
                // A container's chain is in the order of time, and what was billed of it stays as it was.
                if let Some(known) = known.filter(|known| record.before.at_ns < known.at_ns) {
                    let why = format!(
                        "starts at {}, before the end of the one before it at {}",
                        record.before.at_ns, known.at_ns
                    );
                    judged.refused.entry(index).or_default().insert(record.container.container_id.clone(), why);
                    continue;
                }
                // An outbox gave those away long ago: this ledger was set back. What comes now is still true.
                tracing::error!(container = %record.container.container_id, "earlier readings of a container are missing");
            }
            let encoded = encode(&record.reading);
            let hash = hash(&previous, &encoded);
            match keeping {
                Keeping::Ledger => {
                    let key = (number, record.reading.start_ns, record.reading.sequence);
                    readings.insert(key, (hash, encoded.as_slice()))?;
                }
                Keeping::Outbox => crate::outbox::put(&mut outbox, record)?,
            }
            checkpoints.insert(number, (hash, encode(&record.after).as_slice()))?;
        }
    }
    transaction.commit()?;
    Ok(judged)
}

/// What tells a container of another machine apart: its id is whatever its node says, so it means nothing without that.
pub(crate) fn key(container: &Meterable) -> String {
    format!("{}/{}", container.node, container.container_id)
}

/// A container's number and the hash that its chain begins with; a new container gets the next number.
fn number_of(
    containers: &mut redb::Table<'_, &'static str, (u64, &'static [u8])>,
    keeping: Keeping,
    origin: Origin,
    container: &Meterable,
) -> Result<(u64, Hash), redb::Error> {
    let key = match origin {
        Origin::Meter => Cow::Borrowed(container.container_id.as_str()),
        Origin::Outbox => Cow::Owned(key(container)),
    };
    if let Some(known) = containers.get(&*key)? {
        let (number, description) = known.value();
        return Ok((number, hash(&[0; 32], description)));
    }
    // Without gaps, unless it is an outbox, which forgets what has ended.
    let number = match keeping {
        Keeping::Ledger => containers.len()?,
        Keeping::Outbox => {
            let mut next = 0;
            for row in containers.iter()? {
                next = next.max(row?.1.value().0 + 1);
            }
            next
        }
    };
    let description = serde_json::to_vec(container).expect("plain data is always JSON");
    containers.insert(&*key, (number, description.as_slice()))?;
    Ok((number, hash(&[0; 32], &description)))
}

fn encode<T: serde::Serialize>(value: &T) -> Vec<u8> {
    postcard::to_allocvec(value).expect("plain numbers always encode")
}

/// A row that an earlier version wrote is shorter: what it lacks is none or zero, each of which is written as a zero byte.
fn decode<T: DeserializeOwned>(row: &[u8]) -> Option<T> {
    const LACKING: [u8; 16] = [0; 16];
    postcard::from_bytes(row).or_else(|_| postcard::from_bytes(&[row, &LACKING].concat())).ok()
}

fn hash(previous: &Hash, body: &[u8]) -> Hash {
    Sha256::new().chain_update(previous).chain_update(body).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::Meter;
    use crate::{End, Requests};
    use jiff::Timestamp;
    use std::io;
    use std::sync::atomic::{AtomicU8, Ordering};
    use std::sync::{Mutex, MutexGuard};

    /// A disk in memory, and what it does when it is written to.
    #[derive(Debug, Clone, Default)]
    struct Disk {
        bytes: Arc<Mutex<Vec<u8>>>,
        mood: Arc<AtomicU8>,
    }

    const WELL: u8 = 0;
    const FULL: u8 = 1;
    const MAD: u8 = 2;

    impl Disk {
        fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
            self.bytes.lock().unwrap()
        }

        fn is(&self, mood: u8) {
            self.mood.store(mood, Ordering::SeqCst);
        }

        fn change(&self) -> io::Result<MutexGuard<'_, Vec<u8>>> {
            match self.mood.load(Ordering::SeqCst) {
                WELL => Ok(self.bytes()),
                FULL => Err(io::ErrorKind::StorageFull.into()),
                _ => panic!("a disk that nobody thought of"),
            }
        }

        fn ledger(&self) -> Ledger {
            let disk = self.clone();
            let open = move || Ok(Database::builder().create_with_backend(disk.clone())?);
            Ledger::start(File::new(open.clone(), open).unwrap(), Keeping::Ledger).unwrap()
        }
    }

    impl redb::StorageBackend for Disk {
        fn len(&self) -> io::Result<u64> {
            Ok(self.bytes().len() as u64)
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            let offset = usize::try_from(offset).unwrap();
            out.copy_from_slice(&self.bytes()[offset..offset + out.len()]);
            Ok(())
        }

        fn set_len(&self, length: u64) -> io::Result<()> {
            self.change()?.resize(usize::try_from(length).unwrap(), 0);
            Ok(())
        }

        fn sync_data(&self) -> io::Result<()> {
            self.change().map(drop)
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            let offset = usize::try_from(offset).unwrap();
            self.change()?[offset..offset + data.len()].copy_from_slice(data);
            Ok(())
        }
    }

    /// The last reading of a container.
    fn last(id: &str) -> Vec<Record> {
        let now = Timestamp::now();
        let container = Meterable {
            container_id: id.to_owned(),
            pod_uid: String::new(),
            namespace: "default".to_owned(),
            pod: "pod".to_owned(),
            container: "main".to_owned(),
            attempt: 0,
            labels: BTreeMap::new(),
            node: "node".to_owned(),
            started_at: now,
            requests: Requests::default(),
            counters: None,
        };
        let end = End { finished_at: now, unknown: false, cpu_ns: 5, memory_peak_bytes: 0 };
        Meter::new().finish(container, None, end).into_iter().collect()
    }

    #[tokio::test]
    async fn a_ledger_whose_disk_was_full_goes_on_once_there_is_room_with_all_it_had() {
        let disk = Disk::default();
        let ledger = disk.ledger();
        ledger.write(last("before"), Origin::Meter).written().await.unwrap();
        disk.is(FULL);
        for _ in 0..3 {
            ledger.write(last("a"), Origin::Meter).written().await.unwrap_err();
        }
        disk.is(WELL);
        // It is left alone for a moment.
        while ledger.write(last("a"), Origin::Meter).written().await.is_err() {}
        ledger.write(last("b"), Origin::Meter).written().await.unwrap();
        assert_eq!(ledger.verify().unwrap(), 3);
    }

    #[tokio::test]
    async fn who_waits_for_the_end_of_the_writer_hears_of_its_panic() {
        let disk = Disk::default();
        let ledger = disk.ledger();
        disk.is(MAD);
        assert!(matches!(ledger.write(last("a"), Origin::Meter).written().await, Err((_, Error::Closed))));
        ledger.ended().await;
        // redb panics again when such a database is closed.
        std::mem::forget(ledger.file);
    }
}
