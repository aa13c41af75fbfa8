//! The audit log's file: a line for each event, begun anew when it is large.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;

/// How many events may wait for the disk. Then requests wait too: nothing is done that isn't written down.
const WAITING: usize = 4096;

/// Where events go.
#[derive(Clone)]
pub(super) struct Log {
    lines: mpsc::Sender<Vec<u8>>,
}

/// The file, and when it is begun anew.
struct Rotating {
    path: PathBuf,
    file: BufWriter<File>,
    size: u64,
    largest: u64,
    kept: usize,
}

impl Log {
    /// Writes to a file, of which `kept` old ones of at most `largest` bytes are kept.
    pub fn open(path: &Path, largest: u64, kept: usize) -> io::Result<Self> {
        let mut file = Rotating::open(path, largest, kept)?;
        let (lines, mut waiting) = mpsc::channel::<Vec<u8>>(WAITING);
        std::thread::Builder::new().name("audit".to_owned()).spawn(move || {
            while let Some(line) = waiting.blocking_recv() {
                carob_keep::survive("audit", || {
                    let mut written = file.write(&line);
                    while let Ok(line) = waiting.try_recv() {
                        written = written.and_then(|()| file.write(&line));
                    }
                    if let Err(error) = written.and_then(|()| file.file.flush()) {
                        tracing::error!(path = %file.path.display(), %error, "the audit log cannot be written");
                    }
                });
            }
        })?;
        Ok(Self { lines })
    }

    /// Hands an event over to be written.
    pub async fn write(&self, line: Vec<u8>) {
        if self.lines.send(line).await.is_err() {
            tracing::error!("the audit log has ended");
        }
    }

    /// The same where nobody can wait: the end of a stream.
    pub fn write_now(&self, line: Vec<u8>) {
        if self.lines.try_send(line).is_err() {
            tracing::error!("an event is missing in the audit log, which is behind");
        }
    }
}

impl Rotating {
    fn open(path: &Path, largest: u64, kept: usize) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file: BufWriter::new(file), size, largest, kept })
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let length = line.len() as u64;
        if self.size > 0 && self.size + length > self.largest {
            self.rotate()?;
        }
        self.file.write_all(line)?;
        self.size += length;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file.flush()?;
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H-%M-%S.%6f");
        let (stem, extension) = self.names();
        fs::rename(&self.path, self.path.with_file_name(format!("{stem}-{now}{extension}")))?;
        *self = Self::open(&self.path, self.largest, self.kept)?;
        let mut old = self.old_files()?;
        old.sort_unstable();
        let surplus = old.len().saturating_sub(self.kept);
        old.iter().take(surplus).try_for_each(fs::remove_file)
    }

    /// `audit`, `.log`
    fn names(&self) -> (String, String) {
        let text = |part: Option<&std::ffi::OsStr>| part.map(|part| part.to_string_lossy().into_owned());
        let extension = text(self.path.extension()).map(|extension| format!(".{extension}")).unwrap_or_default();
        (text(self.path.file_stem()).unwrap_or_default(), extension)
    }

    fn old_files(&self) -> io::Result<Vec<PathBuf>> {
        let (stem, extension) = self.names();
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut found = Vec::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let between = name.strip_prefix(&format!("{stem}-")).and_then(|rest| rest.strip_suffix(&extension));
            if between.is_some_and(|time| time.len() > 19 && time.starts_with(|c: char| c.is_ascii_digit())) {
                found.push(path);
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_is_put_aside_and_the_oldest_go() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("audit.log");
        fs::write(folder.path().join("audit-notes.log"), "not ours").expect("written");
        let mut log = Rotating::open(&path, 10, 2).expect("open");
        for line in ["12345\n", "67890\n", "abcde\n", "fghij\n", "klmno\n"] {
            log.write(line.as_bytes()).expect("written");
        }
        log.file.flush().expect("flushed");
        assert_eq!(fs::read_to_string(&path).expect("there"), "klmno\n");
        let mut old = log.old_files().expect("listed");
        old.sort_unstable();
        let texts: Vec<_> = old.iter().map(|path| fs::read_to_string(path).expect("there")).collect();
        assert_eq!(texts, ["abcde\n", "fghij\n"]);
        assert!(folder.path().join("audit-notes.log").exists());
    }
}
