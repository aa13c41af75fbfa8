//! One container's log file, rotated by size. What cannot be written is counted and dropped: a full disk must not stop
//! the container.

use jiff::Timestamp;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A file is rotated before it grows beyond this.
const ROTATE_AT: u64 = 10 * 1024 * 1024;
/// Files per container, the current one included.
const KEEP: usize = 5;

/// The current file, opened for appending.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    lost: u64,
    /// The last write stopped in the middle of a line.
    torn: bool,
}

impl LogFile {
    /// Opens it (it is created even if nothing is ever written).
    pub fn new(path: PathBuf) -> Self {
        let mut log = Self { path, file: None, size: 0, lost: 0, torn: false };
        // A failure shows, and is counted, at the first write.
        let _ = log.open();
        log
    }

    /// Bytes that could not be written.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Appends whole lines.
    pub fn append(&mut self, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        let length = u64::try_from(lines.len()).unwrap_or(u64::MAX);
        if self.size > 0 && self.size + length > ROTATE_AT {
            self.rotate();
        }
        let written = self.write(lines);
        self.size += written;
        self.lost += length - written;
    }

    fn write(&mut self, lines: &[u8]) -> u64 {
        if self.file.is_none() && self.open().is_err() {
            return 0;
        }
        let Some(file) = &mut self.file else { return 0 };
        if self.torn {
            if file.write_all(b"\n").is_err() {
                return 0;
            }
            self.torn = false;
        }
        let mut written = 0;
        while written < lines.len() {
            match file.write(&lines[written..]) {
                Ok(0) => break,
                Ok(length) => written += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        if written > 0 && written < lines.len() && lines[written - 1] != b'\n' {
            self.torn = true;
        }
        u64::try_from(written).unwrap_or(0)
    }

    fn open(&mut self) -> io::Result<()> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&self.path)?;
        self.size = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    /// `name.log` becomes `name.log.<timestamp>`; the oldest beyond [`KEEP`] go.
    fn rotate(&mut self) {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{}", Timestamp::now().strftime("%Y%m%d-%H%M%S.%9f")));
        if fs::rename(&self.path, PathBuf::from(name)).is_err() {
            // Growing on is better than losing lines; the next write tries again.
            return;
        }
        self.file = None;
        self.size = 0;
        let old = rotated(&self.path);
        for path in old.iter().take((old.len() + 1).saturating_sub(KEEP)) {
            let _ = fs::remove_file(path);
        }
    }
}

/// The rotated files of a log, oldest first.
fn rotated(path: &Path) -> Vec<PathBuf> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Vec::new();
    };
    let prefix = format!("{name}.");
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_keeps_five_files_and_the_latest_lines() {
        let directory = std::env::temp_dir().join(format!("carob-log-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("directory");
        let path = directory.join("0.log");
        let mut log = LogFile::new(path.clone());
        let mut block = vec![b'x'; 1024 * 1024 - 1];
        block.push(b'\n');
        for _ in 0..73 {
            log.append(&block);
        }
        log.append(b"last\n");
        assert_eq!(rotated(&path).len(), KEEP - 1);
        assert!(fs::read(&path).expect("current").ends_with(b"last\n"));
        assert!(fs::metadata(&path).expect("current").len() <= ROTATE_AT);
        assert_eq!(log.lost(), 0);
        fs::remove_dir_all(&directory).expect("removed");
    }

    #[test]
    fn output_without_a_place_is_counted_and_dropped() {
        let mut log = LogFile::new(PathBuf::from("/proc/nowhere/0.log"));
        log.append(b"12345\n");
        assert_eq!(log.lost(), 6);
    }
}
