//! Field selectors: `metadata.name=web,status.phase!=Running`.

use std::fmt;

/// Objects by the values of some fields. All requirements must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    requirements: Vec<(String, bool, String)>,
}

impl FieldSelector {
    /// Reads the text of a `fieldSelector` parameter. Whether a kind knows the fields is not checked here. Errors are
    /// Kubernetes' texts.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut terms = split_terms(text);
        terms.sort_unstable();
        let mut requirements = Vec::new();
        for term in terms.into_iter().filter(|term| !term.is_empty()) {
            let Some((field, equals, value)) = split_term(term) else {
                return Err(format!("invalid selector: '{text}'; can't understand '{term}'"));
            };
            requirements.push((field.to_owned(), equals, unescape(value)?));
        }
        Ok(Self { requirements })
    }

    /// The terms: field, whether its value must be equal (or must differ), and the value.
    pub fn requirements(&self) -> &[(String, bool, String)] {
        &self.requirements
    }

    /// Whether every object is meant.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The value that a field must have, if the selector asks for exactly one.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.requirements.iter().find(|(name, equals, _)| *equals && name == field).map(|(_, _, value)| value.as_str())
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (field, equals, value)) in self.requirements.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{field}{}{}", if *equals { "=" } else { "!=" }, escape(value))?;
        }
        Ok(())
    }
}

/// Cuts at commas that no backslash precedes.
fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (index, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

/// Cuts at the first operator.
fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    term.char_indices().find_map(|(index, _)| {
        let (field, rest) = term.split_at(index);
        [("!=", false), ("==", true), ("=", true)]
            .into_iter()
            .find_map(|(operator, equals)| rest.strip_prefix(operator).map(|value| (field, equals, value)))
    })
}

fn unescape(value: &str) -> Result<String, String> {
    let mut plain = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => plain.push(c),
                other => {
                    let sequence: String = std::iter::once('\\').chain(other).collect();
                    return Err(format!("invalid field selector: invalid escape sequence: {sequence}"));
                }
            },
            ',' | '=' => {
                return Err(format!("invalid field selector: unescaped character in value: {}", u32::from(c)));
            }
            c => plain.push(c),
        }
    }
    Ok(plain)
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(text: &str) -> Result<Vec<(String, bool, String)>, String> {
        FieldSelector::parse(text).map(|selector| selector.requirements)
    }

    #[test]
    fn terms_are_field_operator_value() {
        let term = |field: &str, equals, value: &str| (field.to_owned(), equals, value.to_owned());
        assert_eq!(terms(""), Ok(vec![]));
        assert_eq!(terms(",,"), Ok(vec![]));
        assert_eq!(terms("b=1,a!=2"), Ok(vec![term("a", false, "2"), term("b", true, "1")]));
        assert_eq!(terms("a==x"), Ok(vec![term("a", true, "x")]));
        assert_eq!(terms(r"a=x\,y\=z\\"), Ok(vec![term("a", true, r"x,y=z\")]));
        assert_eq!(terms("=x"), Ok(vec![term("", true, "x")]));
        assert_eq!(terms(" a = c1"), Ok(vec![term(" a ", true, " c1")]));
    }

    #[test]
    fn wrong_texts_are_refused_in_kubernetes_words() {
        for (text, error) in [
            ("nope", "invalid selector: 'nope'; can't understand 'nope'"),
            ("a=b,c", "invalid selector: 'a=b,c'; can't understand 'c'"),
            (r"a=\x", r"invalid field selector: invalid escape sequence: \x"),
            (r"a=\", r"invalid field selector: invalid escape sequence: \"),
            ("a=b=c", "invalid field selector: unescaped character in value: 61"),
        ] {
            assert_eq!(terms(text), Err(error.to_owned()));
        }
    }

    #[test]
    fn texts_read_back() {
        let selector = FieldSelector::parse(r"b!=2,a=x\,y").unwrap();
        assert_eq!(selector.to_string(), r"a=x\,y,b!=2");
        assert_eq!(selector.exact("a"), Some("x,y"));
        assert_eq!(selector.exact("b"), None);
        assert_eq!(FieldSelector::parse(&selector.to_string()), Ok(selector));
    }
}
