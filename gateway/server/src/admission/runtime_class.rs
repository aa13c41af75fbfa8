//! A Pod's RuntimeClass must exist: it says how the Pod is isolated, which nobody may guess. What isolation costs and where
//! it is to be had is written into the Pod.

use carob_api::status::Status;
use serde_json::{Map, Value, json};

use crate::call::Call;
use crate::objects::{store_failure, text};

/// Adds the class's overhead, node selector and tolerations; 403 if there is no such class, or the Pod says otherwise.
pub(super) async fn admit(call: &Call, pod: &mut Value) -> Result<(), Status> {
    let refuse = |pod: &Value, why: String| Status::forbidden(&call.resource(), text(pod, "/metadata/name"), why);
    let class = text(pod, "/spec/runtimeClassName");
    if class.is_empty() {
        let given = pod.pointer("/spec/overhead").and_then(Value::as_object).is_some_and(|map| !map.is_empty());
        let why = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
        return if given { Err(refuse(pod, why.to_owned())) } else { Ok(()) };
    }
    let key = format!("/node.k8s.io/runtimeclasses/{class}");
    let found = call.server.store.get(&key).await.map_err(|error| store_failure(&error))?;
    let Some(entry) = found else {
        return Err(refuse(pod, format!("pod rejected: RuntimeClass {class:?} not found")));
    };
    let class = call.server.decoded.get(&entry)?;
    complete(pod, &class).map_err(|why| refuse(pod, why))
}

/// Writes into the pod what the class says.
fn complete(pod: &mut Value, class: &Value) -> Result<(), String> {
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
    let filled = |value: Option<&Value>| value.and_then(Value::as_object).filter(|map| !map.is_empty()).cloned();
    let given = filled(spec.get("overhead"));
    match (filled(class.pointer("/overhead/podFixed")), given) {
        (Some(wanted), None) => {
            spec.insert("overhead".to_owned(), wanted.into());
        }
        (Some(wanted), Some(given)) if wanted != given => {
            return Err("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead".to_owned());
        }
        (None, Some(_)) => {
            return Err("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead".to_owned());
        }
        _ => {}
    }
    if let Some(wanted) = filled(class.pointer("/scheduling/nodeSelector")) {
        select_nodes(spec, wanted)?;
    }
    let wanted = class.pointer("/scheduling/tolerations").and_then(Value::as_array).cloned().unwrap_or_default();
    if !wanted.is_empty() {
        let tolerations = spec.entry("tolerations").or_insert_with(|| json!([]));
        if tolerations.is_null() {
            *tolerations = json!([]);
        }
        if let Some(list) = tolerations.as_array_mut() {
            let missing: Vec<Value> = wanted.into_iter().filter(|toleration| !list.contains(toleration)).collect();
            list.extend(missing);
        }
    }
    Ok(())
}

fn select_nodes(spec: &mut Map<String, Value>, wanted: Map<String, Value>) -> Result<(), String> {
    let selector = spec.entry("nodeSelector").or_insert_with(|| json!({}));
    if selector.is_null() {
        *selector = json!({});
    }
    let Some(selector) = selector.as_object_mut() else { return Ok(()) };
    for (key, value) in wanted {
        match selector.get(&key) {
            Some(given) if *given != value => {
                let (value, given) = (value.as_str().unwrap_or_default(), given.as_str().unwrap_or_default());
                return Err(format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}; pod.spec.nodeSelector[{key}] = \
                     {given}"
                ));
            }
            _ => selector.insert(key, value),
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_gets_what_its_class_says() {
        let class = json!({"overhead": {"podFixed": {"cpu": "100m"}}, "scheduling": {
            "nodeSelector": {"a": "b"}, "tolerations": [{"key": "k", "operator": "Exists"}]}});
        let mut pod = json!({"spec": {"nodeSelector": {"c": "d"}}});
        complete(&mut pod, &class).expect("they agree");
        assert_eq!(pod["spec"]["overhead"], json!({"cpu": "100m"}));
        assert_eq!(pod["spec"]["nodeSelector"], json!({"c": "d", "a": "b"}));
        assert_eq!(pod["spec"]["tolerations"].as_array().map(Vec::len), Some(1));
    }

    #[test]
    fn a_pod_may_not_contradict_its_class() {
        let class = json!({"scheduling": {"nodeSelector": {"a": "b"}}});
        let mut pod = json!({"spec": {"nodeSelector": {"a": "x"}}});
        assert!(
            complete(&mut pod, &class).unwrap_err().starts_with("conflict: runtimeClass.scheduling.nodeSelector[a]")
        );
        let mut pod = json!({"spec": {"overhead": {"cpu": "1"}}});
        assert!(complete(&mut pod, &class).unwrap_err().contains("without corresponding RuntimeClass"));
    }
}
