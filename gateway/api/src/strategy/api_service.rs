//! APIService: which server answers for a group and version.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{BASE, keep_field, keep_generation, name_of, set_default};
use crate::field::{ErrorList, Path};
use crate::kind::{Part, Strategy};
use crate::validation::json::{flag, get, int, str_at};
use crate::validation::names;

/// What is peculiar to APIServices.
pub const STRATEGY: Strategy = Strategy {
    default: |object| {
        let service = object.get_mut("spec").and_then(|spec| spec.get_mut("service"));
        if let Some(service) = service.and_then(Value::as_object_mut) {
            set_default(service, "port", 443);
        }
    },
    prepare_create: |object| object["status"] = json!({}),
    prepare_update: |new, old, part| {
        keep_generation(new, old, part);
        keep_field(new, old, if part == Part::Status { "spec" } else { "status" });
    },
    validate,
    validate_update: |new, _, part| if part == Part::Status { ErrorList::new() } else { validate(new) },
    validate_name: names::path_segment,
    unconditional_update: false,
    ..BASE
};

const HIGHEST_GROUP: i64 = 20_000;
const HIGHEST_VERSION: i64 = 1_000;

fn validate(object: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let (group, version) = (str_at(spec, "group"), str_at(spec, "version"));
    let (name, wanted) = (name_of(object), format!("{version}.{group}"));
    if name != wanted {
        let why = format!("must be `spec.version+\".\"+spec.group`: {wanted:?}");
        let prefix = object.get("metadata").map_or("", |metadata| str_at(metadata, "generateName"));
        if !prefix.is_empty() {
            errors.push(Path::new("metadata").child("generateName").invalid(prefix, why.as_str()));
        }
        errors.push(Path::new("metadata").child("name").invalid(name, why));
    }
    let path = Path::new("spec");
    if group.is_empty() && version != "v1" {
        errors.push(path.child("group").required("only v1 may have an empty group and it better be legacy kube"));
    }
    if !group.is_empty() {
        errors.extend(names::dns1123_subdomain(group).into_iter().map(|text| path.child("group").invalid(group, text)));
    }
    errors.extend(names::dns1035_label(version).into_iter().map(|text| path.child("version").invalid(version, text)));
    let highest = [("groupPriorityMinimum", HIGHEST_GROUP), ("versionPriority", HIGHEST_VERSION)];
    for (field, highest) in highest {
        let number = int(spec, field).unwrap_or(0);
        if number <= 0 || number > highest {
            errors.push(path.child(field).invalid(number, format!("must be positive and less than {highest}")));
        }
    }
    errors.extend(service_errors(spec, &path));
    errors
}

fn service_errors(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let bundle = STANDARD.decode(str_at(spec, "caBundle")).map_or(0, |bytes| bytes.len());
    let insecure = flag(spec, "insecureSkipTLSVerify");
    let skip = path.child("insecureSkipTLSVerify");
    let Some(service) = get(spec, "service") else {
        if bundle > 0 {
            let why = "local APIServices may not have a caBundle";
            errors.push(path.child("caBundle").invalid(format!("{bundle} bytes"), why));
        }
        if insecure {
            errors.push(skip.invalid(true, "local APIServices may not have insecureSkipTLSVerify"));
        }
        return errors;
    };
    let path = path.child("service");
    for field in ["namespace", "name"] {
        if str_at(service, field).is_empty() {
            errors.push(path.child(field).required(""));
        }
    }
    let port = int(service, "port").unwrap_or(0);
    let wrong = names::port_number(port);
    if !wrong.is_empty() {
        errors.push(path.child("port").invalid(port, format!("port is not valid: {}", wrong.join(","))));
    }
    if insecure && bundle > 0 {
        errors.push(skip.invalid(true, "may not be true if caBundle is present"));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_is_named_for_its_version_and_group() {
        let api = |name: &str| {
            json!({"metadata": {"name": name}, "spec": {"group": "a.example", "version": "v1", "groupPriorityMinimum": 100,
                "versionPriority": 10, "service": {"namespace": "n", "name": "s", "port": 443}}})
        };
        assert!(validate(&api("v1.a.example")).is_empty());
        assert_eq!(validate(&api("x"))[0].detail, "must be `spec.version+\".\"+spec.group`: \"v1.a.example\"");
        let core = json!({"metadata": {"name": "v1."}, "spec": {"version": "v1", "groupPriorityMinimum": 1, "versionPriority": 1}});
        assert!(validate(&core).is_empty());
    }

    #[test]
    fn who_skips_verification_has_no_bundle_and_is_elsewhere() {
        let spec = json!({"insecureSkipTLSVerify": true, "caBundle": "eA=="});
        let details: Vec<String> =
            service_errors(&spec, &Path::new("spec")).into_iter().map(|error| error.detail).collect();
        assert_eq!(
            details,
            ["local APIServices may not have a caBundle", "local APIServices may not have insecureSkipTLSVerify"]
        );
    }
}
