//! Who is where: the pods of each node, those that are being bound at this moment included, and those for which a place
//! is being cleared.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use carob_api::host_port::{HostPort, host_ports};
use k8s_openapi::api::core::v1::Pod;

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

    /// The host's ports that are taken on a node.
    pub(super) fn host_ports(&self, node: &str, gone: &HashSet<Key>) -> Vec<HostPort> {
        let pods = self.nodes.get(node).into_iter().flat_map(|on_node| &on_node.pods);
        pods.filter(|(key, _)| !gone.contains(key))
            .filter_map(|(_, placed)| placed.pod.spec.as_ref())
            .flat_map(host_ports)
            .collect()
    }
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
}
