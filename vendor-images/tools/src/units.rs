//! Durations and byte counts as people write them on a command line.

use std::time::Duration;

const TIMES: [(&str, f64); 5] = [("ms", 0.001), ("us", 0.000_001), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];

const SIZES: [(&str, u64); 7] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("k", 1000),
    ("K", 1000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
];

/// `1.5`, `1.5s`, `200ms`, `2m`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) =
        TIMES.iter().find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit))).unwrap_or((text, 1.0));
    let number: f64 = number.parse().map_err(|_| format!("{text:?} is no duration like 200ms or 1.5s"))?;
    Duration::try_from_secs_f64(number * unit).map_err(|error| format!("{text:?}: {error}"))
}

/// `1000`, `64Mi`, `1G`.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let (number, unit) =
        SIZES.iter().find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit))).unwrap_or((text, 1));
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is no size like 1000 or 64Mi"))?;
    number.checked_mul(unit).ok_or_else(|| format!("{text:?} is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_have_units() {
        assert_eq!(parse_duration("200ms"), Ok(Duration::from_millis(200)));
        assert_eq!(parse_duration("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert!(parse_duration("soon").is_err());
        assert_eq!(parse_bytes("64Mi"), Ok(64 << 20));
        assert_eq!(parse_bytes("1G"), Ok(1_000_000_000));
        assert!(parse_bytes("-1").is_err());
    }
}
