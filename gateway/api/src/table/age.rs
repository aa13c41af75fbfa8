//! Spans of time as Kubernetes prints them: `5s`, `2m30s`, `3h`, `12d`.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::Value;

/// The time since then, or `<unknown>` without a time.
pub fn since(time: Option<&Value>, now: Timestamp) -> String {
    parse(time).map_or_else(|| "<unknown>".to_owned(), |time| human(now.as_second() - time.as_second()))
}

/// A time in an object; none for null or what isn't a time.
pub fn parse(time: Option<&Value>) -> Option<Timestamp> {
    time?.as_str()?.parse().ok()
}

/// Seconds with two units of precision at most, coarser the longer it is.
pub fn human(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    const YEAR: i64 = 365 * DAY;
    /// From so many seconds on: the unit, its letter, and the smaller unit that is shown beside it.
    type Step = (i64, i64, &'static str, Option<(i64, &'static str)>);
    const STEPS: &[Step] = &[
        (8 * YEAR, YEAR, "y", None),
        (2 * YEAR, YEAR, "y", Some((DAY, "d"))),
        (8 * DAY, DAY, "d", None),
        (2 * DAY, DAY, "d", Some((HOUR, "h"))),
        (8 * HOUR, HOUR, "h", None),
        (3 * HOUR, HOUR, "h", Some((MINUTE, "m"))),
        (10 * MINUTE, MINUTE, "m", None),
        (2 * MINUTE, MINUTE, "m", Some((1, "s"))),
        (0, 1, "s", None),
    ];
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    let seconds = seconds.max(0);
    let step = STEPS.iter().find(|(from, ..)| seconds >= *from);
    let (_, unit, letter, smaller) = step.copied().unwrap_or((0, 1, "s", None));
    let mut text = format!("{}{letter}", seconds / unit);
    if let Some((smaller_unit, smaller_letter)) = smaller {
        let rest = seconds % unit / smaller_unit;
        if rest > 0 {
            // Writing to a String doesn't fail.
            let _ = write!(text, "{rest}{smaller_letter}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn spans_get_coarser_the_longer_they_are() {
        for (seconds, text) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (119, "119s"),
            (120, "2m"),
            (150, "2m30s"),
            (600, "10m"),
            (179 * 60 + 59, "179m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 60, "3h1m"),
            (8 * 3600 + 60, "8h"),
            (47 * 3600, "47h"),
            (48 * 3600, "2d"),
            (49 * 3600, "2d1h"),
            (8 * 86400 + 3600, "8d"),
            (729 * 86400, "729d"),
            (730 * 86400, "2y"),
            (731 * 86400, "2y1d"),
            (8 * 365 * 86400 + 86400, "8y"),
        ] {
            assert_eq!(human(seconds), text, "{seconds} s");
        }
    }

    #[test]
    fn without_a_time_the_age_is_unknown() {
        assert_eq!(since(None, Timestamp::UNIX_EPOCH), "<unknown>");
        assert_eq!(since(Some(&json!("1970-01-01T00:00:00Z")), Timestamp::from_second(5).unwrap()), "5s");
    }
}
