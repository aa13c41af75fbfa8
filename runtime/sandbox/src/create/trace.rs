//! What libcontainer logs as errors, kept for the message of a failed start: the errors that it returns from its child
//! processes have lost their causes.

use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Longest text that is kept.
const KEPT: usize = 2000;

/// The first error that a process of this container logs; forks share it.
#[derive(Debug)]
pub struct ErrorLog {
    file: File,
}

impl ErrorLog {
    /// Collects from now on in this process and its forks.
    pub fn install() -> io::Result<Self> {
        let file = File::from(memfd_create("carob-errors", MFdFlags::MFD_CLOEXEC)?);
        let collector = Collector { file: file.try_clone()? };
        tracing::subscriber::set_global_default(collector).map_err(io::Error::other)?;
        Ok(Self { file })
    }

    /// The first line: the innermost error, as libcontainer logs on the way out.
    pub fn first(&self) -> Option<String> {
        let mut buffer = vec![0u8; KEPT];
        let length = self.file.read_at(&mut buffer, 0).ok()?;
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        text.lines().next().map(str::to_owned).filter(|line| !line.is_empty())
    }
}

struct Collector {
    file: File,
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let separator = if self.0.is_empty() { "" } else { ", " };
        // Writing to a string doesn't fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{separator}{value:?}"),
            name => write!(self.0, "{separator}{name}: {value:?}"),
        };
    }
}

impl Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::ERROR)
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        let mut line = text.0.replace('\n', " ");
        line.push('\n');
        // One write per line keeps lines of several processes whole.
        let _ = (&self.file).write_all(line.as_bytes());
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}
