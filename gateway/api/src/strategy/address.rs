//! IPAddress and ServiceCIDR: addresses that are taken, and ranges from which they are taken.

use serde_json::{Value, json};

use super::{BASE, first_generation, keep_field, object_at, update_spec_or_status};
use crate::field::{ErrorList, Path};
use crate::kind::{Part, Strategy};
use crate::validation::addresses::{self, canonical_ip, parse_range};
use crate::validation::json::{dig, get, str_at, texts};
use crate::validation::{metadata, names};

/// What is peculiar to IPAddresses.
pub const ADDRESS: Strategy = Strategy {
    prepare_create: first_generation,
    prepare_update: update_spec_or_status,
    validate: parent_errors,
    validate_update: |new, old, _: Part| {
        let parent = |object| dig(object, &["spec", "parentRef"]);
        metadata::immutable(parent(new), parent(old), &Path::new("spec").child("parentRef"))
    },
    validate_name: |name| canonical_ip(name, &Path::root()).into_iter().map(|error| error.detail).collect(),
    ..BASE
};

/// What is peculiar to ServiceCIDRs.
pub const RANGE: Strategy = Strategy {
    default: |object| {
        object_at(object, "status");
    },
    prepare_create: |object| {
        object["status"] = json!({});
        first_generation(object);
    },
    prepare_update: |new, old, part| {
        update_spec_or_status(new, old, part);
        if part == Part::Status {
            keep_field(new, old, "spec");
        }
    },
    validate: |object| range_errors(object),
    validate_update: changed_range_errors,
    ..BASE
};

fn parent_errors(object: &Value) -> ErrorList {
    let path = Path::new("spec").child("parentRef");
    let Some(parent) = dig(object, &["spec", "parentRef"]) else { return vec![path.required("")] };
    let mut errors = ErrorList::new();
    let group = str_at(parent, "group");
    if !group.is_empty() {
        errors.extend(names::dns1123_subdomain(group).into_iter().map(|text| path.child("group").invalid(group, text)));
    }
    for (field, needed) in [("resource", true), ("name", true), ("namespace", false)] {
        let text = str_at(parent, field);
        if text.is_empty() && needed {
            errors.push(path.child(field).required(""));
        }
        errors.extend(names::path_segment(text).into_iter().map(|why| path.child(field).invalid(text, why)));
    }
    errors
}

fn ranges(object: &Value) -> Vec<&str> {
    object.get("spec").map(|spec| texts(spec, "cidrs").collect()).unwrap_or_default()
}

fn range_errors(object: &Value) -> ErrorList {
    let path = Path::new("spec").child("cidrs");
    let all = ranges(object);
    if all.is_empty() {
        return vec![path.required("at least one CIDR required")];
    }
    if all.len() > 2 {
        return vec![path.invalid(json!({"CIDRs": all}), "may only hold up to 2 values")];
    }
    let mut errors = ErrorList::new();
    for (index, text) in all.iter().enumerate() {
        let path = path.index(index);
        match parse_range(text) {
            None => errors.extend(addresses::range(text, &path)),
            Some((first, bits)) => {
                let canonical = format!("{first}/{bits}");
                if canonical != *text {
                    errors.push(path.invalid(*text, format!("must be in canonical form ({canonical:?})")));
                }
            }
        }
    }
    let families: Vec<bool> =
        all.iter().filter_map(|text| parse_range(text)).map(|(first, _)| first.is_ipv4()).collect();
    if families.len() == 2 && families[0] == families[1] {
        let why = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        errors.push(path.invalid(json!(all), why));
    }
    errors
}

/// Ranges stay; one of the other family may be added.
fn changed_range_errors(new: &Value, old: &Value, part: Part) -> ErrorList {
    const STAYS: &str = "field is immutable";
    if part == Part::Status {
        return ErrorList::new();
    }
    let path = Path::new("spec").child("cidrs");
    let (now, before) = (ranges(new), ranges(old));
    let changed = now.iter().zip(&before).enumerate().filter(|(_, (now, before))| now != before);
    let mut errors: ErrorList = changed.map(|(index, (now, _))| path.index(index).invalid(*now, STAYS)).collect();
    match (before.len(), now.len()) {
        (1, 2) => errors.extend(range_errors(new)),
        (before, now) if before == now => {}
        _ => errors = vec![path.invalid(get(&new["spec"], "cidrs").cloned().unwrap_or(Value::Null), STAYS)],
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_somebodys() {
        assert_eq!(parent_errors(&json!({"spec": {}}))[0].path, "spec.parentRef");
        let parent = json!({"resource": "services", "namespace": "default", "name": "a"});
        assert!(parent_errors(&json!({"spec": {"parentRef": parent}})).is_empty());
        assert_eq!(parent_errors(&json!({"spec": {"parentRef": {"group": "A"}}})).len(), 3);
        assert!((ADDRESS.validate_name)("10.0.0.1").is_empty());
        assert_eq!((ADDRESS.validate_name)("010.0.0.1").len(), 1);
        assert_eq!((ADDRESS.validate_name)("2001:DB8::1").len(), 1);
    }

    #[test]
    fn a_range_may_only_be_joined_by_one_of_the_other_family() {
        let of = |ranges: Value| json!({"spec": {"cidrs": ranges}});
        let old = of(json!(["10.0.0.0/16"]));
        let change = |ranges: Value| changed_range_errors(&of(ranges), &old, Part::Main).len();
        assert_eq!((change(json!(["10.0.0.0/16"])), change(json!(["10.0.0.0/16", "fd00::/112"]))), (0, 0));
        assert_eq!(
            (change(json!(["10.1.0.0/16"])), change(json!([])), change(json!(["10.0.0.0/16", "10.1.0.0/16"]))),
            (1, 1, 1)
        );
        assert_eq!(range_errors(&of(json!(["10.0.0.1/16"])))[0].detail, "must be in canonical form (\"10.0.0.0/16\")");
    }
}
