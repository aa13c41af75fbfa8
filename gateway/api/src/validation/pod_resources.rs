//! Requests and limits of a pod as a whole, beside those of its containers.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::field::{ErrorList, Path};
use crate::quantity::Quantity;
use crate::validation::json::{dig, entries, get, items, str_at};
use crate::validation::resources::{self, is_huge_pages, quantity};

/// What can be said of a whole pod, as it is told to whoever names something else.
const SUPPORTED: [&str; 3] = ["cpu", "hugepages-", "memory"];

/// What is wrong with `spec.resources`.
pub fn validate(spec: &Value, claims: &[&str], path: &Path) -> ErrorList {
    let Some(whole) = get(spec, "resources") else { return ErrorList::new() };
    if dig(spec, &["os", "name"]).is_some_and(|os| os == "windows") {
        return vec![path.forbidden("may not be set for a windows pod")];
    }
    let mut errors = ErrorList::new();
    if get(whole, "claims").is_some() {
        errors.push(path.child("claims").forbidden("claims may not be set for Resources at pod-level"));
    }
    errors.extend(resources::requirements(whole, claims, path, name));
    errors.extend(together(spec, whole, path));
    errors
}

/// Whether something can be said of a whole pod for this resource.
pub fn is_supported(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || is_huge_pages(name)
}

fn name(name: &str, path: &Path) -> ErrorList {
    let errors = resources::resource_name(name, path);
    if !errors.is_empty() || is_supported(name) {
        return errors;
    }
    vec![path.not_supported(name, &SUPPORTED)]
}

/// Containers ask for no more than their pod, and no container may have more.
fn together(spec: &Value, whole: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let of_pod = |field: &str, name: &str| dig(whole, &[field, name]).and_then(quantity);
    for (field, what, only_huge_pages) in [("requests", "requests", false), ("limits", "limits", true)] {
        for (name, sum) in aggregate(spec, field) {
            let Some(own) = of_pod(field, &name).filter(|_| !only_huge_pages || is_huge_pages(&name)) else { continue };
            if sum > own {
                let why = format!("must be greater than or equal to aggregate container {what} of {}", sum.canonical());
                errors.push(path.child(field).key(&name).invalid(own.canonical(), why));
            }
        }
    }
    for (index, container) in items(spec, "containers").iter().enumerate() {
        let limits = get(container, "resources").unwrap_or(&Value::Null);
        for (name, limit) in entries(limits, "limits") {
            let (Some(limit), Some(own)) = (quantity(limit), of_pod("limits", name)) else { continue };
            if limit > own {
                let path = path.child("containers").index(index).key(name).child("limits");
                let why = format!("must be less than or equal to pod limits of {}", own.canonical());
                errors.push(path.invalid(limit.canonical(), why));
            }
        }
    }
    errors
}

type Amounts = BTreeMap<String, Quantity>;

/// What the containers of a pod have at once at most, of their `requests` or `limits`: all together with the sidecars, or
/// one init container beside the sidecars before it.
pub fn aggregate(spec: &Value, field: &str) -> Amounts {
    let of = |container: &Value| -> Amounts {
        let resources = get(container, "resources").unwrap_or(&Value::Null);
        entries(resources, field).filter_map(|(name, value)| Some((name.clone(), quantity(value)?))).collect()
    };
    let (mut sidecars, mut peak) = (Amounts::new(), Amounts::new());
    for container in items(spec, "initContainers") {
        let mut needed = of(container);
        if str_at(container, "restartPolicy") == "Always" {
            add(&mut sidecars, &needed);
            needed.clone_from(&sidecars);
        } else {
            add(&mut needed, &sidecars);
        }
        at_least(&mut peak, &needed);
    }
    let mut running = sidecars;
    for container in items(spec, "containers") {
        add(&mut running, &of(container));
    }
    at_least(&mut running, &peak);
    running
}

fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        sum.entry(name.clone()).and_modify(|own| *own = *own + *amount).or_insert(*amount);
    }
}

fn at_least(amounts: &mut Amounts, others: &Amounts) {
    for (name, amount) in others {
        amounts.entry(name.clone()).and_modify(|own| *own = (*own).max(*amount)).or_insert(*amount);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn causes(whole: &Value, containers: &Value) -> Vec<String> {
        let spec = json!({"resources": whole, "containers": containers});
        validate(&spec, &[], &Path::new("spec").child("resources")).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_pod_has_at_least_what_its_containers_request_and_at_most_what_it_may() {
        let two = json!([
            {"name": "a", "resources": {"requests": {"cpu": "600m"}, "limits": {"cpu": "3"}}},
            {"name": "b", "resources": {"requests": {"cpu": "600m", "memory": "1Gi"}}}
        ]);
        assert!(causes(&json!({"requests": {"cpu": "2"}, "limits": {"cpu": "4"}}), &two).is_empty());
        assert_eq!(
            causes(&json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}), &two),
            [
                "spec.resources.requests[cpu]: Invalid value: \"1\": must be greater than or equal to aggregate container \
                 requests of 1200m",
                "spec.resources.containers[0][cpu].limits: Invalid value: \"3\": must be less than or equal to pod limits of 2"
            ]
        );
    }

    #[test]
    fn only_some_resources_are_a_whole_pods() {
        assert_eq!(
            causes(&json!({"requests": {"ephemeral-storage": "1Gi"}}), &json!([])),
            [
                "spec.resources.requests[ephemeral-storage]: Unsupported value: \"ephemeral-storage\": supported values: \
              \"cpu\", \"hugepages-\", \"memory\""
            ]
        );
        assert_eq!(
            causes(&json!({"claims": [], "requests": {"cpu": "2"}, "limits": {"cpu": "1"}}), &json!([])),
            [
                "spec.resources.claims: Forbidden: claims may not be set for Resources at pod-level",
                "spec.resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1"
            ]
        );
    }
}
