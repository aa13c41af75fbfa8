//! Back-off of restarts and pulls: 10 s, doubling to 5 min, forgotten after 10 quiet minutes (the kubelet's numbers).

use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_secs(10);
const MOST: Duration = Duration::from_secs(300);
/// A container that ran this long has earned a fresh start.
const FORGIVEN_AFTER: Duration = Duration::from_secs(600);

/// One container's (or image's) back-off.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Backoff {
    /// The delay in force and when it was set.
    current: Option<(Duration, Instant)>,
}

impl Backoff {
    /// The failure at `failed_at` may be answered by a try after this delay (none the first time); the next failure will
    /// wait twice as long.
    pub fn next(&mut self, failed_at: Instant) -> Duration {
        let delay = match self.current {
            Some((delay, set)) if failed_at.saturating_duration_since(set) < FORGIVEN_AFTER => delay,
            _ => Duration::ZERO,
        };
        let doubled = if delay.is_zero() { FIRST } else { (delay * 2).min(MOST) };
        // The clock of forgiveness starts when the next try does.
        self.current = Some((doubled, failed_at + delay));
        delay
    }

    /// As [`Backoff::next`], where the first failure already waits (a failed pull).
    pub fn next_after_failure(&mut self, failed_at: Instant) -> Duration {
        match self.next(failed_at) {
            Duration::ZERO => self.next(failed_at),
            delay => delay,
        }
    }

    pub fn reset(&mut self) {
        self.current = None;
    }
}

/// A delay as Go prints whole seconds: `10s`, `1m20s`, `5m0s`.
pub(crate) fn go_seconds(delay: Duration) -> String {
    let seconds = delay.as_secs();
    if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_from_ten_seconds_to_five_minutes() {
        let (mut backoff, mut now) = (Backoff::default(), Instant::now());
        let mut delays = Vec::new();
        for _ in 0..8 {
            let delay = backoff.next(now);
            delays.push(delay.as_secs());
            now += delay + Duration::from_secs(1);
        }
        assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn ten_minutes_of_life_forgive() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        backoff.next(now);
        assert_eq!(backoff.next(now + Duration::from_secs(5)), FIRST);
        assert_eq!(backoff.next(now + Duration::from_secs(1000)), Duration::ZERO);
    }

    #[test]
    fn a_failed_pull_waits_at_once() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        assert_eq!(backoff.next_after_failure(now).as_secs(), 10);
        assert_eq!(backoff.next_after_failure(now + Duration::from_secs(11)).as_secs(), 20);
        backoff.reset();
        assert_eq!(backoff.next_after_failure(now + Duration::from_secs(30)).as_secs(), 10);
    }

    #[test]
    fn delays_look_like_gos() {
        for (seconds, text) in [(10, "10s"), (80, "1m20s"), (300, "5m0s")] {
            assert_eq!(go_seconds(Duration::from_secs(seconds)), text);
        }
    }
}
