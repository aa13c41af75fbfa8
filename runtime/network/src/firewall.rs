//! An instance's nftables tables, one for each kind of addresses: the chains that packets pass, the maps that services live
//! in, and the fixed rules.
//!
//! What changes with services are elements of maps (`services.rs`); the rules here stay as they are while a worker runs.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use crate::family::{Family, octets};
use crate::netfilter::{self, APPEND, CREATE, Messages, Transaction};
use crate::policies::Direction;
use crate::rules::{Field, Is, Meta, Register, Rule, Verdict};
use crate::traffic::{self, NODES, TRAFFIC};
use crate::{Error, NetworkConfig, bridge, nodes};

/// Messages of nftables (`NFT_MSG_*`).
pub(crate) const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
pub(crate) const NEW_CHAIN: u16 = 3;
pub(crate) const NEW_RULE: u16 = 6;
pub(crate) const DELETE_RULE: u16 = 8;
/// `NFT_MSG_GETCHAIN`, `NFT_MSG_DELCHAIN`, `NFT_MSG_GETSET`, `NFT_MSG_DELSET`
pub(crate) const GET_CHAIN: u16 = 4;
const DELETE_CHAIN: u16 = 5;
const NEW_SET: u16 = 9;
pub(crate) const GET_SET: u16 = 10;
const DELETE_SET: u16 = 11;
pub(crate) const NEW_ELEMENTS: u16 = 12;
pub(crate) const GET_ELEMENTS: u16 = 13;
pub(crate) const DELETE_ELEMENTS: u16 = 14;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// From where a connection comes: pods and this machine see a service's inside, the world its outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// Pods of this instance, and this machine itself.
    Inside,
    /// Everything else.
    Outside,
    /// This machine itself, by one of its loopback addresses.
    Loopback,
}

impl Side {
    pub(crate) const ALL: [Self; 3] = [Self::Inside, Self::Outside, Self::Loopback];

    /// (address, protocol, port) → what to do.
    pub(crate) fn services(self) -> &'static str {
        match self {
            Self::Inside => "inside",
            Self::Outside => "outside",
            Self::Loopback => "loopback",
        }
    }

    /// (address, protocol, port, number) → the endpoint of that number.
    pub(crate) fn endpoints(self) -> &'static str {
        match self {
            Self::Inside => "inside-endpoints",
            Self::Outside => "outside-endpoints",
            Self::Loopback => "loopback-endpoints",
        }
    }

    /// (address, protocol, port, endpoint): which endpoints a remembered client may still be sent to.
    pub(crate) fn live(self) -> &'static str {
        match self {
            Self::Inside => "inside-live",
            Self::Outside => "outside-live",
            Self::Loopback => "loopback-live",
        }
    }
}

/// (client, address, protocol, port) → the endpoint that the client was sent to.
pub(crate) const AFFINITY: &str = "affinity";
/// (address, address) of every endpoint: a pod that talks to itself by its service.
pub(crate) const HAIRPIN: &str = "hairpin";
/// (address, protocol, port) of services outside the service range that have no endpoint.
pub(crate) const REFUSED: &str = "refused";

/// (address, protocol, port) of services that only some clients may use.
pub(crate) const GUARDED: &str = "guarded";
/// (client, address, protocol, port): who may.
pub(crate) const ADMITTED: &str = "admitted";
/// Addresses that this machine has for services alone.
pub(crate) const HELD: &str = "held";

/// (address, protocol, port) where workers answer the gateway.
const DOORS: &str = "doors";

/// What a part of a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Address,
    /// The last 32 bits of an address.
    AddressEnd,
    Protocol,
    Port,
    Number,
}

impl Part {
    /// nft's number of the type, which `nft list` goes by.
    fn number(self, family: Family) -> u32 {
        match (self, family) {
            (Self::Address, Family::V6) => 8,
            (Self::Address | Self::AddressEnd, _) => 7,
            (Self::Protocol, _) => 12,
            (Self::Port, _) => 13,
            (Self::Number, _) => 19,
        }
    }

    /// How many bytes a value has.
    fn width(self, family: Family) -> u8 {
        match self {
            Self::Address => family.width(),
            Self::AddressEnd | Self::Number => 4,
            Self::Protocol => 1,
            Self::Port => 2,
        }
    }
}

const VERDICT_TYPE: u32 = 0xffff_ff00;
/// How many bits of a concatenation's type one part takes.
const PART_BITS: u32 = 6;

/// What is found under a key.
pub(crate) enum Holds {
    Keys,
    Verdicts,
    Endpoints,
}

/// What a set's keys are, and who writes it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Single keys.
    Plain,
    /// Single keys, written by packets, which are forgotten after a time.
    Remembered,
    /// Single keys, each of which counts the packets that look it up.
    Counted,
    /// Ranges of a value, given by where they begin and end.
    Ranges,
    /// Ranges in each part of a concatenation.
    Boxes,
}

/// What `nft list` shows as the type of a concatenation.
fn concatenated(family: Family, parts: &[Part]) -> u32 {
    parts.iter().fold(0, |whole, part| whole << PART_BITS | part.number(family))
}

/// How many bytes a concatenation has: each of its parts fills registers.
fn length(family: Family, parts: &[Part]) -> u32 {
    parts.iter().map(|part| u32::from(part.width(family)).next_multiple_of(4)).sum()
}

/// The key of a service: the destination of a connection.
pub(crate) const SERVICE: [Part; 3] = [Part::Address, Part::Protocol, Part::Port];

/// The sets and maps: name, key, what is found there, whether packets write it.
fn sets() -> Vec<(&'static str, Vec<Part>, Holds, Shape)> {
    use Part::{Address, AddressEnd, Number, Port};
    let with = |more: &[Part]| [&SERVICE[..], more].concat();
    let mut all = vec![
        (AFFINITY, [&[Address][..], &SERVICE].concat(), Holds::Endpoints, Shape::Remembered),
        (HAIRPIN, vec![Address, Address], Holds::Keys, Shape::Plain),
        (REFUSED, SERVICE.to_vec(), Holds::Keys, Shape::Plain),
        (GUARDED, SERVICE.to_vec(), Holds::Keys, Shape::Plain),
        (ADMITTED, [&[Address][..], &SERVICE].concat(), Holds::Keys, Shape::Boxes),
        (HELD, vec![Address], Holds::Keys, Shape::Plain),
        (DOORS, SERVICE.to_vec(), Holds::Keys, Shape::Plain),
        (NODES, vec![Address], Holds::Keys, Shape::Plain),
        (TRAFFIC, vec![AddressEnd, Number], Holds::Keys, Shape::Counted),
    ];
    for side in Side::ALL {
        all.push((side.services(), SERVICE.to_vec(), Holds::Verdicts, Shape::Plain));
        all.push((side.endpoints(), with(&[Number]), Holds::Endpoints, Shape::Plain));
        all.push((side.live(), with(&[Address, Port]), Holds::Keys, Shape::Plain));
    }
    for direction in Direction::BOTH {
        all.push((direction.map(), vec![Address], Holds::Verdicts, Shape::Plain));
    }
    all
}

/// While pods run whose policies aren't known yet, nobody begins a connection with one: in place of policies.
pub(crate) const UNTIL_POLICIES: &str = "until-policies";
/// What a pod sends, before anything else.
const FROM_POD: &str = "from-pod";
/// What nodes further away have packed, before it is unpacked.
const PACKED: &str = "packed";

/// How many clients with session affinity are remembered.
const AFFINITY_SIZE: u32 = 1 << 18;

/// Where in a packet's way a chain stands: hook (`NF_INET_*`), priority, and type.
struct Place(u32, i32, &'static str);

const CHAINS: [(&str, Place); 10] = [
    ("spoofed", Place(0, -300, "filter")),
    ("arriving", Place(0, -100, "nat")),
    ("leaving", Place(3, -100, "nat")),
    ("received", Place(1, 0, "filter")),
    ("forwarded", Place(2, 0, "filter")),
    ("sent", Place(3, 0, "filter")),
    ("source", Place(4, 100, "nat")),
    // What has passed everybody's rules.
    (traffic::RECEIVED, Place(1, 300, "filter")),
    (traffic::FORWARDED, Place(2, 300, "filter")),
    (traffic::SENT, Place(3, 300, "filter")),
];

/// Looks a packet's destination up: under its address, or under none for ports of the machine.
const LOOK_UP: [(Side, &str, &str); 3] = [
    (Side::Inside, "to-inside", "to-inside-port"),
    (Side::Outside, "to-outside", "to-outside-port"),
    (Side::Loopback, "to-loopback", "to-loopback-port"),
];

/// Loads (address, protocol, port) from [`Register::Destination`] on; `address` false puts zeros for the address.
pub(crate) fn load_destination(rule: Rule<'_>, address: bool) -> Rule<'_> {
    let everywhere = octets(rule.family.unspecified());
    let rule = if address {
        rule.load(Field::Destination, Register::Destination)
    } else {
        rule.load_value(&everywhere, Register::Destination)
    };
    load_port(rule)
}

/// Loads (protocol, port) from [`Register::Protocol`] on.
pub(crate) fn load_port(rule: Rule<'_>) -> Rule<'_> {
    rule.load_meta(Meta::Protocol, Register::Protocol).load(Field::DestinationPort, Register::Port)
}

/// Names of what the kernel has in a table that begin so; `attribute` is the number of the name.
pub(crate) fn names(table: &Table, kind: u16, attribute: u16, prefix: &str) -> std::io::Result<Vec<String>> {
    let mut found = Vec::new();
    netfilter::dump((10 << 8) | kind, table.family, |attributes| {
        let text = |number| {
            let value = netfilter::attribute(attributes, number)?;
            std::str::from_utf8(value.strip_suffix(&[0])?).ok()
        };
        if text(1) == Some(&table.name)
            && let Some(name) = text(attribute)
            && name.starts_with(prefix)
        {
            found.push(name.to_owned());
        }
    })?;
    Ok(found)
}

/// How the names of all Carobs' tables begin.
pub(crate) const TABLE: &str = "carob-";

/// One of an instance's two tables.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) family: Family,
    pub(crate) name: String,
}

impl Table {
    pub(crate) fn of(instance: &str, family: Family) -> Self {
        Self { family, name: format!("{TABLE}{instance}") }
    }
}

/// The writer of one table's changes.
pub(crate) struct Changes<'a> {
    table: &'a Table,
    transaction: Transaction,
    /// How many sets were made: each has a number in its transaction.
    sets: u32,
}

impl<'a> Changes<'a> {
    pub(crate) fn of(table: &'a Table) -> Self {
        Self { table, transaction: Transaction::begin(), sets: 0 }
    }

    /// Whether there is nothing to carry out.
    pub(crate) fn is_empty(&self) -> bool {
        self.transaction.is_empty()
    }

    /// Begins a message about the table.
    fn message(&mut self, number: u16, flags: u16) -> &mut Messages {
        self.transaction.message(number, flags, self.table.family).name(1, &self.table.name)
    }

    fn table(&mut self) {
        self.message(NEW_TABLE, CREATE);
    }

    /// "Create" before "delete" makes the delete succeed whether or not the table was there.
    fn remove_table(&mut self) {
        self.table();
        self.message(DELETE_TABLE, 0);
    }

    /// Makes a chain, or takes the one that is there with its rules.
    fn chain(&mut self, name: &str) {
        self.message(NEW_CHAIN, CREATE).name(3, name);
    }

    /// Makes a chain empty, whether or not it is there.
    pub(crate) fn empty_chain(&mut self, name: &str) {
        self.message(NEW_CHAIN, CREATE).name(3, name);
        self.message(DELETE_RULE, 0).name(2, name);
    }

    /// Removes a chain that nothing leads to.
    pub(crate) fn remove_chain(&mut self, name: &str) {
        self.message(DELETE_CHAIN, 0).name(3, name);
    }

    /// Removes a set that nothing names.
    pub(crate) fn remove_set(&mut self, name: &str) {
        self.message(DELETE_SET, 0).name(2, name);
    }

    fn base_chain(&mut self, name: &str, &Place(hook, priority, kind): &Place) {
        let message = self.message(NEW_CHAIN, CREATE).name(3, name);
        message.nested(4, |inner| {
            inner.number(1, hook).number(2, priority.cast_unsigned());
        });
        message.name(7, kind);
        self.message(DELETE_RULE, 0).name(2, name);
    }

    pub(crate) fn rule(&mut self, chain: &str, write: impl FnOnce(Rule<'_>)) {
        let family = self.table.family;
        let message = self.message(NEW_RULE, CREATE | APPEND).name(2, chain);
        message.nested(4, |messages| write(Rule { messages, family }));
    }

    /// Makes a set or map, or takes the one that is there.
    pub(crate) fn set(&mut self, name: &str, key: &[Part], holds: &Holds, shape: Shape) {
        const MAP: u32 = 8;
        self.sets += 1;
        let (family, id) = (self.table.family, self.sets);
        let flags = match shape {
            Shape::Plain | Shape::Counted => 0,
            Shape::Remembered => 0x10 | 0x20,
            Shape::Ranges => 4,
            Shape::Boxes => 4 | 0x80,
        };
        let map = if matches!(holds, Holds::Keys) { 0 } else { MAP };
        let message = self.message(NEW_SET, CREATE).name(2, name);
        message.number(3, flags | map).number(4, concatenated(family, key)).number(5, length(family, key));
        match holds {
            Holds::Keys => {}
            Holds::Verdicts => {
                message.number(6, VERDICT_TYPE).number(7, 0);
            }
            Holds::Endpoints => {
                let endpoint = [Part::Address, Part::Port];
                message.number(6, concatenated(family, &endpoint)).number(7, length(family, &endpoint));
            }
        }
        match shape {
            Shape::Plain | Shape::Ranges => {}
            Shape::Counted => {
                message.nested(17, |expression| {
                    expression.name(1, "counter");
                });
            }
            Shape::Remembered => {
                message.nested(9, |inner| {
                    inner.number(1, AFFINITY_SIZE);
                });
            }
            Shape::Boxes => {
                message.nested(9, |inner| {
                    inner.nested(2, |fields| {
                        for part in key {
                            fields.nested(1, |field| {
                                field.number(1, part.width(family).into());
                            });
                        }
                    });
                });
            }
        }
        message.number(10, id);
    }

    /// Empties a set or map.
    pub(crate) fn clear(&mut self, set: &str) {
        self.message(DELETE_ELEMENTS, 0).name(2, set);
    }

    pub(crate) fn commit(self, action: &str) -> Result<(), Error> {
        let table = &self.table.name;
        self.transaction.commit().map_err(Error::kernel(format!("{action} nftables table {table}")))
    }
}

/// What the rules of one kind of addresses are about.
struct Ranges {
    /// This worker's address among the pods.
    gateway: IpAddr,
    /// Its pods.
    pods: IpNet,
    /// All workers' pods.
    cluster: IpNet,
    services: Option<IpNet>,
}

impl Ranges {
    fn of(config: &NetworkConfig, family: Family) -> Result<Option<Self>, Error> {
        let gateway = crate::address::gateway(config.pod_cidr)?;
        Ok(match family {
            Family::V4 => Some(Self {
                gateway: gateway.into(),
                pods: config.pod_cidr.into(),
                cluster: config.cluster_cidr.into(),
                services: config.service_cidr.map(IpNet::from),
            }),
            Family::V6 => config.cluster_cidr6.map(|range| Self {
                gateway: crate::address6(range, gateway).into(),
                pods: crate::block6(range, config.pod_cidr).into(),
                cluster: crate::block6(range, config.cluster_cidr).into(),
                services: config.service_cidr6.map(IpNet::from),
            }),
        })
    }
}

/// Puts an instance's tables in place. Services of an earlier run go on until the first change of [`crate::Services`].
pub(crate) fn install(config: &NetworkConfig) -> Result<(), Error> {
    for family in Family::BOTH {
        let table = Table::of(&config.instance, family);
        match Ranges::of(config, family)? {
            Some(ranges) => install_table(config, &table, &ranges)?,
            // An earlier run may have had such addresses. A kernel without them has no tables of them either.
            None => {
                if let Err(error) = remove_table(&table) {
                    tracing::debug!(%error, "no rules for IPv6 to remove");
                }
            }
        }
    }
    Ok(())
}

fn install_table(config: &NetworkConfig, table: &Table, ranges: &Ranges) -> Result<(), Error> {
    match write(config, ranges, Changes::of(table)) {
        // What an earlier version left can be of another shape. Its policies go with it, and the pods stay.
        Err(Error::Kernel { source, .. }) if source.raw_os_error() != Some(libc::EPERM) => {
            let pods = bridge::port_prefix(&config.instance);
            let mut changes = Changes::of(table);
            changes.remove_table();
            changes.table();
            changes.empty_chain(UNTIL_POLICIES);
            for end in [Meta::InputName, Meta::OutputName] {
                changes.rule(UNTIL_POLICIES, |rule| rule.interface(end, Is::Equal, &pods).verdict(&Verdict::Drop));
            }
            write(config, ranges, changes)
        }
        outcome => outcome,
    }
}

/// Whether an instance's tables are there: whoever may change rules may take all of them away.
pub(crate) fn are_there(tables: impl Iterator<Item = Table>) -> std::io::Result<bool> {
    const GET_TABLE: u16 = 1;
    let mut questions = Messages::default();
    for table in tables {
        questions.begin((10 << 8) | GET_TABLE, netfilter::ACKNOWLEDGE, table.family);
        questions.name(1, &table.name);
    }
    Ok(netfilter::found(questions)?.into_iter().all(|there| there))
}

fn write(config: &NetworkConfig, ranges: &Ranges, mut changes: Changes<'_>) -> Result<(), Error> {
    let pods = bridge::port_prefix(&config.instance);
    let family = changes.table.family;
    let (loopback, cluster) = (family.loopback(), ranges.cluster);
    changes.table();
    for (name, key, holds, shape) in sets() {
        changes.set(name, &key, &holds, shape);
    }
    for (name, place) in &CHAINS {
        changes.base_chain(name, place);
    }
    for (side, by_address, by_port) in LOOK_UP {
        changes.empty_chain(by_address);
        changes.empty_chain(by_port);
        changes.rule(by_address, |rule| {
            load_destination(rule, true).verdict_of(side.services(), Register::Destination);
        });
        changes.rule(by_address, |rule| {
            let rule = match side {
                Side::Loopback => rule,
                _ => rule.only_to_this_machine().network(Field::Destination, Is::Other, loopback),
            };
            rule.verdict(&Verdict::Goto(by_port.to_owned()));
        });
        changes.rule(by_port, |rule| {
            load_destination(rule, false).verdict_of(side.services(), Register::Destination);
        });
    }
    changes.empty_chain(FROM_POD);
    changes.rule("spoofed", |rule| {
        rule.interface(Meta::InputName, Is::Equal, &pods).verdict(&Verdict::Jump(FROM_POD.to_owned()));
    });
    // Ports of pods on this machine's loopback addresses make the kernel take packets for those from links as well.
    changes.rule(FROM_POD, |rule| rule.network(Field::Destination, Is::Equal, loopback).verdict(&Verdict::Drop));
    // A pod sends with no address but its own.
    changes.rule(FROM_POD, |rule| rule.only_from_elsewhere().verdict(&Verdict::Drop));
    let inside = Verdict::Jump("to-inside".to_owned());
    changes.rule("arriving", |rule| {
        let rule =
            load_destination(rule, true).in_set(GUARDED, Register::Destination).load(Field::Source, Register::Client);
        rule.not_in_set(ADMITTED, Register::Client).verdict(&Verdict::Drop);
    });
    changes.rule("arriving", |rule| rule.interface(Meta::InputName, Is::Equal, &pods).verdict(&inside));
    changes.rule("arriving", |rule| {
        rule.interface(Meta::InputName, Is::Other, &pods).verdict(&Verdict::Jump("to-outside".to_owned()));
    });
    changes.rule("leaving", |rule| {
        let rule = rule.network(Field::Destination, Is::Equal, loopback);
        rule.verdict(&Verdict::Goto("to-loopback".to_owned()));
    });
    changes.rule("leaving", |rule| rule.verdict(&inside));
    // First what most packets are.
    changes.rule("forwarded", |rule| rule.under_way().verdict(&Verdict::Accept));
    // Nodes further away have their packets packed (`nodes.rs`), and what is unpacked is taken for theirs: no pod packs any,
    // for this machine or another, to which it would go in this machine's name. Looked at here, where a service's address
    // hides nothing.
    changes.chain(PACKED);
    changes.rule("received", |rule| packed(rule).verdict(&Verdict::Jump(PACKED.to_owned())));
    changes.rule("received", |rule| packed(rule.interface(Meta::InputName, Is::Equal, &pods)).verdict(&Verdict::Drop));
    changes.rule("forwarded", |rule| {
        let rule = packed(rule.interface(Meta::InputName, Is::Equal, &pods));
        rule.network(Field::Destination, Is::Other, cluster).verdict(&Verdict::Drop);
    });
    // Answers to this machine's own connections through a balancer come back to the balancer's address.
    changes.rule("received", |rule| rule.under_way().verdict(&Verdict::Accept));
    changes.rule("received", |rule| {
        rule.load(Field::Destination, Register::Client).in_set(HELD, Register::Client).refuse();
    });
    // An endpoint's segment that connection tracking can't place would reach the client from an address that it never asked.
    for end in [Meta::InputName, Meta::OutputName] {
        changes.rule("forwarded", |rule| rule.interface(end, Is::Equal, &pods).astray().verdict(&Verdict::Drop));
    }
    // What is still for a service's address here has no endpoint.
    for chain in ["received", "forwarded", "sent"] {
        changes.rule(chain, |rule| without_endpoints(rule).protocol(Is::Equal, TCP).reset());
        changes.rule(chain, |rule| without_endpoints(rule).refuse());
        if let Some(range) = ranges.services {
            changes.rule(chain, |rule| {
                rule.network(Field::Destination, Is::Equal, range).protocol(Is::Equal, TCP).reset();
            });
            changes.rule(chain, |rule| rule.network(Field::Destination, Is::Equal, range).refuse());
        }
    }
    let metadata = family.metadata().iter().filter(|_| !config.open_metadata);
    for (address, chain) in metadata.flat_map(|address| ["received", "forwarded"].map(|chain| (address, chain))) {
        changes.rule(chain, |rule| {
            let rule = rule.interface(Meta::InputName, Is::Equal, &pods);
            rule.field(Field::Destination, Is::Equal, &octets(*address)).refuse();
        });
    }
    // Workers answer the gateway, on whatever machine; pods have no business there.
    for chain in ["received", "forwarded"] {
        changes.rule(chain, |rule| {
            let rule = rule.network(Field::Source, Is::Equal, ranges.pods);
            load_destination(rule, true).in_set(DOORS, Register::Destination).protocol(Is::Equal, TCP).reset();
        });
    }
    // Policies hold between a pod and everybody but itself, and for what it asks of this machine (names, the proxy, the API);
    // what this machine asks of it is let through. They see where a connection really goes.
    changes.chain(UNTIL_POLICIES);
    for chain in ["received", "forwarded"] {
        changes.rule(chain, |rule| rule.verdict(&Verdict::Jump(UNTIL_POLICIES.to_owned())));
    }
    changes.rule("received", |rule| {
        let rule = rule.interface(Meta::InputName, Is::Equal, &pods).load(Direction::Egress.own(), Register::Client);
        rule.verdict_of(Direction::Egress.map(), Register::Client);
    });
    changes.rule("forwarded", |rule| hairpin(rule).verdict(&Verdict::Accept));
    for direction in Direction::BOTH {
        changes.rule("forwarded", |rule| {
            rule.load(direction.own(), Register::Client).verdict_of(direction.map(), Register::Client);
        });
    }
    // Pods reach each other by way of this machine only: no hint at a shorter one.
    let (errors, redirect) = family.redirect();
    changes.rule("sent", |rule| {
        let rule = rule.interface(Meta::OutputName, Is::Equal, &pods).protocol(Is::Equal, errors);
        rule.field(Field::IcmpType, Is::Equal, &[redirect]).verdict(&Verdict::Drop);
    });
    changes.rule("source", |rule| {
        hairpin(rule.translated()).come_from(ranges.gateway);
    });
    // Nobody else can answer to a loopback address.
    changes.rule("source", |rule| {
        let rule = rule.translated().network(Field::Source, Is::Equal, loopback);
        rule.interface(Meta::OutputName, Is::Equal, &pods).come_from(ranges.gateway);
    });
    changes.rule("source", |rule| {
        let rule = rule.network(Field::Destination, Is::Other, cluster);
        rule.network(Field::Source, Is::Equal, cluster).interface_named(Meta::OutputName, Is::Other, "lo").masquerade();
    });
    // An endpoint elsewhere would answer to the client directly, which knows nothing of it. Answers to this worker's own
    // pods come back this way anyhow, from pods of other workers, which see who asks.
    changes.rule("source", |rule| {
        let rule = rule.translated().network(Field::Source, Is::Other, ranges.pods);
        let rule = rule.network(Field::Destination, Is::Other, ranges.pods);
        endpoint(rule.network(Field::Destination, Is::Equal, cluster)).come_from(ranges.gateway);
    });
    changes.rule("source", |rule| {
        let rule = rule.translated().network(Field::Destination, Is::Other, cluster);
        endpoint(rule.interface_named(Meta::OutputName, Is::Other, "lo")).masquerade();
    });
    traffic::count(&mut changes, &pods, cluster);
    changes.commit("install")
}

/// Only packets to where packed ones are unpacked. (Not by the network's number in them: the kernel can show several
/// datagrams as one, with the first one's.)
fn packed(rule: Rule<'_>) -> Rule<'_> {
    rule.protocol(Is::Equal, UDP).field(Field::DestinationPort, Is::Equal, &nodes::PORT.to_be_bytes())
}

/// Only packets to an endpoint of a service.
fn endpoint(rule: Rule<'_>) -> Rule<'_> {
    rule.load(Field::Destination, Register::Client)
        .load(Field::Destination, Register::Destination)
        .in_set(HAIRPIN, Register::Client)
}

/// Only packets of an endpoint to itself.
fn hairpin(rule: Rule<'_>) -> Rule<'_> {
    rule.load(Field::Source, Register::Client)
        .load(Field::Destination, Register::Destination)
        .in_set(HAIRPIN, Register::Client)
}

fn without_endpoints(rule: Rule<'_>) -> Rule<'_> {
    load_destination(rule, true).in_set(REFUSED, Register::Destination)
}

/// The tables that an instance has: that of IPv6 addresses only where it has any.
pub(crate) fn tables(instance: &str, dual: bool) -> impl Iterator<Item = Table> {
    let families = Family::BOTH.into_iter().filter(move |family| dual || *family == Family::V4);
    families.map(move |family| Table::of(instance, family))
}

/// Tells which addresses this machine has for services alone.
pub(crate) fn hold(table: &Table, addresses: &[IpAddr]) -> Result<(), Error> {
    let mut changes = Changes::of(table);
    changes.clear(HELD);
    changes.add_addresses(HELD, addresses.iter().copied());
    changes.commit("hold addresses in")
}

/// Has only nodes' packets unpacked, or everybody's: where nothing is unpacked, they are somebody else's.
pub(crate) fn unpack_for_nodes(table: &Table, only: bool) -> Result<(), Error> {
    let mut changes = Changes::of(table);
    changes.empty_chain(PACKED);
    if only {
        changes.rule(PACKED, |rule| {
            rule.load(Field::Source, Register::Client).not_in_set(NODES, Register::Client).verdict(&Verdict::Drop);
        });
    }
    changes.commit("tell whose packets are unpacked in")
}

/// Tells where workers answer the gateway.
pub(crate) fn close(table: &Table, doors: &crate::nodes::Doors) -> Result<(), Error> {
    let mut changes = Changes::of(table);
    changes.clear(DOORS);
    let doors = doors.iter().filter(|door| Family::of(door.ip()) == table.family);
    changes.add(DOORS, doors, |messages, door| {
        let mut key = octets(door.ip());
        key.extend([TCP, 0, 0, 0]);
        key.extend(door.port().to_be_bytes());
        key.extend([0; 2]);
        crate::services::write_key(messages, 1, &key);
    });
    changes.commit("close workers' ports in")
}

/// Removes an instance's tables, where they are there.
pub(crate) fn remove(instance: &str) -> Result<(), Error> {
    remove_table(&Table::of(instance, Family::V4))?;
    if let Err(error) = remove_table(&Table::of(instance, Family::V6)) {
        tracing::debug!(%error, "no rules for IPv6 to remove");
    }
    Ok(())
}

fn remove_table(table: &Table) -> Result<(), Error> {
    let mut changes = Changes::of(table);
    changes.remove_table();
    changes.commit("remove")
}

/// Whether the rules can be had here; tried in a namespace of its own.
pub(crate) fn probe() -> Result<(), Error> {
    crate::namespace::in_new_namespace(|| {
        install(&NetworkConfig {
            instance: "probe000".into(),
            pod_cidr: Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 2, 0), 24),
            cluster_cidr: Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 2, 0), 24),
            annexed: false,
            service_cidr: None,
            cluster_cidr6: None,
            service_cidr6: None,
            open_metadata: false,
        })
    })
}

/// Elements go in messages of a size that the kernel takes: an attribute can't be longer than 64 KiB.
const ELEMENTS_BYTES: usize = 48 << 10;

impl Changes<'_> {
    /// Adds addresses, those of the table's kind, to a set of them.
    pub(crate) fn add_addresses(&mut self, set: &str, all: impl IntoIterator<Item = IpAddr>) {
        let family = self.table.family;
        let all = all.into_iter().filter(|address| Family::of(*address) == family);
        self.add(set, all, |messages, address| crate::services::write_key(messages, 1, &octets(address)));
    }

    /// Adds elements to a set or map.
    pub(crate) fn add<T>(&mut self, set: &str, all: impl IntoIterator<Item = T>, write: impl Fn(&mut Messages, T)) {
        self.elements((NEW_ELEMENTS, CREATE), set, all, write);
    }

    /// Takes elements out of a set or map.
    pub(crate) fn delete<T>(&mut self, set: &str, all: impl IntoIterator<Item = T>, write: impl Fn(&mut Messages, T)) {
        self.elements((DELETE_ELEMENTS, 0), set, all, write);
    }

    fn elements<T>(
        &mut self,
        (number, flags): (u16, u16),
        set: &str,
        all: impl IntoIterator<Item = T>,
        write: impl Fn(&mut Messages, T),
    ) {
        let mut all = all.into_iter().peekable();
        while all.peek().is_some() {
            let message = self.message(number, flags).name(2, set);
            message.nested(3, |list| {
                while list.message_len() < ELEMENTS_BYTES
                    && let Some(element) = all.next()
                {
                    list.nested(1, |inner| write(inner, element));
                }
            });
        }
    }
}
