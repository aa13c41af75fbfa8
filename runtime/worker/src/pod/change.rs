//! A newer version of the pod's object: what in it concerns a pod that runs.

use super::actor::Actor;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use std::sync::Arc;

impl Actor {
    /// A newer object: deletion, changed images, labels or deadlines, conditions written by others.
    pub(super) fn object(&mut self, pod: Arc<Pod>) {
        if !newer(&pod, &self.pod) {
            return;
        }
        let gates_changed = gates(&pod) != gates(&self.pod);
        if pod.metadata.labels != self.pod.metadata.labels || pod.metadata.annotations != self.pod.metadata.annotations
        {
            self.volumes_changed = true;
            #[cfg(debug_assertions)]
            self.panic_as_asked(&pod);
        }
        let generation_changed = pod.metadata.generation != self.pod.metadata.generation;
        self.pod = pod;
        if generation_changed {
            self.take_up_ephemeral();
            self.spec_changed();
            self.resize.look_again();
        }
        if gates_changed || generation_changed {
            self.writer.mark_now();
        }
    }

    /// Nothing else that is known can make it panic: builds for tests do when they are asked to.
    #[cfg(debug_assertions)]
    fn panic_as_asked(&mut self, pod: &Pod) {
        use kube::ResourceExt as _;
        match pod.annotations().get("carob.test/panic").map(String::as_str) {
            Some("actor") => panic!("asked to"),
            Some("task") => drop(self.tasks.spawn(async { panic!("asked to") })),
            _ => {}
        }
    }

    /// The only thing of a running pod's containers that can change is the image: such containers are replaced.
    fn spec_changed(&mut self) {
        for index in 0..self.records.len() {
            let image = self.container(index).image.clone().unwrap_or_default();
            if self.records[index].image == image {
                continue;
            }
            self.records[index].image = image;
            let control = &mut self.controls[index];
            // The failures were the old image's.
            control.crash.reset();
            control.pull.reset();
            (control.retry_at, control.shows_later) = (None, None);
            self.replace(index);
        }
    }

    /// Restarts a running container whose spec has changed, whatever the restart policy.
    pub(super) fn replace(&mut self, index: usize) {
        if self.stopping.is_some() || self.controls[index].live.is_none() {
            return;
        }
        let text = format!("Container {} definition changed, will be restarted", self.records[index].name);
        self.restart(index, text, None);
        self.controls[index].restart_wanted = true;
    }
}

/// The conditions that the pod's readiness waits for and others write.
fn gates(pod: &Pod) -> Vec<&PodCondition> {
    let gates = || pod.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.filter(|condition| gates().any(|gate| gate.condition_type == condition.type_)).collect()
}

/// Whether `new` is a later version of the object than `old` (versions of one API server are numbers that grow).
fn newer(new: &Pod, old: &Pod) -> bool {
    let version = |pod: &Pod| pod.metadata.resource_version.as_ref().and_then(|version| version.parse::<u64>().ok());
    match (version(new), version(old)) {
        (Some(new), Some(old)) => new >= old,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_conditions_of_readiness_gates_are_others_news() {
        let pod = |own: &str, gate: &str| -> Pod {
            serde_json::from_value(json!({
                "metadata": {},
                "spec": {"containers": [], "readinessGates": [{"conditionType": "example.com/ok"}]},
                "status": {"conditions": [{"type": "Ready", "status": own}, {"type": "example.com/ok", "status": gate}]},
            }))
            .unwrap()
        };
        assert_eq!(gates(&pod("False", "False")), gates(&pod("True", "False")));
        assert_ne!(gates(&pod("False", "False")), gates(&pod("False", "True")));
    }
}
