//! The journal: batches that are durable but not filed in the database yet.
//!
//! A commit of the database rewrites a dozen pages, which pays for a thousand transactions, not for three. So a batch is
//! appended to this file, with one write and one sync, and the database gets many batches at once. What is filed is not
//! needed here any more: the file is written from its beginning again, under a new epoch, which stands in the database.
//! A frame of another epoch, or one that is torn, has another check sum: reading ends there.

use std::io;

use ::redb::StorageBackend;

use super::record::Position;
use crate::Revision;

/// Payload length and check sum, of four bytes each, little-endian as all numbers here.
const HEADER: usize = 8;
/// Revision, number within the transaction and length of a record.
const RECORD_HEADER: usize = 16;
/// The file grows by this, filled with zeros: what is written afterwards changes no metadata, so that a sync is short.
const GROWTH: u64 = 256 << 10;

/// The open file.
#[derive(Debug)]
pub(super) struct Journal {
    device: Box<dyn StorageBackend>,
    epoch: u64,
    /// Where the next frame begins.
    end: u64,
    /// Bytes that are there to be written over.
    size: u64,
    frame: Vec<u8>,
}

/// A record of the log, where it lies in it.
pub(super) type Record = (Position, Vec<u8>);

impl Journal {
    /// Opens the journal; gives the records of this epoch that are in it, in their order.
    pub(super) fn open(device: Box<dyn StorageBackend>, epoch: u64) -> io::Result<(Self, Vec<Record>)> {
        let size = device.len()?;
        let mut content = vec![0; usize::try_from(size).map_err(io::Error::other)?];
        device.read(0, &mut content)?;
        let records = read(&content, epoch);
        Ok((Self { device, epoch, end: 0, size, frame: Vec::new() }, records))
    }

    /// Everything in it has been filed in the database, together with this epoch.
    pub(super) fn begin(&mut self, epoch: u64) {
        (self.epoch, self.end) = (epoch, 0);
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Appends a batch durably: after a crash all of it is there, or nothing.
    pub(super) fn append(&mut self, records: &[Record]) -> io::Result<()> {
        self.frame.clear();
        self.frame.extend_from_slice(&[0; HEADER]);
        for (at, record) in records {
            self.frame.extend_from_slice(&at.revision.to_le_bytes());
            self.frame.extend_from_slice(&at.index.to_le_bytes());
            self.frame.extend_from_slice(&length(record)?.to_le_bytes());
            self.frame.extend_from_slice(record);
        }
        let (header, payload) = self.frame.split_at_mut(HEADER);
        header[..4].copy_from_slice(&length(payload)?.to_le_bytes());
        header[4..].copy_from_slice(&check_sum(self.epoch, payload).to_le_bytes());
        let end = self.end + self.frame.len() as u64;
        self.make_room(end)?;
        self.device.write(self.end, &self.frame)?;
        self.device.sync_data()?;
        self.end = end;
        // A huge batch leaves no huge buffer.
        self.frame.shrink_to(usize::try_from(GROWTH).unwrap_or(usize::MAX));
        Ok(())
    }

    /// Gives the file's bytes back, once everything is filed.
    pub(super) fn truncate(&mut self) -> io::Result<()> {
        (self.end, self.size) = (0, 0);
        self.device.set_len(0)
    }

    fn make_room(&mut self, end: u64) -> io::Result<()> {
        if end <= self.size {
            return Ok(());
        }
        let size = end.next_multiple_of(GROWTH);
        self.device.set_len(size)?;
        let zeros = vec![0; usize::try_from(size - self.size).map_err(io::Error::other)?];
        self.device.write(self.size, &zeros)?;
        self.size = size;
        Ok(())
    }
}

fn length(bytes: &[u8]) -> io::Result<u32> {
    u32::try_from(bytes.len()).map_err(io::Error::other)
}

fn check_sum(epoch: u64, payload: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&epoch.to_le_bytes());
    sum.update(payload);
    sum.finalize()
}

/// The records of all whole frames of this epoch from the beginning on.
fn read(content: &[u8], epoch: u64) -> Vec<Record> {
    let mut records = Vec::new();
    let mut rest = content;
    while let Some((payload, behind)) = frame(rest, epoch) {
        rest = behind;
        let mut payload = payload;
        while let Some((record, behind)) = record(payload) {
            records.push(record);
            payload = behind;
        }
    }
    records
}

/// The payload of the frame that `bytes` begin with, and what lies behind it. An empty frame is none: a file of zeros
/// has many.
fn frame(bytes: &[u8], epoch: u64) -> Option<(&[u8], &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<HEADER>()?;
    let length = u32::from_le_bytes(*header.first_chunk()?) as usize;
    let (payload, behind) = rest.split_at_checked(length).filter(|_| length > 0)?;
    let sum = u32::from_le_bytes(*header.last_chunk()?);
    (sum == check_sum(epoch, payload)).then_some((payload, behind))
}

fn record(payload: &[u8]) -> Option<(Record, &[u8])> {
    let (header, rest) = payload.split_first_chunk::<RECORD_HEADER>()?;
    let (revision, numbers) = header.split_first_chunk::<8>()?;
    let index = u32::from_le_bytes(*numbers.first_chunk()?);
    let length = u32::from_le_bytes(*numbers.last_chunk()?) as usize;
    let (bytes, behind) = rest.split_at_checked(length)?;
    let at = Position { revision: Revision::from_le_bytes(*revision), index };
    Some(((at, bytes.to_vec()), behind))
}

#[cfg(test)]
mod tests {
    use ::redb::backends::InMemoryBackend;

    use super::*;

    fn records(revisions: std::ops::Range<Revision>) -> Vec<Record> {
        let of = |revision: Revision| (Position { revision, index: 3 }, format!("record {revision}").into_bytes());
        revisions.map(of).collect()
    }

    fn content(journal: &Journal) -> Vec<u8> {
        let mut content = vec![0; usize::try_from(journal.device.len().unwrap()).unwrap()];
        journal.device.read(0, &mut content).unwrap();
        content
    }

    #[test]
    fn what_was_appended_is_read_back_until_it_is_filed() {
        let (mut journal, found) = Journal::open(Box::new(InMemoryBackend::new()), 7).unwrap();
        assert_eq!(found, []);
        journal.append(&records(1..3)).unwrap();
        journal.append(&records(3..4)).unwrap();
        assert_eq!(read(&content(&journal), 7), records(1..4));
        assert_eq!(read(&content(&journal), 8), [], "of another epoch");
        journal.begin(8);
        assert_eq!(read(&content(&journal), 8), []);
        // As long as the first frame, so that the second of the old epoch follows.
        journal.append(&records(4..6)).unwrap();
        assert_eq!(read(&content(&journal), 8), records(4..6));
        journal.truncate().unwrap();
        journal.append(&records(6..7)).unwrap();
        assert_eq!(read(&content(&journal), 8), records(6..7));
    }

    #[test]
    fn a_torn_frame_ends_the_journal_whatever_is_torn() {
        let (mut journal, _) = Journal::open(Box::new(InMemoryBackend::new()), 7).unwrap();
        journal.append(&records(1..2)).unwrap();
        let whole = usize::try_from(journal.end).unwrap();
        journal.append(&records(2..4)).unwrap();
        let content = content(&journal);
        let end = usize::try_from(journal.end).unwrap();
        for place in whole..end {
            let mut torn = content.clone();
            torn[place] ^= 0x40;
            assert_eq!(read(&torn, 7), records(1..2), "byte {place}");
            assert_eq!(read(&content[..place], 7), records(1..2), "the first {place} bytes");
        }
        assert_eq!(read(&content[..end], 7), records(1..4));
    }

    #[test]
    fn a_large_batch_and_a_small_one_behind_it_fit() {
        let (mut journal, _) = Journal::open(Box::new(InMemoryBackend::new()), 1).unwrap();
        let large = vec![(Position { revision: 1, index: 0 }, vec![1; 3 << 20])];
        journal.append(&large).unwrap();
        journal.append(&records(2..3)).unwrap();
        assert_eq!(read(&content(&journal), 1), [large, records(2..3)].concat());
        assert!(journal.frame.capacity() < 1 << 20);
    }
}
