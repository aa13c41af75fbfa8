//! Roles and their bindings: who may do what, in a namespace or everywhere.

use serde_json::{Value, json};

use super::{BASE, object_at, set_default_text};
use crate::field::{ErrorList, Path};
use crate::kind::{Part, Strategy};
use crate::validation::json::{get, items, str_at};
use crate::validation::{names, selectors};

/// What is peculiar to Roles.
pub const ROLE: Strategy =
    Strategy { validate: |object| rules(object, true), validate_update: |new, _, _: Part| rules(new, true), ..COMMON };

/// What is peculiar to ClusterRoles.
pub const CLUSTER_ROLE: Strategy =
    Strategy { validate: cluster_role, validate_update: |new, _, _: Part| cluster_role(new), ..COMMON };

/// What is peculiar to RoleBindings.
pub const ROLE_BINDING: Strategy = Strategy {
    default: default_binding,
    validate: |object| binding(object, true),
    validate_update: |new, old, _: Part| rebinding(new, old, true),
    ..COMMON
};

/// What is peculiar to ClusterRoleBindings.
pub const CLUSTER_ROLE_BINDING: Strategy = Strategy {
    default: default_binding,
    validate: |object| binding(object, false),
    validate_update: |new, old, _: Part| rebinding(new, old, false),
    ..COMMON
};

const COMMON: Strategy = Strategy { validate_name: names::path_segment, create_on_update: true, ..BASE };

const GROUP: &str = "rbac.authorization.k8s.io";

fn default_binding(object: &mut Value) {
    if let Some(role) = object_at(object, "roleRef") {
        set_default_text(role, "apiGroup", GROUP);
    }
    for subject in object.get_mut("subjects").and_then(Value::as_array_mut).into_iter().flatten() {
        let of_group = matches!(str_at(subject, "kind"), "User" | "Group");
        if let Some(subject) = subject.as_object_mut().filter(|_| of_group) {
            set_default_text(subject, "apiGroup", GROUP);
        }
    }
}

fn rules(role: &Value, namespaced: bool) -> ErrorList {
    let path = Path::new("rules");
    items(role, "rules")
        .iter()
        .enumerate()
        .flat_map(|(i, rule)| rule_errors(rule, namespaced, &path.index(i)))
        .collect()
}

fn rule_errors(rule: &Value, namespaced: bool, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let has = |field| !items(rule, field).is_empty();
    if !has("verbs") {
        errors.push(path.child("verbs").required("verbs must contain at least one value"));
    }
    if has("nonResourceURLs") {
        let urls = path.child("nonResourceURLs");
        let shown = rule["nonResourceURLs"].clone();
        if namespaced {
            errors.push(urls.invalid(shown.clone(), "namespaced rules cannot apply to non-resource URLs"));
        }
        if has("apiGroups") || has("resources") || has("resourceNames") {
            errors.push(urls.invalid(shown, "rules cannot apply to both regular resources and non-resource URLs"));
        }
        return errors;
    }
    if !has("apiGroups") {
        errors.push(path.child("apiGroups").required("resource rules must supply at least one api group"));
    }
    if !has("resources") {
        errors.push(path.child("resources").required("resource rules must supply at least one resource"));
    }
    errors
}

fn cluster_role(role: &Value) -> ErrorList {
    let mut errors = rules(role, false);
    let Some(aggregation) = get(role, "aggregationRule") else { return errors };
    let path = Path::new("aggregationRule").child("clusterRoleSelectors");
    let wanted = items(aggregation, "clusterRoleSelectors");
    if wanted.is_empty() {
        errors.push(path.required("at least one clusterRoleSelector required if aggregationRule is non-nil"));
    }
    for (index, selector) in wanted.iter().enumerate() {
        errors.extend(selectors::label_selector(selector, &path.index(index)));
    }
    errors
}

fn binding(object: &Value, namespaced: bool) -> ErrorList {
    let path = Path::new("roleRef");
    let role = object.get("roleRef").unwrap_or(&Value::Null);
    let mut errors = ErrorList::new();
    let group = str_at(role, "apiGroup");
    if group != GROUP {
        errors.push(path.child("apiGroup").not_supported(group, &[GROUP]));
    }
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    if !kinds.contains(&str_at(role, "kind")) {
        errors.push(path.child("kind").not_supported(str_at(role, "kind"), kinds));
    }
    let name = str_at(role, "name");
    if name.is_empty() {
        errors.push(path.child("name").required(""));
    } else {
        errors.extend(names::path_segment(name).into_iter().map(|text| path.child("name").invalid(name, text)));
    }
    let path = Path::new("subjects");
    for (index, subject) in items(object, "subjects").iter().enumerate() {
        errors.extend(subject_errors(subject, namespaced, &path.index(index)));
    }
    errors
}

fn subject_errors(subject: &Value, namespaced: bool, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let (name, group) = (str_at(subject, "name"), str_at(subject, "apiGroup"));
    if name.is_empty() {
        errors.push(path.child("name").required(""));
    }
    let kind = str_at(subject, "kind");
    match kind {
        "ServiceAccount" => {
            if !name.is_empty() {
                let wrong = names::dns1123_subdomain(name);
                errors.extend(wrong.into_iter().map(|text| path.child("name").invalid(name, text)));
            }
            if !group.is_empty() {
                errors.push(path.child("apiGroup").not_supported(group, &[""]));
            }
            if !namespaced && str_at(subject, "namespace").is_empty() {
                errors.push(path.child("namespace").required(""));
            }
        }
        "User" | "Group" => {
            if group != GROUP {
                errors.push(path.child("apiGroup").not_supported(group, &[GROUP]));
            }
        }
        _ => errors.push(path.child("kind").not_supported(kind, &["ServiceAccount", "User", "Group"])),
    }
    errors
}

/// A binding is for the role for which it was made: else whoever may change subjects could change what they may do.
fn rebinding(new: &Value, old: &Value, namespaced: bool) -> ErrorList {
    let mut errors = binding(new, namespaced);
    if new.get("roleRef") != old.get("roleRef") {
        let role = new.get("roleRef").unwrap_or(&Value::Null);
        let field = |name| str_at(role, name);
        let shown = json!({"APIGroup": field("apiGroup"), "Kind": field("kind"), "Name": field("name")});
        errors.push(Path::new("roleRef").invalid(shown, "cannot change roleRef"));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(errors: &ErrorList) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_rule_is_for_resources_or_for_paths() {
        let both = json!({"rules": [{"verbs": ["get"], "resources": ["pods"], "nonResourceURLs": ["/x"]}]});
        assert_eq!(
            texts(&rules(&both, false)),
            ["rules[0].nonResourceURLs: Invalid value: [\"/x\"]: rules cannot apply to both regular resources and \
              non-resource URLs"]
        );
        assert!(rules(&json!({"rules": [{"verbs": ["get"], "nonResourceURLs": ["/x"]}]}), false).is_empty());
        assert_eq!(rules(&json!({"rules": [{}]}), true).len(), 3);
    }

    #[test]
    fn a_role_ref_stays() {
        let old = json!({"roleRef": {"apiGroup": GROUP, "kind": "Role", "name": "a"}});
        let mut new = old.clone();
        new["roleRef"]["name"] = json!("b");
        assert_eq!(
            texts(&rebinding(&new, &old, true)),
            [
                "roleRef: Invalid value: {\"APIGroup\":\"rbac.authorization.k8s.io\",\"Kind\":\"Role\",\"Name\":\"b\"}: cannot \
              change roleRef"
            ]
        );
    }

    #[test]
    fn cluster_bindings_name_cluster_roles_and_say_where_accounts_are() {
        let object = json!({"roleRef": {"apiGroup": GROUP, "kind": "Role", "name": "a"},
            "subjects": [{"kind": "ServiceAccount", "name": "s"}]});
        assert_eq!(
            texts(&binding(&object, false)),
            [
                "roleRef.kind: Unsupported value: \"Role\": supported values: \"ClusterRole\"",
                "subjects[0].namespace: Required value"
            ]
        );
        assert!(binding(&object, true).is_empty());
    }

    #[test]
    fn groups_are_filled_in_for_people_alone() {
        let mut object = json!({"roleRef": {"kind": "Role", "name": "a"},
            "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s"}]});
        default_binding(&mut object);
        assert_eq!(object["roleRef"]["apiGroup"], GROUP);
        assert_eq!(object["subjects"][0]["apiGroup"], GROUP);
        assert_eq!(object["subjects"][1].get("apiGroup"), None);
    }
}
