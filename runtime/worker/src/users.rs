//! Users of pods' own (`hostUsers: false`): which of the machine's each pod gets. Nothing of it is kept on disk: the sandbox
//! knows what its pods have.

use carob_sandbox::UserRange;
use k8s_openapi::api::core::v1::PodSpec;
use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};

/// The machine's users from here on are nobody's: `useradd` gives none beyond 600,100,000 away (login.defs(5),
/// `SUB_UID_MAX`), systemd's own begin at 0x70000000 (systemd's UIDS-GIDS).
const FIRST: u32 = 0x3000_0000;
/// How many pods can have users at once.
const RANGES: u32 = 0x4000;

/// Whether a pod is to have users of its own.
pub(crate) fn wanted(spec: &PodSpec) -> bool {
    spec.host_users == Some(false)
}

/// Who has which range.
#[derive(Debug)]
pub(crate) struct Users {
    /// Several Carobs of one machine begin at different places.
    seed: u64,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    by_pod: HashMap<String, UserRange>,
    by_range: BTreeMap<UserRange, String>,
}

impl Users {
    /// None taken yet.
    pub fn new(instance: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        instance.hash(&mut hasher);
        Self { seed: hasher.finish(), taken: Mutex::default() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Taken> {
        // A panic of another holder leaves plain data; at worst a range stays taken.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pod's range: what it has, or a free one. `None` when all are taken.
    pub fn take(&self, pod: &str) -> Option<UserRange> {
        let mut taken = self.lock();
        if let Some(range) = taken.by_pod.get(pod) {
            return Some(*range);
        }
        let mut hasher = DefaultHasher::new();
        (self.seed, pod).hash(&mut hasher);
        let start = u32::try_from(hasher.finish() % u64::from(RANGES)).unwrap_or(0);
        let ranges = (0..RANGES).map(|step| (start + step) % RANGES);
        let mut ranges = ranges.map(|number| UserRange { first: FIRST + number * UserRange::LENGTH });
        let range = ranges.find(|range| !taken.by_range.contains_key(range))?;
        taken.insert(pod, range);
        Some(range)
    }

    /// What an earlier run gave.
    pub fn adopt(&self, pod: &str, range: UserRange) {
        self.lock().insert(pod, range);
    }

    /// The pod is gone with all that was its users'.
    pub fn release(&self, pod: &str) {
        let mut taken = self.lock();
        if let Some(range) = taken.by_pod.remove(pod) {
            taken.by_range.remove(&range);
        }
    }
}

impl Taken {
    fn insert(&mut self, pod: &str, range: UserRange) {
        self.by_pod.insert(pod.to_owned(), range);
        self.by_range.insert(range, pod.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_pods_share_users_and_a_pod_keeps_its_own() {
        let users = Users::new("a");
        let mut seen = std::collections::HashSet::new();
        for pod in 0..RANGES {
            let range = users.take(&pod.to_string()).expect("one is free");
            assert!(range.host(UserRange::LENGTH - 1).is_some_and(|last| last < 0x7000_0000));
            assert_eq!(range.first % UserRange::LENGTH, 0);
            assert!(seen.insert(range));
        }
        assert_eq!(users.take("one too many"), None);
        let freed = users.take("7").expect("its own");
        users.release("7");
        assert_eq!(users.take("another"), Some(freed), "the only one that is free");
    }

    #[test]
    fn what_an_earlier_run_gave_is_not_given_again() {
        let (before, after) = (Users::new("a"), Users::new("a"));
        let given = before.take("p").expect("free");
        after.adopt("other", given);
        assert_ne!(after.take("p"), Some(given));
    }
}
