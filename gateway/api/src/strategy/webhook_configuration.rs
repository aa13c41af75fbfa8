//! MutatingWebhookConfiguration and ValidatingWebhookConfiguration: who is asked about requests.

use serde_json::{Value, json};

use super::{BASE, bump_generation, first_generation, set_default};
use crate::field::{ErrorList, Path};
use crate::kind::{Part, Strategy};
use crate::validation::json::{get, int, items, str_at, texts};
use crate::validation::{expressions, names, webhook};

/// What is peculiar to MutatingWebhookConfigurations.
pub const MUTATING: Strategy = Strategy {
    default: |object| default_webhooks(object, true),
    validate: |object| webhook_errors(object, true),
    validate_update: |new, _, _: Part| webhook_errors(new, true),
    ..VALIDATING
};

/// What is peculiar to ValidatingWebhookConfigurations.
pub const VALIDATING: Strategy = Strategy {
    default: |object| default_webhooks(object, false),
    prepare_create: first_generation,
    prepare_update: |new, old, _| {
        let changed = get(new, "webhooks") != get(old, "webhooks");
        bump_generation(new, old, changed);
    },
    validate: |object| webhook_errors(object, false),
    validate_update: |new, _, _: Part| webhook_errors(new, false),
    unconditional_update: false,
    ..BASE
};

const FAILURE_POLICIES: [&str; 2] = ["Fail", "Ignore"];
const MATCH_POLICIES: [&str; 2] = ["Equivalent", "Exact"];
const SIDE_EFFECTS: [&str; 2] = ["None", "NoneOnDryRun"];
const REINVOCATION_POLICIES: [&str; 2] = ["IfNeeded", "Never"];
/// Versions of AdmissionReview that the server speaks.
const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];

fn default_webhooks(object: &mut Value, mutating: bool) {
    for hook in object.get_mut("webhooks").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(hook) = hook.as_object_mut() else { continue };
        set_default(hook, "failurePolicy", "Fail");
        set_default(hook, "matchPolicy", "Equivalent");
        set_default(hook, "namespaceSelector", json!({}));
        set_default(hook, "objectSelector", json!({}));
        set_default(hook, "timeoutSeconds", 10);
        if mutating {
            set_default(hook, "reinvocationPolicy", "Never");
        }
        let service = hook.get_mut("clientConfig").and_then(|config| config.get_mut("service"));
        if let Some(service) = service.and_then(Value::as_object_mut) {
            set_default(service, "port", 443);
        }
        default_scopes(hook.get_mut("rules"));
    }
}

/// Rules are about objects in namespaces and others alike.
pub(super) fn default_scopes(rules: Option<&mut Value>) {
    for rule in rules.and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(rule) = rule.as_object_mut() {
            set_default(rule, "scope", "*");
        }
    }
}

fn webhook_errors(object: &Value, mutating: bool) -> ErrorList {
    let path = Path::new("webhooks");
    let hooks = items(object, "webhooks");
    let mut errors = ErrorList::new();
    for (index, hook) in hooks.iter().enumerate() {
        let path = path.index(index);
        errors.extend(one_errors(hook, mutating, &path));
        errors.extend(version_errors(hook, &path.child("admissionReviewVersions")));
        let name = str_at(hook, "name");
        if !name.is_empty() && hooks[..index].iter().any(|one| str_at(one, "name") == name) {
            errors.push(path.child("name").duplicate(name));
        }
    }
    errors
}

fn one_errors(hook: &Value, mutating: bool, path: &Path) -> ErrorList {
    let mut errors = name_errors(str_at(hook, "name"), &path.child("name"));
    for (index, rule) in items(hook, "rules").iter().enumerate() {
        errors.extend(webhook::rule(rule, &path.child("rules").index(index)));
    }
    for (field, allowed) in [("failurePolicy", &FAILURE_POLICIES), ("matchPolicy", &MATCH_POLICIES)] {
        errors.extend(choice_errors(hook, field, allowed, path));
    }
    if get(hook, "sideEffects").is_none() {
        let choices = SIDE_EFFECTS.join(", ");
        errors.push(path.child("sideEffects").required(format!("must specify one of {choices}")));
    }
    errors.extend(choice_errors(hook, "sideEffects", &SIDE_EFFECTS, path));
    if let Some(seconds) = int(hook, "timeoutSeconds").filter(|seconds| !(1..=30).contains(seconds)) {
        let why = "the timeout value must be between 1 and 30 seconds";
        errors.push(path.child("timeoutSeconds").invalid(seconds, why));
    }
    errors.extend(webhook::selectors(hook, path));
    if mutating {
        errors.extend(choice_errors(hook, "reinvocationPolicy", &REINVOCATION_POLICIES, path));
    }
    errors.extend(webhook::client(hook.get("clientConfig").unwrap_or(&Value::Null), &path.child("clientConfig")));
    errors.extend(webhook::conditions(hook, expressions::OF_REQUESTS, path));
    errors
}

/// A field that, if it is there, has one of a few values.
pub(super) fn choice_errors(value: &Value, field: &str, allowed: &[&str], path: &Path) -> ErrorList {
    match get(value, field).and_then(Value::as_str) {
        Some(text) if !allowed.contains(&text) => vec![path.child(field).not_supported(text, allowed)],
        _ => ErrorList::new(),
    }
}

/// A webhook's name is a domain of three labels at least.
fn name_errors(name: &str, path: &Path) -> ErrorList {
    if name.is_empty() {
        return vec![path.required("")];
    }
    let wrong = names::dns1123_subdomain(name);
    if !wrong.is_empty() {
        return vec![path.invalid(name, wrong.join(","))];
    }
    if name.split('.').count() < 3 {
        return vec![path.invalid(name, "should be a domain with at least three segments separated by dots")];
    }
    ErrorList::new()
}

fn version_errors(hook: &Value, path: &Path) -> ErrorList {
    let known = REVIEW_VERSIONS.join(", ");
    let versions: Vec<&str> = texts(hook, "admissionReviewVersions").collect();
    if versions.is_empty() {
        return vec![path.required(format!("must specify one of {known}"))];
    }
    let mut errors = ErrorList::new();
    for (index, version) in versions.iter().enumerate() {
        if versions[..index].contains(version) {
            errors.push(path.index(index).invalid(*version, "duplicate version"));
            continue;
        }
        let wrong = names::dns1035_label(version).into_iter();
        errors.extend(wrong.map(|why| path.index(index).invalid(*version, why)));
    }
    if !versions.iter().any(|version| REVIEW_VERSIONS.contains(version)) {
        let shown = hook["admissionReviewVersions"].clone();
        errors.push(path.invalid(shown, format!("must include at least one of {known}")));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook() -> Value {
        json!({"name": "a.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "clientConfig": {"service": {"name": "s", "namespace": "n"}},
            "rules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"]}]})
    }

    #[test]
    fn a_webhook_is_completed() {
        let mut object = json!({"webhooks": [hook()]});
        default_webhooks(&mut object, true);
        let hook = &object["webhooks"][0];
        assert_eq!(hook["reinvocationPolicy"], "Never");
        assert_eq!((&hook["rules"][0]["scope"], &hook["clientConfig"]["service"]["port"]), (&json!("*"), &json!(443)));
        assert!(webhook_errors(&object, true).is_empty());
    }

    #[test]
    fn names_are_domains_and_no_two_are_alike() {
        let object = json!({"webhooks": [hook(), hook()]});
        let errors: Vec<String> = webhook_errors(&object, false).iter().map(ToString::to_string).collect();
        assert_eq!(errors, ["webhooks[1].name: Duplicate value: \"a.example.com\""]);
        assert!(name_errors("a.b", &Path::new("n"))[0].detail.contains("at least three segments"));
    }

    #[test]
    fn a_version_that_is_spoken_is_among_them() {
        let mut one = hook();
        one["admissionReviewVersions"] = json!(["v9"]);
        let errors = version_errors(&one, &Path::new("v"));
        assert_eq!(errors[0].detail, "must include at least one of v1, v1beta1");
    }
}
