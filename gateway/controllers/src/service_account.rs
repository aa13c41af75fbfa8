//! What every namespace has from its first moment on: the ServiceAccount `default` and the cluster's authority.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use kube::Resource;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Options;
use crate::cluster::Cluster;
use crate::informer::Key;
use crate::queue::{Again, Queue};

const ACCOUNT: &str = "default";
pub(crate) const AUTHORITY: &str = "kube-root-ca.crt";
const DESCRIPTION: (&str, &str) = (
    "kubernetes.io/description",
    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the \
     internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes \
     clusters.",
);

struct Controller {
    cluster: Cluster,
    /// PEM; empty if nobody said what it is.
    authority: String,
}

pub(crate) fn start(cluster: &Cluster, options: &Options, stop: &CancellationToken, tasks: &mut JoinSet<()>) {
    let queue: Queue<String> = Queue::new();
    let controller = Arc::new(Controller { cluster: cluster.clone(), authority: options.root_ca.clone() });
    let namespaces = queue.clone();
    cluster.namespaces.on_change(move |change| {
        if let Some(namespace) = change.new {
            namespaces.add(namespace.metadata.name.clone().unwrap_or_default());
        }
    });
    let namespaces = queue.clone();
    cluster.service_accounts.on_change(move |change| {
        if let (Some(account), None) = (change.old, change.new) {
            namespaces.add(account.metadata.namespace.clone().unwrap_or_default());
        }
    });
    let namespaces = queue.clone();
    cluster.root_cas.on_change(move |change| {
        if let Some(authority) = change.new.or(change.old) {
            namespaces.add(authority.metadata.namespace.clone().unwrap_or_default());
        }
    });
    let workers = options.workers;
    let stop = stop.clone();
    tasks.spawn(async move {
        controller.cluster.synced().await;
        let work = move |namespace| {
            let controller = Arc::clone(&controller);
            async move { controller.reconcile(namespace).await }
        };
        queue.run("serviceaccount", workers, stop, work).await;
    });
}

impl Controller {
    async fn reconcile(&self, namespace: String) -> Result<Again, kube::Error> {
        let known = self.cluster.namespaces.get(&Key::new("", &namespace));
        if known.is_none_or(|known| known.metadata.deletion_timestamp.is_some()) {
            return Ok(None);
        }
        if self.cluster.service_accounts.get(&Key::new(&namespace, ACCOUNT)).is_none() {
            let metadata = ObjectMeta { name: Some(ACCOUNT.to_owned()), ..ObjectMeta::default() };
            self.create(&namespace, &ServiceAccount { metadata, ..ServiceAccount::default() }).await?;
        }
        if !self.authority.is_empty() {
            self.furnish_authority(&namespace).await?;
        }
        Ok(None)
    }

    async fn furnish_authority(&self, namespace: &str) -> Result<(), kube::Error> {
        let data = BTreeMap::from([("ca.crt".to_owned(), self.authority.clone())]);
        let Some(known) = self.cluster.root_cas.get(&Key::new(namespace, AUTHORITY)) else {
            let annotations = BTreeMap::from([(DESCRIPTION.0.to_owned(), DESCRIPTION.1.to_owned())]);
            let metadata = ObjectMeta {
                name: Some(AUTHORITY.to_owned()),
                annotations: Some(annotations),
                ..ObjectMeta::default()
            };
            return self.create(namespace, &ConfigMap { metadata, data: Some(data), ..ConfigMap::default() }).await;
        };
        if known.data.as_ref() == Some(&data) {
            return Ok(());
        }
        // A merge keeps keys that it doesn't name: those that don't belong there are named to go.
        let mut wanted = json!({});
        known.data.iter().flatten().for_each(|(key, _)| wanted[key] = json!(null));
        wanted["ca.crt"] = json!(self.authority);
        let api: Api<ConfigMap> = Api::namespaced(self.cluster.client.clone(), namespace);
        let patch = Patch::Merge(json!({"data": wanted}));
        match api.patch(AUTHORITY, &PatchParams::default(), &patch).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            outcome => outcome.map(|_| ()),
        }
    }

    /// Creates an object; that it is there already is fine, and so is a namespace that has begun to go.
    async fn create<K>(&self, namespace: &str, object: &K) -> Result<(), kube::Error>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned
            + Serialize,
    {
        let api: Api<K> = Api::namespaced(self.cluster.client.clone(), namespace);
        match api.create(&PostParams::default(), object).await {
            Err(kube::Error::Api(status)) if status.code == 409 || status.code == 404 || is_terminating(&status) => {
                Ok(())
            }
            outcome => outcome.map(|_| ()),
        }
    }
}

/// Whether something was refused because its namespace is being deleted.
pub(crate) fn is_terminating(status: &kube::core::Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.code == 403 && causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}
