//! Selectors in objects: label selectors, and whether they select a template's labels.

use serde_json::{Map, Value};

use crate::field::{ErrorList, Path};
use crate::validation::json::{entries, items, map, str_at, texts};
use crate::validation::metadata;
use crate::validation::names;

/// What is wrong with a `metav1.LabelSelector`.
pub fn label_selector(selector: &Value, path: &Path) -> ErrorList {
    let mut errors = metadata::labels(selector, "matchLabels", &path.child("matchLabels"));
    for (index, requirement) in items(selector, "matchExpressions").iter().enumerate() {
        let path = path.child("matchExpressions").index(index);
        let values = path.child("values");
        match str_at(requirement, "operator") {
            "In" | "NotIn" => {
                if items(requirement, "values").is_empty() {
                    errors.push(values.required("must be specified when `operator` is 'In' or 'NotIn'"));
                }
            }
            "Exists" | "DoesNotExist" => {
                if !items(requirement, "values").is_empty() {
                    errors.push(values.forbidden("may not be specified when `operator` is 'Exists' or 'DoesNotExist'"));
                }
            }
            other => errors.push(path.child("operator").invalid(other, "not a valid selector operator")),
        }
        errors.extend(metadata::label_key(str_at(requirement, "key"), &path.child("key")));
        for (index, value) in texts(requirement, "values").enumerate() {
            let path = values.index(index);
            errors.extend(names::label_value(value).into_iter().map(|text| path.invalid(value, text)));
        }
    }
    errors
}

/// Whether a selector selects nothing in particular, that is everything.
pub fn is_empty(selector: &Value) -> bool {
    map(selector, "matchLabels").is_none_or(Map::is_empty) && items(selector, "matchExpressions").is_empty()
}

/// Whether a selector without mistakes selects these labels; none if it has mistakes. No selector selects nothing.
pub fn selects(selector: Option<&Value>, labels: Option<&Value>) -> Option<bool> {
    let Some(selector) = selector else { return Some(false) };
    if !label_selector(selector, &Path::root()).is_empty() {
        return None;
    }
    let label = |key: &str| labels.and_then(|labels| labels.get(key)).and_then(Value::as_str);
    let equal = entries(selector, "matchLabels").all(|(key, value)| label(key) == value.as_str());
    let fits = |requirement: &Value| {
        let actual = label(str_at(requirement, "key"));
        let listed = || actual.is_some_and(|actual| texts(requirement, "values").any(|value| value == actual));
        match str_at(requirement, "operator") {
            "In" => listed(),
            "NotIn" => !listed(),
            "Exists" => actual.is_some(),
            _ => actual.is_none(),
        }
    };
    Some(equal && items(selector, "matchExpressions").iter().all(fits))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_operator_wants_its_number_of_values() {
        let selector = json!({"matchExpressions": [
            {"key": "a", "operator": "In"},
            {"key": "b", "operator": "Exists", "values": ["x"]},
            {"key": "c", "operator": "Z"},
        ]});
        let paths: Vec<String> =
            label_selector(&selector, &Path::new("s")).into_iter().map(|error| error.path).collect();
        assert_eq!(
            paths,
            ["s.matchExpressions[0].values", "s.matchExpressions[1].values", "s.matchExpressions[2].operator"]
        );
        assert_eq!(selects(Some(&selector), None), None);
    }

    #[test]
    fn selecting_follows_all_requirements() {
        let selector = json!({"matchLabels": {"app": "a"}, "matchExpressions": [
            {"key": "tier", "operator": "NotIn", "values": ["db"]}]});
        assert_eq!(selects(Some(&selector), Some(&json!({"app": "a"}))), Some(true));
        assert_eq!(selects(Some(&selector), Some(&json!({"app": "a", "tier": "db"}))), Some(false));
        assert_eq!(selects(Some(&json!({})), None), Some(true));
        assert_eq!(selects(None, Some(&json!({"app": "a"}))), Some(false));
    }
}
