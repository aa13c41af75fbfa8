//! Reading an image's files through all its layers, as overlay would show them, without mounting anything.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag};

use crate::Error;
use crate::layer::tree::{MAX_LINKS, OPAQUE, is, is_whiteout, open_child, proc_path, stat};

/// The root of the merged layers.
pub(crate) struct Merged {
    root: Arc<Vec<OwnedFd>>,
}

/// Where a path leads.
pub(crate) enum Found {
    /// The path without links, and the directories that are merged in it, topmost first.
    Directory(Vec<Vec<u8>>, Arc<Vec<OwnedFd>>),
    File(OwnedFd),
    /// A device, a socket, a pipe.
    Other,
}

impl Merged {
    /// Opens layers, topmost first.
    pub fn open(layers: &[PathBuf]) -> Result<Self, Error> {
        let open = |path: &PathBuf| File::open(path).map(OwnedFd::from).map_err(Error::io("open", path));
        Ok(Self { root: Arc::new(layers.iter().map(open).collect::<Result<_, _>>()?) })
    }

    /// Reads a file of at most `max` bytes.
    pub fn read(&self, path: &str, max: u64) -> Result<Option<Vec<u8>>, Error> {
        let failed = |error: io::Error| Error::io("read", Path::new("image").join(path.trim_start_matches('/')))(error);
        let Some(Found::File(file)) = self.find(path.as_bytes()).map_err(|error| failed(error.into()))? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        File::from(file).take(max + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > max {
            return Err(Error::TooLarge { what: format!("{path} of the image"), problem: format!("over {max} bytes") });
        }
        Ok(Some(bytes))
    }

    /// Follows a path and the links on it, all within the image. Nothing found is `None`, also where a link loops.
    pub fn find(&self, path: &[u8]) -> Result<Option<Found>, Errno> {
        let mut queue: VecDeque<Vec<u8>> = path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect();
        let mut names: Vec<Vec<u8>> = Vec::new();
        let mut dirs = vec![Arc::clone(&self.root)];
        let mut links = 0;
        while let Some(name) = queue.pop_front() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    if names.pop().is_some() {
                        dirs.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let at = dirs.last().unwrap_or(&self.root);
            match look(at, &name)? {
                Some(Look::Directory(inside)) => {
                    names.push(name);
                    dirs.push(Arc::new(inside));
                }
                Some(Look::Link(target)) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Ok(None);
                    }
                    if target.starts_with(b"/") {
                        names.clear();
                        dirs.truncate(1);
                    }
                    for part in target.split(|byte| *byte == b'/').rev() {
                        queue.push_front(part.to_vec());
                    }
                }
                Some(Look::Leaf(found, dir)) if queue.is_empty() => {
                    if !is(&found, SFlag::S_IFREG) {
                        return Ok(Some(Found::Other));
                    }
                    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
                    let file = openat(at[dir].as_fd(), OsStr::from_bytes(&name), flags, Mode::empty())?;
                    return Ok(Some(Found::File(file)));
                }
                Some(Look::Leaf(..)) | None => return Ok(None),
            }
        }
        Ok(Some(Found::Directory(names, Arc::clone(dirs.last().unwrap_or(&self.root)))))
    }
}

enum Look {
    Directory(Vec<OwnedFd>),
    Link(Vec<u8>),
    /// Anything else, and in which of the directories it lies.
    Leaf(FileStat, usize),
}

/// What merged directories show under a name: the topmost entry, and for directories all below up to a whiteout, an
/// opaque directory or something that isn't a directory.
fn look(dirs: &[OwnedFd], name: &[u8]) -> Result<Option<Look>, Errno> {
    let mut inside = Vec::new();
    for (number, dir) in dirs.iter().enumerate() {
        let Some(found) = stat(dir, name)? else { continue };
        if is(&found, SFlag::S_IFDIR) {
            let child = open_child(dir, name)?;
            let opaque = is_opaque(child.as_fd());
            inside.push(child);
            if opaque {
                break;
            }
        } else if !inside.is_empty() || is_whiteout(&found) {
            break;
        } else if is(&found, SFlag::S_IFLNK) {
            return Ok(Some(Look::Link(readlinkat(dir, OsStr::from_bytes(name))?.into_vec())));
        } else {
            return Ok(Some(Look::Leaf(found, number)));
        }
    }
    Ok((!inside.is_empty()).then_some(Look::Directory(inside)))
}

pub(crate) fn is_opaque(dir: BorrowedFd<'_>) -> bool {
    matches!(xattr::get(proc_path(dir, b"."), OPAQUE), Ok(Some(value)) if value == b"y")
}
