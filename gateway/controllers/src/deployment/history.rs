//! Revisions: every template is a ReplicaSet with a number, and old ones are kept for going back.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};
use serde_json::{Value, json};

use super::{Controller, DESIRED, MAXIMUM, Rollout, wanted};
use crate::ownership::{self, is_controlled_by};
use crate::pod_control::message;
use crate::replica_set::{replicas, tolerate_gone};
use crate::revisions::short_hash;
use crate::status;

/// The label that tells the pods of one template from those of another.
const HASH_LABEL: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// Annotations of a Deployment that say nothing about its ReplicaSets.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    "deprecated.deployment.rollback.to",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAXIMUM,
];

/// A template as it counts for "is it the same": without the label that tells templates apart.
pub(super) fn comparable(template: Option<&PodTemplateSpec>) -> Value {
    let mut template = template.cloned().unwrap_or_default();
    if let Some(labels) = template.metadata.as_mut().and_then(|meta| meta.labels.as_mut()) {
        labels.remove(HASH_LABEL);
    }
    json!(template)
}

impl Controller {
    /// Gives the current template's ReplicaSet the highest revision and the Deployment's annotations, making it first
    /// where `create` allows; the Deployment carries the same revision.
    pub(super) async fn number(&self, rollout: &mut Rollout, create: bool) -> Result<(), kube::Error> {
        let highest = rollout.old.iter().map(|set| revision(set)).max().unwrap_or(0);
        if rollout.new.is_none() && create {
            rollout.new = self.make(rollout, highest + 1).await?;
        }
        let Some(new) = rollout.new.clone() else { return Ok(()) };
        let number = revision(&new).max(highest + 1);
        let mut notes = copied_annotations(&rollout.deployment);
        notes.insert(REVISION.to_owned(), number.to_string());
        if revision(&new) != 0 && revision(&new) != number {
            let earlier = annotation(&new, REVISION_HISTORY).map(|history| format!("{history},")).unwrap_or_default();
            notes.insert(REVISION_HISTORY.to_owned(), format!("{earlier}{}", revision(&new)));
        }
        let min_ready = rollout.deployment.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
        let known_min_ready = new.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
        if notes.iter().any(|(key, value)| annotation(&new, key) != Some(value)) || min_ready != known_min_ready {
            let patch = json!({
                "metadata": {"resourceVersion": new.metadata.resource_version, "annotations": notes},
                "spec": {"minReadySeconds": min_ready},
            });
            rollout.new = Some(self.patch_set(&new, patch).await?);
        }
        self.carry_revision(rollout, number).await
    }

    async fn carry_revision(&self, rollout: &mut Rollout, number: i64) -> Result<(), kube::Error> {
        let text = number.to_string();
        let known = rollout.deployment.metadata.annotations.as_ref().and_then(|notes| notes.get(REVISION));
        if known == Some(&text) {
            return Ok(());
        }
        let patch = json!({"metadata": {"annotations": {REVISION: text}}});
        let (api, _) = self.api(&rollout.deployment);
        // Through the status: there annotations may change without it counting as a change of what is wanted.
        match status::change_status(&api, &*rollout.deployment, patch).await {
            Ok(deployment) => {
                self.cluster.deployments.learn(deployment.clone());
                // One that was changed meanwhile is looked at anew; what is known here is of the older one.
                if deployment.metadata.generation == rollout.deployment.metadata.generation {
                    rollout.deployment = Arc::new(deployment);
                }
                Ok(())
            }
            other => tolerate_gone(other.map(|_| ())),
        }
    }

    /// Makes the ReplicaSet of the current template, as large as the strategy lets it begin.
    async fn make(&self, rollout: &Rollout, revision: i64) -> Result<Option<Arc<ReplicaSet>>, kube::Error> {
        let deployment = &rollout.deployment;
        let Some(spec) = deployment.spec.clone() else { return Ok(None) };
        let collisions = deployment.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
        let hash = template_hash(&spec.template, collisions);
        let mut notes = copied_annotations(deployment);
        notes.insert(REVISION.to_owned(), revision.to_string());
        notes.insert(DESIRED.to_owned(), wanted(deployment).to_string());
        notes.insert(MAXIMUM.to_owned(), (wanted(deployment) + rollout.surge()).to_string());
        let size = rollout.new_size(0);
        let set = replica_set(deployment, spec, &hash, notes, size);
        let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
        let api: Api<ReplicaSet> = Api::namespaced(self.cluster.client.clone(), namespace);
        match api.create(&PostParams::default(), &set).await {
            Ok(made) => {
                let name = made.metadata.name.as_deref().unwrap_or_default();
                if size > 0 {
                    let text = format!("Scaled up replica set {name} from 0 to {size}");
                    self.voice.normal(&**deployment, "ScalingReplicaSet", text);
                }
                Ok(Some(Arc::new(made)))
            }
            Err(kube::Error::Api(status)) if status.code == 409 && status.reason == "AlreadyExists" => {
                match self.collide(rollout, &api, &set, collisions).await? {
                    Taken::ByItself(found) => Ok(Some(found)),
                    Taken::ByAnother => Ok(None),
                    Taken::NoLonger => Err(kube::Error::Api(status)),
                }
            }
            Err(error) => {
                let text = format!(
                    "Failed to create new replica set {:?}: {}",
                    set.metadata.name.unwrap_or_default(),
                    message(&error)
                );
                self.voice.warning(&**deployment, "FailedCreate", text);
                Err(error)
            }
        }
    }

    /// There is a ReplicaSet of that name: the one that was wanted (made a moment ago), or another template's, whose hash
    /// happens to be the same. Then the Deployment counts the collision, which leads to another hash.
    async fn collide(
        &self,
        rollout: &Rollout,
        api: &Api<ReplicaSet>,
        set: &ReplicaSet,
        collisions: i32,
    ) -> Result<Taken, kube::Error> {
        let found = api.get_opt(set.metadata.name.as_deref().unwrap_or_default()).await?;
        let taken = taken_by(found, &rollout.deployment, set);
        if let Taken::ByAnother = taken {
            let patch = json!({"status": {"collisionCount": collisions + 1}});
            let (deployments, _) = self.api(&rollout.deployment);
            status::change_status(&deployments, &*rollout.deployment, patch).await?;
        }
        Ok(taken)
    }

    /// Removes the oldest revisions beyond the limit; one that still has pods stays.
    pub(super) async fn prune(&self, rollout: &Rollout) -> Result<(), kube::Error> {
        let limit = rollout.deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit).unwrap_or(10);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let mut idle: Vec<_> = rollout.old.iter().filter(|set| is_idle(set)).collect();
        idle.sort_by_key(|set| revision(set));
        let surplus = idle.len().saturating_sub(limit);
        for set in &idle[..surplus] {
            let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
            let api: Api<ReplicaSet> = Api::namespaced(self.cluster.client.clone(), namespace);
            let name = set.metadata.name.as_deref().unwrap_or_default();
            tolerate_gone(api.delete(name, &DeleteParams::background()).await.map(|_| ()))?;
        }
        Ok(())
    }

    pub(super) fn api(&self, deployment: &Deployment) -> (Api<Deployment>, String) {
        let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
        let name = deployment.metadata.name.clone().unwrap_or_default();
        (Api::namespaced(self.cluster.client.clone(), namespace), name)
    }
}

/// Who has the name that a ReplicaSet was to get.
enum Taken {
    /// The ReplicaSet that was wanted.
    ByItself(Arc<ReplicaSet>),
    ByAnother,
    /// It went meanwhile.
    NoLonger,
}

fn taken_by(found: Option<ReplicaSet>, deployment: &Deployment, wanted: &ReplicaSet) -> Taken {
    let template = |set: &ReplicaSet| comparable(set.spec.as_ref().and_then(|spec| spec.template.as_ref()));
    match found {
        None => Taken::NoLonger,
        Some(found) if is_controlled_by(&found.metadata, deployment) && template(&found) == template(wanted) => {
            Taken::ByItself(Arc::new(found))
        }
        Some(_) => Taken::ByAnother,
    }
}

fn is_idle(set: &ReplicaSet) -> bool {
    let status = set.status.clone().unwrap_or_default();
    set.metadata.deletion_timestamp.is_none()
        && replicas(set) == 0
        && status.replicas == 0
        && status.observed_generation >= set.metadata.generation
}

fn replica_set(
    deployment: &Deployment,
    spec: DeploymentSpec,
    hash: &str,
    annotations: BTreeMap<String, String>,
    size: i32,
) -> ReplicaSet {
    let with_hash = |labels: Option<BTreeMap<String, String>>| {
        let mut labels = labels.unwrap_or_default();
        labels.insert(HASH_LABEL.to_owned(), hash.to_owned());
        Some(labels)
    };
    let mut template = spec.template;
    let meta = template.metadata.get_or_insert_default();
    meta.labels = with_hash(meta.labels.take());
    let selector = LabelSelector { match_labels: with_hash(spec.selector.match_labels), ..spec.selector };
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.metadata.name.as_deref().unwrap_or_default())),
            namespace: deployment.metadata.namespace.clone(),
            labels: meta.labels.clone(),
            annotations: Some(annotations),
            owner_references: Some(vec![ownership::reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(size),
            selector,
            template: Some(template),
            min_ready_seconds: spec.min_ready_seconds,
        }),
        status: None,
    }
}

fn copied_annotations(deployment: &Deployment) -> BTreeMap<String, String> {
    let annotations = deployment.metadata.annotations.iter().flatten();
    annotations
        .filter(|(key, _)| !NOT_COPIED.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

fn annotation<'a>(set: &'a ReplicaSet, key: &str) -> Option<&'a String> {
    set.metadata.annotations.as_ref()?.get(key)
}

pub(super) fn revision(set: &ReplicaSet) -> i64 {
    annotation(set, REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// A short name for a template.
fn template_hash(template: &PodTemplateSpec, collisions: i32) -> String {
    let mut text = comparable(Some(template)).to_string();
    if collisions > 0 {
        text.push_str(&collisions.to_string());
    }
    short_hash(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(image: &str, hash: Option<&str>) -> PodTemplateSpec {
        let mut labels = json!({"app": "a"});
        if let Some(hash) = hash {
            labels[HASH_LABEL] = json!(hash);
        }
        serde_json::from_value(
            json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": image}]}}),
        )
        .unwrap()
    }

    #[test]
    fn a_template_is_the_same_whatever_its_hash_label_says() {
        assert_eq!(comparable(Some(&template("a", None))), comparable(Some(&template("a", Some("xyz")))));
        assert_ne!(comparable(Some(&template("a", None))), comparable(Some(&template("b", None))));
    }

    #[test]
    fn a_collision_leads_to_another_hash() {
        let template = template("a", None);
        assert_eq!(template_hash(&template, 0), template_hash(&template, 0));
        assert_ne!(template_hash(&template, 0), template_hash(&template, 1));
        assert_eq!(template_hash(&template, 0).len(), 10);
    }

    #[test]
    fn a_name_is_taken_by_the_same_template_of_the_same_deployment_or_by_another() {
        let metadata = ObjectMeta { name: Some("d".to_owned()), uid: Some("u".to_owned()), ..ObjectMeta::default() };
        let deployment = Deployment { metadata, ..Deployment::default() };
        let set = |image| {
            let spec = DeploymentSpec { template: template(image, None), ..DeploymentSpec::default() };
            replica_set(&deployment, spec, "hash", BTreeMap::new(), 1)
        };
        let wanted = set("a");
        assert!(matches!(taken_by(Some(set("a")), &deployment, &wanted), Taken::ByItself(_)));
        assert!(matches!(taken_by(Some(set("b")), &deployment, &wanted), Taken::ByAnother));
        let foreign = ReplicaSet { metadata: ObjectMeta::default(), ..set("a") };
        assert!(matches!(taken_by(Some(foreign), &deployment, &wanted), Taken::ByAnother));
        assert!(matches!(taken_by(None, &deployment, &wanted), Taken::NoLonger));
    }
}
