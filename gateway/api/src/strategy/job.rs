//! Job.

use serde_json::{Value, json};

use super::{
    BASE, bump_generation, differs, first_generation, generation_differs, keep_field, metadata_field, name_of,
    object_at, pod_spec, set_default,
};
use crate::field::{ErrorList, Path};
use crate::kind::{Part, Strategy};
use crate::validation::containers::RESTART_OF_JOBS;
use crate::validation::json::{dig, flag, get, int, items, str_at, text_or_null};
use crate::validation::metadata::{immutable, non_negative};
use crate::validation::selectors::{label_selector, selects};
use crate::validation::{go, names, pod_warnings, template};

/// What is peculiar to Jobs.
pub const STRATEGY: Strategy = Strategy {
    default,
    prepare_create,
    prepare_update,
    validate,
    validate_update,
    warnings: pod_warnings::template,
    warns_again: generation_differs,
    field: |job, field| match field {
        // Kubernetes calls it successful, and means the pods that have succeeded.
        "status.successful" => Some({
            let count = text_or_null(dig(job, &["status", "succeeded"]));
            if count.is_empty() { "0".to_owned() } else { count }
        }),
        _ => metadata_field(job, field),
    },
    ..BASE
};

/// Labels by which a job finds its pods: those of today, and those of before.
const UID_LABELS: [&str; 2] = ["batch.kubernetes.io/controller-uid", "controller-uid"];
const NAME_LABELS: [&str; 2] = ["batch.kubernetes.io/job-name", "job-name"];

const ACTIONS: [&str; 4] = ["Count", "FailIndex", "FailJob", "Ignore"];

fn default(object: &mut Value) {
    object_at(object, "status");
    let Some(spec) = object_at(object, "spec") else { return };
    let parallel = spec.get("parallelism").is_some_and(|value| !value.is_null());
    if !parallel {
        set_default(spec, "completions", 1);
    }
    set_default(spec, "parallelism", 1);
    let indexed = spec.get("backoffLimitPerIndex").is_some_and(|value| !value.is_null());
    set_default(spec, "backoffLimit", if indexed { i32::MAX } else { 6 });
    set_default(spec, "completionMode", "NonIndexed");
    set_default(spec, "suspend", false);
    set_default(spec, "manualSelector", false);
    let policy = spec.get("podFailurePolicy").is_some_and(|value| !value.is_null());
    set_default(spec, "podReplacementPolicy", if policy { "Failed" } else { "TerminatingOrFailed" });
    let rules = spec.get_mut("podFailurePolicy").and_then(|policy| policy.get_mut("rules"));
    for rule in rules.and_then(Value::as_array_mut).into_iter().flatten() {
        for condition in rule.get_mut("onPodConditions").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(condition) = condition.as_object_mut() {
                super::set_default_text(condition, "status", "True");
            }
        }
    }
    spec.retain(|_, value| !value.is_null());
    pod_spec::default_template(&mut object["spec"]);
    label_as_template(object);
}

/// A job without labels has those of its template.
fn label_as_template(object: &mut Value) {
    let Some(labels) = dig(object, &["spec", "template", "metadata", "labels"]).cloned() else { return };
    let own = dig(object, &["metadata", "labels"]).and_then(Value::as_object);
    if own.is_none_or(serde_json::Map::is_empty)
        && let Some(metadata) = object_at(object, "metadata")
    {
        metadata.insert("labels".to_owned(), labels);
    }
}

fn prepare_create(object: &mut Value) {
    first_generation(object);
    object["status"] = json!({});
    let spec = object.get("spec").unwrap_or(&Value::Null);
    if flag(spec, "manualSelector") {
        return;
    }
    let uid = text_or_null(dig(object, &["metadata", "uid"]));
    let name = name_of(object).to_owned();
    let Some(spec) = object.get_mut("spec") else { return };
    if let Some(template) = object_at(spec, "template") {
        let metadata = template.entry("metadata").or_insert_with(|| json!({}));
        if let Some(labels) = object_at(metadata, "labels") {
            for (keys, value) in [(UID_LABELS, &uid), (NAME_LABELS, &name)] {
                for key in keys {
                    set_default(labels, key, value.as_str());
                }
            }
        }
    }
    if let Some(selector) = object_at(spec, "selector") {
        let labels = selector.entry("matchLabels").or_insert_with(|| json!({}));
        labels[UID_LABELS[0]] = Value::from(uid);
    }
}

fn prepare_update(new: &mut Value, old: &Value, part: Part) {
    keep_field(new, old, if part == Part::Status { "spec" } else { "status" });
    let changed = differs(new, old, "/spec");
    bump_generation(new, old, changed);
}

fn validate(object: &Value) -> ErrorList {
    let path = Path::new("spec");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let mut errors = generated_selector(object, spec, &path);
    errors.extend(spec_errors(spec, &path));
    let field = path.child("selector");
    let selector = get(spec, "selector");
    match selector {
        None => errors.push(field.required("")),
        Some(selector) => errors.extend(label_selector(selector, &field)),
    }
    let labels = dig(spec, &["template", "metadata", "labels"]);
    if selector.is_some() && selects(selector, labels) == Some(false) {
        errors.push(template::unselected(labels, &path));
    }
    errors.extend(host_names(object, spec));
    errors
}

/// A selector that the server made selects this job's pods and no other's.
fn generated_selector(object: &Value, spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let Some(selector) = get(spec, "selector").filter(|_| !flag(spec, "manualSelector")) else { return errors };
    let uid = text_or_null(dig(object, &["metadata", "uid"]));
    if uid.is_empty() {
        errors.push(Path::new("metadata").child("uid").required(""));
    }
    let labels = dig(spec, &["template", "metadata", "labels"]);
    let place = path.child("template").child("metadata").child("labels");
    for (keys, value) in [(UID_LABELS, uid.as_str()), (NAME_LABELS, name_of(object))] {
        for key in keys {
            match labels.and_then(|labels| get(labels, key)) {
                None => errors.push(place.key(key).required(format!("must be '{value}'"))),
                Some(actual) if actual != value => errors
                    .push(place.key(key).invalid(labels.cloned().unwrap_or_default(), format!("must be '{value}'"))),
                Some(_) => {}
            }
        }
    }
    let own = json!({UID_LABELS[0]: uid});
    if selects(Some(selector), Some(&own)) == Some(false) {
        errors.push(path.child("selector").invalid(go::selector(selector), "`selector` not auto-generated"));
    }
    errors
}

/// What is wrong with the spec of a job, or with that of a template for jobs.
pub fn spec_errors(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        errors.extend(non_negative(spec, field, path));
    }
    if let Some(manager) = get(spec, "managedBy").and_then(Value::as_str) {
        let field = path.child("managedBy");
        if !names::is_domain_prefixed_path(manager) {
            errors.push(field.invalid(manager, "must be a domain-prefixed path (such as \"acme.io/foo\")"));
        }
        if manager.len() > 63 {
            errors.push(field.too_long(63));
        }
    }
    errors.extend(completion(spec, path));
    if get(spec, "maxFailedIndexes").is_some() && get(spec, "backoffLimitPerIndex").is_none() {
        let field = path.child("backoffLimitPerIndex");
        errors.push(field.required("when maxFailedIndexes is specified"));
    }
    if let Some(policy) = get(spec, "podFailurePolicy") {
        errors.extend(failure_policy(policy, spec, &path.child("podFailurePolicy")));
    }
    if let Some(policy) = get(spec, "successPolicy") {
        errors.extend(success_policy(policy, spec, &path.child("successPolicy")));
    }
    let replacement = str_at(spec, "podReplacementPolicy");
    if get(spec, "podReplacementPolicy").is_some() {
        let field = path.child("podReplacementPolicy");
        if get(spec, "podFailurePolicy").is_some() {
            if replacement != "Failed" {
                errors.push(field.not_supported(replacement, &["Failed"]));
            }
        } else if !matches!(replacement, "Failed" | "TerminatingOrFailed") {
            errors.push(field.not_supported(replacement, &["Failed", "TerminatingOrFailed"]));
        }
    }
    errors.extend(template::template(spec, path));
    let field = path.child("template").child("spec").child("restartPolicy");
    match dig(spec, &["template", "spec", "restartPolicy"]).and_then(Value::as_str).unwrap_or("") {
        "" | "Always" => errors.push(field.required("valid values: \"OnFailure\", \"Never\"")),
        policy if !RESTART_OF_JOBS.contains(&policy) => errors.push(field.not_supported(policy, &RESTART_OF_JOBS)),
        policy if policy != "Never" && get(spec, "podFailurePolicy").is_some() => {
            errors.push(field.invalid(policy, "only \"Never\" is supported when podFailurePolicy is specified"));
        }
        _ => {}
    }
    errors
}

fn is_indexed(spec: &Value) -> bool {
    str_at(spec, "completionMode") == "Indexed"
}

fn completion(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let mode = str_at(spec, "completionMode");
    if get(spec, "completionMode").is_some() && !matches!(mode, "NonIndexed" | "Indexed") {
        errors.push(path.child("completionMode").not_supported(mode, &["NonIndexed", "Indexed"]));
    }
    if is_indexed(spec) {
        if get(spec, "completions").is_none() {
            errors.push(path.child("completions").required("when completion mode is Indexed"));
        }
        if let Some(parallel) = int(spec, "parallelism").filter(|parallel| *parallel > 100_000) {
            let why = "must be less than or equal to 100000 when completion mode is Indexed";
            errors.push(path.child("parallelism").invalid(parallel, why));
        }
    } else {
        for field in ["backoffLimitPerIndex", "maxFailedIndexes"] {
            if let Some(number) = int(spec, field) {
                errors.push(path.child(field).invalid(number, "requires indexed completion mode"));
            }
        }
    }
    errors
}

fn failure_policy(policy: &Value, spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let path = path.child("rules");
    let rules = items(policy, "rules");
    if rules.len() > 20 {
        errors.push(path.too_many(rules.len(), 20));
    }
    for (index, rule) in rules.iter().enumerate() {
        let path = path.index(index);
        let action = str_at(rule, "action");
        let field = path.child("action");
        if action.is_empty() {
            errors.push(
                field.required(format!("valid values: {}", ACTIONS.map(|action| format!("{action:?}")).join(", "))),
            );
        } else if !ACTIONS.contains(&action) {
            errors.push(field.not_supported(action, &ACTIONS));
        } else if action == "FailIndex" && get(spec, "backoffLimitPerIndex").is_none() {
            errors.push(field.invalid(action, "requires the backoffLimitPerIndex to be set"));
        }
        let (codes, conditions) = (get(rule, "onExitCodes"), items(rule, "onPodConditions"));
        if let Some(codes) = codes {
            errors.extend(exit_codes(codes, &path.child("onExitCodes")));
        }
        if conditions.len() > 20 {
            errors.push(path.child("onPodConditions").too_many(conditions.len(), 20));
        }
        for (index, condition) in conditions.iter().enumerate() {
            let path = path.child("onPodConditions").index(index);
            let status = str_at(condition, "status");
            if !matches!(status, "False" | "True" | "Unknown") {
                errors.push(path.child("status").not_supported(status, &["False", "True", "Unknown"]));
            }
        }
        if codes.is_some() && !conditions.is_empty() {
            errors.push(path.invalid_unshown("specifying both OnExitCodes and OnPodConditions is not supported"));
        }
        if codes.is_none() && conditions.is_empty() {
            errors.push(path.invalid_unshown("specifying one of OnExitCodes and OnPodConditions is required"));
        }
    }
    errors
}

fn exit_codes(codes: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let operator = str_at(codes, "operator");
    if !matches!(operator, "In" | "NotIn") {
        errors.push(path.child("operator").not_supported(operator, &["In", "NotIn"]));
    }
    let values: Vec<i64> = items(codes, "values").iter().filter_map(Value::as_i64).collect();
    let field = path.child("values");
    if values.is_empty() {
        errors.push(field.invalid(codes.get("values").cloned().unwrap_or_default(), "at least one value is required"));
    }
    if values.len() > 255 {
        errors.push(field.too_many(values.len(), 255));
    }
    for (index, value) in values.iter().enumerate() {
        if operator == "In" && *value == 0 {
            errors.push(field.index(index).invalid(0, "must not be 0 for the In operator"));
        } else if values[..index].contains(value) {
            errors.push(field.index(index).duplicate(*value));
        }
    }
    if !values.is_sorted() {
        errors.push(field.invalid(codes["values"].clone(), "must be ordered"));
    }
    errors
}

fn success_policy(policy: &Value, spec: &Value, path: &Path) -> ErrorList {
    if !is_indexed(spec) {
        return vec![path.invalid(go::value(go::SUCCESS_POLICY, policy), "requires indexed completion mode")];
    }
    let mut errors = ErrorList::new();
    let path = path.child("rules");
    let rules = items(policy, "rules");
    if rules.is_empty() {
        errors.push(path.required("at least one rules must be specified when the successPolicy is specified"));
    }
    if rules.len() > 20 {
        errors.push(path.too_many(rules.len(), 20));
    }
    for (index, rule) in rules.iter().enumerate() {
        let path = path.index(index);
        let count = int(rule, "succeededCount");
        if count.is_none() && get(rule, "succeededIndexes").is_none() {
            errors.push(path.required("at least one of succeededCount or succeededIndexes must be specified"));
        }
        errors.extend(non_negative(rule, "succeededCount", &path));
        let completions = int(spec, "completions").unwrap_or(0);
        if let Some(count) = count.filter(|count| *count > completions) {
            let why = format!("must be less than or equal to {completions} (the number of specified completions)");
            errors.push(path.child("succeededCount").invalid(count, why));
        }
    }
    errors
}

/// Pods of an indexed job have host names made of its name and the index.
fn host_names(object: &Value, spec: &Value) -> ErrorList {
    let completions = int(spec, "completions").unwrap_or(0);
    if !is_indexed(spec) || completions <= 0 {
        return ErrorList::new();
    }
    let name = name_of(object);
    let host = format!("{name}-{}", completions - 1);
    let messages = names::dns1123_label(&host);
    if messages.is_empty() {
        return ErrorList::new();
    }
    let why = format!("will not able to create pod with invalid DNS label: {host}");
    vec![Path::new("metadata").child("name").invalid(name, why)]
}

fn validate_update(new: &Value, old: &Value, part: Part) -> ErrorList {
    if part == Part::Status {
        return ["active", "succeeded", "failed", "ready", "terminating"]
            .iter()
            .flat_map(|field| non_negative(new.get("status").unwrap_or(&Value::Null), field, &Path::new("status")))
            .collect();
    }
    let path = Path::new("spec");
    let (new_spec, old_spec) = (&new["spec"], &old["spec"]);
    let mut errors = validate(new);
    if get(new_spec, "completions") != get(old_spec, "completions") && !is_elastic(new_spec) {
        errors.extend(immutable(
            get(new_spec, "completions"),
            get(old_spec, "completions"),
            &path.child("completions"),
        ));
    }
    let keep = |field: &str| immutable(get(new_spec, field), get(old_spec, field), &path.child(field));
    errors.extend(keep("selector"));
    if munged_template(new_spec, old, old_spec) != old_spec["template"] {
        errors.push(path.child("template").invalid(go::pod_template(&new_spec["template"]), "field is immutable"));
    }
    for field in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"] {
        if get(new_spec, field) != get(old_spec, field) {
            let shown = get(new_spec, field).map_or(Value::Null, |value| match field {
                "podFailurePolicy" => go::value(go::POD_FAILURE_POLICY, value),
                "successPolicy" => go::value(go::SUCCESS_POLICY, value),
                _ => value.clone(),
            });
            errors.push(path.child(field).invalid(shown, "field is immutable"));
        }
    }
    errors
}

/// An indexed job may change its completions together with its parallelism.
fn is_elastic(spec: &Value) -> bool {
    is_indexed(spec) && get(spec, "completions") == get(spec, "parallelism")
}

/// The template with those fields put back that may change while a job is suspended and hasn't begun.
fn munged_template(new_spec: &Value, old: &Value, old_spec: &Value) -> Value {
    let mut template = new_spec["template"].clone();
    let begun = dig(old, &["status", "startTime"]).is_some();
    if !flag(old_spec, "suspend") || begun {
        return template;
    }
    let before = &old_spec["template"];
    for (part, fields) in [
        ("metadata", &["annotations", "labels"][..]),
        ("spec", &["nodeSelector", "tolerations", "schedulingGates", "affinity"][..]),
    ] {
        let Some(object) = object_at(&mut template, part) else { continue };
        for field in fields {
            match before.get(part).and_then(|old| old.get(field)) {
                Some(value) => object.insert((*field).to_owned(), value.clone()),
                None => object.shift_remove(*field),
            };
        }
    }
    template
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(change: &Value) -> Value {
        let mut object = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {
            "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "nginx"}]}}}});
        for (field, value) in change.as_object().unwrap() {
            object["spec"][field] = value.clone();
        }
        default(&mut object);
        prepare_create(&mut object);
        default(&mut object);
        object
    }

    fn causes(change: &Value) -> Vec<String> {
        validate(&job(change)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_job_selects_its_pods_by_its_uid() {
        let object = job(&json!({}));
        let labels = json!({"batch.kubernetes.io/controller-uid": "u", "controller-uid": "u",
                            "batch.kubernetes.io/job-name": "j", "job-name": "j"});
        assert_eq!(object["metadata"]["labels"], labels);
        assert_eq!(object["spec"]["template"]["metadata"]["labels"], labels);
        assert_eq!(object["spec"]["selector"], json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}}));
        assert!(validate(&object).is_empty());
    }

    #[test]
    fn a_selector_of_ones_own_is_declared() {
        let errors = causes(&json!({"selector": {"matchLabels": {"app": "a"}}}));
        assert!(errors[0].ends_with("`selector` not auto-generated"), "{errors:?}");
        assert!(errors[1].ends_with("`selector` does not match template `labels`"));
        let manual = json!({"manualSelector": true, "selector": {"matchLabels": {"app": "a"}}});
        assert_eq!(
            causes(&manual),
            ["spec.template.metadata.labels: Invalid value: null: `selector` does not match template `labels`"]
        );
    }

    #[test]
    fn pods_of_a_job_end() {
        let mut object = job(&json!({}));
        object["spec"]["template"]["spec"]["restartPolicy"] = json!("Always");
        assert_eq!(
            validate(&object)[0].to_string(),
            "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""
        );
    }

    #[test]
    fn indexes_need_the_indexed_mode() {
        assert_eq!(
            causes(&json!({"backoffLimitPerIndex": 1})),
            ["spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode"]
        );
        assert_eq!(
            causes(&json!({"successPolicy": {"rules": []}})),
            ["spec.successPolicy: Invalid value: {\"Rules\":[]}: requires indexed completion mode"]
        );
        assert!(causes(&json!({"completionMode": "Indexed"})).is_empty());
    }

    #[test]
    fn failure_rules_are_about_something() {
        assert_eq!(
            causes(&json!({"podFailurePolicy": {"rules": [{"action": "X"}]}})),
            [
                "spec.podFailurePolicy.rules[0].action: Unsupported value: \"X\": supported values: \"Count\", \
                 \"FailIndex\", \"FailJob\", \"Ignore\"",
                "spec.podFailurePolicy.rules[0]: Invalid value: specifying one of OnExitCodes and OnPodConditions is \
                 required"
            ]
        );
    }

    #[test]
    fn the_template_stays_once_the_job_runs() {
        let old = job(&json!({}));
        let mut new = old.clone();
        new["spec"]["template"]["spec"]["nodeSelector"] = json!({"a": "b"});
        let errors = validate_update(&new, &old, Part::Main);
        assert_eq!((errors.len(), errors[0].path.as_str()), (1, "spec.template"));
        let mut suspended = old.clone();
        suspended["spec"]["suspend"] = json!(true);
        assert!(validate_update(&new, &suspended, Part::Main).is_empty());
    }
}
