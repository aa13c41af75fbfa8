//! How many bytes pods receive and send, counted by the kernel where a packet has passed all rules.
//!
//! A pod has four counters, which are elements of one set: one lookup per packet and direction, however many pods there are.
//! They begin at zero with the pod's address and go on through a restart of this process. A peer is the one that the packet
//! really goes to or comes from: behind a service its endpoint, behind a translated address the pod.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use ipnet::Ipv4Net;

use crate::firewall::{CLIENT, Changes, DELETE_ELEMENTS, DESTINATION, GET_ELEMENTS, NEW_ELEMENTS, table};
use crate::netfilter::{ACKNOWLEDGE, CREATE, Connection, DUMP, Messages, attribute, attributes};
use crate::rules::{Field, Is, Meta, Rule, Verdict};
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
pub(crate) fn count(changes: &mut Changes<'_>, pods: &str, cluster: Ipv4Net) {
    for chain in [FROM_POD, TO_POD] {
        changes.empty_chain(chain);
    }
    let ends = [(FROM_POD, Field::Destination), (TO_POD, Field::Source)];
    for ((chain, peer), [inside, outside]) in
        ends.into_iter().zip([[Kind::ClusterSent, Kind::InternetSent], [Kind::ClusterReceived, Kind::InternetReceived]])
    {
        let own = if peer == Field::Source { Field::Destination } else { Field::Source };
        changes.rule(chain, |rule| {
            counted(rule.network(peer, Is::Equal, cluster), own, inside).verdict(&Verdict::Return);
        });
        changes.rule(chain, |rule| {
            counted(rule.load(peer, CLIENT).in_set(NODES, CLIENT), own, inside).verdict(&Verdict::Return);
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
        counted(rule.interface(Meta::InputName, Is::Equal, pods), Field::Source, Kind::ClusterSent);
    });
    changes.rule(SENT, |rule| {
        counted(rule.interface(Meta::OutputName, Is::Equal, pods), Field::Destination, Kind::ClusterReceived);
    });
}

/// Counts for the pod that has the address in this field; goes on only if there is one.
fn counted(rule: Rule<'_>, own: Field, kind: Kind) -> Rule<'_> {
    rule.load(own, CLIENT).load_value(&kind.key(), DESTINATION).in_set(TRAFFIC, CLIENT)
}

/// Tells which addresses nodes have.
pub(crate) fn set_nodes(instance: &str, addresses: impl IntoIterator<Item = Ipv4Addr>) -> Result<(), Error> {
    let name = table(instance);
    let mut changes = Changes::of(&name);
    changes.clear(NODES);
    changes.add(NODES, addresses, |messages, address| write_key(messages, 1, &address.octets()));
    changes.commit("tell the nodes in")
}

/// The counters of one worker's pods. Clones share it; it can be read from any network namespace.
#[derive(Clone)]
pub struct TrafficCounters(Arc<Inner>);

struct Inner {
    table: String,
    connection: Mutex<Connection>,
}

impl fmt::Debug for TrafficCounters {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_tuple("TrafficCounters").field(&self.0.table).finish()
    }
}

impl TrafficCounters {
    /// Of a worker that may not be running, in its network namespace: this thread's, or another.
    pub fn open(instance: &str, netns: Option<&OwnedFd>) -> Result<Self, Error> {
        let open = || Connection::open().map_err(Error::kernel("open a netlink socket"));
        let connection = match netns {
            Some(netns) => namespace::within(netns, open)?,
            None => open()?,
        };
        Ok(Self(Arc::new(Inner { table: table(instance), connection: Mutex::new(connection) })))
    }

    /// What all pods have received and sent, by their addresses. Where one of a pod's counters isn't told, nothing is: less
    /// than was told before would count as a new beginning.
    pub fn read(&self) -> io::Result<HashMap<Ipv4Addr, Traffic>> {
        let mut all = Dump::default();
        let ask = |messages: &mut Messages| {
            messages.name(1, &self.0.table).name(2, TRAFFIC);
        };
        self.ask(DUMP, ask, |address, kind, bytes| all.take(address, kind, bytes))?;
        Ok(all.whole())
    }

    /// What one pod has; none if it isn't counted.
    pub fn of(&self, pod: Ipv4Addr) -> io::Result<Option<Traffic>> {
        let mut found = Traffic::default();
        let ask = |messages: &mut Messages| {
            messages.name(1, &self.0.table).name(2, TRAFFIC);
            write_elements(messages, pod);
        };
        match self.ask(ACKNOWLEDGE, ask, |_, kind, bytes| *kind.of(&mut found) = bytes) {
            Ok(()) => Ok(Some(found)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn ask(
        &self,
        flags: u16,
        write: impl FnOnce(&mut Messages),
        mut each: impl FnMut(Ipv4Addr, Kind, u64),
    ) -> io::Result<()> {
        lock(&self.0.connection).ask((GET_ELEMENTS, flags), write, |body| {
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
        for step in steps {
            let flags = if *step == NEW_ELEMENTS { CREATE } else { 0 };
            let message = transaction.message(*step, flags).name(1, &self.0.table).name(2, TRAFFIC);
            write_elements(message, pod);
        }
        connection.commit(transaction).map_err(Error::kernel(format!("count what {pod} receives and sends")))
    }
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
