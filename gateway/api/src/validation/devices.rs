//! Requests for devices: what claims, their templates and device classes have in common.

use serde_json::Value;

use crate::field::{ErrorList, Path};
use crate::validation::json::{get, int, items, str_at, texts};
use crate::validation::names;

const MOST_REQUESTS: usize = 32;
const MOST_ALTERNATIVES: usize = 8;
const MOST_SELECTORS: usize = 32;
const MOST_CONFIGURATIONS: usize = 32;
const LONGEST_EXPRESSION: usize = 10 << 10;
const LONGEST_PARAMETERS: usize = 10 << 10;
const LONGEST_DRIVER: usize = 63;
const NO_REQUEST: &str =
    "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";

/// What is wrong with the devices that a claim asks for (`DeviceClaim`).
pub fn claim(devices: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let field = path.child("requests");
    let requests = items(devices, "requests");
    errors.extend(size(requests, MOST_REQUESTS, &field));
    for (index, request) in requests.iter().enumerate() {
        let field = field.index(index);
        errors.extend(request_errors(request, &field));
        if named_before(requests, index) {
            errors.push(field.child("name").duplicate(str_at(request, "name")));
        }
    }
    let field = path.child("constraints");
    errors.extend(size(items(devices, "constraints"), MOST_REQUESTS, &field));
    for (index, constraint) in items(devices, "constraints").iter().enumerate() {
        let path = field.index(index);
        errors.extend(reference_errors(constraint, requests, &path.child("requests")));
        let attributes = ["matchAttribute", "distinctAttribute"];
        match attributes.into_iter().find_map(|field| Some((field, get(constraint, field)?.as_str()?))) {
            Some((field, name)) => errors.extend(attribute_name(name, &path.child(field))),
            None => errors.push(path.child("matchAttribute").required("")),
        }
    }
    errors.extend(configurations(devices, Some(requests), &path.child("config")));
    errors
}

/// What is wrong with the configurations of a claim, whose requests they may name, or of a class.
pub fn configurations(owner: &Value, requests: Option<&[Value]>, path: &Path) -> ErrorList {
    let all = items(owner, "config");
    let mut errors = size(all, MOST_CONFIGURATIONS, path);
    for (index, config) in all.iter().enumerate() {
        let path = path.index(index);
        if let Some(requests) = requests {
            errors.extend(reference_errors(config, requests, &path.child("requests")));
        }
        let path = path.child("opaque");
        let Some(opaque) = get(config, "opaque") else {
            errors.push(path.required(""));
            continue;
        };
        errors.extend(driver(str_at(opaque, "driver"), &path.child("driver")));
        let field = path.child("parameters");
        match get(opaque, "parameters") {
            None => errors.push(field.required("")),
            Some(parameters) => {
                if parameters.to_string().len() > LONGEST_PARAMETERS {
                    errors.push(field.too_long(LONGEST_PARAMETERS));
                }
                if !parameters.is_object() {
                    errors.push(field.invalid("<value omitted>", "must be a valid JSON object"));
                }
            }
        }
    }
    errors
}

/// What is wrong with selectors of devices; whether their expressions compile is not asked.
pub fn selectors(owner: &Value, path: &Path) -> ErrorList {
    let path = path.child("selectors");
    let all = items(owner, "selectors");
    let mut errors = size(all, MOST_SELECTORS, &path);
    for (index, selector) in all.iter().enumerate() {
        let path = path.index(index).child("cel");
        match get(selector, "cel") {
            None => errors.push(path.required("")),
            Some(cel) if str_at(cel, "expression").len() > LONGEST_EXPRESSION => {
                errors.push(path.child("expression").too_long(LONGEST_EXPRESSION));
            }
            Some(_) => {}
        }
    }
    errors
}

/// What is wrong with the name of a driver.
pub fn driver(name: &str, path: &Path) -> ErrorList {
    if name.is_empty() {
        return vec![path.required("")];
    }
    let mut errors = ErrorList::new();
    if name.len() > LONGEST_DRIVER {
        errors.push(path.too_long(LONGEST_DRIVER));
    }
    errors.extend(names::dns1123_subdomain(name).into_iter().map(|text| path.invalid(name, text)));
    errors
}

/// What is wrong with the name of a request, a device or a set of counters: a label.
pub fn label(name: &str, path: &Path) -> ErrorList {
    if name.is_empty() {
        return vec![path.required("")];
    }
    names::dns1123_label(name).into_iter().map(|text| path.invalid(name, text)).collect()
}

/// `Too many` if a list is too long.
pub fn size(list: &[Value], most: usize, path: &Path) -> ErrorList {
    if list.len() > most { vec![path.too_many(list.len(), most)] } else { ErrorList::new() }
}

/// What is wrong with the name of an attribute, `DOMAIN/NAME`.
fn attribute_name(name: &str, path: &Path) -> ErrorList {
    match name.split_once('/') {
        None => vec![path.invalid(name, "must include a domain")],
        Some((domain, id)) => {
            let mut errors: ErrorList =
                names::dns1123_subdomain(domain).into_iter().map(|text| path.invalid(domain, text)).collect();
            errors.extend(identifier(id, path));
            errors
        }
    }
}

/// What is wrong with a name that expressions use.
pub fn identifier(name: &str, path: &Path) -> ErrorList {
    let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if begins && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return ErrorList::new();
    }
    let why = "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric \
               characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is \
               '[A-Za-z_][A-Za-z0-9_]*')";
    vec![path.invalid(name, why)]
}

fn named_before(list: &[Value], index: usize) -> bool {
    let name = str_at(&list[index], "name");
    list[..index].iter().any(|one| str_at(one, "name") == name)
}

fn request_errors(request: &Value, path: &Path) -> ErrorList {
    let mut errors = label(str_at(request, "name"), &path.child("name"));
    let (exactly, first) = (get(request, "exactly"), items(request, "firstAvailable"));
    match (exactly, first.is_empty()) {
        (None, true) => errors.push(path.required("exactly one of `exactly` or `firstAvailable` is required")),
        (Some(_), false) => errors.push(path.invalid(
            Value::Null,
            "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set",
        )),
        (Some(exactly), true) => errors.extend(wanted_errors(exactly, &path.child("exactly"))),
        (None, false) => {
            let path = path.child("firstAvailable");
            errors.extend(size(first, MOST_ALTERNATIVES, &path));
            for (index, one) in first.iter().enumerate() {
                let path = path.index(index);
                errors.extend(label(str_at(one, "name"), &path.child("name")));
                errors.extend(wanted_errors(one, &path));
                if named_before(first, index) {
                    errors.push(path.child("name").duplicate(str_at(one, "name")));
                }
            }
        }
    }
    errors
}

fn wanted_errors(wanted: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let (field, class) = (path.child("deviceClassName"), str_at(wanted, "deviceClassName"));
    if class.is_empty() {
        errors.push(field.required(""));
    } else {
        errors.extend(names::dns1123_subdomain(class).into_iter().map(|text| field.invalid(class, text)));
    }
    errors.extend(selectors(wanted, path));
    let count = int(wanted, "count").unwrap_or(0);
    let field = path.child("count");
    match str_at(wanted, "allocationMode") {
        "All" => {
            if count != 0 {
                errors.push(field.invalid(count, "must not be specified when allocationMode is 'All'"));
            }
        }
        "ExactCount" => {
            if count <= 0 {
                errors.push(field.invalid(count, "must be greater than zero"));
            }
        }
        other => errors.push(path.child("allocationMode").not_supported(other, &["All", "ExactCount"])),
    }
    errors
}

/// What is wrong with names of requests, `REQUEST` or `REQUEST/ALTERNATIVE`.
fn reference_errors(owner: &Value, requests: &[Value], path: &Path) -> ErrorList {
    let names: Vec<&str> = texts(owner, "requests").collect();
    let mut errors = size(items(owner, "requests"), MOST_REQUESTS, path);
    for (index, name) in names.iter().enumerate() {
        let path = path.index(index);
        let parts: Vec<&str> = name.split('/').collect();
        if parts.len() <= 2 {
            errors.extend(parts.iter().flat_map(|part| label(part, &path)));
        }
        if !refers(&parts, requests) {
            errors.push(path.invalid(*name, NO_REQUEST));
        }
        if names[..index].contains(name) {
            errors.push(path.duplicate(*name));
        }
    }
    errors
}

fn refers(parts: &[&str], requests: &[Value]) -> bool {
    let request = |name: &str| requests.iter().find(|request| str_at(request, "name") == name);
    match parts {
        [name] => request(name).is_some(),
        [name, part] => request(name)
            .is_some_and(|request| items(request, "firstAvailable").iter().any(|one| str_at(one, "name") == *part)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn messages(devices: &Value) -> Vec<String> {
        claim(devices, &Path::new("d")).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_request_asks_for_one_thing() {
        let good =
            json!({"name": "r", "exactly": {"deviceClassName": "c", "allocationMode": "ExactCount", "count": 1}});
        assert!(messages(&json!({"requests": [good]})).is_empty());
        assert_eq!(messages(&json!({"requests": [good, good]})), ["d.requests[1].name: Duplicate value: \"r\""]);
        assert_eq!(
            messages(&json!({"requests": [{"name": "r"}]})),
            ["d.requests[0]: Required value: exactly one of `exactly` or `firstAvailable` is required"]
        );
        let all = json!({"name": "r", "exactly": {"deviceClassName": "", "allocationMode": "All", "count": 2}});
        assert_eq!(
            messages(&json!({"requests": [all]})),
            [
                "d.requests[0].exactly.deviceClassName: Required value",
                "d.requests[0].exactly.count: Invalid value: 2: must not be specified when allocationMode is 'All'"
            ]
        );
    }

    #[test]
    fn constraints_name_requests_and_alternatives() {
        let one = json!({"name": "x", "deviceClassName": "c", "allocationMode": "All"});
        let of = |names: Value| {
            messages(&json!({"requests": [{"name": "r", "firstAvailable": [one]}],
                "constraints": [{"requests": names, "matchAttribute": "a.example/b"}]}))
        };
        assert!(of(json!(["r", "r/x"])).is_empty());
        assert_eq!(of(json!(["s"])).len(), 1);
        assert_eq!(of(json!(["r/y"])).len(), 1);
    }

    #[test]
    fn a_configuration_is_an_object_for_a_driver() {
        let of = |config: Value| {
            let all = json!({"config": [config]});
            configurations(&all, None, &Path::new("c")).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert!(of(json!({"opaque": {"driver": "d", "parameters": {"a": 1}}})).is_empty());
        assert_eq!(of(json!({})), ["c[0].opaque: Required value"]);
        assert_eq!(of(json!({"opaque": {"driver": "d", "parameters": 1}})).len(), 1);
    }
}
