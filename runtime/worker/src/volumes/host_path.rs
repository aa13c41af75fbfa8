//! hostPath: what must be at the path, and what is made when nothing is.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Checks the path against the volume's `type`, making what the `…OrCreate` types ask for; without a type a directory is made
/// where there is nothing, as container runtimes do. The texts are the kubelet's.
pub(crate) fn check(path: &Path, kind: &str) -> Result<(), String> {
    let shown = path.display();
    let found = fs::metadata(path);
    let failed = |what: &str| Err(format!("hostPath type check failed: {shown} is not {what}"));
    let io = |error: std::io::Error| format!("{shown}: {error}");
    match kind {
        "" | "DirectoryOrCreate" => match found {
            Ok(meta) if meta.is_dir() || kind.is_empty() => Ok(()),
            Ok(_) => failed("a directory"),
            Err(_) => fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(io),
        },
        "FileOrCreate" => match found {
            Ok(meta) if meta.is_file() => Ok(()),
            Ok(_) => failed("a file"),
            Err(_) => fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(path).map(drop).map_err(io),
        },
        _ => {
            let kind_of = found.as_ref().ok().map(fs::Metadata::file_type);
            let (holds, what) = match kind {
                "Directory" => (kind_of.is_some_and(|kind| kind.is_dir()), "a directory"),
                "File" => (kind_of.is_some_and(|kind| kind.is_file()), "a file"),
                "Socket" => (kind_of.is_some_and(|kind| kind.is_socket()), "a socket file"),
                "CharDevice" => (kind_of.is_some_and(|kind| kind.is_char_device()), "a character device"),
                "BlockDevice" => (kind_of.is_some_and(|kind| kind.is_block_device()), "a block device"),
                other => return Err(format!("{other} is an invalid hostPath type")),
            };
            if holds { Ok(()) } else { failed(what) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_checked_and_created_as_asked() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        check(&at("made/deep"), "DirectoryOrCreate").unwrap();
        check(&at("made/file"), "FileOrCreate").unwrap();
        check(&at("made"), "Directory").unwrap();
        check(&at("made/file"), "File").unwrap();
        check(Path::new("/dev/null"), "CharDevice").unwrap();
        check(&at("made/file"), "").unwrap();
        check(&at("anything"), "").unwrap();
        check(&at("anything"), "Directory").unwrap();
        let error = check(&at("made/file"), "Directory").unwrap_err();
        assert!(error.starts_with("hostPath type check failed:") && error.ends_with("is not a directory"), "{error}");
        assert!(check(&at("nothing"), "Socket").is_err());
    }
}
