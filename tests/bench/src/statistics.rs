//! Percentiles, without assumptions on how the samples fall.

use std::time::Duration;

/// The value that `percent` of the samples don't exceed (nearest rank); nothing for no samples.
pub fn percentile(samples: &[Duration], percent: usize) -> Option<Duration> {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

/// The middle sample.
pub fn median(samples: &[Duration]) -> Option<Duration> {
    percentile(samples, 50)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_samples() {
        let samples: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile(&samples, 50), Some(Duration::from_millis(50)));
        assert_eq!(percentile(&samples, 99), Some(Duration::from_millis(99)));
        assert_eq!(percentile(&samples[..1], 99), Some(Duration::from_millis(100)));
        assert_eq!(percentile(&[], 50), None);
        assert_eq!(median(&samples[..3]), Some(Duration::from_millis(99)));
    }
}
