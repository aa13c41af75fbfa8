//! Who owns whom, as far as the watches have told.
//!
//! Of an object without owners that isn't waiting for its dependents only 32 bytes are kept: enough to know that a
//! reference to it is right.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ObjectMeta;

use crate::inventory::Uid;
use crate::kinds::{Kind, Kinds};

/// On an object that waits until its dependents are gone.
pub(super) const FOREGROUND: &str = "foregroundDeletion";
/// On an object that waits until its dependents have been let go.
pub(super) const ORPHAN: &str = "orphan";

/// What may have to be done about an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Task {
    /// See whether it is still wanted, or whether it waits in vain.
    Judge(Uid),
    /// Let its dependents go.
    Orphan(Uid),
}

/// An object that has owners, or that waits for its dependents.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) kind: Arc<Kind>,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) owners: Vec<Owner>,
    pub(super) deleting: bool,
    pub(super) foreground: bool,
    orphan: bool,
}

/// What of an owner reference matters from the owner's side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    uid: Uid,
    identity: u64,
    blocks: bool,
}

pub(super) struct Graph {
    kinds: Kinds,
    /// A hash of where each object that exists can be found.
    known: HashMap<Uid, u64>,
    nodes: HashMap<Uid, Node>,
    dependents: HashMap<Uid, HashSet<Uid>>,
}

impl Graph {
    pub(super) fn new(kinds: Kinds) -> Self {
        Self { kinds, known: HashMap::new(), nodes: HashMap::new(), dependents: HashMap::new() }
    }

    /// Takes in an object; tells what there may be to do because of it.
    pub(super) fn put(&mut self, kind: &Arc<Kind>, meta: &ObjectMeta) -> Vec<Task> {
        let uid = Uid::of(meta);
        let namespace = meta.namespace.clone().unwrap_or_default();
        let name = meta.name.clone().unwrap_or_default();
        self.known.insert(uid, identity(&kind.group, &kind.name, &namespace, &name));
        let owners =
            meta.owner_references.iter().flatten().map(|reference| self.owner(reference, &namespace)).collect();
        let has = |finalizer: &str| meta.finalizers.iter().flatten().any(|known| known == finalizer);
        let deleting = meta.deletion_timestamp.is_some();
        let (foreground, orphan) = (deleting && has(FOREGROUND), deleting && has(ORPHAN));
        let new = Node { kind: Arc::clone(kind), namespace, name, owners, deleting, foreground, orphan };
        let old = self.nodes.remove(&uid);
        let mut tasks = Vec::new();

        let former = old.as_ref().map(|old| old.owners.clone()).unwrap_or_default();
        for owner in &former {
            let now = new.owners.iter().find(|known| known.uid == owner.uid);
            if now.is_none() {
                self.unlink(owner.uid, uid);
            }
            if owner.blocks && now.is_none_or(|now| !now.blocks) && self.waits(owner.uid) {
                tasks.push(Task::Judge(owner.uid));
            }
        }
        for owner in &new.owners {
            self.dependents.entry(owner.uid).or_default().insert(uid);
            let doubtful = !self.is_at(owner) || self.waits(owner.uid);
            if !former.contains(owner) && doubtful {
                tasks.push(Task::Judge(uid));
            }
        }
        if new.foreground && !old.as_ref().is_some_and(|old| old.foreground) {
            tasks.extend(self.dependents_of(uid).into_iter().map(Task::Judge));
            tasks.push(Task::Judge(uid));
        }
        if new.orphan && !old.as_ref().is_some_and(|old| old.orphan) {
            tasks.push(Task::Orphan(uid));
        }
        if !new.owners.is_empty() || new.foreground || new.orphan {
            self.nodes.insert(uid, new);
        }
        tasks
    }

    /// Takes in that an object is gone; tells what there may be to do because of it.
    pub(super) fn remove(&mut self, uid: Uid) -> Vec<Task> {
        self.known.remove(&uid);
        let mut tasks: Vec<Task> = self.dependents_of(uid).into_iter().map(Task::Judge).collect();
        for owner in self.nodes.remove(&uid).into_iter().flat_map(|node| node.owners) {
            self.unlink(owner.uid, uid);
            if self.waits(owner.uid) {
                tasks.push(Task::Judge(owner.uid));
            }
        }
        tasks
    }

    pub(super) fn node(&self, uid: Uid) -> Option<&Node> {
        self.nodes.get(&uid)
    }

    /// Whether the object waits until its dependents are gone.
    pub(super) fn waits(&self, uid: Uid) -> bool {
        self.nodes.get(&uid).is_some_and(|node| node.foreground)
    }

    /// Whether there is an object of this uid, wherever.
    pub(super) fn exists(&self, uid: Uid) -> bool {
        self.known.contains_key(&uid)
    }

    /// Whether an owner reference, on an object of this namespace, is known to be right.
    pub(super) fn is_right(&self, reference: &OwnerReference, namespace: &str) -> bool {
        self.is_at(&self.owner(reference, namespace))
    }

    pub(super) fn dependents_of(&self, uid: Uid) -> Vec<Uid> {
        self.dependents.get(&uid).into_iter().flatten().copied().collect()
    }

    /// The dependents whose references say that the owner has to wait for them.
    pub(super) fn blocking(&self, uid: Uid) -> Vec<Uid> {
        let blocks = |dependent: &Uid| {
            let owners = self.nodes.get(dependent).map(|node| node.owners.as_slice()).unwrap_or_default();
            owners.iter().any(|owner| owner.uid == uid && owner.blocks)
        };
        self.dependents_of(uid).into_iter().filter(blocks).collect()
    }

    /// What an owner reference on an object of this namespace means.
    fn owner(&self, reference: &OwnerReference, namespace: &str) -> Owner {
        let group = group(&reference.api_version);
        let namespaced = self.kinds.get(group, &reference.kind).is_none_or(|kind| kind.namespaced);
        let namespace = if namespaced { namespace } else { "" };
        Owner {
            uid: Uid::parse(&reference.uid),
            identity: identity(group, &reference.kind, namespace, &reference.name),
            blocks: reference.block_owner_deletion == Some(true),
        }
    }

    fn is_at(&self, owner: &Owner) -> bool {
        self.known.get(&owner.uid) == Some(&owner.identity)
    }

    fn unlink(&mut self, owner: Uid, dependent: Uid) {
        if let Some(dependents) = self.dependents.get_mut(&owner) {
            dependents.remove(&dependent);
            if dependents.is_empty() {
                self.dependents.remove(&owner);
            }
        }
    }
}

/// The group in an `apiVersion`.
pub(super) fn group(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

fn identity(group: &str, kind: &str, namespace: &str, name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (group, kind, namespace, name).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn config_map() -> &'static Arc<Kind> {
        static KIND: std::sync::OnceLock<Arc<Kind>> = std::sync::OnceLock::new();
        KIND.get_or_init(|| Kinds::builtin().get("", "ConfigMap").unwrap())
    }

    // A literal object reads better as an argument by value.
    #[allow(clippy::needless_pass_by_value)]
    fn meta(name: &str, more: Value) -> ObjectMeta {
        let mut meta = json!({"name": name, "namespace": "n", "uid": name});
        json_patch::merge(&mut meta, &more);
        serde_json::from_value(meta).unwrap()
    }

    fn owned(name: &str, owner: &str, blocks: bool) -> ObjectMeta {
        meta(
            name,
            json!({"ownerReferences": [
            {"apiVersion": "v1", "kind": "ConfigMap", "name": owner, "uid": owner, "blockOwnerDeletion": blocks}]}),
        )
    }

    fn uid(name: &str) -> Uid {
        Uid::parse(name)
    }

    #[test]
    fn dependents_are_judged_when_their_owner_goes_and_only_then() {
        let mut graph = Graph::new(Kinds::builtin());
        assert_eq!(graph.put(config_map(), &meta("owner", json!({}))), []);
        assert_eq!(graph.put(config_map(), &owned("child", "owner", false)), []);
        assert_eq!(graph.remove(uid("owner")), [Task::Judge(uid("child"))]);
        assert_eq!(graph.remove(uid("child")), []);
        assert!(graph.dependents.is_empty() && graph.nodes.is_empty() && graph.known.is_empty());
    }

    #[test]
    fn a_reference_to_nobody_or_to_another_name_or_namespace_is_doubtful() {
        let mut graph = Graph::new(Kinds::builtin());
        assert_eq!(graph.put(config_map(), &owned("early", "owner", false)), [Task::Judge(uid("early"))]);
        graph.put(config_map(), &meta("owner", json!({"name": "other"})));
        assert_eq!(graph.put(config_map(), &owned("wrong-name", "owner", false)), [Task::Judge(uid("wrong-name"))]);
        graph.put(config_map(), &meta("owner", json!({"namespace": "elsewhere"})));
        assert_eq!(graph.put(config_map(), &owned("abroad", "owner", false)), [Task::Judge(uid("abroad"))]);
    }

    #[test]
    fn an_owner_that_waits_is_judged_when_a_dependent_goes_or_no_longer_blocks_it() {
        let mut graph = Graph::new(Kinds::builtin());
        let waiting = meta("owner", json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [FOREGROUND]}));
        graph.put(config_map(), &owned("a", "owner", true));
        graph.put(config_map(), &owned("b", "owner", true));
        let tasks = graph.put(config_map(), &waiting);
        assert_eq!(tasks.len(), 3);
        assert_eq!(graph.blocking(uid("owner")).len(), 2);
        assert!(graph.put(config_map(), &owned("a", "owner", false)).contains(&Task::Judge(uid("owner"))));
        assert_eq!(graph.remove(uid("b")), [Task::Judge(uid("owner"))]);
        assert_eq!(graph.blocking(uid("owner")), []);
    }

    #[test]
    fn orphaning_is_asked_for_once() {
        let mut graph = Graph::new(Kinds::builtin());
        let going = meta("owner", json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [ORPHAN]}));
        assert_eq!(graph.put(config_map(), &going), [Task::Orphan(uid("owner"))]);
        assert_eq!(graph.put(config_map(), &going), []);
    }
}
