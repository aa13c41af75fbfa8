//! Requests that a client takes back at once: by HTTP/2 that costs it nothing and endpoints a request each (CVE-2023-44487).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

/// Who takes back so many, and most of all that it asks for, has its connection closed (both bounds are Envoy's).
const MANY: u32 = 500;
/// What was waited for so long wasn't taken back at once.
const BRIEF: Duration = Duration::from_secs(1);

/// The requests of one connection.
#[derive(Default)]
pub struct Tally {
    begun: AtomicU32,
    withdrawn: AtomicU32,
    /// There were too many.
    pub exceeded: CancellationToken,
}

/// A request under way. Whoever drops it before it is answered has taken it back.
pub struct Begun {
    tally: Arc<Tally>,
    since: Instant,
    is_answered: bool,
}

impl Tally {
    pub fn begin(self: &Arc<Self>) -> Begun {
        self.begun.fetch_add(1, Ordering::Relaxed);
        Begun { tally: Arc::clone(self), since: Instant::now(), is_answered: false }
    }
}

impl Begun {
    /// What comes now is the answer, however long that is.
    pub fn answered(mut self) {
        self.is_answered = true;
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if self.is_answered || self.since.elapsed() >= BRIEF {
            return;
        }
        let withdrawn = self.tally.withdrawn.fetch_add(1, Ordering::Relaxed) + 1;
        if withdrawn >= MANY && withdrawn > self.tally.begun.load(Ordering::Relaxed) / 2 {
            self.tally.exceeded.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_answered_as_often_may_take_back_as_much() {
        let tally = Arc::new(Tally::default());
        for _ in 0..2 * MANY {
            tally.begin().answered();
            drop(tally.begin());
        }
        assert!(!tally.exceeded.is_cancelled());
        drop(tally.begin());
        assert!(tally.exceeded.is_cancelled(), "more than half");
    }
}
