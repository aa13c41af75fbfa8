//! A Service with its endpoints, as DNS is told of it.

use super::frontends::{cluster_ip, protocol};
use carob_network::{NamedEndpoint, NamedPort, ServiceNames};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

/// What a Service's name stands for; nothing while it has no address.
pub(super) fn of<'a>(service: &Service, slices: impl Iterator<Item = &'a EndpointSlice>) -> Option<ServiceNames> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return Some(ServiceNames::Alias(spec.external_name.clone()?));
    }
    if let Some(address) = cluster_ip(spec) {
        let ports = spec.ports.iter().flatten();
        let ports = ports.filter_map(|port| named(port.name.as_ref(), port.protocol.as_deref(), port.port)).collect();
        return Some(ServiceNames::Address { address, ports });
    }
    (spec.cluster_ip.as_deref() == Some("None")).then(|| {
        ServiceNames::Endpoints(slices.filter(|slice| slice.address_type == "IPv4").flat_map(endpoints).collect())
    })
}

fn named(name: Option<&String>, transport: Option<&str>, port: i32) -> Option<NamedPort> {
    let name = name.cloned().unwrap_or_default();
    Some(NamedPort { name, protocol: protocol(transport)?, port: u16::try_from(port).ok()? })
}

/// The endpoints that are ready; the controller says so of all where a Service publishes others as well.
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
        let addresses = endpoint.addresses.iter().filter_map(|address| address.parse().ok());
        addresses.map(move |address| NamedEndpoint {
            hostname: endpoint.hostname.clone(),
            address,
            ports: ports.clone(),
        })
    })
}
