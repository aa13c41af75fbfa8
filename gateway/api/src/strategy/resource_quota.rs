//! `ResourceQuota`: how much of what a namespace may have.

use serde_json::{Map, Value, json};

use super::{BASE, keep_field, keep_generation, object_at, pod_spec};
use crate::field::{ErrorList, Path};
use crate::kind::{Part, Strategy};
use crate::validation::json::{entries, get, items, map, str_at, texts};
use crate::validation::resources;

/// What is peculiar to `ResourceQuota`s.
pub const STRATEGY: Strategy = Strategy {
    default,
    prepare_create: |object| object["status"] = json!({}),
    prepare_update: |new, old, part| {
        keep_field(new, old, if part == Part::Status { "spec" } else { "status" });
        keep_generation(new, old, part);
    },
    validate,
    validate_update,
    ..BASE
};

/// Scopes, and whether they are about pods alone, about what pods compute with too, or about claims.
const SCOPES: [(&str, Scope); 7] = [
    ("BestEffort", Scope::Pods),
    ("CrossNamespacePodAffinity", Scope::Computing),
    ("NotBestEffort", Scope::Computing),
    ("NotTerminating", Scope::Computing),
    ("PriorityClass", Scope::Computing),
    ("Terminating", Scope::Computing),
    ("VolumeAttributesClass", Scope::Claims),
];

#[derive(Clone, Copy)]
enum Scope {
    Pods,
    Computing,
    Claims,
}

impl Scope {
    fn takes(self, resource: &str) -> bool {
        match self {
            Self::Pods => resource == "pods",
            Self::Computing => matches!(
                resource,
                "pods" | "cpu" | "memory" | "limits.cpu" | "limits.memory" | "requests.cpu" | "requests.memory"
            ),
            Self::Claims => matches!(resource, "persistentvolumeclaims" | "requests.storage"),
        }
    }
}

/// Scopes that exclude each other.
const PAIRS: [[&str; 2]; 2] = [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]];
const UNSUPPORTED: &str = "unsupported scope";
const MISAPPLIED: &str = "unsupported scope applied to resource";

fn default(object: &mut Value) {
    for (part, field) in [("spec", "hard"), ("status", "hard"), ("status", "used")] {
        let Some(part) = object_at(object, part) else { continue };
        for amount in part.get_mut(field).and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut) {
            pod_spec::round_quantity(amount);
        }
        pod_spec::drop_if_empty(part, field);
    }
}

fn validate(object: &Value) -> ErrorList {
    let path = Path::new("spec");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let mut errors = amounts(spec, "hard", &path);
    errors.extend(scopes(spec, &path.child("scopes")));
    errors.extend(scope_selector(spec, &path.child("scopeSelector").child("matchExpressions")));
    errors
}

fn amounts(value: &Value, field: &str, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for (name, amount) in entries(value, field) {
        let path = path.child(field).key(name);
        errors.extend(resources::resource_name(name, &path));
        if !name.contains('/') && !resources::is_of_quota(name) {
            errors.push(path.invalid(name.as_str(), "must be a standard resource for quota"));
        }
        if let Some(quantity) = resources::quantity(amount) {
            if quantity.nanos() < 0 {
                errors.push(path.invalid(quantity.canonical(), "must be greater than or equal to 0"));
            }
            if resources::is_counted(name) && quantity.nanos() % 1_000_000_000 != 0 {
                errors.push(path.invalid(quantity.canonical(), "must be an integer"));
            }
        }
    }
    errors
}

fn scope(name: &str) -> Option<Scope> {
    SCOPES.iter().find(|(known, _)| *known == name).map(|(_, scope)| *scope)
}

/// Standard resources that are limited here, but that the scope isn't about.
fn misapplied(spec: &Value, name: &str) -> usize {
    let resources =
        map(spec, "hard").into_iter().flat_map(Map::keys).filter(|resource| resources::is_of_quota(resource));
    resources.filter(|resource| !scope(name).is_some_and(|scope| scope.takes(resource))).count()
}

fn scopes(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let all = || spec["scopes"].clone();
    for name in texts(spec, "scopes") {
        if scope(name).is_none() {
            errors.push(path.invalid(all(), UNSUPPORTED));
        }
        errors.extend((0..misapplied(spec, name)).map(|_| path.invalid(all(), MISAPPLIED)));
    }
    for pair in PAIRS {
        if pair.iter().all(|name| texts(spec, "scopes").any(|scope| scope == *name)) {
            errors.push(path.invalid(all(), "conflicting scopes"));
        }
    }
    errors
}

fn scope_selector(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let Some(selector) = get(spec, "scopeSelector") else { return errors };
    let requirements = items(selector, "matchExpressions");
    for requirement in requirements {
        let (name, operator) = (str_at(requirement, "scopeName"), str_at(requirement, "operator"));
        if scope(name).is_none() {
            errors.push(path.child("scopeName").invalid(name, UNSUPPORTED));
        }
        errors.extend((0..misapplied(spec, name)).map(|_| path.invalid(selector.clone(), MISAPPLIED)));
        let present = !matches!(name, "PriorityClass" | "VolumeAttributesClass") && scope(name).is_some();
        if present && operator != "Exists" {
            errors.push(path.child("operator").invalid(
                operator,
                "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, \
                 ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or \
                 ResourceQuotaScopeCrossNamespacePodAffinity",
            ));
        }
        let values = items(requirement, "values");
        match operator {
            "In" | "NotIn" if values.is_empty() => errors.push(
                path.child("values")
                    .required("must be at least one value when `operator` is 'In' or 'NotIn' for scope selector"),
            ),
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(path.child("values").invalid(
                Value::from(values),
                "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.push(path.child("operator").invalid(other, "not a valid selector operator")),
        }
    }
    for pair in PAIRS {
        if pair.iter().all(|name| requirements.iter().any(|requirement| str_at(requirement, "scopeName") == *name)) {
            errors.push(path.invalid(Value::from(requirements), "conflicting scopes"));
        }
    }
    errors
}

fn validate_update(new: &Value, old: &Value, part: Part) -> ErrorList {
    if part == Part::Status {
        let (path, status) = (Path::new("status"), new.get("status").unwrap_or(&Value::Null));
        let mut errors = amounts(status, "hard", &path);
        errors.extend(amounts(status, "used", &path));
        return errors;
    }
    let mut errors = validate(new);
    let scopes = |object: &Value| -> std::collections::BTreeSet<String> {
        texts(object.get("spec").unwrap_or(&Value::Null), "scopes").map(str::to_owned).collect()
    };
    if scopes(new) != scopes(old) {
        let shown = new.pointer("/spec/scopes").cloned().unwrap_or_default();
        errors.push(Path::new("spec").child("scopes").invalid(shown, "field is immutable"));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn causes(spec: &Value) -> Vec<String> {
        let mut object = json!({"spec": spec});
        default(&mut object);
        validate(&object).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn amounts_are_of_known_resources() {
        assert!(
            causes(&json!({"hard": {"pods": "5", "requests.cpu": "1500m", "count/jobs.batch": "3",
            "requests.nvidia.com/gpu": "1", "gold.storageclass.storage.k8s.io/requests.storage": "1Gi"}}))
            .is_empty()
        );
        assert_eq!(
            causes(&json!({"hard": {"nope": "1", "pods": "1.5"}})),
            [
                "spec.hard[nope]: Invalid value: \"nope\": must be a standard resource type or fully qualified",
                "spec.hard[nope]: Invalid value: \"nope\": must be a standard resource for quota",
                "spec.hard[pods]: Invalid value: \"1500m\": must be an integer"
            ]
        );
    }

    #[test]
    fn scopes_fit_resources_and_each_other() {
        assert_eq!(
            causes(&json!({"hard": {"secrets": "1"}, "scopes": ["BestEffort"]})),
            ["spec.scopes: Invalid value: [\"BestEffort\"]: unsupported scope applied to resource"]
        );
        assert_eq!(
            causes(&json!({"hard": {"pods": "1"}, "scopes": ["BestEffort", "NotBestEffort"]})),
            ["spec.scopes: Invalid value: [\"BestEffort\",\"NotBestEffort\"]: conflicting scopes"]
        );
        assert_eq!(
            causes(&json!({"hard": {"pods": "1"},
                "scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In"}]}})),
            [
                "spec.scopeSelector.matchExpressions.values: Required value: must be at least one value when `operator` is \
              'In' or 'NotIn' for scope selector"
            ]
        );
    }
}
