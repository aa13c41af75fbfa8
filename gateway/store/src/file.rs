//! Small files that lie beside a store: as whole and as durable as what is in it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Puts a file in place, readable for its owner alone. Whatever happens meanwhile, it is there as a whole or as it was, and
/// it is durable when this returns.
pub fn put(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    // What was interrupted left it behind, perhaps open to others.
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&draft)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    sync_directory(path)
}

/// Makes it durable that a file is where it is.
pub(crate) fn sync_directory(of: &Path) -> io::Result<()> {
    File::open(folder(of)).and_then(|directory| directory.sync_all())
}

/// Where a file lies.
pub(crate) fn folder(of: &Path) -> &Path {
    of.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_for_its_owner_alone_whatever_was_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.json");
        let draft = folder.path().join("file.json.new");
        for content in ["one", "another"] {
            fs::write(&draft, "half of something longer").unwrap();
            fs::set_permissions(&draft, fs::Permissions::from_mode(0o666)).unwrap();
            put(&path, content.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            assert!(!draft.exists());
        }
    }
}
