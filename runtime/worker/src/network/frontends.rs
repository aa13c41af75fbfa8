//! A Service with its endpoints, as the network is told of it: which addresses and ports lead where, for whom.
//!
//! The rules are those of kube-proxy (Service's `internalTrafficPolicy`, `externalTrafficPolicy`, EndpointSlice's conditions).

use carob_network::{Backend, Frontend, IpNet, Protocol, Side, block_without, merged, next_address};
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// `sessionAffinityConfig.clientIP.timeoutSeconds` where it isn't given.
const AFFINITY_SECONDS: i32 = 10_800;

/// Where connections begin: what is near is near to here.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub node: &'a str,
    pub zone: Option<&'a str>,
}

/// What leads to a Service, on this node. Nothing for those without an address: headless ones and names of others.
pub(super) fn of<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    place: Place<'_>,
) -> HashMap<Frontend, Backend> {
    let mut frontends = HashMap::new();
    let Some(spec) = &service.spec else { return frontends };
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    let cluster_ips: Vec<IpAddr> = cluster_ips(spec).filter(|_| kind != "ExternalName").collect();
    for (cluster_ip, port) in cluster_ips.iter().flat_map(|ip| spec.ports.iter().flatten().map(move |port| (*ip, port)))
    {
        let (Some(protocol), Ok(number)) = (protocol(port.protocol.as_deref()), u16::try_from(port.port)) else {
            continue;
        };
        let alike = |address: &IpAddr| address.is_ipv4() == cluster_ip.is_ipv4();
        let endpoints = Endpoints::of(port, slices.clone().filter(|slice| is_of(slice, cluster_ip)), place);
        let affinity = affinity(spec);
        let internal = endpoints.backend(spec.internal_traffic_policy.as_deref(), affinity);
        let external = endpoints.backend(spec.external_traffic_policy.as_deref(), affinity);
        // Who is inside and uses a way from outside doesn't come from another node: the policy isn't for them.
        let anywhere = endpoints.backend(None, affinity);
        let mut lead = |side, address, port, backend: &Backend| {
            frontends.insert(Frontend { side, address, protocol, port }, backend.clone());
        };
        lead(Side::Inside, cluster_ip, number, &internal);
        for address in spec.external_ips.iter().flatten().filter_map(|ip| ip.parse().ok()).filter(alike) {
            lead(Side::Inside, address, number, &anywhere);
            lead(Side::Outside, address, number, &external);
        }
        let clients = source_ranges(spec, cluster_ip);
        for address in balanced_addresses(service).filter(alike) {
            lead(Side::Inside, address, number, &only_for(anywhere.clone(), clients.as_ref()));
            lead(Side::Outside, address, number, &only_for(external.clone(), clients.as_ref()));
        }
        if let Some(node_port) = port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0) {
            let everywhere =
                if cluster_ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            lead(Side::Inside, everywhere, node_port, &anywhere);
            lead(Side::Outside, everywhere, node_port, &external);
        }
    }
    frontends
}

/// A Service's own addresses, one of each kind that it has.
pub(super) fn cluster_ips(spec: &ServiceSpec) -> impl Iterator<Item = IpAddr> {
    let all = spec.cluster_ips.as_deref().filter(|all| !all.is_empty()).unwrap_or(spec.cluster_ip.as_slice());
    all.iter().filter_map(|ip| ip.parse().ok())
}

/// Whether a slice has addresses of this one's kind.
fn is_of(slice: &EndpointSlice, address: IpAddr) -> bool {
    slice.address_type == if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// Addresses that a load balancer of this node's own answers at.
pub(super) fn balanced_addresses(service: &Service) -> impl Iterator<Item = IpAddr> {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref()).into_iter().flatten();
    // A balancer of mode Proxy sends to nodes; only a virtual address is a node's own business.
    let virtual_ips =
        ingress.filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy")).filter_map(|ingress| ingress.ip.as_ref());
    virtual_ips.filter_map(|ip| ip.parse().ok())
}

/// Addresses of a Service that it may share with others.
pub(super) fn other_addresses(service: &Service) -> impl Iterator<Item = IpAddr> {
    let external = service.spec.iter().flat_map(|spec| spec.external_ips.iter().flatten());
    external.filter_map(|ip| ip.parse().ok()).chain(balanced_addresses(service))
}

type Clients = Vec<(IpAddr, IpAddr)>;

/// Who may use a load balancer, of those with addresses of this one's kind; none if everybody.
fn source_ranges(spec: &ServiceSpec, balancer: IpAddr) -> Option<Clients> {
    let ranges = spec.load_balancer_source_ranges.as_ref().filter(|ranges| !ranges.is_empty())?;
    let blocks = ranges.iter().filter_map(|range| range.trim().parse::<IpNet>().ok());
    let blocks = blocks.filter(|block| block.addr().is_ipv4() == balancer.is_ipv4());
    Some(merged(blocks.flat_map(|block| block_without(block, &[])).collect(), next_address))
}

fn only_for(backend: Backend, only: Option<&Clients>) -> Backend {
    match backend {
        Backend::Endpoints { endpoints, affinity, .. } => {
            Backend::Endpoints { endpoints, affinity, clients: only.cloned() }
        }
        other => other,
    }
}

/// The port at which an outside balancer asks for this node's health, and how many endpoints of the Service are here.
pub(super) fn health_check<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    place: Place<'_>,
) -> Option<(u16, usize)> {
    let spec = service.spec.as_ref()?;
    let port = u16::try_from(spec.health_check_node_port?).ok().filter(|port| *port > 0)?;
    // With two addresses each is one endpoint all the same.
    let first = cluster_ips(spec).next()?;
    let slices = slices.filter(|slice| is_of(slice, first));
    let ports = spec.ports.iter().flatten().map(|port| Endpoints::of(port, slices.clone(), place).ready_here);
    let here: BTreeSet<IpAddr> = ports.flatten().map(|endpoint| endpoint.ip()).collect();
    Some((port, here.len()))
}

fn affinity(spec: &ServiceSpec) -> Option<u32> {
    (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
        let seconds = config.and_then(|config| config.timeout_seconds).unwrap_or(AFFINITY_SECONDS);
        u32::try_from(seconds).unwrap_or_default().max(1)
    })
}

pub(crate) fn protocol(name: Option<&str>) -> Option<Protocol> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    }
}

/// The endpoints of one port that may be sent to: on all nodes, and on this one.
struct Endpoints {
    all: Vec<SocketAddr>,
    here: Vec<SocketAddr>,
    /// Those of `trafficDistribution`'s choice, where there is one.
    near: Option<Vec<SocketAddr>>,
    ready_here: Vec<SocketAddr>,
}

/// Endpoints that are ready, and those that still serve while they end.
#[derive(Default)]
struct Usable {
    ready: BTreeSet<SocketAddr>,
    ending: BTreeSet<SocketAddr>,
}

impl Usable {
    /// Those that end are used only when nothing else is there.
    fn chosen(self) -> Vec<SocketAddr> {
        let set = if self.ready.is_empty() { self.ending } else { self.ready };
        set.into_iter().collect()
    }
}

/// Ready endpoints whose hints lead here. They count only where every ready endpoint has a hint, and one leads here.
#[derive(Default)]
struct Hinted {
    here: BTreeSet<SocketAddr>,
    some_without: bool,
}

impl Hinted {
    fn take<'a>(&mut self, address: SocketAddr, mut hints: impl Iterator<Item = &'a str>, here: Option<&str>) {
        let Some(first) = hints.next() else {
            self.some_without = true;
            return;
        };
        if Some(first) == here || hints.any(|hint| Some(hint) == here) {
            self.here.insert(address);
        }
    }

    fn chosen(self) -> Option<Vec<SocketAddr>> {
        (!self.some_without && !self.here.is_empty()).then(|| self.here.into_iter().collect())
    }
}

impl Endpoints {
    fn of<'a>(port: &ServicePort, slices: impl Iterator<Item = &'a EndpointSlice>, place: Place<'_>) -> Self {
        let (mut all, mut here) = (Usable::default(), Usable::default());
        let (mut of_node, mut of_zone) = (Hinted::default(), Hinted::default());
        for slice in slices {
            let Some(number) = target(slice, port) else { continue };
            for endpoint in &slice.endpoints {
                let Some(state) = State::of(endpoint) else { continue };
                for address in endpoint.addresses.iter().filter_map(|address| address.parse().ok()) {
                    let address = SocketAddr::new(address, number);
                    state.set(&mut all).insert(address);
                    if matches!(state, State::Ready) {
                        let hints = endpoint.hints.as_ref();
                        let nodes = hints.and_then(|hints| hints.for_nodes.as_ref()).into_iter().flatten();
                        of_node.take(address, nodes.map(|hint| hint.name.as_str()), Some(place.node));
                        let zones = hints.and_then(|hints| hints.for_zones.as_ref()).into_iter().flatten();
                        of_zone.take(address, zones.map(|hint| hint.name.as_str()), place.zone);
                    }
                    if endpoint.node_name.as_deref() == Some(place.node) {
                        state.set(&mut here).insert(address);
                    }
                }
            }
        }
        let near = of_node.chosen().or(of_zone.chosen());
        let ready_here = here.ready.iter().copied().collect();
        Self { all: all.chosen(), here: here.chosen(), near, ready_here }
    }

    fn backend(&self, policy: Option<&str>, affinity: Option<u32>) -> Backend {
        let local = policy == Some("Local");
        let endpoints = if local { &self.here } else { self.near.as_ref().unwrap_or(&self.all) };
        match endpoints.is_empty() {
            false => Backend::Endpoints { endpoints: endpoints.clone(), affinity, clients: None },
            true if local && !self.all.is_empty() => Backend::Dropped,
            true => Backend::Refused,
        }
    }
}

enum State {
    Ready,
    Ending,
}

impl State {
    /// None for an endpoint that takes no connections. What isn't said counts as ready.
    fn of(endpoint: &Endpoint) -> Option<Self> {
        let conditions = endpoint.conditions.clone().unwrap_or_default();
        let ready = conditions.ready.unwrap_or(true);
        if ready {
            return Some(Self::Ready);
        }
        let ending = conditions.serving.unwrap_or(ready) && conditions.terminating.unwrap_or(false);
        ending.then_some(Self::Ending)
    }

    fn set<'a>(&self, usable: &'a mut Usable) -> &'a mut BTreeSet<SocketAddr> {
        match self {
            Self::Ready => &mut usable.ready,
            Self::Ending => &mut usable.ending,
        }
    }
}

/// The number under which a slice has a Service's port: ports are matched by name.
fn target(slice: &EndpointSlice, port: &ServicePort) -> Option<u16> {
    let name = |name: &Option<String>| name.clone().unwrap_or_default();
    let found = slice.ports.iter().flatten().find(|candidate| {
        name(&candidate.name) == name(&port.name)
            && protocol(candidate.protocol.as_deref()) == protocol(port.protocol.as_deref())
    })?;
    u16::try_from(found.port?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn service(more: Value) -> Service {
        let mut spec = json!({"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "ports": [
            {"name": "web", "port": 80, "protocol": "TCP", "nodePort": 30080}
        ]});
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "n"}, "spec": spec})).unwrap()
    }

    fn slice(endpoints: Value) -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {"name": "s-1", "namespace": "n"}, "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "other", "port": 1, "protocol": "TCP"}, {"name": "web", "port": 8080, "protocol": "TCP"}]
        }))
        .unwrap()
    }

    fn backend(service: &Service, endpoints: Value, side: Side, address: Option<&str>) -> Backend {
        let slice = slice(endpoints);
        let all = of(service, std::iter::once(&slice), HERE);
        let port = if address.is_some() { 80 } else { 30080 };
        let address = address.unwrap_or("0.0.0.0").parse().unwrap();
        all[&Frontend { side, address, protocol: Protocol::Tcp, port }].clone()
    }

    fn leads_to(all: &[&str]) -> Backend {
        let endpoints = all.iter().map(|address| SocketAddr::new(address.parse().unwrap(), 8080)).collect();
        Backend::Endpoints { endpoints, affinity: None, clients: None }
    }

    const HERE: Place<'_> = Place { node: "here", zone: Some("east") };
    const VIP: Option<&str> = Some("10.96.0.9");

    #[test]
    fn ready_endpoints_first_and_ending_ones_when_nothing_else_serves() {
        let plain = service(json!({}));
        let endpoint = |address: &str, ready, serving, terminating| json!({"addresses": [address], "conditions": {"ready": ready, "serving": serving, "terminating": terminating}});
        let ready = json!({"addresses": ["10.0.0.1"]});
        let ending = endpoint("10.0.0.2", false, true, true);
        let sick = endpoint("10.0.0.3", false, false, false);
        let at = |endpoints| backend(&plain, endpoints, Side::Inside, VIP);
        assert_eq!(at(json!([ready, ending, sick])), leads_to(&["10.0.0.1"]));
        assert_eq!(at(json!([ending, sick])), leads_to(&["10.0.0.2"]));
        assert_eq!(at(json!([sick])), Backend::Refused);
    }

    #[test]
    fn a_local_policy_holds_for_its_side_alone_and_drops_where_only_others_serve() {
        let external = service(json!({"externalTrafficPolicy": "Local"}));
        let there = json!([{"addresses": ["10.0.0.1"], "nodeName": "there"}]);
        let both =
            json!([{"addresses": ["10.0.0.1"], "nodeName": "there"}, {"addresses": ["10.0.0.2"], "nodeName": "here"}]);
        assert_eq!(backend(&external, there.clone(), Side::Outside, None), Backend::Dropped);
        assert_eq!(backend(&external, there.clone(), Side::Inside, None), leads_to(&["10.0.0.1"]));
        assert_eq!(backend(&external, both.clone(), Side::Outside, None), leads_to(&["10.0.0.2"]));
        assert_eq!(backend(&external, both.clone(), Side::Inside, VIP), leads_to(&["10.0.0.1", "10.0.0.2"]));
        let internal = service(json!({"internalTrafficPolicy": "Local"}));
        assert_eq!(backend(&internal, there, Side::Inside, VIP), Backend::Dropped);
        assert_eq!(backend(&internal, json!([]), Side::Inside, VIP), Backend::Refused);
        assert_eq!(backend(&internal, both, Side::Inside, VIP), leads_to(&["10.0.0.2"]));
    }

    #[test]
    fn headless_services_and_names_of_others_lead_nowhere() {
        for spec in [json!({"clusterIP": "None", "clusterIPs": ["None"]}), json!({"type": "ExternalName"})] {
            assert!(of(&service(spec), std::iter::empty(), HERE).is_empty());
        }
    }

    #[test]
    fn a_balancers_clients_may_be_limited_and_hints_lead_to_what_is_near() {
        let mut balanced =
            service(json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.0/31", "10.0.0.2/32"]}));
        let status = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.9", "ipMode": "VIP"}, {"ip": "192.0.2.8", "ipMode": "Proxy"}]}});
        balanced.status = serde_json::from_value(status).unwrap();
        let endpoints = json!([{"addresses": ["10.0.0.1"]}]);
        let Backend::Endpoints { clients, .. } = backend(&balanced, endpoints, Side::Outside, Some("192.0.2.9")) else {
            panic!("no endpoints");
        };
        assert_eq!(clients, Some(vec![([10, 0, 0, 0].into(), [10, 0, 0, 2].into())]));
        let near =
            |second: Value| json!([{"addresses": ["10.0.0.1"], "hints": {"forNodes": [{"name": "here"}]}}, second]);
        let there = json!({"addresses": ["10.0.0.2"], "hints": {"forNodes": [{"name": "there"}]}});
        assert_eq!(backend(&balanced, near(there), Side::Inside, VIP), leads_to(&["10.0.0.1"]));
        let unhinted = json!({"addresses": ["10.0.0.2"]});
        assert_eq!(backend(&balanced, near(unhinted), Side::Inside, VIP), leads_to(&["10.0.0.1", "10.0.0.2"]));
    }

    #[test]
    fn a_hint_for_this_node_goes_before_one_for_its_zone_and_that_before_none() {
        let plain = service(json!({}));
        let endpoint = |address: &str, node: &str, zone: &str| json!({"addresses": [address], "hints": {"forNodes": [{"name": node}], "forZones": [{"name": zone}]}});
        let at = |endpoints| backend(&plain, endpoints, Side::Inside, VIP);
        let (here, east, west) = (
            endpoint("10.0.0.1", "here", "east"),
            endpoint("10.0.0.2", "there", "east"),
            endpoint("10.0.0.3", "far", "west"),
        );
        assert_eq!(at(json!([here, east, west])), leads_to(&["10.0.0.1"]));
        assert_eq!(at(json!([east, west])), leads_to(&["10.0.0.2"]));
        assert_eq!(at(json!([west])), leads_to(&["10.0.0.3"]));
        let zone_alone = json!({"addresses": ["10.0.0.4"], "hints": {"forZones": [{"name": "east"}]}});
        assert_eq!(at(json!([here, zone_alone, west])), leads_to(&["10.0.0.1", "10.0.0.4"]));
    }

    #[test]
    fn affinity_has_its_timeout() {
        let sticky = service(json!({"sessionAffinity": "ClientIP", "externalIPs": ["192.0.2.1"]}));
        let endpoints = json!([{"addresses": ["10.0.0.1"]}]);
        let Backend::Endpoints { affinity, .. } = backend(&sticky, endpoints, Side::Outside, Some("192.0.2.1")) else {
            panic!("no endpoints");
        };
        assert_eq!(affinity, Some(10_800));
    }
}
