//! Amounts that are a number or a share: `maxUnavailable: 25%`.

use serde_json::Value;

use crate::field::{ErrorList, Path};
use crate::validation::names;

/// What is wrong with an amount or percentage: neither negative nor without its `%`.
pub fn positive(amount: &Value, path: &Path) -> ErrorList {
    match amount {
        Value::String(text) => names::percent(text).into_iter().map(|why| path.invalid(text.as_str(), why)).collect(),
        other => match other.as_i64() {
            Some(number) if number < 0 => vec![path.invalid(number, "must be greater than or equal to 0")],
            _ => ErrorList::new(),
        },
    }
}

/// A share is not more than all.
pub fn at_most_all(amount: &Value, path: &Path) -> ErrorList {
    if amount.is_string() && number(amount) > 100 {
        return vec![path.invalid(amount.clone(), "must not be greater than 100%")];
    }
    ErrorList::new()
}

/// The number in an amount or percentage.
pub fn number(amount: &Value) -> i64 {
    match amount {
        Value::String(text) => text.strip_suffix('%').and_then(|digits| digits.parse().ok()).unwrap_or(0),
        other => other.as_i64().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_amount_is_a_number_or_a_share() {
        let path = Path::new("a");
        assert!(positive(&json!("25%"), &path).is_empty() && positive(&json!(3), &path).is_empty());
        assert_eq!(positive(&json!("25"), &path).len() + positive(&json!(-1), &path).len(), 2);
        assert_eq!(at_most_all(&json!("101%"), &path)[0].detail, "must not be greater than 100%");
        assert_eq!((number(&json!("7%")), number(&json!(7))), (7, 7));
    }
}
