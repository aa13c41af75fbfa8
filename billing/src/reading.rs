//! What a container used between two looks at its counters.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Meterable, Requests, Traffic};

/// Usage over an interval, uniform as far as is known. Consecutive readings of a container touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// 0 for a container's first reading, then one more each.
    pub sequence: u64,
    /// Begin, nanoseconds since the epoch.
    pub start_ns: i64,
    /// End, not included.
    pub end_ns: i64,
    /// CPU time used.
    pub cpu_ns: u64,
    /// Memory times time.
    pub memory_byte_ns: u128,
    /// How far `memory_byte_ns` may be off, either way.
    pub memory_error_byte_ns: u128,
    /// What the container asked for during it; none for what its description says.
    #[serde(default)]
    pub requests: Option<Requests>,
    /// What a pod received and sent, if this is of its network.
    #[serde(default)]
    pub traffic: Traffic,
}

impl Reading {
    /// How long it lasted.
    pub fn duration_ns(&self) -> u64 {
        self.end_ns.saturating_sub(self.start_ns).unsigned_abs()
    }

    /// The part of a quantity of this reading that lies before `at`, rounded down; the whole from the end on. Taking
    /// differences of this at successive moments splits the quantity without losing or inventing any of it.
    pub fn share_before(&self, quantity: u128, at: i64) -> u128 {
        if at <= self.start_ns {
            0
        } else if at >= self.end_ns {
            quantity
        } else {
            let passed = u128::from(at.abs_diff(self.start_ns));
            let whole = u128::from(self.duration_ns());
            // Split to stay clear of overflow: quantity = q * whole + r.
            (quantity / whole) * passed + (quantity % whole) * passed / whole
        }
    }
}

/// Where a container's next reading begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    pub(crate) next_sequence: u64,
    pub(crate) at_ns: i64,
    pub(crate) cpu_ns: u64,
    /// Memory then; none before the first look.
    pub(crate) memory_bytes: Option<u64>,
    /// The container has ended, nothing follows.
    pub(crate) ended: bool,
    /// What the container asks for from here on; none for what its description says.
    #[serde(default)]
    pub(crate) requests: Option<Requests>,
    /// The counters of a pod's network.
    #[serde(default)]
    pub(crate) traffic: Traffic,
}

impl Checkpoint {
    /// Before a container's first instruction, and a network's first packet.
    pub(crate) fn start(container: &Meterable) -> Self {
        Self {
            next_sequence: 0,
            at_ns: nanoseconds(container.started_at),
            cpu_ns: 0,
            memory_bytes: container.is_network().then_some(0),
            ended: false,
            requests: None,
            traffic: Traffic::default(),
        }
    }
}

/// Nanoseconds since the epoch; the range reaches to the year 2262.
pub(crate) fn nanoseconds(at: Timestamp) -> i64 {
    i64::try_from(at.as_nanosecond()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn splitting_a_reading_neither_loses_nor_invents(
            quantity in 0..u128::MAX >> 64, start in 0_i64..1 << 60, length in 1_i64..1 << 40, cuts in prop::collection::vec(0_i64..1 << 41, 0..20)
        ) {
            let reading = Reading { sequence: 0, start_ns: start, end_ns: start + length, cpu_ns: 0, memory_byte_ns: 0, memory_error_byte_ns: 0, requests: None, traffic: Traffic::default() };
            let mut cuts: Vec<i64> = cuts.iter().map(|cut| start + cut).collect();
            cuts.push(i64::MAX);
            cuts.sort_unstable();
            let mut sum = 0;
            let mut before = 0;
            for cut in cuts {
                let share = reading.share_before(quantity, cut);
                prop_assert!(share >= before);
                sum += share - before;
                before = share;
            }
            prop_assert_eq!(sum, quantity);
        }
    }
}
