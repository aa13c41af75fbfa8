//! Removes finished Jobs when their time is over.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use kube::api::{Api, DeleteParams, Preconditions};

use super::{finished, passed};
use crate::cluster::Cluster;
use crate::controller::{self, Controller, Setup};
use crate::informer::Key;
use crate::queue::{Again, Queue};
use crate::replica_set::tolerate_gone;

pub(crate) struct Ttl {
    cluster: Cluster,
}

impl Controller for Ttl {
    type Item = Key;
    const NAME: &'static str = "ttl-after-finished-controller";

    fn new(setup: &Setup<'_>) -> Self {
        Self { cluster: setup.cluster.clone() }
    }

    fn listen(self: &Arc<Self>, _: &Setup<'_>, queue: &Queue<Key>) {
        controller::each(&self.cluster.jobs, queue);
    }

    async fn reconcile(&self, key: Key) -> Result<Again, kube::Error> {
        let Some(job) = self.cluster.jobs.get(&key) else { return Ok(None) };
        let ttl = job.spec.as_ref().and_then(|spec| spec.ttl_seconds_after_finished);
        let (Some(ttl), Some(end)) = (ttl, finished(&job)) else { return Ok(None) };
        if job.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let ttl = Duration::from_secs(u64::try_from(ttl).unwrap_or(0));
        let since = end.last_transition_time.as_ref().map(|time| time.0);
        let passed = since.map_or(Duration::ZERO, |since| passed(since, Timestamp::now()));
        if let Some(left) = ttl.checked_sub(passed).filter(|left| !left.is_zero()) {
            return Ok(Some(left));
        }
        let api: Api<Job> = Api::namespaced(self.cluster.client.clone(), &key.namespace);
        let preconditions =
            Preconditions { uid: job.metadata.uid.clone(), resource_version: job.metadata.resource_version.clone() };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::foreground() };
        tolerate_gone(api.delete(&key.name, &params).await.map(|_| ()))?;
        Ok(None)
    }
}
