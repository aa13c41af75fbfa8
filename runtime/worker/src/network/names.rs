//! A Service with its endpoints, as DNS is told of it.

use super::frontends::{cluster_ips, protocol};
use carob_network::{NamedEndpoint, NamedPort, ServiceNames};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use std::net::IpAddr;

/// What a Service's name stands for; nothing while it has no address.
pub(super) fn of<'a>(service: &Service, slices: impl Iterator<Item = &'a EndpointSlice>) -> Option<ServiceNames> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return Some(ServiceNames::Alias(spec.external_name.clone()?));
    }
    let addresses: Vec<IpAddr> = cluster_ips(spec).collect();
    if !addresses.is_empty() {
        let ports = spec.ports.iter().flatten();
        let ports = ports.filter_map(|port| named(port.name.as_ref(), port.protocol.as_deref(), port.port)).collect();
        return Some(ServiceNames::Address { addresses, ports });
    }
    (spec.cluster_ip.as_deref() == Some("None")).then(|| ServiceNames::Endpoints(slices.flat_map(endpoints).collect()))
}

fn named(name: Option<&String>, transport: Option<&str>, port: i32) -> Option<NamedPort> {
    let name = name.cloned().unwrap_or_default();
    Some(NamedPort { name, protocol: protocol(transport)?, port: u16::try_from(port).ok()? })
}

/// The endpoints that are ready; the controller says so of all where a Service publishes others as well. A slice of names has
/// none: only addresses get names.
fn endpoints(slice: &EndpointSlice) -> impl Iterator<Item = NamedEndpoint> {
    let ports = slice.ports.iter().flatten();
    let ports: Vec<_> =
        ports.filter_map(|port| named(port.name.as_ref(), port.protocol.as_deref(), port.port?)).collect();
    let ready = slice
        .endpoints
        .iter()
        .filter(|endpoint| endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true));
    ready.flat_map(move |endpoint| {
        let ports = ports.clone();
        let addresses = endpoint.addresses.iter().filter_map(move |address| address_of(&slice.address_type, address));
        addresses.map(move |address| NamedEndpoint {
            hostname: endpoint.hostname.clone(),
            address,
            ports: ports.clone(),
        })
    })
}

/// An address of a slice, if it is one of the slice's type.
fn address_of(kind: &str, text: &str) -> Option<IpAddr> {
    match kind {
        "IPv4" => text.parse().ok().map(IpAddr::V4),
        "IPv6" => text.parse().ok().map(IpAddr::V6),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn service(spec: Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "n"}, "spec": spec})).unwrap()
    }

    #[test]
    fn a_service_has_all_its_cluster_addresses() {
        let addresses = |spec| match of(&service(spec), std::iter::empty()) {
            Some(ServiceNames::Address { addresses, .. }) => addresses.iter().map(IpAddr::to_string).collect(),
            _ => Vec::new(),
        };
        let both = json!({"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9", "fd00:96::9"]});
        assert_eq!(addresses(both), ["10.96.0.9", "fd00:96::9"]);
        assert_eq!(addresses(json!({"clusterIP": "fd00:96::9", "clusterIPs": ["fd00:96::9"]})), ["fd00:96::9"]);
        assert_eq!(addresses(json!({"clusterIP": "10.96.0.9"})), ["10.96.0.9"]);
        assert!(addresses(json!({})).is_empty());
    }

    #[test]
    fn a_headless_service_has_the_ready_endpoints_of_both_families() {
        let slice = |kind: &str, endpoints: Value| -> EndpointSlice {
            let slice = json!({"metadata": {"name": "s", "namespace": "n"}, "addressType": kind, "endpoints": endpoints,
                "ports": [{"name": "web", "port": 80}]});
            serde_json::from_value(slice).unwrap()
        };
        let slices = [
            slice("IPv4", json!([{"addresses": ["10.42.0.2"], "hostname": "a"}, {"addresses": ["fd00::1"]}])),
            slice(
                "IPv6",
                json!([{"addresses": ["fd00:42::a2a:2"], "hostname": "a"},
                {"addresses": ["fd00:42::a2a:3"], "conditions": {"ready": false}}]),
            ),
            slice("FQDN", json!([{"addresses": ["10.42.0.9"]}, {"addresses": ["one.example.test"]}])),
        ];
        let headless = service(json!({"clusterIP": "None", "clusterIPs": ["None"]}));
        let Some(ServiceNames::Endpoints(endpoints)) = of(&headless, slices.iter()) else { panic!("no endpoints") };
        let found: Vec<_> =
            endpoints.iter().map(|one| (one.hostname.as_deref(), one.address.to_string(), one.ports[0].port)).collect();
        assert_eq!(found, [(Some("a"), "10.42.0.2".to_owned(), 80), (Some("a"), "fd00:42::a2a:2".to_owned(), 80)]);
    }
}
