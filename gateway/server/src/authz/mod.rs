//! Whether somebody may do something: administrators everything, nodes what belongs to them, everybody what roles give.
//!
//! Roles, bindings and what nodes are related to are held in memory ([`index`], [`graph`]) and follow the store's watch: a
//! decision reads no store.

pub(crate) mod bootstrap;
pub(crate) mod escalation;
pub(crate) mod follow;
mod graph;
pub(crate) mod index;
pub(crate) mod node;
pub(crate) mod rules;

use std::fmt;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use carob_api::selector::FieldSelector;
use carob_api::status::{GroupResource, Status};
use carob_store::{Entry, Event, Store};
use tokio_util::sync::CancellationToken;

use crate::authn::{AUTHENTICATED, Identity, MASTERS};
use crate::call::Call;
use crate::query::Query;
use crate::request::{RequestInfo, ResourcePath, Target};
use follow::{Mirror, Reached};
use graph::Graph;
use index::{Grant, Index};
use rules::Rule;

/// What somebody wants to do.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attributes {
    pub verb: String,
    /// Empty for an object's request.
    pub path: String,
    pub group: String,
    pub version: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    /// Fields and the values that they must have in what is listed or watched.
    pub fields: Vec<(String, String)>,
}

/// The answer, and why.
#[derive(Clone, Debug)]
pub(crate) struct Decision {
    pub allowed: bool,
    pub why: Why,
}

/// Why something is allowed or not. Written out only when somebody wants to read it.
#[derive(Clone, Debug)]
pub(crate) enum Why {
    /// There is nothing to say.
    Unsaid,
    /// In these words.
    Text(String),
    /// Because of this role.
    Granted(Arc<Grant>),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsaid => Ok(()),
            Self::Text(text) => f.write_str(text),
            Self::Granted(grant) => grant.fmt(f),
        }
    }
}

impl Attributes {
    /// What a request wants to do.
    pub fn of(info: &RequestInfo, query: &Query) -> Self {
        let path = match &info.target {
            Target::Path(path) => {
                return Self { verb: info.verb.to_owned(), path: path.clone(), ..Self::default() };
            }
            Target::Resource(path) => path,
        };
        let ResourcePath { group, version, namespace, resource, name, subresource, .. } = path;
        let mut wanted = Self {
            verb: info.verb.to_owned(),
            path: String::new(),
            group: group.clone(),
            version: version.clone(),
            resource: resource.clone(),
            subresource: subresource.clone().unwrap_or_default(),
            // A Namespace itself is asked about as if it were in itself.
            namespace: namespace
                .clone()
                .or_else(|| name.clone().filter(|_| resource == "namespaces"))
                .unwrap_or_default(),
            name: name.clone().unwrap_or_default(),
            fields: Vec::new(),
        };
        if matches!(info.verb, "list" | "watch" | "deletecollection")
            && let Some(selector) = query.text("fieldSelector")
            && let Ok(selector) = FieldSelector::parse(selector)
        {
            wanted.select(&selector, info.verb != "deletecollection");
        }
        wanted
    }

    /// Takes in what a selector demands. Whoever lists only the object of one name is asked about that name.
    fn select(&mut self, selector: &FieldSelector, names: bool) {
        let exact = selector.requirements().iter().filter(|(_, equals, _)| *equals);
        self.fields = exact.map(|(field, _, value)| (field.clone(), value.clone())).collect();
        if let Some(name) = selector.exact("metadata.name").filter(|_| names && self.name.is_empty())
            && !name.is_empty()
            && !name.contains(['/', '%'])
            && name != "."
            && name != ".."
        {
            name.clone_into(&mut self.name);
        }
    }

    /// The refusal in Kubernetes' words.
    pub fn refusal(&self, identity: &Identity, why: &Why) -> Status {
        let because = match why {
            Why::Text(text) if !text.is_empty() => format!(": {text}"),
            _ => String::new(),
        };
        let user = &identity.user;
        if !self.path.is_empty() {
            let text = format!("User {user:?} cannot {} path {:?}{because}", self.verb, self.path);
            return Status::forbidden(&GroupResource::default(), "", text);
        }
        let resource = match self.subresource.as_str() {
            "" => self.resource.clone(),
            subresource => format!("{}/{subresource}", self.resource),
        };
        let place = match self.namespace.as_str() {
            "" => "at the cluster scope".to_owned(),
            namespace => format!("in the namespace {namespace:?}"),
        };
        let text = format!(
            "User {user:?} cannot {} resource {resource:?} in API group {:?} {place}{because}",
            self.verb, self.group
        );
        Status::forbidden(&GroupResource::new(&self.group, &self.resource), &self.name, text)
    }
}

/// How long a refusal is held back until what is in memory is as new as the store.
const PATIENCE: Duration = Duration::from_millis(100);

/// Decides.
#[derive(Default)]
pub(crate) struct Authorizer {
    roles: RwLock<Index>,
    graph: RwLock<Graph>,
    mirrors: OnceLock<Vec<Reached>>,
}

impl Authorizer {
    /// With all that the store holds, kept current until told to stop.
    pub async fn open(store: &Arc<dyn Store>, stop: &CancellationToken) -> Result<Arc<Self>, carob_store::Error> {
        let authorizer = Arc::new(Self::default());
        let roles = Arc::new(Roles(Arc::clone(&authorizer)));
        let mut mirrors = vec![follow::follow(store, index::PREFIX, roles, stop.clone()).await?];
        for prefix in graph::PREFIXES {
            let relations = Arc::new(Relations(Arc::clone(&authorizer), prefix));
            mirrors.push(follow::follow(store, prefix, relations, stop.clone()).await?);
        }
        authorizer.mirrors.get_or_init(|| mirrors);
        Ok(authorizer)
    }

    /// Whether `identity` may, as of now: a refusal is looked at again when all that the store holds has been heard of, so
    /// that whoever is told that a role was given can use it. Nobody waits for what allows.
    pub async fn decide_now(&self, store: &dyn Store, identity: &Identity, wanted: &Attributes) -> Decision {
        let decision = self.decide(identity, wanted);
        if decision.allowed {
            return decision;
        }
        let mirrors = self.mirrors.get().map(Vec::as_slice).unwrap_or_default();
        // Only nodes are asked about relations.
        let mirrors = if node::of(identity).is_some() { mirrors } else { mirrors.get(..1).unwrap_or_default() };
        if follow::catch_up(store, mirrors, PATIENCE).await { self.decide(identity, wanted) } else { decision }
    }

    /// The same for whoever sent the request: strangers aren't waited for.
    pub async fn decide_for_sender(&self, store: &dyn Store, sender: &Identity, wanted: &Attributes) -> Decision {
        if sender.is_in(AUTHENTICATED) {
            self.decide_now(store, sender, wanted).await
        } else {
            self.decide(sender, wanted)
        }
    }

    /// Whether `identity` may.
    pub fn allows(&self, identity: &Identity, wanted: &Attributes) -> bool {
        self.decide(identity, wanted).allowed
    }

    /// Whether `identity` may, and why.
    pub fn decide(&self, identity: &Identity, wanted: &Attributes) -> Decision {
        if identity.is_in(MASTERS) {
            return Decision { allowed: true, why: Why::Unsaid };
        }
        let mut said: Option<String> = None;
        if let Some(node) = node::of(identity) {
            match node::decide(node, wanted, &self.graph.read().unwrap_or_else(PoisonError::into_inner)) {
                Ok(()) => return Decision { allowed: true, why: Why::Unsaid },
                Err(why) => said = Some(why).filter(|why| !why.is_empty()),
            }
        }
        let (allowed, why) = self.roles.read().unwrap_or_else(PoisonError::into_inner).decide(identity, wanted);
        let why = match (said, why) {
            (Some(first), Why::Text(second)) if !allowed => Why::Text(format!("{first}\n{second}")),
            (Some(first), _) if !allowed => Why::Text(first),
            (_, why) => why,
        };
        Decision { allowed, why }
    }

    /// All that somebody may do in a namespace, as roles say it, and what could not be found out.
    pub fn rules_for(&self, identity: &Identity, namespace: &str) -> (Vec<Rule>, Vec<String>) {
        let (rules, mut errors) =
            self.roles.read().unwrap_or_else(PoisonError::into_inner).rules_for(identity, namespace);
        if node::of(identity).is_some() {
            errors.insert(0, "node authorizer does not support user rule resolution".to_owned());
        }
        (rules, errors)
    }
}

/// 403 if the sender may not make the object of the path, which an update or an apply is about to make, or what a
/// subresource of it begins: a WebSocket's request is a GET, and no less than the POST of others.
pub(crate) async fn confirm_create(call: &Call, subresource: &str) -> Result<(), Status> {
    let wanted = Attributes {
        verb: "create".to_owned(),
        group: call.kind.group.to_owned(),
        version: call.kind.version.to_owned(),
        resource: call.kind.plural.to_owned(),
        subresource: subresource.to_owned(),
        namespace: call.namespace.clone().unwrap_or_default(),
        name: call.name().to_owned(),
        ..Attributes::default()
    };
    let server = &call.server;
    let decision = server.authorizer.decide_for_sender(&*server.store, &call.identity, &wanted).await;
    if decision.allowed { Ok(()) } else { Err(wanted.refusal(&call.identity, &decision.why)) }
}

/// Keeps the roles current.
struct Roles(Arc<Authorizer>);

impl Mirror for Roles {
    fn reset(&self, entries: &[Entry]) {
        *self.0.roles.write().unwrap_or_else(PoisonError::into_inner) = Index::of(entries);
    }

    fn apply(&self, events: &[Event]) {
        let mut index = self.0.roles.write().unwrap_or_else(PoisonError::into_inner);
        for event in events {
            index.apply(event);
        }
    }
}

/// Keeps what is related to nodes current: one for each kind of objects.
struct Relations(Arc<Authorizer>, &'static str);

impl Mirror for Relations {
    fn reset(&self, entries: &[Entry]) {
        self.0.graph.write().unwrap_or_else(PoisonError::into_inner).reset(self.1, entries);
    }

    fn apply(&self, events: &[Event]) {
        let mut graph = self.0.graph.write().unwrap_or_else(PoisonError::into_inner);
        for event in events {
            graph.apply(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    fn attributes(path: &str, query: &str) -> Attributes {
        let query = Query::parse(query);
        Attributes::of(&RequestInfo::parse(&Method::GET, path, &query), &query)
    }

    #[test]
    fn administrators_may_do_everything_and_nobody_nothing() {
        let authorizer = Authorizer::default();
        let wanted = attributes("/api/v1/secrets", "");
        assert!(authorizer.allows(&Identity::authenticated("a", [MASTERS.to_owned()]), &wanted));
        assert!(!authorizer.allows(&Identity::anonymous(), &wanted));
        assert!(!authorizer.allows(&Identity::authenticated("a", []), &wanted));
    }

    #[test]
    fn a_list_of_one_name_is_asked_about_by_name() {
        let wanted = attributes("/api/v1/namespaces/n/secrets", "fieldSelector=metadata.name%3Done");
        assert_eq!((wanted.verb.as_str(), wanted.name.as_str()), ("list", "one"));
        let wanted = attributes("/api/v1/namespaces/n/secrets", "fieldSelector=metadata.name!%3Done");
        assert_eq!(wanted.name, "");
        let wanted = attributes("/api/v1/pods", "fieldSelector=spec.nodeName%3Dx&watch=1");
        assert_eq!(wanted.fields, [("spec.nodeName".to_owned(), "x".to_owned())]);
    }

    #[test]
    fn a_refusal_names_user_verb_resource_group_and_place() {
        let wanted = attributes("/apis/apps/v1/namespaces/default/deployments/d/scale", "");
        assert_eq!(
            wanted.refusal(&Identity::anonymous(), &Why::Unsaid).message(),
            "deployments.apps \"d\" is forbidden: User \"system:anonymous\" cannot get resource \
             \"deployments/scale\" in API group \"apps\" in the namespace \"default\""
        );
    }
}
