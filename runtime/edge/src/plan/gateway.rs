//! Gateways with their listeners, which routes are attached to them, and what all of them are told.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::Resource as _;
use serde_json::{Value, json};

use super::condition::condition;
use super::filter::Problem;
use super::reference::{self, From, To};
use super::routes::{self, Route};
use super::{Frontend, GATEWAY_CONTROLLER, Kind, OURS, Plan, Served, Setting, Status, WantedService};
use crate::gateway_api::{GROUP, Gateway, GatewayClass, ListenerSpec, ParentReference, RouteKind};
use crate::route::host::Pattern;
use crate::route::{Certificate, Entry, Listener, Port};
use crate::state::{Key, State};

/// Routes that listeners for HTTP take.
const ROUTES: [&str; 2] = ["HTTPRoute", "GRPCRoute"];
/// What is carried out beyond the core of the Gateway API, by the names that its conformance tests have.
const FEATURES: [&str; 28] = [
    "GRPCRoute",
    "GRPCRouteNamedRouteRule",
    "Gateway",
    "GatewayAddressEmpty",
    "GatewayHTTPListenerIsolation",
    "GatewayHTTPSListenerDetectMisdirectedRequests",
    "GatewayInfrastructurePropagation",
    "GatewayPort8080",
    "HTTPRoute",
    "HTTPRouteBackendProtocolH2C",
    "HTTPRouteBackendProtocolWebSocket",
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteBackendTimeout",
    "HTTPRouteHostRewrite",
    "HTTPRouteMethodMatching",
    "HTTPRouteNamedRouteRule",
    "HTTPRouteParentRefPort",
    "HTTPRoutePathRedirect",
    "HTTPRoutePathRewrite",
    "HTTPRoutePortRedirect",
    "HTTPRouteQueryParamMatching",
    "HTTPRouteRequestMirror",
    "HTTPRouteRequestMultipleMirrors",
    "HTTPRouteRequestPercentageMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteSchemeRedirect",
    "ReferenceGrant",
];

pub fn plan(state: &State, setting: &Setting, plan: &mut Plan) {
    let mut classes = HashSet::new();
    for class in state.gateway_classes.iter().filter(|class| class.spec.controller_name == GATEWAY_CONTROLLER) {
        let accepted = class.spec.parameters_ref.is_none();
        if accepted {
            classes.insert(class.metadata.name.as_deref().unwrap_or_default());
        }
        plan.statuses.push(class_status(class, accepted));
    }
    let gateways = state.gateways.iter().filter(|gateway| classes.contains(gateway.spec.gateway_class_name.as_str()));
    let mut gateways: HashMap<Key, Drawn<'_>> =
        gateways.map(|gateway| (Key::of(&**gateway), Drawn::of(gateway, state, setting))).collect();
    for route in routes::all(state) {
        attach(&route, &mut gateways, state, plan);
    }
    for (key, drawn) in gateways {
        drawn.finish(key, state, setting, plan);
    }
}

fn class_status(class: &GatewayClass, accepted: bool) -> Status {
    let generation = class.metadata.generation;
    let condition = if accepted {
        condition("Accepted", true, "Accepted", "Gateways of this class are served", generation)
    } else {
        condition("Accepted", false, "InvalidParameters", "classes have no parameters here", generation)
    };
    let features: Vec<Value> = FEATURES.iter().map(|name| json!({"name": name})).collect();
    let status = json!({"conditions": [condition], "supportedFeatures": features});
    let before = class.status.clone().unwrap_or_default();
    Status { kind: Kind::GatewayClass, key: Key::of(class), wanted: status, before }
}

/// A Gateway while its parts come together.
struct Drawn<'a> {
    gateway: &'a Gateway,
    listeners: Vec<DrawnListener<'a>>,
}

struct DrawnListener<'a> {
    spec: &'a ListenerSpec,
    host: Pattern,
    tls: bool,
    kinds: Vec<&'static str>,
    certificates: Vec<Certificate>,
    /// Why it is not served: its protocol, or another listener.
    accepted: Option<Problem>,
    conflict: Option<Problem>,
    /// Another one for TLS that has host names of its own.
    overlap: Option<Problem>,
    resolved: Option<Problem>,
    entries: Vec<Entry>,
    routes: usize,
    /// What host names routes have here, with their kinds.
    held: Vec<(&'static str, Pattern)>,
}

impl<'a> Drawn<'a> {
    fn of(gateway: &'a Gateway, state: &State, setting: &Setting) -> Self {
        let mut listeners: Vec<DrawnListener<'a>> =
            gateway.spec.listeners.iter().map(|spec| DrawnListener::of(spec, gateway, state, setting)).collect();
        for index in 0..listeners.len() {
            let (before, rest) = listeners.split_at(index);
            let one = &rest[0];
            let same_port = before.iter().chain(&rest[1..]).filter(|other| other.spec.port == one.spec.port);
            let conflict = same_port.filter(|other| other.accepted.is_none()).find_map(|other| {
                let name = &other.spec.name;
                if other.tls != one.tls {
                    let message = format!("listener {name} speaks another protocol on the same port");
                    return Some(Problem::new("ProtocolConflict", message));
                }
                let message = || format!("listener {name} has the same port and host name");
                (other.host == one.host).then(|| Problem::new("HostnameConflict", message()))
            });
            let overlap = before
                .iter()
                .chain(&rest[1..])
                .filter(|other| other.tls && one.tls)
                .find(|other| other.spec.port == one.spec.port && other.host.intersection(&one.host).is_some());
            let overlap = overlap.map(|other| {
                let message = format!("listener {} has host names of it on the same port", other.spec.name);
                Problem::new("OverlappingHostnames", message)
            });
            listeners[index].conflict = conflict.filter(|_| listeners[index].accepted.is_none());
            listeners[index].overlap = overlap;
        }
        Self { gateway, listeners }
    }

    fn finish(self, key: Key, state: &State, setting: &Setting, plan: &mut Plan) {
        let gateway = self.gateway;
        let generation = gateway.metadata.generation;
        let service = service(gateway, &key);
        let taken = is_taken(state, &service);
        let addresses = state.addresses(&service.key, setting.balanced);
        let wanted = service.address;
        let mut refused = refusal(gateway);
        let all = self.listeners.len();
        let valid = self.listeners.iter().filter(|listener| listener.is_served()).count();
        if refused.is_none() && valid == 0 {
            refused = Some(Problem::new("ListenersNotValid", "none of its listeners can be served"));
        }
        let accepted = match &refused {
            Some(problem) => condition("Accepted", false, problem.reason, &problem.message, generation),
            None if valid < all => {
                condition("Accepted", true, "ListenersNotValid", "some of its listeners can't be served", generation)
            }
            None => condition("Accepted", true, "Accepted", "it is served", generation),
        };
        let usable = wanted.is_none_or(|wanted| addresses.contains(&wanted));
        let unprogrammed = match &refused {
            Some(problem) => Some(Problem::new("Invalid", problem.message.clone())),
            None if taken => {
                let message = format!("Service {} is somebody else's", service.key.name);
                Some(Problem::new("AddressNotAssigned", message))
            }
            None if !usable && wanted.is_some() => {
                Some(Problem::new("AddressNotUsable", "the address that is asked for can't be had"))
            }
            None if addresses.is_empty() => Some(Problem::new("AddressNotAssigned", "it has no address yet")),
            None => None,
        };
        let programmed = match &unprogrammed {
            Some(problem) => condition("Programmed", false, problem.reason, &problem.message, generation),
            None => condition("Programmed", true, "Programmed", "requests are answered", generation),
        };
        // No listener is reached where the Gateway isn't.
        let waits = unprogrammed.as_ref().map(|problem| {
            let reason = if refused.is_some() { "Invalid" } else { "Pending" };
            Problem::new(reason, format!("the Gateway is not reached: {}", problem.message))
        });
        let status = |listener: &DrawnListener<'_>| listener.status(waits.as_ref(), generation);
        let listeners: Vec<Value> = self.listeners.iter().map(status).collect();
        let shown: Vec<Value> = match &unprogrammed {
            None => addresses.iter().map(|ip| json!({"type": "IPAddress", "value": ip})).collect(),
            Some(_) => Vec::new(),
        };
        let status = json!({"addresses": shown, "conditions": [accepted, programmed], "listeners": listeners});
        let before = gateway.status.clone().unwrap_or_default();
        plan.statuses.push(Status { kind: Kind::Gateway, key: key.clone(), wanted: status, before });
        if refused.is_some() || taken {
            return;
        }
        let mut ports: BTreeMap<u16, (bool, Vec<Listener>)> = BTreeMap::new();
        for listener in self.listeners.into_iter().filter(DrawnListener::is_served) {
            let port = ports.entry(listener.spec.port).or_insert((listener.tls, Vec::new()));
            port.1.push(Listener::new(listener.host, listener.certificates, listener.entries));
        }
        let ports = ports.into_iter().map(|(number, (tls, listeners))| (number, Arc::new(Port::new(tls, listeners))));
        plan.frontends.insert(Frontend::Gateway(key), Served { ports: ports.collect(), service });
    }
}

/// Why a Gateway as a whole can't be served.
fn refusal(gateway: &Gateway) -> Option<Problem> {
    if gateway.spec.infrastructure.parameters_ref.is_some() {
        return Some(Problem::new("InvalidParameters", "Gateways have no parameters here"));
    }
    let addresses = &gateway.spec.addresses;
    let odd = addresses.iter().find(|address| address.kind.as_deref().unwrap_or("IPAddress") != "IPAddress");
    let odd = odd.or_else(|| addresses.get(1));
    odd.map(|_| Problem::new("UnsupportedAddress", "a Gateway has one address, of type IPAddress"))
}

/// What a Service's name may be long.
const LONGEST: usize = 63;

fn service(gateway: &Gateway, key: &Key) -> WantedService {
    let class = &gateway.spec.gateway_class_name;
    let mut name = format!("{}-{class}", key.name.replace('.', "-"));
    // Names that a Service can't have: what is made of them must not be another Gateway's.
    let odd = key.name.contains('.') || !name.starts_with(|c: char| c.is_ascii_lowercase());
    if odd || name.len() > LONGEST {
        let hash = key
            .name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        let end = name.len().min(LONGEST - 20);
        name = format!("g-{}-{hash:016x}", name[..end].trim_end_matches('-'));
    }
    let spec = &gateway.spec.infrastructure;
    let mut labels = spec.labels.clone();
    labels.insert(OURS.to_owned(), "gateway".to_owned());
    labels.insert("gateway.networking.k8s.io/gateway-class-name".to_owned(), class.chars().take(LONGEST).collect());
    if key.name.len() <= LONGEST {
        labels.insert("gateway.networking.k8s.io/gateway-name".to_owned(), key.name.clone());
    }
    let asked = gateway.spec.addresses.first().and_then(|address| address.value.as_deref());
    WantedService {
        key: Key::new(&key.namespace, &name),
        labels,
        annotations: spec.annotations.clone(),
        owner: gateway.controller_owner_ref(&()),
        address: asked.and_then(|text| text.parse::<IpAddr>().ok()),
    }
}

/// Whether somebody else has a Service of that name.
fn is_taken(state: &State, wanted: &WantedService) -> bool {
    let Some(service) = state.services.get(&wanted.key) else { return false };
    let ours = service.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(OURS));
    let uid = wanted.owner.as_ref().map(|owner| &owner.uid);
    let owned = service.metadata.owner_references.iter().flatten().any(|owner| Some(&owner.uid) == uid);
    !(ours && owned)
}

impl<'a> DrawnListener<'a> {
    fn of(spec: &'a ListenerSpec, gateway: &Gateway, state: &State, setting: &Setting) -> Self {
        let tls = spec.protocol == "HTTPS";
        let known = tls || spec.protocol == "HTTP";
        let accepted = (!known)
            .then(|| Problem::new("UnsupportedProtocol", format!("protocol {} is not served here", spec.protocol)));
        let mut resolved = None;
        let asked = &spec.allowed_routes.kinds;
        let supports = |kind: &RouteKind| {
            let of_group = kind.group.as_deref().is_none_or(|group| group == GROUP);
            ROUTES.iter().find(|known| of_group && **known == kind.kind).copied()
        };
        let kinds: Vec<&'static str> = match (known, asked.is_empty()) {
            (false, _) => Vec::new(),
            (true, true) => ROUTES.to_vec(),
            (true, false) => asked.iter().filter_map(supports).collect(),
        };
        if known && let Some(kind) = asked.iter().find(|kind| supports(kind).is_none()) {
            let message = format!("routes of kind {} can't be attached here", kind.kind);
            resolved = Some(Problem::new("InvalidRouteKinds", message));
        }
        let mut certificates = Vec::new();
        let references = spec.tls.iter().filter(|_| tls).flat_map(|tls| &tls.certificate_refs);
        for reference in references {
            match certificate(reference, gateway, state, setting) {
                Ok(certificate) => certificates.push(certificate),
                Err(problem) => {
                    resolved.get_or_insert(problem);
                }
            }
        }
        if tls && certificates.is_empty() {
            resolved.get_or_insert(Problem::new("InvalidCertificateRef", "it refers to no certificate"));
        }
        let host = Pattern::of_gateway(spec.hostname.as_deref());
        Self {
            spec,
            host,
            tls,
            kinds,
            certificates,
            accepted,
            conflict: None,
            overlap: None,
            resolved,
            entries: Vec::new(),
            routes: 0,
            held: Vec::new(),
        }
    }

    /// Whether clients are answered at it.
    fn is_served(&self) -> bool {
        let keyless = self.tls && self.certificates.is_empty();
        let useless = self.kinds.is_empty();
        self.accepted.is_none() && self.conflict.is_none() && !keyless && !useless
    }

    /// Its status; `waits` is why its Gateway is not reached.
    fn status(&self, waits: Option<&Problem>, generation: Option<i64>) -> Value {
        let state = |kind: &str, problem: Option<&Problem>, holds: bool, reason: &str, message: &str| match problem {
            Some(problem) => condition(kind, !holds, problem.reason, &problem.message, generation),
            None => condition(kind, holds, reason, message, generation),
        };
        let conflict = self.conflict.as_ref();
        let invalid = (!self.is_served()).then(|| Problem::new("Invalid", "it can't be served"));
        let unprogrammed = invalid.as_ref().or(waits);
        let conditions = [
            state("Accepted", self.accepted.as_ref().or(conflict), true, "Accepted", "it is served"),
            state("Programmed", unprogrammed, true, "Programmed", "requests are answered"),
            state("ResolvedRefs", self.resolved.as_ref(), true, "ResolvedRefs", "all references were followed"),
            state("Conflicted", conflict, false, "NoConflicts", "no other listener is in its way"),
        ];
        // Said only where it holds.
        let overlap = self.overlap.as_ref();
        let overlap = overlap
            .map(|problem| condition("OverlappingTLSConfig", true, problem.reason, &problem.message, generation));
        let conditions: Vec<Value> = conditions.into_iter().chain(overlap).collect();
        let kinds: Vec<Value> = self.kinds.iter().map(|kind| json!({"group": GROUP, "kind": kind})).collect();
        json!({
            "name": self.spec.name,
            "supportedKinds": kinds,
            "attachedRoutes": self.routes,
            "conditions": conditions,
        })
    }

    /// Whether routes of another kind have one of these host names: calls of gRPC and other requests are told apart by
    /// nothing else.
    fn is_held(&self, kind: &str, hosts: &[Pattern]) -> bool {
        let others = self.held.iter().filter(|(other, _)| *other != kind);
        others.into_iter().any(|(_, held)| hosts.iter().any(|host| host.intersection(held).is_some()))
    }

    /// Whether routes of a namespace may be attached.
    fn allows(&self, namespace: &str, own: &str, state: &State) -> bool {
        let from = &self.spec.allowed_routes.namespaces;
        match from.from.as_deref().unwrap_or("Same") {
            "All" => true,
            "Same" => namespace == own,
            "Selector" => from.selector.as_ref().is_some_and(|selector| selects(selector, &state.labels(namespace))),
            _ => false,
        }
    }
}

/// Whether a selector chooses what has these labels.
fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let selector: Result<kube::core::Selector, _> = selector.clone().try_into();
    selector.is_ok_and(|selector| {
        use kube::core::SelectorExt as _;
        selector.matches(labels)
    })
}

fn certificate(
    reference: &crate::gateway_api::Reference,
    gateway: &Gateway,
    state: &State,
    setting: &Setting,
) -> Result<Certificate, Problem> {
    let own = gateway.metadata.namespace.as_deref().unwrap_or_default();
    let (group, kind) = (reference.group.as_deref().unwrap_or(""), reference.kind.as_deref().unwrap_or("Secret"));
    let (namespace, name) = (reference.namespace.as_deref().unwrap_or(own), reference.name.as_str());
    let invalid = |message: String| Problem::new("InvalidCertificateRef", message);
    if !group.is_empty() || kind != "Secret" {
        return Err(invalid(format!("a certificate is in a Secret, not in a {kind}")));
    }
    let from = From { group: GROUP, kind: "Gateway", namespace: own };
    if !reference::is_permitted(state, &from, &To { group, kind, namespace, name }) {
        let message = format!("no ReferenceGrant in {namespace} lets Gateways of {own} refer to {name}");
        return Err(Problem::new("RefNotPermitted", message));
    }
    let secret = state.secrets.get(&Key::new(namespace, name));
    let secret =
        secret.ok_or_else(|| invalid(format!("there is no Secret {namespace}/{name} of type kubernetes.io/tls")))?;
    setting.certificates.of(secret).map_err(|error| invalid(format!("Secret {namespace}/{name}: {error}")))
}

/// Puts a route's rules where its parents say, and says what came of it.
fn attach(route: &Route<'_>, gateways: &mut HashMap<Key, Drawn<'_>>, state: &State, plan: &mut Plan) {
    let mut parents = Vec::new();
    for parent in route.parents {
        let of_gateway = parent.group.as_deref().unwrap_or(GROUP) == GROUP
            && parent.kind.as_deref().unwrap_or("Gateway") == "Gateway";
        let namespace = parent.namespace.as_deref().unwrap_or(&route.key.namespace);
        let drawn = gateways.get_mut(&Key::new(namespace, &parent.name)).filter(|_| of_gateway);
        let Some(drawn) = drawn else { continue };
        let problem = attach_to(route, parent, drawn, state).err().or_else(|| route.accepted.clone());
        let is_accepted = problem.is_none();
        let accepted = match problem {
            None => condition("Accepted", true, "Accepted", "it is part of the Gateway", route.generation),
            Some(problem) => condition("Accepted", false, problem.reason, &problem.message, route.generation),
        };
        let resolved = match &route.resolved {
            None => condition("ResolvedRefs", true, "ResolvedRefs", "all references were followed", route.generation),
            Some(problem) => condition("ResolvedRefs", false, problem.reason, &problem.message, route.generation),
        };
        // Said only where it holds.
        let dropped = route.dropped.as_ref().filter(|_| is_accepted);
        let dropped = dropped
            .map(|problem| condition("PartiallyInvalid", true, problem.reason, &problem.message, route.generation));
        let conditions: Vec<Value> = [accepted, resolved].into_iter().chain(dropped).collect();
        parents.push(json!({
            "parentRef": shown(parent),
            "controllerName": GATEWAY_CONTROLLER,
            "conditions": conditions,
        }));
    }
    // What other controllers say stays.
    let before = route.before.get("parents").and_then(Value::as_array);
    let others = before.into_iter().flatten().filter(|entry| entry["controllerName"] != GATEWAY_CONTROLLER);
    let all: Vec<Value> = others.cloned().chain(parents).collect();
    if all.is_empty() && before.is_none_or(Vec::is_empty) {
        return;
    }
    let status = json!({"parents": all});
    plan.statuses.push(Status {
        kind: route.kind,
        key: route.key.clone(),
        wanted: status,
        before: route.before.clone(),
    });
}

/// A reference as the status repeats it.
fn shown(parent: &ParentReference) -> Value {
    let mut shown = serde_json::to_value(parent).unwrap_or_default();
    if let Some(fields) = shown.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    shown
}

fn attach_to(route: &Route<'_>, parent: &ParentReference, drawn: &mut Drawn<'_>, state: &State) -> Result<(), Problem> {
    let own = drawn.gateway.metadata.namespace.clone().unwrap_or_default();
    let named = |listener: &DrawnListener<'_>| {
        parent.section_name.as_ref().is_none_or(|name| *name == listener.spec.name)
            && parent.port.is_none_or(|port| port == listener.spec.port)
    };
    let (mut meant, mut allowed, mut attached, mut free) = (false, false, false, route.accepted.is_some());
    for listener in drawn.listeners.iter_mut().filter(|listener| named(listener)) {
        meant = true;
        if !listener.kinds.contains(&route.kind_name) || !listener.allows(&route.key.namespace, &own, state) {
            continue;
        }
        allowed = true;
        // The route's own names, not what they have in common with the listener's: it is by them that one route goes before
        // another. What is not the listener's doesn't come here.
        let any = [Pattern::Any];
        let own = if route.hosts.is_empty() { &any[..] } else { &route.hosts };
        let common = |host: &Pattern| Some((host.clone(), host.intersection(&listener.host)?));
        let (hosts, shared): (Vec<Pattern>, Vec<Pattern>) = own.iter().filter_map(common).unzip();
        if hosts.is_empty() {
            continue;
        }
        attached = true;
        // Those count as well that are not accepted for what is in them.
        listener.routes += 1;
        if route.accepted.is_some() {
            continue;
        }
        // What is older came before.
        if listener.is_held(route.kind_name, &shared) {
            continue;
        }
        free = true;
        listener.held.extend(shared.into_iter().map(|host| (route.kind_name, host)));
        for host in hosts {
            let entries = route.rules.iter().enumerate().map(|(index, (matches, rule))| Entry {
                host: host.clone(),
                matches: matches.clone(),
                rule: Arc::clone(rule),
                rank: (route.created, format!("{}/{}", route.key.namespace, route.key.name), index),
            });
            listener.entries.extend(entries);
        }
    }
    match (meant, allowed, attached, free) {
        (false, _, _, _) => Err(Problem::new("NoMatchingParent", "the Gateway has no such listener")),
        (_, false, _, _) => Err(Problem::new("NotAllowedByListeners", "no listener of the Gateway takes this route")),
        (_, _, false, _) => Err(Problem::new(
            "NoMatchingListenerHostname",
            "no listener of the Gateway has one of the route's host names",
        )),
        (_, _, _, false) => Err(Problem::new("HostnameConflict", "an older route of another kind has its host names")),
        _ => Ok(()),
    }
}
