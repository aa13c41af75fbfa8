//! Every namespace has the ServiceAccount `default`.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::ObjectMeta;

use crate::cluster::Cluster;
use crate::controller::{Controller, Setup};
use crate::informer::Key;
use crate::ownership::create_if_missing;
use crate::queue::{Again, Queue};

const ACCOUNT: &str = "default";

pub(crate) struct DefaultAccounts {
    cluster: Cluster,
}

impl Controller for DefaultAccounts {
    /// A namespace.
    type Item = String;
    const NAME: &'static str = "service-account-controller";

    fn new(setup: &Setup<'_>) -> Self {
        Self { cluster: setup.cluster.clone() }
    }

    fn listen(self: &Arc<Self>, _: &Setup<'_>, queue: &Queue<String>) {
        let namespaces = queue.clone();
        self.cluster.namespaces.on_change(move |change| {
            if let Some(namespace) = change.new {
                namespaces.add(namespace.metadata.name.clone().unwrap_or_default());
            }
        });
        let namespaces = queue.clone();
        self.cluster.service_accounts.on_change(move |change| {
            if let (Some(account), None) = (change.old, change.new) {
                namespaces.add(account.metadata.namespace.clone().unwrap_or_default());
            }
        });
    }

    async fn reconcile(&self, namespace: String) -> Result<Again, kube::Error> {
        let known = self.cluster.namespaces.get(&Key::new("", &namespace));
        if known.is_none_or(|known| known.metadata.deletion_timestamp.is_some()) {
            return Ok(None);
        }
        if self.cluster.service_accounts.get(&Key::new(&namespace, ACCOUNT)).is_none() {
            let metadata = ObjectMeta { name: Some(ACCOUNT.to_owned()), ..ObjectMeta::default() };
            let account = ServiceAccount { metadata, ..ServiceAccount::default() };
            create_if_missing(&self.cluster.client, &namespace, &account).await?;
        }
        Ok(None)
    }
}
