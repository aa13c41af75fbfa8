//! The journal: batches that are durable but not filed in the database yet.
//!
//! A commit of the database rewrites a dozen pages, which pays for a thousand transactions, not for three. So a batch is
//! appended to this file, with one write and one sync, and the database gets many batches at once. What is filed is not
//! needed here any more: the file is written from its beginning again, under a new epoch, which stands in the database.
//! A frame of another epoch, or one that is torn, has another check sum: reading ends there. Since a frame is written when
//! the one before is durable, only the last can be torn: where a whole one follows, something else has damaged the file.

use std::io;

use ::redb::StorageBackend;

use super::open::LogError;
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
    pub(super) fn open(device: Box<dyn StorageBackend>, epoch: u64) -> Result<(Self, Vec<Record>), LogError> {
        let content = || {
            let size = device.len()?;
            let mut content = vec![0; usize::try_from(size).map_err(io::Error::other)?];
            device.read(0, &mut content)?;
            Ok((size, content))
        };
        let (size, content) = content().map_err(LogError::Journal)?;
        let records = read(&content, epoch)?;
        Ok((Self { device, epoch, end: 0, size, frame: Vec::new() }, records))
    }

    /// Everything in it has been filed in the database, together with this epoch.
    pub(super) fn begin(&mut self, epoch: u64) {
        (self.epoch, self.end) = (epoch, 0);
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Has the file be long enough for a batch. What fails here leaves everything as it was.
    pub(super) fn make_room(&mut self, records: &[Record]) -> io::Result<()> {
        let payload: usize = records.iter().map(|(_, record)| RECORD_HEADER + record.len()).sum();
        let end = self.end + (HEADER + payload) as u64;
        if end <= self.size {
            return Ok(());
        }
        let size = end.next_multiple_of(GROWTH);
        let zeros = vec![0; usize::try_from(size - self.size).map_err(io::Error::other)?];
        let grown = self.device.set_len(size).and_then(|()| self.device.write(self.size, &zeros));
        match grown {
            Ok(()) => self.size = size,
            // Others may need what was had of it.
            Err(_) => drop(self.device.set_len(self.size)),
        }
        grown
    }

    /// Appends a batch, for which there is room, durably: after a crash all of it is there, or nothing.
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
        self.device.write(self.end, &self.frame)?;
        self.device.sync_data()?;
        self.end += self.frame.len() as u64;
        // A huge batch leaves no huge buffer.
        self.frame.shrink_to(usize::try_from(GROWTH).unwrap_or(usize::MAX));
        Ok(())
    }

    /// Gives the file's bytes back, once everything is filed.
    pub(super) fn truncate(&mut self) -> io::Result<()> {
        (self.end, self.size) = (0, 0);
        self.device.set_len(0)
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
fn read(content: &[u8], epoch: u64) -> Result<Vec<Record>, LogError> {
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
    if holds_a_frame(rest, epoch) {
        return Err(LogError::Damaged { at: content.len() - rest.len() });
    }
    Ok(records)
}

/// Whether a whole frame of this epoch begins anywhere in `bytes`. An epoch is a secret of the store's, so nobody can write
/// an object that looks like one.
fn holds_a_frame(bytes: &[u8], epoch: u64) -> bool {
    (0..bytes.len()).any(|at| frame(&bytes[at..], epoch).is_some())
}

/// Whether a payload is records from end to end, as far as their lengths tell.
fn is_of_records(payload: &[u8]) -> bool {
    let mut rest = payload;
    while let Some((_, _, behind)) = parts(rest) {
        rest = behind;
    }
    rest.is_empty()
}

/// The payload of the frame that `bytes` begin with, and what lies behind it. An empty frame is none: a file of zeros
/// has many.
fn frame(bytes: &[u8], epoch: u64) -> Option<(&[u8], &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<HEADER>()?;
    let length = u32::from_le_bytes(*header.first_chunk()?) as usize;
    let (payload, behind) = rest.split_at_checked(length).filter(|_| length > 0)?;
    if !is_of_records(payload) {
        return None;
    }
    let sum = u32::from_le_bytes(*header.last_chunk()?);
    (sum == check_sum(epoch, payload)).then_some((payload, behind))
}

fn record(payload: &[u8]) -> Option<(Record, &[u8])> {
    let (at, bytes, behind) = parts(payload)?;
    Some(((at, bytes.to_vec()), behind))
}

/// The record that a payload begins with, and what lies behind it.
fn parts(payload: &[u8]) -> Option<(Position, &[u8], &[u8])> {
    let (header, rest) = payload.split_first_chunk::<RECORD_HEADER>()?;
    let (revision, numbers) = header.split_first_chunk::<8>()?;
    let index = u32::from_le_bytes(*numbers.first_chunk()?);
    let length = u32::from_le_bytes(*numbers.last_chunk()?) as usize;
    let (bytes, behind) = rest.split_at_checked(length)?;
    let at = Position { revision: Revision::from_le_bytes(*revision), index };
    Some((at, bytes, behind))
}

#[cfg(test)]
mod tests {
    use ::redb::backends::InMemoryBackend;

    use super::*;

    fn records(revisions: std::ops::Range<Revision>) -> Vec<Record> {
        let of = |revision: Revision| (Position { revision, index: 3 }, format!("record {revision}").into_bytes());
        revisions.map(of).collect()
    }

    fn append(journal: &mut Journal, records: &[Record]) {
        journal.make_room(records).unwrap();
        journal.append(records).unwrap();
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
        append(&mut journal, &records(1..3));
        append(&mut journal, &records(3..4));
        assert_eq!(read(&content(&journal), 7).unwrap(), records(1..4));
        assert_eq!(read(&content(&journal), 8).unwrap(), [], "of another epoch");
        journal.begin(8);
        assert_eq!(read(&content(&journal), 8).unwrap(), []);
        // As long as the first frame, so that the second of the old epoch follows.
        append(&mut journal, &records(4..6));
        assert_eq!(read(&content(&journal), 8).unwrap(), records(4..6));
        journal.truncate().unwrap();
        append(&mut journal, &records(6..7));
        assert_eq!(read(&content(&journal), 8).unwrap(), records(6..7));
    }

    #[test]
    fn a_torn_frame_ends_the_journal_whatever_is_torn() {
        let (mut journal, _) = Journal::open(Box::new(InMemoryBackend::new()), 7).unwrap();
        append(&mut journal, &records(1..2));
        let whole = usize::try_from(journal.end).unwrap();
        append(&mut journal, &records(2..4));
        let end = usize::try_from(journal.end).unwrap();
        let content = &content(&journal)[..end + 100];
        for place in whole..end {
            let mut torn = content.to_vec();
            torn[place] ^= 0x40;
            assert_eq!(read(&torn, 7).unwrap(), records(1..2), "byte {place}");
            assert_eq!(read(&content[..place], 7).unwrap(), records(1..2), "the first {place} bytes");
        }
        assert_eq!(read(&content[..end], 7).unwrap(), records(1..4));
    }

    #[test]
    fn a_large_batch_and_a_small_one_behind_it_fit() {
        let (mut journal, _) = Journal::open(Box::new(InMemoryBackend::new()), 1).unwrap();
        let large = vec![(Position { revision: 1, index: 0 }, vec![1; 3 << 20])];
        append(&mut journal, &large);
        append(&mut journal, &records(2..3));
        assert_eq!(read(&content(&journal), 1).unwrap(), [large, records(2..3)].concat());
        assert!(journal.frame.capacity() < 1 << 20);
    }

    #[test]
    fn a_frame_that_was_damaged_before_the_last_one_is_no_torn_end() {
        let (mut journal, _) = Journal::open(Box::new(InMemoryBackend::new()), 7).unwrap();
        append(&mut journal, &records(1..3));
        let first = usize::try_from(journal.end).unwrap();
        append(&mut journal, &records(3..4));
        let content = &content(&journal)[..usize::try_from(journal.end).unwrap() + 100];
        for place in 0..first {
            let mut damaged = content.to_vec();
            damaged[place] ^= 0x40;
            assert!(matches!(read(&damaged, 7), Err(LogError::Damaged { at: 0 })), "byte {place}");
            assert_eq!(read(&damaged, 8).unwrap(), [], "nothing of another epoch is missed");
        }
        let mut lost = content.to_vec();
        lost[..first].fill(0);
        assert!(matches!(read(&lost, 7), Err(LogError::Damaged { at: 0 })));
    }

    #[test]
    fn a_journal_that_has_no_room_is_as_it_was() {
        /// A disk that is full at 300 KiB.
        #[derive(Debug)]
        struct Small(InMemoryBackend);
        impl StorageBackend for Small {
            fn len(&self) -> io::Result<u64> {
                self.0.len()
            }
            fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
                self.0.read(offset, out)
            }
            fn set_len(&self, length: u64) -> io::Result<()> {
                self.0.set_len(length)
            }
            fn sync_data(&self) -> io::Result<()> {
                self.0.sync_data()
            }
            fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
                if offset + data.len() as u64 > 300 << 10 {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                self.0.write(offset, data)
            }
        }
        let disk = Small(InMemoryBackend::new());
        let (mut journal, _) = Journal::open(Box::new(disk), 7).unwrap();
        append(&mut journal, &records(1..2));
        let large = vec![(Position { revision: 2, index: 0 }, vec![1; 256 << 10])];
        assert_eq!(journal.make_room(&large).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(journal.device.len().unwrap(), GROWTH);
        append(&mut journal, &records(2..3));
        assert_eq!(read(&content(&journal), 7).unwrap(), records(1..3));
    }
}
