//! EndpointSlice: where a Service's traffic goes.

use std::collections::HashSet;

use serde_json::Value;

use super::{BASE, bump_generation, first_generation, set_default};
use crate::field::{ErrorList, Path};
use crate::kind::{Part, Strategy};
use crate::validation::addresses::{self, parse_ip};
use crate::validation::json::{dig, get, items, str_at, texts};
use crate::validation::{metadata, names};

/// What is peculiar to EndpointSlices.
pub const STRATEGY: Strategy = Strategy {
    default,
    prepare_create: |object| {
        drop_topology(object);
        first_generation(object);
    },
    prepare_update,
    validate,
    validate_update: |new, old, _: Part| {
        let mut errors = validate(new);
        let (now, before) = (new.get("addressType"), old.get("addressType"));
        errors.extend(metadata::immutable(now, before, &Path::new("addressType")));
        errors
    },
    ..BASE
};

const ADDRESS_TYPES: [&str; 3] = ["FQDN", "IPv4", "IPv6"];
const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20_000;
const MAX_ZONE_HINTS: usize = 8;

fn default(object: &mut Value) {
    for port in object.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(port) = port.as_object_mut() {
            set_default(port, "name", "");
            set_default(port, "protocol", "TCP");
        }
    }
}

/// Labels of places are of an older version; through this one nobody adds any.
fn drop_topology(object: &mut Value) {
    for endpoint in object.get_mut("endpoints").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(endpoint) = endpoint.as_object_mut() {
            endpoint.shift_remove("deprecatedTopology");
        }
    }
}

/// Everything counts but the metadata, of which labels do.
fn prepare_update(new: &mut Value, old: &Value, _: Part) {
    if get(new, "endpoints") != get(old, "endpoints") {
        drop_topology(new);
    }
    let fields = ["addressType", "endpoints", "ports"];
    let labels = |object| dig(object, &["metadata", "labels"]);
    let changed = fields.into_iter().any(|field| get(new, field) != get(old, field)) || labels(new) != labels(old);
    bump_generation(new, old, changed);
}

fn validate(object: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let kind = str_at(object, "addressType");
    let path = Path::new("addressType");
    if kind.is_empty() {
        errors.push(path.required(""));
    } else if !ADDRESS_TYPES.contains(&kind) {
        errors.push(path.not_supported(kind, &ADDRESS_TYPES));
    }
    let path = Path::new("endpoints");
    let endpoints = items(object, "endpoints");
    if endpoints.len() > MAX_ENDPOINTS {
        errors.push(path.too_many(endpoints.len(), MAX_ENDPOINTS));
    } else {
        for (index, endpoint) in endpoints.iter().enumerate() {
            errors.extend(endpoint_errors(endpoint, kind, &path.index(index)));
        }
    }
    let path = Path::new("ports");
    let ports = items(object, "ports");
    if ports.len() > MAX_PORTS {
        errors.push(path.too_many(ports.len(), MAX_PORTS));
        return errors;
    }
    let mut seen = HashSet::new();
    for (index, port) in ports.iter().enumerate() {
        errors.extend(port_errors(port, &mut seen, &path.index(index)));
    }
    errors
}

fn endpoint_errors(endpoint: &Value, kind: &str, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let field = path.child("addresses");
    let count = items(endpoint, "addresses").len();
    if count == 0 {
        errors.push(field.required("must contain at least 1 address"));
    } else if count > MAX_ADDRESSES {
        errors.push(field.too_many(count, MAX_ADDRESSES));
    }
    for (index, address) in texts(endpoint, "addresses").enumerate() {
        errors.extend(address_errors(address, kind, &field.index(index)));
    }
    if let Some(node) = get(endpoint, "nodeName").and_then(Value::as_str) {
        let wrong = names::dns1123_subdomain(node);
        errors.extend(wrong.into_iter().map(|text| path.child("nodeName").invalid(node, text)));
    }
    if let Some(host) = get(endpoint, "hostname").and_then(Value::as_str) {
        errors.extend(names::dns1123_label(host).into_iter().map(|text| path.child("hostname").invalid(host, text)));
    }
    if let Some(hints) = get(endpoint, "hints") {
        errors.extend(hint_errors(hints, "forZones", &path.child("hints")));
        errors.extend(hint_errors(hints, "forNodes", &path.child("hints")));
    }
    errors
}

fn address_errors(address: &str, kind: &str, path: &Path) -> ErrorList {
    let wants_v4 = match kind {
        "FQDN" => return addresses::domain(address, path),
        "IPv4" => true,
        "IPv6" => false,
        _ => return ErrorList::new(),
    };
    let Some(ip) = parse_ip(address) else { return addresses::ip(address, path) };
    if ip.is_ipv4() != wants_v4 {
        return vec![path.invalid(address, format!("must be an {kind} address"))];
    }
    addresses::of_endpoint(address, path)
}

/// For which zones or nodes an endpoint is meant.
fn hint_errors(hints: &Value, field: &str, path: &Path) -> ErrorList {
    let path = path.child(field);
    let all = items(hints, field);
    if all.len() > MAX_ZONE_HINTS {
        return vec![path.too_many(all.len(), MAX_ZONE_HINTS)];
    }
    let mut errors = ErrorList::new();
    let mut seen = HashSet::new();
    for (index, hint) in all.iter().enumerate() {
        let name = str_at(hint, "name");
        let path = path.index(index).child("name");
        if !seen.insert(name) {
            errors.push(path.duplicate(name));
            continue;
        }
        let wrong = if field == "forZones" { names::label_value(name) } else { names::dns1123_subdomain(name) };
        errors.extend(wrong.into_iter().map(|text| path.invalid(name, text)));
    }
    errors
}

fn port_errors<'a>(port: &'a Value, seen: &mut HashSet<&'a str>, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let name = str_at(port, "name");
    if !name.is_empty() {
        errors.extend(names::dns1123_label(name).into_iter().map(|text| path.child("name").invalid(name, text)));
    }
    if !seen.insert(name) {
        errors.push(path.child("name").duplicate(name));
    }
    let protocol = str_at(port, "protocol");
    if !PROTOCOLS.contains(&protocol) {
        errors.push(path.child("protocol").not_supported(protocol, &PROTOCOLS));
    }
    if let Some(text) = get(port, "appProtocol").and_then(Value::as_str) {
        errors.extend(names::qualified_name(text).into_iter().map(|why| path.child("appProtocol").invalid(text, why)));
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn messages(object: &Value) -> Vec<String> {
        validate(object).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn addresses_are_of_the_type_of_the_slice() {
        let of = |kind: &str, address: &str| {
            messages(&json!({"addressType": kind, "endpoints": [{"addresses": [address]}]}))
        };
        assert!(of("IPv4", "192.0.2.1").is_empty() && of("IPv6", "2001:db8::1").is_empty());
        assert!(of("FQDN", "a.example").is_empty());
        let at = "endpoints[0].addresses[0]";
        assert_eq!(
            of("IPv4", "2001:db8::1"),
            [format!("{at}: Invalid value: \"2001:db8::1\": must be an IPv4 address")]
        );
        assert_eq!(of("IPv6", "127.0.0.1").len(), 1);
        assert_eq!(
            of("X", "1"),
            ["addressType: Unsupported value: \"X\": supported values: \"FQDN\", \"IPv4\", \"IPv6\""]
        );
    }

    #[test]
    fn ports_have_names_of_their_own() {
        let mut slice = json!({"addressType": "IPv4", "ports": [{"port": 80}, {"port": 81}]});
        default(&mut slice);
        assert_eq!(slice["ports"][0], json!({"port": 80, "name": "", "protocol": "TCP"}));
        assert_eq!(messages(&slice), ["ports[1].name: Duplicate value: \"\""]);
    }

    #[test]
    fn the_generation_counts_labels_of_the_metadata_alone() {
        let old = json!({"metadata": {"generation": 1}, "endpoints": [], "ports": []});
        let mut new = json!({"metadata": {"annotations": {"a": "b"}}, "endpoints": [], "ports": []});
        prepare_update(&mut new, &old, Part::Main);
        assert_eq!(new["metadata"]["generation"], 1);
        let mut labelled = json!({"metadata": {"labels": {"a": "b"}}, "endpoints": [], "ports": []});
        prepare_update(&mut labelled, &old, Part::Main);
        assert_eq!(labelled["metadata"]["generation"], 2);
        new["ports"] = json!([{"port": 1}]);
        prepare_update(&mut new, &old, Part::Main);
        assert_eq!(new["metadata"]["generation"], 2);
    }
}
