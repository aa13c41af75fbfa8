//! The volumes of a StatefulSet's pods: one claim per template and ordinal, which outlives the pod, and outlives the set
//! or a scale-down unless the retention policy says otherwise.

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Resource;
use kube::api::{Api, PostParams};
use serde_json::json;

use super::{Controller, Look};
use crate::informer::Key;
use crate::ownership;
use crate::pod_control::message;
use crate::status;

/// A claim that a pod needs.
pub(super) struct Claim {
    /// The template's name, which is also the volume's.
    pub(super) template: String,
    pub(super) object: PersistentVolumeClaim,
}

impl Look {
    /// The claims of an ordinal.
    pub(super) fn claims(&self, ordinal: i32) -> Vec<Claim> {
        let set = self.set.metadata.name.as_deref().unwrap_or_default();
        let own = |template: &PersistentVolumeClaim| {
            let name = template.metadata.name.clone().unwrap_or_default();
            let mut object = template.clone();
            object.metadata.name = Some(format!("{name}-{set}-{ordinal}"));
            object.metadata.namespace.clone_from(&self.set.metadata.namespace);
            let labels = object.metadata.labels.get_or_insert_default();
            labels.extend(self.spec.selector.match_labels.clone().unwrap_or_default());
            object.status = None;
            if self.deletes_claims().0 {
                object.metadata.owner_references = Some(vec![ownership::reference(&*self.set)]);
            }
            Claim { template: name, object }
        };
        self.spec.volume_claim_templates.iter().flatten().map(own).collect()
    }

    /// Whether claims go with the set, and whether they go with pods that are scaled away.
    fn deletes_claims(&self) -> (bool, bool) {
        let policy = self.spec.persistent_volume_claim_retention_policy.as_ref();
        let deletes = |when: Option<&String>| when.is_some_and(|policy| policy == "Delete");
        (
            deletes(policy.and_then(|policy| policy.when_deleted.as_ref())),
            deletes(policy.and_then(|policy| policy.when_scaled.as_ref())),
        )
    }

    /// The owner that a claim should have by the retention policy, among the set and the pod.
    fn claim_owner(&self, pod: &Pod, scaled_down: bool) -> Option<OwnerReference> {
        match self.deletes_claims() {
            (_, true) if scaled_down => Some(ownership::reference(pod)),
            (true, _) => Some(ownership::reference(&*self.set)),
            _ => None,
        }
    }
}

impl Controller {
    /// Makes a claim unless it is there. Whether it is one that a pod can use: one that goes with a former pod isn't.
    pub(super) async fn make_claim(&self, look: &Look, pod: &str, claim: Claim) -> Result<bool, kube::Error> {
        let key = Key::of(&claim.object);
        if let Some(known) = self.cluster.claims.get(&key) {
            let stale = known.metadata.deletion_timestamp.is_some()
                || known.metadata.owner_references.iter().flatten().any(|owner| owner.kind == "Pod");
            return Ok(!stale);
        }
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.cluster.client.clone(), &key.namespace);
        let set = look.set.metadata.name.as_deref().unwrap_or_default();
        match api.create(&PostParams::default(), &claim.object).await {
            Ok(_) => {
                let text = format!("create Claim {} Pod {pod} in StatefulSet {set} success", key.name);
                self.voice.normal(&*look.set, "SuccessfulCreate", text);
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 && status.reason == "AlreadyExists" => Ok(true),
            Err(error) => {
                let text = format!(
                    "create Claim {} for Pod {pod} in StatefulSet {set} failed error: {}",
                    key.name,
                    message(&error)
                );
                self.voice.warning(&*look.set, "FailedCreate", text);
                Err(error)
            }
        }
    }

    /// Gives the claims of a pod the owner that the retention policy wants.
    pub(super) async fn keep_claims(&self, look: &Look, pod: &Pod, scaled_down: bool) -> Result<(), kube::Error> {
        let Some(ordinal) = super::identity::ordinal(pod) else { return Ok(()) };
        let wanted = look.claim_owner(pod, scaled_down);
        let is_ours = |owner: &OwnerReference| {
            Some(&owner.uid) == look.set.meta().uid.as_ref()
                || owner.kind == "Pod" && Some(&owner.name) == pod.metadata.name.as_ref()
        };
        for claim in look.claims(ordinal) {
            let Some(known) = self.cluster.claims.get(&Key::of(&claim.object)) else { continue };
            let owners = || known.metadata.owner_references.iter().flatten();
            let ours: Vec<&OwnerReference> = owners().filter(|owner| is_ours(owner)).collect();
            let right = ours.iter().map(|owner| &owner.uid).eq(wanted.iter().map(|owner| &owner.uid));
            if right {
                continue;
            }
            let owners: Vec<&OwnerReference> = owners().filter(|owner| !is_ours(owner)).chain(&wanted).collect();
            let patch = json!({"metadata": {
                "uid": known.metadata.uid, "resourceVersion": known.metadata.resource_version,
                "ownerReferences": owners,
            }});
            let namespace = known.metadata.namespace.as_deref().unwrap_or_default();
            let api: Api<PersistentVolumeClaim> = Api::namespaced(self.cluster.client.clone(), namespace);
            match status::change(&api, &*known, patch).await {
                Ok(claim) => self.cluster.claims.learn(claim),
                Err(kube::Error::Api(refusal)) if refusal.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
