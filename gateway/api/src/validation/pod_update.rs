//! Changes of a pod: nearly nothing of its spec may change.

use std::collections::{BTreeMap, HashSet};

use serde_json::Value;

use crate::field::{ErrorList, Path};
use crate::kind::Part;
use crate::validation::json::{dig, entries, get, int, items, str_at};
use crate::validation::metadata::immutable;
use crate::validation::{diff, go, names, pod};

const UPDATABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
                         `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only \
                         additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set \
                         to 1 if it was previously negative)";

/// What a pod has that only shows what a node runs by itself.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// What is wrong with a change (`new`, `old`) of a part of a pod.
pub fn validate(new: &Value, old: &Value, part: Part) -> ErrorList {
    match part {
        Part::Main => [mirror(new, old), main(new, old)].concat(),
        Part::Status => [mirror(new, old), status(new, old)].concat(),
        Part::EphemeralContainers => [mirror(new, old), ephemeral(new, old)].concat(),
        Part::Resize => resize(new, old),
        Part::Finalize | Part::Approval => ErrorList::new(),
    }
}

/// A pod is a mirror pod from its beginning, or never.
fn mirror(new: &Value, old: &Value) -> ErrorList {
    let value = |pod| dig(pod, &["metadata", "annotations", MIRROR]);
    let why = match (value(old), value(new)) {
        (Some(before), now) if now != Some(before) => "may not remove or update mirror pod annotation",
        (None, Some(_)) => "may not add mirror pod annotation",
        _ => return ErrorList::new(),
    };
    vec![Path::new("metadata").child("annotations").key(MIRROR).forbidden(why)]
}

fn main(new: &Value, old: &Value) -> ErrorList {
    let mut errors = pod::whole(new);
    let path = Path::new("spec");
    let (new, old) = (spec_of(new), spec_of(old));
    for list in ["containers", "initContainers"] {
        if items(new, list).len() != items(old, list).len() {
            errors.push(path.child(list).forbidden("pod updates may not add or remove containers"));
            return errors;
        }
    }
    let deadline = path.child("activeDeadlineSeconds");
    match (int(new, "activeDeadlineSeconds"), int(old, "activeDeadlineSeconds")) {
        (Some(seconds), _) if !(0..=i64::from(i32::MAX)).contains(&seconds) => {
            errors.push(deadline.invalid(seconds, names::in_range(0, i64::from(i32::MAX))));
            return errors;
        }
        (Some(seconds), Some(before)) if before < seconds => {
            errors.push(deadline.invalid(seconds, "must be less than or equal to previous value"));
            return errors;
        }
        (None, Some(_)) => {
            errors.push(deadline.invalid(Value::Null, "must not update from a positive integer to nil value"));
        }
        _ => {}
    }
    errors.extend(only_added_tolerations(new, old, &path.child("tolerations")));
    errors.extend(only_removed_gates(new, old, &path.child("schedulingGates")));
    let munged = with_updatable_of(new, old);
    if munged != *old {
        let difference = diff::unified(&go::pod_spec(old), &go::pod_spec(&munged));
        errors.push(path.forbidden(format!("{UPDATABLE}\n{difference}")));
    }
    errors
}

/// The new spec with everything that may change put back to what it was.
fn with_updatable_of(new: &Value, old: &Value) -> Value {
    let mut munged = new.clone();
    for list in ["containers", "initContainers"] {
        for (index, before) in items(old, list).iter().enumerate() {
            munged[list][index]["image"] = before.get("image").cloned().unwrap_or_default();
        }
    }
    put_back(&mut munged, old, "activeDeadlineSeconds");
    put_back(&mut munged, old, "tolerations");
    put_back(&mut munged, old, "schedulingGates");
    if int(old, "terminationGracePeriodSeconds").is_some_and(|seconds| seconds < 0)
        && int(new, "terminationGracePeriodSeconds") == Some(1)
    {
        put_back(&mut munged, old, "terminationGracePeriodSeconds");
    }
    if !items(old, "schedulingGates").is_empty() {
        gated_scheduling(&mut munged, new, old);
    }
    munged
}

/// While a pod is gated, its node selector may get narrower, and its required node affinity too.
fn gated_scheduling(munged: &mut Value, new: &Value, old: &Value) {
    let selector = |spec: &Value| get(spec, "nodeSelector").and_then(Value::as_object).cloned().unwrap_or_default();
    let (now, before) = (selector(new), selector(old));
    if before.iter().all(|(key, value)| now.get(key) == Some(value)) {
        put_back(munged, old, "nodeSelector");
    }
    let terms = |spec: &Value| {
        dig(spec, &["affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms"])
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    };
    let (now, before) = (terms(new), terms(old));
    let narrower = before.is_empty()
        || (now.len() == before.len()
            && before.iter().zip(&now).all(|(before, now)| {
                ["matchExpressions", "matchFields"].iter().all(|list| items(now, list).starts_with(items(before, list)))
            }));
    if narrower {
        put_back(munged, old, "affinity");
    }
}

fn put_back(munged: &mut Value, old: &Value, field: &str) {
    let Some(spec) = munged.as_object_mut() else { return };
    match old.get(field) {
        Some(value) => spec.insert(field.to_owned(), value.clone()),
        None => spec.shift_remove(field),
    };
}

fn only_added_tolerations(new: &Value, old: &Value, path: &Path) -> ErrorList {
    let identities = |spec| -> HashSet<[String; 4]> {
        let identity = |toleration| ["key", "operator", "value", "effect"].map(|f| str_at(toleration, f).to_owned());
        items(spec, "tolerations").iter().map(identity).collect()
    };
    let kept = identities(old).is_subset(&identities(new));
    if kept {
        return ErrorList::new();
    }
    vec![path.forbidden("existing toleration can not be modified except its tolerationSeconds")]
}

fn only_removed_gates(new: &Value, old: &Value, path: &Path) -> ErrorList {
    let before: HashSet<String> = items(old, "schedulingGates").iter().map(ToString::to_string).collect();
    items(new, "schedulingGates")
        .iter()
        .enumerate()
        .filter(|(_, gate)| !before.contains(&gate.to_string()))
        .map(|(index, gate)| {
            let name = str_at(gate, "name");
            path.index(index)
                .child("name")
                .forbidden(format!("only deletion is allowed, but found new scheduling gate '{name}'"))
        })
        .collect()
}

fn ephemeral(new: &Value, old: &Value) -> ErrorList {
    let mut errors = pod::whole(new);
    let path = Path::new("spec").child("ephemeralContainers");
    let now = items(spec_of(new), "ephemeralContainers");
    for before in items(spec_of(old), "ephemeralContainers") {
        let name = str_at(before, "name");
        match now.iter().find(|container| str_at(container, "name") == name) {
            None => {
                errors.push(path.forbidden(format!("existing ephemeral containers {name:?} may not be removed\n")));
            }
            Some(container) if container != before => {
                let difference = diff::unified(before, container);
                errors.push(
                    path.forbidden(format!("existing ephemeral containers {name:?} may not be changed\n{difference}")),
                );
            }
            Some(_) => {}
        }
    }
    errors
}

/// Resources that a running container's amounts of may be changed.
const RESIZABLE: [&str; 2] = ["cpu", "memory"];

/// A resize changes amounts of processor and memory, not the class of service.
fn resize(new: &Value, old: &Value) -> ErrorList {
    let path = Path::new("spec");
    if dig(old, &["metadata", "annotations", MIRROR]).is_some() {
        return vec![Path::root().forbidden("static pods cannot be resized")];
    }
    if dig(old, &["spec", "os", "name"]).is_some_and(|os| os == "windows") {
        return vec![Path::root().forbidden("windows pods cannot be resized")];
    }
    let mut errors = pod::whole(new);
    errors.extend(resize_of_whole(new, old, &path));
    let mut others = (Value::Array(Vec::new()), Value::Array(Vec::new()));
    for list in ["containers", "initContainers"] {
        let containers = items(spec_of(new), list).iter().zip(items(spec_of(old), list)).enumerate();
        for (index, (now, before)) in containers {
            let path = path.child(list).index(index).child("resources");
            let resources = |container: &Value| get(container, "resources").cloned().unwrap_or_default();
            let (now_resources, before_resources) = (resources(now), resources(before));
            if list == "initContainers" && str_at(before, "restartPolicy") != "Always" {
                if now_resources != before_resources {
                    errors.push(path.forbidden("resources for non-sidecar init containers are immutable"));
                }
                continue;
            }
            for field in ["requests", "limits"] {
                let removed = |(name, _): (&String, &Value)| dig(&now_resources, &[field, name]).is_none();
                if entries(&before_resources, field).any(removed) {
                    errors.push(path.child(field).forbidden(format!("resource {field} cannot be removed")));
                }
            }
            for (side, resources) in [(&mut others.0, before_resources), (&mut others.1, now_resources)] {
                if let Some(side) = side.as_array_mut() {
                    side.push(without_resizable(resources));
                }
            }
        }
    }
    if others.0 != others.1 {
        let difference = diff::unified(&others.0, &others.1);
        errors.push(path.forbidden(format!("only cpu and memory resources are mutable\n{difference}")));
    }
    let class = |pod: &Value| crate::strategy::pod::qos_class(spec_of(pod));
    if class(new) != class(old) {
        errors.push(path.invalid(class(new), "Pod QOS Class may not change as a result of resizing"));
    }
    errors
}

/// What is said of the whole pod may change in amounts of processor and memory.
fn resize_of_whole(new: &Value, old: &Value, path: &Path) -> ErrorList {
    let whole = |pod: &Value| get(spec_of(pod), "resources").cloned();
    let (now, before) = (whole(new), whole(old));
    let place = path.child("resources");
    let (now, before) = match (now, before) {
        (None, Some(_)) => return vec![place.forbidden("pod-level resources cannot be removed")],
        (now, before) => (now.unwrap_or_default(), before.unwrap_or_default()),
    };
    let mut errors = ErrorList::new();
    for field in ["requests", "limits"] {
        if entries(&before, field).any(|(name, _)| dig(&now, &[field, name]).is_none()) {
            errors.push(place.child(field).forbidden(format!("pod-level resource {field} cannot be removed")));
        }
    }
    let (now, before) = (without_resizable(now), without_resizable(before));
    let amounts = |whole: &Value, field: &str| -> BTreeMap<String, Value> {
        entries(whole, field).map(|(name, amount)| (name.clone(), amount.clone())).collect()
    };
    if ["requests", "limits"].iter().any(|field| amounts(&now, field) != amounts(&before, field)) {
        errors.push(path.forbidden("only cpu and memory resources are mutable at pod-level"));
    }
    errors
}

fn without_resizable(mut resources: Value) -> Value {
    for field in ["requests", "limits"] {
        if let Some(amounts) = resources.get_mut(field).and_then(Value::as_object_mut) {
            amounts.retain(|name, _| !RESIZABLE.contains(&name.as_str()));
            if amounts.is_empty()
                && let Some(resources) = resources.as_object_mut()
            {
                resources.shift_remove(field);
            }
        }
    }
    resources
}

fn status(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let path = Path::new("status");
    let (now, before) = (get(new, "status").unwrap_or(&Value::Null), get(old, "status").unwrap_or(&Value::Null));
    if get(before, "qosClass").is_some() {
        errors.extend(immutable(get(now, "qosClass"), get(before, "qosClass"), &path.child("qosClass")));
    }
    for (field, allowed) in [("podIPs", "podIPs"), ("hostIPs", "hostIPs")] {
        errors.extend(addresses(now, field, &path.child(allowed)));
    }
    let policy = str_at(spec_of(new), "restartPolicy");
    if may_begin_anew(spec_of(new)) {
        return errors;
    }
    for list in ["containerStatuses", "initContainerStatuses"] {
        if list == "containerStatuses" && policy == "Always" {
            continue;
        }
        for (index, status) in items(before, list).iter().enumerate() {
            let Some(ended) = dig(status, &["state", "terminated"]) else { continue };
            if policy != "Never" && int(ended, "exitCode") != Some(0) {
                continue;
            }
            let name = str_at(status, "name");
            if restarts_by_own_rule(spec_of(new), name, int(ended, "exitCode").unwrap_or(0)) {
                continue;
            }
            let restarted = items(now, list)
                .iter()
                .any(|other| str_at(other, "name") == name && dig(other, &["state", "terminated"]).is_none());
            let sidecar = items(spec_of(new), "initContainers")
                .iter()
                .any(|c| str_at(c, "name") == name && str_at(c, "restartPolicy") == "Always");
            if restarted && !sidecar {
                let field = path.child(list).index(index).child("state");
                errors.push(field.forbidden("may not be transitioned to non-terminated state"));
            }
        }
    }
    errors
}

/// Whether a rule may have all containers restarted, however they have ended.
fn may_begin_anew(spec: &Value) -> bool {
    let containers = items(spec, "containers").iter().chain(items(spec, "initContainers"));
    let mut rules = containers.flat_map(|container| items(container, "restartPolicyRules"));
    rules.any(|rule| str_at(rule, "action") == "RestartAllContainers")
}

/// Whether a container's own `restartPolicy` and rules want another run after this exit code, whatever the pod's says.
fn restarts_by_own_rule(spec: &Value, name: &str, code: i64) -> bool {
    let mut containers = items(spec, "containers").iter().chain(items(spec, "initContainers"));
    let Some(container) = containers.find(|container| str_at(container, "name") == name) else { return false };
    let by_rule = items(container, "restartPolicyRules").iter().any(|rule| {
        let codes = get(rule, "exitCodes").unwrap_or(&Value::Null);
        let listed = items(codes, "values").iter().any(|value| value.as_i64() == Some(code));
        str_at(rule, "action") == "Restart" && listed == (str_at(codes, "operator") == "In")
    });
    match str_at(container, "restartPolicy") {
        "Always" => true,
        "OnFailure" => by_rule || code != 0,
        _ => by_rule,
    }
}

fn addresses(status: &Value, field: &str, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let list: Vec<&str> = items(status, field).iter().map(|address| str_at(address, "ip")).collect();
    for (index, address) in list.iter().enumerate() {
        errors.extend(names::ip_address(address).into_iter().map(|text| path.index(index).invalid(*address, text)));
        if list[..index].contains(address) {
            errors.push(path.index(index).duplicate(status[field][index].clone()));
        }
    }
    let families = |v6: bool| list.iter().filter(|address| address.contains(':') == v6).count();
    if errors.is_empty() && (families(false) > 1 || families(true) > 1) {
        errors.push(path.invalid(status[field].clone(), "may specify no more than one IP for each IP family"));
    }
    errors
}

fn spec_of(pod: &Value) -> &Value {
    pod.get("spec").unwrap_or(&Value::Null)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Value {
        let mut pod = json!({"metadata": {"name": "p", "namespace": "n"},
                             "spec": {"containers": [{"name": "c", "image": "nginx"}]}});
        (crate::strategy::pod::STRATEGY.default)(&mut pod);
        pod
    }

    fn causes(change: impl Fn(&mut Value), part: Part) -> Vec<String> {
        let old = pod();
        let mut new = old.clone();
        change(&mut new);
        validate(&new, &old, part).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_container_that_has_ended_returns_only_where_a_policy_or_rule_says_so() {
        let pod = |rules: Value, state: Value| {
            json!({"spec": {"restartPolicy": "Never", "containers": [
                {"name": "c", "image": "i", "restartPolicy": "Never", "restartPolicyRules": rules}]},
                "status": {"containerStatuses": [{"name": "c", "state": state}]}})
        };
        let ended = json!({"terminated": {"exitCode": 42}});
        let errors = |rules: Value| {
            validate(&pod(rules.clone(), json!({"running": {}})), &pod(rules, ended.clone()), Part::Status).len()
        };
        let rule = |code: i64| json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [code]}}]);
        assert_eq!((errors(rule(42)), errors(rule(1)), errors(json!([]))), (0, 1, 1));
        let all = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [7]}}]);
        assert_eq!(errors(all), 0, "what another one's end may start again");
    }

    #[test]
    fn no_pod_becomes_a_mirror_pod_or_ceases_to_be_one() {
        let add = |pod: &mut Value| pod["metadata"]["annotations"] = json!({MIRROR: "x"});
        let added = ["metadata.annotations[kubernetes.io/config.mirror]: Forbidden: may not add mirror pod annotation"];
        assert_eq!(
            (causes(add, Part::Main), causes(add, Part::Status)),
            (added.map(Into::into).into(), added.map(Into::into).into())
        );
        let (new, mut old) = (pod(), pod());
        add(&mut old);
        let errors: Vec<_> = validate(&new, &old, Part::Main).iter().map(ToString::to_string).collect();
        assert!(errors[0].ends_with("may not remove or update mirror pod annotation"), "{errors:?}");
    }

    #[test]
    fn images_and_tolerations_may_change() {
        assert!(causes(|pod| pod["spec"]["containers"][0]["image"] = json!("nginx:2"), Part::Main).is_empty());
        let add = |pod: &mut Value| pod["spec"]["tolerations"] = json!([{"key": "z", "operator": "Exists"}]);
        assert!(causes(add, Part::Main).is_empty());
        assert!(causes(|pod| pod["spec"]["activeDeadlineSeconds"] = json!(10), Part::Main).is_empty());
    }

    #[test]
    fn the_rest_may_not_and_the_difference_is_shown() {
        let causes = causes(|pod| pod["spec"]["restartPolicy"] = json!("Never"), Part::Main);
        assert!(causes[0].starts_with("spec: Forbidden: pod updates may not change fields other than"));
        assert!(causes[0].contains("\n  \"EphemeralContainers\": null,\n- \"RestartPolicy\": \"Always\",\n+ \"RestartPolicy\": \"Never\",\n  \"TerminationGracePeriodSeconds\": 30,\n"), "{}", causes[0]);
    }

    #[test]
    fn containers_stay_in_number() {
        let add = |pod: &mut Value| {
            let mut another = pod["spec"]["containers"][0].clone();
            another["name"] = json!("d");
            pod["spec"]["containers"].as_array_mut().unwrap().push(another);
        };
        assert_eq!(
            causes(add, Part::Main),
            ["spec.containers: Forbidden: pod updates may not add or remove containers"]
        );
    }

    #[test]
    fn a_deadline_only_comes_nearer() {
        let mut old = pod();
        old["spec"]["activeDeadlineSeconds"] = json!(10);
        let mut new = old.clone();
        new["spec"]["activeDeadlineSeconds"] = json!(20);
        assert_eq!(
            validate(&new, &old, Part::Main)[0].to_string(),
            "spec.activeDeadlineSeconds: Invalid value: 20: must be less than or equal to previous value"
        );
    }

    #[test]
    fn ephemeral_containers_stay() {
        let mut old = pod();
        old["spec"]["ephemeralContainers"] = json!([{"name": "e", "image": "i"}]);
        (crate::strategy::pod::STRATEGY.default)(&mut old);
        assert_eq!(
            validate(&pod(), &old, Part::EphemeralContainers)[0].to_string(),
            "spec.ephemeralContainers: Forbidden: existing ephemeral containers \"e\" may not be removed\n"
        );
    }

    #[test]
    fn a_resize_changes_amounts_of_processor_and_memory() {
        let with = |resources: Value| {
            let mut pod = pod();
            pod["spec"]["containers"][0]["resources"] = resources;
            pod
        };
        let old = with(json!({"requests": {"cpu": "1", "memory": "1Gi", "ephemeral-storage": "1Gi"}}));
        let causes = |resources: Value| {
            let errors = validate(&with(resources), &old, Part::Resize);
            errors.iter().map(|error| format!("{}: {}", error.path, error.detail)).collect::<Vec<_>>()
        };
        assert!(causes(json!({"requests": {"cpu": "2", "memory": "1Gi", "ephemeral-storage": "1Gi"}})).is_empty());
        assert_eq!(
            causes(json!({"requests": {"memory": "1Gi", "ephemeral-storage": "1Gi"}})),
            ["spec.containers[0].resources.requests: resource requests cannot be removed"]
        );
        let other = causes(json!({"requests": {"cpu": "1", "memory": "1Gi", "ephemeral-storage": "2Gi"}}));
        assert!(other[0].starts_with("spec: only cpu and memory resources are mutable\n"), "{other:?}");
    }

    #[test]
    fn a_status_keeps_its_class_and_has_addresses() {
        let mut old = pod();
        old["status"]["qosClass"] = json!("BestEffort");
        let mut new = old.clone();
        new["status"]["qosClass"] = json!("Guaranteed");
        new["status"]["podIPs"] = json!([{"ip": "x"}]);
        let paths: Vec<String> = validate(&new, &old, Part::Status).into_iter().map(|error| error.path).collect();
        assert_eq!(paths, ["status.qosClass", "status.podIPs[0]"]);
    }
}
