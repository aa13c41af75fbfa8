//! Removing what containers left behind. They may have made it deeper than a stack has room for, or a process
//! descriptors: so nothing here recurses, and few descriptors are open at a time.

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

/// How many names of a directory are in memory at a time.
const BATCH: usize = 1024;

/// Removes a directory and all in it. Links in it are removed, never followed. If this fails half way, what is left can
/// be removed by another call.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let mut here = open(AT_FDCWD, &CString::new(path.as_os_str().as_encoded_bytes())?)?;
    // The way back: each directory's name, and the identity of the one that it is in.
    let mut way = Vec::new();
    loop {
        if let Some(name) = empty(&here)? {
            let inner = open(&here, &name)?;
            way.push((name, identity(&here)?));
            here = inner;
            continue;
        }
        let Some((name, expected)) = way.pop() else { break };
        let parent = open(&here, c"..")?;
        if identity(&parent)? != expected {
            return Err(io::Error::other("a directory was moved while it was removed"));
        }
        absent_is_fine(unlinkat(&parent, name.as_c_str(), UnlinkatFlags::RemoveDir))?;
        here = parent;
    }
    drop(here);
    fs::remove_dir(path)
}

/// Removes what can be removed at once; the first directory in it that isn't empty, if there is one.
fn empty(directory: &Dir) -> Result<Option<CString>, Errno> {
    loop {
        let names = some_names(directory)?;
        if names.is_empty() {
            return Ok(None);
        }
        for name in names {
            match unlinkat(directory, name.as_c_str(), UnlinkatFlags::NoRemoveDir) {
                Err(Errno::EISDIR) => {}
                other => {
                    absent_is_fine(other)?;
                    continue;
                }
            }
            match unlinkat(directory, name.as_c_str(), UnlinkatFlags::RemoveDir) {
                Err(Errno::ENOTEMPTY | Errno::EEXIST) => return Ok(Some(name)),
                other => absent_is_fine(other)?,
            }
        }
    }
}

fn identity(directory: &Dir) -> Result<(u64, u64), Errno> {
    let found = fstat(directory)?;
    Ok((found.st_dev, found.st_ino))
}

fn open(parent: impl AsFd, name: &CStr) -> Result<Dir, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Dir::openat(parent, name, flags, Mode::empty())
}

/// The first names in a directory.
fn some_names(directory: &Dir) -> Result<Vec<CString>, Errno> {
    let mut again = open(directory, c".")?;
    let mut names = Vec::new();
    for entry in again.iter() {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            names.push(entry.file_name().to_owned());
        }
        if names.len() == BATCH {
            break;
        }
    }
    Ok(names)
}

fn absent_is_fine(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::ENOENT) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::openat;
    use nix::sys::stat::mkdirat;

    #[test]
    fn a_tree_of_any_depth_and_width_goes_and_what_links_lead_to_stays() {
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
        let (kept, path) = (directory.path().join("kept"), directory.path().join("tree"));
        fs::create_dir_all(kept.join("inside")).expect("made");
        fs::create_dir_all(path.join("a/b")).expect("made");
        std::os::unix::fs::symlink(&kept, path.join("a/out")).expect("made");
        std::os::unix::fs::symlink(&kept, path.join("out")).expect("made");
        (0..3000).for_each(|n| fs::write(path.join(format!("a/b/{n}")), "").expect("made"));
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let mut deepest = openat(AT_FDCWD, &path.join("a"), flags, Mode::empty()).expect("opened");
        for _ in 0..4000 {
            mkdirat(&deepest, "d", Mode::S_IRWXU).expect("made");
            deepest = openat(&deepest, "d", flags, Mode::empty()).expect("opened");
        }
        remove_tree(&path).expect("removed");
        assert!(!path.exists());
        assert!(kept.join("inside").exists());
        let missing = remove_tree(&path).expect_err("it isn't there");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
