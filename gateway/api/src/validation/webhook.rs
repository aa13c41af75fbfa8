//! How a webhook is reached, and about what it is asked: what webhook configurations, admission policies and conversions
//! have in common.

use serde_json::Value;

use crate::field::{ErrorList, Path};
use crate::validation::json::{get, int, items, str_at, texts};
use crate::validation::selectors::label_selector;
use crate::validation::{expressions, names};

const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const SCOPES: [&str; 3] = ["*", "Cluster", "Namespaced"];
const URL_FORM: &str = "; desired format: https://host[/path]";

/// What is wrong with a `clientConfig`: a URL or a Service.
pub fn client(config: &Value, path: &Path) -> ErrorList {
    match (get(config, "url").and_then(Value::as_str), get(config, "service")) {
        (Some(text), None) => url(text, &path.child("url")),
        (None, Some(reference)) => service(reference, &path.child("service")),
        _ => vec![path.required("exactly one of url or service is required")],
    }
}

fn url(text: &str, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    if scheme != "https" {
        errors.push(path.invalid(scheme, format!("'https' is the only allowed URL scheme{URL_FORM}")));
    }
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = if scheme.is_empty() { "" } else { rest.split('/').next().unwrap_or("") };
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    if host.is_empty() {
        errors.push(path.invalid("", format!("host must be specified{URL_FORM}")));
    }
    let parts = [
        (user, "user information is not permitted in the URL"),
        (fragment, "fragments are not permitted in the URL"),
        (query, "query parameters are not permitted in the URL"),
    ];
    errors.extend(parts.into_iter().filter(|(part, _)| !part.is_empty()).map(|(part, why)| path.invalid(part, why)));
    errors
}

/// What is wrong with a reference to the Service of a webhook.
pub fn service(reference: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    if str_at(reference, "name").is_empty() {
        errors.push(path.child("name").required("service name is required"));
    }
    if str_at(reference, "namespace").is_empty() {
        errors.push(path.child("namespace").required("service namespace is required"));
    }
    if let Some(port) = int(reference, "port") {
        let wrong = names::port_number(port);
        if !wrong.is_empty() {
            errors.push(path.child("port").invalid(port, format!("port is not valid: {}", wrong.join(","))));
        }
    }
    let (field, place) = (path.child("path"), str_at(reference, "path"));
    if matches!(place, "" | "/") {
        return errors;
    }
    if place == "//" {
        errors.push(field.invalid(place, "segment[0] may not be empty"));
        return errors;
    }
    if !place.starts_with('/') {
        errors.push(field.invalid(place, "must start with a '/'"));
    }
    let steps = place.get(1..).unwrap_or("");
    for (index, step) in steps.strip_suffix('/').unwrap_or(steps).split('/').enumerate() {
        if step.is_empty() {
            errors.push(field.invalid(place, format!("segment[{index}] may not be empty")));
            continue;
        }
        let wrong = names::dns1123_subdomain(step).into_iter();
        errors.extend(wrong.map(|why| field.invalid(place, format!("segment[{index}]: {why}"))));
    }
    errors
}

/// What is wrong with a rule of what is watched over (`RuleWithOperations`).
pub fn rule(rule: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let field = path.child("operations");
    let operations: Vec<&str> = texts(rule, "operations").collect();
    if operations.is_empty() {
        errors.push(field.required(""));
    }
    if operations.len() > 1 && operations.contains(&"*") {
        let why = "if '*' is present, must not specify other operations";
        errors.push(field.invalid(rule["operations"].clone(), why));
    }
    for (index, operation) in operations.iter().enumerate().filter(|(_, one)| !OPERATIONS.contains(one)) {
        errors.push(field.index(index).not_supported(*operation, &OPERATIONS));
    }
    for (list, what) in [("apiGroups", "API groups"), ("apiVersions", "API versions")] {
        let field = path.child(list);
        let entries: Vec<&str> = texts(rule, list).collect();
        if entries.is_empty() {
            errors.push(field.required(""));
        }
        if entries.len() > 1 && entries.contains(&"*") {
            let why = format!("if '*' is present, must not specify other {what}");
            errors.push(field.invalid(rule[list].clone(), why));
        }
        // The empty group is the core group; there is no empty version.
        let empty = entries.iter().enumerate().filter(|(_, entry)| list == "apiVersions" && entry.is_empty());
        errors.extend(empty.map(|(index, _)| field.index(index).required("")));
    }
    errors.extend(resources(rule, &path.child("resources")));
    if let Some(scope) = get(rule, "scope").and_then(Value::as_str).filter(|scope| !SCOPES.contains(scope)) {
        errors.push(path.child("scope").not_supported(scope, &SCOPES));
    }
    errors
}

/// Resources, or `RESOURCE/SUBRESOURCE`, where what includes others may not stand beside them.
fn resources(rule: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let entries: Vec<&str> = texts(rule, "resources").collect();
    if entries.is_empty() {
        return vec![path.required("")];
    }
    let (mut all_parts_of, mut part_of_all): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    for (index, entry) in entries.iter().enumerate() {
        if entry.is_empty() {
            errors.push(path.index(index).required(""));
            continue;
        }
        let Some((resource, part)) = entry.split_once('/') else { continue };
        if all_parts_of.contains(&resource) {
            let why = format!("if '{resource}/*' is present, must not specify {entry}");
            errors.push(path.index(index).invalid(*entry, why));
        }
        if part_of_all.contains(&part) {
            errors
                .push(path.index(index).invalid(*entry, format!("if '*/{part}' is present, must not specify {entry}")));
        }
        if part == "*" {
            all_parts_of.push(resource);
        }
        if resource == "*" {
            part_of_all.push(part);
        }
    }
    let shown = || rule["resources"].clone();
    if entries.len() > 1 && entries.contains(&"*/*") {
        errors.push(path.invalid(shown(), "if '*/*' is present, must not specify other resources"));
    }
    if entries.contains(&"*") && entries.iter().any(|entry| *entry != "*" && !entry.contains('/')) {
        let why = "if '*' is present, must not specify other resources without subresources";
        errors.push(path.invalid(shown(), why));
    }
    errors
}

/// What is wrong with the selectors of namespaces and objects.
pub fn selectors(value: &Value, path: &Path) -> ErrorList {
    let fields = ["namespaceSelector", "objectSelector"].into_iter();
    fields.filter_map(|field| Some(label_selector(get(value, field)?, &path.child(field)))).flatten().collect()
}

/// What is wrong with conditions for being asked (`matchConditions`), whose expressions may use these variables.
pub fn conditions(value: &Value, variables: &[&str], path: &Path) -> ErrorList {
    const MOST: usize = 64;
    let path = path.child("matchConditions");
    let all = items(value, "matchConditions");
    let mut errors = ErrorList::new();
    if all.len() > MOST {
        errors.push(path.too_many(all.len(), MOST));
    }
    for (index, condition) in all.iter().enumerate() {
        let path = path.index(index);
        let (field, expression) = (path.child("expression"), str_at(condition, "expression"));
        if expression.trim().is_empty() {
            errors.push(field.required(""));
        } else {
            errors.extend(expressions::errors(expression, variables, &["bool"], &field));
        }
        let (field, name) = (path.child("name"), str_at(condition, "name"));
        if name.is_empty() {
            errors.push(field.required(""));
            continue;
        }
        errors.extend(names::qualified_name(name).into_iter().map(|why| field.invalid(name, why)));
        if all[..index].iter().any(|one| str_at(one, "name") == name) {
            errors.push(field.duplicate(name));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts_of(errors: &ErrorList) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_client_is_a_plain_https_url_or_a_service() {
        let of = |config: Value| texts_of(&client(&config, &Path::new("c")));
        assert!(of(json!({"url": "https://a.example:8443/x"})).is_empty());
        assert!(of(json!({"service": {"name": "s", "namespace": "n", "path": "/a/b/", "port": 443}})).is_empty());
        assert_eq!(of(json!({})), ["c: Required value: exactly one of url or service is required"]);
        assert_eq!(of(json!({"url": "https://u@a.example?x#y"})).len(), 3);
        assert_eq!(
            of(json!({"service": {"name": "s", "namespace": "n", "path": "/a//b"}})),
            ["c.service.path: Invalid value: \"/a//b\": segment[1] may not be empty"]
        );
    }

    #[test]
    fn what_includes_others_stands_alone() {
        let of = |resources: Value| {
            let whole =
                json!({"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": resources});
            texts_of(&rule(&whole, &Path::new("r"))).len()
        };
        assert_eq!((of(json!(["*", "a/b"])), of(json!(["a", "a/*"]))), (0, 0));
        assert_eq!((of(json!(["*", "a"])), of(json!(["*/*", "a"])), of(json!(["a/*", "a/b"]))), (1, 1, 1));
        assert_eq!(of(json!(["*/x", "a/x"])), 1);
    }

    #[test]
    fn conditions_have_names_of_their_own() {
        let value = json!({"matchConditions": [{"name": "a", "expression": "true"}, {"name": "a", "expression": " "}]});
        let paths: Vec<String> =
            conditions(&value, expressions::OF_REQUESTS, &Path::root()).into_iter().map(|error| error.path).collect();
        assert_eq!(paths, ["matchConditions[1].expression", "matchConditions[1].name"]);
    }
}
