//! How many bytes pods receive and send, counted by the kernel where a packet has passed all rules.
//!
//! A pod has four counters, which are elements of one set: one lookup per packet and direction, however many pods there are.
//! They begin at zero with the pod's address and go on through a restart of this process. A peer is the one that the packet
//! really goes to or comes from: behind a service its endpoint, behind a translated address the pod. Packets of IPv6 have
//! counters of their own, in the table of theirs, under the IPv4 address that a pod's IPv6 address ends in.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use ipnet::IpNet;

use crate::family::Family;
use crate::firewall::{Changes, DELETE_ELEMENTS, GET_ELEMENTS, NEW_ELEMENTS, Table, tables};
use crate::netfilter::{ACKNOWLEDGE, CREATE, Connection, DUMP, Messages, attribute, attributes};
use crate::rules::{Field, Is, Meta, Register, Rule, Verdict};
use crate::services::write_key;
use crate::{Error, lock, namespace};

/// (address of a pod, [`Kind`]) of every pod here: the counters.
pub(crate) const TRAFFIC: &str = "traffic";
/// Addresses of the cluster's nodes, which are no more the internet than pods are.
pub(crate) const NODES: &str = "nodes";

/// The chains: for this machine, through it, from it.
pub(crate) const RECEIVED: &str = "traffic-received";
pub(crate) const FORWARDED: &str = "traffic-forwarded";
pub(crate) const SENT: &str = "traffic-sent";
/// What a pod has sent to somebody else than this machine, and received from them.
const FROM_POD: &str = "traffic-from-pod";
const TO_POD: &str = "traffic-to-pod";

/// Bytes of IP packets since the pod got its address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// From outside the cluster.
    pub internet_received: u64,
    /// To outside the cluster.
    pub internet_sent: u64,
    /// From pods, nodes and this machine.
    pub cluster_received: u64,
    /// To them.
    pub cluster_sent: u64,
}

#[derive(Clone, Copy)]
enum Kind {
    InternetReceived,
    InternetSent,
    ClusterReceived,
    ClusterSent,
}

impl Kind {
    const ALL: [Self; 4] = [Self::InternetReceived, Self::InternetSent, Self::ClusterReceived, Self::ClusterSent];

    fn key(self) -> [u8; 4] {
        (self as u32).to_be_bytes()
    }

    fn of(self, traffic: &mut Traffic) -> &mut u64 {
        match self {
            Self::InternetReceived => &mut traffic.internet_received,
            Self::InternetSent => &mut traffic.internet_sent,
            Self::ClusterReceived => &mut traffic.cluster_received,
            Self::ClusterSent => &mut traffic.cluster_sent,
        }
    }
}

/// Writes the rules; `pods` begins the names of pods' links.
pub(crate) fn count(changes: &mut Changes<'_>, pods: &str, cluster: IpNet) {
    for chain in [FROM_POD, TO_POD] {
        changes.empty_chain(chain);
    }
    let ends = [(FROM_POD, Field::Destination), (TO_POD, Field::Source)];
    for ((chain, peer), [inside, outside]) in
        ends.into_iter().zip([[Kind::ClusterSent, Kind::InternetSent], [Kind::ClusterReceived, Kind::InternetReceived]])
    {
        let own = if peer == Field::Source { Field::DestinationEnd } else { Field::SourceEnd };
        changes.rule(chain, |rule| {
            counted(rule.network(peer, Is::Equal, cluster), own, inside).verdict(&Verdict::Return);
        });
        changes.rule(chain, |rule| {
            counted(rule.load(peer, Register::Client).in_set(NODES, Register::Client), own, inside)
                .verdict(&Verdict::Return);
        });
        changes.rule(chain, |rule| {
            counted(rule, own, outside);
        });
    }
    changes.rule(FORWARDED, |rule| {
        rule.interface(Meta::InputName, Is::Equal, pods).verdict(&Verdict::Jump(FROM_POD.to_owned()));
    });
    changes.rule(FORWARDED, |rule| {
        rule.interface(Meta::OutputName, Is::Equal, pods).verdict(&Verdict::Jump(TO_POD.to_owned()));
    });
    // This machine is a node, by whatever address.
    changes.rule(RECEIVED, |rule| {
        counted(rule.interface(Meta::InputName, Is::Equal, pods), Field::SourceEnd, Kind::ClusterSent);
    });
    changes.rule(SENT, |rule| {
        counted(rule.interface(Meta::OutputName, Is::Equal, pods), Field::DestinationEnd, Kind::ClusterReceived);
    });
}

/// Counts for the pod whose address this field is the end of; goes on only if there is one.
fn counted(rule: Rule<'_>, own: Field, kind: Kind) -> Rule<'_> {
    // The two stand side by side, of whatever kind the addresses are.
    let rule = rule.load(own, Register::Protocol).load_value(&kind.key(), Register::Port);
    rule.in_set(TRAFFIC, Register::Protocol)
}

/// Tells which addresses nodes have.
pub(crate) fn set_nodes(table: &Table, addresses: impl IntoIterator<Item = IpAddr>) -> Result<(), Error> {
    let mut changes = Changes::of(table);
    changes.clear(NODES);
    changes.add_addresses(NODES, addresses);
    changes.commit("tell the nodes in")
}

/// The counters of one worker's pods. Clones share it; it can be read from any network namespace.
#[derive(Clone)]
pub struct TrafficCounters(Arc<Inner>);

struct Inner {
    tables: Vec<Table>,
    connection: Mutex<Connection>,
}

impl fmt::Debug for TrafficCounters {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_tuple("TrafficCounters").field(&self.0.tables).finish()
    }
}

impl TrafficCounters {
    /// Of a worker that may not be running, in its network namespace: this thread's, or another.
    pub fn open(instance: &str, netns: Option<&OwnedFd>) -> Result<Self, Error> {
        let open = || Connection::open().map_err(Error::kernel("open a netlink socket"));
        let mut connection = match netns {
            Some(netns) => namespace::within(netns, open)?,
            None => open()?,
        };
        let mut tables: Vec<_> = tables(instance, true).collect();
        // A kernel without IPv6 has no such tables either.
        tables.retain(|table| table.family == Family::V4 || exists(&mut connection, table));
        Ok(Self(Arc::new(Inner { tables, connection: Mutex::new(connection) })))
    }

    /// What all pods have received and sent, by their addresses. Where one of a pod's counters isn't told, nothing is: less
    /// than was told before would count as a new beginning.
    pub fn read(&self) -> io::Result<HashMap<Ipv4Addr, Traffic>> {
        let mut all: Option<HashMap<Ipv4Addr, Traffic>> = None;
        for table in &self.0.tables {
            let mut dump = Dump::default();
            let ask = |messages: &mut Messages| {
                messages.name(1, &table.name).name(2, TRAFFIC);
            };
            self.ask((DUMP, table.family), ask, |address, kind, bytes| dump.take(address, kind, bytes))?;
            let more = dump.whole();
            all = Some(match all {
                None => more,
                Some(all) => {
                    all.into_iter().filter_map(|(pod, traffic)| Some((pod, traffic + *more.get(&pod)?))).collect()
                }
            });
        }
        Ok(all.unwrap_or_default())
    }

    /// What one pod has; none if it isn't counted.
    pub fn of(&self, pod: Ipv4Addr) -> io::Result<Option<Traffic>> {
        let mut found = Traffic::default();
        for table in &self.0.tables {
            let ask = |messages: &mut Messages| {
                messages.name(1, &table.name).name(2, TRAFFIC);
                write_elements(messages, pod);
            };
            match self.ask((ACKNOWLEDGE, table.family), ask, |_, kind, bytes| *kind.of(&mut found) += bytes) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(found))
    }

    fn ask(
        &self,
        (flags, family): (u16, Family),
        write: impl FnOnce(&mut Messages),
        mut each: impl FnMut(Ipv4Addr, Kind, u64),
    ) -> io::Result<()> {
        lock(&self.0.connection).ask((GET_ELEMENTS, flags, family), write, |body| {
            let elements = attribute(body, 3).into_iter().flat_map(attributes);
            for (address, kind, bytes) in elements.filter_map(|(_, element)| counter(element)) {
                each(address, kind, bytes);
            }
        })
    }

    /// Counts from zero for a pod that is about to get this address.
    pub(crate) fn begin(&self, pod: Ipv4Addr) -> Result<(), Error> {
        // "Create" before "delete" makes the delete succeed whether or not they were there.
        self.change(pod, &[NEW_ELEMENTS, DELETE_ELEMENTS, NEW_ELEMENTS])
    }

    /// Goes on counting for a pod that has this address.
    pub(crate) fn resume(&self, pod: Ipv4Addr) -> Result<(), Error> {
        self.change(pod, &[NEW_ELEMENTS])
    }

    /// Forgets what was counted.
    pub(crate) fn end(&self, pod: Ipv4Addr) -> Result<(), Error> {
        self.change(pod, &[NEW_ELEMENTS, DELETE_ELEMENTS])
    }

    fn change(&self, pod: Ipv4Addr, steps: &[u16]) -> Result<(), Error> {
        let mut connection = lock(&self.0.connection);
        let mut transaction = connection.transaction();
        for (table, step) in self.0.tables.iter().flat_map(|table| steps.iter().map(move |step| (table, *step))) {
            let flags = if step == NEW_ELEMENTS { CREATE } else { 0 };
            let message = transaction.message(step, flags, table.family).name(1, &table.name).name(2, TRAFFIC);
            write_elements(message, pod);
        }
        connection.commit(transaction).map_err(Error::kernel(format!("count what {pod} receives and sends")))
    }
}

impl std::ops::Add for Traffic {
    type Output = Self;

    fn add(self, mut other: Self) -> Self {
        let mut sum = self;
        for kind in Kind::ALL {
            *kind.of(&mut sum) += *kind.of(&mut other);
        }
        sum
    }
}

fn exists(connection: &mut Connection, table: &Table) -> bool {
    const GET_TABLE: u16 = 1;
    let name = |messages: &mut Messages| {
        messages.name(1, &table.name);
    };
    connection.ask((GET_TABLE, ACKNOWLEDGE, table.family), name, |_| ()).is_ok()
}

/// What the kernel tells of all pods.
#[derive(Default)]
struct Dump(HashMap<Ipv4Addr, (Traffic, [bool; Kind::ALL.len()])>);

impl Dump {
    fn take(&mut self, address: Ipv4Addr, kind: Kind, bytes: u64) {
        let (traffic, told) = self.0.entry(address).or_default();
        *kind.of(traffic) = bytes;
        told[kind as usize] = true;
    }

    /// Those of whom all is told.
    fn whole(self) -> HashMap<Ipv4Addr, Traffic> {
        let whole = self.0.into_iter().filter(|(_, (_, told))| told.iter().all(|told| *told));
        whole.map(|(address, (traffic, _))| (address, traffic)).collect()
    }
}

fn write_elements(messages: &mut Messages, pod: Ipv4Addr) {
    messages.nested(3, |list| {
        for kind in Kind::ALL {
            let key = [pod.octets(), kind.key()].concat();
            list.nested(1, |element| write_key(element, 1, &key));
        }
    });
}

/// Address, kind and bytes of an element.
fn counter(element: &[u8]) -> Option<(Ipv4Addr, Kind, u64)> {
    let key = attribute(attribute(element, 1)?, 1)?;
    let (address, kind) = (key.first_chunk::<4>()?, key.last_chunk::<4>()?);
    let kind = *Kind::ALL.get(usize::try_from(u32::from_be_bytes(*kind)).ok()?)?;
    let bytes = attribute(attribute(attribute(element, 7)?, 2)?, 1)?;
    Some((Ipv4Addr::from(*address), kind, u64::from_be_bytes(*bytes.first_chunk()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_numbered_in_their_order() {
        for (number, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, number);
        }
    }

    #[test]
    fn a_pod_of_which_a_part_is_told_is_not_told_of() {
        let (whole, part) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let mut dump = Dump::default();
        for (number, kind) in Kind::ALL.into_iter().enumerate() {
            dump.take(whole, kind, number as u64 + 1);
            if number != 2 {
                dump.take(part, kind, 9);
            }
        }
        let traffic = Traffic { internet_received: 1, internet_sent: 2, cluster_received: 3, cluster_sent: 4 };
        assert_eq!(dump.whole(), [(whole, traffic)].into());
    }

    #[test]
    fn what_is_no_counter_is_none() {
        assert!(counter(&[]).is_none());
        assert!(counter(&[8, 0, 1, 0, 4, 0, 1, 0]).is_none());
    }
}
