//! MutatingAdmissionPolicy and its bindings: changes of what is asked for, written as expressions.

use serde_json::Value;

use super::admission_policy::{
    default_match, expression_errors, match_errors, names_of, param_ref_errors, shared_errors,
};
use super::webhook_configuration::choice_errors;
use super::{BASE, first_generation, object_at, set_default, set_default_text, update_spec_or_status};
use crate::field::{ErrorList, Path};
use crate::kind::{Part, Strategy};
use crate::validation::json::{get, items, str_at};
use crate::validation::names;

/// What is peculiar to MutatingAdmissionPolicies.
pub const POLICY: Strategy = Strategy {
    default: default_policy,
    prepare_create: first_generation,
    prepare_update: update_spec_or_status,
    validate: policy_errors,
    validate_update: |new, _, _: Part| policy_errors(new),
    unconditional_update: false,
    ..BASE
};

/// What is peculiar to MutatingAdmissionPolicyBindings.
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

/// Types of patches, the field of each, and that of the other.
const PATCHES: [(&str, &str, &str); 2] =
    [("ApplyConfiguration", "applyConfiguration", "jsonPatch"), ("JSONPatch", "jsonPatch", "applyConfiguration")];

fn default_policy(object: &mut Value) {
    let Some(spec) = object_at(object, "spec") else { return };
    set_default(spec, "failurePolicy", "Fail");
    set_default_text(spec, "reinvocationPolicy", "Never");
    if let Some(constraints) = spec.get_mut("matchConstraints") {
        default_match(constraints);
    }
}

fn policy_errors(object: &Value) -> ErrorList {
    let path = Path::new("spec");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let mut errors = shared_errors(spec, &path);
    let field = path.child("mutations");
    if items(spec, "mutations").is_empty() {
        errors.push(field.required("mutations must contain at least one item"));
    }
    for (index, mutation) in items(spec, "mutations").iter().enumerate() {
        errors.extend(mutation_errors(mutation, &names_of(spec), &field.index(index)));
    }
    if str_at(spec, "reinvocationPolicy").is_empty() {
        errors.push(path.child("reinvocationPolicy").required(""));
    } else {
        errors.extend(choice_errors(spec, "reinvocationPolicy", &["IfNeeded", "Never"], &path));
    }
    errors
}

fn mutation_errors(mutation: &Value, names: &[&str], path: &Path) -> ErrorList {
    let (field, form) = (path.child("patchType"), str_at(mutation, "patchType"));
    let Some((_, own, other)) = PATCHES.iter().find(|(known, ..)| *known == form) else {
        let known = PATCHES.map(|(known, ..)| known);
        return vec![if form.is_empty() { field.required("") } else { field.not_supported(form, &known) }];
    };
    let mut errors = ErrorList::new();
    if get(mutation, other).is_some() {
        errors.push(path.child(other).forbidden(format!("may not be set when patchType is {form}")));
    }
    match get(mutation, own) {
        None => errors.push(path.child(own).required(format!("must be specified when patchType is {form}"))),
        Some(patch) => errors.extend(expression_errors(patch, "expression", &[], names, &path.child(own))),
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
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn paths(mutations: &Value) -> Vec<String> {
        let mut object = json!({"spec": {"mutations": mutations, "matchConstraints": {"resourceRules": [
            {"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]}}});
        default_policy(&mut object);
        policy_errors(&object).into_iter().map(|error| error.path).collect()
    }

    #[test]
    fn a_mutation_is_of_one_form_and_has_its_expression() {
        let apply = json!({"expression": "Object{metadata: Object.metadata{labels: {'a': 'b'}}}"});
        let patch = json!({"expression": "[JSONPatch{op: 'add', path: '/a', value: 1}]"});
        assert!(
            paths(&json!([{"patchType": "ApplyConfiguration", "applyConfiguration": apply},
            {"patchType": "JSONPatch", "jsonPatch": patch}]))
            .is_empty()
        );
        assert_eq!(paths(&json!([])), ["spec.mutations"]);
        assert_eq!(
            paths(&json!([{}, {"patchType": "X"}, {"patchType": "JSONPatch", "applyConfiguration": apply},
                {"patchType": "JSONPatch", "jsonPatch": {"expression": "nope"}}])),
            [
                "spec.mutations[0].patchType",
                "spec.mutations[1].patchType",
                "spec.mutations[2].applyConfiguration",
                "spec.mutations[2].jsonPatch",
                "spec.mutations[3].jsonPatch.expression"
            ]
        );
    }
}
