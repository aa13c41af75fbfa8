//! The outbox of a worker on another machine: readings wait there until the gateway's ledger has them.
//!
//! Nothing is lost or counted twice, whatever dies when: a reading enters the outbox in the transaction that moves its
//! container's checkpoint, leaves it only when the ledger has said that it is durable there, and the ledger passes over
//! what it has (by container and sequence).

use redb::{Database, ReadableDatabase, ReadableTable};
use serde::{Deserialize, Serialize};

use crate::ledger::{CHECKPOINTS, CONTAINERS, Error, Ledger, OUTBOX, Record};

/// So many readings are delivered at once.
const BATCH: usize = 500;

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

pub(crate) fn put(outbox: &mut redb::Table<'_, u64, &'static [u8]>, record: &Record) -> Result<(), redb::Error> {
    let next = outbox.last()?.map_or(0, |(key, _)| key.value() + 1);
    outbox.insert(next, serde_json::to_vec(record).expect("plain data is always JSON").as_slice())?;
    Ok(())
}

impl Ledger {
    /// The next readings to deliver, in order; none when all are delivered.
    pub(crate) fn parcel(&self) -> Result<Option<Parcel>, Error> {
        let read = |database: &Database| -> Result<Vec<(u64, Vec<u8>)>, redb::Error> {
            let transaction = database.begin_read()?;
            let outbox = transaction.open_table(OUTBOX)?;
            let rows = outbox.iter()?.take(BATCH);
            rows.map(|row| row.map(|(key, value)| (key.value(), value.value().to_vec())).map_err(Into::into)).collect()
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
        let write = |database: &Database| -> Result<(), redb::Error> {
            let transaction = database.begin_write()?;
            {
                let mut outbox = transaction.open_table(OUTBOX)?;
                let mut containers = transaction.open_table(CONTAINERS)?;
                let mut checkpoints = transaction.open_table(CHECKPOINTS)?;
                for key in &parcel.keys {
                    outbox.remove(key)?;
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
