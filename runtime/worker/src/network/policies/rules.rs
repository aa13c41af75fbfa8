//! A NetworkPolicy as it is carried out: whom it is about, and what it lets through.

use super::super::frontends::protocol;
use carob_network::{IpNet, Protocol, block_without, merged, next_address};
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::core::{Selector, SelectorExt};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Labels of an object.
pub(super) type Labels = BTreeMap<String, String>;

/// A selector that can be compared. One that cannot be read chooses nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Chosen(String);

impl Chosen {
    fn new(selector: &LabelSelector) -> Self {
        Self(serde_json::to_string(selector).unwrap_or_default())
    }

    /// The selector, to match many objects with.
    pub fn compile(&self) -> Option<Selector> {
        Selector::try_from(serde_json::from_str::<LabelSelector>(&self.0).ok()?).ok()
    }
}

/// A choice of pods, or of ports of pods, that is kept up with as they come and go.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Choice {
    /// Pods of one namespace.
    Here { namespace: String, pods: Chosen },
    /// Pods of namespaces.
    Anywhere { namespaces: Chosen, pods: Option<Chosen> },
    /// What all pods call so.
    Port { protocol: u8, name: String },
}

/// With whom a connection may be.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Peer {
    Anybody,
    Pods(Choice),
    Blocks(Vec<(IpAddr, IpAddr)>),
}

/// At which ports.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Port {
    Any,
    Ranges(Vec<(Protocol, u16, u16)>),
    Named(Choice),
}

/// What one rule of a policy lets through: any of these peers at any of these ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub peers: Vec<Peer>,
    pub ports: Vec<Port>,
}

/// A policy. A direction that isn't there is not the policy's matter.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Policy {
    pub pods: Option<Selector>,
    pub ingress: Option<Vec<Rule>>,
    pub egress: Option<Vec<Rule>>,
}

impl Policy {
    pub fn of(object: &NetworkPolicy) -> Self {
        let spec = object.spec.clone().unwrap_or_default();
        let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
        let types = spec.policy_types.clone().unwrap_or_default();
        let names = |name: &str| types.iter().any(|kind| kind == name);
        let ingress = types.is_empty() || names("Ingress");
        let egress = if types.is_empty() { spec.egress.is_some() } else { names("Egress") };
        let rule = |peers: Option<&Vec<NetworkPolicyPeer>>, ports: Option<&Vec<NetworkPolicyPort>>| Rule {
            peers: peers_of(peers.map_or(&[], Vec::as_slice), namespace),
            ports: ports_of(ports.map_or(&[], Vec::as_slice)),
        };
        let inwards = |all: &NetworkPolicyIngressRule| rule(all.from.as_ref(), all.ports.as_ref());
        let outwards = |all: &NetworkPolicyEgressRule| rule(all.to.as_ref(), all.ports.as_ref());
        Self {
            pods: Selector::try_from(spec.pod_selector.unwrap_or_default()).ok(),
            ingress: ingress.then(|| spec.ingress.iter().flatten().map(inwards).collect()),
            egress: egress.then(|| spec.egress.iter().flatten().map(outwards).collect()),
        }
    }

    /// Whether it is about a pod of its namespace.
    pub fn is_about(&self, labels: &Labels) -> bool {
        self.pods.as_ref().is_some_and(|selector| selector.matches(labels))
    }

    /// All choices that its rules name.
    pub fn choices(&self) -> impl Iterator<Item = &Choice> {
        self.ingress.iter().chain(&self.egress).flatten().flat_map(|rule| {
            let peers = rule.peers.iter().filter_map(|peer| match peer {
                Peer::Pods(choice) => Some(choice),
                _ => None,
            });
            let ports = rule.ports.iter().filter_map(|port| match port {
                Port::Named(choice) => Some(choice),
                _ => None,
            });
            peers.chain(ports)
        })
    }
}

fn peers_of(peers: &[NetworkPolicyPeer], namespace: &str) -> Vec<Peer> {
    if peers.is_empty() {
        return vec![Peer::Anybody];
    }
    let mut blocks = Vec::new();
    let mut all = Vec::new();
    for peer in peers {
        let pods = peer.pod_selector.as_ref().map(Chosen::new);
        match (&peer.ip_block, &peer.namespace_selector, pods) {
            (Some(block), ..) => {
                let except: Vec<_> = block.except.iter().flatten().filter_map(|hole| hole.parse().ok()).collect();
                let cidr = block.cidr.parse::<IpNet>();
                blocks.extend(cidr.into_iter().flat_map(|block| block_without(block, &except)));
            }
            (None, Some(namespaces), pods) => {
                all.push(Peer::Pods(Choice::Anywhere { namespaces: Chosen::new(namespaces), pods }));
            }
            (None, None, Some(pods)) => {
                all.push(Peer::Pods(Choice::Here { namespace: namespace.to_owned(), pods }));
            }
            (None, None, None) => {}
        }
    }
    if !blocks.is_empty() {
        all.push(Peer::Blocks(merged(blocks, next_address)));
    }
    all
}

fn ports_of(ports: &[NetworkPolicyPort]) -> Vec<Port> {
    if ports.is_empty() {
        return vec![Port::Any];
    }
    let mut ranges: BTreeMap<Protocol, Vec<(u16, u16)>> = BTreeMap::new();
    let mut all = Vec::new();
    for port in ports {
        let Some(protocol) = protocol(port.protocol.as_deref()) else { continue };
        let number = |number: i32| u16::try_from(number).ok();
        match &port.port {
            None => ranges.entry(protocol).or_default().push((0, u16::MAX)),
            Some(IntOrString::Int(first)) => {
                let range = number(*first).zip(number(port.end_port.unwrap_or(*first)));
                ranges.entry(protocol).or_default().extend(range);
            }
            Some(IntOrString::String(name)) => {
                all.push(Port::Named(Choice::Port { protocol: protocol as u8, name: name.clone() }));
            }
        }
    }
    let ranges: Vec<_> = ranges
        .into_iter()
        .flat_map(|(protocol, ranges)| {
            let ranges = merged(ranges, |last: u16| last.checked_add(1));
            ranges.into_iter().map(move |(first, last)| (protocol, first, last))
        })
        .collect();
    if !ranges.is_empty() {
        all.push(Port::Ranges(ranges));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn policy(spec: Value) -> Policy {
        let object = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec});
        Policy::of(&serde_json::from_value(object).unwrap())
    }

    #[test]
    fn directions_follow_from_the_rules_where_they_are_not_named() {
        let cases = [
            (json!({"podSelector": {}}), (true, false)),
            (json!({"podSelector": {}, "egress": []}), (true, true)),
            (json!({"podSelector": {}, "policyTypes": ["Egress"]}), (false, true)),
            (json!({"podSelector": {}, "policyTypes": ["Ingress"], "egress": [{}]}), (true, false)),
        ];
        for (spec, expected) in cases {
            let policy = policy(spec.clone());
            assert_eq!((policy.ingress.is_some(), policy.egress.is_some()), expected, "{spec}");
        }
    }

    #[test]
    fn peers_and_ports_are_gathered() {
        let rule = json!({
            "from": [
                {"ipBlock": {"cidr": "10.0.0.0/24", "except": ["10.0.0.0/25"]}}, {"ipBlock": {"cidr": "10.0.1.0/24"}},
                {"podSelector": {"matchLabels": {"a": "b"}}}, {"namespaceSelector": {}},
            ],
            "ports": [
                {"port": 80}, {"port": 81, "endPort": 90, "protocol": "TCP"}, {"protocol": "UDP"}, {"port": "web"},
            ],
        });
        let policy = policy(json!({"podSelector": {}, "ingress": [rule, {}]}));
        let rules = policy.ingress.as_ref().unwrap();
        assert_eq!(rules[0].peers.len(), 3);
        assert_eq!(rules[0].peers[2], Peer::Blocks(vec![([10, 0, 0, 128].into(), [10, 0, 1, 255].into())]));
        assert_eq!(rules[0].ports[1], Port::Ranges(vec![(Protocol::Tcp, 80, 90), (Protocol::Udp, 0, 65_535)]));
        assert_eq!(rules[0].ports[0], Port::Named(Choice::Port { protocol: 6, name: "web".into() }));
        assert_eq!(rules[1], Rule { peers: vec![Peer::Anybody], ports: vec![Port::Any] });
        assert_eq!(policy.choices().count(), 3);
    }

    #[test]
    fn peers_of_which_none_can_be_met_are_not_everybody() {
        let rule = json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}}]});
        let policy = policy(json!({"podSelector": {}, "ingress": [rule]}));
        assert!(policy.ingress.unwrap()[0].peers.is_empty());
    }
}
