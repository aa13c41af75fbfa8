//! JSONPath as columns, scales and selectable fields write it: `.spec.a`, `['a.b']`, `[0]`, `[*]`, `[?(@.type=="X")]`.

use serde_json::Value;

/// A path to values.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath {
    steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    All,
    Where { path: JsonPath, operator: String, value: Value },
}

impl JsonPath {
    /// Reads a path.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut rest = text.trim();
        rest = rest.strip_prefix('$').unwrap_or(rest);
        let mut steps = Vec::new();
        while !rest.is_empty() {
            if let Some(behind) = rest.strip_prefix('.') {
                let (name, behind) = field(behind);
                rest = behind;
                match name.as_str() {
                    "" if rest.starts_with('[') || rest.is_empty() => {}
                    "" => return Err(format!("unexpected {rest:?}")),
                    "*" => steps.push(Step::All),
                    _ => steps.push(Step::Field(name)),
                }
            } else if let Some(behind) = rest.strip_prefix('[') {
                let end = closing(behind).ok_or("unterminated array")?;
                steps.push(bracket(&behind[..end])?);
                rest = &behind[end + 1..];
            } else {
                return Err(format!("unrecognized character in action: {:?}", rest.chars().next().unwrap_or(' ')));
            }
        }
        Ok(Self { steps })
    }

    /// All values that the path leads to.
    pub fn find<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        let mut found = vec![value];
        for step in &self.steps {
            found = found.into_iter().flat_map(|value| step.follow(value)).collect();
        }
        found
    }

    /// The path as a JSON pointer, if it has fields alone.
    pub fn pointer(&self) -> Option<String> {
        self.steps.iter().try_fold(String::new(), |pointer, step| match step {
            Step::Field(name) => Some(format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"))),
            _ => None,
        })
    }
}

impl Step {
    fn follow<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        match (self, value) {
            (Self::Field(name), value) => value.get(name).into_iter().collect(),
            (Self::Index(at), Value::Array(items)) => {
                let length = i64::try_from(items.len()).unwrap_or(i64::MAX);
                let at = if *at < 0 { length + at } else { *at };
                usize::try_from(at).ok().and_then(|at| items.get(at)).into_iter().collect()
            }
            (Self::All, Value::Array(items)) => items.iter().collect(),
            (Self::All, Value::Object(fields)) => fields.values().collect(),
            (Self::Where { path, operator, value: wanted }, Value::Array(items)) => items
                .iter()
                .filter(|item| path.find(item).first().is_some_and(|found| compare(found, operator, wanted)))
                .collect(),
            _ => Vec::new(),
        }
    }
}

fn compare(found: &Value, operator: &str, wanted: &Value) -> bool {
    let numbers = found.as_f64().zip(wanted.as_f64());
    match operator {
        "==" => found == wanted || numbers.is_some_and(|(a, b)| (a - b).abs() < f64::EPSILON),
        "!=" => found != wanted,
        "<" => numbers.is_some_and(|(a, b)| a < b),
        "<=" => numbers.is_some_and(|(a, b)| a <= b),
        ">" => numbers.is_some_and(|(a, b)| a > b),
        ">=" => numbers.is_some_and(|(a, b)| a >= b),
        _ => true,
    }
}

/// A name up to the next step; a backslash takes the meaning from the character behind it.
fn field(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '\\' => name.extend(characters.next().map(|(_, escaped)| escaped)),
            '.' | '[' => return (name, &text[at..]),
            c => name.push(c),
        }
    }
    (name, "")
}

/// Where the bracket closes that is open at the beginning.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut quote) = (0, None);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), c) => quote = Some(open).filter(|open| *open != c),
            (None, '\'' | '"') => quote = Some(c),
            (None, '[' | '(') => depth += 1,
            (None, ']') if depth == 0 => return Some(at),
            (None, ']' | ')') => depth -= 1,
            _ => {}
        }
    }
    None
}

fn bracket(text: &str) -> Result<Step, String> {
    let text = text.trim();
    if text == "*" {
        return Ok(Step::All);
    }
    if let Some(name) = unquote(text) {
        return Ok(Step::Field(name));
    }
    if let Ok(at) = text.parse() {
        return Ok(Step::Index(at));
    }
    let condition =
        text.strip_prefix("?(").and_then(|rest| rest.strip_suffix(')')).ok_or(format!("invalid array index {text}"))?;
    for operator in ["==", "!=", "<=", ">=", "<", ">"] {
        if let Some((left, right)) = condition.split_once(operator) {
            let path = left.trim().strip_prefix('@').ok_or("a filter begins with @")?;
            let right = right.trim();
            let value = match unquote(right) {
                Some(text) => Value::from(text),
                None => serde_json::from_str(right).map_err(|error| error.to_string())?,
            };
            return Ok(Step::Where { path: JsonPath::parse(path)?, operator: operator.to_owned(), value });
        }
    }
    let path = condition.trim().strip_prefix('@').ok_or("a filter begins with @")?;
    Ok(Step::Where { path: JsonPath::parse(path)?, operator: String::new(), value: Value::Null })
}

fn unquote(text: &str) -> Option<String> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let inner = text.strip_prefix(quote)?.strip_suffix(quote)?;
    Some(inner.replace("\\'", "'").replace("\\\"", "\""))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_find_fields_items_and_conditions() {
        let object = json!({"metadata": {"labels": {"a.b/c": "x"}}, "spec": {"l": ["a", "b"], "n": 1},
            "status": {"conditions": [{"type": "A", "status": "1"}, {"type": "Ready", "status": "True"}]}});
        for (path, expected) in [
            (".spec.n", json!([1])),
            (".spec.l[*]", json!(["a", "b"])),
            (".spec.l[-1]", json!(["b"])),
            (".spec.l[1]", json!(["b"])),
            (".metadata.labels['a.b/c']", json!(["x"])),
            (r".metadata.labels.a\.b/c", json!(["x"])),
            (r#".status.conditions[?(@.type=="Ready")].status"#, json!(["True"])),
            (".nope.x", json!([])),
        ] {
            assert_eq!(json!(JsonPath::parse(path).expect("a path").find(&object)), expected, "{path}");
        }
        assert!(JsonPath::parse("bad").is_err() && JsonPath::parse(".a[").is_err());
        assert_eq!(JsonPath::parse(".spec.replicas").unwrap().pointer().as_deref(), Some("/spec/replicas"));
    }
}
