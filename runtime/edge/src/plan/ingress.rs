//! Ingresses: the rules of networking.k8s.io/v1.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::StatusCode;
use k8s_openapi::api::networking::v1::{HTTPIngressPath, Ingress, IngressBackend, IngressTLS};
use serde_json::{Value, json};

use super::backend::{self, PortName};
use super::{Frontend, INGRESS_CONTROLLER, Kind, OURS, Plan, Served, Setting, Status, WantedService};
use crate::route::host::Pattern;
use crate::route::{Action, Certificate, Entry, Listener, Match, PathMatch, Port, Rank, Rule, Split, Target};
use crate::state::{Key, State};

/// How a class was named before `spec.ingressClassName`.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
/// The ports of Ingresses.
pub const HTTP: u16 = 80;
pub const HTTPS: u16 = 443;

/// Whether an Ingress is of a class of ours.
pub fn is_ours(ingress: &Ingress, state: &State) -> bool {
    let named = ingress.spec.as_ref().and_then(|spec| spec.ingress_class_name.as_ref());
    let annotated = || ingress.metadata.annotations.as_ref()?.get(CLASS_ANNOTATION);
    let Some(name) = named.or_else(annotated) else { return false };
    let mut classes = state.ingress_classes.iter().filter(|class| class.metadata.name.as_ref() == Some(name));
    classes.any(|class| class.spec.as_ref().and_then(|spec| spec.controller.as_deref()) == Some(INGRESS_CONTROLLER))
}

pub fn plan(state: &State, setting: &Setting, plan: &mut Plan) {
    let mut ingresses: Vec<&Arc<Ingress>> = state.ingresses.iter().filter(|ingress| is_ours(ingress, state)).collect();
    let service = &setting.ingress_service;
    if ingresses.is_empty() && !state.services.contains_key(service) {
        return;
    }
    ingresses.sort_by_key(|ingress| rank(ingress, 0));
    let entries: Vec<Entry> = ingresses.iter().flat_map(|ingress| entries(ingress, state)).collect();
    let mut certificates: Vec<Certificate> = setting.certificates.fallback().into_iter().collect();
    for ingress in &ingresses {
        let namespace = ingress.metadata.namespace.as_deref().unwrap_or_default();
        let tls = ingress.spec.iter().flat_map(|spec| spec.tls.iter().flatten());
        certificates.extend(tls.filter_map(|tls| certificate(tls, namespace, state, setting)));
    }
    let port = |tls, certificates| Port::new(tls, vec![Listener::new(Pattern::Any, certificates, entries.clone())]);
    let ports =
        BTreeMap::from([(HTTP, Arc::new(port(false, Vec::new()))), (HTTPS, Arc::new(port(true, certificates)))]);
    let service = WantedService {
        key: service.clone(),
        labels: BTreeMap::from([(OURS.to_owned(), "ingress".to_owned())]),
        annotations: BTreeMap::new(),
        owner: None,
        address: None,
    };
    let addresses = addresses(state, setting);
    plan.frontends.insert(Frontend::Ingress, Served { ports, service });
    for ingress in ingresses {
        let status = json!({"loadBalancer": addresses});
        let before = serde_json::to_value(&ingress.status).unwrap_or(Value::Null);
        plan.statuses.push(Status { kind: Kind::Ingress, key: Key::of(&**ingress), wanted: status, before });
    }
}

/// Where Ingresses are served, as their status says it.
fn addresses(state: &State, setting: &Setting) -> Value {
    let own = setting.listen.iter().filter(|address| !address.is_unspecified()).copied();
    let mut addresses = state.addresses(&setting.ingress_service, setting.balanced);
    if !setting.balanced && !setting.listen.is_empty() {
        addresses.clear();
    }
    addresses.extend(own);
    if addresses.is_empty() {
        addresses = state.addresses(&setting.ingress_service, false);
    }
    if addresses.is_empty() {
        return json!({});
    }
    json!({"ingress": addresses.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>()})
}

fn certificate(tls: &IngressTLS, namespace: &str, state: &State, setting: &Setting) -> Option<Certificate> {
    let name = tls.secret_name.as_deref()?;
    let secret = state.secrets.get(&Key::new(namespace, name))?;
    let read = setting.certificates.of(secret);
    let read = read.inspect_err(|error| tracing::debug!(namespace, name, error, "a Secret holds no certificate"));
    let mut certificate = read.ok()?;
    let hosts = tls.hosts.as_deref().unwrap_or_default();
    if !hosts.is_empty() {
        certificate.names = hosts.iter().map(|host| Pattern::of_ingress(Some(host))).collect();
    }
    Some(certificate)
}

fn rank(ingress: &Ingress, index: usize) -> Rank {
    let meta = &ingress.metadata;
    let name =
        format!("{}/{}", meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
    (meta.creation_timestamp.as_ref().map(|time| time.0), name, index)
}

fn entries(ingress: &Ingress, state: &State) -> Vec<Entry> {
    let namespace = ingress.metadata.namespace.as_deref().unwrap_or_default();
    let Some(spec) = &ingress.spec else { return Vec::new() };
    let mut entries = Vec::new();
    let mut add = |host: &Pattern, path: PathMatch, rule: &Arc<Rule>| {
        let rank = rank(ingress, entries.len());
        entries.push(Entry { host: host.clone(), matches: Match::of_path(path), rule: Arc::clone(rule), rank });
    };
    let default = spec.default_backend.as_ref().map(|backend| rule(backend, namespace, state));
    for one in spec.rules.iter().flatten() {
        let host = Pattern::of_ingress(one.host.as_deref());
        for path in one.http.iter().flat_map(|http| &http.paths) {
            let rule = rule(&path.backend, namespace, state);
            add(&host, path_match(path), &rule);
        }
        // What no path of this host is for goes to the default backend of the same Ingress.
        if let Some(default) = &default {
            add(&host, PathMatch::Rest, default);
        }
    }
    if let Some(default) = &default {
        add(&Pattern::Any, PathMatch::Rest, default);
    }
    entries
}

fn path_match(path: &HTTPIngressPath) -> PathMatch {
    let text = path.path.as_deref().unwrap_or("/");
    match path.path_type.as_str() {
        "Exact" => PathMatch::Exact(text.to_owned()),
        // What is up to the implementation is a prefix here.
        _ => PathMatch::prefix(text),
    }
}

fn rule(backend: &IngressBackend, namespace: &str, state: &State) -> Arc<Rule> {
    let found = backend.service.as_ref().and_then(|service| {
        let port = service.port.as_ref()?;
        let port = match (&port.name, port.number) {
            (Some(name), _) if !name.is_empty() => PortName::Name(name),
            (_, number) => PortName::Number(u16::try_from(number?).ok()?),
        };
        backend::find(state, &Key::new(namespace, &service.name), port).ok()
    });
    let target = Target::plain(1, found.ok_or(StatusCode::SERVICE_UNAVAILABLE));
    Arc::new(Rule { action: Action::Forward(Split::new(vec![target])), ..Rule::default() })
}
