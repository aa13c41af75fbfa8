//! fsGroup: a volume's files belong to the pod's group, and new files inherit it.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

/// Gives `path` and all under it to `group`, with set-group-id on directories, and at least the group's read permission
/// (write too unless `read_only`), as the kubelet does. Symlinks are changed themselves, never followed.
pub(crate) fn apply(path: &Path, group: i64, read_only: bool) -> io::Result<()> {
    let group = u32::try_from(group).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    apply_to(path, group, if read_only { 0o440 } else { 0o660 })
}

fn apply_to(path: &Path, group: u32, file_mask: u32) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    lchown(path, None, Some(group))?;
    if meta.is_symlink() {
        return Ok(());
    }
    let mask = if meta.is_dir() { file_mask | 0o2110 } else { file_mask };
    fs::set_permissions(path, fs::Permissions::from_mode((meta.mode() & 0o7777) | mask))?;
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            apply_to(&entry?.path(), group, file_mask)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_hand_their_group_down_and_files_become_readable() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("f");
        fs::write(&file, "x").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        // The own group can always be given, also where the tests run without privileges.
        let own = fs::metadata(&file).unwrap().gid();
        apply(directory.path(), i64::from(own), true).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(fs::metadata(directory.path()).unwrap().mode() & 0o2110, 0o2110);
    }
}
