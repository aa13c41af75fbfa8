//! A Pod stays for five minutes on a node that is not ready or cannot be reached, unless it says otherwise.

use serde_json::{Value, json};

const KEYS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
const SECONDS: i64 = 300;

/// Adds the tolerations that are missing.
pub(super) fn admit(pod: &mut Value) {
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let tolerations = spec.entry("tolerations").or_insert_with(|| json!([]));
    if tolerations.is_null() {
        *tolerations = json!([]);
    }
    let Some(tolerations) = tolerations.as_array_mut() else { return };
    for key in KEYS {
        if !tolerations.iter().any(|toleration| tolerates(toleration, key)) {
            tolerations.push(json!({
                "key": key,
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": SECONDS,
            }));
        }
    }
}

fn tolerates(toleration: &Value, key: &str) -> bool {
    let field = |name: &str| toleration.get(name).and_then(Value::as_str).unwrap_or_default();
    matches!(field("effect"), "" | "NoExecute") && (field("key") == key || field("key").is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_added_and_one_that_is_there_is_left_alone() {
        let mut pod =
            json!({"spec": {"tolerations": [{"key": KEYS[0], "operator": "Exists", "tolerationSeconds": 5}]}});
        admit(&mut pod);
        let tolerations = pod["spec"]["tolerations"].as_array().expect("a list");
        assert_eq!(tolerations.len(), 2);
        assert_eq!(tolerations[0]["tolerationSeconds"], 5);
        assert_eq!(tolerations[1]["key"], KEYS[1]);
    }

    #[test]
    fn a_pod_that_tolerates_everything_gets_nothing() {
        let mut pod = json!({"spec": {"tolerations": [{"operator": "Exists"}]}});
        admit(&mut pod);
        assert_eq!(pod["spec"]["tolerations"].as_array().map(Vec::len), Some(1));
    }
}
