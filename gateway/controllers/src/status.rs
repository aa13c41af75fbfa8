//! Writing what a controller observes into an object's status.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Client;
use kube::api::{Api, PostParams};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::informer::Informer;
use crate::ownership::Owned;

/// What a merge patch must say to make `new` of `old`: what is missing in `new` is said to go.
pub(crate) fn difference(old: &Value, new: &Value) -> Value {
    let (Value::Object(old), Value::Object(new)) = (old, new) else { return new.clone() };
    let mut patch = Map::new();
    for (key, value) in new {
        match old.get(key) {
            Some(known) if known == value => {}
            Some(known) => {
                patch.insert(key.clone(), difference(known, value));
            }
            None => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    Value::Object(patch)
}

/// Writes the status of the very object that was looked at, if it is another than before. One that has changed or is
/// gone meanwhile is left for the look that the change leads to. Whether the object now has this status.
pub(crate) async fn write<K, S>(
    client: &Client,
    informer: &Informer<K>,
    object: &K,
    old: Option<&S>,
    new: &S,
) -> Result<bool, kube::Error>
where
    K: Owned + Send + Sync + 'static,
    S: Serialize,
{
    let api: Api<K> = Api::namespaced(client.clone(), object.meta().namespace.as_deref().unwrap_or_default());
    write_in(&api, informer, object, old, new).await
}

/// The same through an API that was chosen: that of a cluster-scoped kind.
pub(crate) async fn write_in<K, S>(
    api: &Api<K>,
    informer: &Informer<K>,
    object: &K,
    old: Option<&S>,
    new: &S,
) -> Result<bool, kube::Error>
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned
        + Serialize
        + Send
        + Sync
        + 'static,
    S: Serialize,
{
    let (before, after) = (old.map_or_else(|| json!({}), |old| json!(old)), json!(new));
    if old.is_some() && before == after {
        return Ok(true);
    }
    let patch = json!({"status": difference(&before, &after)});
    match change_status(api, object, patch).await {
        Ok(written) => {
            informer.learn(written);
            Ok(true)
        }
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

/// Changes an object as a merge patch says, by an update of the very version that was looked at: to update is what the
/// roles of Kubernetes' controllers allow, and what was changed meanwhile is a conflict.
pub(crate) async fn change<K>(api: &Api<K>, object: &K, patch: Value) -> Result<K, kube::Error>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Serialize,
{
    let name = object.meta().name.as_deref().unwrap_or_default();
    api.replace(name, &PostParams::default(), &merged(object, &patch)?).await
}

/// The same for the status, and what of the metadata goes with it.
pub(crate) async fn change_status<K>(api: &Api<K>, object: &K, patch: Value) -> Result<K, kube::Error>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Serialize,
{
    let name = object.meta().name.as_deref().unwrap_or_default();
    api.replace_status(name, &PostParams::default(), &merged(object, &patch)?).await
}

fn merged<K: DeserializeOwned + Serialize>(object: &K, patch: &Value) -> Result<K, kube::Error> {
    let mut whole = serde_json::to_value(object).map_err(kube::Error::SerdeError)?;
    merge(&mut whole, patch);
    serde_json::from_value(whole).map_err(kube::Error::SerdeError)
}

/// A merge patch, RFC 7386.
fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        into.clone_from(patch);
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    let Value::Object(into) = into else { return };
    for (key, value) in patch {
        if value.is_null() {
            into.shift_remove(key);
        } else {
            merge(into.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// This moment, as precise as Kubernetes writes times.
pub(crate) fn now() -> Time {
    let now = jiff::Timestamp::now();
    Time(jiff::Timestamp::from_second(now.as_second()).unwrap_or(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_names_what_goes_and_what_changes_and_nothing_else() {
        let old = json!({"a": 1, "b": {"c": 1, "d": 2}, "e": [1]});
        let new = json!({"a": 1, "b": {"c": 3}, "f": true});
        let patch = difference(&old, &new);
        assert_eq!(patch, json!({"b": {"c": 3, "d": null}, "f": true, "e": null}));
        let mut made = old;
        merge(&mut made, &patch);
        assert_eq!(made, new);
    }
}
