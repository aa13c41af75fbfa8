//! CRI log lines: `2024-01-01T00:00:00.000000000Z stdout F text`, where P marks a line that goes on in the next entry.

use jiff::Timestamp;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// One entry of a log file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    /// As written.
    pub time: &'a str,
    pub stderr: bool,
    /// The line goes on in the next entry of its stream.
    pub partial: bool,
    /// Without the newline.
    pub text: &'a [u8],
}

impl Entry<'_> {
    /// When it was written; `None` if the time cannot be read.
    pub fn timestamp(&self) -> Option<Timestamp> {
        self.time.parse().ok()
    }
}

/// Reads one line of a log file (with or without its newline); `None` for what isn't an entry.
pub(crate) fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stderr = match parts.next()? {
        b"stdout" => false,
        b"stderr" => true,
        _ => return None,
    };
    // Tags are separated by colons; the first says whether the line is whole.
    let partial = parts.next()?.split(|byte| *byte == b':').next()? == b"P";
    Some(Entry { time, stderr, partial, text: parts.next().unwrap_or_default() })
}

/// The log's files, oldest first: those that rotation has put aside, then the one being written.
pub(crate) fn files(log: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = Vec::new();
    if let (Some(directory), Some(name)) = (log.parent(), log.file_name()) {
        let prefix = format!("{}.", name.to_string_lossy());
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        files.extend(
            entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)).map(|entry| entry.path()),
        );
        files.sort();
    }
    if log.exists() {
        files.push(log.to_owned());
    }
    files
}

/// Offset at which the last `lines` lines of the file begin, and how many lines there are from there.
pub(crate) fn tail_offset(file: &mut std::fs::File, lines: usize) -> io::Result<(u64, usize)> {
    const BLOCK: u64 = 16 * 1024;
    let end = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok((end, 0));
    }
    let (mut position, mut found) = (end, 0);
    let mut block = Vec::new();
    while position > 0 {
        let from = position.saturating_sub(BLOCK);
        file.seek(SeekFrom::Start(from))?;
        block.clear();
        file.by_ref().take(position - from).read_to_end(&mut block)?;
        for (index, byte) in block.iter().enumerate().rev() {
            let at = from + index as u64;
            // The newline that ends the file begins no line.
            if *byte == b'\n' && at + 1 != end {
                found += 1;
                if found == lines {
                    return Ok((at + 1, lines));
                }
            }
        }
        position = from;
    }
    Ok((0, if end == 0 { 0 } else { found + 1 }))
}

/// The text of the log's last lines, at most so many lines and bytes: a termination message where a program left none.
pub(crate) fn last_text(log: &Path, lines: usize, bytes: usize) -> io::Result<String> {
    let mut file = std::fs::File::open(log)?;
    let (offset, _) = tail_offset(&mut file, lines)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut raw = Vec::new();
    file.read_to_end(&mut raw)?;
    let mut text = Vec::new();
    for entry in raw.split_inclusive(|byte| *byte == b'\n').filter_map(parse) {
        text.extend_from_slice(entry.text);
        if !entry.partial {
            text.push(b'\n');
        }
    }
    let from = text.len().saturating_sub(bytes);
    Ok(String::from_utf8_lossy(&text[from..]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn entries_are_read_with_their_tags() {
        let entry = parse(b"2024-01-01T00:00:00.5Z stderr P:x half a \xff line\n").unwrap();
        assert_eq!((entry.stderr, entry.partial, entry.text), (true, true, &b"half a \xff line"[..]));
        assert_eq!(entry.timestamp().unwrap().subsec_millisecond(), 500);
        assert_eq!(parse(b"2024-01-01T00:00:00Z stdout F ").unwrap().text, b"");
        assert_eq!(parse(b"2024-01-01T00:00:00Z stdout F").unwrap().text, b"");
        assert!(parse(b"garbage").is_none());
        assert!(parse(b"").is_none());
    }

    fn file(text: &str) -> std::fs::File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn the_tail_is_found_across_blocks() {
        assert_eq!(tail_offset(&mut file("a\nb\nc\n"), 2).unwrap(), (2, 2));
        assert_eq!(tail_offset(&mut file("a\nb\nc\n"), 3).unwrap(), (0, 3));
        assert_eq!(tail_offset(&mut file("a\nb\nc\n"), 9).unwrap(), (0, 3));
        assert_eq!(tail_offset(&mut file("a\nb"), 1).unwrap(), (2, 1));
        assert_eq!(tail_offset(&mut file(""), 1).unwrap(), (0, 0));
        assert_eq!(tail_offset(&mut file("a\n"), 0).unwrap(), (2, 0));
        let long = (0..10_000).map(|n| format!("line {n}")).collect::<Vec<_>>().join("\n") + "\n";
        let (offset, _) = tail_offset(&mut file(&long), 5000).unwrap();
        assert!(long[usize::try_from(offset).unwrap()..].starts_with("line 5000\n"));
    }

    #[test]
    fn the_last_text_joins_partial_lines_and_is_cut() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("0.log");
        std::fs::write(&log, "t stdout F old\nt stdout P ab\nt stdout F cd\nt stderr F oops\n").unwrap();
        assert_eq!(last_text(&log, 3, 100).unwrap(), "abcd\noops\n");
        assert_eq!(last_text(&log, 3, 5).unwrap(), "oops\n");
    }
}
