//! Defaults of a pod's resources as a whole.

use serde_json::{Map, Value};

use super::pod_spec::drop_if_empty;
use crate::validation::json::{get, map};
use crate::validation::pod_resources::{aggregate, is_supported};
use crate::validation::resources::is_huge_pages;

/// Fills in what a pod leaves open that says something of itself as a whole: limits of huge pages by its containers', then
/// requests by its containers' or its own limits.
pub fn default(spec: &mut Value) {
    let Some(whole) = get(spec, "resources") else { return };
    let mut limits = map(whole, "limits").cloned().unwrap_or_default();
    let mut requests = map(whole, "requests").cloned().unwrap_or_default();
    if limits.is_empty() && requests.is_empty() {
        return;
    }
    for (name, sum) in aggregate(spec, "limits") {
        if is_huge_pages(&name) && !requests.contains_key(&name) {
            limits.entry(name).or_insert_with(|| Value::from(sum.canonical()));
        }
    }
    if !limits.is_empty() {
        for (name, sum) in aggregate(spec, "requests") {
            if is_supported(&name) && !is_huge_pages(&name) {
                requests.entry(name).or_insert_with(|| Value::from(sum.canonical()));
            }
        }
        for (name, limit) in limits.iter().filter(|(name, _)| is_supported(name)) {
            requests.entry(name.clone()).or_insert_with(|| limit.clone());
        }
    }
    let Some(whole) = spec.get_mut("resources").and_then(Value::as_object_mut) else { return };
    for (field, amounts) in [("limits", limits), ("requests", requests)] {
        put(whole, field, amounts);
    }
}

fn put(whole: &mut Map<String, Value>, field: &str, amounts: Map<String, Value>) {
    whole.insert(field.to_owned(), Value::Object(amounts));
    drop_if_empty(whole, field);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn requests_follow_the_containers_and_then_the_limits() {
        let mut spec = json!({
            "resources": {"limits": {"cpu": "2", "memory": "1Gi"}},
            "containers": [{"name": "c", "resources": {"requests": {"cpu": "250m", "ephemeral-storage": "1Gi"}}},
                {"name": "d", "resources": {"limits": {"hugepages-2Mi": "4Mi"}, "requests": {"hugepages-2Mi": "4Mi"}}}]
        });
        default(&mut spec);
        assert_eq!(
            spec["resources"],
            json!({"limits": {"cpu": "2", "memory": "1Gi", "hugepages-2Mi": "4Mi"},
                   "requests": {"cpu": "250m", "memory": "1Gi", "hugepages-2Mi": "4Mi"}})
        );
        let mut silent =
            json!({"resources": {}, "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]});
        let before = silent.clone();
        default(&mut silent);
        assert_eq!(silent, before);
    }
}
