//! Ingress and IngressClass: HTTP from outside. A controller that one installs carries it out.

use serde_json::Value;

use super::{BASE, first_generation, first_without_status, object_at, set_default, update_spec_or_status};
use crate::field::{ErrorList, Path};
use crate::kind::{Part, Strategy};
use crate::validation::addresses::{self, parse_ip};
use crate::validation::json::{dig, get, int, items, str_at, texts};
use crate::validation::{metadata, names};

/// What is peculiar to Ingresses.
pub const STRATEGY: Strategy = Strategy {
    prepare_create: first_without_status,
    prepare_update: update_spec_or_status,
    validate,
    validate_update: |new, _, part| if part == Part::Status { status_errors(new) } else { spec_errors(new) },
    warnings,
    ..BASE
};

/// What is peculiar to IngressClasses.
pub const CLASS: Strategy = Strategy {
    default: default_class,
    prepare_create: first_generation,
    prepare_update: update_spec_or_status,
    validate: class_errors,
    validate_update: |new, old, _| {
        let mut errors = class_errors(new);
        let controller = |object| dig(object, &["spec", "controller"]);
        errors.extend(metadata::immutable(controller(new), controller(old), &Path::new("spec").child("controller")));
        errors
    },
    ..BASE
};

/// How a class was named before `spec.ingressClassName`.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
const PATH_TYPES: [&str; 3] = ["Exact", "ImplementationSpecific", "Prefix"];
/// What a path that is compared as it is may not hold.
const PATH_PARTS: [&str; 5] = ["//", "/./", "/../", "%2f", "%2F"];
const PATH_ENDS: [&str; 2] = ["/..", "/."];
const CONTROLLER_MAX: usize = 250;

fn warnings(object: &Value) -> Vec<String> {
    let annotated = dig(object, &["metadata", "annotations", CLASS_ANNOTATION]).is_some();
    let text = format!("annotation {CLASS_ANNOTATION:?} is deprecated, please use 'spec.ingressClassName' instead");
    annotated.then_some(text).into_iter().collect()
}

fn validate(object: &Value) -> ErrorList {
    let mut errors = spec_errors(object);
    let annotation = dig(object, &["metadata", "annotations", CLASS_ANNOTATION]);
    let class = dig(object, &["spec", "ingressClassName"]);
    if let (Some(annotation), Some(_)) = (annotation, class)
        && Some(annotation) != class
    {
        let path = Path::new("annotations").child(CLASS_ANNOTATION);
        errors.push(path.invalid(annotation.clone(), "must match `ingressClassName` when both are specified"));
    }
    errors
}

fn spec_errors(object: &Value) -> ErrorList {
    let path = Path::new("spec");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let mut errors = ErrorList::new();
    let backend = get(spec, "defaultBackend");
    if items(spec, "rules").is_empty() && backend.is_none() {
        let shown = spec.get("rules").cloned().unwrap_or(Value::Null);
        errors.push(path.invalid(shown, "either `defaultBackend` or `rules` must be specified"));
    }
    if let Some(backend) = backend {
        errors.extend(backend_errors(backend, &path.child("defaultBackend")));
    }
    for (index, rule) in items(spec, "rules").iter().enumerate() {
        errors.extend(rule_errors(rule, &path.child("rules").index(index)));
    }
    for (index, tls) in items(spec, "tls").iter().enumerate() {
        errors.extend(tls_errors(tls, &path.child("tls").index(index)));
    }
    if let Some(class) = get(spec, "ingressClassName").and_then(Value::as_str) {
        let wrong = names::dns1123_subdomain(class);
        errors.extend(wrong.into_iter().map(|text| path.child("ingressClassName").invalid(class, text)));
    }
    errors
}

/// What is wrong with a host: a domain, of which the first label may be `*`.
fn host_errors(host: &str, path: &Path) -> ErrorList {
    let wrong = if host.contains('*') { names::wildcard_subdomain(host) } else { names::dns1123_subdomain(host) };
    wrong.into_iter().map(|text| path.invalid(host, text)).collect()
}

fn tls_errors(tls: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for (index, host) in texts(tls, "hosts").enumerate() {
        errors.extend(host_errors(host, &path.child("hosts").index(index)));
    }
    let secret = str_at(tls, "secretName");
    if !secret.is_empty() {
        let wrong = names::dns1123_subdomain(secret);
        errors.extend(wrong.into_iter().map(|text| path.child("secretName").invalid(secret, text)));
    }
    errors
}

fn rule_errors(rule: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let host = str_at(rule, "host");
    if !host.is_empty() {
        if parse_ip(host).is_some() {
            errors.push(path.child("host").invalid(host, "must be a DNS name, not an IP address"));
        }
        errors.extend(host_errors(host, &path.child("host")));
    }
    let Some(http) = get(rule, "http") else { return errors };
    let path = path.child("http").child("paths");
    if items(http, "paths").is_empty() {
        errors.push(path.required(""));
    }
    for (index, one) in items(http, "paths").iter().enumerate() {
        errors.extend(path_errors(one, &path.index(index)));
    }
    errors
}

fn path_errors(one: &Value, path: &Path) -> ErrorList {
    let Some(path_type) = get(one, "pathType").and_then(Value::as_str) else {
        return vec![path.child("pathType").required("pathType must be specified")];
    };
    let mut errors = ErrorList::new();
    let (field, text) = (path.child("path"), str_at(one, "path"));
    match path_type {
        "Exact" | "Prefix" => {
            if !text.starts_with('/') {
                errors.push(field.invalid(text, "must be an absolute path"));
            }
            let parts = PATH_PARTS.iter().filter(|part| text.contains(**part));
            errors.extend(parts.map(|part| field.invalid(text, format!("must not contain '{part}'"))));
            let ends = PATH_ENDS.iter().filter(|end| text.ends_with(**end));
            errors.extend(ends.map(|end| field.invalid(text, format!("cannot end with '{end}'"))));
        }
        "ImplementationSpecific" => {
            if !text.is_empty() && !text.starts_with('/') {
                errors.push(field.invalid(text, "must be an absolute path"));
            }
        }
        other => errors.push(path.child("pathType").not_supported(other, &PATH_TYPES)),
    }
    errors.extend(backend_errors(one.get("backend").unwrap_or(&Value::Null), &path.child("backend")));
    errors
}

fn backend_errors(backend: &Value, path: &Path) -> ErrorList {
    match (get(backend, "resource"), get(backend, "service")) {
        (Some(_), Some(_)) => vec![path.invalid("", "cannot set both resource and service backends")],
        (Some(resource), None) => reference_errors(resource, &path.child("resource")),
        (None, Some(service)) => service_errors(service, path),
        (None, None) => vec![path.invalid("", "resource or service backend is required")],
    }
}

fn service_errors(service: &Value, backend: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let path = backend.child("service");
    let name = str_at(service, "name");
    if name.is_empty() {
        errors.push(path.child("name").required(""));
    } else {
        errors.extend(names::dns1035_label(name).into_iter().map(|text| path.child("name").invalid(name, text)));
    }
    let port = service.get("port").unwrap_or(&Value::Null);
    let (port_name, number) = (str_at(port, "name"), int(port, "number").unwrap_or(0));
    let field = path.child("port");
    match (port_name, number) {
        ("", 0) => errors.push(backend.required("port name or number is required")),
        ("", _) => {
            let wrong = names::port_number(number);
            errors.extend(wrong.into_iter().map(|text| field.child("number").invalid(number, text)));
        }
        (_, 0) => {
            let wrong = names::port_name(port_name);
            errors.extend(wrong.into_iter().map(|text| field.child("name").invalid(port_name, text)));
        }
        _ => errors.push(backend.invalid("", "cannot set both port name & port number")),
    }
    errors
}

/// What is wrong with a reference to an object of another kind.
fn reference_errors(reference: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    if let Some(group) = get(reference, "apiGroup").and_then(Value::as_str) {
        let wrong = names::dns1123_subdomain(group);
        errors.extend(wrong.into_iter().map(|text| path.child("apiGroup").invalid(group, text)));
    }
    for field in ["kind", "name"] {
        let text = str_at(reference, field);
        if text.is_empty() {
            errors.push(path.child(field).required(format!("{field} is required")));
        } else {
            errors.extend(names::path_segment(text).into_iter().map(|why| path.child(field).invalid(text, why)));
        }
    }
    errors
}

fn status_errors(object: &Value) -> ErrorList {
    let path = Path::new("status").child("loadBalancer").child("ingress");
    let mut errors = ErrorList::new();
    let balancer = dig(object, &["status", "loadBalancer"]).unwrap_or(&Value::Null);
    for (index, ingress) in items(balancer, "ingress").iter().enumerate() {
        let path = path.index(index);
        let (ip, host) = (str_at(ingress, "ip"), str_at(ingress, "hostname"));
        if !ip.is_empty() {
            errors.extend(addresses::ip(ip, &path.child("ip")));
        }
        if !host.is_empty() {
            let path = path.child("hostname");
            errors.extend(names::dns1123_subdomain(host).into_iter().map(|text| path.invalid(host, text)));
            if parse_ip(host).is_some() {
                errors.push(path.invalid(host, "must be a DNS name, not an IP address"));
            }
        }
    }
    errors
}

fn default_class(object: &mut Value) {
    let Some(spec) = object_at(object, "spec") else { return };
    if let Some(parameters) = spec.get_mut("parameters").and_then(Value::as_object_mut) {
        set_default(parameters, "scope", "Cluster");
    }
}

fn class_errors(object: &Value) -> ErrorList {
    let path = Path::new("spec");
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let mut errors = controller_errors(str_at(spec, "controller"), &path.child("controller"));
    let Some(parameters) = get(spec, "parameters") else { return errors };
    let path = path.child("parameters");
    errors.extend(reference_errors(parameters, &path));
    let namespace = get(parameters, "namespace").and_then(Value::as_str);
    let field = path.child("namespace");
    match str_at(parameters, "scope") {
        "Namespace" => match namespace {
            None => errors.push(field.required("`parameters.scope` is set to 'Namespace'")),
            Some(name) => {
                errors.extend(names::dns1123_label(name).into_iter().map(|text| field.invalid(name, text)));
            }
        },
        "Cluster" => {
            if namespace.is_some() {
                errors.push(field.forbidden("`parameters.scope` is set to 'Cluster'"));
            }
        }
        other => errors.push(path.child("scope").not_supported(other, &["Cluster", "Namespace"])),
    }
    errors
}

fn controller_errors(controller: &str, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    if controller.len() > CONTROLLER_MAX {
        errors.push(path.too_long(CONTROLLER_MAX));
    }
    if controller.is_empty() {
        errors.push(path.required(""));
        return errors;
    }
    match controller.split_once('/') {
        Some((domain, rest)) if !domain.is_empty() && !rest.is_empty() => {
            errors.extend(names::dns1123_subdomain(domain).into_iter().map(|text| path.invalid(domain, text)));
            if !rest.bytes().all(|b| b.is_ascii_alphanumeric() || b"/%:@._~!$&'()*+,;=-".contains(&b)) {
                let rule = "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";
                errors.push(path.invalid(rest, rule));
            }
        }
        _ => errors.push(path.invalid(controller, "must be a domain-prefixed path (such as \"acme.io/foo\")")),
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn messages(spec: &Value) -> Vec<String> {
        spec_errors(&json!({"spec": spec})).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_backend_is_one_thing_and_has_a_port() {
        let of = |backend: Value| messages(&json!({"defaultBackend": backend}));
        assert_eq!(
            of(json!({})),
            ["spec.defaultBackend: Invalid value: \"\": resource or service backend is required"]
        );
        assert_eq!(
            of(json!({"service": {"name": "", "port": {}}})),
            [
                "spec.defaultBackend.service.name: Required value",
                "spec.defaultBackend: Required value: port name or number is required"
            ]
        );
        assert_eq!(
            of(json!({"resource": {"kind": "", "name": "a/b"}})),
            [
                "spec.defaultBackend.resource.kind: Required value: kind is required",
                "spec.defaultBackend.resource.name: Invalid value: \"a/b\": may not contain '/'"
            ]
        );
    }

    #[test]
    fn paths_are_absolute_and_plain() {
        let backend = json!({"service": {"name": "s", "port": {"number": 80}}});
        let of = |path: &str, kind: &str| {
            let paths = json!([{"path": path, "pathType": kind, "backend": backend}]);
            messages(&json!({"rules": [{"http": {"paths": paths}}]})).len()
        };
        assert_eq!((of("/a", "Prefix"), of("", "ImplementationSpecific")), (0, 0));
        assert_eq!((of("a", "Exact"), of("/a/..", "Exact"), of("/a%2Fb", "Prefix"), of("/", "Z")), (1, 1, 1, 1));
    }

    #[test]
    fn a_class_says_where_its_parameters_are() {
        let mut class = json!({"spec": {"controller": "example.com/c", "parameters": {"kind": "K", "name": "n"}}});
        default_class(&mut class);
        assert_eq!(class["spec"]["parameters"]["scope"], "Cluster");
        assert!(class_errors(&class).is_empty());
        class["spec"]["parameters"]["scope"] = json!("Namespace");
        assert_eq!(class_errors(&class)[0].detail, "`parameters.scope` is set to 'Namespace'");
        assert_eq!(class_errors(&json!({"spec": {"controller": "c"}})).len(), 1);
    }

    #[test]
    fn the_old_annotation_is_noticed() {
        let object = json!({"metadata": {"annotations": {CLASS_ANNOTATION: "a"}},
            "spec": {"ingressClassName": "b", "rules": [{"host": "x.example"}]}});
        assert_eq!(warnings(&object).len(), 1);
        assert_eq!(validate(&object)[0].path, "annotations.kubernetes.io/ingress.class");
    }
}
