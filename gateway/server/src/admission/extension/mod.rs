//! Admission that clusters bring themselves: webhooks and policies, as the objects of `admissionregistration.k8s.io` say.

mod matching;
mod mutating;
mod policy;
mod review;
mod webhook;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use carob_api::status::Status;
use carob_store::{Entry, Event};
use serde_json::Value;

use super::Request;
use crate::authz::follow::Mirror;
use crate::objects;
use matching::Facts;
use mutating::{Change, Round};
use policy::{Binding, Policy};
use webhook::Webhook;

/// Where the objects are kept.
pub(crate) const PREFIX: &str = "/admissionregistration.k8s.io/";
const GROUP: &str = "admissionregistration.k8s.io";

/// What is registered, kept current.
#[derive(Default)]
pub(crate) struct Registered {
    entries: Mutex<BTreeMap<Arc<str>, Arc<Value>>>,
    now: RwLock<Arc<Rules>>,
}

/// Policies and webhooks, ready to be asked.
#[derive(Default)]
struct Rules {
    policies: Vec<Policy>,
    bindings: Vec<Binding>,
    changes: Vec<Change>,
    change_bindings: Vec<Binding>,
    mutating: Vec<Webhook>,
    validating: Vec<Webhook>,
}

impl Registered {
    fn now(&self) -> Arc<Rules> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<Arc<str>, Arc<Value>>)) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut entries);
        let rules = Arc::new(Rules::of(&entries));
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = rules;
    }
}

impl Mirror for Registered {
    fn reset(&self, entries: &[Entry]) {
        self.change(|known| {
            known.clear();
            known.extend(entries.iter().filter_map(decoded));
        });
    }

    fn apply(&self, events: &[Event]) {
        self.change(|known| {
            for event in events {
                match event {
                    Event::Put { entry, .. } => known.extend(decoded(entry)),
                    Event::Delete { previous, .. } => drop(known.remove(&previous.key)),
                }
            }
        });
    }
}

fn decoded(entry: &Entry) -> Option<(Arc<str>, Arc<Value>)> {
    Some((entry.key.clone(), Arc::new(objects::decode(&entry.value).ok()?)))
}

impl Rules {
    /// In the order of names, as Kubernetes asks them.
    fn of(entries: &BTreeMap<Arc<str>, Arc<Value>>) -> Self {
        let mut rules = Self::default();
        for (key, object) in entries {
            let Some((plural, _)) = key.strip_prefix(PREFIX).and_then(|rest| rest.split_once('/')) else { continue };
            match plural {
                "validatingadmissionpolicies" => rules.policies.push(Policy::read(object)),
                "validatingadmissionpolicybindings" => rules.bindings.push(Binding::read(object)),
                "mutatingadmissionpolicies" => rules.changes.push(Change::read(object)),
                "mutatingadmissionpolicybindings" => rules.change_bindings.push(Binding::read(object)),
                "mutatingwebhookconfigurations" => rules.mutating.extend(Webhook::of_configuration(object)),
                "validatingwebhookconfigurations" => rules.validating.extend(Webhook::of_configuration(object)),
                _ => {}
            }
        }
        rules
    }
}

impl Rules {
    /// Whether there is a mutating policy that could be asked: one that is bound, while the API has them.
    fn changes_anything(&self, request: &Request<'_>) -> bool {
        !self.changes.is_empty() && !self.change_bindings.is_empty() && !request.call.server.optional.is_empty()
    }
}

/// Nobody can lock a cluster's administrators out of what would let them in again.
fn is_exempt(request: &Request<'_>) -> bool {
    request.call.kind.group == GROUP
}

/// Asks mutating policies, then webhooks. Says whether they changed the object.
pub(super) async fn mutate(request: &mut Request<'_>) -> Result<bool, Status> {
    let rules = request.call.server.registered.now();
    if (rules.mutating.is_empty() && !rules.changes_anything(request)) || is_exempt(request) {
        return Ok(false);
    }
    let changed = mutating::mutate(&rules.changes, &rules.change_bindings, request, Round::First).await?;
    Ok(webhook::mutate(&rules.mutating, request).await? || changed)
}

/// Asks those again that want to know of later changes.
pub(super) async fn mutate_again(request: &mut Request<'_>) -> Result<(), Status> {
    let rules = request.call.server.registered.now();
    mutating::mutate(&rules.changes, &rules.change_bindings, request, Round::Again).await?;
    webhook::mutate_again(&rules.mutating, request).await
}

/// Asks policies and validating webhooks.
pub(super) async fn validate(request: &Request<'_>) -> Result<(), Status> {
    let rules = request.call.server.registered.now();
    if (rules.validating.is_empty() && rules.bindings.is_empty()) || is_exempt(request) {
        return Ok(());
    }
    let facts = Facts::of(request).await?;
    policy::validate(&rules.policies, &rules.bindings, request, &facts).await?;
    webhook::validate(&rules.validating, request, &facts).await
}
