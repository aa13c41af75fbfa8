//! Services in the kernel: one lookup in a map finds what to do with a connection, however many services there are.
//!
//! The map tells how many endpoints a service has by naming a chain that all services with as many share; the chain draws
//! a number and finds the endpoint in a second map. So a change of a service changes elements of maps, in one transaction,
//! and no rule. Connections that are under way stay where they are.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use crate::family::{Family, octets};
use crate::firewall::{
    ADMITTED, AFFINITY, Changes, GET_CHAIN, GUARDED, HAIRPIN, REFUSED, Side, TABLE, Table, load_destination, names,
};
use crate::netfilter::{self, ACKNOWLEDGE, Messages};
use crate::rules::{Field, Register, Rule, Verdict};
use crate::{Error, bridge, conntrack};

/// How the names of the chains begin that draw an endpoint.
const DRAW: &str = "draw-";

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

impl Protocol {
    /// As Kubernetes writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

/// Where clients find a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frontend {
    /// Which clients.
    pub side: Side,
    /// The address; the unspecified one of its kind for a port of every address of this machine.
    pub address: IpAddr,
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
        /// Where they are; of the frontend's kind.
        endpoints: Vec<SocketAddr>,
        /// For how many seconds after its last connection a client is sent to the same one.
        affinity: Option<u32>,
        /// Which clients may come, this machine aside: addresses from the first to the last of each pair, in order and
        /// apart from each other. None means all.
        clients: Option<Vec<(IpAddr, IpAddr)>>,
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
        let Backend::Endpoints { endpoints, affinity, .. } = backend else { return None };
        let endpoints = u32::try_from(endpoints.len()).ok()?;
        Some(Self { side: frontend.side, by_address: !frontend.is_everywhere(), endpoints, affinity: *affinity })
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
            0 | 1 => rule.load_value(&[0; 4], Register::Endpoint),
            many => rule.load_random(many, Register::Endpoint),
        };
        numbered.map(self.side.endpoints(), Register::Destination, Register::Endpoint)
    }

    fn write(&self, changes: &mut Changes<'_>) {
        let chain = self.chain();
        changes.empty_chain(&chain);
        if let Some(seconds) = self.affinity {
            changes.rule(&chain, |rule| {
                let known = self.load(rule.load(Field::Source, Register::Client)).map(
                    AFFINITY,
                    Register::Client,
                    Register::Endpoint,
                );
                let live = known.in_set(self.side.live(), Register::Destination);
                live.remember(AFFINITY, Register::Client, Register::Endpoint, seconds).send_to_endpoint();
            });
            // Who was sent to one that is gone is sent to another, and to that one from now on.
            changes.rule(&chain, |rule| {
                let known = self.load(rule.load(Field::Source, Register::Client)).map(
                    AFFINITY,
                    Register::Client,
                    Register::Endpoint,
                );
                let gone = known.not_in_set(self.side.live(), Register::Destination);
                gone.forget(AFFINITY, Register::Client, Register::Endpoint);
            });
            changes.rule(&chain, |rule| {
                let drawn = self.draw(self.load(rule.load(Field::Source, Register::Client)));
                drawn.remember(AFFINITY, Register::Client, Register::Endpoint, seconds).send_to_endpoint();
            });
        }
        // With affinity this one is for when no more clients can be remembered.
        changes.rule(&chain, |rule| self.draw(self.load(rule)).send_to_endpoint());
    }
}

/// What an element of a map holds.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Data {
    Nothing,
    Verdict(Verdict),
    Endpoint(SocketAddr),
}

/// A set and a key in it; in [`ADMITTED`], the key's first value and its last.
type Element = (&'static str, Vec<u8>);
/// Elements with what they hold.
type Elements = BTreeMap<Element, Data>;

impl Frontend {
    /// Whether it is a port of every address of this machine.
    pub fn is_everywhere(&self) -> bool {
        self.address.is_unspecified()
    }

    /// (address, protocol, port) as it stands in registers.
    fn key(&self) -> Vec<u8> {
        let mut key = octets(self.address);
        key.extend([self.protocol as u8, 0, 0, 0]);
        push_port(&mut key, self.port);
        key
    }

    fn elements(&self, backend: &Backend, all: &mut Elements) {
        let key = self.key();
        match backend {
            Backend::Endpoints { endpoints, affinity, .. } => {
                let Some(draw) = Draw::of(self, backend) else { return };
                for (number, endpoint) in (0_u32..).zip(endpoints) {
                    let numbered = [&key[..], &number.to_ne_bytes()].concat();
                    all.insert((self.side.endpoints(), numbered), Data::Endpoint(*endpoint));
                    if affinity.is_some() {
                        let mut live = [&key[..], &octets(endpoint.ip())].concat();
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

/// `NFTA_SET_ELEM_KEY` is 1, `NFTA_SET_ELEM_KEY_END` is 10.
pub(crate) fn write_key(messages: &mut Messages, attribute: u16, key: &[u8]) {
    messages.nested(attribute, |inner| {
        inner.bytes(1, key);
    });
}

fn write_key_of(messages: &mut Messages, (set, key): (&'static str, &[u8])) {
    if set == ADMITTED {
        let (first, last) = key.split_at(key.len() / 2);
        write_key(messages, 1, first);
        write_key(messages, 10, last);
    } else {
        write_key(messages, 1, key);
    }
}

fn write_element(messages: &mut Messages, (set, key, data): (&'static str, &[u8], &Data)) {
    write_key_of(messages, (set, key));
    match data {
        Data::Nothing => {}
        Data::Verdict(verdict) => {
            messages.nested(2, |inner| {
                inner.nested(2, |inner| verdict.write(inner));
            });
        }
        Data::Endpoint(endpoint) => {
            let mut value = octets(endpoint.ip());
            push_port(&mut value, endpoint.port());
            messages.nested(2, |inner| {
                inner.bytes(1, &value);
            });
        }
    }
}

/// The services of one instance that have addresses of one kind, as the kernel has them.
pub(crate) struct Services {
    table: Table,
    /// What leads to Services.
    known: HashMap<Frontend, Backend>,
    /// Ports of this machine that lead to a pod, with the pod's uid: they go before Services' ports of all its addresses,
    /// and after Services that have the address.
    published: HashMap<Frontend, (String, Backend)>,
    /// How many frontends want an element that several may share: it is there as long as one does.
    shared: HashMap<Element, usize>,
    draws: HashMap<Draw, usize>,
    /// The kernel was told of everything; before, it may know what an earlier run told it.
    told: bool,
    /// The kernel refused to be told of everything: only that helps.
    stale: bool,
}

/// Ports of this machine that another Carob's Services have as well, with its id: one of the two gets the connections.
pub(crate) fn contested(own: &str, ports: &[Frontend]) -> std::io::Result<Vec<(Frontend, String)>> {
    const GET_TABLE: u16 = 1;
    const GET_ELEMENT: u16 = 13;
    let own = Table::of(own, Family::V4).name;
    let mut others = Vec::new();
    netfilter::dump((10 << 8) | GET_TABLE, Family::V4, |attributes| {
        let name =
            netfilter::attribute(attributes, 1).and_then(|name| std::str::from_utf8(name.strip_suffix(&[0])?).ok());
        others.extend(name.filter(|name| name.starts_with(TABLE) && **name != own).map(str::to_owned));
    })?;
    let (mut questions, mut asked) = (Messages::default(), Vec::new());
    for other in &others {
        for port in ports {
            questions.begin((10 << 8) | GET_ELEMENT, ACKNOWLEDGE, Family::of(port.address));
            questions.name(1, other).name(2, port.side.services());
            questions.nested(3, |list| {
                list.nested(1, |element| write_key(element, 1, &port.key()));
            });
            asked.push((*port, other.trim_start_matches(TABLE).to_owned()));
        }
    }
    let there = netfilter::found(questions)?;
    Ok(asked.into_iter().zip(there).filter(|(_, there)| *there).map(|(port, _)| port).collect())
}

/// One change: a frontend and what is behind it from now on; none takes it away.
pub type Change = (Frontend, Option<Backend>);

/// What is there once for several frontends, as it was before a change.
#[derive(Default)]
struct Before {
    shared: HashMap<Element, bool>,
    draws: HashMap<Draw, bool>,
}

impl Services {
    pub(crate) fn new(table: Table) -> Self {
        Self {
            table,
            known: HashMap::new(),
            published: HashMap::new(),
            shared: HashMap::new(),
            draws: HashMap::new(),
            told: false,
            stale: false,
        }
    }

    /// Makes the kernel know these services and no others, whatever it knew: in one step, so that no connection finds a
    /// service missing that was there and still is.
    pub(crate) fn replace(&mut self, services: HashMap<Frontend, Backend>) -> Result<(), Error> {
        self.known = services;
        self.rewrite()?;
        let all: Vec<Frontend> = self.known.keys().chain(self.published.keys()).copied().collect();
        self.forget_stale(&all);
        Ok(())
    }

    /// Writes everything into a table that was made anew.
    pub(crate) fn restore(&mut self) -> Result<(), Error> {
        self.stale = true;
        if self.told { self.rewrite() } else { Ok(()) }
    }

    /// Carries changes out, all at once. What it costs depends on what changes, not on what there is.
    pub(crate) fn change(&mut self, wanted: Vec<Change>) -> Result<(), Error> {
        self.apply(wanted, |services, frontend, backend| {
            match backend {
                Some(backend) => services.known.insert(frontend, backend),
                None => services.known.remove(&frontend),
            };
        })
    }

    /// Leads ports of this machine to a pod, instead of where they lead now.
    pub(crate) fn publish(&mut self, pod_uid: &str, ports: Vec<(Frontend, Backend)>) -> Result<(), Error> {
        let wanted = ports.into_iter().map(|(frontend, backend)| (frontend, Some(backend))).collect();
        self.apply(wanted, |services, frontend, backend| {
            if let Some(backend) = backend {
                services.published.insert(frontend, (pod_uid.to_owned(), backend));
            }
        })
    }

    /// Takes a pod's ports back.
    pub(crate) fn unpublish(&mut self, pod_uid: &str) -> Result<(), Error> {
        let owned = self.published.iter().filter(|(_, (owner, _))| owner == pod_uid);
        let wanted: Vec<Change> = owned.map(|(frontend, _)| (*frontend, None)).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        self.apply(wanted, |services, frontend, _| drop(services.published.remove(&frontend)))
    }

    /// What a frontend leads to.
    fn effective(&self, frontend: &Frontend) -> Option<&Backend> {
        let (known, published) = (self.known.get(frontend), self.published.get(frontend).map(|(_, backend)| backend));
        if frontend.is_everywhere() { published.or(known) } else { known.or(published) }
    }

    fn apply(&mut self, wanted: Vec<Change>, set: impl Fn(&mut Self, Frontend, Option<Backend>)) -> Result<(), Error> {
        // Of several changes of one frontend, the last one holds.
        let wanted: HashMap<Frontend, Option<Backend>> = wanted.into_iter().collect();
        let frontends: Vec<Frontend> = wanted.keys().copied().collect();
        let (mut old, mut new, mut before) = (Elements::new(), Elements::new(), Before::default());
        for (frontend, backend) in wanted {
            if let Some(gone) = self.effective(&frontend).cloned() {
                frontend.elements(&gone, &mut old);
                self.count(&frontend, &gone, false, &mut before);
            }
            set(self, frontend, backend);
            if let Some(come) = self.effective(&frontend).cloned() {
                frontend.elements(&come, &mut new);
                self.count(&frontend, &come, true, &mut before);
            }
        }
        if !self.told {
            return Ok(());
        }
        if self.stale {
            self.rewrite()?;
        } else if let Err(error) = self.write(old, new, before) {
            tracing::warn!(%error, "the kernel refused a change of services: all are written anew");
            self.rewrite()?;
        }
        self.forget_stale(&frontends);
        Ok(())
    }

    /// Counts what a frontend shares with others, one more or one less.
    fn count(&mut self, frontend: &Frontend, backend: &Backend, more: bool, before: &mut Before) {
        for element in shared_elements(frontend, backend) {
            let there = step(&mut self.shared, element.clone(), more);
            before.shared.entry(element).or_insert(there);
        }
        if let Some(draw) = Draw::of(frontend, backend) {
            let there = step(&mut self.draws, draw, more);
            before.draws.entry(draw).or_insert(there);
        }
    }

    fn write(&self, mut old: Elements, mut new: Elements, before: Before) -> Result<(), Error> {
        for (element, there) in before.shared {
            match (there, self.shared.contains_key(&element)) {
                (true, false) => drop(old.insert(element, Data::Nothing)),
                (false, true) => drop(new.insert(element, Data::Nothing)),
                _ => {}
            }
        }
        let changed_draws = |come: bool| {
            let changed = before.draws.iter().filter(move |(_, there)| **there != come);
            changed.map(|(draw, _)| draw).filter(move |draw| self.draws.contains_key(*draw) == come)
        };
        let mut changes = Changes::of(&self.table);
        changed_draws(true).for_each(|draw| draw.write(&mut changes));
        let gone: Vec<_> = old.iter().filter(|(key, data)| new.get(*key) != Some(*data)).collect();
        let come: Vec<_> = new.iter().filter(|(key, data)| old.get(*key) != Some(*data)).collect();
        if gone.is_empty() && come.is_empty() {
            return Ok(());
        }
        for of_set in gone.chunk_by(|(a, _), (b, _)| a.0 == b.0) {
            let keys = of_set.iter().map(|((set, key), _)| (*set, key.as_slice()));
            changes.delete(of_set[0].0.0, keys, write_key_of);
        }
        add(&mut changes, &come);
        for draw in changed_draws(false) {
            changes.remove_chain(&draw.chain());
        }
        changes.commit("change")
    }

    /// Writes everything, instead of what is there.
    fn rewrite(&mut self) -> Result<(), Error> {
        self.stale = true;
        let mut changes = Changes::of(&self.table);
        for side in Side::ALL {
            for set in [side.services(), side.endpoints(), side.live()] {
                changes.clear(set);
            }
        }
        [HAIRPIN, REFUSED, GUARDED, ADMITTED].into_iter().for_each(|set| changes.clear(set));
        for chain in names(&self.table, GET_CHAIN, 3, DRAW)
            .map_err(Error::kernel(format!("list the chains of {}", self.table.name)))?
        {
            changes.remove_chain(&chain);
        }
        let all: HashSet<&Frontend> = self.known.keys().chain(self.published.keys()).collect();
        let (mut elements, mut shared, mut draws) = (Elements::new(), HashMap::new(), HashMap::new());
        for (frontend, backend) in all.into_iter().filter_map(|frontend| Some((frontend, self.effective(frontend)?))) {
            frontend.elements(backend, &mut elements);
            for element in shared_elements(frontend, backend) {
                step(&mut shared, element, true);
            }
            if let Some(draw) = Draw::of(frontend, backend) {
                step(&mut draws, draw, true);
            }
        }
        draws.keys().for_each(|draw| draw.write(&mut changes));
        shared.keys().for_each(|element| drop(elements.insert(element.clone(), Data::Nothing)));
        add(&mut changes, &elements.iter().collect::<Vec<_>>());
        changes.commit("fill")?;
        (self.shared, self.draws, self.told, self.stale) = (shared, draws, true, false);
        Ok(())
    }

    /// Datagrams have no connections that end: what the kernel remembers of the way to an endpoint that is gone, or to a
    /// service that had none, would hold for as long as the client goes on.
    fn forget_stale(&self, frontends: &[Frontend]) {
        let datagrams: HashMap<_, HashSet<SocketAddr>> = frontends
            .iter()
            .filter(|frontend| frontend.protocol == Protocol::Udp)
            .map(|frontend| {
                let endpoints = match self.effective(frontend) {
                    Some(Backend::Endpoints { endpoints, .. }) => endpoints.iter().copied().collect(),
                    _ => HashSet::new(),
                };
                ((frontend.side, frontend.address, frontend.port), endpoints)
            })
            .collect();
        if datagrams.is_empty() {
            return;
        }
        let family = self.table.family;
        // What came for a port of the machine's while nothing was behind it went nowhere, and would go on doing so.
        let by_port = datagrams.keys().any(|(_, address, _)| address.is_unspecified());
        let here = by_port.then(bridge::local_addresses).and_then(Result::ok).unwrap_or_default();
        let is_here = |address: IpAddr| here.iter().any(|(local, _)| *local == address);
        let outcome = conntrack::forget(family, |flow| {
            let known = |address| {
                let sides: Vec<_> = Side::ALL
                    .iter()
                    .filter_map(|side| datagrams.get(&(*side, address, flow.destination.port())))
                    .collect();
                (!sides.is_empty()).then(|| sides.iter().any(|endpoints| endpoints.contains(&flow.answers_from)))
            };
            let translated = flow.answers_from != flow.destination;
            let by_port = || known(family.unspecified()).filter(|_| translated || is_here(flow.destination.ip()));
            known(flow.destination.ip()).or_else(by_port) == Some(false)
        });
        if let Err(error) = outcome {
            tracing::warn!(%error, "datagrams may go on to endpoints that are gone");
        }
    }
}

/// Counts one more or one less; whether there was any before.
fn step<K: Eq + std::hash::Hash>(counts: &mut HashMap<K, usize>, key: K, more: bool) -> bool {
    match counts.entry(key) {
        Entry::Vacant(entry) => {
            if more {
                entry.insert(1);
            }
            false
        }
        Entry::Occupied(mut entry) => {
            let count = entry.get_mut();
            *count = if more { *count + 1 } else { *count - 1 };
            if *count == 0 {
                entry.remove();
            }
            true
        }
    }
}

/// Elements that several services may share.
fn shared_elements(frontend: &Frontend, backend: &Backend) -> Vec<Element> {
    match backend {
        Backend::Endpoints { endpoints, clients, .. } => {
            let twice = |address: Vec<u8>| (HAIRPIN, [&address[..], &address].concat());
            let mut all: Vec<Element> = endpoints.iter().map(|endpoint| twice(octets(endpoint.ip()))).collect();
            // Who may come is the same on every side.
            if let Some(clients) = clients {
                let key = frontend.key();
                let admitted = |(first, last): &(IpAddr, IpAddr)| {
                    (ADMITTED, [*first, *last].map(|client| [&octets(client)[..], &key].concat()).concat())
                };
                all.extend(clients.iter().map(admitted));
                all.push((GUARDED, key));
            }
            all
        }
        Backend::Refused if !frontend.is_everywhere() => vec![(REFUSED, frontend.key())],
        _ => Vec::new(),
    }
}

type Entries<'a> = (&'a Element, &'a Data);

/// Adds elements that are in the order of their sets.
fn add(changes: &mut Changes<'_>, elements: &[Entries<'_>]) {
    for of_set in elements.chunk_by(|(a, _), (b, _)| a.0 == b.0) {
        let all = of_set.iter().map(|((set, key), data)| (*set, key.as_slice(), *data));
        changes.add(of_set[0].0.0, all, write_element);
    }
}
