//! Where a pod may run: affinity, tolerations and taints, topology spread, gates.

use std::collections::{BTreeSet, HashMap};

use serde_json::Value;

use crate::field::{ErrorList, Path};
use crate::validation::json::{get, int, items, str_at, texts};
use crate::validation::metadata::label_key;
use crate::validation::names;
use crate::validation::selectors::label_selector;

const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// What is wrong with the affinity of a pod.
pub fn affinity(spec: &Value, path: &Path) -> ErrorList {
    let Some(affinity) = get(spec, "affinity") else { return ErrorList::new() };
    let path = path.child("affinity");
    let mut errors = ErrorList::new();
    if let Some(node) = get(affinity, "nodeAffinity") {
        let path = path.child("nodeAffinity");
        if let Some(selector) = get(node, REQUIRED) {
            errors.extend(node_selector(selector, &path.child(REQUIRED)));
        }
        for (index, preferred) in items(node, PREFERRED).iter().enumerate() {
            let path = path.child(PREFERRED).index(index);
            errors.extend(weight(preferred, &path));
            let term = preferred.get("preference").unwrap_or(&Value::Null);
            errors.extend(node_selector_term(term, &path.child("preference")));
        }
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(pods) = get(affinity, kind) else { continue };
        let path = path.child(kind);
        for (index, term) in items(pods, REQUIRED).iter().enumerate() {
            errors.extend(pod_term(term, &path.child(REQUIRED).index(index)));
        }
        for (index, preferred) in items(pods, PREFERRED).iter().enumerate() {
            let path = path.child(PREFERRED).index(index);
            errors.extend(weight(preferred, &path));
            let term = preferred.get("podAffinityTerm").unwrap_or(&Value::Null);
            errors.extend(pod_term(term, &path.child("podAffinityTerm")));
        }
    }
    errors
}

fn weight(preferred: &Value, path: &Path) -> ErrorList {
    let weight = int(preferred, "weight").unwrap_or(0);
    if (1..=100).contains(&weight) {
        return ErrorList::new();
    }
    vec![path.child("weight").invalid(weight, "must be in the range 1-100")]
}

/// What is wrong with a selector of nodes: terms of which one is to fit.
pub fn node_selector(selector: &Value, path: &Path) -> ErrorList {
    let path = path.child("nodeSelectorTerms");
    let terms = items(selector, "nodeSelectorTerms");
    if terms.is_empty() {
        return vec![path.required("must have at least one node selector term")];
    }
    terms.iter().enumerate().flat_map(|(index, term)| node_selector_term(term, &path.index(index))).collect()
}

fn node_selector_term(term: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for (index, requirement) in items(term, "matchExpressions").iter().enumerate() {
        let path = path.child("matchExpressions").index(index);
        let values = path.child("values");
        let count = items(requirement, "values").len();
        match str_at(requirement, "operator") {
            "In" | "NotIn" => {
                if count == 0 {
                    errors.push(values.required("must be specified when `operator` is 'In' or 'NotIn'"));
                }
            }
            "Exists" | "DoesNotExist" => {
                if count > 0 {
                    errors.push(values.forbidden("may not be specified when `operator` is 'Exists' or 'DoesNotExist'"));
                }
            }
            "Gt" | "Lt" => {
                if count != 1 {
                    errors.push(values.required("must be specified single value when `operator` is 'Lt' or 'Gt'"));
                }
            }
            other => errors.push(path.child("operator").invalid(other, "not a valid selector operator")),
        }
        errors.extend(label_key(str_at(requirement, "key"), &path.child("key")));
        for (index, value) in texts(requirement, "values").enumerate() {
            let field = values.index(index);
            errors.extend(names::label_value(value).into_iter().map(|text| field.invalid(value, text)));
        }
    }
    for (index, requirement) in items(term, "matchFields").iter().enumerate() {
        errors.extend(node_field(requirement, &path.child("matchFields").index(index)));
    }
    errors
}

fn node_field(requirement: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    match str_at(requirement, "operator") {
        "In" | "NotIn" => {
            if items(requirement, "values").len() != 1 {
                let why = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                errors.push(path.child("values").required(why));
            }
        }
        other => errors.push(path.child("operator").invalid(other, "not a valid selector operator")),
    }
    let key = str_at(requirement, "key");
    if key != "metadata.name" {
        errors.push(path.child("key").invalid(key, "not a valid field selector key"));
        return errors;
    }
    for (index, value) in texts(requirement, "values").enumerate() {
        let field = path.child("values").index(index);
        errors.extend(names::dns1123_subdomain(value).into_iter().map(|text| field.invalid(value, text)));
    }
    errors
}

fn pod_term(term: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for field in ["labelSelector", "namespaceSelector"] {
        if let Some(selector) = get(term, field) {
            errors.extend(label_selector(selector, &path.child(field)));
        }
    }
    for namespace in texts(term, "namespaces") {
        let field = path.child("namespace");
        errors.extend(names::dns1123_label(namespace).into_iter().map(|text| field.invalid(namespace, text)));
    }
    for field in ["matchLabelKeys", "mismatchLabelKeys"] {
        errors.extend(match_label_keys(term, field, path));
    }
    let key = str_at(term, "topologyKey");
    if key.is_empty() {
        errors.push(path.child("topologyKey").required("can not be empty"));
    }
    errors.extend(label_key(key, &path.child("topologyKey")));
    errors
}

fn match_label_keys(term: &Value, field: &str, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    if !items(term, field).is_empty() && get(term, "labelSelector").is_none() {
        errors.push(path.child(field).forbidden("must not be specified when labelSelector is not set"));
    }
    for (index, key) in texts(term, field).enumerate() {
        errors.extend(label_key(key, &path.child(field).index(index)));
    }
    errors
}

/// What is wrong with the tolerations of a pod.
pub fn tolerations(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for (index, toleration) in items(spec, "tolerations").iter().enumerate() {
        let path = path.index(index);
        let [key, operator, value, effect] = ["key", "operator", "value", "effect"].map(|f| str_at(toleration, f));
        if key.is_empty() {
            if operator != "Exists" {
                errors.push(path.child("operator").invalid(
                    operator,
                    "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
                ));
            }
        } else {
            errors.extend(label_key(key, &path.child("key")));
        }
        if get(toleration, "tolerationSeconds").is_some() && effect != "NoExecute" {
            errors.push(
                path.child("effect").invalid(effect, "effect must be 'NoExecute' when `tolerationSeconds` is set"),
            );
        }
        let field = path.child("operator");
        match operator {
            "" | "Equal" => {
                let messages = names::label_value(value);
                if !messages.is_empty() {
                    errors.push(field.invalid(value, messages.join(";")));
                }
            }
            "Exists" => {
                if !value.is_empty() {
                    errors.push(field.invalid(toleration.clone(), "value must be empty when `operator` is 'Exists'"));
                }
            }
            other => errors.push(field.not_supported(other, &["Equal", "Exists"])),
        }
        if !effect.is_empty() && !EFFECTS.contains(&effect) {
            errors.push(path.child("effect").not_supported(effect, &EFFECTS));
        }
    }
    errors
}

/// What is wrong with the taints of a node.
pub fn taints(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut seen = BTreeSet::new();
    for (index, taint) in items(spec, "taints").iter().enumerate() {
        let path = path.index(index);
        let [key, value, effect] = ["key", "value", "effect"].map(|field| str_at(taint, field));
        errors.extend(label_key(key, &path.child("key")));
        let messages = names::label_value(value);
        if !messages.is_empty() {
            errors.push(path.child("value").invalid(value, messages.join(";")));
        }
        if effect.is_empty() {
            errors.push(path.child("effect").required(""));
        } else if !EFFECTS.contains(&effect) {
            errors.push(path.child("effect").not_supported(effect, &EFFECTS));
        }
        if !seen.insert((key, effect)) {
            errors.push(path.duplicate_because(taint.clone(), "taints must be unique by key and effect pair"));
        }
    }
    errors
}

/// What is wrong with the topology spread constraints of a pod.
pub fn topology_spread(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let constraints = items(spec, "topologySpreadConstraints");
    let identity =
        |value: &Value| (str_at(value, "topologyKey").to_owned(), str_at(value, "whenUnsatisfiable").to_owned());
    // Where each stands for the last time.
    let last: HashMap<(String, String), usize> =
        constraints.iter().enumerate().map(|(index, constraint)| (identity(constraint), index)).collect();
    for (index, constraint) in constraints.iter().enumerate() {
        let path = path.index(index);
        let skew = int(constraint, "maxSkew").unwrap_or(0);
        if skew <= 0 {
            errors.push(path.child("maxSkew").invalid(skew, "must be greater than zero"));
        }
        let (key, when) = identity(constraint);
        if key.is_empty() {
            errors.push(path.child("topologyKey").required("can not be empty"));
        } else {
            errors.extend(label_key(&key, &path.child("topologyKey")));
        }
        if !matches!(when.as_str(), "DoNotSchedule" | "ScheduleAnyway") {
            let field = path.child("whenUnsatisfiable");
            errors.push(field.not_supported(when.as_str(), &["DoNotSchedule", "ScheduleAnyway"]));
        }
        if last.get(&(key.clone(), when.clone())).is_some_and(|last| *last > index) {
            errors.push(path.child("{topologyKey, whenUnsatisfiable}").duplicate(format!("{{{key}, {when}}}")));
        }
        if let Some(domains) = int(constraint, "minDomains") {
            let field = path.child("minDomains");
            if domains <= 0 {
                errors.push(field.invalid(domains, "must be greater than zero"));
            } else if when != "DoNotSchedule" {
                let why = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {when}");
                errors.push(field.invalid(domains, why));
            }
        }
        for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            if let Some(policy) = get(constraint, field).and_then(Value::as_str)
                && !matches!(policy, "Honor" | "Ignore")
            {
                errors.push(path.child(field).not_supported(policy, &["Honor", "Ignore"]));
            }
        }
        errors.extend(match_label_keys(constraint, "matchLabelKeys", &path));
        if let Some(selector) = get(constraint, "labelSelector") {
            errors.extend(label_selector(selector, &path.child("labelSelector")));
        }
    }
    errors
}

/// What is wrong with readiness gates and scheduling gates.
pub fn gates(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for (index, gate) in items(spec, "readinessGates").iter().enumerate() {
        errors.extend(label_key(
            str_at(gate, "conditionType"),
            &path.child("readinessGates").index(index).child("conditionType"),
        ));
    }
    let mut seen = BTreeSet::new();
    for (index, gate) in items(spec, "schedulingGates").iter().enumerate() {
        let path = path.child("schedulingGates").index(index);
        let name = str_at(gate, "name");
        errors.extend(label_key(name, &path));
        if !seen.insert(name) {
            errors.push(path.duplicate(name));
        }
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
    fn tolerations_make_sense() {
        let spec = json!({"tolerations": [
            {"operator": "Equal"}, {"key": "a", "operator": "Exists", "value": "x"},
            {"key": "a", "operator": "Is"}, {"key": "a", "operator": "Exists", "tolerationSeconds": 1}]});
        let paths: Vec<String> = tolerations(&spec, &Path::new("t")).into_iter().map(|error| error.path).collect();
        assert_eq!(paths, ["t[0].operator", "t[1].operator", "t[2].operator", "t[3].effect"]);
    }

    #[test]
    fn taints_are_unique_by_key_and_effect() {
        let taint = json!({"key": "a", "effect": "NoSchedule"});
        assert_eq!(
            texts_of(&taints(&json!({"taints": [taint, taint, {"key": "b", "effect": "Never"}]}), &Path::new("t"))),
            [
                "t[1]: Duplicate value: {\"key\":\"a\",\"effect\":\"NoSchedule\"}: taints must be unique by key and \
                 effect pair",
                "t[2].effect: Unsupported value: \"Never\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \
                 \"NoExecute\""
            ]
        );
    }

    #[test]
    fn affinity_terms_are_complete() {
        let spec = json!({"affinity": {
            "nodeAffinity": {REQUIRED: {"nodeSelectorTerms": []}, PREFERRED: [{"weight": 0, "preference": {}}]},
            "podAffinity": {REQUIRED: [{"topologyKey": ""}]}}});
        let paths: Vec<String> = affinity(&spec, &Path::root()).into_iter().map(|error| error.path).collect();
        assert_eq!(paths[0], format!("affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms"));
        assert_eq!(paths[1], format!("affinity.nodeAffinity.{PREFERRED}[0].weight"));
        assert_eq!(paths[2], format!("affinity.podAffinity.{REQUIRED}[0].topologyKey"));
    }

    #[test]
    fn spread_constraints_differ() {
        let one = json!({"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"});
        let spec = json!({"topologySpreadConstraints": [one, one]});
        assert_eq!(
            texts_of(&topology_spread(&spec, &Path::new("s"))),
            ["s[0].{topologyKey, whenUnsatisfiable}: Duplicate value: \"{zone, ScheduleAnyway}\""]
        );
    }

    #[test]
    fn gates_have_names() {
        let errors = gates(&json!({"schedulingGates": [{"name": ""}]}), &Path::root());
        assert_eq!(errors.len(), 2);
        assert!(errors.iter().all(|error| error.path == "schedulingGates[0]"));
    }
}
