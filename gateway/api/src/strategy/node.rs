//! Node: taints, address ranges, and a status with fields that are always there.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{BASE, at, bump_generation, keep_field, object_at, set_default};
use crate::field::{ErrorList, Path};
use crate::kind::{Part, Strategy};
use crate::validation::json::{dig, get, items, str_at, texts};
use crate::validation::scheduling;

/// What is peculiar to Nodes.
pub const STRATEGY: Strategy = Strategy { default, prepare_update, validate, validate_update, field, ..BASE };

/// Facts that the node's agent fills in; empty until then.
const INFO: [&str; 10] = [
    "machineID",
    "systemUUID",
    "bootID",
    "kernelVersion",
    "osImage",
    "containerRuntimeVersion",
    "kubeletVersion",
    "kubeProxyVersion",
    "operatingSystem",
    "architecture",
];

fn default(object: &mut Value) {
    if let Some(spec) = object_at(object, "spec") {
        // Of two that differ, the older field counts, as in Kubernetes.
        let one = spec.get("podCIDR").filter(|one| **one != "" && !one.is_null()).cloned();
        let first = spec.get("podCIDRs").and_then(|many| many.get(0)).cloned();
        match (one, first) {
            (Some(one), first) if first.as_ref() != Some(&one) => {
                spec.insert("podCIDRs".to_owned(), json!([one]));
            }
            (None, Some(first)) => {
                spec.insert("podCIDR".to_owned(), first);
            }
            _ => {}
        }
    }
    let Some(status) = object_at(object, "status") else { return };
    if let Some(capacity) = status.get("capacity").filter(|capacity| !capacity.is_null()).cloned() {
        set_default(status, "allocatable", capacity);
    }
    set_default(status, "daemonEndpoints", json!({}));
    set_default(status, "nodeInfo", json!({}));
    if let Some(endpoint) = object_at(&mut status["daemonEndpoints"], "kubeletEndpoint") {
        set_default(endpoint, "Port", 0);
    }
    if let Some(info) = status["nodeInfo"].as_object_mut() {
        for fact in INFO {
            set_default(info, fact, "");
        }
    }
}

fn prepare_update(new: &mut Value, old: &Value, part: Part) {
    bump_generation(new, old, false);
    keep_field(new, old, if part == Part::Status { "spec" } else { "status" });
}

fn validate(object: &Value) -> ErrorList {
    let path = Path::new("spec");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let mut errors = scheduling::taints(spec, &path.child("taints"));
    let ranges = path.child("podCIDRs");
    let (mut v4, mut v6) = (0, 0);
    for (index, range) in texts(spec, "podCIDRs").enumerate() {
        match range.split_once('/').and_then(|(ip, bits)| Some((ip.parse().ok()?, bits.parse::<u8>().ok()?))) {
            Some((std::net::IpAddr::V4(_), 0..=32)) => v4 += 1,
            Some((std::net::IpAddr::V6(_), 0..=128)) => v6 += 1,
            _ => errors.push(
                ranges.index(index).invalid(range, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"),
            ),
        }
    }
    if v4 > 1 || v6 > 1 {
        errors.push(ranges.invalid(spec["podCIDRs"].clone(), "may specify no more than one CIDR for each IP family"));
    }
    errors
}

fn validate_update(new: &Value, old: &Value, part: Part) -> ErrorList {
    let mut errors = ErrorList::new();
    if part == Part::Status {
        return address_errors(new);
    }
    let path = Path::new("spec");
    for (field, empty) in [("podCIDRs", "podCIDR"), ("providerID", "providerID")] {
        let before = dig(old, &["spec", field]);
        if before.is_some_and(|value| value != "" && value != &json!([])) && before != dig(new, &["spec", field]) {
            errors.push(
                path.child(field).forbidden(format!("node updates may not change {empty} except from \"\" to valid")),
            );
        }
    }
    errors.extend(validate(new));
    let rest = |node: &Value| {
        let mut spec = get(node, "spec").cloned().unwrap_or_default();
        if let Some(spec) = spec.as_object_mut() {
            for field in ["podCIDR", "podCIDRs", "providerID", "taints", "unschedulable", "configSource"] {
                spec.shift_remove(field);
            }
            spec.retain(|_, value| !value.is_null() && value != "");
        }
        spec
    };
    if rest(new) != rest(old) {
        errors.push(Path::root().key("").forbidden(
            "node updates may only change labels, taints, or capacity (or configSource, if the DynamicKubeletConfig \
             feature gate is enabled)",
        ));
    }
    errors
}

fn address_errors(node: &Value) -> ErrorList {
    let mut seen = BTreeSet::new();
    let path = Path::new("status").child("addresses");
    let mut errors = ErrorList::new();
    for (index, address) in get(node, "status").map_or(&[][..], |status| items(status, "addresses")).iter().enumerate()
    {
        if !seen.insert((str_at(address, "type"), str_at(address, "address"))) {
            errors.push(path.index(index).duplicate(address.clone()));
        }
    }
    errors
}

fn field(object: &Value, field: &str) -> Option<String> {
    match field {
        "metadata.name" => Some(at(object, field)),
        "spec.unschedulable" => {
            Some((dig(object, &["spec", "unschedulable"]).and_then(Value::as_bool) == Some(true)).to_string())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_of_a_new_node_has_its_fixed_fields() {
        let mut node = json!({"metadata": {"name": "n"}, "spec": {"podCIDR": "10.200.0.0/24"}});
        default(&mut node);
        assert_eq!(node["spec"]["podCIDRs"], json!(["10.200.0.0/24"]));
        for (spec, one, many) in [
            (json!({"podCIDRs": ["10.1.0.0/24"]}), "10.1.0.0/24", json!(["10.1.0.0/24"])),
            (json!({"podCIDR": "128.0.0.0/1", "podCIDRs": ["10.1.0.0/24"]}), "128.0.0.0/1", json!(["128.0.0.0/1"])),
            (
                json!({"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00::/64"]}),
                "10.1.0.0/24",
                json!(["10.1.0.0/24", "fd00::/64"]),
            ),
            (json!({"podCIDR": "", "podCIDRs": ["10.1.0.0/24"]}), "10.1.0.0/24", json!(["10.1.0.0/24"])),
        ] {
            let mut node = json!({"spec": spec});
            default(&mut node);
            assert_eq!((&node["spec"]["podCIDR"], &node["spec"]["podCIDRs"]), (&json!(one), &many));
        }
        assert_eq!(node["status"]["daemonEndpoints"], json!({"kubeletEndpoint": {"Port": 0}}));
        assert_eq!(node["status"]["nodeInfo"]["kubeletVersion"], "");
    }

    #[test]
    fn ranges_are_ranges_and_stay() {
        let errors = validate(&json!({"spec": {"podCIDRs": ["10.0.0.0", "10.1.0.0/24", "10.2.0.0/24"]}}));
        let paths: Vec<&str> = errors.iter().map(|error| error.path.as_str()).collect();
        assert_eq!(paths, ["spec.podCIDRs[0]", "spec.podCIDRs"]);
        let errors = validate_update(
            &json!({"spec": {"podCIDRs": ["10.1.0.0/24"]}}),
            &json!({"spec": {"podCIDRs": ["10.0.0.0/24"]}}),
            Part::Main,
        );
        assert_eq!(errors[0].path, "spec.podCIDRs");
    }

    #[test]
    fn unschedulable_can_be_selected_where_it_is_absent() {
        assert_eq!(field(&json!({}), "spec.unschedulable").as_deref(), Some("false"));
        assert_eq!(field(&json!({"spec": {"unschedulable": true}}), "spec.unschedulable").as_deref(), Some("true"));
    }
}
