//! From transported bytes to an unpacked directory, in one pass: count and hash, decompress, count and hash, unpack.

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;

use super::archive::{Archive, cut};
use super::unpack::{Written, unpack};
use crate::digest::{Digest, Hashing};
use crate::{Error, Limits};

/// Below this a layer may be as compressible as it likes.
const RATIO_FLOOR: u64 = 256 << 20;

/// What a layer must turn out to be; `None` where an archive doesn't say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expected {
    pub digest: Option<Digest>,
    pub size: Option<u64>,
    pub diff_id: Option<Digest>,
}

/// What it turned out to be.
#[derive(Clone, Debug)]
pub(crate) struct Unpacked {
    /// Digest and number of the transported bytes.
    pub digest: Digest,
    pub size: u64,
    /// Digest of the decompressed archive.
    pub diff_id: Digest,
    pub written: Written,
}

/// Unpacks a stream into the empty directory `root`, and checks all digests and sizes at its end: the caller removes
/// the directory on an error.
pub(crate) fn unpack_stream(
    what: &str,
    stream: impl Read,
    expected: &Expected,
    root: &Path,
    limits: &Limits,
) -> Result<Unpacked, Error> {
    let most = expected.size.unwrap_or(limits.layer_bytes);
    if most > limits.layer_bytes {
        let problem = format!("{most} bytes, and {} are allowed", limits.layer_bytes);
        return Err(Error::TooLarge { what: what.to_owned(), problem });
    }
    let arrived = Rc::new(Cell::new(0));
    let counted = Counted { reader: stream, arrived: Rc::clone(&arrived), most, what: what.to_owned() };
    let mut transported = BufReader::with_capacity(64 << 10, Hashing::new(counted));
    let plain = Decoder::new(&mut transported).map_err(cut)?;
    let bounded = Bounded { reader: plain, bytes: 0, arrived, limits: limits.clone(), what: what.to_owned() };
    let mut archive = Archive::new(BufReader::with_capacity(64 << 10, Hashing::new(bounded)));
    let written = unpack(&mut archive, root, limits)?;
    // The digests are of everything, also of what follows the archive's end mark.
    let mut rest = archive.into_inner();
    io::copy(&mut rest, &mut io::sink()).map_err(cut)?;
    let (diff_id, _) = rest.into_inner().finish();
    io::copy(&mut transported, &mut io::sink()).map_err(cut)?;
    let (digest, size) = transported.into_inner().finish();

    let corrupt = |problem: String| Error::Corrupt { what: what.to_owned(), problem };
    if let Some(expected) = expected.size.filter(|expected| *expected != size) {
        return Err(corrupt(format!("it has {size} bytes instead of {expected}")));
    }
    if let Some(expected) = expected.digest.as_ref().filter(|expected| **expected != digest) {
        return Err(corrupt(format!("its digest is {digest} instead of {expected}")));
    }
    if let Some(expected) = expected.diff_id.as_ref().filter(|expected| **expected != diff_id) {
        return Err(corrupt(format!("its unpacked digest is {diff_id} instead of {expected}")));
    }
    Ok(Unpacked { digest, size, diff_id, written })
}

/// Counts what arrives and stops at the declared size.
struct Counted<R> {
    reader: R,
    arrived: Rc<Cell<u64>>,
    most: u64,
    what: String,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let size = self.reader.read(buffer)?;
        let arrived = self.arrived.get() + size as u64;
        self.arrived.set(arrived);
        if arrived > self.most {
            let problem = format!("more than its {} bytes arrived", self.most);
            return Err(io::Error::other(Error::TooLarge { what: self.what.clone(), problem }));
        }
        Ok(size)
    }
}

/// Stops a stream that decompresses to too much.
struct Bounded<R> {
    reader: R,
    bytes: u64,
    arrived: Rc<Cell<u64>>,
    limits: Limits,
    what: String,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let size = self.reader.read(buffer)?;
        self.bytes += size as u64;
        let refuse = |problem: String| io::Error::other(Error::TooLarge { what: self.what.clone(), problem });
        if self.bytes > self.limits.unpacked_bytes {
            return Err(refuse(format!("it unpacks to more than {} bytes", self.limits.unpacked_bytes)));
        }
        if self.bytes > RATIO_FLOOR && self.bytes / self.limits.ratio > self.arrived.get() {
            return Err(refuse(format!("it unpacks to more than {} times its size", self.limits.ratio)));
        }
        Ok(size)
    }
}

/// Bytes that were looked at, then the rest.
type Peeked<R> = io::Chain<io::Cursor<Vec<u8>>, R>;

/// Decompresses by what the bytes are, not by what they are said to be, as container runtimes do.
pub(crate) enum Decoder<R: BufRead> {
    Plain(Peeked<R>),
    Gzip(Box<MultiGzDecoder<Peeked<R>>>),
    Zstd(Box<zstd::Decoder<'static, Peeked<R>>>),
}

impl<R: BufRead> Decoder<R> {
    pub fn new(mut reader: R) -> io::Result<Self> {
        let mut start = Vec::new();
        reader.by_ref().take(6).read_to_end(&mut start)?;
        let peeked = io::Cursor::new(start.clone()).chain(reader);
        Ok(match start.as_slice() {
            [0x1f, 0x8b, ..] => Self::Gzip(Box::new(MultiGzDecoder::new(peeked))),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                let mut decoder = zstd::Decoder::with_buffer(peeked)?;
                // 128 MiB: larger windows are memory bombs, and no image needs them.
                decoder.window_log_max(27)?;
                Self::Zstd(Box::new(decoder))
            }
            [0xfd, b'7', b'z', b'X', b'Z', ..] | [b'B', b'Z', b'h', ..] => {
                let problem = "compressed by a method that images don't use".to_owned();
                return Err(io::Error::other(Error::Malformed { what: "layer archive".to_owned(), problem }));
            }
            _ => Self::Plain(peeked),
        })
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(reader) => reader.read(buffer),
            Self::Gzip(reader) => reader.read(buffer),
            Self::Zstd(reader) => reader.read(buffer),
        }
    }
}
