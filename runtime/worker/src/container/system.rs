//! What a pod asks of its node's system: the operating system, and AppArmor where it is enforced.

use crate::admission::Refusal;
use k8s_openapi::api::core::v1::{AppArmorProfile, Pod, PodSpec};

const LINUX: &str = "linux";
/// The label that says which system a node has.
const LABEL: &str = "kubernetes.io/os";

/// Why the node doesn't take the pod, with the kubelet's reasons and words.
pub(crate) fn refuse(pod: &Pod) -> Option<Refusal> {
    let spec = pod.spec.as_ref()?;
    // A label of the pod, as the kubelet has it; a selector is for the node's labels.
    let labelled = pod.metadata.labels.as_ref().and_then(|labels| labels.get(LABEL));
    if labelled.is_some_and(|system| system != LINUX) {
        let message = format!("Failed to admit pod as the `{LABEL}` label doesn't match node label");
        return Some(Refusal { reason: "PodOSSelectorNodeLabelDoesNotMatch", message });
    }
    if spec.os.as_ref().is_some_and(|os| os.name != LINUX) {
        let message = "Failed to admit pod as the OS field doesn't match node OS".to_owned();
        return Some(Refusal { reason: "PodOSNotSupported", message });
    }
    if wants_app_armor(spec) {
        let why = if is_enforced() { "Carob applies no profiles" } else { "AppArmor is not enabled on the host" };
        return Some(Refusal { reason: "AppArmor", message: format!("Cannot enforce AppArmor: {why}") });
    }
    None
}

fn is_enforced() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
}

/// Whether any container is to be confined by a profile: its own wish comes before the pod's.
fn wants_app_armor(spec: &PodSpec) -> bool {
    let confines = |profile: Option<&AppArmorProfile>| profile.is_some_and(|profile| profile.type_ != "Unconfined");
    let of_pod = spec.security_context.as_ref().and_then(|context| context.app_armor_profile.as_ref());
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let mut own = containers.map(|container| {
        let own = container.security_context.as_ref();
        own.and_then(|context| context.app_armor_profile.as_ref())
    });
    own.any(|own| confines(own.or(of_pod)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pods_for_other_systems_and_profiles_that_nothing_enforces_are_refused() {
        let profile = |type_: &str| json!({"appArmorProfile": {"type": type_}});
        let container = |context: serde_json::Value| json!([{"name": "c", "securityContext": context}]);
        for (spec, reason) in [
            (json!({"containers": [], "os": {"name": "linux"}}), None),
            (json!({"containers": [], "os": {"name": "windows"}}), Some("PodOSNotSupported")),
            (json!({"containers": container(profile("RuntimeDefault"))}), Some("AppArmor")),
            (
                json!({"containers": container(profile("Unconfined")), "securityContext": profile("RuntimeDefault")}),
                None,
            ),
            (
                json!({"containers": container(json!({})), "securityContext": profile("RuntimeDefault")}),
                Some("AppArmor"),
            ),
        ] {
            let shown = spec.to_string();
            assert_eq!(reason_for(json!({"spec": spec})), reason, "{shown}");
        }
        let labelled = |system: &str| json!({"metadata": {"labels": {LABEL: system}}, "spec": {"containers": []}});
        assert_eq!(reason_for(labelled("windows")), Some("PodOSSelectorNodeLabelDoesNotMatch"));
        assert_eq!(reason_for(labelled("linux")), None);
    }

    fn reason_for(pod: serde_json::Value) -> Option<&'static str> {
        refuse(&serde_json::from_value(pod).unwrap()).map(|refusal| refusal.reason)
    }
}
