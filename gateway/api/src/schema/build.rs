//! Builds all schemas: shapes from `k8s-openapi`, markers from the tables in `data/`.

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use super::types::TYPES;
use super::{Definition, ListType, MapType, PatchStrategy, Schema, Type};

/// Columns: type, field, list type, list map keys, patch strategy, patch merge key, map type.
const LISTS: &str = include_str!("../../data/lists.tsv");
/// Columns: type, field, default as JSON.
const DEFAULTS: &str = include_str!("../../data/defaults.tsv");
/// Columns: type, required fields.
const REQUIRED: &str = include_str!("../../data/required.tsv");

/// Types whose schema is not what their JSON is.
const SPECIAL: &[(&str, Type)] = &[
    ("io.k8s.apimachinery.pkg.api.resource.Quantity", Type::Quantity),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1", Type::Any),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime", Type::MicroTime),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.Time", Type::Time),
    ("io.k8s.apimachinery.pkg.runtime.RawExtension", Type::Any),
    ("io.k8s.apimachinery.pkg.util.intstr.IntOrString", Type::IntOrString),
];

/// All schemas by OpenAPI name.
pub(super) fn all() -> &'static HashMap<&'static str, &'static Schema> {
    static ALL: OnceLock<HashMap<&'static str, &'static Schema>> = OnceLock::new();
    ALL.get_or_init(|| Builder::default().build())
}

/// The JSON schemas of the types in [`TYPES`] and of all that they refer to, by name.
pub(super) fn generate() -> Map<String, Value> {
    let mut generator = SchemaSettings::openapi3().into_generator();
    for (_, add) in TYPES {
        add(&mut generator);
    }
    generator.take_definitions(true)
}

#[derive(Default)]
struct Builder {
    texts: HashSet<&'static str>,
    named: HashMap<&'static str, &'static Schema>,
}

impl Builder {
    fn build(mut self) -> HashMap<&'static str, &'static Schema> {
        let shapes = generate();
        let required: HashMap<&str, &str> = rows(REQUIRED).map(|row| (row[0], row[1])).collect();
        let defaults: HashMap<(&str, &str), &str> = rows(DEFAULTS).map(|row| ((row[0], row[1]), row[2])).collect();
        let lists: HashMap<(&str, &str), Vec<&str>> = rows(LISTS).map(|row| ((row[0], row[1]), row)).collect();

        for (name, shape) in &shapes {
            let name = self.intern(name);
            let schema = if SPECIAL.iter().any(|(special, _)| *special == name) || shape["properties"].is_null() {
                leaf(SPECIAL.iter().find(|(special, _)| *special == name).map_or(Type::Any, |(_, type_)| *type_))
            } else {
                let required = required.get(name).map_or(&[][..], |names| self.names(names));
                let definition = Definition { name, properties: OnceLock::new(), required };
                Schema { definition: Some(Box::leak(Box::new(definition))), ..leaf(Type::Object) }
            };
            self.named.insert(name, Box::leak(Box::new(schema)));
        }
        for (name, shape) in &shapes {
            let Some(definition) = self.named.get(name.as_str()).and_then(|schema| schema.definition) else { continue };
            let Some(fields) = shape["properties"].as_object() else { continue };
            let mut properties: Vec<(&'static str, Schema)> = fields
                .iter()
                .map(|(field, shape)| {
                    let key = (name.as_str(), field.as_str());
                    let mut schema = self.schema(shape);
                    if let Some(row) = lists.get(&key) {
                        self.mark(&mut schema, row);
                    }
                    schema.default = defaults
                        .get(&key)
                        .and_then(|json| serde_json::from_str(json).ok())
                        .map(|value: Value| &*Box::leak(Box::new(value)));
                    (self.intern(field), schema)
                })
                .collect();
            properties.sort_by_key(|(field, _)| *field);
            // Set once: the names of the map are unique.
            let _ = definition.properties.set(properties.into_boxed_slice());
        }
        self.named
    }

    /// The schema of one value, without the markers of the field that holds it.
    fn schema(&mut self, shape: &Value) -> Schema {
        if let Some(name) = reference(shape) {
            return self.named.get(name).map_or(leaf(Type::Any), |schema| copy(schema));
        }
        match (shape["type"].as_str(), shape["format"].as_str()) {
            (Some("array"), _) => {
                let items = self.schema(&shape["items"]);
                Schema { element: Some(Box::leak(Box::new(items))), ..leaf(Type::Array) }
            }
            (Some("object"), _) if shape["additionalProperties"].is_object() => {
                let values = self.schema(&shape["additionalProperties"]);
                Schema { element: Some(Box::leak(Box::new(values))), ..leaf(Type::Map) }
            }
            (Some("string"), Some("byte")) => leaf(Type::Bytes),
            (Some("string"), Some("date-time")) => leaf(Type::Time),
            (Some("string"), _) => leaf(Type::String),
            (Some("integer"), Some("int32")) => leaf(Type::Int32),
            (Some("integer"), _) => leaf(Type::Int64),
            (Some("number"), _) => leaf(Type::Double),
            (Some("boolean"), _) => leaf(Type::Boolean),
            _ => leaf(Type::Any),
        }
    }

    fn mark(&mut self, schema: &mut Schema, row: &[&str]) {
        schema.list = match row[2] {
            "map" => ListType::Map(self.names(row[3])),
            "set" => ListType::Set,
            _ => ListType::Atomic,
        };
        let strategies: Vec<&str> = row[4].split(',').collect();
        schema.patch = PatchStrategy {
            merge: strategies.contains(&"merge"),
            merge_key: Some(row[5]).filter(|key| !key.is_empty()).map(|key| self.intern(key)),
            replace: strategies.contains(&"replace"),
            retain_keys: strategies.contains(&"retainKeys"),
        };
        if row[6] == "atomic" {
            schema.map = MapType::Atomic;
        }
    }

    fn names(&mut self, list: &str) -> &'static [&'static str] {
        let names: Vec<&'static str> = list.split(',').map(|name| self.intern(name)).collect();
        Box::leak(names.into_boxed_slice())
    }

    /// One copy of each text, kept for good.
    fn intern(&mut self, text: &str) -> &'static str {
        if let Some(known) = self.texts.get(text) {
            return known;
        }
        let kept: &'static str = Box::leak(text.to_owned().into_boxed_str());
        self.texts.insert(kept);
        kept
    }
}

fn leaf(type_: Type) -> Schema {
    Schema {
        type_,
        definition: None,
        element: None,
        list: ListType::Atomic,
        map: MapType::Granular,
        patch: PatchStrategy::default(),
        default: None,
    }
}

fn copy(schema: &Schema) -> Schema {
    Schema { definition: schema.definition, element: schema.element, ..leaf(schema.type_) }
}

/// The name that a `$ref` leads to, directly or, where a description stands beside it, through `allOf`.
fn reference(shape: &Value) -> Option<&str> {
    let path = shape["$ref"].as_str().or_else(|| shape["allOf"][0]["$ref"].as_str())?;
    path.rsplit('/').next()
}

/// The rows below the heading.
fn rows(table: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    table.lines().skip(1).map(|line| line.split('\t').collect())
}
