//! What is wrong with a YAML text, in the words of Go's parser.

use serde_saphyr::Error;

/// Which line Go's parser names. It counts from zero and doesn't name line zero; what its scanner finds is one later.
#[derive(Clone, Copy)]
enum Line {
    /// Where the scanner stopped.
    Scanned,
    /// Where the parser's surroundings begin, or else the end of the text.
    Parsed,
    /// None.
    Unnamed,
}

/// A part of the parser's own message, and what Go says.
const WORDS: [(&str, &str, Line); 16] = [
    ("mapping values are not allowed", "mapping values are not allowed in this context", Line::Scanned),
    ("simple key expected ':'", "could not find expected ':'", Line::Scanned),
    ("tabs disallowed", "found character that cannot start any token", Line::Scanned),
    ("unexpected character: `\\u{", "control characters are not allowed", Line::Unnamed),
    ("unexpected character", "found character that cannot start any token", Line::Scanned),
    ("unclosed quote", "found unexpected end of stream", Line::Scanned),
    ("expected alphabetic or numeric", "did not find expected alphabetic or numeric character", Line::Scanned),
    ("unknown escape character", "found unknown escape character", Line::Scanned),
    ("expected '-' indicator", "did not find expected '-' indicator", Line::Parsed),
    ("misplaced bracket", "did not find expected node content", Line::Parsed),
    ("did not find expected key", "did not find expected key", Line::Parsed),
    ("budget breached: Depth", "exceeded max depth of 10000", Line::Unnamed),
    ("budget breached: Nodes", "document contains excessive aliasing", Line::Unnamed),
    ("budget breached: Events", "document contains excessive aliasing", Line::Unnamed),
    ("alias replay", "document contains excessive aliasing", Line::Unnamed),
    ("alias expansion", "document contains excessive aliasing", Line::Unnamed),
];

/// `yaml: line 3: could not find expected ':'`
pub fn yaml_error(error: &Error, text: &str) -> String {
    let full = error.to_string();
    let first = full.lines().next().unwrap_or_default();
    let (line, column) = error.location().map_or((0, 0), |place| (place.line(), place.column()));
    let index = |number: u64| usize::try_from(number.saturating_sub(1)).unwrap_or(usize::MAX);
    let here = text.lines().nth(index(line)).unwrap_or_default();
    let rest: String = here.chars().skip(index(column)).collect();
    let (words, form) = if first.contains("unknown anchor") {
        let name: String = rest.chars().skip(1).take_while(|c| c.is_alphanumeric() || *c == '_' || *c == '-').collect();
        (format!("unknown anchor '{name}' referenced"), Line::Unnamed)
    } else if first.contains("bracket '") {
        (bracket(first, text, &rest, index(line)), Line::Parsed)
    } else {
        match WORDS.iter().find(|(part, ..)| first.contains(part)) {
            Some((_, words, form)) => ((*words).to_owned(), *form),
            None => (first.trim_start_matches("error: ").to_owned(), Line::Unnamed),
        }
    };
    let named = match form {
        Line::Scanned if line > 1 => line,
        Line::Parsed if line > 1 => line - 1,
        Line::Parsed => text.lines().count() as u64,
        Line::Scanned | Line::Unnamed => 0,
    };
    if named == 0 { format!("yaml: {words}") } else { format!("yaml: line {named}: {words}") }
}

/// A bracket that isn't closed, or by another: something is missing behind an element, or the element itself.
fn bracket(message: &str, text: &str, rest: &str, line: usize) -> String {
    let opens = if message.contains("bracket '{'") { '{' } else { '[' };
    let behind: String = text.lines().skip(line + 1).collect();
    let content = format!("{}{behind}", rest.trim_start_matches(opens));
    let content = content.trim();
    if content.is_empty() || content.ends_with(',') {
        return "did not find expected node content".to_owned();
    }
    format!("did not find expected ',' or '{}'", if opens == '{' { '}' } else { ']' })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(text: &str) -> String {
        let error = serde_saphyr::from_str::<serde_json::Value>(text).expect_err("broken");
        yaml_error(&error, text)
    }

    #[test]
    fn mistakes_are_told_in_gos_words() {
        assert_eq!(says("a: ["), "yaml: line 1: did not find expected node content");
        assert_eq!(says("a: [b, c"), "yaml: line 1: did not find expected ',' or ']'");
        assert_eq!(says("a: b: c"), "yaml: mapping values are not allowed in this context");
        assert_eq!(says("a: b\n  c: d"), "yaml: line 2: mapping values are not allowed in this context");
        assert_eq!(says("a: b\nc"), "yaml: line 2: could not find expected ':'");
        assert_eq!(says("a:\n\t- b"), "yaml: line 2: found character that cannot start any token");
        let bomb: String = (1..20).map(|n| format!("a{n}: &a{n} [*a{0}, *a{0}, *a{0}, *a{0}]\n", n - 1)).collect();
        assert_eq!(says(&format!("a0: &a0 [x]\n{bomb}")), "yaml: document contains excessive aliasing");
        assert_eq!(says("a: *x"), "yaml: unknown anchor 'x' referenced");
        assert_eq!(says("- a\nb: c"), "yaml: line 1: did not find expected '-' indicator");
        assert_eq!(says("a: \"b"), "yaml: found unexpected end of stream");
    }
}
