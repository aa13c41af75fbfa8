//! FlowSchemas and PriorityLevelConfigurations as they are used: which requests belong together, and what room they get.

use carob_store::Entry;
use serde::Deserialize;

use crate::authn::Identity;
use crate::authz::Attributes;

/// Says to which level a request belongs, and to which flow in it.
#[derive(Debug)]
pub(super) struct Schema {
    pub name: String,
    pub uid: String,
    pub level: String,
    precedence: i64,
    distinguisher: Distinguisher,
    rules: Vec<Rules>,
}

/// What tells flows of one schema apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Distinguisher {
    Nothing,
    User,
    Namespace,
}

/// The room of a level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Level {
    pub name: String,
    pub uid: String,
    pub exempt: bool,
    pub shares: u64,
    pub lendable_percent: u64,
    /// None: as much as others lend.
    pub borrowing_limit_percent: Option<u64>,
    /// None: what finds no room is refused at once.
    pub queuing: Option<Queuing>,
}

/// The queues of a level.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Queuing {
    pub queues: usize,
    pub hand_size: usize,
    pub queue_length_limit: usize,
}

impl Default for Queuing {
    fn default() -> Self {
        Self { queues: 64, hand_size: 8, queue_length_limit: 50 }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Stored<S> {
    metadata: Metadata,
    spec: S,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Metadata {
    name: String,
    uid: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SchemaSpec {
    priority_level_configuration: Named,
    matching_precedence: Option<i64>,
    distinguisher_method: Option<Method>,
    rules: Vec<Rules>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Named {
    name: String,
    namespace: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Method {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(clippy::struct_field_names, reason = "these are Kubernetes' names")]
struct Rules {
    subjects: Vec<Subject>,
    resource_rules: Vec<ResourceRule>,
    non_resource_rules: Vec<PathRule>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Subject {
    kind: String,
    user: Option<Named>,
    group: Option<Named>,
    service_account: Option<Named>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ResourceRule {
    verbs: Vec<String>,
    api_groups: Vec<String>,
    resources: Vec<String>,
    cluster_scope: bool,
    namespaces: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PathRule {
    verbs: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    paths: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct LevelSpec {
    #[serde(rename = "type")]
    kind: String,
    limited: Option<Limited>,
    exempt: Option<Limited>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Limited {
    nominal_concurrency_shares: Option<u64>,
    lendable_percent: Option<u64>,
    borrowing_limit_percent: Option<u64>,
    limit_response: LimitResponse,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LimitResponse {
    #[serde(rename = "type")]
    kind: String,
    queuing: Option<Queuing>,
}

impl Schema {
    /// The stored schemas, in the order in which they are asked.
    pub fn read(entries: &[Entry]) -> Vec<Self> {
        let stored = entries.iter().filter_map(|entry| {
            let stored: Stored<SchemaSpec> = serde_json::from_slice(&entry.value).ok()?;
            let Stored { metadata, spec } = stored;
            let distinguisher = match spec.distinguisher_method.as_ref().map(|method| method.kind.as_str()) {
                Some("ByUser") => Distinguisher::User,
                Some("ByNamespace") => Distinguisher::Namespace,
                _ => Distinguisher::Nothing,
            };
            Some(Self {
                name: metadata.name,
                uid: metadata.uid,
                level: spec.priority_level_configuration.name,
                precedence: spec.matching_precedence.unwrap_or(1000),
                distinguisher,
                rules: spec.rules,
            })
        });
        let mut schemas: Vec<Self> = stored.collect();
        schemas.sort_by(|one, other| (one.precedence, &one.name).cmp(&(other.precedence, &other.name)));
        schemas
    }

    /// Whether a request belongs here.
    pub fn matches(&self, who: &Identity, what: &Attributes) -> bool {
        self.rules.iter().any(|rules| {
            rules.subjects.iter().any(|subject| subject.is(who))
                && if what.path.is_empty() {
                    rules.resource_rules.iter().any(|rule| rule.matches(what))
                } else {
                    rules.non_resource_rules.iter().any(|rule| rule.matches(what))
                }
        })
    }

    /// What tells the request's flow from others of the schema.
    pub fn flow<'a>(&self, who: &'a Identity, what: &'a Attributes) -> &'a str {
        match self.distinguisher {
            Distinguisher::Nothing => "",
            Distinguisher::User => &who.user,
            Distinguisher::Namespace => &what.namespace,
        }
    }
}

impl Level {
    /// The stored levels.
    pub fn read(entries: &[Entry]) -> Vec<Self> {
        let stored = entries.iter().filter_map(|entry| {
            let stored: Stored<LevelSpec> = serde_json::from_slice(&entry.value).ok()?;
            let Stored { metadata, spec } = stored;
            let exempt = spec.kind == "Exempt";
            let room = if exempt { spec.exempt } else { spec.limited }.unwrap_or_default();
            let queues = room.limit_response.kind == "Queue";
            Some(Self {
                name: metadata.name,
                uid: metadata.uid,
                exempt,
                shares: room.nominal_concurrency_shares.unwrap_or(if exempt { 0 } else { 30 }),
                lendable_percent: room.lendable_percent.unwrap_or(0).min(100),
                borrowing_limit_percent: room.borrowing_limit_percent,
                queuing: queues.then(|| room.limit_response.queuing.unwrap_or_default()),
            })
        });
        stored.collect()
    }
}

impl Subject {
    fn is(&self, who: &Identity) -> bool {
        match (self.kind.as_str(), &self.user, &self.group, &self.service_account) {
            ("User", Some(user), ..) => user.name == "*" || user.name == who.user,
            ("Group", _, Some(group), _) => group.name == "*" || who.is_in(&group.name),
            ("ServiceAccount", _, _, Some(account)) => {
                let rest = who.user.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
                rest.is_some_and(|(namespace, name)| {
                    namespace == account.namespace && (account.name == "*" || account.name == name)
                })
            }
            _ => false,
        }
    }
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|one| one == "*" || one == wanted)
}

impl ResourceRule {
    fn matches(&self, what: &Attributes) -> bool {
        let place = if what.namespace.is_empty() { self.cluster_scope } else { has(&self.namespaces, &what.namespace) };
        place
            && has(&self.verbs, &what.verb)
            && has(&self.api_groups, &what.group)
            && self.resources.iter().any(|pattern| match pattern.split_once('/') {
                None => pattern == "*" || what.subresource.is_empty() && *pattern == what.resource,
                Some((resource, part)) => resource == what.resource && part == what.subresource,
            })
    }
}

impl PathRule {
    fn matches(&self, what: &Attributes) -> bool {
        has(&self.verbs, &what.verb)
            && self.paths.iter().any(|pattern| match pattern.strip_suffix('*') {
                Some("") => true,
                Some(prefix) => prefix.ends_with('/') && what.path.starts_with(prefix),
                None => *pattern == what.path,
            })
    }
}
