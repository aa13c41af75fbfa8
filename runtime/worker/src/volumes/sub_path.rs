//! subPath, resolved by descriptors so that nothing a container does meanwhile can lead it out of the volume.

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstat, mkdirat};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// Why a subPath cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SubPathError {
    #[error("open {}", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: Errno,
    },
    #[error("{} leads out of its volume", path.display())]
    Escape { path: PathBuf },
    #[error("{} is not a regular file", path.display())]
    NotAFile { path: PathBuf },
    #[error("{} is not a relative path", path.display())]
    NotRelative { path: PathBuf },
}

/// A descriptor (`O_PATH`) of `sub_path` under `volume`, where missing directories are made with the volume's own mode, so
/// that whoever may write the volume may write them. Symlinks may be followed as
/// long as they stay in the volume (CVE-2017-1002101 and its kin come from checking names instead).
pub(crate) fn resolve(volume: &Path, sub_path: &str) -> Result<OwnedFd, SubPathError> {
    let opened = |path: &Path| {
        let path = path.to_owned();
        move |source| SubPathError::Open { path, source }
    };
    let relative = Path::new(sub_path);
    if !relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(SubPathError::NotRelative { path: relative.to_owned() });
    }
    let mut current = open(volume, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(opened(volume))?;
    let root =
        current.try_clone().map_err(|_| SubPathError::Open { path: volume.to_owned(), source: Errno::EMFILE })?;
    let how = || OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_BENEATH);
    match openat2(&root, relative, how()) {
        Ok(fd) => return Ok(fd),
        Err(Errno::ENOENT) => {}
        Err(Errno::EXDEV | Errno::ELOOP) => return Err(SubPathError::Escape { path: relative.to_owned() }),
        Err(source) => return Err(opened(relative)(source)),
    }
    // Something is missing: walk down, making directories in the descriptor of their parent.
    let mode = Mode::from_bits_truncate(fstat(&root).map_err(opened(volume))?.st_mode);
    let mut walked = PathBuf::new();
    for part in relative.components() {
        let Component::Normal(name) = part else { continue };
        walked.push(name);
        match openat2(&root, &walked, how()) {
            Ok(next) => current = next,
            Err(Errno::ENOENT) => {
                let made = match mkdirat(&current, name, mode) {
                    Ok(()) => true,
                    Err(Errno::EEXIST) => false,
                    Err(source) => return Err(opened(&walked)(source)),
                };
                let strict = OpenHow::new()
                    .flags(OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_DIRECTORY)
                    .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
                current = openat2(&current, name, strict).map_err(opened(&walked))?;
                if made {
                    // Past the umask. The descriptor's own entry, since one of `O_PATH` takes no fchmod.
                    let entry = format!("/proc/self/fd/{}", current.as_raw_fd());
                    fchmodat(AT_FDCWD, entry.as_str(), mode, FchmodatFlags::FollowSymlink).map_err(opened(&walked))?;
                }
            }
            Err(Errno::EXDEV | Errno::ELOOP) => return Err(SubPathError::Escape { path: walked }),
            Err(source) => return Err(opened(&walked)(source)),
        }
    }
    Ok(current)
}

/// Opens a plain file under `volume` to read it. What a container may have put there instead (a device, a pipe, a link out
/// of the volume) is refused without being opened.
pub(crate) fn open_file(volume: &Path, path: &str) -> Result<File, SubPathError> {
    let opened = |path: &Path| {
        let path = path.to_owned();
        move |source| SubPathError::Open { path, source }
    };
    let relative = Path::new(path);
    let root = open(volume, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(opened(volume))?;
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_BENEATH);
    let found = openat2(&root, relative, how).map_err(opened(relative))?;
    let kind = fstat(&found).map_err(opened(relative))?.st_mode;
    if SFlag::from_bits_truncate(kind & nix::libc::S_IFMT) != SFlag::S_IFREG {
        return Err(SubPathError::NotAFile { path: relative.to_owned() });
    }
    let again = format!("/proc/self/fd/{}", found.as_raw_fd());
    let file = open(again.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).map_err(opened(relative))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn target(fd: &OwnedFd) -> PathBuf {
        fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap()
    }

    #[test]
    fn inner_symlinks_are_followed_and_outer_ones_refused() {
        let directory = tempfile::tempdir().unwrap();
        let volume = directory.path().canonicalize().unwrap().join("v");
        fs::create_dir_all(volume.join("real")).unwrap();
        fs::create_dir(directory.path().join("outside")).unwrap();
        symlink("real", volume.join("inner")).unwrap();
        symlink("../outside", volume.join("outer")).unwrap();
        symlink("/etc", volume.join("absolute")).unwrap();
        assert_eq!(target(&resolve(&volume, "inner").unwrap()), volume.join("real"));
        assert!(matches!(resolve(&volume, "outer"), Err(SubPathError::Escape { .. })));
        assert!(matches!(resolve(&volume, "absolute/passwd"), Err(SubPathError::Escape { .. })));
        assert!(matches!(resolve(&volume, "outer/new"), Err(SubPathError::Escape { .. })));
        assert!(matches!(resolve(&volume, "../outside"), Err(SubPathError::NotRelative { .. })));
        assert!(!directory.path().join("outside/new").exists());
    }

    #[test]
    fn missing_directories_are_made_inside_the_volume() {
        let directory = tempfile::tempdir().unwrap();
        let volume = directory.path().canonicalize().unwrap();
        assert_eq!(target(&resolve(&volume, "a/b").unwrap()), volume.join("a/b"));
        assert!(volume.join("a/b").is_dir());
    }
}
