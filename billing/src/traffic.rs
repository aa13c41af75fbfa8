//! What pods receive and send, as the kernel counts it for each: from outside the cluster and to it, within it.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Bytes of IP packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Traffic {
    /// From outside the cluster.
    pub internet_received_bytes: u64,
    /// To outside the cluster.
    pub internet_sent_bytes: u64,
    /// From pods, services and nodes.
    pub cluster_received_bytes: u64,
    /// To them.
    pub cluster_sent_bytes: u64,
}

impl Traffic {
    /// In the order of the fields.
    pub fn all(self) -> [u64; 4] {
        let Self { internet_received_bytes, internet_sent_bytes, cluster_received_bytes, cluster_sent_bytes } = self;
        [internet_received_bytes, internet_sent_bytes, cluster_received_bytes, cluster_sent_bytes]
    }

    /// Each with its counterpart.
    pub(crate) fn with(self, other: Self, of: impl Fn(u64, u64) -> u64) -> Self {
        let (one, other) = (self.all(), other.all());
        let [internet_received_bytes, internet_sent_bytes, cluster_received_bytes, cluster_sent_bytes] =
            std::array::from_fn(|index| of(one[index], other[index]));
        Self { internet_received_bytes, internet_sent_bytes, cluster_received_bytes, cluster_sent_bytes }
    }

    /// What came since the counters stood so. One that stands lower has begun anew.
    pub(crate) fn since(self, before: Self) -> Self {
        self.with(before, |now, before| now.checked_sub(before).unwrap_or(now))
    }
}

/// Reads the counters of all pods of a worker, by their addresses.
type Read = dyn Fn() -> io::Result<HashMap<Ipv4Addr, Traffic>> + Send + Sync;

/// Where a worker's pods are counted.
#[derive(Clone)]
pub struct TrafficSource {
    name: String,
    read: Arc<Read>,
}

impl TrafficSource {
    /// One source is known by its name.
    pub fn new(
        name: String,
        read: impl Fn() -> io::Result<HashMap<Ipv4Addr, Traffic>> + Send + Sync + 'static,
    ) -> Self {
        Self { name, read: Arc::new(read) }
    }
}

impl PartialEq for TrafficSource {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for TrafficSource {}

impl fmt::Debug for TrafficSource {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_tuple("TrafficSource").field(&self.name).finish()
    }
}

/// One look at the counters of all pods: each source is read once.
#[derive(Default)]
pub(crate) struct Sweep(HashMap<String, HashMap<Ipv4Addr, Traffic>>);

impl Sweep {
    /// None if the pod isn't counted, or can't be read now.
    pub(crate) fn of(&mut self, source: &TrafficSource, pod: Ipv4Addr) -> Option<Traffic> {
        if !self.0.contains_key(&source.name) {
            let read = (source.read)().unwrap_or_else(|error| {
                tracing::warn!(source = source.name, %error, "what pods receive and send can't be read");
                HashMap::new()
            });
            self.0.insert(source.name.clone(), read);
        }
        self.0[&source.name].get(&pod).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_stands_lower_has_begun_anew() {
        let at = |received, sent| Traffic {
            internet_received_bytes: received,
            internet_sent_bytes: sent,
            ..Traffic::default()
        };
        assert_eq!(at(10, 7).since(at(4, 7)), at(6, 0));
        assert_eq!(at(3, 9).since(at(4, 7)), at(3, 2));
    }
}
