//! The roles and bindings that every cluster has. At each start what is missing of them is added, as Kubernetes does, unless
//! an object says that it wants to be left alone.

use std::sync::{Arc, LazyLock};

use carob_api::status::Status;
use serde_json::{Map, Value, json};

use super::escalation::GROUP;
use super::rules::{Rule, uncovered};
use crate::Server;
use crate::bootstrap::{self, Existing};
use crate::objects::text;

/// With the value `false` an object is left alone.
const AUTOUPDATE: &str = "/metadata/annotations/rbac.authorization.kubernetes.io~1autoupdate";

/// What a fresh Kubernetes has: lists of roles and bindings.
static DATA: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../data/bootstrap-rbac.json")).expect("a file of this repository")
});

/// List in the data, resource, kind.
const LISTS: [(&str, &str, &str); 4] = [
    ("clusterRoles", "clusterroles", "ClusterRole"),
    ("clusterRoleBindings", "clusterrolebindings", "ClusterRoleBinding"),
    ("roles", "roles", "Role"),
    ("roleBindings", "rolebindings", "RoleBinding"),
];

/// The rules of a ClusterRole that every cluster has.
pub(super) fn rules_of(cluster_role: &str) -> Vec<Rule> {
    let roles = DATA["clusterRoles"].as_array().into_iter().flatten();
    let role = roles.into_iter().find(|role| role["name"] == cluster_role);
    role.map(rules).unwrap_or_default()
}

fn rules(role: &Value) -> Vec<Rule> {
    let rules = role.get("rules").cloned().unwrap_or(Value::Null);
    serde_json::from_value::<Option<Vec<Rule>>>(rules).ok().flatten().unwrap_or_default()
}

/// Makes what is missing.
pub(crate) async fn reconcile(server: &Arc<Server>) -> Result<(), Status> {
    for (list, plural, kind) in LISTS {
        let wanted = DATA[list].as_array().into_iter().flatten().map(|entry| object(kind, entry)).collect();
        bootstrap::ensure(server, (GROUP, "v1", plural), wanted, settle).await?;
    }
    Ok(())
}

/// An entry of the data as an object.
fn object(kind: &str, entry: &Value) -> Value {
    let mut object = json!({ "kind": kind, "apiVersion": format!("{GROUP}/v1"), "metadata": {} });
    for (field, value) in entry.as_object().into_iter().flatten() {
        match field.as_str() {
            "name" | "namespace" | "labels" | "annotations" => object["metadata"][field] = value.clone(),
            _ => object[field] = value.clone(),
        }
    }
    object
}

/// What is to be done with an object that is there already.
fn settle(found: &Value, wanted: &Value) -> Existing {
    if text(found, AUTOUPDATE) == "false" {
        return Existing::Keep;
    }
    // A binding's role cannot be changed.
    if wanted.get("roleRef") != found.get("roleRef") {
        return Existing::Replace;
    }
    let mut new = found.clone();
    for field in ["labels", "annotations"] {
        add_missing(&mut new["metadata"], field, &wanted["metadata"][field]);
    }
    if wanted.get("aggregationRule").is_some() {
        add_selectors(&mut new, wanted);
    } else if wanted.get("rules").is_some() {
        let lacking = uncovered(&rules(found), &rules(wanted));
        if !lacking.is_empty() {
            extend(&mut new, "rules", lacking.iter().map(to_value));
        }
    }
    if let Some(subjects) = wanted.get("subjects").and_then(Value::as_array) {
        let there = found.get("subjects").and_then(Value::as_array).cloned().unwrap_or_default();
        let lacking: Vec<Value> = subjects.iter().filter(|subject| !there.contains(subject)).cloned().collect();
        if !lacking.is_empty() {
            extend(&mut new, "subjects", lacking.into_iter());
        }
    }
    if new == *found { Existing::Keep } else { Existing::Change(new) }
}

fn add_missing(metadata: &mut Value, field: &str, wanted: &Value) {
    for (key, value) in wanted.as_object().into_iter().flatten() {
        if metadata[field].get(key).is_none() {
            metadata[field][key] = value.clone();
        }
    }
}

fn add_selectors(new: &mut Value, wanted: &Value) {
    const SELECTORS: &str = "/aggregationRule/clusterRoleSelectors";
    let wanted = wanted.pointer(SELECTORS).and_then(Value::as_array).cloned().unwrap_or_default();
    let there = new.pointer(SELECTORS).and_then(Value::as_array).cloned().unwrap_or_default();
    let lacking: Vec<Value> = wanted.into_iter().filter(|selector| !there.contains(selector)).collect();
    if !lacking.is_empty() {
        new["aggregationRule"]["clusterRoleSelectors"] = there.into_iter().chain(lacking).collect();
    }
}

fn extend(object: &mut Value, field: &str, more: impl Iterator<Item = Value>) {
    match object.get_mut(field).and_then(Value::as_array_mut) {
        Some(list) => list.extend(more),
        None => object[field] = more.collect(),
    }
}

fn to_value(rule: &Rule) -> Value {
    let fields = [
        ("verbs", &rule.verbs),
        ("apiGroups", &rule.api_groups),
        ("resources", &rule.resources),
        ("resourceNames", &rule.resource_names),
        ("nonResourceURLs", &rule.paths),
    ];
    let fields = fields.into_iter().filter(|(_, values)| !values.is_empty());
    Value::Object(fields.map(|(name, values)| (name.to_owned(), json!(values))).collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Value {
        let admin = DATA["clusterRoles"].as_array().expect("a list").iter().find(|role| role["name"] == "system:node");
        object("ClusterRole", admin.expect("a role"))
    }

    #[test]
    fn a_role_that_lost_a_rule_gets_it_back_and_keeps_what_was_added() {
        let mut found = wanted();
        let rules = found["rules"].as_array_mut().expect("rules");
        let lost = rules.remove(0);
        rules.push(json!({"verbs": ["get"], "apiGroups": ["example.com"], "resources": ["things"]}));
        let Existing::Change(new) = settle(&found, &wanted()) else { panic!("kept") };
        let all = super::rules(&new);
        let lost: Rule = serde_json::from_value(lost).expect("a rule");
        assert!(uncovered(&all, &[lost]).is_empty());
        assert!(new["rules"].as_array().expect("rules").iter().any(|rule| rule["apiGroups"][0] == "example.com"));
        assert!(matches!(settle(&new, &wanted()), Existing::Keep));
    }

    #[test]
    fn an_object_that_wants_to_be_left_alone_is() {
        let mut found = wanted();
        found["rules"] = json!([]);
        found["metadata"]["annotations"]["rbac.authorization.kubernetes.io/autoupdate"] = "false".into();
        assert!(matches!(settle(&found, &wanted()), Existing::Keep));
    }

    #[test]
    fn a_binding_to_another_role_is_replaced() {
        let entry = &DATA["clusterRoleBindings"][0];
        let wanted = object("ClusterRoleBinding", entry);
        let mut found = wanted.clone();
        found["roleRef"]["name"] = "other".into();
        assert!(matches!(settle(&found, &wanted), Existing::Replace));
        let mut found = wanted.clone();
        found["subjects"] = json!([]);
        let Existing::Change(new) = settle(&found, &wanted) else { panic!("kept") };
        assert_eq!(new["subjects"], wanted["subjects"]);
    }
}
