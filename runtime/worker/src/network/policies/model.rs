//! What policies say of the pods of this node: kept up as policies, pods and namespaces change, and told as changes.

use super::super::copy::Key;
use super::super::frontends::protocol;
use super::rules::{Choice, Labels, Peer, Policy, Port, Rule};
use carob_network::{Allow, Direction, GroupId, Member, Peers, PolicyChange, Ports, Protocol, Rules, is_port_group};
use k8s_openapi::api::core::v1::Pod;
use kube::core::{Selector, SelectorExt};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

/// What policies need to know of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodFacts {
    pub namespace: String,
    pub labels: Labels,
    /// The ports that have names.
    pub ports: Vec<(String, Protocol, u16)>,
    /// None without a network of its own, before it has an address, and after its end.
    pub address: Option<Ipv4Addr>,
    /// It runs on this node.
    pub local: bool,
}

impl PodFacts {
    pub fn of(pod: &Pod, node: &str) -> Self {
        let (meta, spec, status) = (&pod.metadata, pod.spec.as_ref(), pod.status.as_ref());
        let containers =
            spec.into_iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
        let ports = containers.flat_map(|container| container.ports.iter().flatten()).filter_map(|port| {
            let number = u16::try_from(port.container_port).ok()?;
            Some((port.name.clone()?, protocol(port.protocol.as_deref())?, number))
        });
        let on_machine = spec.is_some_and(|spec| spec.host_network == Some(true));
        let phase = status.and_then(|status| status.phase.as_deref());
        let over = matches!(phase, Some("Succeeded" | "Failed"));
        let address = status.and_then(|status| status.pod_ip.as_ref()?.parse().ok());
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            labels: meta.labels.clone().unwrap_or_default(),
            ports: ports.collect(),
            address: address.filter(|_| !on_machine && !over),
            local: spec.and_then(|spec| spec.node_name.as_deref()) == Some(node),
        }
    }
}

struct Group {
    id: GroupId,
    chooses: Chooser,
}

/// A choice, ready to be compared with many pods.
enum Chooser {
    Pods { namespace: Option<String>, namespaces: Option<Selector>, pods: Option<Selector> },
    Port(u8, String),
    Nothing,
}

impl Chooser {
    fn of(choice: &Choice) -> Self {
        match choice {
            Choice::Here { namespace, pods } => match pods.compile() {
                Some(pods) => Self::Pods { namespace: Some(namespace.clone()), namespaces: None, pods: Some(pods) },
                None => Self::Nothing,
            },
            Choice::Anywhere { namespaces, pods } => {
                let compiled = pods.as_ref().map(super::rules::Chosen::compile);
                match (namespaces.compile(), compiled) {
                    (None, _) | (_, Some(None)) => Self::Nothing,
                    (namespaces, pods) => Self::Pods { namespace: None, namespaces, pods: pods.flatten() },
                }
            }
            Choice::Port { protocol, name } => Self::Port(*protocol, name.clone()),
        }
    }

    fn members(&self, pod: &PodFacts, address: Ipv4Addr, namespaces: &HashMap<String, Labels>) -> Vec<Member> {
        match self {
            Self::Nothing => Vec::new(),
            Self::Port(protocol, name) => {
                let ports = pod.ports.iter().filter(|(own, of, _)| own == name && *of as u8 == *protocol);
                ports.map(|(_, protocol, number)| Member::Port(address, *protocol, *number)).collect()
            }
            Self::Pods { namespace, namespaces: of_namespace, pods } => {
                let none = Labels::new();
                let labels = namespaces.get(&pod.namespace).unwrap_or(&none);
                let chosen = namespace.as_ref().is_none_or(|name| *name == pod.namespace)
                    && of_namespace.as_ref().is_none_or(|selector| selector.matches(labels))
                    && pods.as_ref().is_none_or(|selector| selector.matches(&pod.labels));
                chosen.then_some(Member::Pod(address)).into_iter().collect()
            }
        }
    }
}

/// Policies and everything that they depend on.
#[derive(Default)]
pub(super) struct Model {
    policies: BTreeMap<Key, Policy>,
    namespaces: HashMap<String, Labels>,
    /// Pods as the API has them, by uid.
    pods: HashMap<String, PodFacts>,
    /// Pods of this node whose network is set up, with what was known of them then; the API learns of it later.
    admitted: HashMap<String, PodFacts>,
    /// Pods of this node whose network is gone, while the API still has them.
    released: HashSet<String>,
    groups: HashMap<Choice, Group>,
    next_group: GroupId,
    memberships: HashMap<String, HashSet<(GroupId, Member)>>,
    isolated: HashMap<(Direction, Ipv4Addr), Rules>,
    /// Whose pods' addresses have been told.
    addresses: HashMap<String, Ipv4Addr>,
    dirty: HashSet<String>,
    new_rules: bool,
}

impl Model {
    pub fn has_policies(&self) -> bool {
        !self.policies.is_empty()
    }

    pub fn has_news(&self) -> bool {
        self.new_rules || !self.dirty.is_empty()
    }

    pub fn set_policy(&mut self, key: Key, policy: Option<Policy>) {
        if self.policies.get(&key) == policy.as_ref() {
            return;
        }
        self.new_rules = true;
        match policy {
            Some(policy) => self.policies.insert(key, policy),
            None => self.policies.remove(&key),
        };
    }

    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        if self.namespaces.get(name) == labels.as_ref() {
            return;
        }
        let inside = self.pods.iter().chain(&self.admitted).filter(|(_, pod)| pod.namespace == name);
        self.dirty.extend(inside.map(|(uid, _)| uid.clone()));
        match labels {
            Some(labels) => self.namespaces.insert(name.to_owned(), labels),
            None => self.namespaces.remove(name),
        };
    }

    pub fn set_pod(&mut self, uid: &str, facts: Option<PodFacts>) {
        if self.pods.get(uid) == facts.as_ref() {
            return;
        }
        self.dirty.insert(uid.to_owned());
        if let Some(facts) = facts {
            self.pods.insert(uid.to_owned(), facts);
        } else {
            self.pods.remove(uid);
            self.released.remove(uid);
        }
    }

    /// A pod of this node has its network from now on.
    pub fn admit(&mut self, uid: &str, facts: PodFacts) {
        self.dirty.insert(uid.to_owned());
        self.released.remove(uid);
        self.admitted.insert(uid.to_owned(), facts);
    }

    /// A pod's network is going away.
    pub fn release(&mut self, uid: &str) {
        self.dirty.insert(uid.to_owned());
        self.admitted.remove(uid);
        if self.pods.contains_key(uid) {
            self.released.insert(uid.to_owned());
        }
    }

    /// Forgets what only the watches tell, when nobody needs it.
    pub fn forget_others(&mut self) {
        self.dirty.extend(self.pods.keys().cloned());
        self.pods.clear();
        self.released.clear();
        self.namespaces.clear();
    }

    /// What is known of a pod that has an address.
    fn facts(&self, uid: &str) -> Option<(PodFacts, Ipv4Addr)> {
        let admitted = self.admitted.get(uid);
        let mut facts = self.pods.get(uid).or(admitted)?.clone();
        if let Some(here) = admitted {
            (facts.address, facts.local) = (here.address, true);
        } else if self.released.contains(uid) {
            return None;
        }
        let address = facts.address?;
        // Of two, the one whose network is there has the address: the other's object has yet to follow.
        let taken =
            admitted.is_none() && self.admitted.iter().any(|(other, pod)| other != uid && pod.address == Some(address));
        (!taken).then_some((facts, address))
    }

    /// What has changed since the last time, in an order in which it can be carried out.
    pub fn changes(&mut self) -> Vec<PolicyChange> {
        let mut changes = Vec::new();
        let new_rules = std::mem::take(&mut self.new_rules);
        let mut dirty = std::mem::take(&mut self.dirty);
        let obsolete = if new_rules { self.renew_groups(&mut changes) } else { Vec::new() };
        let (mut left, mut joined) = (Vec::new(), Vec::new());
        for uid in &dirty {
            let now = self.memberships_of(uid);
            let before = self.memberships.remove(uid).unwrap_or_default();
            left.extend(before.difference(&now).copied());
            joined.extend(now.difference(&before).copied());
            if !now.is_empty() {
                self.memberships.insert(uid.clone(), now);
            }
        }
        // An address that went from one pod to another is there in the end.
        changes.extend(left.into_iter().map(|(group, member)| PolicyChange::Member(group, member, false)));
        changes.extend(joined.into_iter().map(|(group, member)| PolicyChange::Member(group, member, true)));
        if new_rules {
            dirty.extend(self.pods.keys().chain(self.admitted.keys()).cloned());
        }
        let (mut lifted, mut isolated) = (Vec::new(), Vec::new());
        for uid in dirty {
            let known = self.facts(&uid).filter(|(facts, _)| facts.local);
            let address = known.as_ref().map(|(_, address)| *address);
            let before = match address {
                Some(address) => self.addresses.insert(uid, address),
                None => self.addresses.remove(&uid),
            };
            lifted.extend(before.filter(|before| address != Some(*before)));
            if let Some((facts, address)) = known {
                isolated.extend(Direction::BOTH.map(|direction| (direction, address, self.rules(direction, &facts))));
            }
        }
        let owned: HashSet<Ipv4Addr> = isolated.iter().map(|(_, address, _)| *address).collect();
        for address in lifted.into_iter().filter(|address| !owned.contains(address)) {
            isolated.extend(Direction::BOTH.map(|direction| (direction, address, None)));
        }
        for (direction, address, rules) in isolated {
            let before = match &rules {
                Some(rules) => self.isolated.insert((direction, address), Arc::clone(rules)),
                None => self.isolated.remove(&(direction, address)),
            };
            if before != rules {
                changes.push(PolicyChange::Isolate(direction, address, rules));
            }
        }
        changes.extend(obsolete.into_iter().map(PolicyChange::Forget));
        changes
    }

    /// Makes the groups that rules name now; returns those that none names any more.
    fn renew_groups(&mut self, changes: &mut Vec<PolicyChange>) -> Vec<GroupId> {
        let needed: BTreeSet<Choice> = self.policies.values().flat_map(Policy::choices).cloned().collect();
        let mut obsolete = Vec::new();
        self.groups.retain(|choice, group| {
            let keep = needed.contains(choice);
            if !keep {
                obsolete.push(group.id);
            }
            keep
        });
        for of_pod in self.memberships.values_mut().filter(|_| !obsolete.is_empty()) {
            of_pod.retain(|(group, _)| !obsolete.contains(group));
        }
        for choice in needed {
            if self.groups.contains_key(&choice) {
                continue;
            }
            self.next_group += 1;
            if is_port_group(self.next_group) != matches!(choice, Choice::Port { .. }) {
                self.next_group += 1;
            }
            let group = Group { id: self.next_group, chooses: Chooser::of(&choice) };
            let mut members = HashSet::new();
            let all: HashSet<&String> = self.pods.keys().chain(self.admitted.keys()).collect();
            for uid in all {
                let Some((facts, address)) = self.facts(uid) else { continue };
                for member in group.chooses.members(&facts, address, &self.namespaces) {
                    members.insert(member);
                    self.memberships.entry(uid.clone()).or_default().insert((group.id, member));
                }
            }
            changes.push(PolicyChange::Define(group.id, members));
            self.groups.insert(choice, group);
        }
        obsolete
    }

    fn memberships_of(&self, uid: &str) -> HashSet<(GroupId, Member)> {
        let Some((facts, address)) = self.facts(uid) else { return HashSet::new() };
        self.groups
            .values()
            .flat_map(|group| {
                let members = group.chooses.members(&facts, address, &self.namespaces);
                members.into_iter().map(|member| (group.id, member))
            })
            .collect()
    }

    /// What a pod's connections are held to; none if no policy is about it.
    fn rules(&self, direction: Direction, pod: &PodFacts) -> Option<Rules> {
        let first = Key { namespace: pod.namespace.clone(), name: String::new() };
        let in_namespace = self.policies.range(first..).take_while(|(key, _)| key.namespace == pod.namespace);
        let mut isolating = in_namespace
            .filter(|(_, policy)| policy.is_about(&pod.labels))
            .filter_map(|(_, policy)| match direction {
                Direction::Ingress => policy.ingress.as_ref(),
                Direction::Egress => policy.egress.as_ref(),
            })
            .peekable();
        isolating.peek()?;
        let mut all: Vec<Allow> = Vec::new();
        for allow in isolating.flatten().flat_map(|rule| self.allows(rule)) {
            if !all.contains(&allow) {
                all.push(allow);
            }
        }
        Some(all.into())
    }

    fn allows(&self, rule: &Rule) -> Vec<Allow> {
        let id = |choice: &Choice| self.groups.get(choice).map_or(0, |group| group.id);
        let each = rule.peers.iter().flat_map(|peer| rule.ports.iter().map(move |port| (peer, port)));
        each.map(|(peer, port)| Allow {
            peers: match peer {
                Peer::Anybody => Peers::Anybody,
                Peer::Pods(choice) => Peers::Group(id(choice)),
                Peer::Blocks(blocks) => Peers::Blocks(blocks.clone()),
            },
            ports: match port {
                Port::Any => Ports::Any,
                Port::Ranges(ranges) => Ports::Ranges(ranges.clone()),
                Port::Named(choice) => Ports::Group(id(choice)),
            },
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn key(name: &str) -> Key {
        Key { namespace: "n".into(), name: name.into() }
    }

    fn policy(spec: Value) -> Policy {
        let object = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec});
        Policy::of(&serde_json::from_value(object).unwrap())
    }

    fn pod(namespace: &str, app: &str, last: u8) -> PodFacts {
        PodFacts {
            namespace: namespace.into(),
            labels: [("app".to_owned(), app.to_owned())].into(),
            ports: vec![("web".into(), Protocol::Tcp, 8000 + u16::from(last))],
            address: Some([10, 0, 0, last].into()),
            local: true,
        }
    }

    fn from_app(app: &str) -> Policy {
        policy(json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": app}}}]}]}))
    }

    #[test]
    fn a_pod_that_comes_and_goes_is_one_member_more_and_one_less() {
        let mut model = Model::default();
        model.set_policy(key("p"), Some(from_app("web")));
        model.set_pod("a", Some(pod("n", "db", 1)));
        let first = model.changes();
        assert!(
            matches!(&first[..], [PolicyChange::Define(_, members), PolicyChange::Isolate(Direction::Ingress, _, Some(rules))]
            if members.is_empty() && rules.len() == 1),
            "{first:?}"
        );
        model.set_pod("b", Some(PodFacts { local: false, ..pod("n", "web", 2) }));
        assert!(matches!(&model.changes()[..], [PolicyChange::Member(_, Member::Pod(_), true)]));
        model.set_pod("b", Some(PodFacts { local: false, ..pod("n", "db", 2) }));
        assert!(matches!(&model.changes()[..], [PolicyChange::Member(_, _, false)]));
        model.set_pod("c", Some(PodFacts { local: false, ..pod("other", "web", 3) }));
        assert!(model.changes().is_empty(), "of another namespace");
        model.set_policy(key("p"), None);
        assert!(matches!(&model.changes()[..], [PolicyChange::Isolate(_, _, None), PolicyChange::Forget(_)]));
    }

    #[test]
    fn a_pod_counts_from_when_its_network_is_there_until_it_is_gone() {
        let mut model = Model::default();
        model.set_policy(key("p"), Some(from_app("web")));
        model.changes();
        model.admit("a", pod("n", "web", 1));
        assert_eq!(model.changes().len(), 2, "a member, and isolated");
        model.set_pod("a", Some(PodFacts { address: None, ..pod("n", "web", 1) }));
        assert!(model.changes().is_empty(), "the API learns of the address later");
        model.set_pod("a", Some(pod("n", "web", 1)));
        assert!(model.changes().is_empty());
        model.release("a");
        assert_eq!(model.changes().len(), 2, "its object is still there");
        model.admit("b", pod("n", "db", 1));
        assert!(matches!(&model.changes()[..], [PolicyChange::Isolate(_, _, Some(_))]), "the address is another's");
        model.set_pod("a", None);
        assert!(model.changes().is_empty());
    }

    #[test]
    fn a_namespaces_labels_choose_its_pods() {
        let mut model = Model::default();
        let from = json!([{"namespaceSelector": {"matchLabels": {"team": "a"}}}]);
        model.set_policy(key("p"), Some(policy(json!({"podSelector": {}, "ingress": [{"from": from}]}))));
        model.set_pod("x", Some(pod("other", "web", 9)));
        model.changes();
        model.set_namespace("other", Some([("team".to_owned(), "a".to_owned())].into()));
        assert!(matches!(&model.changes()[..], [PolicyChange::Member(_, _, true)]));
        model.set_namespace("other", Some(Labels::new()));
        assert!(matches!(&model.changes()[..], [PolicyChange::Member(_, _, false)]));
    }

    #[test]
    fn a_named_port_is_each_pods_own() {
        let mut model = Model::default();
        model.set_pod("a", Some(pod("n", "web", 1)));
        model.set_pod("b", Some(pod("n", "web", 2)));
        let ports = json!([{"port": "web"}]);
        model.set_policy(
            key("p"),
            Some(policy(json!({"podSelector": {}, "egress": [{"ports": ports}], "policyTypes": ["Egress"]}))),
        );
        let changes = model.changes();
        let PolicyChange::Define(group, members) = &changes[0] else { panic!("{changes:?}") };
        assert!(is_port_group(*group));
        let port = |last| Member::Port([10, 0, 0, last].into(), Protocol::Tcp, 8000 + u16::from(last));
        assert_eq!(*members, HashSet::from([port(1), port(2)]));
    }

    #[test]
    fn several_policies_add_up() {
        let mut model = Model::default();
        model.set_pod("a", Some(pod("n", "db", 1)));
        model.set_policy(key("deny"), Some(policy(json!({"podSelector": {}}))));
        let rules = |changes: Vec<PolicyChange>| match changes.last() {
            Some(PolicyChange::Isolate(_, _, rules)) => rules.as_ref().map_or(0, |rules| rules.len()),
            other => panic!("{other:?}"),
        };
        assert_eq!(rules(model.changes()), 0);
        model.set_policy(key("web"), Some(from_app("web")));
        assert_eq!(rules(model.changes()), 1);
        model.set_policy(key("api"), Some(from_app("api")));
        assert_eq!(rules(model.changes()), 2);
    }
}
