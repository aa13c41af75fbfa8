//! Output cut into CRI log lines: `2024-01-01T00:00:00.000000000Z stdout F text`.

use jiff::Timestamp;

/// A longer line is cut into pieces of this length, all but the last tagged `P`.
const LINE_MAX: usize = 16 * 1024;

/// Cuts one stream. Keeps what has no end yet.
#[derive(Debug)]
pub struct LineSplitter {
    stream: &'static str,
    pending: Vec<u8>,
}

impl LineSplitter {
    /// For `stdout` or `stderr`.
    pub fn new(stream: &'static str) -> Self {
        Self { stream, pending: Vec::new() }
    }

    /// Takes output; appends the finished lines to `out`.
    pub fn push(&mut self, mut data: &[u8], out: &mut Vec<u8>) {
        let prefix = self.prefix();
        while !data.is_empty() {
            let room = LINE_MAX - self.pending.len();
            let window = &data[..data.len().min(room)];
            if let Some(end) = window.iter().position(|byte| *byte == b'\n') {
                self.emit(&prefix, &window[..end], b'F', out);
                data = &data[end + 1..];
            } else if window.len() == room {
                // A line of exactly the limit is whole when its end comes next.
                if data.get(room) == Some(&b'\n') {
                    self.emit(&prefix, window, b'F', out);
                    data = &data[room + 1..];
                } else {
                    self.emit(&prefix, window, b'P', out);
                    data = &data[room..];
                }
            } else {
                self.pending.extend_from_slice(window);
                return;
            }
        }
    }

    /// Whether something has no end yet.
    pub fn is_open(&self) -> bool {
        !self.pending.is_empty()
    }

    /// What has no line end becomes a piece without one: the stream has ended, or somebody may wait to see it.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        if !self.pending.is_empty() {
            let prefix = self.prefix();
            self.emit(&prefix, &[], b'P', out);
        }
    }

    fn prefix(&self) -> String {
        format!("{} {} ", Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%9fZ"), self.stream)
    }

    fn emit(&mut self, prefix: &str, rest: &[u8], tag: u8, out: &mut Vec<u8>) {
        out.extend_from_slice(prefix.as_bytes());
        out.extend_from_slice(&[tag, b' ']);
        out.append(&mut self.pending);
        out.extend_from_slice(rest);
        out.push(b'\n');
        // An idle container keeps no buffer.
        self.pending = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(chunks: &[&[u8]], finish: bool) -> Vec<(String, Vec<u8>)> {
        let mut splitter = LineSplitter::new("stderr");
        let mut out = Vec::new();
        for chunk in chunks {
            splitter.push(chunk, &mut out);
        }
        if finish {
            splitter.finish(&mut out);
        }
        out.split_inclusive(|byte| *byte == b'\n')
            .map(|line| {
                let line = &line[..line.len() - 1];
                let time = std::str::from_utf8(&line[..30]).expect("ascii");
                assert!(time.ends_with('Z') && time.parse::<Timestamp>().is_ok(), "{time}");
                assert_eq!(&line[30..38], b" stderr ");
                (String::from_utf8_lossy(&line[38..39]).into_owned(), line[40..].to_vec())
            })
            .collect()
    }

    #[test]
    fn a_line_that_arrives_in_pieces_is_written_once() {
        assert_eq!(
            lines(&[b"he", b"llo\nwor", b"ld\n"], false),
            [("F".to_owned(), b"hello".to_vec()), ("F".to_owned(), b"world".to_vec())]
        );
    }

    #[test]
    fn a_long_line_is_cut_into_partial_pieces_and_joins_to_what_was_written() {
        let long = vec![b'x'; LINE_MAX * 2 + 5];
        let mut data = long.clone();
        data.push(b'\n');
        let found = lines(&[&data[..1000], &data[1000..]], false);
        let tags: Vec<&str> = found.iter().map(|(tag, _)| tag.as_str()).collect();
        assert_eq!(tags, ["P", "P", "F"]);
        assert_eq!(found.into_iter().flat_map(|(_, text)| text).collect::<Vec<u8>>(), long);
    }

    #[test]
    fn an_end_without_a_line_end_stays_a_piece_without_one() {
        assert_eq!(lines(&[b"bye"], true), [("P".to_owned(), b"bye".to_vec())]);
        assert_eq!(lines(&[b"bye\n"], true), [("F".to_owned(), b"bye".to_vec())]);
        assert_eq!(lines(&[b"\n\n"], true), [("F".to_owned(), Vec::new()), ("F".to_owned(), Vec::new())]);
    }
}
