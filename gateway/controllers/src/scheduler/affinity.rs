//! Affinity and anti-affinity between pods.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use carob_api::selector::LabelSelector;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, PodAffinityTerm};
use serde_json::{Value, json};

use super::board::Board;
use crate::informer::{Informer, Key};

/// A place: a topology key and the value that a node has for it.
type Place = (String, String);

/// A term in a form that can be asked.
struct Term {
    selector: Option<LabelSelector>,
    namespaces: HashSet<String>,
    everywhere: bool,
    topology: String,
}

/// What the pods that are there mean for one that is to come.
pub(super) struct Affinities {
    /// Places that pods which are there keep it from.
    forbidden: HashSet<Place>,
    affinity: Vec<Term>,
    /// For each place how many pods match all affinity terms.
    together: HashMap<Place, usize>,
    /// Whether the pod itself matches all its affinity terms.
    is_first: bool,
    anti: Vec<Term>,
    /// For each anti-affinity term the places with pods that match it.
    apart: Vec<HashSet<Place>>,
    /// What preferences make of each place.
    preferred: HashMap<Place, i64>,
}

pub(super) const AFFINITY: &str = "node(s) didn't match pod affinity rules";
pub(super) const ANTI_AFFINITY: &str = "node(s) didn't match pod anti-affinity rules";
pub(super) const EXISTING: &str = "node(s) didn't satisfy existing pods anti-affinity rules";

impl Term {
    fn read(owner: &Pod, term: &PodAffinityTerm, namespaces: &Informer<Namespace>) -> Self {
        let mut selector = term.label_selector.clone();
        let labels = owner.metadata.labels.as_ref();
        for (keys, operator) in [(&term.match_label_keys, "In"), (&term.mismatch_label_keys, "NotIn")] {
            for key in keys.iter().flatten() {
                let (Some(selector), Some(value)) = (&mut selector, labels.and_then(|labels| labels.get(key))) else {
                    continue;
                };
                selector.match_expressions.get_or_insert_default().push(
                    k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement {
                        key: key.clone(),
                        operator: operator.to_owned(),
                        values: Some(vec![value.clone()]),
                    },
                );
            }
        }
        let mut names: HashSet<String> = term.namespaces.iter().flatten().cloned().collect();
        let mut everywhere = false;
        if let Some(written) = &term.namespace_selector {
            match LabelSelector::from_object(&json!(written)) {
                Ok(selector) if selector.is_everything() => everywhere = true,
                Ok(selector) => names.extend(
                    namespaces
                        .list(|namespace| selector.matches(Some(&json!(namespace.metadata.labels))))
                        .iter()
                        .filter_map(|namespace| namespace.metadata.name.clone()),
                ),
                Err(_) => {}
            }
        } else if names.is_empty() {
            names.insert(owner.metadata.namespace.clone().unwrap_or_default());
        }
        let selector = selector.and_then(|written| LabelSelector::from_object(&json!(written)).ok());
        Self { selector, namespaces: names, everywhere, topology: term.topology_key.clone() }
    }

    fn matches(&self, pod: &Pod, labels: &Value) -> bool {
        let here =
            self.everywhere || pod.metadata.namespace.as_ref().is_some_and(|name| self.namespaces.contains(name));
        here && self.selector.as_ref().is_some_and(|selector| selector.matches(Some(labels)))
    }

    fn place(&self, node: &Node) -> Option<Place> {
        let value = node.metadata.labels.as_ref()?.get(&self.topology)?;
        Some((self.topology.clone(), value.clone()))
    }
}

fn required(pod: &Pod, anti: bool) -> impl Iterator<Item = &PodAffinityTerm> {
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
    let terms = affinity.and_then(|affinity| {
        if anti {
            affinity.pod_anti_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.as_ref()
        } else {
            affinity.pod_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.as_ref()
        }
    });
    terms.into_iter().flatten()
}

/// Preferred terms with their weight: positive for affinity, negative for anti-affinity.
fn preferred(pod: &Pod) -> Vec<(i64, &PodAffinityTerm)> {
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
    let with = affinity.and_then(|affinity| affinity.pod_affinity.as_ref());
    let with = with.and_then(|with| with.preferred_during_scheduling_ignored_during_execution.as_ref());
    let without = affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref());
    let without = without.and_then(|without| without.preferred_during_scheduling_ignored_during_execution.as_ref());
    let with = with.into_iter().flatten().map(|term| (i64::from(term.weight), &term.pod_affinity_term));
    let without = without.into_iter().flatten().map(|term| (-i64::from(term.weight), &term.pod_affinity_term));
    with.chain(without).collect()
}

impl Affinities {
    pub(super) fn of(
        pod: &Pod,
        board: &Board,
        nodes: &BTreeMap<&str, &Arc<Node>>,
        gone: &HashSet<Key>,
        namespaces: &Informer<Namespace>,
    ) -> Self {
        let read = |owner: &Pod, term: &PodAffinityTerm| Term::read(owner, term, namespaces);
        let labels = json!(pod.metadata.labels);
        let affinity: Vec<Term> = required(pod, false).map(|term| read(pod, term)).collect();
        let anti: Vec<Term> = required(pod, true).map(|term| read(pod, term)).collect();
        let wishes: Vec<(i64, Term)> =
            preferred(pod).into_iter().map(|(weight, term)| (weight, read(pod, term))).collect();
        let is_first = affinity.iter().all(|term| term.matches(pod, &labels));
        let mut this = Self {
            forbidden: HashSet::new(),
            together: HashMap::new(),
            is_first,
            apart: vec![HashSet::new(); anti.len()],
            preferred: HashMap::new(),
            affinity,
            anti,
        };
        let asks = !this.affinity.is_empty() || !this.anti.is_empty() || !wishes.is_empty();
        for (node, there) in board.pods(gone) {
            let Some(node) = nodes.get(node) else { continue };
            for term in required(there, true).map(|term| read(there, term)) {
                if term.matches(pod, &labels) {
                    this.forbidden.extend(term.place(node));
                }
            }
            for (weight, term) in preferred(there) {
                let term = read(there, term);
                if let Some(place) = term.place(node).filter(|_| term.matches(pod, &labels)) {
                    *this.preferred.entry(place).or_default() += weight;
                }
            }
            if !asks {
                continue;
            }
            let its_labels = json!(there.metadata.labels);
            if !this.affinity.is_empty() && this.affinity.iter().all(|term| term.matches(there, &its_labels)) {
                for place in this.affinity.iter().filter_map(|term| term.place(node)) {
                    *this.together.entry(place).or_default() += 1;
                }
            }
            for (term, places) in this.anti.iter().zip(&mut this.apart) {
                if term.matches(there, &its_labels) {
                    places.extend(term.place(node));
                }
            }
            for (weight, term) in &wishes {
                if let Some(place) = term.place(node).filter(|_| term.matches(there, &its_labels)) {
                    *this.preferred.entry(place).or_default() += weight;
                }
            }
        }
        this
    }

    /// What speaks against a node.
    pub(super) fn refuse(&self, node: &Node) -> Option<&'static str> {
        let places: Option<Vec<Place>> = self.affinity.iter().map(|term| term.place(node)).collect();
        let with_them = match places {
            None => false,
            Some(places) if places.iter().all(|place| self.together.contains_key(place)) => true,
            // The first of a group that wants to be together may go anywhere.
            Some(_) => self.together.is_empty() && self.is_first,
        };
        if !with_them {
            return Some(AFFINITY);
        }
        let beside =
            |(term, places): (&Term, &HashSet<Place>)| term.place(node).is_some_and(|place| places.contains(&place));
        if self.anti.iter().zip(&self.apart).any(beside) {
            return Some(ANTI_AFFINITY);
        }
        let labels = node.metadata.labels.iter().flatten();
        let mut places = labels.map(|(key, value)| (key.clone(), value.clone()));
        (!self.forbidden.is_empty() && places.any(|place| self.forbidden.contains(&place))).then_some(EXISTING)
    }

    /// How much a node is preferred.
    pub(super) fn preference(&self, node: &Node) -> i64 {
        if self.preferred.is_empty() {
            return 0;
        }
        let labels = node.metadata.labels.iter().flatten();
        labels.filter_map(|(key, value)| self.preferred.get(&(key.clone(), value.clone()))).sum()
    }
}
