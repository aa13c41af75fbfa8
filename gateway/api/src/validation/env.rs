//! Environment variables, and the references to fields and resources that they and volumes share.

use serde_json::Value;

use crate::field::{ErrorList, Path};
use crate::validation::json::{get, items, str_at, text_or_null};
use crate::validation::names;

/// Fields of a pod that a variable can hold.
pub const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// Fields of a pod that a file can hold.
pub const FILE_FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

/// Fields that a pod's fields can be called at all.
const KNOWN_FIELDS: [&str; 6] = [
    "metadata.annotations",
    "metadata.labels",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.host",
    "status.phase",
];

/// Resources that a variable or file can hold, and the divisors they take.
const RESOURCES: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

const SIZES: [&str; 13] = ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

/// What is wrong with the variables of a container.
pub fn variables(container: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for (index, variable) in items(container, "env").iter().enumerate() {
        let path = path.child("env").index(index);
        let name = str_at(variable, "name");
        if name.is_empty() {
            errors.push(path.child("name").required(""));
        } else {
            errors.extend(names::env_var_name(name).into_iter().map(|text| path.child("name").invalid(name, text)));
        }
        if let Some(source) = get(variable, "valueFrom") {
            let valued = !str_at(variable, "value").is_empty();
            errors.extend(value_from(source, valued, &path.child("valueFrom")));
        }
    }
    let path = path.child("envFrom");
    for (index, source) in items(container, "envFrom").iter().enumerate() {
        errors.extend(env_from(source, &path, index));
    }
    errors
}

fn value_from(source: &Value, valued: bool, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut sources = 0;
    for kind in ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"] {
        let Some(reference) = get(source, kind) else { continue };
        sources += 1;
        let path = path.child(kind);
        errors.extend(match kind {
            "fieldRef" => field_ref(reference, &ENV_FIELDS, &path),
            "resourceFieldRef" => resource_ref(reference, false, &path),
            "fileKeyRef" => file_key_ref(reference, &path),
            _ => key_ref(reference, &path),
        });
    }
    if sources == 0 {
        errors.push(path.invalid(
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        ));
    } else if valued {
        errors.push(path.invalid("", "may not be specified when `value` is not empty"));
    } else if sources > 1 {
        errors.push(path.invalid("", "may not have more than one field specified at a time"));
    }
    errors
}

fn key_ref(reference: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    if str_at(reference, "name").is_empty() {
        errors.push(path.child("name").required(""));
    }
    let key = str_at(reference, "key");
    if key.is_empty() {
        errors.push(path.child("key").required(""));
    } else {
        errors.extend(names::config_key(key).into_iter().map(|text| path.child("key").invalid(key, text)));
    }
    errors
}

fn file_key_ref(reference: &Value, path: &Path) -> ErrorList {
    ["volumeName", "path", "key"]
        .into_iter()
        .filter(|field| str_at(reference, field).is_empty())
        .map(|field| path.child(field).required(""))
        .collect()
}

fn env_from(source: &Value, list: &Path, index: usize) -> ErrorList {
    let mut errors = ErrorList::new();
    let path = list.index(index);
    let prefix = str_at(source, "prefix");
    if !prefix.is_empty() {
        errors.extend(names::env_var_name(prefix).into_iter().map(|text| path.child("prefix").invalid(prefix, text)));
    }
    let mut sources = 0;
    for kind in ["configMapRef", "secretRef"] {
        if let Some(reference) = get(source, kind) {
            sources += 1;
            if str_at(reference, "name").is_empty() {
                errors.push(path.child(kind).child("name").required(""));
            }
        }
    }
    match sources {
        0 => errors.push(list.invalid("", "must specify one of: `configMapRef` or `secretRef`")),
        1 => {}
        _ => errors.push(list.invalid("", "may not have more than one field specified at a time")),
    }
    errors
}

/// What is wrong with a reference to a field of the pod.
pub fn field_ref(reference: &Value, allowed: &[&str], path: &Path) -> ErrorList {
    if str_at(reference, "apiVersion").is_empty() {
        return vec![path.child("apiVersion").required("")];
    }
    let field = str_at(reference, "fieldPath");
    if field.is_empty() {
        return vec![path.child("fieldPath").required("")];
    }
    if let Some((map, key)) = field.strip_suffix("']").and_then(|rest| rest.split_once("['")) {
        let key_errors = match map {
            "metadata.annotations" => names::qualified_name(&key.to_ascii_lowercase()),
            "metadata.labels" => names::qualified_name(key),
            _ => return vec![path.invalid(map, "does not support subscript")],
        };
        return key_errors.into_iter().map(|text| path.invalid(key, text)).collect();
    }
    if !ENV_FIELDS.contains(&field) && !KNOWN_FIELDS.contains(&field) {
        let why = format!("error converting fieldPath: field label not supported: {field}");
        return vec![path.child("fieldPath").invalid(field, why)];
    }
    if allowed.contains(&field) {
        return ErrorList::new();
    }
    vec![path.child("fieldPath").not_supported(field, allowed)]
}

/// What is wrong with a reference to a resource of a container. A file has to name the container.
pub fn resource_ref(reference: &Value, in_volume: bool, path: &Path) -> ErrorList {
    if in_volume && str_at(reference, "containerName").is_empty() {
        return vec![path.child("containerName").required("")];
    }
    let resource = str_at(reference, "resource");
    if resource.is_empty() {
        return vec![path.child("resource").required("")];
    }
    let huge = resource.starts_with("limits.hugepages-") || resource.starts_with("requests.hugepages-");
    if !RESOURCES.contains(&resource) && !huge {
        return vec![path.child("resource").not_supported(resource, &RESOURCES)];
    }
    let divisor = text_or_null(get(reference, "divisor"));
    let (ok, what): (bool, String) = if matches!(resource, "limits.cpu" | "requests.cpu") {
        (matches!(divisor.as_str(), "1m" | "1"), "1m and 1 are supported with the cpu resource".to_owned())
    } else {
        let name = if huge {
            "hugepages"
        } else if matches!(resource, "limits.memory" | "requests.memory") {
            "memory"
        } else {
            "local ephemeral storage"
        };
        (SIZES.contains(&divisor.as_str()), format!("{} are supported with the {name} resource", SIZES.join(", ")))
    };
    if ok || divisor.is_empty() || divisor == "0" {
        return ErrorList::new();
    }
    vec![path.child("divisor").invalid(divisor, format!("only divisor's values {what}"))]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn causes(container: &Value) -> Vec<String> {
        variables(container, &Path::new("c")).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_variable_has_a_name_and_one_source() {
        assert_eq!(causes(&json!({"env": [{"name": ""}]})), ["c.env[0].name: Required value"]);
        assert!(causes(&json!({"env": [{"name": "my.env-name with space"}]})).is_empty());
        assert_eq!(
            causes(
                &json!({"env": [{"name": "A", "value": "x", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]})
            ),
            ["c.env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty"]
        );
    }

    #[test]
    fn fields_are_those_of_the_downward_api() {
        let with = |field: &str| json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": field}}}]});
        assert!(causes(&with("status.podIP")).is_empty());
        assert!(causes(&with("metadata.labels['a/b']")).is_empty());
        assert!(
            causes(&with("spec.nope"))[0].contains("error converting fieldPath: field label not supported: spec.nope")
        );
        assert!(causes(&with("metadata.labels"))[0].contains("Unsupported value: \"metadata.labels\""));
    }

    #[test]
    fn divisors_fit_the_resource() {
        let with = |resource: &str, divisor: &str| {
            resource_ref(&json!({"resource": resource, "divisor": divisor}), false, &Path::new("r"))
        };
        assert!(with("limits.cpu", "1m").is_empty());
        assert!(with("limits.memory", "1Mi").is_empty());
        assert_eq!(with("limits.cpu", "1Mi")[0].path, "r.divisor");
        assert_eq!(with("limits.gpu", "1")[0].path, "r.resource");
    }

    #[test]
    fn sources_of_many_variables_are_named() {
        assert_eq!(causes(&json!({"envFrom": [{"prefix": "a=", "configMapRef": {"name": ""}}]})).len(), 2);
        assert_eq!(
            causes(&json!({"envFrom": [{}]})),
            ["c.envFrom: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`"]
        );
    }
}
