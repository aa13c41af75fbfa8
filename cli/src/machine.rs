//! What this machine uses: CPU and memory, from /proc.

use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;

/// A rate covers at least this long.
const WINDOW_SECONDS: f64 = 5.0;
/// The kernel counts CPU time in hundredths of a second for programs.
const TICKS_PER_SECOND: f64 = 100.0;

/// The machine, as it is used.
pub struct Machine {
    looks: Mutex<Looks>,
}

struct Looks {
    before: Look,
    last: Look,
}

#[derive(Clone, Copy)]
struct Look {
    at: Timestamp,
    busy_ticks: u64,
}

/// What it uses.
pub struct MachineUsage {
    pub at: Timestamp,
    pub window_seconds: f64,
    pub cpu_nanocores: u64,
    pub memory_bytes: u64,
}

impl Machine {
    pub fn new() -> Self {
        let now = Look { at: Timestamp::now(), busy_ticks: busy_ticks().unwrap_or(0) };
        Self { looks: Mutex::new(Looks { before: now, last: now }) }
    }

    /// The rate since an earlier look; none if the kernel doesn't say.
    pub fn usage(&self) -> Option<MachineUsage> {
        let now = Look { at: Timestamp::now(), busy_ticks: busy_ticks()? };
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        let apart = |one: Look, other: Look| other.at.duration_since(one.at).as_secs_f64();
        if apart(looks.last, now) >= WINDOW_SECONDS {
            looks.before = looks.last;
            looks.last = now;
        }
        let before = looks.before;
        drop(looks);
        let window_seconds = apart(before, now).max(0.001);
        let ticks = u32::try_from(now.busy_ticks.saturating_sub(before.busy_ticks)).unwrap_or(u32::MAX);
        let nanocores = f64::from(ticks) / TICKS_PER_SECOND / window_seconds * 1e9;
        // Positive, and far below what 64 bits hold.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let cpu_nanocores = nanocores as u64;
        Some(MachineUsage { at: now.at, window_seconds, cpu_nanocores, memory_bytes: memory_in_use()? })
    }
}

/// CPU time of all CPUs that wasn't idle or waiting.
fn busy_ticks() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    busy(text.lines().next()?)
}

fn busy(line: &str) -> Option<u64> {
    let numbers: Vec<u64> = line.strip_prefix("cpu ")?.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; guests are in user and nice already.
    let idle = numbers.get(3)? + numbers.get(4)?;
    Some(numbers.iter().take(8).sum::<u64>() - idle)
}

fn memory_in_use() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kibibytes = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    Some(kibibytes("MemTotal:")?.saturating_sub(kibibytes("MemAvailable:")?) * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_is_what_is_neither_idle_nor_waiting() {
        assert_eq!(busy("cpu  10 1 5 100 7 2 3 4 50 60"), Some(25));
        assert_eq!(busy("intr 1"), None);
    }
}
