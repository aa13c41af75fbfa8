//! A tar reader for layers: bounded in memory, and strict where readers are known to disagree.
//!
//! The `tar` crate decodes the fields of a header block. Framing and extension headers are ours, because that crate
//! reads an extension of any size into memory, and because an archive that two readers understand differently is
//! refused here rather than guessed at (CVE-2025-62518 is the example).

use std::io::{self, Read};

use tar::Header;

use super::sparse::{self, Segment};
use crate::Error;

const BLOCK: usize = 512;
/// Longest extension (a long name, or all pax records of one entry).
const MAX_EXTENSION: u64 = 1 << 20;
/// From this size on a header's own field is too short, and only the pax record counts.
const MAX_OCTAL_SIZE: u64 = 0o77_777_777_777;
const MAX_NAME: usize = 4096;

/// Names and values.
pub(super) type Records = Vec<(Vec<u8>, Vec<u8>)>;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// One entry, its extensions applied.
#[derive(Debug)]
pub(crate) struct Entry {
    pub name: Vec<u8>,
    pub kind: Kind,
    /// Bytes of a file when it is unpacked.
    pub size: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Where a link goes.
    pub link: Vec<u8>,
    pub device: (u32, u32),
    pub xattrs: Records,
    /// Where the stored bytes belong in a sparse file; a file without holes is one segment.
    pub segments: Vec<Segment>,
}

impl Entry {
    pub fn label(&self) -> String {
        String::from_utf8_lossy(&self.name).into_owned()
    }

    /// The stored bytes are the file.
    pub fn is_whole(&self) -> bool {
        matches!(self.segments.as_slice(), [only] if only.offset == 0 && only.bytes == self.size)
    }
}

/// Extensions that wait for their entry.
#[derive(Default)]
struct Pending {
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: Option<Records>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.long_name.is_none() && self.long_link.is_none() && self.pax.is_none()
    }

    fn pax(&self, key: &str) -> Option<&[u8]> {
        let records = self.pax.as_ref()?;
        records.iter().rev().find(|(name, _)| name == key.as_bytes()).map(|(_, value)| value.as_slice())
    }
}

pub(crate) struct Archive<R> {
    reader: R,
    /// Stored bytes of the current entry that are still to come, then padding.
    left: u64,
    padding: u64,
}

impl<R: Read> Archive<R> {
    pub fn new(reader: R) -> Self {
        Self { reader, left: 0, padding: 0 }
    }

    pub fn get_ref(&self) -> &R {
        &self.reader
    }

    /// Ends the archive and gives the stream back, which may hold more.
    pub fn into_inner(self) -> R {
        self.reader
    }

    /// The next entry, or `None` at the end mark or the end of the stream. What is left of the entry before is skipped.
    pub fn next(&mut self) -> Result<Option<Entry>, Error> {
        let mut pending = Pending::default();
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else {
                if pending.is_empty() {
                    return Ok(None);
                }
                return Err(malformed("the archive ends after an extension header"));
            };
            let label = String::from_utf8_lossy(&header.path_bytes()).into_owned();
            let size = header.entry_size().map_err(|error| malformed(error.to_string()))?;
            match header.as_bytes()[156] {
                b'L' => self.long(&mut pending.long_name, size, &label)?,
                b'K' => self.long(&mut pending.long_link, size, &label)?,
                b'x' | b'X' => {
                    if pending.pax.is_some() {
                        return Err(hostile(&label, "two pax headers for one entry"));
                    }
                    pending.pax = Some(records(&self.extension(size, &label)?, &label)?);
                }
                b'g' => {
                    let global = records(&self.extension(size, &label)?, &label)?;
                    if let Some((key, _)) = global.iter().find(|(key, _)| key != b"comment") {
                        let key = String::from_utf8_lossy(key);
                        return Err(hostile(&label, format!("a global pax header sets {key}")));
                    }
                }
                kind => return self.entry(&header, kind, size, &pending).map(Some),
            }
        }
    }

    /// Reads stored bytes of the current entry.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let size = self.reader.read(&mut buffer[..most])?;
        if size == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= size as u64;
        Ok(size)
    }

    fn entry(&mut self, header: &Header, kind: u8, stored: u64, pending: &Pending) -> Result<Entry, Error> {
        let name = self::name(header.path_bytes().to_vec(), pending.long_name.as_ref(), pending.pax("path"), "path")?;
        let label = String::from_utf8_lossy(&name).into_owned();
        let link = header.link_name_bytes().map(|link| link.to_vec()).unwrap_or_default();
        let link = self::name(link, pending.long_link.as_ref(), pending.pax("linkpath"), "linkpath")?;
        let kind = match kind {
            // Before POSIX a directory was a file with a slash.
            0 | b'0' | b'7' if name.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => return Err(hostile(&label, format!("entry type {:?} is not supported", char::from(other)))),
        };
        let number = |key: &str, field: io::Result<u64>| match pending.pax(key) {
            Some(text) => decimal(text).ok_or_else(|| hostile(&label, format!("pax {key} is not a number"))),
            None => field.map_err(|error| malformed(format!("{label}: {error}"))),
        };
        let stored = match pending.pax("size") {
            Some(_) => {
                let size = number("size", Ok(0))?;
                if size != stored && size <= MAX_OCTAL_SIZE {
                    return Err(hostile(&label, format!("two sizes: {stored} in the header, {size} in pax")));
                }
                size
            }
            None => stored,
        };
        if kind != Kind::File && stored != 0 {
            return Err(hostile(&label, "content in an entry that has none"));
        }
        self.left = stored;
        self.padding = padding(stored);
        let owner = |key: &str, field| {
            let id = u32::try_from(number(key, field)?).ok().filter(|id| *id != u32::MAX);
            id.ok_or_else(|| hostile(&label, format!("{key} is out of range")))
        };
        let mut entry = Entry {
            kind,
            size: stored,
            mode: header.mode().map_err(|error| malformed(format!("{label}: {error}")))? & 0o7777,
            uid: owner("uid", header.uid())?,
            gid: owner("gid", header.gid())?,
            mtime: match pending.pax("mtime") {
                Some(text) => timestamp(text).ok_or_else(|| hostile(&label, "pax mtime is not a time"))?,
                // A field with a negative or absurd time is no reason to refuse the file.
                None => (header.mtime().ok().and_then(|time| i64::try_from(time).ok()).unwrap_or(0), 0),
            },
            link,
            device: match kind {
                Kind::CharDevice | Kind::BlockDevice => {
                    let part = |part: io::Result<Option<u32>>| part.ok().flatten();
                    part(header.device_major())
                        .zip(part(header.device_minor()))
                        .ok_or_else(|| malformed(format!("{label}: device numbers")))?
                }
                _ => (0, 0),
            },
            xattrs: xattrs(pending),
            segments: vec![Segment { offset: 0, bytes: stored }],
            name,
        };
        if kind == Kind::File {
            self.holes(header, pending, &mut entry)?;
        }
        Ok(entry)
    }

    /// Finds the segments of a sparse file, whichever of the four ways it is written.
    fn holes(&mut self, header: &Header, pending: &Pending, entry: &mut Entry) -> Result<(), Error> {
        let label = entry.label();
        let bad = |problem: &str| hostile(&label, format!("sparse file: {problem}"));
        let found = if header.as_bytes()[156] == b'S' {
            let gnu = header.as_gnu().ok_or_else(|| bad("no GNU header"))?;
            let mut map = sparse::from_fields(gnu.sparse.iter().map(|field| (field.offset, field.numbytes)));
            let mut more = gnu.is_extended();
            while more {
                let mut block = [0; BLOCK];
                self.reader.read_exact(&mut block).map_err(cut)?;
                map.extend(sparse::from_fields(sparse::flatten(&block)));
                more = block[504] == 1;
                sparse::check_count(map.len()).map_err(bad)?;
            }
            let map: Option<Vec<Segment>> = map.into_iter().collect();
            let size = gnu.real_size().ok();
            Some((map.ok_or_else(|| bad("its map is broken"))?, size.ok_or_else(|| bad("its size is broken"))?))
        } else if pending.pax.iter().flatten().any(|(key, _)| key.starts_with(b"GNU.sparse.")) {
            if let Some(name) = pending.pax("GNU.sparse.name") {
                entry.name = name.to_vec();
            }
            let size = pending.pax("GNU.sparse.realsize").or_else(|| pending.pax("GNU.sparse.size"));
            let size = size.and_then(decimal).ok_or_else(|| bad("its size is missing"))?;
            let map = if pending.pax("GNU.sparse.major") == Some(b"1") {
                self.sparse_map(&label)?
            } else {
                sparse::from_pax(pending.pax.as_deref().unwrap_or_default()).ok_or_else(|| bad("its map is broken"))?
            };
            Some((map, size))
        } else {
            None
        };
        if let Some((segments, size)) = found {
            sparse::check(&segments, size, self.left).map_err(bad)?;
            entry.segments = segments;
            entry.size = size;
        }
        Ok(())
    }

    /// Format 1.0 keeps the map as decimal lines in front of the content, filled up to a block.
    fn sparse_map(&mut self, label: &str) -> Result<Vec<Segment>, Error> {
        let bad = |problem: &str| hostile(label, format!("sparse file: {problem}"));
        let mut numbers: Vec<u64> = Vec::new();
        let mut line = Vec::new();
        loop {
            let mut block = [0; BLOCK];
            if self.left < BLOCK as u64 {
                return Err(bad("its map is cut off"));
            }
            self.reader.read_exact(&mut block).map_err(cut)?;
            self.left -= BLOCK as u64;
            for byte in block {
                let wanted = numbers.first().map_or(1, |count| count.saturating_mul(2).saturating_add(1));
                if numbers.len() as u64 >= wanted {
                    break;
                }
                if byte == b'\n' {
                    numbers.push(decimal(&line).ok_or_else(|| bad("its map is broken"))?);
                    line.clear();
                } else {
                    line.push(byte);
                }
            }
            sparse::check_count(numbers.len() / 2).map_err(bad)?;
            if line.len() > 20 {
                return Err(bad("its map is broken"));
            }
            if numbers.first().is_some_and(|count| numbers.len() as u64 > count.saturating_mul(2)) {
                return Ok(numbers[1..].chunks_exact(2).map(|p| Segment { offset: p[0], bytes: p[1] }).collect());
            }
        }
    }

    fn header(&mut self) -> Result<Option<Header>, Error> {
        let Some(header) = self.block()? else { return Ok(None) };
        if header.as_bytes().iter().any(|byte| *byte != 0) {
            check_sum(&header)?;
            return Ok(Some(header));
        }
        match self.block()? {
            Some(second) if second.as_bytes().iter().any(|byte| *byte != 0) => {
                Err(hostile("", "entries follow a half end mark"))
            }
            _ => Ok(None),
        }
    }

    /// A block, or nothing where the stream ends before it.
    fn block(&mut self) -> Result<Option<Header>, Error> {
        let mut header = Header::new_old();
        let bytes = header.as_mut_bytes();
        let mut have = 0;
        while have < BLOCK {
            match self.reader.read(&mut bytes[have..]) {
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) => return Err(malformed("it ends inside of a header")),
                Ok(size) => have += size,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(cut(error)),
            }
        }
        Ok(Some(header))
    }

    fn skip_rest(&mut self) -> Result<(), Error> {
        let mut rest = self.left.saturating_add(self.padding);
        let mut buffer = [0; 8192];
        while rest > 0 {
            let most = usize::try_from(rest).map_or(buffer.len(), |rest| rest.min(buffer.len()));
            match self.reader.read(&mut buffer[..most]) {
                Ok(0) => return Err(malformed("it ends inside of an entry")),
                Ok(size) => rest -= size as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(cut(error)),
            }
        }
        self.left = 0;
        self.padding = 0;
        Ok(())
    }

    fn long(&mut self, slot: &mut Option<Vec<u8>>, size: u64, label: &str) -> Result<(), Error> {
        if slot.is_some() {
            return Err(hostile(label, "two long names for one entry"));
        }
        let mut name = self.extension(size, label)?;
        if let Some(end) = name.iter().position(|byte| *byte == 0) {
            if name[end..].iter().any(|byte| *byte != 0) {
                return Err(hostile(label, "a long name with a NUL inside"));
            }
            name.truncate(end);
        }
        *slot = Some(name);
        Ok(())
    }

    fn extension(&mut self, size: u64, label: &str) -> Result<Vec<u8>, Error> {
        if size > MAX_EXTENSION {
            let problem = format!("an extension header of {size} bytes, over {MAX_EXTENSION}");
            return Err(Error::TooLarge { what: format!("layer entry {label:?}"), problem });
        }
        let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
        self.reader.read_exact(&mut bytes).map_err(cut)?;
        self.padding = padding(size);
        Ok(bytes)
    }
}

/// Content is filled up to whole blocks.
fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

pub(crate) fn hostile(entry: &str, problem: impl Into<String>) -> Error {
    Error::Hostile { entry: entry.to_owned(), problem: problem.into() }
}

fn malformed(problem: impl Into<String>) -> Error {
    Error::Malformed { what: "layer archive".to_owned(), problem: problem.into() }
}

/// An error of the stream below: ours if it carries one, else the archive is cut off or undecodable.
pub(crate) fn cut(error: io::Error) -> Error {
    if error.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<Error>) {
        let inner = error.into_inner().and_then(|inner| inner.downcast::<Error>().ok());
        return inner.map_or(Error::Cancelled, |inner| *inner);
    }
    match error.kind() {
        io::ErrorKind::UnexpectedEof => malformed("it is cut off"),
        _ => malformed(error.to_string()),
    }
}

fn check_sum(header: &Header) -> Result<(), Error> {
    let bytes = header.as_bytes();
    let blank = |(at, byte): (usize, &u8)| if (148..156).contains(&at) { b' ' } else { *byte };
    let unsigned: u32 = bytes.iter().enumerate().map(|pair| u32::from(blank(pair))).sum();
    // Some old writers summed signed characters.
    let signed: i64 = bytes.iter().enumerate().map(|pair| i64::from(blank(pair).cast_signed())).sum();
    match header.cksum() {
        Ok(sum) if sum == unsigned || i64::from(sum) == signed => Ok(()),
        _ => Err(malformed("a header has a wrong checksum")),
    }
}

/// The name in force: at most one extension may give it.
fn name(field: Vec<u8>, long: Option<&Vec<u8>>, pax: Option<&[u8]>, what: &str) -> Result<Vec<u8>, Error> {
    let label = String::from_utf8_lossy(&field).into_owned();
    let name = match (long, pax) {
        (Some(_), Some(_)) => return Err(hostile(&label, format!("two {what}s, from GNU and pax headers"))),
        (Some(long), None) => long.clone(),
        (None, Some(pax)) => pax.to_vec(),
        (None, None) => field,
    };
    if name.contains(&0) || name.len() > MAX_NAME {
        return Err(hostile(&label, format!("a {what} with a NUL inside or over {MAX_NAME} bytes")));
    }
    Ok(name)
}

/// Pax records: `LENGTH KEY=VALUE\n`, the length counting itself.
fn records(mut bytes: &[u8], label: &str) -> Result<Records, Error> {
    let bad = || hostile(label, "a broken pax record");
    let mut found = Records::new();
    while !bytes.is_empty() {
        let space = bytes.iter().take(21).position(|byte| *byte == b' ').ok_or_else(bad)?;
        let length = decimal(&bytes[..space]).and_then(|length| usize::try_from(length).ok()).ok_or_else(bad)?;
        if length <= space + 1 || length > bytes.len() || bytes[length - 1] != b'\n' {
            return Err(bad());
        }
        let record = &bytes[space + 1..length - 1];
        let equals = record.iter().position(|byte| *byte == b'=').filter(|at| *at > 0).ok_or_else(bad)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        let once = matches!(key, b"path" | b"linkpath" | b"size");
        if once && found.iter().any(|(other, _)| other == key) {
            return Err(hostile(label, format!("pax {} is given twice", String::from_utf8_lossy(key))));
        }
        found.push((key.to_vec(), value.to_vec()));
        bytes = &bytes[length..];
    }
    Ok(found)
}

fn xattrs(pending: &Pending) -> Records {
    let records = pending.pax.iter().flatten();
    records.filter_map(|(key, value)| Some((key.strip_prefix(b"SCHILY.xattr.")?.to_vec(), value.clone()))).collect()
}

pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `1700000000.123456789`, possibly negative; digits beyond nanoseconds are dropped.
fn timestamp(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let whole: i64 = seconds.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanos: u32 = format!("{fraction:0<9.9}").parse().ok()?;
    match (seconds.starts_with('-'), nanos) {
        (true, 1..) => Some((whole.checked_sub(1)?, 1_000_000_000 - nanos)),
        _ => Some((whole, nanos)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_fractions_and_signs() {
        assert_eq!(timestamp(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(timestamp(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(timestamp(b"7.1234567899"), Some((7, 123_456_789)));
        assert_eq!(timestamp(b"7"), Some((7, 0)));
        assert_eq!(timestamp(b"7.x"), None);
    }

    #[test]
    fn pax_records_are_counted_exactly() {
        assert_eq!(records(b"12 path=a/b\n", "").unwrap(), [(b"path".to_vec(), b"a/b".to_vec())]);
        for broken in
            [&b"13 path=a/b\n"[..], b"11 path=a/b\n", b"path=a/b\n", b"2 \n", b"6 =a/\n", b"99999999999999999999999 "]
        {
            assert!(records(broken, "").is_err(), "{}", String::from_utf8_lossy(broken));
        }
        assert!(records(b"12 path=a/b\n12 path=a/c\n", "").is_err());
    }
}
