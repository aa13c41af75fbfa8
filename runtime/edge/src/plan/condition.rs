//! Conditions, and when they came to be as they are.

use serde_json::{Value, json};

/// A condition without its time.
pub fn condition(kind: &str, holds: bool, reason: &str, message: &str, generation: Option<i64>) -> Value {
    json!({
        "type": kind,
        "status": if holds { "True" } else { "False" },
        "reason": reason,
        "message": message,
        "observedGeneration": generation.unwrap_or_default(),
    })
}

/// The status with times in its conditions: those from before where a condition is as it was.
pub fn with_times(status: &Value, before: &Value, now: &str) -> Value {
    match status {
        Value::Object(fields) => {
            let mut timed: serde_json::Map<String, Value> = fields
                .iter()
                .map(|(name, value)| {
                    let old = before.get(name).unwrap_or(&Value::Null);
                    (name.clone(), with_times(value, old, now))
                })
                .collect();
            if is_condition(fields) && !timed.contains_key("lastTransitionTime") {
                let kept = before.get("lastTransitionTime").filter(|_| before.get("status") == fields.get("status"));
                timed.insert("lastTransitionTime".to_owned(), kept.cloned().unwrap_or_else(|| now.into()));
            }
            Value::Object(timed)
        }
        Value::Array(items) => {
            let olds = before.as_array().map_or(&[][..], Vec::as_slice);
            let timed = items.iter().map(|item| {
                let old = olds.iter().find(|old| same(item, old)).unwrap_or(&Value::Null);
                with_times(item, old, now)
            });
            Value::Array(timed.collect())
        }
        other => other.clone(),
    }
}

fn is_condition(fields: &serde_json::Map<String, Value>) -> bool {
    ["type", "status", "reason"].iter().all(|name| fields.contains_key(*name))
}

/// Whether two entries of a list are the same thing at two times.
fn same(new: &Value, old: &Value) -> bool {
    const KEYS: [&str; 4] = ["type", "name", "parentRef", "controllerName"];
    KEYS.iter().all(|key| new.get(key) == old.get(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_keeps_its_time_while_its_status_stays() {
        let listener = |holds, reason| json!({"listeners": [{"name": "a", "conditions": [condition("X", holds, reason, "", Some(1))]}]});
        let first = with_times(&listener(true, "A"), &Value::Null, "1");
        assert_eq!(first["listeners"][0]["conditions"][0]["lastTransitionTime"], "1");
        let second = with_times(&listener(true, "B"), &first, "2");
        assert_eq!(second["listeners"][0]["conditions"][0]["lastTransitionTime"], "1");
        let third = with_times(&listener(false, "B"), &second, "3");
        assert_eq!(third["listeners"][0]["conditions"][0]["lastTransitionTime"], "3");
    }
}
