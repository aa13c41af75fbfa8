//! An instance's nftables table: the chains that packets pass, the maps that services live in, and the fixed rules.
//!
//! What changes with services are elements of maps (`services.rs`); the rules here stay as they are while a worker runs.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::netfilter::{APPEND, CREATE, Messages, Transaction};
use crate::rules::{Field, Is, Meta, Register, Rule, Verdict};
use crate::{Error, NetworkConfig, bridge};

/// Messages of nftables (`NFT_MSG_*`).
pub(crate) const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
pub(crate) const NEW_CHAIN: u16 = 3;
pub(crate) const NEW_RULE: u16 = 6;
pub(crate) const DELETE_RULE: u16 = 8;
const NEW_SET: u16 = 9;
pub(crate) const NEW_ELEMENTS: u16 = 12;
pub(crate) const DELETE_ELEMENTS: u16 = 14;

const TCP: u8 = 6;
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
}

impl Side {
    pub(crate) const BOTH: [Self; 2] = [Self::Inside, Self::Outside];

    /// (address, protocol, port) → what to do.
    pub(crate) fn services(self) -> &'static str {
        match self {
            Self::Inside => "inside",
            Self::Outside => "outside",
        }
    }

    /// (address, protocol, port, number) → the endpoint of that number.
    pub(crate) fn endpoints(self) -> &'static str {
        match self {
            Self::Inside => "inside-endpoints",
            Self::Outside => "outside-endpoints",
        }
    }

    /// (address, protocol, port, endpoint): which endpoints a remembered client may still be sent to.
    pub(crate) fn live(self) -> &'static str {
        match self {
            Self::Inside => "inside-live",
            Self::Outside => "outside-live",
        }
    }
}

/// (client, address, protocol, port) → the endpoint that the client was sent to.
pub(crate) const AFFINITY: &str = "affinity";
/// (address, address) of every endpoint: a pod that talks to itself by its service.
pub(crate) const HAIRPIN: &str = "hairpin";
/// (address, protocol, port) of services outside the service range that have no endpoint.
pub(crate) const REFUSED: &str = "refused";

/// nft's numbers of types, and how many bits of a concatenation one takes.
const ADDRESS: u32 = 7;
const PROTOCOL: u32 = 12;
const PORT: u32 = 13;
const NUMBER: u32 = 19;
const VERDICT_TYPE: u32 = 0xffff_ff00;

enum Holds {
    Keys,
    Verdicts,
    Endpoints,
}

/// What `nft list` shows as the type of a concatenation.
fn concatenated(types: &[u32]) -> u32 {
    types.iter().fold(0, |whole, part| whole << 6 | part)
}

/// The sets and maps: name, key, what is found there, whether packets write it.
fn sets() -> Vec<(&'static str, Vec<u32>, Holds, bool)> {
    let service = [ADDRESS, PROTOCOL, PORT];
    let with = |more: &[u32]| [&service[..], more].concat();
    let mut all = vec![
        (AFFINITY, [&[ADDRESS][..], &service].concat(), Holds::Endpoints, true),
        (HAIRPIN, vec![ADDRESS, ADDRESS], Holds::Keys, false),
        (REFUSED, service.to_vec(), Holds::Keys, false),
    ];
    for side in Side::BOTH {
        all.push((side.services(), service.to_vec(), Holds::Verdicts, false));
        all.push((side.endpoints(), with(&[NUMBER]), Holds::Endpoints, false));
        all.push((side.live(), with(&[ADDRESS, PORT]), Holds::Keys, false));
    }
    all
}

/// How many clients with session affinity are remembered.
const AFFINITY_SIZE: u32 = 1 << 18;

/// Where in a packet's way a chain stands: hook (`NF_INET_*`), priority, and type.
struct Place(u32, i32, &'static str);

const CHAINS: [(&str, Place); 7] = [
    ("spoofed", Place(0, -300, "filter")),
    ("arriving", Place(0, -100, "nat")),
    ("leaving", Place(3, -100, "nat")),
    ("received", Place(1, 0, "filter")),
    ("forwarded", Place(2, 0, "filter")),
    ("sent", Place(3, 0, "filter")),
    ("source", Place(4, 100, "nat")),
];

/// Looks a packet's destination up: under its address, or under none for ports of the machine.
const LOOK_UP: [(Side, &str, &str); 2] =
    [(Side::Inside, "to-inside", "to-inside-port"), (Side::Outside, "to-outside", "to-outside-port")];

/// Where a connection's client, destination, protocol and port are loaded; a number or an endpoint follows.
pub(crate) const CLIENT: Register = Register(0);
pub(crate) const DESTINATION: Register = Register(1);
const PROTOCOL_AT: Register = Register(2);
const PORT_AT: Register = Register(3);

/// Loads (address, protocol, port) from [`DESTINATION`] on; `address` false puts zeros for the address.
pub(crate) fn load_destination(rule: Rule<'_>, address: bool) -> Rule<'_> {
    let rule = if address { rule.load(Field::Destination, DESTINATION) } else { rule.load_value(&[0; 4], DESTINATION) };
    rule.load_meta(Meta::Protocol, PROTOCOL_AT).load(Field::DestinationPort, PORT_AT)
}

/// The table's name.
pub(crate) fn table(instance: &str) -> String {
    format!("carob-{instance}")
}

/// The writer of one table's changes.
pub(crate) struct Changes<'a> {
    pub(crate) table: &'a str,
    pub(crate) transaction: Transaction,
}

impl<'a> Changes<'a> {
    pub(crate) fn of(table: &'a str) -> Self {
        Self { table, transaction: Transaction::begin() }
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

    fn set(&mut self, id: u32, name: &str, key: &[u32], holds: &Holds, dynamic: bool) {
        const MAP: u32 = 8;
        const TIMEOUT_AND_WRITTEN_BY_PACKETS: u32 = 0x30;
        let holds_data = !matches!(holds, Holds::Keys);
        let flags = if holds_data { MAP } else { 0 } | if dynamic { TIMEOUT_AND_WRITTEN_BY_PACKETS } else { 0 };
        let length = u32::try_from(key.len() * 4).unwrap_or(u32::MAX);
        let message = self.transaction.message(NEW_SET, CREATE).name(1, self.table).name(2, name);
        message.number(3, flags).number(4, concatenated(key)).number(5, length);
        match holds {
            Holds::Keys => {}
            Holds::Verdicts => {
                message.number(6, VERDICT_TYPE).number(7, 0);
            }
            Holds::Endpoints => {
                message.number(6, concatenated(&[ADDRESS, PORT])).number(7, 8);
            }
        }
        if dynamic {
            message.nested(9, |inner| {
                inner.number(1, AFFINITY_SIZE);
            });
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
    for (id, (name, key, holds, dynamic)) in (1..).zip(sets()) {
        changes.set(id, name, &key, &holds, dynamic);
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
            let rule = rule.only_to_this_machine().network(Field::Destination, Is::Other, LOOPBACK);
            rule.verdict(&Verdict::Goto(by_port.to_owned()));
        });
        changes.rule(by_port, |rule| {
            load_destination(rule, false).verdict_of(side.services(), DESTINATION);
        });
    }
    // A pod sends with no address but its own.
    changes.rule("spoofed", |rule| {
        rule.interface(Meta::InputName, Is::Equal, &pods).only_from_elsewhere().verdict(&Verdict::Drop);
    });
    let inside = Verdict::Jump("to-inside".to_owned());
    changes.rule("arriving", |rule| rule.interface(Meta::InputName, Is::Equal, &pods).verdict(&inside));
    changes.rule("arriving", |rule| {
        rule.interface(Meta::InputName, Is::Other, &pods).verdict(&Verdict::Jump("to-outside".to_owned()));
    });
    changes.rule("leaving", |rule| rule.verdict(&inside));
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
    changes.rule("forwarded", |rule| {
        let rule = rule.interface(Meta::InputName, Is::Equal, &pods);
        rule.field(Field::Destination, Is::Equal, &METADATA.octets()).refuse();
    });
    // Pods reach each other by way of this machine only: no hint at a shorter one.
    changes.rule("sent", |rule| {
        let rule = rule.interface(Meta::OutputName, Is::Equal, &pods).protocol(Is::Equal, ICMP);
        rule.field(Field::IcmpType, Is::Equal, &[REDIRECT]).verdict(&Verdict::Drop);
    });
    changes.rule("source", |rule| {
        let rule = rule.translated().load(Field::Source, CLIENT).load(Field::Destination, DESTINATION);
        rule.in_set(HAIRPIN, CLIENT).come_from(gateway);
    });
    changes.rule("source", |rule| {
        let rule = rule.network(Field::Destination, Is::Other, config.pod_cidr);
        rule.network(Field::Source, Is::Equal, config.pod_cidr)
            .interface_named(Meta::OutputName, Is::Other, "lo")
            .masquerade();
    });
    // An endpoint elsewhere would answer to the client directly, which knows nothing of it.
    changes.rule("source", |rule| {
        let rule = rule.translated().network(Field::Destination, Is::Other, config.pod_cidr);
        let rule = rule.interface_named(Meta::OutputName, Is::Other, "lo");
        let rule = rule.load(Field::Destination, CLIENT).load(Field::Destination, DESTINATION);
        rule.in_set(HAIRPIN, CLIENT).masquerade();
    });
    changes.commit("install")
}

fn without_endpoints(rule: Rule<'_>) -> Rule<'_> {
    load_destination(rule, true).in_set(REFUSED, DESTINATION)
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
            pool: 0,
            service_cidr: None,
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
