//! Label selectors: `app=web,tier in (a, b),!canary` and `metav1.LabelSelector`.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::Value;

use super::lexer::{Token, scan};
use crate::field::Path;
use crate::status::quote;
use crate::validation::names;

/// What a requirement asks of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `key=value`
    Equals,
    /// `key==value`
    DoubleEquals,
    /// `key!=value`; a missing label will do.
    NotEquals,
    /// `key in (a,b)`
    In,
    /// `key notin (a,b)`; a missing label will do.
    NotIn,
    /// `key`
    Exists,
    /// `!key`
    DoesNotExist,
    /// `key>1`
    GreaterThan,
    /// `key<1`
    LessThan,
}

/// One term of a label selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// What is asked of it.
    pub operator: Operator,
    /// With what it is compared.
    pub values: BTreeSet<String>,
}

/// Objects by their labels. All requirements must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelSelector {
    /// None selects nothing at all; no requirements select everything.
    requirements: Option<Vec<Requirement>>,
}

impl LabelSelector {
    /// Selects every object.
    pub fn everything() -> Self {
        Self { requirements: Some(Vec::new()) }
    }

    /// Selects no object.
    pub fn nothing() -> Self {
        Self { requirements: None }
    }

    /// Reads the text of a `labelSelector` parameter. Errors are Kubernetes' texts.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser { tokens: scan(text), position: 0 };
        let mut requirements = parser.requirements()?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements: Some(requirements) })
    }

    /// Reads a `metav1.LabelSelector`: null selects nothing, an empty one everything.
    pub fn from_object(selector: &Value) -> Result<Self, String> {
        let Some(selector) = selector.as_object() else { return Ok(Self::nothing()) };
        let mut requirements = Vec::new();
        if let Some(labels) = selector.get("matchLabels").and_then(Value::as_object) {
            for (key, value) in labels {
                let values = value.as_str().map(str::to_owned).into_iter().collect();
                requirements.push(Requirement::new(key, Operator::Equals, values)?);
            }
        }
        for expression in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let text = |name: &str| expression.get(name).and_then(Value::as_str).unwrap_or_default();
            let operator = match text("operator") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(format!("{} is not a valid label selector operator", quote(other))),
            };
            let values = expression.get("values").and_then(Value::as_array).into_iter().flatten();
            let values = values.filter_map(Value::as_str).map(str::to_owned).collect();
            requirements.push(Requirement::new(text("key"), operator, values)?);
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements: Some(requirements) })
    }

    /// Reads a plain map of labels, as in a Service's selector. Null or empty selects everything.
    pub fn from_map(labels: &Value) -> Self {
        let mut requirements: Vec<Requirement> = labels
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, value)| Requirement {
                key: key.clone(),
                operator: Operator::Equals,
                values: value.as_str().map(str::to_owned).into_iter().collect(),
            })
            .collect();
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Self { requirements: Some(requirements) }
    }

    /// Whether these `metadata.labels` are meant.
    pub fn matches(&self, labels: Option<&Value>) -> bool {
        self.requirements.as_ref().is_some_and(|all| all.iter().all(|requirement| requirement.matches(labels)))
    }

    /// Whether every object is meant.
    pub fn is_everything(&self) -> bool {
        self.requirements.as_ref().is_some_and(Vec::is_empty)
    }

    /// The terms, by key; none if nothing is selected.
    pub fn requirements(&self) -> &[Requirement] {
        self.requirements.as_deref().unwrap_or_default()
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements().iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

impl Requirement {
    /// A term, checked as Kubernetes checks it.
    pub fn new(key: &str, operator: Operator, values: BTreeSet<String>) -> Result<Self, String> {
        let path = Path::new("values");
        let mut errors = Vec::new();
        let wrong = names::qualified_name(key);
        if !wrong.is_empty() {
            errors.push(Path::new("key").invalid(key, wrong.join("; ")));
        }
        let listed = || Value::from(values.iter().cloned().collect::<Vec<_>>());
        let complaint = match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                Some("for 'in', 'notin' operators, values set can't be empty")
            }
            Operator::Equals | Operator::DoubleEquals | Operator::NotEquals if values.len() != 1 => {
                Some("exact-match compatibility requires one single value")
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                Some("values set must be empty for exists and does not exist")
            }
            Operator::GreaterThan | Operator::LessThan if values.len() != 1 => {
                Some("for 'Gt', 'Lt' operators, exactly one value is required")
            }
            _ => None,
        };
        if let Some(complaint) = complaint {
            errors.push(path.invalid(listed(), complaint));
        } else if matches!(operator, Operator::GreaterThan | Operator::LessThan) {
            for (index, value) in values.iter().enumerate().filter(|(_, value)| value.parse::<i64>().is_err()) {
                let detail = "for 'Gt', 'Lt' operators, the value must be an integer";
                errors.push(path.index(index).invalid(value.as_str(), detail));
            }
        }
        for (index, value) in values.iter().enumerate() {
            let wrong = names::label_value(value);
            if !wrong.is_empty() {
                errors.push(path.index(index).key(key).invalid(value.as_str(), wrong.join("; ")));
            }
        }
        match errors.as_slice() {
            [] => Ok(Self { key: key.to_owned(), operator, values }),
            [one] => Err(one.to_string()),
            all => Err(format!("[{}]", all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))),
        }
    }

    /// Whether these labels meet it.
    pub fn matches(&self, labels: Option<&Value>) -> bool {
        let value = labels.and_then(|labels| labels.get(&self.key)).and_then(Value::as_str);
        let number = |text: &str| text.parse::<i64>().ok();
        match self.operator {
            Operator::Equals | Operator::DoubleEquals | Operator::In => value.is_some_and(|v| self.values.contains(v)),
            Operator::NotEquals | Operator::NotIn => value.is_none_or(|v| !self.values.contains(v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan | Operator::LessThan => {
                let limit = self.values.first().and_then(|text| number(text));
                match (value.and_then(number), limit) {
                    (Some(value), Some(limit)) if self.operator == Operator::GreaterThan => value > limit,
                    (Some(value), Some(limit)) => value < limit,
                    _ => false,
                }
            }
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, after) = match self.operator {
            Operator::Equals => ("", "="),
            Operator::DoubleEquals => ("", "=="),
            Operator::NotEquals => ("", "!="),
            Operator::In => ("", " in ("),
            Operator::NotIn => ("", " notin ("),
            Operator::Exists => ("", ""),
            Operator::DoesNotExist => ("!", ""),
            Operator::GreaterThan => ("", ">"),
            Operator::LessThan => ("", "<"),
        };
        let values = self.values.iter().map(String::as_str).collect::<Vec<_>>().join(",");
        let end = if matches!(self.operator, Operator::In | Operator::NotIn) { ")" } else { "" };
        write!(f, "{before}{}{after}{values}{end}", self.key)
    }
}

/// The grammar, after `k8s.io/apimachinery/pkg/labels`; its texts are part of the API.
struct Parser {
    tokens: Vec<(Token, String)>,
    position: usize,
}

impl Parser {
    fn requirements(&mut self) -> Result<Vec<Requirement>, String> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                (Token::Identifier | Token::Not, _) => {
                    let one = self.requirement().map_err(|error| format!("unable to parse requirement: {error}"))?;
                    requirements.push(one);
                    match self.next() {
                        (Token::End, _) => return Ok(requirements),
                        (Token::Comma, _) => match self.peek() {
                            (Token::Identifier | Token::Not, _) => {}
                            (_, found) => return Err(format!("found '{found}', expected: identifier after ','")),
                        },
                        (_, found) => return Err(format!("found '{found}', expected: ',' or 'end of string'")),
                    }
                }
                (Token::End, _) => return Ok(requirements),
                (_, found) => return Err(format!("found '{found}', expected: !, identifier, or 'end of string'")),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let (mut token, mut key) = self.next();
        let negated = token == Token::Not;
        if negated {
            (token, key) = self.next();
        }
        if token != Token::Identifier {
            return Err(format!("found '{key}', expected: identifier"));
        }
        let wrong = names::qualified_name(&key);
        if !wrong.is_empty() {
            return Err(Path::root().invalid(key.as_str(), wrong.join("; ")).to_string());
        }
        if negated {
            return Requirement::new(&key, Operator::DoesNotExist, BTreeSet::new());
        }
        if matches!(self.peek().0, Token::End | Token::Comma) {
            return Requirement::new(&key, Operator::Exists, BTreeSet::new());
        }
        let operator = self.operator()?;
        let values =
            if matches!(operator, Operator::In | Operator::NotIn) { self.values()? } else { self.exact_value()? };
        Requirement::new(&key, operator, values)
    }

    fn operator(&mut self) -> Result<Operator, String> {
        let (token, found) = self.tokens[self.position].clone();
        self.advance();
        Ok(match token {
            Token::In => Operator::In,
            Token::NotIn => Operator::NotIn,
            Token::Equals => Operator::Equals,
            Token::DoubleEquals => Operator::DoubleEquals,
            Token::NotEquals => Operator::NotEquals,
            Token::Greater => Operator::GreaterThan,
            Token::Less => Operator::LessThan,
            _ => return Err(format!("found '{found}', expected: in, notin, =, ==, !=, gt, lt")),
        })
    }

    fn exact_value(&mut self) -> Result<BTreeSet<String>, String> {
        if matches!(self.peek().0, Token::End | Token::Comma) {
            return Ok(BTreeSet::from([String::new()]));
        }
        match self.next() {
            (Token::Identifier, value) => Ok(BTreeSet::from([value])),
            (_, found) => Err(format!("found '{found}', expected: identifier")),
        }
    }

    fn values(&mut self) -> Result<BTreeSet<String>, String> {
        match self.next() {
            (Token::OpenPar, _) => {}
            (_, found) => return Err(format!("found '{found}' expected: '('")),
        }
        match self.peek() {
            (Token::Identifier | Token::Comma, _) => {
                let values = self.list()?;
                self.advance();
                Ok(values)
            }
            (Token::ClosePar, _) => {
                self.advance();
                Ok(BTreeSet::from([String::new()]))
            }
            (_, found) => Err(format!("found '{found}', expected: ',', ')' or identifier")),
        }
    }

    /// Values up to the closing parenthesis, which stays.
    fn list(&mut self) -> Result<BTreeSet<String>, String> {
        let mut values = BTreeSet::new();
        loop {
            match self.next() {
                (Token::Identifier, value) => {
                    values.insert(value);
                    match self.peek() {
                        (Token::Comma, _) => {}
                        (Token::ClosePar, _) => return Ok(values),
                        (_, found) => return Err(format!("found '{found}', expected: ',' or ')'")),
                    }
                }
                // Nothing before, between or after commas is the empty value.
                (Token::Comma, _) => {
                    if values.is_empty() {
                        values.insert(String::new());
                    }
                    match self.peek().0 {
                        Token::ClosePar => {
                            values.insert(String::new());
                            return Ok(values);
                        }
                        Token::Comma => {
                            self.advance();
                            values.insert(String::new());
                        }
                        _ => {}
                    }
                }
                (_, found) => return Err(format!("found '{found}', expected: ',', or identifier")),
            }
        }
    }

    /// The next token where a key or a value is expected: `in` and `notin` are words there.
    fn peek(&self) -> (Token, String) {
        let (token, literal) = self.tokens[self.position].clone();
        (if matches!(token, Token::In | Token::NotIn) { Token::Identifier } else { token }, literal)
    }

    fn next(&mut self) -> (Token, String) {
        let next = self.peek();
        self.advance();
        next
    }

    /// The end is never passed, so there is always a token to look at.
    fn advance(&mut self) {
        self.position = (self.position + 1).min(self.tokens.len() - 1);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn terms_select_by_labels() {
        let labels = json!({"n": "3", "p": "odd", "x": "", "e.com/k": "v"});
        for (selector, expected) in [
            ("", true),
            ("p=odd", true),
            ("p==odd", true),
            ("p!=odd", false),
            ("q!=odd", true),
            ("n in (1,3)", true),
            ("n notin (1,3)", false),
            ("q notin (1)", true),
            ("x", true),
            ("!x", false),
            ("!q,p", true),
            ("x=", true),
            ("x=,p=odd", true),
            ("n>2", true),
            ("n<3", false),
            ("p>1", false),
            ("n in ()", false),
            ("x in (,)", true),
            ("e.com/k=v", true),
            (" p = odd , n in ( 0 , 3 ) ", true),
            ("in=odd", false),
            ("p in (in,odd)", true),
        ] {
            let parsed = LabelSelector::parse(selector).unwrap_or_else(|error| panic!("{selector}: {error}"));
            assert_eq!(parsed.matches(Some(&labels)), expected, "{selector}");
        }
    }

    #[test]
    fn wrong_texts_are_refused_in_kubernetes_words() {
        for (selector, error) in [
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("=x", "found '=', expected: !, identifier, or 'end of string'"),
            ("p in (even", "unable to parse requirement: found '', expected: ',' or ')'"),
            ("!", "unable to parse requirement: found '', expected: identifier"),
            ("n=1=2", "found '=', expected: ',' or 'end of string'"),
            ("a,", "found '', expected: identifier after ','"),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            ("!a b", "found 'b', expected: ',' or 'end of string'"),
            (
                "a>x",
                "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer",
            ),
        ] {
            assert_eq!(LabelSelector::parse(selector).map(|s| s.to_string()), Err(error.to_owned()), "{selector}");
        }
        let error = LabelSelector::parse("a$=b").unwrap_err();
        assert!(
            error.starts_with("unable to parse requirement: <nil>: Invalid value: \"a$\": name part must"),
            "{error}"
        );
        let error = LabelSelector::parse("a=b$").unwrap_err();
        assert!(
            error.starts_with("unable to parse requirement: values[0][a]: Invalid value: \"b$\": a valid label must")
        );
    }

    #[test]
    fn texts_are_canonical() {
        for (text, canonical) in [
            ("b in (z, a),a == 1 , !c", "a==1,b in (a,z),!c"),
            ("x=", "x="),
            ("x notin (b,a),a>1,c<2,d!=e,f", "a>1,c<2,d!=e,f,x notin (a,b)"),
            ("x in ()", "x in ()"),
        ] {
            assert_eq!(LabelSelector::parse(text).map(|s| s.to_string()), Ok(canonical.to_owned()));
        }
    }

    #[test]
    fn objects_select_like_texts() {
        let parse = |value: Value| LabelSelector::from_object(&value);
        assert!(!parse(Value::Null).is_ok_and(|s| s.matches(Some(&json!({})))));
        assert!(parse(json!({})).is_ok_and(|s| s.is_everything() && s.matches(None)));
        let selector = parse(json!({"matchLabels": {"a": "b"}, "matchExpressions": [
            {"key": "c", "operator": "In", "values": ["e", "d"]}, {"key": "x", "operator": "DoesNotExist"}]}));
        let selector = selector.unwrap();
        assert_eq!(selector.to_string(), "a=b,c in (d,e),!x");
        assert!(selector.matches(Some(&json!({"a": "b", "c": "d"}))));
        assert!(!selector.matches(Some(&json!({"a": "b", "c": "d", "x": ""}))));
        assert_eq!(
            parse(json!({"matchExpressions": [{"key": "a", "operator": "Gt"}]})),
            Err("\"Gt\" is not a valid label selector operator".to_owned())
        );
        assert!(parse(json!({"matchExpressions": [{"key": "a", "operator": "In"}]})).is_err());
    }

    proptest! {
        #[test]
        fn canonical_texts_read_back(text in "[a-c =!,()<>1-3]{0,16}|[ab]( in |=|!=| notin )(\\(a,b\\)|a)") {
            if let Ok(selector) = LabelSelector::parse(&text) {
                prop_assert_eq!(LabelSelector::parse(&selector.to_string()), Ok(selector));
            }
        }
    }
}
