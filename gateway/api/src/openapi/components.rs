//! The definitions of a document: the shapes of `k8s-openapi` with what Kubernetes' own documents say beyond them.

use serde_json::{Map, Value, json};

use super::parts_of;
use crate::kind::Kind;
use crate::schema::build::{Markers, generate, reference};

/// The two forms of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    V2,
    V3,
}

impl Dialect {
    /// Where a definition is found in a document.
    pub fn path(self, name: &str) -> String {
        match self {
            Self::V2 => format!("#/definitions/{name}"),
            Self::V3 => format!("#/components/schemas/{name}"),
        }
    }
}

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// Types that operations take and give whatever the kind.
pub(super) const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
pub(super) const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
pub(super) const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

/// A kind with little beside what every object has, which it lends to custom resources: with what is said of it.
const LENDER: &str = "io.k8s.api.core.v1.ConfigMap";
const COMMON: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// The definitions of these kinds, of their lists, and of all that they and their operations refer to.
pub(super) fn definitions(kinds: &[&Kind], dialect: Dialect) -> Map<String, Value> {
    let markers = Markers::read();
    let parts = parts_of(kinds);
    let rows = || kinds.iter().chain(&parts);
    let has_custom = kinds.iter().any(|kind| kind.custom.is_some());
    let is_row = |name: &str| rows().any(|kind| kind.schema == name);
    let wanted = |name: &str| name.starts_with(META) || (has_custom && name == LENDER) || is_row(name);

    let mut definitions: Map<String, Value> = generate(wanted)
        .into_iter()
        .map(|(name, shape)| {
            let definition = definition(&name, shape, &markers, dialect);
            (name, definition)
        })
        .collect();
    let common = match definitions.get(LENDER) {
        Some(lender) if has_custom => common(lender),
        _ => Map::new(),
    };
    if !is_row(LENDER) {
        definitions.shift_remove(LENDER);
    }
    for kind in rows() {
        if let Some(definition) = definitions.get_mut(kind.schema) {
            definition["x-kubernetes-group-version-kind"] = json!([gvk(kind, "")]);
        }
    }
    for kind in kinds {
        definitions.insert(list_name(kind), list(kind, dialect));
        if let Some(mut definition) = kind.custom_definition(&common, dialect == Dialect::V2) {
            definition["x-kubernetes-group-version-kind"] = json!([gvk(kind, "")]);
            definitions.insert(kind.schema.to_owned(), definition);
        }
    }
    definitions.insert(
        PATCH.into(),
        json!({"description": "A patch in one of the formats of its Content-Type.", "type": "object"}),
    );
    definitions.sort_keys();
    definitions
}

/// What every object has, as this definition shows it.
fn common(definition: &Value) -> Map<String, Value> {
    let field = |name: &str| {
        let mut field = definition["properties"][name].clone();
        if let Some(field) = field.as_object_mut() {
            field.shift_remove("default");
        }
        (name.to_owned(), field)
    };
    COMMON.into_iter().map(field).collect()
}

/// The name of the definition of a kind's lists.
pub(super) fn list_name(kind: &Kind) -> String {
    format!("{}List", kind.schema)
}

/// Group, version and kind as an extension; `suffix` is `List` for lists.
pub(super) fn gvk(kind: &Kind, suffix: &str) -> Value {
    json!({"group": kind.group, "version": kind.version, "kind": format!("{}{suffix}", kind.kind)})
}

fn list(kind: &Kind, dialect: Dialect) -> Value {
    json!({
        "description": format!("A list of {} objects.", kind.kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"},
            "items": {"type": "array", "items": {"$ref": dialect.path(kind.schema)}},
            "kind": {"type": "string"},
            "metadata": {"$ref": dialect.path(LIST_META)},
        },
        "x-kubernetes-group-version-kind": [gvk(kind, "List")],
    })
}

/// The definition of a type in a document, from its shape.
pub(super) fn definition(name: &str, mut shape: Value, markers: &Markers, dialect: Dialect) -> Value {
    let special = match name.rsplit('.').next() {
        Some("IntOrString") => Some(match dialect {
            Dialect::V2 => json!({"type": "string", "format": "int-or-string"}),
            Dialect::V3 => json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]}),
        }),
        Some("Quantity") => Some(match dialect {
            Dialect::V2 => json!({"type": "string"}),
            Dialect::V3 => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        }),
        _ => None,
    };
    if let Some(mut special) = special {
        special["description"] = shape["description"].take();
        return special;
    }
    let Value::Object(fields) = &mut shape else { return shape };
    // The crate requires metadata of every kind; Kubernetes requires what the table says.
    fields.shift_remove("required");
    if let Some(required) = markers.required(name) {
        fields.insert("required".into(), required.split(',').collect::<Vec<_>>().into());
    }
    if let Some(Value::Object(properties)) = fields.get_mut("properties") {
        for (field, shape) in properties {
            rewrite(shape, dialect, markers.default(name, field));
            if let Some(row) = markers.of_list(name, field) {
                mark(shape, row);
            }
        }
    }
    shape
}

/// Brings references into the form of the dialect; a reference with a description is wrapped in v3.
fn rewrite(shape: &mut Value, dialect: Dialect, default: Option<Value>) {
    if let Some(name) = reference(shape) {
        let target = json!({"$ref": dialect.path(name)});
        let description = shape["description"].take();
        *shape = match dialect {
            Dialect::V3 if description.is_string() || default.is_some() => json!({"allOf": [target]}),
            _ => target,
        };
        if description.is_string() {
            shape["description"] = description;
        }
    } else {
        for inner in ["items", "additionalProperties"] {
            if let Some(inner) = shape.get_mut(inner).filter(|inner| inner.is_object()) {
                rewrite(inner, dialect, None);
            }
        }
    }
    if let (Some(default), Dialect::V3) = (default, dialect) {
        shape["default"] = default;
    }
}

fn mark(shape: &mut Value, row: &[&'static str]) {
    let [list_type, keys, strategy, merge_key, map_type] = row else { return };
    let texts = [
        ("x-kubernetes-list-type", list_type),
        ("x-kubernetes-patch-strategy", strategy),
        ("x-kubernetes-patch-merge-key", merge_key),
        ("x-kubernetes-map-type", map_type),
    ];
    for (name, text) in texts {
        if !text.is_empty() {
            shape[name] = (*text).into();
        }
    }
    if !keys.is_empty() {
        shape["x-kubernetes-list-map-keys"] = keys.split(',').collect::<Vec<_>>().into();
    }
}
