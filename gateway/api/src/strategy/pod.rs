//! Pod: what the server makes of a new one, and which parts of it each subresource may change.

use serde_json::{Value, json};

use super::{
    BASE, at, bump_generation, differs, first_generation, keep_field, metadata_field, object_at, pod_resources,
    pod_spec,
};
use crate::kind::{Part, Strategy};
use crate::quantity::Quantity;
use crate::validation::json::{dig, flag, get, int, items, map, str_at, texts};
use crate::validation::{pod, pod_update, pod_warnings};

/// What is peculiar to Pods.
pub const STRATEGY: Strategy = Strategy {
    default,
    prepare_create,
    prepare_update,
    validate: pod::validate,
    validate_update: pod_update::validate,
    warnings: pod_warnings::pod,
    // Programs change pods; whoever wrote one was told when it was made.
    warns_again: |_, _| false,
    field,
    default_grace_seconds: Some(grace_seconds),
    ..BASE
};

fn default(object: &mut Value) {
    object_at(object, "spec");
    if let Some(spec) = object.get_mut("spec") {
        pod_spec::default(spec);
        pod_spec::default_of_pod(spec);
        pod_resources::default(spec);
    }
    if let Some(status) = object_at(object, "status") {
        mirror_addresses(status);
        if status.get("phase").is_none_or(|phase| phase.is_null() || phase == "") {
            status.insert("phase".to_owned(), Value::from("Pending"));
        }
    }
}

/// `podIP` is the first of `podIPs`, whichever of the two was written.
fn mirror_addresses(status: &mut serde_json::Map<String, Value>) {
    let one = status.get("podIP").and_then(Value::as_str).unwrap_or("").to_owned();
    let first = status.get("podIPs").and_then(|ips| ips.pointer("/0/ip")).and_then(Value::as_str).unwrap_or("");
    if !one.is_empty() && one != first {
        status.insert("podIPs".to_owned(), json!([{"ip": one}]));
    } else if one.is_empty() && !first.is_empty() {
        let first = Value::from(first);
        status.insert("podIP".to_owned(), first);
    }
}

fn prepare_create(object: &mut Value) {
    first_generation(object);
    merge_label_keys(object);
    let mut status = json!({"phase": "Pending", "qosClass": qos_class(object.get("spec").unwrap_or(&Value::Null))});
    if !dig(object, &["spec", "schedulingGates"]).and_then(Value::as_array).is_none_or(Vec::is_empty) {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        status["conditions"] = json!([{
            "type": "PodScheduled", "status": "False", "lastProbeTime": null, "lastTransitionTime": now,
            "reason": "SchedulingGated", "message": "Scheduling is blocked due to non-empty scheduling gates",
        }]);
    }
    object["status"] = status;
}

/// `matchLabelKeys` and `mismatchLabelKeys` stand for requirements on this pod's own labels, which become explicit.
fn merge_label_keys(object: &mut Value) {
    let labels = dig(object, &["metadata", "labels"]).cloned().unwrap_or_default();
    let Some(spec) = object.get_mut("spec") else { return };
    for constraint in spec.get_mut("topologySpreadConstraints").and_then(Value::as_array_mut).into_iter().flatten() {
        merge_term(constraint, &labels);
    }
    for affinity in ["podAffinity", "podAntiAffinity"] {
        let Some(affinity) = spec.get_mut("affinity").and_then(|all| all.get_mut(affinity)) else { continue };
        let required = affinity.get_mut("requiredDuringSchedulingIgnoredDuringExecution").and_then(Value::as_array_mut);
        required.into_iter().flatten().for_each(|term| merge_term(term, &labels));
        let preferred =
            affinity.get_mut("preferredDuringSchedulingIgnoredDuringExecution").and_then(Value::as_array_mut);
        for weighted in preferred.into_iter().flatten() {
            if let Some(term) = weighted.get_mut("podAffinityTerm") {
                merge_term(term, &labels);
            }
        }
    }
}

fn merge_term(term: &mut Value, labels: &Value) {
    let mut added = Vec::new();
    for (field, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
        for key in texts(term, field) {
            if let Some(value) = get(labels, key) {
                added.push(json!({"key": key, "operator": operator, "values": [value]}));
            }
        }
    }
    if added.is_empty() || get(term, "labelSelector").is_none() {
        return;
    }
    if let Some(selector) = object_at(term, "labelSelector") {
        let expressions = selector.entry("matchExpressions").or_insert_with(|| json!([]));
        if let Some(expressions) = expressions.as_array_mut() {
            added.retain(|requirement| !expressions.contains(requirement));
            expressions.extend(added);
        }
    }
}

/// How well a pod's resources are guaranteed: its class of service.
pub fn qos_class(spec: &Value) -> &'static str {
    let amount = |resources: &Value, field: &str, name: &str| {
        map(resources, field)
            .and_then(|amounts| amounts.get(name))
            .and_then(Value::as_str)
            .and_then(|text| Quantity::parse(text).ok())
            .filter(|quantity| quantity.nanos() > 0)
            .map(|quantity| quantity.nanos())
    };
    let own = get(spec, "resources").filter(|own| map(own, "limits").or(map(own, "requests")).is_some());
    let resources: Vec<&Value> = match own {
        Some(own) => vec![own],
        None => items(spec, "containers")
            .iter()
            .chain(items(spec, "initContainers"))
            .map(|container| container.get("resources").unwrap_or(&Value::Null))
            .collect(),
    };
    let sum = |field: &str, name: &str| -> Option<i128> {
        let amounts: Vec<i128> = resources.iter().filter_map(|r| amount(r, field, name)).collect();
        (!amounts.is_empty()).then(|| amounts.iter().sum())
    };
    let (cpu, memory) =
        ((sum("requests", "cpu"), sum("limits", "cpu")), (sum("requests", "memory"), sum("limits", "memory")));
    if [cpu.0, cpu.1, memory.0, memory.1].iter().all(Option::is_none) {
        return "BestEffort";
    }
    let limited =
        resources.iter().all(|r| amount(r, "limits", "cpu").is_some() && amount(r, "limits", "memory").is_some());
    if limited && cpu.0 == cpu.1 && memory.0 == memory.1 { "Guaranteed" } else { "Burstable" }
}

fn prepare_update(new: &mut Value, old: &Value, part: Part) {
    match part {
        Part::Main => keep_field(new, old, "status"),
        Part::Status => {
            keep_field(new, old, "spec");
            keep_status_facts(new, old);
        }
        Part::EphemeralContainers => {
            let containers = dig(new, &["spec", "ephemeralContainers"]).cloned();
            keep_all(new, old);
            if let (Some(spec), Some(containers)) = (object_at(new, "spec"), containers) {
                spec.insert("ephemeralContainers".to_owned(), containers);
            } else if let Some(spec) = object_at(new, "spec") {
                spec.shift_remove("ephemeralContainers");
            }
        }
        Part::Resize => {
            let sent = new.get("spec").cloned().unwrap_or_default();
            keep_all(new, old);
            resize(new, &sent);
        }
        Part::Finalize | Part::Approval => keep_all(new, old),
    }
    let changed = differs(new, old, "/spec");
    bump_generation(new, old, changed);
}

/// The status update of an agent touches neither owners nor what is decided once.
fn keep_status_facts(new: &mut Value, old: &Value) {
    if let Some(metadata) = object_at(new, "metadata") {
        for field in ["ownerReferences", "deletionTimestamp", "deletionGracePeriodSeconds"] {
            match dig(old, &["metadata", field]) {
                Some(value) => metadata.insert(field.to_owned(), value.clone()),
                None => metadata.shift_remove(field),
            };
        }
    }
    let class = dig(old, &["status", "qosClass"]).cloned();
    if let (Some(class), Some(status)) = (class, object_at(new, "status")) {
        super::set_default(status, "qosClass", class);
    }
}

/// The old object under the new one's resource version.
fn keep_all(new: &mut Value, old: &Value) {
    let version = dig(new, &["metadata", "resourceVersion"]).cloned();
    let managed = dig(new, &["metadata", "managedFields"]).cloned();
    *new = old.clone();
    if let Some(metadata) = object_at(new, "metadata") {
        for (field, value) in [("resourceVersion", version), ("managedFields", managed)] {
            if let Some(value) = value {
                metadata.insert(field.to_owned(), value);
            }
        }
    }
}

/// Takes over the resources of the pod as a whole, and of containers that have the same name.
fn resize(pod: &mut Value, sent: &Value) {
    let Some(spec) = pod.get_mut("spec") else { return };
    if let Some(spec) = spec.as_object_mut() {
        match get(sent, "resources") {
            Some(whole) => spec.insert("resources".to_owned(), whole.clone()),
            None => spec.shift_remove("resources"),
        };
    }
    for list in ["containers", "initContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let name = str_at(container, "name").to_owned();
            let Some(wanted) = items(sent, list).iter().find(|other| str_at(other, "name") == name) else { continue };
            for field in ["resources", "resizePolicy"] {
                if let Some(value) = get(wanted, field) {
                    container[field] = value.clone();
                }
            }
        }
    }
}

/// Seconds that a pod has to end by itself. One that has ended, or that runs nowhere, needs none.
fn grace_seconds(pod: &Value) -> i64 {
    let ended = matches!(dig(pod, &["status", "phase"]).and_then(Value::as_str), Some("Failed" | "Succeeded"));
    let spec = pod.get("spec").unwrap_or(&Value::Null);
    if ended || str_at(spec, "nodeName").is_empty() {
        return 0;
    }
    match int(spec, "terminationGracePeriodSeconds") {
        Some(seconds) if seconds < 0 => 1,
        Some(seconds) => seconds,
        None => 30,
    }
}

fn field(pod: &Value, field: &str) -> Option<String> {
    match field {
        "spec.nodeName"
        | "spec.restartPolicy"
        | "spec.schedulerName"
        | "spec.serviceAccountName"
        | "status.phase"
        | "status.podIP"
        | "status.nominatedNodeName" => Some(at(pod, field)),
        "status.podIPs" => Some(at(pod, "status.podIP")),
        "spec.hostNetwork" => Some(flag(pod.get("spec").unwrap_or(&Value::Null), "hostNetwork").to_string()),
        _ => metadata_field(pod, field),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(resources: &Value) -> Value {
        json!({"containers": [{"name": "c", "image": "x", "resources": resources}]})
    }

    #[test]
    fn the_class_of_service_follows_requests_and_limits() {
        assert_eq!(qos_class(&pod(&json!({}))), "BestEffort");
        assert_eq!(qos_class(&pod(&json!({"requests": {"cpu": "100m"}}))), "Burstable");
        let both = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}});
        assert_eq!(qos_class(&pod(&both)), "Guaranteed");
        let mut two = pod(&both);
        two["containers"].as_array_mut().unwrap().push(json!({"name": "d", "image": "x", "resources": {}}));
        assert_eq!(qos_class(&two), "Burstable");
    }

    #[test]
    fn a_new_pod_is_pending_whatever_its_maker_says() {
        let mut object = json!({"metadata": {"name": "p"}, "spec": pod(&json!({})), "status": {"phase": "Running"}});
        prepare_create(&mut object);
        assert_eq!(object["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
        assert_eq!(object["metadata"]["generation"], 1);
    }

    #[test]
    fn each_part_changes_its_own() {
        let old = json!({"metadata": {"name": "p", "generation": 1}, "spec": pod(&json!({})),
                         "status": {"phase": "Running", "qosClass": "BestEffort"}});
        let mut new = old.clone();
        new["spec"]["containers"][0]["image"] = json!("y");
        new["status"] = json!({"phase": "Failed"});
        let mut main = new.clone();
        prepare_update(&mut main, &old, Part::Main);
        assert_eq!((&main["status"], &main["metadata"]["generation"]), (&old["status"], &json!(2)));
        let mut status = new.clone();
        prepare_update(&mut status, &old, Part::Status);
        assert_eq!(status["spec"], old["spec"]);
        assert_eq!(status["status"], json!({"phase": "Failed", "qosClass": "BestEffort"}));
        assert_eq!(status["metadata"]["generation"], 1);
        new["spec"]["ephemeralContainers"] = json!([{"name": "e", "image": "i"}]);
        prepare_update(&mut new, &old, Part::EphemeralContainers);
        assert_eq!(new["spec"]["containers"], old["spec"]["containers"]);
        assert_eq!(new["spec"]["ephemeralContainers"][0]["name"], "e");
    }

    #[test]
    fn addresses_mirror_each_other() {
        let mut object = json!({"metadata": {}, "spec": {}, "status": {"podIP": "192.0.2.1"}});
        default(&mut object);
        assert_eq!(object["status"]["podIPs"], json!([{"ip": "192.0.2.1"}]));
    }

    #[test]
    fn grace_is_for_running_pods() {
        let mut object = json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 5}});
        assert_eq!(grace_seconds(&object), 5);
        object["status"] = json!({"phase": "Succeeded"});
        assert_eq!(grace_seconds(&object), 0);
        assert_eq!(grace_seconds(&json!({"spec": {"terminationGracePeriodSeconds": 5}})), 0);
    }

    #[test]
    fn label_keys_become_requirements() {
        let mut object = json!({"metadata": {"labels": {"rev": "1"}}, "spec": {"topologySpreadConstraints": [
            {"labelSelector": {"matchLabels": {"a": "b"}}, "matchLabelKeys": ["rev", "absent"]}]}});
        merge_label_keys(&mut object);
        assert_eq!(
            object["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchExpressions"],
            json!([{"key": "rev", "operator": "In", "values": ["1"]}])
        );
    }
}
