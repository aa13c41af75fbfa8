//! `ReplicationController`: the older form of a ReplicaSet, with a selector of labels alone.

use serde_json::{Map, Value, json};

use super::{
    BASE, at, first_generation, generation_differs, metadata_field, object_at, pod_spec, set_default, spec_and_status,
};
use crate::field::{ErrorList, Path};
use crate::kind::{Part, Strategy};
use crate::validation::json::{dig, entries, get, map};
use crate::validation::metadata::non_negative;
use crate::validation::{pod_warnings, template};

/// What is peculiar to `ReplicationController`s.
pub const STRATEGY: Strategy = Strategy {
    default,
    prepare_create: |object| {
        object["status"] = json!({"replicas": 0});
        first_generation(object);
    },
    prepare_update: spec_and_status,
    validate,
    validate_update: |new, _, part| {
        if part == Part::Status {
            let counts =
                ["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration"];
            return template::counts(new, &counts, &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"]);
        }
        validate(new)
    },
    warnings: pod_warnings::workload,
    warns_again: generation_differs,
    field: |object, field| match field {
        "status.replicas" => Some(at(object, field)),
        _ => metadata_field(object, field),
    },
    ..BASE
};

fn default(object: &mut Value) {
    if let Some(status) = object_at(object, "status") {
        set_default(status, "replicas", 0);
    }
    let labels =
        dig(object, &["spec", "template", "metadata", "labels"]).filter(|labels| is_full(Some(labels))).cloned();
    if let Some(labels) = labels {
        if !is_full(dig(object, &["spec", "selector"]))
            && let Some(spec) = object_at(object, "spec")
        {
            spec.insert("selector".to_owned(), labels.clone());
        }
        if !is_full(dig(object, &["metadata", "labels"]))
            && let Some(metadata) = object_at(object, "metadata")
        {
            metadata.insert("labels".to_owned(), labels);
        }
    }
    let Some(spec) = object_at(object, "spec") else { return };
    set_default(spec, "replicas", 1);
    pod_spec::drop_if_empty(spec, "minReadySeconds");
    if spec.get("template").is_some_and(|template| !template.is_null()) {
        pod_spec::default_template(&mut object["spec"]);
    }
}

fn is_full(labels: Option<&Value>) -> bool {
    labels.and_then(Value::as_object).is_some_and(|labels| !labels.is_empty())
}

fn validate(object: &Value) -> ErrorList {
    let path = Path::new("spec");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let mut errors = non_negative(spec, "minReadySeconds", &path);
    if map(spec, "selector").is_none_or(Map::is_empty) {
        errors.push(path.child("selector").required(""));
    }
    errors.extend(non_negative(spec, "replicas", &path));
    let Some(pods) = get(spec, "template") else {
        errors.push(path.child("template").required(""));
        return errors;
    };
    let labels = dig(pods, &["metadata", "labels"]);
    let selected = |(key, value): (&String, &Value)| labels.and_then(|labels| labels.get(key)) == Some(value);
    if !entries(spec, "selector").all(selected) {
        errors.push(template::unselected(labels, &path));
    }
    errors.extend(template::template(spec, &path));
    errors.extend(template::runs_for_ever(spec, "ReplicationController", &path));
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_selector_and_the_labels_are_the_templates_unless_given() {
        let mut object = json!({"metadata": {"name": "r"}, "spec": {"template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "x"}]}}}});
        default(&mut object);
        assert_eq!(object["spec"]["selector"], json!({"a": "b"}));
        assert_eq!(object["metadata"]["labels"], json!({"a": "b"}));
        assert!(validate(&object).is_empty());
        object["spec"]["selector"] = json!({"a": "c"});
        assert_eq!(validate(&object)[0].path, "spec.template.metadata.labels");
    }

    #[test]
    fn a_template_is_required() {
        let mut object = json!({"metadata": {"name": "r"}, "spec": {}});
        default(&mut object);
        let texts: Vec<_> = validate(&object).iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["spec.selector: Required value", "spec.template: Required value"]);
    }
}
