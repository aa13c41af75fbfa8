//! ClusterRoles that are put together of others: their rules are those of all ClusterRoles that they select.

use std::sync::Arc;

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::cluster::Cluster;
use crate::controller::{Controller, Setup};
use crate::informer::Key;
use crate::ownership::Selector;
use crate::queue::{Again, Queue};
use crate::replica_set::tolerate_gone;

pub(crate) struct Aggregation {
    cluster: Cluster,
}

impl Controller for Aggregation {
    type Item = Key;
    const NAME: &'static str = "clusterrole-aggregation-controller";

    fn new(setup: &Setup<'_>) -> Self {
        Self { cluster: setup.cluster.clone() }
    }

    fn listen(self: &Arc<Self>, _: &Setup<'_>, queue: &Queue<Key>) {
        let (roles, queue) = (self.cluster.cluster_roles.clone(), queue.clone());
        self.cluster.cluster_roles.on_change(move |_| {
            let aggregated = roles.list(|role| role.aggregation_rule.is_some());
            for role in &aggregated {
                queue.add(Key::of(&**role));
            }
        });
    }

    async fn reconcile(&self, key: Key) -> Result<Again, kube::Error> {
        let Some(role) = self.cluster.cluster_roles.get(&key) else { return Ok(None) };
        let Some(parts) = &role.aggregation_rule else { return Ok(None) };
        let mut rules: Vec<PolicyRule> = Vec::new();
        for written in parts.cluster_role_selectors.iter().flatten() {
            let selector = Selector::read_or_everything(Some(written));
            let chosen = self.cluster.cluster_roles.list(|other: &ClusterRole| {
                selector.matches(&other.metadata) && other.metadata.name != role.metadata.name
            });
            for rule in chosen.iter().flat_map(|other| other.rules.iter().flatten()) {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
        if role.rules.as_deref().unwrap_or_default() == rules {
            return Ok(None);
        }
        let api: Api<ClusterRole> = Api::all(self.cluster.client.clone());
        let patch = Patch::Merge(json!({
            "metadata": {"uid": role.metadata.uid, "resourceVersion": role.metadata.resource_version}, "rules": rules,
        }));
        tolerate_gone(api.patch(&key.name, &PatchParams::default(), &patch).await.map(|_| ()))?;
        Ok(None)
    }
}
