//! The status of ValidatingAdmissionPolicies: whether their expressions reach for fields that the resources don't have
//! which they are about. A policy with such a mistake holds all the same, but says so.

use std::sync::Arc;

use carob_api::cel;
use carob_api::kind::Kind;
use carob_api::kinds;
use k8s_openapi::api::admissionregistration::v1::{ExpressionWarning, ValidatingAdmissionPolicy};
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::cluster::Cluster;
use crate::controller::{self, Controller, Setup};
use crate::informer::Key;
use crate::queue::{Again, Queue};
use crate::replica_set::tolerate_gone;

/// Kinds that one policy is compared with.
const MOST_KINDS: usize = 10;

pub(crate) struct PolicyStatus {
    cluster: Cluster,
}

impl Controller for PolicyStatus {
    type Item = Key;
    const NAME: &'static str = "validatingadmissionpolicy-status-controller";

    fn new(setup: &Setup<'_>) -> Self {
        Self { cluster: setup.cluster.clone() }
    }

    fn listen(self: &Arc<Self>, _: &Setup<'_>, queue: &Queue<Key>) {
        controller::each(&self.cluster.policies, queue);
    }

    async fn reconcile(&self, key: Key) -> Result<Again, kube::Error> {
        let Some(policy) = self.cluster.policies.get(&key) else { return Ok(None) };
        let generation = policy.metadata.generation;
        if policy.status.as_ref().and_then(|status| status.observed_generation) == generation {
            return Ok(None);
        }
        let warnings = warnings(&policy);
        let checking = if warnings.is_empty() { json!({}) } else { json!({"expressionWarnings": warnings}) };
        let patch = Patch::Merge(json!({"metadata": {"uid": policy.metadata.uid},
            "status": {"observedGeneration": generation, "typeChecking": checking}}));
        let api: Api<ValidatingAdmissionPolicy> = Api::all(self.cluster.client.clone());
        tolerate_gone(api.patch_status(&key.name, &PatchParams::default(), &patch).await.map(|_| ()))?;
        Ok(None)
    }
}

/// What is wrong with the expressions of a policy, by the kinds that it is about.
fn warnings(policy: &ValidatingAdmissionPolicy) -> Vec<ExpressionWarning> {
    let kinds: Vec<_> = about(policy).into_iter().map(|kind| (kind, cel::structural_of(kind))).collect();
    let check = |source: &str| -> String {
        let mut text = String::new();
        for (kind, schema) in &kinds {
            for mistake in cel::undefined_fields(source, &[("object", schema), ("oldObject", schema)]) {
                text.push_str(&format!("{}, Kind={}: {mistake}\n", kind.api_version(), kind.kind));
            }
        }
        text
    };
    let validations = policy.spec.iter().flat_map(|spec| spec.validations.iter().flatten()).enumerate();
    let mut warnings = Vec::new();
    for (index, validation) in validations {
        let fields = [
            ("expression", Some(&validation.expression)),
            ("messageExpression", validation.message_expression.as_ref()),
        ];
        for (field, source) in fields {
            let warning = source.map(|source| check(source)).unwrap_or_default();
            if !warning.is_empty() {
                warnings.push(ExpressionWarning { field_ref: format!("spec.validations[{index}].{field}"), warning });
            }
        }
    }
    warnings
}

/// The built-in kinds that a policy names; a star names none.
fn about(policy: &ValidatingAdmissionPolicy) -> Vec<&'static Kind> {
    let constraints = policy.spec.as_ref().and_then(|spec| spec.match_constraints.as_ref());
    let rules = constraints.into_iter().flat_map(|constraints| constraints.resource_rules.iter().flatten());
    let mut found: Vec<&'static Kind> = Vec::new();
    for rule in rules {
        let has = |list: Option<&Vec<String>>, name: &str| list.into_iter().flatten().any(|known| known == name);
        let named = kinds::builtin().filter(|kind| {
            has(rule.api_groups.as_ref(), kind.group)
                && has(rule.api_versions.as_ref(), kind.version)
                && has(rule.resources.as_ref(), kind.plural)
        });
        for kind in named {
            if !found.iter().any(|known| std::ptr::eq(*known, kind)) {
                found.push(kind);
            }
        }
    }
    found.truncate(MOST_KINDS);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_about_no_field_is_warned_of() {
        let policy = |expression: &str| -> ValidatingAdmissionPolicy {
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"validations": [
                {"expression": "true"}, {"expression": expression}], "matchConstraints": {"resourceRules": [
                {"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["*"], "resources": ["deployments", "*"]}]}}}))
            .unwrap()
        };
        assert!(warnings(&policy("object.spec.replicas > 1")).is_empty());
        let told = warnings(&policy("object.spec.copies > 1")).remove(0);
        assert_eq!(told.field_ref, "spec.validations[1].expression");
        let start = "apps/v1, Kind=Deployment: ERROR: <input>:1:12: undefined field 'copies'\n";
        assert!(told.warning.starts_with(start), "{}", told.warning);
    }
}
