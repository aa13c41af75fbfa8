//! Builds all schemas: shapes from `k8s-openapi`, markers from the tables in `data/`.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use super::types::TYPES;
use super::{Definition, Held, ListType, MapType, PatchStrategy, Presence, Schema, Type};

/// Columns: type, field, list type, list map keys, patch strategy, patch merge key, map type.
const LISTS: &str = include_str!("../../data/lists.tsv");
/// Columns: type, field, default as JSON.
const DEFAULTS: &str = include_str!("../../data/defaults.tsv");
/// Columns: type, required fields.
const REQUIRED: &str = include_str!("../../data/required.tsv");

/// A line per type, and below it, indented, per field: name, letter of its presence, type in Go.
const FIELDS: &str = include_str!("../../data/fields.tsv");

/// Letters of the presence of a field in [`FIELDS`].
const PRESENCES: &[(&str, Presence)] = &[
    ("p", Presence::Pointer),
    ("P", Presence::PointerAlways),
    ("c", Presence::Collection),
    ("C", Presence::CollectionAlways),
    ("e", Presence::CollectionAsSaid),
    ("s", Presence::Scalar),
    ("S", Presence::ScalarAlways),
    ("o", Presence::Struct),
    ("t", Presence::Time),
    ("z", Presence::TimeOrNothing),
    ("q", Presence::Number),
];

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

/// The JSON schemas, with descriptions, of those of the types in [`TYPES`] that are wanted, and of all that they refer
/// to, by name.
pub(crate) fn generate(wanted: impl Fn(&str) -> bool) -> Map<String, Value> {
    let mut generator = SchemaSettings::openapi3().into_generator();
    for (_, add) in TYPES.iter().filter(|(name, _)| wanted(name)) {
        add(&mut generator);
    }
    generator.take_definitions(true)
}

/// What OpenAPI says of types beyond their shape. Rows are found by type.
pub(crate) struct Markers {
    required: HashMap<&'static str, Vec<Row>>,
    defaults: HashMap<&'static str, Vec<Row>>,
    lists: HashMap<&'static str, Vec<Row>>,
}

/// A row of a table without its first column.
type Row = Vec<&'static str>;

impl Markers {
    pub(crate) fn read() -> Self {
        Self { required: by_type(REQUIRED), defaults: by_type(DEFAULTS), lists: by_type(LISTS) }
    }

    /// Names of the required fields of a type, with commas between them.
    pub(crate) fn required(&self, type_: &str) -> Option<&'static str> {
        self.required.get(type_)?.first().map(|row| row[0])
    }

    /// The default of a field.
    pub(crate) fn default(&self, type_: &str, field: &str) -> Option<Value> {
        let row = self.defaults.get(type_)?.iter().find(|row| row[0] == field)?;
        serde_json::from_str(row[1]).ok()
    }

    /// List type, list map keys, patch strategy, patch merge key and map type of a field; empty where there is none.
    pub(crate) fn of_list(&self, type_: &str, field: &str) -> Option<&[&'static str]> {
        self.lists.get(type_)?.iter().find(|row| row[0] == field).map(|row| &row[1..])
    }
}

fn by_type(table: &'static str) -> HashMap<&'static str, Vec<Row>> {
    let mut rows: HashMap<&'static str, Vec<Row>> = HashMap::new();
    for line in table.lines().skip(1) {
        let mut columns = line.split('\t');
        let type_ = columns.next().unwrap_or_default();
        rows.entry(type_).or_default().push(columns.collect());
    }
    rows
}

#[derive(Default)]
struct Builder {
    texts: HashSet<&'static str>,
    named: HashMap<&'static str, &'static Schema>,
}

impl Builder {
    fn build(mut self) -> HashMap<&'static str, &'static Schema> {
        let shapes = generate(|_| true);
        let markers = Markers::read();

        let fields_in_go = fields_in_go();

        for (name, shape) in &shapes {
            let name = self.intern(name);
            let schema = if SPECIAL.iter().any(|(special, _)| *special == name) || shape["properties"].is_null() {
                leaf(SPECIAL.iter().find(|(special, _)| *special == name).map_or(Type::Any, |(_, type_)| *type_))
            } else {
                let required = markers.required(name).map_or(&[][..], |names| self.names(names));
                let definition = Definition { name, properties: OnceLock::new(), required };
                Schema { definition: Some(Held::Kept(Box::leak(Box::new(definition)))), ..leaf(Type::Object) }
            };
            self.named.insert(name, Box::leak(Box::new(schema)));
        }
        for (name, shape) in &shapes {
            let Some(Held::Kept(definition)) =
                self.named.get(name.as_str()).and_then(|schema| schema.definition.as_ref())
            else {
                continue;
            };
            let Some(fields) = shape["properties"].as_object() else { continue };
            let mut properties: Vec<(Cow<'static, str>, Schema)> = fields
                .iter()
                .map(|(field, shape)| {
                    let key = (name.as_str(), field.as_str());
                    let (presence, go_type) = fields_in_go.get(&key).copied().unwrap_or((Presence::Scalar, "string"));
                    let mut schema = self.schema(shape, go_type);
                    schema.presence = presence;
                    if let Some(row) = markers.of_list(name, field) {
                        self.mark(&mut schema, row);
                    }
                    schema.default = markers.default(name, field).map(|value| Held::Kept(Box::leak(Box::new(value))));
                    (Cow::Borrowed(self.intern(field)), schema)
                })
                .collect();
            properties.sort_by(|(a, _), (b, _)| a.cmp(b));
            // Set once: the names of the map are unique.
            let _ = definition.properties.set(properties.into_boxed_slice());
        }
        self.named
    }

    /// The schema of one value, without the markers of the field that holds it.
    fn schema(&mut self, shape: &Value, go_type: &'static str) -> Schema {
        if let Some(name) = reference(shape) {
            let schema = self.named.get(name).map_or(leaf(Type::Any), |schema| copy(schema));
            return Schema { go_type, ..schema };
        }
        let schema = match (shape["type"].as_str(), shape["format"].as_str()) {
            (Some("array"), _) => {
                let items = self.schema(&shape["items"], element(go_type));
                Schema { element: Some(Held::Kept(Box::leak(Box::new(items)))), ..leaf(Type::Array) }
            }
            (Some("object"), _) if shape["additionalProperties"].is_object() => {
                let values = self.schema(&shape["additionalProperties"], element(go_type));
                Schema { element: Some(Held::Kept(Box::leak(Box::new(values)))), ..leaf(Type::Map) }
            }
            (Some("string"), Some("byte")) => leaf(Type::Bytes),
            (Some("string"), Some("date-time")) => leaf(Type::Time),
            (Some("string"), _) => leaf(Type::String),
            (Some("integer"), Some("int32")) => leaf(Type::Int32),
            (Some("integer"), _) => leaf(Type::Int64),
            (Some("number"), _) => leaf(Type::Double),
            (Some("boolean"), _) => leaf(Type::Boolean),
            _ => leaf(Type::Any),
        };
        Schema { go_type, ..schema }
    }

    fn mark(&mut self, schema: &mut Schema, row: &[&'static str]) {
        schema.list = match row[0] {
            "map" => ListType::Map(self.names(row[1])),
            "set" => ListType::Set,
            _ => ListType::Atomic,
        };
        let strategies: Vec<&str> = row[2].split(',').collect();
        schema.patch = PatchStrategy {
            merge: strategies.contains(&"merge"),
            merge_key: Some(row[3]).filter(|key| !key.is_empty()).map(|key| self.intern(key)),
            replace: strategies.contains(&"replace"),
            retain_keys: strategies.contains(&"retainKeys"),
        };
        if row[4] == "atomic" {
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

pub(super) fn leaf(type_: Type) -> Schema {
    Schema {
        type_,
        presence: Presence::Scalar,
        go_type: "",
        definition: None,
        element: None,
        list: ListType::Atomic,
        map: MapType::Granular,
        patch: PatchStrategy::default(),
        default: None,
    }
}

pub(super) fn copy(schema: &Schema) -> Schema {
    Schema { definition: schema.definition.clone(), element: schema.element.clone(), ..leaf(schema.type_) }
}

/// The name that a `$ref` leads to, directly or, where a description stands beside it, through `allOf`.
pub(crate) fn reference(shape: &Value) -> Option<&str> {
    let path = shape["$ref"].as_str().or_else(|| shape["allOf"][0]["$ref"].as_str())?;
    path.rsplit('/').next()
}

/// By type and field: how Go writes it, and its type there.
fn fields_in_go() -> HashMap<(&'static str, &'static str), (Presence, &'static str)> {
    let mut type_ = "";
    let mut fields = HashMap::new();
    for line in FIELDS.lines().skip(1) {
        let Some(field) = line.strip_prefix('\t') else {
            type_ = line;
            continue;
        };
        let mut columns = field.splitn(3, '\t');
        let (Some(name), Some(letter), Some(go_type)) = (columns.next(), columns.next(), columns.next()) else {
            continue;
        };
        let presence =
            PRESENCES.iter().find(|(known, _)| *known == letter).map_or(Presence::Scalar, |(_, found)| *found);
        fields.insert((type_, name), (presence, go_type));
    }
    fields
}

/// The Go type of the elements of a list or map; empty if the type has a name of its own.
fn element(go_type: &'static str) -> &'static str {
    let inner = go_type.strip_prefix("[]").or_else(|| {
        let (_, inner) = go_type.strip_prefix("map[")?.split_once(']')?;
        Some(inner)
    });
    inner.unwrap_or_default().trim_start_matches('*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_go_types_has_every_field() {
        let known = fields_in_go();
        let mut missing = Vec::new();
        for (type_, schema) in all() {
            let fields = schema.properties().map(|(field, _)| field);
            // These two are part of every kind, and left out of the table.
            missing.extend(
                fields
                    .filter(|field| !known.contains_key(&(*type_, *field)) && !matches!(*field, "apiVersion" | "kind"))
                    .map(|field| (*type_, field)),
            );
        }
        missing.sort_unstable();
        assert!(missing.is_empty(), "add to data/fields.tsv: {missing:?}");
    }
}
