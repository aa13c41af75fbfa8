//! Formats and patterns of strings.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use regex::{Regex, RegexBuilder};

use crate::validation::names;

/// How much memory a compiled pattern may take, in bytes.
const LARGEST: usize = 1 << 20;
/// How many compiled patterns are kept.
const KEPT: usize = 1024;

/// A format that is a pattern.
const PATTERNS: &[(&str, &str)] = &[
    ("uuid", r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$"),
    ("uuid3", r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?3[0-9a-f]{3}-?[0-9a-f]{4}-?[0-9a-f]{12}$"),
    ("uuid4", r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?4[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$"),
    ("uuid5", r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?5[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$"),
    ("hexcolor", r"^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$"),
    (
        "rgbcolor",
        r"^rgb\(\s*(\d|[1-9]\d|1\d\d|2[0-4]\d|25[0-5])\s*,\s*(\d|[1-9]\d|1\d\d|2[0-4]\d|25[0-5])\s*,\s*(\d|[1-9]\d|1\d\d|2[0-4]\d|25[0-5])\s*\)$",
    ),
    ("ssn", r"^\d{3}[- ]?\d{2}[- ]?\d{4}$"),
    ("isbn10", r"^(?:\d[ -]?){9}[\dX]$"),
    ("isbn13", r"^(?:\d[ -]?){13}$"),
    ("creditcard", r"^\d{13,16}$"),
    ("bsonobjectid", r"^[0-9a-fA-F]{24}$"),
    ("email", r"^[^@\s<>]+@[^@\s<>]+$"),
    ("mac", r"^([0-9a-fA-F]{2}[:-]){5}[0-9a-fA-F]{2}$|^([0-9a-fA-F]{4}\.){2}[0-9a-fA-F]{4}$"),
    ("hostname", r"^([a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)(\.[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*\.?$"),
];

/// Whether a text is of a format. Texts are of every format that isn't known.
pub(super) fn is(format: &str, text: &str) -> bool {
    if let Some((_, pattern)) = PATTERNS.iter().find(|(name, _)| *name == format) {
        return matches(pattern, text);
    }
    match format {
        "date-time" => is_date_time(text),
        "date" => text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
        "duration" => is_duration(text),
        "ipv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
        "ip" => text.parse::<std::net::IpAddr>().is_ok(),
        "cidr" => is_cidr(text),
        "byte" => STANDARD.decode(text).is_ok(),
        "uri" => matches(r"^[a-zA-Z][a-zA-Z0-9+.-]*:\S*$|^/\S*$", text),
        "k8s-short-name" => names::dns1123_label(text).is_empty(),
        "k8s-long-name" => names::dns1123_subdomain(text).is_empty(),
        _ => true,
    }
}

/// `2026-01-01T00:00:00Z`, with any zone and fraction.
fn is_date_time(text: &str) -> bool {
    matches(r"^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:?\d\d)?$", text)
        && text.get(..19).is_some_and(|start| start.replace(['t', ' '], "T").parse::<jiff::civil::DateTime>().is_ok())
}

/// As Go writes it, or a number with a word: `1h30m`, `2 days`.
fn is_duration(text: &str) -> bool {
    text == "0"
        || matches(
            r"^[+-]?(\d+(\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)((\d+(\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h))*$",
            text,
        )
        || matches(
            r"^(\d+\s*(ns|nano|us|µs|μs|micro|ms|milli|s|sec|second|seconds|m|min|minute|minutes|h|hr|hour|hours|d|day|days|w|wk|week|weeks)\s*)+$",
            text,
        )
}

fn is_cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    let most = match address.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(_)) => 32,
        Ok(std::net::IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    length.parse::<u8>().is_ok_and(|length| length <= most)
}

/// Whether a pattern is one; the text of what is wrong otherwise.
pub(crate) fn check_pattern(pattern: &str) -> Result<(), String> {
    compile(pattern).map(drop)
}

/// Whether the pattern occurs in the text. What is no pattern occurs nowhere.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    compile(pattern).is_ok_and(|regex| regex.is_match(text))
}

fn compile(pattern: &str) -> Result<Arc<Regex>, String> {
    static COMPILED: OnceLock<Mutex<HashMap<String, Arc<Regex>>>> = OnceLock::new();
    let compiled = COMPILED.get_or_init(Mutex::default);
    if let Some(regex) = compiled.lock().unwrap_or_else(PoisonError::into_inner).get(pattern) {
        return Ok(Arc::clone(regex));
    }
    // Go writes `\z` for the very end; both know it. Escapes that mean nothing are the character itself in Go.
    let regex = RegexBuilder::new(pattern).size_limit(LARGEST).build().map_err(|error| error.to_string())?;
    let regex = Arc::new(regex);
    let mut kept = compiled.lock().unwrap_or_else(PoisonError::into_inner);
    if kept.len() >= KEPT {
        kept.clear();
    }
    kept.insert(pattern.to_owned(), Arc::clone(&regex));
    Ok(regex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_know_their_texts() {
        for (format, good, bad) in [
            ("date-time", "2026-01-01T00:00:00Z", "2026-13-01T00:00:00Z"),
            ("date", "2026-02-28", "2026-02-30"),
            ("duration", "1h30m", "1x"),
            ("ipv4", "10.0.0.1", "10.0.0.256"),
            ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
            ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123"),
            ("email", "a@b.c", "a"),
            ("hostname", "a.example.com", "-a"),
            ("byte", "aGk=", "?"),
            ("mac", "00:11:22:33:44:55", "00:11"),
        ] {
            assert!(is(format, good), "{format} {good}");
            assert!(!is(format, bad), "{format} {bad}");
        }
        assert!(is("something-else", "x"));
        assert!(check_pattern("(").is_err());
    }
}
