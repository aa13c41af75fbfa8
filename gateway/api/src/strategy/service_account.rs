//! ServiceAccount: a name with lists of secrets.

use serde_json::{Value, json};

use super::BASE;
use crate::kind::{Part, Strategy};
use crate::validation::json::{get, items};

/// What is peculiar to ServiceAccounts.
pub const STRATEGY: Strategy = Strategy {
    prepare_create: only_names,
    prepare_update: |new: &mut Value, old: &Value, part: Part| {
        super::keep_generation(new, old, part);
        only_names(new);
    },
    ..BASE
};

/// Of references to secrets only the names are kept.
fn only_names(object: &mut Value) {
    if get(object, "secrets").is_none() {
        return;
    }
    let names: Vec<Value> = items(object, "secrets")
        .iter()
        .map(|secret| get(secret, "name").map_or_else(|| json!({}), |name| json!({"name": name})))
        .collect();
    object["secrets"] = Value::Array(names);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_names() {
        let mut account = json!({"secrets": [{"name": "a", "namespace": "b", "kind": "Secret"}]});
        only_names(&mut account);
        assert_eq!(account, json!({"secrets": [{"name": "a"}]}));
    }
}
