//! A Pod's priority comes from its class, or from the class for pods that name none.

use carob_api::status::Status;
use carob_store::KeyRange;
use serde_json::Value;

use super::request::Operation;
use super::request::Request;
use crate::call::Call;
use crate::objects::{store_failure, text};

/// Under which classes are stored.
const CLASSES: &str = "/scheduling.k8s.io/priorityclasses/";
const PREEMPTION: &str = "PreemptLowerPriority";

/// What a class gives a pod.
struct Rank {
    class: String,
    priority: i64,
    preemption: String,
}

/// Sets `priority` and `preemptionPolicy`; 403 for an unknown class or another priority than the class has.
pub(super) async fn admit(call: &Call, pod: &mut Value) -> Result<(), Status> {
    let name = text(pod, "/metadata/name");
    let class = text(pod, "/spec/priorityClassName");
    let rank = if class.is_empty() { default_rank(call).await? } else { rank_of(call, name, class).await? };
    if let Some(given) = pod.pointer("/spec/priority").and_then(Value::as_i64).filter(|given| *given != rank.priority) {
        let why = format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller \
             computed {} from the given PriorityClass name",
            rank.priority
        );
        return Err(Status::forbidden(&call.resource(), name, why));
    }
    let given = text(pod, "/spec/preemptionPolicy");
    if !given.is_empty() && given != rank.preemption {
        let why = format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission \
             controller computed {} from the given PriorityClass name",
            rank.preemption
        );
        return Err(Status::forbidden(&call.resource(), name, why));
    }
    if let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) {
        if !rank.class.is_empty() {
            spec.insert("priorityClassName".to_owned(), rank.class.into());
        }
        spec.insert("priority".to_owned(), rank.priority.into());
        spec.insert("preemptionPolicy".to_owned(), rank.preemption.into());
    }
    Ok(())
}

/// An update that says nothing of the priority doesn't take it away.
pub(super) fn keep(pod: &mut Value, old: Option<&Value>) {
    let Some(old) = old.and_then(|old| old.get("spec")) else { return };
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return };
    for field in ["priority", "preemptionPolicy"] {
        let missing = spec.get(field).is_none_or(Value::is_null);
        if let Some(value) = old.get(field).filter(|value| missing && !value.is_null()) {
            spec.insert(field.to_owned(), value.clone());
        }
    }
}

/// 403 for a second class that is to be the one for pods that name none.
pub(super) async fn one_default(request: &Request<'_>) -> Result<(), Status> {
    if !is_default(&request.object) {
        return Ok(());
    }
    let name = text(&request.object, "/metadata/name");
    let changed_before = request.operation == Operation::Update && request.old.is_some_and(is_default);
    let others = if changed_before { Vec::new() } else { classes(request.call).await? };
    match others.iter().find(|class| is_default(class) && text(class, "/metadata/name") != name) {
        None => Ok(()),
        Some(other) => {
            let why = format!(
                "PriorityClass {} is already marked as default. Only one default can exist",
                text(other, "/metadata/name")
            );
            Err(Status::forbidden(&request.call.resource(), name, why))
        }
    }
}

fn is_default(class: &Value) -> bool {
    class.get("globalDefault").and_then(Value::as_bool).unwrap_or(false)
}

async fn rank_of(call: &Call, pod: &str, class: &str) -> Result<Rank, Status> {
    let found = call.server.store.get(&format!("{CLASSES}{class}")).await.map_err(|error| store_failure(&error))?;
    let Some(entry) = found else {
        let why = format!("no PriorityClass with name {class} was found");
        return Err(Status::forbidden(&call.resource(), pod, why));
    };
    Ok(rank(&*call.server.decoded.get(&entry)?))
}

/// The rank of pods that name no class; should there be several default classes, the lowest.
async fn default_rank(call: &Call) -> Result<Rank, Status> {
    let ranks = classes(call).await?.into_iter().filter(|class| is_default(class)).map(|class| rank(&class));
    let lowest = ranks.min_by_key(|rank| rank.priority);
    Ok(lowest.unwrap_or_else(|| Rank { class: String::new(), priority: 0, preemption: PREEMPTION.to_owned() }))
}

fn rank(class: &Value) -> Rank {
    let preemption = Some(text(class, "/preemptionPolicy")).filter(|policy| !policy.is_empty());
    Rank {
        class: text(class, "/metadata/name").to_owned(),
        priority: class.get("value").and_then(Value::as_i64).unwrap_or(0),
        preemption: preemption.unwrap_or(PREEMPTION).to_owned(),
    }
}

async fn classes(call: &Call) -> Result<Vec<std::sync::Arc<Value>>, Status> {
    let page = call.server.store.range(&KeyRange::prefix(CLASSES), None, None).await;
    let page = page.map_err(|error| store_failure(&error))?;
    page.entries.iter().map(|entry| call.server.decoded.get(entry)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_class_without_a_policy_preempts() {
        let rank = rank(&json!({"metadata": {"name": "a"}, "value": 7}));
        assert_eq!((rank.class.as_str(), rank.priority, rank.preemption.as_str()), ("a", 7, PREEMPTION));
    }

    #[test]
    fn an_update_keeps_the_priority() {
        let old = json!({"spec": {"priority": 5, "preemptionPolicy": "Never"}});
        let mut pod = json!({"spec": {"preemptionPolicy": "PreemptLowerPriority"}});
        keep(&mut pod, Some(&old));
        assert_eq!(pod["spec"], json!({"preemptionPolicy": "PreemptLowerPriority", "priority": 5}));
    }
}
