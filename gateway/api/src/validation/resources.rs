//! Requests and limits.

use serde_json::Value;

use crate::field::{ErrorList, Path};
use crate::quantity::Quantity;
use crate::validation::json::{entries, get, items, str_at, text_or_null};
use crate::validation::names;

/// Resources of a container that need no domain.
const CONTAINER_RESOURCES: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

/// Other names that are resources, for quotas.
const QUOTA_RESOURCES: [&str; 20] = [
    "storage",
    "pods",
    "services",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "nodes",
    "volumes",
    "endpoints",
];

/// What is wrong with the resources of a container; `claims` are the names of the pod's resource claims.
pub fn container(resources: &Value, claims: &[&str], path: &Path) -> ErrorList {
    requirements(resources, claims, path, container_resource)
}

/// The same where `rule` says which resources there may be.
pub fn requirements(resources: &Value, claims: &[&str], path: &Path, rule: fn(&str, &Path) -> ErrorList) -> ErrorList {
    let mut errors = ErrorList::new();
    let (limits_path, requests_path) = (path.child("limits"), path.child("requests"));
    let mut huge_pages = false;
    let mut compute = false;
    for (name, value) in entries(resources, "limits") {
        errors.extend(amount(name, value, &limits_path.key(name), rule));
        huge_pages |= is_huge_pages(name);
        compute |= matches!(name.as_str(), "cpu" | "memory");
    }
    for (name, value) in entries(resources, "requests") {
        errors.extend(amount(name, value, &requests_path.key(name), rule));
        huge_pages |= is_huge_pages(name);
        compute |= matches!(name.as_str(), "cpu" | "memory");
        let Some(request) = quantity(value) else { continue };
        match get(resources, "limits").and_then(|limits| get(limits, name)).and_then(quantity) {
            Some(limit) if !can_overcommit(name) && request != limit => errors.push(
                requests_path
                    .invalid(request.canonical(), format!("must be equal to {name} limit of {}", limit.canonical())),
            ),
            Some(limit) if request > limit => errors.push(requests_path.invalid(
                request.canonical(),
                format!("must be less than or equal to {name} limit of {}", limit.canonical()),
            )),
            None if !can_overcommit(name) => {
                errors.push(limits_path.required("Limit must be set for non overcommitable resources"));
            }
            _ => {}
        }
    }
    if huge_pages && !compute {
        errors.push(path.forbidden("HugePages require cpu or memory"));
    }
    errors.extend(claim_references(resources, claims, &path.child("claims")));
    errors
}

/// What is wrong with one amount of one resource.
fn amount(name: &str, value: &Value, path: &Path, rule: fn(&str, &Path) -> ErrorList) -> ErrorList {
    let mut errors = rule(name, path);
    let Some(quantity) = quantity(value) else {
        errors.push(path.invalid(text_or_null(Some(value)), "must be a valid resource quantity"));
        return errors;
    };
    if quantity.is_negative() {
        errors.push(path.invalid(quantity.canonical(), "must be greater than or equal to 0"));
    }
    if is_whole(name) && quantity.nanos() % 1_000_000_000 != 0 {
        errors.push(path.invalid(quantity.canonical(), "must be an integer"));
    }
    if let Some(size) = name.strip_prefix("hugepages-").and_then(|size| Quantity::parse(size).ok()) {
        let amount = quantity.nanos();
        if size.nanos() > 0 && (amount < 0 || amount % size.nanos() != 0) {
            let text = quantity.canonical();
            errors.push(path.invalid(text.as_str(), format!("{text} is not positive integer multiple of {name}")));
        }
    }
    errors
}

/// What is wrong with the name of a resource of a container.
pub fn container_resource(name: &str, path: &Path) -> ErrorList {
    let mut errors: ErrorList = names::qualified_name(name).into_iter().map(|text| path.invalid(name, text)).collect();
    if !errors.is_empty() {
        return errors;
    }
    if name.contains('/') {
        if !is_native(name) && !is_extended(name) {
            errors.push(path.invalid(name, "doesn't follow extended resource name standard"));
        }
        return errors;
    }
    let container = CONTAINER_RESOURCES.contains(&name) || is_huge_pages(name);
    if !container && !QUOTA_RESOURCES.contains(&name) && !name.starts_with("requests.hugepages-") {
        errors.push(path.invalid(name, "must be a standard resource type or fully qualified"));
    }
    if !container {
        errors.push(path.invalid(name, "must be a standard resource for containers"));
    }
    errors
}

/// What is wrong with a pod's overhead: a plain list of amounts.
pub fn amounts(value: &Value, field: &str, path: &Path) -> ErrorList {
    entries(value, field).flat_map(|(name, value)| amount(name, value, &path.key(name), container_resource)).collect()
}

fn claim_references(resources: &Value, claims: &[&str], path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (index, claim) in items(resources, "claims").iter().enumerate() {
        let path = path.index(index);
        let (name, request) = (str_at(claim, "name"), str_at(claim, "request"));
        if name.is_empty() {
            errors.push(path.child("name").required(""));
            continue;
        }
        if seen.contains(&(name, request)) {
            let both = if request.is_empty() { name.to_owned() } else { format!("{name}/{request}") };
            errors.push(path.duplicate(both));
        } else if seen.iter().any(|(other, before)| *other == name && (before.is_empty() || request.is_empty())) {
            errors.push(path.child("name").duplicate(name));
        }
        seen.push((name, request));
        if !claims.contains(&name) {
            errors.push(path.child("name").not_found(name));
        }
    }
    errors
}

/// A quantity, as text or as number.
pub fn quantity(value: &Value) -> Option<Quantity> {
    Quantity::parse(&text_or_null(Some(value))).ok()
}

/// What is wrong with the name of a resource that may be of anything.
pub fn resource_name(name: &str, path: &Path) -> ErrorList {
    let mut errors: ErrorList = names::qualified_name(name).into_iter().map(|text| path.invalid(name, text)).collect();
    let standard = CONTAINER_RESOURCES.contains(&name) || QUOTA_RESOURCES.contains(&name);
    let huge = is_huge_pages(name) || name.starts_with("requests.hugepages-");
    if errors.is_empty() && !name.contains('/') && !standard && !huge {
        errors.push(path.invalid(name, "must be a standard resource type or fully qualified"));
    }
    errors
}

/// Whether quotas know the resource by this name alone.
pub fn is_of_quota(name: &str) -> bool {
    const OTHERS: [&str; 4] = ["storage", "nodes", "volumes", "endpoints"];
    CONTAINER_RESOURCES.contains(&name)
        || (QUOTA_RESOURCES.contains(&name) && !OTHERS.contains(&name))
        || is_huge_pages(name)
        || name.starts_with("requests.hugepages-")
}

/// Whether a resource is a number of things.
pub fn is_counted(name: &str) -> bool {
    const COUNTED: [&str; 9] = [
        "pods",
        "resourcequotas",
        "services",
        "replicationcontrollers",
        "secrets",
        "configmaps",
        "persistentvolumeclaims",
        "services.nodeports",
        "services.loadbalancers",
    ];
    COUNTED.contains(&name) || is_extended(name)
}

/// Whether a resource is pages of some size.
pub fn is_huge_pages(name: &str) -> bool {
    name.starts_with("hugepages-")
}

fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

fn is_extended(name: &str) -> bool {
    !is_native(name) && !name.starts_with("requests.") && names::qualified_name(&format!("requests.{name}")).is_empty()
}

/// Resources that can't be divided.
fn is_whole(name: &str) -> bool {
    is_extended(name) || matches!(name, "pods" | "services" | "replicationcontrollers" | "secrets" | "configmaps")
}

/// Whether more of it may be allowed than is there.
pub fn can_overcommit(name: &str) -> bool {
    is_native(name) && !is_huge_pages(name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn causes(resources: &Value) -> Vec<String> {
        container(resources, &[], &Path::new("r")).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn requests_stay_below_limits() {
        assert_eq!(
            causes(&json!({"limits": {"cpu": "1"}, "requests": {"cpu": "2"}})),
            ["r.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1"]
        );
        assert!(causes(&json!({"limits": {"cpu": "1"}, "requests": {"cpu": "500m"}})).is_empty());
    }

    #[test]
    fn names_are_known_or_qualified() {
        assert_eq!(
            causes(&json!({"requests": {"nope": "1"}})),
            [
                "r.requests[nope]: Invalid value: \"nope\": must be a standard resource type or fully qualified",
                "r.requests[nope]: Invalid value: \"nope\": must be a standard resource for containers"
            ]
        );
    }

    #[test]
    fn extended_resources_are_whole_and_limited() {
        assert_eq!(
            causes(&json!({"requests": {"example.com/gpu": "1"}})),
            ["r.limits: Required value: Limit must be set for non overcommitable resources"]
        );
        assert_eq!(
            causes(&json!({"limits": {"example.com/gpu": "1.5"}})),
            ["r.limits[example.com/gpu]: Invalid value: \"1500m\": must be an integer"]
        );
    }

    #[test]
    fn huge_pages_come_in_pages_and_with_memory() {
        assert_eq!(
            causes(&json!({"limits": {"hugepages-2Mi": "1"}})),
            [
                "r.limits[hugepages-2Mi]: Invalid value: \"1\": 1 is not positive integer multiple of hugepages-2Mi",
                "r: Forbidden: HugePages require cpu or memory"
            ]
        );
    }

    #[test]
    fn nothing_is_negative() {
        assert_eq!(
            causes(&json!({"limits": {"cpu": "-1"}})),
            ["r.limits[cpu]: Invalid value: \"-1\": must be greater than or equal to 0"]
        );
    }
}
