//! Claims that pods use, volumes that are bound, and classes of attributes that either has, don't go before they are free:
//! a finalizer holds them.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use kube::Resource;
use kube::api::{Api, ListParams};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::volume_phase;
use crate::cluster::Cluster;
use crate::controller::{self, Controller, Setup};
use crate::informer::Key;
use crate::queue::{Again, Queue};
use crate::replica_set::tolerate_gone;
use crate::scheduler::volumes::uses;
use crate::status;

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";
const ATTRIBUTES: &str = "kubernetes.io/vac-protection";

pub(crate) struct Claims {
    cluster: Cluster,
}

impl Controller for Claims {
    type Item = Key;
    const NAME: &'static str = "pvc-protection-controller";

    fn new(setup: &Setup<'_>) -> Self {
        Self { cluster: setup.cluster.clone() }
    }

    fn listen(self: &Arc<Self>, _: &Setup<'_>, queue: &Queue<Key>) {
        controller::each(&self.cluster.claims, queue);
        let (claims, queue) = (self.cluster.claims.clone(), queue.clone());
        self.cluster.pods.on_change(move |change| {
            let Some(pod) = change.old.or(change.new) else { return };
            if pod.spec.as_ref().is_none_or(|spec| spec.volumes.is_none())
                || change.old.is_some() && change.new.is_some()
            {
                return;
            }
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let used = |claim: &PersistentVolumeClaim| {
                claim.metadata.deletion_timestamp.is_some()
                    && uses(pod, claim.metadata.name.as_deref().unwrap_or_default())
            };
            claims.list_in(namespace, used).iter().for_each(|claim| queue.add(Key::of(&**claim)));
        });
    }

    async fn reconcile(&self, key: Key) -> Result<Again, kube::Error> {
        let Some(claim) = self.cluster.claims.get(&key) else { return Ok(None) };
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.cluster.client.clone(), &key.namespace);
        if claim.metadata.deletion_timestamp.is_none() {
            return hold(&api, &*claim, CLAIM).await.map(|()| None);
        }
        let holds = |pod: &Pod| is_placed(pod) && uses(pod, &key.name);
        if self.cluster.pods.list_in(&key.namespace, holds).is_empty() {
            // The copy may be late; what goes now cannot be got back.
            let pods: Api<Pod> = Api::namespaced(self.cluster.client.clone(), &key.namespace);
            if !pods.list(&ListParams::default()).await?.items.iter().any(holds) {
                free(&api, &*claim, CLAIM).await?;
            }
        }
        Ok(None)
    }
}

pub(crate) struct Volumes {
    cluster: Cluster,
}

impl Controller for Volumes {
    type Item = Key;
    const NAME: &'static str = "pv-protection-controller";

    fn new(setup: &Setup<'_>) -> Self {
        Self { cluster: setup.cluster.clone() }
    }

    fn listen(self: &Arc<Self>, _: &Setup<'_>, queue: &Queue<Key>) {
        controller::each(&self.cluster.volumes, queue);
    }

    async fn reconcile(&self, key: Key) -> Result<Again, kube::Error> {
        let Some(volume) = self.cluster.volumes.get(&key) else { return Ok(None) };
        let api: Api<PersistentVolume> = Api::all(self.cluster.client.clone());
        if volume.metadata.deletion_timestamp.is_none() {
            hold(&api, &*volume, VOLUME).await?;
        } else if volume_phase(&volume) != "Bound" {
            free(&api, &*volume, VOLUME).await?;
        }
        Ok(None)
    }
}

pub(crate) struct Attributes {
    cluster: Cluster,
}

impl Controller for Attributes {
    type Item = Key;
    const NAME: &'static str = "volumeattributesclass-protection-controller";

    fn new(setup: &Setup<'_>) -> Self {
        Self { cluster: setup.cluster.clone() }
    }

    fn listen(self: &Arc<Self>, _: &Setup<'_>, queue: &Queue<Key>) {
        controller::each(&self.cluster.attributes_classes, queue);
        let then = queue.clone();
        self.cluster.claims.on_change(move |change| {
            let Some(claim) = change.old else { return };
            classes_of_claim(claim).for_each(|name| then.add(Key::new("", name)));
        });
        let then = queue.clone();
        self.cluster.volumes.on_change(move |change| {
            let Some(volume) = change.old else { return };
            class_of_volume(volume).into_iter().for_each(|name| then.add(Key::new("", name)));
        });
    }

    async fn reconcile(&self, key: Key) -> Result<Again, kube::Error> {
        let Some(class) = self.cluster.attributes_classes.get(&key) else { return Ok(None) };
        let api: Api<VolumeAttributesClass> = Api::all(self.cluster.client.clone());
        if class.metadata.deletion_timestamp.is_none() {
            return hold(&api, &*class, ATTRIBUTES).await.map(|()| None);
        }
        let name = key.name.as_str();
        let claims = self.cluster.claims.list(|claim| classes_of_claim(claim).any(|used| used == name));
        let volumes = self.cluster.volumes.list(|volume| class_of_volume(volume) == Some(name));
        if claims.is_empty() && volumes.is_empty() {
            free(&api, &*class, ATTRIBUTES).await?;
        }
        Ok(None)
    }
}

/// The classes that a claim wants, has, or is being given.
fn classes_of_claim(claim: &PersistentVolumeClaim) -> impl Iterator<Item = &str> {
    let (spec, status) = (claim.spec.as_ref(), claim.status.as_ref());
    let wanted = spec.and_then(|spec| spec.volume_attributes_class_name.as_deref());
    let has = status.and_then(|status| status.current_volume_attributes_class_name.as_deref());
    let given = status.and_then(|status| status.modify_volume_status.as_ref());
    let given = given.and_then(|status| status.target_volume_attributes_class_name.as_deref());
    [wanted, has, given].into_iter().flatten()
}

fn class_of_volume(volume: &PersistentVolume) -> Option<&str> {
    volume.spec.as_ref()?.volume_attributes_class_name.as_deref()
}

fn is_placed(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).is_some_and(|node| !node.is_empty())
}

async fn hold<K>(api: &Api<K>, object: &K, finalizer: &str) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Serialize,
{
    let known = object.meta().finalizers.iter().flatten();
    if known.clone().any(|known| known == finalizer) {
        return Ok(());
    }
    let finalizers: Vec<&str> = known.map(String::as_str).chain([finalizer]).collect();
    set(api, object, &finalizers).await
}

async fn free<K>(api: &Api<K>, object: &K, finalizer: &str) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Serialize,
{
    let known = object.meta().finalizers.iter().flatten();
    if !known.clone().any(|known| known == finalizer) {
        return Ok(());
    }
    let finalizers: Vec<&str> = known.map(String::as_str).filter(|known| *known != finalizer).collect();
    set(api, object, &finalizers).await
}

async fn set<K>(api: &Api<K>, object: &K, finalizers: &[&str]) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Serialize,
{
    let meta = object.meta();
    let patch = json!({"metadata": {
        "uid": meta.uid, "resourceVersion": meta.resource_version, "finalizers": finalizers,
    }});
    tolerate_gone(status::change(api, object, patch).await.map(|_| ()))
}
