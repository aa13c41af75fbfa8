//! ValidatingAdmissionPolicy and its bindings: rules about requests, written as expressions.

use serde_json::{Value, json};

use super::webhook_configuration::{choice_errors, default_scopes};
use super::{BASE, first_generation, first_without_status, object_at, set_default, update_spec_or_status};
use crate::field::{ErrorList, Path};
use crate::kind::{Part, Strategy};
use crate::validation::json::{get, items, str_at, texts};
use crate::validation::selectors::label_selector;
use crate::validation::{expressions, names, webhook};

/// What is peculiar to ValidatingAdmissionPolicies.
pub const POLICY: Strategy = Strategy {
    default: default_policy,
    prepare_create: first_without_status,
    prepare_update: update_spec_or_status,
    validate: policy_errors,
    validate_update: |new, _, part| if part == Part::Status { ErrorList::new() } else { policy_errors(new) },
    unconditional_update: false,
    ..BASE
};

/// What is peculiar to ValidatingAdmissionPolicyBindings.
pub const BINDING: Strategy = Strategy {
    default: |object| {
        if let Some(resources) = object.get_mut("spec").and_then(|spec| spec.get_mut("matchResources")) {
            default_match(resources);
        }
    },
    prepare_create: first_generation,
    prepare_update: update_spec_or_status,
    validate: binding_errors,
    validate_update: |new, _, _: Part| binding_errors(new),
    unconditional_update: false,
    ..BASE
};

const REASONS: [&str; 3] = ["Forbidden", "Invalid", "RequestEntityTooLarge"];
const ACTIONS: [&str; 3] = ["Audit", "Deny", "Warn"];
const MOST_ANNOTATIONS: usize = 20;
const EMPTY: &str = "validations or auditAnnotations must contain at least one item";

fn default_policy(object: &mut Value) {
    object_at(object, "status");
    let Some(spec) = object_at(object, "spec") else { return };
    set_default(spec, "failurePolicy", "Fail");
    if let Some(constraints) = spec.get_mut("matchConstraints") {
        default_match(constraints);
    }
}

pub(super) fn default_match(resources: &mut Value) {
    let Some(resources) = resources.as_object_mut() else { return };
    set_default(resources, "matchPolicy", "Equivalent");
    set_default(resources, "namespaceSelector", json!({}));
    set_default(resources, "objectSelector", json!({}));
    default_scopes(resources.get_mut("resourceRules"));
    default_scopes(resources.get_mut("excludeResourceRules"));
}

/// Errors of what policies that validate and policies that mutate have in common: failures, parameters, what they are for,
/// conditions and variables.
pub(super) fn shared_errors(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = choice_errors(spec, "failurePolicy", &["Fail", "Ignore"], path);
    if let Some(kind) = get(spec, "paramKind") {
        errors.extend(param_kind_errors(kind, &path.child("paramKind")));
    }
    let field = path.child("matchConstraints");
    match get(spec, "matchConstraints") {
        None => errors.push(field.required("")),
        Some(constraints) => {
            errors.extend(match_errors(constraints, &field));
            if items(constraints, "resourceRules").is_empty() {
                errors.push(field.child("resourceRules").required(""));
            }
        }
    }
    errors.extend(webhook::conditions(spec, &names_without_variables(spec), path));
    errors.extend(variable_errors(spec, &path.child("variables")));
    errors
}

fn policy_errors(object: &Value) -> ErrorList {
    let path = Path::new("spec");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let mut errors = shared_errors(spec, &path);
    let (validations, annotations) = (path.child("validations"), path.child("auditAnnotations"));
    if items(spec, "validations").is_empty() && items(spec, "auditAnnotations").is_empty() {
        errors.push(validations.required(EMPTY));
        errors.push(annotations.required(EMPTY));
    }
    for (index, validation) in items(spec, "validations").iter().enumerate() {
        errors.extend(validation_errors(validation, &names_of(spec), &validations.index(index)));
    }
    errors.extend(annotation_errors(spec, &annotations));
    errors
}

/// The variable that a policy's own variables are fields of.
const VARIABLES: &str = "variables";

/// What a policy's expressions may use: parameters only where it has a kind of them, variables only where it has any.
pub(super) fn names_of(spec: &Value) -> Vec<&'static str> {
    let mut names = names_without_variables(spec);
    if !items(spec, VARIABLES).is_empty() {
        names.push(VARIABLES);
    }
    names
}

fn names_without_variables(spec: &Value) -> Vec<&'static str> {
    let has_parameters = get(spec, "paramKind").is_some();
    let names = expressions::OF_POLICIES.iter().copied();
    names.filter(|name| *name != VARIABLES && (has_parameters || *name != "params")).collect()
}

pub(super) fn param_kind_errors(kind: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let (field, text) = (path.child("apiVersion"), str_at(kind, "apiVersion"));
    let (group, version) = text.split_once('/').unwrap_or(("", text));
    if text.is_empty() {
        errors.push(field.required(""));
    } else if version.contains('/') {
        errors.push(field.invalid(text, format!("unexpected GroupVersion string: {text}")));
    } else {
        let group = if group.is_empty() { Vec::new() } else { names::dns1123_subdomain(group) };
        let wrong = group.into_iter().chain(names::dns1035_label(version));
        errors.extend(wrong.map(|why| field.invalid(text, why)));
    }
    let (field, text) = (path.child("kind"), str_at(kind, "kind"));
    if text.is_empty() {
        errors.push(field.required(""));
    } else {
        let wrong = names::dns1035_label(&text.to_lowercase());
        if !wrong.is_empty() {
            let why = format!("may have mixed case, but should otherwise match: {}", wrong.join(","));
            errors.push(field.invalid(text, why));
        }
    }
    errors
}

pub(super) fn match_errors(resources: &Value, path: &Path) -> ErrorList {
    let mut errors = choice_errors(resources, "matchPolicy", &["Equivalent", "Exact"], path);
    errors.extend(webhook::selectors(resources, path));
    for list in ["resourceRules", "excludeResourceRules"] {
        for (index, rule) in items(resources, list).iter().enumerate() {
            let path = path.child(list).index(index);
            errors.extend(webhook::rule(rule, &path));
            let path = path.child("resourceNames");
            let names: Vec<&str> = texts(rule, "resourceNames").collect();
            for (index, name) in names.iter().enumerate() {
                let path = path.index(index);
                errors.extend(names::path_segment(name).into_iter().map(|why| path.invalid(*name, why)));
                if names[..index].contains(name) {
                    errors.push(path.duplicate(*name));
                }
            }
        }
    }
    errors
}

fn is_identifier(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

pub(super) fn variable_errors(spec: &Value, path: &Path) -> ErrorList {
    let all = items(spec, "variables");
    let mut names = names_without_variables(spec);
    names.push(VARIABLES);
    let mut errors = ErrorList::new();
    for (index, variable) in all.iter().enumerate() {
        let path = path.index(index);
        let (field, name) = (path.child("name"), str_at(variable, "name"));
        if name.is_empty() {
            errors.push(field.required("name is not specified"));
        } else if !is_identifier(name) {
            errors.push(field.invalid(name, "must be a valid CEL identifier"));
        }
        if all[..index].iter().any(|one| str_at(one, "name") == name) {
            errors.push(field.duplicate(name));
        }
        errors.extend(expression_errors(variable, "expression", &[], &names, &path));
    }
    errors
}

/// What is wrong with an expression that must be there.
pub(super) fn expression_errors(owner: &Value, field: &str, types: &[&str], names: &[&str], path: &Path) -> ErrorList {
    let (path, source) = (path.child(field), str_at(owner, field));
    if source.trim().is_empty() {
        return vec![path.required(format!("{field} is not specified"))];
    }
    expressions::errors(source, names, types, &path)
}

fn validation_errors(validation: &Value, names: &[&str], path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let (expression, message) = (str_at(validation, "expression").trim(), str_at(validation, "message"));
    let said = get(validation, "messageExpression").and_then(Value::as_str);
    errors.extend(expression_errors(validation, "expression", &["bool"], names, path));
    match said {
        None => {}
        Some(text) if text.trim().is_empty() => {
            errors.push(path.child("messageExpression").invalid(text, "must be non-empty if specified"));
        }
        Some(_) => errors.extend(expression_errors(validation, "messageExpression", &["string"], names, path)),
    }
    let field = path.child("message");
    if !message.is_empty() && message.trim().is_empty() {
        errors.push(field.invalid(message, "message must be non-empty if specified"));
    } else if message.trim().contains(['\n', '\r']) {
        errors.push(field.invalid(message, "must not contain line breaks"));
    } else if expression.contains(['\n', '\r']) && message.trim().is_empty() {
        errors.push(field.required("message must be specified if expression contains line breaks"));
    }
    errors.extend(choice_errors(validation, "reason", &REASONS, path));
    errors
}

fn annotation_errors(spec: &Value, path: &Path) -> ErrorList {
    let (all, names) = (items(spec, "auditAnnotations"), names_of(spec));
    let mut errors = ErrorList::new();
    if all.len() > MOST_ANNOTATIONS {
        let why = format!("must not have more than {MOST_ANNOTATIONS} auditAnnotations");
        errors.push(path.invalid(spec["auditAnnotations"].clone(), why));
    }
    for (index, annotation) in all.iter().enumerate() {
        let path = path.index(index);
        let key = str_at(annotation, "key");
        if key.is_empty() {
            errors.push(path.child("key").required(""));
        } else {
            errors.extend(names::qualified_name(key).into_iter().map(|why| path.child("key").invalid(key, why)));
            if all[..index].iter().any(|one| str_at(one, "key") == key) {
                errors.push(path.child("key").duplicate(key));
            }
        }
        errors.extend(expression_errors(annotation, "valueExpression", &["string", "null_type"], &names, &path));
    }
    errors
}

fn binding_errors(object: &Value) -> ErrorList {
    let path = Path::new("spec");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let mut errors = ErrorList::new();
    let (field, policy) = (path.child("policyName"), str_at(spec, "policyName"));
    if policy.is_empty() {
        errors.push(field.required(""));
    } else {
        errors.extend(names::dns1123_subdomain(policy).into_iter().map(|why| field.invalid(policy, why)));
    }
    if let Some(reference) = get(spec, "paramRef") {
        errors.extend(param_ref_errors(reference, &path.child("paramRef")));
    }
    if let Some(resources) = get(spec, "matchResources") {
        errors.extend(match_errors(resources, &path.child("matchResources")));
    }
    errors.extend(action_errors(spec, &path.child("validationActions")));
    errors
}

pub(super) fn param_ref_errors(reference: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let (name, selector) = (str_at(reference, "name"), get(reference, "selector"));
    let one_alone = "name and selector are mutually exclusive";
    if !name.is_empty() {
        errors.extend(names::path_segment(name).into_iter().map(|why| path.child("name").invalid(name, why)));
        if selector.is_some() {
            errors.push(path.child("name").forbidden(one_alone));
        }
    }
    if let Some(selector) = selector {
        errors.extend(label_selector(selector, &path.child("selector")));
        if !name.is_empty() {
            errors.push(path.child("selector").forbidden(one_alone));
        }
    } else if name.is_empty() {
        errors.push(path.required("one of name or selector must be specified"));
    }
    let field = path.child("parameterNotFoundAction");
    match str_at(reference, "parameterNotFoundAction") {
        "" => errors.push(field.required("")),
        "Allow" | "Deny" => {}
        other => errors.push(field.not_supported(other, &["Deny", "Allow"])),
    }
    errors
}

fn action_errors(spec: &Value, path: &Path) -> ErrorList {
    let actions: Vec<&str> = texts(spec, "validationActions").collect();
    if actions.is_empty() {
        return vec![path.required("at least one validation action is required")];
    }
    let mut errors = ErrorList::new();
    for (index, action) in actions.iter().enumerate() {
        if !ACTIONS.contains(action) {
            errors.push(path.index(index).not_supported(*action, &ACTIONS));
        }
        if actions[..index].contains(action) {
            errors.push(path.index(index).duplicate(*action));
        }
    }
    if actions.contains(&"Deny") && actions.contains(&"Warn") {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API \
                   response and headers serves no purpose)";
        errors.push(path.invalid(spec["validationActions"].clone(), why));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Value {
        json!({"spec": {"matchConstraints": {"resourceRules": [{"operations": ["CREATE"], "apiGroups": [""],
            "apiVersions": ["v1"], "resources": ["pods"]}]}, "validations": [{"expression": "true"}]}})
    }

    fn paths(errors: ErrorList) -> Vec<String> {
        errors.into_iter().map(|error| error.path).collect()
    }

    #[test]
    fn a_policy_is_completed() {
        let mut object = policy();
        default_policy(&mut object);
        let constraints = &object["spec"]["matchConstraints"];
        assert_eq!((&constraints["matchPolicy"], &constraints["objectSelector"]), (&json!("Equivalent"), &json!({})));
        assert_eq!(constraints["resourceRules"][0]["scope"], "*");
        assert!(policy_errors(&object).is_empty());
    }

    #[test]
    fn a_policy_says_something_about_something() {
        assert_eq!(
            paths(policy_errors(&json!({"spec": {"failurePolicy": "Fail"}}))),
            ["spec.matchConstraints", "spec.validations", "spec.auditAnnotations"]
        );
        let mut object = policy();
        object["spec"]["paramKind"] = json!({"apiVersion": "a/b/c", "kind": ""});
        object["spec"]["validations"][0]["message"] = json!("a\nb");
        assert_eq!(
            paths(policy_errors(&object)),
            ["spec.paramKind.apiVersion", "spec.paramKind.kind", "spec.validations[0].message"]
        );
    }

    #[test]
    fn a_binding_names_its_policy_and_what_follows() {
        let object =
            json!({"spec": {"policyName": "p", "paramRef": {}, "validationActions": ["Deny", "Warn", "Deny"]}});
        assert_eq!(
            paths(binding_errors(&object)),
            [
                "spec.paramRef",
                "spec.paramRef.parameterNotFoundAction",
                "spec.validationActions[2]",
                "spec.validationActions"
            ]
        );
    }
}
