//! What the failure of a pod means, where the Job has a policy about it.

use k8s_openapi::api::batch::v1::{PodFailurePolicy, PodFailurePolicyRule};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use crate::pod_control::phase;

/// What else than counting the failure.
pub(super) enum Action {
    /// The Job has failed, with this message.
    FailJob(String),
    /// The index of the pod has failed: it is not tried again.
    FailIndex,
    /// The failure doesn't count.
    Ignore,
}

/// The action of the first rule that a failed pod matches.
pub(super) fn action(policy: Option<&PodFailurePolicy>, pod: &Pod) -> Option<Action> {
    let rules = policy.filter(|_| phase(pod) == "Failed")?.rules.iter().enumerate();
    let (reason, index, action) =
        rules.into_iter().find_map(|(index, rule)| Some((reason(rule, pod)?, index, rule.action.as_str())))?;
    match action {
        "FailJob" => Some(Action::FailJob(format!("{reason} matching {action} rule at index {index}"))),
        "FailIndex" => Some(Action::FailIndex),
        "Ignore" => Some(Action::Ignore),
        _ => None,
    }
}

/// Why a pod matches a rule.
fn reason(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let name = format!(
        "{}/{}",
        pod.metadata.namespace.as_deref().unwrap_or_default(),
        pod.metadata.name.as_deref().unwrap_or_default()
    );
    let status = pod.status.clone().unwrap_or_default();
    if let Some(codes) = &rule.on_exit_codes {
        let init = status.init_container_statuses.into_iter().flatten();
        let mut containers = init.chain(status.container_statuses.into_iter().flatten());
        return containers.find_map(|container| {
            let code = exit_code(&container)?;
            let meant = codes.container_name.as_ref().is_none_or(|name| *name == container.name);
            let listed = codes.values.contains(&code);
            let matches = meant && code != 0 && if codes.operator == "NotIn" { !listed } else { listed };
            matches.then(|| format!("Container {} for pod {name} failed with exit code {code}", container.name))
        });
    }
    let patterns = rule.on_pod_conditions.iter().flatten();
    patterns.into_iter().find_map(|pattern| {
        let mut conditions = status.conditions.iter().flatten();
        let status = pattern.status.as_deref().unwrap_or("True");
        conditions
            .any(|condition| condition.type_ == pattern.type_ && condition.status == status)
            .then(|| format!("Pod {name} has condition {}", pattern.type_))
    })
}

fn exit_code(container: &ContainerStatus) -> Option<i32> {
    container.state.as_ref()?.terminated.as_ref().map(|end| end.exit_code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_rule_that_matches_decides() {
        let policy: PodFailurePolicy = serde_json::from_value(json!({"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}},
            {"action": "Count", "onExitCodes": {"operator": "NotIn", "values": [1]}}
        ]}))
        .unwrap();
        let failed = |code: i32, disrupted: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"}, "status": {
                "phase": "Failed",
                "conditions": [{"type": "DisruptionTarget", "status": disrupted}],
                "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                    "state": {"terminated": {"exitCode": code}}}]
            }}))
            .unwrap()
        };
        assert!(matches!(action(Some(&policy), &failed(42, "True")), Some(Action::Ignore)));
        let Some(Action::FailJob(message)) = action(Some(&policy), &failed(42, "False")) else { panic!("no match") };
        assert_eq!(message, "Container c for pod n/p failed with exit code 42 matching FailJob rule at index 1");
        assert!(action(Some(&policy), &failed(7, "False")).is_none());
        assert!(action(None, &failed(42, "False")).is_none());
    }
}
