//! Places in a container's root for what is mounted there. No link leads out of the root.

use super::Users;
use super::rootfs::open_in;
use crate::capabilities;
use crate::protocol::Failure;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, SFlag, fstatat, mkdirat};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Component, Path, PathBuf};

/// More links than this in one path are a loop (the kernel's MAXSYMLINKS).
const LINKS_MAX: usize = 40;

/// Lets what `work` makes belong to the container's root, on whatever it is made. A volume that is shown as the pod's users'
/// takes files of nobody else's.
pub fn as_root<T>(users: Option<Users<'_>>, work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let Some(users) = users else { return work() };
    capabilities::as_owner(users.range.first, work).map_err(|error| Failure::sandbox("users", error))?
}

/// Walks down `destination` as if `root` were `/`, and makes what is missing: directories, and at the end what `directory`
/// says. Where the image has a link that leads nowhere (`/etc/resolv.conf` to what systemd would make), the place it leads to
/// is made, as runc does.
pub fn make(root: BorrowedFd<'_>, destination: &Path, directory: bool) -> io::Result<()> {
    if open_in(root, destination).is_ok() {
        return Ok(());
    }
    let parts = |path: &Path| path.components().rev().map(|part| part.as_os_str().to_owned()).collect::<Vec<_>>();
    let mut rest = parts(destination);
    let mut walked = PathBuf::new();
    let mut links = 0;
    while let Some(name) = rest.pop() {
        match Path::new(&name).components().next() {
            Some(Component::Normal(_)) => {}
            Some(Component::RootDir) => {
                walked = PathBuf::new();
                continue;
            }
            Some(Component::ParentDir) => {
                walked.pop();
                continue;
            }
            _ => continue,
        }
        let parent = open_in(root, &walked)?;
        match fstatat(&parent, Path::new(&name), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) if SFlag::from_bits_truncate(found.st_mode & libc::S_IFMT) == SFlag::S_IFLNK => {
                links += 1;
                if links > LINKS_MAX {
                    return Err(Errno::ELOOP.into());
                }
                rest.extend(parts(Path::new(&readlinkat(&parent, Path::new(&name))?)));
                continue;
            }
            Ok(_) => {}
            Err(Errno::ENOENT) if directory || !rest.is_empty() => {
                mkdirat(&parent, Path::new(&name), Mode::from_bits_truncate(0o755))?;
            }
            Err(Errno::ENOENT) => {
                let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                openat(&parent, Path::new(&name), flags, Mode::from_bits_truncate(0o644))?;
            }
            Err(errno) => return Err(errno.into()),
        }
        walked.push(&name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::rootfs::open_path;
    use super::*;
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_is_missing_is_made_inside_the_root() {
        let place = tempfile::tempdir().expect("directory");
        let root = place.path().join("root");
        fs::create_dir_all(root.join("etc")).expect("etc");
        for (target, link) in [
            ("../run/systemd/stub.conf", "etc/resolv.conf"),
            ("/../../../outside/hosts", "etc/hosts"),
            ("b", "etc/a"),
            ("/data/deep", "etc/b"),
            ("loop", "etc/loop"),
        ] {
            symlink(target, root.join(link)).expect("link");
        }
        let opened = open_path(&root).expect("the root");
        let made = |path: &str, directory| make(opened.as_fd(), Path::new(path), directory);
        for (path, directory) in [
            ("/etc/resolv.conf", false),
            ("/etc/hosts", false),
            ("/etc/a/inner", true),
            ("/plain/file", false),
            ("/plain/../../up", true),
        ] {
            made(path, directory).expect(path);
        }
        assert!(root.join("run/systemd/stub.conf").is_file());
        assert!(root.join("outside/hosts").is_file() && !place.path().join("outside").exists());
        assert!(root.join("data/deep/inner").is_dir());
        assert!(root.join("plain/file").is_file() && root.join("up").is_dir());
        assert!(made("/etc/loop/x", true).is_err());
        assert!(made("/plain/file/x", true).is_err());
    }
}
