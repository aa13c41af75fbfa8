//! `kubectl logs`: a container's log files as text, from where and as long as the query asks.

use super::cri::{self, Entry, tail_offset};
use super::{Refused, container, find};
use crate::context::Context;
use crate::pod::PodView;
use axum::body::Body;
use axum::extract::{self, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use jiff::Timestamp;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// What is asked for (`PodLogOptions`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Options {
    follow: bool,
    previous: bool,
    timestamps: bool,
    tail: Option<usize>,
    since: Option<Timestamp>,
    limit: Option<u64>,
    /// Only this stream: `Some(true)` is stderr.
    stderr: Option<bool>,
}

impl Options {
    fn parse(query: &[(String, String)], now: Timestamp) -> Result<Self, Refused> {
        let mut options = Self::default();
        for (key, value) in query {
            let invalid = || Refused::bad_request(format!("Invalid value for {key}: {value:?}"));
            let truth = || matches!(value.as_str(), "" | "1" | "t" | "T" | "true" | "TRUE" | "True");
            match key.as_str() {
                "follow" => options.follow = truth(),
                "previous" => options.previous = truth(),
                "timestamps" => options.timestamps = truth(),
                "tailLines" => options.tail = Some(value.parse().map_err(|_| invalid())?),
                "limitBytes" => options.limit = Some(value.parse().map_err(|_| invalid())?),
                "sinceSeconds" => {
                    let seconds: i64 = value.parse().map_err(|_| invalid())?;
                    let ago = jiff::SignedDuration::from_secs(seconds);
                    options.since = Some(now.checked_sub(ago).map_err(|_| invalid())?);
                }
                "sinceTime" => options.since = Some(value.parse().map_err(|_| invalid())?),
                "stream" => {
                    options.stderr = match value.as_str() {
                        "Stdout" => Some(false),
                        "Stderr" => Some(true),
                        _ => None,
                    };
                }
                _ => {}
            }
        }
        Ok(options)
    }
}

pub(super) async fn logs(
    State(ctx): State<Arc<Context>>,
    extract::Path((namespace, pod, name)): extract::Path<(String, String, String)>,
    Query(query): Query<Vec<(String, String)>>,
) -> Result<Response, Refused> {
    let options = Options::parse(&query, Timestamp::now())?;
    let (handle, view) = find(&ctx, &namespace, &pod)?;
    let found = container(&view, &name)?;
    let attempt = match (found.attempt, options.previous) {
        (Some(attempt), false) => attempt,
        (Some(attempt), true) if attempt > 0 => attempt - 1,
        (_, true) => {
            let text = format!("previous terminated container \"{name}\" in pod \"{pod}\" not found");
            return Err(Refused::bad_request(text));
        }
        (None, false) => {
            let why = found.waiting.as_deref().unwrap_or("ContainerCreating");
            let text = format!("container \"{name}\" in pod \"{pod}\" is waiting to start: {why}");
            return Err(Refused::bad_request(text));
        }
    };
    let log = view.logs.join(&name).join(format!("{attempt}.log"));
    let (sender, receiver) = mpsc::channel::<Result<Bytes, io::Error>>(8);
    let follow = Follow { log, name, attempt, view: handle.view.clone(), previous: options.previous };
    tokio::spawn(async move {
        if let Err(error) = send(&follow, &options, &sender).await {
            // The reader may have gone; then nobody hears this either.
            let _gone = sender.send(Err(error)).await;
        }
    });
    let stream = futures::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|chunk| (chunk, receiver))
    });
    Ok(([(header::CONTENT_TYPE, "text/plain")], Body::from_stream(stream)).into_response())
}

/// A log and whether its container still writes it.
struct Follow {
    log: PathBuf,
    name: String,
    attempt: u32,
    view: watch::Receiver<PodView>,
    previous: bool,
}

impl Follow {
    fn container_runs(&self) -> bool {
        let view = self.view.borrow();
        let container = view.containers.iter().find(|container| container.name == self.name);
        !self.previous
            && self.view.has_changed().is_ok()
            && container.is_some_and(|container| container.running.is_some() && container.attempt == Some(self.attempt))
    }
}

/// How often a followed file is looked at.
const POLL: Duration = Duration::from_millis(50);

async fn send(follow: &Follow, options: &Options, sender: &mpsc::Sender<Result<Bytes, io::Error>>) -> io::Result<()> {
    let mut text = Render::new(options.clone());
    let (log, tail) = (follow.log.clone(), options.tail);
    let start = tokio::task::spawn_blocking(move || begin(&log, tail)).await.map_err(io::Error::other)??;
    let mut current = None;
    for file in start {
        let inode = file.metadata()?.ino();
        let open = BufReader::with_capacity(64 * 1024, file);
        let Some((open, rest)) = drain(open, text, sender).await? else { return Ok(()) };
        text = rest;
        current = Some((open, inode));
    }
    while options.follow && !text.is_done() {
        // Ask before reading: what was written before the end is then read for sure.
        let runs = follow.container_runs();
        if let Some((open, inode)) = current.take() {
            let Some((open, rest)) = drain(open, text, sender).await? else { return Ok(()) };
            text = rest;
            current = Some((open, inode));
        }
        let (log, known) = (follow.log.clone(), current.as_ref().map(|(_, inode)| *inode));
        if std::fs::metadata(&log).is_ok_and(|newest| Some(newest.ino()) != known) {
            // Rotated, perhaps more than once.
            let next =
                tokio::task::spawn_blocking(move || successor(&log, known)).await.map_err(io::Error::other)??;
            if let Some(next) = next {
                if let Some((open, _)) = current.take() {
                    // What came before it was rotated.
                    let Some((_, rest)) = drain(open, text, sender).await? else { return Ok(()) };
                    text = rest;
                }
                let inode = next.metadata()?.ino();
                current = Some((BufReader::with_capacity(64 * 1024, next), inode));
                continue;
            }
        }
        if !runs {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            () = sender.closed() => return Ok(()),
        }
    }
    Ok(())
}

/// The files to read, each at its beginning but the first: the last `tail` lines come out.
fn begin(log: &Path, tail: Option<usize>) -> io::Result<Vec<File>> {
    let files = open_all(log)?;
    let Some(mut wanted) = tail else { return Ok(files) };
    let mut chosen = Vec::new();
    for mut file in files.into_iter().rev() {
        let (offset, lines) = tail_offset(&mut file, wanted)?;
        file.seek(SeekFrom::Start(offset))?;
        chosen.push(file);
        wanted -= lines;
        if wanted == 0 {
            break;
        }
    }
    chosen.reverse();
    Ok(chosen)
}

/// How often the files are listed again when they are rotated meanwhile.
const TRIES: usize = 10;

/// A log's files, oldest first, as they were at one moment.
fn open_all(log: &Path) -> io::Result<Vec<File>> {
    let open = || cri::files(log).iter().map(File::open).collect::<io::Result<Vec<File>>>();
    let inodes = |files: &[File]| files.iter().map(|file| Ok(file.metadata()?.ino())).collect::<io::Result<Vec<u64>>>();
    let mut files = open();
    for _ in 0..TRIES {
        let again = open();
        if let (Ok(files), Ok(again)) = (&files, &again)
            && inodes(files)? == inodes(again)?
        {
            break;
        }
        files = again;
    }
    files
}

/// The file that was begun after the one with this inode; the oldest if that one isn't kept any more.
fn successor(log: &Path, inode: Option<u64>) -> io::Result<Option<File>> {
    let files = open_all(log)?;
    let known = files.iter().position(|file| file.metadata().is_ok_and(|meta| Some(meta.ino()) == inode));
    Ok(files.into_iter().nth(known.map_or(0, |known| known + 1)))
}

/// What is read and rendered at a time, in bytes.
const BATCH: usize = 1 << 20;
const OUTPUT: usize = 32 * 1024;

/// Sends all whole lines that are there; nothing comes back when the reader has gone or the limit is reached. A disk may
/// hang, and much may have to be read of which nothing is wanted: neither holds anybody else up.
async fn drain(
    mut reader: BufReader<File>,
    mut text: Render,
    sender: &mpsc::Sender<Result<Bytes, io::Error>>,
) -> io::Result<Option<(BufReader<File>, Render)>> {
    loop {
        let read = tokio::task::spawn_blocking(move || {
            let mut out = Vec::new();
            let end = text.batch(&mut reader, &mut out)?;
            Ok::<_, io::Error>((reader, text, out, end))
        });
        let (out, end);
        (reader, text, out, end) = read.await.map_err(io::Error::other)??;
        if !out.is_empty() && sender.send(Ok(Bytes::from(out))).await.is_err() || text.is_done() || sender.is_closed() {
            return Ok(None);
        }
        if end {
            return Ok(Some((reader, text)));
        }
    }
}

/// Entries as the text that the query asks for.
struct Render {
    options: Options,
    left: u64,
    at_line_start: bool,
    /// The beginning of a line whose rest hasn't been written yet.
    pending: Vec<u8>,
}

impl Render {
    fn new(options: Options) -> Self {
        Self { left: options.limit.unwrap_or(u64::MAX), options, at_line_start: true, pending: Vec::new() }
    }

    fn is_done(&self) -> bool {
        self.left == 0
    }

    /// Some lines of those that are there; whether these were all.
    fn batch(&mut self, reader: &mut BufReader<File>, out: &mut Vec<u8>) -> io::Result<bool> {
        let mut read = 0;
        while read < BATCH && out.len() < OUTPUT && !self.is_done() {
            let n = reader.read_until(b'\n', &mut self.pending)?;
            if self.pending.last() != Some(&b'\n') {
                return Ok(true);
            }
            let line = std::mem::take(&mut self.pending);
            self.line(&line, out);
            read += n;
        }
        Ok(false)
    }

    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(entry) = cri::parse(line) else { return };
        if self.options.stderr.is_some_and(|stderr| stderr != entry.stderr) {
            return;
        }
        let early = |since| entry.timestamp().is_some_and(|time| time < since);
        if self.options.since.is_some_and(early) {
            return;
        }
        self.entry(&entry, out);
    }

    fn entry(&mut self, entry: &Entry<'_>, out: &mut Vec<u8>) {
        if self.options.timestamps && self.at_line_start {
            self.put(entry.time.as_bytes(), out);
            self.put(b" ", out);
        }
        self.put(entry.text, out);
        if !entry.partial {
            self.put(b"\n", out);
        }
        self.at_line_start = !entry.partial;
    }

    fn put(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let n = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        out.extend_from_slice(&bytes[..n]);
        self.left -= n as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(query: &[(&str, &str)]) -> Options {
        let query: Vec<(String, String)> = query.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Options::parse(&query, Timestamp::from_second(100).unwrap()).unwrap()
    }

    fn text(query: &[(&str, &str)], lines: &[&str]) -> String {
        let (mut render, mut out) = (Render::new(options(query)), Vec::new());
        for line in lines {
            render.line(line.as_bytes(), &mut out);
        }
        String::from_utf8(out).unwrap()
    }

    const LINES: [&str; 3] = [
        "1970-01-01T00:00:10Z stdout F one\n",
        "1970-01-01T00:01:35Z stderr P tw\n",
        "1970-01-01T00:01:36Z stderr F o\n",
    ];

    #[test]
    fn partial_entries_join_under_one_timestamp() {
        assert_eq!(text(&[], &LINES), "one\ntwo\n");
        let with = text(&[("timestamps", "true")], &LINES);
        assert_eq!(with, "1970-01-01T00:00:10Z one\n1970-01-01T00:01:35Z two\n");
    }

    #[test]
    fn since_streams_and_limits_cut() {
        assert_eq!(text(&[("sinceSeconds", "10")], &LINES), "two\n");
        assert_eq!(text(&[("sinceTime", "1970-01-01T00:01:36Z")], &LINES), "o\n");
        assert_eq!(text(&[("limitBytes", "5")], &LINES), "one\nt");
        assert_eq!(text(&[("stream", "Stdout")], &LINES), "one\n");
    }

    #[test]
    fn nonsense_is_refused() {
        let query = [("tailLines".to_owned(), "x".to_owned())];
        assert!(Options::parse(&query, Timestamp::UNIX_EPOCH).is_err());
    }

    #[test]
    fn the_tail_reaches_into_rotated_files() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("0.log");
        std::fs::write(directory.path().join("0.log.20240101-000000"), "t stdout F a\nt stdout F b\n").unwrap();
        std::fs::write(&log, "t stdout F c\n").unwrap();
        let read = |tail| {
            let files = begin(&log, Some(tail)).unwrap();
            files.into_iter().map(|file| io::read_to_string(file).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(read(2), ["t stdout F b\n", "t stdout F c\n"]);
        assert_eq!(read(1), ["t stdout F c\n"]);
    }

    #[test]
    fn a_follower_goes_from_file_to_file_though_they_are_rotated_faster_than_it_reads() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("0.log");
        std::fs::write(&log, "a").unwrap();
        let first = File::open(&log).unwrap().metadata().unwrap().ino();
        for (time, next) in [("1", "b"), ("2", "c")] {
            std::fs::rename(&log, directory.path().join(format!("0.log.{time}"))).unwrap();
            std::fs::write(&log, next).unwrap();
        }
        let mut inode = Some(first);
        let mut text = String::new();
        while let Some(file) = successor(&log, inode).unwrap() {
            inode = Some(file.metadata().unwrap().ino());
            text += &io::read_to_string(file).unwrap();
        }
        assert_eq!(text, "bc");
        let gone = File::open(directory.path().join("0.log.1")).unwrap();
        std::fs::remove_file(directory.path().join("0.log.1")).unwrap();
        let next = successor(&log, Some(gone.metadata().unwrap().ino())).unwrap();
        assert_eq!(io::read_to_string(next.unwrap()).unwrap(), "b");
    }
}
