//! Times as Go parses and prints them.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::status::quote;

/// A time in seconds, and one in microseconds, by what Go calls their layout.
const SECONDS: &str = "2006-01-02T15:04:05Z07:00";
const MICROS: &str = "2006-01-02T15:04:05.000000Z07:00";

/// Reads an RFC 3339 time and gives it in UTC, in seconds: `2026-01-01T00:00:00Z`.
///
/// # Errors
/// Go's text.
pub(super) fn seconds(text: &str) -> Result<String, String> {
    let time = parse(text, SECONDS)?;
    Ok(time.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// Reads an RFC 3339 time that must have six decimals and gives it in UTC.
///
/// # Errors
/// Go's text.
pub(super) fn micros(text: &str) -> Result<String, String> {
    let time = parse(text, MICROS)?;
    Ok(time.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string())
}

/// The parts of a layout in order: what Go calls it, how many digits, and the range of the number.
const PARTS: &[(&str, usize, std::ops::RangeInclusive<u32>, &str)] = &[
    ("2006", 4, 0..=9999, "year"),
    ("-", 0, 0..=0, ""),
    ("01", 2, 1..=12, "month"),
    ("-", 0, 0..=0, ""),
    ("02", 2, 1..=31, "day"),
    ("T", 0, 0..=0, ""),
    ("15", 2, 0..=23, "hour"),
    (":", 0, 0..=0, ""),
    ("04", 2, 0..=59, "minute"),
    (":", 0, 0..=0, ""),
    ("05", 2, 0..=59, "second"),
];

fn parse(text: &str, layout: &str) -> Result<Timestamp, String> {
    let intro = || format!("parsing time {} as {}", quote(text), quote(layout));
    let cannot = |rest: &str, element: &str| format!("{}: cannot parse {} as {}", intro(), quote(rest), quote(element));
    let out_of_range = |what: &str| format!("parsing time {}: {what} out of range", quote(text));

    let mut rest = text;
    for (element, digits, range, what) in PARTS {
        if *digits == 0 {
            rest = rest.strip_prefix(element).ok_or_else(|| cannot(rest, element))?;
            continue;
        }
        let number = rest.get(..*digits).filter(|part| part.bytes().all(|byte| byte.is_ascii_digit()));
        let Some(number) = number.and_then(|part| part.parse::<u32>().ok()) else { return Err(cannot(rest, element)) };
        if !range.contains(&number) {
            return Err(out_of_range(what));
        }
        rest = &rest[*digits..];
    }
    let decimals = rest.strip_prefix('.').map_or(0, |tail| tail.bytes().take_while(u8::is_ascii_digit).count());
    if layout == MICROS && decimals != 6 {
        return Err(cannot(rest, ".000000"));
    }
    if decimals > 0 {
        rest = &rest[1 + decimals..];
    }
    let zone = match rest.as_bytes() {
        [b'Z', ..] => 1,
        [b'+' | b'-', h1, h2, b':', m1, m2, ..] if [h1, h2, m1, m2].iter().all(|byte| byte.is_ascii_digit()) => 6,
        _ => return Err(cannot(rest, "Z07:00")),
    };
    let tail = &rest[zone..];
    if !tail.is_empty() {
        return Err(format!("parsing time {}: extra text: {}", quote(text), quote(tail)));
    }
    // Only a day that its month doesn't have, or an offset beyond a day, is left to fail.
    text.parse().map_err(|_| out_of_range("day"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_come_out_in_utc_and_in_their_precision() {
        assert_eq!(seconds("2024-01-01T01:00:00.5+01:00").unwrap(), "2024-01-01T00:00:00Z");
        assert_eq!(micros("2024-01-01T00:00:01.500000Z").unwrap(), "2024-01-01T00:00:01.500000Z");
    }

    #[test]
    fn errors_have_the_words_of_go() {
        assert_eq!(
            micros("x").unwrap_err(),
            r#"parsing time "x" as "2006-01-02T15:04:05.000000Z07:00": cannot parse "x" as "2006""#
        );
        assert_eq!(
            micros("2024-01-01T00:00:09Z").unwrap_err(),
            r#"parsing time "2024-01-01T00:00:09Z" as "2006-01-02T15:04:05.000000Z07:00": cannot parse "Z" as ".000000""#
        );
        assert_eq!(
            micros("2024-01-01T01:00:00.5+01:00").unwrap_err(),
            r#"parsing time "2024-01-01T01:00:00.5+01:00" as "2006-01-02T15:04:05.000000Z07:00": cannot parse ".5+01:00" as ".000000""#
        );
        assert_eq!(
            seconds("2024-13-01T00:00:00Z").unwrap_err(),
            r#"parsing time "2024-13-01T00:00:00Z": month out of range"#
        );
        assert_eq!(
            seconds("2024-02-30T00:00:00Z").unwrap_err(),
            r#"parsing time "2024-02-30T00:00:00Z": day out of range"#
        );
    }
}
