//! Where a Service leads: its ready endpoints, by EndpointSlices.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use crate::route::{Affinity, Backend, Protocol};
use crate::state::{Key, State};

/// How a port of a Service is named.
#[derive(Clone, Copy)]
pub enum PortName<'a> {
    Number(u16),
    Name(&'a str),
}

/// Why a Service can't be sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    Service,
    Port,
    /// It is a name of something elsewhere.
    External,
    /// It speaks something that isn't spoken here.
    Protocol,
}

/// What speaks HTTP/2 without TLS says so.
const HTTP2: [&str; 3] = ["kubernetes.io/h2c", "h2c", "grpc"];
/// What speaks TLS: no endpoint is spoken to in it, and none of these without it.
const TLS: [&str; 5] = ["https", "kubernetes.io/wss", "wss", "tls", "ssl"];

/// The endpoints of one port of a Service but for the proxy itself. None of them may be ready.
pub fn find(state: &State, service: &Key, port: PortName<'_>) -> Result<Arc<Backend>, Missing> {
    let object = state.services.get(service).ok_or(Missing::Service)?;
    let spec = object.spec.as_ref().ok_or(Missing::Service)?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return Err(Missing::External);
    }
    let port = port_of(object, port).ok_or(Missing::Port)?;
    let slices = state.slices.get(service).map_or(&[][..], Vec::as_slice);
    let speaks = port.app_protocol.as_deref().unwrap_or_default();
    if TLS.contains(&speaks) {
        return Err(Missing::Protocol);
    }
    let protocol = if HTTP2.contains(&speaks) { Protocol::Http2 } else { Protocol::Guess };
    let mut endpoints = endpoints(slices, port, primary_family(spec));
    endpoints.retain(|at| !state.own.contains(at));
    let mut backend = Backend::new(endpoints, protocol);
    backend.affinity = affinity(spec, service, port);
    Ok(Arc::new(backend))
}

/// `sessionAffinityConfig.clientIP.timeoutSeconds` where it isn't given.
const AFFINITY_SECONDS: i32 = 10_800;

fn affinity(spec: &ServiceSpec, service: &Key, port: &ServicePort) -> Option<Affinity> {
    (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
        let seconds = config.and_then(|config| config.timeout_seconds).unwrap_or(AFFINITY_SECONDS);
        Affinity {
            whose: format!("{}/{}:{}", service.namespace, service.name, port.port).into(),
            time: Duration::from_secs(u64::try_from(seconds).unwrap_or_default()),
        }
    })
}

fn port_of<'a>(service: &'a Service, wanted: PortName<'_>) -> Option<&'a ServicePort> {
    let ports = service.spec.as_ref()?.ports.iter().flatten();
    // One number may be that of a port for UDP as well.
    let mut ports = ports.filter(|port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"));
    ports.find(|port| match wanted {
        PortName::Number(number) => port.port == i32::from(number),
        PortName::Name(name) => port.name.as_deref() == Some(name),
    })
}

/// The family of a Service's first address: an endpoint has an address of each family that the Service has.
fn primary_family(spec: &ServiceSpec) -> &str {
    let named = spec.ip_families.iter().flatten().next().map(String::as_str);
    let of_address = || Some(if spec.cluster_ip.as_ref()?.contains(':') { "IPv6" } else { "IPv4" });
    named.or_else(of_address).unwrap_or("IPv4")
}

/// Those that are ready, of the first family if it has any; if there are none, those that still serve while they end.
fn endpoints(slices: &[Arc<EndpointSlice>], port: &ServicePort, family: &str) -> Vec<SocketAddr> {
    // By how much they are wanted.
    let mut all: [BTreeSet<SocketAddr>; 4] = Default::default();
    for slice in slices {
        let name = |name: &Option<String>| name.clone().unwrap_or_default();
        let same = slice.ports.iter().flatten().find(|known| name(&known.name) == name(&port.name));
        let Some(number) = same.and_then(|port| u16::try_from(port.port?).ok()) else { continue };
        for endpoint in &slice.endpoints {
            let Some(is_ready) = takes_requests(endpoint) else { continue };
            let addresses = endpoint.addresses.iter().filter_map(|text| address(&slice.address_type, text));
            for address in addresses.filter(|address| is_elsewhere(*address)) {
                let rank = 2 * usize::from(!is_ready) + usize::from(slice.address_type != family);
                all[rank].insert(SocketAddr::new(address, number));
            }
        }
    }
    all.into_iter().find(|set| !set.is_empty()).unwrap_or_default().into_iter().collect()
}

/// An address of a slice, if it is one of the slice's type; names are none.
fn address(kind: &str, text: &str) -> Option<IpAddr> {
    match kind {
        "IPv4" => text.parse().ok().map(IpAddr::V4),
        "IPv6" => text.parse().ok().map(IpAddr::V6),
        _ => None,
    }
}

/// Whether it is ready or only still serves; nothing if it takes no requests. What isn't said counts as ready.
fn takes_requests(endpoint: &Endpoint) -> Option<bool> {
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    let ending = conditions.serving.unwrap_or(ready) && conditions.terminating.unwrap_or(false);
    (ready || ending).then_some(ready)
}

/// Where clouds tell a machine's secrets by IPv6: AWS, Google.
const METADATA: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

/// Whoever writes endpoints must not reach what only this machine may.
fn is_elsewhere(address: IpAddr) -> bool {
    let address = address.to_canonical();
    let local = match address {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || METADATA.contains(&ip),
    };
    !(local || address.is_loopback() || address.is_unspecified() || address.is_multicast())
}
