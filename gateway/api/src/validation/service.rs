//! What is wrong with a Service.

use std::collections::HashSet;

use serde_json::Value;

use crate::field::{ErrorList, Path};
use crate::kind::Part;
use crate::strategy::service::{is_external, needs_cluster_ip, needs_health_check};
use crate::validation::json::{dig, get, int, items, str_at, texts};
use crate::validation::{addresses, go, metadata, names};

/// In place of an address: there is none, names lead to the endpoints.
pub const HEADLESS: &str = "None";

const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];
const FAMILY_POLICIES: [&str; 3] = ["PreferDualStack", "RequireDualStack", "SingleStack"];
const POLICIES: [&str; 2] = ["Cluster", "Local"];
const DISTRIBUTIONS: [&str; 3] = ["PreferClose", "PreferSameNode", "PreferSameZone"];
/// The port of the nodes' agents, which no load balancer may lead to.
const AGENT_PORT: i64 = 10_250;
const LONGEST_AFFINITY: i64 = 86_400;
const FIXED: &str = "may not change once set";
const FOR_LOAD_BALANCERS: &str = "may only be used when `type` is 'LoadBalancer'";

fn is_headless(spec: &Value) -> bool {
    texts(spec, "clusterIPs").eq([HEADLESS])
}

/// Everything that is wrong with a new Service.
pub fn validate(object: &Value) -> ErrorList {
    let path = Path::new("spec");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let mut errors = of_type(spec, &path);
    let mut seen = HashSet::new();
    let ports = items(spec, "ports");
    for (index, item) in ports.iter().enumerate() {
        errors.extend(port(item, ports.len() > 1, &mut seen, &path.child("ports").index(index)));
    }
    errors.extend(metadata::labels(spec, "selector", &path.child("selector")));
    errors.extend(affinity(spec, &path));
    errors.extend(cluster_ips(spec));
    for (index, ip) in texts(spec, "externalIPs").enumerate() {
        let path = path.child("externalIPs").index(index);
        let wrong = addresses::ip(ip, &path);
        errors.extend(if wrong.is_empty() { addresses::of_endpoint(ip, &path) } else { wrong });
    }
    let type_ = str_at(spec, "type");
    if type_.is_empty() {
        errors.push(path.child("type").required(""));
    } else if !TYPES.contains(&type_) {
        errors.push(path.child("type").not_supported(type_, &TYPES));
    }
    errors.extend(port_numbers(spec, &path.child("ports")));
    errors.extend(load_balancer(spec, &path));
    errors.extend(traffic(spec, &path));
    errors
}

fn of_type(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let type_ = str_at(spec, "type");
    if items(spec, "ports").is_empty() && !is_headless(spec) && type_ != "ExternalName" {
        errors.push(path.child("ports").required(""));
    }
    if type_ == "LoadBalancer" {
        for (index, port) in items(spec, "ports").iter().enumerate() {
            if int(port, "port") == Some(AGENT_PORT) {
                let why = format!("may not expose port {AGENT_PORT} externally since it is used by kubelet");
                errors.push(path.child("ports").index(index).invalid(AGENT_PORT, why));
            }
        }
    }
    if matches!(type_, "LoadBalancer" | "NodePort") && is_headless(spec) {
        let why = format!("may not be set to 'None' for {type_} services");
        errors.push(path.child("clusterIPs").index(0).invalid(HEADLESS, why));
    }
    if type_ == "ExternalName" {
        for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            let set = get(spec, field).is_some_and(|value| value.as_array().is_none_or(|list| !list.is_empty()));
            if set {
                errors.push(path.child(field).forbidden("may not be set for ExternalName services"));
            }
        }
        let field = path.child("externalName");
        let name = str_at(spec, "externalName");
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.is_empty() {
            errors.push(field.required(""));
        } else {
            errors.extend(names::dns1123_subdomain(name).into_iter().map(|why| field.invalid(name, why)));
        }
    }
    errors
}

fn port<'a>(port: &'a Value, named: bool, seen: &mut HashSet<&'a str>, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let name = str_at(port, "name");
    let field = path.child("name");
    if name.is_empty() {
        if named {
            errors.push(field.required(""));
        }
    } else {
        errors.extend(names::dns1123_label(name).into_iter().map(|why| field.invalid(name, why)));
        if !seen.insert(name) {
            errors.push(field.duplicate(name));
        }
    }
    let number = int(port, "port").unwrap_or(0);
    errors.extend(names::port_number(number).into_iter().map(|why| path.child("port").invalid(number, why)));
    let protocol = str_at(port, "protocol");
    if protocol.is_empty() {
        errors.push(path.child("protocol").required(""));
    } else if !PROTOCOLS.contains(&protocol) {
        errors.push(path.child("protocol").not_supported(protocol, &PROTOCOLS));
    }
    let field = path.child("targetPort");
    match port.get("targetPort").unwrap_or(&Value::Null) {
        Value::String(name) => {
            errors.extend(names::port_name(name).into_iter().map(|why| field.invalid(name.as_str(), why)));
        }
        other => {
            let number = other.as_i64().unwrap_or(0);
            errors.extend(names::port_number(number).into_iter().map(|why| field.invalid(number, why)));
        }
    }
    let application = str_at(port, "appProtocol");
    if get(port, "appProtocol").is_some() {
        let field = path.child("appProtocol");
        errors.extend(names::qualified_name(application).into_iter().map(|why| field.invalid(application, why)));
    }
    errors
}

fn affinity(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let affinity = str_at(spec, "sessionAffinity");
    let field = path.child("sessionAffinity");
    if affinity.is_empty() {
        errors.push(field.required(""));
    } else if !matches!(affinity, "ClientIP" | "None") {
        errors.push(field.not_supported(affinity, &["ClientIP", "None"]));
    }
    let field = path.child("sessionAffinityConfig");
    let config = get(spec, "sessionAffinityConfig");
    if affinity == "ClientIP" {
        let why = "when session affinity type is ClientIP";
        let field_of_client = field.child("clientIP");
        match (config, config.and_then(|config| get(config, "clientIP"))) {
            (None, _) => errors.push(field.required(why)),
            (Some(_), None) => errors.push(field_of_client.required(why)),
            (Some(_), Some(client)) => match int(client, "timeoutSeconds") {
                None => errors.push(field_of_client.child("timeoutSeconds").required(why)),
                Some(seconds) if seconds <= 0 || seconds > LONGEST_AFFINITY => {
                    let why = format!("must be greater than 0 and less than {LONGEST_AFFINITY}");
                    errors.push(field_of_client.child("timeoutSeconds").invalid(seconds, why));
                }
                Some(_) => {}
            },
        }
    } else if affinity == "None" && config.is_some() {
        errors.push(field.forbidden("must not be set when session affinity is None"));
    }
    errors
}

/// What is wrong with the addresses and families of a Service's spec.
pub fn cluster_ips(spec: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    if str_at(spec, "type") == "ExternalName" {
        return errors;
    }
    let path = Path::new("spec");
    let field = path.child("clusterIPs");
    let (one, ips) = (str_at(spec, "clusterIP"), items(spec, "clusterIPs"));
    let all = || Value::from(ips);
    if one.is_empty() {
        if !ips.is_empty() {
            errors.push(field.invalid(all(), "must be empty when `clusterIP` is not specified"));
        }
    } else if ips.is_empty() {
        errors.push(field.required(""));
    } else if ips[0] != one {
        errors.push(field.invalid(all(), "first value must match `clusterIP`"));
    }
    let families: Vec<&str> = texts(spec, "ipFamilies").collect();
    for (index, family) in families.iter().enumerate() {
        let path = path.child("ipFamilies").index(index);
        if !FAMILIES.contains(family) {
            errors.push(path.not_supported(*family, &FAMILIES));
        }
        if families[..index].contains(family) {
            errors.push(path.duplicate(*family));
        }
    }
    let policy = str_at(spec, "ipFamilyPolicy");
    if get(spec, "ipFamilyPolicy").is_some() && !FAMILY_POLICIES.contains(&policy) {
        errors.push(path.child("ipFamilyPolicy").not_supported(policy, &FAMILY_POLICIES));
    }
    let mut unreadable = false;
    for (index, ip) in texts(spec, "clusterIPs").enumerate() {
        if index == 0 && ip == HEADLESS {
            if ips.len() > 1 {
                unreadable = true;
                errors.push(field.invalid(all(), "'None' must be the first and only value"));
            }
            continue;
        }
        let wrong = addresses::ip(ip, &field.index(index));
        unreadable |= !wrong.is_empty();
        errors.extend(wrong);
    }
    if ips.len() > 2 {
        errors.push(field.invalid(all(), "may only hold up to 2 values"));
    }
    if unreadable {
        return errors;
    }
    let parsed: Vec<_> = texts(spec, "clusterIPs").filter_map(addresses::parse_ip).collect();
    if ips.len() > 1 && !(parsed.len() == 2 && parsed[0].is_ipv4() != parsed[1].is_ipv4()) {
        errors.push(field.invalid(all(), "may specify no more than one IP for each IP family"));
    }
    for (index, (ip, family)) in parsed.iter().zip(&families).enumerate() {
        if FAMILIES.contains(family) && ip.is_ipv4() != (*family == "IPv4") {
            let why = format!("expected an {family} value as indicated by `ipFamilies[{index}]`");
            errors.push(field.index(index).invalid(ips[index].clone(), why));
        }
    }
    errors
}

/// Ports on nodes where there are none, and numbers that come twice.
fn port_numbers(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let ports = items(spec, "ports");
    let number = |port: &Value, field: &str| int(port, field).unwrap_or(0);
    if str_at(spec, "type") == "ClusterIP" {
        for (index, _) in ports.iter().enumerate().filter(|(_, port)| number(port, "nodePort") != 0) {
            let why = "may not be used when `type` is 'ClusterIP'";
            errors.push(path.index(index).child("nodePort").forbidden(why));
        }
    }
    for field in ["nodePort", "port"] {
        let mut seen = HashSet::new();
        for (index, port) in ports.iter().enumerate() {
            let value = number(port, field);
            if field == "nodePort" && value == 0 || seen.insert((str_at(port, "protocol"), value)) {
                continue;
            }
            let path = path.index(index);
            errors.push(if field == "nodePort" {
                path.child(field).duplicate(value)
            } else {
                let key = serde_json::json!({"protocol": str_at(port, "protocol"), "port": value});
                path.duplicate(go::value(go::SERVICE_PORT, &key))
            });
        }
    }
    errors
}

fn load_balancer(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let balanced = str_at(spec, "type") == "LoadBalancer";
    let field = path.child("loadBalancerSourceRanges");
    if !items(spec, "loadBalancerSourceRanges").is_empty() && !balanced {
        errors.push(field.forbidden(FOR_LOAD_BALANCERS));
    }
    for (index, range) in texts(spec, "loadBalancerSourceRanges").enumerate() {
        errors.extend(addresses::range(range.trim(), &field.index(index)));
    }
    let field = path.child("allocateLoadBalancerNodePorts");
    match get(spec, "allocateLoadBalancerNodePorts") {
        Some(_) if !balanced => errors.push(field.forbidden(FOR_LOAD_BALANCERS)),
        None if balanced => errors.push(field.required("field is required when `type` is 'LoadBalancer'")),
        _ => {}
    }
    errors.extend(load_balancer_class(spec, path));
    errors
}

fn load_balancer_class(spec: &Value, path: &Path) -> ErrorList {
    let field = path.child("loadBalancerClass");
    let Some(class) = get(spec, "loadBalancerClass").and_then(Value::as_str) else { return ErrorList::new() };
    if str_at(spec, "type") == "LoadBalancer" {
        names::qualified_name(class).into_iter().map(|why| field.invalid(class, why)).collect()
    } else {
        vec![field.forbidden(FOR_LOAD_BALANCERS)]
    }
}

fn traffic(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let field = path.child("externalTrafficPolicy");
    let policy = str_at(spec, "externalTrafficPolicy");
    if !is_external(spec) {
        if !policy.is_empty() {
            errors.push(field.invalid(policy, "may only be set for externally-accessible services"));
        }
    } else if policy.is_empty() {
        errors.push(field.required(""));
    } else if !POLICIES.contains(&policy) {
        errors.push(field.not_supported(policy, &POLICIES));
    }
    let field = path.child("healthCheckNodePort");
    let number = int(spec, "healthCheckNodePort").unwrap_or(0);
    if !needs_health_check(spec) {
        if number != 0 {
            let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
            errors.push(field.invalid(number, why));
        }
    } else if number == 0 {
        errors.push(field.required(""));
    } else {
        errors.extend(names::port_number(number).into_iter().map(|why| field.invalid(number, why)));
    }
    let field = path.child("internalTrafficPolicy");
    match get(spec, "internalTrafficPolicy").and_then(Value::as_str) {
        None if needs_cluster_ip(spec) => errors.push(field.required("")),
        Some(policy) if !POLICIES.contains(&policy) => errors.push(field.not_supported(policy, &POLICIES)),
        _ => {}
    }
    if let Some(way) = get(spec, "trafficDistribution").and_then(Value::as_str)
        && !DISTRIBUTIONS.contains(&way)
    {
        errors.push(path.child("trafficDistribution").not_supported(way, &DISTRIBUTIONS));
    }
    errors
}

/// Everything that is wrong with a change of a Service.
pub fn validate_update(new: &Value, old: &Value, part: Part) -> ErrorList {
    let none = Value::Null;
    let (spec, before) = (new.get("spec").unwrap_or(&none), old.get("spec").unwrap_or(&none));
    if part == Part::Status {
        return status(new, spec);
    }
    let path = Path::new("spec");
    let mut errors = kept(spec, before, "clusterIPs", &path);
    errors.extend(kept(spec, before, "ipFamilies", &path));
    let class = |spec| get(spec, "loadBalancerClass");
    let both = str_at(spec, "type") == "LoadBalancer" && str_at(before, "type") == "LoadBalancer";
    if both && class(spec) != class(before) {
        let field = path.child("loadBalancerClass");
        errors.push(field.invalid(class(spec).cloned().unwrap_or_default(), FIXED));
    }
    errors.extend(load_balancer_class(spec, &path));
    errors.extend(validate(new));
    errors
}

/// A Service keeps its first address and family for good, unless its type takes them away; a second may come and go.
fn kept(new: &Value, old: &Value, field: &str, path: &Path) -> ErrorList {
    let named = |spec| str_at(spec, "type") == "ExternalName";
    if named(new) || named(old) || (is_headless(new) && is_headless(old)) {
        return ErrorList::new();
    }
    let path = path.child(field);
    let (now, before) = (items(new, field), items(old, field));
    let Some(first) = before.first() else { return ErrorList::new() };
    if now.is_empty() {
        let what = if field == "clusterIPs" { "primary clusterIP" } else { "primary ipFamily" };
        return vec![path.index(0).invalid(Value::from(now), format!("{what} can not be unset"))];
    }
    let mut errors = ErrorList::new();
    if now[0] != *first {
        errors.push(path.index(0).invalid(Value::from(now), FIXED));
    }
    if let (Some(second), Some(other)) = (before.get(1), now.get(1))
        && second != other
    {
        errors.push(path.index(1).invalid(Value::from(now), FIXED));
    }
    errors
}

fn status(object: &Value, spec: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let path = Path::new("status").child("loadBalancer").child("ingress");
    let points = dig(object, &["status", "loadBalancer"]).map_or(&[][..], |status| items(status, "ingress"));
    if str_at(spec, "type") != "LoadBalancer" && !points.is_empty() {
        return vec![path.forbidden("may only be used when `spec.type` is \"LoadBalancer\"")];
    }
    for (index, point) in points.iter().enumerate() {
        let path = path.index(index);
        let (ip, host) = (str_at(point, "ip"), str_at(point, "hostname"));
        let mode = get(point, "ipMode").and_then(Value::as_str);
        if !ip.is_empty() {
            errors.extend(addresses::ip(ip, &path.child("ip")));
        }
        let field = path.child("ipMode");
        match mode {
            None if !ip.is_empty() => errors.push(field.required("must be specified when `ip` is set")),
            Some(_) if ip.is_empty() => errors.push(field.forbidden("may not be specified when `ip` is not set")),
            Some(mode) if !matches!(mode, "VIP" | "Proxy") => {
                errors.push(field.not_supported(mode, &["Proxy", "VIP"]));
            }
            _ => {}
        }
        if !host.is_empty() {
            let field = path.child("hostname");
            errors.extend(names::dns1123_subdomain(host).into_iter().map(|why| field.invalid(host, why)));
            if addresses::parse_ip(host).is_some() {
                errors.push(field.invalid(host, "must be a DNS name, not an IP address"));
            }
        }
    }
    errors
}

/// What is taken, but has no effect.
pub fn warnings(object: &Value) -> Vec<String> {
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let named = str_at(spec, "type") == "ExternalName";
    let mut warnings = Vec::new();
    let mut warn = |ignored: bool, text: &str| {
        if ignored {
            warnings.push(text.to_owned());
        }
    };
    let external = !items(spec, "externalIPs").is_empty();
    warn(named && external, "spec.externalIPs is ignored when spec.type is \"ExternalName\"");
    warn(
        !named && !str_at(spec, "externalName").is_empty(),
        "spec.externalName is ignored when spec.type is not \"ExternalName\"",
    );
    let headless = !named && is_headless(spec);
    let balancer = !str_at(spec, "loadBalancerIP").is_empty();
    warn(headless && balancer, "spec.loadBalancerIP is ignored for headless services");
    warn(headless && external, "spec.externalIPs is ignored for headless services");
    let sticks = str_at(spec, "sessionAffinity") == "ClientIP";
    warn(headless && sticks, "spec.SessionAffinity is ignored for headless services");
    warnings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::strategy::service::STRATEGY;

    fn causes(spec: &Value) -> Vec<String> {
        let mut object = json!({"metadata": {"name": "s"}, "spec": spec});
        (STRATEGY.default)(&mut object);
        (STRATEGY.prepare_create)(&mut object);
        validate(&object).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ports_have_names_when_there_are_several() {
        assert_eq!(causes(&json!({})), ["spec.ports: Required value"]);
        assert_eq!(
            causes(
                &json!({"ports": [{"name": "a", "port": 80}, {"name": "a", "port": 81}, {"name": "b", "port": 80}]})
            ),
            [
                "spec.ports[1].name: Duplicate value: \"a\"",
                "spec.ports[2]: Duplicate value: {\"Name\":\"\",\"Protocol\":\"TCP\",\"AppProtocol\":null,\"Port\":80,\
                 \"TargetPort\":0,\"NodePort\":0}"
            ]
        );
        assert!(
            causes(&json!({"ports": [{"name": "a", "port": 53}, {"name": "b", "port": 53, "protocol": "UDP"}]}))
                .is_empty()
        );
    }

    #[test]
    fn each_type_has_its_fields() {
        let one = json!([{"port": 80, "nodePort": 30000}]);
        assert_eq!(
            causes(&json!({"ports": one})),
            ["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"]
        );
        assert_eq!(
            causes(&json!({"type": "NodePort", "ports": one, "clusterIP": "None"})),
            ["spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services"]
        );
        assert_eq!(
            causes(&json!({"ports": [{"port": 80}], "loadBalancerClass": "a/b", "externalTrafficPolicy": "Local",
                "healthCheckNodePort": 5})),
            [
                "spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'",
                "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services",
                "spec.healthCheckNodePort: Invalid value: 5: may only be set when `type` is 'LoadBalancer' and \
                 `externalTrafficPolicy` is 'Local'"
            ]
        );
    }

    #[test]
    fn the_first_address_is_kept() {
        let with = |ip: &str| json!({"spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip]}});
        let errors = kept(&with("10.96.0.2")["spec"], &with("10.96.0.1")["spec"], "clusterIPs", &Path::new("spec"));
        assert_eq!(
            errors[0].to_string(),
            "spec.clusterIPs[0]: Invalid value: [\"10.96.0.2\"]: may not change once set"
        );
        let named = json!({"type": "ExternalName"});
        assert!(kept(&with("10.96.0.2")["spec"], &named, "clusterIPs", &Path::new("spec")).is_empty());
    }

    #[test]
    fn only_load_balancers_have_points_of_entry() {
        let status_of = |type_: &str, point: Value| {
            let object = json!({"spec": {"type": type_}, "status": {"loadBalancer": {"ingress": [point]}}});
            status(&object, &object["spec"]).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            status_of("ClusterIP", json!({"ip": "192.0.2.1", "ipMode": "VIP"})),
            ["status.loadBalancer.ingress: Forbidden: may only be used when `spec.type` is \"LoadBalancer\""]
        );
        assert_eq!(
            status_of("LoadBalancer", json!({"hostname": "192.0.2.1"})),
            [
                "status.loadBalancer.ingress[0].hostname: Invalid value: \"192.0.2.1\": must be a DNS name, not an IP address"
            ]
        );
    }
}
