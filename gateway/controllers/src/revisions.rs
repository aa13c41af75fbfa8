//! The history of a pod template: each that a StatefulSet or DaemonSet ever had is a ControllerRevision with a number.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::ownership::{self, Owned, Selector, is_controlled_by};
use crate::replica_set::tolerate_gone;

/// Whose history it is, and how that kind writes it.
pub(crate) struct Owner<'a, O> {
    pub(crate) object: &'a O,
    pub(crate) selector: Selector,
    pub(crate) template: &'a PodTemplateSpec,
    /// The label that holds the hash.
    pub(crate) hash_label: &'static str,
    pub(crate) annotations: Option<BTreeMap<String, String>>,
    /// How often a hash was taken.
    pub(crate) collisions: i32,
}

/// All revisions, oldest first, and that of the current template.
pub(crate) struct History {
    pub(crate) all: Vec<Arc<ControllerRevision>>,
    pub(crate) update: Arc<ControllerRevision>,
    pub(crate) collisions: i32,
}

/// What a revision keeps of a template: a patch that puts it back.
pub(crate) fn data(template: &PodTemplateSpec) -> Value {
    let mut template = json!(template);
    template["$patch"] = json!("replace");
    json!({"spec": {"template": template}})
}

/// The template that a revision keeps.
pub(crate) fn template(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.pointer("/spec/template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

/// The template in the form in which two can be compared.
fn comparable(revision: &ControllerRevision) -> Option<Value> {
    template(revision).map(|template| data(&template))
}

pub(crate) fn name(revision: &ControllerRevision) -> &str {
    revision.metadata.name.as_deref().unwrap_or_default()
}

/// A short name for some text: FNV-1a in letters that make no words and are fine in names.
pub(crate) fn short_hash(text: &str) -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let mut rest = hash ^ (hash >> 32);
    let mut name = String::new();
    for _ in 0..10 {
        name.push(char::from(ALPHABET[usize::try_from(rest % 27).unwrap_or(0)]));
        rest /= 27;
    }
    name
}

impl<O: Owned> Owner<'_, O> {
    /// The history with the current template as its last revision: one that is there already gets the highest number.
    pub(crate) async fn history(&self, cluster: &Cluster) -> Result<History, kube::Error> {
        let namespace = self.object.meta().namespace.as_deref().unwrap_or_default();
        let known = cluster.revisions.list_in(namespace, |_| true);
        let mut all = ownership::claim(&cluster.client, self.object, &self.selector, known, |_| true).await?;
        all.sort_by_key(|revision| (revision.revision, revision.metadata.creation_timestamp.clone().map(|at| at.0)));
        let next = all.last().map_or(1, |last| last.revision + 1);
        let wanted = data(self.template);
        let equal = all.iter().rposition(|revision| comparable(revision).as_ref() == Some(&wanted));
        let mut collisions = self.collisions;
        let update = match equal {
            Some(index) if index + 1 == all.len() => Arc::clone(&all[index]),
            Some(index) => {
                let patch = Patch::Merge(json!({"revision": next}));
                let api: Api<ControllerRevision> = Api::namespaced(cluster.client.clone(), namespace);
                let bumped = Arc::new(api.patch(name(&all[index]), &PatchParams::default(), &patch).await?);
                cluster.revisions.learn((*bumped).clone());
                all.remove(index);
                all.push(Arc::clone(&bumped));
                bumped
            }
            None => {
                let made = Arc::new(self.make(cluster, namespace, &wanted, next, &mut collisions).await?);
                all.push(Arc::clone(&made));
                made
            }
        };
        Ok(History { all, update, collisions })
    }

    async fn make(
        &self,
        cluster: &Cluster,
        namespace: &str,
        data: &Value,
        number: i64,
        collisions: &mut i32,
    ) -> Result<ControllerRevision, kube::Error> {
        let api: Api<ControllerRevision> = Api::namespaced(cluster.client.clone(), namespace);
        loop {
            let mut text = data.to_string();
            if *collisions > 0 {
                text.push_str(&collisions.to_string());
            }
            let hash = short_hash(&text);
            let owner = self.object.meta().name.as_deref().unwrap_or_default();
            let mut labels = self.template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
            labels.insert(self.hash_label.to_owned(), hash.clone());
            let revision = ControllerRevision {
                metadata: ObjectMeta {
                    name: Some(format!("{owner}-{hash}")),
                    namespace: Some(namespace.to_owned()),
                    labels: Some(labels),
                    annotations: self.annotations.clone(),
                    owner_references: Some(vec![ownership::reference(self.object)]),
                    ..ObjectMeta::default()
                },
                data: Some(RawExtension(data.clone())),
                revision: number,
            };
            match api.create(&PostParams::default(), &revision).await {
                Err(kube::Error::Api(status)) if status.code == 409 && status.reason == "AlreadyExists" => {
                    let Some(found) = api.get_opt(name(&revision)).await? else { continue };
                    if is_controlled_by(&found.metadata, self.object) && comparable(&found).as_ref() == Some(data) {
                        return Ok(found);
                    }
                    *collisions += 1;
                }
                outcome => return outcome,
            }
        }
    }
}

/// Removes the oldest revisions beyond the limit, but none in use.
pub(crate) async fn truncate(
    cluster: &Cluster,
    history: &History,
    in_use: &HashSet<&str>,
    limit: Option<i32>,
) -> Result<(), kube::Error> {
    let limit = usize::try_from(limit.unwrap_or(10)).unwrap_or(0);
    let idle: Vec<_> = history.all.iter().filter(|revision| !in_use.contains(name(revision))).collect();
    for revision in &idle[..idle.len().saturating_sub(limit)] {
        let namespace = revision.metadata.namespace.as_deref().unwrap_or_default();
        let api: Api<ControllerRevision> = Api::namespaced(cluster.client.clone(), namespace);
        tolerate_gone(api.delete(name(revision), &DeleteParams::background()).await.map(|_| ()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_gives_back_the_template_it_was_made_of() {
        let made: PodTemplateSpec = serde_json::from_value(
            json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}),
        )
        .unwrap();
        let revision = ControllerRevision { data: Some(RawExtension(data(&made))), ..ControllerRevision::default() };
        assert_eq!(template(&revision), Some(made));
        assert_eq!(short_hash("x").len(), 10);
        assert_ne!(short_hash("x"), short_hash("y"));
    }
}
