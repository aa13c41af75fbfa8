//! Custom resources: kinds that are made at run time, one for each served version of a `CustomResourceDefinition`.

mod columns;
pub(crate) mod formats;
mod openapi;
mod path;
mod prune;
pub(crate) mod rules;
mod structural;
mod validate;

use std::sync::Arc;

use serde_json::{Value, json};

use crate::cel::{self, Budget};
use crate::field::{ErrorKind, ErrorList, FieldError};
use crate::intern;
use crate::kind::{Kind, Part, ScalePaths, Scope, Strategy, Subresource};
use crate::schema::{self, Schema};
use crate::strategy::{self, BASE};
use crate::table;
pub use columns::CustomColumn;
pub use path::JsonPath;
pub use prune::{default, prune};
use rules::Rules;
pub use structural::{Additional, Structural};
use validate::Place;

/// In the order of discovery.
const VERBS: &[&str] = &["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];
const PART_VERBS: &[&str] = &["get", "patch", "update"];
/// What errors of this sort are found keeps rules from being checked: they would stumble over the same.
const BLOCKING: [ErrorKind; 5] =
    [ErrorKind::NotSupported, ErrorKind::Required, ErrorKind::TooLong, ErrorKind::TooMany, ErrorKind::TypeInvalid];

/// What sets the kind of a version of a custom resource apart from one that is built in.
#[derive(Debug)]
pub struct Custom {
    /// All served versions.
    pub versions: Vec<String>,
    /// The version in which objects are stored.
    pub storage_version: String,
    /// Whether the definition goes away: then there are no new objects.
    pub terminating: bool,
    /// The kind of lists, `CronTabList`.
    pub list_kind: String,
    /// How objects come from one version into another; none if they just change their apiVersion.
    pub conversion: Option<Arc<Value>>,
    /// What clients are told of a version that goes away.
    pub deprecation: Option<String>,
    structural: Arc<Structural>,
    stored: Arc<Structural>,
    /// The schema as patches and field ownership see it.
    schema: Schema,
    rules: Rules,
    has_status: bool,
    scale: Option<Scale>,
    columns: Vec<CustomColumn>,
    /// Fields that selectors may use.
    selectable: Vec<(String, JsonPath)>,
    /// The schema as it was written.
    openapi: Value,
}

/// Where the scale subresource finds its numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Scale {
    /// As they are written, `.spec.replicas`, and as JSON pointers.
    spec_replicas: (String, String),
    status_replicas: (String, String),
    selector: Option<(String, String)>,
}

impl Scale {
    fn read(scale: &Value) -> Self {
        let pointer = |name: &str| {
            let path = scale.get(name).and_then(Value::as_str).filter(|path| !path.is_empty())?;
            Some((path.to_owned(), JsonPath::parse(path).ok()?.pointer()?))
        };
        Self {
            spec_replicas: pointer("specReplicasPath").unwrap_or_default(),
            status_replicas: pointer("statusReplicasPath").unwrap_or_default(),
            selector: pointer("labelSelectorPath"),
        }
    }
}

/// The kinds of a definition: one for each served version, whatever its status.
pub fn kinds_of(definition: &Value) -> Vec<Arc<Kind>> {
    let spec = &definition["spec"];
    let versions = spec["versions"].as_array().map_or(&[][..], Vec::as_slice);
    let flag = |version: &Value, name: &str| version[name].as_bool().unwrap_or(false);
    let Some(stored) = versions.iter().find(|version| flag(version, "storage")) else { return Vec::new() };
    let stored_schema = Arc::new(Structural::read(&stored["schema"]["openAPIV3Schema"]));
    let served: Vec<&Value> = versions.iter().filter(|version| flag(version, "served")).collect();
    let names: Vec<String> = served.iter().map(|version| text(version, "name").to_owned()).collect();
    let kinds = served.into_iter().map(|version| {
        let openapi = version["schema"]["openAPIV3Schema"].clone();
        let structural = Arc::new(Structural::read(&openapi));
        let scale = version.pointer("/subresources/scale").filter(|scale| scale.is_object()).map(Scale::read);
        let selectable = version["selectableFields"].as_array().into_iter().flatten();
        let custom = Custom {
            versions: names.clone(),
            storage_version: text(stored, "name").to_owned(),
            terminating: definition["terminating"] == true,
            list_kind: text(&spec["names"], "listKind").to_owned(),
            conversion: (spec["conversion"]["strategy"] == "Webhook").then(|| Arc::new(spec["conversion"].clone())),
            deprecation: deprecation(spec, version),
            schema: schema::custom::of(&structural),
            rules: Rules::of(&structural),
            structural,
            stored: Arc::clone(&stored_schema),
            has_status: version.pointer("/subresources/status").is_some_and(Value::is_object),
            scale,
            columns: CustomColumn::of_version(version),
            selectable: selectable
                .filter_map(|field| {
                    let path = text(field, "jsonPath");
                    Some((path.strip_prefix('.')?.to_owned(), JsonPath::parse(path).ok()?))
                })
                .collect(),
            openapi,
        };
        Arc::new(kind(spec, text(version, "name"), custom))
    });
    kinds.collect()
}

fn kind(spec: &Value, version: &str, custom: Custom) -> Kind {
    let names = &spec["names"];
    let (group, version) = (intern::text(text(spec, "group")), intern::text(version));
    let list = |name: &str| intern::texts(names[name].as_array().into_iter().flatten().filter_map(Value::as_str));
    let name = intern::text(text(names, "kind"));
    let mut subresources = Vec::new();
    if custom.has_status {
        subresources.push(Subresource { name: "status", gvk: (group, version, name), verbs: PART_VERBS });
    }
    if custom.scale.is_some() {
        subresources.push(Subresource { name: "scale", gvk: ("autoscaling", "v1", "Scale"), verbs: PART_VERBS });
    }
    let domain: Vec<&str> = group.split('.').rev().collect();
    Kind {
        group,
        version,
        kind: name,
        plural: intern::text(text(names, "plural")),
        singular: intern::text(text(names, "singular")),
        short_names: list("shortNames"),
        categories: list("categories"),
        scope: if text(spec, "scope") == "Cluster" { Scope::Cluster } else { Scope::Namespaced },
        verbs: VERBS,
        subresources: intern::subresources(&subresources),
        columns: table::DEFAULT_COLUMNS,
        schema: intern::text(&format!("{}.{version}.{name}", domain.join("."))),
        stored_as: None,
        strategy: Strategy { unconditional_update: false, ..BASE },
        custom: Some(Arc::new(custom)),
    }
}

fn deprecation(spec: &Value, version: &Value) -> Option<String> {
    if version["deprecated"] != true {
        return None;
    }
    let told = text(version, "deprecationWarning");
    let all = || {
        let name = format!("{}/{}", text(spec, "group"), text(version, "name"));
        format!("{name} {} is deprecated", text(&spec["names"], "kind"))
    };
    Some(if told.is_empty() { all() } else { told.to_owned() })
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

impl Custom {
    /// The schema as patches and field ownership see it.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// The schema as pruning and validation see it.
    pub fn structural(&self) -> &Structural {
        &self.structural
    }

    /// The columns of Tables, behind the name.
    pub(crate) fn columns(&self) -> &[CustomColumn] {
        &self.columns
    }

    /// The schema as documents show it, complete with what every object has.
    pub(crate) fn openapi(&self) -> &Value {
        &self.openapi
    }

    /// Brings an object that was stored (or converted) into the shape of this version.
    pub fn read(&self, object: &mut Value) {
        prune(&self.structural, object);
        default(&self.structural, object);
    }

    /// Drops what the stored version doesn't know.
    pub fn prune_for_storage(&self, object: &mut Value) {
        if !Arc::ptr_eq(&self.stored, &self.structural) && *self.stored != *self.structural {
            prune(&self.stored, object);
        }
    }

    pub(crate) fn default(&self, object: &mut Value) {
        default(&self.structural, object);
    }

    pub(crate) fn prepare_create(&self, object: &mut Value) {
        if let Some(fields) = object.as_object_mut().filter(|_| self.has_status) {
            fields.shift_remove("status");
        }
        strategy::first_generation(object);
    }

    pub(crate) fn prepare_update(&self, new: &mut Value, old: &Value, part: Part) {
        if part == Part::Status {
            strategy::keep_all_but_status(new, old, &["managedFields"]);
            return;
        }
        if self.has_status {
            strategy::keep_field(new, old, "status");
        }
        let content = |object: &Value| {
            let mut object = object.clone();
            if let Some(fields) = object.as_object_mut() {
                fields.shift_remove("metadata");
                if self.has_status {
                    fields.shift_remove("status");
                }
            }
            object
        };
        let changed = content(new) != content(old);
        strategy::bump_generation(new, old, changed);
    }

    pub(crate) fn validate(&self, object: &Value) -> ErrorList {
        self.check(object, None, Part::Main)
    }

    pub(crate) fn validate_update(&self, new: &Value, old: &Value, part: Part) -> ErrorList {
        self.check(new, Some(old), part)
    }

    /// That rules are not looked at while there are such errors; none where there are no rules, or no such errors.
    pub fn unchecked(&self, errors: &[FieldError]) -> Option<FieldError> {
        let blocked = !self.rules.is_empty() && errors.iter().any(|error| BLOCKING.contains(&error.kind));
        blocked.then(|| FieldError {
            kind: ErrorKind::Invalid,
            path: "<nil>".to_owned(),
            value: Value::Null,
            detail: "some validation rules were not checked because the object was invalid; correct the existing \
                     errors to complete validation"
                .to_owned(),
        })
    }

    fn check(&self, object: &Value, old: Option<&Value>, part: Part) -> ErrorList {
        let mut errors = ErrorList::new();
        match (part, self.structural.properties.get("status"), object.get("status")) {
            (Part::Status, Some(schema), Some(status)) => {
                let before = old.and_then(|old| old.get("status"));
                validate::check(schema, status, before, &Place::part("status"), &mut errors);
            }
            (Part::Status, ..) => {}
            _ => validate::check(&self.structural, object, old, &Place::root(), &mut errors),
        }
        if let Some(scale) = &self.scale {
            check_scale(scale, object, &mut errors);
        }
        validate::check_embedded(&self.structural, object, &Place::root(), true, &mut errors);
        validate::check_lists(&self.structural, object, old, &Place::root(), &mut errors);
        if self.rules.is_empty() {
            return errors;
        }
        if let Some(note) = self.unchecked(&errors) {
            errors.push(note);
            return errors;
        }
        let mut budget = Budget::new(cel::PER_OBJECT);
        self.rules.check(&self.structural, object, old, &Place::root(), &mut budget, &mut errors);
        errors
    }

    pub(crate) fn field(&self, object: &Value, field: &str) -> Option<String> {
        if let Some((_, path)) = self.selectable.iter().find(|(name, _)| name == field) {
            let found = path.find(object).into_iter().next();
            return Some(match found {
                Some(Value::String(text)) => text.clone(),
                Some(Value::Null) | None => String::new(),
                Some(other) => other.to_string(),
            });
        }
        strategy::metadata_field(object, field)
    }

    pub(crate) fn scale_paths(&self) -> ScalePaths<'_> {
        let scale = self.scale.as_ref();
        ScalePaths {
            spec_replicas: scale.map_or("", |scale| &scale.spec_replicas.1),
            status_replicas: scale.map_or("", |scale| &scale.status_replicas.1),
            selector: scale.and_then(|scale| scale.selector.as_ref()).map(|(_, pointer)| pointer.as_str()),
        }
    }
}

/// The numbers of the scale subresource must be numbers.
fn check_scale(scale: &Scale, object: &Value, errors: &mut ErrorList) {
    let mut told = |path: &str, value: Value, detail: String| {
        errors.push(FieldError { kind: ErrorKind::Invalid, path: path.to_owned(), value, detail });
    };
    for (path, pointer) in [&scale.spec_replicas, &scale.status_replicas] {
        match object.pointer(pointer) {
            None | Some(Value::Null) => {}
            Some(Value::Number(number)) if number.is_i64() => match number.as_i64().unwrap_or(0) {
                replicas if replicas < 0 => told(path, replicas.into(), "should be a non-negative integer".to_owned()),
                replicas if replicas > i64::from(i32::MAX) => {
                    told(path, replicas.into(), format!("should be less than or equal to {}", i32::MAX));
                }
                _ => {}
            },
            Some(other) => told(path, json!(0), accessor_error(path, other, "int64")),
        }
    }
    if let Some((path, pointer)) = &scale.selector {
        match object.pointer(pointer) {
            None | Some(Value::Null | Value::String(_)) => {}
            Some(other) => told(path, json!(""), accessor_error(path, other, "string")),
        }
    }
}

fn accessor_error(path: &str, value: &Value, wanted: &str) -> String {
    let (shown, go_type) = match value {
        Value::String(text) => (text.clone(), "string"),
        Value::Bool(_) => (value.to_string(), "bool"),
        Value::Number(number) if number.is_i64() => (value.to_string(), "int64"),
        Value::Number(_) => (value.to_string(), "float64"),
        Value::Array(_) => (value.to_string(), "[]interface {}"),
        _ => (value.to_string(), "map[string]interface {}"),
    };
    format!("{path} accessor error: {shown} is of the type {go_type}, expected {wanted}")
}

/// What is wrong with a default as a value of its schema. `at` is where it stands.
pub(crate) fn check_default(schema: &Structural, value: &Value, at: &str) -> ErrorList {
    let mut errors = ErrorList::new();
    let place = Place { field: at.to_owned(), name: at.to_owned() };
    validate::check(schema, value, None, &place, &mut errors);
    errors
}

/// Kubernetes' order of versions: `v2`, `v1`, `v2beta1`, `v1beta2`, `v1alpha1`, then others by name.
pub fn version_order(a: &str, b: &str) -> std::cmp::Ordering {
    let rank = |version: &str| -> Option<(u8, u64, u64)> {
        let rest = version.strip_prefix('v')?;
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major: u64 = rest[..end].parse().ok()?;
        let minor = |text: &str| text.parse::<u64>().ok();
        match &rest[end..] {
            "" => Some((2, major, 0)),
            stage => stage
                .strip_prefix("beta")
                .and_then(minor)
                .map(|minor| (1, major, minor))
                .or_else(|| stage.strip_prefix("alpha").and_then(minor).map(|minor| (0, major, minor))),
        }
    };
    match (rank(a), rank(b)) {
        (Some(a), Some(b)) => b.cmp(&a),
        (Some(_), None) => std::cmp::Ordering::Less,
        (None, Some(_)) => std::cmp::Ordering::Greater,
        (None, None) => a.cmp(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition() -> Value {
        json!({"spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "xs", "singular": "x", "kind": "X", "listKind": "XList", "shortNames": ["xx"]},
            "versions": [
                {"name": "v1", "served": true, "storage": true, "subresources": {"status": {},
                    "scale": {"specReplicasPath": ".spec.n", "statusReplicasPath": ".status.n"}},
                 "selectableFields": [{"jsonPath": ".spec.color"}],
                 "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": {"n": {"type": "integer"}, "color": {"type": "string"}}},
                    "status": {"type": "object", "properties": {"n": {"type": "integer"}}}}}}},
                {"name": "v2", "served": false, "storage": false}]}})
    }

    #[test]
    fn a_definition_gives_a_kind_for_each_served_version() {
        let kinds = kinds_of(&definition());
        assert_eq!(kinds.len(), 1);
        let kind = &kinds[0];
        assert_eq!((kind.group, kind.version, kind.kind, kind.plural), ("example.com", "v1", "X", "xs"));
        assert_eq!(kind.schema, "com.example.v1.X");
        assert_eq!(kind.subresources.iter().map(|part| part.name).collect::<Vec<_>>(), ["status", "scale"]);
        assert_eq!(kind.scale_paths().spec_replicas, "/spec/n");
        assert_eq!(kind.field(&json!({"spec": {"color": "red"}}), "spec.color").as_deref(), Some("red"));
        assert_eq!(kind.field(&json!({}), "spec.nope"), None);
    }

    #[test]
    fn status_and_spec_change_through_their_own_paths() {
        let kind = &kinds_of(&definition())[0];
        let old = json!({"metadata": {"generation": 1}, "spec": {"n": 1}, "status": {"n": 1}});
        let mut new = json!({"metadata": {"generation": 1}, "spec": {"n": 2}, "status": {"n": 2}});
        kind.prepare_update(&mut new, &old, Part::Main);
        assert_eq!(new, json!({"metadata": {"generation": 2}, "spec": {"n": 2}, "status": {"n": 1}}));
        let mut new = json!({"metadata": {"generation": 1}, "spec": {"n": 2}, "status": {"n": "x"}});
        kind.prepare_update(&mut new, &old, Part::Status);
        assert_eq!(new["spec"]["n"], 1);
        let errors: Vec<String> =
            kind.validate_update(&new, &old, Part::Status).iter().map(ToString::to_string).collect();
        assert_eq!(
            errors,
            [
                "status.n: Invalid value: \"string\": n in body must be of type integer: \"string\"",
                ".status.n: Invalid value: 0: .status.n accessor error: x is of the type string, expected int64",
            ]
        );
    }

    #[test]
    fn versions_have_an_order() {
        let mut versions = ["v1beta1", "foo", "v1", "v10", "v1alpha2", "v2beta1", "v2"];
        versions.sort_by(|a, b| version_order(a, b));
        assert_eq!(versions, ["v10", "v2", "v1", "v2beta1", "v1beta1", "v1alpha2", "foo"]);
    }
}
