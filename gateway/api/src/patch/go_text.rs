//! Values and decoding errors in the form that Go prints them, which Kubernetes' messages contain.

use serde_json::Value;

/// A JSON value as Go's `%v` prints it: `map[a:1 b:[x y]]`.
pub fn go_text(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::Array(items) => format!("[{}]", items.iter().map(go_text).collect::<Vec<_>>().join(" ")),
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(key, _)| *key);
            let fields: Vec<_> = fields.into_iter().map(|(key, value)| format!("{key}:{}", go_text(value))).collect();
            format!("map[{}]", fields.join(" "))
        }
    }
}

/// What Go's JSON decoder calls the type of a value.
pub(super) fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// What Go's JSON decoder says of a text that is no JSON, as far as the position of the error tells.
pub(super) fn syntax_error(text: &[u8], error: &serde_json::Error) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".to_owned();
    }
    let line_start =
        text.split(|b| *b == b'\n').take(error.line().saturating_sub(1)).map(|line| line.len() + 1).sum::<usize>();
    let at = (line_start + error.column()).saturating_sub(1);
    let found = text.get(at..).and_then(|rest| String::from_utf8_lossy(&rest[..rest.len().min(4)]).chars().next());
    match found {
        Some(found) => format!("invalid character {} looking for beginning of value", quoted_char(found)),
        None => "unexpected end of JSON input".to_owned(),
    }
}

fn quoted_char(c: char) -> String {
    match c {
        '\'' => "'\\''".to_owned(),
        '"' => "'\"'".to_owned(),
        c => format!("'{}'", c.escape_default()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_look_as_in_go() {
        assert_eq!(
            go_text(&json!([{"name": "c", "$patch": "x", "n": 1}, null, true])),
            "[map[$patch:x n:1 name:c] <nil> true]"
        );
    }
}
