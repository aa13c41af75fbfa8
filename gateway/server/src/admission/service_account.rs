//! A Pod runs as a ServiceAccount, whose token, authority and namespace are mounted into its containers.

use std::time::Duration;

use carob_api::status::Status;
use carob_store::{Entry, KeyRange};
use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::authz::node;
use crate::call::Call;
use crate::objects::{self, store_failure, text};
use crate::random;

/// Where containers find their account.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// A token is asked for an hour and seven seconds, by which its requests can be told from others.
const TOKEN_SECONDS: i64 = 3607;
/// Mirror pods show what a node runs of its own files, as nobody.
const MIRROR: &str = "/metadata/annotations/kubernetes.io~1config.mirror";
/// A new namespace's account is made by a controller, a moment after the namespace.
const PATIENCE: Duration = Duration::from_secs(1);

/// Sets the account and mounts it; 403 if there is no such account.
pub(super) async fn admit(call: &Call, pod: &mut Value) -> Result<(), Status> {
    if pod.pointer(MIRROR).is_some() {
        return match wrong_with_mirror(pod) {
            Some(why) => Err(Status::forbidden(&call.resource(), text(pod, "/metadata/name"), why.to_owned())),
            None => Ok(()),
        };
    }
    let account_name = match text(pod, "/spec/serviceAccountName") {
        "" => "default".to_owned(),
        name => name.to_owned(),
    };
    let Some(entry) = find(call, &account_name).await? else {
        let namespace = call.namespace.as_deref().unwrap_or_default();
        let why = format!(
            "error looking up service account {namespace}/{account_name}: serviceaccount {account_name:?} not found"
        );
        return Err(Status::forbidden(&call.resource(), text(pod, "/metadata/name"), why));
    };
    let account = call.server.decoded.get(&entry)?;
    if let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) {
        spec.insert("serviceAccountName".to_owned(), account_name.as_str().into());
        spec.insert("serviceAccount".to_owned(), account_name.as_str().into());
    }
    if wants_token(pod, &account) {
        mount(pod);
    }
    let has_secrets =
        pod.pointer("/spec/imagePullSecrets").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    if !has_secrets
        && let Some(secrets) = account.get("imagePullSecrets").filter(|secrets| secrets.is_array())
        && let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut)
    {
        spec.insert("imagePullSecrets".to_owned(), secrets.clone());
    }
    Ok(())
}

/// A mirror pod gives nothing to anybody.
fn wrong_with_mirror(pod: &Value) -> Option<&'static str> {
    if !text(pod, "/spec/serviceAccountName").is_empty() {
        return Some("a mirror pod may not reference service accounts");
    }
    if node::refers_to_secrets(pod) {
        return Some("a mirror pod may not reference secrets");
    }
    let list = |value: &Value, at: &str| value.pointer(at).and_then(Value::as_array).cloned().unwrap_or_default();
    let mut sources = list(pod, "/spec/volumes").into_iter().flat_map(|volume| list(&volume, "/projected/sources"));
    sources
        .any(|source| source.get("serviceAccountToken").is_some_and(|token| !token.is_null()))
        .then_some("a mirror pod may not use ServiceAccountToken volume projections")
}

/// The account, waited for if it is the default one.
async fn find(call: &Call, name: &str) -> Result<Option<Entry>, Status> {
    let store = &call.server.store;
    let failed = |error| store_failure(&error);
    let key = objects::core_key("serviceaccounts", call.namespace.as_deref(), name);
    let revision = store.revision().await.map_err(failed)?;
    if let Some(entry) = store.get(&key).await.map_err(failed)? {
        return Ok(Some(entry));
    }
    if name != "default" {
        return Ok(None);
    }
    let mut happens = store.watch(KeyRange::key(key.as_str()), revision).await.map_err(failed)?;
    let appears = async {
        while let Some(Ok(_)) = happens.next().await {
            if let Ok(Some(entry)) = store.get(&key).await {
                return Some(entry);
            }
        }
        None
    };
    Ok(tokio::time::timeout(PATIENCE, appears).await.unwrap_or(None))
}

fn wants_token(pod: &Value, account: &Value) -> bool {
    let of_pod = pod.pointer("/spec/automountServiceAccountToken").and_then(Value::as_bool);
    let of_account = account.get("automountServiceAccountToken").and_then(Value::as_bool);
    of_pod.or(of_account).unwrap_or(true)
}

fn mount(pod: &mut Value) {
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let present = spec.get("volumes").and_then(Value::as_array).into_iter().flatten().find_map(|volume| {
        let name = volume.get("name").and_then(Value::as_str)?;
        (name.starts_with(VOLUME_PREFIX) && volume.get("projected").is_some()).then(|| name.to_owned())
    });
    let name = present.clone().unwrap_or_else(|| format!("{VOLUME_PREFIX}{}", random::suffix(5)));
    let mut used = false;
    for list in ["initContainers", "containers"] {
        let Some(containers) = spec.get_mut(list).and_then(Value::as_array_mut) else { continue };
        for container in containers {
            let Some(container) = container.as_object_mut() else { continue };
            let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
            if mounts.is_null() {
                *mounts = json!([]);
            }
            let Some(mounts) = mounts.as_array_mut() else { continue };
            if mounts.iter().any(|mount| mount["mountPath"] == MOUNT_PATH) {
                continue;
            }
            mounts.push(json!({ "name": name, "readOnly": true, "mountPath": MOUNT_PATH }));
            used = true;
        }
    }
    if !used || present.is_some() {
        return;
    }
    let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
    if volumes.is_null() {
        *volumes = json!([]);
    }
    if let Some(volumes) = volumes.as_array_mut() {
        volumes.push(volume(&name));
    }
}

fn volume(name: &str) -> Value {
    json!({
        "name": name,
        "projected": {
            "sources": [
                { "serviceAccountToken": { "expirationSeconds": TOKEN_SECONDS, "path": "token" } },
                { "configMap": {
                    "name": "kube-root-ca.crt",
                    "items": [{ "key": "ca.crt", "path": "ca.crt" }],
                } },
                { "downwardAPI": { "items": [{
                    "path": "namespace",
                    "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" },
                }] } },
            ],
            "defaultMode": 420,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_container_without_a_mount_of_its_own_gets_the_account() {
        let mut pod = json!({"spec": {
            "initContainers": [{"name": "i"}],
            "containers": [{"name": "a"}, {"name": "b", "volumeMounts": [{"name": "x", "mountPath": MOUNT_PATH}]}],
        }});
        mount(&mut pod);
        let name = text(&pod, "/spec/volumes/0/name");
        assert!(name.starts_with(VOLUME_PREFIX));
        assert_eq!(text(&pod, "/spec/containers/0/volumeMounts/0/name"), name);
        assert_eq!(text(&pod, "/spec/initContainers/0/volumeMounts/0/name"), name);
        assert_eq!(pod.pointer("/spec/containers/1/volumeMounts").and_then(Value::as_array).map(Vec::len), Some(1));
    }

    #[test]
    fn a_mirror_pod_refers_to_no_account_secret_or_token() {
        let wrong = |spec: Value| wrong_with_mirror(&json!({ "spec": spec }));
        assert_eq!(wrong(json!({"containers": [{"name": "a"}]})), None);
        let account = json!({"serviceAccountName": "default"});
        assert_eq!(wrong(account), Some("a mirror pod may not reference service accounts"));
        for spec in [
            json!({"imagePullSecrets": [{"name": "s"}]}),
            json!({"containers": [{"name": "a", "envFrom": [{"secretRef": {"name": "s"}}]}]}),
            json!({"volumes": [{"name": "v", "secret": {"secretName": "s"}}]}),
        ] {
            assert_eq!(wrong(spec), Some("a mirror pod may not reference secrets"));
        }
        let token =
            json!({"volumes": [{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]});
        assert_eq!(wrong(token), Some("a mirror pod may not use ServiceAccountToken volume projections"));
    }

    #[test]
    fn a_pod_may_refuse_and_has_the_last_word() {
        let no = json!({"automountServiceAccountToken": false});
        assert!(!wants_token(&json!({"spec": {}}), &no));
        assert!(wants_token(&json!({"spec": {"automountServiceAccountToken": true}}), &no));
        assert!(wants_token(&json!({"spec": {}}), &json!({})));
    }
}
