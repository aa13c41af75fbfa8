//! Services in the kernel: one lookup in a map finds what to do with a connection, however many services there are.
//!
//! The map tells how many endpoints a service has by naming a chain that all services with as many share; the chain draws
//! a number and finds the endpoint in a second map. So a change of a service changes elements of maps, in one transaction,
//! and no rule. Connections that are under way stay where they are.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::firewall::{AFFINITY, CLIENT, Changes, DESTINATION, HAIRPIN, REFUSED, Side, load_destination, table};
use crate::netfilter::{self, Messages};
use crate::rules::{Field, Register, Rule, Verdict};
use crate::{Error, conntrack};

/// `NFT_MSG_DELCHAIN`, `NFT_MSG_GETCHAIN`
const DELETE_CHAIN: u16 = 5;
const GET_CHAIN: u16 = 4;
/// How the names of the chains begin that draw an endpoint.
const DRAW: &str = "draw-";
/// Where a drawn number, then the endpoint's address and, in the next one, its port stand.
const ENDPOINT: Register = Register(4);

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP
    Tcp = 6,
    /// UDP
    Udp = 17,
    /// SCTP
    Sctp = 132,
}

/// Where clients find a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frontend {
    /// Which clients.
    pub side: Side,
    /// The address, or none for a port of every address of this machine.
    pub address: Option<Ipv4Addr>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

/// What happens with connections to a frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// One of these takes it; at least one.
    Endpoints {
        /// Where they are.
        endpoints: Vec<SocketAddrV4>,
        /// For how many seconds after its last connection a client is sent to the same one.
        affinity: Option<u32>,
    },
    /// It is refused.
    Refused,
    /// It is dropped: other machines have endpoints.
    Dropped,
}

/// Services that share a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Draw {
    side: Side,
    by_address: bool,
    endpoints: u32,
    affinity: Option<u32>,
}

impl Draw {
    fn of(frontend: &Frontend, backend: &Backend) -> Option<Self> {
        let Backend::Endpoints { endpoints, affinity } = backend else { return None };
        let endpoints = u32::try_from(endpoints.len()).ok()?;
        Some(Self { side: frontend.side, by_address: frontend.address.is_some(), endpoints, affinity: *affinity })
    }

    fn chain(&self) -> String {
        let key = if self.by_address { "" } else { "-port" };
        let affinity = self.affinity.map(|seconds| format!("-{seconds}s")).unwrap_or_default();
        format!("{DRAW}{}{key}-{}{affinity}", self.side.services(), self.endpoints)
    }

    fn load<'a>(&self, rule: Rule<'a>) -> Rule<'a> {
        load_destination(rule, self.by_address)
    }

    /// Loads one of the endpoints of what is loaded.
    fn draw<'a>(&self, rule: Rule<'a>) -> Rule<'a> {
        let numbered = match self.endpoints {
            0 | 1 => rule.load_value(&[0; 4], ENDPOINT),
            many => rule.load_random(many, ENDPOINT),
        };
        numbered.map(self.side.endpoints(), DESTINATION, ENDPOINT)
    }

    fn write(&self, changes: &mut Changes<'_>) {
        let chain = self.chain();
        changes.empty_chain(&chain);
        if let Some(seconds) = self.affinity {
            changes.rule(&chain, |rule| {
                let known = self.load(rule.load(Field::Source, CLIENT)).map(AFFINITY, CLIENT, ENDPOINT);
                let live = known.in_set(self.side.live(), DESTINATION);
                live.remember(AFFINITY, CLIENT, ENDPOINT, seconds).send_to(ENDPOINT);
            });
            changes.rule(&chain, |rule| {
                let drawn = self.draw(self.load(rule.load(Field::Source, CLIENT)));
                drawn.remember(AFFINITY, CLIENT, ENDPOINT, seconds).send_to(ENDPOINT);
            });
        }
        // With affinity this one is for when no more clients can be remembered.
        changes.rule(&chain, |rule| self.draw(self.load(rule)).send_to(ENDPOINT));
    }
}

/// What an element of a map holds.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Data {
    Nothing,
    Verdict(Verdict),
    Endpoint(SocketAddrV4),
}

/// Elements by set and key.
type Elements = BTreeMap<(&'static str, Vec<u8>), Data>;

impl Frontend {
    /// (address, protocol, port) as it stands in registers.
    fn key(&self) -> Vec<u8> {
        let mut key = self.address.map_or([0; 4], |address| address.octets()).to_vec();
        key.extend([self.protocol as u8, 0, 0, 0]);
        push_port(&mut key, self.port);
        key
    }

    fn elements(&self, backend: &Backend, all: &mut Elements) {
        let key = self.key();
        match backend {
            Backend::Endpoints { endpoints, affinity } => {
                let Some(draw) = Draw::of(self, backend) else { return };
                for (number, endpoint) in (0_u32..).zip(endpoints) {
                    let numbered = [&key[..], &number.to_ne_bytes()].concat();
                    all.insert((self.side.endpoints(), numbered), Data::Endpoint(*endpoint));
                    if affinity.is_some() {
                        let mut live = [&key[..], &endpoint.ip().octets()].concat();
                        push_port(&mut live, endpoint.port());
                        all.insert((self.side.live(), live), Data::Nothing);
                    }
                }
                all.insert((self.side.services(), key), Data::Verdict(Verdict::Goto(draw.chain())));
            }
            Backend::Dropped => {
                all.insert((self.side.services(), key), Data::Verdict(Verdict::Drop));
            }
            Backend::Refused => {}
        }
    }
}

fn push_port(key: &mut Vec<u8>, port: u16) {
    key.extend(port.to_be_bytes());
    key.extend([0; 2]);
}

fn write_key(messages: &mut Messages, key: &[u8]) {
    messages.nested(1, |inner| {
        inner.bytes(1, key);
    });
}

fn write_element(messages: &mut Messages, (key, data): (&[u8], &Data)) {
    write_key(messages, key);
    match data {
        Data::Nothing => {}
        Data::Verdict(verdict) => {
            messages.nested(2, |inner| {
                inner.nested(2, |inner| verdict.write(inner));
            });
        }
        Data::Endpoint(endpoint) => {
            let mut value = endpoint.ip().octets().to_vec();
            push_port(&mut value, endpoint.port());
            messages.nested(2, |inner| {
                inner.bytes(1, &value);
            });
        }
    }
}

/// The services of one instance as the kernel has them.
pub(crate) struct Services {
    table: String,
    /// What the kernel has been told; nothing before the first [`Services::replace`].
    known: HashMap<Frontend, Backend>,
}

/// One change: a frontend and what is behind it from now on; none takes it away.
pub type Change = (Frontend, Option<Backend>);

impl Services {
    pub(crate) fn new(instance: &str) -> Self {
        Self { table: table(instance), known: HashMap::new() }
    }

    /// Makes the kernel know these services and no others, whatever it knew: in one step, so that no connection finds a
    /// service missing that was there and still is.
    pub(crate) fn replace(&mut self, services: HashMap<Frontend, Backend>) -> Result<(), Error> {
        let mut changes = Changes::of(&self.table);
        for side in Side::BOTH {
            for set in [side.services(), side.endpoints(), side.live()] {
                changes.clear(set);
            }
        }
        changes.clear(HAIRPIN);
        changes.clear(REFUSED);
        for chain in self.draw_chains().map_err(Error::kernel(format!("list the chains of {}", self.table)))? {
            changes.transaction.message(DELETE_CHAIN, 0).name(1, &self.table).name(3, &chain);
        }
        let draws: HashSet<Draw> =
            services.iter().filter_map(|(frontend, backend)| Draw::of(frontend, backend)).collect();
        draws.iter().for_each(|draw| draw.write(&mut changes));
        let mut elements = Elements::new();
        services.iter().for_each(|(frontend, backend)| frontend.elements(backend, &mut elements));
        counted(&services).into_keys().for_each(|element| drop(elements.insert(element, Data::Nothing)));
        add(&mut changes, &elements.iter().collect::<Vec<_>>());
        changes.commit("fill")?;
        self.known = services;
        self.forget_stale(self.known.keys());
        Ok(())
    }

    /// Carries changes out, all at once.
    pub(crate) fn change(&mut self, wanted: Vec<Change>) -> Result<(), Error> {
        let wanted: HashMap<Frontend, Option<Backend>> = wanted.into_iter().collect();
        let before: HashMap<Frontend, Backend> =
            wanted.keys().filter_map(|frontend| Some((*frontend, self.known.get(frontend)?.clone()))).collect();
        let mut after = self.known.clone();
        for (frontend, backend) in &wanted {
            match backend {
                Some(backend) => after.insert(*frontend, backend.clone()),
                None => after.remove(frontend),
            };
        }
        if let Err(error) = self.change_elements(&wanted, &before, &after) {
            tracing::warn!(%error, "the kernel refused a change of services: all are written anew");
            return self.replace(after);
        }
        self.known = after;
        self.forget_stale(wanted.keys());
        Ok(())
    }

    fn change_elements(
        &self,
        wanted: &HashMap<Frontend, Option<Backend>>,
        before: &HashMap<Frontend, Backend>,
        after: &HashMap<Frontend, Backend>,
    ) -> Result<(), Error> {
        let (mut old, mut new) = (Elements::new(), Elements::new());
        before.iter().for_each(|(frontend, backend)| frontend.elements(backend, &mut old));
        for (frontend, backend) in wanted {
            if let Some(backend) = backend {
                frontend.elements(backend, &mut new);
            }
        }
        let (old_counts, new_counts) = (counted(&self.known), counted(after));
        for element in old_counts.keys().filter(|element| !new_counts.contains_key(*element)) {
            old.insert(element.clone(), Data::Nothing);
        }
        for element in new_counts.keys().filter(|element| !old_counts.contains_key(*element)) {
            new.insert(element.clone(), Data::Nothing);
        }
        let draws = |services: &HashMap<Frontend, Backend>| -> HashSet<Draw> {
            services.iter().filter_map(|(frontend, backend)| Draw::of(frontend, backend)).collect()
        };
        let (old_draws, new_draws) = (draws(&self.known), draws(after));
        let mut changes = Changes::of(&self.table);
        for draw in new_draws.difference(&old_draws) {
            draw.write(&mut changes);
        }
        let gone: Vec<_> = old.iter().filter(|(key, data)| new.get(*key) != Some(*data)).collect();
        let come: Vec<_> = new.iter().filter(|(key, data)| old.get(*key) != Some(*data)).collect();
        if gone.is_empty() && come.is_empty() {
            return Ok(());
        }
        for of_set in gone.chunk_by(|(a, _), (b, _)| a.0 == b.0) {
            let keys = of_set.iter().map(|((_, key), _)| key);
            changes.delete(of_set[0].0.0, keys, |messages, key| write_key(messages, key));
        }
        add(&mut changes, &come);
        for draw in old_draws.difference(&new_draws) {
            changes.transaction.message(DELETE_CHAIN, 0).name(1, &self.table).name(3, &draw.chain());
        }
        changes.commit("change")
    }

    /// Datagrams have no connections that end: what the kernel remembers of the way to an endpoint that is gone, or to a
    /// service that had none, would hold for as long as the client goes on.
    fn forget_stale<'a>(&self, frontends: impl Iterator<Item = &'a Frontend>) {
        let datagrams: HashMap<_, HashSet<SocketAddrV4>> = frontends
            .filter(|frontend| frontend.protocol == Protocol::Udp)
            .map(|frontend| {
                let endpoints = match self.known.get(frontend) {
                    Some(Backend::Endpoints { endpoints, .. }) => endpoints.iter().copied().collect(),
                    _ => HashSet::new(),
                };
                ((frontend.side, frontend.address, frontend.port), endpoints)
            })
            .collect();
        if datagrams.is_empty() {
            return;
        }
        let outcome = conntrack::forget(|flow| {
            let known = |address| {
                let sides: Vec<_> = Side::BOTH
                    .iter()
                    .filter_map(|side| datagrams.get(&(*side, address, flow.destination.port())))
                    .collect();
                (!sides.is_empty()).then(|| sides.iter().any(|endpoints| endpoints.contains(&flow.answers_from)))
            };
            // A port of the machine is a service's only where the connection was translated.
            let by_port = || known(None).filter(|_| flow.answers_from != flow.destination);
            known(Some(*flow.destination.ip())).or_else(by_port) == Some(false)
        });
        if let Err(error) = outcome {
            tracing::warn!(%error, "datagrams may go on to endpoints that are gone");
        }
    }

    /// The chains of an earlier run.
    fn draw_chains(&self) -> std::io::Result<Vec<String>> {
        let mut found = Vec::new();
        netfilter::dump((10 << 8) | GET_CHAIN, |attributes| {
            let text = |number| {
                let value = netfilter::attribute(attributes, number)?;
                std::str::from_utf8(value.strip_suffix(&[0])?).ok()
            };
            if text(1) == Some(&self.table)
                && let Some(name) = text(3)
                && name.starts_with(DRAW)
            {
                found.push(name.to_owned());
            }
        })?;
        Ok(found)
    }
}

/// Elements that several services may share: each is there as long as one of them wants it.
fn counted(services: &HashMap<Frontend, Backend>) -> HashMap<(&'static str, Vec<u8>), usize> {
    let mut counts = HashMap::new();
    for (frontend, backend) in services {
        match backend {
            Backend::Endpoints { endpoints, .. } => {
                for endpoint in endpoints {
                    let address = endpoint.ip().octets();
                    *counts.entry((HAIRPIN, [address, address].concat())).or_default() += 1;
                }
            }
            Backend::Refused if frontend.address.is_some() => {
                *counts.entry((REFUSED, frontend.key())).or_default() += 1;
            }
            _ => {}
        }
    }
    counts
}

type Entry<'a> = (&'a (&'static str, Vec<u8>), &'a Data);

/// Adds elements that are in the order of their sets.
fn add(changes: &mut Changes<'_>, elements: &[Entry<'_>]) {
    for of_set in elements.chunk_by(|(a, _), (b, _)| a.0 == b.0) {
        let all = of_set.iter().map(|((_, key), data)| (key.as_slice(), *data));
        changes.add(of_set[0].0.0, all, write_element);
    }
}
