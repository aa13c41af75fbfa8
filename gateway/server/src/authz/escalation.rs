//! Nobody gives more than they have: what a role or binding gives must be held by whoever writes it, unless they may
//! `escalate` or `bind`.
//!
//! What counts is what the store says now, not what the index has heard of: a right that was taken away a moment ago
//! cannot be passed on.

use carob_api::status::{GroupResource, Status};
use carob_store::KeyRange;
use serde_json::Value;

use super::Attributes;
use super::index::{self, Index, RoleRef};
use super::rules::{Rule, missing, quoted};
use crate::authn::{Identity, MASTERS};
use crate::call::Call;
use crate::objects::{store_failure, text};

pub(crate) const GROUP: &str = "rbac.authorization.k8s.io";

/// 403 if the new state of a role or binding (`old`: what it was) gives what the sender doesn't have.
pub(crate) async fn check(call: &Call, new: &Value, old: Option<&Value>) -> Result<(), Status> {
    if call.kind.group != GROUP || call.identity.is_in(MASTERS) || old.is_some_and(|old| gives_the_same(new, old)) {
        return Ok(());
    }
    match call.kind.plural {
        "roles" | "clusterroles" => check_role(call, new, old).await,
        "rolebindings" | "clusterrolebindings" => check_binding(call, new).await,
        _ => Ok(()),
    }
}

/// Whether only owners, finalizers and the like differ: the garbage collector may change those of any role.
fn gives_the_same(new: &Value, old: &Value) -> bool {
    let without = |object: &Value| {
        let mut object = object.clone();
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            for field in ["ownerReferences", "finalizers", "managedFields", "resourceVersion"] {
                metadata.shift_remove(field);
            }
        }
        object
    };
    without(new) == without(old)
}

async fn check_role(call: &Call, new: &Value, old: Option<&Value>) -> Result<(), Status> {
    let namespace = call.namespace.as_deref().unwrap_or_default();
    let escalates = Attributes {
        verb: "escalate".to_owned(),
        group: GROUP.to_owned(),
        resource: call.kind.plural.to_owned(),
        namespace: namespace.to_owned(),
        // As in Kubernetes: of the path, so that there is none for a new role.
        name: call.name().to_owned(),
        ..Attributes::default()
    };
    if call.server.authorizer.allows(&call.identity, &escalates) {
        return Ok(());
    }
    let index = read(call).await?;
    let rules = rules(new);
    let aggregates = |role: &Value| role.get("aggregationRule").is_some_and(|rule| !rule.is_null());
    if aggregates(new) || old.is_some_and(aggregates) {
        let (held, _) = index.rules_for(&call.identity, namespace);
        if !missing(&held, &Rule::full_authority()).is_empty() {
            return Err(refuse(call, new, "must have cluster-admin privileges to use the aggregationRule"));
        }
    }
    confirm(call, &index, namespace, &rules, new)
}

async fn check_binding(call: &Call, new: &Value) -> Result<(), Status> {
    let namespace = call.namespace.as_deref().unwrap_or_default();
    let role = RoleRef { kind: text(new, "/roleRef/kind").to_owned(), name: text(new, "/roleRef/name").to_owned() };
    let resource = match role.kind.as_str() {
        "ClusterRole" => "clusterroles",
        "Role" => "roles",
        // Validation says what is wrong with it.
        _ => return Ok(()),
    };
    let binds = Attributes {
        verb: "bind".to_owned(),
        group: GROUP.to_owned(),
        resource: resource.to_owned(),
        namespace: namespace.to_owned(),
        name: role.name.clone(),
        ..Attributes::default()
    };
    if call.server.authorizer.allows(&call.identity, &binds) {
        return Ok(());
    }
    let index = read(call).await?;
    match index.referred(&role, namespace) {
        Some(rules) => confirm(call, &index, namespace, rules, new),
        None => Err(Status::not_found(&GroupResource::new(GROUP, resource), &role.name)),
    }
}

/// Each is compared with what the sender holds: few bytes can say very much.
const MOST_PIECES: usize = 100_000;

/// 403 if the sender lacks some of the rules in this namespace.
fn confirm(call: &Call, index: &Index, namespace: &str, rules: &[Rule], new: &Value) -> Result<(), Status> {
    let pieces = rules.iter().map(Rule::weight).fold(0, usize::saturating_add);
    if pieces > MOST_PIECES {
        let why =
            format!("its rules allow {pieces} different things, of which more than {MOST_PIECES} are not compared");
        return Err(refuse(call, new, &why));
    }
    let (held, errors) = index.rules_for(&call.identity, namespace);
    let lacking = missing(&held, rules);
    if lacking.is_empty() {
        return Ok(());
    }
    let Identity { user, groups, .. } = &call.identity;
    let lacking: Vec<String> = lacking.into_iter().collect();
    let mut why = format!(
        "user {user:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        quoted(groups),
        lacking.join("\n")
    );
    if !errors.is_empty() {
        why.push_str(&format!("; resolution errors: [{}]", errors.join(" ")));
    }
    Err(refuse(call, new, &why))
}

fn refuse(call: &Call, object: &Value, why: &str) -> Status {
    Status::forbidden(&call.resource(), text(object, "/metadata/name"), why)
}

/// All roles and bindings as the store has them.
async fn read(call: &Call) -> Result<Index, Status> {
    let range = KeyRange::prefix(index::PREFIX);
    let page = call.server.store.range(&range, None, None).await.map_err(|error| store_failure(&error))?;
    Ok(Index::of(&page.entries))
}

fn rules(role: &Value) -> Vec<Rule> {
    let list = role.get("rules").and_then(Value::as_array).into_iter().flatten();
    list.filter_map(|rule| serde_json::from_value(rule.clone()).ok()).collect()
}
