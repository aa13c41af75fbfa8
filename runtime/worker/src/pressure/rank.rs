//! Whom to evict first, and what to tell them: Kubernetes' "Node-pressure Eviction".

use super::facts::Stock;
use crate::settings::{Signal, Threshold};
use carob_api::quantity::Quantity;
use std::cmp::Reverse;

/// What pressure there is, by what it is that runs short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Shortage {
    Memory,
    Disk,
    Processes,
}

impl Shortage {
    pub fn of(signal: Signal) -> Self {
        match signal {
            Signal::MemoryAvailable => Self::Memory,
            Signal::PidAvailable => Self::Processes,
            _ => Self::Disk,
        }
    }

    /// The condition of the node.
    pub fn condition(self) -> &'static str {
        match self {
            Self::Memory => "MemoryPressure",
            Self::Disk => "DiskPressure",
            Self::Processes => "PIDPressure",
        }
    }

    /// As messages name it.
    pub fn resource(self, signal: Signal) -> &'static str {
        match (self, signal) {
            (Self::Memory, _) => "memory",
            (Self::Processes, _) => "pids",
            (Self::Disk, Signal::NodefsInodesFree | Signal::ImagefsInodesFree) => "inodes",
            (Self::Disk, _) => "ephemeral-storage",
        }
    }
}

/// What one container takes, and what it asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Used {
    pub name: String,
    pub amount: u64,
    pub request: u64,
}

/// What one pod takes of what is short.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Candidate {
    pub uid: String,
    pub priority: i32,
    /// Never evicted.
    pub critical: bool,
    /// Beyond its containers': volumes.
    pub shared: u64,
    pub containers: Vec<Used>,
}

impl Candidate {
    fn amount(&self) -> u64 {
        self.shared + self.containers.iter().map(|used| used.amount).sum::<u64>()
    }

    fn request(&self) -> u64 {
        self.containers.iter().map(|used| used.request).sum()
    }
}

/// The first to go comes first: who takes more than it asked for, then who matters least, then who takes the most beyond
/// what it asked for. Process ids nobody asks for: there it is who matters least, then who has the most.
pub(super) fn order(short: Shortage, candidates: &mut Vec<Candidate>) {
    candidates.retain(|candidate| !candidate.critical);
    candidates.sort_by_key(|candidate| {
        let (amount, request) = (i128::from(candidate.amount()), i128::from(candidate.request()));
        let exceeds = short != Shortage::Processes && amount > request;
        (!exceeds, candidate.priority, Reverse(amount - request))
    });
}

/// What is written into the pod's status, in the kubelet's words.
pub(super) fn message(signal: Signal, threshold: Threshold, stock: Stock, candidate: &Candidate) -> String {
    let short = Shortage::of(signal);
    let resource = short.resource(signal);
    let shown = |amount: u64| match resource {
        "memory" | "ephemeral-storage" => shown_bytes(amount),
        _ => amount.to_string(),
    };
    let mut text = format!(
        "The node was low on resource: {resource}. Threshold quantity: {}, available: {}. ",
        shown(threshold.of(stock.capacity)),
        shown(stock.available)
    );
    if matches!(resource, "memory" | "ephemeral-storage") {
        for Used { name, amount, request } in candidate.containers.iter().filter(|used| used.amount > used.request) {
            let (amount, request) = (shown(*amount), if *request == 0 { "0".to_owned() } else { shown(*request) });
            text.push_str(&format!(
                "Container {name} was using {amount}, request is {request}, has larger consumption of {resource}. "
            ));
        }
    }
    text
}

/// In whole Ki where it is not a multiple of it, as the kubelet's statistics come out.
fn shown_bytes(bytes: u64) -> String {
    let whole = if bytes < 1024 { bytes } else { bytes / 1024 * 1024 };
    Quantity::from_bytes(i64::try_from(whole).unwrap_or(i64::MAX)).canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(uid: &str, priority: i32, amount: u64, request: u64) -> Candidate {
        let containers = vec![Used { name: "c".into(), amount, request }];
        Candidate { uid: uid.into(), priority, containers, ..Candidate::default() }
    }

    #[test]
    fn who_exceeds_its_request_goes_first_then_who_matters_less_then_who_takes_more() {
        let mut all = vec![
            candidate("within", -10, 50, 100),
            candidate("important", 100, 900, 10),
            candidate("small", 0, 20, 10),
            candidate("big", 0, 200, 10),
            Candidate { critical: true, ..candidate("critical", 0, 5000, 0) },
        ];
        let uids = |all: &[Candidate]| all.iter().map(|one| one.uid.clone()).collect::<Vec<_>>();
        order(Shortage::Memory, &mut all);
        assert_eq!(uids(&all), ["big", "small", "important", "within"]);
        order(Shortage::Processes, &mut all);
        assert_eq!(uids(&all), ["within", "big", "small", "important"]);
    }

    #[test]
    fn the_message_is_the_kubelets() {
        let stock = Stock { available: 50 << 20, capacity: 1 << 30 };
        let pod = candidate("a", 0, (3 << 20) + 5, 0);
        assert_eq!(
            message(Signal::MemoryAvailable, Threshold::Bytes(100 << 20), stock, &pod),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. Container c was using \
             3Mi, request is 0, has larger consumption of memory. "
        );
        let stock = Stock { available: 7, capacity: 100 };
        assert_eq!(
            message(Signal::PidAvailable, Threshold::Part(0.1), stock, &pod),
            "The node was low on resource: pids. Threshold quantity: 10, available: 7. "
        );
    }
}
