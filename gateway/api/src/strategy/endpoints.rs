//! `Endpoints`: what `EndpointSlice`s have taken the place of.

use serde_json::Value;

use super::{BASE, set_default_text};
use crate::field::{ErrorList, Path};
use crate::kind::Strategy;
use crate::validation::json::{get, int, items, str_at};
use crate::validation::{addresses, names};

/// What is peculiar to `Endpoints`.
pub const STRATEGY: Strategy =
    Strategy { default, validate, validate_update: |new, _, _| validate(new), create_on_update: true, ..BASE };

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

fn default(object: &mut Value) {
    for subset in object.get_mut("subsets").and_then(Value::as_array_mut).into_iter().flatten() {
        let ports = subset.get_mut("ports").and_then(Value::as_array_mut);
        for port in ports.into_iter().flatten().filter_map(Value::as_object_mut) {
            set_default_text(port, "protocol", "TCP");
        }
    }
}

fn validate(object: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    for (index, subset) in items(object, "subsets").iter().enumerate() {
        let path = Path::new("subsets").index(index);
        if items(subset, "addresses").is_empty() && items(subset, "notReadyAddresses").is_empty() {
            errors.push(path.required("must specify `addresses` or `notReadyAddresses`"));
        }
        for field in ["addresses", "notReadyAddresses"] {
            for (index, item) in items(subset, field).iter().enumerate() {
                errors.extend(address(item, &path.child(field).index(index)));
            }
        }
        let ports = items(subset, "ports");
        for (index, item) in ports.iter().enumerate() {
            errors.extend(port(item, ports.len() > 1, &path.child("ports").index(index)));
        }
    }
    errors
}

fn address(address: &Value, path: &Path) -> ErrorList {
    let (ip, host) = (str_at(address, "ip"), str_at(address, "hostname"));
    let field = path.child("ip");
    let mut errors = addresses::ip(ip, &field);
    if errors.is_empty() {
        errors.extend(addresses::of_endpoint(ip, &field));
    }
    if !host.is_empty() {
        let field = path.child("hostname");
        errors.extend(names::dns1123_label(host).into_iter().map(|why| field.invalid(host, why)));
    }
    if let Some(node) = get(address, "nodeName").and_then(Value::as_str) {
        let field = path.child("nodeName");
        errors.extend(names::dns1123_subdomain(node).into_iter().map(|why| field.invalid(node, why)));
    }
    errors
}

fn port(port: &Value, named: bool, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let (name, protocol) = (str_at(port, "name"), str_at(port, "protocol"));
    let field = path.child("name");
    if !name.is_empty() {
        errors.extend(names::dns1123_label(name).into_iter().map(|why| field.invalid(name, why)));
    } else if named {
        errors.push(field.required(""));
    }
    let number = int(port, "port").unwrap_or(0);
    errors.extend(names::port_number(number).into_iter().map(|why| path.child("port").invalid(number, why)));
    if protocol.is_empty() {
        errors.push(path.child("protocol").required(""));
    } else if !PROTOCOLS.contains(&protocol) {
        errors.push(path.child("protocol").not_supported(protocol, &PROTOCOLS));
    }
    if let Some(application) = get(port, "appProtocol").and_then(Value::as_str) {
        let field = path.child("appProtocol");
        errors.extend(names::qualified_name(application).into_iter().map(|why| field.invalid(application, why)));
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_subset_has_addresses_and_named_ports() {
        let mut object = json!({"subsets": [{"ports": [{"port": 80}, {"port": 0, "protocol": "X"}]},
            {"addresses": [{"ip": "127.0.0.1"}, {"ip": "x"}]}]});
        default(&mut object);
        let texts: Vec<_> = validate(&object).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`",
                "subsets[0].ports[0].name: Required value",
                "subsets[0].ports[1].name: Required value",
                "subsets[0].ports[1].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "subsets[0].ports[1].protocol: Unsupported value: \"X\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
                "subsets[1].addresses[0].ip: Invalid value: \"127.0.0.1\": may not be in the loopback range \
                 (127.0.0.0/8, ::1/128)",
                "subsets[1].addresses[1].ip: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or \
                 2001:db8::ffff)"
            ]
        );
    }
}
