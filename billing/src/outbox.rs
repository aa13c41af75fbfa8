//! The outbox of a worker on another machine: readings wait there until the gateway's ledger has them.
//!
//! Nothing is lost or counted twice, whatever dies when: a reading enters the outbox in the transaction that moves its
//! container's checkpoint, leaves it only when the ledger has said that it is durable there, and the ledger passes over
//! what it has (by container and sequence).

use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata};
use serde::{Deserialize, Serialize};

use crate::ledger::{ASIDE, CHECKPOINTS, CONTAINERS, Error, Ledger, OUTBOX, Record};

/// So many readings are delivered at once, and no more bytes of them than this, unless a single one has more: with a pod's
/// labels, it may be as large as a pod.
pub const BATCH: usize = 500;
const BATCH_BYTES: usize = 1 << 20;

/// Readings on their way, as they are sent.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Delivery {
    pub(crate) records: Vec<Record>,
}

impl Delivery {
    /// The nodes that the readings' containers ran on.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.records.iter().map(|record| record.container.node.as_str())
    }

    /// Whether there is nothing to deliver.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Why these can't be readings of anything, if they can't: each must say the same twice.
    pub(crate) fn mistake(&self) -> Option<&'static str> {
        self.records.iter().find_map(|Record { before, after, reading, .. }| {
            let fits = reading.sequence == before.next_sequence
                && before.next_sequence.checked_add(1) == Some(after.next_sequence)
                && (reading.start_ns, reading.end_ns) == (before.at_ns, after.at_ns)
                && before.at_ns <= after.at_ns
                && before.cpu_ns.checked_add(reading.cpu_ns) == Some(after.cpu_ns)
                && reading.requests == before.requests
                && reading.traffic == after.traffic.since(before.traffic);
            (!fits).then_some("a reading does not fit the checkpoints around it")
        })
    }
}

/// A delivery that was taken out to be sent, and where it lies.
pub struct Parcel {
    /// What is to be sent.
    pub delivery: Delivery,
    keys: Vec<u64>,
}

impl Parcel {
    /// How many readings it holds.
    pub fn readings(&self) -> usize {
        self.keys.len()
    }

    /// Of which containers it is, and what they used.
    pub fn about(&self) -> String {
        let one = |Record { container: of, reading, .. }: &Record| {
            format!(
                "reading {} of container {:?} {} of pod {}/{} ({}): {} ns of CPU and {} byte-ns of memory from {} to {}",
                reading.sequence,
                of.container,
                of.container_id,
                of.namespace,
                of.pod,
                of.pod_uid,
                reading.cpu_ns,
                reading.memory_byte_ns,
                reading.start_ns,
                reading.end_ns,
            )
        };
        self.delivery.records.iter().map(one).collect::<Vec<_>>().join("; ")
    }
}

pub(crate) fn put(outbox: &mut redb::Table<'_, u64, &'static [u8]>, record: &Record) -> Result<(), redb::Error> {
    let next = outbox.last()?.map_or(0, |(key, _)| key.value() + 1);
    outbox.insert(next, serde_json::to_vec(record).expect("plain data is always JSON").as_slice())?;
    Ok(())
}

/// What becomes of readings that leave the outbox.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaving {
    Delivered,
    SetAside,
}

impl Ledger {
    /// The next readings to deliver, in order, so many at most; none when all are delivered.
    pub(crate) fn parcel(&self, most: usize) -> Result<Option<Parcel>, Error> {
        let read = |database: &Database| -> Result<Vec<(u64, Vec<u8>)>, redb::Error> {
            let transaction = database.begin_read()?;
            let outbox = transaction.open_table(OUTBOX)?;
            let (mut rows, mut bytes) = (Vec::new(), 0);
            for row in outbox.iter()? {
                let (key, value) = row?;
                bytes += value.value().len();
                if !rows.is_empty() && (rows.len() >= most || bytes > BATCH_BYTES) {
                    break;
                }
                rows.push((key.value(), value.value().to_vec()));
            }
            Ok(rows)
        };
        let rows = self.file.with(read).map_err(Error::storage)?;
        let mut parcel = Parcel { delivery: Delivery::default(), keys: Vec::new() };
        for (key, bytes) in rows {
            let record = serde_json::from_slice(&bytes).map_err(|_| Error::Damaged("a reading in the outbox"))?;
            parcel.delivery.records.push(record);
            parcel.keys.push(key);
        }
        Ok((!parcel.keys.is_empty()).then_some(parcel))
    }

    /// The gateway's ledger has these: they leave, and so do containers that have ended.
    pub(crate) fn delivered(&self, parcel: &Parcel) -> Result<(), Error> {
        self.leave(parcel, Leaving::Delivered)
    }

    /// The gateway will never take these: they make way for the others, and are kept.
    pub(crate) fn set_aside(&self, parcel: &Parcel) -> Result<(), Error> {
        self.leave(parcel, Leaving::SetAside)
    }

    /// How many readings were ever set aside.
    pub(crate) fn aside(&self) -> Result<u64, Error> {
        let count =
            |database: &Database| -> Result<u64, redb::Error> { Ok(database.begin_read()?.open_table(ASIDE)?.len()?) };
        self.file.with(count).map_err(Error::storage)
    }

    fn leave(&self, parcel: &Parcel, leaving: Leaving) -> Result<(), Error> {
        let write = |database: &Database| -> Result<(), redb::Error> {
            let transaction = database.begin_write()?;
            {
                let mut outbox = transaction.open_table(OUTBOX)?;
                let mut containers = transaction.open_table(CONTAINERS)?;
                let mut checkpoints = transaction.open_table(CHECKPOINTS)?;
                let mut aside = transaction.open_table(ASIDE)?;
                for key in &parcel.keys {
                    let row = outbox.remove(key)?;
                    if let Some(row) = row.filter(|_| leaving == Leaving::SetAside) {
                        let next = aside.last()?.map_or(0, |(key, _)| key.value() + 1);
                        aside.insert(next, row.value())?;
                    }
                }
                for record in parcel.delivery.records.iter().filter(|record| record.after.ended) {
                    let number = containers.remove(record.container.container_id.as_str())?.map(|row| row.value().0);
                    if let Some(number) = number {
                        checkpoints.remove(number)?;
                    }
                }
            }
            transaction.commit()?;
            Ok(())
        };
        self.file.with(write).map_err(Error::storage)
    }
}
