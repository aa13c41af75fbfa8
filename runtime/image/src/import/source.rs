//! Files by name, from a folder or from inside of a tar.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use crate::layer::archive::{Archive, Kind, cut};
use crate::layer::{Decoder, tree::Tree};
use crate::store::Temp;
use crate::{Error, Limits};

/// More than any archive of images has.
const MAX_ENTRIES: usize = 100_000;
const MAX_LINKS: usize = 8;

pub(super) struct Source {
    label: String,
    kind: Kinds,
}

enum Kinds {
    Folder(Tree),
    /// The tar stays as it is; files are read where they lie in it.
    Archive(PathBuf, HashMap<Vec<u8>, Place>),
}

#[derive(Clone, Debug)]
enum Place {
    File { offset: u64, size: u64 },
    Link(Vec<u8>),
}

impl Source {
    /// Opens a folder, a tar, or a compressed tar, which is decompressed into `temp` first.
    pub fn open(path: &Path, temp: &Temp, limits: &Limits) -> Result<Self, Error> {
        let label = path.display().to_string();
        let file = File::open(path).map_err(Error::io("open", path))?;
        if file.metadata().map_err(Error::io("open", path))?.is_dir() {
            return Ok(Self { label, kind: Kinds::Folder(Tree::open(path).map_err(Error::io("open", path))?) });
        }
        let decoder = Decoder::new(BufReader::new(file)).map_err(cut)?;
        let tar = if matches!(decoder, Decoder::Plain(_)) {
            path.to_owned()
        } else {
            let plain = temp.path().join("archive.tar");
            let mut out = File::create(&plain).map_err(Error::io("create", &plain))?;
            let size = io::copy(&mut decoder.take(limits.unpacked_bytes + 1), &mut out).map_err(cut)?;
            if size > limits.unpacked_bytes {
                let problem = format!("it unpacks to more than {} bytes", limits.unpacked_bytes);
                return Err(Error::TooLarge { what: label, problem });
            }
            plain
        };
        let index = index(&tar, &label)?;
        Ok(Self { label, kind: Kinds::Archive(tar, index) })
    }

    pub fn has(&self, name: &str) -> bool {
        self.open_file(name).is_ok()
    }

    pub fn size(&self, name: &str) -> Result<u64, Error> {
        self.open_file(name).map(|(_, size)| size)
    }

    /// Opens a file for reading, and tells its size.
    pub fn open_file(&self, name: &str) -> Result<(Box<dyn Read + '_>, u64), Error> {
        let missing = || Error::Malformed { what: self.label.clone(), problem: format!("{name} is missing") };
        match &self.kind {
            Kinds::Folder(tree) => {
                let how = OpenHow::new()
                    .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)
                    .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
                let file = File::from(openat2(tree.root(), name, how).map_err(|_| missing())?);
                let found = file.metadata().map_err(|_| missing())?;
                if found.is_file() { Ok((Box::new(file), found.len())) } else { Err(missing()) }
            }
            Kinds::Archive(path, index) => {
                let mut place = index.get(name.as_bytes()).ok_or_else(missing)?;
                for _ in 0..MAX_LINKS {
                    let Place::Link(target) = place else { break };
                    place = index.get(target).ok_or_else(missing)?;
                }
                let Place::File { offset, size } = place else { return Err(missing()) };
                let mut file = File::open(path).map_err(Error::io("open", path))?;
                file.seek(SeekFrom::Start(*offset)).map_err(Error::io("seek", path))?;
                Ok((Box::new(file.take(*size)), *size))
            }
        }
    }
}

/// Where each file of a tar lies. Entries that aren't files or links are of no interest.
fn index(path: &Path, label: &str) -> Result<HashMap<Vec<u8>, Place>, Error> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let mut archive = Archive::new(Positioned { reader: BufReader::with_capacity(64 << 10, file), position: 0 });
    let mut index = HashMap::new();
    let mut first = true;
    loop {
        let entry = match archive.next() {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok(index),
            // What doesn't even begin like one is no damaged archive.
            Err(Error::Malformed { problem, .. }) if first => {
                let problem =
                    format!("it is no OCI layout, no docker archive and no compressed one of them: {problem}");
                return Err(Error::Malformed { what: label.to_owned(), problem });
            }
            Err(error) => return Err(error),
        };
        first = false;
        if index.len() >= MAX_ENTRIES {
            let problem = format!("more than {MAX_ENTRIES} entries");
            return Err(Error::TooLarge { what: label.to_owned(), problem });
        }
        let Some(name) = resolve(b"", &entry.name) else { continue };
        let place = match entry.kind {
            Kind::File if entry.is_whole() => Place::File { offset: archive.get_ref().position, size: entry.size },
            Kind::Symlink => {
                let folder = name.iter().rposition(|byte| *byte == b'/').map_or(&b""[..], |slash| &name[..slash]);
                let Some(target) = resolve(folder, &entry.link) else { continue };
                Place::Link(target)
            }
            Kind::HardLink => {
                let Some(target) = resolve(b"", &entry.link) else { continue };
                Place::Link(target)
            }
            _ => continue,
        };
        index.insert(name, place);
    }
}

/// A name as index keys are: without dots and doubled slashes; `None` if it leads out of the archive.
fn resolve(folder: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in folder.split(|byte| *byte == b'/').chain(name.split(|byte| *byte == b'/')) {
        match part {
            b"" | b"." => {}
            b".." => _ = parts.pop()?,
            part => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}

struct Positioned<R> {
    reader: R,
    position: u64,
}

impl<R: Read> Read for Positioned<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let size = self.reader.read(buffer)?;
        self.position += size as u64;
        Ok(size)
    }
}
