//! Pod templates and the numbers that workloads have in common; scale, eviction, binding.

use serde_json::Value;

use crate::field::{ErrorList, Path};
use crate::validation::json::{dig, get, int, items, str_at, texts};
use crate::validation::metadata::{self, non_negative};
use crate::validation::selectors::{is_empty, label_selector, selects};
use crate::validation::{go, names, pod};

/// What is wrong with the template in the spec of a workload at `path`.
pub fn template(spec: &Value, path: &Path) -> ErrorList {
    let path = path.child("template");
    let template = spec.get("template").unwrap_or(&Value::Null);
    let metadata = template.get("metadata").unwrap_or(&Value::Null);
    let field = path.child("metadata");
    let mut errors = metadata::labels(metadata, "labels", &field.child("labels"));
    errors.extend(metadata::annotations(metadata, &field.child("annotations")));
    errors.extend(pod::annotations(metadata, &field.child("annotations")));
    let pod_spec = template.get("spec").unwrap_or(&Value::Null);
    errors.extend(pod::spec(pod_spec, metadata, &path.child("spec")));
    if !items(pod_spec, "ephemeralContainers").is_empty() {
        let why = "ephemeral containers not allowed in pod template";
        errors.push(path.child("spec").child("ephemeralContainers").forbidden(why));
    }
    errors
}

/// What is wrong with the selector of a Deployment or ReplicaSet, with the labels it should select, and with a template
/// whose pods run for ever.
pub fn selected(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let field = path.child("selector");
    let selector = get(spec, "selector");
    match selector {
        None => errors.push(field.required("")),
        Some(selector) => {
            errors.extend(label_selector(selector, &field));
            if is_empty(selector) {
                errors.push(field.invalid(go::selector(selector), "empty selector is invalid for deployment"));
            }
        }
    }
    let labels = dig(spec, &["template", "metadata", "labels"]);
    match selects(selector, labels) {
        None => {
            errors.push(field.invalid(selector.map_or(Value::Null, go::selector), "invalid label selector"));
            return errors;
        }
        Some(false) => errors.push(unselected(labels, path)),
        Some(true) => {}
    }
    errors.extend(template(spec, path));
    errors.extend(runs_for_ever(spec, "ReplicaSet", path));
    errors
}

/// What is wrong with a template whose pods run for ever, as those of an `owner` do.
pub fn runs_for_ever(spec: &Value, owner: &str, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let pods = path.child("template").child("spec");
    let policy = dig(spec, &["template", "spec", "restartPolicy"]).and_then(Value::as_str).unwrap_or("");
    if policy != "Always" {
        // One that is unknown at all has been reported already.
        errors.push(pods.child("restartPolicy").not_supported(policy, &["Always"]));
    }
    if dig(spec, &["template", "spec", "activeDeadlineSeconds"]).is_some() {
        let why = format!("activeDeadlineSeconds in {owner} is not Supported");
        errors.push(pods.child("activeDeadlineSeconds").forbidden(why));
    }
    errors
}

/// The error for labels of a template that the selector beside it doesn't select.
pub fn unselected(labels: Option<&Value>, path: &Path) -> crate::field::FieldError {
    path.child("template")
        .child("metadata")
        .child("labels")
        .invalid(labels.map_or(Value::Null, go::sorted), "`selector` does not match template `labels`")
}

/// Counts of a status: none negative, and none of `bounded` above the replicas.
pub fn counts(object: &Value, counted: &[&str], bounded: &[&str]) -> ErrorList {
    let path = Path::new("status");
    let status = object.get("status").unwrap_or(&Value::Null);
    let mut errors: ErrorList = counted.iter().flat_map(|field| non_negative(status, field, &path)).collect();
    let count = |field: &str| int(status, field).unwrap_or(0);
    for field in bounded {
        if count(field) > count("replicas") {
            errors.push(path.child(field).invalid(count(field), "cannot be greater than status.replicas"));
        }
    }
    if count("availableReplicas") > count("readyReplicas") {
        let field = path.child("availableReplicas");
        errors.push(field.invalid(count("availableReplicas"), "cannot be greater than readyReplicas"));
    }
    errors
}

/// What is wrong with a `Scale`.
pub fn scale(scale: &Value) -> ErrorList {
    non_negative(scale.get("spec").unwrap_or(&Value::Null), "replicas", &Path::new("spec"))
}

/// What is wrong with a `Binding`: it names a node.
pub fn binding(binding: &Value) -> ErrorList {
    let path = Path::new("target");
    let target = binding.get("target").unwrap_or(&Value::Null);
    let mut errors = ErrorList::new();
    let kind = str_at(target, "kind");
    if !matches!(kind, "" | "Node") {
        errors.push(path.child("kind").not_supported(kind, &["Node", "<empty>"]));
    }
    let name = str_at(target, "name");
    if name.is_empty() {
        errors.push(path.child("name").required(""));
    } else {
        errors.extend(names::dns1123_subdomain(name).into_iter().map(|text| path.child("name").invalid(name, text)));
    }
    errors
}

/// What is wrong with an `Eviction`: with the options of the delete that it is.
pub fn eviction(eviction: &Value) -> ErrorList {
    get(eviction, "deleteOptions").map_or_else(ErrorList::new, delete_options)
}

/// What is wrong with `DeleteOptions`.
pub fn delete_options(options: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let policy = get(options, "propagationPolicy").and_then(Value::as_str);
    let path = Path::new("propagationPolicy");
    if policy.is_some() && get(options, "orphanDependents").is_some() {
        errors.push(path.invalid(policy.unwrap_or(""), "orphanDependents and deletionPropagation cannot be both set"));
    }
    if let Some(policy) = policy.filter(|policy| !matches!(*policy, "Foreground" | "Background" | "Orphan")) {
        errors.push(path.not_supported(policy, &["Foreground", "Background", "Orphan", "nil"]));
    }
    if texts(options, "dryRun").any(|value| value != "All") {
        errors.push(Path::new("dryRun").not_supported(options["dryRun"].clone(), &["All"]));
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts_of(errors: &ErrorList) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_binding_names_a_node() {
        assert_eq!(
            texts_of(&binding(&json!({"target": {"kind": "Pod", "name": "x"}}))),
            ["target.kind: Unsupported value: \"Pod\": supported values: \"Node\", \"<empty>\""]
        );
        assert_eq!(texts_of(&binding(&json!({"target": {"name": ""}}))), ["target.name: Required value"]);
    }

    #[test]
    fn a_scale_is_not_negative() {
        assert_eq!(
            texts_of(&scale(&json!({"spec": {"replicas": -1}}))),
            ["spec.replicas: Invalid value: -1: must be greater than or equal to 0"]
        );
    }

    #[test]
    fn counts_are_bounded_by_the_replicas() {
        let object = json!({"status": {"replicas": -1, "observedGeneration": -5}});
        let paths: Vec<String> = counts(
            &object,
            &["observedGeneration", "replicas"],
            &["updatedReplicas", "readyReplicas", "availableReplicas"],
        )
        .into_iter()
        .map(|error| error.path)
        .collect();
        assert_eq!(
            paths,
            [
                "status.observedGeneration",
                "status.replicas",
                "status.updatedReplicas",
                "status.readyReplicas",
                "status.availableReplicas"
            ]
        );
    }

    #[test]
    fn deletes_propagate_in_known_ways() {
        assert!(delete_options(&json!({"propagationPolicy": "Orphan"})).is_empty());
        assert_eq!(delete_options(&json!({"propagationPolicy": "Up"}))[0].path, "propagationPolicy");
    }
}
