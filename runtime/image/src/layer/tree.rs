//! A directory that is written to and read as if it were the whole file system.
//!
//! Every path goes through openat2 with RESOLVE_IN_ROOT and RESOLVE_NO_MAGICLINKS, every last component through a call
//! that doesn't follow links: whatever an archive says, nothing outside of the root is reached.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// As many links as the kernel follows in one path.
pub(crate) const MAX_LINKS: usize = 40;
/// The xattr by which overlay hides what lower layers have in a directory.
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";

/// The root of a layer.
#[derive(Debug)]
pub(crate) struct Tree {
    root: OwnedFd,
}

impl Tree {
    /// Takes an existing directory as root.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { root: File::open(path)?.into() })
    }

    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens a directory below the root, following links inside of it.
    pub fn dir(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.open_dir(path, ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS)
    }

    /// Opens a directory below the root by a path without links.
    pub fn real_dir(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.open_dir(path, ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS)
    }

    fn open_dir(&self, path: &[u8], resolve: ResolveFlag) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(resolve | ResolveFlag::RESOLVE_NO_XDEV);
        openat2(&self.root, OsStr::from_bytes(path), how)
    }

    /// Finds the directory that `path` names, creating what is missing on the way (also behind links), and tells
    /// `created` about each new one by its path without links.
    pub fn make_dirs(&self, path: &[&[u8]], mut created: impl FnMut(&[u8])) -> Result<OwnedFd, Errno> {
        let mut queue: VecDeque<Vec<u8>> = path.iter().map(|part| part.to_vec()).collect();
        let mut real: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        let mut at = self.real_dir(b"")?;
        while let Some(part) = queue.pop_front() {
            match part.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    real.pop();
                    at = self.real_dir(&real.join(&b'/'))?;
                    continue;
                }
                _ => {}
            }
            match stat(&at, &part)? {
                None => {
                    mkdirat(&at, OsStr::from_bytes(&part), Mode::from_bits_truncate(0o755))?;
                    real.push(part);
                    created(&real.join(&b'/'));
                }
                Some(found) if is(&found, SFlag::S_IFDIR) => real.push(part),
                Some(found) if is(&found, SFlag::S_IFLNK) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::ELOOP);
                    }
                    let target = readlinkat(&at, OsStr::from_bytes(&part))?.into_vec();
                    if target.starts_with(b"/") {
                        real.clear();
                    }
                    for part in target.split(|byte| *byte == b'/').rev() {
                        queue.push_front(part.to_vec());
                    }
                }
                Some(_) => return Err(Errno::ENOTDIR),
            }
            at = self.real_dir(&real.join(&b'/'))?;
        }
        Ok(at)
    }
}

/// What a directory has under a name, itself and not what it links to.
pub(crate) fn stat(dir: impl AsFd, name: &[u8]) -> Result<Option<FileStat>, Errno> {
    match fstatat(dir, OsStr::from_bytes(name), AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(crate) fn is(found: &FileStat, kind: SFlag) -> bool {
    found.st_mode & SFlag::S_IFMT.bits() == kind.bits()
}

/// Overlay's mark for a file that a layer removes: a character device 0/0.
pub(crate) fn is_whiteout(found: &FileStat) -> bool {
    is(found, SFlag::S_IFCHR) && found.st_rdev == 0
}

/// Opens a directory by its name in another; a link is an error.
pub(crate) fn open_child(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(dir, OsStr::from_bytes(name), flags, Mode::empty())
}

/// A path for calls that only take paths. The directory is named by its descriptor, so nobody can exchange it.
pub(crate) fn proc_path(dir: BorrowedFd<'_>, name: &[u8]) -> std::path::PathBuf {
    use std::os::fd::AsRawFd;
    let mut path = std::path::PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    path.push(OsStr::from_bytes(name));
    path
}

/// The names in a directory.
pub(crate) fn names(dir: BorrowedFd<'_>) -> Result<Vec<OsString>, Errno> {
    let mut names = Vec::new();
    // Opened anew, because a copy of the descriptor would share its position.
    for entry in Dir::from_fd(open_child(dir, b".")?)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    Ok(names)
}

/// Removes what `dir` has under a name, however deep it is, with two descriptors and no recursion: folders inside of
/// folders are first moved up into `dir` under names of our own.
pub(crate) fn remove(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match unlinkat(dir, OsStr::from_bytes(name), UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Err(error) => return Err(error),
    }
    let mut pending = vec![OsStr::from_bytes(name).to_owned()];
    let mut moved = 0_u64;
    while let Some(folder) = pending.pop() {
        let inside = open_child(dir, folder.as_bytes())?;
        // Each time anew from the start, as the folder changes while it is read.
        for child in names(inside.as_fd())? {
            match unlinkat(&inside, child.as_os_str(), UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(Errno::EISDIR | Errno::EPERM) => {
                    if unlinkat(&inside, child.as_os_str(), UnlinkatFlags::RemoveDir).is_ok() {
                        continue;
                    }
                    let place = loop {
                        moved += 1;
                        let place = format!(".carob-removed-{}-{moved}", std::process::id());
                        if stat(dir, place.as_bytes())?.is_none() {
                            break place;
                        }
                    };
                    renameat(&inside, child.as_os_str(), dir, place.as_str())?;
                    pending.push(place.into());
                }
                Err(error) => return Err(error),
            }
        }
        unlinkat(dir, folder.as_os_str(), UnlinkatFlags::RemoveDir)?;
    }
    Ok(())
}

/// [`remove`] for a path of our own.
pub(crate) fn remove_path(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let parent = match File::open(parent) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        parent => parent?,
    };
    Ok(remove(parent.as_fd(), name.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_deeper_than_any_path_is_removed() {
        let temp = tempfile::tempdir().unwrap();
        let top = File::open(temp.path()).unwrap();
        let mut at: OwnedFd = top.try_clone().unwrap().into();
        for _ in 0..1200 {
            mkdirat(&at, "deep", Mode::S_IRWXU).unwrap();
            std::fs::write(proc_path(at.as_fd(), b"file"), "x").unwrap();
            at = open_child(&at, b"deep").unwrap();
        }
        remove_path(&temp.path().join("deep")).unwrap();
        assert_eq!(names(top.as_fd()).unwrap(), ["file"]);
    }

    #[test]
    fn folders_are_made_behind_links_inside_of_the_root() {
        let temp = tempfile::tempdir().unwrap();
        let tree = Tree::open(temp.path()).unwrap();
        std::os::unix::fs::symlink("/../../run", temp.path().join("var")).unwrap();
        std::os::unix::fs::symlink("loop", temp.path().join("loop")).unwrap();
        std::fs::write(temp.path().join("file"), "").unwrap();
        let mut made = Vec::new();
        tree.make_dirs(&[b"var", b"lock"], |path| made.push(path.to_vec())).unwrap();
        assert_eq!(made, [b"run".to_vec(), b"run/lock".to_vec()]);
        assert!(temp.path().join("run/lock").is_dir());
        assert_eq!(tree.make_dirs(&[b"loop", b"x"], |_| {}).unwrap_err(), Errno::ELOOP);
        assert_eq!(tree.make_dirs(&[b"file", b"x"], |_| {}).unwrap_err(), Errno::ENOTDIR);
    }
}
