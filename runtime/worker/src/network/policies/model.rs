//! What policies say of the pods of this node: kept up as policies, pods and namespaces change, and told as changes.

use super::super::copy::Key;
use super::super::frontends::protocol;
use super::rules::{Choice, Labels, Peer, Policy, Port, Rule};
use crate::addresses::Addresses;
use carob_network::{Allow, Direction, GroupId, Member, Peers, PolicyChange, Ports, Protocol, Rules, is_port_group};
use k8s_openapi::api::core::v1::Pod;
use kube::core::{Selector, SelectorExt};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

/// What policies need to know of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodFacts {
    pub namespace: String,
    pub labels: Labels,
    /// The ports that have names.
    pub ports: Vec<(String, Protocol, u16)>,
    /// None without a network of its own, before it has any, and after its end.
    pub addresses: Vec<IpAddr>,
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
        let ips = status.filter(|_| !on_machine && !over).and_then(|status| status.pod_ips.as_ref());
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            labels: meta.labels.clone().unwrap_or_default(),
            ports: ports.collect(),
            addresses: ips.into_iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect(),
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

    fn members(&self, pod: &PodFacts, namespaces: &HashMap<String, Labels>) -> Vec<Member> {
        match self {
            Self::Nothing => Vec::new(),
            Self::Port(protocol, name) => {
                let ports = pod.ports.iter().filter(|(own, of, _)| own == name && *of as u8 == *protocol);
                let at = |(_, protocol, number): &(String, Protocol, u16)| {
                    let (protocol, number) = (*protocol, *number);
                    pod.addresses.iter().map(move |address| Member::Port(*address, protocol, number))
                };
                ports.flat_map(at).collect()
            }
            Self::Pods { namespace, namespaces: of_namespace, pods } => {
                // Of a namespace that nothing is known of yet, nothing can be said.
                let labels = namespaces.get(&pod.namespace);
                let chosen = namespace.as_ref().is_none_or(|name| *name == pod.namespace)
                    && of_namespace.as_ref().is_none_or(|chosen| labels.is_some_and(|labels| chosen.matches(labels)))
                    && pods.as_ref().is_none_or(|selector| selector.matches(&pod.labels));
                pod.addresses.iter().filter(|_| chosen).copied().map(Member::Pod).collect()
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
    /// The addresses of pods that an earlier run has started; what else there is to know the API tells.
    adopted: HashMap<String, Vec<IpAddr>>,
    /// Who has an address here, whatever the API says of others.
    here: HashMap<IpAddr, String>,
    /// Whose address it is as the API says.
    said: HashMap<IpAddr, HashSet<String>>,
    /// Pods of this node whose network is gone, while the API still has them.
    released: HashSet<String>,
    groups: HashMap<Choice, Group>,
    next_group: GroupId,
    memberships: HashMap<String, HashSet<(GroupId, Member)>>,
    /// For how many pods an address is in a group: while one goes and the next has it already, for two.
    members: HashMap<(GroupId, Member), usize>,
    isolated: HashMap<(Direction, IpAddr), Rules>,
    /// For which pod an address was told of last.
    holders: HashMap<IpAddr, String>,
    /// Which addresses were told of for a pod.
    addresses: HashMap<String, Vec<IpAddr>>,
    dirty: HashSet<String>,
    new_rules: bool,
}

/// The DNS of the cluster answers on a worker's own address; to policies it is the pod that it is elsewhere.
const NAME_SERVER: (&str, [(&str, &str); 1]) = ("kube-system", [("k8s-app", "kube-dns")]);
const NAME_PORTS: [(&str, Protocol); 2] = [("dns", Protocol::Udp), ("dns-tcp", Protocol::Tcp)];

impl Model {
    /// `names` are the addresses that names are asked of, `adopted` those of pods that an earlier run has started, by uid.
    pub fn new(names: Addresses, adopted: Vec<(String, Addresses)>) -> Self {
        let mut model = Self::default();
        let (namespace, labels) = NAME_SERVER;
        let facts = PodFacts {
            namespace: namespace.to_owned(),
            labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            ports: NAME_PORTS.map(|(name, protocol)| (name.to_owned(), protocol, super::super::DNS_PORT)).into(),
            addresses: names.all().collect(),
            local: false,
        };
        // A uid is never so short.
        model.admit("dns", facts);
        for (uid, addresses) in adopted {
            model.here.extend(addresses.all().map(|address| (address, uid.clone())));
            model.adopted.insert(uid, addresses.all().collect());
        }
        model
    }

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
        let old = self.pods.remove(uid);
        for address in old.iter().flat_map(|pod| &pod.addresses) {
            if let Some(uids) = self.said.get_mut(address) {
                uids.remove(uid);
                if uids.is_empty() {
                    self.said.remove(address);
                }
            }
        }
        if let Some(facts) = facts {
            for address in &facts.addresses {
                self.said.entry(*address).or_default().insert(uid.to_owned());
            }
            self.pods.insert(uid.to_owned(), facts);
        } else {
            self.released.remove(uid);
        }
    }

    /// A pod of this node has its network from now on.
    pub fn admit(&mut self, uid: &str, facts: PodFacts) {
        self.dirty.insert(uid.to_owned());
        self.released.remove(uid);
        self.adopted.remove(uid);
        for address in &facts.addresses {
            self.here.insert(*address, uid.to_owned());
            // Of others that are said to have it the object has yet to follow.
            self.dirty.extend(self.said.get(address).into_iter().flatten().cloned());
        }
        self.admitted.insert(uid.to_owned(), facts);
    }

    /// A pod's network is going away.
    pub fn release(&mut self, uid: &str) {
        self.dirty.insert(uid.to_owned());
        let admitted = self.admitted.remove(uid).map(|pod| pod.addresses);
        for address in admitted.or(self.adopted.remove(uid)).into_iter().flatten() {
            if self.here.get(&address).is_some_and(|holder| holder == uid) {
                self.here.remove(&address);
            }
        }
        if self.pods.contains_key(uid) {
            self.released.insert(uid.to_owned());
        }
    }

    /// Forgets what only the watches tell, when nobody needs it.
    pub fn forget_others(&mut self) {
        self.dirty.extend(self.pods.keys().cloned());
        self.pods.clear();
        self.said.clear();
        self.released.clear();
        self.namespaces.clear();
    }

    /// What is known of a pod, with the addresses that it has now; nothing of one that has none.
    fn facts(&self, uid: &str) -> Option<PodFacts> {
        let admitted = self.admitted.get(uid);
        let mut facts = self.pods.get(uid).or(admitted)?.clone();
        if let Some(here) = admitted {
            (facts.addresses, facts.local) = (here.addresses.clone(), here.local);
        } else if let Some(adopted) = self.adopted.get(uid) {
            (facts.addresses, facts.local) = (adopted.clone(), true);
        } else if self.released.contains(uid) {
            return None;
        }
        // Of two, the one whose network is there has the address: the other's object has yet to follow.
        facts.addresses.retain(|address| self.here.get(address).is_none_or(|holder| holder == uid));
        (!facts.addresses.is_empty()).then_some(facts)
    }

    /// What has changed since the last time, in an order in which it can be carried out.
    pub fn changes(&mut self) -> Vec<PolicyChange> {
        let mut changes = Vec::new();
        let new_rules = std::mem::take(&mut self.new_rules);
        let mut dirty = std::mem::take(&mut self.dirty);
        let obsolete = if new_rules { self.renew_groups(&mut changes) } else { Vec::new() };
        self.renew_memberships(&dirty, &mut changes);
        if new_rules {
            dirty.extend(self.pods.keys().chain(self.admitted.keys()).cloned());
        }
        self.renew_isolation(dirty, &mut changes);
        changes.extend(obsolete.into_iter().map(PolicyChange::Forget));
        changes
    }

    fn renew_memberships(&mut self, dirty: &HashSet<String>, changes: &mut Vec<PolicyChange>) {
        let mut touched: BTreeMap<(GroupId, Member), bool> = BTreeMap::new();
        for uid in dirty {
            let now = self.memberships_of(uid);
            let before = self.memberships.remove(uid).unwrap_or_default();
            for (membership, more) in before
                .difference(&now)
                .map(|gone| (*gone, false))
                .chain(now.difference(&before).map(|come| (*come, true)))
            {
                let count = self.members.entry(membership).or_default();
                touched.entry(membership).or_insert(*count > 0);
                *count = if more { *count + 1 } else { count.saturating_sub(1) };
            }
            if !now.is_empty() {
                self.memberships.insert(uid.clone(), now);
            }
        }
        for (membership, there) in touched {
            let remains = self.members.get(&membership).is_some_and(|count| *count > 0);
            if !remains {
                self.members.remove(&membership);
            }
            if remains != there {
                changes.push(PolicyChange::Member(membership.0, membership.1, remains));
            }
        }
    }

    fn renew_isolation(&mut self, dirty: HashSet<String>, changes: &mut Vec<PolicyChange>) {
        let (mut lifted, mut isolated) = (Vec::new(), Vec::new());
        for uid in dirty {
            let facts = self.facts(&uid).filter(|facts| facts.local);
            let now = facts.as_ref().map(|facts| facts.addresses.clone()).unwrap_or_default();
            for address in &now {
                self.holders.insert(*address, uid.clone());
            }
            let before = if now.is_empty() {
                self.addresses.remove(&uid)
            } else {
                self.addresses.insert(uid.clone(), now.clone())
            };
            lifted.extend(before.into_iter().flatten().filter(|was| !now.contains(was)).map(|was| (was, uid.clone())));
            let Some(facts) = facts else { continue };
            for direction in Direction::BOTH {
                let rules = self.rules(direction, &facts);
                isolated.extend(now.iter().map(|address| (direction, *address, rules.clone())));
            }
        }
        for (address, uid) in lifted {
            // Unless it is another's by now.
            if self.holders.get(&address) == Some(&uid) {
                self.holders.remove(&address);
                isolated.extend(Direction::BOTH.map(|direction| (direction, address, None)));
            }
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
        if !obsolete.is_empty() {
            for of_pod in self.memberships.values_mut() {
                of_pod.retain(|(group, _)| !obsolete.contains(group));
            }
            self.members.retain(|(group, _), _| !obsolete.contains(group));
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
                let Some(facts) = self.facts(uid) else { continue };
                for member in group.chooses.members(&facts, &self.namespaces) {
                    members.insert(member);
                    if self.memberships.entry(uid.clone()).or_default().insert((group.id, member)) {
                        *self.members.entry((group.id, member)).or_default() += 1;
                    }
                }
            }
            changes.push(PolicyChange::Define(group.id, members));
            self.groups.insert(choice, group);
        }
        obsolete
    }

    fn memberships_of(&self, uid: &str) -> HashSet<(GroupId, Member)> {
        let Some(facts) = self.facts(uid) else { return HashSet::new() };
        self.groups
            .values()
            .flat_map(|group| {
                let members = group.chooses.members(&facts, &self.namespaces);
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
            addresses: vec![[10, 0, 0, last].into()],
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
        model.set_pod("a", Some(PodFacts { addresses: Vec::new(), ..pod("n", "web", 1) }));
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
    fn an_address_that_another_has_already_stays_his_when_the_first_one_goes() {
        let mut model = Model::default();
        model.set_policy(key("p"), Some(from_app("web")));
        // As the API has them after the machine was started anew: addresses of another life.
        model.set_pod("a", Some(pod("n", "web", 1)));
        model.set_pod("b", Some(pod("n", "web", 2)));
        model.changes();
        model.admit("b", pod("n", "web", 1));
        model.changes();
        model.set_pod("b", Some(pod("n", "web", 1)));
        model.changes();
        model.admit("a", pod("n", "web", 2));
        let changes = model.changes();
        let takes_from_b = |change: &PolicyChange| match change {
            PolicyChange::Isolate(_, address, None) | PolicyChange::Member(_, Member::Pod(address), false) => {
                *address == IpAddr::from([10, 0, 0, 1])
            }
            _ => false,
        };
        assert!(!changes.iter().any(takes_from_b), "{changes:?}");
        model.release("a");
        model.set_pod("a", None);
        let changes = model.changes();
        assert!(
            matches!(&changes[..], [PolicyChange::Member(_, _, false), PolicyChange::Isolate(_, _, None)]),
            "{changes:?}"
        );
    }

    #[test]
    fn a_pod_of_an_earlier_run_has_its_policies_by_the_address_that_it_has() {
        let own = Addresses::from(IpAddr::from([10, 0, 0, 254]));
        let mut model = Model::new(own, vec![("a".to_owned(), "10.0.0.1,fd00::a00:1".parse().unwrap())]);
        model.set_policy(key("p"), Some(policy(json!({"podSelector": {}}))));
        model.set_pod("a", Some(PodFacts { addresses: Vec::new(), ..pod("n", "web", 1) }));
        let isolated =
            model.changes().iter().filter(|change| matches!(change, PolicyChange::Isolate(_, _, Some(_)))).count();
        assert_eq!(isolated, 2, "by both of its addresses, which the API doesn't know yet");
        model.release("a");
        assert_eq!(model.changes().len(), 2);
    }

    #[test]
    fn names_may_be_asked_where_a_policy_lets_the_clusters_dns_be_asked() {
        let mut model = Model::new(IpAddr::from([10, 0, 0, 254]).into(), Vec::new());
        model.set_namespace(
            "kube-system",
            Some([("kubernetes.io/metadata.name".to_owned(), "kube-system".to_owned())].into()),
        );
        let to = json!([{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
            "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}]);
        let spec = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": to, "ports": [{"port": 53, "protocol": "UDP"}]}]});
        model.set_policy(key("p"), Some(policy(spec)));
        let changes = model.changes();
        let PolicyChange::Define(_, members) = &changes[0] else { panic!("{changes:?}") };
        assert_eq!(*members, HashSet::from([Member::Pod([10, 0, 0, 254].into())]));
        assert_eq!(changes.len(), 1, "it is no pod that is held to policies itself");
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
