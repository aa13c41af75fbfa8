//! Disruption budgets: an eviction takes one of the disruptions that the budget of the pod allows now.

use carob_api::selector::LabelSelector;
use carob_api::status::{Cause, Details, GroupResource, Status};
use carob_store::{Entry, Expect, KeyRange, Outcome, Txn, Write};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::call::Call;
use crate::objects::{self, store_failure, text};

/// How often a budget that others change meanwhile is looked at again.
const ATTEMPTS: usize = 32;
/// How many evictions may wait until the budget's controller has seen the pods go.
const MOST_UNCONFIRMED: usize = 2_000;
/// Seconds after which a client may ask again when a budget hasn't been looked at yet.
const RETRY_SECONDS: u32 = 10;
const REFUSED: &str = "Cannot evict pod as it would violate the pod's disruption budget.";
const SEVERAL: &str =
    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";

/// Lets a pod go, or says why not: 429 if its budget allows no disruption now.
pub(crate) async fn take(call: &Call, pod: &Value, dry_run: bool) -> Result<(), Status> {
    if needs_no_budget(pod) {
        return Ok(());
    }
    for _ in 0..ATTEMPTS {
        let budgets = budgets_of(call, pod).await?;
        let (entry, budget) = match budgets.as_slice() {
            [] => return Ok(()),
            [one] => one,
            _ => return Err(Status::generic(500, "", SEVERAL)),
        };
        if !condition(pod, "Ready") && lets_unready_go(budget) {
            return Ok(());
        }
        let new = decremented(budget, text(pod, "/metadata/name"))?;
        if dry_run {
            return Ok(());
        }
        let key = entry.key.to_string();
        let writes = vec![Write::Put(key.clone(), objects::encode(&new))];
        let txn = Txn { expect: vec![(key, Expect::At(entry.revision))], writes };
        if let Outcome::Committed { .. } = call.server.store.txn(txn).await.map_err(|error| store_failure(&error))? {
            return Ok(());
        }
        tokio::task::yield_now().await;
    }
    Err(refusal("couldn't update PodDisruptionBudget due to conflicts", RETRY_SECONDS))
}

/// Pods that serve nobody, or that go already.
fn needs_no_budget(pod: &Value) -> bool {
    matches!(text(pod, "/status/phase"), "Succeeded" | "Failed" | "Pending")
        || pod.pointer("/metadata/deletionTimestamp").is_some()
}

async fn budgets_of(call: &Call, pod: &Value) -> Result<Vec<(Entry, Value)>, Status> {
    let labels = pod.pointer("/metadata/labels");
    let namespace = text(pod, "/metadata/namespace");
    if labels.and_then(Value::as_object).is_none_or(serde_json::Map::is_empty) {
        return Ok(Vec::new());
    }
    let range = KeyRange::prefix(format!("/policy/poddisruptionbudgets/{namespace}/"));
    let page = call.server.store.range(&range, None, None).await.map_err(|error| store_failure(&error))?;
    let mut found = Vec::new();
    for entry in page.entries {
        let budget = objects::decode(&entry.value)?;
        let selector = budget.pointer("/spec/selector").filter(|selector| !selector.is_null());
        let selects = selector.map(LabelSelector::from_object).is_some_and(|s| s.is_ok_and(|s| s.matches(labels)));
        if selects {
            found.push((entry, budget));
        }
    }
    Ok(found)
}

/// Whether a pod that isn't ready may go without being counted: it doesn't serve anyway.
fn lets_unready_go(budget: &Value) -> bool {
    let (healthy, wanted) = (number(budget, "currentHealthy"), number(budget, "desiredHealthy"));
    text(budget, "/spec/unhealthyPodEvictionPolicy") == "AlwaysAllow" || (healthy >= wanted && wanted > 0)
}

/// The budget with one disruption less, and with the name of the pod for its controller.
fn decremented(budget: &Value, pod: &str) -> Result<Value, Status> {
    let name = text(budget, "/metadata/name");
    let generation = budget.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(0);
    if number(budget, "observedGeneration") < generation {
        let why = format!("The disruption budget {name} is still being processed by the server.");
        return Err(refusal(&why, RETRY_SECONDS));
    }
    let forbidden = |why| Status::forbidden(&GroupResource::new("policy", "poddisruptionbudget"), name, why);
    let allowed = number(budget, "disruptionsAllowed");
    if allowed < 0 {
        return Err(forbidden("pdb disruptions allowed is negative"));
    }
    let unconfirmed =
        budget.pointer("/status/disruptedPods").and_then(Value::as_object).map_or(0, serde_json::Map::len);
    if unconfirmed > MOST_UNCONFIRMED {
        return Err(forbidden("DisruptedPods map too big - too many evictions not confirmed by PDB controller"));
    }
    if allowed == 0 {
        let (wanted, healthy) = (number(budget, "desiredHealthy"), number(budget, "currentHealthy"));
        let why = format!("The disruption budget {name} needs {wanted} healthy pods and has {healthy} currently");
        return Err(refusal(&why, 0));
    }
    let now = objects::timestamp(Timestamp::now());
    let mut new = budget.clone();
    new["status"]["disruptionsAllowed"] = (allowed - 1).into();
    new["status"]["disruptedPods"][pod] = now.as_str().into();
    if allowed == 1 {
        exhaust(&mut new, &now);
    }
    Ok(new)
}

/// Says in the conditions that no disruption is left.
fn exhaust(budget: &mut Value, now: &str) {
    let generation = budget.pointer("/metadata/generation").cloned().unwrap_or_default();
    let condition = json!({"type": "DisruptionAllowed", "status": "False", "observedGeneration": generation,
        "lastTransitionTime": now, "reason": "InsufficientPods", "message": ""});
    let conditions = &mut budget["status"]["conditions"];
    match conditions.as_array_mut() {
        Some(list) => {
            list.retain(|condition| condition["type"] != "DisruptionAllowed");
            list.push(condition);
        }
        None => *conditions = json!([condition]),
    }
}

fn refusal(why: &str, retry_after: u32) -> Status {
    let cause = Cause { reason: "DisruptionBudget".to_owned(), message: why.to_owned(), field: String::new() };
    Status::too_many_requests(REFUSED, retry_after).with_details(Details {
        causes: vec![cause],
        retry_after_seconds: Some(retry_after).filter(|seconds| *seconds > 0),
        ..Details::default()
    })
}

fn number(budget: &Value, field: &str) -> i64 {
    budget.get("status").and_then(|status| status.get(field)).and_then(Value::as_i64).unwrap_or(0)
}

fn condition(pod: &Value, type_: &str) -> bool {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
    conditions.filter(|condition| condition["type"] == type_).any(|condition| condition["status"] == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(allowed: i64, observed: i64) -> Value {
        json!({"metadata": {"name": "b", "generation": 2}, "status": {"disruptionsAllowed": allowed,
            "observedGeneration": observed, "desiredHealthy": 1, "currentHealthy": 1}})
    }

    #[test]
    fn a_disruption_is_taken_until_none_is_left() {
        let two = decremented(&budget(2, 2), "p").expect("allowed");
        assert_eq!(two["status"]["disruptionsAllowed"], 1);
        assert!(two["status"]["disruptedPods"]["p"].is_string() && two["status"].get("conditions").is_none());
        let one = decremented(&two, "q").expect("allowed");
        assert_eq!(one["status"]["conditions"][0]["reason"], "InsufficientPods");
        let status = decremented(&one, "r").expect_err("none is left");
        assert_eq!((status.code(), status.message()), (429, REFUSED));
        let causes = status.to_value()["details"]["causes"].clone();
        assert_eq!(causes[0]["message"], "The disruption budget b needs 1 healthy pods and has 1 currently");
    }

    #[test]
    fn a_budget_that_was_changed_is_looked_at_by_its_controller_first() {
        let status = decremented(&budget(2, 1), "p").expect_err("stale");
        assert_eq!((status.code(), status.retry_after()), (429, Some(RETRY_SECONDS)));
    }

    #[test]
    fn what_serves_nobody_may_go() {
        assert!(needs_no_budget(&json!({"status": {"phase": "Pending"}})));
        assert!(!needs_no_budget(&json!({"status": {"phase": "Running"}})));
        let mut unready = budget(0, 2);
        assert!(lets_unready_go(&unready));
        unready["status"]["currentHealthy"] = json!(0);
        assert!(!lets_unready_go(&unready));
        unready["spec"] = json!({"unhealthyPodEvictionPolicy": "AlwaysAllow"});
        assert!(lets_unready_go(&unready));
    }
}
