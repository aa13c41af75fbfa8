//! Service: what its type needs, what is kept of it when the client says nothing, and its families of addresses.
//!
//! Addresses and ports are given by the server, which knows those of all Services; see [`complete_families`] for what
//! comes before that.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};

use super::{BASE, at, keep_field, keep_generation, metadata_field, object_at, set_default, set_default_text};
use crate::field::{ErrorList, Path};
use crate::kind::{Part, Strategy};
use crate::validation::json::{flag, get, int, items, map, str_at, texts};
use crate::validation::service::{self, HEADLESS};
use crate::validation::{addresses, names};

/// What is peculiar to Services.
pub const STRATEGY: Strategy = Strategy {
    default,
    prepare_create: |object| {
        object["status"] = json!({"loadBalancer": {}});
        if let Some(spec) = object_at(object, "spec") {
            list_cluster_ip(spec);
        }
    },
    prepare_update,
    validate: service::validate,
    validate_update: service::validate_update,
    validate_name: names::dns1035_label,
    warnings: service::warnings,
    field: |object, field| match field {
        "spec.clusterIP" | "spec.type" => Some(at(object, field)),
        _ => metadata_field(object, field),
    },
    create_on_update: true,
    ..BASE
};

/// Seconds for which a client stays with its endpoint.
const AFFINITY_SECONDS: i64 = 10_800;

fn default(object: &mut Value) {
    if let Some(status) = object_at(object, "status") {
        set_default(status, "loadBalancer", json!({}));
    }
    let Some(spec) = object_at(object, "spec") else { return };
    set_default_text(spec, "sessionAffinity", "None");
    set_default_text(spec, "type", "ClusterIP");
    if spec["sessionAffinity"] == "None" {
        spec.shift_remove("sessionAffinityConfig");
    }
    if spec["sessionAffinity"] == "ClientIP" {
        let config = spec.entry("sessionAffinityConfig").or_insert(Value::Null);
        if config.is_null() {
            *config = json!({});
        }
        if let Some(client) = object_at(config, "clientIP") {
            set_default(client, "timeoutSeconds", AFFINITY_SECONDS);
        }
    }
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(port) = port.as_object_mut() {
            default_port(port);
        }
    }
    let spec = object.get_mut("spec").and_then(Value::as_object_mut);
    let Some(spec) = spec else { return };
    let type_ = spec["type"].as_str().unwrap_or_default().to_owned();
    if is_external(&Value::Object(spec.clone())) {
        set_default_text(spec, "externalTrafficPolicy", "Cluster");
    }
    if matches!(type_.as_str(), "ClusterIP" | "NodePort" | "LoadBalancer") {
        set_default(spec, "internalTrafficPolicy", "Cluster");
    }
    if type_ == "LoadBalancer" {
        set_default(spec, "allocateLoadBalancerNodePorts", true);
        let ingress = object.pointer_mut("/status/loadBalancer/ingress").and_then(Value::as_array_mut);
        for point in ingress.into_iter().flatten().filter_map(Value::as_object_mut) {
            if point.get("ip").and_then(Value::as_str).is_some_and(|ip| !ip.is_empty()) {
                set_default(point, "ipMode", "VIP");
            }
        }
    }
}

fn default_port(port: &mut Map<String, Value>) {
    set_default_text(port, "protocol", "TCP");
    let unset = port.get("targetPort").is_none_or(|to| to.is_null() || to.as_i64() == Some(0) || to == "");
    if unset {
        let number = port.get("port").cloned().unwrap_or_else(|| Value::from(0));
        port.insert("targetPort".to_owned(), number);
    }
}

/// Whether it is reached from outside of the cluster.
pub fn is_external(spec: &Value) -> bool {
    match str_at(spec, "type") {
        "LoadBalancer" | "NodePort" => true,
        "ClusterIP" => !items(spec, "externalIPs").is_empty(),
        _ => false,
    }
}

/// Whether its type has addresses in the cluster (or `None` in their place).
pub fn needs_cluster_ip(spec: &Value) -> bool {
    matches!(str_at(spec, "type"), "ClusterIP" | "NodePort" | "LoadBalancer")
}

/// Whether its type may have ports on nodes.
pub fn needs_node_ports(spec: &Value) -> bool {
    matches!(str_at(spec, "type"), "NodePort" | "LoadBalancer")
}

/// Whether its ports get ports on nodes if they name none.
pub fn allocates_node_ports(spec: &Value) -> bool {
    match str_at(spec, "type") {
        "NodePort" => true,
        "LoadBalancer" => flag(spec, "allocateLoadBalancerNodePorts"),
        _ => false,
    }
}

/// Whether load balancers ask nodes for its health.
pub fn needs_health_check(spec: &Value) -> bool {
    str_at(spec, "type") == "LoadBalancer" && str_at(spec, "externalTrafficPolicy") == "Local"
}

/// `clusterIP` and `clusterIPs` are one field in two forms; this fills in the newer one.
fn list_cluster_ip(spec: &mut Map<String, Value>) {
    let one = spec.get("clusterIP").and_then(Value::as_str).unwrap_or("").to_owned();
    let none = spec.get("clusterIPs").and_then(Value::as_array).is_none_or(Vec::is_empty);
    if !one.is_empty() && none {
        spec.insert("clusterIPs".to_owned(), json!([one]));
    }
}

fn prepare_update(new: &mut Value, old: &Value, part: Part) {
    keep_generation(new, old, part);
    if part == Part::Status {
        keep_field(new, old, "spec");
        return;
    }
    keep_field(new, old, "status");
    let empty = json!({});
    let before = old.get("spec").unwrap_or(&empty);
    let Some(spec) = new.get_mut("spec") else { return };
    keep_allocated(spec, before);
    follow_cluster_ip(spec, before);
    drop_what_the_type_has_no_use_for(spec, before);
    if str_at(spec, "type") != "LoadBalancer" {
        new["status"]["loadBalancer"] = json!({});
    }
}

/// What was given to the Service stays its own when an update doesn't mention it.
fn keep_allocated(new: &mut Value, old: &Value) {
    if needs_cluster_ip(new) && needs_cluster_ip(old) {
        if str_at(new, "clusterIP").is_empty() {
            copy(new, old, "clusterIP");
        }
        if items(new, "clusterIPs").is_empty() && str_at(new, "clusterIP") == str_at(old, "clusterIP") {
            copy(new, old, "clusterIPs");
        }
    }
    if needs_node_ports(new) && needs_node_ports(old) {
        keep_node_ports(new, old);
    }
    if needs_health_check(new) && needs_health_check(old) && int(new, "healthCheckNodePort").unwrap_or(0) == 0 {
        copy(new, old, "healthCheckNodePort");
    }
}

/// Ports of one name keep their port on the nodes, unless another has taken it.
fn keep_node_ports(new: &mut Value, old: &Value) {
    let used = |spec: &Value| -> HashSet<i64> {
        items(spec, "ports").iter().filter_map(|port| int(port, "nodePort")).filter(|number| *number != 0).collect()
    };
    let both: HashSet<i64> = used(new).intersection(&used(old)).copied().collect();
    let by_name: HashMap<&str, i64> =
        items(old, "ports").iter().map(|port| (str_at(port, "name"), int(port, "nodePort").unwrap_or(0))).collect();
    for port in new.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if int(port, "nodePort").unwrap_or(0) != 0 {
            continue;
        }
        if let Some(number) = by_name.get(str_at(port, "name")).filter(|number| **number != 0 && !both.contains(number))
        {
            port["nodePort"] = (*number).into();
        }
    }
}

/// A client that knows only `clusterIP` changes `clusterIPs` by it.
fn follow_cluster_ip(new: &mut Value, old: &Value) {
    let (one, before) = (str_at(new, "clusterIP").to_owned(), str_at(old, "clusterIP"));
    if one == before || items(new, "clusterIPs") != items(old, "clusterIPs") {
        return;
    }
    if let Some(spec) = new.as_object_mut() {
        if one.is_empty() {
            spec.shift_remove("clusterIPs");
        } else {
            spec.insert("clusterIPs".to_owned(), json!([one]));
        }
    }
}

/// When the type changes, what the old one needed goes with it, unless the client has changed it too: that is for
/// validation to refuse.
fn drop_what_the_type_has_no_use_for(new: &mut Value, old: &Value) {
    let same = |new: &Value, field: &str| get(new, field) == get(old, field);
    let mut dropped: Vec<&str> = Vec::new();
    if needs_cluster_ip(old) && !needs_cluster_ip(new) {
        dropped.extend(["ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"].iter().filter(|f| same(new, f)));
        if same(new, "clusterIP") && same(new, "clusterIPs") {
            dropped.extend(["clusterIP", "clusterIPs"]);
        }
    }
    if needs_health_check(old) && !needs_health_check(new) && same(new, "healthCheckNodePort") {
        dropped.push("healthCheckNodePort");
    }
    if str_at(old, "type") == "LoadBalancer" && str_at(new, "type") != "LoadBalancer" {
        dropped.extend(["allocateLoadBalancerNodePorts", "loadBalancerClass"].iter().filter(|f| same(new, f)));
    }
    if is_external(old) && !is_external(new) && same(new, "externalTrafficPolicy") {
        dropped.push("externalTrafficPolicy");
    }
    if needs_node_ports(old) && !needs_node_ports(new) && node_ports(old) == node_ports(new) {
        for port in new.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(port) = port.as_object_mut() {
                port.shift_remove("nodePort");
            }
        }
    }
    if let Some(spec) = new.as_object_mut() {
        for field in dropped {
            spec.shift_remove(field);
        }
    }
}

fn node_ports(spec: &Value) -> HashSet<i64> {
    items(spec, "ports").iter().map(|port| int(port, "nodePort").unwrap_or(0)).collect()
}

fn copy(new: &mut Value, old: &Value, field: &str) {
    if let Some(value) = get(old, field) {
        new[field] = value.clone();
    }
}

/// Decides for which families of addresses a Service is, in a cluster whose Services have addresses of `configured`, the
/// primary family first.
///
/// # Errors
/// What stands in the way; its addresses and families cannot be looked at further then.
pub fn complete_families(object: &mut Value, old: Option<&Value>, configured: &[&str]) -> Result<(), ErrorList> {
    let old = old.and_then(|old| old.get("spec"));
    let Some(spec) = object.get_mut("spec") else { return Ok(()) };
    if str_at(spec, "type") == "ExternalName" || old.is_some_and(|old| prefers_as_before(spec, old)) {
        return Ok(());
    }
    let headless = texts(spec, "clusterIPs").next() == Some(HEADLESS);
    // Somebody else fills in its endpoints, of whatever family.
    let unmanaged = headless && map(spec, "selector").is_none_or(Map::is_empty);
    if str_at(spec, "ipFamilyPolicy").is_empty() {
        let before = old.map_or("", |old| str_at(old, "ipFamilyPolicy"));
        spec["ipFamilyPolicy"] = match before {
            "" if unmanaged => "RequireDualStack",
            "" => "SingleStack",
            before => before,
        }
        .into();
    }
    let errors = service::cluster_ips(spec);
    if !errors.is_empty() {
        return Err(errors);
    }
    let errors = settle_second(spec, old, configured);
    if !errors.is_empty() {
        return Err(errors);
    }
    let policy = str_at(spec, "ipFamilyPolicy").to_owned();
    let mut families: Vec<String> = texts(spec, "ipFamilies").map(str::to_owned).collect();
    if !unmanaged {
        let path = Path::new("spec");
        let mut errors = ErrorList::new();
        if policy == "RequireDualStack" && configured.len() < 2 {
            let why = "this cluster is not configured for dual-stack services";
            errors.push(path.child("ipFamilyPolicy").invalid(policy.as_str(), why));
        }
        let unknown = families.iter().enumerate().filter(|(_, family)| !configured.contains(&family.as_str()));
        errors.extend(unknown.map(|(index, family)| {
            path.child("ipFamilies").index(index).invalid(family.as_str(), "not configured on this cluster")
        }));
        if !errors.is_empty() {
            return Err(errors);
        }
    }
    if families.is_empty() {
        families.extend(configured.first().map(|family| (*family).to_owned()));
    }
    if policy != "SingleStack" && families.len() == 1 && (unmanaged || configured.len() == 2) {
        families.push(if families[0] == "IPv4" { "IPv6" } else { "IPv4" }.to_owned());
    }
    spec["ipFamilies"] = families.into();
    Ok(())
}

/// Whether a Service prefers two families and what it has of them isn't touched: it then keeps that, also in a cluster that
/// has become dual-stack meanwhile.
fn prefers_as_before(new: &Value, old: &Value) -> bool {
    let prefers = |policy: &str| policy == "PreferDualStack";
    str_at(new, "type") == str_at(old, "type")
        && needs_cluster_ip(new)
        && prefers(str_at(new, "ipFamilyPolicy"))
        && (str_at(old, "ipFamilyPolicy").is_empty() || prefers(str_at(old, "ipFamilyPolicy")))
        && items(new, "clusterIPs") == items(old, "clusterIPs")
        && items(new, "ipFamilies") == items(old, "ipFamilies")
}

/// Makes families of addresses that are named, and of a policy of one family the first alone, where an update says just that.
/// Gives what doesn't go together.
fn settle_second(spec: &mut Value, old: Option<&Value>, configured: &[&str]) -> ErrorList {
    let path = Path::new("spec");
    let policy = str_at(spec, "ipFamilyPolicy").to_owned();
    let mut errors = ErrorList::new();
    let mut refuse = |why: &str| errors.push(path.child("ipFamilyPolicy").invalid(policy.as_str(), why));
    let lists = [("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")];
    for (field, what) in lists {
        let Some(before) = old.map(|old| items(old, field)) else { continue };
        let now = items(spec, field);
        if policy == "SingleStack" {
            if now == before
                && let Some(list) = spec.get_mut(field).and_then(Value::as_array_mut)
            {
                list.truncate(1);
            }
        } else if !now.is_empty() && now.len() < before.len() {
            refuse(&format!("must be 'SingleStack' to release the secondary {what}"));
        }
    }
    for (field, what) in [("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families")] {
        if policy == "SingleStack" && items(spec, field).len() == 2 {
            refuse(&format!("must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"));
        }
    }
    let named = texts(spec, "ipFamilies").count();
    let mut families = items(spec, "ipFamilies").to_vec();
    let addresses = texts(spec, "clusterIPs").enumerate().skip(named);
    for (index, ip) in addresses.filter_map(|(index, text)| Some((index, addresses::parse_ip(text)?))) {
        let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
        if configured.contains(&family) {
            families.push(family.into());
        } else {
            let all = Value::from(items(spec, "clusterIPs"));
            let why = format!("{family} is not configured on this cluster");
            errors.push(path.child("clusterIPs").index(index).invalid(all, why));
        }
    }
    if !families.is_empty() {
        spec["ipFamilies"] = families.into();
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(spec: &Value) -> Value {
        let mut object = json!({"metadata": {"name": "s"}, "spec": spec});
        default(&mut object);
        (STRATEGY.prepare_create)(&mut object);
        default(&mut object);
        object
    }

    fn updated(old: &Value, change: &Value) -> Value {
        let mut new = old.clone();
        for (field, value) in change.as_object().unwrap() {
            new["spec"][field] = value.clone();
        }
        default(&mut new);
        prepare_update(&mut new, old, Part::Main);
        default(&mut new);
        new
    }

    #[test]
    fn each_type_has_its_defaults() {
        let spec = made(&json!({"ports": [{"port": 80}], "sessionAffinityConfig": {"clientIP": {}}}))["spec"].clone();
        assert_eq!(
            spec,
            json!({"ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}], "sessionAffinity": "None",
                "type": "ClusterIP", "internalTrafficPolicy": "Cluster"})
        );
        let spec = made(&json!({"type": "LoadBalancer", "sessionAffinity": "ClientIP"}))["spec"].clone();
        assert_eq!(spec["allocateLoadBalancerNodePorts"], true);
        assert_eq!(spec["externalTrafficPolicy"], "Cluster");
        assert_eq!(spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], 10_800);
        let spec = made(&json!({"type": "ExternalName", "externalName": "x.example"}))["spec"].clone();
        assert!(spec.get("internalTrafficPolicy").is_none());
    }

    #[test]
    fn what_was_given_is_kept() {
        let old = made(&json!({"type": "NodePort", "clusterIP": "10.96.0.9", "ports": [
            {"name": "a", "port": 80, "nodePort": 30001}, {"name": "b", "port": 81, "nodePort": 30002}]}));
        assert_eq!(old["spec"]["clusterIPs"], json!(["10.96.0.9"]));
        let new = updated(
            &old,
            &json!({"clusterIP": null, "clusterIPs": null,
            "ports": [{"name": "b", "port": 82}, {"name": "c", "port": 83, "nodePort": 30001}, {"name": "a", "port": 80}]}),
        );
        assert_eq!(new["spec"]["clusterIP"], "10.96.0.9");
        let numbers: Vec<_> =
            new["spec"]["ports"].as_array().unwrap().iter().map(|port| port["nodePort"].as_i64()).collect();
        assert_eq!(numbers, [Some(30002), Some(30001), None], "a's has gone to c");
    }

    #[test]
    fn another_type_drops_what_it_has_no_use_for() {
        let mut old = made(&json!({"type": "LoadBalancer", "clusterIP": "10.96.0.9", "externalTrafficPolicy": "Local",
            "healthCheckNodePort": 30009, "loadBalancerClass": "a/b", "ports": [{"port": 80, "nodePort": 30001}]}));
        complete_families(&mut old, None, &["IPv4"]).unwrap();
        let new = updated(&old, &json!({"type": "ClusterIP"}));
        for field in
            ["externalTrafficPolicy", "healthCheckNodePort", "allocateLoadBalancerNodePorts", "loadBalancerClass"]
        {
            assert!(new["spec"].get(field).is_none(), "{field}");
        }
        assert!(new["spec"]["ports"][0].get("nodePort").is_none());
        let new = updated(&old, &json!({"type": "ExternalName", "externalName": "x.example"}));
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            assert!(new["spec"].get(field).is_none(), "{field}");
        }
    }

    const SINGLE: [&str; 1] = ["IPv4"];
    const DUAL: [&str; 2] = ["IPv4", "IPv6"];

    /// The families and the policy of a Service, or why it is refused.
    fn families(object: &mut Value, old: Option<&Value>, configured: &[&str]) -> Result<(Value, Value), Vec<String>> {
        complete_families(object, old, configured)
            .map(|()| (object["spec"]["ipFamilies"].clone(), object["spec"]["ipFamilyPolicy"].clone()))
            .map_err(|errors| errors.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn families_of_a_single_stack_cluster_follow_addresses_and_policy() {
        let families = |spec: Value| families(&mut made(&spec), None, &SINGLE);
        assert_eq!(families(json!({})), Ok((json!(["IPv4"]), json!("SingleStack"))));
        assert_eq!(
            families(json!({"ipFamilyPolicy": "PreferDualStack"})),
            Ok((json!(["IPv4"]), json!("PreferDualStack")))
        );
        assert_eq!(families(json!({"clusterIP": "None"})), Ok((json!(["IPv4", "IPv6"]), json!("RequireDualStack"))));
        assert_eq!(
            families(json!({"clusterIP": "None", "selector": {"a": "b"}})),
            Ok((json!(["IPv4"]), json!("SingleStack")))
        );
        for (spec, why) in [
            (
                json!({"ipFamilyPolicy": "RequireDualStack"}),
                "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
            ),
            (
                json!({"ipFamilies": ["IPv6"]}),
                "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster",
            ),
            (
                json!({"clusterIP": "fd96::9"}),
                "spec.clusterIPs[0]: Invalid value: [\"fd96::9\"]: IPv6 is not configured on this cluster",
            ),
        ] {
            assert_eq!(families(spec).unwrap_err(), [why]);
        }
    }

    #[test]
    fn families_of_a_dual_stack_cluster_follow_addresses_and_policy() {
        let families = |spec: Value| families(&mut made(&spec), None, &DUAL);
        let (four, six) = (json!(["IPv4"]), json!(["IPv6"]));
        let (both, six_first) = (json!(["IPv4", "IPv6"]), json!(["IPv6", "IPv4"]));
        for (spec, expected) in [
            (json!({}), (&four, "SingleStack")),
            (json!({"ipFamilyPolicy": "PreferDualStack"}), (&both, "PreferDualStack")),
            (json!({"ipFamilyPolicy": "RequireDualStack"}), (&both, "RequireDualStack")),
            (json!({"ipFamilies": ["IPv6"]}), (&six, "SingleStack")),
            (json!({"ipFamilies": ["IPv6"], "ipFamilyPolicy": "PreferDualStack"}), (&six_first, "PreferDualStack")),
            (json!({"clusterIP": "fd96::9"}), (&six, "SingleStack")),
            (json!({"clusterIP": "fd96::9", "ipFamilyPolicy": "RequireDualStack"}), (&six_first, "RequireDualStack")),
            (json!({"clusterIP": "None"}), (&both, "RequireDualStack")),
            (json!({"clusterIP": "None", "ipFamilies": ["IPv6"]}), (&six_first, "RequireDualStack")),
            (json!({"clusterIP": "None", "ipFamilyPolicy": "SingleStack"}), (&four, "SingleStack")),
            (json!({"clusterIP": "None", "selector": {"a": "b"}}), (&four, "SingleStack")),
            (
                json!({"clusterIP": "None", "selector": {"a": "b"}, "ipFamilyPolicy": "PreferDualStack"}),
                (&both, "PreferDualStack"),
            ),
        ] {
            assert_eq!(families(spec.clone()), Ok((expected.0.clone(), json!(expected.1))), "{spec}");
        }
        let two = "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple";
        assert_eq!(
            families(json!({"ipFamilies": ["IPv4", "IPv6"]})).unwrap_err(),
            [format!("{two} IP families are specified")]
        );
        assert_eq!(
            families(json!({"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9", "fd96::9"]})).unwrap_err(),
            [format!("{two} cluster IPs are specified")]
        );
    }

    #[test]
    fn a_second_family_comes_and_goes_by_the_policy() {
        let mut single = made(&json!({"clusterIP": "10.96.0.9"}));
        families(&mut single, None, &DUAL).unwrap();
        let change = |old: &Value, change: Value| {
            let mut new = updated(old, &change);
            families(&mut new, Some(old), &DUAL).map(|families| (families, new["spec"]["clusterIPs"].clone()))
        };
        let four = (json!(["IPv4"]), json!(["10.96.0.9"]));
        let expect = |families: &Value, policy: &str, ips: &Value| Ok(((families.clone(), json!(policy)), ips.clone()));
        let both = json!(["IPv4", "IPv6"]);
        let upgrade = json!({"ipFamilyPolicy": "PreferDualStack"});
        assert_eq!(change(&single, upgrade.clone()), expect(&both, "PreferDualStack", &four.1));
        let mut dual = updated(&single, &upgrade);
        families(&mut dual, Some(&single), &DUAL).unwrap();
        dual["spec"]["clusterIPs"] = json!(["10.96.0.9", "fd96::9"]);
        let ips = &dual["spec"]["clusterIPs"];
        assert_eq!(change(&dual, json!({"ipFamilyPolicy": "SingleStack"})), expect(&four.0, "SingleStack", &four.1));
        assert_eq!(change(&dual, json!({"ipFamilyPolicy": null})), expect(&both, "PreferDualStack", ips), "as before");
        let unsaid = json!({"ipFamilyPolicy": null, "clusterIP": null, "clusterIPs": null, "ipFamilies": null});
        assert_eq!(change(&dual, unsaid), expect(&both, "PreferDualStack", ips));
        let refused = |field: &str, value: Value| change(&dual, json!({ field: value })).unwrap_err();
        let release =
            "spec.ipFamilyPolicy: Invalid value: \"PreferDualStack\": must be 'SingleStack' to release the secondary";
        assert_eq!(refused("clusterIPs", json!(["10.96.0.9"])), [format!("{release} cluster IP")]);
        assert_eq!(refused("ipFamilies", json!(["IPv4"])), [format!("{release} IP family")]);
    }

    #[test]
    fn who_prefers_two_families_keeps_one_when_the_cluster_gets_the_other() {
        let mut old = made(&json!({"clusterIP": "10.96.0.9", "ipFamilyPolicy": "PreferDualStack"}));
        families(&mut old, None, &SINGLE).unwrap();
        let mut new = updated(&old, &json!({"sessionAffinity": "ClientIP"}));
        assert_eq!(families(&mut new, Some(&old), &DUAL), Ok((json!(["IPv4"]), json!("PreferDualStack"))));
        let mut new = updated(&old, &json!({"ipFamilyPolicy": "RequireDualStack"}));
        assert_eq!(families(&mut new, Some(&old), &DUAL), Ok((json!(["IPv4", "IPv6"]), json!("RequireDualStack"))));
    }
}
