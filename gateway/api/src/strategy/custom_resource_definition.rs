//! `CustomResourceDefinition`: its names, versions and conversion. What its schemas must be like is said in
//! [`crate::validation::structural`].

use serde_json::{Map, Value, json};

use super::{BASE, bump_generation, differs, first_generation, keep_field, object_at, set_default, set_default_text};
use crate::custom::JsonPath;
use crate::field::{ErrorKind, ErrorList, FieldError, Path};
use crate::kind::{Part, Strategy};
use crate::validation::json::{flag, get, int, items, str_at, texts};
use crate::validation::{names, structural};

/// What is special about definitions.
pub const STRATEGY: Strategy = Strategy {
    default,
    prepare_create,
    prepare_update,
    validate,
    validate_update,
    unconditional_update: false,
    ..BASE
};

/// Holds a definition until its objects are gone.
pub const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";
const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
const HTTPS: i64 = 443;

fn default(object: &mut Value) {
    let Some(spec) = object_at(object, "spec") else { return };
    if let Some(names) = spec.get_mut("names").and_then(Value::as_object_mut) {
        let kind = names.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
        if !kind.is_empty() {
            set_default_text(names, "singular", &kind.to_lowercase());
            set_default_text(names, "listKind", &format!("{kind}List"));
        }
    }
    set_default(spec, "conversion", json!({ "strategy": "None" }));
    let service =
        spec.get_mut("conversion").and_then(|conversion| conversion.pointer_mut("/webhook/clientConfig/service"));
    if let Some(service) = service.and_then(Value::as_object_mut) {
        set_default(service, "port", HTTPS);
    }
}

fn prepare_create(object: &mut Value) {
    first_generation(object);
    let stored: Vec<Value> = storage_names(object).into_iter().map(Value::from).collect();
    let names = json!({ "plural": "", "kind": "" });
    let status = json!({ "conditions": null, "acceptedNames": names, "storedVersions": distinct(stored) });
    object["status"] = status;
}

fn distinct(values: Vec<Value>) -> Vec<Value> {
    values.into_iter().fold(Vec::new(), |mut seen, value| {
        if !seen.contains(&value) {
            seen.push(value);
        }
        seen
    })
}

fn storage_names(object: &Value) -> Vec<String> {
    let versions = object.get("spec").map_or(&[][..], |spec| items(spec, "versions"));
    versions
        .iter()
        .filter(|version| flag(version, "storage"))
        .map(|version| str_at(version, "name").to_owned())
        .collect()
}

fn prepare_update(new: &mut Value, old: &Value, part: Part) {
    if part == Part::Status {
        let status = new.get("status").cloned();
        let managed = new.pointer("/metadata/managedFields").cloned();
        *new = old.clone();
        if let (Some(object), Some(status)) = (new.as_object_mut(), status) {
            object.insert("status".to_owned(), status);
        }
        if let (Some(metadata), Some(managed)) = (new.get_mut("metadata").and_then(Value::as_object_mut), managed) {
            metadata.insert("managedFields".to_owned(), managed);
        }
        return;
    }
    keep_field(new, old, "status");
    for name in storage_names(new) {
        if let Some(stored) = new.pointer_mut("/status/storedVersions").and_then(Value::as_array_mut)
            && !stored.iter().any(|known| *known == *name)
        {
            stored.push(name.into());
        }
    }
    let changed = differs(new, old, "/spec");
    bump_generation(new, old, changed);
}

fn validate(object: &Value) -> ErrorList {
    let mut errors = check_name(object);
    errors.extend(check_spec(object, None));
    errors.extend(check_stored(object));
    errors
}

fn validate_update(new: &Value, old: &Value, part: Part) -> ErrorList {
    if part == Part::Status {
        return check_stored(new);
    }
    let mut errors = check_spec(new, Some(old));
    let conditions = old.get("status").map_or(&[][..], |status| items(status, "conditions"));
    let established = conditions
        .iter()
        .any(|condition| str_at(condition, "type") == "Established" && str_at(condition, "status") == "True");
    let mut immutable = |pointer: &str, path: Path| {
        if differs(new, old, pointer) {
            errors.push(path.invalid(new.pointer(pointer).cloned().unwrap_or_default(), "field is immutable"));
        }
    };
    let spec = Path::new("spec");
    immutable("/spec/group", spec.child("group"));
    if established {
        immutable("/spec/scope", spec.child("scope"));
        immutable("/spec/names/kind", spec.child("names").child("kind"));
        immutable("/spec/names/plural", spec.child("names").child("plural"));
    }
    errors.extend(check_stored(new));
    errors
}

fn check_name(object: &Value) -> ErrorList {
    let name = object.get("metadata").map_or("", |metadata| str_at(metadata, "name"));
    let spec = &object["spec"];
    let wanted = format!("{}.{}", str_at(&spec["names"], "plural"), str_at(spec, "group"));
    let path = Path::new("metadata");
    let given =
        [("generateName", object["metadata"].get("generateName").and_then(Value::as_str)), ("name", Some(name))];
    let wrong = given.into_iter().filter_map(|(field, value)| Some((field, value?)));
    let wrong = wrong.filter(|(field, value)| *value != wanted && (*field == "name" || !value.is_empty()));
    wrong.map(|(field, value)| path.child(field).invalid(value, "must be spec.names.plural+\".\"+spec.group")).collect()
}

fn check_spec(object: &Value, old: Option<&Value>) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, at) = (&object["spec"], Path::new("spec"));
    let group = str_at(spec, "group");
    if group.is_empty() {
        errors.push(at.child("group").required(""));
    } else {
        errors.extend(names::dns1123_subdomain(group).into_iter().map(|why| at.child("group").invalid(group, why)));
        if !group.contains('.') {
            errors.push(at.child("group").invalid(group, "should be a domain with at least one dot"));
        }
    }
    let scope = str_at(spec, "scope");
    match scope {
        "" => errors.push(at.child("scope").required("")),
        "Namespaced" | "Cluster" => {}
        other => errors.push(at.child("scope").not_supported(other, &["Cluster", "Namespaced"])),
    }
    check_versions(object, &at, &mut errors);
    check_names(&spec["names"], &at.child("names"), &mut errors);
    let hoisted = Hoisted::of(items(spec, "versions"));
    for (index, version) in items(spec, "versions").iter().enumerate() {
        let place = at.child("versions").index(index);
        if get(version, "schema").and_then(|schema| get(schema, "openAPIV3Schema")).is_none() {
            errors.push(place.child("schema").child("openAPIV3Schema").required(""));
        }
        check_version(version, index, &hoisted, &at, old, &mut errors);
    }
    check_conversion(spec, &at.child("conversion"), &mut errors);
    if flag(spec, "preserveUnknownFields") {
        errors.push(at.child("preserveUnknownFields").invalid(
            true,
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
        ));
    }
    errors
}

/// What all versions have in common stands, for Kubernetes, above them; so errors name that place.
#[allow(clippy::struct_excessive_bools, reason = "each is about another field")]
struct Hoisted {
    schema: bool,
    subresources: bool,
    columns: bool,
    selectable: bool,
}

impl Hoisted {
    fn of(versions: &[Value]) -> Self {
        let same = |field: &str| versions.windows(2).all(|pair| pair[0].get(field) == pair[1].get(field));
        Self {
            schema: same("schema"),
            subresources: same("subresources"),
            columns: same("additionalPrinterColumns"),
            selectable: same("selectableFields"),
        }
    }
}

fn check_versions(object: &Value, at: &Path, errors: &mut ErrorList) {
    let versions = items(&object["spec"], "versions");
    let place = at.child("versions");
    let mut names: Vec<&str> = Vec::new();
    let mut unique = true;
    for (index, version) in versions.iter().enumerate() {
        let name = str_at(version, "name");
        unique &= !names.contains(&name);
        names.push(name);
        for why in names::dns1035_label(name) {
            errors.push(place.index(index).child("name").invalid(name, why));
        }
        let warning = get(version, "deprecationWarning").and_then(Value::as_str);
        if warning.is_some() && !flag(version, "deprecated") {
            errors.push(
                place
                    .index(index)
                    .child("deprecationWarning")
                    .invalid(warning.unwrap_or_default(), "can only be set for deprecated versions"),
            );
        }
    }
    if let Some(first) = versions.first() {
        let name = str_at(first, "name");
        for why in names::dns1035_label(name) {
            errors.push(at.child("version").invalid(name, why));
        }
    }
    let shown = || go_versions(versions);
    if !unique {
        errors.push(place.invalid(shown(), "must contain unique version names"));
    }
    if versions.iter().filter(|version| flag(version, "storage")).count() != 1 {
        errors.push(place.invalid(shown(), "must have exactly one version marked as storage version"));
    }
}

/// Versions as Go prints its own form of them: what all have in common is left out.
fn go_versions(versions: &[Value]) -> Value {
    let shown = versions.iter().map(|version| {
        let mut fields = Map::new();
        fields.insert("Name".into(), str_at(version, "name").into());
        fields.insert("Served".into(), flag(version, "served").into());
        fields.insert("Storage".into(), flag(version, "storage").into());
        fields.insert("Deprecated".into(), flag(version, "deprecated").into());
        fields.insert("DeprecationWarning".into(), get(version, "deprecationWarning").cloned().unwrap_or_default());
        for name in ["Schema", "Subresources", "AdditionalPrinterColumns", "SelectableFields"] {
            fields.insert(name.into(), Value::Null);
        }
        Value::Object(fields)
    });
    shown.collect()
}

fn check_names(given: &Value, at: &Path, errors: &mut ErrorList) {
    let mut check = |field: &str, is_kind: bool| {
        let (name, place) = (str_at(given, field), at.child(field));
        if name.is_empty() {
            errors.push(place.required(""));
            return;
        }
        let lower = if is_kind { name.to_lowercase() } else { name.to_owned() };
        let prefix = if is_kind { "may have mixed case, but should otherwise match: " } else { "" };
        errors
            .extend(names::dns1035_label(&lower).into_iter().map(|why| place.invalid(name, format!("{prefix}{why}"))));
    };
    check("plural", false);
    check("singular", false);
    check("kind", true);
    check("listKind", true);
    if !str_at(given, "kind").is_empty() && str_at(given, "kind") == str_at(given, "listKind") {
        errors.push(at.child("listKind").invalid(str_at(given, "listKind"), "kind and listKind may not be the same"));
    }
    for field in ["shortNames", "categories"] {
        for (index, name) in texts(given, field).enumerate() {
            let place = at.child(field).index(index);
            errors.extend(names::dns1035_label(name).into_iter().map(|why| place.invalid(name, why)));
        }
    }
}

fn check_version(
    version: &Value,
    index: usize,
    hoisted: &Hoisted,
    at: &Path,
    old: Option<&Value>,
    errors: &mut ErrorList,
) {
    let own = at.child("versions").index(index);
    let above = |is_hoisted: bool| if is_hoisted { (at.clone(), index == 0) } else { (own.clone(), true) };
    let (place, first) = above(hoisted.schema);
    let place = place.child(if hoisted.schema { "validation" } else { "schema" }).child("openAPIV3Schema");
    if let Some(schema) = version.pointer("/schema/openAPIV3Schema").filter(|_| first) {
        // What was accepted once may stay as it is.
        let name = str_at(version, "name");
        let before = old.map_or(&[][..], |old| items(&old["spec"], "versions"));
        let same = before.iter().any(|old| str_at(old, "name") == name && old.get("schema") == version.get("schema"));
        if !same {
            errors.extend(structural::check(schema, &place));
        }
    }
    let (place, first) = above(hoisted.subresources);
    if let Some(scale) = version.pointer("/subresources/scale").filter(|scale| scale.is_object() && first) {
        let place = place.child("subresources").child("scale");
        check_scale_path(scale, "specReplicasPath", &[".spec"], true, &place, errors);
        check_scale_path(scale, "statusReplicasPath", &[".status"], true, &place, errors);
        check_scale_path(scale, "labelSelectorPath", &[".spec", ".status"], false, &place, errors);
    }
    let (place, first) = above(hoisted.columns);
    if first {
        for (column, index) in items(version, "additionalPrinterColumns").iter().zip(0..) {
            check_column(column, &place.child("additionalPrinterColumns").index(index), errors);
        }
    }
    let (place, first) = above(hoisted.selectable);
    if first {
        check_selectable(version, &place.child("selectableFields"), errors);
    }
}

fn check_scale_path(scale: &Value, field: &str, roots: &[&str], required: bool, at: &Path, errors: &mut ErrorList) {
    let (path, place) = (str_at(scale, field), at.child(field));
    if path.is_empty() {
        if required {
            errors.push(place.required(""));
        }
        return;
    }
    let simple = path.starts_with('.') && JsonPath::parse(path).is_ok_and(|path| path.pointer().is_some());
    if !simple {
        errors.push(place.invalid(path, "must be a simple json path starting with ."));
    } else if !roots.iter().any(|root| path.strip_prefix(root).is_some_and(|rest| rest.starts_with('.'))) {
        let names: Vec<String> = roots.iter().map(|root| (*root).to_owned()).collect();
        let wanted = if roots.len() > 1 { format!("either {}", names.join(" or ")) } else { names.join("") };
        errors.push(place.invalid(path, format!("should be a json path under {wanted}")));
    }
}

fn check_column(column: &Value, at: &Path, errors: &mut ErrorList) {
    if str_at(column, "name").is_empty() {
        errors.push(at.child("name").required(""));
    }
    match str_at(column, "type") {
        "" => errors.push(at.child("type").required(format!("must be one of {}", COLUMN_TYPES.join(",")))),
        known if COLUMN_TYPES.contains(&known) => {}
        other => errors.push(at.child("type").invalid(other, format!("must be one of {}", COLUMN_TYPES.join(",")))),
    }
    let path = str_at(column, "jsonPath");
    let place = at.child("JSONPath");
    if path.is_empty() {
        errors.push(place.required(""));
    } else if !path.starts_with('.') || JsonPath::parse(path).is_err() {
        errors.push(place.invalid(path, "must be a simple json path starting with ."));
    }
}

fn check_selectable(version: &Value, at: &Path, errors: &mut ErrorList) {
    const MOST: usize = 8;
    let fields = items(version, "selectableFields");
    if fields.len() > MOST {
        errors.push(FieldError {
            kind: ErrorKind::TooMany,
            path: at.to_string(),
            value: fields.len().into(),
            detail: format!("must have at most {MOST} items"),
        });
    }
    let mut seen: Vec<&str> = Vec::new();
    for (index, field) in fields.iter().enumerate() {
        let (path, place) = (str_at(field, "jsonPath"), at.index(index).child("jsonPath"));
        if path.is_empty() {
            errors.push(place.required(""));
            continue;
        }
        let pointer = JsonPath::parse(path).ok().and_then(|path| path.pointer()).filter(|_| path.starts_with('.'));
        let Some(pointer) = pointer else {
            errors.push(place.invalid(path, "is an invalid path: does not refer to a valid field"));
            continue;
        };
        let schema = pointer.split('/').skip(1).try_fold(&version["schema"]["openAPIV3Schema"], |schema, name| {
            schema.get("properties").and_then(|fields| fields.get(name))
        });
        match schema.map(|schema| str_at(schema, "type")) {
            _ if path.starts_with(".metadata") => {
                errors.push(place.invalid(path, "must not point to fields in metadata"));
            }
            None => errors.push(place.invalid(path, "is an invalid path: does not refer to a valid field")),
            Some("string" | "integer" | "boolean") => {}
            Some(_) => errors.push(place.invalid(
                path,
                "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are \
                 allowed.",
            )),
        }
        if seen.contains(&path) {
            errors.push(place.duplicate(path));
        }
        seen.push(path);
    }
}

fn check_conversion(spec: &Value, at: &Path, errors: &mut ErrorList) {
    let Some(conversion) = get(spec, "conversion") else { return };
    let strategy = str_at(conversion, "strategy");
    let webhook = get(conversion, "webhook");
    match strategy {
        "" => errors.push(at.child("strategy").required("")),
        "None" => {
            if webhook.and_then(|webhook| get(webhook, "clientConfig")).is_some() {
                errors.push(
                    at.child("webhookClientConfig").forbidden("should not be set when strategy is not set to Webhook"),
                );
            }
            if webhook.is_some_and(|webhook| !items(webhook, "conversionReviewVersions").is_empty()) {
                errors.push(
                    at.child("conversionReviewVersions")
                        .forbidden("should not be set when strategy is not set to Webhook"),
                );
            }
        }
        "Webhook" => {
            let client = webhook.and_then(|webhook| get(webhook, "clientConfig"));
            let place = at.child("webhookClientConfig");
            match client {
                None => errors.push(place.required("required when strategy is set to Webhook")),
                Some(client) => check_client(client, &place, errors),
            }
            let versions: Vec<&str> =
                webhook.map(|webhook| texts(webhook, "conversionReviewVersions").collect()).unwrap_or_default();
            let place = at.child("conversionReviewVersions");
            if versions.is_empty() {
                errors.push(place.required(""));
            } else if !versions.iter().any(|version| matches!(*version, "v1" | "v1beta1")) {
                errors.push(place.invalid(json!(versions), "must include at least one of v1, v1beta1"));
            }
        }
        other => errors.push(at.child("strategy").not_supported(other, &["None", "Webhook"])),
    }
}

/// Where a webhook is: an address or a Service, not both.
fn check_client(client: &Value, at: &Path, errors: &mut ErrorList) {
    let url = get(client, "url").and_then(Value::as_str);
    let service = get(client, "service");
    match (url, service) {
        (Some(_), Some(_)) | (None, None) => {
            errors.push(at.required("exactly one of url or service is required"));
        }
        (Some(url), None) if !url.starts_with("https://") => {
            errors.push(at.child("url").invalid(
                url.split("://").next().filter(|_| url.contains("://")).unwrap_or_default(),
                "'https' is the only allowed URL scheme; desired format: https://host[/path]",
            ));
        }
        (Some(_), None) => {}
        (None, Some(service)) => {
            for field in ["name", "namespace"] {
                if str_at(service, field).is_empty() {
                    errors.push(at.child("service").child(field).required(format!("service {field} is required")));
                }
            }
            if let Some(port) = int(service, "port").filter(|port| !(1..=65535).contains(port)) {
                errors.push(
                    at.child("service")
                        .child("port")
                        .invalid(port, "port is not valid: must be between 1 and 65535, inclusive"),
                );
            }
        }
    }
}

fn check_stored(object: &Value) -> ErrorList {
    let at = Path::new("status").child("storedVersions");
    let stored: Vec<&str> =
        object.get("status").map(|status| texts(status, "storedVersions").collect()).unwrap_or_default();
    if stored.is_empty() {
        return vec![at.invalid(Value::Null, "must have at least one stored version")];
    }
    let mut errors = ErrorList::new();
    let mut left: Vec<(usize, &str)> = stored.iter().copied().enumerate().collect();
    for version in items(&object["spec"], "versions") {
        let name = str_at(version, "name");
        let known = left.iter().position(|(_, stored)| *stored == name);
        if flag(version, "storage") && known.is_none() {
            errors.push(at.invalid(json!(stored), format!("must have the storage version {name}")));
        }
        if let Some(known) = known {
            left.remove(known);
        }
    }
    for (index, name) in left {
        errors.push(at.index(index).invalid(name, "missing from spec.versions; v1 was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in v1 and removes v1 from status.storedVersions".replace("v1", name)));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition() -> Value {
        json!({"metadata": {"name": "xs.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "xs", "kind": "X"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]}})
    }

    fn errors(change: impl FnOnce(&mut Value)) -> Vec<String> {
        let mut object = definition();
        change(&mut object);
        default(&mut object);
        prepare_create(&mut object);
        validate(&object).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names_are_filled_in_and_checked() {
        let mut object = definition();
        default(&mut object);
        assert_eq!(object["spec"]["names"], json!({"plural": "xs", "kind": "X", "singular": "x", "listKind": "XList"}));
        assert!(errors(|_| ()).is_empty());
        assert_eq!(
            errors(|object| object["spec"]["names"]["kind"] = json!("")),
            [
                "spec.names.singular: Required value",
                "spec.names.kind: Required value",
                "spec.names.listKind: Required value"
            ]
        );
        assert_eq!(
            errors(|object| object["spec"]["scope"] = json!("X")),
            ["spec.scope: Unsupported value: \"X\": supported values: \"Cluster\", \"Namespaced\""]
        );
        assert_eq!(
            errors(|object| object["spec"]["conversion"] = json!({"strategy": "Webhook"})),
            [
                "spec.conversion.webhookClientConfig: Required value: required when strategy is set to Webhook",
                "spec.conversion.conversionReviewVersions: Required value",
            ]
        );
    }

    #[test]
    fn one_version_is_stored() {
        let found = errors(|object| object["spec"]["versions"][0]["storage"] = json!(false));
        assert!(found[0].ends_with("must have exactly one version marked as storage version"), "{found:?}");
        assert_eq!(found[1], "status.storedVersions: Invalid value: null: must have at least one stored version");
    }

    #[test]
    fn paths_of_a_single_version_stand_above_it() {
        let found = errors(|object| {
            object["spec"]["versions"][0]["subresources"] =
                json!({"scale": {"specReplicasPath": ".x", "statusReplicasPath": ".status.y"}});
        });
        assert_eq!(
            found,
            ["spec.subresources.scale.specReplicasPath: Invalid value: \".x\": should be a json path under .spec"]
        );
    }

    #[test]
    fn established_names_stay() {
        let mut old = definition();
        default(&mut old);
        prepare_create(&mut old);
        old["status"]["conditions"] = json!([{"type": "Established", "status": "True"}]);
        let mut new = old.clone();
        new["spec"]["scope"] = json!("Cluster");
        let found: Vec<String> = validate_update(&new, &old, Part::Main).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["spec.scope: Invalid value: \"Cluster\": field is immutable"]);
    }
}
