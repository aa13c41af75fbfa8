//! From what the API has to what the proxy does and says: a pure function of [`State`].
//!
//! A [`Frontend`] is one address of its own: all Ingresses share one, each Gateway has one. Behind it is a Service without
//! a selector, whose endpoint is the proxy; so a load balancer's address, policies and names are those of any Service.

mod backend;
mod certificate;
mod condition;
mod filter;
mod gateway;
mod ingress;
mod reference;
mod routes;

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::Value;

pub use self::certificate::Certificates;
pub use self::condition::with_times;
use crate::route::Port;
use crate::state::{Key, State};

/// Controllers' names in classes.
pub const INGRESS_CONTROLLER: &str = "carob.dev/ingress";
pub const GATEWAY_CONTROLLER: &str = "carob.dev/gateway";

/// What one address of its own is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Frontend {
    Ingress,
    Gateway(Key),
}

/// What is served at an address.
#[derive(Debug)]
pub struct Served {
    pub ports: BTreeMap<u16, Arc<Port>>,
    pub service: WantedService,
}

/// The Service of a frontend.
#[derive(Clone, Debug, PartialEq)]
pub struct WantedService {
    pub key: Key,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub owner: Option<OwnerReference>,
    /// The address that is asked for.
    pub address: Option<IpAddr>,
}

/// What is to be done.
#[derive(Debug, Default)]
pub struct Plan {
    pub frontends: BTreeMap<Frontend, Served>,
    pub statuses: Vec<Status>,
}

/// A status as it should be. Conditions have no times yet.
#[derive(Debug)]
pub struct Status {
    pub kind: Kind,
    pub key: Key,
    pub wanted: Value,
    /// As it was seen.
    pub before: Value,
}

/// Whose status it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ingress,
    GatewayClass,
    Gateway,
    HttpRoute,
    GrpcRoute,
}

/// What is given beside the API's objects.
pub struct Setting {
    /// Whether load balancers have addresses here.
    pub balanced: bool,
    /// Where Ingresses are served beside their Service.
    pub listen: Vec<IpAddr>,
    /// The Service of all Ingresses.
    pub ingress_service: Key,
    pub certificates: Certificates,
}

/// The label that the Services and slices of frontends have.
pub const OURS: &str = "carob.dev/edge";

impl Plan {
    pub fn of(state: &State, setting: &Setting) -> Self {
        let mut plan = Self::default();
        ingress::plan(state, setting, &mut plan);
        gateway::plan(state, setting, &mut plan);
        plan
    }

    /// All endpoints that requests may be sent to.
    pub fn endpoints(&self) -> HashSet<SocketAddr> {
        let ports = self.frontends.values().flat_map(|served| served.ports.values());
        ports.flat_map(|port| port.backends()).flat_map(|backend| backend.endpoints.iter().copied()).collect()
    }
}

/// Whether anything is for the proxy at all: before, nothing but the kinds that tell needs to be followed.
pub fn is_needed(state: &State) -> bool {
    let classes = &state.gateway_classes;
    let gateways = || classes.iter().any(|class| class.spec.controller_name == GATEWAY_CONTROLLER);
    state.ingresses.iter().any(|ingress| ingress::is_ours(ingress, state)) || (!state.gateways.is_empty() && gateways())
}

#[cfg(test)]
mod tests;
