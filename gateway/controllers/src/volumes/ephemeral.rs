//! A pod's `ephemeral` volumes: each is a claim that is made for the pod and goes with it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Volume};
use kube::api::ObjectMeta;

use crate::cluster::Cluster;
use crate::controller::{Controller, Setup};
use crate::events::Voice;
use crate::informer::Key;
use crate::ownership::{create_if_missing, is_controlled_by, reference};
use crate::queue::{Again, Queue};
use crate::scheduler::volumes::uses;

pub(crate) struct Ephemeral {
    cluster: Cluster,
    voice: Voice,
}

impl Controller for Ephemeral {
    /// A pod.
    type Item = Key;
    const NAME: &'static str = "ephemeral-volume-controller";
    const VOICE: &'static str = "ephemeral_volume";

    fn new(setup: &Setup<'_>) -> Self {
        Self { cluster: setup.cluster.clone(), voice: setup.voice.clone() }
    }

    fn listen(self: &Arc<Self>, _: &Setup<'_>, queue: &Queue<Key>) {
        let pods = queue.clone();
        self.cluster.pods.on_change(move |change| {
            if let Some(pod) = change.new.filter(|pod| change.old.is_none() && volumes(pod).next().is_some()) {
                pods.add(Key::of(&**pod));
            }
        });
        // One that is gone is made again while its pod is there.
        let (pods, queue) = (self.cluster.pods.clone(), queue.clone());
        self.cluster.claims.on_change(move |change| {
            let (Some(claim), None) = (change.old, change.new) else { return };
            let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            let of_pod = |pod: &Pod| volumes(pod).next().is_some() && uses(pod, name);
            pods.list_in(namespace, of_pod).iter().for_each(|pod| queue.add(Key::of(&**pod)));
        });
    }

    async fn reconcile(&self, key: Key) -> Result<Again, kube::Error> {
        let Some(pod) = self.cluster.pods.get(&key) else { return Ok(None) };
        if pod.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        for volume in volumes(&pod) {
            let Some(wanted) = claim(&pod, volume) else { continue };
            let name = wanted.metadata.name.as_deref().unwrap_or_default();
            match self.cluster.claims.get(&Key::new(&key.namespace, name)) {
                None => create_if_missing(&self.cluster.client, &key.namespace, &wanted).await?,
                Some(known) if is_controlled_by(&known.metadata, &*pod) => {}
                Some(_) => {
                    let pod_name = format!("{}/{}", key.namespace, key.name);
                    let text = format!(
                        "ephemeral volume {}: PVC {}/{name} was not created for pod {pod_name} (pod is not owner)",
                        volume.name, key.namespace
                    );
                    self.voice.warning(&*pod, "FailedBinding", text);
                }
            }
        }
        Ok(None)
    }
}

fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).filter(|volume| volume.ephemeral.is_some())
}

/// The claim of a volume: named after the pod, and owned by it.
fn claim(pod: &Pod, volume: &Volume) -> Option<PersistentVolumeClaim> {
    let template = volume.ephemeral.as_ref()?.volume_claim_template.clone()?;
    let given = template.metadata.unwrap_or_default();
    Some(PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", pod.metadata.name.as_deref()?, volume.name)),
            labels: given.labels,
            annotations: given.annotations,
            owner_references: Some(vec![reference(pod)]),
            ..ObjectMeta::default()
        },
        spec: Some(template.spec),
        status: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_claim_is_named_after_its_pod_and_owned_by_it() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u"}, "spec": {"containers": [],
            "volumes": [{"name": "other", "emptyDir": {}}, {"name": "data", "ephemeral": {"volumeClaimTemplate": {
                "metadata": {"labels": {"a": "b"}}, "spec": {"accessModes": ["ReadWriteOnce"]}}}}]}}))
        .unwrap();
        let wanted: Vec<&Volume> = volumes(&pod).collect();
        assert_eq!(wanted.len(), 1);
        let made = claim(&pod, wanted[0]).unwrap();
        assert_eq!(made.metadata.name.as_deref(), Some("p-data"));
        assert_eq!(made.metadata.labels.as_ref().unwrap()["a"], "b");
        assert!(is_controlled_by(&made.metadata, &pod));
        assert_eq!(made.spec.unwrap().access_modes.unwrap(), ["ReadWriteOnce"]);
    }
}
