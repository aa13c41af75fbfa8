//! Which of the machine's users each pod gets. Nothing of it is kept on disk: the sandbox knows what its pods have.

use carob_sandbox::UserRange;
use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};

/// The machine's users from here on are nobody's: `useradd` gives none beyond 600,100,000 away (login.defs(5),
/// `SUB_UID_MAX`), systemd's own begin at 0x70000000 (systemd's UIDS-GIDS).
const FIRST: u32 = 0x3000_0000;
/// How many pods can have users at once.
const RANGES: u32 = 0x4000;

/// Which are taken, and by whom.
#[derive(Debug)]
pub(crate) struct Ranges(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Where the search for a free one begins. Several Carobs of one machine begin at different places.
    next: u32,
    taken: HashSet<UserRange>,
    by_pod: HashMap<String, UserRange>,
}

impl Ranges {
    /// None taken yet.
    pub fn new(instance: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        instance.hash(&mut hasher);
        let next = u32::try_from(hasher.finish() % u64::from(RANGES)).unwrap_or(0);
        Self(Mutex::new(State { next, taken: HashSet::new(), by_pod: HashMap::new() }))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // A panic of another holder leaves plain data; at worst a range stays taken.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that was free for longest, about. `None` when all are taken.
    pub fn take(&self) -> Option<UserRange> {
        let mut state = self.lock();
        let numbers = (0..RANGES).map(|step| (state.next + step) % RANGES);
        let range = |number: u32| UserRange { first: FIRST + number * UserRange::LENGTH };
        let number = numbers.into_iter().find(|number| !state.taken.contains(&range(*number)))?;
        state.next = (number + 1) % RANGES;
        state.taken.insert(range(number));
        Some(range(number))
    }

    /// It was taken for nothing.
    pub fn free(&self, range: UserRange) {
        self.lock().taken.remove(&range);
    }

    /// The pod has it, from now on or since an earlier run.
    pub fn give(&self, pod: &str, range: UserRange) {
        let mut state = self.lock();
        state.taken.insert(range);
        state.by_pod.insert(pod.to_owned(), range);
    }

    /// The pod is gone with all that was its users'.
    pub fn release(&self, pod: &str) {
        let mut state = self.lock();
        if let Some(range) = state.by_pod.remove(pod) {
            state.taken.remove(&range);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_have_the_same_users() {
        let ranges = Ranges::new("a");
        let mut seen = HashSet::new();
        for pod in 0..RANGES {
            let range = ranges.take().expect("one is free");
            assert!(range.host(UserRange::LENGTH - 1).is_some_and(|last| last < 0x7000_0000));
            assert_eq!(range.first % UserRange::LENGTH, 0);
            assert!(seen.insert(range));
            ranges.give(&pod.to_string(), range);
        }
        assert_eq!(ranges.take(), None);
        ranges.release("7");
        let freed = ranges.take().expect("a pod's that is gone");
        assert_eq!(ranges.take(), None);
        ranges.free(freed);
        assert_eq!(ranges.take(), Some(freed), "the only one that is free");
    }

    #[test]
    fn what_an_earlier_run_gave_is_not_given_again() {
        let (before, after) = (Ranges::new("a"), Ranges::new("a"));
        let given = before.take().expect("free");
        after.give("other", given);
        assert_ne!(after.take(), Some(given));
    }
}
