//! `ResourceQuota`: what a namespace may hold and use in all. The usage is written with the object that uses it, in one
//! transaction, so that many requests at once cannot take more than there is.

mod usage;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use carob_api::quantity::Quantity;
use carob_api::status::Status;
use carob_store::{Entry, Expect, KeyRange, Write};
use serde_json::{Value, json};
use tokio::sync::OwnedMutexGuard;

use crate::admission::amounts::{self, Amounts};
use crate::call::Call;
use crate::objects::{self, store_failure, text};

/// One request at a time in each namespace with a quota: they would only overtake each other.
#[derive(Default)]
pub(crate) struct Turns {
    locks: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl Turns {
    pub(crate) async fn take(&self, namespace: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| lock.strong_count() > 0);
            let known = locks.get(namespace).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let lock = Arc::new(tokio::sync::Mutex::new(()));
                locks.insert(namespace.to_owned(), Arc::downgrade(&lock));
                lock
            })
        };
        lock.lock_owned().await
    }
}

/// What has to be written with an object: the quotas that it is charged to.
#[derive(Default)]
pub(crate) struct Charge {
    pub expect: Vec<(String, Expect)>,
    pub writes: Vec<Write>,
    _turn: Option<OwnedMutexGuard<()>>,
}

/// Charges an object (`old`: what it was) to the quotas of its namespace, or refuses it. Keep the charge until the
/// transaction is done.
pub(crate) async fn charge(call: &Call, new: &Value, old: Option<&Value>) -> Result<Charge, Status> {
    let Some(namespace) = call.namespace.as_deref() else { return Ok(Charge::default()) };
    if !usage::may_be_charged(&call.kind, old.is_some()) || read(call, namespace).await?.is_empty() {
        return Ok(Charge::default());
    }
    let turn = call.server.turns.take(namespace).await;
    let mut charge = Charge { _turn: Some(turn), ..Charge::default() };
    let is_pod = (call.kind.group, call.kind.plural) == ("", "pods");
    for entry in read(call, namespace).await? {
        let quota = objects::decode(&entry.value)?;
        let name = text(&quota, "/metadata/name");
        let hard = amounts::read(quota.pointer("/spec/hard"));
        if !usage::concerns(&quota, call.kind.group, call.kind.plural, new) {
            continue;
        }
        let relevant = |amounts: Amounts| -> Amounts {
            amounts.into_iter().filter(|(resource, _)| hard.contains_key(resource)).collect()
        };
        let after = relevant(usage::of(call.kind.group, call.kind.plural, new));
        if is_pod && old.is_none() {
            let lacking = usage::unsaid(new, &hard);
            if !lacking.is_empty() {
                return Err(refuse(call, new, format!("failed quota: {name}: must specify {lacking}")));
            }
        }
        let before = match old {
            Some(old) if usage::concerns(&quota, call.kind.group, call.kind.plural, old) => {
                relevant(usage::of(call.kind.group, call.kind.plural, old))
            }
            _ => Amounts::new(),
        };
        let none = Quantity::ZERO;
        // What becomes free is given back by the controller, who counts what is there.
        let more: Amounts = after
            .iter()
            .map(|(resource, amount)| (resource.clone(), *amount - before.get(resource).copied().unwrap_or(none)))
            .filter(|(_, amount)| *amount > none)
            .collect();
        if more.is_empty() {
            continue;
        }
        let mut used = amounts::read(quota.pointer("/status/used"));
        if more.keys().any(|resource| !used.contains_key(resource)) {
            // Nobody has counted yet.
            used = usage::count(call, namespace, &quota, &hard).await?;
        }
        check(call, new, name, &more, &used, &hard)?;
        amounts::add(&mut used, &more);
        charge.expect.push((entry.key.to_string(), Expect::At(entry.revision)));
        charge.writes.push(Write::Put(entry.key.to_string(), objects::encode(&with_usage(quota, &used, &hard))));
    }
    Ok(charge)
}

/// The quotas of a namespace.
async fn read(call: &Call, namespace: &str) -> Result<Vec<Entry>, Status> {
    let range = KeyRange::prefix(format!("/core/resourcequotas/{namespace}/"));
    let page = call.server.store.range(&range, None, None).await.map_err(|error| store_failure(&error))?;
    Ok(page.entries)
}

fn check(
    call: &Call,
    object: &Value,
    quota: &str,
    more: &Amounts,
    used: &Amounts,
    hard: &Amounts,
) -> Result<(), Status> {
    let none = Quantity::ZERO;
    let of = |amounts: &Amounts, resource: &str| amounts.get(resource).copied().unwrap_or(none);
    let exceeded = more.iter().filter(|(resource, amount)| of(used, resource) + **amount > of(hard, resource));
    let exceeded: Vec<&String> = exceeded.map(|(resource, _)| resource).collect();
    if exceeded.is_empty() {
        return Ok(());
    }
    let part = |amounts: &Amounts| {
        amounts::shown(&exceeded.iter().map(|resource| ((*resource).clone(), of(amounts, resource))).collect())
    };
    let why =
        format!("exceeded quota: {quota}, requested: {}, used: {}, limited: {}", part(more), part(used), part(hard));
    Err(refuse(call, object, why))
}

fn refuse(call: &Call, object: &Value, why: String) -> Status {
    Status::forbidden(&call.resource(), text(object, "/metadata/name"), why)
}

fn with_usage(mut quota: Value, used: &Amounts, hard: &Amounts) -> Value {
    let used: Amounts =
        used.iter().filter(|(resource, _)| hard.contains_key(*resource)).map(|(r, a)| (r.clone(), *a)).collect();
    let hard = quota.pointer("/spec/hard").cloned().unwrap_or_else(|| json!({}));
    quota["status"] = json!({ "hard": hard, "used": amounts::write(&used) });
    quota
}
