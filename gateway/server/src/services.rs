//! Addresses and ports of Services: given when a Service is written, free when it is gone.
//!
//! What is taken is read off the stored Services and kept nowhere else. Between the choice and the commit it is
//! reserved; see [`Pool::reserve`] for why nothing is given twice.

pub(crate) mod api;
mod taken;

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};

use carob_api::field::{FieldError, Path};
use carob_api::status::Status;
use carob_api::strategy::service;
use carob_api::validation::addresses;
use carob_api::validation::service::HEADLESS;
use carob_store::{KeyRange, Store};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::Value;

use crate::call::Call;
use crate::objects::{store_failure, text};
use crate::random;
use taken::{Claim, Taken};

/// Ports of nodes that Services may have, as in Kubernetes.
const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;
/// The first ports are for those who choose one themselves; others get one of them last.
const CHOSEN_PORTS: u16 = 86;
const SERVICES: &str = "/core/services/";
const TAKEN_PORT: &str = "provided port is already allocated";

/// All that Services can have.
pub(crate) struct Pool {
    /// One of each family that Services can have, of the primary one first.
    ranges: Vec<IpNet>,
    taken: tokio::sync::Mutex<Taken>,
    reserved: Reserved,
}

type Reserved = Arc<Mutex<HashSet<Claim>>>;

/// What a Service holds until it is stored; free again when dropped.
pub(crate) struct Hold {
    claims: Vec<Claim>,
    reserved: Reserved,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        for claim in &self.claims {
            reserved.remove(claim);
        }
    }
}

/// Why there is nothing to give.
enum Refusal {
    /// The client asked for something that it cannot have.
    Asked(Box<FieldError>),
    /// Nothing is left.
    Empty(String),
}

/// Gives a Service (`old` is what it was) what it needs, if the call is about Services. The result is to be kept until
/// the object is stored.
pub(crate) async fn complete(call: &Call, object: &mut Value, old: Option<&Value>) -> Result<Option<Hold>, Status> {
    if !call.kind.group.is_empty() || call.kind.plural != "services" {
        return Ok(None);
    }
    let invalid = |object: &Value, errors| Status::invalid(("", "Service"), text(object, "/metadata/name"), errors);
    let pool = &call.server.services;
    let families: Vec<&str> = pool.ranges.iter().map(family).collect();
    if let Err(errors) = service::complete_families(object, old, &families) {
        return Err(invalid(object, errors));
    }
    let mut choice = pool.reserve(call.server.store.as_ref()).await?;
    match choice.give(object, old) {
        Ok(()) => Ok(Some(choice.hold)),
        Err(Refusal::Asked(error)) => Err(invalid(object, vec![*error])),
        Err(Refusal::Empty(why)) => Err(Status::internal(format!("Internal error occurred: {why}"))),
    }
}

impl Pool {
    /// A pool of the addresses of a range, and of one of IPv6 in a dual-stack cluster.
    pub fn new(range: Ipv4Net, range6: Option<Ipv6Net>) -> Self {
        let ranges = [IpNet::V4(range)].into_iter().chain(range6.map(IpNet::V6)).collect();
        Self { ranges, taken: tokio::sync::Mutex::default(), reserved: Reserved::default() }
    }

    /// Begins a choice; one at a time. First come the reservations, then the stored Services: whoever gave up a
    /// reservation before the first look has stored the object that the second one finds.
    async fn reserve(&self, store: &dyn Store) -> Result<Choice<'_>, Status> {
        let mut taken = self.taken.lock().await;
        let reserved = self.reserved.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let page = store.range(&KeyRange::prefix(SERVICES), None, None).await.map_err(|error| store_failure(&error))?;
        taken.follow(&page.entries);
        let hold = Hold { claims: Vec::new(), reserved: Arc::clone(&self.reserved) };
        Ok(Choice { ranges: &self.ranges, taken, reserved, hold })
    }
}

/// The choice of what one Service gets.
struct Choice<'a> {
    ranges: &'a [IpNet],
    taken: tokio::sync::MutexGuard<'a, Taken>,
    reserved: HashSet<Claim>,
    hold: Hold,
}

impl Choice<'_> {
    fn give(&mut self, object: &mut Value, old: Option<&Value>) -> Result<(), Refusal> {
        let mut own: HashSet<Claim> = old.map(taken::claims).unwrap_or_default();
        let Some(spec) = object.get_mut("spec") else { return Ok(()) };
        self.addresses(spec, old.and_then(|old| old.get("spec")))?;
        if old.is_some() {
            self.ports_of_changed(spec, &mut own)?;
        } else {
            self.ports_of_new(spec)?;
        }
        self.health_check(spec, &own)
    }

    /// Gives the addresses that a Service lacks: all to one that had none, the second to one that gets a second family. What
    /// else is changed of them is refused by validation.
    fn addresses(&mut self, spec: &mut Value, old: Option<&Value>) -> Result<(), Refusal> {
        let headless = |spec: &Value| text(spec, "/clusterIPs/0") == HEADLESS;
        if !service::needs_cluster_ip(spec) || headless(spec) {
            return Ok(());
        }
        let families = list(spec, "ipFamilies");
        let lacks = match old.filter(|old| service::needs_cluster_ip(old)) {
            None => 0,
            Some(old) if !headless(old) && list(old, "ipFamilies").len() == 1 && families.len() == 2 => 1,
            Some(_) => return Ok(()),
        };
        let mut given = list(spec, "clusterIPs");
        given.resize(families.len().max(given.len()), Value::from(""));
        for (index, family) in families.iter().enumerate().skip(lacks) {
            let range = self.ranges.iter().find(|range| self::family(range) == family).copied();
            let Some(range) = range else { continue };
            let asked = given[index].as_str().unwrap_or_default();
            if asked.is_empty() {
                let address = self
                    .any_address(range)
                    .ok_or_else(|| Refusal::Empty("failed to allocate a serviceIP: range is full".to_owned()))?;
                self.claim(Claim::Address(address));
                given[index] = address.to_string().into();
            } else if let Err(why) = self.this_address(range, asked) {
                let why = format!("failed to allocate IP {asked}: {why}");
                let path = Path::new("spec").child("clusterIPs");
                return Err(Refusal::Asked(Box::new(path.invalid(Value::from(list(spec, "clusterIPs")), why))));
            }
        }
        spec["clusterIP"] = given.first().cloned().unwrap_or_default();
        spec["clusterIPs"] = given.into();
        Ok(())
    }

    fn this_address(&mut self, range: IpNet, asked: &str) -> Result<(), String> {
        let Some(ip) = addresses::parse_ip(asked).filter(|ip| range.contains(ip)) else {
            return Err("the provided network does not match the current range".to_owned());
        };
        if !usable(range).contains(&number_of(ip)) {
            return Err(format!(
                "the provided IP ({asked}) is not in the valid range. The range of valid IPs is {range}"
            ));
        }
        if !self.is_free(&Claim::Address(ip)) {
            return Err("provided IP is already allocated".to_owned());
        }
        self.claim(Claim::Address(ip));
        Ok(())
    }

    /// Ports of one number share a port on the nodes, whatever their protocols.
    fn ports_of_new(&mut self, spec: &mut Value) -> Result<(), Refusal> {
        let allocates = service::allocates_node_ports(spec);
        let Some(ports) = spec.get_mut("ports").and_then(Value::as_array_mut) else { return Ok(()) };
        let mut shared: Vec<(i64, i64)> = Vec::new();
        for index in 0..ports.len() {
            let (number, asked) = (number(&ports[index], "port"), number(&ports[index], "nodePort"));
            if asked == 0 && !allocates {
                continue;
            }
            let given = shared.iter().find(|(port, _)| *port == number).map(|(_, given)| *given);
            let chosen = match given {
                Some(given) if asked == 0 || asked == given => given,
                _ => {
                    let wanted = ports.iter().filter(|port| self::number(port, "port") == number);
                    let wanted = wanted.map(|port| self::number(port, "nodePort")).find(|asked| *asked != 0);
                    let wanted = if given.is_some() { asked } else { wanted.unwrap_or(0) };
                    let chosen = self.port(wanted, index)?;
                    if given.is_none() {
                        shared.push((number, chosen));
                    }
                    chosen
                }
            };
            ports[index]["nodePort"] = chosen.into();
        }
        Ok(())
    }

    fn ports_of_changed(&mut self, spec: &mut Value, own: &mut HashSet<Claim>) -> Result<(), Refusal> {
        let allocates = service::allocates_node_ports(spec);
        for (index, port) in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten().enumerate() {
            let asked = number(port, "nodePort");
            let kept = u16::try_from(asked).is_ok_and(|asked| own.contains(&Claim::Port(asked)));
            if kept || (asked == 0 && !allocates) {
                continue;
            }
            let chosen = self.port(asked, index)?;
            port["nodePort"] = chosen.into();
            own.extend(u16::try_from(chosen).ok().map(Claim::Port));
        }
        Ok(())
    }

    /// The port that is asked for, or any if that is 0.
    fn port(&mut self, asked: i64, index: usize) -> Result<i64, Refusal> {
        if asked == 0 {
            let port = self
                .any_port()
                .ok_or_else(|| Refusal::Empty("failed to allocate a nodePort: range is full".to_owned()))?;
            self.claim(Claim::Port(port));
            return Ok(port.into());
        }
        self.this_port(asked).map(i64::from).map_err(|why| {
            Refusal::Asked(Box::new(
                Path::new("spec").child("ports").index(index).child("nodePort").invalid(asked, why),
            ))
        })
    }

    fn health_check(&mut self, spec: &mut Value, own: &HashSet<Claim>) -> Result<(), Refusal> {
        if !service::needs_health_check(spec) {
            return Ok(());
        }
        let asked = number(spec, "healthCheckNodePort");
        if u16::try_from(asked).is_ok_and(|asked| own.contains(&Claim::Port(asked))) {
            return Ok(());
        }
        let port = if asked == 0 {
            let port = self.any_port();
            port.ok_or_else(|| Refusal::Empty("failed to allocate a HealthCheck NodePort: range is full".to_owned()))?
        } else {
            self.this_port(asked).map_err(|why| {
                Refusal::Empty(format!("failed to allocate requested HealthCheck NodePort {asked}: {why}"))
            })?
        };
        self.claim(Claim::Port(port));
        spec["healthCheckNodePort"] = port.into();
        Ok(())
    }

    fn this_port(&mut self, asked: i64) -> Result<u16, String> {
        let (first, last) = (NODE_PORTS.start(), NODE_PORTS.end());
        let port = u16::try_from(asked).ok().filter(|port| NODE_PORTS.contains(port)).ok_or_else(|| {
            format!("provided port is not in the valid range. The range of valid ports is {first}-{last}")
        })?;
        if !self.is_free(&Claim::Port(port)) {
            return Err(TAKEN_PORT.to_owned());
        }
        self.claim(Claim::Port(port));
        Ok(port)
    }

    fn any_port(&self) -> Option<u16> {
        let split = NODE_PORTS.start() + CHOSEN_PORTS;
        let free = |port: &u16| self.is_free(&Claim::Port(*port));
        let numbers = |range: RangeInclusive<u16>| around(u32::from(*range.start())..=u32::from(*range.end()));
        numbers(split..=*NODE_PORTS.end())
            .chain(numbers(*NODE_PORTS.start()..=split - 1))
            .filter_map(|port| u16::try_from(port).ok())
            .find(free)
    }

    /// Any free address. The first of the range are for those who choose one themselves, and are given last.
    fn any_address(&self, range: IpNet) -> Option<IpAddr> {
        let usable = usable(range);
        let (first, last) = (*usable.start(), *usable.end());
        let size = u32::try_from(last.checked_sub(first)? + 1).unwrap_or(u32::MAX);
        let chosen = if size < 16 { 0 } else { (size / 16).clamp(16, 256).min(size) };
        let address = |offset: u32| address_of(range, first + u128::from(offset));
        let free = |ip: &IpAddr| self.is_free(&Claim::Address(*ip));
        let mut upper = around(chosen..=size - 1).filter_map(address);
        let mut lower = (0..chosen).filter_map(address);
        upper.find(free).or_else(|| lower.find(free))
    }

    fn is_free(&self, claim: &Claim) -> bool {
        !self.taken.contains(claim) && !self.reserved.contains(claim)
    }

    fn claim(&mut self, claim: Claim) {
        self.reserved.insert(claim);
        self.hold.claims.push(claim);
        self.hold.reserved.lock().unwrap_or_else(PoisonError::into_inner).insert(claim);
    }
}

/// The family of a range's addresses.
fn family(range: &IpNet) -> &'static str {
    match range {
        IpNet::V4(_) => "IPv4",
        IpNet::V6(_) => "IPv6",
    }
}

/// The addresses of a range that can be given, as numbers: not the network's, nor in IPv4 the one for all.
fn usable(range: IpNet) -> RangeInclusive<u128> {
    let last = number_of(range.broadcast());
    let last = if matches!(range, IpNet::V4(_)) { last.saturating_sub(1) } else { last };
    number_of(range.network()) + 1..=last
}

fn number_of(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

/// The address of a number, of the family of a range.
fn address_of(range: IpNet, number: u128) -> Option<IpAddr> {
    match range {
        IpNet::V4(_) => u32::try_from(number).ok().map(|number| Ipv4Addr::from(number).into()),
        IpNet::V6(_) => Some(Ipv6Addr::from(number).into()),
    }
}

fn list(spec: &Value, field: &str) -> Vec<Value> {
    spec.get(field).and_then(Value::as_array).cloned().unwrap_or_default()
}

fn number(value: &Value, field: &str) -> i64 {
    value.get(field).and_then(Value::as_i64).unwrap_or(0)
}

/// The numbers of a range, each once, from a random one on.
fn around(range: RangeInclusive<u32>) -> impl Iterator<Item = u32> {
    let (first, last) = (*range.start(), *range.end());
    let middle = if first < last { first + random::below(last - first + 1) } else { first };
    (middle..=last).chain(first..middle)
}

#[cfg(test)]
mod tests;
