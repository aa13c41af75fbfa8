//! What to start next: init containers in order, sidecars beside them, then everything at once. No I/O, no clock.

use super::record::Role;
use k8s_openapi::api::core::v1::{Container, ContainerRestartRule};

/// Where a container is, as far as the plan cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Never started in this sandbox.
    New,
    /// Being started.
    Starting,
    /// Running; `started` when its startup probe has passed.
    Running { started: bool },
    /// Ended; `again` when the restart policy wants another run.
    Ended { success: bool, again: bool },
}

/// What follows from the containers' progress.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Step {
    /// Containers to start (or start again, when their back-off allows).
    pub start: Vec<usize>,
    /// All init containers have done their part.
    pub initialized: bool,
    /// All main containers have ended for good (or an init container has failed for good): nothing but sidecars may run.
    pub over: Option<Outcome>,
}

/// How a pod ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Succeeded,
    Failed,
}

/// The next step. Init containers come before mains in `parts`, in the spec's order; ephemeral ones, which start as soon as
/// there is a sandbox, are the last.
pub(crate) fn plan(parts: &[(Role, Progress)]) -> Step {
    let mut step = plan_without_ephemeral(parts);
    if step.over.is_none() {
        let new = |(_, part): &(usize, &(Role, Progress))| **part == (Role::Ephemeral, Progress::New);
        step.start.extend(parts.iter().enumerate().filter(new).map(|(index, _)| index));
    }
    step
}

fn plan_without_ephemeral(parts: &[(Role, Progress)]) -> Step {
    let mut step = Step::default();
    let mains = || parts.iter().enumerate().filter(|(_, (role, _))| *role == Role::Main);
    let begun = mains().any(|(_, (_, progress))| *progress != Progress::New);

    let ended_mains = mains().filter_map(|(_, (_, progress))| match progress {
        Progress::Ended { success, again: false } => Some(*success),
        _ => None,
    });
    let ended: Vec<bool> = ended_mains.collect();
    if ended.len() == mains().count() {
        step.initialized = true;
        step.over = Some(if ended.iter().all(|success| *success) { Outcome::Succeeded } else { Outcome::Failed });
        return step;
    }

    for (index, (role, progress)) in parts.iter().enumerate() {
        match (role, progress) {
            (Role::Main | Role::Ephemeral, _) => break,
            (Role::Init, _) if begun => {}
            (Role::Init, Progress::Ended { success: true, .. })
            | (Role::Sidecar, Progress::Running { started: true }) => {}
            (Role::Init, Progress::Ended { again: false, .. }) => {
                step.over = Some(Outcome::Failed);
                step.start.clear();
                return step;
            }
            (Role::Init, Progress::New | Progress::Ended { .. }) => {
                step.start.push(index);
                return step;
            }
            (Role::Init, _) => return step,
            (Role::Sidecar, Progress::New | Progress::Ended { .. }) => {
                step.start.push(index);
                if !begun {
                    return step;
                }
            }
            (Role::Sidecar, Progress::Starting | Progress::Running { started: false }) => {
                if !begun {
                    return step;
                }
            }
        }
    }
    step.initialized = true;
    step.start.extend(mains().filter_map(|(index, (_, progress))| match progress {
        Progress::New | Progress::Ended { again: true, .. } => Some(index),
        _ => None,
    }));
    step
}

/// Whether an ended container is to run again: its own restart policy and rules before the pod's.
pub(crate) fn runs_again(pod_policy: &str, container: &Container, role: Role, code: i32) -> bool {
    match role {
        Role::Sidecar => return true,
        Role::Ephemeral => return false,
        Role::Init | Role::Main => {}
    }
    if rule(container, code).is_some_and(|rule| matches!(rule.action.as_str(), "Restart" | "RestartAllContainers")) {
        return true;
    }
    match container.restart_policy.as_deref().filter(|policy| !policy.is_empty()).unwrap_or(pod_policy) {
        // An init container that has succeeded is done whatever the policy.
        "Always" if role == Role::Init => code != 0,
        "Never" => false,
        "OnFailure" => code != 0,
        _ => true,
    }
}

/// The first rule that an exit code matches.
pub(super) fn rule(container: &Container, code: i32) -> Option<&ContainerRestartRule> {
    container.restart_policy_rules.iter().flatten().find(|rule| {
        rule.exit_codes.as_ref().is_some_and(|codes| {
            let listed = codes.values.iter().flatten().any(|value| *value == code);
            if codes.operator == "In" { listed } else { codes.operator == "NotIn" && !listed }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use Progress::{Ended, New, Running, Starting};
    use serde_json::json;

    const DONE: Progress = Ended { success: true, again: false };
    const FAILED: Progress = Ended { success: false, again: false };
    const CRASHED: Progress = Ended { success: false, again: true };
    const UP: Progress = Running { started: true };

    #[test]
    fn mains_start_together_once_init_containers_are_done() {
        let parts = [(Role::Init, New), (Role::Init, New), (Role::Main, New), (Role::Main, New)];
        assert_eq!(plan(&parts), Step { start: vec![0], ..Step::default() });
        let parts = [(Role::Init, DONE), (Role::Init, Starting), (Role::Main, New)];
        assert_eq!(plan(&parts), Step::default());
        let parts = [(Role::Init, DONE), (Role::Main, New), (Role::Main, New)];
        assert_eq!(plan(&parts), Step { start: vec![1, 2], initialized: true, over: None });
    }

    #[test]
    fn a_failed_init_container_is_retried_or_fails_the_pod() {
        assert_eq!(plan(&[(Role::Init, CRASHED), (Role::Main, New)]).start, [0]);
        let step = plan(&[(Role::Init, FAILED), (Role::Main, New)]);
        assert_eq!((step.start, step.over), (vec![], Some(Outcome::Failed)));
    }

    #[test]
    fn sidecars_hold_the_rest_back_until_started_and_restart_alone() {
        let waiting = Running { started: false };
        assert_eq!(plan(&[(Role::Sidecar, waiting), (Role::Main, New)]), Step::default());
        assert_eq!(plan(&[(Role::Sidecar, UP), (Role::Main, New)]).start, [1]);
        let step = plan(&[(Role::Sidecar, CRASHED), (Role::Init, DONE), (Role::Main, UP)]);
        assert_eq!((step.start, step.initialized), (vec![0], true));
        let step = plan(&[(Role::Sidecar, CRASHED), (Role::Main, CRASHED)]);
        assert_eq!(step.start, [0, 1]);
    }

    #[test]
    fn the_pod_is_over_when_no_main_container_will_run_again() {
        assert_eq!(plan(&[(Role::Sidecar, UP), (Role::Main, DONE)]).over, Some(Outcome::Succeeded));
        assert_eq!(plan(&[(Role::Main, DONE), (Role::Main, FAILED)]).over, Some(Outcome::Failed));
        assert_eq!(plan(&[(Role::Main, DONE), (Role::Main, UP)]).over, None);
        assert_eq!(plan(&[(Role::Main, CRASHED)]), Step { start: vec![0], initialized: true, over: None });
    }

    #[test]
    fn ephemeral_containers_start_once_whatever_the_others_do() {
        let parts = [(Role::Init, Starting), (Role::Main, New), (Role::Ephemeral, DONE), (Role::Ephemeral, New)];
        assert_eq!(plan(&parts), Step { start: vec![3], ..Step::default() });
        let ended = [(Role::Main, DONE), (Role::Ephemeral, UP), (Role::Ephemeral, New)];
        assert_eq!(plan(&ended), Step { start: vec![], initialized: true, over: Some(Outcome::Succeeded) });
        assert!(!runs_again("Always", &Container::default(), Role::Ephemeral, 1));
    }

    #[test]
    fn restart_policies_and_rules() {
        let plain = Container::default();
        for (policy, code, again) in
            [("Always", 0, true), ("OnFailure", 0, false), ("OnFailure", 1, true), ("Never", 1, false)]
        {
            assert_eq!(runs_again(policy, &plain, Role::Main, code), again, "{policy} {code}");
        }
        assert!(!runs_again("Always", &plain, Role::Init, 0));
        assert!(runs_again("Always", &plain, Role::Init, 1));
        assert!(runs_again("Never", &plain, Role::Sidecar, 0));
        let ruled: Container = serde_json::from_value(json!({"name": "c", "restartPolicy": "Never",
            "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]}))
        .unwrap();
        assert!(runs_again("Always", &ruled, Role::Main, 42));
        assert!(!runs_again("Always", &ruled, Role::Main, 1));
    }
}
