//! An instance's nftables table: the chains that packets pass, the maps that services live in, and the fixed rules.
//!
//! What changes with services are elements of maps (`services.rs`); the rules here stay as they are while a worker runs.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

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
pub(crate) const DELETE_CHAIN: u16 = 5;
const NEW_SET: u16 = 9;
pub(crate) const GET_SET: u16 = 10;
pub(crate) const DELETE_SET: u16 = 11;
pub(crate) const NEW_ELEMENTS: u16 = 12;
pub(crate) const GET_ELEMENTS: u16 = 13;
pub(crate) const DELETE_ELEMENTS: u16 = 14;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const REDIRECT: u8 = 5;
const LOOPBACK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);
/// Where clouds tell a machine its secrets.
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

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

/// nft's numbers of types, and how many bits of a concatenation one takes.
pub(crate) const ADDRESS: u32 = 7;
pub(crate) const PROTOCOL: u32 = 12;
pub(crate) const PORT: u32 = 13;
pub(crate) const NUMBER: u32 = 19;
const VERDICT_TYPE: u32 = 0xffff_ff00;

/// How many bytes a value of a type has.
fn width(kind: u32) -> u32 {
    match kind {
        PROTOCOL => 1,
        PORT => 2,
        _ => 4,
    }
}

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
fn concatenated(types: &[u32]) -> u32 {
    types.iter().fold(0, |whole, part| whole << 6 | part)
}

/// The sets and maps: name, key, what is found there, whether packets write it.
fn sets() -> Vec<(&'static str, Vec<u32>, Holds, Shape)> {
    let service = [ADDRESS, PROTOCOL, PORT];
    let with = |more: &[u32]| [&service[..], more].concat();
    let mut all = vec![
        (AFFINITY, [&[ADDRESS][..], &service].concat(), Holds::Endpoints, Shape::Remembered),
        (HAIRPIN, vec![ADDRESS, ADDRESS], Holds::Keys, Shape::Plain),
        (REFUSED, service.to_vec(), Holds::Keys, Shape::Plain),
        (GUARDED, service.to_vec(), Holds::Keys, Shape::Plain),
        (ADMITTED, [&[ADDRESS][..], &service].concat(), Holds::Keys, Shape::Boxes),
        (HELD, vec![ADDRESS], Holds::Keys, Shape::Plain),
        (DOORS, service.to_vec(), Holds::Keys, Shape::Plain),
        (NODES, vec![ADDRESS], Holds::Keys, Shape::Plain),
        (TRAFFIC, vec![ADDRESS, NUMBER], Holds::Keys, Shape::Counted),
    ];
    for side in Side::ALL {
        all.push((side.services(), service.to_vec(), Holds::Verdicts, Shape::Plain));
        all.push((side.endpoints(), with(&[NUMBER]), Holds::Endpoints, Shape::Plain));
        all.push((side.live(), with(&[ADDRESS, PORT]), Holds::Keys, Shape::Plain));
    }
    for direction in Direction::BOTH {
        all.push((direction.map(), vec![ADDRESS], Holds::Verdicts, Shape::Plain));
    }
    all
}

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

/// Where a connection's client, destination, protocol and port are loaded; a number or an endpoint follows.
pub(crate) const CLIENT: Register = Register(0);
pub(crate) const DESTINATION: Register = Register(1);
pub(crate) const PROTOCOL_AT: Register = Register(2);
const PORT_AT: Register = Register(3);

/// Loads (address, protocol, port) from [`DESTINATION`] on; `address` false puts zeros for the address.
pub(crate) fn load_destination(rule: Rule<'_>, address: bool) -> Rule<'_> {
    let rule = if address { rule.load(Field::Destination, DESTINATION) } else { rule.load_value(&[0; 4], DESTINATION) };
    load_port(rule)
}

/// Loads (protocol, port) from [`PROTOCOL_AT`] on.
pub(crate) fn load_port(rule: Rule<'_>) -> Rule<'_> {
    rule.load_meta(Meta::Protocol, PROTOCOL_AT).load(Field::DestinationPort, PORT_AT)
}

/// Names of what the kernel has in a table that begin so; `attribute` is the number of the name.
pub(crate) fn names(table: &str, kind: u16, attribute: u16, prefix: &str) -> std::io::Result<Vec<String>> {
    let mut found = Vec::new();
    netfilter::dump((10 << 8) | kind, |attributes| {
        let text = |number| {
            let value = netfilter::attribute(attributes, number)?;
            std::str::from_utf8(value.strip_suffix(&[0])?).ok()
        };
        if text(1) == Some(table)
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

/// The table's name.
pub(crate) fn table(instance: &str) -> String {
    format!("{TABLE}{instance}")
}

/// The writer of one table's changes.
pub(crate) struct Changes<'a> {
    pub(crate) table: &'a str,
    pub(crate) transaction: Transaction,
    /// How many sets were made: each has a number in its transaction.
    sets: u32,
}

impl<'a> Changes<'a> {
    pub(crate) fn of(table: &'a str) -> Self {
        Self { table, transaction: Transaction::begin(), sets: 0 }
    }

    fn table(&mut self) {
        self.transaction.message(NEW_TABLE, CREATE).name(1, self.table);
    }

    /// "Create" before "delete" makes the delete succeed whether or not the table was there.
    fn remove_table(&mut self) {
        self.table();
        self.transaction.message(DELETE_TABLE, 0).name(1, self.table);
    }

    /// Makes a chain empty, whether or not it is there.
    pub(crate) fn empty_chain(&mut self, name: &str) {
        self.transaction.message(NEW_CHAIN, CREATE).name(1, self.table).name(3, name);
        self.transaction.message(DELETE_RULE, 0).name(1, self.table).name(2, name);
    }

    fn base_chain(&mut self, name: &str, &Place(hook, priority, kind): &Place) {
        let message = self.transaction.message(NEW_CHAIN, CREATE).name(1, self.table).name(3, name);
        message.nested(4, |inner| {
            inner.number(1, hook).number(2, priority.cast_unsigned());
        });
        message.name(7, kind);
        self.transaction.message(DELETE_RULE, 0).name(1, self.table).name(2, name);
    }

    pub(crate) fn rule(&mut self, chain: &str, write: impl FnOnce(Rule<'_>)) {
        let message = self.transaction.message(NEW_RULE, CREATE | APPEND).name(1, self.table).name(2, chain);
        message.nested(4, |inner| write(Rule(inner)));
    }

    /// Makes a set or map, or takes the one that is there.
    pub(crate) fn set(&mut self, name: &str, key: &[u32], holds: &Holds, shape: Shape) {
        const MAP: u32 = 8;
        self.sets += 1;
        let (length, id) = (u32::try_from(key.len() * 4).unwrap_or(u32::MAX), self.sets);
        let flags = match shape {
            Shape::Plain | Shape::Counted => 0,
            Shape::Remembered => 0x10 | 0x20,
            Shape::Ranges => 4,
            Shape::Boxes => 4 | 0x80,
        };
        let map = if matches!(holds, Holds::Keys) { 0 } else { MAP };
        let message = self.transaction.message(NEW_SET, CREATE).name(1, self.table).name(2, name);
        message.number(3, flags | map).number(4, concatenated(key)).number(5, length);
        match holds {
            Holds::Keys => {}
            Holds::Verdicts => {
                message.number(6, VERDICT_TYPE).number(7, 0);
            }
            Holds::Endpoints => {
                message.number(6, concatenated(&[ADDRESS, PORT])).number(7, 8);
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
                                field.number(1, width(*part));
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
        self.transaction.message(DELETE_ELEMENTS, 0).name(1, self.table).name(2, set);
    }

    pub(crate) fn commit(self, action: &str) -> Result<(), Error> {
        let table = self.table;
        self.transaction.commit().map_err(Error::kernel(format!("{action} nftables table {table}")))
    }
}

/// Puts an instance's table in place. Services of an earlier run go on until the first change of [`crate::Services`].
pub(crate) fn install(config: &NetworkConfig) -> Result<(), Error> {
    let name = table(&config.instance);
    match write(config, Changes::of(&name)) {
        // What an earlier version left can be of another shape.
        Err(Error::Kernel { source, .. }) if source.raw_os_error() != Some(libc::EPERM) => {
            let mut changes = Changes::of(&name);
            changes.remove_table();
            write(config, changes)
        }
        outcome => outcome,
    }
}

fn write(config: &NetworkConfig, mut changes: Changes<'_>) -> Result<(), Error> {
    let pods = bridge::port_prefix(&config.instance);
    let gateway = crate::address::gateway(config.pod_cidr)?;
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
            load_destination(rule, true).verdict_of(side.services(), DESTINATION);
        });
        changes.rule(by_address, |rule| {
            let rule = match side {
                Side::Loopback => rule,
                _ => rule.only_to_this_machine().network(Field::Destination, Is::Other, LOOPBACK),
            };
            rule.verdict(&Verdict::Goto(by_port.to_owned()));
        });
        changes.rule(by_port, |rule| {
            load_destination(rule, false).verdict_of(side.services(), DESTINATION);
        });
    }
    // Ports of pods on this machine's loopback addresses make the kernel take packets for those from links as well.
    changes.rule("spoofed", |rule| {
        let rule = rule.interface(Meta::InputName, Is::Equal, &pods);
        rule.network(Field::Destination, Is::Equal, LOOPBACK).verdict(&Verdict::Drop);
    });
    // A pod sends with no address but its own.
    changes.rule("spoofed", |rule| {
        rule.interface(Meta::InputName, Is::Equal, &pods).only_from_elsewhere().verdict(&Verdict::Drop);
    });
    let inside = Verdict::Jump("to-inside".to_owned());
    changes.rule("arriving", |rule| {
        let rule = load_destination(rule, true).in_set(GUARDED, DESTINATION).load(Field::Source, CLIENT);
        rule.not_in_set(ADMITTED, CLIENT).verdict(&Verdict::Drop);
    });
    changes.rule("arriving", |rule| rule.interface(Meta::InputName, Is::Equal, &pods).verdict(&inside));
    changes.rule("arriving", |rule| {
        rule.interface(Meta::InputName, Is::Other, &pods).verdict(&Verdict::Jump("to-outside".to_owned()));
    });
    changes.rule("leaving", |rule| {
        let rule = rule.network(Field::Destination, Is::Equal, LOOPBACK);
        rule.verdict(&Verdict::Goto("to-loopback".to_owned()));
    });
    changes.rule("leaving", |rule| rule.verdict(&inside));
    // Nodes further away have their packets packed (`nodes.rs`), and what is unpacked is taken for theirs: no pod packs any,
    // for this machine or another, to which it would go in this machine's name. Looked at here, where a service's address
    // hides nothing.
    changes.rule("received", |rule| packed(rule.interface(Meta::InputName, Is::Equal, &pods)).verdict(&Verdict::Drop));
    changes.rule("forwarded", |rule| {
        let rule = packed(rule.interface(Meta::InputName, Is::Equal, &pods));
        rule.network(Field::Destination, Is::Other, config.cluster_cidr).verdict(&Verdict::Drop);
    });
    // Answers to this machine's own connections through a balancer come back to the balancer's address.
    changes.rule("received", |rule| rule.under_way().verdict(&Verdict::Accept));
    changes.rule("received", |rule| rule.load(Field::Destination, CLIENT).in_set(HELD, CLIENT).refuse());
    changes.rule("forwarded", |rule| rule.under_way().verdict(&Verdict::Accept));
    // What is still for a service's address here has no endpoint.
    for chain in ["received", "forwarded", "sent"] {
        changes.rule(chain, |rule| without_endpoints(rule).protocol(Is::Equal, TCP).reset());
        changes.rule(chain, |rule| without_endpoints(rule).refuse());
        if let Some(range) = config.service_cidr {
            changes.rule(chain, |rule| {
                rule.network(Field::Destination, Is::Equal, range).protocol(Is::Equal, TCP).reset();
            });
            changes.rule(chain, |rule| rule.network(Field::Destination, Is::Equal, range).refuse());
        }
    }
    for chain in ["received", "forwarded"].iter().filter(|_| !config.open_metadata) {
        changes.rule(chain, |rule| {
            let rule = rule.interface(Meta::InputName, Is::Equal, &pods);
            rule.field(Field::Destination, Is::Equal, &METADATA.octets()).refuse();
        });
    }
    // Workers answer the gateway, on whatever machine; pods have no business there.
    for chain in ["received", "forwarded"] {
        changes.rule(chain, |rule| {
            let rule = rule.network(Field::Source, Is::Equal, config.pod_cidr);
            load_destination(rule, true).in_set(DOORS, DESTINATION).protocol(Is::Equal, TCP).reset();
        });
    }
    // Policies hold between a pod and everybody but itself and this machine; they see where a connection really goes.
    changes.rule("forwarded", |rule| hairpin(rule).verdict(&Verdict::Accept));
    for direction in Direction::BOTH {
        changes.rule("forwarded", |rule| {
            rule.load(direction.own(), CLIENT).verdict_of(direction.map(), CLIENT);
        });
    }
    // Pods reach each other by way of this machine only: no hint at a shorter one.
    changes.rule("sent", |rule| {
        let rule = rule.interface(Meta::OutputName, Is::Equal, &pods).protocol(Is::Equal, ICMP);
        rule.field(Field::IcmpType, Is::Equal, &[REDIRECT]).verdict(&Verdict::Drop);
    });
    changes.rule("source", |rule| {
        hairpin(rule.translated()).come_from(gateway);
    });
    // Nobody else can answer to a loopback address.
    changes.rule("source", |rule| {
        let rule = rule.translated().network(Field::Source, Is::Equal, LOOPBACK);
        rule.interface(Meta::OutputName, Is::Equal, &pods).come_from(gateway);
    });
    changes.rule("source", |rule| {
        let rule = rule.network(Field::Destination, Is::Other, config.cluster_cidr);
        rule.network(Field::Source, Is::Equal, config.cluster_cidr)
            .interface_named(Meta::OutputName, Is::Other, "lo")
            .masquerade();
    });
    // An endpoint elsewhere would answer to the client directly, which knows nothing of it. Answers to this worker's own
    // pods come back this way anyhow, from pods of other workers, which see who asks.
    changes.rule("source", |rule| {
        let rule = rule.translated().network(Field::Source, Is::Other, config.pod_cidr);
        let rule = rule.network(Field::Destination, Is::Other, config.pod_cidr);
        endpoint(rule.network(Field::Destination, Is::Equal, config.cluster_cidr)).come_from(gateway);
    });
    changes.rule("source", |rule| {
        let rule = rule.translated().network(Field::Destination, Is::Other, config.cluster_cidr);
        endpoint(rule.interface_named(Meta::OutputName, Is::Other, "lo")).masquerade();
    });
    traffic::count(&mut changes, &pods, config.cluster_cidr);
    changes.commit("install")
}

/// Only packets to where packed ones are unpacked. (Not by the network's number in them: the kernel can show several
/// datagrams as one, with the first one's.)
fn packed(rule: Rule<'_>) -> Rule<'_> {
    rule.protocol(Is::Equal, UDP).field(Field::DestinationPort, Is::Equal, &nodes::PORT.to_be_bytes())
}

/// Only packets to an endpoint of a service.
fn endpoint(rule: Rule<'_>) -> Rule<'_> {
    rule.load(Field::Destination, CLIENT).load(Field::Destination, DESTINATION).in_set(HAIRPIN, CLIENT)
}

/// Only packets of an endpoint to itself.
fn hairpin(rule: Rule<'_>) -> Rule<'_> {
    rule.load(Field::Source, CLIENT).load(Field::Destination, DESTINATION).in_set(HAIRPIN, CLIENT)
}

fn without_endpoints(rule: Rule<'_>) -> Rule<'_> {
    load_destination(rule, true).in_set(REFUSED, DESTINATION)
}

/// Tells which addresses this machine has for services alone.
pub(crate) fn hold(instance: &str, addresses: &[Ipv4Addr]) -> Result<(), Error> {
    let name = table(instance);
    let mut changes = Changes::of(&name);
    changes.clear(HELD);
    changes.add(HELD, addresses, |messages, address| crate::services::write_key(messages, 1, &address.octets()));
    changes.commit("hold addresses in")
}

/// Tells where workers answer the gateway.
pub(crate) fn close(instance: &str, doors: &crate::nodes::Doors) -> Result<(), Error> {
    let name = table(instance);
    let mut changes = Changes::of(&name);
    changes.clear(DOORS);
    changes.add(DOORS, doors, |messages, door| {
        let mut key = door.ip().octets().to_vec();
        key.extend([TCP, 0, 0, 0]);
        key.extend(door.port().to_be_bytes());
        key.extend([0; 2]);
        crate::services::write_key(messages, 1, &key);
    });
    changes.commit("close workers' ports in")
}

/// Removes an instance's table, if it is there.
pub(crate) fn remove(instance: &str) -> Result<(), Error> {
    let name = table(instance);
    let mut changes = Changes::of(&name);
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
            let message = self.transaction.message(number, flags).name(1, self.table).name(2, set);
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
