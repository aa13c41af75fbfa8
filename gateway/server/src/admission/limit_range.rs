//! `LimitRanger`: what containers, Pods and claims of a namespace get without asking, and between which bounds they ask.

use std::sync::Arc;

use carob_api::quantity::Quantity;
use carob_api::status::Status;
use carob_store::KeyRange;
use serde_json::{Value, json};

use super::Request;
use super::amounts::{self, Amounts};
use crate::call::Call;
use crate::objects::{store_failure, text};

const NOTE: &str = "kubernetes.io/limit-ranger";

/// Gives a Pod's containers what the namespace's ranges say.
pub(super) async fn complete(request: &mut Request<'_>) -> Result<(), Status> {
    for range in ranges(request.call).await? {
        give(&range, &mut request.object);
    }
    Ok(())
}

/// Refuses a Pod or claim that is out of bounds.
pub(super) async fn check(request: &Request<'_>) -> Result<(), Status> {
    for range in ranges(request.call).await? {
        let mut wrong = Vec::new();
        for item in items(&range) {
            match (request.call.kind.plural, text(item, "/type")) {
                ("pods", "Container") => {
                    for container in containers(&request.object) {
                        let of = |which: &str| amounts::read(container.pointer(&format!("/resources/{which}")));
                        bounds(item, "Container", &of("requests"), &of("limits"), &mut wrong);
                    }
                }
                ("pods", "Pod") => {
                    let of = |which| amounts::of_pod(&request.object, which);
                    bounds(item, "Pod", &of("requests"), &of("limits"), &mut wrong);
                }
                ("persistentvolumeclaims", "PersistentVolumeClaim") => {
                    let asked = amounts::read(request.object.pointer("/spec/resources/requests"));
                    claim_bounds(item, &asked, &mut wrong);
                }
                _ => {}
            }
        }
        let why = match wrong.as_slice() {
            [] => continue,
            [one] => one.clone(),
            several => format!("[{}]", several.join(", ")),
        };
        return Err(Status::forbidden(&request.call.resource(), &request.name, why));
    }
    Ok(())
}

/// The ranges of the request's namespace.
async fn ranges(call: &Call) -> Result<Vec<Arc<Value>>, Status> {
    let namespace = call.namespace.as_deref().unwrap_or_default();
    let range = KeyRange::prefix(format!("/core/limitranges/{namespace}/"));
    let page = call.server.store.range(&range, None, None).await.map_err(|error| store_failure(&error))?;
    page.entries.iter().map(|entry| call.server.decoded.get(entry)).collect()
}

fn items(range: &Value) -> impl Iterator<Item = &Value> {
    range.pointer("/spec/limits").and_then(Value::as_array).into_iter().flatten()
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["containers", "initContainers"]
        .iter()
        .flat_map(|list| pod.pointer(&format!("/spec/{list}")).and_then(Value::as_array).into_iter().flatten())
}

/// Fills in what containers don't say, and notes it on the Pod.
fn give(range: &Value, pod: &mut Value) {
    let mut defaults = [("requests", "request", Amounts::new()), ("limits", "limit", Amounts::new())];
    for item in items(range).filter(|item| text(item, "/type") == "Container") {
        defaults[0].2.extend(amounts::read(item.get("defaultRequest")));
        defaults[1].2.extend(amounts::read(item.get("default")));
    }
    let mut notes = Vec::new();
    for (list, what) in [("containers", "container"), ("initContainers", "init container")] {
        let containers = pod.pointer_mut(&format!("/spec/{list}")).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let name = text(container, "/name").to_owned();
            for (field, word, amounts) in &defaults {
                let set = fill(container, field, amounts);
                if !set.is_empty() {
                    notes.push(format!("{} {word} for {what} {name}", set.join(", ")));
                }
            }
        }
    }
    if !notes.is_empty() {
        let annotations = &mut pod["metadata"]["annotations"];
        if !annotations.is_object() {
            *annotations = json!({});
        }
        annotations[NOTE] = format!("LimitRanger plugin set: {}", notes.join("; ")).into();
    }
}

/// Sets the amounts that a container doesn't; names them.
fn fill(container: &mut Value, field: &str, amounts: &Amounts) -> Vec<String> {
    let mut set = Vec::new();
    for (name, amount) in amounts {
        let resources = &mut container["resources"];
        if !resources.is_object() {
            *resources = json!({});
        }
        let list = &mut resources[field];
        if !list.is_object() {
            *list = json!({});
        }
        if list.get(name).is_none() {
            list[name] = amount.canonical().into();
            set.push(name.clone());
        }
    }
    // What was made in passing goes again, so that nothing stays that nobody asked for.
    if let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut) {
        resources.retain(|_, list| list.as_object().is_none_or(|list| !list.is_empty()));
    }
    set
}

fn bounds(item: &Value, what: &str, requests: &Amounts, limits: &Amounts, wrong: &mut Vec<String>) {
    let of = |field: &str| amounts::read(item.get(field));
    for (name, least) in of("min") {
        let base = format!("minimum {name} usage per {what} is {}", least.canonical());
        match (requests.get(&name), limits.get(&name)) {
            (None, _) => wrong.push(format!("{base}.  No request is specified")),
            (Some(asked), _) if *asked < least => wrong.push(format!("{base}, but request is {}", asked.canonical())),
            (_, Some(limit)) if *limit < least => wrong.push(format!("{base}, but limit is {}", limit.canonical())),
            _ => {}
        }
    }
    for (name, most) in of("max") {
        let base = format!("maximum {name} usage per {what} is {}", most.canonical());
        match (requests.get(&name), limits.get(&name)) {
            (_, None) => wrong.push(format!("{base}.  No limit is specified")),
            (_, Some(limit)) if *limit > most => wrong.push(format!("{base}, but limit is {}", limit.canonical())),
            (Some(asked), _) if *asked > most => wrong.push(format!("{base}, but request is {}", asked.canonical())),
            _ => {}
        }
    }
    for (name, ratio) in of("maxLimitRequestRatio") {
        ratio_bound(&name, what, &ratio, requests.get(&name), limits.get(&name), wrong);
    }
}

fn ratio_bound(
    name: &str,
    what: &str,
    most: &Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
    wrong: &mut Vec<String>,
) {
    let base = format!("{name} max limit to request ratio per {what} is {}", most.canonical());
    let given = |amount: Option<&Quantity>| amount.copied().filter(|amount| !amount.is_zero());
    let Some(request) = given(request) else {
        return wrong.push(format!("{base}, but no request is specified or request is 0"));
    };
    let Some(limit) = given(limit) else {
        return wrong.push(format!("{base}, but no limit is specified or limit is 0"));
    };
    // Compared exactly; only the text is rounded.
    const UNIT: i128 = 1_000_000_000;
    if limit.nanos().saturating_mul(UNIT) > request.nanos().saturating_mul(most.nanos()) {
        #[expect(clippy::cast_precision_loss, reason = "only shown")]
        let shown = limit.nanos() as f64 / request.nanos() as f64;
        wrong.push(format!("{base}, but provided ratio is {shown:.6}"));
    }
}

/// Whether what is asked for lies on the wrong side of a bound.
type IsWrong = fn(&Quantity, &Quantity) -> bool;

fn claim_bounds(item: &Value, asked: &Amounts, wrong: &mut Vec<String>) {
    let bounds: [(&str, &str, IsWrong); 2] =
        [("min", "minimum", |asked, bound| asked < bound), ("max", "maximum", |asked, bound| asked > bound)];
    for (field, word, is_wrong) in bounds {
        for (name, bound) in amounts::read(item.get(field)) {
            let base = format!("{word} {name} usage per PersistentVolumeClaim is {}", bound.canonical());
            match asked.get(&name) {
                None => wrong.push(format!("{base}.  No request is specified")),
                Some(asked) if is_wrong(asked, &bound) => {
                    wrong.push(format!("{base}, but request is {}", asked.canonical()));
                }
                Some(_) => {}
            }
        }
    }
}

/// Whether a change of a claim has to be looked at: only when it asks for another amount.
pub(super) fn asks_anew(request: &Request<'_>) -> bool {
    let asked = |object: &Value| object.pointer("/spec/resources/requests").cloned();
    request.old.is_none_or(|old| asked(old) != asked(&request.object))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_get_what_they_do_not_say_and_the_pod_tells_so() {
        let range = json!({"spec": {"limits": [{"type": "Container", "default": {"cpu": "500m", "memory": "64Mi"},
            "defaultRequest": {"cpu": "100m"}}]}});
        let mut pod = json!({"spec": {"containers": [
            {"name": "a"}, {"name": "b", "resources": {"limits": {"cpu": "2"}, "requests": {"cpu": "1"}}}]}});
        give(&range, &mut pod);
        assert_eq!(
            pod["spec"]["containers"][0]["resources"],
            json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "500m", "memory": "64Mi"}})
        );
        assert_eq!(pod["spec"]["containers"][1]["resources"]["limits"], json!({"cpu": "2", "memory": "64Mi"}));
        assert_eq!(
            pod["metadata"]["annotations"][NOTE],
            "LimitRanger plugin set: cpu request for container a; cpu, memory limit for container a; memory limit for \
             container b"
        );
    }

    #[test]
    fn what_is_out_of_bounds_is_said_with_the_bound() {
        let item = json!({"type": "Container", "min": {"cpu": "100m"}, "max": {"cpu": "1", "memory": "1Gi"},
            "maxLimitRequestRatio": {"cpu": "2"}});
        let mut wrong = Vec::new();
        let amounts = |cpu: &str| amounts::read(Some(&json!({"cpu": cpu})));
        bounds(&item, "Container", &amounts("50m"), &amounts("2"), &mut wrong);
        wrong.sort_unstable();
        assert_eq!(
            wrong,
            [
                "cpu max limit to request ratio per Container is 2, but provided ratio is 40.000000",
                "maximum cpu usage per Container is 1, but limit is 2",
                "maximum memory usage per Container is 1Gi.  No limit is specified",
                "minimum cpu usage per Container is 100m, but request is 50m",
            ]
        );
    }
}
