//! Dynamic resource allocation: device classes, claims, templates of claims, and slices of what drivers offer.

use serde_json::{Value, json};

use super::{
    BASE, at, first_generation, keep_field, keep_generation, metadata_field, object_at, set_default,
    update_spec_or_status,
};
use crate::field::{ErrorList, Path};
use crate::kind::{Part, Strategy};
use crate::validation::json::{dig, entries, flag, get, int, items, map, str_at};
use crate::validation::{devices, metadata, names};

/// What is peculiar to DeviceClasses.
pub const CLASS: Strategy = Strategy {
    prepare_create: first_generation,
    prepare_update: update_spec_or_status,
    validate: class_errors,
    validate_update: |new, _, _: Part| class_errors(new),
    ..BASE
};

/// What is peculiar to ResourceClaims.
pub const CLAIM: Strategy = Strategy {
    default: |object| {
        object_at(object, "status");
        default_claim(object.get_mut("spec"));
    },
    prepare_create: |object| object["status"] = json!({}),
    prepare_update: |new, old, part| {
        keep_generation(new, old, part);
        keep_field(new, old, if part == Part::Status { "spec" } else { "status" });
    },
    validate: |object| claim_errors(object.get("spec"), &Path::new("spec")),
    validate_update: |new, old, part| match part {
        Part::Status => status_errors(new, old),
        _ => metadata::immutable(new.get("spec"), old.get("spec"), &Path::new("spec")),
    },
    field: metadata_field,
    ..BASE
};

/// What is peculiar to ResourceClaimTemplates.
pub const TEMPLATE: Strategy = Strategy {
    default: |object| default_claim(object.get_mut("spec").and_then(|spec| spec.get_mut("spec"))),
    validate: |object| {
        let path = Path::new("spec");
        let template = object.get("spec").unwrap_or(&Value::Null);
        let meta = template.get("metadata").unwrap_or(&Value::Null);
        let place = path.child("metadata");
        let mut errors = metadata::annotations(meta, &place.child("annotations"));
        errors.extend(metadata::labels(meta, "labels", &place.child("labels")));
        errors.extend(claim_errors(template.get("spec"), &path.child("spec")));
        errors
    },
    validate_update: |new, old, _: Part| metadata::immutable(new.get("spec"), old.get("spec"), &Path::new("spec")),
    ..BASE
};

/// What is peculiar to ResourceSlices.
pub const SLICE: Strategy = Strategy {
    prepare_create: first_generation,
    prepare_update: update_spec_or_status,
    validate: slice_errors,
    validate_update: |new, old, _: Part| {
        let mut errors = slice_errors(new);
        for field in [&["pool", "name"][..], &["driver"], &["nodeName"]] {
            let path = field.iter().fold(Path::new("spec"), |path, name| path.child(name));
            let of = |object| dig(object, &["spec"]).and_then(|spec| dig(spec, field));
            errors.extend(metadata::immutable(of(new), of(old), &path));
        }
        errors
    },
    field: |object, field| {
        matches!(field, "metadata.name" | "spec.nodeName" | "spec.driver").then(|| at(object, field))
    },
    ..BASE
};

const MOST_DEVICES: usize = 128;
/// Fewer where devices have taints or share counters.
const MOST_INTRICATE_DEVICES: usize = 64;
const MOST_COUNTER_SETS: usize = 8;
const MOST_FACTS: usize = 32;
const MOST_CONSUMERS: usize = 256;
const LONGEST_TEXT: usize = 64;
const POOL_NAME_MAX: usize = 253;
const ATTRIBUTE_VALUES: [&str; 4] = ["bool", "int", "string", "version"];

fn default_claim(spec: Option<&mut Value>) {
    let requests = spec.and_then(|spec| spec.get_mut("devices")).and_then(|devices| devices.get_mut("requests"));
    for request in requests.and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(exactly) = request.get_mut("exactly") {
            default_request(exactly);
        }
        for one in request.get_mut("firstAvailable").and_then(Value::as_array_mut).into_iter().flatten() {
            default_request(one);
        }
    }
}

fn default_request(wanted: &mut Value) {
    default_tolerations(wanted);
    let Some(wanted) = wanted.as_object_mut() else { return };
    super::set_default_text(wanted, "allocationMode", "ExactCount");
    if wanted["allocationMode"] == "ExactCount" && wanted.get("count").and_then(Value::as_i64).unwrap_or(0) == 0 {
        wanted.insert("count".to_owned(), 1.into());
    }
}

fn default_tolerations(wanted: &mut Value) {
    for toleration in wanted.get_mut("tolerations").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(toleration) = toleration.as_object_mut() {
            set_default(toleration, "operator", "Equal");
        }
    }
}

fn claim_errors(spec: Option<&Value>, path: &Path) -> ErrorList {
    devices::claim(spec.and_then(|spec| spec.get("devices")).unwrap_or(&Value::Null), &path.child("devices"))
}

fn class_errors(object: &Value) -> ErrorList {
    let path = Path::new("spec");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let mut errors = devices::selectors(spec, &path);
    errors.extend(devices::configurations(spec, None, &path.child("config")));
    if let Some(name) = get(spec, "extendedResourceName").and_then(Value::as_str) {
        let (domain, _) = name.split_once('/').unwrap_or(("", name));
        let own = domain.is_empty() || domain == "kubernetes.io" || domain.ends_with(".kubernetes.io");
        if own || name.starts_with("requests.") || !names::qualified_name(name).is_empty() {
            errors.push(path.child("extendedResourceName").invalid(name, "must be a valid extended resource name"));
        }
    }
    errors
}

fn status_errors(new: &Value, old: &Value) -> ErrorList {
    let path = Path::new("status");
    let (status, before) = (new.get("status").unwrap_or(&Value::Null), old.get("status").unwrap_or(&Value::Null));
    let mut errors = ErrorList::new();
    let field = path.child("reservedFor");
    let consumers = items(status, "reservedFor");
    errors.extend(devices::size(consumers, MOST_CONSUMERS, &field));
    for (index, consumer) in consumers.iter().enumerate() {
        let field = field.index(index);
        for name in ["resource", "name", "uid"] {
            if str_at(consumer, name).is_empty() {
                errors.push(field.child(name).required(""));
            }
        }
        if consumers[..index].iter().any(|one| one["uid"] == consumer["uid"]) {
            errors.push(field.duplicate(str_at(consumer, "uid")));
        }
    }
    let (allocation, allocated) = (get(status, "allocation"), get(before, "allocation"));
    if !consumers.is_empty() {
        let deleted = dig(new, &["metadata", "deletionTimestamp"]).is_some();
        if allocation.is_none() {
            errors.push(field.forbidden("may not be specified when `allocated` is not set"));
        } else if deleted && consumers.iter().any(|one| !items(before, "reservedFor").contains(one)) {
            let why = "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set";
            errors.push(field.forbidden(why));
        }
    }
    if allocation.is_some() && allocated.is_some() {
        errors.extend(metadata::immutable(allocation, allocated, &path.child("allocation")));
    }
    errors
}

fn slice_errors(object: &Value) -> ErrorList {
    let path = Path::new("spec");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let mut errors = devices::driver(str_at(spec, "driver"), &path.child("driver"));
    errors.extend(pool_errors(spec.get("pool").unwrap_or(&Value::Null), &path.child("pool")));
    errors.extend(place_errors(spec, &path));
    if get(spec, "sharedCounters").is_some() && get(spec, "devices").is_some() {
        errors.push(path.invalid("", "only one of `sharedCounters` or `devices` is allowed"));
    }
    let field = path.child("devices");
    let all = items(spec, "devices");
    let intricate =
        |device: &Value| !items(device, "taints").is_empty() || !items(device, "consumesCounters").is_empty();
    let most = if all.iter().any(intricate) { MOST_INTRICATE_DEVICES } else { MOST_DEVICES };
    errors.extend(devices::size(all, most, &field));
    for (index, device) in all.iter().enumerate() {
        let field = field.index(index);
        errors.extend(device_errors(device, flag(spec, "perDeviceNodeSelection"), &field));
        if all[..index].iter().any(|one| one["name"] == device["name"]) {
            errors.push(field.child("name").duplicate(str_at(device, "name")));
        }
    }
    let field = path.child("sharedCounters");
    let sets = items(spec, "sharedCounters");
    errors.extend(devices::size(sets, MOST_COUNTER_SETS, &field));
    for (index, set) in sets.iter().enumerate() {
        let field = field.index(index);
        errors.extend(devices::label(str_at(set, "name"), &field.child("name")));
        errors.extend(counter_errors(set, &field));
        if sets[..index].iter().any(|one| one["name"] == set["name"]) {
            errors.push(field.child("name").duplicate(str_at(set, "name")));
        }
    }
    errors
}

fn counter_errors(owner: &Value, path: &Path) -> ErrorList {
    let path = path.child("counters");
    if map(owner, "counters").is_none_or(serde_json::Map::is_empty) {
        return vec![path.required("")];
    }
    entries(owner, "counters").flat_map(|(name, _)| devices::label(name, &path.key(name))).collect()
}

fn pool_errors(pool: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let (field, name) = (path.child("name"), str_at(pool, "name"));
    if name.is_empty() {
        errors.push(field.required(""));
    } else {
        if name.len() > POOL_NAME_MAX {
            errors.push(field.too_long(POOL_NAME_MAX));
        }
        let parts =
            name.split('/').flat_map(|part| names::dns1123_subdomain(part).into_iter().map(move |why| (part, why)));
        errors.extend(parts.map(|(part, why)| field.invalid(part, why)));
    }
    let count = int(pool, "resourceSliceCount").unwrap_or(0);
    if count <= 0 {
        errors.push(path.child("resourceSliceCount").invalid(count, "must be greater than zero"));
    }
    if let Some(generation) = int(pool, "generation").filter(|generation| *generation < 0) {
        errors.push(path.child("generation").invalid(generation, "must be greater than or equal to zero"));
    }
    errors
}

/// Where the devices are: said in one of a few ways.
fn place_errors(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut said: Vec<&str> = Vec::new();
    let field = path.child("nodeName");
    match get(spec, "nodeName").and_then(Value::as_str) {
        None => {}
        Some("") => errors.push(field.invalid("", "must be either unset or set to a non-empty string")),
        Some(node) => {
            said.push("`nodeName`");
            errors.extend(names::dns1123_subdomain(node).into_iter().map(|why| field.invalid(node, why)));
        }
    }
    if let Some(selector) = get(spec, "nodeSelector") {
        said.push("`nodeSelector`");
        if items(selector, "nodeSelectorTerms").len() != 1 {
            let shown = selector.get("nodeSelectorTerms").cloned().unwrap_or(Value::Null);
            let field = path.child("nodeSelector").child("nodeSelectorTerms");
            errors.push(field.invalid(shown, "must have exactly one node selector term"));
        }
    }
    for (name, shown) in [("allNodes", "`allNodes`"), ("perDeviceNodeSelection", "`perDeviceNodeSelection`")] {
        match get(spec, name).and_then(Value::as_bool) {
            Some(true) => said.push(shown),
            Some(false) => errors.push(path.child(name).invalid(false, "must be either unset or set to true")),
            None => {}
        }
    }
    let one_of = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    match said.len() {
        0 => errors.push(path.required(one_of)),
        1 => {}
        _ => {
            let shown = format!("{{{}}}", said.join(", "));
            errors.push(path.invalid(shown, format!("{one_of}, but multiple fields are set")));
        }
    }
    errors
}

fn device_errors(device: &Value, says_where: bool, path: &Path) -> ErrorList {
    let mut errors = devices::label(str_at(device, "name"), &path.child("name"));
    let facts = entries(device, "attributes").count() + entries(device, "capacity").count();
    if facts > MOST_FACTS {
        let why = format!("the total number of attributes and capacities must not exceed {MOST_FACTS}");
        errors.push(path.invalid(facts, why));
    }
    for list in ["attributes", "capacity"] {
        for (name, value) in entries(device, list) {
            let path = path.child(list).key(name);
            errors.extend(fact_name(name, &path));
            if list == "attributes" {
                errors.extend(attribute_errors(value, &path));
            }
        }
    }
    for (index, consumed) in items(device, "consumesCounters").iter().enumerate() {
        let path = path.child("consumesCounters").index(index);
        errors.extend(devices::label(str_at(consumed, "counterSet"), &path.child("counterSet")));
        errors.extend(counter_errors(consumed, &path));
    }
    let places = ["nodeName", "nodeSelector", "allNodes"].into_iter().filter(|field| get(device, field).is_some());
    let rule = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to \
                true in the ResourceSlice spec";
    match (says_where, places.count()) {
        (true, 0) => errors.push(path.required(rule)),
        (true, 2..) => errors.push(path.invalid(Value::Null, rule)),
        (false, 1..) => errors.push(path.invalid(
            Value::Null,
            "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the \
             ResourceSlice spec",
        )),
        _ => {}
    }
    errors
}

/// `NAME` or `DOMAIN/NAME`.
fn fact_name(name: &str, path: &Path) -> ErrorList {
    match name.split_once('/') {
        None => devices::identifier(name, path),
        Some((domain, id)) => {
            let wrong = names::dns1123_subdomain(domain).into_iter();
            let mut errors: ErrorList = wrong.map(|why| path.invalid(domain, why)).collect();
            errors.extend(devices::identifier(id, path));
            errors
        }
    }
}

fn attribute_errors(attribute: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for field in ["string", "version"] {
        let Some(text) = get(attribute, field).and_then(Value::as_str) else { continue };
        if field == "version" && !is_semantic_version(text) {
            let why = "must be a string compatible with semver.org spec 2.0.0";
            errors.push(path.child(field).invalid(text, why));
        }
        if text.len() > LONGEST_TEXT {
            errors.push(path.child(field).too_long(LONGEST_TEXT));
        }
    }
    match ATTRIBUTE_VALUES.into_iter().filter(|field| get(attribute, field).is_some()).count() {
        1 => {}
        0 => errors.push(path.invalid("", "exactly one value must be specified")),
        _ => errors.push(path.invalid(attribute.clone(), "exactly one value must be specified")),
    }
    errors
}

/// `1.2.3`, perhaps with `-PRERELEASE` and `+BUILD`.
fn is_semantic_version(text: &str) -> bool {
    let (rest, build) = text.split_once('+').map_or((text, None), |(rest, build)| (rest, Some(build)));
    let (core, release) = rest.split_once('-').map_or((rest, None), |(core, release)| (core, Some(release)));
    let is_number = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) && (part == "0" || !part.starts_with('0'))
    };
    let is_word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let is_release = |part: &str| is_word(part) && (is_number(part) || !part.bytes().all(|b| b.is_ascii_digit()));
    core.split('.').count() == 3
        && core.split('.').all(is_number)
        && release.is_none_or(|release| release.split('.').all(is_release))
        && build.is_none_or(|build| build.split('.').all(is_word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(errors: ErrorList) -> Vec<String> {
        errors.into_iter().map(|error| error.path).collect()
    }

    #[test]
    fn a_claim_asks_for_one_device_unless_it_says_how_many() {
        let mut claim =
            json!({"spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "c"}}]}}});
        (CLAIM.default)(&mut claim);
        let exactly = &claim["spec"]["devices"]["requests"][0]["exactly"];
        assert_eq!((&exactly["allocationMode"], &exactly["count"]), (&json!("ExactCount"), &json!(1)));
        assert!((CLAIM.validate)(&claim).is_empty());
    }

    #[test]
    fn a_slice_says_where_its_devices_are() {
        let slice = |place: Value| {
            let mut spec =
                json!({"driver": "d", "pool": {"name": "p", "resourceSliceCount": 1}, "devices": [{"name": "a"}]});
            spec.as_object_mut().unwrap().extend(place.as_object().unwrap().clone());
            json!({"spec": spec})
        };
        assert!(slice_errors(&slice(json!({"nodeName": "n"}))).is_empty());
        assert_eq!(paths(slice_errors(&slice(json!({})))), ["spec"]);
        assert_eq!(paths(slice_errors(&slice(json!({"nodeName": "n", "allNodes": true})))), ["spec"]);
        assert_eq!(paths(slice_errors(&slice(json!({"perDeviceNodeSelection": true})))), ["spec.devices[0]"]);
    }

    #[test]
    fn attributes_have_one_value() {
        let of = |attribute: Value| attribute_errors(&attribute, &Path::new("a")).len();
        assert_eq!((of(json!({"bool": true})), of(json!({"version": "1.2.3-rc.1+b"}))), (0, 0));
        assert_eq!((of(json!({})), of(json!({"int": 1, "bool": true})), of(json!({"version": "1.02.3"}))), (1, 1, 1));
    }

    #[test]
    fn an_allocation_stays_and_consumers_need_one() {
        let old = json!({"status": {}});
        let reserved = json!({"status": {"reservedFor": [{"resource": "pods", "name": "p", "uid": "1"}]}});
        assert_eq!(paths(status_errors(&reserved, &old)), ["status.reservedFor"]);
        let old = json!({"status": {"allocation": {"a": 1}}});
        assert_eq!(paths(status_errors(&json!({"status": {"allocation": {"a": 2}}}), &old)), ["status.allocation"]);
    }
}
