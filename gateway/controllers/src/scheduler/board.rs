//! Who is where: the pods of each node, those that are being bound at this moment included, and those for which a place
//! is being cleared.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ContainerPort, Pod};

use crate::informer::Key;
use crate::requests::Requests;

/// A pod on a node.
#[derive(Clone)]
pub(super) struct Placed {
    pub(super) pod: Arc<Pod>,
    pub(super) requests: Requests,
}

/// What is on one node.
#[derive(Clone, Default)]
pub(super) struct OnNode {
    pub(super) taken: Requests,
    pub(super) pods: BTreeMap<Key, Placed>,
}

/// A place that is being cleared for a pod.
struct Nominated {
    node: String,
    requests: Requests,
    priority: i32,
}

#[derive(Default)]
pub(super) struct Board {
    places: HashMap<Key, String>,
    nodes: BTreeMap<String, OnNode>,
    nominated: HashMap<Key, Nominated>,
}

impl Board {
    /// The pod is on this node from now on. Whether it takes less of it than before: it was resized.
    pub(super) fn place(&mut self, key: &Key, pod: Arc<Pod>, node: &str) -> bool {
        let requests = Requests::of(&pod);
        let before = self.nodes.get(node).and_then(|on_node| on_node.pods.get(key));
        let shrunk = before
            .is_some_and(|placed| placed.requests.iter().any(|(resource, amount)| requests.amount(resource) < amount));
        self.remove(key, None);
        let on_node = self.nodes.entry(node.to_owned()).or_default();
        on_node.taken += &requests;
        on_node.pods.insert(key.clone(), Placed { pod, requests });
        self.places.insert(key.clone(), node.to_owned());
        self.nominated.remove(key);
        shrunk
    }

    /// Gives back what a pod took; only if it still is the pod of this uid, where one is given. Whether it had taken
    /// anything.
    pub(super) fn remove(&mut self, key: &Key, uid: Option<&str>) -> bool {
        let Some(on_node) = self.places.get(key).and_then(|node| self.nodes.get_mut(node)) else { return false };
        let same = |placed: &Placed| uid.is_none() || placed.pod.metadata.uid.as_deref() == uid;
        if !on_node.pods.get(key).is_some_and(same) {
            return false;
        }
        if let Some(placed) = on_node.pods.remove(key) {
            on_node.taken -= &placed.requests;
        }
        self.places.remove(key);
        true
    }

    /// The node that this very pod is placed on.
    pub(super) fn place_of(&self, key: &Key, uid: Option<&String>) -> Option<String> {
        let node = self.places.get(key)?;
        let placed = self.nodes.get(node)?.pods.get(key)?;
        (placed.pod.metadata.uid.as_ref() == uid).then(|| node.clone())
    }

    pub(super) fn nominate(&mut self, key: &Key, node: &str, requests: Requests, priority: i32) {
        self.nominated.insert(key.clone(), Nominated { node: node.to_owned(), requests, priority });
    }

    pub(super) fn forget_nomination(&mut self, key: &Key) {
        self.nominated.remove(key);
    }

    pub(super) fn on(&self, node: &str) -> Option<&OnNode> {
        self.nodes.get(node)
    }

    /// All pods with their node, without those in `gone`.
    pub(super) fn pods<'a>(&'a self, gone: &'a HashSet<Key>) -> impl Iterator<Item = (&'a str, &'a Arc<Pod>)> {
        self.nodes.iter().flat_map(move |(node, on_node)| {
            let there = on_node.pods.iter().filter(|(key, _)| !gone.contains(key));
            there.map(move |(_, placed)| (node.as_str(), &placed.pod))
        })
    }

    /// What is taken of a node for a pod of this priority: places that are cleared for others of at least this priority
    /// are as good as taken, what pods in `gone` have is free.
    pub(super) fn taken(&self, node: &str, key: &Key, priority: i32, gone: &HashSet<Key>) -> Requests {
        let mut taken = Requests::default();
        if let Some(on_node) = self.nodes.get(node) {
            taken += &on_node.taken;
            for key in gone {
                if let Some(placed) = on_node.pods.get(key) {
                    taken -= &placed.requests;
                }
            }
        }
        let others = self.nominated.iter().filter(|(other, _)| *other != key);
        for (_, other) in others.filter(|(_, other)| other.node == node && other.priority >= priority) {
            taken += &other.requests;
        }
        taken
    }

    /// The host's ports that are taken on a node: address, protocol, number.
    pub(super) fn host_ports(&self, node: &str, gone: &HashSet<Key>) -> Vec<HostPort> {
        let pods = self.nodes.get(node).into_iter().flat_map(|on_node| &on_node.pods);
        pods.filter(|(key, _)| !gone.contains(key)).flat_map(|(_, placed)| host_ports(&placed.pod)).collect()
    }
}

/// Address, protocol and number of a port of the host.
pub(super) type HostPort = (String, String, i32);

/// The ports of the host that a pod wants.
pub(super) fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let wanted = |port: &ContainerPort| {
        let number = port.host_port.filter(|number| *number > 0)?;
        let address = port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".to_owned());
        Some((address, port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()), number))
    };
    ports.filter_map(wanted).collect()
}

/// Whether two ports of the host are one.
pub(super) fn collide(one: &HostPort, other: &HostPort) -> bool {
    let any = |address: &str| address == "0.0.0.0" || address == "::";
    one.1 == other.1 && one.2 == other.2 && (one.0 == other.0 || any(&one.0) || any(&other.0))
}

/// How important a pod is.
pub(super) fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_given_back_once() {
        let (mut board, key) = (Board::default(), Key::new("n", "p"));
        let mut pod = Pod::default();
        pod.metadata.uid = Some("uid".to_owned());
        board.place(&key, Arc::new(pod), "node");
        assert!(!board.remove(&key, Some("another")));
        assert!(board.remove(&key, Some("uid")));
        assert_eq!(board.on("node").unwrap().taken.amount("pods"), 0);
        assert!(!board.remove(&key, Some("uid")));
    }

    #[test]
    fn a_place_that_is_cleared_is_taken_for_the_less_important_alone() {
        let mut board = Board::default();
        let requests = Requests::of(&Pod::default());
        board.nominate(&Key::new("n", "vip"), "node", requests.clone(), 10);
        let none = HashSet::new();
        assert_eq!(board.taken("node", &Key::new("n", "p"), 5, &none), requests);
        assert_eq!(board.taken("node", &Key::new("n", "p"), 11, &none), Requests::default());
        assert_eq!(board.taken("node", &Key::new("n", "vip"), 10, &none), Requests::default());
    }

    #[test]
    fn a_port_of_every_address_collides_with_that_of_one() {
        let port = |address: &str, number| (address.to_owned(), "TCP".to_owned(), number);
        assert!(collide(&port("0.0.0.0", 80), &port("10.0.0.1", 80)));
        assert!(!collide(&port("10.0.0.2", 80), &port("10.0.0.1", 80)));
        assert!(!collide(&port("0.0.0.0", 80), &port("0.0.0.0", 81)));
    }
}
