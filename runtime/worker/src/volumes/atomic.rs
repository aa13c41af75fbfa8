//! Writes a volume's files so that readers see all of one version: `name -> ..data/name`, `..data -> ..<time>`.
//!
//! The layout is Kubernetes' (programs watch `..data` for changes); the rename of the `..data` link is the commit.

use super::SourceError;
use super::ownership;
use super::payload::{File, Payload, is_safe};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";

/// Brings `directory` to `payload`; true if anything changed. Writing the same again touches nothing.
pub(crate) fn write(directory: &Path, payload: &Payload, fs_group: Option<i64>) -> Result<bool, SourceError> {
    if let Some(path) = payload.keys().find(|path| !is_safe(path)) {
        return Err(SourceError::Missing(format!("invalid path in volume: {path:?}")));
    }
    if !directory.is_dir() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .map_err(SourceError::io("create", directory))?;
        chmod(directory, 0o755)?;
    }
    if current(directory).is_some_and(|current| same(&current, payload)) {
        // Whoever wrote it may have been stopped right after.
        finish(directory, payload)?;
        return Ok(false);
    }
    let name = format!("..{}", jiff::Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S.%N"));
    if let Err(error) = commit(directory, &name, payload, fs_group) {
        let version = directory.join(&name);
        if let Err(error) = fs::remove_dir_all(&version)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %version.display(), %error, "a version that was never shown could not be removed");
        }
        return Err(error);
    }
    finish(directory, payload)?;
    Ok(true)
}

/// The version that is shown.
fn current(directory: &Path) -> Option<PathBuf> {
    fs::read_link(directory.join(DATA)).ok().map(|target| directory.join(target))
}

/// What follows the commit: links to what is new, and nothing left of other versions.
fn finish(directory: &Path, payload: &Payload) -> Result<(), SourceError> {
    show(directory, payload)?;
    let current = current(directory);
    for entry in fs::read_dir(directory).map_err(SourceError::io("list", directory))? {
        let entry = entry.map_err(SourceError::io("list", directory))?;
        let (name, path) = (entry.file_name(), entry.path());
        if !name.as_encoded_bytes().starts_with(b"..") || name == DATA || Some(&path) == current.as_ref() {
            continue;
        }
        let directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed = if directory { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(SourceError::io("remove", &path))?;
    }
    Ok(())
}

/// Writes the version of this name and makes `..data` point to it.
fn commit(directory: &Path, name: &str, payload: &Payload, fs_group: Option<i64>) -> Result<(), SourceError> {
    let version = directory.join(name);
    fill(&version, payload)?;
    if let Some(group) = fs_group {
        ownership::apply(&version, group, true).map_err(SourceError::io("chown", &version))?;
    }
    let link = directory.join(NEW_DATA);
    match fs::remove_file(&link) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(SourceError::Io { what: "remove", path: link, source: error });
        }
        _ => {}
    }
    symlink(name, &link).map_err(SourceError::io("link", &link))?;
    let data = directory.join(DATA);
    fs::rename(&link, &data).map_err(SourceError::io("rename", &data))
}

fn fill(version: &Path, payload: &Payload) -> Result<(), SourceError> {
    make_directory(version)?;
    for (path, file) in payload {
        let target = version.join(path);
        let parents: Vec<PathBuf> =
            target.ancestors().skip(1).take_while(|parent| *parent != version).map(Path::to_owned).collect();
        for parent in parents.iter().rev().filter(|parent| !parent.is_dir()) {
            make_directory(parent)?;
        }
        let mut out = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(file.mode)
            .open(&target)
            .map_err(SourceError::io("create", &target))?;
        out.write_all(&file.bytes).map_err(SourceError::io("write", &target))?;
        // The process's umask must not narrow what the spec asked for.
        chmod(&target, file.mode)?;
        if let Some(uid) = file.uid {
            std::os::unix::fs::chown(&target, Some(uid), None).map_err(SourceError::io("chown", &target))?;
        }
    }
    Ok(())
}

fn make_directory(path: &Path) -> Result<(), SourceError> {
    fs::create_dir(path).map_err(SourceError::io("create", path))?;
    chmod(path, 0o755)
}

fn chmod(path: &Path, mode: u32) -> Result<(), SourceError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(SourceError::io("chmod", path))
}

/// Links the first component of every path to `..data/…`, and removes links of what is no longer there.
fn show(directory: &Path, payload: &Payload) -> Result<(), SourceError> {
    let wanted: BTreeSet<&str> = payload.keys().filter_map(|path| path.split('/').find(|p| !p.is_empty())).collect();
    for name in &wanted {
        let link = directory.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), &link).map_err(SourceError::io("link", &link))?;
        }
    }
    let entries = fs::read_dir(directory).map_err(SourceError::io("list", directory))?;
    for entry in entries {
        let entry = entry.map_err(SourceError::io("list", directory))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !wanted.contains(name.as_ref()) {
            fs::remove_file(entry.path()).map_err(SourceError::io("remove", &entry.path()))?;
        }
    }
    Ok(())
}

/// Whether the version on disk holds exactly these files.
fn same(version: &Path, payload: &Payload) -> bool {
    let mut count = 0;
    count_files(version, &mut count)
        && count == payload.len()
        && payload.iter().all(|(path, file)| equal(&version.join(path), file))
}

fn equal(path: &Path, file: &File) -> bool {
    fs::read(path).is_ok_and(|bytes| bytes == file.bytes)
}

fn count_files(directory: &Path, count: &mut usize) -> bool {
    let Ok(entries) = fs::read_dir(directory) else { return false };
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => {
                if !count_files(&entry.path(), count) {
                    return false;
                }
            }
            _ => *count += 1,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str, u32)]) -> Payload {
        let entry = |(path, text, mode): &(&str, &str, u32)| {
            ((*path).to_owned(), File { bytes: text.as_bytes().to_vec(), mode: *mode, uid: None })
        };
        files.iter().map(entry).collect()
    }

    #[test]
    fn a_new_version_replaces_the_old_one_as_a_whole() {
        let directory = tempfile::tempdir().unwrap();
        let volume = directory.path().join("v");
        assert!(write(&volume, &payload(&[("a", "1", 0o640), ("deep/b", "2", 0o644)]), None).unwrap());
        assert_eq!(fs::read_to_string(volume.join("deep/b")).unwrap(), "2");
        assert_eq!(fs::metadata(volume.join("a")).unwrap().permissions().mode() & 0o777, 0o640);
        let first = fs::read_link(volume.join(DATA)).unwrap();

        assert!(!write(&volume, &payload(&[("a", "1", 0o640), ("deep/b", "2", 0o644)]), None).unwrap());
        assert_eq!(fs::read_link(volume.join(DATA)).unwrap(), first);

        assert!(write(&volume, &payload(&[("a", "new", 0o640)]), None).unwrap());
        assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "new");
        assert!(fs::symlink_metadata(volume.join("deep")).is_err());
        assert!(!volume.join(first).exists());
    }

    #[test]
    fn what_a_killed_process_left_undone_after_its_commit_is_done_by_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let volume = directory.path().join("v");
        let wanted = payload(&[("a", "1", 0o644)]);
        write(&volume, &wanted, None).unwrap();
        fs::remove_file(volume.join("a")).unwrap();
        fs::create_dir(volume.join("..2020_01_01_00_00_00.0")).unwrap();
        symlink("..2020_01_01_00_00_00.0", volume.join(NEW_DATA)).unwrap();
        assert!(!write(&volume, &wanted, None).unwrap());
        assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "1");
        assert_eq!(fs::read_dir(&volume).unwrap().count(), 3, "the link, ..data and one version");
    }

    #[test]
    fn a_version_that_cannot_be_written_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let volume = directory.path().join("v");
        write(&volume, &payload(&[("a", "1", 0o644)]), None).unwrap();
        let names = || {
            let entries = fs::read_dir(&volume).unwrap().map(|entry| entry.unwrap().file_name());
            entries.collect::<BTreeSet<_>>()
        };
        let before = names();
        // A file where a directory is wanted.
        assert!(write(&volume, &payload(&[("a", "2", 0o644), ("a/b", "2", 0o644)]), None).is_err());
        assert_eq!(names(), before);
        assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "1");
    }

    #[test]
    fn paths_out_of_the_volume_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let volume = directory.path().join("v");
        assert!(write(&volume, &payload(&[("../out", "x", 0o644)]), None).is_err());
        assert!(!directory.path().join("out").exists());
    }
}
