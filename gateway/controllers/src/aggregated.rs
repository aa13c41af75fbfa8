//! Kinds that other API servers serve: they come with an APIService that is available, and go with it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResource;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::{APIService, APIServiceSpec};
use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::inventory::Inventory;
use crate::kinds::Kind;

/// How soon a server that did not say what it has is asked again: twice as long each time, up to the last.
const FIRST_AGAIN: Duration = Duration::from_millis(500);
const LAST_AGAIN: Duration = Duration::from_secs(30);

/// What other servers have, by the names of APIServices: ends what follows it.
type Followed = Arc<Mutex<HashMap<String, CancellationToken>>>;

/// Has the inventory follow the kinds of other servers.
pub(crate) fn follow(inventory: &Inventory, client: &Client, cluster: &Cluster, stop: &CancellationToken) {
    let (inventory, client, stop) = (inventory.clone(), client.clone(), stop.clone());
    let followed = Followed::default();
    cluster.apis.on_change(move |change| {
        let Some(api) = change.new.or(change.old) else { return };
        let name = api.metadata.name.clone().unwrap_or_default();
        let mut followed = followed.lock().unwrap_or_else(PoisonError::into_inner);
        match change.new.filter(|api| is_of_another_server(api)) {
            None => {
                if let Some(known) = followed.remove(&name) {
                    known.cancel();
                }
            }
            // One that is not available now keeps what it had.
            Some(api) if is_available(api) && !followed.contains_key(&name) => {
                let known = stop.child_token();
                followed.insert(name, known.clone());
                let (inventory, client, version) = (inventory.clone(), client.clone(), version_of(api));
                tokio::spawn(carob_keep::keep("discovery", known.clone(), move || {
                    discover(inventory.clone(), client.clone(), version.clone(), known.clone())
                }));
            }
            Some(_) => {}
        }
    });
}

/// Versions of groups whose servers don't answer.
pub(crate) fn unavailable(cluster: &Cluster) -> Vec<String> {
    let silent = cluster.apis.list(|api| is_of_another_server(api) && !is_available(api));
    silent.iter().map(|api| version_of(api)).collect()
}

/// Asks until that is answered what the other server has, and follows what isn't followed yet.
async fn discover(inventory: Inventory, client: Client, version: String, stop: CancellationToken) {
    let mut pause = FIRST_AGAIN;
    let resources = loop {
        match client.list_api_group_resources(&version).await {
            Ok(list) => break list.resources,
            Err(error) => tracing::debug!(version, %error, "discovering what another server serves"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_AGAIN);
    };
    let kinds = resources.iter().filter_map(|resource| Some((kind_of(&version, resource)?, resource)));
    for (kind, resource) in kinds {
        let kind = Arc::new(kind);
        if inventory.kinds().get(&kind.group, &kind.name).is_some() {
            continue;
        }
        inventory.kinds().add(Arc::clone(&kind));
        if resource.verbs.iter().any(|verb| verb == "watch") {
            tokio::spawn(inventory.clone().hear_of(client.clone(), Arc::clone(&kind), stop.child_token()));
        }
        let (inventory, stop) = (inventory.clone(), stop.clone());
        tokio::spawn(async move {
            stop.cancelled().await;
            inventory.kinds().remove(&kind);
        });
    }
}

/// A kind whose objects can be listed and deleted.
fn kind_of(version: &str, resource: &APIResource) -> Option<Kind> {
    let (group, version) = version.split_once('/')?;
    let has = |verb: &str| resource.verbs.iter().any(|known| known == verb);
    (!resource.name.contains('/') && has("list") && has("delete")).then(|| Kind {
        group: group.to_owned(),
        version: version.to_owned(),
        name: resource.kind.clone(),
        plural: resource.name.clone(),
        namespaced: resource.namespaced,
    })
}

fn is_of_another_server(api: &APIService) -> bool {
    api.spec.as_ref().is_some_and(|spec| spec.service.is_some())
}

fn is_available(api: &APIService) -> bool {
    let conditions = api.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|known| known.type_ == "Available" && known.status == "True")
}

/// `metrics.k8s.io/v1beta1`
fn version_of(api: &APIService) -> String {
    let part = |part: fn(&APIServiceSpec) -> Option<&String>| {
        api.spec.as_ref().and_then(part).map(String::as_str).unwrap_or_default()
    };
    format!("{}/{}", part(|spec| spec.group.as_ref()), part(|spec| spec.version.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_can_be_listed_and_deleted_is_a_kind() {
        let resource = |name: &str, verbs: &[&str]| -> APIResource {
            serde_json::from_value(json!({"name": name, "singularName": "", "namespaced": true, "kind": "Flunder",
                "verbs": verbs}))
            .unwrap()
        };
        let kind = kind_of("wardle.example/v1", &resource("flunders", &["delete", "list"])).unwrap();
        assert_eq!(
            (kind.group.as_str(), kind.version.as_str(), kind.plural.as_str()),
            ("wardle.example", "v1", "flunders")
        );
        assert!(kind_of("wardle.example/v1", &resource("flunders", &["list"])).is_none());
        assert!(kind_of("wardle.example/v1", &resource("flunders/status", &["delete", "list"])).is_none());
    }

    #[test]
    fn a_server_that_is_not_available_is_known_by_its_group_and_version() {
        let api: APIService = serde_json::from_value(json!({"metadata": {"name": "v1.e.x"}, "spec": {"group": "e.x",
            "version": "v1", "groupPriorityMinimum": 1, "versionPriority": 1,
            "service": {"namespace": "n", "name": "s"}}, "status": {"conditions": [
                {"type": "Available", "status": "False"}]}}))
        .unwrap();
        assert!(is_of_another_server(&api) && !is_available(&api));
        assert_eq!(version_of(&api), "e.x/v1");
    }
}
