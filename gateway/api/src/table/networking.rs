//! Columns of what brings traffic to pods: Ingress, IngressClass, NetworkPolicy, IPAddress, ServiceCIDR, EndpointSlice.

use std::collections::BTreeSet;

use serde_json::Value;

use super::NAME;
use super::cells::{AGE, column, list, selector, text, text_or};
use crate::kind::Column;

/// Columns of Ingresses.
pub const INGRESS: &[Column] = &[
    NAME,
    column("Class", "string", 0, |object, _| text_or(object, "/spec/ingressClassName", "<none>").into()),
    column("Hosts", "string", 0, |object, _| hosts(object).into()),
    column("Address", "string", 0, |object, _| address(object).into()),
    column("Ports", "string", 0, |object, _| {
        if list(object, "/spec/tls").is_empty() { "80" } else { "80, 443" }.into()
    }),
    AGE,
];

/// Columns of IngressClasses.
pub const INGRESS_CLASS: &[Column] = &[
    NAME,
    column("Controller", "string", 0, |object, _| text(object, "/spec/controller").into()),
    column("Parameters", "string", 0, |object, _| parameters(object).into()),
    AGE,
];

/// Columns of NetworkPolicies.
pub const NETWORK_POLICY: &[Column] = &[
    NAME,
    column("Pod-Selector", "string", 0, |object, _| {
        let shown = selector(object.pointer("/spec/podSelector").unwrap_or(&Value::Null));
        if shown.is_empty() { "<none>".into() } else { shown.into() }
    }),
    AGE,
];

/// Columns of IPAddresses.
pub const IP_ADDRESS: &[Column] = &[NAME, column("ParentRef", "string", 0, |object, _| parent(object).into())];

/// Columns of ServiceCIDRs.
pub const SERVICE_CIDR: &[Column] =
    &[NAME, column("CIDRs", "string", 0, |object, _| texts(list(object, "/spec/cidrs")).join(",").into()), AGE];

/// Columns of EndpointSlices.
pub const ENDPOINT_SLICE: &[Column] = &[
    NAME,
    column("AddressType", "string", 0, |object, _| text(object, "/addressType").into()),
    column("Ports", "string", 0, |object, _| first_of(&ports(object)).into()),
    column("Endpoints", "string", 0, |object, _| {
        let addresses: Vec<&str> =
            list(object, "/endpoints").iter().flat_map(|endpoint| texts(list(endpoint, "/addresses"))).collect();
        first_of(&addresses).into()
    }),
    AGE,
];

/// How many entries of a list are shown.
const SHOWN: usize = 3;
/// The longest list of addresses that is shown in full.
const ADDRESS_WIDTH: usize = 16;

fn texts(values: &[Value]) -> Vec<&str> {
    values.iter().map(|value| value.as_str().unwrap_or_default()).collect()
}

fn hosts(ingress: &Value) -> String {
    let rules = list(ingress, "/spec/rules");
    let named: Vec<&str> = rules.iter().map(|rule| text(rule, "/host")).filter(|host| !host.is_empty()).collect();
    if named.is_empty() {
        return "*".to_owned();
    }
    let shown = named[..named.len().min(SHOWN)].join(",");
    // Rules without a host count as what is left out, but only after those that are shown.
    let full = rules.iter().scan(0, |seen, rule| {
        let before = *seen;
        *seen += usize::from(!text(rule, "/host").is_empty());
        Some(before)
    });
    if full.max().unwrap_or(0) >= SHOWN { format!("{shown} + {} more...", rules.len() - SHOWN) } else { shown }
}

fn address(ingress: &Value) -> String {
    let places = list(ingress, "/status/loadBalancer/ingress");
    let shown: BTreeSet<&str> = places.iter().map(|place| text_or(place, "/ip", text(place, "/hostname"))).collect();
    let all = shown.into_iter().filter(|place| !place.is_empty()).collect::<Vec<_>>().join(",");
    match all.get(..ADDRESS_WIDTH - 3) {
        Some(start) if all.len() > ADDRESS_WIDTH => format!("{start}..."),
        _ => all,
    }
}

fn parameters(class: &Value) -> String {
    let Some(parameters) = class.pointer("/spec/parameters").filter(|value| !value.is_null()) else {
        return "<none>".to_owned();
    };
    let kind = text(parameters, "/kind");
    let name = text(parameters, "/name");
    match parameters["apiGroup"].as_str() {
        Some(group) => format!("{kind}.{group}/{name}"),
        None => format!("{kind}/{name}"),
    }
}

fn parent(address: &Value) -> String {
    let Some(parent) = address.pointer("/spec/parentRef").filter(|value| !value.is_null()) else {
        return "<none>".to_owned();
    };
    let mut shown = text(parent, "/resource").to_lowercase();
    for (before, field) in [('.', "/group"), ('/', "/namespace"), ('/', "/name")] {
        let part = text(parent, field);
        if !part.is_empty() {
            shown.push(before);
            shown.push_str(part);
        }
    }
    shown
}

fn ports(slice: &Value) -> Vec<String> {
    let shown = |port: &Value| match (port["port"].as_i64(), port["name"].as_str()) {
        (Some(number), _) => number.to_string(),
        (None, Some(name)) => name.to_owned(),
        (None, None) => "*".to_owned(),
    };
    list(slice, "/ports").iter().map(shown).collect()
}

fn first_of<T: AsRef<str>>(all: &[T]) -> String {
    let shown = all.iter().take(SHOWN).map(AsRef::as_ref).collect::<Vec<_>>().join(",");
    match all.len() {
        0 => "<unset>".to_owned(),
        count if count > SHOWN => format!("{shown} + {} more...", count - SHOWN),
        _ => shown,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn hosts_are_listed_as_far_as_there_is_room() {
        let of = |hosts: &[&str]| {
            let rules: Vec<Value> = hosts.iter().map(|host| json!({"host": host})).collect();
            super::hosts(&json!({"spec": {"rules": rules}}))
        };
        assert_eq!((of(&[]).as_str(), of(&["a", "b"]).as_str()), ("*", "a,b"));
        assert_eq!(of(&["a", "b", "c"]), "a,b,c");
        assert_eq!(of(&["a", "b", "c", "d", "e"]), "a,b,c + 2 more...");
    }

    #[test]
    fn many_addresses_are_cut_off() {
        let ingress =
            json!({"status": {"loadBalancer": {"ingress": [{"ip": "10.0.0.2"}, {"hostname": "lb.example"}]}}});
        assert_eq!(address(&ingress), "10.0.0.2,lb.e...");
    }

    #[test]
    fn an_endpoint_slice_shows_its_first_ports() {
        let slice = json!({"ports": [{"port": 80}, {"name": "x"}, {}]});
        assert_eq!(first_of(&ports(&slice)), "80,x,*");
        assert_eq!(first_of::<String>(&[]), "<unset>");
        assert_eq!(first_of(&["a", "b", "c", "d"]), "a,b,c + 1 more...");
    }

    #[test]
    fn references_name_their_group() {
        let class = json!({"spec": {"parameters": {"apiGroup": "g.example", "kind": "K", "name": "n"}}});
        assert_eq!(parameters(&class), "K.g.example/n");
        let address = json!({"spec": {"parentRef": {"resource": "services", "namespace": "d", "name": "k"}}});
        assert_eq!(parent(&address), "services/d/k");
    }
}
