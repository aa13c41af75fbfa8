//! `StatefulSet`.

use serde_json::{Value, json};

use super::{
    BASE, first_generation, generation_differs, object_at, persistent_volume_claim, pod_spec, set_default,
    set_default_text, spec_and_status,
};
use crate::field::{ErrorList, Path};
use crate::kind::{Part, Strategy};
use crate::validation::json::{dig, get, items, str_at};
use crate::validation::metadata::non_negative;
use crate::validation::selectors::{is_empty, label_selector, selects};
use crate::validation::{amounts, go, names, pod_warnings, template};

/// What is peculiar to `StatefulSet`s.
pub const STRATEGY: Strategy = Strategy {
    default,
    prepare_create: |object| {
        object["status"] = json!({"replicas": 0, "availableReplicas": 0});
        first_generation(object);
    },
    prepare_update: spec_and_status,
    validate,
    validate_update,
    // Its pods are named after it, and a host name has no dots.
    validate_name: names::dns1123_label,
    warns_again: generation_differs,
    warnings: |object| {
        let mut warnings = pod_warnings::template(object);
        if dig(object, &["spec", "revisionHistoryLimit"]).and_then(Value::as_i64).is_some_and(|limit| limit < 0) {
            warnings.push(
                "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended"
                    .to_owned(),
            );
        }
        warnings
    },
    ..BASE
};

/// What of the spec an update may change.
const UPDATABLE: [&str; 7] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

fn default(object: &mut Value) {
    if let Some(status) = object_at(object, "status") {
        set_default(status, "replicas", 0);
        set_default(status, "availableReplicas", 0);
    }
    let Some(spec) = object_at(object, "spec") else { return };
    set_default(spec, "replicas", 1);
    set_default(spec, "revisionHistoryLimit", 10);
    set_default_text(spec, "podManagementPolicy", "OrderedReady");
    pod_spec::drop_if_empty(spec, "minReadySeconds");
    set_default(spec, "updateStrategy", json!({}));
    if let Some(strategy) = spec.get_mut("updateStrategy").and_then(Value::as_object_mut) {
        set_default_text(strategy, "type", "RollingUpdate");
        if strategy["type"] == "RollingUpdate" {
            set_default(strategy, "rollingUpdate", json!({}));
            if let Some(rolling) = strategy["rollingUpdate"].as_object_mut() {
                set_default(rolling, "partition", 0);
            }
        } else {
            pod_spec::drop_null(strategy, "rollingUpdate");
        }
    }
    set_default(spec, "persistentVolumeClaimRetentionPolicy", json!({}));
    if let Some(policy) = spec.get_mut("persistentVolumeClaimRetentionPolicy").and_then(Value::as_object_mut) {
        set_default_text(policy, "whenDeleted", "Retain");
        set_default_text(policy, "whenScaled", "Retain");
    }
    for claim in spec.get_mut("volumeClaimTemplates").and_then(Value::as_array_mut).into_iter().flatten() {
        persistent_volume_claim::default(claim);
        if let Some(claim) = claim.as_object_mut() {
            claim.insert("kind".to_owned(), "PersistentVolumeClaim".into());
            claim.insert("apiVersion".to_owned(), "v1".into());
        }
    }
    pod_spec::default_template(&mut object["spec"]);
}

fn validate(object: &Value) -> ErrorList {
    let path = Path::new("spec");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let mut errors = strategies(spec, &path);
    for field in ["replicas", "minReadySeconds"] {
        errors.extend(non_negative(spec, field, &path));
    }
    if let Some(ordinals) = get(spec, "ordinals") {
        errors.extend(non_negative(ordinals, "start", &path.child("ordinals")));
    }
    let service = str_at(spec, "serviceName");
    if !service.is_empty() {
        let field = path.child("serviceName");
        errors.extend(names::dns1123_label(service).into_iter().map(|why| field.invalid(service, why)));
    }
    errors.extend(pods(spec, &path));
    errors
}

fn strategies(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let field = path.child("podManagementPolicy");
    match str_at(spec, "podManagementPolicy") {
        "" => errors.push(field.required("")),
        "OrderedReady" | "Parallel" => {}
        other => errors.push(field.invalid(other, "must be 'OrderedReady' or 'Parallel'")),
    }
    let field = path.child("updateStrategy");
    let strategy = spec.get("updateStrategy").unwrap_or(&Value::Null);
    let rolling = get(strategy, "rollingUpdate");
    match str_at(strategy, "type") {
        "" => errors.push(field.required("")),
        "OnDelete" => {
            if let Some(rolling) = rolling {
                let shown = go::value(go::STATEFUL_ROLLING_UPDATE, rolling);
                let why = "only allowed for updateStrategy 'RollingUpdate'";
                errors.push(field.child("rollingUpdate").invalid(shown, why));
            }
        }
        "RollingUpdate" => {
            if let Some(rolling) = rolling {
                errors.extend(rolling_update(rolling, &field.child("rollingUpdate")));
            }
        }
        _ => {
            let shown = go::value(go::STATEFUL_STRATEGY, strategy);
            errors.push(field.invalid(shown, "must be 'RollingUpdate' or 'OnDelete'"));
        }
    }
    if let Some(policy) = get(spec, "persistentVolumeClaimRetentionPolicy") {
        for when in ["whenDeleted", "whenScaled"] {
            let value = str_at(policy, when);
            if !matches!(value, "Retain" | "Delete") {
                let field = path.child("persistentVolumeClaimRetentionPolicy").child(when);
                errors.push(field.not_supported(value, &["Retain", "Delete"]));
            }
        }
    }
    errors
}

fn rolling_update(rolling: &Value, path: &Path) -> ErrorList {
    let mut errors = non_negative(rolling, "partition", path);
    if let Some(most) = get(rolling, "maxUnavailable") {
        let field = path.child("maxUnavailable");
        errors.extend(amounts::positive(most, &field));
        if amounts::number(most) == 0 {
            errors.push(field.invalid(most.clone(), "cannot be 0"));
        }
        errors.extend(amounts::at_most_all(most, &field));
    }
    errors
}

fn pods(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let field = path.child("selector");
    let selector = get(spec, "selector");
    match selector {
        None => errors.push(field.required("")),
        Some(selector) => {
            errors.extend(label_selector(selector, &field));
            if is_empty(selector) {
                errors.push(field.invalid(go::selector(selector), "empty selector is invalid for statefulset"));
            }
        }
    }
    let labels = dig(spec, &["template", "metadata", "labels"]);
    match selects(selector, labels) {
        None => {
            errors.push(field.invalid(selector.map_or(Value::Null, go::selector), ""));
            return errors;
        }
        Some(false) => errors.push(template::unselected(labels, path)),
        Some(true) => {}
    }
    errors.extend(template::template(&with_claims(spec), path));
    errors.extend(template::runs_for_ever(spec, "StatefulSet", path));
    errors
}

/// The spec with the volumes in its template that its claims will be.
fn with_claims(spec: &Value) -> Value {
    let claims = items(spec, "volumeClaimTemplates");
    let mut spec = spec.clone();
    if claims.is_empty() {
        return spec;
    }
    let names: Vec<String> = claims
        .iter()
        .map(|claim| dig(claim, &["metadata", "name"]).and_then(Value::as_str).unwrap_or("").to_owned())
        .collect();
    if let Some(pod) = spec["template"].get_mut("spec").and_then(Value::as_object_mut) {
        let volumes = pod.entry("volumes").or_insert_with(|| json!([]));
        if let Some(volumes) = volumes.as_array_mut() {
            volumes.retain(|volume| !names.iter().any(|name| name == str_at(volume, "name")));
            volumes
                .extend(names.iter().map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}})));
        }
    }
    spec
}

fn validate_update(new: &Value, old: &Value, part: Part) -> ErrorList {
    if part == Part::Status {
        return template::counts(
            new,
            &[
                "replicas",
                "readyReplicas",
                "currentReplicas",
                "updatedReplicas",
                "availableReplicas",
                "observedGeneration",
                "collisionCount",
            ],
            &["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"],
        );
    }
    let mut errors = validate(new);
    let fixed = |object: &Value| {
        let mut spec = object.get("spec").cloned().unwrap_or_default();
        if let Some(spec) = spec.as_object_mut() {
            spec.retain(|field, _| !UPDATABLE.contains(&field.as_str()));
        }
        spec
    };
    if fixed(new) != fixed(old) {
        errors.push(Path::new("spec").forbidden(
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', \
             'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        ));
    }

    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(change: &Value) -> Value {
        let mut object = json!({"metadata": {"name": "s"}, "spec": {"selector": {"matchLabels": {"app": "a"}},
            "template": {"metadata": {"labels": {"app": "a"}},
                         "spec": {"containers": [{"name": "c", "image": "nginx"}]}}}});
        for (field, value) in change.as_object().unwrap() {
            object["spec"][field] = value.clone();
        }
        default(&mut object);
        object
    }

    fn causes(change: &Value) -> Vec<String> {
        validate(&set(change)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults_are_ordered_and_retain() {
        let spec = set(&json!({"volumeClaimTemplates": [{"metadata": {"name": "v"}, "spec": {}}]}))["spec"].clone();
        assert_eq!(spec["updateStrategy"], json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}));
        assert_eq!(
            spec["persistentVolumeClaimRetentionPolicy"],
            json!({"whenDeleted": "Retain", "whenScaled": "Retain"})
        );
        assert_eq!(spec["volumeClaimTemplates"][0]["status"], json!({"phase": "Pending"}));
        assert_eq!(spec["volumeClaimTemplates"][0]["kind"], "PersistentVolumeClaim");
    }

    #[test]
    fn claims_can_be_mounted() {
        let template = json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [
            {"name": "c", "image": "x", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}});
        let claims = json!([{"metadata": {"name": "v"}, "spec": {}}]);
        assert!(causes(&json!({"template": template, "volumeClaimTemplates": claims})).is_empty());
        assert_eq!(causes(&json!({"template": template})).len(), 1);
    }

    #[test]
    fn strategies_are_consistent() {
        assert_eq!(
            causes(&json!({"updateStrategy": {"type": "Y"}, "podManagementPolicy": "X"})),
            [
                "spec.podManagementPolicy: Invalid value: \"X\": must be 'OrderedReady' or 'Parallel'",
                "spec.updateStrategy: Invalid value: {\"Type\":\"Y\",\"RollingUpdate\":null}: must be 'RollingUpdate' or \
                 'OnDelete'"
            ]
        );
        assert_eq!(
            causes(&json!({"updateStrategy": {"type": "OnDelete", "rollingUpdate": {}}})),
            [
                "spec.updateStrategy.rollingUpdate: Invalid value: {\"Partition\":0,\"MaxUnavailable\":null}: only allowed \
              for updateStrategy 'RollingUpdate'"
            ]
        );
    }

    #[test]
    fn most_of_it_stays() {
        let old = set(&json!({}));
        let mut new = set(&json!({"replicas": 3, "minReadySeconds": 1}));
        assert!(validate_update(&new, &old, Part::Main).is_empty());
        new["spec"]["serviceName"] = json!("other");
        assert!(validate_update(&new, &old, Part::Main)[0].to_string().starts_with("spec: Forbidden: updates to"));
    }
}
