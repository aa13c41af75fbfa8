//! ResourceQuotas: what of each is used.
//!
//! The server refuses what would exceed a quota when it is made, and charges the quota then; here the charges are put
//! right from what is there, in particular when something goes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use carob_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuotaSpec, ResourceQuotaStatus, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Written;
use kube::api::{Api, ListParams};

use crate::cluster::Cluster;
use crate::controller::{self, Controller, Setup};
use crate::informer::Key;
use crate::inventory::News;
use crate::kinds::Kinds;
use crate::pod_control::phase;
use crate::queue::{Again, Queue};
use crate::requests::Requests;
use crate::status;

/// Everything is counted anew this often, whatever was heard.
const RECOUNT: Duration = Duration::from_secs(300);

/// Quotas that count the objects of a kind of the core group, whose name they have.
const COUNTED: [&str; 5] =
    ["configmaps", "secrets", "replicationcontrollers", "resourcequotas", "persistentvolumeclaims"];

pub(crate) struct Quotas {
    cluster: Cluster,
    kinds: Kinds,
}

impl Controller for Quotas {
    type Item = Key;
    const NAME: &'static str = "resourcequota-controller";

    fn new(setup: &Setup<'_>) -> Self {
        Self { cluster: setup.cluster.clone(), kinds: setup.inventory.kinds().clone() }
    }

    fn listen(self: &Arc<Self>, setup: &Setup<'_>, queue: &Queue<Key>) {
        controller::each(&self.cluster.quotas, queue);
        let (quotas, queue) = (self.cluster.quotas.clone(), queue.clone());
        setup.inventory.on_news(move |news| {
            let namespace = match news {
                News::Here(kind, _) if kind.name == "ResourceQuota" => return,
                News::Here(_, meta) => meta.namespace.as_deref().unwrap_or_default(),
                News::Gone(_, namespace) => namespace,
            };
            if !namespace.is_empty() {
                quotas.list_in(namespace, |_| true).iter().for_each(|quota| queue.add(Key::of(&**quota)));
            }
        });
    }

    async fn reconcile(&self, key: Key) -> Result<Again, kube::Error> {
        let Some(quota) = self.cluster.quotas.get(&key) else { return Ok(None) };
        let spec = quota.spec.clone().unwrap_or_default();
        let hard = spec.hard.clone().unwrap_or_default();
        let used = self.used(&key.namespace, &spec).await?;
        let status = ResourceQuotaStatus { hard: Some(hard), used: Some(used) };
        let (client, quotas) = (&self.cluster.client, &self.cluster.quotas);
        let written = status::write(client, quotas, &*quota, quota.status.as_ref(), &status).await?;
        // Charged meanwhile: counted again with that.
        Ok(Some(if written { RECOUNT } else { Duration::from_millis(50) }))
    }
}

impl Quotas {
    /// What is used of each resource that the quota limits, as the API has it now.
    async fn used(&self, namespace: &str, spec: &ResourceQuotaSpec) -> Result<BTreeMap<String, Written>, kube::Error> {
        let names: BTreeSet<&String> = spec.hard.iter().flatten().map(|(name, _)| name).collect();
        let any = |test: fn(&str) -> bool| names.iter().any(|name| test(name));
        let mut totals: BTreeMap<String, i128> = BTreeMap::new();
        if any(of_pods) {
            let pods: Api<Pod> = Api::namespaced(self.cluster.client.clone(), namespace);
            for pod in pods.list(&ListParams::default()).await?.items {
                let charged = charge_pod(&pod);
                if !in_scope(spec, &pod) {
                    continue;
                }
                for (name, amount) in charged {
                    *totals.entry(name).or_default() += amount;
                }
            }
        }
        if any(|name| name.starts_with("services")) {
            let services: Api<Service> = Api::namespaced(self.cluster.client.clone(), namespace);
            for service in services.list(&ListParams::default()).await?.items {
                for (name, amount) in charge_service(&service) {
                    *totals.entry(name.to_owned()).or_default() += i128::from(amount) * NANO;
                }
            }
        }
        if any(|name| name == "requests.storage" || name.contains(".storageclass.storage.k8s.io/")) {
            let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.cluster.client.clone(), namespace);
            for claim in claims.list(&ListParams::default()).await?.items {
                for (name, amount) in charge_claim(&claim) {
                    *totals.entry(name).or_default() += amount;
                }
            }
        }
        for name in &names {
            let (plural, group) = match name.strip_prefix("count/") {
                Some(counted) => counted.split_once('.').unwrap_or((counted, "")),
                None if COUNTED.contains(&name.as_str()) => (name.as_str(), ""),
                None => continue,
            };
            let kind = self.kinds.all().into_iter().find(|kind| kind.plural == plural && kind.group == group);
            if let Some(kind) = kind.filter(|kind| kind.namespaced) {
                let objects = kind.api(&self.cluster.client, namespace).list_metadata(&ListParams::default()).await?;
                totals.insert((*name).clone(), i128::try_from(objects.items.len()).unwrap_or(0) * NANO);
            }
        }
        let used = names.into_iter().map(|name| {
            let total = totals.get(name).copied().unwrap_or(0);
            (name.clone(), Written(written(total, binary(name))))
        });
        Ok(used.collect())
    }
}

/// One, as quantities count.
const NANO: i128 = 1_000_000_000;

fn written(nanos: i128, binary: bool) -> String {
    match i64::try_from(nanos / NANO) {
        Ok(bytes) if binary && nanos % NANO == 0 => Quantity::from_bytes(bytes).canonical(),
        _ => Quantity::from_nanos(nanos).canonical(),
    }
}

/// Whether amounts of a resource are written in powers of two.
fn binary(name: &str) -> bool {
    name.contains("memory") || name.contains("storage") || name.contains("hugepages")
}

fn of_pods(name: &str) -> bool {
    const PLAIN: [&str; 4] = ["pods", "cpu", "memory", "ephemeral-storage"];
    PLAIN.contains(&name)
        || name.starts_with("requests.") && name != "requests.storage"
        || name.starts_with("limits.")
        || name.starts_with("hugepages-")
}

/// What a pod takes. One that has ended, or whose end is overdue, takes nothing.
fn charge_pod(pod: &Pod) -> Vec<(String, i128)> {
    if matches!(phase(pod), "Succeeded" | "Failed") {
        return Vec::new();
    }
    if let Some(ending) = &pod.metadata.deletion_timestamp {
        let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
        let over = jiff::Timestamp::now().duration_since(ending.0) > jiff::SignedDuration::from_secs(grace);
        if over {
            return Vec::new();
        }
    }
    let mut charged = vec![("pods".to_owned(), NANO)];
    for (name, amount) in Requests::of(pod).iter().filter(|(name, _)| *name != "pods") {
        charged.push((format!("requests.{name}"), amount));
        charged.push((name.to_owned(), amount));
    }
    for (name, amount) in Requests::limits_of(pod).iter() {
        charged.push((format!("limits.{name}"), amount));
    }
    charged
}

fn charge_service(service: &Service) -> Vec<(&'static str, i64)> {
    let spec = service.spec.clone().unwrap_or_default();
    let mut charged = vec![("services", 1)];
    let ports = i64::try_from(spec.ports.map_or(0, |ports| ports.len())).unwrap_or(0);
    match spec.type_.as_deref() {
        Some("NodePort") => charged.push(("services.nodeports", ports)),
        Some("LoadBalancer") => {
            charged.push(("services.loadbalancers", 1));
            if spec.allocate_load_balancer_node_ports != Some(false) {
                charged.push(("services.nodeports", ports));
            }
        }
        _ => {}
    }
    charged
}

fn charge_claim(claim: &PersistentVolumeClaim) -> Vec<(String, i128)> {
    let spec = claim.spec.clone().unwrap_or_default();
    let requests = spec.resources.and_then(|resources| resources.requests).unwrap_or_default();
    let amount = requests.get("storage").and_then(|amount| Quantity::parse(&amount.0).ok()).map_or(0, |q| q.nanos());
    let mut charged = vec![("requests.storage".to_owned(), amount)];
    if let Some(class) = spec.storage_class_name.filter(|class| !class.is_empty()) {
        charged.push((format!("{class}.storageclass.storage.k8s.io/requests.storage"), amount));
        charged.push((format!("{class}.storageclass.storage.k8s.io/persistentvolumeclaims"), NANO));
    }
    charged
}

/// Whether a quota is about a pod.
fn in_scope(spec: &ResourceQuotaSpec, pod: &Pod) -> bool {
    let plain = spec.scopes.iter().flatten().map(|scope| (scope.as_str(), "Exists", Vec::new()));
    let selected = spec.scope_selector.iter().flat_map(|selector| selector.match_expressions.iter().flatten());
    let selected =
        selected.map(|one| (one.scope_name.as_str(), one.operator.as_str(), one.values.clone().unwrap_or_default()));
    plain.chain(selected).all(|(scope, operator, values)| {
        let pod_spec = pod.spec.clone().unwrap_or_default();
        let best_effort = pod.status.as_ref().and_then(|status| status.qos_class.as_deref()) == Some("BestEffort");
        let ends = pod_spec.active_deadline_seconds.is_some();
        match scope {
            "BestEffort" => best_effort,
            "NotBestEffort" => !best_effort,
            "Terminating" => ends,
            "NotTerminating" => !ends,
            "CrossNamespacePodAffinity" => crosses(pod),
            "PriorityClass" => {
                let class = pod_spec.priority_class_name.unwrap_or_default();
                match operator {
                    "In" => values.contains(&class),
                    "NotIn" => !values.contains(&class),
                    "DoesNotExist" => class.is_empty(),
                    _ => !class.is_empty(),
                }
            }
            _ => false,
        }
    })
}

/// Whether a pod's affinity looks into other namespaces.
fn crosses(pod: &Pod) -> bool {
    let Some(affinity) = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref()) else { return false };
    let text = serde_json::json!([affinity.pod_affinity, affinity.pod_anti_affinity]).to_string();
    text.contains("\"namespaces\"") || text.contains("\"namespaceSelector\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    // A literal object reads better as an argument by value.
    #[allow(clippy::needless_pass_by_value)]
    fn pod(more: Value) -> Pod {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c",
            "resources": {"requests": {"cpu": "500m"}, "limits": {"memory": "1Gi"}}}]}, "status": {"phase": "Running"}});
        json_patch::merge(&mut pod, &more);
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn a_pod_takes_what_it_asks_for_until_it_ends() {
        let charged: BTreeMap<_, _> = charge_pod(&pod(json!({}))).into_iter().collect();
        assert_eq!(charged["pods"], NANO);
        assert_eq!(charged["requests.cpu"], NANO / 2);
        assert_eq!(charged["limits.memory"], (1 << 30) * NANO);
        assert!(charge_pod(&pod(json!({"status": {"phase": "Succeeded"}}))).is_empty());
        let overdue =
            json!({"metadata": {"deletionTimestamp": "2020-01-01T00:00:00Z", "deletionGracePeriodSeconds": 30}});
        assert!(charge_pod(&pod(overdue)).is_empty());
    }

    #[test]
    fn a_scope_restricts_what_counts() {
        let quota = |spec: Value| -> ResourceQuotaSpec { serde_json::from_value(spec).unwrap() };
        let vip = pod(json!({"spec": {"priorityClassName": "vip", "activeDeadlineSeconds": 5}}));
        assert!(in_scope(&quota(json!({"scopes": ["Terminating"]})), &vip));
        assert!(!in_scope(&quota(json!({"scopes": ["NotTerminating"]})), &vip));
        let class = |operator: &str| {
            quota(json!({"scopeSelector": {"matchExpressions": [
            {"scopeName": "PriorityClass", "operator": operator, "values": ["vip"]}]}}))
        };
        assert!(in_scope(&class("In"), &vip));
        assert!(!in_scope(&class("NotIn"), &vip));
    }
}
