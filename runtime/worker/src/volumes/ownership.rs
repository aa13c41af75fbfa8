//! fsGroup: a volume's files belong to the pod's group, and new files inherit it.

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{Gid, fchownat};
use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// Deeper trees are refused: each level holds a descriptor.
const DEPTH_MAX: usize = 256;

/// Gives `path` and all under it to `group`, with set-group-id on directories, and at least the group's read permission
/// (write too unless `read_only`), as the kubelet does. Every file is reached from its directory's descriptor: symlinks are
/// changed themselves, never followed, and a directory that is exchanged for one meanwhile leads nowhere.
pub(crate) fn apply(path: &Path, group: i64, read_only: bool) -> io::Result<()> {
    let group = u32::try_from(group).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let root = nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    apply_to(root, Gid::from_raw(group), if read_only { 0o440 } else { 0o660 }, 0)
}

/// Whether the root of a volume looks as [`apply`] leaves it (`fsGroupChangePolicy: OnRootMismatch`).
pub(crate) fn root_matches(path: &Path, group: i64, read_only: bool) -> io::Result<bool> {
    let found = fs::symlink_metadata(path)?;
    let wanted = if read_only { 0o2550 } else { 0o2770 };
    // Set-group-id, and all that the group needs.
    let needed = wanted & 0o2070;
    Ok(i64::from(found.gid()) == group && found.mode() & needed == needed)
}

fn apply_to(found: OwnedFd, group: Gid, file_mask: u32, depth: usize) -> io::Result<()> {
    let kind = |mode: u32| mode & nix::libc::S_IFMT;
    let mode = fstat(&found)?.st_mode;
    fchownat(&found, c"", None, Some(group), AtFlags::AT_EMPTY_PATH)?;
    if kind(mode) == nix::libc::S_IFLNK {
        return Ok(());
    }
    let directory = kind(mode) == nix::libc::S_IFDIR;
    let mask = if directory { file_mask | 0o2110 } else { file_mask };
    // The kernel has no chmod of an O_PATH descriptor but through its name here. Taking the mode anew: chown clears bits.
    let name = format!("/proc/self/fd/{}", found.as_raw_fd());
    fs::set_permissions(name, fs::Permissions::from_mode((mode & 0o7777) | mask))?;
    if !directory {
        return Ok(());
    }
    if depth == DEPTH_MAX {
        return Err(io::Error::other(format!("more than {DEPTH_MAX} directories in each other")));
    }
    let directory = open_in(found.as_fd(), c".", OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
    drop(found);
    let mut directory = Dir::from_fd(directory)?;
    let mut names: Vec<CString> = Vec::new();
    for entry in directory.iter() {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            names.push(entry.file_name().to_owned());
        }
    }
    for name in names {
        let inner = open_in(directory.as_fd(), &name, OFlag::O_PATH | OFlag::O_NOFOLLOW)?;
        apply_to(inner, group, file_mask, depth + 1)?;
    }
    Ok(())
}

fn open_in(directory: BorrowedFd<'_>, name: &CStr, flags: OFlag) -> io::Result<OwnedFd> {
    Ok(openat(directory, name, flags | OFlag::O_CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};

    #[test]
    fn directories_hand_their_group_down_and_files_become_readable() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("deep/f");
        fs::create_dir(directory.path().join("deep")).unwrap();
        fs::write(&file, "x").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        // The own group can always be given, also where the tests run without privileges.
        let own = fs::metadata(&file).unwrap().gid();
        apply(directory.path(), i64::from(own), true).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o640);
        for place in [directory.path(), &directory.path().join("deep")] {
            assert_eq!(fs::metadata(place).unwrap().mode() & 0o2110, 0o2110);
        }
    }

    #[test]
    fn what_a_link_leads_to_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let outside = directory.path().join("outside");
        fs::write(&outside, "x").unwrap();
        fs::set_permissions(&outside, fs::Permissions::from_mode(0o600)).unwrap();
        let volume = directory.path().join("v");
        fs::create_dir(&volume).unwrap();
        symlink(&outside, volume.join("link")).unwrap();
        symlink("nowhere", volume.join("dangling")).unwrap();
        let own = fs::metadata(&outside).unwrap().gid();
        apply(&volume, i64::from(own), false).unwrap();
        assert_eq!(fs::metadata(&outside).unwrap().mode() & 0o7777, 0o600);
    }
}
