//! Network policies in the kernel: one lookup of a pod's address finds its rules, however many pods there are.
//!
//! The map leads to a chain that all pods with the same rules share. A rule names sets: the pods that a selector chooses
//! (a group, which changes as pods come and go), blocks of addresses, ranges of ports. Chains and the sets of blocks and
//! ports never change: what is different gets another one, and in one transaction pods are led to it and the old one goes.
//! So a pod that comes or goes costs one element in each group that it is a member of.
//!
//! Only a connection's first packet is looked at; what is under way goes on, and answers come back.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::family::{Family, octets};
use crate::firewall::{
    Changes, GET_CHAIN, GET_SET, Holds, Part, SERVICE, Shape, Table, UNTIL_POLICIES, load_destination, load_port, names,
};
use crate::rules::{Field, Register, Rule, Verdict};
use crate::services::write_key;
use crate::{Error, Protocol};

/// How names of chains and of each sort of set begin.
const CHAIN: &str = "policy-";
const GROUP: &str = "policy-group-";
const CONSTANT: &str = "policy-set-";
/// `NFT_SET_ELEM_INTERVAL_END`
const INTERVAL_END: u32 = 1;

/// Which way a connection goes, as the pod sees it that a policy is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// Others connect to the pod.
    Ingress,
    /// The pod connects to others.
    Egress,
}

impl Direction {
    /// Both, in the order in which a packet meets them.
    pub const BOTH: [Self; 2] = [Self::Egress, Self::Ingress];

    /// The map that leads from a pod's address to its rules.
    pub(crate) fn map(self) -> &'static str {
        match self {
            Self::Ingress => "policy-ingress",
            Self::Egress => "policy-egress",
        }
    }

    /// Where a packet has the pod's own address.
    pub(crate) fn own(self) -> Field {
        match self {
            Self::Ingress => Field::Destination,
            Self::Egress => Field::Source,
        }
    }

    fn peer(self) -> Field {
        match self {
            Self::Ingress => Field::Source,
            Self::Egress => Field::Destination,
        }
    }
}

/// A group of pods, or of ports of pods; the number is the caller's choice.
pub type GroupId = u32;

/// What a group has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Member {
    /// A pod.
    Pod(IpAddr),
    /// A port of a pod. A group has members of one sort.
    Port(IpAddr, Protocol, u16),
}

/// With whom a connection may be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Peers {
    /// Everybody.
    Anybody,
    /// Pods of a group.
    Group(GroupId),
    /// Addresses from the first to the last of each pair, both included and of one kind; in order and apart from each
    /// other.
    Blocks(Vec<(IpAddr, IpAddr)>),
}

/// At which ports.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Ports {
    /// All, and what has no ports.
    Any,
    /// From the first to the last of each, both included; in order and apart from each other.
    Ranges(Vec<(Protocol, u16, u16)>),
    /// Those of a group of ports.
    Group(GroupId),
}

/// Connections that are let through.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Allow {
    /// With whom.
    pub peers: Peers,
    /// At which ports of who is connected to.
    pub ports: Ports,
}

/// Everything that is let through; what isn't is dropped.
pub type Rules = Arc<[Allow]>;

/// One change of policies.
#[derive(Clone, Debug)]
pub enum PolicyChange {
    /// A new group with its members. It must be there before a rule names it.
    Define(GroupId, HashSet<Member>),
    /// A group that no rule names any more.
    Forget(GroupId),
    /// Somebody is a member from now on, or isn't.
    Member(GroupId, Member, bool),
    /// What a pod's connections are held to; none lets everything through.
    Isolate(Direction, IpAddr, Option<Rules>),
}

/// A set whose content is its identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Constant {
    Blocks(Vec<(IpAddr, IpAddr)>),
    Ranges(Vec<(Protocol, u16, u16)>),
}

/// Things that are there once, with a number, as long as somebody uses them.
struct Shared<K> {
    all: HashMap<K, (u32, usize)>,
    next: u32,
}

impl<K> Default for Shared<K> {
    fn default() -> Self {
        Self { all: HashMap::new(), next: 1 }
    }
}

impl<K: Eq + Hash + Clone> Shared<K> {
    /// One user more; the number, and whether it is new.
    fn take(&mut self, key: &K) -> (u32, bool) {
        if let Some((number, users)) = self.all.get_mut(key) {
            *users += 1;
            return (*number, false);
        }
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        self.all.insert(key.clone(), (number, 1));
        (number, true)
    }

    /// One user less.
    fn give_back(&mut self, key: &K) {
        if let Some((_, users)) = self.all.get_mut(key) {
            *users -= 1;
        }
    }

    fn number(&self, key: &K) -> u32 {
        self.all.get(key).map_or(0, |(number, _)| *number)
    }

    /// Removes and returns what has no users.
    fn unused(&mut self) -> Vec<(K, u32)> {
        let unused: Vec<_> = self
            .all
            .iter()
            .filter(|(_, (_, users))| *users == 0)
            .map(|(key, (number, _))| (key.clone(), *number))
            .collect();
        self.all.retain(|_, (_, users)| *users > 0);
        unused
    }
}

/// The policies of one instance for addresses of one kind, as the kernel is to have them.
pub(crate) struct Policies {
    table: Table,
    groups: HashMap<GroupId, HashSet<Member>>,
    isolated: HashMap<(Direction, IpAddr), Rules>,
    chains: Shared<(Direction, Rules)>,
    constants: Shared<Constant>,
    /// The kernel may have something else.
    stale: bool,
}

/// What is to be written, in the order in which the kernel wants it.
#[derive(Default)]
struct Plan {
    groups: Vec<GroupId>,
    constants: Vec<(Constant, u32)>,
    left: Vec<(GroupId, Member)>,
    joined: Vec<(GroupId, Member)>,
    chains: Vec<(Direction, Rules, u32)>,
    /// Which chain a pod had and has.
    led: HashMap<(Direction, IpAddr), (Option<u32>, Option<u32>)>,
    forgotten: Vec<GroupId>,
}

impl Policies {
    pub(crate) fn new(table: Table) -> Self {
        Self {
            table,
            groups: HashMap::new(),
            isolated: HashMap::new(),
            chains: Shared::default(),
            constants: Shared::default(),
            stale: false,
        }
    }

    /// Makes the kernel know what these changes say and nothing else, whatever it knew; in one step.
    pub(crate) fn replace(&mut self, changes: Vec<PolicyChange>) -> Result<(), Error> {
        *self = Self::new(self.table.clone());
        self.stale = true;
        self.change(changes)
    }

    /// Writes everything into a table that was made anew.
    pub(crate) fn restore(&mut self) -> Result<(), Error> {
        self.stale = true;
        self.rewrite()
    }

    /// Carries changes out, all at once.
    pub(crate) fn change(&mut self, wanted: Vec<PolicyChange>) -> Result<(), Error> {
        let mut plan = Plan::default();
        for change in wanted {
            self.plan(change, &mut plan);
        }
        if !self.stale {
            match self.write(plan) {
                Ok(()) => return Ok(()),
                Err(error) => {
                    tracing::warn!(%error, "the kernel refused a change of policies: all are written anew");
                    self.stale = true;
                }
            }
        }
        self.rewrite()
    }

    fn plan(&mut self, change: PolicyChange, plan: &mut Plan) {
        match change {
            PolicyChange::Define(group, members) => {
                let family = self.table.family;
                self.groups.insert(group, members.into_iter().filter(|member| member.family() == family).collect());
                plan.groups.push(group);
            }
            PolicyChange::Forget(group) => {
                if self.groups.remove(&group).is_some() {
                    plan.forgotten.push(group);
                }
            }
            PolicyChange::Member(_, member, _) if member.family() != self.table.family => {}
            PolicyChange::Isolate(_, pod, _) if Family::of(pod) != self.table.family => {}
            PolicyChange::Member(group, member, present) => {
                let Some(members) = self.groups.get_mut(&group) else { return };
                let changed = if present { members.insert(member) } else { members.remove(&member) };
                // A group that is new is written as it is in the end.
                if changed && !plan.groups.contains(&group) {
                    let (list, opposite) =
                        if present { (&mut plan.joined, &mut plan.left) } else { (&mut plan.left, &mut plan.joined) };
                    // There and back again within one step is no change.
                    match opposite.iter().position(|entry| *entry == (group, member)) {
                        Some(at) => drop(opposite.swap_remove(at)),
                        None => list.push((group, member)),
                    }
                }
            }
            PolicyChange::Isolate(direction, pod, rules) => {
                let key = (direction, pod);
                let old = self.isolated.get(&key).cloned();
                if old == rules {
                    return;
                }
                let now = rules.as_ref().map(|rules| self.take_chain(direction, rules, plan));
                let before = old.map(|rules| {
                    let number = self.chains.number(&(direction, Arc::clone(&rules)));
                    self.chains.give_back(&(direction, rules));
                    number
                });
                plan.led.entry(key).or_insert((before, now)).1 = now;
                match rules {
                    Some(rules) => self.isolated.insert(key, rules),
                    None => self.isolated.remove(&key),
                };
            }
        }
    }

    fn take_chain(&mut self, direction: Direction, rules: &Rules, plan: &mut Plan) -> u32 {
        let (number, new) = self.chains.take(&(direction, Arc::clone(rules)));
        if new {
            for constant in rules.iter().flat_map(constants) {
                let (number, new) = self.constants.take(&constant);
                if new {
                    plan.constants.push((constant, number));
                }
            }
            plan.chains.push((direction, Arc::clone(rules), number));
        }
        number
    }

    fn write(&mut self, plan: Plan) -> Result<(), Error> {
        let unused_chains = self.chains.unused();
        for (_, rules) in unused_chains.iter().map(|(key, _)| key) {
            rules.iter().flat_map(constants).for_each(|constant| self.constants.give_back(&constant));
        }
        let unused_constants = self.constants.unused();
        let table = self.table.clone();
        let mut changes = Changes::of(&table);
        self.add_sets(&mut changes, &plan);
        for (present, list) in [(false, &plan.left), (true, &plan.joined)] {
            for (group, member) in list.iter().filter(|(group, _)| self.groups.contains_key(group)) {
                let (set, one) = (group_name(*group), std::iter::once(key_of(member)));
                if present {
                    changes.add(&set, one, |messages, key| write_key(messages, 1, &key));
                } else {
                    changes.delete(&set, one, |messages, key| write_key(messages, 1, &key));
                }
            }
        }
        self.add_chains(&mut changes, &plan.chains);
        for ((direction, pod), (before, now)) in &plan.led {
            if before == now {
                continue;
            }
            let map = direction.map();
            if before.is_some() {
                changes.delete(map, std::iter::once(pod), |messages, pod| write_key(messages, 1, &octets(*pod)));
            }
            if let Some(now) = now {
                lead(&mut changes, map, std::iter::once((*pod, *now)));
            }
        }
        for (_, number) in &unused_chains {
            changes.remove_chain(&format!("{CHAIN}{number}"));
        }
        let constants = unused_constants.iter().map(|(_, number)| format!("{CONSTANT}{number}"));
        for set in constants.chain(plan.forgotten.iter().map(|group| group_name(*group))) {
            changes.remove_set(&set);
        }
        if changes.is_empty() {
            return Ok(());
        }
        changes.commit("change policies in")
    }

    /// Writes everything, instead of what is there.
    fn rewrite(&mut self) -> Result<(), Error> {
        let table = self.table.clone();
        let mut changes = Changes::of(&table);
        for direction in Direction::BOTH {
            changes.clear(direction.map());
        }
        let list = |kind, attribute| {
            names(&table, kind, attribute, CHAIN).map_err(Error::kernel(format!("list policies of {}", table.name)))
        };
        for chain in list(GET_CHAIN, 3)? {
            changes.remove_chain(&chain);
        }
        let maps = Direction::BOTH.map(Direction::map);
        for set in list(GET_SET, 2)?.iter().filter(|set| !maps.contains(&set.as_str())) {
            changes.remove_set(set);
        }
        (self.chains, self.constants) = (Shared::default(), Shared::default());
        let mut plan = Plan { groups: self.groups.keys().copied().collect(), ..Plan::default() };
        let isolated: Vec<_> = self.isolated.iter().map(|(key, rules)| (*key, Arc::clone(rules))).collect();
        let mut led: HashMap<Direction, Vec<(IpAddr, u32)>> = HashMap::new();
        for ((direction, pod), rules) in isolated {
            let chain = self.take_chain(direction, &rules, &mut plan);
            led.entry(direction).or_default().push((pod, chain));
        }
        changes.empty_chain(UNTIL_POLICIES);
        self.add_sets(&mut changes, &plan);
        self.add_chains(&mut changes, &plan.chains);
        for (direction, pods) in led {
            lead(&mut changes, direction.map(), pods.into_iter());
        }
        changes.commit("fill policies of")?;
        self.stale = false;
        Ok(())
    }

    fn add_sets(&self, changes: &mut Changes<'_>, plan: &Plan) {
        for group in &plan.groups {
            let Some(members) = self.groups.get(group) else { continue };
            let name = group_name(*group);
            let port = matches!(members.iter().next(), Some(Member::Port(..)));
            let key: &[Part] = if port || is_port_group(*group) { &SERVICE } else { &[Part::Address] };
            changes.set(&name, key, &Holds::Keys, Shape::Plain);
            changes.add(&name, members.iter().map(key_of), |messages, key| write_key(messages, 1, &key));
        }
        for (constant, number) in &plan.constants {
            let name = format!("{CONSTANT}{number}");
            match constant {
                Constant::Blocks(blocks) => {
                    let family = self.table.family;
                    let blocks = blocks.iter().filter(|(first, _)| Family::of(*first) == family);
                    changes.set(&name, &[Part::Address], &Holds::Keys, Shape::Ranges);
                    changes.add(&name, blocks.flat_map(ends), |messages, (key, end)| {
                        write_key(messages, 1, &octets(key));
                        if end {
                            messages.number(3, INTERVAL_END);
                        }
                    });
                }
                Constant::Ranges(ranges) => {
                    changes.set(&name, &[Part::Protocol, Part::Port], &Holds::Keys, Shape::Boxes);
                    changes.add(&name, ranges, |messages, (protocol, first, last)| {
                        write_key(messages, 1, &port_key(*protocol, *first));
                        write_key(messages, 10, &port_key(*protocol, *last));
                    });
                }
            }
        }
    }

    fn add_chains(&self, changes: &mut Changes<'_>, chains: &[(Direction, Rules, u32)]) {
        for (direction, rules, number) in chains {
            let name = format!("{CHAIN}{number}");
            changes.empty_chain(&name);
            for allow in rules.iter() {
                changes.rule(&name, |rule| self.rule(*direction, allow, rule).verdict(&Verdict::Return));
            }
            changes.rule(&name, |rule| rule.verdict(&Verdict::Drop));
        }
    }

    fn rule<'a>(&self, direction: Direction, allow: &Allow, rule: Rule<'a>) -> Rule<'a> {
        let constant = |constant: Constant| format!("{CONSTANT}{}", self.constants.number(&constant));
        let from =
            |rule: Rule<'a>, set: &str| rule.load(direction.peer(), Register::Client).in_set(set, Register::Client);
        let rule = match &allow.peers {
            Peers::Anybody => rule,
            Peers::Group(group) => from(rule, &group_name(*group)),
            Peers::Blocks(blocks) => from(rule, &constant(Constant::Blocks(blocks.clone()))),
        };
        match &allow.ports {
            Ports::Any => rule,
            Ports::Ranges(ranges) => {
                load_port(rule).in_set(&constant(Constant::Ranges(ranges.clone())), Register::Protocol)
            }
            Ports::Group(group) => load_destination(rule, true).in_set(&group_name(*group), Register::Destination),
        }
    }
}

/// Groups of ports have odd numbers, so that an empty one has its shape.
pub const fn is_port_group(group: GroupId) -> bool {
    group % 2 == 1
}

fn group_name(group: GroupId) -> String {
    format!("{GROUP}{group}")
}

/// The constant sets that a rule names.
fn constants(allow: &Allow) -> impl Iterator<Item = Constant> + use<> {
    let blocks = match &allow.peers {
        Peers::Blocks(blocks) => Some(Constant::Blocks(blocks.clone())),
        _ => None,
    };
    let ranges = match &allow.ports {
        Ports::Ranges(ranges) => Some(Constant::Ranges(ranges.clone())),
        _ => None,
    };
    blocks.into_iter().chain(ranges)
}

fn lead(changes: &mut Changes<'_>, map: &str, pods: impl Iterator<Item = (IpAddr, u32)>) {
    changes.add(map, pods, |messages, (pod, chain)| {
        write_key(messages, 1, &octets(pod));
        messages.nested(2, |inner| {
            inner.nested(2, |inner| Verdict::Jump(format!("{CHAIN}{chain}")).write(inner));
        });
    });
}

/// A range as the kernel has it: where it begins, and behind its end, unless that is the last address of all.
fn ends((first, last): &(IpAddr, IpAddr)) -> impl Iterator<Item = (IpAddr, bool)> + use<> {
    let behind = next_address(*last).map(|behind| (behind, true));
    std::iter::once((*first, false)).chain(behind)
}

/// The address behind this one, of its kind.
pub fn next_address(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => u32::from(address).checked_add(1).map(|next| IpAddr::V4(next.into())),
        IpAddr::V6(address) => u128::from(address).checked_add(1).map(|next| IpAddr::V6(next.into())),
    }
}

fn previous_address(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => u32::from(address).checked_sub(1).map(|previous| IpAddr::V4(previous.into())),
        IpAddr::V6(address) => u128::from(address).checked_sub(1).map(|previous| IpAddr::V6(previous.into())),
    }
}

impl Member {
    fn family(&self) -> Family {
        match self {
            Self::Pod(address) | Self::Port(address, ..) => Family::of(*address),
        }
    }
}

fn key_of(member: &Member) -> Vec<u8> {
    match member {
        Member::Pod(address) => octets(*address),
        Member::Port(address, protocol, port) => [&octets(*address)[..], &port_key(*protocol, *port)].concat(),
    }
}

fn port_key(protocol: Protocol, port: u16) -> [u8; 8] {
    let [high, low] = port.to_be_bytes();
    [protocol as u8, 0, 0, 0, high, low, 0, 0]
}

/// Ranges in order, with those that touch made one.
pub fn merged<T: Copy + Ord>(mut ranges: Vec<(T, T)>, next: impl Fn(T) -> Option<T>) -> Vec<(T, T)> {
    ranges.retain(|(first, last)| first <= last);
    ranges.sort_unstable();
    let mut all: Vec<(T, T)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match all.last_mut() {
            Some((_, end)) if first <= *end || next(*end).is_some_and(|behind| first <= behind) => {
                *end = last.max(*end);
            }
            _ => all.push((first, last)),
        }
    }
    all
}

/// The addresses of `block` without those of `except`, of which those of the other kind mean nothing.
pub fn block_without(block: IpNet, except: &[IpNet]) -> Vec<(IpAddr, IpAddr)> {
    let holes: BTreeSet<(IpAddr, IpAddr)> = except
        .iter()
        .map(|hole| (hole.network(), hole.broadcast()))
        .filter(|(begin, _)| begin.is_ipv4() == block.addr().is_ipv4())
        .collect();
    let (mut rest, last) = (Vec::new(), block.broadcast());
    let mut next = Some(block.network());
    for (begin, end) in holes {
        let Some(first) = next else { break };
        if begin > first && begin <= last {
            rest.extend(previous_address(begin).map(|before| (first, before)));
        }
        if end >= first {
            next = next_address(end);
        }
    }
    rest.extend(next.filter(|first| *first <= last).map(|first| (first, last)));
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(ranges: &[(IpAddr, IpAddr)]) -> Vec<String> {
        ranges.iter().map(|(first, last)| format!("{first}-{last}")).collect()
    }

    #[test]
    fn exceptions_are_cut_out_of_a_block() {
        let net = |text: &str| text.parse().unwrap();
        assert_eq!(texts(&block_without(net("10.0.0.0/24"), &[])), ["10.0.0.0-10.0.0.255"]);
        assert_eq!(
            texts(&block_without(net("10.0.0.0/24"), &[net("10.0.0.64/26"), net("10.0.0.0/28"), net("10.0.0.66/32")])),
            ["10.0.0.16-10.0.0.63", "10.0.0.128-10.0.0.255"]
        );
        assert!(block_without(net("10.0.0.0/24"), &[net("10.0.0.0/24")]).is_empty());
        assert_eq!(texts(&block_without(net("0.0.0.0/0"), &[net("128.0.0.0/1")])), ["0.0.0.0-127.255.255.255"]);
        assert_eq!(
            texts(&block_without(net("2001:db8::/64"), &[net("2001:db8::/65"), net("10.0.0.0/8")])),
            ["2001:db8:0:0:8000::-2001:db8::ffff:ffff:ffff:ffff"]
        );
        assert!(block_without(net("::/0"), &[net("::/0")]).is_empty());
    }

    #[test]
    fn ranges_that_touch_are_one() {
        let next = |port: u16| port.checked_add(1);
        assert_eq!(
            merged(vec![(80, 90), (91, 95), (10, 20), (15, 18), (65_535, 65_535)], next),
            [(10, 20), (80, 95), (65_535, 65_535)]
        );
        assert_eq!(merged(vec![(1, 65_535), (65_535, 65_535), (5, 2)], next), [(1, 65_535)]);
        let everybody = ["0.0.0.0/0", "::/0"].map(|block| block_without(block.parse().unwrap(), &[])).concat();
        assert_eq!(merged(everybody.clone(), next_address), everybody, "of two kinds");
    }
}
