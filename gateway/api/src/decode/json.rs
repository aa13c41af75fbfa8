//! JSON text to a tree, with Go's words for what is wrong.

use std::borrow::Cow;

use serde_json::error::Category;

use super::raw::{Raw, Tree};
use crate::status::quote;

/// What `serde_json` says, and what Go says after `invalid character 'x' `.
const WORDS: &[(&str, &str)] = &[
    ("expected value", "looking for beginning of value"),
    ("expected ident", "in literal"),
    ("expected `:`", "after object key"),
    ("expected `,` or `}`", "after object key:value pair"),
    ("expected `,` or `]`", "after array element"),
    ("key must be a string", "looking for beginning of object key string"),
    ("trailing comma", "looking for beginning of value"),
    ("trailing characters", "after top-level value"),
    ("control character", "in string literal"),
    ("invalid escape", "in string escape code"),
    ("invalid number", "in numeric literal"),
];

/// # Errors
/// The text of Go's JSON parser. Nesting deeper than `serde_json`'s limit (128) is refused.
pub(super) fn parse(body: &[u8]) -> Result<Raw, String> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Err("unexpected end of JSON input".to_owned());
    }
    let body = readable(body);
    serde_json::from_slice::<Tree<String>>(&body).map(|tree| tree.0).map_err(|error| in_go(&error, &body))
}

/// The text with U+FFFD in place of each byte that is not UTF-8, as Go reads it.
fn readable(body: &[u8]) -> Cow<'_, [u8]> {
    if std::str::from_utf8(body).is_ok() {
        return Cow::Borrowed(body);
    }
    let mut text = String::with_capacity(body.len() + 16);
    for chunk in body.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    Cow::Owned(text.into_bytes())
}

fn in_go(error: &serde_json::Error, body: &[u8]) -> String {
    if error.classify() == Category::Eof {
        return "unexpected end of JSON input".to_owned();
    }
    let text = error.to_string();
    if text.starts_with("recursion limit") {
        return "exceeded max depth".to_owned();
    }
    match WORDS.iter().find(|(words, _)| text.starts_with(words)) {
        Some((_, words)) => format!("invalid character {} {words}", character(error, body)),
        None => text,
    }
}

/// The offending character in single quotes.
fn character(error: &serde_json::Error, body: &[u8]) -> String {
    let line = body.split(|byte| *byte == b'\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    let text = String::from_utf8_lossy(line.get(error.column().saturating_sub(1)..).unwrap_or_default()).into_owned();
    match text.chars().next() {
        Some('\'') => "'\\''".to_owned(),
        Some('"') => "'\"'".to_owned(),
        Some(c) => format!("'{}'", quote(&c.to_string()).trim_matches('"')),
        None => "'\\n'".to_owned(),
    }
}
