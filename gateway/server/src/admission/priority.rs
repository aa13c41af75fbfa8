//! A Pod's priority comes from its class. Only the two classes that every cluster has are known yet.

use carob_api::status::Status;
use serde_json::Value;

use crate::call::Call;
use crate::objects::text;

/// Names and values of the classes that every cluster has.
const CLASSES: [(&str, i64); 2] = [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];
const PREEMPTION: &str = "PreemptLowerPriority";

/// Sets `priority` and `preemptionPolicy`; 403 for an unknown class or another priority than the class has.
pub(super) fn admit(call: &Call, pod: &mut Value) -> Result<(), Status> {
    let name = text(pod, "/metadata/name");
    let class = text(pod, "/spec/priorityClassName");
    let priority = match CLASSES.iter().find(|(known, _)| *known == class) {
        _ if class.is_empty() => 0,
        Some((_, priority)) => *priority,
        None => {
            let why = format!("no PriorityClass with name {class} was found");
            return Err(Status::forbidden(&call.resource(), name, why));
        }
    };
    if let Some(given) = pod.pointer("/spec/priority").and_then(Value::as_i64).filter(|given| *given != priority) {
        let why = format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller \
             computed {priority} from the given PriorityClass name"
        );
        return Err(Status::forbidden(&call.resource(), name, why));
    }
    if let Some(given) = pod.pointer("/spec/preemptionPolicy").and_then(Value::as_str).filter(|p| *p != PREEMPTION) {
        let why = format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission \
             controller computed {PREEMPTION} from the given PriorityClass name"
        );
        return Err(Status::forbidden(&call.resource(), name, why));
    }
    if let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) {
        spec.insert("priority".to_owned(), priority.into());
        spec.insert("preemptionPolicy".to_owned(), PREEMPTION.into());
    }
    Ok(())
}
