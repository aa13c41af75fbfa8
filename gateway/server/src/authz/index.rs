//! Roles and bindings in memory, arranged by whom they are for: a decision looks up a user and the groups.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use carob_store::{Entry, Event};
use serde::Deserialize;

use super::rules::Rule;
use super::{Attributes, Why};
use crate::authn::Identity;

/// Below this everything lies that the index is made of.
pub(crate) const PREFIX: &str = "/rbac.authorization.k8s.io/";

/// All roles and bindings.
#[derive(Default)]
pub(crate) struct Index {
    cluster_roles: HashMap<String, Arc<[Rule]>>,
    /// By namespace, then name.
    roles: HashMap<String, HashMap<String, Arc<[Rule]>>>,
    everywhere: Grants,
    /// By namespace.
    within: HashMap<String, Grants>,
    /// What each binding (by its key in the store) gave, so that it can be taken back.
    bindings: HashMap<Arc<str>, Vec<Arc<Grant>>>,
}

/// Grants by subject. In the order of their bindings' names, so that reasons don't change.
#[derive(Default)]
struct Grants {
    users: HashMap<String, BTreeMap<Arc<str>, Arc<Grant>>>,
    groups: HashMap<String, BTreeMap<Arc<str>, Arc<Grant>>>,
}

/// A role given to one subject by a binding.
#[derive(Debug)]
pub(crate) struct Grant {
    binding: String,
    /// Of the binding; none for a cluster's.
    namespace: Option<String>,
    /// Whether the role is a ClusterRole.
    cluster_role: bool,
    role: String,
    subject: Subject,
}

/// Whom a role is given to.
#[derive(Debug, PartialEq, Eq)]
enum Subject {
    User(String),
    Group(String),
    ServiceAccount { namespace: String, name: String },
}

impl fmt::Display for Grant {
    /// The reason of a decision, in Kubernetes' words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { binding, namespace, cluster_role, role, subject } = self;
        match namespace {
            Some(namespace) => write!(f, "RBAC: allowed by RoleBinding \"{binding}/{namespace}\"")?,
            None => write!(f, "RBAC: allowed by ClusterRoleBinding {binding:?}")?,
        }
        write!(f, " of {} {role:?} to ", if *cluster_role { "ClusterRole" } else { "Role" })?;
        match subject {
            Subject::User(name) => write!(f, "User {name:?}"),
            Subject::Group(name) => write!(f, "Group {name:?}"),
            Subject::ServiceAccount { namespace, name } => write!(f, "ServiceAccount \"{name}/{namespace}\""),
        }
    }
}

#[derive(Deserialize)]
struct StoredRole {
    #[serde(default)]
    rules: Option<Vec<Rule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredBinding {
    role_ref: RoleRef,
    #[serde(default)]
    subjects: Option<Vec<StoredSubject>>,
}

/// Which role a binding gives.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct RoleRef {
    #[serde(default)]
    pub kind: String,
    #[serde(default)]
    pub name: String,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct StoredSubject {
    kind: String,
    name: String,
    namespace: String,
}

/// What lies under a key.
enum Place<'a> {
    ClusterRole(&'a str),
    Role(&'a str, &'a str),
    ClusterBinding(&'a str),
    Binding(&'a str, &'a str),
}

impl<'a> Place<'a> {
    fn of(key: &'a str) -> Option<Self> {
        let mut parts = key.strip_prefix(PREFIX)?.split('/');
        let (resource, first, second) = (parts.next()?, parts.next()?, parts.next());
        Some(match (resource, second) {
            ("clusterroles", None) => Self::ClusterRole(first),
            ("clusterrolebindings", None) => Self::ClusterBinding(first),
            ("roles", Some(name)) => Self::Role(first, name),
            ("rolebindings", Some(name)) => Self::Binding(first, name),
            _ => return None,
        })
    }
}

impl Index {
    /// With all of these.
    pub fn of(entries: &[Entry]) -> Self {
        let mut index = Self::default();
        for entry in entries {
            index.put(&entry.key, &entry.value);
        }
        index
    }

    /// Takes a change in.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Put { entry, .. } => self.put(&entry.key, &entry.value),
            Event::Delete { entry, .. } => self.remove(&entry.key),
        }
    }

    fn put(&mut self, key: &Arc<str>, value: &Bytes) {
        self.remove(key);
        let taken = match Place::of(key) {
            Some(Place::ClusterRole(name)) => rules(value).map(|rules| {
                self.cluster_roles.insert(name.to_owned(), rules);
            }),
            Some(Place::Role(namespace, name)) => rules(value).map(|rules| {
                self.roles.entry(namespace.to_owned()).or_default().insert(name.to_owned(), rules);
            }),
            Some(Place::ClusterBinding(name)) => self.bind(key, value, name, None),
            Some(Place::Binding(namespace, name)) => self.bind(key, value, name, Some(namespace)),
            None => return,
        };
        if let Err(error) = taken {
            tracing::error!(%key, %error, "a role or binding cannot be read and gives nobody anything");
        }
    }

    fn bind(&mut self, key: &Arc<str>, value: &Bytes, name: &str, namespace: Option<&str>) -> serde_json::Result<()> {
        let binding: StoredBinding = serde_json::from_slice(value)?;
        let mut given = Vec::new();
        for subject in binding.subjects.into_iter().flatten() {
            let subject = match subject.kind.as_str() {
                "User" => Subject::User(subject.name),
                "Group" => Subject::Group(subject.name),
                // In a RoleBinding's namespace, if it names none; a ClusterRoleBinding's must name one.
                "ServiceAccount" => {
                    let place = Some(subject.namespace).filter(|place| !place.is_empty());
                    match place.or_else(|| namespace.map(str::to_owned)) {
                        Some(namespace) => Subject::ServiceAccount { namespace, name: subject.name },
                        None => continue,
                    }
                }
                _ => continue,
            };
            let grant = Arc::new(Grant {
                binding: name.to_owned(),
                namespace: namespace.map(str::to_owned),
                cluster_role: binding.role_ref.kind == "ClusterRole",
                role: binding.role_ref.name.clone(),
                subject,
            });
            let grants = match namespace {
                Some(namespace) => self.within.entry(namespace.to_owned()).or_default(),
                None => &mut self.everywhere,
            };
            let (list, who) = grants.of(&grant.subject);
            list.entry(who).or_default().insert(key.clone(), grant.clone());
            given.push(grant);
        }
        self.bindings.insert(key.clone(), given);
        Ok(())
    }

    fn remove(&mut self, key: &str) {
        match Place::of(key) {
            Some(Place::ClusterRole(name)) => drop(self.cluster_roles.remove(name)),
            Some(Place::Role(namespace, name)) => {
                if let Some(roles) = self.roles.get_mut(namespace) {
                    roles.remove(name);
                    if roles.is_empty() {
                        self.roles.remove(namespace);
                    }
                }
            }
            Some(Place::ClusterBinding(_)) => self.unbind(key, None),
            Some(Place::Binding(namespace, _)) => self.unbind(key, Some(namespace)),
            None => {}
        }
    }

    fn unbind(&mut self, key: &str, namespace: Option<&str>) {
        for grant in self.bindings.remove(key).unwrap_or_default() {
            let grants = match namespace {
                Some(namespace) => self.within.get_mut(namespace),
                None => Some(&mut self.everywhere),
            };
            let Some(grants) = grants else { continue };
            let (list, who) = grants.of(&grant.subject);
            if let Some(kept) = list.get_mut(&who) {
                kept.remove(key);
                if kept.is_empty() {
                    list.remove(&who);
                }
            }
        }
        if let Some(namespace) = namespace
            && self.within.get(namespace).is_some_and(|grants| grants.users.is_empty() && grants.groups.is_empty())
        {
            self.within.remove(namespace);
        }
    }

    /// Whether some role allows this; why, or what went wrong on the way to a refusal.
    pub fn decide(&self, identity: &Identity, wanted: &Attributes) -> (bool, Why) {
        let mut dangling: Vec<String> = Vec::new();
        for grant in self.grants(identity, &wanted.namespace) {
            match self.rules(grant) {
                Some(rules) if rules.iter().any(|rule| rule.allows(wanted)) => {
                    return (true, Why::Granted(Arc::clone(grant)));
                }
                Some(_) => {}
                None => {
                    let text = grant.missing();
                    if !dangling.contains(&text) {
                        dangling.push(text);
                    }
                }
            }
        }
        let why = match dangling.as_slice() {
            [] => return (false, Why::Unsaid),
            [one] => format!("RBAC: {one}"),
            several => format!("RBAC: [{}]", several.join(", ")),
        };
        (false, Why::Text(why))
    }

    /// Everything that somebody may do in a namespace (and, beside it, everywhere), and the roles that are missing.
    pub fn rules_for(&self, identity: &Identity, namespace: &str) -> (Vec<Rule>, Vec<String>) {
        let (mut held, mut errors) = (Vec::new(), Vec::new());
        for grant in self.grants(identity, namespace) {
            match self.rules(grant) {
                Some(rules) => held.extend_from_slice(rules),
                None => errors.push(grant.missing()),
            }
        }
        (held, errors)
    }

    /// The rules of the role that a binding in this namespace refers to.
    pub fn referred(&self, role: &RoleRef, namespace: &str) -> Option<&[Rule]> {
        let rules = match role.kind.as_str() {
            "ClusterRole" => self.cluster_roles.get(&role.name),
            "Role" => self.roles.get(namespace).and_then(|roles| roles.get(&role.name)),
            _ => None,
        };
        rules.map(AsRef::as_ref)
    }

    fn rules(&self, grant: &Grant) -> Option<&[Rule]> {
        let rules = if grant.cluster_role {
            self.cluster_roles.get(&grant.role)
        } else {
            let namespace = grant.namespace.as_deref().unwrap_or_default();
            self.roles.get(namespace).and_then(|roles| roles.get(&grant.role))
        };
        rules.map(AsRef::as_ref)
    }

    /// What somebody was given: everywhere first, then in the namespace.
    fn grants<'a>(&'a self, identity: &'a Identity, namespace: &str) -> impl Iterator<Item = &'a Arc<Grant>> {
        let here = self.within.get(namespace).filter(|_| !namespace.is_empty());
        std::iter::once(&self.everywhere).chain(here).flat_map(move |grants| {
            let of_user = grants.users.get(&identity.user);
            let of_groups = identity.groups.iter().filter_map(|group| grants.groups.get(group));
            of_user.into_iter().chain(of_groups).flat_map(BTreeMap::values)
        })
    }
}

type ByName = HashMap<String, BTreeMap<Arc<str>, Arc<Grant>>>;

impl Grants {
    /// The list that a subject is in, and its name there.
    fn of(&mut self, subject: &Subject) -> (&mut ByName, String) {
        match subject {
            Subject::User(name) => (&mut self.users, name.clone()),
            Subject::Group(name) => (&mut self.groups, name.clone()),
            Subject::ServiceAccount { namespace, name } => {
                (&mut self.users, format!("system:serviceaccount:{namespace}:{name}"))
            }
        }
    }
}

impl Grant {
    fn missing(&self) -> String {
        let resource = if self.cluster_role { "clusterrole" } else { "role" };
        format!("{resource}.rbac.authorization.k8s.io {:?} not found", self.role)
    }
}

fn rules(value: &Bytes) -> serde_json::Result<Arc<[Rule]>> {
    let role: StoredRole = serde_json::from_slice(value)?;
    Ok(role.rules.unwrap_or_default().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn put(index: &mut Index, path: &str, object: &Value) {
        index.put(&format!("{PREFIX}{path}").into(), &object.to_string().into());
    }

    fn role(resource: &str) -> Value {
        json!({"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": [resource]}]})
    }

    fn binding(kind: &str, role: &str, subject: &Value) -> Value {
        json!({"roleRef": {"kind": kind, "name": role}, "subjects": [subject]})
    }

    fn get(resource: &str, namespace: &str) -> Attributes {
        Attributes {
            verb: "get".into(),
            resource: resource.into(),
            namespace: namespace.into(),
            ..Attributes::default()
        }
    }

    fn alice() -> Identity {
        Identity::authenticated("alice", ["dev".to_owned()])
    }

    #[test]
    fn a_role_binding_gives_only_in_its_namespace_also_a_cluster_role() {
        let mut index = Index::default();
        put(&mut index, "clusterroles/pods", &role("pods"));
        put(&mut index, "rolebindings/a/b", &binding("ClusterRole", "pods", &json!({"kind": "Group", "name": "dev"})));
        let (allowed, why) = index.decide(&alice(), &get("pods", "a"));
        assert!(allowed);
        assert_eq!(why.to_string(), r#"RBAC: allowed by RoleBinding "b/a" of ClusterRole "pods" to Group "dev""#);
        assert!(!index.decide(&alice(), &get("pods", "other")).0);
        assert!(!index.decide(&alice(), &get("pods", "")).0);
        assert!(!index.decide(&Identity::authenticated("dev", []), &get("pods", "a")).0, "a group is no user");
    }

    #[test]
    fn what_is_taken_back_is_gone() {
        let mut index = Index::default();
        put(&mut index, "roles/a/r", &role("pods"));
        let account = json!({"kind": "ServiceAccount", "name": "s", "namespace": "x"});
        put(&mut index, "rolebindings/a/b", &binding("Role", "r", &account));
        let who = Identity::authenticated("system:serviceaccount:x:s", []);
        assert!(index.decide(&who, &get("pods", "a")).0);
        // The same binding for somebody else.
        put(&mut index, "rolebindings/a/b", &binding("Role", "r", &json!({"kind": "User", "name": "alice"})));
        assert!(!index.decide(&who, &get("pods", "a")).0);
        assert!(index.decide(&alice(), &get("pods", "a")).0);
        put(&mut index, "roles/a/r", &role("secrets"));
        assert!(!index.decide(&alice(), &get("pods", "a")).0);
        index.remove(&format!("{PREFIX}rolebindings/a/b"));
        assert!(!index.decide(&alice(), &get("secrets", "a")).0);
        assert!(index.within.is_empty() && index.bindings.is_empty());
    }

    #[test]
    fn a_role_that_is_missing_is_named() {
        let mut index = Index::default();
        put(
            &mut index,
            "clusterrolebindings/b",
            &binding("ClusterRole", "x", &json!({"kind": "User", "name": "alice"})),
        );
        let (allowed, why) = index.decide(&alice(), &get("pods", ""));
        assert!(!allowed);
        assert_eq!(why.to_string(), r#"RBAC: clusterrole.rbac.authorization.k8s.io "x" not found"#);
    }

    #[test]
    fn a_role_of_another_namespace_cannot_be_given() {
        let mut index = Index::default();
        put(&mut index, "roles/other/r", &role("pods"));
        put(&mut index, "rolebindings/a/b", &binding("Role", "r", &json!({"kind": "User", "name": "alice"})));
        assert!(!index.decide(&alice(), &get("pods", "a")).0);
        assert!(!index.decide(&alice(), &get("pods", "other")).0);
    }
}
