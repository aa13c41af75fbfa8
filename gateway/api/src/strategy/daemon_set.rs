//! `DaemonSet`.

use serde_json::{Value, json};

use super::{
    BASE, differs, first_generation, generation_differs, object_at, pod_spec, set_default, set_default_text,
    spec_and_status,
};
use crate::field::{ErrorList, Path};
use crate::kind::{Part, Strategy};
use crate::validation::json::{dig, get, str_at};
use crate::validation::metadata::{immutable, non_negative};
use crate::validation::selectors::{is_empty, label_selector, selects};
use crate::validation::{amounts, go, pod_warnings, template};

/// What is peculiar to `DaemonSet`s.
pub const STRATEGY: Strategy = Strategy {
    default,
    prepare_create: |object| {
        object["status"] = empty_status();
        first_generation(object);
        set_template_generation(object, template_generation(object).max(1));
    },
    prepare_update,
    validate,
    validate_update,
    warnings: pod_warnings::template,
    warns_again: generation_differs,
    ..BASE
};

/// Counts the changes of the template; a field in older versions.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

const COUNTS: [&str; 4] = ["currentNumberScheduled", "numberMisscheduled", "desiredNumberScheduled", "numberReady"];

fn empty_status() -> Value {
    COUNTS.iter().map(|count| ((*count).to_owned(), Value::from(0))).collect::<serde_json::Map<_, _>>().into()
}

fn default(object: &mut Value) {
    if let Some(status) = object_at(object, "status") {
        for count in COUNTS {
            set_default(status, count, 0);
        }
    }
    set_template_generation(object, template_generation(object));
    let Some(spec) = object_at(object, "spec") else { return };
    set_default(spec, "revisionHistoryLimit", 10);
    pod_spec::drop_if_empty(spec, "minReadySeconds");
    set_default(spec, "updateStrategy", json!({}));
    if let Some(strategy) = spec.get_mut("updateStrategy").and_then(Value::as_object_mut) {
        set_default_text(strategy, "type", "RollingUpdate");
        if strategy["type"] == "RollingUpdate" {
            set_default(strategy, "rollingUpdate", json!({}));
            if let Some(rolling) = strategy["rollingUpdate"].as_object_mut() {
                set_default(rolling, "maxUnavailable", 1);
                set_default(rolling, "maxSurge", 0);
            }
        } else {
            pod_spec::drop_null(strategy, "rollingUpdate");
        }
    }
    pod_spec::default_template(&mut object["spec"]);
}

fn template_generation(object: &Value) -> i64 {
    let text = dig(object, &["metadata", "annotations", TEMPLATE_GENERATION]).and_then(Value::as_str);
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn set_template_generation(object: &mut Value, generation: i64) {
    let Some(metadata) = object_at(object, "metadata") else { return };
    let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
    if annotations.is_null() {
        *annotations = json!({});
    }
    annotations[TEMPLATE_GENERATION] = generation.to_string().into();
}

fn prepare_update(new: &mut Value, old: &Value, part: Part) {
    spec_and_status(new, old, part);
    if part != Part::Status {
        let changed = differs(new, old, "/spec/template");
        set_template_generation(new, template_generation(old) + i64::from(changed));
    }
}

fn validate(object: &Value) -> ErrorList {
    let path = Path::new("spec");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let mut errors = ErrorList::new();
    let field = path.child("selector");
    let selector = get(spec, "selector");
    if let Some(selector) = selector {
        errors.extend(label_selector(selector, &field));
    }
    let labels = dig(spec, &["template", "metadata", "labels"]);
    if selects(selector, labels) == Some(false) {
        errors.push(template::unselected(labels, &path));
    }
    if let Some(selector) = selector.filter(|selector| is_empty(selector)) {
        errors.push(field.invalid(go::selector(selector), "empty selector is invalid for daemonset"));
    }
    errors.extend(template::template(spec, &path));
    errors.extend(template::runs_for_ever(spec, "DaemonSet", &path));
    errors.extend(non_negative(spec, "minReadySeconds", &path));
    errors.extend(strategy(spec, &path.child("updateStrategy")));
    errors.extend(non_negative(spec, "revisionHistoryLimit", &path));
    errors
}

fn strategy(spec: &Value, path: &Path) -> ErrorList {
    let strategy = spec.get("updateStrategy").unwrap_or(&Value::Null);
    let field = path.child("rollingUpdate");
    match (str_at(strategy, "type"), get(strategy, "rollingUpdate")) {
        ("OnDelete", _) => ErrorList::new(),
        ("RollingUpdate", None) => vec![field.required("")],
        ("RollingUpdate", Some(rolling)) => rolling_update(rolling, &field),
        _ => vec![path.not_supported(go::value(go::DEPLOYMENT_STRATEGY, strategy), &["RollingUpdate", "OnDelete"])],
    }
}

fn rolling_update(rolling: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let fields =
        ["maxUnavailable", "maxSurge"].map(|name| (path.child(name), rolling.get(name).unwrap_or(&Value::Null)));
    for (field, amount) in &fields {
        errors.extend(amounts::positive(amount, field));
    }
    for (field, amount) in &fields {
        errors.extend(amounts::at_most_all(amount, field));
    }
    let [(unavailable, fewer), (surge, more)] = fields;
    match (amounts::number(fewer) != 0, amounts::number(more) != 0) {
        (true, true) => errors.push(surge.invalid(more.clone(), "may not be set when maxUnavailable is non-zero")),
        (false, false) => errors.push(unavailable.required("cannot be 0 when maxSurge is 0")),
        _ => {}
    }
    errors
}

fn validate_update(new: &Value, old: &Value, part: Part) -> ErrorList {
    if part == Part::Status {
        let more =
            ["updatedNumberScheduled", "numberAvailable", "numberUnavailable", "observedGeneration", "collisionCount"];
        return template::counts(new, &[&COUNTS[..], &more[..]].concat(), &[]);
    }
    let mut errors = validate(new);
    let selector = |object| dig(object, &["spec", "selector"]);
    errors.extend(immutable(selector(new), selector(old), &Path::new("spec").child("selector")));
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(change: &Value) -> Value {
        let mut object = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"app": "a"}},
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
    fn one_at_a_time_or_one_more() {
        assert!(causes(&json!({})).is_empty());
        let rolling = |unavailable: Value, surge: Value| {
            causes(&json!({"updateStrategy": {"rollingUpdate": {"maxUnavailable": unavailable, "maxSurge": surge}}}))
        };
        assert_eq!(
            rolling(json!(1), json!("10%")),
            [
                "spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: \"10%\": may not be set when maxUnavailable is \
              non-zero"
            ]
        );
        assert_eq!(
            rolling(json!(0), json!(0)),
            ["spec.updateStrategy.rollingUpdate.maxUnavailable: Required value: cannot be 0 when maxSurge is 0"]
        );
        assert!(rolling(json!(0), json!(1)).is_empty());
    }

    #[test]
    fn the_template_has_a_generation_of_its_own() {
        let mut old = set(&json!({}));
        (STRATEGY.prepare_create)(&mut old);
        assert_eq!(template_generation(&old), 1);
        let mut new = old.clone();
        new["spec"]["template"]["spec"]["containers"][0]["image"] = json!("other");
        prepare_update(&mut new, &old, Part::Main);
        assert_eq!((template_generation(&new), &new["metadata"]["generation"]), (2, &json!(2)));
        let mut new = old.clone();
        new["spec"]["minReadySeconds"] = json!(5);
        new["metadata"].as_object_mut().unwrap().shift_remove("annotations");
        prepare_update(&mut new, &old, Part::Main);
        assert_eq!((template_generation(&new), &new["metadata"]["generation"]), (1, &json!(2)));
    }
}
