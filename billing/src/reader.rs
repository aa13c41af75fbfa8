//! Reads the kernel's counters of one container, through files that stay open.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::Counters;

/// A container's counters as of one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sample {
    /// CPU time since the container began.
    pub(crate) cpu_ns: u64,
    /// Memory that could not be had back at once: all of it less inactive file pages, as `kubectl top` counts.
    pub(crate) memory_bytes: u64,
}

/// The open files.
pub(crate) struct Reader {
    cpu: File,
    cpu_format: CpuFormat,
    memory: File,
    memory_stat: File,
    inactive_key: &'static str,
    /// What the memory file said last, and what was made of it.
    last: (u64, Sample),
}

enum CpuFormat {
    /// `cpuacct.usage`: nanoseconds.
    Nanoseconds,
    /// `cpu.stat`: a line `usage_usec N`.
    Stat,
}

impl Reader {
    /// Opens the files of a container's group.
    pub(crate) fn open(counters: &Counters) -> io::Result<Self> {
        let open = |directory: &Path, name: &str| File::open(directory.join(name));
        Ok(match counters {
            Counters::V1 { cpuacct, memory } => Self {
                cpu: open(cpuacct, "cpuacct.usage")?,
                cpu_format: CpuFormat::Nanoseconds,
                memory: open(memory, "memory.usage_in_bytes")?,
                memory_stat: open(memory, "memory.stat")?,
                inactive_key: "total_inactive_file",
                last: Default::default(),
            },
            Counters::V2(directory) => Self {
                cpu: open(directory, "cpu.stat")?,
                cpu_format: CpuFormat::Stat,
                memory: open(directory, "memory.current")?,
                memory_stat: open(directory, "memory.stat")?,
                inactive_key: "inactive_file",
                last: Default::default(),
            },
        })
    }

    /// Reads the counters.
    pub(crate) fn read(&mut self) -> io::Result<Sample> {
        let mut buffer = [0; 8192];
        let cpu_text = read(&self.cpu, &mut buffer)?;
        let cpu_ns = match self.cpu_format {
            CpuFormat::Nanoseconds => number(cpu_text)?,
            CpuFormat::Stat => field(cpu_text, "usage_usec")?.saturating_mul(1_000),
        };
        let all_memory = number(read(&self.memory, &mut buffer)?)?;
        // A container that neither ran nor changed its memory has not changed the kind of its pages either.
        let (last_memory, last) = self.last;
        let memory_bytes = if all_memory == last_memory && cpu_ns == last.cpu_ns {
            last.memory_bytes
        } else {
            let inactive = field(read(&self.memory_stat, &mut buffer)?, self.inactive_key)?;
            all_memory.saturating_sub(inactive)
        };
        let sample = Sample { cpu_ns, memory_bytes };
        self.last = (all_memory, sample);
        Ok(sample)
    }
}

fn read<'a>(file: &File, buffer: &'a mut [u8]) -> io::Result<&'a str> {
    let length = file.read_at(buffer, 0)?;
    std::str::from_utf8(&buffer[..length]).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn number(text: &str) -> io::Result<u64> {
    text.trim().parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// The value of a line `name value`.
fn field(text: &str, name: &str) -> io::Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    number(line.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("no line {name}")))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            std::fs::write(directory.join(name), text).unwrap();
        }
    }

    #[test]
    fn v1_counts_nanoseconds_and_leaves_out_inactive_file_pages() {
        let group = tempfile::tempdir().unwrap();
        write(
            group.path(),
            &[
                ("cpuacct.usage", "1234567891\n"),
                ("memory.usage_in_bytes", "1000\n"),
                ("memory.stat", "cache 1\ninactive_file 7\ntotal_inactive_file 400\n"),
            ],
        );
        let counters = Counters::V1 { cpuacct: group.path().into(), memory: group.path().into() };
        let sample = Reader::open(&counters).unwrap().read().unwrap();
        assert_eq!(sample, Sample { cpu_ns: 1_234_567_891, memory_bytes: 600 });
    }

    #[test]
    fn v2_counts_microseconds() {
        let group = tempfile::tempdir().unwrap();
        write(
            group.path(),
            &[
                ("cpu.stat", "usage_usec 15\nuser_usec 10\n"),
                ("memory.current", "4096\n"),
                ("memory.stat", "anon 1\ninactive_file 96\n"),
            ],
        );
        let sample = Reader::open(&Counters::V2(group.path().into())).unwrap().read().unwrap();
        assert_eq!(sample, Sample { cpu_ns: 15_000, memory_bytes: 4_000 });
    }

    #[test]
    fn a_changed_counter_is_seen_through_the_open_file() {
        let group = tempfile::tempdir().unwrap();
        write(
            group.path(),
            &[("cpu.stat", "usage_usec 1\n"), ("memory.current", "10\n"), ("memory.stat", "inactive_file 0\n")],
        );
        let mut reader = Reader::open(&Counters::V2(group.path().into())).unwrap();
        reader.read().unwrap();
        write(group.path(), &[("cpu.stat", "usage_usec 3\n"), ("memory.current", "20\n")]);
        assert_eq!(reader.read().unwrap(), Sample { cpu_ns: 3_000, memory_bytes: 20 });
    }
}
