//! `LimitRange`: between which amounts the resources of pods, containers and claims have to be.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{BASE, pod_spec};
use crate::field::{ErrorList, Path};
use crate::kind::Strategy;
use crate::quantity::Quantity;
use crate::validation::json::{entries, get, items, str_at};
use crate::validation::{names, resources};

/// What is peculiar to `LimitRange`s.
pub const STRATEGY: Strategy =
    Strategy { default, validate, validate_update: |new, _, _| validate(new), create_on_update: true, ..BASE };

const TYPES: [&str; 3] = ["Container", "PersistentVolumeClaim", "Pod"];
const AMOUNTS: [&str; 5] = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];

fn default(object: &mut Value) {
    let limits = object.pointer_mut("/spec/limits").and_then(Value::as_array_mut);
    for limit in limits.into_iter().flatten().filter_map(Value::as_object_mut) {
        for field in AMOUNTS {
            for amount in limit.get_mut(field).and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut) {
                pod_spec::round_quantity(amount);
            }
        }
        if limit.get("type").and_then(Value::as_str) == Some("Container") {
            for (to, from) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
                fill(limit, to, from);
            }
        }
        for field in AMOUNTS {
            pod_spec::drop_if_empty(limit, field);
        }
    }
}

/// What isn't said in one map of amounts is as in the other.
fn fill(limit: &mut Map<String, Value>, to: &str, from: &str) {
    let Some(Value::Object(source)) = limit.get(from).cloned() else { return };
    let target = limit.entry(to).or_insert_with(|| json!({}));
    if target.is_null() {
        *target = json!({});
    }
    if let Some(target) = target.as_object_mut() {
        for (name, amount) in source {
            target.entry(name).or_insert(amount);
        }
    }
}

fn validate(object: &Value) -> ErrorList {
    let path = Path::new("spec").child("limits");
    let mut errors = ErrorList::new();
    let mut seen = BTreeSet::new();
    for (index, limit) in items(object.get("spec").unwrap_or(&Value::Null), "limits").iter().enumerate() {
        let path = path.index(index);
        let kind = str_at(limit, "type");
        let field = path.child("type");
        let wrong = names::qualified_name(kind);
        let standard = kind.contains('/') || TYPES.contains(&kind);
        if wrong.is_empty() && !standard {
            errors.push(field.invalid(kind, "must be a standard limit type or fully qualified"));
        }
        errors.extend(wrong.into_iter().map(|why| field.invalid(kind, why)));
        if !seen.insert(kind) {
            errors.push(field.duplicate(kind));
        }
        errors.extend(of_limit(limit, kind, &path));
    }
    errors
}

fn of_limit(limit: &Value, kind: &str, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut keys = BTreeSet::new();
    for field in AMOUNTS {
        let of_pods = kind == "Pod" && matches!(field, "default" | "defaultRequest");
        if of_pods {
            if entries(limit, field).next().is_some() {
                errors.push(path.child(field).forbidden("may not be specified when `type` is 'Pod'"));
            }
            continue;
        }
        for (name, _) in entries(limit, field) {
            keys.insert(name.as_str());
            errors.extend(resource_name(kind, name, &path.child(field).key(name)));
        }
    }
    if kind == "PersistentVolumeClaim" {
        let bounded = ["min", "max"].iter().any(|field| entries(limit, field).any(|(name, _)| name == "storage"));
        if !bounded {
            let why = "either minimum or maximum storage value is required, but neither was provided";
            errors.push(path.child("limits").required(why));
        }
    }
    for key in keys {
        errors.extend(compared(limit, key, path));
    }
    errors
}

fn resource_name(kind: &str, name: &str, path: &Path) -> ErrorList {
    match kind {
        "Pod" | "Container" => resources::container_resource(name, path),
        _ => resources::resource_name(name, path),
    }
}

/// What the amounts of one resource have to be to each other: first, second, where, and how that is said.
const ORDER: [(&str, &str, &str, &str, &str); 6] = [
    ("min", "max", "min", "min", "min value {} is greater than max value {}"),
    (
        "min",
        "defaultRequest",
        "defaultRequest",
        "defaultRequest",
        "min value {} is greater than default request value {}",
    ),
    (
        "defaultRequest",
        "max",
        "defaultRequest",
        "defaultRequest",
        "default request value {} is greater than max value {}",
    ),
    (
        "defaultRequest",
        "default",
        "defaultRequest",
        "defaultRequest",
        "default request value {} is greater than default limit value {}",
    ),
    ("min", "default", "default", "min", "min value {} is greater than default value {}"),
    ("default", "max", "default", "max", "default value {} is greater than max value {}"),
];

fn compared(limit: &Value, key: &str, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let amount = |field: &str| -> Option<Quantity> { resources::quantity(get(limit, field)?.get(key)?) };
    for (less, more, place, shown, text) in ORDER {
        if let (Some(less), Some(more)) = (amount(less), amount(more))
            && less.nanos() > more.nanos()
        {
            let why = text.replacen("{}", &less.canonical(), 1).replacen("{}", &more.canonical(), 1);
            let shown = amount(shown).map(|shown| shown.canonical()).unwrap_or_default();
            errors.push(path.child(place).key(key).invalid(shown, why));
        }
    }
    if let Some(ratio) = amount("maxLimitRequestRatio") {
        let (field, text) = (path.child("maxLimitRequestRatio").key(key), ratio.canonical());
        if ratio.nanos() < 1_000_000_000 {
            errors.push(field.invalid(text.as_str(), format!("ratio {text} is less than 1")));
        }
        if let (Some(min), Some(max)) = (amount("min"), amount("max")) {
            #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
            let most = max.nanos() as f64 / min.nanos() as f64;
            #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
            let wanted = ratio.value_ceil() as f64;
            if wanted > most {
                errors.push(field.invalid(text.as_str(), format!("ratio {text} is greater than max/min = {most:.6}")));
            }
        }
    }
    if let (false, Some(limit), Some(request)) =
        (resources::can_overcommit(key), amount("default"), amount("defaultRequest"))
        && limit.nanos() != request.nanos()
    {
        let (limit, request) = (limit.canonical(), request.canonical());
        let why = format!("default value {limit} must equal to defaultRequest value {request} in {key}");
        errors.push(path.child("defaultRequest").key(key).invalid(request, why));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn causes(limit: &Value) -> Vec<String> {
        let mut object = json!({"spec": {"limits": [limit]}});
        default(&mut object);
        validate(&object).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn containers_have_defaults_from_the_bounds() {
        let mut object =
            json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "1"}, "min": {"memory": "1Mi"}}]}});
        default(&mut object);
        assert_eq!(
            object["spec"]["limits"][0],
            json!({"type": "Container", "max": {"cpu": "1"}, "min": {"memory": "1Mi"}, "default": {"cpu": "1"},
                "defaultRequest": {"cpu": "1", "memory": "1Mi"}})
        );
    }

    #[test]
    fn bounds_are_in_order() {
        assert_eq!(
            causes(&json!({"type": "Container", "min": {"cpu": "2"}, "max": {"cpu": "1"}})),
            [
                "spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1",
                "spec.limits[0].defaultRequest[cpu]: Invalid value: \"1\": min value 2 is greater than default request \
                 value 1",
                "spec.limits[0].default[cpu]: Invalid value: \"2\": min value 2 is greater than default value 1"
            ]
        );
    }

    #[test]
    fn each_type_has_its_fields() {
        assert_eq!(
            causes(&json!({"type": "Pod", "default": {"cpu": "1"}})),
            ["spec.limits[0].default: Forbidden: may not be specified when `type` is 'Pod'"]
        );
        assert_eq!(causes(&json!({"type": "PersistentVolumeClaim"})).len(), 1);
        assert_eq!(
            causes(&json!({"type": "X"})),
            ["spec.limits[0].type: Invalid value: \"X\": must be a standard limit type or fully qualified"]
        );
    }
}
