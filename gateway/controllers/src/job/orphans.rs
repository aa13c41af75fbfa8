//! Pods that wait to be counted by a Job that is gone: nobody will, so they are let go.

use k8s_openapi::api::batch::v1::Job;
use kube::api::Api;

use super::tally::is_tracked;
use super::{Controller, finished};
use crate::informer::Key;
use crate::ownership::controller_of;
use crate::queue::Again;

impl Controller {
    pub(super) async fn free_orphan(&self, key: Key) -> Result<Again, kube::Error> {
        let Some(pod) = self.cluster.pods.get(&key).filter(|pod| is_tracked(pod)) else { return Ok(None) };
        if let Some(owner) = controller_of(&pod.metadata).filter(|owner| owner.kind == "Job") {
            let is_at_work = |job: &Job| job.metadata.uid.as_ref() == Some(&owner.uid) && finished(job).is_none();
            let known = self.cluster.jobs.get(&Key::new(&key.namespace, &owner.name));
            if known.is_some_and(|job| is_at_work(&job)) {
                return Ok(None);
            }
            let jobs: Api<Job> = Api::namespaced(self.cluster.client.clone(), &key.namespace);
            if jobs.get_opt(&owner.name).await?.is_some_and(|job| is_at_work(&job)) {
                return Ok(None);
            }
        }
        self.free(&pod).await?;
        Ok(None)
    }
}
