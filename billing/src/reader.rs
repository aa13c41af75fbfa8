//! Reads the kernel's counters of one container, through files that stay open.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::Traffic;

/// A container's counters as of one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sample {
    /// CPU time since the container began.
    pub(crate) cpu_ns: u64,
    /// Memory that could not be had back at once: all of it less inactive file pages, as `kubectl top` counts.
    pub(crate) memory_bytes: u64,
    /// A network's.
    pub(crate) traffic: Traffic,
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
    /// Opens the files of a container's groups, of cgroup v1.
    pub(crate) fn v1(cpuacct: &Path, memory: &Path) -> io::Result<Self> {
        Ok(Self {
            cpu: File::open(cpuacct.join("cpuacct.usage"))?,
            cpu_format: CpuFormat::Nanoseconds,
            memory: File::open(memory.join("memory.usage_in_bytes"))?,
            memory_stat: File::open(memory.join("memory.stat"))?,
            inactive_key: "total_inactive_file",
            last: Default::default(),
        })
    }

    /// The same of cgroup v2.
    pub(crate) fn v2(directory: &Path) -> io::Result<Self> {
        Ok(Self {
            cpu: File::open(directory.join("cpu.stat"))?,
            cpu_format: CpuFormat::Stat,
            memory: File::open(directory.join("memory.current"))?,
            memory_stat: File::open(directory.join("memory.stat"))?,
            inactive_key: "inactive_file",
            last: Default::default(),
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
        let sample = Sample { cpu_ns, memory_bytes, traffic: Traffic::default() };
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
        let sample = Reader::v1(group.path(), group.path()).unwrap().read().unwrap();
        assert_eq!((sample.cpu_ns, sample.memory_bytes), (1_234_567_891, 600));
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
        let sample = Reader::v2(group.path()).unwrap().read().unwrap();
        assert_eq!((sample.cpu_ns, sample.memory_bytes), (15_000, 4_000));
    }

    #[test]
    fn a_changed_counter_is_seen_through_the_open_file() {
        let group = tempfile::tempdir().unwrap();
        write(
            group.path(),
            &[("cpu.stat", "usage_usec 1\n"), ("memory.current", "10\n"), ("memory.stat", "inactive_file 0\n")],
        );
        let mut reader = Reader::v2(group.path()).unwrap();
        reader.read().unwrap();
        write(group.path(), &[("cpu.stat", "usage_usec 3\n"), ("memory.current", "20\n")]);
        let sample = reader.read().unwrap();
        assert_eq!((sample.cpu_ns, sample.memory_bytes), (3_000, 20));
    }
}
