//! What an object is charged for, and which quotas it concerns.

use std::collections::{BTreeMap, BTreeSet};

use carob_api::kind::Kind;
use carob_api::quantity::Quantity;
use carob_api::status::Status;
use carob_store::KeyRange;
use serde_json::Value;

use crate::admission::amounts::{self, Amounts};
use crate::call::Call;
use crate::objects::{self, store_failure, text};

/// Resources of the core group that have had a name in quotas before `count/…` was there for all.
const COUNTED: [&str; 7] =
    ["configmaps", "persistentvolumeclaims", "pods", "replicationcontrollers", "resourcequotas", "secrets", "services"];

/// Whether a write of this kind can cost anything. Of changes only those that can use more.
pub(super) fn may_be_charged(kind: &Kind, changes: bool) -> bool {
    let uses = kind.group.is_empty() && matches!(kind.plural, "pods" | "services" | "persistentvolumeclaims");
    !changes && (kind.group, kind.plural) != ("", "events") || uses
}

/// `count/deployments.apps`, `count/pods`
fn count_of(group: &str, plural: &str) -> String {
    if group.is_empty() { format!("count/{plural}") } else { format!("count/{plural}.{group}") }
}

/// What an object uses, by all names that a quota may have for it.
pub(super) fn of(group: &str, plural: &str, object: &Value) -> Amounts {
    let one = Quantity::from_units(1);
    let mut used = Amounts::from([(count_of(group, plural), one)]);
    if group.is_empty() && plural != "pods" && COUNTED.contains(&plural) {
        used.insert(plural.to_owned(), one);
    }
    match (group, plural) {
        ("", "pods") if !is_over(object) => {
            used.insert("pods".to_owned(), one);
            for (name, amount) in amounts::of_pod(object, "requests") {
                // Extended resources are only known as requests.
                if !name.contains('/') {
                    used.insert(name.clone(), amount);
                }
                used.insert(format!("requests.{name}"), amount);
            }
            for (name, amount) in amounts::of_pod(object, "limits") {
                if !name.contains('/') {
                    used.insert(format!("limits.{name}"), amount);
                }
            }
        }
        ("", "services") => {
            let ports = object.pointer("/spec/ports").and_then(Value::as_array).map_or(0, Vec::len);
            let ports = Quantity::from_units(i64::try_from(ports).unwrap_or(i64::MAX));
            let (mut node_ports, mut balancers) = (Quantity::ZERO, Quantity::ZERO);
            match text(object, "/spec/type") {
                "NodePort" => node_ports = ports,
                "LoadBalancer" => {
                    balancers = one;
                    if object.pointer("/spec/allocateLoadBalancerNodePorts") != Some(&Value::Bool(false)) {
                        node_ports = ports;
                    }
                }
                _ => {}
            }
            used.insert("services.nodeports".to_owned(), node_ports);
            used.insert("services.loadbalancers".to_owned(), balancers);
        }
        ("", "persistentvolumeclaims") => {
            let class = text(object, "/spec/storageClassName");
            let asked = amounts::read(object.pointer("/spec/resources/requests"));
            if !class.is_empty() {
                used.insert(format!("{class}.storageclass.storage.k8s.io/persistentvolumeclaims"), one);
            }
            if let Some(storage) = asked.get("storage") {
                used.insert("requests.storage".to_owned(), *storage);
                if !class.is_empty() {
                    used.insert(format!("{class}.storageclass.storage.k8s.io/requests.storage"), *storage);
                }
            }
        }
        _ => {}
    }
    used
}

/// Whether a Pod uses nothing any more.
fn is_over(pod: &Value) -> bool {
    matches!(text(pod, "/status/phase"), "Succeeded" | "Failed")
}

/// What must be said of each container because the quota limits it, and isn't: `limits.cpu for: a,b; memory for: a`.
pub(super) fn unsaid(pod: &Value, hard: &Amounts) -> String {
    const NAMES: [(&str, &str, &str); 6] = [
        ("cpu", "requests", "cpu"),
        ("limits.cpu", "limits", "cpu"),
        ("limits.memory", "limits", "memory"),
        ("memory", "requests", "memory"),
        ("requests.cpu", "requests", "cpu"),
        ("requests.memory", "requests", "memory"),
    ];
    let mut lacking: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (name, list, resource) in NAMES.into_iter().filter(|(name, ..)| hard.contains_key(*name)) {
        let of_pod = pod.pointer(&format!("/spec/resources/{list}/{resource}")).is_some();
        for containers in ["containers", "initContainers"] {
            let all = pod.pointer(&format!("/spec/{containers}")).and_then(Value::as_array).into_iter().flatten();
            for container in all {
                if !of_pod && container.pointer(&format!("/resources/{list}/{resource}")).is_none() {
                    lacking.entry(name).or_default().insert(text(container, "/name").to_owned());
                }
            }
        }
    }
    let shown = lacking
        .into_iter()
        .map(|(name, containers)| format!("{name} for: {}", containers.into_iter().collect::<Vec<_>>().join(",")));
    shown.collect::<Vec<_>>().join("; ")
}

/// Whether a quota is about this object: by its scopes.
pub(super) fn concerns(quota: &Value, group: &str, plural: &str, object: &Value) -> bool {
    let plain = quota.pointer("/spec/scopes").and_then(Value::as_array).into_iter().flatten();
    let plain = plain.filter_map(Value::as_str).map(|scope| (scope, "Exists", Vec::new()));
    let selected = quota.pointer("/spec/scopeSelector/matchExpressions").and_then(Value::as_array);
    let selected = selected.into_iter().flatten().map(|expression| {
        let values = expression.get("values").and_then(Value::as_array).into_iter().flatten();
        (text(expression, "/scopeName"), text(expression, "/operator"), values.filter_map(Value::as_str).collect())
    });
    plain
        .chain(selected)
        .all(|(scope, operator, values)| (group, plural) == ("", "pods") && in_scope(object, scope, operator, &values))
}

fn in_scope(pod: &Value, scope: &str, operator: &str, values: &[&str]) -> bool {
    let terminating = pod.pointer("/spec/activeDeadlineSeconds").and_then(Value::as_i64).is_some_and(|at| at >= 0);
    match scope {
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "BestEffort" => is_best_effort(pod),
        "NotBestEffort" => !is_best_effort(pod),
        "PriorityClass" => {
            let class = text(pod, "/spec/priorityClassName");
            match operator {
                "In" => values.contains(&class),
                "NotIn" => !values.contains(&class),
                "DoesNotExist" => class.is_empty(),
                _ => !class.is_empty(),
            }
        }
        "CrossNamespacePodAffinity" => looks_elsewhere(pod),
        _ => false,
    }
}

/// Whether no container asks for CPU or memory.
fn is_best_effort(pod: &Value) -> bool {
    let asks = |which| {
        let amounts = amounts::of_pod(pod, which);
        ["cpu", "memory"].iter().any(|name| amounts.get(*name).is_some_and(|amount| !amount.is_zero()))
    };
    !asks("requests") && !asks("limits")
}

/// Whether a Pod's affinity looks at Pods of other namespaces.
fn looks_elsewhere(pod: &Value) -> bool {
    let terms = ["podAffinity", "podAntiAffinity"].into_iter().flat_map(|kind| {
        let list = |pointer: &str| {
            let pointer = format!("/spec/affinity/{kind}/{pointer}");
            pod.pointer(&pointer).and_then(Value::as_array).into_iter().flatten()
        };
        let preferred = list("preferredDuringSchedulingIgnoredDuringExecution");
        list("requiredDuringSchedulingIgnoredDuringExecution")
            .chain(preferred.filter_map(|weighted| weighted.get("podAffinityTerm")))
            .collect::<Vec<_>>()
    });
    terms.into_iter().any(|term| {
        let named = term.get("namespaces").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
        named || term.get("namespaceSelector").is_some_and(|selector| !selector.is_null())
    })
}

/// Counts what is there of all that a quota limits.
pub(super) async fn count(call: &Call, namespace: &str, quota: &Value, hard: &Amounts) -> Result<Amounts, Status> {
    let mut used: Amounts = hard.keys().map(|name| (name.clone(), Quantity::ZERO)).collect();
    let registry = call.server.registry();
    let mut seen = BTreeSet::new();
    for kind in registry.iter() {
        let (group, plural) = (kind.group, kind.plural);
        let is_limited = hard.contains_key(&count_of(group, plural))
            || group.is_empty()
                && (hard.contains_key(plural) || matches!(plural, "pods" | "services" | "persistentvolumeclaims"));
        if !is_limited || kind.scope != carob_api::kind::Scope::Namespaced || !seen.insert((group, plural)) {
            continue;
        }
        let range = KeyRange::prefix(objects::prefix(kind, Some(namespace)));
        let page = call.server.store.range(&range, None, None).await.map_err(|error| store_failure(&error))?;
        for entry in &page.entries {
            let object = objects::decode(&entry.value)?;
            if concerns(quota, group, plural, &object) {
                let own = of(group, plural, &object);
                amounts::add(&mut used, &own.into_iter().filter(|(name, _)| hard.contains_key(name)).collect());
            }
        }
    }
    Ok(used)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(resources: &Value) -> Value {
        json!({"spec": {"containers": [{"name": "c", "resources": resources}]}})
    }

    #[test]
    fn a_pod_is_charged_under_all_names_until_it_is_over() {
        let mut pod = pod(&json!({"requests": {"cpu": "1", "example.com/gpu": "2"}, "limits": {"memory": "1Gi"}}));
        let shown = |pod: &Value| amounts::shown(&of("", "pods", pod));
        assert_eq!(
            shown(&pod),
            "count/pods=1,cpu=1,limits.memory=1Gi,pods=1,requests.cpu=1,requests.example.com/gpu=2"
        );
        pod["status"] = json!({"phase": "Succeeded"});
        assert_eq!(shown(&pod), "count/pods=1");
        let service = json!({"spec": {"type": "NodePort", "ports": [{}, {}]}});
        assert_eq!(
            amounts::shown(&of("", "services", &service)),
            "count/services=1,services=1,services.loadbalancers=0,services.nodeports=2"
        );
        assert_eq!(amounts::shown(&of("apps", "deployments", &json!({}))), "count/deployments.apps=1");
    }

    #[test]
    fn scopes_choose_pods() {
        let quota = |scope: &str| json!({"spec": {"scopes": [scope]}});
        let idle = pod(&json!({}));
        let busy = pod(&json!({"requests": {"cpu": "1"}}));
        assert!(
            concerns(&quota("BestEffort"), "", "pods", &idle) && !concerns(&quota("BestEffort"), "", "pods", &busy)
        );
        assert!(concerns(&quota("NotBestEffort"), "", "pods", &busy));
        assert!(!concerns(&quota("BestEffort"), "", "configmaps", &json!({})), "scopes are about pods");
        let class = json!({"spec": {"scopeSelector": {"matchExpressions": [
            {"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}}});
        let mut high = idle.clone();
        high["spec"]["priorityClassName"] = "high".into();
        assert!(concerns(&class, "", "pods", &high) && !concerns(&class, "", "pods", &idle));
    }

    #[test]
    fn what_is_limited_must_be_said_by_each_container() {
        let hard = amounts::read(Some(&json!({"limits.cpu": "1", "requests.memory": "1Gi", "pods": "3"})));
        assert_eq!(unsaid(&pod(&json!({"limits": {"cpu": "1"}})), &hard), "requests.memory for: c");
        assert_eq!(unsaid(&pod(&json!({})), &hard), "limits.cpu for: c; requests.memory for: c");
    }
}
