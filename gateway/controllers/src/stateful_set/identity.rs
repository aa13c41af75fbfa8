//! What makes a pod the one of its ordinal: name, labels, host name, volumes.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaimVolumeSource, Pod, Volume};
use serde_json::{Value, json};

use super::Look;
use crate::pod_control;
use crate::revisions;

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";
pub(super) const REVISION: &str = "controller-revision-hash";

/// Set and ordinal in a pod's name.
fn parts(pod: &Pod) -> Option<(&str, i32)> {
    let (set, ordinal) = pod.metadata.name.as_deref()?.rsplit_once('-')?;
    let digits = !ordinal.is_empty() && ordinal.bytes().all(|byte| byte.is_ascii_digit());
    Some((set, ordinal.parse().ok().filter(|_| digits)?))
}

/// The ordinal in a pod's name.
pub(super) fn ordinal(pod: &Pod) -> Option<i32> {
    parts(pod).map(|(_, ordinal)| ordinal)
}

/// Whether a pod has a name of this set's.
pub(super) fn is_member(set: &StatefulSet, pod: &Pod) -> bool {
    parts(pod).is_some_and(|(name, _)| Some(name) == set.metadata.name.as_deref())
}

/// The name of the revision that a pod was made of.
pub(super) fn revision(pod: &Pod) -> Option<&str> {
    pod.metadata.labels.as_ref()?.get(REVISION).map(String::as_str)
}

fn labels(pod: &str, ordinal: i32) -> [(String, String); 2] {
    [(POD_NAME.to_owned(), pod.to_owned()), (POD_INDEX.to_owned(), ordinal.to_string())]
}

/// Whether the labels say who the pod is.
pub(super) fn is_marked(pod: &Pod) -> bool {
    let (name, Some(ordinal)) = (pod.metadata.name.as_deref().unwrap_or_default(), ordinal(pod)) else { return true };
    let known = pod.metadata.labels.as_ref();
    labels(name, ordinal).iter().all(|(key, value)| known.and_then(|known| known.get(key)) == Some(value))
}

/// The patch that gives a pod the labels of its place.
pub(super) fn correction(_: &StatefulSet, pod: &Pod) -> Value {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let labels: BTreeMap<String, String> = labels(name, ordinal(pod).unwrap_or(0)).into();
    json!({"metadata": {
        "uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version, "labels": labels,
    }})
}

impl Look {
    /// The pod of an ordinal, of the revision that it should have.
    pub(super) fn pod(&self, ordinal: i32) -> Pod {
        let revision = if self.keeps_current(ordinal) { &self.current } else { &self.history.update };
        let template = revisions::template(revision).unwrap_or_else(|| self.spec.template.clone());
        let mut pod = pod_control::from_template(&*self.set, &template);
        let name = format!("{}-{ordinal}", self.set.metadata.name.as_deref().unwrap_or_default());
        pod.metadata.generate_name = None;
        pod.metadata.name = Some(name.clone());
        let marks = pod.metadata.labels.get_or_insert_default();
        marks.extend(labels(&name, ordinal));
        marks.insert(REVISION.to_owned(), revisions::name(revision).to_owned());
        let spec = pod.spec.get_or_insert_default();
        spec.hostname = Some(name);
        spec.subdomain = self.spec.service_name.clone().filter(|service| !service.is_empty());
        let mut volumes: Vec<Volume> = self
            .claims(ordinal)
            .into_iter()
            .map(|claim| Volume {
                name: claim.template,
                persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                    claim_name: claim.object.metadata.name.unwrap_or_default(),
                    read_only: None,
                }),
                ..Volume::default()
            })
            .collect();
        let others = spec.volumes.take().into_iter().flatten();
        let others: Vec<Volume> =
            others.filter(|other| !volumes.iter().any(|volume| volume.name == other.name)).collect();
        volumes.extend(others);
        spec.volumes = Some(volumes).filter(|volumes| !volumes.is_empty());
        pod
    }

    /// Whether a pod of this ordinal is still of the revision before the update.
    fn keeps_current(&self, ordinal: i32) -> bool {
        self.rolls() && ordinal < self.start() + self.partition()
    }

    pub(super) fn rolls(&self) -> bool {
        self.strategy().is_none_or(|type_| type_ == "RollingUpdate")
    }

    fn strategy(&self) -> Option<&str> {
        self.spec.update_strategy.as_ref()?.type_.as_deref()
    }

    /// Ordinals, counted from the first, that an update leaves alone.
    pub(super) fn partition(&self) -> i32 {
        let rolling = self.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
        rolling.and_then(|rolling| rolling.partition).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_has_the_sets_name_and_a_number() {
        let set: StatefulSet = serde_json::from_value(json!({"metadata": {"name": "a-b"}})).unwrap();
        let pod = |name: &str| -> Pod { serde_json::from_value(json!({"metadata": {"name": name}})).unwrap() };
        assert!(is_member(&set, &pod("a-b-12")));
        assert_eq!(ordinal(&pod("a-b-12")), Some(12));
        for other in ["a-b", "a-b-", "a-b-x", "a-b-+1", "b-1", "a-b-c-1"] {
            assert!(!is_member(&set, &pod(other)), "{other}");
        }
    }
}
