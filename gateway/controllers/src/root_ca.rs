//! Every namespace has the cluster's authority, in the ConfigMap `kube-root-ca.crt`.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ObjectMeta, PostParams};

use crate::cluster::Cluster;
use crate::controller::{Controller, Setup};
use crate::informer::Key;
use crate::ownership::create_if_missing;
use crate::queue::{Again, Queue};

const AUTHORITY: &str = "kube-root-ca.crt";
const DESCRIPTION: (&str, &str) = (
    "kubernetes.io/description",
    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the \
     internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes \
     clusters.",
);

pub(crate) struct RootCa {
    cluster: Cluster,
    /// PEM; empty if nobody said what it is.
    authority: String,
}

impl Controller for RootCa {
    /// A namespace.
    type Item = String;
    const NAME: &'static str = "root-ca-cert-publisher";

    fn new(setup: &Setup<'_>) -> Self {
        Self { cluster: setup.cluster.clone(), authority: setup.options.root_ca.clone() }
    }

    fn listen(self: &Arc<Self>, _: &Setup<'_>, queue: &Queue<String>) {
        let namespaces = queue.clone();
        self.cluster.namespaces.on_change(move |change| {
            if let Some(namespace) = change.new {
                namespaces.add(namespace.metadata.name.clone().unwrap_or_default());
            }
        });
        let namespaces = queue.clone();
        self.cluster.root_cas.on_change(move |change| {
            if let Some(authority) = change.new.or(change.old) {
                namespaces.add(authority.metadata.namespace.clone().unwrap_or_default());
            }
        });
    }

    async fn reconcile(&self, namespace: String) -> Result<Again, kube::Error> {
        let known = self.cluster.namespaces.get(&Key::new("", &namespace));
        if self.authority.is_empty() || known.is_none_or(|known| known.metadata.deletion_timestamp.is_some()) {
            return Ok(None);
        }
        self.furnish(&namespace).await.map(|()| None)
    }
}

impl RootCa {
    async fn furnish(&self, namespace: &str) -> Result<(), kube::Error> {
        let data = BTreeMap::from([("ca.crt".to_owned(), self.authority.clone())]);
        let Some(known) = self.cluster.root_cas.get(&Key::new(namespace, AUTHORITY)) else {
            let annotations = BTreeMap::from([(DESCRIPTION.0.to_owned(), DESCRIPTION.1.to_owned())]);
            let metadata = ObjectMeta {
                name: Some(AUTHORITY.to_owned()),
                annotations: Some(annotations),
                ..ObjectMeta::default()
            };
            let authority = ConfigMap { metadata, data: Some(data), ..ConfigMap::default() };
            return create_if_missing(&self.cluster.client, namespace, &authority).await;
        };
        if known.data.as_ref() == Some(&data) {
            return Ok(());
        }
        let mut wanted = (*known).clone();
        wanted.data = Some(data);
        let api: Api<ConfigMap> = Api::namespaced(self.cluster.client.clone(), namespace);
        match api.replace(AUTHORITY, &PostParams::default(), &wanted).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            outcome => outcome.map(|_| ()),
        }
    }
}
