//! Entries of an archive become files of a layer, in the form in which overlay takes lower layers.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, fchmod, futimens, makedev, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat, linkat, symlinkat};
use xattr::FileExt as _;

use super::archive::{Archive, Entry, Kind, cut, hostile};
use super::tree::{self, OPAQUE, Tree, is};
use crate::{Error, Limits};

const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_META: &[u8] = b".wh..wh.";
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";
const MAX_COMPONENTS: usize = 512;
const MAX_REMEMBERED: usize = 128 << 20;

/// Character devices that every container has anyway. Others in an image would open the machine's hardware where no
/// device filter is in force, and none is of use, since a container gets a /dev of its own: they are left out.
const HARMLESS_DEVICES: [(u32, u32); 8] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)];

/// What a layer's directory holds, beyond its files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Written {
    pub entries: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// The layer hides everything below it. Overlay has no mark for that on a layer's root.
    pub opaque_root: bool,
    /// Directories that entries lie in without being entries themselves; their owner and mode are the lower layers'.
    pub implied: BTreeSet<Vec<u8>>,
}

/// Unpacks a whole archive into the empty directory `root`.
pub(crate) fn unpack<R: Read>(archive: &mut Archive<R>, root: &Path, limits: &Limits) -> Result<Written, Error> {
    let tree = Tree::open(root).map_err(Error::io("open", root))?;
    let mut unpacker = Unpacker {
        tree,
        limits,
        written: Written { implied: BTreeSet::from([Vec::new()]), ..Written::default() },
        last_parent: None,
        replaced: false,
        times: Vec::new(),
        remembered: 0,
    };
    while let Some(entry) = archive.next()? {
        unpacker.written.entries += 1;
        if unpacker.written.entries > limits.entries {
            let problem = format!("more than {} entries", limits.entries);
            return Err(Error::TooLarge { what: "layer archive".to_owned(), problem });
        }
        unpacker.entry(&entry, archive)?;
    }
    unpacker.finish()
}

struct Unpacker<'a> {
    tree: Tree,
    limits: &'a Limits,
    written: Written,
    /// Most entries lie in the same directory as the one before. Forgotten whenever a path may have changed its meaning.
    last_parent: Option<(Vec<u8>, OwnedFd)>,
    /// The current entry took the place of another.
    replaced: bool,
    /// Directories' times, set at the end since every new file changes them.
    times: Vec<(Vec<u8>, (i64, u32))>,
    /// Bytes of the paths in `times` and `implied`.
    remembered: usize,
}

impl Unpacker<'_> {
    fn entry<R: Read>(&mut self, entry: &Entry, archive: &mut Archive<R>) -> Result<(), Error> {
        let parts = components(&entry.name, entry)?;
        let Some((name, parents)) = parts.split_last() else {
            return self.root(entry);
        };
        // Bookkeeping of aufs, which some archives still carry.
        if *name != WHITEOUT_OPAQUE && parts.iter().any(|part| part.starts_with(WHITEOUT_META)) {
            return Ok(());
        }
        if parents.iter().any(|part| part.starts_with(WHITEOUT)) {
            return Err(hostile(&entry.label(), "an entry inside of a whiteout"));
        }
        let parent = self.parent(parents, entry)?;
        let result = if *name == WHITEOUT_OPAQUE {
            if parents.is_empty() {
                self.written.opaque_root = true;
                Ok(())
            } else {
                opaque(parent.as_fd(), entry)
            }
        } else if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            whiteout(parent.as_fd(), hidden, entry)
        } else {
            self.create(parent.as_fd(), parents, name, entry, archive)
        };
        if !std::mem::take(&mut self.replaced) {
            self.last_parent = Some((parents.join(&b'/'), parent));
        }
        result
    }

    /// The directory of an entry, from the last one, from the tree, or made now.
    fn parent(&mut self, parents: &[&[u8]], entry: &Entry) -> Result<OwnedFd, Error> {
        let path = parents.join(&b'/');
        if let Some((last, dir)) = self.last_parent.take()
            && last == path
        {
            return Ok(dir);
        }
        match self.tree.dir(&path) {
            Err(Errno::ENOENT) => {}
            found => return found.map_err(failed("open the folder of", entry)),
        }
        let mut made = Vec::new();
        let dir = self
            .tree
            .make_dirs(parents, |path| made.push(path.to_vec()))
            .map_err(failed("make the folder of", entry))?;
        for path in made {
            self.remember(&path)?;
            self.written.implied.insert(path);
        }
        Ok(dir)
    }

    /// Paths are kept in memory until the end, so there is a bound on them.
    fn remember(&mut self, path: &[u8]) -> Result<(), Error> {
        self.remembered += path.len();
        if self.remembered > MAX_REMEMBERED {
            let problem = format!("the names of its folders have more than {MAX_REMEMBERED} bytes");
            return Err(Error::TooLarge { what: "layer archive".to_owned(), problem });
        }
        Ok(())
    }

    fn root(&mut self, entry: &Entry) -> Result<(), Error> {
        if entry.kind != Kind::Directory {
            return Err(hostile(&entry.label(), "the root is not a directory"));
        }
        let root = self.tree.root().try_clone_to_owned().map_err(Error::io("duplicate", "layer root"))?;
        self.directory(&File::from(root), Vec::new(), entry)
    }

    fn create<R: Read>(
        &mut self,
        parent: BorrowedFd<'_>,
        parents: &[&[u8]],
        name: &[u8],
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), Error> {
        let os_name = OsStr::from_bytes(name);
        let mut was_whiteout = false;
        let present = tree::stat(parent, name).map_err(failed("look at", entry))?;
        let keeps = entry.kind == Kind::Directory && present.as_ref().is_some_and(|found| is(found, SFlag::S_IFDIR));
        if let Some(found) = present.filter(|_| !keeps) {
            was_whiteout = tree::is_whiteout(&found);
            if entry.kind == Kind::HardLink && self.is_own_target(parent, name, entry)? {
                return Ok(());
            }
            tree::remove(parent, name).map_err(failed("replace", entry))?;
            self.replaced = true;
        }
        match entry.kind {
            Kind::File => return self.file(parent, name, entry, archive),
            Kind::Directory => {
                if !keeps {
                    mkdirat(parent, os_name, Mode::S_IRWXU).map_err(failed("make", entry))?;
                }
                let dir = File::from(tree::open_child(parent, name).map_err(failed("open", entry))?);
                if was_whiteout {
                    opaque(dir.as_fd(), entry)?;
                }
                let mut path = parents.to_vec();
                path.push(name);
                return self.directory(&dir, path.join(&b'/'), entry);
            }
            Kind::HardLink => return self.hard_link(parent, name, entry),
            Kind::Symlink => {
                if entry.link.is_empty() {
                    return Err(hostile(&entry.label(), "a link to nowhere"));
                }
                symlinkat(OsStr::from_bytes(&entry.link), parent, os_name).map_err(failed("make", entry))?;
            }
            Kind::Fifo => mknodat(parent, os_name, SFlag::S_IFIFO, Mode::S_IRUSR, 0).map_err(failed("make", entry))?,
            Kind::CharDevice if HARMLESS_DEVICES.contains(&entry.device) => {
                let device = makedev(entry.device.0.into(), entry.device.1.into());
                mknodat(parent, os_name, SFlag::S_IFCHR, Mode::S_IRUSR, device).map_err(failed("make", entry))?;
            }
            Kind::CharDevice | Kind::BlockDevice => {
                tracing::debug!(name = entry.label(), device = ?entry.device, "a device node is left out");
                return Ok(());
            }
        }
        special(parent, name, entry)
    }

    fn file<R: Read>(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), Error> {
        self.written.bytes = self.written.bytes.saturating_add(entry.size);
        if self.written.bytes > self.limits.unpacked_bytes {
            let problem = format!("its files have more than {} bytes", self.limits.unpacked_bytes);
            return Err(Error::TooLarge { what: "layer archive".to_owned(), problem });
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(parent, OsStr::from_bytes(name), flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(failed("make", entry))?;
        let mut file = File::from(file);
        content(&mut file, entry, archive)?;
        attributes(&file, entry)?;
        set_times(&file, entry.mtime).map_err(failed("set the times of", entry))
    }

    fn directory(&mut self, dir: &File, path: Vec<u8>, entry: &Entry) -> Result<(), Error> {
        attributes(dir, entry)?;
        self.written.implied.remove(&path);
        self.remember(&path)?;
        self.times.push((path, entry.mtime));
        Ok(())
    }

    /// The directory and name that a hard link is to share its file with: in this layer, and not a directory.
    fn target<'e>(&self, entry: &'e Entry) -> Result<(OwnedFd, &'e [u8]), Error> {
        let parts = components(&entry.link, entry)?;
        let Some((name, parents)) = parts.split_last() else {
            return Err(hostile(&entry.label(), "a hard link to the root"));
        };
        let missing = || hostile(&entry.label(), "a hard link to a file that this layer doesn't have");
        let dir = self.tree.dir(&parents.join(&b'/')).map_err(|_| missing())?;
        match tree::stat(&dir, name).map_err(|_| missing())? {
            None => Err(missing()),
            Some(found) if is(&found, SFlag::S_IFDIR) => Err(hostile(&entry.label(), "a hard link to a directory")),
            Some(_) => Ok((dir, name)),
        }
    }

    /// A hard link whose name is already a link to the same file, itself for example.
    fn is_own_target(&self, parent: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> Result<bool, Error> {
        let (dir, target) = self.target(entry)?;
        let identity = |dir: BorrowedFd<'_>, name| {
            tree::stat(dir, name).map(|found| found.map(|found| (found.st_dev, found.st_ino)))
        };
        let both = (identity(parent, name), identity(dir.as_fd(), target));
        Ok(matches!(both, (Ok(Some(one)), Ok(Some(other))) if one == other))
    }

    fn hard_link(&self, parent: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> Result<(), Error> {
        let (dir, target) = self.target(entry)?;
        linkat(&dir, OsStr::from_bytes(target), parent, OsStr::from_bytes(name), AtFlags::empty())
            .map_err(failed("link", entry))
    }

    fn finish(self) -> Result<Written, Error> {
        for (path, mtime) in self.times.iter().rev() {
            // A folder that a later entry replaced has no times to set.
            if let Ok(dir) = self.tree.dir(path) {
                set_times(&File::from(dir), *mtime).map_err(Error::io_errno("set the times of", "layer folder"))?;
            }
        }
        if self.written.implied.contains(&b""[..]) {
            fchmod(self.tree.root(), Mode::from_bits_truncate(0o755))
                .map_err(Error::io_errno("chmod", "layer root"))?;
        }
        Ok(self.written)
    }
}

fn whiteout(parent: BorrowedFd<'_>, hidden: &[u8], entry: &Entry) -> Result<(), Error> {
    if matches!(hidden, b"" | b"." | b"..") {
        return Err(hostile(&entry.label(), "a whiteout of no file"));
    }
    match tree::stat(parent, hidden).map_err(failed("look at", entry))? {
        None => mknodat(parent, OsStr::from_bytes(hidden), SFlag::S_IFCHR, Mode::empty(), 0)
            .map_err(failed("make the whiteout", entry)),
        // A whiteout is about lower layers: what this layer has itself stays, and hides what is below.
        Some(found) if is(&found, SFlag::S_IFDIR) => {
            let dir = tree::open_child(parent, hidden).map_err(failed("open", entry))?;
            opaque(dir.as_fd(), entry)
        }
        Some(_) => Ok(()),
    }
}

/// Owner, mode and times of what cannot be opened.
fn special(parent: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> Result<(), Error> {
    let os_name = OsStr::from_bytes(name);
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    fchownat(parent, os_name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
        .map_err(failed("change the owner of", entry))?;
    if entry.kind != Kind::Symlink {
        // It was made just now in a folder that nobody else writes to, so it isn't a link.
        let mode = Mode::from_bits_truncate(entry.mode);
        nix::sys::stat::fchmodat(parent, os_name, mode, nix::sys::stat::FchmodatFlags::FollowSymlink)
            .map_err(failed("change the mode of", entry))?;
    }
    let time = TimeSpec::new(entry.mtime.0, entry.mtime.1.into());
    utimensat(parent, os_name, &time, &time, UtimensatFlags::NoFollowSymlink).map_err(failed("set the times of", entry))
}

/// The components of a name. Leading slashes and single dots mean nothing; two dots are refused, since no layer needs
/// them.
fn components<'e>(name: &'e [u8], entry: &Entry) -> Result<Vec<&'e [u8]>, Error> {
    let parts: Vec<&[u8]> = name.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    if parts.contains(&&b".."[..]) {
        return Err(hostile(&entry.label(), "a path with \"..\""));
    }
    if name.is_empty() {
        return Err(hostile(&entry.label(), "an entry without a name"));
    }
    if parts.len() > MAX_COMPONENTS || parts.iter().any(|part| part.len() > 255) {
        return Err(hostile(&entry.label(), "a path that is too deep or has too long a name"));
    }
    Ok(parts)
}

fn content<R: Read>(file: &mut File, entry: &Entry, archive: &mut Archive<R>) -> Result<(), Error> {
    let mut buffer = vec![0; 64 << 10];
    let whole = entry.is_whole();
    for segment in &entry.segments {
        let (mut at, mut left) = (segment.offset, segment.bytes);
        while left > 0 {
            let most = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
            let size = match archive.read(&mut buffer[..most]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                size => size.map_err(cut)?,
            };
            let bytes = &buffer[..size];
            if whole { file.write_all(bytes) } else { file.write_all_at(bytes, at) }
                .map_err(|error| Error::io("write", entry.label())(error))?;
            at += size as u64;
            left -= size as u64;
        }
    }
    if !whole {
        file.set_len(entry.size).map_err(|error| Error::io("extend", entry.label())(error))?;
    }
    Ok(())
}

/// Owner, then mode (a change of owner drops the setuid bits), then extended attributes.
fn attributes(file: &File, entry: &Entry) -> Result<(), Error> {
    fchown(file, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
        .map_err(failed("change the owner of", entry))?;
    fchmod(file, Mode::from_bits_truncate(entry.mode)).map_err(failed("change the mode of", entry))?;
    for (name, value) in &entry.xattrs {
        if !is_allowed_xattr(name) {
            continue;
        }
        match file.set_xattr(OsStr::from_bytes(name), value) {
            Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => {}
            other => other.map_err(|error| Error::io("set an attribute of", entry.label())(error))?,
        }
    }
    Ok(())
}

/// File capabilities and users' own notes. The rest belongs to the host: overlay's marks (`trusted.overlay.`,
/// `user.overlay.`) could show what a layer below hides, and security labels could be anything.
fn is_allowed_xattr(name: &[u8]) -> bool {
    name == b"security.capability" || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

fn opaque(dir: BorrowedFd<'_>, entry: &Entry) -> Result<(), Error> {
    xattr::set(tree::proc_path(dir, b"."), OPAQUE, b"y").map_err(|error| Error::io("mark", entry.label())(error))
}

fn set_times(file: &File, (seconds, nanos): (i64, u32)) -> Result<(), Errno> {
    let time = TimeSpec::new(seconds, nanos.into());
    futimens(file, &time, &time)
}

fn failed(action: &'static str, entry: &Entry) -> impl FnOnce(Errno) -> Error {
    let label = entry.label();
    move |errno| match errno {
        // What an archive can cause by its own names.
        Errno::ELOOP | Errno::ENOTDIR | Errno::ENAMETOOLONG | Errno::EXDEV | Errno::EINVAL | Errno::ENOENT => {
            Error::Hostile { entry: label, problem: format!("cannot {action} it: {errno}") }
        }
        errno => Error::io(action, label)(errno.into()),
    }
}
