//! What containers use at this moment: a rate over the last seconds, for autoscalers and people. Nothing of it is kept.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::Meterable;

/// A rate covers at least this long, unless the container is younger.
const WINDOW_NS: i64 = 10_000_000_000;

/// What a container uses.
#[derive(Clone, Debug, PartialEq)]
pub struct Usage {
    /// Where it runs: node, namespace, pod, container.
    pub node: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The container's name.
    pub container: String,
    /// The pod's labels.
    pub labels: BTreeMap<String, String>,
    /// When it was measured.
    pub at: Timestamp,
    /// Over how long, in seconds.
    pub window_seconds: f64,
    /// CPU time per time, in billionths of a CPU.
    pub cpu_nanocores: u64,
    /// Memory in use, in bytes.
    pub memory_bytes: u64,
}

/// The last looks at a container's counters.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Looks {
    /// Time and CPU, in nanoseconds; the earliest is at least a window away from the latest once there are enough.
    first: Option<(i64, u64)>,
    middle: Option<(i64, u64)>,
    last: Option<(i64, u64)>,
    memory_bytes: u64,
}

impl Looks {
    pub(crate) fn push(&mut self, at_ns: i64, cpu_ns: u64, memory_bytes: u64) {
        let now = (at_ns, cpu_ns);
        if self.middle.is_none_or(|(middle, _)| at_ns - middle >= WINDOW_NS) {
            self.first = self.middle.or(Some(now));
            self.middle = Some(now);
        }
        self.last = Some(now);
        self.memory_bytes = memory_bytes;
    }

    /// The rate between the first and the last look; none before there are two.
    pub(crate) fn usage(&self, container: &Meterable) -> Option<Usage> {
        let ((from, before), (to, after)) = (self.first?, self.last?);
        let passed = u64::try_from(to - from).ok().filter(|passed| *passed > 0)?;
        let rate = u128::from(after.saturating_sub(before)) * 1_000_000_000 / u128::from(passed);
        Some(Usage {
            node: container.node.clone(),
            namespace: container.namespace.clone(),
            pod: container.pod.clone(),
            container: container.container.clone(),
            labels: container.labels.clone(),
            at: Timestamp::from_nanosecond(i128::from(to)).ok()?,
            window_seconds: std::time::Duration::from_nanos(passed).as_secs_f64(),
            cpu_nanocores: u64::try_from(rate).unwrap_or(u64::MAX),
            memory_bytes: self.memory_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container() -> Meterable {
        Meterable {
            container_id: "id".to_owned(),
            pod_uid: "uid".to_owned(),
            namespace: "n".to_owned(),
            pod: "p".to_owned(),
            container: "c".to_owned(),
            attempt: 0,
            labels: BTreeMap::new(),
            node: "node".to_owned(),
            started_at: Timestamp::UNIX_EPOCH,
            requests: crate::Requests { cpu_millis: 0, memory_bytes: 0 },
            counters: None,
        }
    }

    #[test]
    fn a_rate_covers_the_last_seconds_and_not_all_of_a_life() {
        let second = 1_000_000_000;
        let mut looks = Looks::default();
        looks.push(0, 0, 5);
        assert_eq!(looks.usage(&container()), None);
        // Busy for 20 seconds with a whole CPU, then idle.
        for at in 1..=20 {
            looks.push(at * second, u64::try_from(at).unwrap() * 1_000_000_000, 7);
        }
        assert_eq!(looks.usage(&container()).unwrap().cpu_nanocores, 1_000_000_000);
        for at in 21..=60 {
            looks.push(at * second, 20_000_000_000, 7);
        }
        let idle = looks.usage(&container()).unwrap();
        assert_eq!((idle.cpu_nanocores, idle.memory_bytes), (0, 7));
        assert!(idle.window_seconds >= 10.0);
    }
}
