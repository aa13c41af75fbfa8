//! Writing what a controller observes into an object's status.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde::Serialize;
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
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + Sync + 'static,
    S: Serialize,
{
    let (before, after) = (old.map_or_else(|| json!({}), |old| json!(old)), json!(new));
    if old.is_some() && before == after {
        return Ok(true);
    }
    let meta = object.meta();
    let patch = json!({
        "metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version},
        "status": difference(&before, &after),
    });
    let name = meta.name.as_deref().unwrap_or_default();
    match api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(written) => {
            informer.learn(written);
            Ok(true)
        }
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(false),
        Err(error) => Err(error),
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
        json_patch::merge(&mut made, &patch);
        assert_eq!(made, new);
    }
}
