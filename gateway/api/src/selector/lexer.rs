//! Label selector texts cut into tokens.

/// What a piece of a selector text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    End,
    Identifier,
    /// A run of special characters that means nothing.
    Error,
    ClosePar,
    OpenPar,
    Comma,
    Not,
    Equals,
    DoubleEquals,
    NotEquals,
    Greater,
    Less,
    In,
    NotIn,
}

const SYMBOLS: [(&str, Token); 9] = [
    (")", Token::ClosePar),
    ("(", Token::OpenPar),
    (",", Token::Comma),
    ("!", Token::Not),
    ("==", Token::DoubleEquals),
    ("=", Token::Equals),
    ("!=", Token::NotEquals),
    (">", Token::Greater),
    ("<", Token::Less),
];

/// The tokens of a text; the last one is always [`Token::End`].
pub(super) fn scan(text: &str) -> Vec<(Token, String)> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while let Some(first) = rest.chars().next() {
        let (token, literal, after) = if is_special(first) { symbol(rest) } else { word(rest) };
        tokens.push((token, literal));
        rest = after.trim_start_matches(is_space);
    }
    tokens.push((Token::End, String::new()));
    tokens
}

fn word(text: &str) -> (Token, String, &str) {
    let end = text.find(|c| is_special(c) || is_space(c)).unwrap_or(text.len());
    let (literal, rest) = text.split_at(end);
    let token = match literal {
        "in" => Token::In,
        "notin" => Token::NotIn,
        _ => Token::Identifier,
    };
    (token, literal.to_owned(), rest)
}

/// The longest symbol at the start of the text, which begins with one: each special character is a symbol itself.
fn symbol(text: &str) -> (Token, String, &str) {
    // None has more than two characters. The text may be long and have no others.
    let run = text.bytes().take(2).take_while(|byte| is_special(char::from(*byte))).count();
    let known = |end: usize| SYMBOLS.iter().find(|(literal, _)| *literal == &text[..end]);
    match (1..=run).rev().find_map(known) {
        Some((literal, token)) => (*token, (*literal).to_owned(), &text[literal.len()..]),
        None => (Token::Error, format!("error expected: keyword found '{}'", &text[..run]), &text[run..]),
    }
}

fn is_special(c: char) -> bool {
    matches!(c, '=' | '!' | '(' | ')' | ',' | '>' | '<')
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}
