//! Base64 with the error positions of Go's decoder.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The text without line breaks, if it is padded standard base64.
///
/// # Errors
/// `illegal base64 data at input byte N`
pub(super) fn check(text: &str) -> Result<String, String> {
    let clean: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    if STANDARD.decode(&clean).is_ok() {
        return Ok(clean);
    }
    match illegal_at(text.as_bytes()) {
        Some(at) => Err(format!("illegal base64 data at input byte {at}")),
        // Bits beyond the data, which Go doesn't look at.
        None => Ok(clean),
    }
}

/// Where Go stops reading.
fn illegal_at(text: &[u8]) -> Option<usize> {
    let mut in_group = 0;
    let mut at = 0;
    while at < text.len() {
        let byte = text[at];
        at += 1;
        match byte {
            b'\r' | b'\n' => {}
            b'=' => return padding(text, at, in_group),
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/' => in_group = (in_group + 1) % 4,
            _ => return Some(at - 1),
        }
    }
    (in_group != 0).then(|| text.len() - in_group)
}

/// After the first `=`, of which `at` is the end.
fn padding(text: &[u8], mut at: usize, in_group: usize) -> Option<usize> {
    let skip_breaks = |at: &mut usize| {
        while matches!(text.get(*at), Some(b'\r' | b'\n')) {
            *at += 1;
        }
    };
    if in_group < 2 {
        return Some(at - 1);
    }
    if in_group == 2 {
        skip_breaks(&mut at);
        match text.get(at) {
            None => return Some(text.len()),
            Some(b'=') => at += 1,
            Some(_) => return Some(at - 1),
        }
    }
    skip_breaks(&mut at);
    (at < text.len()).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_those_of_go() {
        for (text, at) in
            [("!", 0), ("!!", 0), ("abc", 0), ("AAAAab", 4), ("ab=", 3), ("ab=x", 2), ("a===", 1), ("AAA=A", 4)]
        {
            assert_eq!(check(text).unwrap_err(), format!("illegal base64 data at input byte {at}"), "{text}");
        }
        assert_eq!(check("AA\nE=").unwrap(), "AAE=");
        assert_eq!(check("").unwrap(), "");
    }
}
