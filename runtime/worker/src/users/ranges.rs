//! Which of the machine's users each pod gets. Nothing of it is kept here: the sandbox claims them against all spawners of the
//! machine, for as long as the pod is there.

use carob_sandbox::{Error, Runtime, UserNamespaces, UserRange};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU32, Ordering};

/// The machine's users from here on are nobody's: `useradd` gives none beyond 600,100,000 away (login.defs(5),
/// `SUB_UID_MAX`), systemd's own begin at 0x70000000 (systemd's UIDS-GIDS).
const FIRST: u32 = 0x3000_0000;
/// How many pods of a machine can have users at once.
const RANGES: u32 = 0x4000;

/// Where the search for free ones begins. Workers and Carobs of one machine begin at different places.
#[derive(Debug)]
pub(crate) struct Ranges(AtomicU32);

impl Ranges {
    /// Those of a worker that is told apart from others by this.
    pub fn new(instance: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        instance.hash(&mut hasher);
        Self(AtomicU32::new(u32::try_from(hasher.finish() % u64::from(RANGES)).unwrap_or(0)))
    }

    /// One after the other, round and round: what was free for longest comes first, about.
    fn next(&self) -> UserRange {
        let number = self.0.fetch_add(1, Ordering::Relaxed) % RANGES;
        UserRange { first: FIRST + number * UserRange::LENGTH }
    }

    /// Namespaces with users that nobody else has.
    pub async fn make(&self, runtime: &Runtime) -> Result<(UserRange, UserNamespaces), Error> {
        for _ in 0..RANGES {
            let range = self.next();
            match runtime.make_users(range).await {
                Err(Error::UsersTaken) => {}
                made => return Ok((range, made?)),
            }
        }
        Err(Error::UsersTaken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_range_comes_once_and_none_reaches_anybody_elses_users() {
        let ranges = Ranges::new("a");
        let mut seen = std::collections::HashSet::new();
        for _ in 0..RANGES {
            let range = ranges.next();
            assert!(range.first >= FIRST && range.host(UserRange::LENGTH - 1).is_some_and(|last| last < 0x7000_0000));
            assert_eq!(range.first % UserRange::LENGTH, 0);
            assert!(seen.insert(range));
        }
        assert!(seen.contains(&ranges.next()), "and then again");
    }
}
