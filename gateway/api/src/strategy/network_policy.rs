//! NetworkPolicy: which pods may talk to which.

use serde_json::{Value, json};

use super::{BASE, first_generation, object_at, set_default, update_spec_or_status};
use crate::field::{ErrorList, Path};
use crate::kind::Strategy;
use crate::validation::addresses::{self, contains, parse_range};
use crate::validation::json::{get, int, items, str_at, texts};
use crate::validation::names;
use crate::validation::selectors::label_selector;

/// What is peculiar to NetworkPolicies.
pub const STRATEGY: Strategy = Strategy {
    default,
    prepare_create: first_generation,
    prepare_update: update_spec_or_status,
    validate,
    validate_update: |new, _, _| validate(new),
    ..BASE
};

/// Rules of one direction, and where they say who is at the other end.
const DIRECTIONS: [(&str, &str); 2] = [("ingress", "from"), ("egress", "to")];
const TYPES: [&str; 2] = ["Ingress", "Egress"];

fn default(object: &mut Value) {
    let Some(spec) = object_at(object, "spec") else { return };
    for (rules, _) in DIRECTIONS {
        for rule in spec.get_mut(rules).and_then(Value::as_array_mut).into_iter().flatten() {
            for port in rule.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
                if let Some(port) = port.as_object_mut() {
                    set_default(port, "protocol", "TCP");
                }
            }
        }
    }
    let filled = |field| spec.get(field).and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    if !filled("policyTypes") {
        let types = if filled("egress") { json!(TYPES) } else { json!(["Ingress"]) };
        spec.insert("policyTypes".to_owned(), types);
    }
}

fn validate(object: &Value) -> ErrorList {
    let path = Path::new("spec");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let selector = spec.get("podSelector").unwrap_or(&Value::Null);
    let mut errors = label_selector(selector, &path.child("podSelector"));
    for (rules, peers) in DIRECTIONS {
        for (index, rule) in items(spec, rules).iter().enumerate() {
            let path = path.child(rules).index(index);
            for (index, port) in items(rule, "ports").iter().enumerate() {
                errors.extend(port_errors(port, &path.child("ports").index(index)));
            }
            for (index, peer) in items(rule, peers).iter().enumerate() {
                errors.extend(peer_errors(peer, &path.child(peers).index(index)));
            }
        }
    }
    let path = path.child("policyTypes");
    if items(spec, "policyTypes").len() > TYPES.len() {
        errors.push(path.invalid(spec["policyTypes"].clone(), "may not specify more than two policyTypes"));
        return errors;
    }
    for (index, policy_type) in texts(spec, "policyTypes").enumerate().filter(|(_, text)| !TYPES.contains(text)) {
        errors.push(path.index(index).not_supported(policy_type, &TYPES));
    }
    errors
}

fn port_errors(entry: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    if let Some(protocol) = get(entry, "protocol").and_then(Value::as_str)
        && !["TCP", "UDP", "SCTP"].contains(&protocol)
    {
        errors.push(path.child("protocol").not_supported(protocol, &["TCP", "UDP", "SCTP"]));
    }
    let (field, end_field) = (path.child("port"), path.child("endPort"));
    let end = int(entry, "endPort");
    match get(entry, "port") {
        None => {
            errors.extend(end.map(|end| end_field.invalid(end, "may not be specified when `port` is not specified")));
        }
        Some(Value::String(name)) => {
            errors.extend(end.map(|end| end_field.invalid(end, "may not be specified when `port` is non-numeric")));
            errors.extend(names::port_name(name).into_iter().map(|text| field.invalid(name.as_str(), text)));
        }
        Some(number) => {
            let number = number.as_i64().unwrap_or(0);
            errors.extend(names::port_number(number).into_iter().map(|text| field.invalid(number, text)));
            if let Some(end) = end {
                if end < number {
                    errors.push(end_field.invalid(end, "must be greater than or equal to `port`"));
                }
                errors.extend(names::port_number(end).into_iter().map(|text| end_field.invalid(end, text)));
            }
        }
    }
    errors
}

fn peer_errors(peer: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut peers = 0;
    for field in ["podSelector", "namespaceSelector"] {
        if let Some(selector) = get(peer, field) {
            peers += 1;
            errors.extend(label_selector(selector, &path.child(field)));
        }
    }
    let block = get(peer, "ipBlock");
    if let Some(block) = block {
        peers += 1;
        errors.extend(block_errors(block, &path.child("ipBlock")));
    }
    if peers == 0 {
        errors.push(path.required("must specify a peer"));
    } else if peers > 1 && block.is_some() {
        errors.push(path.forbidden("may not specify both ipBlock and another peer"));
    }
    errors
}

fn block_errors(block: &Value, path: &Path) -> ErrorList {
    let text = str_at(block, "cidr");
    if text.is_empty() {
        return vec![path.child("cidr").required("")];
    }
    let Some(range) = parse_range(text) else { return addresses::range(text, &path.child("cidr")) };
    let mut errors = ErrorList::new();
    for (index, text) in texts(block, "except").enumerate() {
        let path = path.child("except").index(index);
        let Some((start, bits)) = parse_range(text) else {
            errors.extend(addresses::range(text, &path));
            continue;
        };
        if !contains(range, start) || range.1 >= bits {
            errors.push(path.invalid(text, "must be a strict subset of `cidr`"));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(spec: &Value) -> Vec<String> {
        validate(&json!({"spec": spec})).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_policy_is_about_what_it_has_rules_for() {
        let mut policy = json!({"spec": {"egress": [{"ports": [{"port": 53}]}]}});
        default(&mut policy);
        assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
        assert_eq!(policy["spec"]["egress"][0]["ports"][0]["protocol"], "TCP");
        let mut policy = json!({"spec": {}});
        default(&mut policy);
        assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress"]));
    }

    #[test]
    fn a_range_of_ports_ends_after_it_begins() {
        let of = |port: Value| messages(&json!({"ingress": [{"ports": [port]}]}));
        assert!(of(json!({"port": 80, "endPort": 90})).is_empty());
        assert_eq!(
            of(json!({"port": 80, "endPort": 70})),
            ["spec.ingress[0].ports[0].endPort: Invalid value: 70: must be greater than or equal to `port`"]
        );
        assert_eq!(of(json!({"port": "http", "endPort": 70})).len(), 1);
        assert_eq!(of(json!({"endPort": 70})).len(), 1);
    }

    #[test]
    fn exceptions_lie_within_their_block() {
        let of = |except: &str| {
            messages(&json!({"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": [except]}}]}]}))
        };
        assert!(of("10.1.0.0/16").is_empty());
        for wrong in ["11.0.0.0/16", "10.0.0.0/8", "x"] {
            assert_eq!(of(wrong).len(), 1, "{wrong}");
        }
        assert_eq!(
            messages(&json!({"ingress": [{"from": [{"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}]}]})),
            ["spec.ingress[0].from[0]: Forbidden: may not specify both ipBlock and another peer"]
        );
    }
}
