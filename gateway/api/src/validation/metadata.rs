//! Metadata, which every kind has: names, labels, annotations, owners, finalizers.

use serde_json::{Map, Value};

use crate::field::{ErrorList, FieldError, Path};
use crate::kind::{Kind, Scope};
use crate::validation::json::{entries, flag, get, int, items, str_at, texts};
use crate::validation::names;

/// All annotations of an object together: 256 KiB.
const ANNOTATIONS_MAX_BYTES: usize = 256 << 10;

/// Finalizers that need no domain.
const STANDARD_FINALIZERS: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];

/// What is wrong with the metadata of a new object of a kind.
pub fn validate_create(kind: &Kind, object: &Value) -> ErrorList {
    let metadata = object.get("metadata").unwrap_or(&Value::Null);
    validate(metadata, kind.scope == Scope::Namespaced, kind.strategy.validate_name, &Path::new("metadata"))
}

/// What is wrong with a change of the metadata (`new`, `old`) of an object.
pub fn validate_update(_kind: &Kind, new: &Value, old: &Value) -> ErrorList {
    let path = Path::new("metadata");
    let (new, old) = (new.get("metadata").unwrap_or(&Value::Null), old.get("metadata").unwrap_or(&Value::Null));
    let mut errors = ErrorList::new();
    if get(old, "deletionTimestamp").is_some() {
        errors.extend(no_new_finalizers(new, old, &path.child("finalizers")));
    }
    if str_at(new, "resourceVersion").is_empty() {
        errors.push(path.child("resourceVersion").invalid("", "must be specified for an update"));
    }
    if int(new, "generation").unwrap_or(0) < int(old, "generation").unwrap_or(0) {
        errors.push(path.child("generation").invalid(int(new, "generation").unwrap_or(0), "must not be decremented"));
    }
    for field in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        errors.extend(immutable(get(new, field), get(old, field), &path.child(field)));
    }
    errors.extend(labels(new, "labels", &path.child("labels")));
    errors.extend(annotations(new, &path.child("annotations")));
    errors.extend(owner_references(new, &path.child("ownerReferences")));
    errors.extend(finalizers(new, &path.child("finalizers")));
    errors
}

/// What is wrong with some metadata; a template's has no name to check.
pub fn validate(metadata: &Value, namespaced: bool, validate_name: fn(&str) -> Vec<String>, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let prefix = str_at(metadata, "generateName");
    if !prefix.is_empty() {
        let field = path.child("generateName");
        errors.extend(validate_name(&names::generated(prefix)).into_iter().map(|text| field.invalid(prefix, text)));
    }
    let name = str_at(metadata, "name");
    if name.is_empty() {
        errors.push(path.child("name").required("name or generateName is required"));
    } else {
        errors.extend(validate_name(name).into_iter().map(|text| path.child("name").invalid(name, text)));
    }
    let namespace = str_at(metadata, "namespace");
    let field = path.child("namespace");
    if !namespaced {
        if !namespace.is_empty() {
            errors.push(field.forbidden("not allowed on this type"));
        }
    } else if namespace.is_empty() {
        errors.push(field.required(""));
    } else {
        errors.extend(names::dns1123_label(namespace).into_iter().map(|text| field.invalid(namespace, text)));
    }
    errors.extend(non_negative(metadata, "generation", path));
    errors.extend(labels(metadata, "labels", &path.child("labels")));
    errors.extend(annotations(metadata, &path.child("annotations")));
    errors.extend(owner_references(metadata, &path.child("ownerReferences")));
    errors.extend(finalizers(metadata, &path.child("finalizers")));
    errors
}

/// What is wrong with a map of labels at `field`. The path is the map's: errors don't name the key in it.
pub fn labels(value: &Value, field: &str, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for (key, value) in entries(value, field) {
        errors.extend(label_key(key, path));
        let value = value.as_str().unwrap_or("");
        errors.extend(names::label_value(value).into_iter().map(|text| path.invalid(value, text)));
    }
    errors
}

/// What is wrong with the key of a label or a taint.
pub fn label_key(key: &str, path: &Path) -> ErrorList {
    names::qualified_name(key).into_iter().map(|text| path.invalid(key, text)).collect()
}

/// What is wrong with the annotations of some metadata (also of a template's).
pub fn annotations(metadata: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut size = 0;
    for (key, value) in entries(metadata, "annotations") {
        errors.extend(
            names::qualified_name(&key.to_ascii_lowercase()).into_iter().map(|text| path.invalid(key.as_str(), text)),
        );
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_MAX_BYTES {
        errors.push(path.too_long(ANNOTATIONS_MAX_BYTES));
    }
    errors
}

/// What is wrong with the finalizers of some metadata.
fn finalizers(metadata: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for name in texts(metadata, "finalizers") {
        errors.extend(label_key(name, path));
    }
    let has = |wanted| texts(metadata, "finalizers").any(|name| name == wanted);
    if has("orphan") && has("foregroundDeletion") {
        errors.push(
            path.invalid(metadata["finalizers"].clone(), "finalizer orphan and foregroundDeletion cannot be both set"),
        );
    }
    for (index, name) in texts(metadata, "finalizers").enumerate() {
        errors.extend(unqualified(name, &path.index(index)));
    }
    errors
}

/// What is wrong with one finalizer, an object's or a namespace's.
pub fn finalizer(name: &str, path: &Path) -> ErrorList {
    let mut errors = label_key(name, path);
    errors.extend(unqualified(name, path));
    errors
}

/// A finalizer without a domain must be one that Kubernetes knows.
fn unqualified(name: &str, path: &Path) -> Option<FieldError> {
    let known = name.contains('/') || STANDARD_FINALIZERS.contains(&name);
    (!known).then(|| path.invalid(name, "name is neither a standard finalizer name nor is it fully qualified"))
}

fn no_new_finalizers(new: &Value, old: &Value, path: &Path) -> ErrorList {
    let mut added: Vec<&str> =
        texts(new, "finalizers").filter(|name| !texts(old, "finalizers").any(|before| before == *name)).collect();
    added.sort_unstable();
    if added.is_empty() {
        return ErrorList::new();
    }
    let list: Vec<String> = added.iter().map(|name| format!("{name:?}")).collect();
    vec![path.forbidden(format!(
        "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
        list.join(", ")
    ))]
}

fn owner_references(metadata: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let owners = items(metadata, "ownerReferences");
    let mut controller: Option<&Value> = None;
    for owner in owners {
        if str_at(owner, "apiVersion").is_empty() {
            errors.push(path.child("apiVersion").invalid("", "version must not be empty"));
        }
        for field in ["kind", "name", "uid"] {
            if str_at(owner, field).is_empty() {
                errors.push(path.child(field).invalid("", "must not be empty"));
            }
        }
        if str_at(owner, "apiVersion") == "v1" && str_at(owner, "kind") == "Event" {
            errors.push(path.invalid(shown_owner(owner), "/v1, Kind=Event is disallowed from being an owner"));
        }
        if flag(owner, "controller") {
            if let Some(first) = controller {
                let one = |owner: &Value| format!("{}/{}", str_at(owner, "kind"), str_at(owner, "name"));
                errors.push(path.invalid(
                    owners.iter().map(shown_owner).collect::<Vec<_>>(),
                    format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {} and {}",
                        one(first),
                        one(owner)
                    ),
                ));
            } else {
                controller = Some(owner);
            }
        }
    }
    errors
}

/// An owner reference with its fields in the order in which Kubernetes prints them.
fn shown_owner(owner: &Value) -> Value {
    let mut shown = Map::new();
    for field in ["apiVersion", "kind", "name", "uid"] {
        shown.insert(field.to_owned(), Value::from(str_at(owner, field)));
    }
    for field in ["controller", "blockOwnerDeletion"] {
        if let Some(value) = get(owner, field) {
            shown.insert(field.to_owned(), value.clone());
        }
    }
    Value::Object(shown)
}

/// A field that an update may not change.
pub fn immutable(new: Option<&Value>, old: Option<&Value>, path: &Path) -> ErrorList {
    if new == old {
        return ErrorList::new();
    }
    vec![path.invalid(new.cloned().unwrap_or(Value::Null), "field is immutable")]
}

/// A number that may not be negative, if it is there.
pub fn non_negative(value: &Value, field: &str, path: &Path) -> ErrorList {
    match int(value, field) {
        Some(number) if number < 0 => vec![path.child(field).invalid(number, "must be greater than or equal to 0")],
        _ => ErrorList::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn messages(metadata: &Value) -> Vec<String> {
        validate(metadata, true, names::dns1123_subdomain, &Path::new("metadata"))
            .iter()
            .map(|error| format!("{}: {}", error.path, error.detail))
            .collect()
    }

    #[test]
    fn a_name_or_a_prefix_is_required() {
        assert_eq!(messages(&json!({"namespace": "n"})), ["metadata.name: name or generateName is required"]);
        assert!(messages(&json!({"namespace": "n", "name": "a-x1", "generateName": "a-"})).is_empty());
    }

    #[test]
    fn label_errors_are_at_the_map() {
        let errors = messages(&json!({"namespace": "n", "name": "a", "labels": {"a b": "x", "c": "x y"}}));
        assert_eq!(errors.len(), 2);
        assert!(errors.iter().all(|error| error.starts_with("metadata.labels: ")), "{errors:?}");
        let errors = messages(&json!({"namespace": "n", "name": "a", "labels": {"b/c/d": "x"}}));
        assert!(errors[0].contains("with an optional DNS subdomain prefix and '/'"), "{errors:?}");
    }

    #[test]
    fn annotations_have_a_total_size() {
        let big = "x".repeat(ANNOTATIONS_MAX_BYTES);
        assert_eq!(
            messages(&json!({"namespace": "n", "name": "a", "annotations": {"a": big}})),
            ["metadata.annotations: may not be more than 262144 bytes"]
        );
    }

    #[test]
    fn owners_are_complete_and_one_controls() {
        let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "", "uid": ""});
        assert_eq!(
            messages(&json!({"namespace": "n", "name": "a", "ownerReferences": [owner]})),
            ["metadata.ownerReferences.name: must not be empty", "metadata.ownerReferences.uid: must not be empty"]
        );
        let one = json!({"apiVersion": "v1", "kind": "Pod", "name": "a", "uid": "1", "controller": true});
        let two = json!({"apiVersion": "v1", "kind": "Pod", "name": "b", "uid": "2", "controller": true});
        assert_eq!(
            messages(&json!({"namespace": "n", "name": "a", "ownerReferences": [one, two]})),
            ["metadata.ownerReferences: Only one reference can have Controller set to true. Found \"true\" in \
              references for Pod/a and Pod/b"]
        );
    }

    #[test]
    fn finalizers_are_standard_or_qualified() {
        assert!(
            messages(&json!({"namespace": "n", "name": "a", "finalizers": ["orphan", "example.com/x"]})).is_empty()
        );
        assert_eq!(
            messages(&json!({"namespace": "n", "name": "a", "finalizers": ["nope"]})),
            ["metadata.finalizers[0]: name is neither a standard finalizer name nor is it fully qualified"]
        );
    }

    #[test]
    fn a_deleted_object_gets_no_new_finalizers() {
        let old = json!({"finalizers": ["a.b/c"]});
        let new = json!({"finalizers": ["a.b/c", "x.y/z"]});
        let errors = no_new_finalizers(&new, &old, &Path::new("metadata"));
        assert!(errors[0].detail.ends_with("found new finalizers []string{\"x.y/z\"}"));
    }
}
