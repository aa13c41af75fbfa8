//! Looks at the counters of every running container and of every pod's network, and makes readings of what passed between two looks.

use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::Notify;

use crate::ledger::{Error, Record, key};
use crate::rate::{Looks, Usage};
use crate::reader::{Reader, Sample};
use crate::reading::{Checkpoint, Reading, nanoseconds};
use crate::traffic::{Sweep, TrafficSource};
use crate::{Counters, End, Meterable, Requests, Traffic};

/// A reading of a container that did nothing is put off, for at most this long, and then covers all of that time: what
/// is constant needs no second record to be exact.
pub(crate) const LONGEST_QUIET: Duration = Duration::from_secs(300);

/// After this time without a reading, another machine's container is as it was.
const SILENCE_NS: i64 = 15_000_000_000;

/// How far the meter's clock and the machine's may be apart.
const LARGEST_DRIFT_NS: u64 = 1_000_000_000;

/// The running containers, and the networks of pods.
pub(crate) struct Meter {
    running: Mutex<HashMap<String, Running>>,
    /// Containers of other machines, as far as their readings tell.
    elsewhere: Mutex<HashMap<String, Elsewhere>>,
    arrived: Notify,
    clock: Clock,
}

struct Running {
    container: Meterable,
    counters: Option<Opened>,
    checkpoint: Checkpoint,
    looks: Looks,
}

/// Counters that can be read.
enum Opened {
    Container(Reader),
    Network(TrafficSource, Ipv4Addr),
}

impl Opened {
    fn open(counters: &Counters) -> io::Result<Self> {
        Ok(match counters {
            Counters::V1 { cpuacct, memory } => Self::Container(Reader::v1(cpuacct, memory)?),
            Counters::V2(directory) => Self::Container(Reader::v2(directory)?),
            Counters::Network(source, pod) => Self::Network(source.clone(), *pod),
        })
    }
}

impl Running {
    /// Looks at the counters. A container that is ending may have lost its files; its last reading comes with its end.
    fn look(&mut self, clock: &Clock, sweep: &mut Sweep) -> Option<(Sample, i64)> {
        let sample = match self.counters.as_mut()? {
            Opened::Container(reader) => reader.read().ok()?,
            Opened::Network(source, pod) => Sample { traffic: sweep.of(source, *pod)?, ..Sample::default() },
        };
        let at_ns = clock.now_ns().max(self.checkpoint.at_ns);
        if !self.container.is_network() {
            self.looks.push(at_ns, sample.cpu_ns, sample.memory_bytes);
        }
        Some((sample, at_ns))
    }

    /// Makes a reading of what passed since the last one; the next one begins with these requests.
    fn read(&mut self, sample: Sample, at_ns: i64, requests: Option<Requests>) -> Record {
        let before = self.checkpoint;
        let after = Checkpoint {
            next_sequence: before.next_sequence + 1,
            at_ns,
            cpu_ns: sample.cpu_ns.max(before.cpu_ns),
            memory_bytes: Some(sample.memory_bytes),
            ended: false,
            requests,
            traffic: sample.traffic,
        };
        let memory = memory_between(before.memory_bytes, sample.memory_bytes, at_ns.abs_diff(before.at_ns));
        self.checkpoint = after;
        Record { reading: reading(&before, &after, memory), container: self.container.clone(), before, after }
    }
}

struct Elsewhere {
    container: Meterable,
    last: Checkpoint,
    looks: Looks,
}

impl Meter {
    pub(crate) fn new() -> Self {
        Self { running: Mutex::default(), elsewhere: Mutex::default(), arrived: Notify::new(), clock: Clock::start() }
    }

    /// Begins to look at a container, from `checkpoint` on if an earlier process has looked at it.
    pub(crate) fn add(&self, container: Meterable, checkpoint: Option<Checkpoint>) {
        let checkpoint = checkpoint.unwrap_or_else(|| Checkpoint::start(&container));
        if checkpoint.ended {
            return;
        }
        let counters = container.counters.as_ref().and_then(|counters| {
            Opened::open(counters)
                .map_err(|error| tracing::warn!(container = %container.container_id, %error, "no counters"))
                .ok()
        });
        let mut running = self.running();
        running.entry(container.container_id.clone()).or_insert(Running {
            container,
            counters,
            checkpoint,
            looks: Looks::default(),
        });
        self.arrived.notify_one();
    }

    /// The last reading of a container; none if it was made before.
    pub(crate) fn finish(&self, container: Meterable, checkpoint: Option<Checkpoint>, end: End) -> Option<Record> {
        let (container, before) = self.remove(container, checkpoint)?;
        let at_ns = if end.unknown { before.at_ns } else { nanoseconds(end.finished_at).max(before.at_ns) };
        // The counter of an ended container stands still. A lower value than was read before means that it could not be
        // read at the end.
        let cpu_ns = end.cpu_ns.max(before.cpu_ns);
        let memory = last_memory(before.memory_bytes, end.memory_peak_bytes, at_ns.abs_diff(before.at_ns));
        let next_sequence = before.next_sequence + 1;
        let after = Checkpoint { next_sequence, at_ns, cpu_ns, memory_bytes: Some(0), ended: true, ..before };
        Some(Record { reading: reading(&before, &after, memory), container, before, after })
    }

    /// The last reading of a pod's network; none if it was made before.
    pub(crate) fn leave(
        &self,
        network: Meterable,
        checkpoint: Option<Checkpoint>,
        last: Option<Traffic>,
    ) -> Option<Record> {
        let (container, before) = self.remove(network, checkpoint)?;
        let (next_sequence, at_ns) = (before.next_sequence + 1, self.clock.now_ns().max(before.at_ns));
        let traffic = last.unwrap_or(before.traffic);
        let after = Checkpoint { next_sequence, at_ns, traffic, ended: true, ..before };
        Some(Record { reading: reading(&before, &after, (0, 0)), container, before, after })
    }

    /// What is known of one that has ended, unless its end is.
    fn remove(&self, container: Meterable, checkpoint: Option<Checkpoint>) -> Option<(Meterable, Checkpoint)> {
        let known = self.running().remove(&container.container_id);
        let (container, before) = if let Some(running) = known {
            (running.container, running.checkpoint)
        } else {
            let before = checkpoint.unwrap_or_else(|| Checkpoint::start(&container));
            (container, before)
        };
        (!before.ended).then_some((container, before))
    }

    /// One reading for every running container that did something, or of which there was none for so long.
    pub(crate) fn read_all(&self, longest_quiet: Duration) -> Vec<Record> {
        let (mut records, mut sweep) = (Vec::new(), Sweep::default());
        for running in self.running().values_mut() {
            let Some((sample, at_ns)) = running.look(&self.clock, &mut sweep) else { continue };
            if !is_quiet(&running.checkpoint, sample, at_ns, longest_quiet) {
                records.push(running.read(sample, at_ns, running.checkpoint.requests));
            }
        }
        records
    }

    /// A reading up to now of a container that asks for something else from now on, also when it did nothing; none if it
    /// asks for the same.
    pub(crate) fn resize(&self, container_id: &str, requests: Requests) -> Option<Record> {
        let mut all = self.running();
        let running = all.get_mut(container_id)?;
        let Checkpoint { at_ns, cpu_ns, memory_bytes, requests: now, traffic, .. } = running.checkpoint;
        if now.unwrap_or(running.container.requests) == requests {
            return None;
        }
        // Counters that can't be read now are made up for by the next reading.
        let unread = Sample { cpu_ns, memory_bytes: memory_bytes.unwrap_or(0), traffic };
        let looked = running.look(&self.clock, &mut Sweep::default());
        let (sample, at_ns) = looked.unwrap_or((unread, self.clock.now_ns().max(at_ns)));
        Some(running.read(sample, at_ns, Some(requests)))
    }

    /// What the running containers use now.
    pub(crate) fn usage(&self) -> Vec<Usage> {
        let mut all: Vec<_> =
            self.running().values().filter_map(|running| running.looks.usage(&running.container)).collect();
        let now_ns = self.clock.now_ns();
        for elsewhere in self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner).values_mut() {
            let Elsewhere { container, last, looks } = elsewhere;
            if now_ns.saturating_sub(last.at_ns) > SILENCE_NS {
                // What doesn't change isn't told.
                looks.push(now_ns, last.cpu_ns, last.memory_bytes.unwrap_or(0));
            }
            all.extend(looks.usage(container));
        }
        all
    }

    /// Readings of another machine's containers.
    pub(crate) fn heard(&self, records: &[Record]) {
        let mut elsewhere = self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner);
        for Record { container, after, .. } in records.iter().filter(|record| !record.container.is_network()) {
            if after.ended {
                elsewhere.remove(&key(container));
                continue;
            }
            let known = elsewhere.entry(key(container)).or_insert_with(|| Elsewhere {
                container: container.clone(),
                last: *after,
                looks: Looks::default(),
            });
            if after.at_ns >= known.last.at_ns {
                known.last = *after;
                known.looks.push(after.at_ns, after.cpu_ns, after.memory_bytes.unwrap_or(0));
            }
        }
    }

    /// Forgets readings that could not be written: the next ones begin where the ledger ends.
    pub(crate) fn take_back(&self, records: &[Record], checkpoint: impl Fn(&str) -> Result<Option<Checkpoint>, Error>) {
        let mut running = self.running();
        for record in records {
            let id = &record.container.container_id;
            let Some(running) = running.get_mut(id) else { continue };
            running.checkpoint = match checkpoint(id) {
                Ok(known) => known.unwrap_or_else(|| Checkpoint::start(&record.container)),
                Err(_) => record.before,
            };
        }
    }

    /// Waits for the next whole interval of the clock, or, while nothing runs, for something to run.
    pub(crate) async fn next_tick(&self, interval: Duration) {
        while self.running().is_empty() {
            self.arrived.notified().await;
        }
        let interval_ns = interval.as_nanos().max(1);
        let into = u128::from(self.clock.now_ns().unsigned_abs()) % interval_ns;
        let left = u64::try_from(interval_ns - into).unwrap_or(u64::MAX);
        tokio::time::sleep(Duration::from_nanos(left)).await;
    }

    fn running(&self) -> MutexGuard<'_, HashMap<String, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_quiet(before: &Checkpoint, sample: Sample, at_ns: i64, longest: Duration) -> bool {
    sample.cpu_ns == before.cpu_ns
        && before.memory_bytes == Some(sample.memory_bytes)
        && before.traffic == sample.traffic
        && u128::from(at_ns.abs_diff(before.at_ns)) < longest.as_nanos()
}

fn reading(before: &Checkpoint, after: &Checkpoint, (memory_byte_ns, memory_error_byte_ns): (u128, u128)) -> Reading {
    Reading {
        sequence: before.next_sequence,
        start_ns: before.at_ns,
        end_ns: after.at_ns,
        cpu_ns: after.cpu_ns - before.cpu_ns,
        memory_byte_ns,
        memory_error_byte_ns,
        requests: before.requests,
        traffic: after.traffic.since(before.traffic),
    }
}

/// The integral of memory between two looks, and its bound of error where the change was steady in one direction.
fn memory_between(before: Option<u64>, after: u64, duration_ns: u64) -> (u128, u128) {
    let before = before.unwrap_or(0);
    let twice_mean = u128::from(before) + u128::from(after);
    let twice_error = u128::from(before.abs_diff(after));
    let duration = u128::from(duration_ns);
    (twice_mean * duration / 2, (twice_error * duration).div_ceil(2))
}

/// The integral from the last look to the end, when nothing is left to look at: the memory was between nothing and its
/// peak.
fn last_memory(before: Option<u64>, peak: u64, duration_ns: u64) -> (u128, u128) {
    let duration = u128::from(duration_ns);
    match before {
        Some(held) => (u128::from(held) * duration, u128::from(held.max(peak.saturating_sub(held))) * duration),
        None => (u128::from(peak) * duration / 2, (u128::from(peak) * duration).div_ceil(2)),
    }
}

/// Wall-clock time that runs evenly, and follows when the machine's clock was set or the machine slept.
struct Clock {
    anchor: Mutex<(i64, Instant)>,
}

impl Clock {
    fn start() -> Self {
        Self { anchor: Mutex::new((nanoseconds(Timestamp::now()), Instant::now())) }
    }

    fn now_ns(&self) -> i64 {
        let mut anchor = self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        let (epoch_ns, since) = *anchor;
        let even = epoch_ns.saturating_add(i64::try_from(since.elapsed().as_nanos()).unwrap_or(i64::MAX));
        let wall = nanoseconds(Timestamp::now());
        if even.abs_diff(wall) <= LARGEST_DRIFT_NS {
            return even;
        }
        *anchor = (wall, Instant::now());
        wall
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_grows_is_integrated_with_the_bound_of_its_error() {
        assert_eq!(memory_between(Some(100), 200, 10), (1_500, 500));
        assert_eq!(memory_between(Some(200), 200, 10), (2_000, 0));
    }

    #[test]
    fn a_container_that_was_never_looked_at_had_between_nothing_and_its_peak() {
        assert_eq!(last_memory(None, 1_000, 5), (2_500, 2_500));
        assert_eq!(last_memory(Some(400), 1_000, 5), (2_000, 3_000));
    }
}
